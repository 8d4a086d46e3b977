//! Plots as SVG: bars on a logarithmic axis with error bars, and timelines.
//!
//! Colours are classes of the page's style sheet, so that a plot follows the reader's light or dark scheme. Each plot has a
//! title and a description for who does not see it, and each bar its numbers as a tooltip.

use std::fmt::Write as _;

use super::escape;
use crate::stats::{Estimate, significant};

/// Width of every plot, in its own units.
const WIDTH: f64 = 820.0;
/// Where names end and the axis begins.
const LEFT: f64 = 150.0;
/// Room for numbers behind bars.
const RIGHT: f64 = 70.0;
const BAR: f64 = 13.0;
const GAP: f64 = 10.0;
const AXIS: f64 = 26.0;
const LEGEND: f64 = 26.0;
/// Roughly a character's width.
const CHARACTER: f64 = 6.8;

/// What a plot says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a> {
    pub(super) title: &'a str,
    pub(super) description: &'a str,
}

/// Bars with one name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bars {
    pub(super) name: String,
    /// Index of the series, and its value.
    pub(super) bars: Vec<(usize, Estimate)>,
}

/// A bar that is cut into phases.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Timeline {
    pub(super) name: String,
    pub(super) parts: Vec<Part>,
}

/// One phase, with its index and the seconds at which it begins and ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Part {
    pub(super) phase: usize,
    pub(super) begin: f64,
    pub(super) end: f64,
}

/// A scale from values to places.
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// Smallest and largest value shown.
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        let of = |value: f64| if self.logarithmic { value.ln() } else { value };
        let part = (of(value.clamp(self.low, self.high)) - of(self.low)) / (of(self.high) - of(self.low));
        LEFT + part * (WIDTH - LEFT - RIGHT)
    }

    /// Values worth a line: 1, 2 and 5 times powers of ten, fewer if that is too many.
    fn ticks(self) -> Vec<f64> {
        let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
        let steps = |list: &[f64]| -> Vec<f64> {
            let all =
                decades.clone().flat_map(|decade| list.iter().map(move |step| step * 10f64.powi(decade)));
            all.filter(|value| (self.low..=self.high).contains(value)).collect()
        };
        [&[1.0, 2.0, 5.0][..], &[1.0, 3.0]]
            .into_iter()
            .map(steps)
            .find(|ticks| ticks.len() <= 9)
            .unwrap_or_else(|| steps(&[1.0]))
    }
}

/// Bars of several series, which begin at `from` (the smallest decade if there is none) on a logarithmic axis.
pub(super) fn bars(words: Words<'_>, series: &[&str], groups: &[Bars], from: Option<f64>) -> String {
    let ends = |estimate: &Estimate| estimate.interval.unwrap_or((estimate.value, estimate.value));
    let all = || groups.iter().flat_map(|group| group.bars.iter().map(|(_, estimate)| estimate));
    let low = all().map(|e| ends(e).0.max(e.value / 10.0)).fold(f64::INFINITY, f64::min);
    let high = all().map(|e| ends(e).1.min(e.value * 10.0)).fold(0.0, f64::max);
    if !(low.is_finite() && low > 0.0 && high.is_finite()) {
        return String::new();
    }
    let low = from.map_or_else(|| 10f64.powf(low.log10().floor()), |from| low.min(from) / 1.1);
    let scale = Scale { low, high: high.max(from.unwrap_or(0.0)).max(low * 1.5) * 1.1, logarithmic: true };
    let body: f64 = groups.iter().map(|group| group.bars.len() as f64 * BAR + GAP).sum();
    let mut svg = open(words, LEGEND + body + AXIS);
    legend(&mut svg, series, |n| groups.iter().any(|group| group.bars.iter().any(|(other, _)| *other == n)));
    grid(&mut svg, scale, LEGEND + body);
    let zero = scale.place(from.unwrap_or(low));
    if from.is_some() {
        line(&mut svg, "base", (zero, LEGEND - 4.0), (zero, LEGEND + body));
    }
    let mut y = LEGEND;
    for group in groups {
        let middle = y + group.bars.len() as f64 * BAR / 2.0 + 4.0;
        text(&mut svg, "", "end", LEFT - 8.0, middle, &group.name);
        for (n, estimate) in &group.bars {
            let at = scale.place(estimate.value);
            let (left, width) = (zero.min(at), (at - zero).abs().max(1.0));
            let tip = format!("{}, {}: {estimate}", group.name, series.get(*n).unwrap_or(&""));
            rect(&mut svg, *n, (left, y + 1.0), (width, BAR - 2.0), &tip);
            let mut label_at = zero.max(at);
            if let Some((low, high)) = estimate.interval {
                let (low, high, middle) = (scale.place(low), scale.place(high), y + BAR / 2.0);
                line(&mut svg, "whisker", (low, middle), (high, middle));
                for end in [low, high] {
                    line(&mut svg, "whisker", (end, middle - 3.0), (end, middle + 3.0));
                }
                label_at = label_at.max(high);
            }
            text(&mut svg, "soft", "start", label_at + 5.0, y + BAR - 3.0, &significant(estimate.value));
            y += BAR;
        }
        y += GAP;
    }
    svg + "</svg>\n"
}

/// A bar a line, on an axis of seconds.
pub(super) fn timelines(words: Words<'_>, phases: &[&str], lines: &[Timeline]) -> String {
    let high = lines.iter().flat_map(|one| one.parts.iter().map(|part| part.end)).fold(0.0, f64::max);
    if high <= 0.0 {
        return String::new();
    }
    const THICK: f64 = 22.0;
    let body = lines.len() as f64 * (THICK + GAP);
    let mut svg = open(words, LEGEND + body + AXIS);
    legend(&mut svg, phases, |_| true);
    let scale = Scale { low: 0.0, high, logarithmic: false };
    let step = 10f64.powf(high.log10().floor())
        / if high / 10f64.powf(high.log10().floor()) < 4.0 { 2.0 } else { 1.0 };
    let mut tick = 0.0;
    while tick <= high {
        grid_line(&mut svg, scale.place(tick), LEGEND + body, &format!("{} s", short(tick)));
        tick += step;
    }
    let mut y = LEGEND;
    for Timeline { name, parts } in lines {
        text(&mut svg, "", "end", LEFT - 8.0, y + THICK / 2.0 + 4.0, name);
        for Part { phase, begin, end } in parts {
            let (left, right) = (scale.place(*begin), scale.place(*end));
            let tip = format!(
                "{name}, {}: {} s to {} s",
                phases.get(*phase).unwrap_or(&""),
                significant(*begin),
                significant(*end)
            );
            rect(&mut svg, *phase, (left, y), ((right - left).max(1.0), THICK), &tip);
        }
        if let Some(Part { end, .. }) = parts.last() {
            text(
                &mut svg,
                "soft",
                "start",
                scale.place(*end) + 5.0,
                y + THICK / 2.0 + 4.0,
                &format!("{} s", significant(*end)),
            );
        }
        y += THICK + GAP;
    }
    svg + "</svg>\n"
}

// A String takes all that is written: the results of `write!` below say nothing.

fn open(words: Words<'_>, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         <title>{}</title>\n<desc>{}</desc>\n",
        escape(words.title),
        escape(words.description)
    )
}

/// Names of those series that are shown.
fn legend(svg: &mut String, series: &[&str], shown: impl Fn(usize) -> bool) {
    let mut x = 8.0;
    for (n, name) in series.iter().enumerate().filter(|(n, _)| shown(*n)) {
        let _ = writeln!(svg, "<rect class=\"s{}\" x=\"{x:.1}\" y=\"3\" width=\"11\" height=\"11\"/>", n % 8);
        text(svg, "", "start", x + 16.0, 13.0, name);
        x += 36.0 + name.chars().count() as f64 * CHARACTER;
    }
}

fn grid(svg: &mut String, scale: Scale, bottom: f64) {
    for tick in scale.ticks() {
        grid_line(svg, scale.place(tick), bottom, &short(tick));
    }
}

/// A round number without the zeros behind its point.
fn short(tick: f64) -> String {
    let text = format!("{tick:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn grid_line(svg: &mut String, x: f64, bottom: f64, label: &str) {
    line(svg, "grid", (x, LEGEND - 4.0), (x, bottom));
    text(svg, "soft", "middle", x, bottom + 15.0, label);
}

fn line(svg: &mut String, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    let _ = writeln!(
        svg,
        "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    );
}

fn rect(svg: &mut String, series: usize, (x, y): (f64, f64), (width, height): (f64, f64), tip: &str) {
    let _ = writeln!(
        svg,
        "<rect class=\"s{}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"><title>{}</title></rect>",
        series % 8,
        escape(tip)
    );
}

fn text(svg: &mut String, class: &str, anchor: &str, x: f64, y: f64, text: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
        escape(text)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: Words<'static> = Words { title: "a < b", description: "d & e" };

    fn bar(value: f64, interval: Option<(f64, f64)>) -> Bars {
        Bars { name: "x<y".to_owned(), bars: vec![(0, Estimate { value, interval })] }
    }

    #[test]
    fn bars_begin_at_the_base_and_have_whiskers() {
        let svg = bars(WORDS, &["s"], &[bar(2.0, Some((1.5, 2.5))), bar(0.5, None)], Some(1.0));
        assert!(svg.contains("a &lt; b") && svg.contains("x&lt;y") && svg.contains("d &amp; e"), "{svg}");
        assert_eq!(svg.matches("class=\"whisker\"").count(), 3);
        assert_eq!(svg.matches("class=\"base\"").count(), 1);
        // One bar ends where the other begins.
        let places: Vec<(f64, f64)> = svg
            .lines()
            .filter(|line| line.contains("<title>x"))
            .map(|line| {
                let number = |key: &str| -> f64 {
                    line.split(&format!(" {key}=\""))
                        .nth(1)
                        .unwrap()
                        .split('"')
                        .next()
                        .unwrap()
                        .parse()
                        .unwrap()
                };
                (number("x"), number("width"))
            })
            .collect();
        assert!((places[1].0 + places[1].1 - places[0].0).abs() < 0.2, "{places:?}");
    }

    /// Intervals of three noisy rounds can be absurd, and nothing that is shown may leave the plot.
    #[test]
    fn places_stay_inside() {
        let scale = Scale { low: 0.5, high: 2.0, logarithmic: true };
        for value in [1e-9, 0.5, 1.0, 2.0, 1e9] {
            assert!((LEFT..=WIDTH - RIGHT).contains(&scale.place(value)));
        }
        assert_eq!(scale.ticks(), [0.5, 1.0, 2.0]);
        assert_eq!([0.0, 0.05, 2.0, 300.0].map(short), ["0", "0.05", "2", "300"]);
        assert!(Scale { low: 1e-3, high: 1e6, logarithmic: true }.ticks().len() <= 10);
        assert_eq!(bars(WORDS, &[], &[], Some(1.0)), "");
        assert_eq!(timelines(WORDS, &[], &[]), "");
    }

    #[test]
    fn timelines_show_every_phase() {
        let part = |phase, begin, end| Part { phase, begin, end };
        let one = Timeline { name: "a".to_owned(), parts: vec![part(0, 0.0, 1.0), part(1, 1.0, 1.5)] };
        let svg = timelines(WORDS, &["boot", "off"], &[one]);
        assert_eq!(svg.matches("<title>a, ").count(), 2);
        assert!(svg.contains("1.50 s"), "{svg}");
    }
}
