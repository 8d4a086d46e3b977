//! Translated code checked against the semantics functions, block by block: a difference ends the guest with an error.

use accel_dynasm::{Config, create_with};
use testkit::conformance::Choice;

/// Checks with several vCPUs, or with a thread that looks at RAM while the guest runs and may see what a trial takes
/// back.
const NOT_ALONE: &[&str] = &[
    "slots::dirty_again_while_running",
    "slots::last_store_before_a_copy",
    "slots::while_running",
    "smc::cross_modifying",
    "state::reset",
];

/// Files of checks that are all like that.
const NOT_ALONE_AT_ALL: &[&str] = &["locks::", "order::", "smp::", "stall::"];

fn checked(check: &str) -> Choice {
    if NOT_ALONE.contains(&check) || NOT_ALONE_AT_ALL.iter().any(|file| check.starts_with(file)) {
        return Err("checking takes a vCPU that is alone with its RAM".into());
    }
    Ok(create_with(Config { verify: Some(1), ..Config::default() }))
}

testkit::conformance!(suite, crate::checked);
