//! Guests that use the processor's modes as Linux does not, and check themselves, on every accelerator of this host.

use std::io::{self, Write as _};
use std::sync::{Arc, Mutex};

use accel_api::{Probe, Quality};
use guests::modes;
use machine::{GuestEnd, Machine, Registry, Source};

#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl io::Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why an accelerator is not tested, if it is not.
fn passed_over(probe: &Probe) -> Option<String> {
    match probe {
        // A KVM without hardware behind it emulates ring 0, slowly and in parts.
        Probe::Available(it) if it.quality == Quality::Degraded => Some(format!("degraded: {}", it.detail)),
        Probe::Available(_) => None,
        Probe::Absent(it) => Some(it.reason.clone()),
        broken => panic!("{broken:?}"),
    }
}

#[test]
fn every_mode_on_every_accelerator() {
    let mut tested = 0;
    for descriptor in Registry::builtin().list() {
        if let Some(reason) = passed_over(&(descriptor.probe)()) {
            let line = format!("SKIPPED (optional): modes on {}: {reason}\n", descriptor.id);
            io::stderr().write_all(line.as_bytes()).unwrap();
            continue;
        }
        for guest in modes::all() {
            let console = Console::default();
            let machine = Machine::builder()
                .accelerator((descriptor.create)().unwrap())
                .memory(16 << 20)
                .cpu_model("x86-64-v3")
                .kernel(Source::bytes(guest.name, guest.elf))
                .console(console.clone())
                .start()
                .unwrap();
            let end = machine.wait();
            drop(machine);
            let GuestEnd::DebugExit(value) = end else {
                panic!("{} on {}: {end}", guest.name, descriptor.id)
            };
            assert_eq!(guest.verdict(value), Ok(()), "on {}", descriptor.id);
            tested += 1;
        }
    }
    assert!(tested >= modes::all().count(), "no accelerator ran the guests");
}
