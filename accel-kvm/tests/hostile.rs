//! Random guests against KVM, for HOSTILE_SECONDS (15 unless told), from HOSTILE_SEED, where KVM has hardware behind it.

mod common;

use std::time::Duration;

use common::hardware_kvm;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn random_guests_do_no_harm() {
    const NAME: &str = "random guests on KVM";
    if testkit::processor::is_emulated() {
        return testkit::skip(NAME, "this host's processor is QEMU's, which aborts on a random task state");
    }
    let Some(accel) = hardware_kvm(NAME) else { return };
    let time = Duration::from_secs(number("HOSTILE_SECONDS", 15));
    let report = testkit::hostile::run(&accel, number("HOSTILE_SEED", 1), time);
    assert!(report.cases > 0, "nothing was tested: {report:?}");
}
