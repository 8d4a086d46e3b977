//! Classes of user-space work, each self-timed and self-checked: `user-suite [--millis N] [CLASS...]`.
//!
//! 1. A class is a *unit*: a fixed piece of work that takes some 0.1 to 1 ms natively and returns a checksum.
//! 2. Units are repeated until the time asked for has passed (at least [`MIN_UNITS`] of them), so the same program
//!    measures a real processor and one that is a hundred times slower.
//! 3. Every unit's checksum is compared with the one in [`CLASSES`]: a fast wrong answer fails.
//! 4. One line a class: `RESULT <class> iterations=<units> ns=<sum> best=<fastest unit> checksum=<16 hex digits>`,
//!    by CLOCK_MONOTONIC. The exit status is 0 if all checksums were right, 1 if not, 2 for bad usage.
//!
//! `benches` builds it as a static executable for the baseline x86-64 and runs the same file on the host and in guests.

mod control;
mod float;
mod hash;
mod integer;
mod memory;
mod system;

use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What does one unit; made once a class, so that tables are built outside of the time measured.
type Unit = Box<dyn FnMut() -> u64>;

struct Class {
    name: &'static str,
    about: &'static str,
    make: fn() -> Unit,
    /// Checksum of every unit.
    expected: u64,
}

const CLASSES: &[Class] = &[
    Class {
        name: "integer",
        about: "list, matrix, state machine and CRC in turn",
        make: integer::mix,
        expected: 0xc698,
    },
    Class { name: "calls", about: "recursive Fibonacci numbers", make: control::calls, expected: 10_946 },
    Class {
        name: "indirect",
        about: "calls through a table of eight",
        make: control::indirect,
        expected: 0xd5b6_1926_1fd8_996a,
    },
    Class {
        name: "chase",
        about: "pointer chase over 4 MiB",
        make: memory::chase,
        expected: 0xd104_d03f_1e0e_33ed,
    },
    Class {
        name: "stream",
        about: "copy, scale, add over arrays of 256 KiB",
        make: memory::stream,
        expected: 0x3b54_56fb_c4b5_4000,
    },
    Class {
        name: "nbody",
        about: "five bodies, scalar doubles",
        make: float::nbody,
        expected: 0x5726_1fb1_e616_3695,
    },
    Class {
        name: "matrix",
        about: "48 x 48 doubles by SSE2 intrinsics",
        make: float::matrix,
        expected: 0x2c23_67f3_c292_c193,
    },
    Class { name: "sha256", about: "SHA-256 of 16 KiB", make: hash::sha256, expected: 0x58c8_ab9f_b362_4756 },
    Class {
        name: "string",
        about: "the C library's copy, move, compare and search",
        make: memory::string,
        expected: 0x6f77_2bc3_0443_a61e,
    },
    Class { name: "getppid", about: "a thousand system calls", make: system::getppid, expected: 1000 },
    Class {
        name: "forkexec",
        about: "fork, exec of itself, wait",
        make: system::fork_exec,
        expected: system::CHILD_STATUS,
    },
    Class {
        name: "pipe",
        about: "fifty bytes to another process and back",
        make: system::pipe,
        expected: 0xfef4_a463_dc76_6abd,
    },
    Class {
        name: "pagefault",
        about: "map, touch and unmap 256 pages",
        make: system::page_faults,
        expected: 0x60c6_4565_c854_4800,
    },
];

const MIN_UNITS: u32 = 3;

fn main() -> ExitCode {
    let mut millis = 200;
    let mut names = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            system::CHILD => return ExitCode::from(system::CHILD_STATUS as u8),
            "--millis" => match arguments.next().and_then(|n| n.parse().ok()) {
                Some(n) => millis = n,
                None => return usage(),
            },
            name if CLASSES.iter().any(|class| class.name == name) => names.push(argument),
            _ => return usage(),
        }
    }
    let mut right = true;
    for class in CLASSES {
        if names.is_empty() || names.iter().any(|name| name == class.name) {
            right &= measure(class, Duration::from_millis(millis));
        }
    }
    ExitCode::from(u8::from(!right))
}

#[expect(clippy::print_stderr, reason = "a command-line tool")]
fn usage() -> ExitCode {
    eprintln!("usage: user-suite [--millis N] [CLASS...]\nclasses:");
    for class in CLASSES {
        eprintln!("  {:10} {}", class.name, class.about);
    }
    ExitCode::from(2)
}

/// Runs units of one class and prints its line; whether all were right.
#[expect(clippy::print_stdout, reason = "the report")]
fn measure(class: &Class, time: Duration) -> bool {
    let mut unit = (class.make)();
    // The first unit pays for page faults and cold caches, and for the translation or decoding of its code.
    let mut wrong = check(class, unit());
    let (mut units, mut best) = (0u32, Duration::MAX);
    let start = Instant::now();
    let mut before = start;
    while units < MIN_UNITS || before - start < time {
        wrong = wrong.or(check(class, unit()));
        let now = Instant::now();
        best = best.min(now - before);
        before = now;
        units += 1;
    }
    let sum = before - start;
    let checksum = wrong.unwrap_or(class.expected);
    println!(
        "RESULT {} iterations={units} ns={} best={} checksum={checksum:016x}{}",
        class.name,
        sum.as_nanos(),
        best.as_nanos(),
        if wrong.is_some() { " WRONG" } else { "" }
    );
    wrong.is_none()
}

/// The checksum, if it is wrong.
fn check(class: &Class, checksum: u64) -> Option<u64> {
    (checksum != class.expected).then_some(checksum)
}

/// Knuth's MMIX generator.
fn lcg(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_computes_what_it_should_again_and_again() {
        // The one that executes this very program anew would run the tests again.
        for class in CLASSES.iter().filter(|class| class.name != "forkexec") {
            let mut unit = (class.make)();
            for round in 0..3 {
                assert_eq!(unit(), class.expected, "{} round {round}", class.name);
            }
        }
    }
}
