//! A Linux program, natively and inside guests.
//!
//! `guests/user` is built as one static executable for the baseline x86-64, so that the same machine code runs on the
//! host and in a guest without AVX (the C library inside chooses its string functions by CPUID, though: the host gets
//! wider ones). In guests it is started by the script of an initramfs.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fs};

use clap::Args;
use guests::initramfs::{Compression, Initramfs};

use crate::boot;
use crate::error::Failure;
use crate::host::{self, Scratch};
use crate::report::{Cell, Experiment, Report};
use crate::samples::{Spread, geometric_mean, significant};
use crate::subject::GuestRun;
use crate::table::{Table, note};
use crate::{Setup, say};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Milliseconds a class is repeated for
    #[arg(long, value_name = "N", default_value_t = 200)]
    millis: u32,
    /// Use this static executable instead of building guests/user
    #[arg(long, value_name = "F")]
    suite: Option<PathBuf>,
}

const TARGET: &str = "x86_64-unknown-linux-gnu";
const DONE: &str = "GUEST-DONE";

/// How much slower than native the best build of Bochs runs programs of these kinds: the project's mark to beat, not a
/// run of these programs.
const BOCHS: &[(&str, f64)] = &[
    ("integer", 34.0),
    ("calls", 43.0),
    ("nbody", 77.0),
    ("matrix", 180.0),
    ("getppid", 46.0),
    ("forkexec", 30.0),
];

/// The experiment with these options.
pub(crate) fn experiment(options: &Options) -> impl Fn(&Setup, &mut Report) -> Result<Vec<String>, Failure> {
    move |setup, report| run(setup, options, report)
}

fn run(setup: &Setup, options: &Options, report: &mut Report) -> Result<Vec<String>, Failure> {
    let suite = match &options.suite {
        Some(file) => file.clone(),
        None => build()?,
    };
    let known = classes(&suite)?;
    let classes: Vec<String> = known.iter().filter(|class| setup.wants(class)).cloned().collect();
    if classes.is_empty() {
        return Ok(known);
    }
    let arguments = format!("--millis {} {}", options.millis, classes.join(" "));
    let guest = boot::guest()?;
    let busybox = fs::read(&guest.busybox).map_err(Failure::file("read", &guest.busybox))?;
    let program = fs::read(&suite).map_err(Failure::file("read", &suite))?;
    let initrd = Initramfs::new(&busybox)
        .script(&format!("/bin/user-suite {arguments}\n"))
        .file("bin/user-suite", 0o755, program)?
        .build(Compression::None);
    let scratch = Scratch::new("user")?;
    let initrd = scratch.file("initrd.img", &initrd)?;

    let columns: Vec<String> =
        std::iter::once("native").chain(setup.subjects.iter().map(|s| s.name())).map(str::to_owned).collect();
    let mut experiment = Experiment::new("user", "ns per unit", guest.version.clone(), columns, classes);
    let files = GuestRun {
        kernel: &guest.kernel,
        initrd: Some(&initrd),
        cmdline: boot::CMDLINE,
        mebibytes: boot::MEBIBYTES,
        until: DONE,
    };
    for counts in setup.rounds.each() {
        for column in 0..experiment.columns.len() {
            say(&format!("user: {}", experiment.columns[column]));
            if experiment.rows.iter().all(|row| row.cells[column].failure.is_some()) {
                continue;
            }
            let outcome = match column.checked_sub(1).and_then(|n| setup.subjects.get(n)) {
                Some(subject) => setup.pinned.guest(subject, &files, |console| console.contains(DONE))?,
                None => {
                    let mut command = Command::new(&suite);
                    command.args(arguments.split(' ')).stdin(Stdio::null());
                    setup.pinned.native(command)?
                }
            };
            for row in &mut experiment.rows {
                let cell = &mut row.cells[column];
                match &outcome {
                    Err(broken) => cell.fail(broken.clone()),
                    Ok(outcome) => {
                        take(&row.name, &outcome.console, counts, cell);
                        if counts && cell.failure.is_none() {
                            cell.counters.clone_from(&outcome.counters);
                        }
                    }
                }
            }
        }
    }
    print(&experiment);
    report.add(experiment);
    Ok(known)
}

/// Puts a class's line into its cell.
fn take(class: &str, console: &str, counts: bool, cell: &mut Cell) {
    match line(class, console) {
        Err(failure) => cell.fail(failure),
        Ok(ns) if counts && cell.failure.is_none() => cell.samples.push(ns),
        Ok(_) => {}
    }
}

/// Nanoseconds a unit took by the class's `RESULT` line. The suite itself compares checksums.
fn line(class: &str, console: &str) -> Result<f64, String> {
    let start = format!("RESULT {class} ");
    let line = console.lines().map(str::trim_end).find(|line| line.starts_with(&start));
    let line = line.ok_or("says no result")?;
    if line.ends_with("WRONG") {
        return Err(format!("WRONG RESULT: {line}"));
    }
    let field = |name: &str| -> Option<f64> {
        line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    match (field("iterations"), field("ns")) {
        (Some(units), Some(ns)) if units > 0.0 => Ok(ns / units),
        _ => Err(format!("is no result: {line}")),
    }
}

/// Builds the suite into the workspace's target folder; its path.
fn build() -> Result<PathBuf, Failure> {
    let root = host::source_root();
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let target = target.join("user-suite");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--package", "user-suite", "--target", TARGET]);
    cargo.arg("--target-dir").arg(&target);
    // The baseline, whatever the user builds other things for; and a file without symbols, as it travels in the
    // initramfs.
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C target-cpu=x86-64 -C strip=symbols");
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").current_dir(root).stdin(Stdio::null());
    say("building the user-space suite");
    let output = match cargo.output() {
        Ok(output) if output.status.success() => return Ok(target.join(TARGET).join("release/user-suite")),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    Err(Failure::Build { what: "the user-space suite", command: format!("{cargo:?}"), output })
}

/// The classes the suite has, by its usage text.
fn classes(suite: &std::path::Path) -> Result<Vec<String>, Failure> {
    let output = Command::new(suite).arg("--help").output().map_err(Failure::file("run", suite))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let names = text.lines().skip_while(|line| *line != "classes:").skip(1);
    let names: Vec<String> =
        names.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    if names.is_empty() { Err(Failure::Suite { output: text.into_owned() }) } else { Ok(names) }
}

fn print(experiment: &Experiment) {
    let peer = experiment.peer();
    let guests: Vec<_> = (1..experiment.columns.len()).collect();
    let ours: Vec<_> = guests.iter().copied().filter(|n| Some(*n) != peer).collect();
    let name = |n: usize| &experiment.columns[n];
    let mut head = vec!["class".to_owned(), "native ns".to_owned()];
    head.extend(guests.iter().map(|n| format!("{} x native", name(*n))));
    if peer.is_some() {
        head.extend(ours.iter().map(|n| format!("{} x QEMU", name(*n))));
    }
    head.push("Bochs x native".to_owned());
    let mut table = Table::new(head);
    let text = |spread: Option<Spread>| spread.map_or("-".to_owned(), |s| s.to_string());
    for row in &experiment.rows {
        let native = row.cells[0].samples.spread().map(|s| significant(s.median));
        let mut line = vec![row.name.clone(), native.unwrap_or("-".to_owned())];
        line.extend(guests.iter().map(|n| text(row.ratio(*n, 0))));
        if let Some(peer) = peer {
            line.extend(ours.iter().map(|n| text(row.ratio(*n, peer))));
        }
        let bochs = BOCHS.iter().find(|(class, _)| *class == row.name);
        line.push(bochs.map_or("-".to_owned(), |(_, times)| format!("{times:.0}")));
        table.row(line);
    }
    table.print("User-space classes: times slower, median of rounds (min .. max)");
    let mean = |rows: &[&str], n: usize| {
        let of = |row: &&crate::report::Row| rows.is_empty() || rows.contains(&row.name.as_str());
        let ratios = experiment.rows.iter().filter(of).filter_map(|row| row.ratio(n, 0));
        geometric_mean(ratios.map(|s| s.median)).map_or("-".to_owned(), significant)
    };
    let marks: Vec<_> =
        BOCHS.iter().filter(|(class, _)| experiment.rows.iter().any(|row| row.name == *class)).collect();
    let marked: Vec<_> = marks.iter().map(|(class, _)| *class).collect();
    for n in guests {
        let mut line = format!("{} x native, geometric mean: {}", name(n), mean(&[], n));
        if !marked.is_empty() {
            line += &format!("; of the {} classes with a mark: {}", marked.len(), mean(&marked, n));
        }
        note(&line);
    }
    if let Some(mean) = geometric_mean(marks.iter().map(|(_, times)| *times)) {
        note(&format!("Bochs x native, geometric mean of these marks: {}", significant(mean)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_results() {
        let console = "INIT\r\nRESULT calls iterations=4 ns=1000 best=200 checksum=00\r\nRESULT x\r\n\
                       RESULT y iterations=1 ns=1 best=1 checksum=01 WRONG\r\n";
        assert_eq!(line("calls", console), Ok(250.0));
        assert!(line("cal", console).is_err() && line("x", console).is_err());
        assert!(line("y", console).unwrap_err().contains("WRONG"));
    }

    #[test]
    fn a_cell_keeps_only_what_counts() {
        let mut cell = Cell::default();
        take("a", "RESULT a iterations=1 ns=5 best=5 checksum=0\n", false, &mut cell);
        assert_eq!(cell.samples.spread(), None);
        take("a", "RESULT a iterations=1 ns=5 best=5 checksum=0\n", true, &mut cell);
        assert_eq!(cell.samples.spread().map(|s| s.median), Some(5.0));
        take("a", "nothing", true, &mut cell);
        assert!(cell.samples.spread().is_none() && cell.failure.is_some());
    }
}
