//! How a guest ends, and the cell in which the end is posted.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use accel_api::Kick;

use crate::dump::CpuDump;

/// How a guest ended.
#[non_exhaustive]
#[derive(Clone, PartialEq, Debug)]
pub enum GuestEnd {
    /// It entered ACPI S5.
    PowerOff,
    /// It asked for a platform reset; a machine is not started again.
    Reset,
    /// A vCPU shut down by a triple fault.
    TripleFault {
        /// The vCPU.
        dump: Box<CpuDump>,
    },
    /// It wrote this value to the debug-exit port.
    DebugExit(u8),
    /// The console's output could not be written any more.
    ConsoleLost {
        /// What the host said.
        reason: String,
    },
    /// The host or the backend failed.
    HostError {
        /// What happened.
        reason: String,
        /// The vCPU it happened to.
        dump: Option<Box<CpuDump>>,
    },
    /// Translated code was checked, and did what it should not.
    Diverged {
        /// What and where, in one line.
        summary: String,
        /// Everything that is known of it.
        report: String,
        /// Options that make it happen again.
        options: String,
    },
    /// The guest did what the backend cannot do, though a processor could.
    Unsupported {
        /// What, and the instruction's bytes.
        reason: String,
        /// The vCPU that did it.
        dump: Box<CpuDump>,
    },
    /// [`crate::Machine::stop`].
    Stopped,
}

impl fmt::Display for GuestEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "the guest powered off"),
            Self::Reset => write!(f, "the guest reset the machine"),
            Self::TripleFault { dump } => write!(f, "vCPU {} shut down by a triple fault", dump.vcpu),
            Self::DebugExit(value) => write!(f, "the guest wrote {value:#x} to the debug-exit port"),
            Self::ConsoleLost { reason } => write!(f, "the console's output cannot be written: {reason}"),
            Self::Diverged { summary, .. } => write!(f, "{summary}"),
            Self::HostError { reason, .. } => write!(f, "the machine failed: {reason}"),
            Self::Unsupported { reason, .. } => {
                write!(f, "the accelerator cannot go on: {reason}; another may, for example `--accel interp`")
            }
            Self::Stopped => write!(f, "the machine was stopped"),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    end: Option<GuestEnd>,
    kicks: Vec<Arc<dyn Kick>>,
}

/// Where the end of the guest is posted. The first end counts.
#[derive(Debug, Default)]
pub(crate) struct Control {
    state: Mutex<State>,
    posted: Condvar,
    /// Copy of `state.end.is_some()` that vCPU threads look at after every kick.
    ended: AtomicBool,
}

impl Control {
    /// Ends the guest: vCPUs are kicked and find [`ended`](Self::ended) set. Never waits for them.
    pub(crate) fn post(&self, end: GuestEnd) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.end.is_some() {
            return;
        }
        tracing::debug!(%end, "guest ended");
        state.end = Some(end);
        self.ended.store(true, Ordering::Release);
        for kick in &state.kicks {
            kick.kick();
        }
        self.posted.notify_all();
    }

    /// The guest has ended; vCPUs must not run.
    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Adds a vCPU to be kicked at the end. If that has come already, it is kicked now.
    pub(crate) fn add_kick(&self, kick: Arc<dyn Kick>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.end.is_some() {
            kick.kick();
        }
        state.kicks.push(kick);
    }

    /// Waits for the end.
    pub(crate) fn wait(&self) -> GuestEnd {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state =
            self.posted.wait_while(state, |s| s.end.is_none()).unwrap_or_else(PoisonError::into_inner);
        state.end.clone().unwrap_or(GuestEnd::Stopped)
    }

    /// The end, if it has come.
    pub(crate) fn end(&self) -> Option<GuestEnd> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).end.clone()
    }
}

impl devices::MachineControl for Control {
    fn power_off(&self) {
        self.post(GuestEnd::PowerOff);
    }

    fn reset(&self) {
        self.post(GuestEnd::Reset);
    }

    fn debug_exit(&self, value: u8) {
        self.post(GuestEnd::DebugExit(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::MachineControl;

    #[derive(Debug, Default)]
    struct Seen(AtomicBool);
    impl Kick for Seen {
        fn kick(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_first_end_counts_and_kicks_early_and_late_vcpus() {
        let control = Control::default();
        let (early, late) = (Arc::new(Seen::default()), Arc::new(Seen::default()));
        control.add_kick(early.clone());
        assert!(!control.ended() && control.end().is_none());
        control.debug_exit(7);
        control.power_off();
        control.add_kick(late.clone());
        assert_eq!((control.wait(), control.end()), (GuestEnd::DebugExit(7), Some(GuestEnd::DebugExit(7))));
        assert!(control.ended() && early.0.load(Ordering::SeqCst) && late.0.load(Ordering::SeqCst));
    }
}
