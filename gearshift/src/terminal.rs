//! The terminal in raw mode, and out of it again whatever happens.
//!
//! 1. [`RawMode::enter`] saves the terminal's attributes once and sets raw ones; dropping the guard restores them.
//! 2. [`restore`] does the same from anywhere: the panic hook that `enter` installs, the thread that waits for
//!    signals, the handler of an abort. It makes system calls only, so it may be called in a signal handler.
//! 3. A shell sets the terminal to its own liking whenever the job stops, however that came about; so who is told that
//!    the process goes on calls [`reclaim`].
//! 4. A job in the background leaves the terminal alone: touching it would stop the job, by SIGTTOU or SIGTTIN. Shells
//!    do not tell a job that runs already when they put it into the foreground, so a thread looks until that is so.
//! 5. Output processing stays as it was: newlines of our own messages still return the carriage.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::getpgrp;
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};

static SAVED: OnceLock<Termios> = OnceLock::new();
/// Raw mode is set, and not yet restored.
static RAW: AtomicBool = AtomicBool::new(false);
/// Raw mode is to be, whenever the process is in the foreground.
static WANTED: AtomicBool = AtomicBool::new(false);
/// A thread waits for the foreground.
static WAITING: AtomicBool = AtomicBool::new(false);
/// Held by whoever sets raw mode, or ends it for good, outside of signal handlers.
static CHANGING: Mutex<()> = Mutex::new(());

/// How often a job in the background looks whether it still is.
const LOOK: Duration = Duration::from_millis(200);

/// The terminal is in raw mode while this lives and the process is in the foreground.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Puts the terminal behind standard input into raw mode; `None` if there is none.
    ///
    /// # Errors
    /// The terminal refuses.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        static HOOK: OnceLock<()> = OnceLock::new();
        HOOK.get_or_init(|| {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                hook(info);
            }));
        });
        WANTED.store(true, Ordering::SeqCst);
        let raw = Self(());
        reclaim()?;
        Ok(Some(raw))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _changing = changing();
        leave();
    }
}

fn changing() -> MutexGuard<'static, ()> {
    CHANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this process may touch the terminal. One that does not control this session has no foreground.
pub(crate) fn in_foreground() -> bool {
    !tcgetpgrp(stdin()).is_ok_and(|group| group != getpgrp())
}

/// Raw mode again: now, or as soon as the process is in the foreground. Nothing happens without a [`RawMode`].
///
/// # Errors
/// The terminal refuses, or the host has no thread to give.
pub(crate) fn reclaim() -> io::Result<()> {
    if in_foreground() {
        return set_raw();
    }
    if WANTED.load(Ordering::SeqCst) && !WAITING.swap(true, Ordering::SeqCst) {
        let wait = || {
            while WANTED.load(Ordering::SeqCst) && !in_foreground() {
                thread::sleep(LOOK);
            }
            WAITING.store(false, Ordering::SeqCst);
            // A terminal that refuses now is gone.
            let _ = set_raw();
        };
        thread::Builder::new().name("foreground".into()).spawn(wait)?;
    }
    Ok(())
}

fn set_raw() -> io::Result<()> {
    let _changing = changing();
    if !WANTED.load(Ordering::SeqCst) {
        return Ok(());
    }
    let saved = match SAVED.get() {
        Some(saved) => saved,
        None => {
            let attributes = tcgetattr(stdin())?;
            SAVED.get_or_init(|| attributes)
        }
    };
    let mut raw = saved.clone();
    raw.make_raw();
    raw.output_modes = saved.output_modes;
    // Before the change: a signal in between must not find the terminal raw and the flag clear.
    RAW.store(true, Ordering::SeqCst);
    tcsetattr(stdin(), OptionalActions::Now, &raw)?;
    Ok(())
}

/// Restores the terminal if it is in raw mode.
pub(crate) fn restore() {
    if !RAW.swap(false, Ordering::SeqCst) {
        return;
    }
    // Of a job in the background the shell has restored the terminal already.
    if let Some(saved) = SAVED.get()
        && in_foreground()
    {
        // There is nobody left to tell.
        let _ = tcsetattr(stdin(), OptionalActions::Now, saved);
    }
}

/// Restores the terminal for good.
pub(crate) fn leave() {
    WANTED.store(false, Ordering::SeqCst);
    restore();
}
