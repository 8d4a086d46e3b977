//! What the process's exit code says.
//!
//! 1. Codes of our own are even, because the guest's are odd: a write of `v` to the debug-exit port ends the process
//!    with `2 v + 1` modulo 256, as with QEMU's `isa-debug-exit`.
//! 2. A signal that ends the process does so after the terminal was restored, and by the signal itself: a shell shows
//!    128 plus its number.

use std::fmt::Write as _;

/// How a run ended, as exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ExitCode {
    /// The guest powered the machine off, or what was asked for has been printed.
    Success,
    /// An option, value or command line that cannot be.
    Usage,
    /// No accelerator of that name, or none that works here.
    Accelerator,
    /// No CPU model of that name, or one the accelerator cannot give.
    Cpu,
    /// A memory size that cannot be, or that the host does not have.
    Memory,
    /// A kernel, initrd, disk image or socket that is missing, in use, unreadable, not what it should be, or too large.
    File,
    /// The default guest could not be obtained.
    Fetch,
    /// The guest shut down by a triple fault.
    TripleFault,
    /// The guest reset the machine.
    Reset,
    /// The user quit with Ctrl-a x.
    UserQuit,
    /// Standard output was closed or cannot be written.
    Output,
    /// The host or the accelerator failed.
    Host,
    /// The guest did what the accelerator cannot do.
    Unsupported,
    /// Backends disagree about what a guest does.
    Disagreement,
    /// A compared guest failed.
    GuestFailed,
    /// A guest has become slower.
    Slower,
    /// A report that cannot be written or read.
    Report,
    /// Translated code was checked and did what it should not.
    Diverged,
    /// A network that cannot be had: a port in use, for example.
    Network,
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u8),
}

impl ExitCode {
    /// All but the guest's own, in the order of their numbers.
    const TABLE: [(Self, &'static str); 19] = [
        (Self::Success, "the guest powered off; or what was asked for has been printed"),
        (Self::Usage, "bad usage: an option, a number of vCPUs or a kernel command line that cannot be"),
        (Self::Accelerator, "no accelerator: the name is unknown, or none works here"),
        (Self::Cpu, "no such CPU model, or the accelerator cannot give it"),
        (Self::Memory, "memory size of 0, not whole MiB, or more than the host has"),
        (
            Self::File,
            "kernel, initrd, disk image or socket missing, in use, unreadable, not what it should be, or too large",
        ),
        (Self::Fetch, "the default guest could not be obtained"),
        (Self::TripleFault, "the guest shut down by a triple fault"),
        (
            Self::Reset,
            "the guest reset the machine: a reboot, a panic with panic=-1, or its watchdog (--on-reset restart starts it again)",
        ),
        (Self::UserQuit, "the user quit with Ctrl-a x"),
        (Self::Output, "standard output was closed or cannot be written"),
        (Self::Host, "the host or the accelerator failed"),
        (Self::Unsupported, "the guest did what this accelerator cannot do, and another may"),
        (Self::Disagreement, "compare: a guest's output, checksum or exit differs between backends"),
        (Self::GuestFailed, "compare: a guest failed or did not end on a backend, or none could be run"),
        (Self::Slower, "compare: a guest is slower, beyond noise, than in the report of --against"),
        (Self::Report, "compare: a report cannot be written, or that of --against cannot be read"),
        (Self::Diverged, "translated code, checked by --verify, did what it should not"),
        (Self::Network, "a network that cannot be had: a port in use, or what the user may not open"),
    ];

    /// The number.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::DebugExit(value) => value << 1 | 1,
            code => {
                let place = Self::TABLE.iter().position(|(other, _)| *other == code).unwrap_or_default();
                2 * place as u8
            }
        }
    }

    /// The table for `--help` and the manual page, a code a line.
    pub(crate) fn table() -> String {
        let mut text = String::new();
        for (code, meaning) in Self::TABLE {
            // A String takes all that is written.
            let _ = writeln!(text, "  {:>5}  {meaning}", code.number());
        }
        text += "    odd  the guest wrote v to its debug-exit port (0xf4): 2 v + 1, modulo 256\n";
        text +=
            "  128+n  ended by signal n, as shells show it (143 for SIGTERM); the terminal is restored first";
        text
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        code.number().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_docs_have_the_same_table() {
        let page = include_str!("../../docs/using.md").replace('`', "");
        for (code, meaning) in ExitCode::TABLE {
            let row = format!("| {} | {meaning} |", code.number());
            assert!(page.contains(&row), "{row}");
        }
    }

    #[test]
    fn our_codes_are_even_and_the_guests_are_odd() {
        let numbers: Vec<_> = ExitCode::TABLE.iter().map(|(code, _)| code.number()).collect();
        assert_eq!(numbers, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36]);
        for value in 0..=255 {
            assert_eq!(ExitCode::DebugExit(value).number() % 2, 1);
        }
        assert_eq!(ExitCode::DebugExit(0x10).number(), 33);
    }
}
