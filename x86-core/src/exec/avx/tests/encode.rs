//! Machine code of one instruction, from iced's tables of opcodes but without its encoder or decoder.

use iced_x86::{Code, EncodingKind, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind as Kind, OpCodeTableKind};

/// Numbers of the operands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    /// ModRM.reg.
    pub(super) reg: u8,
    /// VEX.vvvv.
    pub(super) vvvv: u8,
    /// The register in ModRM.rm, or the memory operand `[rsi]`, or `[rsi + scale * index]` with a vector of indices.
    pub(super) rm: Rm,
    /// Immediates; of a fourth register its number in bits 7:4.
    pub(super) imm: [u8; 2],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rm {
    Register(u8),
    Memory,
    Vector { index: u8, scale: u8 },
}

/// Whether ModRM.rm of `code` can be memory, or must be.
pub(super) fn memory(code: Code) -> (bool, bool) {
    let kinds = code.op_code().op_kinds();
    let must = kinds.iter().any(|k| k == &Kind::mem || vector(k));
    let can = kinds
        .iter()
        .any(|k| matches!(k, Kind::xmm_or_mem | Kind::ymm_or_mem | Kind::r32_or_mem | Kind::r64_or_mem));
    (must || can, must)
}

/// Whether the operand is addressed by a vector of indices.
pub(super) fn vector(kind: &Kind) -> bool {
    matches!(kind, Kind::mem_vsib32x | Kind::mem_vsib32y | Kind::mem_vsib64x | Kind::mem_vsib64y)
}

pub(super) fn immediates(info: &OpCodeInfo) -> usize {
    info.op_kinds().iter().filter(|k| matches!(k, Kind::imm8 | Kind::xmm_is4 | Kind::ymm_is4)).count()
}

fn prefix(info: &OpCodeInfo) -> u8 {
    match info.mandatory_prefix() {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    }
}

fn table(info: &OpCodeInfo) -> u8 {
    match info.table() {
        OpCodeTableKind::T0F => 1,
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        other => panic!("{other:?}"),
    }
}

/// `code` on the registers of `fields`, for 64-bit mode.
pub(super) fn encode(code: Code, fields: &Fields) -> Vec<u8> {
    let info = code.op_code();
    let (b, x) = match fields.rm {
        Rm::Register(number) => (number >> 3, 0),
        Rm::Memory => (0, 0),
        Rm::Vector { index, .. } => (0, index >> 3),
    };
    let r = fields.reg >> 3;
    let mut bytes = Vec::new();
    if info.encoding() == EncodingKind::VEX {
        let vvvv = if info.op_kinds().iter().any(|k| matches!(k, Kind::xmm_vvvv | Kind::ymm_vvvv)) {
            fields.vvvv
        } else {
            0
        };
        let second = (r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | table(info);
        let third =
            u8::from(info.w() == 1) << 7 | (vvvv ^ 15) << 3 | u8::from(info.l() == 1) << 2 | prefix(info);
        bytes.extend([0xc4, second, third]);
    } else {
        bytes.extend([0x66, 0xf3, 0xf2].get(usize::from(prefix(info)).wrapping_sub(1)));
        bytes.push(0x40 | u8::from(info.w() == 1) << 3 | r << 2 | x << 1 | b);
        bytes.extend([&[0x0f][..], &[0x0f, 0x38], &[0x0f, 0x3a]][usize::from(table(info)) - 1]);
    }
    bytes.push(info.op_code() as u8);
    if info.op_count() > 0 {
        let reg = if info.group_index() >= 0 { info.group_index() as u8 } else { fields.reg & 7 };
        match fields.rm {
            Rm::Register(number) => bytes.push(0xc0 | reg << 3 | number & 7),
            Rm::Memory => bytes.push(reg << 3 | 6),
            Rm::Vector { index, scale } => {
                bytes.extend([reg << 3 | 4, (scale.trailing_zeros() as u8) << 6 | (index & 7) << 3 | 6]);
            }
        }
    }
    bytes.extend(&fields.imm[..immediates(info)]);
    bytes
}
