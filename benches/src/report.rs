//! What was found, for people and as JSON.
//!
//! The JSON has `schema` 1: `host`, `commit`, `rounds` and `subjects` say what was measured and where; `experiments`
//! have `rows`, and each row one cell a column, with all its samples in the experiment's `unit`, in the order of rounds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;
use serde_json::Value;

use crate::Setup;
use crate::error::Failure;
use crate::host;
use crate::memory::Memory;
use crate::samples::{Rounds, Samples, Spread};
use crate::table::note;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: u32,
    host: Host,
    /// Of the source tree, `-dirty` with changes; empty outside of a repository.
    commit: String,
    rounds: Rounds,
    subjects: Vec<String>,
    experiments: Vec<Experiment>,
}

#[derive(Debug, Serialize)]
struct Host {
    processor: String,
    kernel: String,
    cores: usize,
    core: usize,
    /// Load averages before and after: above the number of cores, the numbers are noise.
    load: Vec<String>,
}

/// One table.
#[derive(Debug, Serialize)]
pub(crate) struct Experiment {
    pub(crate) name: &'static str,
    /// Unit of all samples.
    pub(crate) unit: &'static str,
    /// What was run, with its version.
    pub(crate) guest: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// One a column.
    pub(crate) cells: Vec<Cell>,
}

/// One row of one subject.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Cell {
    pub(crate) samples: Samples,
    /// Bytes, by round; only where memory is measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) memory: Vec<Memory>,
    /// Our counters in the last round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) counters: Option<Value>,
    /// The first thing that went wrong; later rounds of this cell are not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
}

impl Experiment {
    /// All cells empty.
    pub(crate) fn new(
        name: &'static str,
        unit: &'static str,
        guest: String,
        columns: Vec<String>,
        rows: impl IntoIterator<Item = String>,
    ) -> Self {
        let cells = || columns.iter().map(|_| Cell::default()).collect();
        let rows = rows.into_iter().map(|name| Row { name, cells: cells() }).collect();
        Self { name, unit, guest, columns, rows }
    }

    /// The column of the peer, QEMU.
    pub(crate) fn peer(&self) -> Option<usize> {
        self.columns.iter().position(|column| column.starts_with("qemu-"))
    }

    /// Prints what went wrong.
    pub(crate) fn print_failures(&self) {
        for row in &self.rows {
            for (cell, column) in row.cells.iter().zip(&self.columns) {
                if let Some(failure) = &cell.failure {
                    note(&format!("FAILED: {} on {column}: {failure}", row.name));
                }
            }
        }
    }
}

impl Row {
    /// How many times the other column's value this one's is.
    pub(crate) fn ratio(&self, of: usize, to: usize) -> Option<Spread> {
        self.cells.get(of)?.samples.ratio(&self.cells.get(to)?.samples)
    }
}

impl Cell {
    /// Keeps the first failure. Numbers of a subject that fails are worth nothing.
    pub(crate) fn fail(&mut self, failure: String) {
        self.samples = Samples::default();
        self.failure.get_or_insert(failure);
    }
}

impl Report {
    pub(crate) fn new(setup: &Setup) -> Self {
        Self {
            schema: 1,
            host: Host {
                processor: host::processor(),
                kernel: host::proc_line("/proc/sys/kernel/osrelease"),
                cores: std::thread::available_parallelism().map_or(1, Into::into),
                core: setup.pinned.core,
                load: vec![host::proc_line("/proc/loadavg")],
            },
            commit: commit(),
            rounds: setup.rounds,
            subjects: setup.subjects.iter().map(|subject| subject.describe()).collect(),
            experiments: Vec::new(),
        }
    }

    /// Adds an experiment and says below its table what it stands on.
    pub(crate) fn add(&mut self, experiment: Experiment) {
        experiment.print_failures();
        let load = host::proc_line("/proc/loadavg");
        note(&format!("guest: {}", experiment.guest));
        note(&format!("host: {}, Linux {}, core {}", self.host.processor, self.host.kernel, self.host.core));
        note(&format!("load averages: {} before, {load} after", self.host.load[0]));
        note(&format!("subjects: {}", self.subjects.join("; ")));
        self.host.load.push(load);
        self.experiments.push(experiment);
    }

    /// No cell failed.
    pub(crate) fn all_well(&self) -> bool {
        let mut cells = self.experiments.iter().flat_map(|e| &e.rows).flat_map(|row| &row.cells);
        cells.all(|cell| cell.failure.is_none())
    }
}

fn commit() -> String {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .current_dir(host::source_root())
        .output();
    output.map_or_else(|_| String::new(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

/// Where the JSON goes: a path that was found writable before anything ran.
#[derive(Debug)]
pub(crate) struct Output(PathBuf);

impl Output {
    /// Writes nothing into an existing file; a new one stays empty until there is a report.
    pub(crate) fn check(path: &Path) -> Result<Self, Failure> {
        let opened = fs::OpenOptions::new().create(true).append(true).open(path);
        opened.map_err(Failure::file("write", path))?;
        Ok(Self(path.to_owned()))
    }

    pub(crate) fn write(&self, report: &Report) -> Result<(), Failure> {
        let mut text = serde_json::to_string_pretty(report)?;
        text.push('\n');
        fs::write(&self.0, text).map_err(Failure::file("write", &self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_cell_has_no_numbers_and_shows() {
        let mut experiment =
            Experiment::new("e", "s", String::new(), vec!["a".into(), "qemu-b".into()], ["row".to_owned()]);
        let row = &mut experiment.rows[0];
        for cell in &mut row.cells {
            cell.samples.push(2.0);
        }
        assert_eq!(row.ratio(0, 1).map(|s| s.median), Some(1.0));
        row.cells[1].fail("first".into());
        row.cells[1].fail("second".into());
        assert_eq!(row.cells[1].failure.as_deref(), Some("first"));
        assert_eq!((row.ratio(0, 1), experiment.peer()), (None, Some(1)));
        assert_eq!(serde_json::to_value(&experiment).unwrap()["rows"][0]["cells"][0]["samples"][0], 2.0);
    }

    #[test]
    fn an_unwritable_path_is_found_at_once() {
        assert!(Output::check(Path::new("/nonexistent/report.json")).is_err());
    }
}
