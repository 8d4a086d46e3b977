//! The three standard streams.
//!
//! 1. Standard output carries the guest's console, or what a command was asked to print; nothing else.
//! 2. Standard error carries what the program itself says, a line each, with its name in front. If that cannot be
//!    written there is nobody to tell.
//! 3. A program that was started with its standard output closed is told apart from one that writes to /dev/null: the
//!    runtime opens that in its place before `main`, so the stream is looked at before the runtime starts.
#![allow(unsafe_code)] // a function that runs before `main` is registered in a section of the program

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Failure;

static CLOSED_AT_START: AtomicBool = AtomicBool::new(false);

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
    // In one write, so that lines of several threads do not mix.
    let _ = io::stderr().write_all(text.to_string().as_bytes());
}
