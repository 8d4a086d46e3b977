//! The instruction oracle of `testkit` as a task.
//!
//! Natively a case runs at fixed addresses, which belong to a process. So each job is a process: this program again,
//! with a part of the cases (`--shard`), telling what it found in JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs, thread};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use testkit::oracle::case::CodeSize;
use testkit::oracle::coverage::{self, Tested};
use testkit::oracle::{Config, FINDING, Report, Verdict};

use crate::cargo;

/// Exit code of a run that found something on a processor which the oracle does not know.
pub(crate) const FOUND: u8 = 4;

#[derive(Debug, Args)]
#[command(
    after_help = "Ends with 0 if nothing differs but what is known to, with 1 if the software CPU is wrong, and \
                        with 4 if something differs on a processor that the oracle has not been compared with before: \
                        a finding to be looked at (docs/cpu.md)."
)]
pub(crate) struct Arguments {
    /// Seed of everything; the same seed gives the same cases on processors with the same features
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run them on this accelerator: interp or jit. Without it single instructions are executed by their functions
    #[arg(long, value_name = "NAME", conflicts_with_all = ["coverage", "write_docs"])]
    accel: Option<Backend>,
    /// How many cases to run
    #[arg(long, default_value_t = 1_000_000)]
    cases: u64,
    /// How many processes run them; as many as there are processors if not given
    #[arg(long)]
    jobs: Option<u64>,
    /// Run one case only, that of this number
    #[arg(long)]
    case: Option<u64>,
    /// Only instructions with this in their name, as iced spells them (for example "rol_rm32")
    #[arg(long)]
    filter: Option<String>,
    /// Only code of this many bits: 16, 32 or 64
    #[arg(long)]
    bits: Option<u32>,
    /// Compare flags that the manual leaves undefined, too
    #[arg(long)]
    strict: bool,
    /// List every instruction of the CPU models with the number of its cases, or what tests it instead
    #[arg(long)]
    coverage: bool,
    /// Bring the summary of what is covered in docs/cpu.md up to date, and do nothing else
    #[arg(long)]
    write_docs: bool,
    /// Run this part of the cases: number and count
    #[arg(long, hide = true, num_args = 2)]
    shard: Option<Vec<u64>>,
}

/// An accelerator that executes instructions itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Backend {
    Interp,
    /// Code of 64 bits, unless --bits says otherwise; the other is interpreted
    Jit,
}

impl Backend {
    /// Its package, which has the oracle as a test.
    fn package(self) -> &'static str {
        match self {
            Self::Interp => "accel-interp",
            Self::Jit => "accel-dynasm",
        }
    }
}

/// What one process found.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    /// The processor, in words.
    processor: String,
    /// Whether the oracle has been compared with it.
    compared: bool,
    cases: u64,
    /// Cases by instruction and size of code.
    coverage: BTreeMap<String, u64>,
    /// Text of the first finding and number of cases, by instruction.
    findings: BTreeMap<String, (String, u64)>,
    known: BTreeMap<String, u64>,
    undefined: BTreeMap<String, u64>,
    notes: Vec<String>,
}

impl Part {
    fn new(report: &Report) -> Self {
        let name = |(code, size): &(_, CodeSize)| format!("{code:?}/{}", size.bitness());
        Self {
            processor: report.processor.to_string(),
            compared: report.processor.is_compared(),
            cases: report.cases,
            coverage: report.coverage.iter().map(|(key, count)| (name(key), *count)).collect(),
            findings: report
                .findings
                .iter()
                .map(|(name, finding)| (name.clone(), (finding.to_string(), finding.count)))
                .collect(),
            known: report.known.iter().map(|(reason, count)| (reason.to_string(), *count)).collect(),
            undefined: report.undefined.clone(),
            notes: report.notes(),
        }
    }

    fn add(&mut self, other: Part) {
        self.cases += other.cases;
        for (mine, theirs) in [
            (&mut self.coverage, other.coverage),
            (&mut self.known, other.known),
            (&mut self.undefined, other.undefined),
        ] {
            for (name, count) in theirs {
                *mine.entry(name).or_default() += count;
            }
        }
        for (name, (text, count)) in other.findings {
            self.findings.entry(name).or_insert((text, 0)).1 += count;
        }
        // The same for all.
        self.notes = other.notes;
    }
}

/// Runs what `arguments` ask for.
#[expect(clippy::print_stdout, reason = "a command-line tool")]
pub(crate) fn run(arguments: &Arguments) -> Result<Verdict> {
    if arguments.write_docs {
        return write_docs();
    }
    if let Some(shard) = &arguments.shard {
        let report = report(arguments, (shard[0], shard[1]))?;
        println!("{}", serde_json::to_string(&Part::new(&report))?);
        return Ok(Verdict::Same);
    }
    let jobs = match (arguments.case, arguments.jobs) {
        (Some(_), _) => 1,
        (None, Some(jobs)) => jobs.max(1),
        (None, None) => thread::available_parallelism()?.get() as u64,
    };
    if let Some(backend) = arguments.accel {
        return on_backend(arguments, backend, jobs);
    }
    let start = Instant::now();
    let part =
        if jobs == 1 { Part::new(&report(arguments, (0, 1))?) } else { in_processes(arguments, jobs)? };
    if arguments.coverage {
        list(&part);
    }
    for (name, (finding, count)) in &part.findings {
        print!("{name}: {finding}");
        println!("  {count} case(s) in all");
    }
    for (reason, count) in &part.known {
        println!("known: {count} case(s): {reason}");
    }
    if !part.undefined.is_empty() {
        let list: Vec<_> = part.undefined.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("undefined flags differ: {}", list.join(", "));
    }
    for note in &part.notes {
        println!("{note}");
    }
    let fewest = part.coverage.values().min().copied().unwrap_or(0);
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}: {} cases of {} instructions (seed {}, at least {fewest} each) in {seconds:.1} s, {:.0} a second: \
         {} instruction(s) differ",
        part.processor,
        part.cases,
        part.coverage.len(),
        arguments.seed,
        part.cases as f64 / seconds,
        part.findings.len()
    );
    let verdict = Verdict::of(part.compared, part.findings.len(), part.coverage.len(), false);
    if verdict == Verdict::Found {
        println!("{FINDING}the oracle has not been compared with this processor: see docs/cpu.md");
    }
    Ok(verdict)
}

/// The size of code that was asked for.
fn size(bits: Option<u32>) -> Result<Option<CodeSize>> {
    let size = CodeSize::ALL.into_iter().find(|size| bits == Some(size.bitness()));
    ensure!(bits.is_none() || size.is_some(), "code has 16, 32 or 64 bits");
    Ok(size)
}

/// How many cases process `job` of `jobs` runs.
fn share(cases: u64, job: u64, jobs: u64) -> u64 {
    cases / jobs + u64::from(job < cases % jobs)
}

/// Runs the oracle that is a test of the accelerator, which this program may not know itself.
#[expect(clippy::print_stderr, reason = "a command-line tool")]
fn on_backend(arguments: &Arguments, backend: Backend, jobs: u64) -> Result<Verdict> {
    size(arguments.bits)?;
    let package = backend.package();
    let built = cargo::executables(&["test", "--no-run", "--package", package, "--test", "oracle"])?;
    let test = built.iter().find(|program| program.test && program.name == "oracle");
    let test = test.with_context(|| format!("{package} has no test called oracle"))?;
    let mut children = Vec::new();
    for job in 0..jobs {
        let mut command = Command::new(&test.path);
        command.arg("--nocapture").env("ORACLE_REQUIRED", "1");
        command.env("ORACLE_SEED", arguments.seed.to_string());
        command.env("ORACLE_CASES", share(arguments.cases, job, jobs).to_string());
        command.env("ORACLE_SHARD", format!("{job}/{jobs}"));
        command.env("ORACLE_STRICT", arguments.strict.to_string());
        let chosen = [
            ("ORACLE_CASE", arguments.case.map(|n| n.to_string())),
            ("ORACLE_BITS", arguments.bits.map(|n| n.to_string())),
            ("ORACLE_FILTER", arguments.filter.clone()),
        ];
        for (name, value) in chosen {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        children.push(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?);
    }
    let mut verdict = Verdict::Same;
    for child in children {
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        eprint!("{text}");
        verdict = verdict.max(match output.status.success() {
            false => Verdict::Wrong,
            true if text.lines().any(|line| line.contains(FINDING)) => Verdict::Found,
            true => Verdict::Same,
        });
    }
    Ok(verdict)
}

fn report(arguments: &Arguments, shard: (u64, u64)) -> Result<Report> {
    let Arguments { seed, cases, case, bits, strict, .. } = *arguments;
    let size = size(bits)?;
    let filter = arguments.filter.clone();
    let progress = Some(progress as fn(u64)).filter(|_| shard.0 == 0);
    let config = Config { seed, cases, only: case, filter, size, strict, shard, progress, accel: None };
    testkit::oracle::run(&config).context("this host cannot run instructions natively")
}

/// Of the first process; the others are about as far.
#[expect(clippy::print_stderr, reason = "a command-line tool")]
fn progress(cases: u64) {
    if cases.is_multiple_of(5_000_000) {
        eprintln!("{} million cases in the first process", cases / 1_000_000);
    }
}

fn in_processes(arguments: &Arguments, jobs: u64) -> Result<Part> {
    let mut children = Vec::new();
    for job in 0..jobs {
        let cases = share(arguments.cases, job, jobs);
        let mut command = Command::new(env::current_exe()?);
        command.arg("oracle").args(["--seed", &arguments.seed.to_string(), "--cases", &cases.to_string()]);
        command.args(["--shard", &job.to_string(), &jobs.to_string()]);
        if let Some(filter) = &arguments.filter {
            command.args(["--filter", filter]);
        }
        if let Some(bits) = arguments.bits {
            command.args(["--bits", &bits.to_string()]);
        }
        if arguments.strict {
            command.arg("--strict");
        }
        children.push(command.stdout(Stdio::piped()).spawn().context("cannot start a process")?);
    }
    let mut all: Option<Part> = None;
    for (job, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("the process with part {job} ended with {}", output.status);
        }
        let part: Part = serde_json::from_slice(&output.stdout).context("a process told nothing sensible")?;
        match &mut all {
            Some(all) => all.add(part),
            None => all = Some(part),
        }
    }
    all.context("no process ran")
}

#[expect(clippy::print_stdout, reason = "a command-line tool")]
fn list(part: &Part) {
    for size in CodeSize::ALL {
        let bits = size.bitness();
        for (code, tested) in coverage::instructions(size) {
            let name = format!("{code:?}/{bits}");
            match tested {
                Tested::Natively => println!("{:8} {name}", part.coverage.get(&name).unwrap_or(&0)),
                Tested::ByTable(why) => {
                    println!("   table {name}: {}; {} in {}", why.reason, why.test.1, why.test.0);
                }
                Tested::Missing => println!(" missing {name}"),
            }
        }
    }
}

fn write_docs() -> Result<Verdict> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/cpu.md");
    let text = fs::read_to_string(&path).context("cannot read docs/cpu.md")?;
    let text = coverage::with_summary(&text).context("docs/cpu.md lacks the markers of the summary")?;
    fs::write(&path, text).context("cannot write docs/cpu.md")?;
    Ok(Verdict::Same)
}
