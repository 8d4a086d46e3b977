//! Machine code of guest instructions with other operands.
//!
//! Guest registers are the host's, so all that ever has to change in an instruction is where its memory operand lies.
//! The bytes are taken apart (Intel SDM vol. 2A, chapter 2) and put together again around a new ModRM, SIB and
//! displacement.

use iced_x86::{Instruction, OpKind, Register};

/// Bytes of one instruction.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Bytes {
    bytes: [u8; 24],
    len: usize,
}

impl Bytes {
    pub(crate) fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn extend(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.push(*b));
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A memory operand: base and index by register number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    pub base: Option<u8>,
    /// Register and log2 of the scale.
    pub index: Option<(u8, u8)>,
    pub disp: i32,
}

impl Memory {
    fn rex_b(self) -> u8 {
        self.base.map_or(0, |r| r >> 3)
    }

    fn rex_x(self) -> u8 {
        self.index.map_or(0, |(r, _)| r >> 3)
    }

    /// ModRM, SIB and displacement, with `reg` (three bits) in ModRM.reg.
    fn put(self, out: &mut Bytes, reg: u8) {
        let reg = (reg & 7) << 3;
        let Some(base) = self.base else {
            // SIB without base, and with no index unless there is one: 32 bits of displacement.
            let (index, scale) = self.index.map_or((4, 0), |(r, s)| (r & 7, s));
            out.push(reg | 4);
            out.push(scale << 6 | index << 3 | 5);
            out.extend(&self.disp.to_le_bytes());
            return;
        };
        let low = base & 7;
        let mode = match self.disp {
            // RBP and R13 as base have no form without displacement.
            0 if low != 5 => 0,
            -128..=127 => 1,
            _ => 2,
        };
        match self.index {
            None if low != 4 => out.push(mode << 6 | reg | low),
            None => {
                out.push(mode << 6 | reg | 4);
                out.push(0x24);
            }
            Some((index, scale)) => {
                out.push(mode << 6 | reg | 4);
                out.push(scale << 6 | (index & 7) << 3 | low);
            }
        }
        match mode {
            0 => {}
            1 => out.push(self.disp as u8),
            _ => out.extend(&self.disp.to_le_bytes()),
        }
    }
}

/// `LEA r64, memory`.
pub(crate) fn lea(to: u8, memory: Memory) -> Bytes {
    with_rex_w(0x8d, to, memory)
}

/// `MOV r64, memory`.
pub(crate) fn load(to: u8, memory: Memory) -> Bytes {
    with_rex_w(0x8b, to, memory)
}

/// `MOV` or `MOVZX` of `size` bytes of memory to a register whose other bytes become zero.
pub(crate) fn load_zero_extended(to: u8, memory: Memory, size: u8) -> Bytes {
    let wide = if size == 8 { 8 } else { 0 };
    let mut out = Bytes::default();
    out.push(0x40 | wide | to >> 3 << 2 | memory.rex_x() << 1 | memory.rex_b());
    match size {
        1 => out.extend(&[0x0f, 0xb6]),
        2 => out.extend(&[0x0f, 0xb7]),
        _ => out.push(0x8b),
    }
    memory.put(&mut out, to);
    out
}

/// `MOV memory, r64`.
pub(crate) fn store(memory: Memory, from: u8) -> Bytes {
    with_rex_w(0x89, from, memory)
}

/// `MOV qword memory, value`, sign-extended.
pub(crate) fn store_constant(memory: Memory, value: i32) -> Bytes {
    let mut out = with_rex_w(0xc7, 0, memory);
    out.extend(&value.to_le_bytes());
    out
}

fn with_rex_w(opcode: u8, reg: u8, memory: Memory) -> Bytes {
    let mut out = Bytes::default();
    out.push(0x48 | reg >> 3 << 2 | memory.rex_x() << 1 | memory.rex_b());
    out.push(opcode);
    memory.put(&mut out, reg);
    out
}

/// The parts of an instruction with a memory operand.
struct Parts<'a> {
    /// LOCK, REP, REPNE and operand size, in their order.
    prefixes: &'a [u8],
    kind: Kind<'a>,
    modrm: u8,
    immediate: &'a [u8],
}

enum Kind<'a> {
    Legacy {
        rex: Option<u8>,
        opcode: &'a [u8],
    },
    /// Second and third byte of the three-byte form, and the opcode.
    Vex(u8, u8, u8),
}

/// Segment overrides and address size, which a new operand does not use.
fn concerns_operand(prefix: u8) -> bool {
    matches!(prefix, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67)
}

fn split<'a>(code: &'a [u8], prefixes: &'a mut Bytes) -> Option<Parts<'a>> {
    let mut at = 0;
    while matches!(code.get(at)?, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3) {
        if !concerns_operand(code[at]) {
            prefixes.push(code[at]);
        }
        at += 1;
    }
    let kind = match *code.get(at)? {
        0xc5 => {
            let second = *code.get(at + 1)?;
            let kind = Kind::Vex(second & 0x80 | 0x61, second & 0x7f, *code.get(at + 2)?);
            at += 3;
            kind
        }
        0xc4 => {
            let kind = Kind::Vex(*code.get(at + 1)?, *code.get(at + 2)?, *code.get(at + 3)?);
            at += 4;
            kind
        }
        // EVEX, and XOP where it is not POP.
        0x62 | 0x8f if code.get(at) == Some(&0x62) => return None,
        first => {
            let rex = (first & 0xf0 == 0x40).then_some(first);
            at += usize::from(rex.is_some());
            let start = at;
            // REX in front of another prefix means nothing.
            if matches!(code.get(at)?, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
            {
                return None;
            }
            if let Some(n @ 0xa0..=0xa3) = code.get(at) {
                // MOV between the accumulator and an address, which has a form with ModRM. Its register is no other
                // whatever REX.R says.
                const WITH_MODRM: [u8; 4] = [0x8a, 0x8b, 0x88, 0x89];
                let opcode = &WITH_MODRM[(n - 0xa0) as usize..][..1];
                let rex = rex.map(|rex| rex & !4);
                let kind = Kind::Legacy { rex, opcode };
                return Some(Parts { prefixes: prefixes.as_slice(), kind, modrm: 0, immediate: &[] });
            }
            at += match (*code.get(at)?, code.get(at + 1)) {
                (0x0f, Some(0x38 | 0x3a)) => 3,
                (0x0f, _) => 2,
                _ => 1,
            };
            Kind::Legacy { rex, opcode: code.get(start..at)? }
        }
    };
    let modrm = *code.get(at)?;
    at += 1;
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let mut disp = match mode {
        0 => 4 * usize::from(rm == 5),
        1 => 1,
        2 => 4,
        _ => return None,
    };
    if rm == 4 {
        let sib = *code.get(at)?;
        at += 1;
        if mode == 0 && sib & 7 == 5 {
            disp = 4;
        }
    }
    Some(Parts { prefixes: prefixes.as_slice(), kind, modrm, immediate: code.get(at + disp..)? })
}

/// The instruction `code` with its memory operand replaced; `high_byte` says that it names AH, CH, DH or BH. `None` if
/// it cannot be encoded: those four exist only without a REX prefix, and with many prefixes it can become too long.
pub(crate) fn with_memory(code: &[u8], memory: Memory, high_byte: bool) -> Option<Bytes> {
    let mut prefixes = Bytes::default();
    let parts = split(code, &mut prefixes)?;
    let mut out = Bytes::default();
    out.extend(parts.prefixes);
    match parts.kind {
        Kind::Legacy { rex, opcode } => {
            let new = rex.unwrap_or(0x40) & 0x4c | memory.rex_x() << 1 | memory.rex_b();
            if rex.is_some() || new != 0x40 {
                if high_byte {
                    return None;
                }
                out.push(new);
            }
            out.extend(opcode);
        }
        Kind::Vex(second, third, opcode) => {
            out.push(0xc4);
            // R, X and B are inverted.
            out.push(second & 0x9f | (memory.rex_x() ^ 1) << 6 | (memory.rex_b() ^ 1) << 5);
            out.push(third);
            out.push(opcode);
        }
    }
    memory.put(&mut out, parts.modrm >> 3);
    out.extend(parts.immediate);
    (out.len <= x86_core::MAX_INSTRUCTION).then_some(out)
}

/// Whether one of the operands is AH, CH, DH or BH.
pub(super) fn names_high_byte(ins: &Instruction) -> bool {
    (0..ins.op_count()).any(|n| {
        ins.op_kind(n) == OpKind::Register
            && matches!(ins.op_register(n), Register::AH | Register::CH | Register::DH | Register::BH)
    })
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, Formatter, NasmFormatter};

    use super::*;

    fn text(code: &[u8]) -> String {
        let ins = Decoder::new(64, code, 0).decode();
        assert_eq!(ins.len(), code.len(), "{code:02x?}");
        let mut text = String::new();
        NasmFormatter::new().format(&ins, &mut text);
        text
    }

    fn changed(code: &[u8], memory: Memory) -> String {
        text(with_memory(code, memory, false).unwrap().as_slice())
    }

    const R11: Memory = Memory { base: Some(3), index: Some((11, 0)), disp: 0x10 };

    #[test]
    fn operands_are_replaced() {
        // mov eax,[rdi+rcx*4+12345678h]; lock xadd fs:[eax],rdx; add word [rip+1],1234h
        assert_eq!(changed(&[0x8b, 0x84, 0x8f, 0x78, 0x56, 0x34, 0x12], R11), "mov eax,[rbx+r11+10h]");
        assert_eq!(changed(&[0x64, 0x67, 0xf0, 0x48, 0x0f, 0xc1, 0x10], R11), "lock xadd [rbx+r11+10h],rdx");
        assert_eq!(changed(&[0x66, 0x81, 0x05, 1, 0, 0, 0, 0x34, 0x12], R11), "add word [rbx+r11+10h],1234h");
        // mov [1122334455667788h],al
        assert_eq!(
            changed(&[0xa2, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11], R11),
            "mov [rbx+r11+10h],al"
        );
        // pinsrb xmm9,[rax],3 by way of R13; sil must stay sil.
        let r13 = Memory { base: Some(13), index: None, disp: 0 };
        assert_eq!(changed(&[0x66, 0x44, 0x0f, 0x3a, 0x20, 0x08, 3], r13), "pinsrb xmm9,[r13],3");
        assert_eq!(changed(&[0x40, 0x88, 0x30], Memory { base: Some(0), ..r13 }), "mov [rax],sil");
    }

    #[test]
    fn vex_instructions_get_the_long_form() {
        // vaddps ymm9,ymm1,[rax]; vpermd ymm1,ymm2,[rsp+8]
        assert_eq!(changed(&[0xc5, 0x74, 0x58, 0x08], R11), "vaddps ymm9,ymm1,[rbx+r11+10h]");
        assert_eq!(
            changed(
                &[0xc4, 0xe2, 0x6d, 0x36, 0x4c, 0x24, 8],
                Memory { base: Some(11), index: None, disp: -1 }
            ),
            "vpermd ymm1,ymm2,[r11-1]"
        );
    }

    #[test]
    fn every_base_and_index_has_its_form() {
        for base in 0..16 {
            for index in (0..16).filter(|r| *r != 4) {
                for disp in [0, 1, -128, 128] {
                    let code = lea(9, Memory { base: Some(base), index: Some((index, 2)), disp });
                    let ins = Decoder::new(64, code.as_slice(), 0).decode();
                    assert_eq!(ins.memory_base().number(), base as usize, "{}", text(code.as_slice()));
                    assert_eq!(ins.memory_index().number(), index as usize);
                    assert_eq!(ins.memory_displacement64() as i32, disp);
                }
            }
            let code = load(1, Memory { base: Some(base), index: None, disp: 0 });
            let ins = Decoder::new(64, code.as_slice(), 0).decode();
            assert_eq!((ins.memory_base().number(), ins.len()), (base as usize, code.as_slice().len()));
        }
        let loads = [1, 2, 4, 8].map(|size| text(load_zero_extended(11, R11, size).as_slice()));
        let registers = ["movzx r11d,byte", "movzx r11d,word", "mov r11d,", "mov r11,"];
        assert!(loads.iter().zip(registers).all(|(text, start)| text.starts_with(start)), "{loads:?}");
        let code = store(Memory { base: None, index: Some((11, 3)), disp: 0x1000 }, 2);
        assert_eq!(text(code.as_slice()), "mov [r11*8+1000h],rdx");
        let code = store(Memory { base: None, index: None, disp: 0x1000 }, 2);
        assert_eq!(text(code.as_slice()), "mov [1000h],rdx");
    }

    #[test]
    fn high_bytes_do_without_rex() {
        // mov [rbx],ah
        assert!(with_memory(&[0x88, 0x23], R11, true).is_none());
        assert!(with_memory(&[0x88, 0x23], Memory { base: Some(1), index: None, disp: 0 }, true).is_some());
    }
}
