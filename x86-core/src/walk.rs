//! Page walk: 4-level, PAE and 32-bit paging (Intel SDM vol. 3, chapter 4).

use accel_api::PAGE_SIZE;
use accel_api::x86::{Feature, PHYS_BITS};

use crate::mode::bits::*;
use crate::{Cpu, Exec, Fault, vector};

/// What an access wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessKind {
    /// Load.
    Read,
    /// Store, or the load of a read-modify-write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug)]
pub struct Walked {
    /// Guest-physical address.
    pub gpa: u64,
    /// A store would be allowed without another walk: writable, and D is set.
    pub store: bool,
    /// Survives a CR3 load.
    pub global: bool,
    /// The page is larger than 4 KiB.
    pub large: bool,
}

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;
const ADDRESS: u64 = ((1 << PHYS_BITS) - 1) & !0xfff;
/// Address bits beyond the processor's, which are reserved (bits 51 down).
const BEYOND: u64 = ((1 << 52) - 1) & !((1 << PHYS_BITS) - 1);
/// Likewise in PAE paging, where the bits up to 62 are not the system's to use (tables 4-9 to 4-11).
const PAE_BEYOND: u64 = ((1 << 63) - 1) & !((1 << PHYS_BITS) - 1);
/// Reserved bits of a page-directory-pointer-table entry of PAE paging (Intel SDM vol. 3, table 4-8).
const PDPTE_RESERVED: u64 = 0x1e6 | !((1 << PHYS_BITS) - 1);

/// Page-fault error code (Intel SDM vol. 3, 4.7).
mod code {
    pub(super) const PRESENT: u32 = 1;
    pub(super) const WRITE: u32 = 2;
    pub(super) const USER: u32 = 4;
    pub(super) const RESERVED: u32 = 8;
    pub(super) const FETCH: u32 = 16;
}

/// Races that a walk loses before it asks the other vCPUs to wait.
const PATIENCE: u32 = 64;

/// Entries visited by a walk, outermost first: their addresses and values.
struct Trail {
    entries: [(u64, u64); 4],
    len: usize,
    width: usize,
}

/// The rights a walk gathers.
struct Rights {
    writable: bool,
    user: bool,
    no_execute: bool,
}

impl Cpu {
    /// Translates `address`; sets A and D bits as the access does.
    ///
    /// `user` says whether the access is a user-mode one, `ac` whether SMAP is suspended.
    ///
    /// # Errors
    /// #PF, with [`Cpu::fault_address`] set.
    pub fn walk(&mut self, address: u64, kind: AccessKind, user: bool, ac: bool) -> Exec<Walked> {
        if self.cr0 & CR0_PG == 0 {
            let gpa = address & 0xffff_ffff;
            return Ok(Walked { gpa, store: true, global: false, large: false });
        }
        // A page table entry can change under us: another vCPU may write it between our read and our setting of A.
        // Then the walk starts again.
        for _ in 0..PATIENCE {
            if let Some(walked) = self.try_walk(address, kind, user, ac)? {
                return Ok(walked);
            }
        }
        self.walk_alone(address, kind, user, ac)
    }

    /// The walk has lost every race so far: the other vCPUs stay out of guest code, as they come out, until it is done. It is
    /// not they who are waited for, so it can be anywhere in an instruction. What devices write does not come all the time.
    #[cold]
    fn walk_alone(&mut self, address: u64, kind: AccessKind, user: bool, ac: bool) -> Exec<Walked> {
        let vm = self.vm.clone();
        let _asked = vm.ask_others_out(self.id as usize);
        loop {
            if let Some(walked) = self.try_walk(address, kind, user, ac)? {
                return Ok(walked);
            }
            std::thread::yield_now();
        }
    }

    /// Walks once; nothing if an entry was not what it had been when A or D was to be set.
    fn try_walk(&mut self, address: u64, kind: AccessKind, user: bool, ac: bool) -> Exec<Option<Walked>> {
        if self.efer & EFER_LMA != 0 {
            self.try_levels::<4>(address, kind, user, ac)
        } else if self.cr4 & CR4_PAE != 0 {
            self.try_levels::<3>(address, kind, user, ac)
        } else {
            self.try_levels::<2>(address, kind, user, ac)
        }
    }

    /// A walk of tables of `LEVELS` levels: 4, PAE's 3, or 2 with entries of 4 bytes. Each has code of its own, since a walk is
    /// most of what an access costs that the soft TLB does not know.
    fn try_levels<const LEVELS: u32>(
        &mut self,
        address: u64,
        kind: AccessKind,
        user: bool,
        ac: bool,
    ) -> Exec<Option<Walked>> {
        let mut trail = Trail { entries: [(0, 0); 4], len: 0, width: if LEVELS == 2 { 4 } else { 8 } };
        let mut rights = Rights { writable: true, user: true, no_execute: false };
        let (gpa, shift, leaf) = match self.descend::<LEVELS>(address, &mut trail, &mut rights) {
            Ok(found) => found,
            Err(reason) => return Err(self.page_fault(address, reason, kind, user)),
        };
        if !self.allowed(&rights, kind, user, ac) {
            return Err(self.page_fault(address, code::PRESENT, kind, user));
        }
        let write = kind == AccessKind::Write;
        Ok(self.mark(&trail, write).then(|| Walked {
            gpa,
            store: (write || leaf & D != 0) && self.store_allowed(&rights, user),
            global: leaf & G != 0 && self.cr4 & CR4_PGE != 0,
            large: shift > 12,
        }))
    }

    /// Finds the leaf: guest-physical address, log2 of the page size, leaf entry. `Err` is the error code's first part.
    #[inline(always)]
    fn descend<const LEVELS: u32>(
        &self,
        address: u64,
        trail: &mut Trail,
        rights: &mut Rights,
    ) -> Result<(u64, u32, u64), u32> {
        let width = if LEVELS == 2 { 4 } else { 8 };
        let nxe = self.efer & EFER_NXE != 0;
        let (bits, root) = match LEVELS {
            4 => (9, self.cr3 & ADDRESS),
            3 => (9, self.cr3 & 0xffff_ffe0),
            _ => (10, self.cr3 & 0xffff_f000),
        };
        let mut table = root;
        for level in (1..=LEVELS).rev() {
            let shift = 12 + bits * (level - 1);
            let index = address >> shift & ((1 << bits) - 1);
            // With PAE the first table has four entries.
            let index = if LEVELS == 3 && level == 3 { address >> 30 & 3 } else { index };
            let at = table + index * width as u64;
            let pdpte = LEVELS == 3 && level == 3;
            let entry = if pdpte { self.pdptes[index as usize] } else { self.read_table(at, width) };
            if entry & P == 0 {
                return Err(0);
            }
            let large = level > 1 && !pdpte && entry & PS != 0 && (LEVELS > 2 || self.cr4 & CR4_PSE != 0);
            let mut reserved = match LEVELS {
                4 => BEYOND,
                3 => PAE_BEYOND,
                _ => 0,
            };
            if width == 8 && !nxe {
                reserved |= NX;
            }
            if pdpte {
                reserved |= PDPTE_RESERVED;
            }
            if level == 4 || level == 3 && !pdpte && !self.model.features.has(Feature::Pdpe1gb) {
                reserved |= PS;
            }
            if large {
                // The PAT bit (12) is not part of the address; what lies between it and the page size is reserved.
                reserved |= if LEVELS == 2 { 1 << 21 } else { ((1 << shift) - 1) & !0x1fff };
            }
            if entry & reserved != 0 {
                return Err(code::PRESENT | code::RESERVED);
            }
            if !pdpte {
                rights.writable &= entry & RW != 0;
                rights.user &= entry & US != 0;
                rights.no_execute |= width == 8 && nxe && entry & NX != 0;
                trail.entries[trail.len] = (at, entry);
                trail.len += 1;
            }
            if level == 1 || large {
                let mask = (1u64 << shift) - 1;
                let base = if large && LEVELS == 2 {
                    // PSE-36: bits 39:32 of the address are in bits 20:13 of the entry (4.3, table 4-4).
                    entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32
                } else if width == 4 {
                    entry & 0xffff_f000
                } else {
                    entry & ADDRESS & !mask
                };
                return Ok((base | address & mask, shift, entry));
            }
            table = if width == 4 { entry & 0xffff_f000 } else { entry & ADDRESS };
        }
        Err(0)
    }

    /// Whether PAE paging is on, whose first table has four entries that are registers.
    pub(crate) fn pae_paging(&self) -> bool {
        self.cr0 & CR0_PG != 0 && self.cr4 & CR4_PAE != 0 && self.efer & EFER_LMA == 0
    }

    /// The four page-directory-pointer-table entries of the table that `cr3` points at, unchecked.
    pub(crate) fn pdptes_at(&self, cr3: u64) -> [u64; 4] {
        let table = cr3 & 0xffff_ffe0;
        std::array::from_fn(|i| self.read_table(table + 8 * i as u64, 8))
    }

    /// Loads the entries of the table that `cr3` points at, as loads of CR3 and the changes of CR0 and CR4 that turn PAE
    /// paging on do (Intel SDM vol. 3, 4.4.1).
    ///
    /// # Errors
    /// #GP(0) if a present one has reserved bits set; none is loaded then.
    pub(crate) fn load_pdptes(&mut self, cr3: u64) -> Exec {
        let entries = self.pdptes_at(cr3);
        if entries.iter().any(|entry| entry & P != 0 && entry & PDPTE_RESERVED != 0) {
            return Err(Fault::GP0);
        }
        self.pdptes = entries;
        Ok(())
    }

    fn store_allowed(&self, rights: &Rights, user: bool) -> bool {
        rights.writable || (!user && self.cr0 & CR0_WP == 0)
    }

    /// Access rights (Intel SDM vol. 3, 4.6.1).
    fn allowed(&self, rights: &Rights, kind: AccessKind, user: bool, ac: bool) -> bool {
        if user && !rights.user {
            return false;
        }
        match kind {
            AccessKind::Fetch => {
                let smep = !user && rights.user && self.cr4 & CR4_SMEP != 0;
                !rights.no_execute && !smep
            }
            AccessKind::Read | AccessKind::Write => {
                let smap = !user && rights.user && self.cr4 & CR4_SMAP != 0 && !ac;
                !smap && (kind == AccessKind::Read || self.store_allowed(rights, user))
            }
        }
    }

    /// Sets the A bits of the trail, and D of its last entry for a store; false if an entry was not as we read it.
    fn mark(&mut self, trail: &Trail, write: bool) -> bool {
        let last = trail.len.saturating_sub(1);
        for (i, &(at, entry)) in trail.entries[..trail.len].iter().enumerate() {
            let wanted = entry | A | if write && i == last { D } else { 0 };
            if wanted != entry && !self.update_table(at, trail.width, entry, wanted) {
                return false;
            }
        }
        true
    }

    fn page_fault(&mut self, address: u64, reason: u32, kind: AccessKind, user: bool) -> Fault {
        self.fault_address = address;
        let mut error = reason;
        match kind {
            AccessKind::Read => {}
            AccessKind::Write => error |= code::WRITE,
            // I/D is reported only where fetches can be forbidden (4.7).
            AccessKind::Fetch => {
                let nx = self.efer & EFER_NXE != 0 && self.cr4 & CR4_PAE != 0;
                if nx || self.cr4 & CR4_SMEP != 0 {
                    error |= code::FETCH;
                }
            }
        }
        if user {
            error |= code::USER;
        }
        Fault::with_code(vector::PF, error)
    }

    /// Whether `address` is canonical (Intel SDM vol. 1, 3.3.7.1).
    #[inline(always)]
    pub const fn canonical(address: u64) -> bool {
        (address as i64) << 16 >> 16 == address as i64
    }
}

const _: () = assert!(PAGE_SIZE == 4096);

#[cfg(test)]
mod tests;
