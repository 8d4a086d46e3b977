//! The report as tables in Markdown, a guest a row and a subject a column: the form in which documents show numbers.

use std::fmt::Write as _;

use crate::beside;
use crate::report::{Cell, Report, Row};
use crate::stats::significant;
use crate::text;

/// All groups, what has no numbers, and where it ran.
pub(crate) fn markdown(report: &Report) -> String {
    let mut out = String::new();
    // A String takes all that is written: the results of `write!` here and below say nothing.
    for (group, rows) in report.groups() {
        let _ = write!(out, "### `{group}`: {}\n\n", text::about(group));
        if rows.iter().any(|row| row.cells.iter().any(|cell| !cell.memory.is_empty())) {
            with_memory(&mut out, report, &rows);
        } else {
            matrix(&mut out, report, &rows);
        }
        out.push('\n');
    }
    for table in beside::tables(report) {
        let _ = write!(out, "### Beside `{}`\n\n{}.\n\n", cell_text(table.label), beside::MEANING);
        let columns = table.backends.iter().map(|name| (*name).to_owned());
        line(&mut out, ["guest".to_owned()].into_iter().chain(columns));
        rule(&mut out, 1 + table.backends.len());
        for one in table.lines.iter().chain(&table.means) {
            let words = one.words().map(|(value, interval)| match interval.as_str() {
                "-" => value,
                interval => format!("{value} ({interval})"),
            });
            line(&mut out, [one.name.clone()].into_iter().chain(words));
        }
        out.push('\n');
    }
    let notes =
        [text::disagreements(report), text::caution(report).into_iter().collect(), text::missing(report)];
    for line in notes.iter().flatten().chain(&text::facts(report)) {
        let _ = writeln!(out, "* {}", cell_text(line));
    }
    out
}

/// Text that does not end a cell or begin markup.
fn cell_text(text: &str) -> String {
    text.replace('|', "/").replace(['\n', '\r'], " ").replace('<', "&lt;")
}

fn line(out: &mut String, cells: impl IntoIterator<Item = String>) {
    let cells: Vec<_> = cells.into_iter().map(|cell| cell_text(&cell)).collect();
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn rule(out: &mut String, columns: usize) {
    let _ = writeln!(out, "|{}", "---|".repeat(columns));
}

fn ratio(cell: &Cell) -> String {
    match cell.ratio {
        Some(ratio) => match ratio.interval {
            Some((low, high)) => {
                format!("{} ({} to {})", significant(ratio.value), significant(low), significant(high))
            }
            None => significant(ratio.value),
        },
        None => "-".to_owned(),
    }
}

/// One column for the base's time, one for each other subject's ratio to it.
fn matrix(out: &mut String, report: &Report, rows: &[&Row]) {
    let has = |subject: &&crate::report::SubjectInfo| {
        rows.iter().any(|row| row.cell(&subject.name).is_some_and(|cell| cell.spread.is_some()))
    };
    let base = rows.iter().find_map(|row| row.base.clone()).unwrap_or_default();
    let unit = rows.first().map_or("", |row| row.unit.as_str());
    let others: Vec<_> = report.subjects.iter().filter(has).filter(|subject| subject.name != base).collect();
    let head = ["guest".to_owned(), "what it does".to_owned(), format!("{base}, {unit}")];
    line(out, head.into_iter().chain(others.iter().map(|other| format!("{} x {base}", other.name))));
    rule(out, 3 + others.len());
    for row in rows {
        let time =
            row.cell(&base).and_then(|cell| cell.spread).map_or("-".to_owned(), |s| significant(s.median));
        let name = row.guest.strip_prefix(&format!("{}/", row.group)).unwrap_or(&row.guest);
        let same_base = row.base.as_ref() == Some(&base);
        let ratios = others.iter().map(|other| match row.cell(&other.name) {
            Some(cell) if same_base => ratio(cell),
            Some(cell) => {
                cell.spread.map_or("-".to_owned(), |s| format!("{} {}", significant(s.median), row.unit))
            }
            None => "-".to_owned(),
        });
        line(out, [name.to_owned(), row.about.clone(), time].into_iter().chain(ratios));
    }
    let means = others.iter().map(|other| {
        let mean = Report::means(rows, &other.name).get(base.as_str()).map(|(mean, _)| significant(*mean));
        mean.unwrap_or_else(|| "-".to_owned())
    });
    if rows.len() > 1 {
        line(out, ["geometric mean".to_owned(), String::new(), String::new()].into_iter().chain(means));
    }
}

/// One line a subject.
fn with_memory(out: &mut String, report: &Report, rows: &[&Row]) {
    let base = rows.iter().find_map(|row| row.base.clone()).unwrap_or_default();
    let unit = rows.first().map_or("", |row| row.unit.as_str());
    let head =
        ["", &format!("median, {unit}"), "spread", &format!("x {base}"), "RSS, MiB", "peak RSS", "overhead"];
    line(out, head.map(str::to_owned));
    rule(out, 7);
    for cell in rows.iter().flat_map(|row| &row.cells) {
        let (Some(spread), true) =
            (cell.spread, report.subjects.iter().any(|subject| subject.name == cell.subject))
        else {
            continue;
        };
        line(
            out,
            [
                cell.subject.clone(),
                significant(spread.median),
                format!("{} to {}", significant(spread.min), significant(spread.max)),
                ratio(cell),
                text::mebibytes(cell.memory(|memory| Some(memory.resident))),
                text::mebibytes(cell.memory(|memory| Some(memory.peak))),
                text::mebibytes(cell.memory(crate::memory::Memory::overhead)),
            ],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::report::tests::{cell, report};

    #[test]
    fn tables_have_a_row_a_guest_and_a_column_a_subject() {
        let rows = || vec![cell("a", &[2.0, 2.0]), cell("peer", &[1.0, 1.0]), cell("b", &[8.0, 8.0])];
        let text = markdown(&report(vec![rows(), rows()]));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[2], "| guest | what it does | peer, cycles | a x peer | b x peer |");
        assert_eq!(
            lines[4],
            "| row0 | a \"row\" &lt;of> numbers | 1.00 | 2.00 (2.00 to 2.00) | 8.00 (8.00 to 8.00) |"
        );
        assert_eq!(lines[6], "| geometric mean |  |  | 2.00 | 8.00 |");
        assert!(lines[2..7].iter().all(|line| line.matches('|').count() == 6), "{text}");
    }

    #[test]
    fn other_builds_have_a_table() {
        let text = markdown(&beside::tests::report());
        let table = text.split("### Beside `o&lt;ld`").nth(1).unwrap();
        let lines: Vec<_> = table.lines().skip(4).take(4).collect();
        assert_eq!(lines[0], "| guest | a | b |");
        assert_eq!(
            lines[2..],
            [
                "| micro/row0 | 2.00 (2.00 to 2.00) | 1.00 (1.00 to 1.00) |",
                "| micro/row1 | 2.00 (2.00 to 2.00) | - |"
            ]
        );
    }

    #[test]
    fn memory_has_a_line_a_subject() {
        let mut a = cell("a", &[2.0]);
        a.memory = vec![Memory { resident: 3 << 20, peak: 4 << 20, guest: Some(1 << 20) }];
        let text = markdown(&report(vec![vec![a, cell("peer", &[1.0]), cell("b", &[])]]));
        assert!(text.contains("| a | 2.00 | 2.00 to 2.00 | 2.00 | 3.00 | 4.00 | 2.00 |"), "{text}");
    }
}
