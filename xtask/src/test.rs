//! All tests, with all they need, and a count at the end that leaves nothing out.
//!
//! 1. The Debian guests and libraries are fetched first, where one sees it happen, not within some test. `GEARSHIFT_OFFLINE=1` goes on
//!    without them.
//! 2. `cargo test --workspace` runs; its output passes through and is counted on the way.
//! 3. A test that skips itself says `SKIPPED: ` and why. Skipped and ignored tests fail the run, unless it is offline.
//!    `SKIPPED (optional): ` is what compares with a program that hosts need not have; it is counted and fails nothing.
//! 4. `FINDING: ` is what the instruction oracle found on a processor that it does not know; it is counted and fails nothing.

use crate::{cargo, kvm_lab};
use anyhow::{Context as _, Result, bail};
use guests::debian::{self, Flavour};
use std::io::{BufRead as _, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use testkit::oracle::FINDING;

/// What the tests came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) programs: u32,
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
    pub(crate) skipped: u32,
    pub(crate) optional: u32,
    pub(crate) findings: u32,
}

impl Count {
    /// Takes in one line of output.
    pub(crate) fn line(&mut self, line: &str) {
        // Not at the start of the line: the harness may have begun one.
        if line.contains("SKIPPED: ") {
            self.skipped += 1;
        }
        if line.contains("SKIPPED (optional): ") {
            self.optional += 1;
        }
        if line.contains(FINDING) {
            self.findings += 1;
        }
        let Some(result) = line.strip_prefix("test result: ") else { return };
        self.programs += 1;
        let number = |what: &str| {
            let before = result.split([';', '.']).map(str::trim).find_map(|part| part.strip_suffix(what));
            before.and_then(|number| number.trim().parse::<u32>().ok()).unwrap_or(0)
        };
        self.passed += number("passed");
        self.failed += number("failed");
        self.ignored += number("ignored");
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.programs += other.programs;
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skipped += other.skipped;
        self.optional += other.optional;
        self.findings += other.findings;
    }
}

/// Fetches, tests, counts. `arguments` go to `cargo test`.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let offline = std::env::var("GEARSHIFT_OFFLINE").is_ok_and(|value| value == "1");
    if offline {
        eprintln!("GEARSHIFT_OFFLINE=1: the Debian guests are not fetched");
    } else {
        // With what `kvm-lab` needs of it, so that it is fetched once.
        let fetched = kvm_lab::guest(&mut |line| eprintln!("{line}"));
        let guest = fetched.context("no Debian guest (GEARSHIFT_OFFLINE=1 skips what needs it)")?;
        eprintln!("Debian guest: {}", guest.version);
        for flavour in [Flavour::Generic, Flavour::I386] {
            let guest = debian::fetch(flavour, &mut |line| eprintln!("{line}")).with_context(|| {
                let name = flavour.name();
                format!("cannot fetch Debian's {name} guest (GEARSHIFT_OFFLINE=1 skips what needs it)")
            })?;
            eprintln!("Debian guest {}: {}", flavour.name(), guest.version);
        }
        let libraries = debian::fetch_libraries(&mut |line| eprintln!("{line}"));
        let libraries =
            libraries.context("no libraries of Debian's (GEARSHIFT_OFFLINE=1 skips what needs them)")?;
        eprintln!("Debian's libraries: {}", libraries.version);
    }
    let mut child = Command::new(cargo::program())
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run cargo test")?;
    let stderr = child.stderr.take().context("cargo's standard error")?;
    let stdout = child.stdout.take().context("cargo's standard output")?;
    let errors = thread::spawn(move || pass_on(stderr, std::io::stderr()));
    let mut count = pass_on(stdout, std::io::stdout())?;
    let errors = errors.join().ok().context("the thread that reads cargo's messages")?;
    count.add(&errors?);
    let status = child.wait().context("cargo test")?;

    let Count { programs, passed, failed, ignored, skipped, optional, findings } = count;
    println!(
        "tests: {passed} passed, {failed} failed, {ignored} ignored, {skipped} skipped, {optional} without the \
         program to compare with; {programs} test programs"
    );
    if findings > 0 {
        println!(
            "{findings} with findings on a processor that the instruction oracle does not know: see docs/cpu.md"
        );
    }
    if !status.success() || failed > 0 {
        bail!("the tests failed");
    }
    if passed == 0 {
        bail!("no test ran");
    }
    if !offline && ignored + skipped > 0 {
        bail!("{} tests did not run", ignored + skipped);
    }
    Ok(())
}

/// Copies line by line, counting.
fn pass_on(from: impl Read, mut to: impl Write) -> Result<Count> {
    let mut count = Count::default();
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        count.line(&String::from_utf8_lossy(&line));
        to.write_all(&line)?;
        to.flush()?;
        line.clear();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let text = "running 3 tests\ntest a ... ok\n\
            test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s\n\
            test b ... SKIPPED: no network\nSKIPPED (optional): c: no qemu\n\
            test d ... FINDING: jit: something differs\n\
            test result: FAILED. 10 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let mut copy = Vec::new();
        let count = pass_on(text.as_bytes(), &mut copy).unwrap();
        let expected =
            Count { programs: 2, passed: 12, failed: 1, ignored: 1, skipped: 1, optional: 1, findings: 1 };
        assert_eq!(count, expected);
        assert_eq!(copy, text.as_bytes());
    }
}
