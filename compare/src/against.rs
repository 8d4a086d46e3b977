//! `--against`: what has become slower since another report was written.
//!
//! 1. Only our own backends are judged; peers and the host do not change with our commits.
//! 2. Where both reports have the same guest on the same peer, or natively, the *ratio* to that is compared: a host that is
//!    slower today slows both. Else the times themselves are, which takes the same host.
//! 3. Slower, or faster, is what differs beyond both 95 % intervals *and* by more than a floor: intervals of few rounds
//!    are sometimes narrow by luck, and a difference of a percent is no reason to act.

use crate::report::{Cell, Report, Row};
use crate::stats::{Estimate, significant};

/// One guest on one backend that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The guest.
    pub guest: String,
    /// The backend.
    pub subject: String,
    /// Value, or ratio, then.
    pub before: Estimate,
    /// The same now.
    pub now: Estimate,
    /// What both are a ratio to, or the unit they are in.
    pub measure: String,
}

/// What a report says beside an older one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Slower beyond noise.
    pub slower: Vec<Change>,
    /// Faster beyond noise.
    pub faster: Vec<Change>,
    /// How many could be judged.
    pub judged: usize,
    /// Why others could not, a line each.
    pub remarks: Vec<String>,
}

impl Change {
    /// How many times longer it takes now.
    pub fn factor(&self) -> f64 {
        self.now.value / self.before.value
    }

    /// One line.
    pub fn line(&self) -> String {
        let percent = (self.factor() - 1.0) * 100.0;
        let word = if percent > 0.0 { "slower" } else { "faster" };
        format!(
            "{word}: {} on {}: {:+.0} %, {} where it was {} ({})",
            self.guest, self.subject, percent, self.now, self.before, self.measure
        )
    }
}

/// Compares; `floor` is the smallest relative difference that counts, such as 0.03.
pub fn against(new: &Report, old: &Report, floor: f64) -> Changes {
    let mut changes = Changes::default();
    let same_host = new.host.processor == old.host.processor;
    if !same_host {
        changes.remarks.push(format!(
            "the old report is of another processor ({}), so only ratios to a peer or the host are compared",
            old.host.processor
        ));
    }
    let mut unjudged = Vec::new();
    for row in &new.rows {
        let Some(old_row) = old.rows.iter().find(|other| other.guest == row.guest) else {
            unjudged.push(format!("{} (not in the old report)", row.guest));
            continue;
        };
        if old_row.what != row.what {
            unjudged.push(format!("{} (another guest then: {})", row.guest, old_row.what));
            continue;
        }
        for cell in &row.cells {
            let ours = new.subjects.iter().any(|s| s.name == cell.subject && s.kind == "backend");
            let old_cell = old_row.cell(&cell.subject).filter(|old| old.value.is_some());
            let (true, Some(_), Some(old_cell)) = (ours, cell.value, old_cell) else { continue };
            let pair = common_base(new, old, row, old_row, cell, old_cell).or_else(|| {
                let values = cell.value.zip(old_cell.value)?;
                same_host.then_some((values.0, values.1, row.unit.clone()))
            });
            let Some((now, before, measure)) = pair else {
                unjudged.push(format!("{} on {} (no peer in common)", row.guest, cell.subject));
                continue;
            };
            if now.interval.is_none() || before.interval.is_none() {
                unjudged.push(format!("{} on {} (a single round has no interval)", row.guest, cell.subject));
                continue;
            }
            changes.judged += 1;
            let (guest, subject) = (row.guest.clone(), cell.subject.clone());
            let change = Change { guest, subject, before, now, measure };
            if now.differs_from(&before) {
                match change.factor() {
                    factor if factor > 1.0 + floor => changes.slower.push(change),
                    factor if factor < 1.0 / (1.0 + floor) => changes.faster.push(change),
                    _ => {}
                }
            }
        }
    }
    if !unjudged.is_empty() {
        changes.remarks.push(format!("not judged: {}", unjudged.join(", ")));
    }
    changes.slower.sort_by(|a, b| b.factor().total_cmp(&a.factor()));
    changes.faster.sort_by(|a, b| a.factor().total_cmp(&b.factor()));
    changes
}

/// The ratios now and then to somebody who is no backend of ours, is the same in both reports, and has numbers in both
/// rows.
fn common_base(
    new: &Report,
    old: &Report,
    row: &Row,
    old_row: &Row,
    cell: &Cell,
    old_cell: &Cell,
) -> Option<(Estimate, Estimate, String)> {
    new.subjects.iter().filter(|subject| subject.kind != "backend").find_map(|subject| {
        old.subjects.iter().find(|other| other.name == subject.name && other.about == subject.about)?;
        let ratio = |cell: &Cell, row: &Row| {
            let base = row.cell(&subject.name)?;
            cell.samples.ratios(&base.samples).estimate()
        };
        let (now, before) = (ratio(cell, row)?, ratio(old_cell, old_row)?);
        Some((now, before, format!("x {}", subject.name)))
    })
}

impl Changes {
    /// The lines for the user.
    pub fn lines(&self, floor: f64) -> Vec<String> {
        let mut lines: Vec<String> = self.slower.iter().chain(&self.faster).map(Change::line).collect();
        lines.push(format!(
            "{} slower and {} faster of {} that were judged (beyond both 95 % intervals and {} %)",
            self.slower.len(),
            self.faster.len(),
            self.judged,
            significant(floor * 100.0)
        ));
        lines.extend(self.remarks.iter().cloned());
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{cell, report};

    fn one(a: &[f64], peer: &[f64]) -> Report {
        report(vec![vec![cell("a", a), cell("peer", peer), cell("b", &[])]])
    }

    #[test]
    fn a_slower_host_is_no_slower_backend() {
        let old = one(&[2.0, 2.01, 1.99], &[1.0, 1.0, 1.0]);
        let new = one(&[4.0, 4.01, 3.99], &[2.0, 2.0, 2.0]);
        let changes = against(&new, &old, 0.03);
        assert_eq!((changes.judged, &changes.slower[..], &changes.faster[..]), (1, &[][..], &[][..]));
        // Without the peer there is only the time.
        let (old, new) = (one(&[2.0, 2.01, 1.99], &[]), one(&[4.0, 4.01, 3.99], &[]));
        let changes = against(&new, &old, 0.03);
        assert_eq!((changes.slower.len(), changes.slower[0].measure.as_str()), (1, "cycles"));
        assert!(changes.slower[0].line().contains("+100 %"), "{}", changes.slower[0].line());
        assert_eq!(against(&old, &new, 0.03).faster.len(), 1);
    }

    #[test]
    fn noise_and_small_differences_are_none() {
        let old = one(&[2.0, 2.0, 2.0], &[1.0, 1.0, 1.0]);
        // 2 %, without any spread.
        assert!(against(&one(&[2.04, 2.04, 2.04], &[1.0, 1.0, 1.0]), &old, 0.03).slower.is_empty());
        assert_eq!(against(&one(&[2.04, 2.04, 2.04], &[1.0, 1.0, 1.0]), &old, 0.01).slower.len(), 1);
        // 10 %, within the interval.
        assert!(against(&one(&[1.8, 2.2, 2.6], &[1.0, 1.0, 1.0]), &old, 0.03).slower.is_empty());
    }

    #[test]
    fn what_cannot_be_judged_is_told() {
        let mut old = one(&[2.0, 2.0], &[]);
        let new = one(&[3.0, 3.0], &[]);
        old.host.processor = "another".to_owned();
        let changes = against(&new, &old, 0.03);
        assert_eq!((changes.judged, changes.slower.len()), (0, 0));
        assert!(changes.remarks.join("\n").contains("no peer in common"), "{:?}", changes.remarks);
        assert!(against(&new, &report(vec![]), 0.03).remarks[0].contains("not in the old report"));
        let changes = against(&one(&[2.0], &[1.0]), &one(&[9.0], &[1.0]), 0.03);
        assert!(changes.remarks[0].contains("single round"), "{:?}", changes.remarks);
    }
}
