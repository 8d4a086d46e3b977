//! Random guests against KVM, for HOSTILE_SECONDS (15 unless told), from HOSTILE_SEED, where KVM has hardware behind it.

use std::io::Write as _;
use std::time::Duration;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Says so past the test harness, which would swallow it.
fn skip(reason: &str) {
    let line = format!("SKIPPED (optional): random guests on KVM: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error");
}

#[test]
fn random_guests_do_no_harm() {
    let accel = match accel_kvm::create() {
        Ok(_) if testkit::processor::is_emulated() => {
            return skip("this host's processor is QEMU's, which aborts on a random task state");
        }
        Ok(accel) if testkit::processor::has_virtualisation() => accel,
        other => {
            let required = std::env::var("GEARSHIFT_KVM").is_ok_and(|value| value == "required");
            assert!(!required, "no KVM with hardware behind it: {other:?}");
            return skip("no hardware KVM here");
        }
    };
    let time = Duration::from_secs(number("HOSTILE_SECONDS", 15));
    let report = testkit::hostile::run(&accel, number("HOSTILE_SEED", 1), time);
    assert!(report.cases > 0, "nothing was tested: {report:?}");
}
