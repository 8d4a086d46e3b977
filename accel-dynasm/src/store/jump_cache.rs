//! The jump tables: blocks by linear address, for jumps whose target is known only when they happen.
//!
//! 1. Blocks at the same place in different runs of 64 KiB share an entry. The one that has lost it is in a second part of
//!    the table, where shared code looks before Rust does.
//! 2. Those of user code hold for one address space. When the vCPU leaves one that it may come back to, they are put away,
//!    and put back when it does.
#![allow(unsafe_code)] // the tables lie where translated code finds them

use std::ops::Range;

use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};

use crate::block_mode::BlockMode;
use crate::jit_context::addresses::Addresses;
use crate::jit_context::{CLASSES, JUMP_ENTRIES, VICTIMS, VcpuMemory};
use crate::runtime::stubs::{Stubs, jump};

/// Sets of tables put away.
const AWAY: usize = 8;
/// Entries of each table put away: putting one away and back costs a tenth of a look-up.
const MOST: usize = 128;

/// What the tables of user code hold for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct View {
    /// [`x86_core::Tlb::fetch_generation`].
    pub generation: u64,
    /// [`BlockMode::circumstances`].
    pub circumstances: u16,
}

/// Which entries are filled, so that emptying a table costs what was filled; and tables put away.
#[derive(Debug, Default)]
pub(crate) struct JumpCache {
    /// In the order in which they were filled.
    filled: [Vec<u32>; CLASSES],
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
    index: u32,
    negated: u64,
    code: u64,
}

/// Where a block is looked for whose entry is another's: bits of the address that select the entry, and those above, mixed.
fn elsewhere(address: u64) -> u32 {
    let mixed = ((address >> 16) as u32).wrapping_mul(MIX).wrapping_add(address as u32);
    JUMP_ENTRIES as u32 + mixed % VICTIMS as u32
}

/// An odd number.
const MIX: u32 = 0x2545;

/// What no address that selects entry `index` cancels out: as memory comes from the kernel, but for address 0.
fn never(index: u32) -> u64 {
    u64::from((index as usize).is_multiple_of(JUMP_ENTRIES))
}

/// The two words of an entry.
fn words(home: *mut VcpuMemory, class: usize, index: u32) -> (*mut u64, *mut u64) {
    let index = index as usize;
    assert!(class < CLASSES && index < JUMP_ENTRIES + VICTIMS, "no entry of a jump table");
    // SAFETY: within the table, just checked, of a home, which lives as long as its engine.
    unsafe {
        let table = &raw mut (*home).jumps[class];
        (&raw mut (*table).negated[index], &raw mut (*table).code[index])
    }
}

fn user_classes() -> impl Iterator<Item = usize> {
    (0..CLASSES).filter(|class| BlockMode::is_user_class(*class))
}

impl JumpCache {
    /// Prepares the tables of a new home, which are all zero.
    pub(crate) fn empty(&mut self, home: *mut VcpuMemory) {
        for class in 0..CLASSES {
            for index in [0, JUMP_ENTRIES as u32] {
                let (negated, _) = words(home, class, index);
                // SAFETY: an entry of a home, which nobody else uses now.
                unsafe { negated.write(never(index)) };
            }
        }
    }

    /// Lets jumps to `address` go to `code`.
    pub(crate) fn set(&mut self, home: *mut VcpuMemory, class: usize, address: u64, code: *const u8) {
        let index = address as u32 % JUMP_ENTRIES as u32;
        let (negated, leads_to) = words(home, class, index);
        // SAFETY: as in `put`.
        let (before, to) = unsafe { (negated.read(), leads_to.read()) };
        if before != never(index) && before != address.wrapping_neg() {
            self.put(home, class, elsewhere(before.wrapping_neg()), before, to);
        }
        self.put(home, class, index, address.wrapping_neg(), code as u64);
    }

    fn put(&mut self, home: *mut VcpuMemory, class: usize, index: u32, negated: u64, code: u64) {
        let (at_negated, at_code) = words(home, class, index);
        // SAFETY: as in `empty`: translated code does not run while Rust does.
        unsafe {
            if at_negated.read() == never(index) {
                self.filled[class].push(index);
            }
            at_code.write(code);
            at_negated.write(negated);
        }
    }

    /// Empties the entries that lead to host addresses in `code`, those put away, too.
    pub(crate) fn forget(&mut self, home: *mut VcpuMemory, code: &Range<u64>) {
        for (class, filled) in self.filled.iter_mut().enumerate() {
            filled.retain(|index| {
                let (negated, leads_to) = words(home, class, *index);
                // SAFETY: as in `put`.
                let leads = code.contains(&unsafe { leads_to.read() });
                if leads {
                    // SAFETY: likewise.
                    unsafe { negated.write(never(*index)) };
                }
                !leads
            });
        }
        for away in &mut self.away {
            away.entries.retain(|entry| !code.contains(&entry.code));
        }
    }

    fn clear_class(&mut self, home: *mut VcpuMemory, class: usize) {
        for index in self.filled[class].drain(..) {
            let (negated, _) = words(home, class, index);
            // SAFETY: as in `put`.
            unsafe { negated.write(never(index)) };
        }
    }

    /// Empties the tables of kernel code.
    pub(crate) fn clear_kernel(&mut self, home: *mut VcpuMemory) {
        (0..CLASSES)
            .filter(|c| !BlockMode::is_user_class(*c))
            .for_each(|class| self.clear_class(home, class));
    }

    /// Empties the tables of user code, which hold for no view that comes back.
    pub(crate) fn clear_user(&mut self, home: *mut VcpuMemory) {
        user_classes().for_each(|class| self.clear_class(home, class));
    }

    /// Puts the tables of user code, which hold for `view`, away until it comes back. `vectors` comes back with them.
    pub(crate) fn leave(&mut self, home: *mut VcpuMemory, view: View, vectors: bool) {
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
                let (negated, code) = words(home, class, index);
                // SAFETY: as in `put`.
                unsafe {
                    if n >= surplus {
                        away.entries.push(Entry { class, index, negated: negated.read(), code: code.read() });
                    }
                    negated.write(never(index));
                }
            }
        }
    }

    /// Puts back the tables for `view`, if it is known, into empty ones; returns what was left with them.
    pub(crate) fn resume(&mut self, home: *mut VcpuMemory, view: View) -> Option<bool> {
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

/// Emits what looks into the second parts of the tables, one for each class of code. The address is in R10, the argument
/// for [`Stubs::lookup`] in [`crate::jit_context::JitContext::site`].
pub(crate) fn emit(
    asm: &mut VecAssembler<X64Relocation>,
    start: usize,
    addresses: &Addresses,
    stubs: &mut Stubs,
) {
    const PART: i32 = 8 * JUMP_ENTRIES as i32;
    for class in 0..CLASSES {
        dynasm!(asm ; .arch x64 ; .align 16);
        stubs.victim[class] = start + asm.offset().0;
        dynasm!(asm
            ; .arch x64
            ; mov [addresses.rax()], rax
            ; lahf
            ; seto al
            ; mov [addresses.temporary()], ax
            ; mov r11, r10
            ; shr r11, 16
            ; imul r11d, r11d, MIX as i32
            ; add r11d, r10d
            ; and r11d, VICTIMS as i32 - 1
            ; mov rax, [r11 * 8 + addresses.negated(class) + PART]
            ; add rax, r10
            ; movzx eax, WORD [addresses.temporary()]
            ; jnz >unknown
            ; add al, 0x7f
            ; sahf
            ; mov rax, [addresses.rax()]
            ; jmp QWORD [r11 * 8 + addresses.code(class) + PART]
            ; unknown:
            ; add al, 0x7f
            ; sahf
            ; mov rax, [addresses.rax()]
            ; mov [addresses.rip], r10
            ; mov r11d, [addresses.site()]
        );
        jump(asm, start, stubs.lookup[usize::from(BlockMode::class_has_vectors(class))]);
    }
}
