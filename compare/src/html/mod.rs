//! The report as one page that needs nothing else: no script, no font, no picture from elsewhere.
//!
//! What must not be overlooked comes first (disagreements, what is slower), then a plot and a table for each group of
//! guests, then what could not run, then where it all ran.

mod chart;

use std::fmt::Write as _;

use chart::{Bars, Part, Timeline, Words};

use crate::against::Changes;
use crate::beside::{self, Beside};
use crate::report::{Cell, Report, Row, Status};
use crate::stats::significant;
use crate::text;

const STYLE: &str = include_str!("style.css");

/// Text inside an element or an attribute. Control characters, which a guest may have printed, are no HTML.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\n' => out.push('\n'),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The page.
pub fn html(report: &Report, changes: Option<&Changes>, floor: f64) -> String {
    let title = format!("Gearshift: the same guest on {}", names(report).join(", "));
    // A String takes all that is written: the results of `write!` here and below say nothing.
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{0}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{0}</h1>\n",
        escape(&title)
    );
    let _ = writeln!(
        out,
        "<p class=\"soft\">{}, commit {}, on {}. Lower is better everywhere.</p>",
        escape(&report.program),
        escape(if report.commit.is_empty() { "unknown" } else { &report.commit }),
        escape(&report.host.processor)
    );
    alarm(&mut out, "Backends disagree", &text::disagreements(report));
    alarm(&mut out, "A busy host", &text::caution(report).into_iter().collect::<Vec<_>>());
    if report.interrupted {
        alarm(&mut out, "Interrupted", &["Not all rounds were run; what there is, is shown.".to_owned()]);
    }
    if let Some(changes) = changes {
        let lines = changes.lines(floor);
        if changes.slower.is_empty() {
            let _ = writeln!(out, "<h2>Beside the old report</h2>");
            paragraphs(&mut out, &lines);
        } else {
            alarm(&mut out, "Slower than the old report", &lines);
        }
    }
    for (group, rows) in report.groups() {
        section(&mut out, report, group, &rows);
    }
    for table in beside::tables(report) {
        other_build(&mut out, &table);
    }
    not_run(&mut out, report);
    facts(&mut out, report);
    out + "</body>\n</html>\n"
}

fn names(report: &Report) -> Vec<&str> {
    report.subjects.iter().map(|subject| subject.name.as_str()).collect()
}

fn alarm(out: &mut String, title: &str, lines: &[String]) {
    if !lines.is_empty() {
        let _ = writeln!(out, "<div class=\"alarm\" role=\"alert\">\n<h2>{title}</h2>");
        paragraphs(out, lines);
        let _ = writeln!(out, "</div>");
    }
}

fn paragraphs(out: &mut String, lines: &[String]) {
    for line in lines {
        let _ = writeln!(out, "<p>{}</p>", escape(line));
    }
}

fn figure(out: &mut String, svg: &str) {
    if !svg.is_empty() {
        let _ = write!(out, "<figure>\n{svg}</figure>\n");
    }
}

fn section(out: &mut String, report: &Report, group: &str, rows: &[&Row]) {
    let _ = writeln!(
        out,
        "<h2 id=\"{0}\">{0}</h2>\n<p class=\"soft\">{1}</p>",
        escape(group),
        text::about(group)
    );
    figure(out, &ratios(report, group, rows));
    if group == "boot" || group == "file" {
        for row in rows {
            figure(out, &timeline(row));
        }
    }
    if group == "exits" {
        figure(out, &costs(report, rows));
    }
    paragraphs(out, &text::means(report, rows));
    table(out, report, group, rows);
}

/// Without the group, which is the heading.
fn short(row: &Row) -> String {
    row.guest.strip_prefix(&format!("{}/", row.group)).unwrap_or(&row.guest).to_owned()
}

fn bars_of(
    report: &Report,
    rows: &[&Row],
    of: impl Fn(&Cell) -> Option<crate::stats::Estimate>,
) -> Vec<Bars> {
    let bars = |row: &&Row| {
        let bars: Vec<_> = (0..)
            .zip(&report.subjects)
            .filter_map(|(n, subject)| Some((n, row.cell(&subject.name).and_then(&of)?)))
            .collect();
        (!bars.is_empty()).then(|| Bars { name: short(row), bars })
    };
    rows.iter().filter_map(bars).collect()
}

fn ratios(report: &Report, group: &str, rows: &[&Row]) -> String {
    let mut bases: Vec<&str> = rows.iter().filter_map(|row| row.base.as_deref()).collect();
    bases.dedup();
    let to = bases.join(" or ");
    let words = Words {
        title: &format!("{group}: times as long as {to}"),
        description: "A bar to the right of the dashed line is slower than the base, to the left faster. The thin lines \
                      are 95 % confidence intervals. The table below has the numbers.",
    };
    chart::bars(words, &names(report), &bars_of(report, rows, |cell| cell.ratio), Some(1.0))
}

fn costs(report: &Report, rows: &[&Row]) -> String {
    let words = Words {
        title: "exits: nanoseconds an event",
        description: "What each kind of exit costs on each subject, with 95 % confidence intervals, on a logarithmic axis.",
    };
    chart::bars(words, &names(report), &bars_of(report, rows, |cell| cell.value), None)
}

/// Phases between milestones, whatever these are called, in the order in which the subject that has most reached them.
fn timeline(row: &Row) -> String {
    let longest = row.cells.iter().max_by_key(|cell| cell.milestones.len());
    let phases: Vec<&str> =
        longest.into_iter().flat_map(|cell| &cell.milestones).map(|(name, _)| name.as_str()).collect();
    let lines: Vec<_> = row
        .cells
        .iter()
        .filter(|cell| !cell.samples.values().is_empty())
        .map(|cell| {
            let mut before = 0.0;
            let part = |(name, samples): &(String, crate::stats::Samples)| {
                let end = samples.spread()?.median;
                let phase = phases.iter().position(|phase| phase == name)?;
                Some(Part { phase, begin: std::mem::replace(&mut before, end), end })
            };
            Timeline { name: cell.subject.clone(), parts: cell.milestones.iter().filter_map(part).collect() }
        })
        .collect();
    let words = Words {
        title: &format!("{}: timeline, each phase until what it is called by", row.guest),
        description: "Seconds from the start of the process until each milestone of its console output, as who reads it \
                      sees them; medians of the rounds.",
    };
    chart::timelines(words, &phases, &lines)
}

fn table(out: &mut String, report: &Report, group: &str, rows: &[&Row]) {
    let memory = rows.iter().any(|row| row.cells.iter().any(|cell| !cell.memory.is_empty()));
    let extra = if memory { "<th>RSS, MiB</th><th>peak RSS, MiB</th><th>overhead, MiB</th>" } else { "" };
    let _ = write!(
        out,
        "<div class=\"scroll\">\n<table>\n<caption>{}: medians with extremes; ratios with their 95 % confidence \
         interval</caption>\n<thead><tr><th class=\"name\" scope=\"col\">guest</th><th class=\"name\" \
         scope=\"col\">on</th><th scope=\"col\">median</th><th scope=\"col\">spread</th><th scope=\"col\">ratio</th>\
         <th scope=\"col\">interval</th>{extra}</tr></thead>\n<tbody>\n",
        escape(group)
    );
    for row in rows {
        for subject in &report.subjects {
            let Some(cell) = row.cell(&subject.name) else { continue };
            if subject.kind == "native" && cell.status == Status::NotRun {
                continue;
            }
            let head = format!(
                "<tr><th class=\"name\" scope=\"row\" title=\"{}\">{}</th><td class=\"name\">{}</td>",
                escape(&format!("{}; {}", row.about, row.what)),
                escape(&short(row)),
                escape(&cell.subject)
            );
            let Some(spread) = cell.spread else {
                let columns = if memory { 7 } else { 4 };
                let reason = cell.reason.as_deref().unwrap_or("interrupted");
                let _ = writeln!(
                    out,
                    "{head}<td class=\"wide soft\" colspan=\"{columns}\">no number: {}</td></tr>",
                    escape(&brief(reason))
                );
                continue;
            };
            let interval = |ratio: crate::stats::Estimate| {
                ratio.interval.map_or_else(String::new, |(low, high)| {
                    format!("{} to {}", significant(low), significant(high))
                })
            };
            let base = row.base.as_deref().unwrap_or_default();
            let (ratio, interval) = match cell.ratio {
                Some(ratio) => (format!("{} x {}", significant(ratio.value), escape(base)), interval(ratio)),
                None => ("1".to_owned(), String::new()),
            };
            let _ = write!(
                out,
                "{head}<td>{} {}</td><td>{} .. {}</td><td>{ratio}</td><td>{interval}</td>",
                significant(spread.median),
                escape(&row.unit),
                significant(spread.min),
                significant(spread.max)
            );
            if memory {
                let _ = write!(
                    out,
                    "<td>{}</td><td>{}</td><td>{}</td>",
                    text::mebibytes(cell.memory(|memory| Some(memory.resident))),
                    text::mebibytes(cell.memory(|memory| Some(memory.peak))),
                    text::mebibytes(cell.memory(crate::memory::Memory::overhead))
                );
            }
            let _ = writeln!(out, "</tr>");
        }
    }
    let _ = write!(out, "</tbody>\n</table>\n</div>\n");
}

/// This build beside another one.
fn other_build(out: &mut String, beside: &Beside<'_>) {
    let title = format!("Beside {}", beside.label);
    let _ = writeln!(
        out,
        "<h2>{}</h2>\n<p class=\"soft\">{}: {}.</p>",
        escape(&title),
        escape(beside.path),
        beside::MEANING
    );
    let bars = |line: &beside::Line| Bars {
        name: line.name.clone(),
        bars: (0..).zip(&line.ratios).filter_map(|(n, ratio)| Some((n, (*ratio)?))).collect(),
    };
    let words = Words {
        title: &format!("{title}: {}", beside::MEANING),
        description: "A bar to the right of the dashed line: this build is slower; to the left: it is faster. The thin \
                      lines are 95 % confidence intervals. The table below has the numbers.",
    };
    figure(
        out,
        &chart::bars(words, &beside.backends, &beside.lines.iter().map(bars).collect::<Vec<_>>(), Some(1.0)),
    );
    let columns = beside
        .backends
        .iter()
        .map(|name| format!("<th scope=\"col\">{}</th><th scope=\"col\">interval</th>", escape(name)));
    let _ = write!(
        out,
        "<div class=\"scroll\">\n<table>\n<caption>{}</caption>\n<thead><tr><th class=\"name\" scope=\"col\">guest</th>\
         {}</tr></thead>\n<tbody>\n",
        escape(&title),
        columns.collect::<String>()
    );
    for line in beside.lines.iter().chain(&beside.means) {
        let cells = line.words().map(|(value, interval)| format!("<td>{value}</td><td>{interval}</td>"));
        let _ = writeln!(
            out,
            "<tr><th class=\"name\" scope=\"row\">{}</th>{}</tr>",
            escape(&line.name),
            cells.collect::<String>()
        );
    }
    let _ = write!(out, "</tbody>\n</table>\n</div>\n");
}

/// The beginning of a reason; all of it is in the list below.
fn brief(reason: &str) -> String {
    const SHOWN: usize = 90;
    match reason.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", &reason[..at]),
        None => reason.to_owned(),
    }
}

fn not_run(out: &mut String, report: &Report) {
    let lines = text::missing(report);
    if !lines.is_empty() {
        let _ = writeln!(out, "<h2 id=\"not-run\">What has no numbers, and why</h2>");
        paragraphs(out, &lines);
    }
}

fn facts(out: &mut String, report: &Report) {
    let _ = write!(out, "<h2 id=\"facts\">Where and how</h2>\n<dl>\n");
    let mut fact = |name: &str, value: &str| {
        let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
    };
    let host = &report.host;
    fact("processor", &format!("{}, {} cores, TSC at {} kHz", host.processor, host.cores, host.tsc_khz));
    fact("host's kernel", &host.kernel);
    fact("pinned to", &format!("core {}", host.core));
    fact("load averages", &format!("{} after", host.load.join(" before, ")));
    for subject in &report.subjects {
        let provider = subject.provider.as_ref().map_or_else(String::new, |p| format!("; provider {p}"));
        let quality = subject.quality.as_ref().map_or_else(String::new, |q| format!(", {q}"));
        fact(&subject.name, &format!("{} ({}{quality}{provider})", subject.about, subject.kind));
    }
    let mut whats: Vec<&str> = report
        .rows
        .iter()
        .filter(|row| row.group != "micro" && row.group != "exits")
        .map(|row| row.what.as_str())
        .collect();
    whats.dedup();
    for what in whats.into_iter().filter(|what| !what.is_empty()) {
        fact("guest", what);
    }
    fact("command", &format!("gearshift {}", report.command.join(" ")));
    fact(
        "rounds",
        &format!(
            "{} of {} that count, after {} of warm-up; {:.0} s in all",
            report.rounds_done, report.rounds.repeat, report.rounds.warm_up, report.seconds
        ),
    );
    let _ = writeln!(out, "</dl>");
    paragraphs(
        out,
        &["Rounds are interleaved (A B C C B A). A ratio is the geometric mean of the ratios of each round, its interval \
           the 95 % confidence interval by Student's t distribution of their logarithms."
            .to_owned()],
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Answer;
    use crate::report::tests::{cell, report};

    /// Elements open and close in order, attributes are quoted, and no bare `<` or `&` is left: the page is XML, but for
    /// its first line.
    fn assert_well_formed(page: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap();
        while let Some(at) = rest.find('<') {
            let (text, tag) = rest.split_at(at);
            if open.last() != Some(&"style") {
                for (amp, _) in text.match_indices('&') {
                    let entity = text[amp..].split_once(';').map(|(entity, _)| entity).unwrap();
                    assert!(["&amp", "&lt", "&gt", "&quot"].contains(&entity), "{entity}");
                }
                assert!(!text.contains('>'), "{text}");
            }
            let (tag, after) = tag[1..].split_once('>').unwrap();
            rest = after;
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{tag}");
            } else {
                assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
                let name = tag.split([' ', '/']).next().unwrap();
                assert!(name.chars().all(|c| c.is_ascii_alphanumeric()) && !name.is_empty(), "{tag}");
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    fn full() -> Report {
        let mut boot = cell("a", &[2.0, 2.1, 2.2]);
        for end in [0.4, 1.1, 1.2] {
            boot.milestones(vec![("first byte".into(), end / 4.0), ("in<it".into(), end)]);
        }
        let mut bad = cell("b", &[]);
        bad.fail(Status::Failed, "said <script>alert(1)</script> & \u{1b}[31m died".to_owned());
        let mut cells = vec![boot, cell("peer", &[1.0, 1.0, 1.1]), bad];
        for (cell, said) in cells.iter_mut().zip(["1", "2", "<3>"]) {
            cell.answer(Answer { said: said.into(), end: "power-off".into() });
        }
        let mut report =
            report(vec![cells.clone(), vec![cell("a", &[1.0]), cell("peer", &[]), cell("b", &[3.0])], cells]);
        report.rows[0].group = "boot".to_owned();
        report.rows[2].group = "exits".to_owned();
        report
    }

    #[test]
    fn the_page_is_well_formed_and_needs_nothing_else() {
        let mut report = full();
        report.interrupted = true;
        let changes = Changes { remarks: vec!["<b>".to_owned()], ..Changes::default() };
        let page = html(&report, Some(&changes), 0.03);
        assert_well_formed(&page);
        for word in ["src=", "href=", "url(", "@import", "<script", "\u{1b}"] {
            assert!(!page.contains(word), "{word}");
        }
        assert_eq!(page.matches("http").count(), page.matches("http://www.w3.org/2000/svg").count());
    }

    #[test]
    fn what_must_not_be_overlooked_comes_first() {
        let page = html(&full(), None, 0.03);
        let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("no {text}"));
        assert!(at("Backends disagree") < at("id=\"boot\""));
        assert!(at("id=\"exits\"") < at("id=\"not-run\"") && at("id=\"not-run\"") < at("id=\"facts\""));
        assert!(page.contains("boot: times as long as peer") && page.contains("timeline"));
        assert!(page.contains("nanoseconds an event"));
        assert!(page.contains("prefers-color-scheme: dark"));
    }

    #[test]
    fn other_builds_have_a_plot_and_a_table() {
        let page = html(&beside::tests::report(), None, 0.03);
        assert_well_formed(&page);
        assert!(page.contains("<h2>Beside o&lt;ld</h2>") && page.contains("geometric mean, all: 2 rows"));
    }

    #[test]
    fn a_page_of_nothing_is_a_page() {
        assert_well_formed(&html(&report(vec![]), None, 0.03));
    }
}
