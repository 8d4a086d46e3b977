//! One thread that serves the deadlines of all timed devices.
//!
//! It sleeps until the earliest deadline, or without end when there is none; [`Timers`] wakes it when a deadline may
//! have moved. Nothing is polled.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::{Clock, TimedDevice, TimerHost};

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, Section, StateUnit};

use crate::clock::VmClock;
use crate::host;

#[derive(Debug)]
struct State {
    /// Deadlines have to be looked at again.
    stale: bool,
    /// No device may be called.
    paused: bool,
    /// A device is being called, or is about to be.
    busy: bool,
    stop: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// For the thread: stale, paused or stop changed.
    wake: Condvar,
    /// For those that pause: the thread is not busy any more.
    idle: Condvar,
    clock: Arc<VmClock>,
}

/// How devices and the machine reach the timer thread.
#[derive(Debug)]
pub(crate) struct Timers {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Timers {
    /// Timers without a thread: devices may be wired to them, nothing expires. Paused.
    pub(crate) fn new(clock: Arc<VmClock>) -> Arc<Self> {
        let state = State { stale: true, paused: true, busy: false, stop: false };
        let shared = Shared { state: Mutex::new(state), wake: Condvar::new(), idle: Condvar::new(), clock };
        Arc::new(Self { shared: Arc::new(shared), thread: Mutex::default() })
    }

    /// Starts the thread of the machine called `machine` for `devices`, still paused. Called once.
    ///
    /// # Errors
    /// The host has no thread to give.
    pub(crate) fn start(&self, machine: &str, devices: Vec<Arc<dyn TimedDevice>>) -> io::Result<()> {
        let shared = self.shared.clone();
        let thread = thread::Builder::new()
            .name(host::thread_name("timers", machine))
            .spawn(move || serve(&shared, &devices))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Lets deadlines expire.
    pub(crate) fn resume(&self) {
        let mut state = self.shared.lock();
        (state.paused, state.stale) = (false, true);
        self.shared.wake.notify_one();
    }

    /// Stops expiring; no device is being called any more when this returns. Must not be called by one.
    pub(crate) fn pause(&self) {
        let mut state = self.shared.lock();
        state.paused = true;
        let _idle = self.shared.idle.wait_while(state, |s| s.busy).unwrap_or_else(PoisonError::into_inner);
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A device that panicked has ended its timers already; there is nothing to add here.
            let _ = thread.join();
        }
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Deadlines are the devices' own: there is nothing to keep.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedTimers {}

impl Saved for SavedTimers {
    const VERSION: u32 = 1;
}

impl StateUnit for Timers {
    fn name(&self) -> &str {
        "timers"
    }

    fn save(&self) -> Section {
        Section::of(&SavedTimers {})
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let SavedTimers {} = section.open()?;
        self.rearm();
        Ok(())
    }

    fn reset(&self) {
        self.rearm();
    }
}

impl TimerHost for Timers {
    fn rearm(&self) {
        let mut state = self.shared.lock();
        if !state.stale {
            state.stale = true;
            self.shared.wake.notify_one();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until devices may be called; false means stop.
    fn enter(&self) -> bool {
        let mut state = self
            .wake
            .wait_while(self.lock(), |s| s.paused && !s.stop)
            .unwrap_or_else(PoisonError::into_inner);
        (state.stale, state.busy) = (false, !state.stop);
        !state.stop
    }

    /// Sleeps until `deadline`, or until something changed.
    fn sleep(&self, deadline: Option<u64>) {
        let mut state = self.lock();
        state.busy = false;
        self.idle.notify_all();
        let wake = |s: &mut State| !(s.stale || s.stop || s.paused);
        match deadline {
            None => drop(self.wake.wait_while(state, wake)),
            Some(at) => {
                let ns = at.saturating_sub(self.clock.now());
                drop(self.wake.wait_timeout_while(state, Duration::from_nanos(ns), wake));
            }
        }
    }
}

fn serve(shared: &Shared, devices: &[Arc<dyn TimedDevice>]) {
    host::block_signals();
    host::exact_timers();
    while shared.enter() {
        let now = shared.clock.now();
        for device in devices {
            if device.deadline().is_some_and(|at| at <= now) {
                device.expire(now);
            }
        }
        shared.sleep(devices.iter().filter_map(|d| d.deadline()).min());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// Expires every `period` ns from `next` on; `u64::MAX` is never.
    #[derive(Debug)]
    struct Ticker {
        next: AtomicU64,
        period: u64,
        ticks: mpsc::Sender<u64>,
    }
    impl TimedDevice for Ticker {
        fn deadline(&self) -> Option<u64> {
            Some(self.next.load(SeqCst)).filter(|&at| at != u64::MAX)
        }
        fn expire(&self, now: u64) {
            let at = self.next.load(SeqCst);
            if at <= now {
                self.next.store(at.saturating_add(self.period), SeqCst);
                self.ticks.send(now).unwrap();
            }
        }
    }

    const WAIT: Duration = Duration::from_secs(10);

    #[test]
    fn deadlines_expire_in_time_and_rearm_wakes() {
        let clock = Arc::new(VmClock::new(crate::TscFrequency::of_host().khz));
        let timers = Timers::new(clock.clone());
        let (tx, rx) = mpsc::channel();
        let ticker = Arc::new(Ticker { next: AtomicU64::new(u64::MAX), period: 1_000_000, ticks: tx });
        timers.start("", vec![ticker.clone()]).unwrap();
        clock.thaw();
        timers.resume();
        assert!(rx.recv_timeout(Duration::from_millis(5)).is_err(), "no deadline, no tick");
        let first = clock.now() + 2_000_000;
        ticker.next.store(first, SeqCst);
        timers.rearm();
        for i in 0..5 {
            assert!(rx.recv_timeout(WAIT).unwrap() >= first + i * 1_000_000, "never early");
        }
        timers.pause();
        while rx.try_recv().is_ok() {}
        assert!(rx.recv_timeout(Duration::from_millis(5)).is_err(), "nothing expires while paused");
        timers.resume();
        rx.recv_timeout(WAIT).unwrap();
        timers.stop();
    }

    #[test]
    fn a_deadline_far_away_does_not_hold_up_the_end() {
        let clock = Arc::new(VmClock::new(1_000_000));
        let timers = Timers::new(clock.clone());
        let (tx, _rx) = mpsc::channel();
        let ticker = Arc::new(Ticker { next: AtomicU64::new(u64::MAX - 1), period: 1, ticks: tx });
        timers.start("", vec![ticker]).unwrap();
        clock.thaw();
        timers.resume();
        let start = Instant::now();
        timers.stop();
        assert!(start.elapsed() < WAIT);
    }
}
