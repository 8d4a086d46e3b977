//! Tells vCPUs that their timer is due, for executors that do not come back by themselves to look.
//!
//! One thread a VM sleeps until the earliest deadline. It is started by the first deadline, and ends with the VM.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use accel_api::host_time;

use crate::shared::{VmShared, request};

/// No deadline.
const NEVER: u64 = u64::MAX;

/// The deadlines of a VM's vCPUs, by the host's time.
#[derive(Debug)]
pub(super) struct Alarm {
    shared: Arc<Inner>,
    tsc_khz: u32,
}

#[derive(Debug)]
struct Inner {
    vm: Arc<VmShared>,
    /// One a vCPU.
    deadlines: Box<[AtomicU64]>,
    /// When the thread wakes by itself.
    waking: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    started: bool,
    over: bool,
}

impl Alarm {
    pub(super) fn new(vm: Arc<VmShared>, tsc_khz: u32) -> Self {
        let deadlines = vm.vcpus.iter().map(|_| AtomicU64::new(NEVER)).collect();
        let shared = Inner {
            vm,
            deadlines,
            waking: AtomicU64::new(NEVER),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self { shared: Arc::new(shared), tsc_khz: tsc_khz.max(1) }
    }

    /// Posts [`request::TIMER`] to vCPU `id` once the host's time is `at`; replaces what was set before.
    pub(super) fn set(&self, id: u32, at: u64) {
        let inner = &self.shared;
        let Some(slot) = inner.deadlines.get(id as usize) else { return };
        slot.store(at, Ordering::SeqCst);
        // A later one than the thread wakes for needs nothing: it looks at all of them then.
        if at >= inner.waking.load(Ordering::SeqCst) {
            return;
        }
        let mut state = inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.started {
            state.started = true;
            let (inner, khz) = (inner.clone(), self.tsc_khz);
            let thread = std::thread::Builder::new().name(name());
            // Without the thread timers are served when the vCPU comes out of itself: late, but not lost.
            state.started = thread.spawn(move || inner.run(khz)).is_ok();
        }
        inner.changed.notify_one();
    }
}

/// The thread's name: of the same machine as that of the vCPU which needs it first, where that says `role/machine`.
fn name() -> String {
    let vcpu = std::thread::current();
    match vcpu.name().and_then(|name| name.split_once('/')) {
        Some((_, machine)) => format!("alarm/{machine}"),
        None => "alarm".to_owned(),
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        self.shared.changed.notify_one();
    }
}

impl Inner {
    fn run(&self, tsc_khz: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.over {
            let now = host_time::now();
            let mut earliest = NEVER;
            for (slot, vcpu) in self.deadlines.iter().zip(&self.vm.vcpus) {
                let at = slot.load(Ordering::SeqCst);
                if at <= now {
                    // Unless it was replaced meanwhile.
                    if slot.compare_exchange(at, NEVER, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                        vcpu.post(request::TIMER);
                    }
                } else {
                    earliest = earliest.min(at);
                }
            }
            self.waking.store(earliest, Ordering::SeqCst);
            // Who stored a deadline before it saw `waking` has not notified, so this looks once more.
            if self.deadlines.iter().any(|slot| slot.load(Ordering::SeqCst) < earliest) {
                continue;
            }
            state = if earliest == NEVER {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else {
                let ticks = u128::from(earliest.saturating_sub(host_time::now()));
                let ns = u64::try_from(ticks * 1_000_000 / u128::from(tsc_khz)).unwrap_or(u64::MAX);
                let waited = self.changed.wait_timeout(state, Duration::from_nanos(ns));
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use accel_api::PageFlags;

    fn wait_for(vm: &VmShared, id: usize) -> u32 {
        vm.vcpus[id].sleep(Some(Duration::from_secs(10)));
        vm.vcpus[id].take(u32::MAX)
    }

    #[test]
    fn an_earlier_deadline_replaces_the_one_slept_for() {
        let vm = VmShared::new(Arc::new(PageFlags::new(1)), 2);
        let alarm = Alarm::new(vm.clone(), 1_000_000);
        alarm.set(0, host_time::now() + (1 << 45));
        alarm.set(1, host_time::now() + 1000);
        assert_eq!(wait_for(&vm, 1), request::TIMER);
        assert_eq!(vm.vcpus[0].requested(), 0);
        alarm.set(0, 0);
        assert_eq!(wait_for(&vm, 0), request::TIMER);
    }
}
