//! The longer test of the JIT: Linux with much different work for as long as one wants.
//!
//! 1. The guest is Debian's kernel with both suites of [`guests::suite`] and busybox; [`SCRIPT`] is what it does: pieces
//!    of work in an order of each round's own, each of which checks its results.
//! 2. `gearshift run` runs it, by default with `--verify`, which compares translated blocks with the interpreter.
//! 3. [`Judge`] reads the console: what the script counts, and what the kernel complains of. [`Judge::verdict`] is the
//!    result together with gearshift's exit status.

mod judge;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use guests::initramfs::{Compression, Initramfs};
use guests::suite::{self, Program, Suite};

use crate::console::{self, Ending, say};
use crate::scripted::Scripted;
use judge::Judge;

/// Keep a Linux guest busy with work that checks itself, and compare translated code with the interpreter meanwhile
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How long the guest works
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    minutes: u64,
    /// Compare one block in N with the interpreter; 0 compares nothing. Only for jit with one vCPU [default: 500 there]
    #[arg(long, value_name = "N")]
    verify: Option<u64>,
    /// Number of vCPUs
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// What executes the guest, as for `gearshift run`
    #[arg(long, value_name = "NAME", default_value = "jit")]
    accel: String,
    /// Seed of the order of work; the time if not given
    #[arg(long)]
    seed: Option<u32>,
    /// The gearshift to test [default: built for release]
    #[arg(long, value_name = "FILE")]
    gearshift: Option<PathBuf>,
}

/// What the guest does.
const SCRIPT: &str = include_str!("script.sh");

/// Pieces of work that are functions of [`SCRIPT`].
const PIECES: [&str; 11] = [
    "digests",
    "tree",
    "archive",
    "bzip",
    "sorting",
    "text",
    "tmpfs",
    "pipes",
    "processes",
    "signals",
    "together",
];

/// A suite's class repeats its unit for this long.
const CLASS_MILLIS: u32 = 200;

/// More than the guest needs beyond its working time, to boot and to end its last piece of work.
const MARGIN: Duration = Duration::from_secs(600);

/// How often the first blocks of all are compared again, if nothing is said.
const VERIFY: u64 = 500;

/// Runs the guest and tells what came of it. Whether all is well.
#[expect(clippy::print_stdout, reason = "a command-line tool")]
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let seed = arguments.seed.unwrap_or_else(|| {
        let time = UNIX_EPOCH.elapsed().map_or(1, |time| time.as_secs());
        u32::try_from(time % 1_000_000_007).unwrap_or(1)
    });
    let guest = Scripted::prepare("stress", arguments.gearshift.as_deref(), |busybox| {
        initramfs(busybox, 60 * arguments.minutes, seed)
    })?;
    // Not "quiet": warnings are what is looked for.
    let mut command = guest.run(&arguments.accel, arguments.cpus, "console=ttyS0 panic=-1 oops=panic");
    command.args(options(arguments));
    say(&format!("seed {seed}: {command:?}"));
    let start = Instant::now();
    let limit = Duration::from_secs(60 * arguments.minutes) + MARGIN;
    let (judge, ending) = watch(command, limit)?;
    let complaints = judge.verdict(&ending);
    for (piece, count) in judge.counts() {
        println!("{count:6} {piece}");
    }
    for complaint in &complaints {
        println!("FAILED: {complaint}");
    }
    println!(
        "stress: {} pieces of work passed {} times, {} complaint(s); {} s, seed {seed}",
        judge.counts().filter(|(_, count)| *count > 0).count(),
        judge.passed(),
        complaints.len(),
        start.elapsed().as_secs()
    );
    Ok(complaints.is_empty())
}

/// The initial RAM disk, whose script works for `seconds`.
fn initramfs(busybox: &[u8], seconds: u64, seed: u32) -> Result<Vec<u8>> {
    let mut progress = |line: &str| say(line);
    let mut initramfs = Initramfs::new(busybox);
    let mut programs = Vec::new();
    for suite in Suite::ALL {
        let program = suite::build(suite, suite::source(), &mut progress)?;
        initramfs = program.add_to(initramfs)?;
        programs.push(program);
    }
    let script = script(&programs, seconds, seed)?;
    Ok(initramfs.script(&script).build(Compression::None))
}

/// [`SCRIPT`] behind the words that it needs.
fn script(programs: &[Program], seconds: u64, seed: u32) -> Result<String> {
    let mut head = format!(
        "SECONDS_TO_RUN={seconds}\nSEED={seed}\nMILLIS={CLASS_MILLIS}\nPIECES='{}'\n",
        PIECES.join(" ")
    );
    for program in programs {
        let classes: Vec<_> = program.classes()?.into_iter().map(|class| class.name).collect();
        let (command, names) = match program.suite {
            Suite::User => ("USER", "USER_CLASSES"),
            Suite::Libraries => ("LIBRARIES", "LIBRARY_CLASSES"),
        };
        head += &format!("{command}='{}'\n{names}='{}'\n", program.guest_command(), classes.join(" "));
    }
    Ok(head + SCRIPT)
}

/// What follows `gearshift`, but for the files.
fn options(arguments: &Arguments) -> Vec<String> {
    let checkable = arguments.accel == "jit" && arguments.cpus == 1;
    let verify = arguments.verify.unwrap_or(if checkable { VERIFY } else { 0 });
    let mut options = vec!["--stats".to_owned()];
    if verify > 0 {
        options.push(format!("--verify={verify}"));
    }
    options
}

/// Runs `command` for `limit` at most; its output, a console, is passed on and judged.
fn watch(mut command: Command, limit: Duration) -> Result<(Judge, Ending)> {
    let mut judge = Judge::default();
    let ending = console::watch(&mut command, limit, &mut |_, line| {
        say(line.trim_end());
        judge.line(line);
        ControlFlow::Continue(())
    })?;
    Ok((judge, ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> (Judge, Ending) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        watch(command, limit).unwrap()
    }

    #[test]
    fn each_piece_is_a_function_of_the_script() {
        for piece in PIECES {
            assert!(SCRIPT.contains(&format!("\n{piece}() {{")), "{piece}");
        }
    }

    /// Failures are what the judge does not know; so it has to know all else that the script tells it.
    #[test]
    fn the_judge_knows_what_the_script_says() {
        for (at, _) in SCRIPT.match_indices("echo \"STRESS ") {
            let line = SCRIPT[at + 6..].split('"').next().unwrap();
            let line = line.replace("$failed", "0").replace("$passed", "1").replace("$round", "1");
            let mut judge = Judge::default();
            if !line.contains(" pass ") {
                judge.line("STRESS pass x");
            }
            judge.line(&line);
            if !line.contains(" done ") {
                judge.line("STRESS done rounds 1 passed 1 failed 0");
            }
            assert_eq!(judge.verdict(&Ending::Exit(0)).is_empty(), !line.contains(" fail "), "{line}");
        }
    }

    #[test]
    fn what_runs_is_judged_by_its_console_and_its_end() {
        let console = "echo STRESS pass tree; echo STRESS done rounds 1 passed 1 failed 0";
        let (judge, ending) = shell(console, MARGIN);
        assert_eq!(judge.verdict(&ending), [""; 0]);
        let (judge, ending) = shell(&format!("{console}; exit 34"), MARGIN);
        assert_eq!(judge.verdict(&ending), ["gearshift ended with exit code 34"]);
        let (judge, ending) = shell(&format!("{console}; kill -SEGV $$"), MARGIN);
        assert!(judge.verdict(&ending)[0].contains("SIGSEGV"), "{ending:?}");
        let (judge, ending) = shell(&format!("{console}; exec sleep 1000"), Duration::from_millis(500));
        assert_eq!((judge.passed(), &ending), (1, &Ending::TimeLimit(0)));
        assert_eq!(judge.verdict(&ending).len(), 1);
    }

    #[test]
    fn blocks_are_compared_where_that_is_possible() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        for (line, expected) in [
            ("x", Some("--verify=500")),
            ("x --verify 7", Some("--verify=7")),
            ("x --verify 0", None),
            ("x --cpus 2", None),
            ("x --accel interp", None),
            // gearshift says why not.
            ("x --cpus 2 --verify 7", Some("--verify=7")),
        ] {
            let line: Line = clap::Parser::try_parse_from(line.split(' ')).unwrap();
            let options = options(&line.arguments);
            let verify = options.iter().find(|option| option.starts_with("--verify"));
            assert_eq!(verify.map(String::as_str), expected);
        }
    }
}
