//! The fuzz targets of `testkit` for longer than the test suite runs them.

use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use testkit::hostile::fuzz::TARGETS;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How long, all targets together
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// One target only
    #[arg(long)]
    target: Option<String>,
    /// Seed of all inputs; the time if not given
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs the interpreter's test of the targets, built for release, with its limits changed.
#[expect(clippy::print_stderr, reason = "a command-line tool")]
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    if let Some(target) = &arguments.target {
        ensure!(
            names.contains(&target.as_str()),
            "no target is called {target:?}; there are {}",
            names.join(", ")
        );
    }
    let seed = arguments.seed.unwrap_or_else(|| UNIX_EPOCH.elapsed().map_or(1, |time| time.as_secs()));
    eprintln!("seed {seed}");
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--release", "--package", "accel-interp", "--test", "fuzz", "--", "--nocapture"]);
    command.env("FUZZ_SECONDS", (60 * arguments.minutes).to_string()).env("FUZZ_SEED", seed.to_string());
    if let Some(target) = &arguments.target {
        command.env("FUZZ_TARGET", target);
    }
    ensure!(command.status().context("cannot run cargo")?.success(), "a target failed (seed {seed})");
    Ok(())
}
