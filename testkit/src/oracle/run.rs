//! Runs many cases and reports.

use std::collections::BTreeMap;
use std::fmt;

use iced_x86::{Code, Instruction};
use x86_core::exec;

use super::case::{Case, CodeSize, End, Outcome, START, STUB, STUB_SIZE, seg};
use super::compare::{Difference, differences, inputs, undefined_differ};
use super::generate::Generator;
use super::generation::Processor;
use super::known::{Situation, known, known_elsewhere};
use super::minimise::minimise;
use super::native::{Native, Unavailable};
use super::rng::Rng;
use super::select;
use super::soft::{Backend, Soft};
use super::verdict::Verdict;

/// Cases between two calls of [`Config::progress`].
const PROGRESS: u64 = 1_000_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Seed of everything.
    pub seed: u64,
    /// Number of cases to execute.
    pub cases: u64,
    /// Run the case of this number only.
    pub only: Option<u64>,
    /// Only instructions whose iced `Code` contains this, whatever the letters' case.
    pub filter: Option<String>,
    /// Only code of this size.
    pub size: Option<CodeSize>,
    /// Which part of the cases: those whose number leaves the first when divided by the second. Parts run in processes
    /// of their own, as the addresses natively used belong to a process.
    pub shard: (u64, u64),
    /// Told now and then how many cases have run.
    pub progress: Option<fn(u64)>,
    /// Flags that the manual leaves undefined count, too.
    pub strict: bool,
    /// What executes the software's side, by its accelerator's name; single steps if it is not given.
    pub accel: Option<(&'static str, Backend)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 1,
            cases: 200_000,
            only: None,
            filter: None,
            size: None,
            strict: false,
            accel: None,
            shard: (0, 1),
            progress: None,
        }
    }
}

/// A case on which the two do not agree.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Number of the case under the run's seed.
    pub index: u64,
    /// The run's seed.
    pub seed: u64,
    /// Name of the accelerator, if it was not single steps.
    pub accel: Option<&'static str>,
    /// The case with everything taken away that does not matter.
    pub case: Case,
    /// What differs then.
    pub differences: Vec<Difference>,
    /// Cases of the same instruction that differ.
    pub count: u64,
    /// The accelerator departs from single steps, so that it is no matter of processors.
    pub ours: bool,
    /// What the table has for other processors, if that is what is seen here.
    pub elsewhere: Vec<&'static str>,
}

/// What a run found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The processor it ran on.
    pub processor: Processor,
    /// Seed of the run.
    pub seed: u64,
    /// Cases executed on both sides.
    pub cases: u64,
    /// Sizes of code that cannot be run here, and why.
    pub unavailable: Vec<(CodeSize, String)>,
    /// Cases by instruction and size of code; `INVALID` counts byte strings that are none.
    pub coverage: BTreeMap<(Code, CodeSize), u64>,
    /// Instructions that were selected and have no semantics.
    pub missing: Vec<Code>,
    /// The first finding of each instruction.
    pub findings: BTreeMap<String, Finding>,
    /// Cases by reason of [`super::known`]; a case may have several.
    pub known: BTreeMap<&'static str, u64>,
    /// Cases in which only undefined flags differ, by instruction.
    pub undefined: BTreeMap<String, u64>,
}

/// What became of a case.
pub(super) struct Compared {
    /// What differs.
    pub found: Vec<Difference>,
    /// Whether undefined flags do.
    pub undefined: bool,
    /// Both came to the instruction's end.
    pub finished: bool,
    /// The executor departs from single steps.
    pub ours: bool,
}

/// Both processors.
pub(super) struct Pair {
    /// What is compared instead of single steps. Before `native`, which gives back all memory below 4 GiB.
    executor: Option<Soft>,
    native: Native,
    soft: Soft,
    /// Makes executors.
    backend: Option<Box<dyn Fn() -> Soft>>,
}

impl Pair {
    /// Runs `case` on both.
    pub(super) fn compare(&mut self, ins: &Instruction, case: &Case) -> Compared {
        let soft = self.soft.run(case);
        if comes_back(case, &soft) {
            return Compared { found: Vec::new(), undefined: false, finished: false, ours: false };
        }
        let mut ours = false;
        let soft = match &self.backend {
            // What would not end there would not end here.
            Some(make) if soft.end != End::Hang => {
                let executor = &mut self.executor;
                let by_executor = self.native.stand_aside(|| {
                    let usable = executor.take().filter(|e| !e.used_up());
                    executor.insert(usable.unwrap_or_else(make)).run(case)
                });
                let by_executor = with_stale_flags(by_executor, &soft);
                ours = !differences(ins, case, &soft, &by_executor).is_empty();
                by_executor
            }
            _ => soft,
        };
        let native = self.native.run(case);
        Compared {
            found: differences(ins, case, &native, &soft),
            undefined: undefined_differ(ins, &native, &soft),
            finished: native.end == End::Done && soft.end == End::Done,
            ours,
        }
    }
}

/// At a fault, flags that the instruction would have set anew may have been lost.
fn with_stale_flags(mut outcome: Outcome, exact: &Outcome) -> Outcome {
    if matches!(outcome.end, End::Fault(_)) && outcome.end == exact.end {
        let lost = x86_core::alu::flag::ARITH;
        outcome.state.rflags = outcome.state.rflags & !lost | exact.state.rflags & lost;
    }
    outcome
}

/// Whether a branch has led back to the instruction, or to the stub: on the host other code would run on.
fn comes_back(case: &Case, soft: &Outcome) -> bool {
    let landed = soft.state.base(seg::CS).wrapping_add(soft.state.rip);
    let instruction = START..START + case.bytes.len() as u64;
    soft.end == End::Done
        && (instruction.contains(&landed) || (STUB..STUB + STUB_SIZE as u64).contains(&landed))
}

/// Runs the cases of `config`.
///
/// # Errors
/// The host does not let us run instructions natively.
pub fn run(config: &Config) -> Result<Report, Unavailable> {
    let features = select::features();
    let codes: Vec<(CodeSize, Code)> = CodeSize::ALL
        .into_iter()
        .flat_map(|size| select::codes(&features, size).into_iter().map(move |code| (size, code)))
        .collect();
    let mut native = Native::new()?;
    let mut report = Report::new(Processor::host(), config.seed);
    for size in CodeSize::ALL {
        if let Err(reason) = native.enable(size) {
            report.unavailable.push((size, reason.to_string()));
        }
    }
    if config.accel.is_some() {
        native.leave_room();
    }
    // Code of 16 and 32 bits and the LDT come together.
    let ldt = report.unavailable.is_empty();
    let backend = config
        .accel
        .map(|(_, b)| Box::new(move || Soft::new(features, ldt, Some(b))) as Box<dyn Fn() -> Soft>);
    let mut pair = Pair { native, soft: Soft::new(features, ldt, None), backend, executor: None };
    let mut generator = Generator::new(ldt);
    let possible = |size: CodeSize| {
        config.size.is_none_or(|only| only == size) && report.unavailable.iter().all(|(not, _)| *not != size)
    };
    let wanted: Vec<bool> =
        codes.iter().map(|&(size, code)| possible(size) && matches(config, code)).collect();
    report.missing = codes
        .iter()
        .zip(&wanted)
        .filter(|((_, c), w)| **w && !is_defined(*c))
        .map(|((_, c), _)| *c)
        .collect();
    report.missing.sort_unstable();
    report.missing.dedup();
    let defined: Vec<bool> = codes.iter().zip(&wanted).map(|(&(_, c), w)| *w && is_defined(c)).collect();
    let (part, parts) = config.shard;
    let (first, last) = match config.only {
        Some(index) => (index, index.saturating_add(1)),
        None => (part, u64::MAX),
    };
    if !defined.contains(&true) {
        return Ok(report);
    }
    let mut counts = vec![0u64; Code::values().len() * CodeSize::ALL.len()];
    for index in (first..last).step_by(parts.max(1) as usize) {
        if report.cases >= config.cases {
            break;
        }
        let mut rng = Rng::new(config.seed, index);
        let choice = rng.below(codes.len() as u64) as usize;
        if !defined[choice] {
            continue;
        }
        let (size, code) = codes[choice];
        let Some(case) = generator.case(&mut rng, code, size) else { continue };
        let ins = case.decode();
        // Prefixes and flipped bits can make another instruction of it.
        let wanted = select::selected(ins.code(), size, &features) && is_defined(ins.code());
        if !wanted && !ins.is_invalid() {
            continue;
        }
        let name = || format!("{:?}/{}", ins.code(), size.bitness());
        report.cases += 1;
        if let Some(progress) = config.progress.filter(|_| report.cases.is_multiple_of(PROGRESS)) {
            progress(report.cases);
        }
        let Compared { found, undefined, finished, ours } = pair.compare(&ins, &case);
        counts[ins.code() as usize * CodeSize::ALL.len() + size as usize] += 1;
        if undefined {
            *report.undefined.entry(name()).or_default() += 1;
        }
        let found = if found.is_empty() && undefined && config.strict {
            vec![Difference { what: "undefined flags".into(), native: String::new(), soft: String::new() }]
        } else {
            found
        };
        if found.is_empty() {
            continue;
        }
        let situation = Situation { ins: &ins, case: &case, found: &found, finished };
        if let Some(reasons) = known(&report.processor, &situation) {
            for reason in reasons {
                *report.known.entry(reason).or_default() += 1;
            }
            continue;
        }
        match report.findings.get_mut(&name()) {
            Some(finding) => {
                finding.count += 1;
                finding.ours |= ours;
            }
            None => {
                let elsewhere = known_elsewhere(&situation).unwrap_or_default();
                let (case, differences) = minimise(&mut pair, &ins, case, found);
                let accel = config.accel.map(|(name, _)| name);
                let seed = config.seed;
                let finding = Finding { index, seed, accel, case, differences, count: 1, ours, elsewhere };
                report.findings.insert(name(), finding);
            }
        }
    }
    for code in Code::values() {
        for size in CodeSize::ALL {
            let count = counts[code as usize * CodeSize::ALL.len() + size as usize];
            if count != 0 {
                report.coverage.insert((code, size), count);
            }
        }
    }
    Ok(report)
}

pub(super) fn is_defined(code: Code) -> bool {
    exec::is_defined(code) || select::always_undefined(code)
}

fn matches(config: &Config, code: Code) -> bool {
    let Some(filter) = &config.filter else { return true };
    format!("{code:?}").to_lowercase().contains(&filter.to_lowercase())
}

impl Finding {
    fn text(&self) -> String {
        let state = &self.case.state;
        crate::asm::disassemble(state.size().bitness(), state.rip, &self.case.bytes)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<_> = self.case.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(f, "{}    {}", bytes.join(" "), self.text())?;
        for line in inputs(&self.case) {
            writeln!(f, "    {line}")?;
        }
        for Difference { what, native, soft } in &self.differences {
            writeln!(f, "  {what}: host {native}, software {soft}")?;
        }
        for reason in &self.elsewhere {
            writeln!(f, "  as other processors do: {reason}")?;
        }
        if self.ours {
            writeln!(
                f,
                "  single steps do otherwise: an error of the accelerator, whatever the processor is"
            )?;
        }
        let accel = self.accel.map(|name| format!("--accel {name} ")).unwrap_or_default();
        writeln!(
            f,
            "  {} case(s); again: cargo xtask oracle {accel}--seed {} --case {}",
            self.count, self.seed, self.index
        )
    }
}

impl Report {
    fn new(processor: Processor, seed: u64) -> Self {
        Self {
            processor,
            seed,
            cases: 0,
            unavailable: Vec::new(),
            coverage: BTreeMap::new(),
            missing: Vec::new(),
            findings: BTreeMap::new(),
            known: BTreeMap::new(),
            undefined: BTreeMap::new(),
        }
    }

    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        let ours = self.findings.values().any(|finding| finding.ours);
        Verdict::of(self.processor.is_compared(), self.findings.len(), self.coverage.len(), ours)
    }

    /// What was selected and did not run, a line each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self
            .unavailable
            .iter()
            .map(|(size, reason)| format!("NOT RUN: code of {} bits: {reason}", size.bitness()))
            .collect();
        if !self.missing.is_empty() {
            let list: Vec<_> = self.missing.iter().map(|code| format!("{code:?}")).collect();
            notes.push(format!("missing ({}): {}", list.len(), list.join(" ")));
        }
        notes
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, finding) in &self.findings {
            write!(f, "{name}: {finding}")?;
        }
        for (reason, count) in &self.known {
            writeln!(f, "known: {count} case(s): {reason}")?;
        }
        if !self.undefined.is_empty() {
            let list: Vec<_> = self.undefined.iter().map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(f, "undefined flags differ: {}", list.join(", "))?;
        }
        for note in self.notes() {
            writeln!(f, "{note}")?;
        }
        let fewest = self.coverage.values().min().copied().unwrap_or(0);
        writeln!(
            f,
            "{}: {} cases of {} instructions (seed {}, at least {fewest} each): {} instruction(s) differ",
            self.processor,
            self.cases,
            self.coverage.len(),
            self.seed,
            self.findings.len()
        )
    }
}
