//! The block as a whole, and instructions that need no other treatment than registers.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Mnemonic, OpKind, Register};

use super::admit::Action;
use super::encode::{self, Bytes, Memory};
use super::flag_code::FlagState;
use super::lazy::{Known, Recipe, Replay};
use super::plan::{Base, Plan, RSP, SCRATCH, Step};
use super::scratch::Held;
use super::values::Value;
use super::{Assembler, Bases, Cold, DirectJump, MayFault, Output, Site, SiteKind, Source, at};
use crate::jit_context::addresses::Addresses;

/// The start of a block that jumps back to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    label: DynamicLabel,
    /// Its address.
    first: u64,
    /// Which of R10 and R11 are the guest's there, and not in memory.
    used: [bool; 2],
}

pub(super) struct Emitter<'a> {
    pub asm: &'a mut Assembler,
    pub plan: &'a Plan,
    pub addresses: &'a Addresses,
    pub source: &'a Source<'a>,
    pub bases: Bases,
    pub out: &'a mut Output,
    pub cold: Vec<Cold>,
    pub held: [Held; 2],
    pub bmi2: bool,
    pub counting: bool,
    /// The next of each kind of anchors: [`x86_core::ANCHORS`].
    pub anchors: &'a mut [[usize; 2]; 3],
    /// The step at hand.
    pub now: usize,
    /// Steps counted up to, exclusive.
    pub counted: usize,
    /// The block jumps back to its start.
    pub loops: bool,
    /// The access at hand is checked by an anchor.
    pub anchored: bool,
    /// Where the guest's arithmetic flags are.
    pub flags: FlagState,
    /// They are those that the block has begun with.
    pub at_entry: bool,
    /// Those that have to be in the host's for the instruction at hand.
    pub required: u8,
    /// What gives the flags behind it, and how they can be had there.
    pub replay: Option<Replay<Known>>,
    pub next_flags: Option<Recipe>,
    /// Where its operand in memory is to be kept.
    pub fetch: Option<u8>,
    /// The step at hand has changed the registers.
    pub done: bool,
    turn: Option<Turn>,
    /// The branch at hand begins another turn.
    pub turning: bool,
}

impl<'a> Emitter<'a> {
    #[allow(clippy::too_many_arguments)] // the one constructor of what would else be built in place
    pub(super) fn new(
        asm: &'a mut Assembler,
        plan: &'a Plan,
        addresses: &'a Addresses,
        source: &'a Source<'a>,
        bases: Bases,
        out: &'a mut Output,
        bmi2: bool,
        counting: bool,
        anchors: &'a mut [[usize; 2]; 3],
    ) -> Self {
        let first = source.page.wrapping_add(u64::from(source.offset));
        Self {
            asm,
            plan,
            addresses,
            source,
            bases,
            out,
            cold: Vec::new(),
            held: [Held::Nothing; 2],
            bmi2,
            counting,
            anchors,
            now: 0,
            counted: 0,
            loops: plan.steps.iter().any(|step| step.turns_to(first)),
            anchored: false,
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
            self.flags_behind(step);
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
        self.hand_over(self.addresses.stubs.lookup, crate::dispatch::RETIRED);
        self.cold();
    }

    /// A block that jumps back to its own start keeps R10 and R11 in the host's on the way: through memory, they would be
    /// what each turn waits for.
    fn begin_loop(&mut self) {
        let first = self.source.page.wrapping_add(u64::from(self.source.offset));
        let steps = &self.plan.steps;
        // Where instructions are counted, blocks are told apart by their links.
        if self.counting || !self.loops {
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
    pub(super) fn next_turn(&mut self, target: u64) -> Option<DynamicLabel> {
        let turn = self.turn.filter(|turn| self.turning && turn.first == target)?;
        for n in (0..2).filter(|n| turn.used[*n]) {
            self.need(n);
        }
        Some(turn.label)
    }

    /// Whether `step` only begins another turn: the flags must be known as they were at the first, if that matters.
    pub(super) fn turns(&mut self, step: &Step) -> bool {
        if !self.turn.is_some_and(|turn| step.turns_to(turn.first)) {
            return false;
        }
        !self.out.flags_matter && !self.at_entry
            || self.known_flags() == self.source.known
                && (self.flags.is_complete() || self.source.known.is_some())
    }

    /// Code works wherever its page is mapped, by [`x86_core::Cpu::code_page`].
    pub(super) fn pic(&self) -> bool {
        self.source.mode.user()
    }

    pub(super) fn put(&mut self, bytes: Bytes) {
        self.asm.extend(bytes.as_slice());
    }

    /// JumpCache to a stub with an argument.
    pub(super) fn hand_over(&mut self, stub: [usize; 2], argument: u32) {
        dynasm!(self.asm ; .arch x64 ; mov r11d, argument as i32);
        self.jump_to(stub[usize::from(self.source.mode.vectors())]);
    }

    pub(super) fn jump_to(&mut self, stub: usize) {
        crate::runtime::stubs::jump(self.asm, self.bases.code, stub);
    }

    /// Adds a site; its number.
    pub(super) fn site(&mut self, kind: SiteKind, retry: u32) -> u32 {
        let step = &self.plan.steps[self.now];
        let rest = self.rest();
        let flags = self.flags_number();
        self.out.sites.push(Site { kind, offset: step.offset, rest, retry, next: 0, flags });
        self.bases.site + self.out.sites.len() as u32 - 1
    }

    /// What registers hold now.
    pub(super) fn values(&self) -> &'a [Value; 18] {
        &self.plan.values[self.now + usize::from(self.done)]
    }

    /// Instructions behind the one at hand that have been counted already.
    fn rest(&self) -> u8 {
        if self.counting { self.counted.saturating_sub(self.now + 1) as u8 } else { 0 }
    }

    /// The instruction at hand ends here: where sites that were added since number `first` go on.
    fn ends_here(&mut self, first: usize) {
        let here = at(self.asm.offset());
        let sites = &mut self.out.sites[first..];
        // Where Rust has executed it, nobody has kept its operand.
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
    pub(super) fn count_from(&mut self, first: usize) {
        if !self.counting {
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
            Action::Generic => self.generic(step),
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
        if may_fault(step) {
            self.may_fault(step);
        }
        let bytes = self.bytes(step);
        self.asm.extend(bytes);
        self.wrote(step);
    }

    /// The host instruction that comes next may fault as the guest's would: what memory has must be right.
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
        self.anchored = false;
        let memory = self.access(&access, avoid, step);
        let anchored = self.anchored;
        for (n, avoid) in avoid.into_iter().enumerate() {
            if avoid {
                self.need(n);
            }
        }
        if step.checks {
            self.need_flags(self.required, [false; 2]);
        }
        if may_fault(step) || anchored {
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
            None => self.generic(step),
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
    pub(super) fn constant(&mut self, r: u8, value: u64) {
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
    pub(super) fn load_to_temporary(&mut self, operand: &super::plan::Access, step: &Step) {
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

    pub(super) fn move_rsp(&mut self, by: i32) {
        dynasm!(self.asm ; .arch x64 ; lea rsp, [rsp + by]);
    }

    /// Hands the instruction to x86-core.
    pub(super) fn generic(&mut self, step: &Step) {
        self.spill_all();
        let number = self.generic_number(step);
        let here = at(self.asm.offset());
        let site = self.site(SiteKind::Generic(number), here);
        self.hand_over(self.addresses.stubs.generic, site);
        // Coming back loads both.
        self.held = [Held::Guest { dirty: false }; 2];
    }

    /// Keeps the instruction for x86-core.
    pub(super) fn generic_number(&mut self, step: &Step) -> u32 {
        self.out.generics.push(step.ins);
        self.bases.generic + self.out.generics.len() as u32 - 1
    }

    /// RIP = the page's address + `delta`; uses R11.
    pub(super) fn set_rip(&mut self, delta: i64) {
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

    /// A direct jump, to be linked.
    pub(super) fn link(&mut self, far: bool) -> usize {
        let field = at(self.asm.offset()) - 4;
        let known = self.known_flags();
        let (host_flags, known) = (self.flags.is_complete(), self.number(known));
        self.out.links.push(DirectJump { field, ask: 0, far, host_flags, known, load: (0, 0) });
        self.out.links.len() - 1
    }

    /// `r` = the page's address + `delta`.
    pub(super) fn page_relative(&mut self, r: u8, delta: i64) {
        if self.pic() {
            dynasm!(self.asm ; .arch x64 ; mov Rq(r), [self.addresses.code_page]);
            self.put(encode::lea(r, Memory { base: Some(r), index: None, disp: delta as i32 }));
        } else {
            self.constant(r, self.source.page.wrapping_add_signed(delta));
        }
    }
}

/// Whether the host raises an exception for what the guest is to be told, or for what x86-core has to do in its place.
pub(super) fn may_fault(step: &Step) -> bool {
    let wide = step.operand.is_some_and(|o| o.size >= 16);
    // Some hosts refuse locked accesses across lines (ADR 15).
    let locked =
        step.ins.has_lock_prefix() || step.ins.mnemonic() == Mnemonic::Xchg && step.operand.is_some();
    // Division errors; and #GP where an operand is not aligned.
    matches!(step.ins.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) || wide || locked
}

/// Whether one of the operands is AH, CH, DH or BH.
pub(super) fn names_high_byte(ins: &iced_x86::Instruction) -> bool {
    (0..ins.op_count()).any(|n| {
        ins.op_kind(n) == OpKind::Register
            && matches!(ins.op_register(n), Register::AH | Register::CH | Register::DH | Register::BH)
    })
}

impl Base {
    /// The linear address itself, if it is known now.
    pub(super) fn known(self, page: Option<u64>) -> Option<u64> {
        match self {
            Self::Register(_) => None,
            Self::Page => page,
            Self::None => Some(0),
        }
    }
}
