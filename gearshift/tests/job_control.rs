//! A job among others: a shell that stops it, puts it into the background and into the foreground again.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::pty::{Pty, Session, modes};
use common::{IDLE, file, gearshift, path, pvh_elf};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::LocalModes;

const PATIENCE: Duration = Duration::from_secs(60);

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what} never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The letter of a process's state: `T` is stopped (proc(5)).
fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?')
}

/// The process whose command line has this word, other than the shell that started it.
fn process_with(word: &str) -> Option<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).collect();
        words.first().is_some_and(|program| program.ends_with(b"gearshift"))
            && words.contains(&word.as_bytes())
    })
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// Whoever stops the job, by a signal that it sees or by one that it cannot see, sets the terminal back.
#[test]
fn raw_mode_comes_back_whatever_has_stopped_the_job() {
    for stop in [Signal::TSTP, Signal::STOP] {
        let pty = Pty::new();
        let before = pty.attributes();
        let kernel = file(&pvh_elf(IDLE));
        let mut session = pty.spawn(&mut gearshift(&["run", "--mem", "16M", "--kernel", path(&kernel)]));
        pty.expect("Ctrl-a h helps", PATIENCE);
        session.signal(stop);
        wait_for("the stop", || state(session.0.id()) == 'T');
        if stop == Signal::TSTP {
            assert_eq!(modes(&pty.attributes()), modes(&before));
        }
        pty.set_attributes(&before);
        session.signal(Signal::CONT);
        wait_for("raw mode", || pty.is_raw());
        pty.send("\x01x");
        assert_eq!(session.wait(PATIENCE).code(), Some(18), "{}", pty.text());
        assert_eq!(modes(&pty.attributes()), modes(&before), "{stop:?}");
    }
}

/// Starts a shell with job control on a terminal of its own, whose first command line is `script` with `$@` the program
/// and its arguments.
fn shell(pty: &Pty, script: &str, kernel: &str) -> Session {
    let mut command = Command::new("setsid");
    let program = env!("CARGO_BIN_EXE_gearshift");
    command.args(["--ctty", "sh", "-c", &format!("set -m; stty sane; {script}"), "sh", program]);
    command.args(["run", "--mem", "16M", "--kernel", kernel]).env_remove("GEARSHIFT_LOG");
    pty.spawn(&mut command)
}

/// The job, come to the foreground, takes the terminal, and Ctrl-a x ends it; the shell says `then`, and ends by a line.
fn quit_in_the_foreground(pty: &Pty, mut session: Session, then: &str) {
    wait_for("raw mode", || pty.is_raw());
    pty.send("\x01x");
    pty.expect(then, PATIENCE);
    pty.send("\n");
    session.wait(PATIENCE);
}

#[test]
fn a_shell_moves_the_job_between_background_and_foreground() {
    let pty = Pty::new();
    let kernel = file(&pvh_elf(IDLE));
    let script = "\"$@\"; stty sane; echo stopped; read a; bg; echo background; read b; echo \"[$b]\"; read c; fg; \
                  echo \"ended $?\"; stty -a | grep -c ' icanon'; echo over; read d";
    let session = shell(&pty, script, path(&kernel));
    pty.expect("Ctrl-a h helps", PATIENCE);
    let pid = process_with(path(&kernel)).unwrap();
    signal(pid, Signal::STOP);
    pty.expect("stopped\r\n", PATIENCE);
    wait_for("the shell's terminal", || pty.attributes().local_modes.contains(LocalModes::ICANON));
    pty.send("\n");
    pty.expect("background\r\n", PATIENCE);
    // What is typed now is the shell's, and the job neither takes it nor stops for trying.
    pty.send("for the shell\n");
    pty.expect("[for the shell]", PATIENCE);
    assert_ne!(state(pid), 'T', "stopped in the background");
    assert!(!pty.is_raw());
    pty.send("\n");
    quit_in_the_foreground(&pty, session, "ended 18\r\n1\r\nover\r\n");
}

/// Started in the background it runs there, and takes the terminal when it comes to the foreground.
#[test]
fn a_job_started_in_the_background_waits_for_the_foreground() {
    let pty = Pty::new();
    let kernel = file(&pvh_elf(IDLE));
    let script = "\"$@\" & read a; fg; echo \"ended $?\"; read b";
    let session = shell(&pty, script, path(&kernel));
    pty.expect("Ctrl-a h helps", PATIENCE);
    let pid = process_with(path(&kernel)).unwrap();
    assert!(!pty.is_raw() && state(pid) != 'T', "{}", state(pid));
    pty.send("\n");
    quit_in_the_foreground(&pty, session, "ended 18\r\n");
}
