//! Classes of user-space work, each self-timed and self-checked: `SUITE [--millis N] [CLASS...]`.
//!
//! 1. A [`Class`] is a kind of work; its *unit* is a fixed piece of it that takes some 0.1 to 2 ms natively and returns
//!    a checksum.
//! 2. Units are repeated until the time asked for has passed (at least [`MIN_UNITS`] of them), so the same program
//!    measures a real processor and one that is a hundred times slower.
//! 3. Every unit's checksum is compared with the class's: a fast wrong answer fails.
//! 4. One line a class, by CLOCK_MONOTONIC:
//!    `RESULT <class> iterations=<units> ns=<sum> best=<fastest unit> checksum=<16 hex digits>`, with ` WRONG` at its
//!    end if a checksum was; or `RESULT <class> unavailable: <reason>` where the processor or the system lacks what the
//!    class needs. That is no failure.
//! 5. The exit status is 0 if all checksums were right, 1 if not, 2 for bad usage. Bad usage, and `--help`, print the
//!    classes to standard error, one a line behind a line `classes:`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What does one unit and returns its checksum; made once a class, so that tables are built outside of the time
/// measured.
pub type Unit = Box<dyn FnMut() -> u64>;

/// Why a class cannot run here, as one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable(pub String);

/// One kind of work.
#[derive(Debug, Clone, Copy)]
pub struct Class {
    /// What it is called on the command line and in its report: one word.
    pub name: &'static str,
    /// What a unit does, for people.
    pub about: &'static str,
    /// Makes its unit.
    pub make: fn() -> Result<Unit, Unavailable>,
    /// Checksum of every unit.
    pub expected: u64,
}

/// Fewest units that are timed, however long they take.
pub const MIN_UNITS: u32 = 3;

/// A suite's `main`: does what the command line asks for. `program` is its name in the usage text.
pub fn main(program: &str, classes: &[Class]) -> ExitCode {
    let mut millis = 200;
    let mut names = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--millis" => match arguments.next().and_then(|n| n.parse().ok()) {
                Some(n) => millis = n,
                None => return usage(program, classes),
            },
            name if classes.iter().any(|class| class.name == name) => names.push(argument),
            _ => return usage(program, classes),
        }
    }
    let mut right = true;
    for class in classes {
        if names.is_empty() || names.iter().any(|name| name == class.name) {
            right &= report(class, Duration::from_millis(millis));
        }
    }
    ExitCode::from(u8::from(!right))
}

#[expect(clippy::print_stderr, reason = "a command-line tool")]
fn usage(program: &str, classes: &[Class]) -> ExitCode {
    eprintln!("usage: {program} [--millis N] [CLASS...]\nclasses:");
    for class in classes {
        eprintln!("  {:10} {}", class.name, class.about);
    }
    ExitCode::from(2)
}

/// Runs units of one class and prints its line; whether all were right.
#[expect(clippy::print_stdout, reason = "the report")]
fn report(class: &Class, time: Duration) -> bool {
    match (class.make)() {
        Ok(mut unit) => {
            let outcome = measure(class.expected, &mut unit, time);
            println!("{}", outcome.line(class.name));
            outcome.wrong.is_none()
        }
        Err(Unavailable(reason)) => {
            println!("RESULT {} unavailable: {reason}", class.name);
            true
        }
    }
}

/// What a class came to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    units: u32,
    sum: Duration,
    best: Duration,
    expected: u64,
    /// The first checksum that was wrong.
    wrong: Option<u64>,
}

impl Outcome {
    fn line(&self, name: &str) -> String {
        format!(
            "RESULT {name} iterations={} ns={} best={} checksum={:016x}{}",
            self.units,
            self.sum.as_nanos(),
            self.best.as_nanos(),
            self.wrong.unwrap_or(self.expected),
            if self.wrong.is_some() { " WRONG" } else { "" }
        )
    }
}

fn measure(expected: u64, unit: &mut Unit, time: Duration) -> Outcome {
    let check = |checksum: u64| (checksum != expected).then_some(checksum);
    // The first unit pays for page faults and cold caches, and for the translation or decoding of its code.
    let mut wrong = check(unit());
    let (mut units, mut best) = (0, Duration::MAX);
    let start = Instant::now();
    let mut before = start;
    while units < MIN_UNITS || before - start < time {
        wrong = wrong.or(check(unit()));
        let now = Instant::now();
        best = best.min(now - before);
        before = now;
        units += 1;
    }
    Outcome { units, sum: before - start, best, expected, wrong }
}

/// Next output of Knuth's MMIX generator, from which the classes make their data.
#[inline]
pub fn lcg(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state
}

/// For tests: each class's unit returns the class's checksum, three times over. Classes that are unavailable here say
/// so and pass.
///
/// # Panics
/// If one does not.
#[expect(clippy::print_stderr, reason = "for tests")]
pub fn check_all<'a>(classes: impl IntoIterator<Item = &'a Class>) {
    for class in classes {
        match (class.make)() {
            Ok(mut unit) => {
                for round in 0..3 {
                    assert_eq!(unit(), class.expected, "{} round {round}", class.name);
                }
            }
            Err(Unavailable(reason)) => eprintln!("{} is unavailable: {reason}", class.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_checksum_is_kept_and_told() {
        let mut count = 0;
        // Wrong once, in the middle.
        let mut unit: Unit = Box::new(move || {
            count += 1;
            if count == 3 { 8 } else { 7 }
        });
        let outcome = measure(7, &mut unit, Duration::ZERO);
        assert_eq!((outcome.units, outcome.wrong), (MIN_UNITS, Some(8)));
        assert!(outcome.line("x").ends_with("checksum=0000000000000008 WRONG"), "{}", outcome.line("x"));

        fn nine() -> Result<Unit, Unavailable> {
            Ok(Box::new(|| 9))
        }
        let class = |expected| Class { name: "nine", about: "", make: nine, expected };
        assert!(report(&class(9), Duration::ZERO));
        assert!(!report(&class(8), Duration::ZERO));
    }

    #[test]
    fn lines_have_counts_and_times() {
        let outcome = Outcome {
            units: 5,
            sum: Duration::from_nanos(50),
            best: Duration::from_nanos(8),
            expected: 0xab,
            wrong: None,
        };
        assert_eq!(outcome.line("a"), "RESULT a iterations=5 ns=50 best=8 checksum=00000000000000ab");
    }

    #[test]
    fn units_go_on_for_the_time_asked_for() {
        let mut unit: Unit = Box::new(|| {
            std::thread::sleep(Duration::from_millis(1));
            0
        });
        let outcome = measure(0, &mut unit, Duration::from_millis(20));
        assert!(outcome.units >= MIN_UNITS && outcome.sum >= Duration::from_millis(20), "{outcome:?}");
        assert!(outcome.best >= Duration::from_millis(1) && outcome.best <= outcome.sum, "{outcome:?}");
    }

    #[test]
    fn what_is_unavailable_is_no_failure() {
        let make = || Err(Unavailable("the test says so".to_owned()));
        assert!(report(&Class { name: "none", about: "", make, expected: 1 }, Duration::ZERO));
    }
}
