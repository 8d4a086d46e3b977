//! Guests that use the processor's modes as Linux does not, and check what they find.
//!
//! Each is a PVH ELF that starts in 32-bit protected mode and needs nothing but the processor, 4 MiB of RAM and the
//! debug-exit port ([`bare::ports`](crate::bare::ports)). What it writes there is 0 if every check held, the number of
//! the one that did not (from 1 on, see [`ModeGuest::verdict`]), or `FAULT_EXIT` plus the vector of an exception
//! that no check expected.

use crate::bare::ports::FAULT_EXIT;

/// One guest.
#[derive(Debug, Clone, Copy)]
pub struct ModeGuest {
    /// Short name.
    pub name: &'static str,
    /// What it is about, for people.
    pub about: &'static str,
    /// The guest's file.
    pub elf: &'static [u8],
    /// What it checks, in order.
    pub checks: &'static [&'static str],
}

/// Every one.
pub fn all() -> impl Iterator<Item = ModeGuest> {
    crate::assembled::MODES.iter().map(|&(name, about, elf, checks)| ModeGuest { name, about, elf, checks })
}

/// The guest of that name.
pub fn find(name: &str) -> Option<ModeGuest> {
    all().find(|guest| guest.name == name)
}

impl ModeGuest {
    /// What it means that the guest wrote `value` to the debug-exit port.
    ///
    /// # Errors
    /// The check that failed, or the exception that came instead.
    pub fn verdict(&self, value: u8) -> Result<(), String> {
        let name = self.name;
        match value {
            0 => Ok(()),
            FAULT_EXIT.. => Err(format!("{name}: unexpected exception of vector {}", value - FAULT_EXIT)),
            _ => match self.checks.get(usize::from(value) - 1) {
                Some(check) => Err(format!("{name}: check {value} failed: {check}")),
                None => Err(format!("{name}: ended with {value}, which is no check's number")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_name_the_check() {
        for guest in all() {
            assert_eq!(guest.verdict(0), Ok(()));
            for (number, check) in (1..).zip(guest.checks) {
                assert!(guest.verdict(number).unwrap_err().ends_with(check));
            }
            let beyond = u8::try_from(guest.checks.len()).unwrap() + 1;
            assert!(guest.verdict(beyond).unwrap_err().contains("no check"));
            assert!(guest.verdict(FAULT_EXIT + 13).unwrap_err().contains("vector 13"));
        }
    }
}
