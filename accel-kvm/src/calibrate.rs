//! How fast guests run on this host's KVM: measured, because a device that opens proves nothing.
//!
//! 1. There are hosts whose KVM runs ring 3 on the processor and emulates ring 0, a microsecond an instruction, and
//!    hosts where no vCPU can be made at all. So a throw-away VM of five pages runs one small program in both rings.
//! 2. The program is this file's assembly, copied into the guest; the loop it times also runs in this process, as the
//!    measure of what the processor can do. Both being the same bytes, ratios mean something, and they do so in a
//!    virtual machine on a slow machine too.
//! 3. Each speed is the best of several runs of 25 to 100 us, in CPU time of the thread, so that a busy host does not make
//!    KVM look bad.
//! 4. It happens on a thread of its own. Whatever KVM does, the caller has an answer within [`LIMIT`]; and the VM's end,
//!    for which the kernel waits out a grace period, is not waited for.
#![allow(unsafe_code)] // assembly, and a clock that is not wrapped

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use accel_api::{AccelError, Access, GuestRam, Kick as _, Measured, SlotId};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{ByteValued, Bytes as _, GuestAddress};

use crate::exit::{Stop, enter};
use crate::requests::VcpuRequests;
use crate::slots::Slots;
use crate::sys::host;
use crate::vm;

/// After this a calibration counts as hung. Some thousand times what it takes, for hosts that are emulated themselves.
const LIMIT: Duration = Duration::from_secs(5);
/// How long an interrupted guest may take to come back.
const GRACE: Duration = Duration::from_secs(1);
/// A run this long is measured well enough.
const RUN: Duration = Duration::from_micros(25);
/// Runs of which the fastest counts.
const RUNS: u32 = 4;
/// When one ring has taken this much CPU time, what has been measured is enough.
const BUDGET: Duration = Duration::from_millis(10);
/// Exits that are timed together: reading the clock takes a fraction of one.
const EXITS: u32 = 8;

/// Why guests do not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CalibrateError {
    /// KVM refuses to make or load something.
    #[error("KVM's device opens, but no guest can be made: {0}")]
    Make(#[from] AccelError),
    /// No memory for it.
    #[error("no memory for a guest of some pages: {0}")]
    Memory(#[from] accel_api::RamError),
    /// A guest ends otherwise than by saying that it is done.
    #[error("KVM cannot run a simple guest in ring {ring}: {why}")]
    Stopped {
        /// Its privilege level.
        ring: u8,
        /// What happened.
        why: String,
    },
    /// A guest does not come back.
    #[error("a simple guest that should take milliseconds did not end in {} s", LIMIT.as_secs())]
    Hung,
    /// No thread to run it on.
    #[error("no thread for a guest: {0}")]
    Thread(std::io::Error),
}

// The guest: reads how often to loop, loops, tells by a port write that it is done, and begins again. The loop stands for
// what kernels do most: loads, stores, arithmetic, the stack, branches. It must be free of what only some processors have.
std::arch::global_asm!(
    ".pushsection .text.gearshift_calibration, \"ax\", @progbits",
    ".globl gearshift_calibration_start, gearshift_calibration_loop, gearshift_calibration_end",
    "gearshift_calibration_start:",
    "    mov rdi, [rsi + 128]",
    "    call gearshift_calibration_loop",
    "    out 0x80, al",
    "    jmp gearshift_calibration_start",
    // RDI: how often. RSI: 128 bytes of memory. Changes RAX, RCX and RDX.
    "gearshift_calibration_loop:",
    "    test rdi, rdi",
    "    jz 3f",
    "2:  mov rax, [rsi]",
    "    add rax, rdi",
    "    mov [rsi + 8], rax",
    "    lea rdx, [rax + rdi * 2 + 5]",
    "    xor edx, 0x55",
    "    mov [rsi + 16], edx",
    "    movzx ecx, byte ptr [rsi + 24]",
    "    shl rcx, 3",
    "    push rcx",
    "    add [rsi + 32], rdx",
    "    pop rax",
    "    and rax, 0xff",
    "    cmp rax, rcx",
    "    jb 3f",
    "    dec rdi",
    "    jnz 2b",
    "3:  ret",
    "gearshift_calibration_end:",
    ".popsection",
);

/// Instructions from one round of the loop to the next.
const LOOP_INSTRUCTIONS: f64 = 16.0;

unsafe extern "C" {
    static gearshift_calibration_start: u8;
    static gearshift_calibration_end: u8;
    fn gearshift_calibration_loop(rounds: u64, memory: *mut [u64; 16]);
}

/// The guest's code.
fn code() -> &'static [u8] {
    let (start, end) = (&raw const gearshift_calibration_start, &raw const gearshift_calibration_end);
    // SAFETY: the assembly above, which nobody writes to, lies between the two.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

// Guest-physical addresses, a page each; linear addresses are the same.
const PML4: u64 = 0;
const PDPT: u64 = 0x1000;
const DIRECTORY: u64 = 0x2000;
const CODE: u64 = 0x3000;
const DATA: u64 = 0x4000;
const PAGES: u64 = 5;
/// Where in [`DATA`] the guest looks how often to loop. The page's end is the stack.
const ROUNDS: u64 = DATA + 128;

/// Measures. Takes some 3 ms.
///
/// # Errors
/// Guests do not run.
pub(crate) fn calibrate(kvm: Kvm) -> Result<Measured, CalibrateError> {
    let (result, outcome) = mpsc::channel();
    let requests = Arc::new(VcpuRequests::default());
    let watched = requests.clone();
    let work = move || {
        // The receiver has given up on a guest that hung; nobody else is interested.
        let send = |measured| drop(result.send(measured));
        match Guest::new(&kvm, &watched) {
            Ok(mut guest) => send(guest.measure()),
            Err(error) => send(Err(error)),
        }
    };
    thread::Builder::new().name("calibrate".to_owned()).spawn(work).map_err(CalibrateError::Thread)?;
    match outcome.recv_timeout(LIMIT) {
        Ok(measured) => measured,
        Err(RecvTimeoutError::Disconnected) => Err(CalibrateError::Hung),
        Err(RecvTimeoutError::Timeout) => {
            requests.kick();
            // Only so that it does not go on for ever; it is too late for an answer.
            drop(outcome.recv_timeout(GRACE));
            Err(CalibrateError::Hung)
        }
    }
}

/// A VM with one vCPU, on the thread that runs it.
struct Guest<'a> {
    vcpu: VcpuFd,
    requests: &'a VcpuRequests,
    ram: GuestRam,
    // Dropped after the vCPU: KVM's slots refer to the RAM.
    _slots: Slots,
    _vm: VmFd,
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.requests.unbind();
    }
}

impl<'a> Guest<'a> {
    fn new(kvm: &Kvm, requests: &'a VcpuRequests) -> Result<Self, CalibrateError> {
        let ram = GuestRam::new(&[(0, PAGES * accel_api::PAGE_SIZE)])?;
        // Present, writable, for user mode; the directory's entry maps 2 MiB (Intel SDM vol. 3, 4.5).
        for (table, entry) in [(PML4, PDPT | 7), (PDPT, DIRECTORY | 7), (DIRECTORY, 7 | 1 << 7)] {
            write(&ram, table, entry)?;
        }
        let memory = ram.memory().write_slice(code(), GuestAddress(CODE));
        memory.map_err(|_| AccelError::BadSlot { slot: 0, why: "the guest's code does not fit" })?;
        let (vm, slots) = (vm::create(kvm)?, Slots::default());
        for region in ram.regions() {
            slots.map(&vm, SlotId(0), region, Access::ReadWrite)?;
        }
        let mut vcpu = vm.create_vcpu(0).map_err(host("KVM_CREATE_VCPU"))?;
        requests.bind(&mut vcpu)?;
        Ok(Self { vcpu, requests, ram, _slots: slots, _vm: vm })
    }

    fn measure(&mut self) -> Result<Measured, CalibrateError> {
        let mut native_memory = [0; 16];
        let native = speed(Duration::ZERO, &mut |rounds| {
            // SAFETY: the assembly above changes 40 bytes of the memory it is given and registers that a C function may.
            unsafe { gearshift_calibration_loop(rounds, &raw mut native_memory) };
            Ok(())
        })?;
        let [(ring0, exit), (ring3, _)] = [self.ring(0)?, self.ring(3)?];
        Ok(Measured {
            ring0_ns: ring0,
            ring3_ns: ring3,
            native_ns: native,
            exit_ns: exit.as_secs_f64() * 1e9,
        })
    }

    /// Nanoseconds an instruction at privilege level `ring`, and the time of an exit from there.
    fn ring(&mut self, ring: u8) -> Result<(f64, Duration), CalibrateError> {
        self.load(ring)?;
        let exit = self.exit(ring)?;
        Ok((speed(exit, &mut |rounds| self.run(ring, rounds))?, exit))
    }

    /// Puts the vCPU at the program's start in 64-bit mode (Intel SDM vol. 3, 10.8.5.4) at privilege level `ring`.
    fn load(&mut self, ring: u8) -> Result<(), CalibrateError> {
        // The last port write is complete only once KVM is entered again.
        self.vcpu.set_kvm_immediate_exit(1);
        let settled = enter(&mut self.vcpu).map_err(|error| stopped(ring, error.to_string()))?;
        self.vcpu.set_kvm_immediate_exit(0);
        if !matches!(settled, Stop::Interrupted) {
            return Err(stopped(ring, what(settled)));
        }
        let segment = |selector: u16, type_| kvm_segment {
            limit: u32::MAX,
            selector: selector | u16::from(ring),
            type_,
            present: 1,
            dpl: ring,
            s: 1,
            g: 1,
            ..kvm_segment::default()
        };
        let code = kvm_segment { l: 1, ..segment(0x08, 0xb) };
        let data = kvm_segment { db: 1, ..segment(0x10, 3) };
        let reset = self.vcpu.get_sregs().map_err(host("KVM_GET_SREGS"))?;
        let sregs = kvm_sregs {
            cs: code,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            cr0: 0x8000_0031, // PG, NE, ET, PE
            cr3: PML4,
            cr4: 1 << 5,            // PAE
            efer: 1 << 10 | 1 << 8, // LMA, LME
            ..reset
        };
        self.vcpu.set_sregs(&sregs).map_err(host("KVM_SET_SREGS"))?;
        // IOPL lets ring 3 write to the port.
        let rflags = 2 | u64::from(ring) << 12;
        let regs = kvm_regs {
            rip: CODE,
            rsp: DATA + accel_api::PAGE_SIZE,
            rsi: DATA,
            rflags,
            ..kvm_regs::default()
        };
        self.vcpu.set_regs(&regs).map_err(host("KVM_SET_REGS"))?;
        Ok(())
    }

    /// Has the guest loop `rounds` times.
    fn run(&mut self, ring: u8, rounds: u64) -> Result<(), CalibrateError> {
        write(&self.ram, ROUNDS, rounds)?;
        loop {
            match enter(&mut self.vcpu).map_err(|error| stopped(ring, error.to_string()))? {
                Stop::Port { port: 0x80, write: true, .. } => return Ok(()),
                Stop::Interrupted if self.requests.take_kick() => return Err(CalibrateError::Hung),
                Stop::Interrupted | Stop::Again => {}
                other => return Err(stopped(ring, what(other))),
            }
        }
    }

    /// What it takes to leave the guest and enter it again: the best of several batches.
    fn exit(&mut self, ring: u8) -> Result<Duration, CalibrateError> {
        let mut best = Duration::MAX;
        for _ in 0..RUNS {
            let entered = cpu_time();
            for _ in 0..EXITS {
                self.run(ring, 0)?;
            }
            best = best.min(cpu_time().saturating_sub(entered) / EXITS);
        }
        Ok(best)
    }
}

/// CPU time of the calling thread, the guest's included.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every Linux, and the time is written to a timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Nanoseconds an instruction of the loop, of which `run` runs so many rounds. `overhead` is a run of none.
fn speed(
    overhead: Duration,
    run: &mut dyn FnMut(u64) -> Result<(), CalibrateError>,
) -> Result<f64, CalibrateError> {
    let started = cpu_time();
    let mut time = |rounds: u64| {
        let entered = cpu_time();
        run(rounds)?;
        Ok::<_, CalibrateError>(cpu_time().saturating_sub(entered).saturating_sub(overhead))
    };
    // From one round on, since a round takes from a nanosecond to tens of microseconds.
    let enough = RUN.max(overhead * 4);
    let mut rounds = 1;
    let mut best = loop {
        let mut took = time(rounds)?;
        if took >= enough {
            // A run that was disturbed ends nothing.
            took = took.min(time(rounds)?);
        }
        if took >= enough || cpu_time().saturating_sub(started) >= BUDGET || rounds >= 1 << 40 {
            break took;
        }
        rounds *= 4;
    };
    for _ in 2..RUNS {
        best = best.min(time(rounds)?);
    }
    Ok(best.as_secs_f64() * 1e9 / (rounds as f64 * LOOP_INSTRUCTIONS))
}

fn write<T: ByteValued>(ram: &GuestRam, gpa: u64, value: T) -> Result<(), AccelError> {
    let written = ram.memory().write_obj(value, GuestAddress(gpa));
    written.map_err(|_| AccelError::BadSlot { slot: 0, why: "a page of the guest is missing" })
}

fn stopped(ring: u8, why: String) -> CalibrateError {
    CalibrateError::Stopped { ring, why }
}

fn what(stop: Stop) -> String {
    match stop {
        Stop::Stuck { why, .. } => why,
        Stop::Shutdown => "it shut down by a triple fault".to_owned(),
        other => format!("it stopped by {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spin(span: Duration) {
        let started = cpu_time();
        while cpu_time().saturating_sub(started) < span {}
    }

    #[test]
    fn runs_grow_until_they_can_be_measured_and_are_measured_less_overhead() {
        for (overhead, round) in [(0, 100), (300_000, 20_000), (20_000, 2_000_000)]
            .map(|(o, r)| (Duration::from_nanos(o), Duration::from_nanos(r)))
        {
            let mut most = 0;
            let ns = speed(overhead, &mut |rounds| {
                most = most.max(rounds);
                spin(overhead + round * rounds as u32);
                Ok(())
            });
            let (ns, ideal) = (ns.unwrap(), round.as_secs_f64() * 1e9 / LOOP_INSTRUCTIONS);
            assert!((ideal * 0.9..ideal * 3.0).contains(&ns), "{ns} {ideal}");
            // Four times what is enough, at most.
            let enough = RUN.max(overhead * 4).max(round);
            assert!(round * most as u32 <= enough * 4, "{most}");
        }
    }

    #[test]
    fn a_disturbed_run_ends_nothing() {
        let mut calls = 0;
        let ns = speed(Duration::ZERO, &mut |rounds| {
            calls += 1;
            spin(
                Duration::from_nanos(rounds * 50)
                    + Duration::from_micros(if calls % 3 == 1 { 400 } else { 0 }),
            );
            Ok(())
        });
        assert!((3.0..12.0).contains(&ns.unwrap()), "after {calls} runs");
    }

    #[test]
    fn the_guests_code_runs_natively_and_counts() {
        let mut memory = [0u64; 16];
        // SAFETY: as in `Guest::measure`.
        unsafe { gearshift_calibration_loop(1000, &raw mut memory) };
        // The last round stores 0 + 1, and in all of them the sum of (3 n + 5) ^ 0x55 adds up.
        let sum: u64 = (1..=1000u64).map(|n| (3 * n + 5) ^ 0x55).sum();
        assert_eq!((memory[1], memory[4]), (1, sum));
        assert!((40..256).contains(&code().len()));
    }
}
