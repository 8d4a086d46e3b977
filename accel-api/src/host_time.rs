//! The host's time: its time-stamp counter, less what passed while this process could not run.
//!
//! 1. A process may be stopped without being told: by SIGSTOP, a debugger, the freezer of a control group, a host that
//!    sleeps, or a host that is a stopped VM itself. The counter goes on, and a guest would find that its processors have
//!    been dead for as long.
//! 2. So whoever reads the counter for a guest does so under a [`Lease`], which ends [`Lease::TICKS`] after it was given,
//!    a second or two. Every lease is entered in one book a process, which remembers when the last one was given. As long
//!    as there is a [`Pulse`], a thread takes one several times a second.
//! 3. Who takes a lease and finds that none was taken for longer than one lasts, knows that the process has stood still,
//!    and takes the excess out of time. All leases from before have ended by then, so nobody goes on with the old time;
//!    and the new time begins where the last of them ended, so nobody sees time go back, nor more of a step than one
//!    lease.
//!
//! What a guest reads by itself, as with KVM, is under no lease: there the offset of its counter has to be moved before it
//! is entered again.
#![allow(unsafe_code)] // LFENCE and RDTSC have no safe wrapper

use std::arch::x86_64::{_mm_lfence, _rdtsc};
use std::cell::Cell;
use std::io;
use std::mem::offset_of;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The right to read time for a while. The default has ended, unless the counter has only just begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Lease {
    /// The counter when it was given.
    since: u64,
    /// Ticks that have been taken out of time by then, modulo 2^64.
    removed: u64,
}

impl Lease {
    /// log2 of [`Self::TICKS`].
    pub const SHIFT: u8 = 32;
    /// How long it lasts, in ticks of the counter: 0.8 s at 5 GHz, 2.1 s at 2 GHz.
    pub const TICKS: u64 = 1 << Self::SHIFT;
    /// Where the counter's value at its beginning is, for translated code: it has ended for a value that is less by more than
    /// [`Self::TICKS`], modulo 2^64, or not less.
    pub const SINCE: usize = offset_of!(Self, since);
    /// Where that is which is to be taken off the counter to have the time.
    pub const REMOVED: usize = offset_of!(Self, removed);

    /// A new one.
    pub fn take() -> Self {
        let mut book = book();
        // Under the book's lock, so that leases are entered in the order of their beginnings.
        book.lease(counter())
    }

    /// The time when the counter is `tsc`; nothing if the lease has ended.
    #[inline(always)]
    pub fn time(&self, tsc: u64) -> Option<u64> {
        (tsc.wrapping_sub(self.since) >> Self::SHIFT == 0).then(|| tsc.wrapping_sub(self.removed))
    }

    /// The time when it was given.
    #[inline]
    pub fn beginning(&self) -> u64 {
        self.since.wrapping_sub(self.removed)
    }

    /// Ticks that have been taken out of time: by what the counter is ahead of it, modulo 2^64.
    #[inline]
    pub fn removed(&self) -> u64 {
        self.removed
    }
}

/// The time now, read behind all loads before, so that two threads that read it in turn never see it go back.
pub fn now() -> u64 {
    thread_local!(static LEASE: Cell<Lease> = Cell::new(Lease::take()));
    LEASE.with(|lease| {
        lease.get().time(counter()).unwrap_or_else(|| {
            lease.set(Lease::take());
            lease.get().beginning()
        })
    })
}

/// The counter itself, in order.
fn counter() -> u64 {
    // SAFETY: LFENCE and RDTSC are part of x86-64; user space may execute them wherever this program can run at all.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// What has been given.
#[derive(Debug, Default)]
struct Book {
    /// The last lease.
    last: Option<Lease>,
}

fn book() -> MutexGuard<'static, Book> {
    static BOOK: Mutex<Book> = Mutex::new(Book { last: None });
    BOOK.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Book {
    /// A lease that begins when the counter is `tsc`.
    fn lease(&mut self, tsc: u64) -> Lease {
        let new = match self.last {
            None => Lease { since: tsc, removed: 0 },
            Some(last) => {
                let passed = tsc.wrapping_sub(last.since);
                match passed {
                    ..=Lease::TICKS => Lease { since: tsc, ..last },
                    // Processors' counters may differ by a little, and whoever came first was ahead.
                    _ if passed.wrapping_neg() < Lease::TICKS => last,
                    // Also where the counter began anew, as on hosts that were switched off in their sleep.
                    _ => Lease { since: tsc, removed: last.removed.wrapping_add(passed - Lease::TICKS) },
                }
            }
        };
        self.last = Some(new);
        new
    }
}

/// While there is one, time goes on for guests that do not ask for it: those that sleep, or compute for long.
#[derive(Debug)]
pub struct Pulse(());

/// How often its thread takes a lease: several times in the shortest one.
const PULSE: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct Pulses {
    count: usize,
    /// There is a thread.
    beats: bool,
}

static PULSES: Mutex<Pulses> = Mutex::new(Pulses { count: 0, beats: false });
static LAST_GONE: Condvar = Condvar::new();

fn pulses() -> MutexGuard<'static, Pulses> {
    PULSES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pulse {
    /// Starts the thread, if this is the only one.
    ///
    /// # Errors
    /// The host has no thread to give.
    pub fn start() -> io::Result<Self> {
        let mut pulses = pulses();
        if !pulses.beats {
            thread::Builder::new().name("pulse".into()).spawn(beat)?;
            pulses.beats = true;
        }
        pulses.count += 1;
        Ok(Self(()))
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        pulses().count -= 1;
        LAST_GONE.notify_all();
    }
}

fn beat() {
    let mut pulses = pulses();
    while pulses.count > 0 {
        Lease::take();
        pulses = LAST_GONE.wait_timeout(pulses, PULSE).unwrap_or_else(PoisonError::into_inner).0;
    }
    pulses.beats = false;
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKS: u64 = Lease::TICKS;

    #[test]
    fn time_goes_with_the_counter_as_long_as_somebody_looks() {
        let mut book = Book::default();
        let first = book.lease(1000);
        assert_eq!((first.time(1000), first.time(1000 + TICKS - 1)), (Some(1000), Some(999 + TICKS)));
        assert_eq!((first.time(1000 + TICKS), first.time(999)), (None, None));
        let second = book.lease(1000 + TICKS);
        assert_eq!((second.beginning(), second.removed()), (1000 + TICKS, 0));
    }

    /// A hundred leases' worth of standing still: everybody goes on from where the last lease has ended.
    #[test]
    fn what_nobody_looked_at_is_taken_out_once_and_nobody_sees_a_step_back() {
        let mut book = Book::default();
        let before = book.lease(1000);
        let other = book.lease(1500);
        let latest = other.time(1499 + TICKS).unwrap();
        let stopped = 100 * TICKS;
        let after = book.lease(1000 + stopped);
        for old in [before, other] {
            assert_eq!(old.time(1000 + stopped), None, "no lease from before goes on");
        }
        assert_eq!(after.beginning(), 1500 + TICKS);
        assert!(after.beginning() > latest);
        // The second to notice finds that nothing is left to be taken out.
        let later = book.lease(1007 + stopped);
        assert_eq!((later.removed(), later.beginning()), (after.removed(), after.beginning() + 7));
    }

    #[test]
    fn a_counter_that_begins_anew_is_a_standstill_and_a_little_skew_is_none() {
        let mut book = Book::default();
        let before = book.lease(1 << 50);
        let skewed = book.lease((1 << 50) - 100);
        assert_eq!(skewed, before);
        let after = book.lease(5);
        assert_eq!(before.time(5), None);
        assert_eq!(after.beginning(), before.beginning() + TICKS);
        assert_eq!(after.time(12), Some(after.beginning() + 7));
    }

    #[test]
    fn the_time_of_this_process_goes_on() {
        let (one, two) = (now(), now());
        assert!(two >= one && two - one < TICKS);
        assert!(thread::spawn(now).join().unwrap() >= two);
    }

    #[test]
    fn a_pulse_ends_with_the_last_who_wants_it() {
        let (one, two) = (Pulse::start().unwrap(), Pulse::start().unwrap());
        drop(one);
        assert!(pulses().beats);
        drop(two);
        while pulses().beats {
            thread::yield_now();
        }
        // And begins anew.
        let third = Pulse::start().unwrap();
        assert!(pulses().beats && pulses().count == 1);
        drop(third);
    }
}
