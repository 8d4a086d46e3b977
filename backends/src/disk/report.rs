//! One line to the host for what went wrong, at a bounded rate.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines that may come at once.
const BURST: u32 = 5;

/// After this time without a line there may be a burst again.
const QUIET: Duration = Duration::from_secs(10);

/// The log of one disk. A guest that provokes an error with each request gets its errors; the host's log gets a few lines
/// and then a count.
#[derive(Debug)]
pub(super) struct Report {
    name: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Report {
    pub(super) fn new(name: String) -> Self {
        Self { name, state: Mutex::default() }
    }

    /// Logs `what`, unless there was too much of it.
    pub(super) fn error(&self, what: std::fmt::Arguments<'_>) {
        if let Some(suppressed) = self.admit(Instant::now()) {
            let name = &self.name;
            match suppressed {
                0 => tracing::warn!("disk {name}: {what}"),
                n => tracing::warn!("disk {name}: {what} ({n} errors were not shown before)"),
            }
        }
    }

    /// Whether a line may be written at `now`, and how many were suppressed since the last.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.duration_since(since) >= QUIET) {
            state.since = Some(now);
            state.lines = 0;
        }
        if state.lines == BURST {
            state.suppressed += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_few_lines_and_a_count() {
        let report = Report::new("d".to_owned());
        let start = Instant::now();
        let admitted = (0..1000).filter(|_| report.admit(start).is_some()).count();
        assert_eq!(admitted, BURST as usize);
        assert_eq!(report.admit(start + QUIET), Some(1000 - u64::from(BURST)));
        assert_eq!(report.admit(start + QUIET), Some(0));
    }
}
