//! The three standard streams.
//!
//! 1. Standard output carries the guest's console, or what a command was asked to print; nothing else.
//! 2. Standard error carries what the program itself says, a line each, with its name in front. If that cannot be
//!    written there is nobody to tell. While a guest runs, nobody waits for it either: a thread of its own writes what has
//!    room in its queue ([`detach_errors`]).
//! 3. A program that was started with its standard output closed is told apart from one that writes to /dev/null: the
//!    runtime opens that in its place before `main`, so the stream is looked at before the runtime starts.
#![allow(unsafe_code)] // a function that runs before `main` is registered in a section of the program

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use machine::OutputQueue;

use crate::failure::Failure;

/// How long the process's end waits for what standard error has not taken.
const LAST_WORDS: Duration = Duration::from_secs(1);

static CLOSED_AT_START: AtomicBool = AtomicBool::new(false);
/// What goes to standard error, once it is [`detach_errors`].
static ERRORS: OnceLock<Arc<OutputQueue>> = OnceLock::new();

// SAFETY: the section holds pointers to functions that the C runtime calls once, on one thread, before `main`. This
// one makes a system call and stores a flag, which needs nothing of Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    if rustix::io::fcntl_getfd(rustix::stdio::stdout()) == Err(rustix::io::Errno::BADF) {
        CLOSED_AT_START.store(true, Ordering::Relaxed);
    }
}

/// Standard output without a buffer.
///
/// # Errors
/// It is closed.
pub(crate) fn output() -> Result<File, Failure> {
    if CLOSED_AT_START.load(Ordering::Relaxed) {
        return Err(Failure::output("it is closed"));
    }
    let descriptor = io::stdout().as_fd().try_clone_to_owned().map_err(Failure::output)?;
    Ok(File::from(descriptor))
}

/// Writes `text` to standard output.
///
/// # Errors
/// It cannot be written.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    output()?.write_all(text.as_ref()).map_err(Failure::output)
}

/// Tells the user one line.
pub(crate) fn say(message: impl Display) {
    say_all(format_args!("gearshift: {message}\n"));
}

/// Writes `text` to standard error as it is.
pub(crate) fn say_all(text: impl Display) {
    // In one piece, so that lines of several threads do not mix.
    let _ = Errors.write_all(text.to_string().as_bytes());
}

/// From now on writing to standard error waits for nobody: what a pipe or terminal does not take, and the queue has no room
/// for, is lost. [`flush_errors`] comes at the end.
///
/// # Errors
/// The host has no thread to give.
pub(crate) fn detach_errors() -> io::Result<()> {
    let queue = OutputQueue::new("errors", io::stderr())?;
    // It may be detached already.
    let _ = ERRORS.set(queue);
    Ok(())
}

/// Waits a little for standard error to take what has been said.
pub(crate) fn flush_errors() {
    if let Some(queue) = ERRORS.get() {
        queue.flush(LAST_WORDS);
    }
}

/// Standard error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Errors;

impl Write for Errors {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match ERRORS.get() {
            // What is lost cannot be said anywhere.
            Some(queue) => drop(queue.offer(bytes)),
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
