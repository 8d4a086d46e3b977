//! Emits the host code of a block by its plan.
//!
//! 1. This file goes through the steps, and has instructions that need no other treatment than registers.
//! 2. `access.rs` leads memory operands to the host's memory; `branch.rs` leaves the block; `string.rs` has MOVS and
//!    STOS, `system.rs` state of the vCPU that kernels change, `transfer.rs` changes of privilege.
//! 3. `flags.rs` puts the guest's flags where the next instruction wants them, `scratch.rs` knows what R10 and R11
//!    hold.
//! 4. `cold.rs` emits code for rare cases, after the block.

mod access;
mod branch;
mod cold;
mod flags;
mod scratch;
mod state;
mod string;
mod system;
mod transfer;

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};
use iced_x86::{Mnemonic, OpKind, Register};

use self::state::{Cold, FlagState, Held, Turn, at};
use super::encode::{self, Bytes, Memory, names_high_byte};
use super::output::{DirectJump, MayFault, Output, RETIRED, Relocation, Site, SiteKind, Stub, Target};
use super::plan::Plan;
use super::plan::classify::Action;
use super::plan::lazy_flags::{Known, Recipe, Replay};
use super::plan::step::{Access, RSP, SCRATCH, Step};
use super::plan::values::Value;
use super::source::{Options, Source};
use crate::jit_context::addresses::Addresses;

pub(crate) type Assembler = VecAssembler<X64Relocation>;

/// The argument of a stub, in R11.
#[derive(Clone, Copy, Debug)]
enum Argument {
    Site(u32),
    Jump(u32),
    Retired,
}

/// The state of one translation.
pub(crate) struct Emitter<'a> {
    asm: &'a mut Assembler,
    plan: &'a Plan,
    addresses: &'a Addresses,
    source: &'a Source<'a>,
    out: &'a mut Output,
    cold: Vec<Cold>,
    held: [Held; 2],
    options: Options,
    /// The inline TLB entries given out last, of [`x86_core::INLINE_TLB_ENTRIES`] for each privilege and kind of
    /// access.
    inline_tlb: &'a mut [[usize; 2]; 3],
    /// The step at hand.
    now: usize,
    /// Steps counted up to, exclusive.
    counted: usize,
    /// The block jumps back to its start.
    loops: bool,
    /// The access at hand is checked by an inline TLB entry.
    inlined: bool,
    /// Where the guest's arithmetic flags are.
    flags: FlagState,
    /// They are those that the block has begun with.
    at_entry: bool,
    /// Those that have to be in the host's for the instruction at hand.
    required: u8,
    /// The operation that gives the flags after it, and how they can be had there.
    replay: Option<Replay<Known>>,
    next_flags: Option<Recipe>,
    /// Where its operand in memory is to be kept.
    fetch: Option<u8>,
    /// The step at hand has changed the registers.
    done: bool,
    turn: Option<Turn>,
    /// The branch at hand begins another turn.
    turning: bool,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(
        asm: &'a mut Assembler,
        plan: &'a Plan,
        addresses: &'a Addresses,
        source: &'a Source<'a>,
        out: &'a mut Output,
        options: Options,
        inline_tlb: &'a mut [[usize; 2]; 3],
    ) -> Self {
        let first = source.page.wrapping_add(u64::from(source.offset));
        Self {
            asm,
            plan,
            addresses,
            source,
            out,
            cold: Vec::new(),
            held: [Held::Nothing; 2],
            options,
            inline_tlb,
            now: 0,
            counted: 0,
            loops: plan.steps.iter().any(|step| step.turns_to(first)),
            inlined: false,
            flags: FlagState::of(source.known),
            at_entry: true,
            required: 0,
            replay: None,
            next_flags: None,
            fetch: None,
            done: false,
            turn: None,
            turning: false,
        }
    }

    pub(super) fn block(mut self) {
        self.out.far_entry = at(self.asm.offset());
        if self.pic() {
            let back = -i32::from(self.source.offset);
            dynasm!(self.asm ; .arch x64 ; lea r10, [r10 + back] ; mov [self.addresses.code_page], r10);
        }
        self.out.entry = at(self.asm.offset());
        self.begin_loop();
        self.count_from(0);
        let plan = self.plan;
        for (n, step) in plan.steps.iter().enumerate() {
            (self.now, self.done) = (n, false);
            self.out.starts.push((at(self.asm.offset()), step.offset));
            if plan.poll == Some(n) {
                self.poll();
            }
            for (id, group) in plan.groups.iter().enumerate() {
                if group.at == n {
                    self.check_group(id as u8, group);
                }
            }
            self.begin_flags(step);
            self.step(step);
            self.flags_after(step);
        }
        self.done = true;
        if let Some(last) = plan.steps.last()
            && !last.action.ends_block()
        {
            self.spill_all();
            self.go_to(last.ins.next_ip(), SiteKind::Next);
        }
        self.out.starts.push((at(self.asm.offset()), u16::MAX));
        self.out.retired = at(self.asm.offset());
        self.set_rip(i64::from(self.source.offset));
        self.hand_over(Stub::Lookup, Argument::Retired);
        self.cold();
    }

    /// A block that jumps back to its own start keeps R10 and R11 in the host's on the way: through memory, each
    /// turn would wait for them.
    fn begin_loop(&mut self) {
        let first = self.source.page.wrapping_add(u64::from(self.source.offset));
        let steps = &self.plan.steps;
        // Where instructions are counted, blocks are told apart by their jumps.
        if self.options.counting || !self.loops {
            return;
        }
        let mut used = [false; 2];
        for (n, used) in used.iter_mut().enumerate() {
            let addresses = |r: Register| r.is_gpr() && r.full_register().number() == SCRATCH[n] as usize;
            *used = steps.iter().any(|s| {
                let address = addresses(s.ins.memory_base()) || addresses(s.ins.memory_index());
                s.uses[n].read || s.uses[n].write || address
            });
        }
        if used == [false; 2] {
            return;
        }
        for n in (0..2).filter(|n| used[*n]) {
            self.need(n);
            self.held[n] = Held::Guest { dirty: true };
        }
        let label = self.asm.new_dynamic_label();
        dynasm!(self.asm ; .arch x64 ; =>label);
        self.turn = Some(Turn { label, first, used });
    }

    /// Where a jump to `target` goes that begins another turn of the block; R10 and R11 are as they have to be there.
    fn next_turn(&mut self, target: u64) -> Option<DynamicLabel> {
        let turn = self.turn.filter(|turn| self.turning && turn.first == target)?;
        for n in (0..2).filter(|n| turn.used[*n]) {
            self.need(n);
        }
        Some(turn.label)
    }

    /// Whether `step` only begins another turn: the flags must be known as they were at the first, if that matters.
    fn turns(&mut self, step: &Step) -> bool {
        if !self.turn.is_some_and(|turn| step.turns_to(turn.first)) {
            return false;
        }
        !self.out.flags_matter && !self.at_entry
            || self.known_flags() == self.source.known
                && (self.flags.is_complete() || self.source.known.is_some())
    }

    /// Code works wherever its page is mapped, by [`x86_core::Cpu::code_page`].
    fn pic(&self) -> bool {
        self.source.mode.user()
    }

    fn put(&mut self, bytes: Bytes) {
        self.asm.extend(bytes.as_slice());
    }

    /// Jumps to a stub with an argument.
    fn hand_over(&mut self, stub: Stub, argument: Argument) {
        let (value, target) = match argument {
            Argument::Site(n) => (n, Some(Target::Site(n))),
            Argument::Jump(n) => (n, Some(Target::Jump(n))),
            Argument::Retired => (RETIRED, None),
        };
        dynasm!(self.asm ; .arch x64 ; mov r11d, value as i32);
        if let Some(target) = target {
            self.relocate(target);
        }
        self.jump_to(stub);
    }

    fn jump_to(&mut self, stub: Stub) {
        let mode = self.source.mode;
        self.asm.extend(&[0xe9, 0, 0, 0, 0]);
        self.relocate(Target::Stub { stub, class: mode.class(), vectors: mode.vectors() });
    }

    /// The last four bytes of code are for the code store to fill in.
    fn relocate(&mut self, target: Target) {
        self.out.relocations.push(Relocation { field: at(self.asm.offset()) - 4, target });
    }

    /// Adds a site; its number.
    fn site(&mut self, kind: SiteKind, retry: u32) -> u32 {
        let step = &self.plan.steps[self.now];
        let rest = self.rest();
        let flags = self.flags_number();
        self.out.sites.push(Site { kind, offset: step.offset, rest, retry, next: 0, flags });
        self.out.sites.len() as u32 - 1
    }

    /// The values of registers now.
    fn values(&self) -> &'a [Value; 18] {
        &self.plan.values[self.now + usize::from(self.done)]
    }

    /// Instructions after the one at hand that have been counted already.
    fn rest(&self) -> u8 {
        if self.options.counting { self.counted.saturating_sub(self.now + 1) as u8 } else { 0 }
    }

    /// The instruction at hand ends here: where sites that were added since number `first` go on.
    fn ends_here(&mut self, first: usize) {
        let here = at(self.asm.offset());
        let sites = &mut self.out.sites[first..];
        // Where Rust has executed it, its operand has not been kept.
        if self.fetch.is_none() {
            sites.iter_mut().for_each(|s| s.next = here);
        }
        if !sites.is_empty() {
            // Coming back from Rust loads both registers with the guest's values.
            for held in &mut self.held {
                if matches!(held, Held::Addend(_)) {
                    *held = Held::Nothing;
                }
            }
        }
    }

    /// Adds the instructions up to the next branch to the count.
    fn count_from(&mut self, first: usize) {
        if !self.options.counting {
            return;
        }
        let steps = &self.plan.steps[first..];
        let n = steps.iter().position(|s| s.action.is_branch()).map_or(steps.len(), |n| n + 1);
        self.counted = first + n;
        if n > 0 {
            self.release(1);
            let place = self.addresses.instructions();
            dynasm!(self.asm
                ; .arch x64
                ; mov r11, [place]
                ; lea r11, [r11 + n as i32]
                ; mov [place], r11
            );
        }
    }

    fn step(&mut self, step: &Step) {
        let first = self.out.sites.len();
        match step.action {
            Action::Nop => {}
            Action::Copy => self.copy(step),
            Action::Memory => self.memory(step),
            Action::Lea => self.lea(step),
            Action::Push => self.push(step),
            Action::Pop => self.pop(step),
            Action::Leave => self.leave(step),
            Action::Helper => self.helper(step),
            Action::System => self.system(step),
            Action::String => self.string(step),
            Action::Transfer => self.transfer(step),
            _ => self.branch(step),
        }
        if !step.action.ends_block() {
            self.ends_here(first);
        }
    }

    fn bytes(&self, step: &Step) -> &'a [u8] {
        let start = usize::from(step.offset);
        let bytes = &self.source.bytes[start..start + step.ins.len()];
        match bytes {
            // The host would take the prefix for TZCNT.
            [0xf3, rest @ ..] if step.ignores_prefix => rest,
            _ => bytes,
        }
    }

    fn copy(&mut self, step: &Step) {
        self.need_flags(self.required, [true; 2]);
        for n in 0..2 {
            if step.uses[n].read {
                self.need(n);
            }
        }
        if step.ins.mnemonic() == Mnemonic::Lea {
            for r in [step.ins.memory_base(), step.ins.memory_index()] {
                if r.is_gpr() {
                    self.need_register(r.full_register().number() as u8);
                }
            }
        }
        if step.may_fault() {
            self.may_fault(step);
        }
        let bytes = self.bytes(step);
        self.asm.extend(bytes);
        self.wrote(step);
    }

    /// The next host instruction may fault as the guest's would: registers that are kept in memory must be up to date.
    fn may_fault(&mut self, step: &Step) {
        self.spill_all();
        let (here, rest, flags) = (at(self.asm.offset()), self.rest(), self.flags_number());
        self.out.faults.push(MayFault { at: here, offset: step.offset, rest, flags });
    }

    fn memory(&mut self, step: &Step) {
        let Some(access) = step.operand else { return };
        if self.required != 0 {
            match step.checks {
                true => self.prepare_flags(),
                false => self.need_flags(self.required, [true; 2]),
            }
        }
        let avoid = [step.uses[0].read, step.uses[1].read];
        self.inlined = false;
        let memory = self.access(&access, avoid, step);
        let inlined = self.inlined;
        for (n, avoid) in avoid.into_iter().enumerate() {
            if avoid {
                self.need(n);
            }
        }
        if step.checks {
            self.need_flags(self.required, [false; 2]);
        }
        if step.may_fault() || inlined {
            self.may_fault(step);
        }
        if let Some(n) = self.fetch {
            return self.compare_fetched(step, memory, avoid, n);
        }
        match encode::with_memory(self.bytes(step), memory, names_high_byte(&step.ins)) {
            Some(bytes) => {
                self.put(bytes);
                self.wrote(step);
            }
            None => self.helper(step),
        }
    }

    /// LEA of an address relative to RIP.
    fn lea(&mut self, step: &Step) {
        let to = step.ins.op0_register();
        let (r, narrow) = (to.full_register().number() as u8, to.size() == 4);
        let target = step.ins.memory_displacement64();
        if let Some(n) = Self::scratch(r) {
            self.held[n] = Held::Guest { dirty: true };
        }
        if !self.pic() {
            let value = if narrow { target & 0xffff_ffff } else { target };
            self.constant(r, value);
            return;
        }
        let delta = target.wrapping_sub(self.source.page) as i32;
        dynasm!(self.asm ; .arch x64 ; mov Rq(r), [self.addresses.code_page]);
        self.put(encode::lea(r, Memory { base: Some(r), index: None, disp: delta }));
        if narrow {
            dynasm!(self.asm ; .arch x64 ; mov Rd(r), Rd(r));
        }
    }

    /// `r` = `value`; leaves flags alone.
    fn constant(&mut self, r: u8, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            dynasm!(self.asm ; .arch x64 ; mov Rd(r), value as i32);
        } else if let Ok(value) = i32::try_from(value as i64) {
            dynasm!(self.asm ; .arch x64 ; mov Rq(r), value);
        } else {
            dynasm!(self.asm ; .arch x64 ; mov Rq(r), QWORD value as i64);
        }
    }

    fn push(&mut self, step: &Step) {
        let Some(stack) = step.stack else { return };
        match step.ins.op0_kind() {
            OpKind::Register => {
                let r = step.ins.op0_register().number() as u8;
                let scratch = Self::scratch(r);
                let avoid = [scratch == Some(0), scratch == Some(1)];
                let memory = self.access(&stack, avoid, step);
                self.need_register(r);
                self.put(encode::store(memory, r));
            }
            OpKind::Memory => {
                let Some(operand) = step.operand else { return };
                self.load_to_temporary(&operand, step);
                let memory = self.access(&stack, [true, false], step);
                self.spill(0);
                dynasm!(self.asm ; .arch x64 ; mov r10, [self.addresses.temporary()]);
                self.held[0] = Held::Nothing;
                self.put(encode::store(memory, 10));
            }
            _ => {
                let memory = self.access(&stack, [false, false], step);
                self.put(encode::store_constant(memory, step.ins.immediate(0) as i32));
            }
        }
        self.move_rsp(-8);
    }

    /// Loads the operand into [`crate::jit_context::JitContext::temporary`].
    fn load_to_temporary(&mut self, operand: &Access, step: &Step) {
        let memory = self.access(operand, [false, false], step);
        self.spill(0);
        self.put(encode::load(10, memory));
        self.held[0] = Held::Nothing;
        dynasm!(self.asm ; .arch x64 ; mov [self.addresses.temporary()], r10);
    }

    fn pop(&mut self, step: &Step) {
        let Some(stack) = step.stack else { return };
        let r = step.ins.op0_register().number() as u8;
        let memory = self.access(&stack, [false, false], step);
        self.put(encode::load(r, memory));
        if r != RSP {
            self.move_rsp(8);
        }
        if let Some(n) = Self::scratch(r) {
            self.held[n] = Held::Guest { dirty: true };
        }
    }

    fn leave(&mut self, step: &Step) {
        let Some(stack) = step.stack else { return };
        let memory = self.access(&stack, [false, false], step);
        dynasm!(self.asm ; .arch x64 ; lea rsp, [rbp + 8]);
        self.put(encode::load(5, memory));
    }

    fn move_rsp(&mut self, by: i32) {
        dynasm!(self.asm ; .arch x64 ; lea rsp, [rsp + by]);
    }

    /// Hands the instruction to x86-core.
    fn helper(&mut self, step: &Step) {
        self.spill_all();
        let number = self.helper_number(step);
        let here = at(self.asm.offset());
        let site = self.site(SiteKind::Helper(number), here);
        self.hand_over(Stub::Helper, Argument::Site(site));
        // Coming back loads both.
        self.held = [Held::Guest { dirty: false }; 2];
    }

    /// Keeps the instruction for x86-core.
    fn helper_number(&mut self, step: &Step) -> u32 {
        self.out.helpers.push(step.ins);
        self.out.helpers.len() as u32 - 1
    }

    /// RIP = the page's address + `delta`; uses R11.
    fn set_rip(&mut self, delta: i64) {
        let place = self.addresses.rip;
        if self.pic() {
            dynasm!(self.asm
                ; .arch x64
                ; mov r11, [self.addresses.code_page]
                ; lea r11, [r11 + delta as i32]
                ; mov [place], r11
            );
            return;
        }
        let rip = self.source.page.wrapping_add_signed(delta);
        match i32::try_from(rip as i64) {
            Ok(value) => dynasm!(self.asm ; .arch x64 ; mov QWORD [place], value),
            Err(_) => {
                self.constant(11, rip);
                dynasm!(self.asm ; .arch x64 ; mov [place], r11);
            }
        }
    }

    /// Records the jump that ends here, so that it can be chained.
    fn direct_jump(&mut self, far: bool) -> usize {
        let field = at(self.asm.offset()) - 4;
        let known = self.known_flags();
        let (host_flags, known) = (self.flags.is_complete(), self.number(known));
        self.out.jumps.push(DirectJump { field, ask: 0, far, host_flags, known, load: (0, 0) });
        self.out.jumps.len() - 1
    }

    /// `r` = the page's address + `delta`.
    fn page_relative(&mut self, r: u8, delta: i64) {
        if self.pic() {
            dynasm!(self.asm ; .arch x64 ; mov Rq(r), [self.addresses.code_page]);
            self.put(encode::lea(r, Memory { base: Some(r), index: None, disp: delta as i32 }));
        } else {
            self.constant(r, self.source.page.wrapping_add_signed(delta));
        }
    }
}
