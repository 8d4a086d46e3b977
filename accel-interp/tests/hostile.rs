//! Random guests against the interpreter, for HOSTILE_SECONDS (15 unless told), from HOSTILE_SEED.

use std::time::Duration;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn random_guests_do_no_harm() {
    let accel = accel_interp::create().expect("the interpreter runs everywhere");
    let time = Duration::from_secs(number("HOSTILE_SECONDS", 15));
    let report = testkit::hostile::run(&accel, number("HOSTILE_SEED", 1), time);
    assert!(report.cases > 100 && report.kicked > 0 && report.bus > 0, "nothing was tested: {report:?}");
    assert!(report.refused * 2 < report.cases, "too few states are loaded: {report:?}");
}
