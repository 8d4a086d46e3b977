//! Runs one process to the point of interest, and looks at it there.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::Failure;
use crate::guest::COUNTERS;
use crate::host;
use crate::memory::{self, Memory};
use crate::subject::{GuestRun, Subject};

/// How processes are run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runner {
    /// The core they are pinned to.
    pub(crate) core: usize,
    /// How long one may take.
    pub(crate) limit: Duration,
}

/// What a process did.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// From before the process was made until the point of interest.
    pub(crate) wall: Duration,
    pub(crate) console: String,
    /// At the point of interest.
    pub(crate) memory: Option<Memory>,
    /// Our vCPU's counters at the point of interest.
    pub(crate) counters: Option<Value>,
}

/// What is heard of a process.
enum Heard {
    Output(Instant, Vec<u8>),
    /// The end of its standard output.
    End(Instant),
    Error(String),
    /// The end of its standard error.
    ErrorEnd,
}

/// Kills and buries the process, whatever happens.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why there is no number: the guest's fault, or that of who runs it.
pub(crate) type Broken = String;

impl Runner {
    /// Runs a guest until `reached` holds for its console, then ends it.
    pub(crate) fn guest(
        &self,
        subject: &Subject,
        guest: &GuestRun<'_>,
        reached: impl Fn(&str) -> bool,
    ) -> Result<Result<Outcome, Broken>, Failure> {
        let counters = subject.has_counters();
        self.process(subject.command(guest), u64::from(guest.mebibytes) << 20, counters, reached)
    }

    /// Runs a process of the host to its end; its output.
    pub(crate) fn native(&self, command: Command) -> Result<Result<Outcome, Broken>, Failure> {
        self.process(command, 0, false, |_| false)
    }

    fn process(
        &self,
        mut command: Command,
        guest_bytes: u64,
        counters: bool,
        reached: impl Fn(&str) -> bool,
    ) -> Result<Result<Outcome, Broken>, Failure> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = Instant::now();
        let child = match host::pinned(self.core, || command.spawn())? {
            Ok(child) => child,
            Err(error) => return Ok(Err(format!("{} does not start: {error}", program(&command)))),
        };
        let mut child = Killed(child);
        let heard = listen(&mut child.0);
        let mut seen = Seen::default();
        let ends_by_itself = guest_bytes == 0;
        let at = loop {
            let left = self.limit.saturating_sub(start.elapsed());
            match heard.recv_timeout(left) {
                Ok(Heard::Output(at, bytes)) => {
                    seen.console(&bytes);
                    if reached(&seen.console) {
                        break at;
                    }
                }
                Ok(Heard::End(at)) if ends_by_itself => break at,
                Ok(Heard::End(_)) | Err(RecvTimeoutError::Disconnected) => {
                    // What it said of its end comes by another thread.
                    while let Ok(Heard::Error(line)) = heard.recv_timeout(Duration::from_secs(1)) {
                        seen.error(line);
                    }
                    return Ok(Err(seen.broken("ended too early")));
                }
                Ok(Heard::Error(line)) => seen.error(line),
                Ok(Heard::ErrorEnd) => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Ok(Err(seen.broken(&format!("did not end in {} s", self.limit.as_secs()))));
                }
            }
        };
        let wall = at - start;
        if ends_by_itself {
            return Ok(match child.0.wait() {
                Ok(status) if status.success() => Ok(seen.outcome(wall, None)),
                Ok(status) => Err(seen.broken(&format!("failed ({status})"))),
                Err(error) => Err(seen.broken(&error.to_string())),
            });
        }
        // A guest that has just powered off may be gone.
        let memory = memory::of(child.0.id(), guest_bytes).ok();
        while counters && seen.counters.is_none() {
            match heard.recv_timeout(Duration::from_secs(5)) {
                Ok(Heard::Error(line)) => seen.error(line),
                Ok(Heard::ErrorEnd) | Err(_) => break,
                Ok(_) => {}
            }
        }
        Ok(Ok(seen.outcome(wall, memory)))
    }
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// What has been heard so far.
#[derive(Default)]
struct Seen {
    console: String,
    errors: String,
    counters: Option<Value>,
}

impl Seen {
    fn console(&mut self, bytes: &[u8]) {
        self.console.push_str(&String::from_utf8_lossy(bytes));
    }

    fn error(&mut self, line: String) {
        match line.strip_prefix(COUNTERS).and_then(|json| serde_json::from_str(json).ok()) {
            Some(counters) => self.counters = Some(counters),
            None => {
                self.errors.push_str(&line);
                self.errors.push('\n');
            }
        }
    }

    fn outcome(self, wall: Duration, memory: Option<Memory>) -> Outcome {
        Outcome { wall, console: self.console, memory, counters: self.counters }
    }

    /// A message with the last things said.
    fn broken(&self, what: &str) -> Broken {
        let mut message = what.to_owned();
        for (name, text) in [("console", &self.console), ("errors", &self.errors)] {
            let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
            if !lines.is_empty() {
                message +=
                    &format!("; last on its {name}: {}", lines[lines.len().saturating_sub(3)..].join(" | "));
            }
        }
        message
    }
}

/// Reads both outputs on threads of their own, which end with the process.
fn listen(child: &mut Child) -> mpsc::Receiver<Heard> {
    let (sender, receiver) = mpsc::channel();
    if let Some(mut output) = child.stdout.take() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut bytes) {
                if sender.send(Heard::Output(Instant::now(), bytes[..n].to_vec())).is_err() {
                    return;
                }
            }
            // Nobody may be listening any more.
            let _ = sender.send(Heard::End(Instant::now()));
        });
    }
    if let Some(errors) = child.stderr.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                if sender.send(Heard::Error(line)).is_err() {
                    return;
                }
            }
            let _ = sender.send(Heard::ErrorEnd);
        });
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    fn runner(millis: u64) -> Runner {
        Runner { core: host::choose_core(None).unwrap(), limit: Duration::from_millis(millis) }
    }

    #[test]
    fn the_clock_stops_at_the_text() {
        let command = shell("echo one; echo two; exec sleep 60");
        let reached = |console: &str| console.contains("two\n");
        let outcome = runner(20_000).process(command, 1, false, reached).unwrap().unwrap();
        assert_eq!(outcome.console, "one\ntwo\n");
        assert!(outcome.wall < Duration::from_secs(20));
        assert!(outcome.memory.is_some_and(|memory| memory.peak > 0));
    }

    #[test]
    fn counters_are_read_and_what_else_is_said_is_kept() {
        let script = format!("echo go; echo '{COUNTERS}{{\"n\":3}}' >&2; exec sleep 60");
        let outcome = runner(20_000).process(shell(&script), 1, true, |c| c.contains("go")).unwrap().unwrap();
        assert_eq!(outcome.counters, Some(serde_json::json!({ "n": 3 })));
    }

    #[test]
    fn guests_that_end_early_or_never_are_broken() {
        let early = runner(20_000).process(shell("echo a; echo why >&2"), 1, false, |_| false).unwrap();
        let early = early.unwrap_err();
        assert!(early.contains("ended too early") && early.contains("why"), "{early}");
        let never = runner(300).process(shell("exec sleep 60"), 1, false, |_| false).unwrap();
        assert!(never.unwrap_err().contains("did not end"));
        assert!(runner(300).native(Command::new("/nonexistent")).unwrap().is_err());
        assert!(runner(20_000).native(shell("exit 3")).unwrap().is_err());
    }
}
