//! Machines on fake backends that take the guest over from each other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use accel_api::x86::Feature;
use accel_api::{Access, MsiMessage};
use devices::{Clock, IoapicHost as _, MsiSender as _};
use vm_memory::{Bytes, GuestAddress};

use crate::fake::{Fails, FakeAccelerator, Guest, Step, on, power_off};
use crate::memory_map::MIB;
use crate::{GuestEnd, Machine, MachineError, Phase, SwitchError};

/// What a guest has seen.
#[derive(Debug, Default)]
struct Seen {
    /// How often it was called.
    calls: AtomicU64,
    /// It is to power off.
    over: AtomicBool,
    /// What is mapped where it runs.
    mapped: Mutex<Vec<(u64, u64)>>,
    /// Messages that came to where it runs.
    messages: Mutex<Vec<u32>>,
}

impl Seen {
    /// Waits until the guest has been called again.
    fn goes_on(&self, machine: &Machine) {
        let before = self.calls.load(SeqCst);
        while self.calls.load(SeqCst) < before + 2 {
            assert_eq!(machine.ended(), None);
            std::thread::yield_now();
        }
    }
}

/// Counts in a register and in memory, which must agree, and finds its TSC going forwards.
fn counter(seen: &Arc<Seen>) -> FakeAccelerator {
    let seen = seen.clone();
    FakeAccelerator::running(move |g: &mut Guest<'_>| {
        let place = GuestAddress(0x80_0000 + 8 * u64::from(g.id));
        let counted: u64 = g.vm.ram().memory().read_obj(place).unwrap();
        assert_eq!(g.state.gpr[8], counted, "memory and registers go together");
        g.state.gpr[8] += 1;
        g.vm.ram().memory().write_obj(g.state.gpr[8], place).unwrap();
        let tsc = accel_api::host_time::now().wrapping_add(g.state.tsc_offset);
        assert!(tsc >= g.state.gpr[9], "time goes back from {} to {tsc}", g.state.gpr[9]);
        g.state.gpr[9] = tsc;
        if g.id == 0 {
            *seen.mapped.lock().unwrap() = g.vm.mapped();
            *seen.messages.lock().unwrap() =
                g.vm.port.messages.lock().unwrap().iter().map(|m| m.data).collect();
            seen.calls.fetch_add(1, SeqCst);
            if seen.over.load(SeqCst) {
                power_off(g.bus);
            }
        }
        Step::Again
    })
}

fn finish(machine: &Machine, seen: &Seen) {
    seen.over.store(true, SeqCst);
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
}

#[test]
fn a_running_guest_changes_accelerators() {
    let seen = Arc::<Seen>::default();
    let (first, second) = (counter(&seen), counter(&seen).another("second"));
    let back = first.another("fake");
    let machine = on(first).cpus(2).start().unwrap();
    machine.verify_switches(true);
    let mut clock = 0;
    for n in 0..40 {
        let next = if n % 2 == 0 { &second } else { &back };
        let report = machine.switch(next).unwrap();
        assert_eq!(
            (report.to.0, machine.accelerator()),
            (if n % 2 == 0 { "second" } else { "fake" }, report.to)
        );
        assert_eq!(machine.switch(next).unwrap().from, report.to, "it does already");
        seen.goes_on(&machine);
        assert_eq!(machine.phase(), Phase::Running);
        let now = machine.clock().now();
        assert!(now > clock);
        clock = now;
    }
    machine.pause().unwrap();
    let counted: Vec<_> = machine.save_vcpus().unwrap().iter().map(|state| state.gpr[8]).collect();
    let told: Vec<_> = machine.stats().unwrap().iter().map(|stats| stats.instructions.unwrap()).collect();
    assert_eq!(counted, told, "counters of all accelerators are added up");
    machine.resume().unwrap();
    finish(&machine, &seen);
}

#[test]
fn whatever_fails_leaves_the_old_one_as_it_was() {
    let seen = Arc::<Seen>::default();
    let first = counter(&seen);
    let machine = on(counter(&seen)).build().unwrap();
    machine.verify_switches(true);
    let log = machine.dirty_consumer().unwrap();
    machine
        .interrupts()
        .route_changed(4, accel_api::IrqRoute { message: message(0x31), level: false, masked: false });
    machine.resume().unwrap();
    seen.goes_on(&machine);
    let mapped = seen.mapped.lock().unwrap().clone();
    assert!(!mapped.is_empty());
    use Fails::*;
    for (n, fails) in [Create, Bind, Map, Load, Remember, DirtyLog, Route].into_iter().enumerate() {
        let error = machine.switch(&first.another("second").failing(fails)).unwrap_err();
        match (fails, &error) {
            (Remember, SwitchError::Differs { to, vcpu: 0, differences }) => {
                assert_eq!(to.0, "second");
                assert!(differences[0].starts_with("gpr"), "{differences:?}");
            }
            (Bind | Load, SwitchError::Vcpu(_))
            | (Create | Map | DirtyLog | Route, SwitchError::Accel { .. }) => {}
            _ => panic!("{fails:?}: {error}"),
        }
        assert_eq!((machine.accelerator().0, machine.phase()), ("fake", Phase::Running), "{fails:?}");
        seen.goes_on(&machine);
        machine.interrupts().send(message(n as u32));
        machine.ram().memory().write_obj(1u8, GuestAddress(0x2_0000)).unwrap();
        seen.goes_on(&machine);
        let messages = seen.messages.lock().unwrap().clone();
        assert_eq!(messages, (0..=n as u32).collect::<Vec<_>>(), "{fails:?}");
        assert_eq!(*seen.mapped.lock().unwrap(), mapped, "{fails:?}");
        assert!(log.take().unwrap().iter().any(|page| page == 0x20), "{fails:?}");
    }
    // And it can still be changed.
    machine.switch(&first.another("second")).unwrap();
    seen.goes_on(&machine);
    assert_eq!(*seen.mapped.lock().unwrap(), mapped);
    finish(&machine, &seen);
}

#[test]
fn what_the_guest_was_promised_is_asked_for_first() {
    let seen = Arc::<Seen>::default();
    let first = counter(&seen);
    let machine = on(counter(&seen)).cpu_model("x86-64-v2").cpus(2).start().unwrap();
    let error = machine.switch(&first.another("second").without(&[Feature::Sse42])).unwrap_err();
    assert_eq!(error.to_string(), "second cannot give what the guest's processor has: sse4_2");
    let error = machine.switch(&first.another("second").with_vcpus(1)).unwrap_err();
    assert_eq!(error.to_string(), "second has 1 vCPUs at most, the machine has 2");
    seen.goes_on(&machine);
    finish(&machine, &seen);
    let error = machine.switch(&first.another("second")).unwrap_err();
    assert!(matches!(error, SwitchError::Machine(e) if matches!(*e, MachineError::Ended(_))));
}

/// Before it runs, while it is paused, and behind a reset.
#[test]
fn a_machine_that_stands_is_changed_and_stands() {
    let seen = Arc::<Seen>::default();
    let first = counter(&seen);
    let machine = on(counter(&seen)).build().unwrap();
    machine.switch(&first.another("second")).unwrap();
    assert_eq!((machine.phase(), seen.calls.load(SeqCst)), (Phase::Built, 0));
    machine.resume().unwrap();
    seen.goes_on(&machine);
    machine.pause().unwrap();
    let (calls, time) = (seen.calls.load(SeqCst), machine.clock().now());
    machine.switch(&first.another("third")).unwrap();
    assert_eq!(
        (machine.phase(), seen.calls.load(SeqCst), machine.clock().now()),
        (Phase::Paused, calls, time)
    );
    machine.resume().unwrap();
    seen.goes_on(&machine);
    machine.reset().unwrap();
    seen.goes_on(&machine);
    assert_eq!((machine.accelerator().0, machine.resets()), ("third", 1));
    finish(&machine, &seen);
}

/// Interrupts, memory windows and written pages, at any moment.
#[test]
fn nothing_gets_lost_on_the_way() {
    let seen = Arc::<Seen>::default();
    let first = counter(&seen);
    let (window, vram) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
    let machine = on(counter(&seen))
        .device_memory(MIB)
        .devices({
            let (window, vram) = (window.clone(), vram.clone());
            move |wiring| {
                *window.lock().unwrap() = Some(wiring.memory_window());
                *vram.lock().unwrap() = Some(wiring.memory().allocate(MIB).expect("the machine's"));
                Ok(())
            }
        })
        .start()
        .unwrap();
    let window = window.lock().unwrap().take().unwrap();
    let region = vram.lock().unwrap().take().unwrap().at(0xe000_0000).unwrap();
    let log = machine.dirty_consumer().unwrap();
    log.take().unwrap();
    for n in 0..20u64 {
        let to = first.another(if n % 2 == 0 { "second" } else { "fake" });
        window.show((n % 4 < 2).then(|| (region.clone(), Access::ReadWrite))).unwrap();
        std::thread::scope(|scope| {
            // While the accelerator changes.
            let sender = scope.spawn(|| {
                for k in 0..10 {
                    machine.interrupts().send(message((10 * n + k) as u32));
                    machine.ram().memory().write_obj(n, GuestAddress(page(n, k) << 12)).unwrap();
                }
            });
            machine.switch(&to).unwrap();
            sender.join().unwrap();
        });
        seen.goes_on(&machine);
        assert_eq!(seen.mapped.lock().unwrap().iter().any(|(gpa, _)| *gpa == 0xe000_0000), n % 4 < 2);
        let written: Vec<_> = log.take().unwrap().iter().filter(|page| (0x20..0x90).contains(page)).collect();
        assert_eq!(written, (0..10).map(|k| page(n, k) as usize).collect::<Vec<_>>());
        // What came before the change the old one had, what came behind it this one has; nothing twice.
        let here = seen.messages.lock().unwrap().clone();
        let all: Vec<_> = (0..10).map(|k| (10 * n + k) as u32).collect();
        assert!(all.ends_with(&here), "{here:?} of {all:?}");
    }
    finish(&machine, &seen);
}

/// Whoever comes together with a change waits for it, or wins.
#[test]
fn changes_meet_everything_else() {
    let seen = Arc::<Seen>::default();
    let first = counter(&seen);
    let machine = on(counter(&seen)).cpus(2).start().unwrap();
    std::thread::scope(|scope| {
        for id in ["second", "third"] {
            let (machine, next) = (&machine, first.another(id));
            scope.spawn(move || {
                for _ in 0..50 {
                    match machine.switch(&next) {
                        Ok(_) => {}
                        Err(SwitchError::Machine(_)) => return,
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for _ in 0..20 {
            machine.pause().unwrap();
            machine.save_vcpus().unwrap();
            machine.resume().unwrap();
            machine.reset().unwrap();
            seen.goes_on(&machine);
        }
        seen.over.store(true, SeqCst);
    });
    assert_eq!(machine.wait(), GuestEnd::PowerOff);
}

/// The page that is written as the `k`th in round `n`.
fn page(n: u64, k: u64) -> u64 {
    0x20 + 10 * (n % 10) + k
}

fn message(data: u32) -> MsiMessage {
    MsiMessage { address: 0xfee0_0000, data }
}
