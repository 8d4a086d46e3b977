//! Translated code checked against the semantics functions, block by block: a difference ends the guest with an error.

use accel_dynasm::{Config, create_with};
use testkit::conformance::Choice;

/// What the conformance suite does with several vCPUs, while one at a time can be checked.
const SEVERAL: &[&str] = &["smc::cross_modifying", "state::reset"];

fn checked(check: &str) -> Choice {
    if check.starts_with("smp::") || SEVERAL.contains(&check) {
        return Err("of several vCPUs none can be checked".into());
    }
    Ok(create_with(Config { verify: Some(1), ..Config::default() }))
}

testkit::conformance!(suite, crate::checked);
