//! What keeps a comparison from being made at all.

use std::io;
use std::path::{Path, PathBuf};

/// Why nothing, or nothing more, can be measured. Each is one line with the thing, the reason and what helps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the comparison's own.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was to be done with it.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A report that could not be written where it was to go. Looked at before anything runs.
    #[error(
        "the report {} cannot be written: {source}; name a file in a folder that exists and that you may write to",
        path.display()
    )]
    Output {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither a guest, a group of guests nor a file.
    #[error("no guest is called `{name}`: there are {}; or give the path of a kernel", known.join(", "))]
    Guest {
        /// What was given.
        name: String,
        /// Groups and guests.
        known: Vec<String>,
    },
    /// `--base` names nothing that takes part.
    #[error("nothing called `{name}` takes part, so it cannot be the base: there are {}", known.join(", "))]
    Base {
        /// What was given.
        name: String,
        /// What takes part.
        known: Vec<String>,
    },
    /// An option's value.
    #[error("{0}")]
    Usage(String),
    /// A core that does not exist, or is not for this process.
    #[error("core {core} is not one this process may run on; leave --core out to take the last one that is")]
    Core {
        /// The core.
        core: usize,
    },
    /// The scheduler refused.
    #[error("cannot pin to core {core}: {source}")]
    Pin {
        /// The core.
        core: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A name that no accelerator has, or a choice that cannot be.
    #[error(transparent)]
    Accelerator(#[from] machine::ChooseError),
    /// No CPU model of that name.
    #[error(transparent)]
    Machine(#[from] machine::MachineError),
    /// Of all that was named nothing can run a guest here.
    #[error("nothing to compare: none of those named can run here{}", reasons(skipped))]
    NoSubject {
        /// Name and reason of each.
        skipped: Vec<(String, String)>,
    },
    /// `--peer gearshift=PATH` names no build of this program.
    #[error(
        "{} cannot take part as another build: {reason}; --peer gearshift=PATH takes the executable of a gearshift",
        path.display()
    )]
    Build {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// `--against` a file that is no report.
    #[error("{} is no report of `gearshift compare --json`: {reason}", path.display())]
    Against {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A suite's files cannot be read.
    #[error(transparent)]
    Suite(#[from] guests::suite::SuiteError),
    /// A guest of ours does not assemble.
    #[error(transparent)]
    Assembler(#[from] guests::bare::BuildError),
    /// A report does not serialise.
    #[error("the report cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

fn reasons(skipped: &[(String, String)]) -> String {
    skipped.iter().map(|(name, reason)| format!("; {name}: {reason}")).collect()
}

impl Error {
    /// Makes a [`Error::File`] of what the system says.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}
