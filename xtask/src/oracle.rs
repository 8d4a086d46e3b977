//! The instruction oracle of `testkit` as a task.

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use testkit::oracle::case::CodeSize;
use testkit::oracle::{Config, Report};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Seed of everything; the same seed gives the same cases on processors with the same features
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many cases to run
    #[arg(long, default_value_t = 1_000_000)]
    cases: u64,
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
    /// List how many cases each instruction had
    #[arg(long)]
    coverage: bool,
}

#[expect(clippy::print_stdout, reason = "a command-line tool")]
pub(crate) fn run(arguments: Arguments) -> Result<Report> {
    let Arguments { seed, cases, case, filter, bits, strict, coverage } = arguments;
    let size = CodeSize::ALL.into_iter().find(|size| bits == Some(size.bitness()));
    ensure!(bits.is_none() || size.is_some(), "code has 16, 32 or 64 bits");
    let config = Config { seed, cases, only: case, filter, size, strict };
    let report = testkit::oracle::run(&config).context("this host cannot run instructions natively")?;
    if coverage {
        for (name, count) in &report.coverage {
            println!("{count:8} {name}");
        }
    }
    Ok(report)
}
