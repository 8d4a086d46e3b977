//! Guests side by side: our backends, QEMU's TCG and, for user-space programs, the host itself.
//!
//! 1. An experiment (`boot`, `micro`, `user`) has rows (guests or classes of work) and columns ([`subject::Subject`]).
//! 2. Every subject runs in a process of its own, pinned to one core: ours is this very program, started again with
//!    the hidden command `guest`, so that its memory can be told from the benchmark's.
//! 3. Rounds are interleaved, A B C A B C, after rounds of warm-up: what slows the host down slows all alike. Reported
//!    are medians, extremes, and ratios as the median of each round's ratio.
//! 4. Guests check what they compute; a wrong answer, or a guest that does not end, is a failure and not a number.

mod boot;
mod error;
mod exits;
mod guest;
mod host;
mod memory;
mod micro;
mod report;
mod run;
mod samples;
mod start;
mod subject;
mod table;
mod user;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::error::Failure;
use crate::report::Report;
use crate::subject::{QemuAccel, Subject};

#[derive(Debug, Parser)]
#[command(name = "bench", about = "Measures guests on our backends and on their peers, side by side")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Debian's cloud kernel from process start to its first program; memory
    Boot(Common),
    /// Bare-metal guests, one a class of work
    Micro(Common),
    /// A Linux program: natively, and inside Debian's cloud kernel
    User {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        suite: user::Options,
    },
    /// What leaving a guest costs on KVM (`--accel kvm`), beside a C program that has ioctl alone
    Exits(Common),
    /// From the start of the process to the guest's first byte; memory
    Start(Common),
    /// All of these but `exits` and `start`
    All {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        suite: user::Options,
    },
    /// Runs one guest of ours; what the other commands start
    #[command(hide = true)]
    Guest(guest::Options),
    /// Makes events in a guest of ours; what `exits` starts
    #[command(hide = true)]
    ExitsGuest(exits::ours::Options),
}

/// What all experiments share.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Our backends, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "interp")]
    accel: Vec<String>,
    /// What QEMU, the peer, runs with
    #[arg(long, value_enum, value_name = "ACCEL", default_value = "tcg")]
    qemu: QemuAccel,
    /// Leave QEMU out
    #[arg(long)]
    no_qemu: bool,
    /// Boot our machine by this program (`F run --accel A --kernel ...`) instead of this one
    #[arg(long, value_name = "F")]
    gearshift: Option<PathBuf>,
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Rounds before them
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: u32,
    /// Core that everything measured is pinned to; else the last one this process may use
    #[arg(long, value_name = "N")]
    core: Option<usize>,
    /// Only these rows, separated by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    only: Vec<String>,
    /// Seconds after which a guest has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
    /// Write all samples here, as JSON
    #[arg(long, value_name = "F")]
    json: Option<PathBuf>,
}

/// What an experiment runs with.
#[derive(Debug)]
struct Setup {
    subjects: Vec<Subject>,
    rounds: samples::Rounds,
    only: Vec<String>,
    pinned: run::Runner,
}

impl Common {
    fn setup(&self) -> Result<Setup, Failure> {
        let registry = machine::Registry::builtin();
        let mut subjects = Vec::new();
        for name in &self.accel {
            // Names are checked before anything runs.
            registry.choose(&name.parse()?)?;
            subjects.push(Subject::Ours { accel: name.clone(), program: self.gearshift.clone() });
        }
        if !self.no_qemu {
            match subject::qemu_version() {
                Some(version) => subjects.push(Subject::Qemu { accel: self.qemu, version }),
                None => say("qemu-system-x86_64 is not installed: our numbers stand alone"),
            }
        }
        let core = host::choose_core(self.core)?;
        Ok(Setup {
            subjects,
            rounds: samples::Rounds { warm_up: self.warm_up, repeat: self.repeat },
            only: self.only.clone(),
            pinned: run::Runner { core, limit: Duration::from_secs(self.limit) },
        })
    }
}

impl Setup {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// A line for whoever waits.
#[expect(clippy::print_stderr, reason = "progress of a command-line tool")]
fn say(line: &str) {
    eprintln!("{line}");
}

/// Runs the rows that are wanted and adds a table to the report; the names of all rows there are.
type Experiment<'a> = &'a dyn Fn(&Setup, &mut Report) -> Result<Vec<String>, Failure>;

fn main() -> ExitCode {
    let result = match Arguments::parse().what {
        What::Guest(options) => return guest::main(&options),
        What::ExitsGuest(options) => return exits::ours::main(&options),
        What::Exits(common) => measure(&common, &[&exits::run]),
        What::Start(common) => measure(&common, &[&start::run]),
        What::Boot(common) => measure(&common, &[&boot::run]),
        What::Micro(common) => measure(&common, &[&micro::run]),
        What::User { common, suite } => measure(&common, &[&user::experiment(&suite)]),
        What::All { common, suite } => {
            measure(&common, &[&boot::run, &micro::run, &user::experiment(&suite)])
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            say(&format!("bench: {failure}"));
            ExitCode::from(2)
        }
    }
}

/// Runs experiments, prints and writes what they found; whether none of it was a failure.
fn measure(common: &Common, experiments: &[Experiment<'_>]) -> Result<bool, Failure> {
    let setup = common.setup()?;
    let output = common.json.as_deref().map(report::Output::check).transpose()?;
    let mut report = Report::new(&setup);
    let mut known = Vec::new();
    for experiment in experiments {
        known.extend(experiment(&setup, &mut report)?);
        // Written after each: an interrupted run keeps what it has.
        if let Some(output) = &output {
            output.write(&report)?;
        }
    }
    match setup.only.iter().find(|only| !known.contains(only)) {
        Some(name) => Err(Failure::Unknown { what: "row", name: name.clone(), known }),
        None => Ok(report.all_well()),
    }
}
