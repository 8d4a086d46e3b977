//! Random encodings of an instruction.

use iced_x86::{Code, Encoder, Instruction, OpCodeOperandKind as Operand, OpKind, Register};

use super::case::{CODE, CodeSize, WINDOW};
use super::rng::Rng;
use super::segments::{ANY, CODE16, CODE32_LIMITED, TARGETS};

/// What of the surroundings decides an encoding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Size of the code segment.
    pub size: CodeSize,
    /// RIP.
    pub ip: u64,
    /// What to add to a linear address for an offset into the data segment.
    pub data: u64,
}

/// An instruction in the making.
struct Draft<'a> {
    rng: &'a mut Rng,
    ins: Instruction,
    place: Place,
    /// Bytes of an address: 2, 4 or 8.
    width: u32,
    immediates: u32,
}

/// A random encoding of `code` at `place`; `None` when these operands cannot be encoded, or never can.
pub(super) fn encode(rng: &mut Rng, code: Code, place: Place) -> Option<Vec<u8>> {
    let op_code = code.op_code();
    let bitness = place.size.bitness();
    let other = rng.percent(if place.size == CodeSize::Bits64 { 6 } else { 15 });
    let width = match (op_code.address_size(), place.size) {
        (0, CodeSize::Bits64) if other => 4,
        (0, CodeSize::Bits32) if other => 2,
        (0, CodeSize::Bits16) if other => 4,
        (0, _) => bitness / 8,
        (bits, _) => bits / 8,
    };
    let mut draft = Draft { rng, ins: Instruction::default(), place, width, immediates: 0 };
    draft.ins.set_code(code);
    for (i, &kind) in op_code.op_kinds().iter().enumerate() {
        draft.operand(i as u32, kind)?;
    }
    draft.prefixes(code);
    let mut encoder = Encoder::new(bitness);
    encoder.encode(&draft.ins, place.ip).ok()?;
    let mut bytes = encoder.take_buffer();
    spoil(rng, &mut bytes);
    Some(bytes)
}

/// Selector and offset of a far branch.
pub(super) fn far_target(rng: &mut Rng) -> (u16, u32) {
    let selector = if rng.percent(60) { rng.pick(&TARGETS) } else { rng.pick(&ANY) };
    let offset = rng.below(0x700);
    let limited = matches!(selector, CODE16 | CODE32_LIMITED);
    let offset = match rng.below(10) {
        0 => rng.below(1 << 17),
        1 => rng.integer() & 0xffff_ffff,
        _ if limited => offset,
        _ => CODE + offset,
    };
    (selector, offset as u32)
}

/// Now and then makes something else of an encoding: a prefix that changes or forbids it, a wrong bit, so many prefixes
/// that it is about as long as an instruction may be, or longer.
fn spoil(rng: &mut Rng, bytes: &mut Vec<u8>) {
    const PREFIXES: [u8; 9] = [0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x3e, 0x40, 0x48];
    match rng.below(200) {
        // Of the prefixes' order only that of REX matters, which counts directly before the opcode alone.
        0..5 => bytes.insert(0, rng.pick(&PREFIXES)),
        5..7 => {
            for _ in 0..2 + rng.below(3) {
                bytes.insert(0, rng.pick(&PREFIXES));
            }
        }
        7 => {
            let prefix = rng.pick(&PREFIXES[5..]);
            let length = 13 + rng.below(4) as usize;
            while bytes.len() < length {
                bytes.insert(0, prefix);
            }
        }
        8..10 => {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << rng.below(8);
        }
        // The bytes of a VEX prefix: map, vvvv, L and W that the instruction does not have.
        10..14 if matches!(bytes[0], 0xc4 | 0xc5) => {
            // Outside 64-bit mode these may be LES and LDS, which can be short.
            let at = 1 + rng.below(if bytes[0] == 0xc4 { 2 } else { 1 }) as usize;
            let flipped = 1 << rng.below(8);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= flipped;
            }
        }
        _ => {}
    }
}

impl Draft<'_> {
    fn prefixes(&mut self, code: Code) {
        let op_code = code.op_code();
        let memory = self.ins.op_count() > 0 && self.ins.op0_kind() == OpKind::Memory;
        if op_code.can_use_lock_prefix() && memory && self.rng.percent(20) {
            self.ins.set_has_lock_prefix(true);
        }
        if op_code.can_use_rep_prefix() && self.rng.percent(60) {
            self.ins.set_has_rep_prefix(true);
        } else if op_code.can_use_repne_prefix() && self.rng.percent(30) {
            self.ins.set_has_repne_prefix(true);
        }
        if self.rng.percent(if self.place.size == CodeSize::Bits64 { 2 } else { 8 }) {
            const SEGMENTS: [Register; 6] =
                [Register::ES, Register::CS, Register::SS, Register::DS, Register::GS, Register::FS];
            // The host's threads live by FS; without 64-bit mode it is null, and an access faults.
            let usable = if self.place.size == CodeSize::Bits64 { 5 } else { 6 };
            self.ins.set_segment_prefix(self.rng.pick(&SEGMENTS[..usable]));
        }
    }

    fn long(&self) -> bool {
        self.place.size == CodeSize::Bits64
    }

    /// One of a file of 16 registers of which only 64-bit mode has the upper half.
    fn register(&mut self, first: Register) -> Register {
        let count = if self.long() { 16 } else { 8 };
        self.one_of(first, count)
    }

    fn one_of(&mut self, first: Register, count: u64) -> Register {
        // Half of the time among the first four, so that operands overlap.
        let number = if self.rng.percent(50) { self.rng.below(4.min(count)) } else { self.rng.below(count) };
        first + number as u32
    }

    fn byte_register(&mut self) -> Register {
        // AL to BH lie before SPL in iced's order; R15L ends it.
        let count = if self.long() { 20 } else { 8 };
        self.one_of(Register::AL, count)
    }

    /// Where direct branches may lead: beside the instruction, never into it.
    fn branch_target(&mut self, short: bool) -> u64 {
        let most = if self.place.size == CodeSize::Bits16 { 15 } else { 24 };
        let reach = if short { 90 } else { 1 << self.rng.below(most) };
        let distance = self.rng.below(reach);
        let ip = self.place.ip;
        if self.rng.percent(50) { ip.wrapping_sub(1 + distance) } else { ip + 16 + distance }
    }

    /// Some address in or near the window, as an offset into the data segment.
    fn window_address(&mut self) -> u64 {
        let address = WINDOW + self.rng.below(2 * 4096);
        self.mask(address.wrapping_add(self.place.data))
    }

    fn mask(&self, address: u64) -> u64 {
        match self.width {
            2 => address & 0xffff,
            4 => address & 0xffff_ffff,
            _ => address,
        }
    }

    fn by_width(&self, kinds: [OpKind; 3]) -> OpKind {
        match self.width {
            2 => kinds[0],
            4 => kinds[1],
            _ => kinds[2],
        }
    }

    fn operand(&mut self, i: u32, kind: Operand) -> Option<()> {
        let either = matches!(
            kind,
            Operand::r8_or_mem
                | Operand::r16_or_mem
                | Operand::r32_or_mem
                | Operand::r64_or_mem
                | Operand::mm_or_mem
                | Operand::xmm_or_mem
                | Operand::ymm_or_mem
        );
        if kind == Operand::mem || either && self.rng.percent(50) {
            self.memory(i);
            return Some(());
        }
        let lanes = match kind {
            Operand::mem_vsib32x | Operand::mem_vsib64x => Register::XMM0,
            Operand::mem_vsib32y | Operand::mem_vsib64y => Register::YMM0,
            _ => Register::None,
        };
        if lanes != Register::None {
            if self.width == 2 {
                return None;
            }
            self.memory(i);
            if self.ins.memory_base().is_ip() {
                return None;
            }
            let index = self.register(lanes);
            self.ins.set_memory_index(index);
            self.ins.set_memory_index_scale(1 << self.rng.below(4));
            return Some(());
        }
        match kind {
            Operand::mem_offs => {
                self.ins.set_op_kind(i, OpKind::Memory);
                self.ins.set_memory_displ_size(self.width);
                let address = self.window_address();
                self.ins.set_memory_displacement64(address);
            }
            Operand::r8_or_mem | Operand::r8_reg | Operand::r8_opcode => self.set_byte(i),
            Operand::r16_or_mem
            | Operand::r16_reg
            | Operand::r16_reg_mem
            | Operand::r16_rm
            | Operand::r16_opcode => {
                self.set(i, Register::AX, 16);
            }
            Operand::r32_or_mem
            | Operand::r32_reg
            | Operand::r32_reg_mem
            | Operand::r32_rm
            | Operand::r32_opcode
            | Operand::r32_vvvv => {
                self.set(i, Register::EAX, 16);
            }
            Operand::r64_or_mem
            | Operand::r64_reg
            | Operand::r64_reg_mem
            | Operand::r64_rm
            | Operand::r64_opcode
            | Operand::r64_vvvv => {
                self.set(i, Register::RAX, 16);
            }
            Operand::mm_or_mem | Operand::mm_reg | Operand::mm_rm => self.set(i, Register::MM0, 8),
            Operand::xmm_or_mem
            | Operand::xmm_reg
            | Operand::xmm_rm
            | Operand::xmm_vvvv
            | Operand::xmm_is4 => {
                self.set(i, Register::XMM0, 16);
            }
            Operand::ymm_or_mem
            | Operand::ymm_reg
            | Operand::ymm_rm
            | Operand::ymm_vvvv
            | Operand::ymm_is4 => {
                self.set(i, Register::YMM0, 16);
            }
            Operand::seg_reg => self.set(i, Register::ES, 6),
            Operand::cr_reg => {
                let numbers = [Register::CR0, Register::CR2, Register::CR3, Register::CR4, Register::CR8];
                {
                    let number = self.rng.pick(&numbers);
                    self.fix(i, number)
                };
            }
            Operand::dr_reg => self.set(i, Register::DR0, 8),
            Operand::es => self.fix(i, Register::ES),
            Operand::cs => self.fix(i, Register::CS),
            Operand::ss => self.fix(i, Register::SS),
            Operand::ds => self.fix(i, Register::DS),
            Operand::fs => self.fix(i, Register::FS),
            Operand::gs => self.fix(i, Register::GS),
            Operand::al => self.fix(i, Register::AL),
            Operand::cl => self.fix(i, Register::CL),
            Operand::ax => self.fix(i, Register::AX),
            Operand::dx => self.fix(i, Register::DX),
            Operand::eax => self.fix(i, Register::EAX),
            Operand::rax => self.fix(i, Register::RAX),
            Operand::st0 => self.fix(i, Register::ST0),
            Operand::sti_opcode => self.set(i, Register::ST0, 8),
            Operand::imm8 | Operand::imm8_const_1 => {
                let value = if kind == Operand::imm8_const_1 { 1 } else { self.rng.integer() as u8 };
                if self.immediates == 0 {
                    self.ins.set_op_kind(i, OpKind::Immediate8);
                    self.ins.set_immediate8(value);
                } else {
                    self.ins.set_op_kind(i, OpKind::Immediate8_2nd);
                    self.ins.set_immediate8_2nd(value);
                }
                self.immediates += 1;
            }
            Operand::imm8sex16 => {
                self.ins.set_op_kind(i, OpKind::Immediate8to16);
                self.ins.set_immediate8to16(i16::from(self.rng.integer() as i8));
            }
            Operand::imm8sex32 => {
                self.ins.set_op_kind(i, OpKind::Immediate8to32);
                self.ins.set_immediate8to32(i32::from(self.rng.integer() as i8));
            }
            Operand::imm8sex64 => {
                self.ins.set_op_kind(i, OpKind::Immediate8to64);
                self.ins.set_immediate8to64(i64::from(self.rng.integer() as i8));
            }
            Operand::imm16 => {
                self.ins.set_op_kind(i, OpKind::Immediate16);
                self.ins.set_immediate16(self.rng.integer() as u16);
                self.immediates += 1;
            }
            Operand::imm32 => {
                self.ins.set_op_kind(i, OpKind::Immediate32);
                self.ins.set_immediate32(self.rng.integer() as u32);
            }
            Operand::imm32sex64 => {
                self.ins.set_op_kind(i, OpKind::Immediate32to64);
                self.ins.set_immediate32to64(i64::from(self.rng.integer() as i32));
            }
            Operand::imm64 => {
                self.ins.set_op_kind(i, OpKind::Immediate64);
                self.ins.set_immediate64(self.rng.integer());
            }
            Operand::seg_rSI => {
                self.ins.set_op_kind(
                    i,
                    self.by_width([OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI]),
                );
            }
            Operand::es_rDI => {
                self.ins.set_op_kind(
                    i,
                    self.by_width([OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI]),
                );
            }
            Operand::seg_rDI => {
                self.ins.set_op_kind(
                    i,
                    self.by_width([OpKind::MemorySegDI, OpKind::MemorySegEDI, OpKind::MemorySegRDI]),
                );
            }
            Operand::seg_rBX_al => {
                let base = match self.width {
                    2 => Register::BX,
                    4 => Register::EBX,
                    _ => Register::RBX,
                };
                self.ins.set_op_kind(i, OpKind::Memory);
                self.ins.set_memory_base(base);
                self.ins.set_memory_index(Register::AL);
                self.ins.set_memory_index_scale(1);
            }
            Operand::br16_1 | Operand::br16_2 => {
                let target = self.branch_target(kind == Operand::br16_1);
                self.ins.set_op_kind(i, OpKind::NearBranch16);
                self.ins.set_near_branch16(target as u16);
            }
            Operand::br32_1 | Operand::br32_4 => {
                let target = self.branch_target(kind == Operand::br32_1);
                self.ins.set_op_kind(i, OpKind::NearBranch32);
                self.ins.set_near_branch32(target as u32);
            }
            Operand::br64_1 | Operand::br64_4 => {
                let target = self.branch_target(kind == Operand::br64_1);
                self.ins.set_op_kind(i, OpKind::NearBranch64);
                self.ins.set_near_branch64(target);
            }
            Operand::farbr2_2 | Operand::farbr4_2 => {
                let (selector, offset) = far_target(self.rng);
                self.ins.set_far_branch_selector(selector);
                if kind == Operand::farbr2_2 {
                    self.ins.set_op_kind(i, OpKind::FarBranch16);
                    self.ins.set_far_branch16(offset as u16);
                } else {
                    self.ins.set_op_kind(i, OpKind::FarBranch32);
                    self.ins.set_far_branch32(offset);
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn fix(&mut self, i: u32, register: Register) {
        self.ins.set_op_kind(i, OpKind::Register);
        self.ins.set_op_register(i, register);
    }

    fn set(&mut self, i: u32, first: Register, count: u64) {
        let register = if count == 16 { self.register(first) } else { self.one_of(first, count) };
        self.fix(i, register);
    }

    fn set_byte(&mut self, i: u32) {
        let register = self.byte_register();
        self.fix(i, register);
    }

    fn memory(&mut self, i: u32) {
        self.ins.set_op_kind(i, OpKind::Memory);
        if self.width == 2 {
            self.memory16();
            return;
        }
        let file = if self.width == 4 { Register::EAX } else { Register::RAX };
        let form = self.rng.below(16);
        if form == 0 {
            // RIP-relative; without 64-bit mode the same bits are an address.
            if self.long() {
                self.ins.set_memory_base(if self.width == 4 { Register::EIP } else { Register::RIP });
            }
            self.ins.set_memory_displ_size(self.width);
            let address = self.window_address();
            self.ins.set_memory_displacement64(address);
            return;
        }
        if form > 1 {
            let base = self.register(file);
            self.ins.set_memory_base(base);
        }
        if form == 1 || form >= 9 {
            let index = self.register(file);
            // The encoding of RSP as index says "none".
            if index.number() != 4 {
                self.ins.set_memory_index(index);
                self.ins.set_memory_index_scale(1 << self.rng.below(4));
            }
        }
        if self.ins.memory_base() == Register::None {
            let indexed = self.ins.memory_index() != Register::None;
            let value = if indexed { self.rng.below(1 << 20) } else { self.window_address() };
            self.ins.set_memory_displ_size(self.width);
            self.ins.set_memory_displacement64(value);
            return;
        }
        self.displacement();
    }

    /// The eight forms of 16-bit addresses, and the address alone.
    fn memory16(&mut self) {
        const BASES: [Register; 3] = [Register::BX, Register::BP, Register::None];
        const INDICES: [Register; 3] = [Register::SI, Register::DI, Register::None];
        let (base, index) = (self.rng.pick(&BASES), self.rng.pick(&INDICES));
        self.ins.set_memory_base(base);
        self.ins.set_memory_index(index);
        if (base, index) == (Register::None, Register::None) {
            self.ins.set_memory_displ_size(2);
            let address = self.window_address();
            self.ins.set_memory_displacement64(address);
        } else {
            self.displacement();
        }
    }

    fn displacement(&mut self) {
        let (size, value) = match self.rng.below(3) {
            0 => return,
            1 => (1, self.rng.next() as i8 as i64),
            _ => (self.width, i64::from(self.rng.integer() as i32)),
        };
        self.ins.set_memory_displ_size(size);
        self.ins.set_memory_displacement64(self.mask(value as u64));
    }
}
