//! The same guest on every backend, with numbers one can trust.
//!
//! 1. A [`Field`] is who takes part ([`Subject`]): our backends that work here, the same of other builds, peers, the host
//!    itself; and who was asked for and cannot.
//! 2. `jobs` are the guests. Each is a process of its own, pinned to one core ([`Runner`]); ours is the very program that
//!    compares, started again with a hidden command ([`worker`]), so that its memory can be told from the comparison's.
//! 3. `measure` runs rounds, A B C C B A, after warm-up. [`stats`] says what may be said of the samples.
//! 4. Guests check what they compute, and what they say and how they end is compared between subjects: a difference is
//!    the first thing a [`Report`] tells.
//! 5. [`text`](fn@text), [`csv`] and [`html`](fn@html) show a report; [`against`](fn@against) compares it with an
//!    older one.

mod against;
mod beside;
mod bochs;
mod build;
mod disk;
mod error;
pub mod host;
mod html;
mod jobs;
mod markdown;
mod measure;
mod memory;
mod options;
mod peer;
mod process;
mod report;
pub mod stats;
mod subject;
mod table;
mod text;
pub mod worker;

use std::ffi::OsString;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use machine::{Registry, TscFrequency};

pub use against::{Change, Changes, against};
pub use beside::{BuildInfo, BuildMean};
pub use error::Error;
pub use html::html;
pub use jobs::list;
pub use memory::Memory;
pub use options::Options;
pub use peer::Peer;
pub use process::{Broken, End, Outcome, Runner, Watch};
pub use report::{
    Answer, Cell, Disagreement, Gap, Host, MissingInfo, Output, Report, Row, SCHEMA, Side, Status,
    SubjectInfo,
};
pub use subject::{Field, GuestRun, Missing, Subject};
pub use table::Table;
pub use text::{csv, text};

/// What the program that compares brings along.
pub struct Caller<'a> {
    /// Name and version of the program.
    pub program: &'a str,
    /// The backends there are.
    pub registry: &'a Registry,
    /// Words that make this program a [`worker`].
    pub worker: &'a [OsString],
    /// Set when the user wants an end.
    pub stop: &'a AtomicBool,
    /// Takes a line for whoever waits.
    pub say: &'a dyn Fn(&str),
}

impl std::fmt::Debug for Caller<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller")
            .field("program", &self.program)
            .field("worker", &self.worker)
            .finish_non_exhaustive()
    }
}

/// A comparison's result.
#[derive(Debug)]
pub struct Findings {
    /// Everything.
    pub report: Report,
    /// Beside the old report, if there is one.
    pub changes: Option<Changes>,
}

/// What the findings come to, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Backends disagree about what a guest does.
    Disagreement,
    /// A guest failed on a backend, or nothing has a number.
    Failed,
    /// Slower than the old report.
    Slower,
    /// All is well; what could not run is marked.
    Well,
}

/// Measures, and writes the files that were asked for.
///
/// # Errors
/// Whatever keeps it from measuring at all, found before anything runs; or a report that cannot be written in the end.
pub fn compare(options: &Options, caller: &Caller<'_>) -> Result<Findings, Error> {
    let outputs = options.outputs()?;
    let old = options.against.as_deref().map(Report::read).transpose()?;
    let selection = jobs::Selection::parse(&options.guests, options.quick)?;
    let core = host::choose_core(options.core)?;
    let runner = Runner { core, limit: Duration::from_secs(options.limit()), stop: caller.stop };
    let field = Field::survey(caller.registry, options, caller.worker, &runner)?;
    options.check_base(&field)?;
    let scratch = host::Scratch::new("compare")?;
    let kitchen = options.kitchen(&scratch);
    for one in &field.missing {
        (caller.say)(&format!("{} does not take part: {}", one.name, one.reason));
    }
    let jobs = jobs::make(&selection, &kitchen, caller.say)?;

    let load = host::load();
    let began = Instant::now();
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let rounds = options.rounds();
    let measured = measure::measure(&jobs, &field.subjects, rounds, options.quick, &runner, caller.say)?;
    let mut report = Report {
        schema: SCHEMA,
        program: caller.program.to_owned(),
        commit: host::commit(),
        started,
        seconds: began.elapsed().as_secs_f64(),
        command: std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect(),
        interrupted: measured.interrupted,
        quick: options.quick,
        host: Host {
            processor: host::processor(),
            kernel: host::proc_line("/proc/sys/kernel/osrelease"),
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            core,
            tsc_khz: TscFrequency::of_host().khz,
            load: vec![load, host::load()],
        },
        rounds,
        rounds_done: measured.rounds_done,
        subjects: field.subjects.iter().map(SubjectInfo::from).collect(),
        missing: field
            .missing
            .into_iter()
            .map(|one| MissingInfo { name: one.name, reason: one.reason })
            .collect(),
        rows: measured.rows,
        builds: Vec::new(),
        disagreements: Vec::new(),
    };
    report.finish(options.base.as_deref());
    let changes = old.map(|old| against(&report, &old, options.floor()));
    outputs.write(&report, changes.as_ref(), options.floor())?;
    Ok(Findings { report, changes })
}

impl From<&Subject> for SubjectInfo {
    fn from(subject: &Subject) -> Self {
        Self {
            name: subject.name.clone(),
            kind: subject.kind().to_owned(),
            about: subject.about.clone(),
            provider: subject.provider.clone(),
            quality: subject.quality.clone(),
            build: subject.build(),
        }
    }
}

impl Findings {
    /// The worst of what was found.
    pub fn verdict(&self) -> Verdict {
        let report = &self.report;
        let mut statuses = report.cells().map(|(_, cell)| cell.status);
        let nothing = !report.interrupted && report.cells().all(|(_, cell)| cell.status != Status::Ok);
        if !report.disagreements.is_empty() {
            Verdict::Disagreement
        } else if nothing || statuses.any(|status| status == Status::Failed) {
            Verdict::Failed
        } else if self.changes.as_ref().is_some_and(|changes| !changes.slower.is_empty()) {
            Verdict::Slower
        } else {
            Verdict::Well
        }
    }

    /// The line that goes with the verdict: the thing, the reason, what helps.
    pub fn summary(&self) -> Option<String> {
        let first = |count: usize, line: String| match count {
            0 | 1 => line,
            more => format!("{line} (and {} more)", more - 1),
        };
        match self.verdict() {
            Verdict::Well => None,
            Verdict::Disagreement => {
                let lines = text::disagreements(&self.report);
                let all = first(lines.len(), lines[0].clone());
                Some(format!("{all}; one of them is wrong, and no number of that guest means anything"))
            }
            Verdict::Failed => {
                let gaps = self.report.gaps();
                let failed: Vec<_> = gaps.iter().filter(|gap| gap.status == Status::Failed).collect();
                match failed.first() {
                    Some(gap) => {
                        let line = format!("{} failed on {}: {}", gap.guests[0], gap.subject, gap.reason);
                        let count = failed.iter().map(|gap| gap.guests.len()).sum();
                        Some(format!(
                            "{}; without {} the others can be compared",
                            first(count, line),
                            gap.subject
                        ))
                    }
                    None => {
                        let why = gaps.first().map_or("nothing was asked for", |gap| gap.reason);
                        Some(format!("no guest could be run on anything: {why}"))
                    }
                }
            }
            Verdict::Slower => {
                let slower = &self.changes.as_ref()?.slower;
                Some(first(slower.len(), slower[0].line()))
            }
        }
    }
}
