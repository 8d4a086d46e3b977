//! Debian's kernel to its first program, ours beside QEMU, both on the lab's KVM.
use super::machine::{Lab, LabError};
pub(super) fn run(_lab: &Lab, _repeat: u32) -> Result<u8, LabError> {
    Err(LabError::NoQemu)
}
