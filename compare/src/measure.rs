//! The rounds: every job on every subject, A B C C B A.
//!
//! 1. Rounds are the outer loop, so that each cell's samples lie spread over the whole run: a slow minute of the host shows
//!    as spread, not as a slower guest.
//! 2. Within a round a job's subjects follow each other, which makes their ratio a comparison of neighbours. Every other
//!    round goes backwards, so that it is no advantage to come after somebody else.
//! 3. A cell that fails is not run again. A request to stop ends everything after the process that runs is killed.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::jobs::{Job, too_slow};
use crate::process::{Broken, Runner};
use crate::report::{Answer, Cell, Row, Status};
use crate::stats::Rounds;
use crate::subject::Subject;

/// What was measured.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) rows: Vec<Row>,
    pub(crate) interrupted: bool,
    /// Rounds that count and were begun.
    pub(crate) rounds_done: u32,
}

/// Runs everything.
///
/// # Errors
/// The core cannot be pinned to any more.
pub(crate) fn measure(
    jobs: &[Box<dyn Job>],
    subjects: &[Subject],
    rounds: Rounds,
    quick: bool,
    runner: &Runner<'_>,
    say: &dyn Fn(&str),
) -> Result<Measured, Error> {
    let mut table: Vec<Vec<Row>> = jobs.iter().map(|job| empty(&**job, subjects, runner.limit)).collect();
    // The first runs bring programs and kernels into the host's caches; of a quick comparison's guests the cheap ones
    // must do.
    let cheap = |job: &dyn Job| !quick || job.is_cheap() || jobs.iter().all(|other| !other.is_cheap());
    let (mut rounds_done, mut interrupted) = (0, false);
    let mut progress = Progress::new(rounds);
    'all: for (number, counts) in rounds.each().enumerate() {
        say(&progress.line(number));
        rounds_done += u32::from(counts);
        for (job, rows) in jobs.iter().zip(&mut table).filter(|(job, _)| counts || cheap(&***job)) {
            for n in order(subjects.len(), number) {
                let subject = &subjects[n];
                if rows.iter().all(|row| row.cells[n].reason.is_some()) {
                    continue;
                }
                if runner.stop.load(Ordering::Relaxed) {
                    interrupted = true;
                    break 'all;
                }
                match job.run(subject, runner)? {
                    Err(Broken::Stopped) => {
                        interrupted = true;
                        break 'all;
                    }
                    Err(Broken::Failed(reason)) => {
                        say(&format!("{} on {} failed: {reason}", rows[0].guest, subject.name));
                        for row in rows.iter_mut() {
                            row.cells[n].fail(Status::Failed, reason.clone());
                        }
                    }
                    Ok(readings) => {
                        for (row, reading) in rows.iter_mut().zip(readings) {
                            let guest = &row.guest;
                            let cell = &mut row.cells[n];
                            if let Some((said, end)) = reading.answer {
                                cell.answer(Answer { said, end: end.0 });
                            }
                            if let Some(reason) = reading.refusal {
                                cell.fail(Status::NotRun, reason);
                            }
                            if let Some(failure) = reading.failure {
                                say(&format!("{guest} on {} failed: {failure}", subject.name));
                                cell.fail(Status::Failed, failure);
                            }
                            if counts && cell.reason.is_none() {
                                if let Some(value) = reading.value {
                                    cell.samples.push(value);
                                }
                                cell.memory.extend(reading.memory);
                                cell.milestones(reading.milestones);
                                cell.counters = reading.counters.or(cell.counters.take());
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(Measured { rows: table.into_iter().flatten().collect(), interrupted, rounds_done })
}

/// In which order the subjects come in a round.
fn order(subjects: usize, round: usize) -> Vec<usize> {
    let order = 0..subjects;
    if round.is_multiple_of(2) { order.collect() } else { order.rev().collect() }
}

/// A job's rows without numbers; those who cannot run it say why.
fn empty(job: &dyn Job, subjects: &[Subject], limit: Duration) -> Vec<Row> {
    let cell = |subject: &Subject| {
        let mut cell = Cell { subject: subject.name.clone(), ..Cell::default() };
        if let Some(reason) = job.refusal(subject).or_else(|| too_slow(job, subject, limit)) {
            cell.fail(Status::NotRun, reason);
        }
        cell
    };
    let row = |spec: &crate::jobs::RowSpec| Row {
        guest: spec.guest.clone(),
        group: spec.group.to_owned(),
        about: spec.about.clone(),
        unit: spec.unit.to_owned(),
        what: spec.what.clone(),
        base: None,
        cells: subjects.iter().map(cell).collect(),
    };
    job.rows().iter().map(row).collect()
}

/// What whoever waits is told.
struct Progress {
    rounds: Rounds,
    /// When the first round that counts began.
    counting: Option<Instant>,
}

impl Progress {
    fn new(rounds: Rounds) -> Self {
        Self { rounds, counting: None }
    }

    /// A line for the round that begins, the first of which is 0.
    fn line(&mut self, number: usize) -> String {
        let Rounds { warm_up, repeat } = self.rounds;
        let Some(done) = (number as u32).checked_sub(warm_up) else {
            return format!("warm-up {} of {warm_up}", number + 1);
        };
        let began = *self.counting.get_or_insert_with(Instant::now);
        let left = match done {
            0 => String::new(),
            done => {
                let seconds = began.elapsed().as_secs_f64() / f64::from(done) * f64::from(repeat - done);
                format!(", some {seconds:.0} s left")
            }
        };
        format!("round {} of {repeat}{left}", done + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_round_goes_backwards() {
        assert_eq!([0, 1, 2].map(|round| order(3, round)), [[0, 1, 2], [2, 1, 0], [0, 1, 2]]);
    }

    #[test]
    fn progress_counts_rounds() {
        let mut progress = Progress::new(Rounds { warm_up: 1, repeat: 2 });
        assert_eq!(progress.line(0), "warm-up 1 of 1");
        assert_eq!(progress.line(1), "round 1 of 2");
        assert!(progress.line(2).starts_with("round 2 of 2, some "));
    }
}
