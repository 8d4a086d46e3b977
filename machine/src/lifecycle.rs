//! The life of a machine: one state machine, commands in, phases out.
//!
//! ```text
//! Built ──▶ Running ◀──▶ Paused ──▶ Ended
//!   └─▶ Resetting, Switching ◀─┘  and back to the phase it came from
//! ```
//!
//! What comes together is settled here, and nowhere else: the end wins over everything, a reset over pause and resume. A
//! machine that is paused while a reset waits is reset and stays paused. Two resets are one.

/// Where a machine is in its life.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Phase {
    /// Never ran; time stands at 0.
    #[default]
    Built,
    /// vCPUs run and time passes.
    Running,
    /// vCPUs are parked, time stands.
    Paused,
    /// Memory, devices and vCPUs are being brought back to what they were when the machine was built.
    Resetting,
    /// vCPUs are handed over to another accelerator.
    Switching,
    /// There is nothing left to do but to look at it.
    Ended,
}

/// What a machine is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Resume,
    Pause,
    Reset,
    Switch,
    End,
}

impl Phase {
    /// The phase that `command` leads to; `None`: it does not fit. A command that is fulfilled already leads to the same
    /// phase.
    pub(crate) fn after(self, command: Command) -> Option<Self> {
        match (self, command) {
            (Self::Ended, Command::End) => Some(Self::Ended),
            (Self::Ended, _) => None,
            (_, Command::End) => Some(Self::Ended),
            (Self::Resetting | Self::Switching, _) => None,
            (_, Command::Reset) => Some(Self::Resetting),
            (_, Command::Switch) => Some(Self::Switching),
            (_, Command::Resume) => Some(Self::Running),
            (Self::Built, Command::Pause) => Some(Self::Built),
            (_, Command::Pause) => Some(Self::Paused),
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Built => "built",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Resetting => "resetting",
            Self::Switching => "switching",
            Self::Ended => "ended",
        })
    }
}

/// Told of each phase that begins, on the thread that brings it about. It must not wait, and must not call the machine.
pub type PhaseListener = Box<dyn Fn(Phase) + Send + Sync>;

/// What happens when the guest asks for a reset of the machine, or shuts down by a triple fault.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum OnReset {
    /// The machine ends.
    #[default]
    End,
    /// The machine starts again, with what it was built with.
    Restart,
}

/// What happens when the guest does not reset its watchdog's timer in time.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum OnWatchdog {
    /// The machine is reset, with what [`OnReset`] says of that.
    #[default]
    Reset,
    /// The machine ends.
    PowerOff,
}

/// Something that happened in the guest and does not end it.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// Its kernel has panicked.
    Panicked {
        /// A crash kernel takes over.
        crash_kernel: bool,
    },
    /// It has not reset its watchdog's timer in time.
    Watchdog,
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Panicked { crash_kernel: false } => "the guest's kernel has panicked",
            Self::Panicked { crash_kernel: true } => {
                "the guest's kernel has panicked; its crash kernel takes over"
            }
            Self::Watchdog => "the guest has not reset its watchdog's timer",
        })
    }
}

/// Told of each notice, on the thread that brings it about. It must not wait, and must not call the machine.
pub type NoticeListener = Box<dyn Fn(Notice) + Send + Sync>;

/// What the lifecycle thread does next, of all that has been asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Request {
    End,
    Reset,
}

impl Request {
    /// The one that wins.
    pub(crate) fn first(ended: bool, reset: bool) -> Option<Self> {
        match (ended, reset) {
            (true, _) => Some(Self::End),
            (false, true) => Some(Self::Reset),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_in_each_phase() {
        use Command::{End, Pause, Reset, Resume, Switch};
        use Phase::*;
        let table = [
            (Built, [Some(Running), Some(Built), Some(Resetting), Some(Switching), Some(Ended)]),
            (Running, [Some(Running), Some(Paused), Some(Resetting), Some(Switching), Some(Ended)]),
            (Paused, [Some(Running), Some(Paused), Some(Resetting), Some(Switching), Some(Ended)]),
            (Resetting, [None, None, None, None, Some(Ended)]),
            (Switching, [None, None, None, None, Some(Ended)]),
            (Ended, [None, None, None, None, Some(Ended)]),
        ];
        for (phase, after) in table {
            assert_eq!(
                [Resume, Pause, Reset, Switch, End].map(|command| phase.after(command)),
                after,
                "{phase}"
            );
        }
    }

    #[test]
    fn what_comes_together_has_one_winner() {
        let table = [
            ((false, false), None),
            ((false, true), Some(Request::Reset)),
            ((true, false), Some(Request::End)),
            ((true, true), Some(Request::End)),
        ];
        for ((ended, reset), winner) in table {
            assert_eq!(Request::first(ended, reset), winner);
        }
    }
}
