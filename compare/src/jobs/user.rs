//! Linux programs, natively and inside guests.
//!
//! `guests::suite` builds them: the same files run on the host and, started by the script of an initramfs, in a guest. One
//! boot measures all classes that are wanted.

use std::fs;
use std::path::PathBuf;

use guests::debian::{self, DefaultGuest};
use guests::initramfs::Compression;
use guests::suite::{self, Class, Line, Program, Suite};

use super::boot::{self, CMDLINE_OF_SCRIPTS, DONE, INIT, INSTRUCTIONS, MEBIBYTES};
use super::{Job, Kitchen, NO_NATIVE_FORM, Reading, Readings, RowSpec, Selection, Unavailable};
use crate::error::Error;
use crate::process::{End, Outcome, Runner, Watch, last_lines};
use crate::subject::{GuestRun, Subject};

/// Why what a guest measures itself is no number.
const NO_TIME: &str = "its clock counts instructions, so what a guest measures there is no time";

/// The suite of a group, if it is one of suites.
pub(super) fn suite_of(group: &str) -> Option<Suite> {
    match group {
        "user" => Some(Suite::User),
        "libraries" => Some(Suite::Libraries),
        _ => None,
    }
}

struct Classes {
    rows: Vec<RowSpec>,
    /// The first row is that of the boot.
    with_boot: bool,
    program: Program,
    /// The classes wanted, by name.
    classes: Vec<String>,
    /// For the program, on the host and in guests.
    arguments: Vec<String>,
    /// Kernel and initial RAM disk with the program in it; or why there is no guest.
    guest: Result<(PathBuf, PathBuf), String>,
}

fn row(group: &'static str, class: &str, about: &str, what: &str) -> RowSpec {
    RowSpec {
        guest: format!("{group}/{class}"),
        group,
        about: about.to_owned(),
        unit: "ns",
        what: what.to_owned(),
    }
}

/// Without the suite, or a Debian guest, the rows are there and say why they have no numbers. `with_boot` makes the boot a
/// row too, and a job of its own where this one cannot be.
pub(super) fn jobs(
    group: &'static str,
    suite: Suite,
    selection: &Selection,
    kitchen: &Kitchen<'_>,
    guest: Result<&DefaultGuest, &String>,
    with_boot: bool,
    say: &dyn Fn(&str),
) -> Result<Vec<Box<dyn Job>>, Error> {
    let (program, known) = match program(suite, kitchen, say) {
        Ok(made) => made,
        Err(reason) => {
            let names = selection.named(group).unwrap_or_else(|| vec![suite.name().to_owned()]);
            let rows = names.iter().map(|name| row(group, name, "", "")).collect();
            let unavailable: Box<dyn Job> = Box::new(Unavailable { rows, reason });
            return Ok(with_boot.then(|| boot::job(guest)).into_iter().chain([unavailable]).collect());
        }
    };
    for name in selection.named(group).unwrap_or_default() {
        if !known.iter().any(|class| class.name == name) {
            let known = known.iter().map(|class| format!("{group}/{}", class.name)).collect();
            return Err(Error::Guest { name: format!("{group}/{name}"), known });
        }
    }
    let wanted: Vec<_> = known.into_iter().filter(|class| selection.wants(group, &class.name)).collect();
    let what = guest.map_or_else(|_| "no guest".to_owned(), |guest| format!("Debian's {}", guest.version));
    let mut rows = Vec::new();
    if with_boot {
        rows.push(boot::row(format!("{what}, busybox and {}; {CMDLINE_OF_SCRIPTS}", suite.name())));
    }
    rows.extend(wanted.iter().map(|class| row(group, &class.name, &class.about, &what)));
    let classes: Vec<String> = wanted.into_iter().map(|class| class.name).collect();
    let mut arguments = vec!["--millis".to_owned(), kitchen.millis.to_string()];
    arguments.extend(classes.iter().cloned());
    let guest = match guest {
        Ok(guest) => initramfs(&program, guest, &arguments)
            .and_then(|initrd| Ok((guest.kernel.clone(), kitchen.scratch.file(suite.name(), &initrd)?)))
            .map_err(|error| error.to_string()),
        Err(reason) => Err(reason.clone()),
    };
    Ok(vec![Box::new(Classes { rows, with_boot, program, classes, arguments, guest })])
}

/// The suite and its classes, or why it cannot be had.
fn program(suite: Suite, kitchen: &Kitchen<'_>, say: &dyn Fn(&str)) -> Result<(Program, Vec<Class>), String> {
    let needs_libraries = suite == Suite::Libraries && debian::cached_libraries().is_none();
    let program = match kitchen.suite {
        Some(executable) if suite == Suite::User => {
            Program { suite, executable: executable.to_owned(), libraries: None }
        }
        _ if needs_libraries && kitchen.offline => {
            return Err(
                "Debian's libraries are not in the cache, and --offline forbids to fetch them".to_owned()
            );
        }
        _ => suite::build(suite, suite::source(), &mut |line| say(line)).map_err(|error| one_line(&error))?,
    };
    let classes = program.classes().map_err(|error| one_line(&error))?;
    Ok((program, classes))
}

fn one_line(error: &dyn std::error::Error) -> String {
    format!("{}; --suite FILE names a user-suite that is built", last_lines(&error.to_string()))
}

fn initramfs(program: &Program, guest: &DefaultGuest, arguments: &[String]) -> Result<Vec<u8>, Error> {
    let busybox = fs::read(&guest.busybox).map_err(Error::file("read", &guest.busybox))?;
    Ok(program.initramfs(&busybox, &arguments.join(" "))?.build(Compression::None))
}

impl Job for Classes {
    fn rows(&self) -> &[RowSpec] {
        &self.rows
    }

    fn refusal(&self, subject: &Subject) -> Option<String> {
        match &self.guest {
            Err(reason) if !subject.is_native() => Some(reason.clone()),
            _ if !subject.keeps_time() && !self.with_boot => Some(NO_TIME.to_owned()),
            _ => None,
        }
    }

    fn kernel_instructions(&self) -> f64 {
        INSTRUCTIONS
    }

    fn is_cheap(&self) -> bool {
        false
    }

    fn run(&self, subject: &Subject, runner: &Runner<'_>) -> Result<Readings, Error> {
        let outcome = match &self.guest {
            Ok((kernel, initrd)) if !subject.is_native() => {
                let guest = GuestRun {
                    kernel,
                    initrd: Some(initrd),
                    cmdline: CMDLINE_OF_SCRIPTS,
                    mebibytes: MEBIBYTES,
                    until: if self.with_boot { INIT } else { DONE },
                    linux: true,
                };
                runner.guest(subject, &guest, if self.with_boot { &boot::WATCH } else { &Watch::EMPTY })?
            }
            _ => {
                let mut command = self.program.native();
                command.args(&self.arguments).stdin(std::process::Stdio::null());
                runner.native(command)?
            }
        };
        Ok(outcome.map(|outcome| {
            let boot = self.with_boot.then(|| match subject.is_native() {
                true => Reading { refusal: Some(NO_NATIVE_FORM.to_owned()), ..Reading::default() },
                false => boot::reading(subject, &outcome),
            });
            boot.into_iter()
                .chain(self.classes.iter().map(|class| match subject.keeps_time() {
                    true => reading(class, &outcome),
                    false => Reading { refusal: Some(NO_TIME.to_owned()), ..Reading::default() },
                }))
                .collect()
        }))
    }
}

/// What a class's line says. The suite itself compares checksums. How the machine ends is no matter of a class.
fn reading(class: &str, outcome: &Outcome) -> Reading {
    let answer = |said: &str| Some((said.to_owned(), End(String::new())));
    match suite::parse(class, &outcome.console) {
        Some(Line::Measured { units, ns, .. }) => Reading {
            value: Some(ns as f64 / units as f64),
            answer: answer("the right checksum"),
            ..Reading::default()
        },
        Some(Line::Unavailable(reason)) => {
            Reading { refusal: Some(format!("the guest says: {reason}")), ..Reading::default() }
        }
        Some(Line::Wrong(line)) => Reading {
            failure: Some(format!("wrong result: {line}")),
            // The numbers of the line differ from round to round.
            answer: answer(
                line.split_whitespace().find(|word| word.starts_with("checksum=")).unwrap_or("WRONG"),
            ),
            ..Reading::default()
        },
        None => Reading::failed(format!(
            "no result; last on its console: {}; end: {}",
            last_lines(&outcome.console),
            outcome.end.0
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(console: &str) -> Reading {
        let outcome = Outcome {
            wall: Duration::ZERO,
            console: console.to_owned(),
            milestones: Vec::new(),
            memory: None,
            counters: None,
            end: End("reset".to_owned()),
        };
        reading("calls", &outcome)
    }

    #[test]
    fn lines_are_numbers_answers_refusals_or_failures() {
        let right = read("INIT\r\nRESULT calls iterations=4 ns=1000 best=200 checksum=00\r\n");
        assert_eq!((right.value, right.failure), (Some(250.0), None));
        let wrong = read("RESULT calls iterations=4 ns=1000 best=200 checksum=07 WRONG\n");
        assert_eq!(
            (wrong.value, wrong.answer.clone().map(|(said, _)| said)),
            (None, Some("checksum=07".into()))
        );
        assert_ne!(wrong.answer, right.answer);
        assert!(read("RESULT calls unavailable: no AVX2\n").refusal.unwrap().contains("no AVX2"));
        let none = read("RESULT cal iterations=1\noops\n").failure.unwrap();
        assert!(none.contains("oops") && none.contains("reset"), "{none}");
    }
}
