//! Differences between processors that are no error of the software CPU, each with its reason.

use iced_x86::Instruction;

use super::case::Case;
use super::compare::Difference;

/// Why `found` is to be expected, if it is.
pub(super) fn known(_ins: &Instruction, _case: &Case, _found: &[Difference]) -> Option<&'static str> {
    None
}
