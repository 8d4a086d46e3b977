//! Machines on the fake backend that start again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use accel_api::{Exit, GuestRam, IoSize};
use vm_memory::{Bytes, GuestAddress};

use crate::fake::{self, Guest, Step, out, power_off};
use crate::memory_map::{ACPI_AREA, MIB};
use crate::{GuestEnd, Machine, MachineBuilder, MachineError, OnReset, Phase};

/// Guest-physical address that no kernel of the tests uses.
const SCRATCH: GuestAddress = GuestAddress(0x80_0000);
/// The scratch register of the first serial port.
const UART_SCRATCH: u16 = 0x3ff;
/// Where the kernel of the tests is entered.
const ENTRY: u64 = 0x20_0150;

/// A guest whose resets start it again.
fn guest(program: impl Fn(&mut Guest<'_>) -> Step + Send + Sync + 'static) -> MachineBuilder {
    fake::guest(program).on_reset(OnReset::Restart)
}

/// Each way to reset starts the machine again as it was built: vCPUs, memory and devices.
#[test]
fn a_guest_that_resets_starts_again() {
    let (starts, memory) = (Arc::new(AtomicU64::new(0)), Arc::new(OnceLock::<Arc<GuestRam>>::new()));
    let seconds = Arc::new(AtomicU64::new(0));
    let machine = guest({
        let (starts, seconds, memory) = (starts.clone(), seconds.clone(), memory.clone());
        move |g| {
            // The second vCPU goes first.
            if g.id == 0 && seconds.load(SeqCst) == starts.load(SeqCst) {
                std::thread::yield_now();
                return Step::Again;
            }
            // A kick may call it again. What it finds here tells that a reset came between.
            if std::mem::replace(&mut g.state.gpr[3], 7) == 7 {
                return Step::Halt;
            }
            if g.id == 1 {
                seconds.fetch_add(1, SeqCst);
                return Step::Halt;
            }
            let ram = memory.get().unwrap().memory();
            assert_eq!(g.state.rip, ENTRY, "the state of the boot protocol is loaded");
            assert_eq!(ram.read_obj::<u64>(SCRATCH).unwrap(), 0, "memory is zero");
            let tables = GuestAddress(ACPI_AREA);
            assert_eq!(&ram.read_obj::<[u8; 8]>(tables).unwrap(), b"RSD PTR ", "tables are there");
            assert_eq!(g.bus.pio_read(UART_SCRATCH, IoSize::Byte), 0, "devices are reset");
            g.state.rip = 0x1000;
            ram.write_obj(u64::MAX, SCRATCH).unwrap();
            ram.write_slice(&[0; 8], tables).unwrap();
            out(g.bus, UART_SCRATCH, 0x55);
            match starts.fetch_add(1, SeqCst) {
                0 => out(g.bus, 0xcf9, 0x06),
                1 => out(g.bus, 0x64, 0xfe),
                2 => out(g.bus, 0x92, 0x03),
                _ => power_off(g.bus),
            }
            Step::Halt
        }
    })
    .cpus(2)
    .build()
    .unwrap();
    memory.set(machine.ram().clone()).unwrap();
    machine.resume().unwrap();
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
    assert_eq!((starts.load(SeqCst), machine.resets()), (4, 3));
    assert_eq!(seconds.load(SeqCst), 4, "the second vCPU starts each time");
}

#[test]
fn a_triple_fault_restarts_only_if_told() {
    for (then, starts) in [(OnReset::End, 1), (OnReset::Restart, 3)] {
        let count = Arc::new(AtomicU64::new(0));
        let machine = guest({
            let count = count.clone();
            move |g| {
                if count.fetch_add(1, SeqCst) == 2 {
                    power_off(g.bus);
                }
                Step::Exit(Exit::TripleFault)
            }
        })
        .on_triple_fault(then)
        .start()
        .unwrap();
        let end = machine.wait();
        assert_eq!(count.load(SeqCst), starts);
        assert!(if starts == 1 {
            matches!(end, GuestEnd::TripleFault { .. })
        } else {
            end == GuestEnd::PowerOff
        });
    }
}

#[test]
fn a_machine_that_is_paused_is_reset_and_stays_paused() {
    let runs = Arc::new(AtomicU64::new(0));
    let machine = guest({
        let runs = runs.clone();
        move |g| {
            runs.fetch_add(1, SeqCst);
            g.state.rip += 1;
            Step::Again
        }
    })
    .build()
    .unwrap();
    assert_eq!(machine.phase(), Phase::Built);
    machine.reset().unwrap();
    assert_eq!((machine.phase(), machine.resets(), runs.load(SeqCst)), (Phase::Built, 1, 0));
    machine.resume().unwrap();
    while runs.load(SeqCst) < 100 {
        std::thread::yield_now();
    }
    machine.pause().unwrap();
    let before = runs.load(SeqCst);
    machine.reset().unwrap();
    assert_eq!((machine.phase(), runs.load(SeqCst)), (Phase::Paused, before));
    assert_eq!(machine.save_vcpus().unwrap()[0].rip, ENTRY);
    machine.resume().unwrap();
    while runs.load(SeqCst) == before {
        std::thread::yield_now();
    }
    machine.reset().unwrap();
    assert_eq!(machine.phase(), Phase::Running);
    machine.stop();
    assert!(matches!(machine.reset(), Err(MachineError::Ended(GuestEnd::Stopped))));
}

/// Threads of this machine, by the name that they carry.
fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|thread| thread.trim_end().ends_with(name)).count()
}

#[test]
fn a_thousand_resets_leave_no_thread_behind() {
    let machine = guest(|g| {
        if g.id == 0 {
            out(g.bus, 0xcf9, 0x06);
        }
        Step::Halt
    })
    .name("again")
    .cpus(2)
    .start()
    .unwrap();
    // Two vCPUs, timers, console, lifecycle. A thread takes its name when it first runs.
    while threads("/again") < 5 || machine.resets() < 1000 {
        assert!(machine.ended().is_none());
        std::thread::yield_now();
    }
    assert_eq!(threads("/again"), 5);
    machine.stop();
    assert_eq!(machine.wait(), GuestEnd::Stopped);
}

/// One vCPU resets, the other powers off: the machine always ends, whichever comes first.
#[test]
fn the_end_wins_over_a_reset() {
    for _ in 0..100 {
        let machine = guest(|g| {
            match g.id {
                0 => out(g.bus, 0xcf9, 0x06),
                _ => power_off(g.bus),
            }
            Step::Halt
        })
        .cpus(2)
        .start()
        .unwrap();
        assert_eq!(machine.wait(), GuestEnd::PowerOff);
        assert_eq!(machine.phase(), Phase::Ended);
    }
}

#[test]
fn commands_from_many_threads_never_hang() {
    let machine = Arc::new(guest(|_| Step::Again).cpus(2).start().unwrap());
    let over = Arc::new(AtomicBool::new(false));
    type Command = fn(&Machine) -> Result<(), MachineError>;
    let commands: [Command; 3] = [Machine::pause, Machine::resume, Machine::reset];
    let threads: Vec<_> = commands
        .into_iter()
        .map(|command| {
            let (machine, over) = (machine.clone(), over.clone());
            std::thread::spawn(move || {
                while !over.load(SeqCst) {
                    match command(&machine) {
                        Ok(()) => {}
                        Err(MachineError::Ended(GuestEnd::Stopped)) => return,
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    while machine.resets() < 100 {
        std::thread::sleep(Duration::from_millis(1));
    }
    machine.stop();
    assert_eq!(machine.wait(), GuestEnd::Stopped);
    over.store(true, SeqCst);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// The kernel's file is kept open: it may be gone by then. One that was overwritten is told.
#[test]
fn the_kernel_is_kept_from_the_first_start() {
    let path = std::env::temp_dir().join(format!("gearshift-kernel-{}", std::process::id()));
    std::fs::write(&path, crate::boot::tests::elf(true)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let machine = guest(|_| Step::Halt).kernel(path.clone()).start().unwrap();
    std::fs::remove_file(&path).unwrap();
    machine.reset().unwrap();
    file.set_len(0).unwrap();
    let Err(MachineError::Ended(GuestEnd::HostError { reason, .. })) = machine.reset() else {
        panic!("an empty file started")
    };
    assert!(reason.starts_with("the machine cannot start again: "), "{reason}");
}

/// What a machine saves, one that was built alike takes; another shape is refused by the unit's name.
#[test]
fn units_move_from_machine_to_machine() {
    let build = |mib: u64| guest(|_| Step::Halt).memory(mib * MIB).build().unwrap();
    let (one, two, other) = (build(16), build(16), build(32));
    one.resume().unwrap();
    one.pause().unwrap();
    let names: Vec<_> = one.units().iter().map(|unit| unit.name().to_owned()).collect();
    assert_eq!(names[..6], ["clock", "timers", "ram", "interrupts", "pic", "ioapic"]);
    let sections = one.units().save();
    assert_eq!(sections.len(), names.len());
    two.units().restore(&sections).unwrap();
    let (mut saved, mut taken) = (sections.clone(), two.units().save());
    // The frequency is as each machine has measured it.
    assert!(saved.remove("clock").is_some() && taken.remove("clock").is_some());
    assert_eq!(taken, saved);
    let refused = other.units().restore(&sections).unwrap_err().to_string();
    assert!(refused.starts_with("ram: regions is "), "{refused}");
}
