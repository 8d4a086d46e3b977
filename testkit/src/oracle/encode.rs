//! Random encodings of an instruction.

use iced_x86::{Code, Encoder, Instruction, OpCodeOperandKind as Operand, OpKind, Register};

use super::case::{START, WINDOW};
use super::rng::Rng;

/// Where direct branches may lead: beside the instruction, never into it.
fn branch_target(rng: &mut Rng, short: bool) -> u64 {
    let reach = if short { 90 } else { 1 << rng.below(24) };
    let distance = rng.below(reach);
    if rng.percent(50) { START - 1 - distance } else { START + 16 + distance }
}

/// A random encoding of `code` at [`START`]; `None` when these operands cannot be encoded, or never can.
pub(super) fn encode(rng: &mut Rng, code: Code) -> Option<Vec<u8>> {
    let op_code = code.op_code();
    let mut ins = Instruction::default();
    ins.set_code(code);
    let short_addresses = match op_code.address_size() {
        32 => true,
        0 => rng.percent(6),
        _ => false,
    };
    let mut immediates = 0;
    for (i, &kind) in op_code.op_kinds().iter().enumerate() {
        operand(rng, &mut ins, i as u32, kind, short_addresses, &mut immediates)?;
    }
    let memory = ins.op_count() > 0 && ins.op0_kind() == OpKind::Memory;
    if op_code.can_use_lock_prefix() && memory && rng.percent(20) {
        ins.set_has_lock_prefix(true);
    }
    if op_code.can_use_rep_prefix() && rng.percent(60) {
        ins.set_has_rep_prefix(true);
    } else if op_code.can_use_repne_prefix() && rng.percent(30) {
        ins.set_has_repne_prefix(true);
    }
    if rng.percent(2) {
        let segment = [Register::ES, Register::CS, Register::SS, Register::DS, Register::GS];
        ins.set_segment_prefix(rng.pick(&segment));
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&ins, START).ok()?;
    let mut bytes = encoder.take_buffer();
    spoil(rng, &mut bytes);
    Some(bytes)
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
            let at = 1 + rng.below(if bytes[0] == 0xc4 { 2 } else { 1 }) as usize;
            bytes[at] ^= 1 << rng.below(8);
        }
        _ => {}
    }
}

fn register(rng: &mut Rng, first: Register, count: u32) -> Register {
    // Half of the time among the first four, so that operands overlap.
    let number =
        if rng.percent(50) { rng.below(4.min(u64::from(count))) } else { rng.below(u64::from(count)) };
    first + number as u32
}

fn byte_register(rng: &mut Rng) -> Register {
    // AL to BH lie before SPL in iced's order; R15L ends it.
    register(rng, Register::AL, 20)
}

fn operand(
    rng: &mut Rng,
    ins: &mut Instruction,
    i: u32,
    kind: Operand,
    short: bool,
    immediates: &mut u32,
) -> Option<()> {
    let set = |ins: &mut Instruction, register| {
        ins.set_op_kind(i, OpKind::Register);
        ins.set_op_register(i, register);
    };
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
    if kind == Operand::mem || either && rng.percent(50) {
        memory(rng, ins, i, short);
        return Some(());
    }
    let lanes = match kind {
        Operand::mem_vsib32x | Operand::mem_vsib64x => Register::XMM0,
        Operand::mem_vsib32y | Operand::mem_vsib64y => Register::YMM0,
        _ => Register::None,
    };
    if lanes != Register::None {
        memory(rng, ins, i, short);
        if ins.memory_base().is_ip() {
            return None;
        }
        ins.set_memory_index(register(rng, lanes, 16));
        ins.set_memory_index_scale(1 << rng.below(4));
        return Some(());
    }
    match kind {
        Operand::mem_offs => {
            ins.set_op_kind(i, OpKind::Memory);
            ins.set_memory_displ_size(if short { 4 } else { 8 });
            ins.set_memory_displacement64(window_address(rng));
        }
        Operand::r8_or_mem | Operand::r8_reg | Operand::r8_opcode => set(ins, byte_register(rng)),
        Operand::r16_or_mem | Operand::r16_reg | Operand::r16_rm | Operand::r16_opcode => {
            set(ins, register(rng, Register::AX, 16));
        }
        Operand::r32_or_mem
        | Operand::r32_reg
        | Operand::r32_rm
        | Operand::r32_opcode
        | Operand::r32_vvvv => {
            set(ins, register(rng, Register::EAX, 16));
        }
        Operand::r64_or_mem
        | Operand::r64_reg
        | Operand::r64_rm
        | Operand::r64_opcode
        | Operand::r64_vvvv => {
            set(ins, register(rng, Register::RAX, 16));
        }
        Operand::mm_or_mem | Operand::mm_reg | Operand::mm_rm => set(ins, register(rng, Register::MM0, 8)),
        Operand::xmm_or_mem | Operand::xmm_reg | Operand::xmm_rm | Operand::xmm_vvvv | Operand::xmm_is4 => {
            set(ins, register(rng, Register::XMM0, 16));
        }
        Operand::ymm_or_mem | Operand::ymm_reg | Operand::ymm_rm | Operand::ymm_vvvv | Operand::ymm_is4 => {
            set(ins, register(rng, Register::YMM0, 16));
        }
        Operand::seg_reg => set(ins, register(rng, Register::ES, 6)),
        Operand::cr_reg => {
            let numbers = [Register::CR0, Register::CR2, Register::CR3, Register::CR4, Register::CR8];
            set(ins, rng.pick(&numbers));
        }
        Operand::dr_reg => set(ins, register(rng, Register::DR0, 8)),
        Operand::es => set(ins, Register::ES),
        Operand::cs => set(ins, Register::CS),
        Operand::ss => set(ins, Register::SS),
        Operand::ds => set(ins, Register::DS),
        Operand::fs => set(ins, Register::FS),
        Operand::gs => set(ins, Register::GS),
        Operand::al => set(ins, Register::AL),
        Operand::cl => set(ins, Register::CL),
        Operand::ax => set(ins, Register::AX),
        Operand::dx => set(ins, Register::DX),
        Operand::eax => set(ins, Register::EAX),
        Operand::rax => set(ins, Register::RAX),
        Operand::st0 => set(ins, Register::ST0),
        Operand::sti_opcode => set(ins, register(rng, Register::ST0, 8)),
        Operand::imm8 | Operand::imm8_const_1 => {
            let value = if kind == Operand::imm8_const_1 { 1 } else { rng.integer() as u8 };
            if *immediates == 0 {
                ins.set_op_kind(i, OpKind::Immediate8);
                ins.set_immediate8(value);
            } else {
                ins.set_op_kind(i, OpKind::Immediate8_2nd);
                ins.set_immediate8_2nd(value);
            }
            *immediates += 1;
        }
        Operand::imm8sex16 => {
            ins.set_op_kind(i, OpKind::Immediate8to16);
            ins.set_immediate8to16(i16::from(rng.integer() as i8));
        }
        Operand::imm8sex32 => {
            ins.set_op_kind(i, OpKind::Immediate8to32);
            ins.set_immediate8to32(i32::from(rng.integer() as i8));
        }
        Operand::imm8sex64 => {
            ins.set_op_kind(i, OpKind::Immediate8to64);
            ins.set_immediate8to64(i64::from(rng.integer() as i8));
        }
        Operand::imm16 => {
            ins.set_op_kind(i, OpKind::Immediate16);
            ins.set_immediate16(rng.integer() as u16);
            *immediates += 1;
        }
        Operand::imm32 => {
            ins.set_op_kind(i, OpKind::Immediate32);
            ins.set_immediate32(rng.integer() as u32);
        }
        Operand::imm32sex64 => {
            ins.set_op_kind(i, OpKind::Immediate32to64);
            ins.set_immediate32to64(i64::from(rng.integer() as i32));
        }
        Operand::imm64 => {
            ins.set_op_kind(i, OpKind::Immediate64);
            ins.set_immediate64(rng.integer());
        }
        Operand::seg_rSI => {
            ins.set_op_kind(i, if short { OpKind::MemorySegESI } else { OpKind::MemorySegRSI })
        }
        Operand::es_rDI => ins.set_op_kind(i, if short { OpKind::MemoryESEDI } else { OpKind::MemoryESRDI }),
        Operand::seg_rDI => {
            ins.set_op_kind(i, if short { OpKind::MemorySegEDI } else { OpKind::MemorySegRDI })
        }
        Operand::seg_rBX_al => {
            ins.set_op_kind(i, OpKind::Memory);
            ins.set_memory_base(if short { Register::EBX } else { Register::RBX });
            ins.set_memory_index(Register::AL);
            ins.set_memory_index_scale(1);
        }
        Operand::br64_1 | Operand::br64_4 => {
            ins.set_op_kind(i, OpKind::NearBranch64);
            ins.set_near_branch64(branch_target(rng, kind == Operand::br64_1));
        }
        _ => return None,
    }
    Some(())
}

/// Some address in or near the window.
fn window_address(rng: &mut Rng) -> u64 {
    WINDOW + rng.below(2 * 4096)
}

fn memory(rng: &mut Rng, ins: &mut Instruction, i: u32, short: bool) {
    ins.set_op_kind(i, OpKind::Memory);
    let file = if short { Register::EAX } else { Register::RAX };
    let form = rng.below(16);
    if form == 0 {
        // RIP-relative.
        ins.set_memory_base(if short { Register::EIP } else { Register::RIP });
        ins.set_memory_displ_size(if short { 4 } else { 8 });
        ins.set_memory_displacement64(window_address(rng));
        return;
    }
    if form > 1 {
        ins.set_memory_base(register(rng, file, 16));
    }
    if form == 1 || form >= 9 {
        let index = register(rng, file, 16);
        // The encoding of RSP as index says "none".
        if index.number() != 4 {
            ins.set_memory_index(index);
            ins.set_memory_index_scale(1 << rng.below(4));
        }
    }
    let wide = if short { 4 } else { 8 };
    if ins.memory_base() == Register::None {
        let indexed = ins.memory_index() != Register::None;
        let value = if indexed { rng.below(1 << 20) } else { window_address(rng) };
        ins.set_memory_displ_size(wide);
        ins.set_memory_displacement64(value);
        return;
    }
    match rng.below(3) {
        0 => {}
        1 => {
            ins.set_memory_displ_size(1);
            ins.set_memory_displacement64(displacement(rng.next() as i8 as i64, short));
        }
        _ => {
            ins.set_memory_displ_size(wide);
            ins.set_memory_displacement64(displacement(i64::from(rng.integer() as i32), short));
        }
    }
}

fn displacement(value: i64, short: bool) -> u64 {
    if short { value as u64 & 0xffff_ffff } else { value as u64 }
}
