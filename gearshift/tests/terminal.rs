//! On a terminal: raw mode while the guest runs, and the terminal as it was afterwards.

mod common;

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use common::pty::{Pty, Session, modes};
use common::{IDLE, file, gearshift, path, pvh_elf};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a guest that does nothing, waits for raw mode; gives the modes from before.
fn idle(pty: &Pty) -> (Session, String) {
    let before = modes(&pty.attributes());
    let kernel = file(&pvh_elf(IDLE));
    let session = pty.spawn(&mut gearshift(&["run", "--mem", "16M", "--kernel", path(&kernel)]));
    pty.expect("Ctrl-a h helps", PATIENCE);
    assert!(pty.is_raw());
    (session, before)
}

#[test]
fn ctrl_a_x_quits_a_guest_that_reads_nothing() {
    let pty = Pty::new();
    let (mut session, before) = idle(&pty);
    pty.send("typed ahead, more than the port holds ");
    pty.send("\x01h");
    pty.expect("send Ctrl-a to the guest", PATIENCE);
    pty.send("\x01s");
    pty.expect("vCPU 0", PATIENCE);
    assert!(pty.is_raw());
    pty.send("\x01x");
    assert_eq!(session.wait(PATIENCE).code(), Some(18), "{}", pty.text());
    assert_eq!(modes(&pty.attributes()), before);
}

#[test]
fn signals_end_the_process_after_the_terminal_is_restored() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::ABORT] {
        let pty = Pty::new();
        let (mut session, before) = idle(&pty);
        session.signal(signal);
        let status = session.wait(PATIENCE);
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status:?} {}", pty.text());
        assert_eq!(modes(&pty.attributes()), before, "{signal:?}");
    }
}
