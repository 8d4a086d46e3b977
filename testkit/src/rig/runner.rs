//! A vCPU on the test's thread, and what keeps it from hanging.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use accel_api::x86::CpuState;
use accel_api::{Exit, Kick, Vcpu};

use super::PATIENCE;
use crate::fake_bus::{Ending, FakeBus};

/// A vCPU bound to this thread.
pub struct Runner {
    /// The vCPU.
    pub vcpu: Box<dyn Vcpu>,
    bus: Arc<FakeBus>,
    watchdog: Watchdog,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("bus", &self.bus).finish_non_exhaustive()
    }
}

impl Runner {
    pub(super) fn new(vcpu: Box<dyn Vcpu>, bus: Arc<FakeBus>) -> Self {
        let watchdog = Watchdog::new(vcpu.kicker());
        Self { vcpu, bus, watchdog }
    }

    /// `run`, once.
    ///
    /// # Panics
    /// A host failure, or the guest took longer than [`PATIENCE`].
    pub fn step(&mut self) -> Exit {
        let exit = self.vcpu.run().expect("run");
        if self.watchdog.expired() {
            panic!("the guest hangs: {:#x?}", self.vcpu.save().map(|s| (s.rip, s.gpr, s.mp, s.events)));
        }
        exit
    }

    /// Runs until the guest ends; `Err` if it did through [`FAULT_PORT`](crate::fake_bus::FAULT_PORT).
    ///
    /// # Errors
    /// The state of a guest that took an exception nobody expected.
    ///
    /// # Panics
    /// Those of [`Self::step`], and any exit but a kick.
    pub fn finish(&mut self) -> Result<CpuState, Box<CpuState>> {
        loop {
            match self.step() {
                Exit::Kicked => {}
                other => panic!("{other:x?} at {:#x?}", self.save().rip),
            }
            match self.bus.take_ending() {
                Some(Ending::Exit(_)) => return Ok(self.save()),
                Some(Ending::Fault) => return Err(Box::new(self.save())),
                None => {}
            }
        }
    }

    /// Runs a guest that never ends itself while `other` is done on another thread, and gives what that came to.
    ///
    /// # Panics
    /// Those of [`Self::step`] and of `other`, and any exit but a kick.
    pub fn run_while<T: Send>(&mut self, other: impl FnOnce() -> T + Send) -> T {
        /// Kicks also when an assertion of the other thread fails.
        struct Stop<'a>(&'a AtomicBool, Arc<dyn Kick>);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
                self.1.kick();
            }
        }
        let stop = AtomicBool::new(false);
        let kick = self.vcpu.kicker();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let _stop = Stop(&stop, kick);
                other()
            });
            while !stop.load(Ordering::SeqCst) {
                assert_eq!(self.step(), Exit::Kicked);
            }
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The state, in its canonical form.
    ///
    /// # Panics
    /// A host failure.
    pub fn save(&mut self) -> CpuState {
        let mut state = self.vcpu.save().expect("save");
        state.normalise();
        state
    }
}

/// Kicks a vCPU that is not dropped in time.
#[derive(Debug)]
struct Watchdog {
    expired: Arc<AtomicBool>,
    _alive: SyncSender<()>,
}

impl Watchdog {
    fn new(kick: Arc<dyn Kick>) -> Self {
        let expired = Arc::new(AtomicBool::new(false));
        let (alive, gone): (_, Receiver<()>) = sync_channel(0);
        let flag = expired.clone();
        std::thread::spawn(move || {
            let mut wait = PATIENCE;
            // After the first kick, often: the vCPU may have been about to look at the exit it had.
            while gone.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                flag.store(true, Ordering::SeqCst);
                kick.kick();
                wait = Duration::from_millis(50);
            }
        });
        Self { expired, _alive: alive }
    }

    fn expired(&self) -> bool {
        self.expired.load(Ordering::SeqCst)
    }
}
