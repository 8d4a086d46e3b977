//! The tests that every unit must pass, by one macro: [`unit_tests!`](crate::unit_tests).

use crate::{RestoreError, Section, StateUnit};

/// A unit with all that it is wired to, built the same way each time.
pub trait UnitRig {
    /// `reset` leaves nothing of the past (false for memory with a battery, or lines that others drive).
    const RESET_FORGETS: bool = true;

    /// A new one.
    fn new() -> Self;
    /// A new one that lives in the same time as this.
    fn another(&self) -> Self;
    /// The unit.
    fn unit(&self) -> &dyn StateUnit;
    /// Uses it in some way that `seed` decides.
    fn disturb(&self, seed: u64);
}

fn disturbed<R: UnitRig>(seed: u64) -> R {
    let rig = R::new();
    rig.disturb(seed);
    rig
}

/// What is saved can be restored into a new unit, which then saves the same; and onto the unit itself.
pub fn round_trip<R: UnitRig>() {
    let mut different = 0;
    let new = R::new().unit().save();
    for seed in 0..32 {
        let one = disturbed::<R>(seed);
        let section = one.unit().save();
        different += u32::from(section != new);
        let two = one.another();
        two.unit().restore(&section).expect("what a unit has saved, another takes");
        assert_eq!(two.unit().save(), section, "seed {seed}: restore lost something");
        one.unit().restore(&section).expect("and the same one");
        assert_eq!(one.unit().save(), section, "seed {seed}: restoring a unit onto itself changed it");
    }
    assert!(different > 8, "only {different} of 32 rigs were disturbed");
}

/// Behind a reset it is as a new one behind a reset, and a second reset changes nothing.
pub fn reset_equals_new<R: UnitRig>() {
    for seed in 0..16 {
        let used = disturbed::<R>(seed);
        used.unit().reset();
        let first = used.unit().save();
        if R::RESET_FORGETS {
            let new = used.another();
            new.unit().reset();
            assert_eq!(first, new.unit().save(), "seed {seed}: reset left traces");
        }
        used.unit().reset();
        assert_eq!(used.unit().save(), first, "seed {seed}: a second reset changed something");
    }
}

/// Versions that are not there are refused by number, and leave the unit as it was.
pub fn other_versions<R: UnitRig>() {
    let rig = disturbed::<R>(5);
    let section = rig.unit().save();
    for version in [0, section.version + 1, u32::MAX] {
        let other = Section { version, ..section.clone() };
        let refused = rig.unit().restore(&other);
        assert_eq!(refused, Err(RestoreError::Version { found: version, reads: section.version }));
        assert_eq!(rig.unit().save(), section, "a refused section changed the unit");
    }
    // Each version since the first either is read, or is refused by its number.
    for version in 1..section.version {
        let older = Section { version, body: b"{}".into() };
        let refused = rig.unit().restore(&older).expect_err("no unit was ever saved as nothing");
        assert!(matches!(refused, RestoreError::Damaged(_) | RestoreError::Version { .. }), "{refused}");
    }
}

/// Damaged bytes are refused, or are the state of some unit, which can be used; nothing panics, and what is refused changes
/// nothing.
pub fn damaged_bytes<R: UnitRig>() {
    let rig = disturbed::<R>(3);
    let section = rig.unit().save();
    let mut refused = 0u32;
    let mut tried = 0u32;
    let mut damaged = |body: Vec<u8>| {
        tried += 1;
        let other = Section { body, ..section.clone() };
        let before = rig.unit().save();
        match rig.unit().restore(&other) {
            Err(_) => {
                refused += 1;
                assert_eq!(rig.unit().save(), before, "a refused section changed the unit");
            }
            Ok(()) => {
                let taken = rig.unit().save();
                rig.unit().restore(&taken).expect("what a unit has saved, it takes");
                assert_eq!(rig.unit().save(), taken);
                rig.disturb(u64::from(tried));
                rig.unit().restore(&section).expect("the whole section again");
            }
        }
    };
    let step = (section.body.len() / 400).max(1);
    for at in (0..section.body.len()).step_by(step) {
        damaged(section.body[..at].to_vec());
        for flip in [1, 2, 4, 8, 16, 0x20, 0x80] {
            let mut body = section.body.clone();
            body[at] ^= flip;
            damaged(body);
        }
    }
    damaged(b"null".to_vec());
    damaged(b"[]".to_vec());
    assert!(refused * 4 > tried, "only {refused} of {tried} damaged sections were refused");
}

/// Writes the tests that every unit must pass, for a type that implements [`UnitRig`](crate::testing::UnitRig).
#[macro_export]
macro_rules! unit_tests {
    ($rig:ty) => {
        #[test]
        fn save_restore_round_trip() {
            $crate::testing::round_trip::<$rig>();
        }
        #[test]
        fn reset_equals_new() {
            $crate::testing::reset_equals_new::<$rig>();
        }
        #[test]
        fn other_versions_are_refused() {
            $crate::testing::other_versions::<$rig>();
        }
        #[test]
        fn damaged_bytes_are_refused_or_harmless() {
            $crate::testing::damaged_bytes::<$rig>();
        }
    };
}
