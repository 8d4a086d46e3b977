//! The fuzz targets against the interpreter: a fixed number of inputs under a fixed seed. `cargo xtask fuzz` sets
//! FUZZ_SECONDS, FUZZ_SEED and FUZZ_TARGET to go on for longer.

use std::time::Duration;

use testkit::hostile::fuzz::{TARGETS, campaign};

/// Inputs of each target in the test suite.
const INPUTS: u64 = 20_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
#[expect(clippy::print_stderr, reason = "for whoever runs it for hours")]
fn hostile_states_do_no_harm() {
    let accel = accel_interp::create().expect("the interpreter runs everywhere");
    let only = std::env::var("FUZZ_TARGET").ok();
    let chosen: Vec<_> =
        TARGETS.iter().filter(|target| only.as_ref().is_none_or(|name| name == target.name)).collect();
    assert!(!chosen.is_empty(), "no target is called {only:?}");
    let seed = number("FUZZ_SEED").unwrap_or(1);
    for target in &chosen {
        let (time, most) = match number("FUZZ_SECONDS") {
            Some(seconds) => (Duration::from_secs(seconds) / chosen.len() as u32, u64::MAX),
            None => (Duration::from_secs(120), INPUTS),
        };
        let report = campaign(&accel, target, seed, time, most);
        eprintln!("{} (seed {seed}): {report:?}", target.name);
        assert!(report.inputs > report.refused, "{}: no state is loaded", target.name);
    }
}
