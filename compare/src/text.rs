//! The report for a terminal: disagreements first, then a table a group, then what could not run, then where it ran.

use std::fmt::Write as _;

use crate::beside::{self, Beside};
use crate::jobs::GROUPS;
use crate::report::{Report, Row, Side, Status};
use crate::stats::{Estimate, significant};
use crate::table::Table;

/// The whole text.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    // A String takes all that is written.
    for line in disagreements(report) {
        let _ = writeln!(out, "{line}");
    }
    if let Some(line) = caution(report) {
        let _ = writeln!(out, "{line}");
    }
    for (group, rows) in report.groups() {
        let _ = write!(out, "\n{group}: {}\n\n{}", about(group), group_table(report, &rows));
        for line in means(report, &rows) {
            let _ = writeln!(out, "{line}");
        }
    }
    for table in beside::tables(report) {
        let _ = write!(out, "\nbeside {}: {}\n\n{}", table.label, beside::MEANING, beside_table(&table));
    }
    let _ = writeln!(out);
    for line in missing(report).iter().chain(&facts(report)) {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// What a group is.
pub(crate) fn about(group: &str) -> &'static str {
    GROUPS.iter().find(|(name, _)| *name == group).map_or("kernels named by path", |(_, about)| about)
}

/// Bytes for people, in MiB.
pub(crate) fn mebibytes(bytes: Option<f64>) -> String {
    bytes.map_or("-".to_owned(), |bytes| significant(bytes / f64::from(1 << 20)))
}

/// What makes all numbers doubtful: others were at work, and a process that shares its core is slowed down by as much as
/// it is long.
pub(crate) fn caution(report: &Report) -> Option<String> {
    let host = &report.host;
    let before: f64 = host.load.first()?.split_whitespace().next()?.parse().ok()?;
    // With the one that the comparison adds there are more than the cores can take.
    (before + 0.5 > host.cores as f64).then(|| {
        format!(
            "CAUTION: the load average was {before} before this began, on {} cores: others share the core that is measured \
             on, and intervals do not know of what changes between runs; measure again on an idle host",
            host.cores
        )
    })
}

/// Every disagreement, with all sides.
pub(crate) fn disagreements(report: &Report) -> Vec<String> {
    let side = |side: &Side| {
        let end = if side.answer.end.is_empty() { String::new() } else { format!(" ({})", side.answer.end) };
        format!("on {}: {}{end}", side.subjects.join(", "), excerpt(&side.answer.said))
    };
    let line = |one: &crate::report::Disagreement| {
        let sides: Vec<_> = one.sides.iter().map(side).collect();
        format!("DISAGREEMENT: {}: {}", one.guest, sides.join("; "))
    };
    report.disagreements.iter().map(line).collect()
}

/// The end of a text, which is where guests say how they ended.
fn excerpt(said: &str) -> String {
    let last = crate::process::last_lines(said);
    if last.is_empty() { "nothing".to_owned() } else { format!("`{last}`") }
}

fn group_table(report: &Report, rows: &[&Row]) -> String {
    let memory = rows.iter().any(|row| row.cells.iter().any(|cell| !cell.memory.is_empty()));
    let base = rows.iter().find_map(|row| row.base.as_deref()).unwrap_or("base");
    let mut head = vec!["guest".to_owned(), "on".to_owned(), "median".to_owned(), "spread".to_owned()];
    head.extend([format!("x {base}"), "95 % interval".to_owned()]);
    if memory {
        head.extend(["RSS, MiB", "peak", "of it overhead"].map(str::to_owned));
    }
    let mut table = Table::new(2, head);
    for row in rows {
        let mut name = row.guest.as_str();
        for subject in &report.subjects {
            let Some(cell) = row.cell(&subject.name) else { continue };
            let Some(spread) = cell.spread else { continue };
            let (ratio, interval) = match cell.ratio {
                Some(ratio) => {
                    let interval = ratio.interval.map_or("-".to_owned(), |(low, high)| {
                        format!("{} to {}", significant(low), significant(high))
                    });
                    let other = row.base.as_deref().filter(|other| *other != base);
                    let of = other.map_or_else(String::new, |other| format!(" ({other})"));
                    (significant(ratio.value) + &of, interval)
                }
                None => ("1".to_owned(), String::new()),
            };
            let mut line = vec![
                name.to_owned(),
                subject.name.clone(),
                format!("{} {}", significant(spread.median), row.unit),
                format!("{} .. {}", significant(spread.min), significant(spread.max)),
                ratio,
                interval,
            ];
            if memory {
                line.push(mebibytes(cell.memory(|memory| Some(memory.resident))));
                line.push(mebibytes(cell.memory(|memory| Some(memory.peak))));
                line.push(mebibytes(cell.memory(crate::memory::Memory::overhead)));
            }
            table.row(line);
            name = "";
        }
    }
    table.text()
}

fn beside_table(beside: &Beside<'_>) -> String {
    let columns = beside.backends.iter().flat_map(|name| [*name, "95 % interval"]);
    let mut table = Table::new(1, ["guest"].into_iter().chain(columns));
    for line in beside.lines.iter().chain(&beside.means) {
        let words = line.words().flat_map(|(value, interval)| [value, interval]);
        table.row([line.name.clone()].into_iter().chain(words));
    }
    table.text()
}

/// Geometric means of groups with several rows.
pub(crate) fn means(report: &Report, rows: &[&Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for subject in report.subjects.iter().filter(|_| rows.len() > 1) {
        for (base, (mean, count)) in Report::means(rows, &subject.name) {
            lines.push(format!(
                "geometric mean of {count} rows: {} takes {} times as long as {base}",
                subject.name,
                significant(mean)
            ));
        }
    }
    lines
}

/// Who and what has no numbers, and why.
pub(crate) fn missing(report: &Report) -> Vec<String> {
    let mut lines: Vec<_> =
        report.missing.iter().map(|one| format!("NOT HERE: {}: {}", one.name, one.reason)).collect();
    for gap in report.gaps() {
        let word = match gap.status {
            Status::Failed => "FAILED",
            _ => "NOT RUN",
        };
        lines.push(format!("{word}: {} on {}: {}", some(&gap.guests), gap.subject, gap.reason));
    }
    if report.interrupted {
        let repeat = report.rounds.repeat;
        lines.push(format!(
            "INTERRUPTED in round {} of {repeat}: what there is, is shown",
            report.rounds_done
        ));
    }
    lines
}

/// A list of guests that is not longer than a line.
fn some(guests: &[&str]) -> String {
    const SHOWN: usize = 6;
    let shown = guests[..guests.len().min(SHOWN)].join(", ");
    match guests.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// What the numbers stand on.
pub(crate) fn facts(report: &Report) -> Vec<String> {
    let host = &report.host;
    let mut lines = vec![format!(
        "host: {}, {} cores, Linux {}; pinned to core {}; load averages {}",
        host.processor,
        host.cores,
        host.kernel,
        host.core,
        host.load.join(" before, ") + " after"
    )];
    for subject in &report.subjects {
        let provider = subject.provider.as_ref().map_or_else(String::new, |p| format!("; provider {p}"));
        lines.push(format!("{}: {} ({}{provider})", subject.name, subject.about, subject.kind));
    }
    let commit = if report.commit.is_empty() { "no source tree" } else { &report.commit };
    let quick = if report.quick { ", quick" } else { "" };
    lines.push(format!(
        "{} ({commit}); {} of {} rounds after {} of warm-up{quick}; {:.0} s",
        report.program, report.rounds_done, report.rounds.repeat, report.rounds.warm_up, report.seconds
    ));
    lines
}

/// The samples and what follows from them, a line a cell: for spreadsheets.
pub fn csv(report: &Report) -> String {
    let quote = |text: &str| match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    let this_build = |ratio: Option<Estimate>| {
        let interval = ratio.and_then(|ratio| ratio.interval);
        [ratio.map(|ratio| ratio.value), interval.map(|(low, _)| low), interval.map(|(_, high)| high)]
            .map(number)
    };
    let mut out = String::from(
        "group,guest,subject,status,unit,rounds,median,min,max,base,ratio,ratio_low,ratio_high,rss_bytes,peak_bytes,\
         reason,this_build,this_build_low,this_build_high\n",
    );
    for (row, cell) in report.cells() {
        let status = serde_json::to_value(cell.status).ok();
        let interval = cell.ratio.and_then(|ratio| ratio.interval);
        let line = [
            row.group.clone(),
            row.guest.clone(),
            cell.subject.clone(),
            status.and_then(|status| Some(status.as_str()?.to_owned())).unwrap_or_default(),
            row.unit.clone(),
            cell.samples.values().len().to_string(),
            number(cell.spread.map(|spread| spread.median)),
            number(cell.spread.map(|spread| spread.min)),
            number(cell.spread.map(|spread| spread.max)),
            row.base.clone().unwrap_or_default(),
            number(cell.ratio.map(|ratio| ratio.value)),
            number(interval.map(|(low, _)| low)),
            number(interval.map(|(_, high)| high)),
            number(cell.memory(|memory| Some(memory.resident))),
            number(cell.memory(|memory| Some(memory.peak))),
            cell.reason.clone().unwrap_or_default(),
        ];
        let fields = line.into_iter().chain(this_build(cell.this_build));
        out += &fields.map(|field| quote(&field)).collect::<Vec<_>>().join(",");
        out.push('\n');
    }
    for mean in &report.builds {
        let names = [mean.group.as_str(), "geometric mean", mean.subject.as_str(), "ok"].map(quote);
        out += &format!("{}{}", names.join(","), ",".repeat(12));
        out += &this_build(Some(mean.ratio)).map(|field| format!(",{field}")).concat();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Answer;
    use crate::report::tests::{cell, report};

    #[test]
    fn a_table_shows_who_takes_part_and_what_is_missing() {
        let mut b = cell("b", &[]);
        b.fail(Status::Failed, "fell over".to_owned());
        let report = report(vec![vec![cell("a", &[2.0, 2.0, 2.0]), cell("peer", &[1.0, 1.0, 1.0]), b]]);
        let text = text(&report);
        assert!(text.contains("x peer") && text.contains("2.00 to 2.00"), "{text}");
        assert!(text.contains("FAILED: micro/row0 on b: fell over"), "{text}");
        assert!(text.contains("NOT HERE: c: not <here>"), "{text}");
        assert!(!text.contains("DISAGREEMENT"), "{text}");
    }

    #[test]
    fn disagreements_come_first_with_both_sides() {
        let mut cells = vec![cell("a", &[1.0]), cell("peer", &[1.0]), cell("b", &[1.0])];
        for (cell, said) in cells.iter_mut().zip(["x\n1", "x\n1", "x\n2"]) {
            cell.answer(Answer { said: said.to_owned(), end: "power-off".to_owned() });
        }
        let text = text(&report(vec![cells]));
        assert!(
            text.starts_with(
                "DISAGREEMENT: micro/row0: on a, peer: `x | 1` (power-off); on b: `x | 2` (power-off)\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_busy_host_is_said() {
        let mut report = report(vec![]);
        assert_eq!(caution(&report), None);
        report.host.load = vec!["1.60 0.10 0.10".to_owned(), "9 9 9".to_owned()];
        assert!(text(&report).starts_with("CAUTION: the load average was 1.6 "), "{}", text(&report));
    }

    #[test]
    fn csv_has_a_line_a_cell_and_quotes_what_it_must() {
        let mut b = cell("b", &[]);
        b.fail(Status::NotRun, "too \"slow\", it is".to_owned());
        let text = csv(&report(vec![vec![cell("a", &[2.0, 2.0]), cell("peer", &[1.0, 1.0]), b]]));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1], "micro,micro/row0,a,ok,cycles,2,2,2,2,peer,2,2,2,,,,,,");
        assert!(lines[3].ends_with(",\"too \"\"slow\"\", it is\",,,"), "{}", lines[3]);
        let columns = lines[0].split(',').count();
        assert!(lines[1..3].iter().all(|line| line.split(',').count() == columns));
    }

    #[test]
    fn other_builds_have_a_table_and_columns() {
        let report = beside::tests::report();
        let text = text(&report);
        let table = text.split("\nbeside ").nth(1).unwrap();
        assert!(table.starts_with("o<ld: ") && table.contains("below 1"), "{text}");
        let line = |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap();
        assert!(
            line("micro/row0 ")
                .split_whitespace()
                .eq("micro/row0 2.00 2.00 to 2.00 1.00 1.00 to 1.00".split(' '))
        );
        assert!(line("geometric mean, all: 2 rows").contains("2.00 to 2.00"), "{text}");
        let csv = csv(&report);
        let columns = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<_>>();
        assert!(csv.lines().all(|line| columns(line).len() == 19), "{csv}");
        assert_eq!(columns(csv.lines().nth(2).unwrap())[16..], ["2", "2", "2"]);
        let means = csv.lines().filter(|line| line.contains(",geometric mean,")).count();
        assert_eq!(means, report.builds.len());
    }
}
