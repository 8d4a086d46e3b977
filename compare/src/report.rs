//! What was found, as data: the form of `--json`, which `docs/compare.md` documents for readers.
//!
//! Samples are what was measured; everything else about a cell (spread, value, ratio) is computed from them once, by
//! [`Report::finish`], so that every output shows the same numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::beside::{self, BuildInfo, BuildMean};
use crate::error::Error;
use crate::memory::Memory;
use crate::process::End;
use crate::stats::{Estimate, Rounds, Samples, Spread, geometric_mean};

/// Raised when the meaning of a field changes, not when fields are added.
pub const SCHEMA: u32 = 2;

/// Everything of one comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name and version of the program.
    pub program: String,
    /// Of the source tree the program was built from, `-dirty` with changes; empty where there is none.
    pub commit: String,
    /// Seconds since 1970 when it began.
    pub started: u64,
    /// How long it took.
    pub seconds: f64,
    /// The words of the command line.
    pub command: Vec<String>,
    /// Ended by a signal before all rounds were done.
    pub interrupted: bool,
    /// Whether rounds and guests were short.
    pub quick: bool,
    /// Where it ran.
    pub host: Host,
    /// Rounds asked for.
    pub rounds: Rounds,
    /// Rounds that count and were begun.
    pub rounds_done: u32,
    /// Who took part.
    pub subjects: Vec<SubjectInfo>,
    /// Who was asked for and could not.
    pub missing: Vec<MissingInfo>,
    /// A row a guest.
    pub rows: Vec<Row>,
    /// Beside other builds, by group and over all rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub builds: Vec<BuildMean>,
    /// Guests that computed, printed or ended differently.
    pub disagreements: Vec<Disagreement>,
}

/// Where it ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The processor's name for itself.
    pub processor: String,
    /// Release of the running kernel.
    pub kernel: String,
    /// Cores this process may use.
    pub cores: usize,
    /// The one everything was pinned to.
    pub core: usize,
    /// Frequency of the time-stamp counter.
    pub tsc_khz: u32,
    /// Load averages before and after: above the number of cores, the numbers are noise.
    pub load: Vec<String>,
}

/// One who took part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubjectInfo {
    /// As in cells.
    pub name: String,
    /// `backend`, `build` (another build's backend), `peer` or `native`.
    pub kind: String,
    /// For people.
    pub about: String,
    /// What stands behind it, such as KVM's kernel module.
    pub provider: Option<String>,
    /// Of a backend.
    pub quality: Option<String>,
    /// Of another build's backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildInfo>,
}

/// One who was asked for and could not take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingInfo {
    /// As on the command line.
    pub name: String,
    /// Why, and what helps.
    pub reason: String,
}

/// One guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// As on the command line.
    pub guest: String,
    /// `boot`, `start`, `exits`, `micro`, `user` or `file`.
    pub group: String,
    /// For people.
    pub about: String,
    /// Of samples, spreads and values; lower is better.
    pub unit: String,
    /// What exactly was run.
    pub what: String,
    /// The subject that ratios are to; nothing if none has numbers.
    pub base: Option<String>,
    /// One a subject, in the order of [`Report::subjects`].
    pub cells: Vec<Cell>,
}

/// Why a cell has numbers, or none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It has.
    Ok,
    /// The guest failed, computed a wrong result or did not end. Later rounds of this cell are not run.
    Failed,
    /// It cannot, or would take too long.
    NotRun,
    /// The comparison was interrupted before it had any.
    #[default]
    Unfinished,
}

/// One guest on one subject.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cell {
    /// Name of the subject.
    pub subject: String,
    /// Whether there are numbers.
    pub status: Status,
    /// Why not.
    pub reason: Option<String>,
    /// One a round.
    pub samples: Samples,
    /// Median and extremes of the samples.
    pub spread: Option<Spread>,
    /// Their geometric mean and its interval.
    pub value: Option<Estimate>,
    /// How many times the base's value it is, taken round by round, and its interval. Nothing for the base itself.
    pub ratio: Option<Estimate>,
    /// Of another build's backend: how many times this value that of ours is, taken round by round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub this_build: Option<Estimate>,
    /// What the guest said and how it ended, each that occurred.
    pub answers: Vec<Answer>,
    /// Bytes, by round.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<Memory>,
    /// Our counters in the last round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Value>,
    /// Seconds from process start, by milestone, in the order in which they came; a number a round.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub milestones: Vec<(String, Samples)>,
}

/// What a guest said, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// A checksum, or its console's text.
    pub said: String,
    /// How it ended; empty where that is not compared.
    pub end: String,
}

/// A guest that does not do the same everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disagreement {
    /// The guest.
    pub guest: String,
    /// Two or more.
    pub sides: Vec<Side>,
}

/// Those who agree with each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Subjects.
    pub subjects: Vec<String>,
    /// What the guest said on them.
    pub answer: Answer,
}

impl Answer {
    fn agrees_with(&self, other: &Self) -> bool {
        self.said == other.said && End(self.end.clone()).agrees_with(&End(other.end.clone()))
    }
}

impl Cell {
    /// Keeps the first failure. Numbers of a guest that fails are worth nothing.
    pub(crate) fn fail(&mut self, status: Status, reason: String) {
        self.samples = Samples::default();
        self.status = status;
        self.reason.get_or_insert(reason);
    }

    pub(crate) fn answer(&mut self, answer: Answer) {
        if !self.answers.contains(&answer) {
            self.answers.push(answer);
        }
    }

    /// Adds a round's milestones.
    pub(crate) fn milestones(&mut self, round: Vec<(String, f64)>) {
        for (name, seconds) in round {
            match self.milestones.iter_mut().find(|(other, _)| *other == name) {
                Some((_, samples)) => samples.push(seconds),
                None => self.milestones.push((name, [seconds].into_iter().collect())),
            }
        }
    }

    /// Median of one of the memory values, in bytes.
    pub fn memory(&self, value: impl Fn(&Memory) -> Option<u64>) -> Option<f64> {
        let samples: Samples = self.memory.iter().filter_map(value).map(|bytes| bytes as f64).collect();
        samples.spread().map(|spread| spread.median)
    }
}

impl Row {
    /// The subject's cell.
    pub fn cell(&self, subject: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.subject == subject)
    }

    /// Computes what follows from the samples. `wishes` are subjects in the order in which they may be the base.
    fn finish(&mut self, wishes: &[&str]) {
        let has = |name: &&&str| self.cell(name).is_some_and(|cell| !cell.samples.values().is_empty());
        self.base = wishes.iter().find(has).map(|name| (*name).to_owned());
        let base = self.base.as_ref().and_then(|name| self.cell(name)).map(|cell| cell.samples.clone());
        for cell in &mut self.cells {
            cell.spread = cell.samples.spread();
            cell.value = cell.samples.estimate();
            let is_base = Some(&cell.subject) == self.base.as_ref();
            let base = base.as_ref().filter(|_| !is_base);
            cell.ratio = base.and_then(|base| cell.samples.ratios(base).estimate());
            if !cell.samples.values().is_empty() {
                cell.status = Status::Ok;
            }
        }
    }

    /// Who says what, if not all say the same.
    fn disagreement(&self) -> Option<Disagreement> {
        let mut sides: Vec<Side> = Vec::new();
        for cell in &self.cells {
            for answer in &cell.answers {
                match sides.iter_mut().find(|side| side.answer.agrees_with(answer)) {
                    Some(side) if side.subjects.contains(&cell.subject) => {}
                    Some(side) => side.subjects.push(cell.subject.clone()),
                    None => sides.push(Side { subjects: vec![cell.subject.clone()], answer: answer.clone() }),
                }
            }
        }
        (sides.len() > 1).then(|| Disagreement { guest: self.guest.clone(), sides })
    }
}

impl Report {
    /// Computes what follows from the samples and answers. `base` is the subject that ratios are to, if the user named one;
    /// else it is the host itself, then a peer, then another build, then the first backend; one that is not what it promises
    /// comes last.
    pub fn finish(&mut self, base: Option<&str>) {
        let mut subjects: Vec<&SubjectInfo> = self.subjects.iter().collect();
        // Stable: of equals the one that comes first.
        subjects.sort_by_key(|subject| match (subject.kind.as_str(), subject.quality.as_deref()) {
            ("native", _) => 0,
            ("peer", _) => 1,
            (_, Some("degraded")) => 4,
            ("build", _) => 2,
            _ => 3,
        });
        let wishes: Vec<&str> =
            base.into_iter().chain(subjects.into_iter().map(|one| one.name.as_str())).collect();
        for row in &mut self.rows {
            row.finish(&wishes);
        }
        beside::finish(self);
        self.disagreements = self.rows.iter().filter_map(Row::disagreement).collect();
    }

    /// Groups in the order of rows, with their rows.
    pub fn groups(&self) -> Vec<(&str, Vec<&Row>)> {
        let mut groups: Vec<(&str, Vec<&Row>)> = Vec::new();
        for row in &self.rows {
            match groups.iter_mut().find(|(name, _)| *name == row.group) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((&row.group, vec![row])),
            }
        }
        groups
    }

    /// All cells with the rows they are in.
    pub fn cells(&self) -> impl Iterator<Item = (&Row, &Cell)> {
        self.rows.iter().flat_map(|row| row.cells.iter().map(move |cell| (row, cell)))
    }

    /// Cells without numbers, by reason: status, subject, reason, guests.
    pub fn gaps(&self) -> Vec<Gap<'_>> {
        let mut gaps: Vec<Gap<'_>> = Vec::new();
        for (row, cell) in self.cells().filter(|(_, cell)| cell.status != Status::Ok) {
            let reason = cell.reason.as_deref().unwrap_or("interrupted before it had a number");
            let same = |gap: &&mut Gap<'_>| {
                gap.subject == cell.subject && gap.reason == reason && gap.status == cell.status
            };
            match gaps.iter_mut().find(same) {
                Some(gap) => gap.guests.push(&row.guest),
                None => gaps.push(Gap {
                    status: cell.status,
                    subject: &cell.subject,
                    reason,
                    guests: vec![&row.guest],
                }),
            }
        }
        gaps
    }

    /// Geometric mean of the ratios of a subject in some rows to each base, with their number. Only over rows in which every
    /// subject that has a ratio to that base anywhere has one: means over different rows say nothing beside each other.
    pub fn means<'a>(rows: &[&'a Row], subject: &str) -> BTreeMap<&'a str, (f64, usize)> {
        let ratio = |row: &Row, subject: &str| row.cell(subject).and_then(|cell| cell.ratio);
        let mut by_base: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in rows {
            if let Some(base) = &row.base {
                by_base.entry(base).or_default().push(row);
            }
        }
        let mean = |rows: Vec<&Row>| {
            let subjects: BTreeSet<&str> = rows
                .iter()
                .flat_map(|row| &row.cells)
                .filter(|cell| cell.ratio.is_some())
                .map(|cell| cell.subject.as_str())
                .collect();
            let whole = |row: &&&Row| subjects.iter().all(|subject| ratio(row, subject).is_some());
            let ratios: Vec<f64> =
                rows.iter().filter(whole).filter_map(|row| Some(ratio(row, subject)?.value)).collect();
            Some((geometric_mean(ratios.iter().copied())?, ratios.len()))
        };
        by_base.into_iter().filter_map(|(base, rows)| Some((base, mean(rows)?))).collect()
    }

    /// Reads a report that an earlier comparison has written.
    ///
    /// # Errors
    /// No such file, or no report of this schema.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bad = |reason: String| Error::Against { path: path.to_owned(), reason };
        let text = fs::read(path).map_err(|error| bad(error.to_string()))?;
        let value: Value = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        match value.get("schema").and_then(Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {
                serde_json::from_value(value).map_err(|error| bad(error.to_string()))
            }
            Some(schema) => Err(bad(format!(
                "it has schema {schema}, and this program reads {SCHEMA}; measure the old version anew"
            ))),
            None => Err(bad("it has no schema number".to_owned())),
        }
    }
}

/// Cells without numbers for one reason.
#[derive(Debug, PartialEq, Eq)]
pub struct Gap<'a> {
    /// What kind of reason.
    pub status: Status,
    /// Whose cells.
    pub subject: &'a str,
    /// Why.
    pub reason: &'a str,
    /// In which rows.
    pub guests: Vec<&'a str>,
}

/// A file for a report: a path that was found writable before anything ran.
#[derive(Debug)]
pub struct Output(PathBuf);

impl Output {
    /// Writes nothing into an existing file; a new one stays empty until there is a report.
    ///
    /// # Errors
    /// The file cannot be opened for writing.
    pub fn check(path: &Path) -> Result<Self, Error> {
        let opened = fs::OpenOptions::new().create(true).append(true).open(path);
        opened.map_err(|source| Error::Output { path: path.to_owned(), source })?;
        Ok(Self(path.to_owned()))
    }

    /// Replaces what is in it.
    ///
    /// # Errors
    /// The disk is full, or somebody has taken the file's permissions since.
    pub fn write(&self, text: &str) -> Result<(), Error> {
        fs::write(&self.0, text).map_err(|source| Error::Output { path: self.0.clone(), source })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A cell with these samples.
    pub(crate) fn cell(subject: &str, samples: &[f64]) -> Cell {
        Cell { subject: subject.to_owned(), samples: samples.iter().copied().collect(), ..Cell::default() }
    }

    /// A finished report of one row a call of `cell`.
    pub(crate) fn report(rows: Vec<Vec<Cell>>) -> Report {
        let subject = |name: &str, kind: &str| SubjectInfo {
            name: name.to_owned(),
            kind: kind.to_owned(),
            about: format!("<{name}> & its kind"),
            provider: None,
            quality: None,
            build: None,
        };
        report_of(vec![subject("a", "backend"), subject("peer", "peer"), subject("b", "backend")], rows)
    }

    /// Likewise, of these subjects.
    pub(crate) fn report_of(subjects: Vec<SubjectInfo>, rows: Vec<Vec<Cell>>) -> Report {
        let rows = (0..).zip(rows).map(|(n, cells)| Row {
            guest: format!("micro/row{n}"),
            group: "micro".to_owned(),
            about: "a \"row\" <of> numbers".to_owned(),
            unit: "cycles".to_owned(),
            what: "bare-metal guest".to_owned(),
            base: None,
            cells,
        });
        let mut report = Report {
            schema: SCHEMA,
            program: "gearshift 1".to_owned(),
            commit: "abc".to_owned(),
            started: 0,
            seconds: 1.0,
            command: vec!["--quick".to_owned()],
            interrupted: false,
            quick: true,
            host: Host {
                processor: "P".to_owned(),
                kernel: "6".to_owned(),
                cores: 2,
                core: 1,
                tsc_khz: 1,
                load: vec!["0.1".to_owned()],
            },
            rounds: Rounds { warm_up: 1, repeat: 3 },
            rounds_done: 3,
            subjects,
            missing: vec![MissingInfo { name: "c".to_owned(), reason: "not <here>".to_owned() }],
            rows: rows.collect(),
            builds: Vec::new(),
            disagreements: Vec::new(),
        };
        report.finish(None);
        report
    }

    fn answer(said: &str, end: &str) -> Answer {
        Answer { said: said.to_owned(), end: end.to_owned() }
    }

    #[test]
    fn ratios_are_to_the_peer_or_to_whom_the_user_says() {
        let rows = || vec![vec![cell("a", &[2.0, 4.0]), cell("peer", &[1.0, 2.0]), cell("b", &[1.0, 2.0])]];
        let mut report = report(rows());
        assert_eq!(report.rows[0].base.as_deref(), Some("peer"));
        let value =
            |report: &Report, n: usize| report.rows[0].cells[n].ratio.map(|ratio| ratio.value.round());
        assert_eq!((value(&report, 0), value(&report, 1), value(&report, 2)), (Some(2.0), None, Some(1.0)));
        report.finish(Some("a"));
        assert_eq!((value(&report, 0), report.rows[0].base.as_deref()), (None, Some("a")));
        // A base without numbers in this row is none.
        let mut report = self::report(vec![vec![cell("a", &[2.0]), cell("peer", &[]), cell("b", &[4.0])]]);
        report.finish(Some("peer"));
        assert_eq!((report.rows[0].base.as_deref(), value(&report, 2)), (Some("a"), Some(2.0)));
        assert_eq!(report.gaps()[0].guests, ["micro/row0"]);
    }

    /// Of two rows, one that a subject lacks counts for none of them; a subject that ran nowhere counts for nothing.
    #[test]
    fn means_are_over_rows_that_all_have() {
        let whole = vec![cell("a", &[2.0]), cell("peer", &[1.0]), cell("b", &[3.0])];
        let part = vec![cell("a", &[8.0]), cell("peer", &[1.0]), cell("b", &[])];
        let report = self::report(vec![whole, part.clone()]);
        let rows: Vec<_> = report.rows.iter().collect();
        let mean = |subject: &str| {
            Report::means(&rows, subject).get("peer").map(|(mean, rows)| (mean.round(), *rows))
        };
        assert_eq!((mean("a"), mean("b")), (Some((2.0, 1)), Some((3.0, 1))));
        let report = self::report(vec![part.clone(), part]);
        let rows: Vec<_> = report.rows.iter().collect();
        assert_eq!(Report::means(&rows, "a").get("peer").map(|(_, rows)| *rows), Some(2));
    }

    #[test]
    fn a_failed_cell_has_no_numbers_and_keeps_its_first_reason() {
        let mut cell = cell("a", &[2.0]);
        cell.fail(Status::Failed, "first".into());
        cell.fail(Status::Failed, "second".into());
        assert_eq!((cell.reason.as_deref(), cell.samples.values().len()), (Some("first"), 0));
    }

    #[test]
    fn disagreements_name_both_sides() {
        let mut cells = vec![cell("a", &[1.0]), cell("peer", &[1.0]), cell("b", &[1.0])];
        cells[0].answer(answer("1", "power-off"));
        cells[1].answer(answer("1", "power-off or reset"));
        cells[2].answer(answer("2", "power-off"));
        let report = report(vec![cells.clone()]);
        let sides = &report.disagreements[0].sides;
        assert_eq!(
            (&sides[0].subjects[..], &sides[1].subjects[..]),
            (&["a".into(), "peer".into()][..], &["b".into()][..])
        );
        // The same text and another end.
        cells[2].answers = vec![answer("1", "debug exit 3")];
        assert_eq!(self::report(vec![cells.clone()]).disagreements.len(), 1);
        cells[2].answers = vec![answer("1", "reset")];
        // Nobody can tell a reset from a power-off on QEMU, but a and b can.
        assert_eq!(self::report(vec![cells.clone()]).disagreements.len(), 1);
        cells[2].answers = vec![answer("1", "power-off")];
        assert!(self::report(vec![cells.clone()]).disagreements.is_empty());
        // One backend that says something else in another round.
        cells[2].answer(answer("3", "power-off"));
        assert_eq!(self::report(vec![cells]).disagreements.len(), 1);
    }

    #[test]
    fn reports_are_read_back_and_others_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let report = report(vec![vec![cell("a", &[2.0, 3.0]), cell("peer", &[1.0, 1.0]), cell("b", &[])]]);
        let text = serde_json::to_string(&report).unwrap();
        Output::check(&path).unwrap().write(&text).unwrap();
        assert_eq!(serde_json::to_string(&Report::read(&path).unwrap()).unwrap(), text);
        for (text, reason) in [
            ("{", "line 1"),
            ("{}", "no schema"),
            ("{\"schema\":1}", "schema 1"),
            ("{\"schema\":2}", "missing field"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Report::read(&path).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("report.json"), "{error}");
        }
        assert!(Report::read(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn an_unwritable_path_is_found_at_once() {
        let error = Output::check(Path::new("/nonexistent/report.json")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/report.json") && error.contains("folder"), "{error}");
    }
}
