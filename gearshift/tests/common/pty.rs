//! A pseudo-terminal with a process on it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// Both ends of a pseudo-terminal, and what has come out of it.
#[derive(Debug)]
pub struct Pty {
    master: File,
    slave: OwnedFd,
    seen: Arc<(Mutex<Vec<u8>>, Condvar)>,
}

impl Pty {
    pub fn new() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let master = File::from(master);
        let seen = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        std::thread::spawn({
            let (mut master, seen) = (master.try_clone().unwrap(), seen.clone());
            move || {
                let mut buffer = [0; 4096];
                // Ends with an error when the last holder of the other end goes.
                while let Ok(count @ 1..) = master.read(&mut buffer) {
                    seen.0.lock().unwrap().extend_from_slice(&buffer[..count]);
                    seen.1.notify_all();
                }
            }
        });
        Self { master, slave, seen }
    }

    /// Runs `command` with all three streams on the terminal.
    pub fn spawn(&self, command: &mut Command) -> Session {
        let stream = || Stdio::from(self.slave.try_clone().unwrap());
        Session(command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap())
    }

    /// The terminal, for one stream of a command.
    pub fn stream(&self) -> Stdio {
        Stdio::from(self.slave.try_clone().unwrap())
    }

    /// Runs `command` with its own streams.
    pub fn start(&self, command: &mut Command) -> Session {
        Session(command.spawn().unwrap())
    }

    /// Waits for raw mode.
    pub fn wait_for_raw(&self, patience: Duration) {
        let end = Instant::now() + patience;
        while !self.is_raw() {
            assert!(Instant::now() < end, "no raw mode");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn attributes(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }

    pub fn is_raw(&self) -> bool {
        !self.attributes().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Sets them, as a shell does when it gets its terminal back.
    pub fn set_attributes(&self, attributes: &Termios) {
        tcsetattr(&self.slave, OptionalActions::Now, attributes).unwrap();
    }

    /// Types `text`.
    pub fn send(&self, text: &str) {
        self.send_bytes(text.as_bytes());
    }

    /// Pastes `bytes`, waiting while the other side does not read.
    pub fn send_bytes(&self, bytes: &[u8]) {
        (&self.master).write_all(bytes).unwrap();
    }

    /// The same on a thread, which may wait until the test is over.
    pub fn send_in_background(&self, bytes: Vec<u8>) {
        let mut master = self.master.try_clone().unwrap();
        // The terminal may go away with the test.
        std::thread::spawn(move || master.write_all(&bytes));
    }

    /// What has come so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.0.lock().unwrap()).into_owned()
    }

    /// Waits until `text` has come; panics with what came instead.
    pub fn expect(&self, text: &str, patience: Duration) {
        let seen = self.seen.0.lock().unwrap();
        let missing = |seen: &mut Vec<u8>| !seen.windows(text.len()).any(|window| window == text.as_bytes());
        let (seen, timeout) = self.seen.1.wait_timeout_while(seen, patience, missing).unwrap();
        assert!(!timeout.timed_out(), "no {text:?} in:\n{}", String::from_utf8_lossy(&seen));
    }
}

/// Settings that programs change, in a form that compares.
pub fn modes(attributes: &Termios) -> String {
    let a = attributes;
    format!("{:?} {:?} {:?} {:?}", a.input_modes, a.output_modes, a.control_modes, a.local_modes)
}

/// A process that is ended with the test.
#[derive(Debug)]
pub struct Session(pub Child);

impl Session {
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "still running after {patience:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
