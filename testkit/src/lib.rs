//! What the tests of several crates share; no part of the program.
//!
//! 1. [`oracle`] runs single instructions on the host's processor and in the software CPU and compares everything the
//!    manual defines: the silicon is the reference. [`asm`] assembles its instructions.
//! 2. [`mod@conformance`] is the suite that every backend must pass; [`conformance!`] instantiates it.
//!    [`mod@exact`] is what exact backends have to do besides.
//! 3. [`rig`] builds a small VM for one guest snippet, [`fake_bus`] is its machine, [`snippet`] assembles the guest.
//! 4. [`travel`] wraps a backend so that the guest moves to a fresh VM again and again while it runs.
//! 5. [`hostile`] runs guests that nobody wrote.
//! 6. [`stopped`] stops the process under a guest.

pub mod asm;
pub mod conformance;
pub mod exact;
pub mod fake_bus;
pub mod hostile;
pub mod oracle;
pub mod processor;
pub mod rig;
pub mod snippet;
pub mod stopped;
pub mod travel;

/// Says that the test `what` is skipped, in the form that `cargo xtask test` counts, and past the test harness, which would
/// swallow it.
pub fn skip(what: &str, reason: &str) {
    tell(&format!("SKIPPED (optional): {what}: {reason}"));
}

/// Writes a line to standard error, past the test harness.
fn tell(line: &str) {
    // Nobody is left to be told if standard error is closed.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes());
}
