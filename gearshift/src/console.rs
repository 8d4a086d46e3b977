//! Standard input becomes the guest's console input.
//!
//! 1. A terminal's keys are read at once whatever the guest does, so that Ctrl-a x works with a guest that reads
//!    nothing: a second thread gives them to the guest, and of a backlog beyond [`TYPED_AHEAD`] reads the rest is
//!    dropped with a beep.
//! 2. A file or pipe is read as fast as the guest takes it. Its end ends the input and nothing else.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use machine::Machine;
use rustix::event::{PollFd, PollFlags, poll};

use crate::escape::{Escapes, HELP, Typed};
use crate::stats;
use crate::stdio::{say, say_all};

/// Reads of a terminal that may wait for the guest.
const TYPED_AHEAD: usize = 64;

/// Starts to read standard input. `terminal`: look for Ctrl-a. The flag returned tells that the user quit.
///
/// # Errors
/// The host has no thread to give.
pub(crate) fn connect(machine: Arc<Machine>, terminal: bool) -> io::Result<Arc<AtomicBool>> {
    let quit = Arc::new(AtomicBool::new(false));
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.into()).spawn(work).map(drop)
    };
    if terminal {
        let input = machine.console_input();
        let (typed, queue) = mpsc::sync_channel::<Vec<u8>>(TYPED_AHEAD);
        spawn("console-feed", Box::new(move || while queue.recv().is_ok_and(|bytes| input.push(&bytes)) {}))?;
        let quit = quit.clone();
        spawn("console-in", Box::new(move || keys(stdin, &machine, &typed, &quit)))?;
    } else {
        let input = machine.console_input();
        spawn("console-in", Box::new(move || read_all(stdin, |bytes| input.push(bytes))))?;
    }
    Ok(quit)
}

fn keys(stdin: File, machine: &Machine, typed: &mpsc::SyncSender<Vec<u8>>, quit: &AtomicBool) {
    let mut escapes = Escapes::default();
    read_all(stdin, |bytes| {
        for part in escapes.split(bytes) {
            match part {
                Typed::Bytes(bytes) => {
                    if let Err(mpsc::TrySendError::Full(_)) = typed.try_send(bytes) {
                        say_all('\x07');
                    }
                }
                Typed::Help => say_all(format_args!("\n{HELP}")),
                Typed::Stats => match machine.stats() {
                    Ok(list) => say_all(format_args!("\n{}", stats::text(&list))),
                    Err(error) => say(error),
                },
                Typed::Quit => {
                    quit.store(true, Ordering::SeqCst);
                    machine.stop();
                    return false;
                }
            }
        }
        true
    });
}

/// Reads until the end, an error, or `take` has enough.
fn read_all(mut from: File, mut take: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                if !take(&buffer[..count]) {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process that shares the stream has made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let _ = poll(&mut [PollFd::new(&from, PollFlags::IN)], None);
            }
            Err(error) => return say(format_args!("standard input cannot be read any more: {error}")),
        }
    }
}
