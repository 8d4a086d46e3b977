//! Translated code checked against the semantics functions, block by block: a difference ends the guest with an error.

use accel_dynasm::{Config, create_with};
use testkit::conformance::Choice;

/// Checks with several vCPUs, or with a thread that looks at RAM while the guest runs and may see what a trial takes back.
const NOT_ALONE: &[&str] =
    &["slots::dirty_again_while_running", "slots::while_running", "smc::cross_modifying", "state::reset"];

fn checked(check: &str) -> Choice {
    if check.starts_with("smp::") || NOT_ALONE.contains(&check) {
        return Err("checking takes a vCPU that is alone with its RAM".into());
    }
    Ok(create_with(Config { verify: Some(1), ..Config::default() }))
}

testkit::conformance!(suite, crate::checked);
