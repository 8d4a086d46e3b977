//! Guests that use the processor's modes as Linux does not, and check themselves, on every accelerator of this host.

mod common;

use common::accelerators::{Console, each, end};
use guests::modes;
use machine::{GuestEnd, Machine, Source};

#[test]
fn every_mode_on_every_accelerator() {
    let tested = each("modes", |name, accelerator| {
        for guest in modes::all() {
            let console = Console::default();
            let machine = Machine::builder()
                .accelerator(accelerator())
                .memory(16 << 20)
                .cpu_model("x86-64-v3")
                .kernel(Source::bytes(guest.name, guest.elf))
                .console(console.clone())
                .start()
                .unwrap();
            let end = end(&machine);
            let GuestEnd::DebugExit(value) = end else { panic!("{} on {name}: {end}", guest.name) };
            assert_eq!(guest.verdict(value), Ok(()), "on {name}");
        }
    });
    assert!(tested > 0, "no accelerator ran the guests");
}
