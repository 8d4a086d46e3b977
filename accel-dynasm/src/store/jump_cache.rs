//! The jump cache: blocks by linear address, for jumps whose target is known only when they happen.
//!
//! 1. Each class of code has a table. Blocks at the same place of different runs of 64 KiB share an entry; a block that
//!    has lost its entry is in the table's second part, a victim cache, where a stub looks before Rust does.
//! 2. Tables of user code hold for one address space. When the vCPU leaves an address space that it may come back to,
//!    they are saved, and restored when it does.
#![allow(unsafe_code)] // the tables lie where host code finds them

use std::ops::Range;
use std::ptr::NonNull;

use crate::block_mode::BlockMode;
use crate::jit_context::{CLASSES, JUMP_ENTRIES, JumpTable, VICTIMS, victim_index};

/// Address spaces whose tables are saved at a time.
const SAVED: usize = 8;
/// Entries that are saved of each table: to save one and restore it costs a tenth of a look-up.
const MOST: usize = 128;

/// The state of a vCPU for which the tables of user code hold.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct View {
    /// [`x86_core::Tlb::fetch_generation`].
    pub generation: u64,
    /// [`BlockMode::within_class`].
    pub mode: u16,
}

/// The tables of a vCPU. Which entries are filled is recorded, so that emptying a table costs as much as filling it
/// did.
#[derive(Debug)]
pub(super) struct JumpCache {
    tables: NonNull<[JumpTable; CLASSES]>,
    /// In the order in which they were filled.
    filled: [Vec<u32>; CLASSES],
    saved: Vec<Saved>,
    departures: u64,
}

#[derive(Debug)]
struct Saved {
    view: View,
    /// Whether user code is to begin with the guest's vector registers in the host's.
    vectors: bool,
    entries: Vec<Entry>,
    /// The departure at which it was saved; 0 while it is restored.
    left: u64,
}

#[derive(Debug)]
struct Entry {
    class: usize,
    index: u32,
    negated: u64,
    code: u64,
}

/// The negated address of an empty entry, which no address that selects entry `index` cancels out: memory as it comes
/// from the kernel, but for address 0.
fn never(index: u32) -> u64 {
    u64::from((index as usize).is_multiple_of(JUMP_ENTRIES))
}

fn user_classes() -> impl Iterator<Item = usize> {
    (0..CLASSES).filter(|class| BlockMode::is_user_class(*class))
}

impl JumpCache {
    /// Takes new tables, which are all zero.
    ///
    /// # Safety
    /// They are there as long as the cache is, and nothing changes them but the cache. Host code reads them while no
    /// method runs.
    pub(super) unsafe fn new(tables: NonNull<[JumpTable; CLASSES]>) -> Self {
        let mut cache = Self { tables, filled: Default::default(), saved: Vec::new(), departures: 0 };
        for class in 0..CLASSES {
            for index in [0, JUMP_ENTRIES as u32] {
                cache.empty(class, index);
            }
        }
        cache
    }

    /// The two words of an entry.
    fn words(&self, class: usize, index: u32) -> (*mut u64, *mut u64) {
        let index = index as usize;
        assert!(class < CLASSES && index < JUMP_ENTRIES + VICTIMS, "no entry of a jump table");
        // SAFETY: within the table, just checked, which is there as long as we are.
        unsafe {
            let table = &raw mut (*self.tables.as_ptr())[class];
            (&raw mut (*table).negated[index], &raw mut (*table).code[index])
        }
    }

    fn read(&self, class: usize, index: u32) -> (u64, u64) {
        let (negated, code) = self.words(class, index);
        // SAFETY: words of ours; see `new`.
        unsafe { (negated.read(), code.read()) }
    }

    fn write(&mut self, class: usize, index: u32, negated: u64, code: u64) {
        let (at_negated, at_code) = self.words(class, index);
        // SAFETY: words of ours, which no host code reads meanwhile; see `new`.
        unsafe {
            at_code.write(code);
            at_negated.write(negated);
        }
    }

    fn empty(&mut self, class: usize, index: u32) {
        let (negated, _) = self.words(class, index);
        // SAFETY: as in `write`.
        unsafe { negated.write(never(index)) };
    }

    /// Lets jumps to `address` go to `code`.
    pub(super) fn set(&mut self, class: usize, address: u64, code: *const u8) {
        let index = address as u32 % JUMP_ENTRIES as u32;
        let (before, to) = self.read(class, index);
        if before != never(index) && before != address.wrapping_neg() {
            self.put(class, victim_index(before.wrapping_neg()), before, to);
        }
        self.put(class, index, address.wrapping_neg(), code as u64);
    }

    fn put(&mut self, class: usize, index: u32, negated: u64, code: u64) {
        if self.read(class, index).0 == never(index) {
            self.filled[class].push(index);
        }
        self.write(class, index, negated, code);
    }

    /// Empties the entries that lead to host addresses in `code`, saved ones too.
    pub(super) fn forget(&mut self, code: &Range<u64>) {
        for class in 0..CLASSES {
            let mut filled = std::mem::take(&mut self.filled[class]);
            filled.retain(|&index| {
                let leads = code.contains(&self.read(class, index).1);
                if leads {
                    self.empty(class, index);
                }
                !leads
            });
            self.filled[class] = filled;
        }
        for saved in &mut self.saved {
            saved.entries.retain(|entry| !code.contains(&entry.code));
        }
    }

    fn clear_class(&mut self, class: usize) {
        let mut filled = std::mem::take(&mut self.filled[class]);
        filled.drain(..).for_each(|index| self.empty(class, index));
        self.filled[class] = filled;
    }

    /// Empties the tables of kernel code.
    pub(super) fn clear_kernel(&mut self) {
        (0..CLASSES).filter(|c| !BlockMode::is_user_class(*c)).for_each(|class| self.clear_class(class));
    }

    /// Empties the tables of user code, which hold for no view that comes back.
    pub(super) fn clear_user(&mut self) {
        user_classes().for_each(|class| self.clear_class(class));
    }

    /// Saves the tables of user code, which hold for `view`, and empties them. `vectors` is saved with them.
    pub(super) fn save_user(&mut self, view: View, vectors: bool) {
        self.departures += 1;
        if self.saved.len() < SAVED {
            self.saved.push(Saved { view, vectors, entries: Vec::new(), left: 0 });
        }
        let oldest = (0..self.saved.len()).min_by_key(|n| self.saved[*n].left);
        let Some(oldest) = oldest else { return };
        let mut entries = std::mem::take(&mut self.saved[oldest].entries);
        entries.clear();
        for class in user_classes() {
            let mut filled = std::mem::take(&mut self.filled[class]);
            let surplus = filled.len().saturating_sub(MOST);
            for (n, index) in filled.drain(..).enumerate() {
                if n >= surplus {
                    let (negated, code) = self.read(class, index);
                    entries.push(Entry { class, index, negated, code });
                }
                self.empty(class, index);
            }
            self.filled[class] = filled;
        }
        self.saved[oldest] = Saved { view, vectors, entries, left: self.departures };
    }

    /// Restores the tables that were saved for `view`, if they were, into empty ones; the `vectors` saved with them.
    pub(super) fn restore_user(&mut self, view: View) -> Option<bool> {
        let at = self.saved.iter().position(|saved| saved.left != 0 && saved.view == view)?;
        let mut entries = std::mem::take(&mut self.saved[at].entries);
        for Entry { class, index, negated, code } in entries.drain(..) {
            self.put(class, index, negated, code);
        }
        let saved = &mut self.saved[at];
        // The next one to be saved takes the allocation.
        saved.entries = entries;
        saved.left = 0;
        Some(saved.vectors)
    }

    /// No view whose tables are saved comes back.
    pub(super) fn drop_saved(&mut self) {
        self.saved.clear();
    }
}
