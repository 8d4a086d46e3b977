//! Why the program gives up: one line for the user, and the exit code.

use accel_api::AccelError;
use machine::boot::BootError;
use machine::{ChooseError, MachineError};

use crate::exit_code::ExitCode;

/// The thing, the reason and the remedy in one line, and what to exit with.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: ExitCode,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Standard output does not take what is written.
    pub(crate) fn output(reason: impl std::fmt::Display) -> Self {
        let message = format!(
            "standard output cannot be written: {reason}; keep its reader running, or send it to a file"
        );
        Self::new(ExitCode::Output, message)
    }
}

impl From<ChooseError> for Failure {
    fn from(error: ChooseError) -> Self {
        Self::new(ExitCode::Accelerator, error.to_string())
    }
}

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Self {
        use MachineError as E;
        let code = match &error {
            E::MemorySize(_) | E::Ram(_) | E::Boot(BootError::Ram(_)) => ExitCode::Memory,
            E::Vcpus { .. }
            | E::NoKernel
            | E::Accel(AccelError::TooManyVcpus { .. } | AccelError::NoRoom { .. }) => ExitCode::Usage,
            E::Boot(BootError::CmdlineTooLong { .. } | BootError::CmdlineNul) => ExitCode::Usage,
            E::Model(_) | E::Accel(AccelError::MissingFeatures { .. }) => ExitCode::Cpu,
            E::Boot(_) => ExitCode::File,
            E::NoAccelerator => ExitCode::Accelerator,
            _ => ExitCode::Host,
        };
        Self::new(code, error.to_string())
    }
}
