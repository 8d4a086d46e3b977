//! What the machine asks of its host's kernel and processor directly.
#![allow(unsafe_code)] // RDTSC, the raw clock, random bytes, signal masks and timer slack have no safe wrapper

use std::arch::x86_64::{_mm_lfence, _rdtsc};

/// The name of a thread that does `role` for the machine called `machine`. The host shows 15 bytes of it (pthread_setname_np(3)),
/// so the role comes first.
pub(crate) fn thread_name(role: &str, machine: &str) -> String {
    if machine.is_empty() { role.to_owned() } else { format!("{role}/{machine}") }
}

/// The host's time stamp counter, the same that every backend reads; once all loads before are done, so that two threads
/// that read it in turn never see it go back.
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: LFENCE and RDTSC are part of x86-64; user space may execute them wherever this program can run at all.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// CLOCK_MONOTONIC_RAW in ns: not slewed by NTP, which matters when the TSC is measured against it.
pub(crate) fn raw_clock() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the call to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_RAW, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Bytes of the host kernel's generator; `None` while it has not gathered enough itself.
pub(crate) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0u8; N];
    // SAFETY: the buffer is as long as told.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, libc::GRND_NONBLOCK) };
    (got == N as isize).then_some(bytes)
}

/// Keeps the process's signals away from the calling thread, so that they reach threads which wait for them.
///
/// Signals that an instruction raises stay, since a software CPU may handle them; so does SIGPROF, for profilers. A
/// backend that kicks by signal unblocks its own when it binds the vCPU.
pub(crate) fn block_signals() {
    let keep = [
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGSYS,
        libc::SIGABRT,
        libc::SIGPROF,
    ];
    // SAFETY: an all-zero sigset_t is a valid object, and sigfillset initialises it before it is used. The calls
    // change nothing but `set` and the calling thread's mask.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        for signal in keep {
            libc::sigdelset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Lets the calling thread's timed waits end when they are due: the default slack of 50 us is 5 % of a 1 kHz tick.
pub(crate) fn exact_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes a number and changes the calling thread only.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_are_new_each_time() {
        let [a, b] = [random::<32>(), random::<32>()].map(|bytes| bytes.expect("a host that is up"));
        assert!(a != b && a != [0; 32]);
    }

    #[test]
    fn threads_block_what_the_process_handles_and_keep_faults() {
        std::thread::spawn(|| {
            block_signals();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let mask = status.lines().find_map(|l| l.strip_prefix("SigBlk:")).unwrap().trim();
            let mask = u64::from_str_radix(mask, 16).unwrap();
            let blocked = |signal: i32| mask >> (signal - 1) & 1 == 1;
            assert!(blocked(libc::SIGTERM) && blocked(libc::SIGINT) && blocked(libc::SIGWINCH));
            assert!(!blocked(libc::SIGSEGV) && !blocked(libc::SIGFPE));
        })
        .join()
        .unwrap();
    }
}
