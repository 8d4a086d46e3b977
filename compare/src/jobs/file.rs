//! A kernel of the user's, from process start to the end of the process.

use std::path::{Path, PathBuf};

use super::{FILES, Job, Kitchen, Reading, Readings, RowSpec};
use crate::error::Error;
use crate::process::{Runner, Watch};
use crate::subject::{GuestRun, Subject};

const MEBIBYTES: u32 = 512;

struct Kernel {
    rows: Vec<RowSpec>,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: String,
}

pub(super) fn job(path: &Path, kitchen: &Kitchen<'_>) -> Box<dyn Job> {
    let row = RowSpec {
        guest: path.display().to_string(),
        group: FILES,
        about: "process start to the end of the guest".to_owned(),
        unit: "s",
        what: format!("{}; {}", path.display(), kitchen.cmdline),
    };
    Box::new(Kernel {
        rows: vec![row],
        kernel: path.to_owned(),
        initrd: kitchen.initrd.map(Path::to_owned),
        cmdline: kitchen.cmdline.to_owned(),
    })
}

impl Job for Kernel {
    fn rows(&self) -> &[RowSpec] {
        &self.rows
    }

    /// It may be: one that is not, fails.
    fn is_linux(&self) -> bool {
        true
    }

    fn is_cheap(&self) -> bool {
        false
    }

    fn run(&self, subject: &Subject, runner: &Runner<'_>) -> Result<Readings, Error> {
        let guest = GuestRun {
            kernel: &self.kernel,
            initrd: self.initrd.as_deref(),
            cmdline: &self.cmdline,
            mebibytes: MEBIBYTES,
            until: "",
            // What a file needs is not known; a PC has it all.
            linux: false,
        };
        Ok(runner.guest(subject, &guest, &Watch::EMPTY)?.map(|outcome| {
            vec![Reading {
                refusal: None,
                value: Some(outcome.wall.as_secs_f64()),
                failure: None,
                answer: Some((without_times(&outcome.console), outcome.end)),
                memory: None,
                counters: None,
                milestones: outcome.milestones,
            }]
        }))
    }
}

/// A console's text without what differs from run to run by its nature: the kernel's time stamps, and how lines end.
fn without_times(console: &str) -> String {
    let stamp = |line: &str| -> Option<String> {
        let (inside, rest) = line.strip_prefix('[')?.split_once(']')?;
        inside.trim().parse::<f64>().ok().map(|_| rest.trim_start().to_owned())
    };
    let lines = console.lines().map(|line| stamp(line).unwrap_or_else(|| line.to_owned()));
    lines.map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_no_answer() {
        assert_eq!(
            without_times("[    0.123456] Linux\r\nx [1.0] y\n[no time] z"),
            "Linux\nx [1.0] y\n[no time] z"
        );
    }
}
