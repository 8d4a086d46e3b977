//! `gearshift compare`: the same guest on every backend, on peers and natively.
//!
//! Standard output is the table; what goes on meanwhile, and the line that explains an exit code, is on standard error. A
//! signal ends the measuring, not the program: what there is is printed and written, then the program dies by that
//! signal. Each guest is this program again, by its hidden command [`WORKER`].

use ::compare::{Caller, Error, Findings, Options, Verdict, worker};
use machine::JitOptions;

use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::stdio::{self, say};
use crate::{probe, signals};

/// The hidden command that runs one guest.
pub(crate) const WORKER: &str = "compare-guest";

/// Compares.
///
/// # Errors
/// Whatever keeps it from measuring at all.
pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    if options.list {
        let list = ::compare::list();
        let width = list.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines: String = list.iter().map(|(name, about)| format!("{name:<width$}  {about}\n")).collect();
        stdio::print(lines)?;
        return Ok(ExitCode::Success);
    }
    // Looked at first: nothing is worth measuring for a table that nobody can read.
    stdio::output()?;
    let (stop, caught) = signals::ask_to_stop()
        .map_err(|error| Failure::new(ExitCode::Host, format!("cannot handle signals: {error}")))?;
    let caller = Caller {
        program: concat!("gearshift ", env!("CARGO_PKG_VERSION")),
        registry: &probe::registry(JitOptions::default()),
        worker: &[WORKER.into()],
        stop: &stop,
        say: &|line| say(line),
    };
    // What was asked of another build may have been interrupted.
    let findings = ::compare::compare(options, &caller).inspect_err(|_| caught.die())?;
    stdio::print(::compare::text(&findings.report))?;
    if let Some(changes) = &findings.changes {
        let lines: String = changes.lines(options.floor()).iter().map(|line| format!("{line}\n")).collect();
        stdio::print(format!("\nBeside the old report:\n{lines}"))?;
    }
    let code = code(&findings);
    if let Some(line) = findings.summary() {
        say(line);
    }
    if findings.report.interrupted {
        say("interrupted: the table and the files have what was measured, and name what is missing");
    }
    caught.die();
    Ok(code)
}

fn code(findings: &Findings) -> ExitCode {
    match findings.verdict() {
        Verdict::Well => ExitCode::Success,
        Verdict::Disagreement => ExitCode::Disagreement,
        Verdict::Failed => ExitCode::GuestFailed,
        Verdict::Slower => ExitCode::Slower,
    }
}

/// Runs one guest.
pub(crate) fn work(options: &worker::Options) -> ExitCode {
    if worker::main(options, &probe::registry(JitOptions::default())) {
        ExitCode::Success
    } else {
        ExitCode::Host
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Machine(_) => ExitCode::Cpu,
            Error::Guest { .. }
            | Error::Base { .. }
            | Error::Build { .. }
            | Error::Usage(_)
            | Error::Core { .. } => ExitCode::Usage,
            Error::Accelerator(_) | Error::NoSubject { .. } => ExitCode::Accelerator,
            Error::Output { .. } | Error::Against { .. } => ExitCode::Report,
            _ => ExitCode::Host,
        };
        Self::new(code, error.to_string())
    }
}
