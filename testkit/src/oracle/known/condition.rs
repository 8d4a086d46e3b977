//! Conditions of [`super::KNOWN`] that take more than a line.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind, Register};

use super::Situation;
use crate::oracle::case::{Case, CodeSize, WINDOW, seg};
use crate::oracle::compare::Difference;
use crate::oracle::generate::value;

/// Whether the bytes are an instruction on opmask registers (Intel SDM vol. 2, KADD and the following), also with bits of
/// register numbers that processors ignore.
pub(super) fn opmask(bytes: &[u8]) -> bool {
    let Some(vex) = bytes.iter().position(|byte| matches!(byte, 0xc4 | 0xc5)) else { return false };
    let (map, opcode) = match bytes[vex..] {
        [0xc4, map, _, opcode, ..] => (map & 0x1f, opcode),
        [0xc5, _, opcode, ..] => (1, opcode),
        _ => return false,
    };
    match map {
        1 => matches!(opcode, 0x41 | 0x42 | 0x44..=0x47 | 0x4a | 0x4b | 0x90..=0x93 | 0x98 | 0x99),
        3 => matches!(opcode, 0x30..=0x33),
        _ => false,
    }
}

/// Number of the operand in memory.
pub(super) fn memory_operand(ins: &Instruction) -> Option<u32> {
    (0..ins.op_count()).find(|&i| ins.op_kind(i) == OpKind::Memory)
}

/// Whether the bytes are an instruction with VEX.W the other way.
pub(super) fn valid_with_other_w(case: &Case) -> bool {
    let Some(vex) = case.bytes.iter().position(|&byte| byte == 0xc4) else { return false };
    let mut other = case.clone();
    other.bytes.get_mut(vex + 2).is_some_and(|byte| {
        *byte ^= 0x80;
        true
    }) && !other.decode().is_invalid()
}

/// Whether the VEX prefix of a valid instruction says 256 bits.
pub(super) fn vex_l(bytes: &[u8]) -> bool {
    // What stands before VEX are segment and address-size prefixes.
    let Some(vex) = bytes.iter().position(|byte| matches!(byte, 0xc4 | 0xc5)) else { return false };
    let last = if bytes[vex] == 0xc4 { vex + 2 } else { vex + 1 };
    bytes.get(last).is_some_and(|byte| byte & 4 != 0)
}

/// Whether these are VERR or VERW with LOCK.
pub(super) fn locked_verify(bytes: &[u8]) -> bool {
    let verify = |w: &[u8]| w[..2] == [0x0f, 0x00] && matches!(w[2] >> 3 & 7, 4 | 5);
    bytes.contains(&0xf0) && bytes.windows(3).any(verify)
}

/// Whether the operand is a far pointer in memory.
pub(super) fn far_pointer(ins: &Instruction) -> bool {
    matches!(ins.memory_size(), MemorySize::SegPtr16 | MemorySize::SegPtr32 | MemorySize::SegPtr64)
}

/// Whether it is a far CALL from 64-bit mode into a segment of compatibility mode, or the other way.
pub(super) fn call_changes_width(s: &Situation<'_>) -> bool {
    if s.ins.mnemonic() != Mnemonic::Call {
        return false;
    }
    let selector = match s.ins.op0_kind() {
        OpKind::FarBranch16 | OpKind::FarBranch32 => s.ins.far_branch_selector(),
        OpKind::Memory if far_pointer(s.ins) => {
            let offset = s.ins.memory_size().size() - 2;
            let place = s.ins.virtual_address(0, 0, |r, _, _| Some(value(&s.case.state, r))).unwrap_or(0);
            let at = place.wrapping_add(offset as u64).wrapping_sub(WINDOW);
            let bytes = usize::try_from(at).ok().and_then(|at| s.case.memory.get(at..at.checked_add(2)?));
            let Some(&[low, high]) = bytes else { return false };
            u16::from_le_bytes([low, high])
        }
        _ => return false,
    };
    let mut there = s.case.state.clone();
    there.selectors[seg::CS] = selector;
    (there.size() == CodeSize::Bits64) != (s.size() == CodeSize::Bits64)
}

/// Whether an operand begins below the highest address of 16 or 32 bits and ends beyond it, and the host took the latter part
/// from address 0 on: it finds no fault, or another fault within the wrapped operand, than the software CPU.
pub(super) fn wraps_by_element(s: &Situation<'_>) -> bool {
    let Some(operand) = memory_operand(s.ins) else { return false };
    let bytes = match (s.ins.memory_base(), s.ins.memory_index()) {
        (Register::None, Register::None) => s.ins.memory_displ_size() as usize,
        (Register::None, register) | (register, _) => register.size(),
    };
    if !matches!(bytes, 2 | 4) {
        return false;
    }
    let end = 1u64 << (8 * bytes);
    let register = |r: Register| if r.is_segment_register() { 0 } else { value(&s.case.state, r) };
    let offset = s.ins.virtual_address(operand, 0, |r, _, _| Some(register(r))).unwrap_or(0);
    let size = s.ins.memory_size().size() as u64;
    if offset + size <= end {
        return false;
    }
    let base = value(&s.case.state, s.ins.memory_segment());
    s.found.iter().filter(|d| d.what == "end").all(|d| match page_fault(&d.native) {
        Some((_, address)) => {
            let at = address.wrapping_sub(base) & (end - 1);
            at >= offset || at < offset + size - end
        }
        None => true,
    })
}

/// Whether neither of two page faults takes the access for a write while the other takes it for a read.
pub(super) fn both_write_or_read(found: &[Difference]) -> bool {
    let write = |end: &str| page_fault(end).map(|(code, _)| code & 2 != 0);
    found.iter().all(|d| write(&d.native).zip(write(&d.soft)).is_none_or(|(native, soft)| native == soft))
}

/// Whether both are page faults of writes, for the same reason and in the same page.
pub(super) fn page_faults_in_one_page(found: &[Difference]) -> bool {
    let same = |d: &Difference| {
        let faults = page_fault(&d.native).zip(page_fault(&d.soft));
        faults.is_some_and(|((code, a), (other, b))| code == other && code & 2 != 0 && a >> 12 == b >> 12)
    };
    found.iter().any(|d| d.what == "end" && same(d))
}

/// Error code and address of a page fault, as `compare` writes it.
fn page_fault(end: &str) -> Option<(u64, u64)> {
    let (code, address) = end.strip_prefix("#PF(0x")?.split_once(") at 0x")?;
    Some((u64::from_str_radix(code, 16).ok()?, u64::from_str_radix(address, 16).ok()?))
}

/// Whether MXCSR differs in PE alone.
pub(super) fn precision_only(found: &[Difference]) -> bool {
    let value = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0);
    let mxcsr = |d: &Difference| d.what == "mxcsr" && value(&d.native) ^ value(&d.soft) == 0x20;
    found.iter().all(mxcsr)
}
