//! Memory operands: from guest linear addresses to the host's memory, by the soft TLB.
//!
//! The entry of an address is found by a rotation and a mask. Exclusive-or of address and tag is the offset in the page
//! if the tag fits, so one comparison checks translation, permission and that the access ends in the page. The check
//! changes R10, R11 and the flags.
//!
//! In a loop, the same is first tried with a copy of the entry at a place of the access's own, its *inline TLB entry*:
//! then the access does not wait for the entry to be found. Accesses that change pages too often lose theirs.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use super::Emitter;
use super::state::{Cold, Held, at};
use crate::jit_context::addresses::entry;
use crate::translate::encode::{self, Memory};
use crate::translate::output::SiteKind;
use crate::translate::plan::classify::Action;
use crate::translate::plan::step::{Access, Base, Group, SCRATCH, Step};

pub(super) const PAGE: i32 = 4096;

/// Contents of R10 after a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Keep {
    /// The address: the change that the check makes is undone.
    Address,
    Nothing,
}

impl Emitter<'_> {
    pub(super) fn tag(&self, write: bool) -> i32 {
        self.addresses.tlb(self.source.mode.tlb()) + if write { entry::WRITE } else { entry::READ }
    }

    pub(super) fn addend(&self) -> i32 {
        self.addresses.tlb(self.source.mode.tlb()) + entry::ADDEND
    }

    /// The linear address if it is known now, and its displacement can be in an instruction.
    fn known(&self, base: Base, disp: i32) -> Option<u64> {
        let page = (!self.pic()).then_some(self.source.page);
        base.known(page).map(|known| known.wrapping_add_signed(i64::from(disp)))
    }

    /// R11 = where the entry for the address in R10 is in its table; R10 = the offset in its page if the tag fits, else
    /// more.
    pub(super) fn look_up(&mut self, write: bool) {
        if self.options.bmi2 {
            dynasm!(self.asm ; .arch x64 ; rorx r11, r10, entry::ROTATION);
        } else {
            dynasm!(self.asm ; .arch x64 ; mov r11, r10 ; shr r11, entry::ROTATION);
        }
        dynasm!(self.asm ; .arch x64 ; and r11d, entry::INDEX_MASK ; xor r10, [r11 + self.tag(write)]);
    }

    /// Checks the access to `size` bytes at the address in R10 and leaves the addend in R11.
    fn check(&mut self, size: u16, write: bool, kind: SiteKind, retry: u32, keep: Keep) {
        let (tag, addend) = (self.tag(write), self.addend());
        self.lose_flags(11);
        let label = self.asm.new_dynamic_label();
        self.look_up(write);
        dynasm!(self.asm ; .arch x64 ; cmp r10, PAGE - i32::from(size) ; ja =>label);
        if keep == Keep::Address {
            dynasm!(self.asm ; .arch x64 ; xor r10, [r11 + tag]);
        }
        dynasm!(self.asm ; .arch x64 ; mov r11, [r11 + addend]);
        let site = self.site(kind, retry);
        self.cold.push(Cold::Miss { label, site, address: None, tag });
    }

    /// Checks the access to `size` bytes at a known address and leaves the addend in `r`. False if it has no short
    /// form.
    fn check_known(&mut self, r: u8, address: u64, size: u16, write: bool, kind: SiteKind) -> bool {
        let Ok(page) = i32::try_from((address & !0xfff) as i64) else { return false };
        if (address & 0xfff) as i32 + i32::from(size) > PAGE {
            return false;
        }
        let retry = at(self.asm.offset());
        let index = (x86_core::tlb_index(address) << entry::SHIFT) as i32;
        let (tag, addend) = (self.tag(write) + index, self.addend() + index);
        self.lose_flags(r);
        let label = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64 ; cmp QWORD [tag], page ; jne =>label);
        dynasm!(self.asm ; .arch x64 ; mov Rq(r), [addend]);
        let site = self.site(kind, retry);
        self.cold.push(Cold::Miss { label, site, address: Some(address as i64), tag });
        true
    }

    /// Checks a whole group. The addend, to which the address of the page is added where that is the base, is then in
    /// R11 and in the group's place in memory.
    pub(super) fn check_group(&mut self, id: u8, group: &Group) {
        let kind = SiteKind::Group { size: group.size, write: group.write };
        self.spill_all();
        let known = self.known(group.base, group.low);
        let short = match known {
            Some(address) => {
                self.held[1] = Held::Nothing;
                self.check_known(11, address, group.size, group.write, kind)
            }
            None => false,
        };
        if !short {
            let retry = at(self.asm.offset());
            match group.base {
                Base::Register(r) => {
                    self.need_register(r);
                    let memory = Memory { base: Some(r), index: None, disp: group.low };
                    self.put(encode::lea(10, memory));
                }
                Base::Page => self.page_relative(10, i64::from(group.low)),
                Base::None => self.constant(10, i64::from(group.low) as u64),
            }
            self.held = [Held::Nothing; 2];
            self.check(group.size, group.write, kind, retry, Keep::Nothing);
        }
        if group.base == Base::Page {
            let page = i32::try_from(self.source.page as i64);
            match page {
                Ok(page) if !self.pic() => dynasm!(self.asm ; .arch x64 ; lea r11, [r11 + page]),
                _ => {
                    self.held[0] = Held::Nothing;
                    self.page_relative(10, 0);
                    dynasm!(self.asm ; .arch x64 ; lea r11, [r11 + r10]);
                }
            }
        }
        self.held[1] = Held::Addend(id);
        dynasm!(self.asm ; .arch x64 ; mov [self.addresses.group(id)], r11);
    }

    /// Leads `access` to host memory: the operand with which the host's instruction does it. Those of R10 and R11 that
    /// are in `avoid` are not in the operand.
    pub(super) fn access(&mut self, access: &Access, avoid: [bool; 2], step: &Step) -> Memory {
        match access.group {
            Some(id) => self.in_group(id, access, avoid),
            None => self.single(access, avoid, step),
        }
    }

    fn in_group(&mut self, id: u8, access: &Access, avoid: [bool; 2]) -> Memory {
        let base = match access.base {
            Base::Register(r) => Some(r),
            Base::Page | Base::None => None,
        };
        let scratch = base.and_then(Self::scratch);
        let free = |n: usize| !avoid[n] && scratch != Some(n);
        let Some(n) = (0..2)
            .find(|n| free(*n) && self.held[*n] == Held::Addend(id))
            .or_else(|| [1, 0].into_iter().find(|n| free(*n)))
        else {
            return self.in_group_without_register(id, access.disp, scratch.unwrap_or(0));
        };
        let r = SCRATCH[n];
        if self.held[n] != Held::Addend(id) {
            self.release(n);
            dynasm!(self.asm ; .arch x64 ; mov Rq(r), [self.addresses.group(id)]);
            self.held[n] = Held::Addend(id);
        }
        match base {
            Some(base) => {
                self.need_register(base);
                Memory { base: Some(base), index: Some((r, 0)), disp: access.disp }
            }
            None => Memory { base: Some(r), index: None, disp: access.disp },
        }
    }

    /// One of R10 and R11 is the base, the other an operand: the base's place is for their sum.
    fn in_group_without_register(&mut self, id: u8, disp: i32, base: usize) -> Memory {
        let (r, other) = (SCRATCH[base], SCRATCH[1 - base]);
        self.need(base);
        self.spill(base);
        self.release(1 - base);
        dynasm!(self.asm ; .arch x64 ; mov Rq(other), [self.addresses.group(id)]);
        self.put(encode::lea(r, Memory { base: Some(r), index: Some((other, 0)), disp }));
        self.held[base] = Held::Nothing;
        Memory { base: Some(r), index: None, disp: 0 }
    }

    fn single(&mut self, access: &Access, avoid: [bool; 2], step: &Step) -> Memory {
        let kind = SiteKind::Access { size: access.size, write: access.write };
        self.spill_all();
        let plain = access.index.is_none() && access.segment.is_none();
        if plain && let Some(address) = self.known(access.base, access.disp) {
            let n = usize::from(!avoid[1]);
            let r = SCRATCH[n];
            self.held[n] = Held::Nothing;
            if let Ok(disp) = i32::try_from(address as i64)
                && self.check_known(r, address, access.size, access.write, kind)
            {
                return Memory { base: Some(r), index: None, disp };
            }
        }
        let registers =
            [if let Base::Register(r) = access.base { Some(r) } else { None }, access.index.map(|(r, _)| r)];
        for r in registers.into_iter().flatten() {
            self.need_register(r);
        }
        let retry = at(self.asm.offset());
        self.address(access);
        self.held = [Held::Nothing; 2];
        let inline = self.wants_inline_tlb(step).then(|| self.new_inline_tlb_entry(access.write));
        let direct = match access.base {
            Base::Register(r) if plain && Self::scratch(r).is_none() && !avoid[1] => Some(r),
            _ => None,
        };
        // Computed once more, the address does not wait for the tag.
        let again = access.segment.is_none()
            && matches!(access.base, Base::Register(_) | Base::None)
            && registers.into_iter().flatten().all(|r| Self::scratch(r).is_none());
        let keep = if direct.is_some() || again { Keep::Nothing } else { Keep::Address };
        match inline {
            Some(entry) => self.check_inline(entry, access, retry, keep),
            None => self.check(access.size, access.write, kind, retry, keep),
        }
        if again && direct.is_none() {
            self.address(access);
        }
        if let Some(base) = direct {
            return Memory { base: Some(base), index: Some((11, 0)), disp: access.disp };
        }
        match avoid {
            [false, false] => Memory { base: Some(10), index: Some((11, 0)), disp: 0 },
            [true, _] => {
                dynasm!(self.asm ; .arch x64 ; lea r11, [r10 + r11]);
                Memory { base: Some(11), index: None, disp: 0 }
            }
            [false, true] => {
                dynasm!(self.asm ; .arch x64 ; lea r10, [r10 + r11]);
                Memory { base: Some(10), index: None, disp: 0 }
            }
        }
    }

    /// Only for plain operands: the host instruction may fault, where nothing but the operand must have been done by
    /// then.
    fn wants_inline_tlb(&self, step: &Step) -> bool {
        self.loops && step.action == Action::Memory && !self.source.no_inline_tlb.contains(&step.offset)
    }

    /// Where tag and addend of the next inline TLB entry are.
    fn new_inline_tlb_entry(&mut self, write: bool) -> (i32, i32) {
        let mode = self.source.mode.tlb();
        let number = &mut self.inline_tlb[mode][usize::from(write)];
        *number += 1;
        self.addresses.inline_tlb(mode, write, *number)
    }

    /// Checks the access to the address in R10 by an inline TLB entry and leaves the addend in R11.
    fn check_inline(&mut self, entry: (i32, i32), access: &Access, retry: u32, keep: Keep) {
        self.lose_flags(11);
        let (label, back) = (self.asm.new_dynamic_label(), self.asm.new_dynamic_label());
        dynasm!(self.asm
            ; .arch x64
            ; xor r10, [entry.0]
            ; cmp r10, PAGE - i32::from(access.size)
            ; ja =>label
            ; =>back
        );
        if keep == Keep::Address {
            dynasm!(self.asm ; .arch x64 ; xor r10, [entry.0]);
        }
        dynasm!(self.asm ; .arch x64 ; mov r11, [entry.1]);
        let site = self.site(SiteKind::Access { size: access.size, write: access.write }, retry);
        let full = self.site(SiteKind::Refill, retry);
        self.cold.push(Cold::Refill { label, back, site, full, entry, access: *access });
        self.inlined = true;
    }

    /// R10 = the linear address; may change R11.
    fn address(&mut self, access: &Access) {
        let memory = |base| Memory { base, index: access.index, disp: access.disp };
        let segment = access.segment.map(|s| self.addresses.segment_base(s));
        match (access.base, segment) {
            (Base::None, Some(segment)) if access.index.is_none() => {
                dynasm!(self.asm ; .arch x64 ; mov r10, [segment]);
                self.put(encode::lea(10, memory(Some(10))));
            }
            (base, segment) => {
                match base {
                    Base::Register(r) => self.put(encode::lea(10, memory(Some(r)))),
                    Base::Page => self.page_relative(10, i64::from(access.disp)),
                    Base::None if access.index.is_some() => self.put(encode::lea(10, memory(None))),
                    Base::None => self.constant(10, i64::from(access.disp) as u64),
                }
                if let Some(segment) = segment {
                    dynasm!(self.asm ; .arch x64 ; mov r11, [segment] ; lea r10, [r10 + r11]);
                }
            }
        }
    }

    /// Looks whether something is requested.
    pub(super) fn poll(&mut self) {
        let near = i32::try_from(self.addresses.requests);
        if near.is_err() || self.flags.is_complete() && self.flags.lazy.is_none() {
            self.release(1);
        }
        self.lose_flags(11);
        let label = self.asm.new_dynamic_label();
        match near {
            Ok(word) => dynasm!(self.asm ; .arch x64 ; cmp DWORD [word], 0),
            Err(_) => dynasm!(self.asm
                ; .arch x64
                ; mov r11, QWORD self.addresses.requests
                ; cmp DWORD [r11], 0
            ),
        }
        dynasm!(self.asm ; .arch x64 ; jne =>label);
        let site = self.site(SiteKind::Poll, 0);
        let dirty = self.held.map(|held| held == Held::Guest { dirty: true });
        self.cold.push(Cold::Poll { label, site, dirty });
    }
}
