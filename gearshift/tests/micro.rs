//! The benchmark guests on every accelerator of this host: each computes what its model in Rust does.

mod common;

use common::accelerators::{Console, each, end};
use guests::micro::{self, Micro, Report};
use machine::{GuestEnd, Machine, Source};

/// What the guest says.
fn run(guest: &Micro, machine: machine::MachineBuilder, n: u64) -> String {
    let console = Console::default();
    let machine = machine
        .memory(64 << 20)
        .kernel(Source::bytes(guest.name, guest.elf))
        .cmdline(format!("n={n}"))
        .console(console.clone())
        .start()
        .unwrap();
    let end = end(&machine);
    assert!(matches!(end, GuestEnd::PowerOff), "{}: {end}\n{}", guest.name, console.text());
    console.text()
}

#[test]
fn every_guest_on_every_accelerator() {
    let tested = each("micro", |name, accelerator| {
        for guest in micro::all() {
            // More than one round of every table, ring and window that the guests have.
            let n = if guest.iterations < 100_000 { 70 } else { 20_011 };
            let machine = Machine::builder().accelerator(accelerator()).cpu_model("x86-64-v3");
            let console = run(&guest, machine, n);
            let report =
                Report::find(&console).unwrap_or_else(|| panic!("{} on {name}: {console}", guest.name));
            assert_eq!((report.name.as_str(), report.iterations), (guest.name, n));
            assert_eq!(report.checksum, guest.expected(n), "{} on {name}", guest.name);
        }
    });
    assert!(tested > 0, "no accelerator ran the guests");
}

/// Without AVX2 in the model there is a line that says so, and no report.
#[test]
fn what_the_model_lacks_is_no_failure() {
    each("micro", |name, accelerator| {
        let avx2 = micro::find("avx2").unwrap();
        let machine = Machine::builder().accelerator(accelerator()).cpu_model("x86-64-v2");
        let console = run(&avx2, machine, 3);
        assert_eq!(avx2.unavailable(&console), Some("the processor has no AVX2"), "{name}: {console}");
        assert_eq!(Report::find(&console), None, "{name}");
    });
}
