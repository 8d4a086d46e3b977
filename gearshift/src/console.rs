//! Standard input becomes the guest's console input.
//!
//! 1. A terminal's keys are read at once whatever the guest does, so that Ctrl-a x works with a guest that reads
//!    nothing: a second thread gives them to the guest, and [`TypedAhead`] is between the two. When that is full the
//!    terminal is not read any more until the guest is; signals end the run even then.
//! 2. A job in the background does not read its terminal: what is typed there is for others.
//! 3. A file or pipe is read as fast as the guest takes it. Its end ends the input and nothing else.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use machine::Machine;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::escape::{Escapes, HELP, Typed};
use crate::gears::Gears;
use crate::stdio::{say, say_all};
use crate::typed_ahead::{LIMIT, TypedAhead};
use crate::{balloon, stats, terminal};

/// How long the guest may take no key of a full queue before the user is told.
const STUCK: Duration = Duration::from_secs(3);
/// How often keys that came to a job in the background are looked at again.
const BACKGROUND: Duration = Duration::from_millis(200);

/// Starts to read standard input. `terminal`: look for Ctrl-a. The flag returned tells that the user quit.
///
/// # Errors
/// The host has no thread to give.
pub(crate) fn connect(
    machine: Arc<Machine>,
    gears: Arc<Gears>,
    terminal: bool,
) -> io::Result<Arc<AtomicBool>> {
    let quit = Arc::new(AtomicBool::new(false));
    let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.into()).spawn(work).map(drop)
    };
    let input = machine.console_input();
    if terminal {
        let ahead = Arc::new(TypedAhead::default());
        let queue = ahead.clone();
        spawn(
            "console-feed",
            Box::new(move || {
                while queue.take().is_some_and(|bytes| input.push(&bytes)) {}
                queue.close();
            }),
        )?;
        let quit = quit.clone();
        spawn("console-in", Box::new(move || keys(stdin, &machine, &gears, &ahead, &quit)))?;
    } else {
        spawn("console-in", Box::new(move || read_all(stdin, || true, |bytes| input.push(bytes))))?;
    }
    Ok(quit)
}

fn keys(stdin: File, machine: &Machine, gears: &Gears, ahead: &TypedAhead, quit: &AtomicBool) {
    let mut escapes = Escapes::default();
    let mut told = false;
    let terminal = stdin.try_clone();
    let ready = || {
        let stuck = || {
            if !std::mem::replace(&mut told, true) {
                say(format_args!(
                    "the guest takes no input: {} KiB wait for it, and until it does no more is read, Ctrl-a x \
                     neither; `kill {}` ends the run",
                    LIMIT >> 10,
                    std::process::id()
                ));
            }
        };
        ahead.wait_for_room(STUCK, stuck) && terminal.as_ref().is_ok_and(wait_for_key)
    };
    read_all(stdin, ready, |bytes| {
        for part in escapes.split(bytes) {
            match part {
                Typed::Bytes(bytes) => ahead.push(&bytes),
                Typed::Help => say_all(format_args!("\n{HELP}")),
                Typed::Stats => match machine.stats() {
                    Ok(list) => say_all(format_args!("\n{}", stats::text(&list))),
                    Err(error) => say(error),
                },
                Typed::Gear => gears.next(),
                Typed::Balloon(more) => say(balloon::change(machine, more)),
                Typed::PowerButton => machine.press_power_button(),
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

/// Waits until a key is there and is for us. A read would stop a job in the background, so that looks first.
fn wait_for_key(terminal: &File) -> bool {
    loop {
        match poll(&mut [PollFd::new(terminal, PollFlags::IN)], None) {
            // Perhaps the one that moved this job into the background.
            Err(Errno::INTR) => {}
            // What else may be wrong the read will tell.
            _ if terminal::in_foreground() => return true,
            _ => thread::sleep(BACKGROUND),
        }
    }
}

/// Reads until the end, an error, or `ready`, which is asked before each read, or `take` has enough.
fn read_all(mut from: File, mut ready: impl FnMut() -> bool, mut take: impl FnMut(&[u8]) -> bool) {
    let mut buffer = vec![0; 16 << 10];
    while ready() {
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
