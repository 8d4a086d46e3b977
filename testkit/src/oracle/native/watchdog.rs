//! Ends a case that does not end by itself: a timer of this thread's CPU time that signals it again and again.
//!
//! Linux returns from some page faults of compatibility mode without having done anything (its remedy for AMD's old
//! erratum 100), so that the instruction faults for ever.

use std::io;
use std::mem::zeroed;
use std::ptr::null_mut;

/// The timer's signal.
pub(super) const SIGNAL: i32 = libc::SIGVTALRM;
/// A case that is still the same after two of them hangs.
const PERIOD_NS: i64 = 200_000_000;

/// The timer, armed while it lives.
#[derive(Debug)]
pub(super) struct Watchdog(libc::timer_t);

impl Watchdog {
    /// Arms one for this thread.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: zeros are valid for both; the kernel fills the timer in.
        unsafe {
            let mut event: libc::sigevent = zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = SIGNAL;
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer = zeroed();
            if libc::timer_create(libc::CLOCK_THREAD_CPUTIME_ID, &mut event, &mut timer) < 0 {
                return Err(io::Error::last_os_error());
            }
            let watchdog = Self(timer);
            let period = libc::timespec { tv_sec: 0, tv_nsec: PERIOD_NS };
            let setting = libc::itimerspec { it_interval: period, it_value: period };
            if libc::timer_settime(timer, 0, &setting, null_mut()) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(watchdog)
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // SAFETY: a timer of ours.
        unsafe { libc::timer_delete(self.0) };
    }
}
