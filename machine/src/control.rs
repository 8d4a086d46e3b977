//! How a guest ends, and the cell in which its end, and resets, are asked for.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use accel_api::{BackendReport, Kick};

use crate::dump::CpuDump;
use crate::lifecycle::{Command, Notice, NoticeListener, OnReset, OnWatchdog, Phase, PhaseListener, Request};

/// How a guest ended.
#[non_exhaustive]
#[derive(Clone, PartialEq, Debug)]
pub enum GuestEnd {
    /// It entered ACPI S5.
    PowerOff,
    /// It asked for a platform reset, of a machine that is to end then ([`OnReset::End`]).
    Reset,
    /// Its kernel panicked and asked for a platform reset, which ends the machine likewise.
    Panicked,
    /// It did not reset its watchdog's timer in time.
    Watchdog,
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
    /// The backend made a mistake, and says so itself.
    BackendBug {
        /// What and where, in one line.
        summary: String,
        /// All that the backend knows of it.
        report: Box<BackendReport>,
        /// The vCPU it happened to.
        dump: Box<CpuDump>,
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
            Self::Panicked => write!(f, "the guest's kernel panicked and reset the machine"),
            Self::Watchdog => write!(f, "the guest did not reset its watchdog's timer"),
            Self::TripleFault { dump } => write!(f, "vCPU {} shut down by a triple fault", dump.vcpu),
            Self::DebugExit(value) => write!(f, "the guest wrote {value:#x} to the debug-exit port"),
            Self::ConsoleLost { reason } => write!(f, "the console's output cannot be written: {reason}"),
            Self::BackendBug { summary, .. } => write!(f, "{summary}"),
            Self::HostError { reason, .. } => write!(f, "the machine failed: {reason}"),
            Self::Unsupported { reason, .. } => write!(f, "the accelerator cannot go on: {reason}"),
            Self::Stopped => write!(f, "the machine was stopped"),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    end: Option<GuestEnd>,
    /// A reset was asked for and is not over.
    reset: bool,
    /// Resets that are over.
    resets: u64,
    /// The kernel has panicked since the last reset.
    panicked: bool,
    kicks: Vec<Arc<dyn Kick>>,
}

/// Where the end of the guest and resets of the machine are posted, from any thread, without waiting for vCPUs. The first end
/// counts.
#[derive(Debug, Default)]
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// vCPUs must not run: the guest has ended, or a reset waits for them. They look at it after every kick.
    halt: AtomicBool,
    on_reset: OnReset,
    on_triple_fault: OnReset,
    on_watchdog: OnWatchdog,
    listener: Option<Listener<Phase>>,
    notices: Option<Listener<Notice>>,
}

/// Somebody who is told of phases or notices.
struct Listener<T>(Box<dyn Fn(T) + Send + Sync>);

impl<T> fmt::Debug for Listener<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl Control {
    pub(crate) fn new(on_reset: OnReset, on_triple_fault: OnReset) -> Self {
        Self { on_reset, on_triple_fault, ..Self::default() }
    }

    /// Tells `listener` of each phase that begins.
    pub(crate) fn with_listener(mut self, listener: Option<PhaseListener>) -> Self {
        self.listener = listener.map(Listener);
        self
    }

    /// Tells `listener` of each notice.
    pub(crate) fn with_notices(mut self, listener: Option<NoticeListener>) -> Self {
        self.notices = listener.map(Listener);
        self
    }

    /// Has the watchdog do `then`.
    pub(crate) fn with_watchdog(mut self, then: OnWatchdog) -> Self {
        self.on_watchdog = then;
        self
    }

    fn notice(&self, notice: Notice) {
        if let Some(Listener(listener)) = &self.notices {
            listener(notice);
        }
    }

    fn tell(&self, phase: Phase) {
        if let Some(Listener(listener)) = &self.listener {
            listener(phase);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Halts the vCPUs and wakes whoever waits for requests.
    fn announce(&self, state: &State) {
        self.halt.store(true, Ordering::Release);
        for kick in &state.kicks {
            kick.kick();
        }
        self.changed.notify_all();
    }

    /// Ends the guest: vCPUs are kicked and find [`halted`](Self::halted) set.
    pub(crate) fn post(&self, end: GuestEnd) {
        let mut state = self.lock();
        if state.end.is_some() {
            return;
        }
        tracing::debug!(%end, "guest ended");
        state.end = Some(end);
        state.phase = state.phase.after(Command::End).unwrap_or(Phase::Ended);
        self.announce(&state);
        drop(state);
        self.tell(Phase::Ended);
    }

    /// Asks for a reset of the machine. Nothing happens if the guest has ended.
    pub(crate) fn request_reset(&self) {
        let mut state = self.lock();
        if state.end.is_none() && !std::mem::replace(&mut state.reset, true) {
            self.announce(&state);
        }
    }

    /// A vCPU has shut down; whether the machine is to start again.
    pub(crate) fn triple_fault(&self) -> bool {
        let restart = self.on_triple_fault == OnReset::Restart;
        if restart {
            self.request_reset();
        }
        restart
    }

    /// Waits until something is asked for. A reset is asked for until [`reset_over`](Self::reset_over).
    pub(crate) fn next_request(&self) -> Request {
        let pending = |state: &mut State| Request::first(state.end.is_some(), state.reset).is_none();
        let state = self.changed.wait_while(self.lock(), pending).unwrap_or_else(PoisonError::into_inner);
        Request::first(state.end.is_some(), state.reset).unwrap_or(Request::End)
    }

    /// A reset is over: vCPUs may run, unless the guest has ended meanwhile.
    pub(crate) fn reset_over(&self) {
        let mut state = self.lock();
        state.reset = false;
        state.panicked = false;
        state.resets += 1;
        if state.end.is_none() {
            self.halt.store(false, Ordering::Release);
        }
        self.changed.notify_all();
    }

    /// Resets that are over.
    pub(crate) fn resets(&self) -> u64 {
        self.lock().resets
    }

    /// Waits until no reset is asked for and not over, or the guest has ended.
    pub(crate) fn wait_reset(&self) {
        let pending = |state: &mut State| state.reset && state.end.is_none();
        drop(self.changed.wait_while(self.lock(), pending).unwrap_or_else(PoisonError::into_inner));
    }

    /// Where the machine is in its life.
    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Notes that it is in `phase`, unless it has ended.
    pub(crate) fn enter(&self, phase: Phase) {
        {
            let mut state = self.lock();
            if state.end.is_some() {
                return;
            }
            state.phase = phase;
        }
        self.tell(phase);
    }

    /// vCPUs must not run.
    pub(crate) fn halted(&self) -> bool {
        self.halt.load(Ordering::Acquire)
    }

    /// Adds a vCPU to be kicked by requests. If the end has come already, it is kicked now.
    pub(crate) fn add_kick(&self, kick: Arc<dyn Kick>) {
        let mut state = self.lock();
        if state.end.is_some() {
            kick.kick();
        }
        state.kicks.push(kick);
    }

    /// Takes away what [`add_kick`](Self::add_kick) added.
    pub(crate) fn remove_kick(&self, kick: &Arc<dyn Kick>) {
        self.lock().kicks.retain(|other| !Arc::ptr_eq(other, kick));
    }

    /// Waits for the end.
    pub(crate) fn wait(&self) -> GuestEnd {
        let running = |state: &mut State| state.end.is_none();
        let state = self.changed.wait_while(self.lock(), running).unwrap_or_else(PoisonError::into_inner);
        state.end.clone().unwrap_or(GuestEnd::Stopped)
    }

    /// The end, if it has come.
    pub(crate) fn end(&self) -> Option<GuestEnd> {
        self.lock().end.clone()
    }
}

impl devices::MachineControl for Control {
    fn power_off(&self) {
        self.post(GuestEnd::PowerOff);
    }

    fn reset(&self) {
        match self.on_reset {
            OnReset::End if self.lock().panicked => self.post(GuestEnd::Panicked),
            OnReset::End => self.post(GuestEnd::Reset),
            OnReset::Restart => self.request_reset(),
        }
    }

    fn debug_exit(&self, value: u8) {
        self.post(GuestEnd::DebugExit(value));
    }

    fn panicked(&self, crash_kernel: bool) {
        // Once: a hostile guest does not write the log.
        if !std::mem::replace(&mut self.lock().panicked, true) {
            self.notice(Notice::Panicked { crash_kernel });
        }
    }

    fn watchdog(&self) {
        match (self.on_watchdog, self.on_reset) {
            (OnWatchdog::Reset, OnReset::Restart) => {
                self.notice(Notice::Watchdog);
                self.request_reset();
            }
            _ => self.post(GuestEnd::Watchdog),
        }
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
        assert!(!control.halted() && control.end().is_none());
        control.debug_exit(7);
        control.power_off();
        control.add_kick(late.clone());
        assert_eq!((control.wait(), control.end()), (GuestEnd::DebugExit(7), Some(GuestEnd::DebugExit(7))));
        assert!(control.halted() && early.0.load(Ordering::SeqCst) && late.0.load(Ordering::SeqCst));
    }

    #[test]
    fn a_panic_is_told_once_until_the_next_reset_and_shows_in_the_end() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notices: NoticeListener = {
            let seen = seen.clone();
            Box::new(move |notice| seen.lock().unwrap().push(notice))
        };
        let control = Control::default().with_notices(Some(notices));
        control.panicked(false);
        control.panicked(true);
        assert_eq!(*seen.lock().unwrap(), [Notice::Panicked { crash_kernel: false }]);
        control.reset_over();
        control.panicked(true);
        assert_eq!(seen.lock().unwrap().len(), 2);
        control.reset();
        assert_eq!(control.end(), Some(GuestEnd::Panicked));
    }

    #[test]
    fn the_watchdog_resets_or_ends() {
        for (then, on_reset, ends) in [
            (OnWatchdog::Reset, OnReset::End, true),
            (OnWatchdog::Reset, OnReset::Restart, false),
            (OnWatchdog::PowerOff, OnReset::Restart, true),
        ] {
            let control = Control::new(on_reset, OnReset::End).with_watchdog(then);
            control.watchdog();
            assert!(control.halted());
            assert_eq!(control.end(), ends.then_some(GuestEnd::Watchdog));
        }
    }

    #[test]
    fn a_reset_halts_the_vcpus_until_it_is_over() {
        let control = Control::new(OnReset::Restart, OnReset::End);
        let vcpu = Arc::new(Seen::default());
        control.add_kick(vcpu.clone());
        assert!(!control.triple_fault() && !control.halted(), "the two are told apart");
        control.reset();
        control.reset();
        assert!(control.halted() && vcpu.0.load(Ordering::SeqCst) && control.end().is_none());
        assert_eq!(control.next_request(), Request::Reset);
        control.enter(Phase::Resetting);
        control.reset_over();
        assert_eq!((control.halted(), control.resets()), (false, 1));
    }

    #[test]
    fn the_end_wins_over_a_reset() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener = {
            let seen = seen.clone();
            move |phase| seen.lock().unwrap().push(phase)
        };
        let control =
            Control::new(OnReset::Restart, OnReset::Restart).with_listener(Some(Box::new(listener)));
        control.enter(Phase::Running);
        assert!(control.triple_fault());
        control.power_off();
        assert_eq!(control.next_request(), Request::End);
        control.enter(Phase::Running);
        control.reset_over();
        assert!(control.halted() && control.phase() == Phase::Ended);
        control.reset();
        assert_eq!((control.next_request(), control.end()), (Request::End, Some(GuestEnd::PowerOff)));
        assert_eq!(*seen.lock().unwrap(), [Phase::Running, Phase::Ended], "nothing comes behind the end");
    }
}
