//! What keeps an experiment from running.

use std::io;
use std::path::{Path, PathBuf};

/// Why nothing, or nothing more, can be measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("no {what} is called `{name}`: there are {}", known.join(", "))]
    Unknown { what: &'static str, name: String, known: Vec<String> },
    #[error("core {core} is not one this process may run on")]
    Core { core: usize },
    #[error("cannot pin to core {core}: {source}")]
    Pin { core: usize, source: io::Error },
    #[error(transparent)]
    Accelerator(#[from] machine::ChooseError),
    #[error(transparent)]
    Guest(#[from] guests::debian::FetchError),
    #[error(transparent)]
    Initramfs(#[from] guests::initramfs::InitramfsError),
    #[error(transparent)]
    Assembler(#[from] guests::bare::BuildError),
    #[error("{what} cannot be built ({command}):\n{output}")]
    Build { what: &'static str, command: String, output: String },
    #[error("the user-space suite says nothing usable: {output}")]
    Suite { output: String },
    #[error("the report cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

impl Failure {
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}
