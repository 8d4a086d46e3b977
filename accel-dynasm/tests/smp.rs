//! Two vCPUs that write code, run it and run each other's, while they are kicked all the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use accel_api::x86::gpr;
use accel_api::{Exit, Kick};
use iced_x86::code_asm::*;
use testkit::rig::{Rig, map};

const TIME: Duration = Duration::from_secs(3);
/// After this a vCPU hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// `mov eax, ecx's value; ret` in a slot of each vCPU: written as a whole, so that who runs it meanwhile sees the old
/// or the new. What a vCPU has written itself it must run at once. `slots`: in the same line, the same page, or in two
/// pages.
fn run(slots: [u64; 2]) {
    let accel = accel_dynasm::create().expect("this host lets us translate");
    let rig = Rig::smp(&accel, 2);
    rig.code(|a| {
        let (mut top, mut bad) = (a.create_label(), a.create_label());
        a.set_label(&mut top)?;
        a.inc(ecx)?;
        a.mov(eax, ecx)?;
        a.shl(rax, 8)?;
        a.mov(rdx, 0x9090_c300_0000_00b8u64)?;
        a.or(rax, rdx)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.call(rbx)?;
        a.cmp(eax, ecx)?;
        a.jne(bad)?;
        a.call(rbp)?;
        a.jmp(top)?;
        a.set_label(&mut bad)?;
        a.ud2()
    });
    for slot in slots {
        rig.write(slot, 0x90c3u64.swap_bytes() >> 48);
    }
    let kicks: Mutex<Vec<Arc<dyn Kick>>> = Mutex::default();
    let (barrier, over) = (Barrier::new(3), AtomicBool::new(false));
    let began = Instant::now();
    let turns = std::thread::scope(|s| {
        let vcpus = [0, 1].map(|id: u32| {
            let (rig, kicks, barrier, over) = (&rig, &kicks, &barrier, &over);
            s.spawn(move || {
                let mut state = rig.long_mode(id);
                state.gpr[gpr::RBX] = slots[id as usize];
                state.gpr[gpr::RBP] = slots[1 - id as usize];
                state.gpr[gpr::RCX] = 0;
                state.gpr[gpr::RSP] = map::STACK - 0x800 * u64::from(id);
                let mut runner = rig.vcpu(id, &state);
                kicks.lock().expect("lock").push(runner.vcpu.kicker());
                barrier.wait();
                let mut returns = 0u64;
                while !over.load(Ordering::Relaxed) {
                    match runner.vcpu.run().expect("run") {
                        Exit::Kicked => returns += 1,
                        other => panic!("{other:x?} at {:#x?}", runner.save().rip),
                    }
                    assert_eq!(rig.traps(), [], "what was written is not what ran");
                }
                (runner.save().gpr[gpr::RCX] as u32, returns)
            })
        });
        barrier.wait();
        let kicks = kicks.lock().expect("lock").clone();
        while vcpus.iter().any(|vcpu| !vcpu.is_finished()) {
            over.store(began.elapsed() > TIME, Ordering::Relaxed);
            kicks.iter().for_each(|kick| kick.kick());
            std::thread::sleep(Duration::from_micros(300));
            if began.elapsed() > PATIENCE {
                hang();
            }
        }
        vcpus.map(|vcpu| vcpu.join().expect("no panic"))
    });
    for (turns, returns) in turns {
        assert!(turns > 100 && returns > 100, "{turns} turns, {returns} returns: nothing was tested");
    }
}

/// A thread that hangs cannot be failed otherwise.
#[expect(clippy::print_stderr, reason = "what an abort leaves behind")]
fn hang() -> ! {
    eprintln!("a vCPU does not return when it is kicked");
    std::process::abort();
}

#[test]
fn each_runs_what_the_other_writes() {
    run([map::DATA, map::DATA + 0x20]);
    run([map::DATA, map::DATA + 0x800]);
    run([map::DATA, map::DATA + 0x1000]);
}
