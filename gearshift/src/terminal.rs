//! The terminal in raw mode, and out of it again whatever happens.
//!
//! 1. [`RawMode::enter`] saves the terminal's attributes once and sets raw ones; dropping the guard restores them.
//! 2. [`restore`] does the same from anywhere: the panic hook that `enter` installs, the thread that waits for
//!    signals, the handler of an abort. It makes system calls only, so it may be called in a signal handler.
//! 3. Output processing stays as it was: newlines of our own messages still return the carriage.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};

static SAVED: OnceLock<Termios> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

/// The terminal is in raw mode while this lives.
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
        let attributes = tcgetattr(stdin())?;
        if SAVED.set(attributes).is_ok() {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                hook(info);
            }));
        }
        set_raw()?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Raw mode again, after [`restore`]. Nothing happens if it never was.
///
/// # Errors
/// The terminal refuses.
pub(crate) fn set_raw() -> io::Result<()> {
    if let Some(saved) = SAVED.get() {
        let mut raw = saved.clone();
        raw.make_raw();
        raw.output_modes = saved.output_modes;
        // Before the change: a signal in between must not find the terminal raw and the flag clear.
        RAW.store(true, Ordering::SeqCst);
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
    }
    Ok(())
}

/// Restores the terminal if it is in raw mode.
pub(crate) fn restore() {
    if !RAW.swap(false, Ordering::SeqCst) {
        return;
    }
    // Of a job in the background the shell has restored the terminal already, and touching it would stop the job. A
    // terminal that does not control this session has no foreground.
    let background = tcgetpgrp(stdin()).is_ok_and(|group| group != rustix::process::getpgrp());
    if let Some(saved) = SAVED.get()
        && !background
    {
        // There is nobody left to tell.
        let _ = tcsetattr(stdin(), OptionalActions::Now, saved);
    }
}
