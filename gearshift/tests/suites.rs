//! The user-space suites in guests, on every accelerator of this host: each class computes what it should.

mod common;

use common::accelerators::{Console, each, end};
use common::guest::{have, have_libraries};
use guests::debian::{self, Flavour};
use guests::initramfs::Compression;
use guests::suite::{self, Line, Suite};
use machine::{GuestEnd, Machine, Source};

/// Boots `suite` with two vCPUs, and the fewest units of each class.
fn boot(suite: Suite) {
    if !have(Flavour::Cloud) {
        return;
    }
    let guest = debian::cached(Flavour::Cloud).expect("what was just there");
    let busybox = std::fs::read(&guest.busybox).unwrap();
    let program = suite::build(suite, suite::source(), &mut |_| {}).unwrap();
    let classes = program.classes().unwrap();
    let initrd = program.initramfs(&busybox, "--millis 0").unwrap().build(Compression::None);
    // The model needs the host's help for AVX2; without it, that class says that it is unavailable.
    let avx2 = std::is_x86_feature_detected!("avx2");
    let tested = each(suite.name(), |name, accelerator| {
        let console = Console::default();
        let machine = Machine::builder()
            .accelerator(accelerator())
            .cpu_model(if avx2 { "x86-64-v3" } else { "x86-64-v2" })
            .cpus(2)
            .memory(512 << 20)
            .kernel(guest.kernel.clone())
            .initrd(Source::bytes("initrd", initrd.clone()))
            .cmdline("console=ttyS0 quiet panic=-1")
            .console(console.clone())
            .start()
            .unwrap();
        let end = end(&machine);
        let text = console.text();
        assert!(matches!(end, GuestEnd::PowerOff), "{name}: {end}\n{text}");
        assert!(text.contains("GUEST-DONE status: 0"), "{name}: {text}");
        for class in &classes {
            match suite::parse(&class.name, &text) {
                Some(Line::Measured { units: 3.., .. }) => {}
                Some(Line::Unavailable(_)) if class.name == "avx2" && !avx2 => {}
                other => panic!("{} on {name}: {other:?}\n{text}", class.name),
            }
        }
    });
    assert!(tested > 0, "no accelerator ran the guest");
}

#[test]
fn our_own_code() {
    boot(Suite::User);
}

#[test]
fn the_libraries_of_debian() {
    if have_libraries() {
        boot(Suite::Libraries);
    }
}
