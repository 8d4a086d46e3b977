//! Differences between processors that are no error of the software CPU, each with its reason.
//!
//! The reference is whatever processor the test runs on. Where vendors differ the software CPU follows Intel's manual,
//! and where that leaves room, whichever was simpler.

use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

use super::case::{Case, CodeSize, MAX_BYTES};
use super::compare::Difference;

/// Why `found` is to be expected, if it is. `finished` when no processor raised an exception.
pub(super) fn known(
    ins: &Instruction,
    case: &Case,
    found: &[Difference],
    finished: bool,
) -> Option<&'static str> {
    use Mnemonic::*;
    const OVERFLOW: u32 = 1 << 10;
    const UNDERFLOW: u32 = 1 << 11;
    let only = |names: &[&str]| found.iter().all(|d| names.contains(&d.what.as_str()));
    let ends = |native: &str, soft: &str| {
        found.iter().any(|d| d.what == "end" && d.native.starts_with(native) && d.soft.starts_with(soft))
    };
    let unmasked = |bits: u32| case.state.fpu.mxcsr & bits != bits;
    let all_masked = !unmasked(0x1f80);
    let memory = (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory);
    let fault = ends("#", "#");
    let stack =
        found.iter().all(|d| d.what.starts_with("st") || ["fsw", "ftw", "end"].contains(&d.what.as_str()));
    Some(match ins.mnemonic() {
        Cmpsb | Cmpsw | Cmpsd | Cmpsq if fault && only(&["end"]) => {
            "CMPS: which of two faulting operands is first"
        }
        Movsb | Movsw | Movsd | Movsq if fault && only(&["end"]) => {
            "MOVS: which of two faulting operands is first"
        }
        Bound if fault && only(&["end"]) => "BOUND: in how many pieces the bounds are read",
        Jmp | Call | Lds | Les | Lss | Lgs if fault && only(&["end"]) && far_pointer(ins) => {
            "far pointers: in how many pieces they are read is the processor's choice"
        }
        Retf | Iret | Iretd | Iretq if fault && only(&["end"]) => {
            "far returns: the order of pops is the processor's choice"
        }
        Retf if only(&["rsp"]) && case.state.size() != CodeSize::Bits64 => {
            "RETF imm16 with a 16-bit stack: AMD carries into the upper half of ESP"
        }
        Vpinsrd | Vpextrd if case.state.size() != CodeSize::Bits64 && ends("#UD", "") => {
            "VPINSRD and VPEXTRD with VEX.W outside 64-bit mode are undefined; the decoder takes W for ignored"
        }
        Call if far_pointer(ins) && case.state.size() == CodeSize::Bits64 && case.state.gpr[4] >> 32 != 0 => {
            "far CALL from 64-bit into compatibility mode: AMD pushes with the stack width it comes to"
        }
        Call | Pusha | Pushad if !finished && found.iter().all(|d| d.what.starts_with('[')) => {
            "far CALL and PUSHA: AMD has pushed when it finds the fault; what is below the stack pointer is undefined"
        }
        Popa | Popad if !finished && found.iter().all(|d| d.what.starts_with('r')) => {
            "POPA: AMD keeps what was popped before the fault"
        }
        INVALID if ends("", "#UD") && valid_with_other_w(case) => {
            "VEX.W: AMD ignores it in VPERMQ and its kin"
        }
        INVALID if locked_verify(&case.bytes) => "LOCK VERR and VERW: AMD ignores LOCK",
        _ if fault && only(&["end"]) && ends("#GP(0x0)", "#SS(0x0)") && ins.memory_size().size() >= 16 => {
            "operands that are not aligned and beyond the stack's limit: which is found first"
        }
        Call if fault && only(&["end"]) => "CALL: a target and a stack that both fault, which is first",
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 if ends("#", "done") => {
            "XSAVE: whether bytes that are not written fault is the processor's choice"
        }
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xrstor | Xrstor64
            if fault && only(&["end"]) && both_write_or_read(found) =>
        {
            "state images: which of their bytes is touched first is the processor's choice"
        }
        Fldenv | Fnstenv | Frstor | Fnsave | Fxsave | Fxsave64 | Fxrstor | Fxrstor64
            if fault && only(&["end"]) =>
        {
            "state images: which of their bytes is touched first is the processor's choice"
        }
        Fbstp | Fbld | Fstp | Fld if fault && only(&["end"]) && ins.memory_size().size() == 10 => {
            "operands of ten bytes are touched in pieces"
        }
        Movsxd if memory && ends("#", "") => "MOVSXD r16 reads 16 bits (Intel SDM vol. 2B), on AMD 32",
        INVALID if case.bytes.contains(&0xf0) && ends("#GP", "#UD") => "LOCK MOV CR0 is MOV CR8 on AMD",
        INVALID if case.bytes.len() == MAX_BYTES && (ends("#GP", "#UD") || ends("#UD", "#GP")) => {
            "too many bytes, and no instruction either: which is found first"
        }
        Pause if only(&["rax", "r8"]) => "PAUSE with REX.B is XCHG R8, RAX; iced decodes PAUSE",
        Ldmxcsr | Vldmxcsr | Fxrstor | Fxrstor64 | Xrstor | Xrstor64 if ends("done", "#GP") => {
            "MXCSR bit 17: AMD's misaligned exception mask"
        }
        Maskmovq if stack => "MASKMOVQ: AMD enters MMX state before its page fault",
        Maskmovq | Maskmovdqu | Vmaskmovdqu if ends("#", "") => {
            "masked stores: whether bytes that are not stored fault is the processor's choice (Intel SDM vol. 2B)"
        }
        Sha1msg1 | Sha1msg2 | Sha1nexte | Sha1rnds4 | Sha256msg1 | Sha256msg2 | Sha256rnds2
            if memory && found.iter().any(|d| d.what == "end" && d.soft == "#GP(0x0)") =>
        {
            "SHA: AMD takes operands that are not aligned, Intel does not (Intel SDM vol. 2B, exceptions type 4)"
        }
        Cvtpi2ps if memory && (stack || ends("", "#MF")) => {
            "CVTPI2PS from memory: Intel enters MMX state (Intel SDM vol. 2A), AMD does not"
        }
        Cvtpi2ps | Cvtpi2pd | Cvtpd2pi | Cvttpd2pi | Cvtps2pi | Cvttps2pi if !all_masked && stack => {
            "CVTPI2PS, CVTPS2PI and their kin: AMD enters MMX state before it raises #XM"
        }
        Dpps | Dppd | Vdpps | Vdppd if !all_masked => {
            "DPPS, DPPD: stages raise unmasked exceptions one by one; the software CPU looks at the end result"
        }
        Loope | Loopne if ins.has_rep_prefix() || ins.has_repne_prefix() => {
            "LOOPcc with a REP prefix is reserved (Intel SDM vol. 2A, 2.1.1)"
        }
        _ if only(&["mxcsr"]) && unmasked(OVERFLOW | UNDERFLOW) && precision_only(found) => {
            "PE beside unmasked overflow or underflow, where exponents without bounds decide (see exec/sse/mxcsr.rs)"
        }
        _ => return None,
    })
}

/// Whether the bytes are an instruction with VEX.W the other way.
fn valid_with_other_w(case: &Case) -> bool {
    let Some(vex) = case.bytes.iter().position(|&byte| byte == 0xc4) else { return false };
    let mut other = case.clone();
    other.bytes.get_mut(vex + 2).is_some_and(|byte| {
        *byte ^= 0x80;
        true
    }) && !other.decode().is_invalid()
}

/// Whether these are VERR or VERW with LOCK.
fn locked_verify(bytes: &[u8]) -> bool {
    let verify = |w: &[u8]| w[..2] == [0x0f, 0x00] && matches!(w[2] >> 3 & 7, 4 | 5);
    bytes.contains(&0xf0) && bytes.windows(3).any(verify)
}

fn far_pointer(ins: &Instruction) -> bool {
    matches!(ins.memory_size(), MemorySize::SegPtr16 | MemorySize::SegPtr32 | MemorySize::SegPtr64)
}

/// Whether neither of two page faults takes the access for a write while the other takes it for a read.
fn both_write_or_read(found: &[Difference]) -> bool {
    let write = |end: &str| {
        let code = end.strip_prefix("#PF(0x")?.split(')').next()?;
        Some(u32::from_str_radix(code, 16).ok()? & 2 != 0)
    };
    found.iter().all(|d| write(&d.native).zip(write(&d.soft)).is_none_or(|(native, soft)| native == soft))
}

/// Whether MXCSR differs in PE alone.
fn precision_only(found: &[Difference]) -> bool {
    let value = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0);
    found.iter().all(|d| value(&d.native) ^ value(&d.soft) == 0x20)
}
