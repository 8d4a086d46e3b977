//! The guests that check the processor's modes, on a processor that is not ours: QEMU's TCG, where it is installed.

mod common;

use common::qemu;
use guests::modes;

/// Where TCG (7.2) does otherwise than the manuals: it checks neither limits nor types of segments at an access, tells a
/// read-modify-write from a write by which half faults, and pushes no RF with a fault. What it does not do comes last
/// in these guests.
const DEVIATIONS: &[(&str, &str)] = &[
    ("limits", "a byte beyond the limit"),
    ("paging", "a user's read-modify-write is a write"),
    ("debug", "... pushes RF"),
];

#[test]
fn mode_guests_pass_on_another_processor() {
    for guest in modes::all() {
        let Some((console, code)) = qemu(guest.name, guest.elf, "") else { return };
        let verdict = u8::try_from(code >> 1).map(|value| guest.verdict(value));
        match DEVIATIONS.iter().find(|(name, _)| *name == guest.name) {
            None => assert_eq!(verdict, Ok(Ok(())), "{console}"),
            // A later QEMU may have learned it.
            Some((_, check)) => match verdict.unwrap() {
                Ok(()) => {}
                Err(failure) => assert!(failure.ends_with(check), "{failure}"),
            },
        }
        // An emulator that cannot start ends with 1 too, and says nothing.
        assert_eq!(console.contains("passed"), code == 1, "{}: {console}", guest.name);
    }
}
