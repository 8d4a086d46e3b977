//! A program whose output is a guest's console: read line by line, and ended when it takes too long.

use std::io::{BufRead as _, BufReader};
use std::ops::ControlFlow;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Exit(i32),
    /// By a signal.
    Killed(String),
    /// By us, after this many seconds.
    TimeLimit(u64),
}

/// Runs `command` for `limit` at most, without input; `each` gets the number of its process and the lines of its output as they
/// come, and may have it ended.
pub(crate) fn watch(
    command: &mut Command,
    limit: Duration,
    each: &mut dyn FnMut(u32, &str) -> ControlFlow<()>,
) -> Result<Ending> {
    let start = Instant::now();
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let console = child.stdout.take().context("its output is no pipe")?;
    let (lines, received) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n') {
            let Ok(line) = line else { break };
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut in_time = true;
    loop {
        match received.recv_timeout(limit.saturating_sub(start.elapsed())) {
            Ok(line) if each(child.id(), &line).is_continue() => continue,
            Err(RecvTimeoutError::Disconnected) => break,
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => in_time = false,
        }
        child.kill().with_context(|| format!("cannot end {name}"))?;
        break;
    }
    // Of what it goes on to say nobody reads a line.
    drop(received);
    let status = child.wait()?;
    // The pipe is closed: it ends. If it panicked, lines are missing, which whoever reads them notices.
    let _ = reader.join();
    Ok(if in_time { ending(status) } else { Ending::TimeLimit(limit.as_secs()) })
}

fn ending(status: ExitStatus) -> Ending {
    status.code().map_or_else(|| Ending::Killed(status.to_string()), Ending::Exit)
}

/// Tells how a task goes on.
#[expect(clippy::print_stderr, reason = "progress of a command-line tool")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}
