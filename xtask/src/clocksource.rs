//! Whether Linux keeps the time-stamp counter as its clock: boots of Debian's kernel with several vCPUs.
//!
//! 1. When Linux starts a vCPU it compares its counter with that of the one before, in turn and for some milliseconds. One
//!    reading that goes back ("TSC warp") and the counter is given up for good. From then on a watchdog compares it with
//!    another clock twice a second.
//! 2. Which readings meet is chance, so each case is booted many times, on an idle host and on one whose processors have
//!    more to do than they can ([`Load`]).
//! 3. The guest waits for some rounds of the watchdog and tells which clock it has ([`SCRIPT`]). [`Boot`] reads its console.

use std::fmt;
use std::hint;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use guests::initramfs::{Compression, Initramfs};

use crate::console::{self, Ending, say};
use crate::scripted::Scripted;

/// Boot Debian's kernel with several vCPUs, many times, and see that it keeps tsc as its clock
///
/// Each case (accelerator, number of vCPUs, load of the host) is booted so many times, and has a line on standard output. The
/// exit status is 0 if every boot of every case has kept tsc, and 1 if one has lost it or has not come to its end.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Arguments {
    /// Boots of each case
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    boots: u32,
    /// Numbers of vCPUs
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_values_t = [2, 4, 8])]
    cpus: Vec<u32>,
    /// What executes the guest, as for `gearshift run`
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_values_t = ["jit", "interp"].map(str::to_owned))]
    accel: Vec<String>,
    /// What else the host has to do
    #[arg(long, value_name = "LOAD,...", value_delimiter = ',', default_values_t = [Load::Quiet, Load::Loaded])]
    host: Vec<Load>,
    /// Seconds that a boot may take
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// The gearshift to test [default: built for release]
    #[arg(long, value_name = "FILE")]
    gearshift: Option<PathBuf>,
}

/// What the host has to do besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Load {
    /// Nothing of ours
    Quiet,
    /// Two threads for each of its processors that compute all the time
    Loaded,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Quiet => "quiet",
            Self::Loaded => "loaded",
        })
    }
}

/// Threads of [`Load::Loaded`] for each processor of the host.
const BURNERS: usize = 2;

/// What the guest does: [`Boot`] knows its words. The watchdog looks every half second. What the kernel said and the console
/// did not show is shown now.
const SCRIPT: &str = "sleep 2
echo CLOCKSOURCE $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
echo PROCESSORS $(nproc)
dmesg | grep -i -e tsc -e clocksource
";

/// Parts of lines by which the kernel gives a counter up (arch/x86/kernel/tsc_sync.c, kernel/time/clocksource.c), and of
/// those with the numbers.
const REASONS: [&str; 4] = ["TSC warp", "unstable", "wd_nsec:", "cs_nsec:"];
/// Numbers of a comparison that was left out, because the guest was kept from making it in time.
const SKIPPED: &str = "skipping watchdog check";

/// What a boot's console says.
#[derive(Debug, Default)]
struct Boot {
    clock: Option<String>,
    processors: Option<u32>,
    /// Lines of the kernel's that tell why.
    reasons: Vec<String>,
    /// Its last line.
    last: String,
}

/// What came of a boot.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Kept,
    /// The clock it has instead, and why.
    Lost(String),
    /// It did not tell.
    Silent(String),
}

impl Boot {
    fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(clock) = line.strip_prefix("CLOCKSOURCE ") {
            self.clock = Some(clock.to_owned());
        } else if let Some(number) = line.strip_prefix("PROCESSORS ") {
            self.processors = number.parse().ok();
        } else if REASONS.iter().any(|reason| line.contains(reason))
            && !line.contains(SKIPPED)
            && !self.reasons.iter().any(|known| known == line)
        {
            self.reasons.push(line.to_owned());
        }
        if !line.is_empty() {
            line.clone_into(&mut self.last);
        }
    }

    /// What came of it, with so many vCPUs.
    fn outcome(&self, ending: &Ending, cpus: u32) -> Outcome {
        let reasons = || self.reasons.iter().map(|line| format!("; {line}")).collect::<String>();
        match (&self.clock, self.processors) {
            (Some(clock), Some(number)) if clock == "tsc" && number == cpus && self.reasons.is_empty() => {
                if *ending == Ending::Exit(0) {
                    Outcome::Kept
                } else {
                    Outcome::Silent(format!("{ending:?}"))
                }
            }
            (Some(_), Some(number)) if number != cpus => {
                Outcome::Silent(format!("{number} processors came up{}", reasons()))
            }
            (Some(clock), Some(_)) => Outcome::Lost(format!("its clock is {clock}{}", reasons())),
            _ => Outcome::Silent(format!("{ending:?}, last line {:?}{}", self.last, reasons())),
        }
    }
}

/// Threads that compute as long as this lives.
#[derive(Debug)]
struct Burners {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Burners {
    fn start(load: Load) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let number = if load == Load::Loaded { BURNERS * processors } else { 0 };
        let over = Arc::new(AtomicBool::new(false));
        let burn = |over: Arc<AtomicBool>| {
            move || {
                while !over.load(Ordering::Relaxed) {
                    hint::spin_loop();
                }
            }
        };
        let threads = (0..number).map(|_| thread::spawn(burn(over.clone()))).collect();
        Self { over, threads }
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // They have nothing to tell.
            let _ = thread.join();
        }
    }
}

/// What came of several boots.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    kept: u32,
    lost: u32,
    silent: u32,
}

impl Count {
    fn boots(self) -> u32 {
        self.kept + self.lost + self.silent
    }

    fn add(&mut self, other: Self) {
        self.kept += other.kept;
        self.lost += other.lost;
        self.silent += other.silent;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} boots kept tsc", self.kept, self.boots())?;
        if self.lost > 0 {
            write!(f, ", {} LOST it", self.lost)?;
        }
        if self.silent > 0 {
            write!(f, ", {} FAILED", self.silent)?;
        }
        Ok(())
    }
}

/// Boots all and tells what came of it. Whether all have kept tsc.
#[expect(clippy::print_stdout, reason = "a command-line tool")]
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let guest = Scripted::prepare("clocksource", arguments.gearshift.as_deref(), |busybox| {
        Ok(Initramfs::new(busybox).script(SCRIPT).build(Compression::None))
    })?;
    let start = Instant::now();
    let (mut all, mut cases) = (Count::default(), 0);
    for accel in &arguments.accel {
        for &cpus in &arguments.cpus {
            for &load in &arguments.host {
                let case = Case { guest: &guest, accel, cpus, load };
                let begun = Instant::now();
                let count = case.run(arguments.boots, Duration::from_secs(arguments.timeout))?;
                println!("{case}: {count}; {} s", begun.elapsed().as_secs());
                all.add(count);
                cases += 1;
            }
        }
    }
    println!("clocksource: {cases} cases, {all}; {} s", start.elapsed().as_secs());
    Ok(all.kept == all.boots())
}

/// What is booted several times.
struct Case<'a> {
    guest: &'a Scripted,
    accel: &'a str,
    cpus: u32,
    load: Load,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6} {} vCPUs, {:6}", self.accel, self.cpus, self.load)
    }
}

impl Case<'_> {
    fn run(&self, boots: u32, limit: Duration) -> Result<Count> {
        let _burners = Burners::start(self.load);
        let mut count = Count::default();
        for n in 1..=boots {
            let mut boot = Boot::default();
            let ending = console::watch(&mut self.command(), limit, &mut |_, line| {
                boot.line(line);
                ControlFlow::Continue(())
            })?;
            let (slot, what) = match boot.outcome(&ending, self.cpus) {
                Outcome::Kept => (&mut count.kept, None),
                Outcome::Lost(why) => (&mut count.lost, Some(format!("LOST tsc: {why}"))),
                Outcome::Silent(why) => (&mut count.silent, Some(format!("FAILED: {why}"))),
            };
            *slot += 1;
            if let Some(what) = what {
                say(&format!("{self}, boot {n}: {what}"));
            }
        }
        Ok(count)
    }

    fn command(&self) -> Command {
        // Not "quiet" for dmesg's sake alone: a line of the console could break one of the script's.
        self.guest.run(self.accel, self.cpus, "console=ttyS0 quiet panic=-1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(console: &str, ending: Ending) -> Outcome {
        let mut boot = Boot::default();
        console.lines().for_each(|line| boot.line(line));
        boot.outcome(&ending, 2)
    }

    const KEPT: &str =
        "INIT-REACHED uptime: 0.80\r\nCPUS 2\r\nCLOCKSOURCE tsc\r\nPROCESSORS 2\r\nGUEST-DONE status: 1\r\n";

    #[test]
    fn a_boot_that_keeps_it_is_told_from_others() {
        assert_eq!(outcome(KEPT, Ending::Exit(0)), Outcome::Kept);
        // As Linux says it: when the second counter is compared, by the watchdog, and after it has given up.
        for reason in [
            "[    0.2] Measured 104 cycles TSC warp between CPUs, turning off TSC clock.",
            "[    0.2] tsc: Marking TSC unstable due to check_tsc_sync_source failed",
            "[    2.9] clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc-early' as unstable because the skew \
             is too large:",
            "[    2.9] clocksource:                       'acpi_pm' wd_nsec: 511999911 wd_now: 1 wd_last: 2 mask: ffffff",
        ] {
            for console in [KEPT.to_owned(), KEPT.replace("SOURCE tsc", "SOURCE acpi_pm")] {
                let Outcome::Lost(why) = outcome(&format!("{reason}\r\n{console}"), Ending::Exit(0)) else {
                    panic!("{reason}")
                };
                assert!(why.contains(reason), "{why}");
            }
        }
        assert!(matches!(outcome(&KEPT.replace("tsc", "acpi_pm"), Ending::Exit(0)), Outcome::Lost(_)));
        let late = "[   15.2] clocksource: Long readout interval, skipping watchdog check: cs_nsec: 1694 wd_nsec: 1694";
        assert_eq!(outcome(&format!("{late}\r\n{KEPT}"), Ending::Exit(0)), Outcome::Kept);
    }

    #[test]
    fn a_boot_that_does_not_tell_has_failed() {
        for (console, ending) in [
            (KEPT, Ending::Exit(16)),
            (KEPT, Ending::TimeLimit(9)),
            ("INIT-REACHED uptime: 0.80\r\n", Ending::Exit(0)),
            ("", Ending::Killed("signal: 11".to_owned())),
            (&KEPT.replace("PROCESSORS 2", "PROCESSORS 1"), Ending::Exit(0)),
        ] {
            assert!(matches!(outcome(console, ending), Outcome::Silent(_)), "{console}");
        }
    }

    #[test]
    fn burners_end_with_what_they_are_for() {
        assert!(Burners::start(Load::Quiet).threads.is_empty());
        let burners = Burners::start(Load::Loaded);
        let over = burners.over.clone();
        assert!(burners.threads.len() >= BURNERS);
        drop(burners);
        assert_eq!(Arc::strong_count(&over), 1, "a thread goes on");
    }
}
