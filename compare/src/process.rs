//! Runs one process to its end, and looks at it on the way.
//!
//! 1. The process and all its threads are pinned to one core. It is in a process group of its own, so that a Ctrl-c meant
//!    for the comparison does not look like a guest that died.
//! 2. What it writes is read on threads that stamp every piece with the time, so *milestones* (texts on the console) are
//!    exact to the scheduler's latency.
//! 3. However it ends (by itself, at a text, at the limit, because the comparison is to stop) it is killed, with what it has
//!    started, and buried. If the comparison itself is killed, by SIGKILL for one, the kernel kills it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::build;
use crate::error::Error;
use crate::host;
use crate::memory::{self, Memory};
use crate::subject::{GuestRun, Subject};
use crate::worker::{COUNTERS, END};

/// How long a request to stop may go unnoticed.
const STOP_LATENCY: Duration = Duration::from_millis(50);
/// More than any of our guests says. A guest that says more has failed; it must not fill the host's memory.
const CONSOLE_MAX: usize = 4 << 20;
/// Pieces of output that may wait to be looked at.
const PIECES: usize = 256;

/// How processes are run.
#[derive(Debug, Clone, Copy)]
pub struct Runner<'a> {
    /// The core they are pinned to.
    pub core: usize,
    /// How long one may take.
    pub limit: Duration,
    /// Set when everything is to end soon.
    pub stop: &'a AtomicBool,
}

/// What of a process is of interest.
#[derive(Debug, Clone, Copy)]
pub struct Watch<'a> {
    /// Names, and the texts on the console that they mean.
    pub milestones: &'a [(&'a str, &'a str)],
    /// The process is looked at when this one is reached.
    pub look_at: Option<&'a str>,
    /// The process is ended when this text is reached, as a guest that never ends by itself.
    pub until: Option<&'a str>,
}

impl Watch<'_> {
    /// Nothing but the end.
    pub const EMPTY: Self = Self { milestones: &[], look_at: None, until: None };
}

/// What a process did.
#[derive(Debug)]
pub struct Outcome {
    /// From before the process was made until its end, or until the text that ends it.
    pub wall: Duration,
    /// All it wrote.
    pub console: String,
    /// Seconds from before the process was made until the first byte (`first byte`) and each milestone, in their order.
    pub milestones: Vec<(String, f64)>,
    /// When it was looked at.
    pub memory: Option<Memory>,
    /// Our vCPU's counters at the text that the guest's run names.
    pub counters: Option<Value>,
    /// How the guest, or the program, ended.
    pub end: End,
}

/// How a guest ended, in words that are the same whoever ran it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End(pub String);

impl End {
    /// QEMU, told not to reboot, does not tell these apart.
    const OFF_OR_RESET: &'static str = "power-off or reset";
    /// It was ended by us.
    const CUT: &'static str = "cut";

    /// Whether both may be the same end.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let ambiguous = |one: &Self, two: &Self| {
            one.0 == Self::OFF_OR_RESET && ["power-off", "reset", "triple fault"].contains(&two.0.as_str())
        };
        self == other || ambiguous(self, other) || ambiguous(other, self)
    }

    /// The guest has powered off, as far as one can tell.
    pub fn is_power_off(&self) -> bool {
        self.agrees_with(&Self("power-off".to_owned()))
    }
}

/// Why there is no outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The comparison is to stop.
    Stopped,
    /// The fault of the guest, or of who runs it.
    Failed(String),
}

/// What is heard of a process.
enum Heard {
    Output(Instant, Vec<u8>),
    /// The end of its standard output.
    OutputEnd(Instant),
    Error(String),
    /// The end of its standard error.
    ErrorEnd,
}

/// Kills the process's group and buries the process, unless it has ended by itself.
struct Killed {
    child: Child,
    buried: bool,
}

impl Killed {
    fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.buried = true;
        self.child.wait()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        if !self.buried {
            host::kill_group(&self.child);
            let _ = self.child.wait();
        }
    }
}

/// How an exit status is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Convention {
    /// The worker says how the guest ended.
    Worker,
    /// That of `gearshift run`.
    Run,
    /// QEMU's: 0, or what the guest wrote to its debug-exit port.
    Qemu,
    /// Bochs's: 1 after a power-off, whatever came before.
    Bochs,
    /// A program of the host.
    Native,
}

impl Runner<'_> {
    /// Runs a guest. Nothing natively: a guest needs a machine.
    ///
    /// # Errors
    /// The core cannot be pinned to.
    pub fn guest(
        &self,
        subject: &Subject,
        guest: &GuestRun<'_>,
        watch: &Watch<'_>,
    ) -> Result<Result<Outcome, Broken>, Error> {
        let command = match subject.command(guest) {
            Ok(command) => command,
            Err(reason) => return Ok(Err(Broken::Failed(reason))),
        };
        self.process(command, u64::from(guest.mebibytes) << 20, subject.convention(), watch)
    }

    /// Runs a program of the host.
    ///
    /// # Errors
    /// The core cannot be pinned to.
    pub fn native(&self, command: Command) -> Result<Result<Outcome, Broken>, Error> {
        self.process(command, 0, Convention::Native, &Watch::EMPTY)
    }

    fn process(
        &self,
        mut command: Command,
        guest_bytes: u64,
        convention: Convention,
        watch: &Watch<'_>,
    ) -> Result<Result<Outcome, Broken>, Error> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        host::dies_with_us(&mut command);
        let start = Instant::now();
        let child = match host::pinned(self.core, || command.spawn())? {
            Ok(child) => child,
            Err(error) => {
                let program = command.get_program().to_string_lossy().into_owned();
                return Ok(Err(Broken::Failed(format!("{program} does not start: {error}"))));
            }
        };
        let mut child = Killed { child, buried: false };
        let heard = listen(&mut child.child);
        let mut seen = Seen::new(start, watch);
        let (mut output_end, mut errors_end) = (None, false);
        let mut cut = None;
        while (output_end.is_none() || !errors_end) && cut.is_none() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(Err(Broken::Stopped));
            }
            let left = self.limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                let what = format!("did not end in {} s", self.limit.as_secs());
                return Ok(Err(seen.broken(&format!("{what} (--limit sets how long it may take)"))));
            }
            match heard.recv_timeout(left.min(STOP_LATENCY)) {
                Ok(Heard::Output(at, bytes)) => {
                    seen.output(at, &bytes);
                    if seen.console.len() > CONSOLE_MAX {
                        return Ok(Err(seen.broken("writes without end: more than 4 MiB")));
                    }
                    if seen.reached(watch.look_at) && seen.memory.is_none() {
                        // A guest that has just powered off may be gone.
                        seen.memory = memory::of(child.child.id(), guest_bytes).ok();
                    }
                    if watch.until.is_some_and(|text| seen.contains(text)) {
                        cut = Some(at);
                    }
                }
                Ok(Heard::OutputEnd(at)) => output_end = Some(at),
                Ok(Heard::Error(line)) => seen.error(line),
                Ok(Heard::ErrorEnd) => errors_end = true,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(at) = cut {
            return Ok(Ok(seen.outcome(at - start, End(End::CUT.to_owned()))));
        }
        let end = match child.wait() {
            Ok(status) => seen.end(status, convention),
            Err(error) => Err(error.to_string()),
        };
        let wall = output_end.unwrap_or_else(Instant::now) - start;
        Ok(match end {
            Ok(end) => Ok(seen.outcome(wall, end)),
            Err(what) => Err(seen.broken(&what)),
        })
    }
}

/// What has been heard so far.
struct Seen<'a> {
    start: Instant,
    watch: &'a Watch<'a>,
    console: Vec<u8>,
    milestones: Vec<(String, f64)>,
    errors: String,
    memory: Option<Memory>,
    counters: Option<Value>,
    end: Option<String>,
}

impl<'a> Seen<'a> {
    fn new(start: Instant, watch: &'a Watch<'a>) -> Self {
        Self {
            start,
            watch,
            console: Vec::new(),
            milestones: Vec::new(),
            errors: String::new(),
            memory: None,
            counters: None,
            end: None,
        }
    }

    fn output(&mut self, at: Instant, bytes: &[u8]) {
        let seconds = (at - self.start).as_secs_f64();
        if self.console.is_empty() {
            self.milestones.push(("first byte".to_owned(), seconds));
        }
        let before = self.console.len();
        self.console.extend_from_slice(bytes);
        for (name, text) in self.watch.milestones {
            let from = before.saturating_sub(text.len());
            if !self.reached(Some(name)) && find(&self.console[from..], text.as_bytes()) {
                self.milestones.push(((*name).to_owned(), seconds));
            }
        }
    }

    fn reached(&self, milestone: Option<&str>) -> bool {
        self.milestones.iter().any(|(name, _)| Some(name.as_str()) == milestone)
    }

    fn contains(&self, text: &str) -> bool {
        find(&self.console, text.as_bytes())
    }

    fn error(&mut self, line: String) {
        if let Some(counters) = line.strip_prefix(COUNTERS).and_then(|json| serde_json::from_str(json).ok()) {
            self.counters = Some(counters);
        } else if let Some(end) = line.strip_prefix(END) {
            self.end = Some(end.to_owned());
        } else if self.errors.len() < CONSOLE_MAX {
            self.errors.push_str(&line);
            self.errors.push('\n');
        }
    }

    /// How it ended; or that this was no end of the guest's own.
    fn end(&self, status: ExitStatus, convention: Convention) -> Result<End, String> {
        let failed = || match status.signal() {
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("failed with exit status {}", status.code().unwrap_or(-1)),
        };
        let text = match (convention, status.code()) {
            (Convention::Worker, _) => self.end.clone(),
            (Convention::Run, Some(code)) => build::end(code),
            (Convention::Qemu, Some(0)) => Some(End::OFF_OR_RESET.to_owned()),
            (Convention::Bochs, Some(1)) if !self.console.is_empty() => Some(End::OFF_OR_RESET.to_owned()),
            // Its own failures are 1 as well; they come before the guest's first word.
            (Convention::Qemu, Some(1)) if self.console.is_empty() => None,
            (Convention::Qemu, Some(code)) if code & 1 == 1 => Some(format!("debug exit {}", code >> 1)),
            (Convention::Native, Some(code)) => Some(format!("exit status {code}")),
            _ => None,
        };
        text.map(End).ok_or_else(failed)
    }

    fn outcome(self, wall: Duration, end: End) -> Outcome {
        Outcome {
            wall,
            console: String::from_utf8_lossy(&self.console).into_owned(),
            milestones: self.milestones,
            memory: self.memory,
            counters: self.counters,
            end,
        }
    }

    /// A message with the last things said.
    fn broken(&self, what: &str) -> Broken {
        let mut message = what.to_owned();
        let console = String::from_utf8_lossy(&self.console);
        for (name, text) in [("console", &*console), ("errors", &self.errors)] {
            let last = last_lines(text);
            if !last.is_empty() {
                message += &format!("; last on its {name}: {last}");
            }
        }
        Broken::Failed(message)
    }
}

/// The last lines of a text, in one, printable.
pub(crate) fn last_lines(text: &str) -> String {
    const LINES: usize = 3;
    const WIDTH: usize = 300;
    let clean = |line: &str| line.chars().filter(|c| !c.is_control()).take(WIDTH).collect::<String>();
    let lines: Vec<_> = text.lines().map(|line| clean(line.trim())).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

fn find(bytes: &[u8], text: &[u8]) -> bool {
    !text.is_empty() && bytes.windows(text.len()).any(|part| part == text)
}

/// Reads both outputs on threads of their own, which end with the process.
fn listen(child: &mut Child) -> mpsc::Receiver<Heard> {
    let (sender, receiver) = mpsc::sync_channel(PIECES);
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
            let _ = sender.send(Heard::OutputEnd(Instant::now()));
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

    static GO: AtomicBool = AtomicBool::new(false);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    fn runner(millis: u64) -> Runner<'static> {
        let limit = Duration::from_millis(millis);
        Runner { core: host::choose_core(None).unwrap(), limit, stop: &GO }
    }

    fn run(script: &str, millis: u64, convention: Convention, watch: Watch<'_>) -> Result<Outcome, Broken> {
        runner(millis).process(shell(script), 1, convention, &watch).unwrap()
    }

    #[track_caller]
    fn failure(result: Result<Outcome, Broken>) -> String {
        match result {
            Err(Broken::Failed(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn milestones_are_found_across_writes_and_a_text_can_end_it() {
        let watch = Watch {
            milestones: &[("two", "tw-o"), ("never", "x")],
            look_at: Some("two"),
            until: Some("three"),
        };
        let script = "echo one; printf tw-; sleep 0.05; echo o; sleep 0.05; echo three; exec sleep 60";
        let outcome = run(script, 20_000, Convention::Worker, watch).unwrap();
        assert_eq!(outcome.console, "one\ntw-o\nthree\n");
        let names: Vec<_> = outcome.milestones.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, &outcome.end), (vec!["first byte", "two"], &End("cut".into())));
        let seconds: Vec<_> = outcome.milestones.iter().map(|(_, seconds)| *seconds).collect();
        assert!(seconds[0] + 0.04 < seconds[1] && seconds[1] + 0.04 < outcome.wall.as_secs_f64());
        assert!(outcome.memory.is_some_and(|memory| memory.peak > 0));
    }

    #[test]
    fn what_a_worker_says_is_read() {
        let script = format!("echo go; echo '{COUNTERS}{{\"n\":3}}' >&2; echo '{END}power-off' >&2");
        let outcome = run(&script, 20_000, Convention::Worker, Watch::EMPTY).unwrap();
        assert_eq!(outcome.counters, Some(serde_json::json!({ "n": 3 })));
        assert!(outcome.end.is_power_off());
    }

    #[test]
    fn ends_by_exit_status() {
        let end = |code: u8, convention| {
            run(&format!("echo x; exit {code}"), 20_000, convention, Watch::EMPTY)
                .map(|outcome| outcome.end.0)
        };
        assert_eq!(end(0, Convention::Qemu).unwrap(), "power-off or reset");
        assert_eq!(end(7, Convention::Qemu).unwrap(), "debug exit 3");
        assert_eq!(end(3, Convention::Native).unwrap(), "exit status 3");
        assert!(failure(end(2, Convention::Qemu).map(|_| unreachable!())).contains("exit status 2"));
        let silent = run("echo bad option >&2; exit 1", 20_000, Convention::Qemu, Watch::EMPTY);
        assert!(failure(silent).contains("bad option"));
        let off = End("power-off".into());
        assert!(End("power-off or reset".into()).agrees_with(&off) && off.agrees_with(&off));
        assert!(!off.agrees_with(&End("reset".into())) && !off.agrees_with(&End("debug exit 3".into())));
    }

    #[test]
    fn guests_that_end_early_never_or_talk_without_end_are_broken() {
        let early = failure(run("echo a; echo why >&2", 20_000, Convention::Worker, Watch::EMPTY));
        assert!(early.contains("exit status 0") && early.contains("why"), "{early}");
        let never = failure(run("echo b; exec sleep 60", 300, Convention::Worker, Watch::EMPTY));
        assert!(never.contains("did not end") && never.contains("--limit") && never.contains("b"), "{never}");
        let endless = failure(run("exec yes", 20_000, Convention::Worker, Watch::EMPTY));
        assert!(endless.contains("without end"), "{endless}");
        assert!(runner(300).native(Command::new("/nonexistent")).unwrap().is_err());
    }

    #[test]
    fn a_request_to_stop_is_heard() {
        static STOP: AtomicBool = AtomicBool::new(false);
        let runner = Runner { stop: &STOP, ..runner(20_000) };
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            STOP.store(true, Ordering::Relaxed);
        });
        let start = Instant::now();
        assert_eq!(runner.native(shell("exec sleep 60")).unwrap().unwrap_err(), Broken::Stopped);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    /// Whether there is such a process that has not ended.
    fn lives(pid: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Until the process has ended.
    fn await_end(pid: &str) {
        let start = Instant::now();
        while lives(pid) {
            assert!(start.elapsed() < Duration::from_secs(60), "it lives on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_a_process_has_started_ends_with_it() {
        let script = "sleep 3600 & echo $!; echo over; exec sleep 3600";
        let watch = Watch { until: Some("over"), ..Watch::EMPTY };
        let outcome = run(script, 60_000, Convention::Native, watch).unwrap();
        await_end(outcome.console.lines().next().unwrap());
    }

    #[test]
    fn the_kernel_kills_what_a_thread_has_started_that_ends() {
        let mut child = std::thread::spawn(|| {
            let mut command = shell("exec sleep 3600");
            host::dies_with_us(&mut command);
            command.spawn().unwrap()
        })
        .join()
        .unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
