//! A process that is stopped where it cannot see it, while its guest reads the time.

use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use accel_api::Accelerator;
use accel_api::host_time::Lease;
use accel_api::x86::{CpuState, gpr};
use iced_x86::code_asm::*;

use crate::conformance::run_all;
use crate::rig::{Rig, map, tsc_khz};
use crate::snippet::{Asm, exit};

/// Leases that the process is stopped for, at least.
const STOPPED: u64 = 3;
/// The guest ends once this is not 0.
const OVER: u64 = map::DATA + 0x40;
/// How often the measurement is made, if others on the host keep a vCPU from running for long.
const TRIES: u32 = 3;
/// Until the guest has begun.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a vCPU leaves its last reading for the other.
fn last(vcpu: u64) -> u64 {
    map::DATA + 0x80 + 0x40 * vcpu
}

/// Reads the counter and compares it with the other vCPU's last reading, until it is over. RBX: how often it was less than
/// that, or than its own before. R14: its largest step.
fn body(a: &mut CodeAssembler, vcpu: u64) -> Asm {
    let (mut top, mut good) = (a.create_label(), a.create_label());
    let read = |a: &mut CodeAssembler| {
        a.lfence()?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)
    };
    read(a)?;
    a.mov(r12, rax)?;
    a.set_label(&mut top)?;
    a.mov(r13, qword_ptr(last(1 - vcpu)))?;
    read(a)?;
    a.cmp(rax, r13)?;
    a.jae(good)?;
    a.inc(rbx)?;
    a.set_label(&mut good)?;
    a.mov(qword_ptr(last(vcpu)), rax)?;
    a.mov(rcx, rax)?;
    a.sub(rax, r12)?;
    a.adc(rbx, 0)?;
    a.mov(r12, rcx)?;
    a.cmp(rax, r14)?;
    a.cmova(r14, rax)?;
    a.cmp(dword_ptr(OVER), 0)?;
    a.je(top)?;
    exit(a)
}

/// Stops this process for as many seconds.
fn stop(seconds: u64) {
    let script = format!("kill -STOP $1; sleep {seconds}; kill -CONT $1");
    let process = std::process::id().to_string();
    let status = Command::new("sh").args(["-c", &script, "sh", &process]).status().expect("sh");
    assert!(status.success(), "sh: {status}");
}

/// A stop that two vCPUs are in, for so many seconds: their largest steps. Time never goes back for them.
fn largest_steps(accel: &Arc<dyn Accelerator>, seconds: u64) -> [u64; 2] {
    let rig = Rig::smp(accel, 2);
    let states = [(0, map::CODE), (1, map::USER_CODE)].map(|(id, at)| {
        rig.code_at(64, at, |a| body(a, id.into()));
        CpuState { rip: at, ..rig.long_mode(id) }
    });
    thread::scope(|s| {
        s.spawn(|| {
            let start = Instant::now();
            while [0, 1].iter().any(|vcpu| rig.read::<u64>(last(*vcpu)) == 0) && start.elapsed() < PATIENCE {
                thread::yield_now();
            }
            stop(seconds);
            rig.write(OVER, 1u32);
        });
        let (zero, others) = run_all(&rig, &states[0], &states[1..]);
        let ends = [&zero, &others[0]];
        assert_eq!(ends.map(|end| end.gpr[gpr::RBX]), [0, 0], "time went back");
        ends.map(|end| end.gpr[14])
    })
}

/// However long the stop, no vCPU sees time pass for more than a lease and what it has to wait for its turn, and none sees it
/// go back, neither by itself nor beside the other.
///
/// Alone in its process: all of it is stopped, tests too that run at the same time.
///
/// # Panics
/// A vCPU has seen more.
pub fn a_stop_costs_the_guest_one_lease(accel: &Arc<dyn Accelerator>) {
    let seconds = (STOPPED * Lease::TICKS).div_ceil(1000 * u64::from(tsc_khz()));
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let steps = largest_steps(accel, seconds);
        if steps.iter().all(|step| *step < 2 * Lease::TICKS) {
            return;
        }
        seen.push(steps.map(|step| step as f64 / Lease::TICKS as f64));
    }
    panic!("steps, in leases, of two vCPUs in stops of {STOPPED} and more: {seen:?}");
}
