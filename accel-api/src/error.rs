//! Host failures. A guest's faults are not errors: they are delivered to the guest.

use std::io;

use crate::AccelId;

/// A failure of the host or of the caller, which stops the VM.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// A system call failed.
    #[error("{what}: {source}")]
    Host {
        /// The operation.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The CPU model asks for features the backend does not have.
    #[error("the {accel} backend cannot give the guest: {}", missing.join(", "))]
    MissingFeatures {
        /// The backend.
        accel: AccelId,
        /// CPUID names of the features.
        missing: Vec<String>,
    },
    /// More vCPUs than the backend takes.
    #[error("{asked} vCPUs asked for; the {accel} backend takes at most {max}")]
    TooManyVcpus {
        /// The backend.
        accel: AccelId,
        /// Number asked for.
        asked: u32,
        /// The limit.
        max: u32,
    },
    /// More vCPUs than the backend has room for beside those that this process has already.
    #[error("{asked} vCPUs asked for; this process has room for {max} more of the {accel} backend: {why}")]
    NoRoom {
        /// The backend.
        accel: AccelId,
        /// Number asked for.
        asked: u32,
        /// How many there is room for.
        max: u32,
        /// What there is too little of.
        why: &'static str,
    },
    /// A vCPU id out of range or bound twice.
    #[error("vCPU {0} does not exist or is bound already")]
    BadVcpu(u32),
    /// A memory slot that overlaps another, is in use or does not exist.
    #[error("memory slot {slot}: {why}")]
    BadSlot {
        /// The slot.
        slot: u32,
        /// What is wrong.
        why: &'static str,
    },
    /// A page of guest RAM that the host does not have.
    #[error(transparent)]
    MemoryLost(#[from] crate::RamError),
    /// A mistake of the backend's own.
    #[error("{summary}")]
    Internal {
        /// What happened and where, in one line.
        summary: String,
        /// All that the backend knows of it.
        report: Box<BackendReport>,
    },
    /// A state that the CPU cannot be in.
    #[error("CPU state cannot be loaded: {0}")]
    InvalidState(String),
    /// A debug plan beyond the backend's means.
    #[error("debug plan: {0}")]
    BadDebugPlan(&'static str),
}

/// What a backend tells of a mistake of its own.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct BackendReport {
    /// For the backend's developers, in lines.
    pub text: String,
    /// A check that the backend was told to make has found it; the mistake did not show by itself.
    pub by_check: bool,
    /// Settings of the backend, by its own names, under which the mistake shows again. Empty where it does not know.
    pub settings: Vec<(&'static str, String)>,
}

impl AccelError {
    /// The last OS error, said of `what`.
    pub fn last_os(what: &'static str) -> Self {
        Self::Host { what, source: io::Error::last_os_error() }
    }
}

/// An MSR access the machine refuses; the guest gets #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no such MSR, or a value it does not take")]
pub struct GpFault;
