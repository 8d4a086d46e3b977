//! The jump tables: blocks by linear address, for jumps whose target is known only when they happen.
#![allow(unsafe_code)] // the tables lie where translated code finds them

use std::ops::Range;

use crate::home::{CLASSES, Home, JUMPS};

/// Which entries are filled, so that emptying a table costs what was filled.
#[derive(Debug, Default)]
pub(crate) struct Jumps {
    filled: [Vec<u16>; CLASSES],
}

/// What no address that selects entry `index` cancels out: as memory comes from the kernel, but for address 0.
fn never(index: usize) -> u64 {
    u64::from(index == 0)
}

impl Jumps {
    /// Prepares the tables of a new home, which are all zero.
    pub(crate) fn empty(&mut self, home: *mut Home) {
        for class in 0..CLASSES {
            // SAFETY: within the table of a home, which nobody else uses now.
            unsafe { (&raw mut (*home).jumps[class].negated[0]).write(never(0)) };
        }
    }

    /// Lets jumps to `address` go to `code`.
    pub(crate) fn set(&mut self, home: *mut Home, class: usize, address: u64, code: *const u8) {
        let index = (address & (JUMPS as u64 - 1)) as usize;
        // SAFETY: as in `empty`: translated code does not run while Rust does.
        unsafe {
            let table = &raw mut (*home).jumps[class];
            let negated = &raw mut (*table).negated[index];
            if negated.read() == never(index) {
                self.filled[class].push(index as u16);
            }
            (&raw mut (*table).code[index]).write(code as u64);
            negated.write(address.wrapping_neg());
        }
    }

    /// Empties the entries that lead to host addresses in `code`.
    pub(crate) fn forget(&mut self, home: *mut Home, code: &Range<u64>) {
        for (class, filled) in self.filled.iter_mut().enumerate() {
            filled.retain(|index| {
                let index = usize::from(*index);
                // SAFETY: as in `set`.
                unsafe {
                    let table = &raw mut (*home).jumps[class];
                    let leads = code.contains(&(&raw const (*table).code[index]).read());
                    if leads {
                        (&raw mut (*table).negated[index]).write(never(index));
                    }
                    !leads
                }
            });
        }
    }

    /// Empties the tables of the classes that `which` says so of.
    pub(crate) fn clear(&mut self, home: *mut Home, which: impl Fn(usize) -> bool) {
        for (class, filled) in self.filled.iter_mut().enumerate() {
            if which(class) {
                for index in filled.drain(..) {
                    let index = index as usize;
                    // SAFETY: as in `set`.
                    unsafe { (&raw mut (*home).jumps[class].negated[index]).write(never(index)) };
                }
            }
        }
    }
}
