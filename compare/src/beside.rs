//! This build beside others: how many times as long each backend takes as the same backend of another build.
//!
//! 1. A ratio is of two subjects of a row, ours to the other build's, whoever the row's base is. It is taken round by
//!    round, as all ratios are.
//! 2. A *mean* is over rows that both have numbers in. Each round has a geometric mean of its rows' ratios; value and
//!    interval are those of the rounds' means. So the interval knows of what varies between rounds, also of what slows
//!    several rows at once.

use serde::{Deserialize, Serialize};

use crate::report::{Report, Row, SubjectInfo};
use crate::stats::{Estimate, Samples, geometric_mean, significant};

/// Another build of this program, and which of its backends a subject is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildInfo {
    /// Tells it from other builds.
    pub label: String,
    /// Its executable.
    pub path: String,
    /// The backend, which is also the name of our subject beside it.
    pub backend: String,
}

/// How long this build takes beside another one, over several rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildMean {
    /// The other build's backend.
    pub subject: String,
    /// Our subject.
    pub backend: String,
    /// A group, or [`ALL`].
    pub group: String,
    /// How many rows both have numbers in.
    pub rows: usize,
    /// Geometric mean of how many times the other build's value ours is.
    pub ratio: Estimate,
}

/// Stands for the rows of all groups.
pub(crate) const ALL: &str = "all";

/// The ratio of our backend's samples to another build's in a row; nothing if one of them has none.
fn ratios(row: &Row, other: &str, build: &BuildInfo) -> Option<Samples> {
    let (ours, theirs) = (row.cell(&build.backend)?, row.cell(other)?);
    Some(ours.samples.ratios(&theirs.samples)).filter(|ratios| !ratios.values().is_empty())
}

/// Computes what a report tells of other builds.
pub(crate) fn finish(report: &mut Report) {
    let others: Vec<_> =
        report.subjects.iter().filter_map(|one| Some((one.name.clone(), one.build.clone()?))).collect();
    for row in &mut report.rows {
        for (other, build) in &others {
            let ratio = ratios(row, other, build).and_then(|ratios| ratios.estimate());
            if let Some(cell) = row.cells.iter_mut().find(|cell| cell.subject == *other) {
                cell.this_build = ratio;
            }
        }
    }
    let groups = report.groups();
    let all: Vec<&Row> = report.rows.iter().collect();
    let named =
        groups.iter().map(|(name, rows)| (*name, rows)).chain((groups.len() > 1).then_some((ALL, &all)));
    let mut means = Vec::new();
    for (name, rows) in named {
        for (other, build) in &others {
            let list: Vec<Samples> = rows.iter().filter_map(|row| ratios(row, other, build)).collect();
            if let Some(ratio) = mean(&list).estimate() {
                means.push(BuildMean {
                    subject: other.clone(),
                    backend: build.backend.clone(),
                    group: name.to_owned(),
                    rows: list.len(),
                    ratio,
                });
            }
        }
    }
    report.builds = means;
}

/// Of each round that all rows have, the geometric mean.
fn mean(rows: &[Samples]) -> Samples {
    let rounds = rows.iter().map(|row| row.values().len()).min().unwrap_or(0);
    (0..rounds).filter_map(|round| geometric_mean(rows.iter().map(|row| row.values()[round]))).collect()
}

/// One other build beside this one, as a table.
#[derive(Debug)]
pub(crate) struct Beside<'a> {
    pub(crate) label: &'a str,
    pub(crate) path: &'a str,
    /// Our backends that it has too.
    pub(crate) backends: Vec<&'a str>,
    /// A guest each.
    pub(crate) lines: Vec<Line>,
    /// A group each, if there is more than one row.
    pub(crate) means: Vec<Line>,
}

/// A name, and what there is of each backend.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) ratios: Vec<Option<Estimate>>,
}

impl Line {
    /// Value and interval of each backend.
    pub(crate) fn words(&self) -> impl Iterator<Item = (String, String)> {
        let interval = |ratio: &Estimate| match ratio.interval {
            Some((low, high)) => format!("{} to {}", significant(low), significant(high)),
            None => "-".to_owned(),
        };
        self.ratios.iter().map(move |ratio| match ratio {
            Some(ratio) => (significant(ratio.value), interval(ratio)),
            None => ("-".to_owned(), "-".to_owned()),
        })
    }
}

/// What the ratios mean, for every output.
pub(crate) const MEANING: &str =
    "times as long as the same backend of that build takes; below 1 this build is faster";

/// A table for each other build that has numbers.
pub(crate) fn tables(report: &Report) -> Vec<Beside<'_>> {
    let mut builds: Vec<(&BuildInfo, Vec<&SubjectInfo>)> = Vec::new();
    for subject in &report.subjects {
        let Some(build) = &subject.build else { continue };
        match builds.iter_mut().find(|(other, _)| other.label == build.label) {
            Some((_, subjects)) => subjects.push(subject),
            None => builds.push((build, vec![subject])),
        }
    }
    let tables = builds.into_iter().map(|(build, subjects)| Beside {
        label: &build.label,
        path: &build.path,
        backends: subjects.iter().filter_map(|one| Some(one.build.as_ref()?.backend.as_str())).collect(),
        lines: report.rows.iter().filter_map(|row| line(row, &subjects)).collect(),
        means: if report.rows.len() > 1 { means(report, &subjects) } else { Vec::new() },
    });
    tables.filter(|table| !table.lines.is_empty()).collect()
}

fn line(row: &Row, subjects: &[&SubjectInfo]) -> Option<Line> {
    let ratios: Vec<_> = subjects.iter().map(|one| row.cell(&one.name)?.this_build).collect();
    ratios.iter().any(Option::is_some).then(|| Line { name: row.guest.clone(), ratios })
}

fn means(report: &Report, subjects: &[&SubjectInfo]) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for mean in &report.builds {
        let Some(place) = subjects.iter().position(|one| one.name == mean.subject) else { continue };
        let rows = if mean.rows == 1 { "row" } else { "rows" };
        let name = format!("geometric mean, {}: {} {rows}", mean.group, mean.rows);
        let n = lines.iter().position(|line| line.name == name).unwrap_or_else(|| {
            lines.push(Line { name, ratios: vec![None; subjects.len()] });
            lines.len() - 1
        });
        lines[n].ratios[place] = Some(mean.ratio);
    }
    lines
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report::tests::{cell, report_of};

    /// Two rows of two backends, each with the same of another build, which takes half as long on `a`. On `b` one row of
    /// it has no numbers.
    pub(crate) fn report() -> Report {
        let build = |backend: &str| {
            Some(BuildInfo { label: "o<ld".into(), path: "/o<ld".into(), backend: backend.into() })
        };
        let subjects = [("a", None), ("a@o<ld", build("a")), ("b", None), ("b@o<ld", build("b"))].map(
            |(name, build)| SubjectInfo {
                name: name.to_owned(),
                kind: if build.is_some() { "build" } else { "backend" }.to_owned(),
                about: String::new(),
                provider: None,
                quality: None,
                build,
            },
        );
        let row = |b: &[f64]| {
            vec![
                cell("a", &[2.0, 8.0]),
                cell("a@o<ld", &[1.0, 4.0]),
                cell("b", &[9.0, 9.0]),
                cell("b@o<ld", b),
            ]
        };
        let mut report = report_of(subjects.to_vec(), vec![row(&[9.0, 9.0]), row(&[])]);
        report.rows[1].group = "user".to_owned();
        report.finish(None);
        report
    }

    #[test]
    fn each_backend_is_beside_its_own_kind() {
        let report = report();
        let ratio = |row: usize, n: usize| report.rows[row].cells[n].this_build.map(|ratio| ratio.value);
        assert_eq!([0, 1, 2, 3].map(|n| ratio(0, n)), [None, Some(2.0), None, Some(1.0)]);
        assert_eq!(ratio(1, 3), None);
        // Whoever the base is.
        assert_eq!(report.rows[0].base.as_deref(), Some("a@o<ld"));
        let means: Vec<_> = report
            .builds
            .iter()
            .map(|mean| (mean.subject.as_str(), mean.group.as_str(), mean.rows, mean.ratio.value.round()))
            .collect();
        assert_eq!(
            means,
            [
                ("a@o<ld", "micro", 1, 2.0),
                ("b@o<ld", "micro", 1, 1.0),
                ("a@o<ld", "user", 1, 2.0),
                ("a@o<ld", ALL, 2, 2.0),
                ("b@o<ld", ALL, 1, 1.0)
            ]
        );
    }

    /// Rows that vary against each other have a mean that does not vary.
    #[test]
    fn a_mean_is_of_rounds() {
        let rows = [[1.0, 2.0, 4.0], [4.0, 2.0, 1.0]].map(|row| row.into_iter().collect::<Samples>());
        let mean = mean(&rows).estimate().unwrap();
        let (low, high) = mean.interval.unwrap();
        assert!((mean.value - 2.0).abs() < 1e-9 && high - low < 1e-9, "{mean:?}");
        assert!(super::mean(&[]).estimate().is_none());
    }

    #[test]
    fn a_table_has_a_line_a_guest_and_a_column_a_backend() {
        let report = report();
        let tables = tables(&report);
        assert_eq!((tables.len(), tables[0].label, &tables[0].backends[..]), (1, "o<ld", &["a", "b"][..]));
        let text = |line: &Line| line.words().map(|(value, _)| value).collect::<Vec<_>>().join(" ");
        assert_eq!(tables[0].lines.iter().map(text).collect::<Vec<_>>(), ["2.00 1.00", "2.00 -"]);
        let names: Vec<_> = tables[0].means.iter().map(|line| line.name.as_str()).collect();
        assert!(names.contains(&"geometric mean, all: 2 rows"), "{names:?}");
    }
}
