//! Reboots by the thousand: Debian's kernel boots to its init, which reboots at once, in one process of `gearshift run`.
//!
//! A machine that starts again must not cost more than one that starts: threads and memory of the process are looked at behind
//! each boot. What the first boots touch (the JIT's caches, the guest's memory) is there from the tenth part on.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use guests::initramfs::{Compression, Initramfs};

use crate::console::{self, say};
use crate::scripted::Scripted;

/// Reboot the default guest many times in one process, and look whether memory or threads grow
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Boots
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(20..))]
    count: u32,
    /// What executes the guest, as for `gearshift run`
    #[arg(long, value_name = "NAME", default_value = "jit")]
    accel: String,
    /// Number of vCPUs
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// The gearshift to test [default: built for release]
    #[arg(long, value_name = "FILE")]
    gearshift: Option<PathBuf>,
}

/// What the guest says before it reboots.
const MARK: &str = "NOW-IT-REBOOTS";
/// Seconds that a boot may take, on the average.
const MOST_SECONDS: u64 = 60;
/// Most that memory may grow from the second tenth of the boots to the last, in percent.
const GROWTH: u64 = 5;

/// What a process uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Usage {
    /// Resident memory in KiB.
    rss: u64,
    threads: u64,
}

impl Usage {
    /// Of the process, by its `/proc/PID/status` (proc_pid_status(5)).
    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
        };
        Some(Self { rss: field("VmRSS")?, threads: field("Threads")? })
    }
}

/// Whether a process whose usage was `usages` behind each boot has not grown; else what has.
fn verdict(usages: &[Usage]) -> Result<(), String> {
    let tenth = usages.len() / 10;
    let mean = |part: &[Usage]| part.iter().map(|usage| usage.rss).sum::<u64>() / part.len().max(1) as u64;
    let (early, late) = (&usages[tenth..2 * tenth], &usages[usages.len() - tenth..]);
    let most = |part: &[Usage]| part.iter().map(|usage| usage.threads).max().unwrap_or(0);
    if most(late) > most(early) {
        return Err(format!("{} threads at last, {} at first", most(late), most(early)));
    }
    if mean(late) * 100 > mean(early) * (100 + GROWTH) {
        return Err(format!("{} KiB at last, {} KiB at first", mean(late), mean(early)));
    }
    Ok(())
}

/// Runs the guest. Whether nothing has grown.
#[expect(clippy::print_stdout, reason = "a command-line tool")]
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let script = format!("echo {MARK}\nreboot -f\n");
    let guest = Scripted::prepare("reboots", arguments.gearshift.as_deref(), |busybox| {
        Ok(Initramfs::new(busybox).script(&script).build(Compression::None))
    })?;
    let mut command = guest.run(&arguments.accel, arguments.cpus, "console=ttyS0 panic=-1 quiet");
    command.args(["--on-reset", "restart"]);
    say(&format!("{command:?}"));
    let started = Instant::now();
    let limit = Duration::from_secs(u64::from(arguments.count) * MOST_SECONDS);
    let mut usages = Vec::new();
    let mut failed = None;
    command.stderr(Stdio::null());
    let ending = console::watch(&mut command, limit, &mut |pid, line| {
        if line.contains(MARK) {
            match usage_of(pid) {
                Ok(usage) => usages.push(usage),
                Err(error) => failed = Some(error),
            }
        }
        match failed.is_some() || usages.len() as u32 == arguments.count {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    if usages.len() as u32 != arguments.count {
        bail!("the guest ended behind {} boots: {ending:?}", usages.len());
    }
    let seconds = started.elapsed().as_secs();
    let (first, last) = (usages[usages.len() / 10], usages[usages.len() - 1]);
    println!(
        "reboots: {} boots on {} with {} vCPU in {seconds} s; {} KiB and {} threads behind boot {}, {} KiB and {} at last",
        usages.len(),
        arguments.accel,
        arguments.cpus,
        first.rss,
        first.threads,
        usages.len() / 10 + 1,
        last.rss,
        last.threads,
    );
    if let Err(growth) = verdict(&usages) {
        println!("FAILED: {growth}");
        return Ok(false);
    }
    Ok(true)
}

/// What process `pid` uses now.
fn usage_of(pid: u32) -> Result<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Usage::parse(&status).context("no memory in /proc")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usages(rss: impl Fn(u64) -> u64, threads: impl Fn(u64) -> u64) -> Vec<Usage> {
        (0..100).map(|n| Usage { rss: rss(n), threads: threads(n) }).collect()
    }

    #[test]
    fn growth_is_seen() {
        assert_eq!(verdict(&usages(|n| 1000 + n % 7 * 10, |_| 5)), Ok(()));
        assert_eq!(
            verdict(&usages(|n| if n < 5 { 100 } else { 1000 }, |_| 5)),
            Ok(()),
            "caches fill at first"
        );
        let grown = verdict(&usages(|n| 1000 + n, |_| 5)).unwrap_err();
        assert_eq!(grown, "1094 KiB at last, 1014 KiB at first");
        assert_eq!(verdict(&usages(|_| 1000, |n| 5 + n / 50)).unwrap_err(), "6 threads at last, 5 at first");
    }

    #[test]
    fn the_kernel_tells_memory_and_threads() {
        let status = "Name:\tx\nVmRSS:\t    5124 kB\nThreads:\t7\n";
        assert_eq!(Usage::parse(status), Some(Usage { rss: 5124, threads: 7 }));
        assert_eq!(Usage::parse("Threads:\t7\n"), None);
    }
}
