//! Code for rare cases, which lies after the block.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use super::access::PAGE;
use super::state::{Cold, Held, at};
use super::{Argument, Emitter};
use crate::translate::output::{INDIRECT, Stub, Target};
use crate::translate::plan::step::SCRATCH;

impl Emitter<'_> {
    /// Emits all of it.
    pub(super) fn cold(&mut self) {
        let cold = std::mem::take(&mut self.cold);
        for item in cold {
            match item {
                Cold::Miss { label, site, address, tag } => {
                    dynasm!(self.asm ; .arch x64 ; =>label);
                    match address {
                        // The check has changed the address in R10: that is undone.
                        None => dynasm!(self.asm ; .arch x64 ; xor r10, [r11 + tag]),
                        Some(address) => dynasm!(self.asm ; .arch x64 ; mov r10, QWORD address),
                    }
                    dynasm!(self.asm ; .arch x64 ; mov [self.addresses.ea()], r10);
                    self.hand_over(Stub::TlbMiss, Argument::Site(site));
                }
                Cold::Refill { label, back, site, full, entry, access } => {
                    let (write, size) = (access.write, i32::from(access.size));
                    let (full_label, miss) = (self.asm.new_dynamic_label(), self.asm.new_dynamic_label());
                    dynasm!(self.asm
                        ; .arch x64
                        ; =>label
                        ; xor r10, [entry.0]
                        ; sub DWORD [self.addresses.refills()], 1
                        ; js =>full_label
                    );
                    self.look_up(write);
                    let tag = self.tag(write);
                    dynasm!(self.asm
                        ; .arch x64
                        ; cmp r10, PAGE - size
                        ; ja =>miss
                        ; mov [self.addresses.ea()], r10
                        ; mov r10, [r11 + tag]
                        ; mov r11, [r11 + self.addend()]
                        ; mov [entry.0], r10
                        ; mov [entry.1], r11
                        ; mov DWORD [self.addresses.inline_tlb_filled], 1
                        ; mov r10, [self.addresses.ea()]
                        ; jmp =>back
                        ; =>full_label
                    );
                    self.hand_over(Stub::TlbMiss, Argument::Site(full));
                    self.cold.push(Cold::Miss { label: miss, site, address: None, tag });
                }
                Cold::Ask { label, jump, delta, flags } => {
                    dynasm!(self.asm ; .arch x64 ; =>label);
                    self.out.jumps[jump].ask = at(self.asm.offset());
                    self.set_rip(delta);
                    self.hand_over(Stub::Lookup, Argument::Jump(jump as u32));
                    if let Some(flags) = flags {
                        let load = at(self.asm.offset());
                        self.held = [Held::Nothing; 2];
                        self.load_flags(flags, [true; 2]);
                        dynasm!(self.asm ; .arch x64 ; jmp =>label);
                        self.out.jumps[jump].load = (load, at(self.asm.offset()) - 4);
                    }
                }
                Cold::Far { label, delta, site, flags } => {
                    dynasm!(self.asm ; .arch x64 ; =>label);
                    self.held = [Held::Nothing; 2];
                    if let Some(flags) = flags {
                        self.load_flags(flags, [true; 2]);
                    }
                    self.page_relative(10, delta);
                    self.jump_through_cache(site);
                }
                Cold::Unknown { label, site } => {
                    let argument = site | INDIRECT;
                    dynasm!(self.asm ; .arch x64 ; =>label ; mov rcx, r11 ; mov DWORD [self.addresses.site()], argument as i32);
                    self.relocate(Target::IndirectSite(site));
                    self.jump_to(Stub::JumpCacheVictims);
                }
                Cold::Helper { label, site } => {
                    dynasm!(self.asm ; .arch x64 ; =>label);
                    self.hand_over(Stub::Helper, Argument::Site(site));
                }
                Cold::Poll { label, site, dirty } => {
                    dynasm!(self.asm ; .arch x64 ; =>label);
                    for (r, _) in SCRATCH.into_iter().zip(dirty).filter(|(_, dirty)| *dirty) {
                        dynasm!(self.asm ; .arch x64 ; mov [self.addresses.gpr(r)], Rq(r));
                    }
                    self.hand_over(Stub::Poll, Argument::Site(site));
                }
            }
            // Jumps out of cold code have cold code of their own.
            if !self.cold.is_empty() {
                self.cold();
            }
        }
    }
}
