//! Signals that end or stop the process: the terminal is restored first, then the signal does what it always does.
//!
//! 1. A thread waits for the signals of [`ENDS`]. The first one ends the guest, so that what it has printed is still
//!    written; then the process dies by that signal. A second one does not wait for the guest.
//! 2. SIGTSTP pauses the machine, whose clock then stands, and leaves raw mode while the process is stopped.
//! 3. SIGCONT takes the terminal again: whoever stopped the process, and by whatever signal, the shell has set it back.
//! 4. SIGABRT restores the terminal in its handler. Faults such as SIGSEGV are left alone: they belong to the
//!    runtime, which turns the overflow of a stack into SIGABRT, and to accelerators.
//! 5. A signal that was ignored when the process started, as under `nohup`, stays ignored.
#![allow(unsafe_code)] // a handler that runs in signal context cannot be registered safely

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use machine::Machine;
use signal_hook::consts::{SIGABRT, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::{stdio, terminal};

/// Signals that end the guest.
const ENDS: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];

/// The signal that stopped the guest, or a comparison, or 0.
#[derive(Debug, Default)]
pub(crate) struct Caught(AtomicI32);

impl Caught {
    /// Dies by that signal, if there was one.
    pub(crate) fn die(&self) {
        let signal = self.0.load(Ordering::SeqCst);
        if signal != 0 {
            stdio::flush_errors();
            die_by(signal);
        }
    }
}

/// Handles signals from now on.
///
/// # Errors
/// The host has no thread or pipe to give.
pub(crate) fn watch(machine: Arc<Machine>) -> io::Result<Arc<Caught>> {
    let caught = Arc::new(Caught::default());
    let ignored = ignored();
    let wanted = ENDS.into_iter().chain([SIGTSTP, SIGCONT]).filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = Signals::new(wanted)?;
    // SAFETY: restoring the terminal and dying by the default action make system calls and touch atomics only.
    unsafe { low_level::register(SIGABRT, || die_by(SIGABRT))? };
    std::thread::Builder::new().name("signals".into()).spawn({
        let caught = caught.clone();
        move || {
            for signal in signals.forever() {
                if signal == SIGTSTP {
                    stop(&machine);
                } else if signal == SIGCONT {
                    // A terminal that refuses is gone; whoever reads it will tell.
                    let _ = terminal::reclaim();
                } else if caught.0.swap(signal, Ordering::SeqCst) == 0 {
                    machine.stop();
                } else {
                    die_by(signal);
                }
            }
        }
    })?;
    Ok(caught)
}

/// Stops the process as SIGTSTP does, with the machine paused meanwhile.
fn stop(machine: &Machine) {
    // One that has ended, or is about to, needs no pause.
    let paused = machine.pause();
    terminal::restore();
    // Returns when the process is continued.
    let _ = low_level::emulate_default_handler(SIGTSTP);
    let _ = terminal::reclaim();
    if paused.is_ok() {
        // It may have ended. A backend that cannot go on has posted that as the end.
        let _ = machine.resume();
    }
}

/// For what has no machine to stop: the first signal of [`ENDS`] sets a flag, a second one ends the process.
///
/// # Errors
/// The host has no thread or pipe to give.
pub(crate) fn ask_to_stop() -> io::Result<(Arc<AtomicBool>, Arc<Caught>)> {
    let (stop, caught) = (Arc::new(AtomicBool::new(false)), Arc::new(Caught::default()));
    let ignored = ignored();
    let mut signals = Signals::new(ENDS.into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0))?;
    std::thread::Builder::new().name("signals".into()).spawn({
        let (stop, caught) = (stop.clone(), caught.clone());
        move || {
            for signal in signals.forever() {
                if caught.0.swap(signal, Ordering::SeqCst) != 0 {
                    die_by(signal);
                }
                stop.store(true, Ordering::SeqCst);
            }
        }
    })?;
    Ok((stop, caught))
}

fn die_by(signal: i32) {
    terminal::leave();
    // Ends the process. The only failure is a signal without default action, which these are not.
    let _ = low_level::emulate_default_handler(signal);
}

/// Bit `n - 1`: signal n was ignored from the start.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
