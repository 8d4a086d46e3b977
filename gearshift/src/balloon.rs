//! What the keys for the balloon do, and what is said of it.

use machine::{BalloonStatus, Machine};

/// Pages of a MiB.
const MIB: u32 = 256;

/// Has the balloon take so many MiB more of the guest's memory, or less; how it stands then.
pub(crate) fn change(machine: &Machine, more: i32) -> String {
    let Some(mut status) = machine.balloon() else {
        return "the machine has no balloon; --balloon 0 gives it one".to_owned();
    };
    let all = u32::try_from(machine.ram().size() >> 12).unwrap_or(u32::MAX);
    status.target = target(status.target, more, all);
    machine.set_balloon(status.target);
    text(&status)
}

/// The target that is `more` MiB from `target`, in pages, of which the guest has `all`.
fn target(target: u32, more: i32, all: u32) -> u32 {
    let pages = more.unsigned_abs().saturating_mul(MIB);
    if more < 0 { target.saturating_sub(pages) } else { target.saturating_add(pages).min(all) }
}

fn text(status: &BalloonStatus) -> String {
    let BalloonStatus { target, actual, stats } = status;
    let mut text = format!("balloon: {} MiB wanted, {} MiB given", target / MIB, actual / MIB);
    if let (Some(free), Some(total)) = (stats.free, stats.total) {
        text += &format!("; of {} MiB the guest has {} MiB free", total >> 20, free >> 20);
    }
    text
}

#[cfg(test)]
mod tests {
    use machine::BalloonStats;

    use super::*;

    #[test]
    fn targets_stay_within_the_memory() {
        let all = 100 * MIB;
        assert_eq!([target(0, -64, all), target(0, 64, all), target(64 * MIB, 64, all)], [0, 64 * MIB, all]);
        assert_eq!([target(70 * MIB, -64, all), target(5, 0, all)], [6 * MIB, 5]);
    }

    #[test]
    fn how_it_stands_is_a_line() {
        let mut status = BalloonStatus { target: 64 * MIB, actual: 32 * MIB, stats: BalloonStats::default() };
        assert_eq!(text(&status), "balloon: 64 MiB wanted, 32 MiB given");
        (status.stats.free, status.stats.total) = (Some(300 << 20), Some(450 << 20));
        assert_eq!(
            text(&status),
            "balloon: 64 MiB wanted, 32 MiB given; of 450 MiB the guest has 300 MiB free"
        );
    }
}
