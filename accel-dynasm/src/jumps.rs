//! The jump tables: blocks by linear address, for jumps whose target is known only when they happen.
//!
//! Those of user code hold for one address space. When the vCPU leaves one that it may come back to, they are put away, and
//! put back when it does.
#![allow(unsafe_code)] // the tables lie where translated code finds them

use std::ops::Range;

use crate::home::{CLASSES, Home, JUMPS};
use crate::mode::Mode;

/// Sets of tables put away.
const AWAY: usize = 8;
/// Entries of each table put away: putting one away and back costs a tenth of a look-up.
const MOST: usize = 128;

/// What the tables of user code hold for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct View {
    /// [`x86_core::Tlb::fetch_generation`].
    pub generation: u64,
    /// [`Mode::circumstances`].
    pub circumstances: u16,
}

/// Which entries are filled, so that emptying a table costs what was filled; and tables put away.
#[derive(Debug, Default)]
pub(crate) struct Jumps {
    /// In the order in which they were filled.
    filled: [Vec<u16>; CLASSES],
    away: Vec<Away>,
    departures: u64,
}

#[derive(Debug)]
struct Away {
    view: View,
    /// Whether user code is to begin with the guest's vector registers in the host's.
    vectors: bool,
    entries: Vec<Entry>,
    left: u64,
}

#[derive(Debug)]
struct Entry {
    class: usize,
    index: u16,
    negated: u64,
    code: u64,
}

/// What no address that selects entry `index` cancels out: as memory comes from the kernel, but for address 0.
fn never(index: usize) -> u64 {
    u64::from(index == 0)
}

/// The two words of an entry.
fn words(home: *mut Home, class: usize, index: usize) -> (*mut u64, *mut u64) {
    assert!(class < CLASSES && index < JUMPS, "no entry of a jump table");
    // SAFETY: within the table, just checked, of a home, which lives as long as its engine.
    unsafe {
        let table = &raw mut (*home).jumps[class];
        (&raw mut (*table).negated[index], &raw mut (*table).code[index])
    }
}

fn user_classes() -> impl Iterator<Item = usize> {
    (0..CLASSES).filter(|class| Mode::is_user_class(*class))
}

impl Jumps {
    /// Prepares the tables of a new home, which are all zero.
    pub(crate) fn empty(&mut self, home: *mut Home) {
        for class in 0..CLASSES {
            let (negated, _) = words(home, class, 0);
            // SAFETY: an entry of a home, which nobody else uses now.
            unsafe { negated.write(never(0)) };
        }
    }

    /// Lets jumps to `address` go to `code`.
    pub(crate) fn set(&mut self, home: *mut Home, class: usize, address: u64, code: *const u8) {
        let index = (address & (JUMPS as u64 - 1)) as usize;
        self.put(home, class, index as u16, address.wrapping_neg(), code as u64);
    }

    fn put(&mut self, home: *mut Home, class: usize, index: u16, negated: u64, code: u64) {
        let (at_negated, at_code) = words(home, class, index.into());
        // SAFETY: as in `empty`: translated code does not run while Rust does.
        unsafe {
            if at_negated.read() == never(index.into()) {
                self.filled[class].push(index);
            }
            at_code.write(code);
            at_negated.write(negated);
        }
    }

    /// Empties the entries that lead to host addresses in `code`, those put away, too.
    pub(crate) fn forget(&mut self, home: *mut Home, code: &Range<u64>) {
        for (class, filled) in self.filled.iter_mut().enumerate() {
            filled.retain(|index| {
                let (negated, leads_to) = words(home, class, usize::from(*index));
                // SAFETY: as in `put`.
                let leads = code.contains(&unsafe { leads_to.read() });
                if leads {
                    // SAFETY: likewise.
                    unsafe { negated.write(never((*index).into())) };
                }
                !leads
            });
        }
        for away in &mut self.away {
            away.entries.retain(|entry| !code.contains(&entry.code));
        }
    }

    fn clear_class(&mut self, home: *mut Home, class: usize) {
        for index in self.filled[class].drain(..) {
            let (negated, _) = words(home, class, index.into());
            // SAFETY: as in `put`.
            unsafe { negated.write(never(index.into())) };
        }
    }

    /// Empties the tables of kernel code.
    pub(crate) fn clear_kernel(&mut self, home: *mut Home) {
        (0..CLASSES).filter(|c| !Mode::is_user_class(*c)).for_each(|class| self.clear_class(home, class));
    }

    /// Empties the tables of user code, which hold for no view that comes back.
    pub(crate) fn clear_user(&mut self, home: *mut Home) {
        user_classes().for_each(|class| self.clear_class(home, class));
    }

    /// Puts the tables of user code, which hold for `view`, away until it comes back. `vectors` comes back with them.
    pub(crate) fn leave(&mut self, home: *mut Home, view: View, vectors: bool) {
        self.departures += 1;
        if self.away.len() < AWAY {
            self.away.push(Away { view, vectors, entries: Vec::new(), left: 0 });
        }
        let oldest = self.away.iter_mut().min_by_key(|away| away.left);
        let Some(away) = oldest else { return };
        away.view = view;
        away.vectors = vectors;
        away.left = self.departures;
        away.entries.clear();
        for class in user_classes() {
            let filled = &mut self.filled[class];
            let surplus = filled.len().saturating_sub(MOST);
            for (n, index) in filled.drain(..).enumerate() {
                let (negated, code) = words(home, class, index.into());
                // SAFETY: as in `put`.
                unsafe {
                    if n >= surplus {
                        away.entries.push(Entry { class, index, negated: negated.read(), code: code.read() });
                    }
                    negated.write(never(index.into()));
                }
            }
        }
    }

    /// Puts back the tables for `view`, if it is known, into empty ones; returns what was left with them.
    pub(crate) fn resume(&mut self, home: *mut Home, view: View) -> Option<bool> {
        let at = self.away.iter().position(|away| away.left != 0 && away.view == view)?;
        let mut entries = std::mem::take(&mut self.away[at].entries);
        for Entry { class, index, negated, code } in entries.drain(..) {
            self.put(home, class, index, negated, code);
        }
        let away = &mut self.away[at];
        // The next to leave has the room.
        away.entries = entries;
        away.left = 0;
        Some(away.vectors)
    }

    /// No view that was left comes back.
    pub(crate) fn forget_away(&mut self) {
        self.away.clear();
    }
}
