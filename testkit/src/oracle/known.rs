//! Differences between processors that are no error of the software CPU, each with its reason: data.
//!
//! The reference is whatever processor the test runs on. Where vendors and generations differ the software CPU follows
//! Intel's manual, and where that leaves room, whichever was simpler. An entry says which processors do otherwise, in
//! which cases, and what differs then; it holds on no other processor.

use std::fmt;

use iced_x86::{Instruction, Mnemonic};

use super::case::{Case, CodeSize, MAX_BYTES};
use super::compare::Difference;
use super::generation::{
    BROADWELL, COMET_LAKE, Generation, HASWELL, KABY_LAKE, Processor, SKYLAKE, Vendor, ZEN, ZEN_3, ZEN_4,
};

mod condition;

/// Processors that an entry speaks of.
#[derive(Clone, Copy, Debug)]
enum Who {
    /// Any: the manual leaves the choice, or the software CPU is known not to follow it.
    Any,
    /// All of a vendor's that the oracle has been run on.
    Made(Vendor),
    /// These generations.
    Born(&'static [&'static Generation]),
}

impl Who {
    fn includes(self, processor: &Processor) -> bool {
        match self {
            Who::Any => true,
            Who::Made(vendor) => vendor == processor.vendor,
            Who::Born(generations) => generations.iter().any(|generation| generation.includes(processor)),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Any => f.write_str("any"),
            Who::Made(Vendor::Amd) => f.write_str("AMD"),
            Who::Made(Vendor::Intel) => f.write_str("Intel"),
            Who::Made(Vendor::Other) => f.write_str("others"),
            Who::Born(generations) => {
                let names: Vec<_> = generations.iter().map(|generation| generation.name).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

/// What differs.
#[derive(Clone, Copy, Debug)]
enum What {
    /// Which exception is raised, or where: both sides raise one.
    WhichFault,
    /// Registers, flags and memory whose names, as [`Difference`] has them, begin with one of these.
    Named(&'static [&'static str]),
    /// One side raises an exception, or another than the other side, and whatever follows from that.
    Anything,
}

impl What {
    fn includes(self, difference: &Difference) -> bool {
        match self {
            What::WhichFault => {
                difference.what == "end"
                    && difference.native.starts_with('#')
                    && difference.soft.starts_with('#')
            }
            What::Named(names) => names.iter().any(|name| difference.what.starts_with(name)),
            What::Anything => true,
        }
    }
}

/// x87 registers and what tells of them, and an exception because of them.
const X87: &[&str] = &["st", "fsw", "ftw", "end"];

/// A case and what became of it.
pub(super) struct Situation<'a> {
    pub(super) ins: &'a Instruction,
    pub(super) case: &'a Case,
    pub(super) found: &'a [Difference],
    /// No processor raised an exception.
    pub(super) finished: bool,
}

impl Situation<'_> {
    /// Whether the host ended in a way that begins with `native`, and the software CPU in another that begins with `soft`.
    fn ends(&self, native: &str, soft: &str) -> bool {
        let ends =
            |d: &Difference| d.what == "end" && d.native.starts_with(native) && d.soft.starts_with(soft);
        self.found.iter().any(ends)
    }

    fn is(&self, mnemonics: &[Mnemonic]) -> bool {
        mnemonics.contains(&self.ins.mnemonic())
    }

    fn size(&self) -> CodeSize {
        self.case.state.size()
    }

    /// Whether some of the exceptions `bits` (mask bits of MXCSR) are unmasked.
    fn unmasked(&self, bits: u32) -> bool {
        self.case.state.fpu.mxcsr & bits != bits
    }
}

/// A difference that is known.
struct Known {
    who: Who,
    /// Which instruction, with which inputs.
    when: fn(&Situation<'_>) -> bool,
    what: What,
    /// Why. Also its name in reports.
    reason: &'static str,
}

/// The reasons for all that differs on `processor`, if there are.
pub(super) fn known(processor: &Processor, situation: &Situation<'_>) -> Option<Vec<&'static str>> {
    explain(situation, |who| who.includes(processor))
}

/// The reasons that would do on some other processor.
pub(super) fn known_elsewhere(situation: &Situation<'_>) -> Option<Vec<&'static str>> {
    explain(situation, |_| true)
}

/// Each thing that differs wants an entry; the first that fits gives the reason.
fn explain(situation: &Situation<'_>, holds: impl Fn(Who) -> bool) -> Option<Vec<&'static str>> {
    let entries: Vec<&Known> =
        KNOWN.iter().filter(|known| holds(known.who) && (known.when)(situation)).collect();
    let mut reasons = Vec::new();
    for difference in situation.found {
        let known = entries.iter().find(|known| known.what.includes(difference))?;
        if !reasons.contains(&known.reason) {
            reasons.push(known.reason);
        }
    }
    Some(reasons)
}

/// The table for docs/cpu.md.
pub(super) fn table() -> String {
    let rows = KNOWN.iter().map(|known| format!("| {} | {} |\n", known.who, known.reason));
    std::iter::once("| processors | what may differ |\n|---|---|\n".to_string()).chain(rows).collect()
}

const AMD: Who = Who::Made(Vendor::Amd);

use Mnemonic::{
    Bound, Call, Cmpsb, Cmpsd, Cmpsq, Cmpsw, Cvtpd2pi, Cvtpi2pd, Cvtpi2ps, Cvtps2pi, Cvttpd2pi, Cvttps2pi,
    Dppd, Dpps, Fbld, Fbstp, Fld, Fldenv, Fnsave, Fnstenv, Frstor, Fstp, Fxrstor, Fxrstor64, Fxsave,
    Fxsave64, INVALID, Iret, Iretd, Iretq, Jmp, Ldmxcsr, Lds, Les, Lgs, Loope, Loopne, Lss, Maskmovdqu,
    Maskmovq, Movbe, Movsb, Movsd, Movsq, Movsw, Movsxd, Pause, Popa, Popad, Pusha, Pushad, Retf, Sha1msg1,
    Sha1msg2, Sha1nexte, Sha1rnds4, Sha256msg1, Sha256msg2, Sha256rnds2, Vcvtps2ph, Vcvtsd2si, Vcvtss2si,
    Vcvttsd2si, Vcvttss2si, Vdppd, Vdpps, Vldmxcsr, Vmaskmovdqu, Vmaskmovpd, Vmaskmovps, Vpextrd, Vpinsrd,
    Vpmaskmovd, Vpmaskmovq, Xrstor, Xrstor64, Xsave, Xsave64, Xsavec, Xsavec64, Xsaveopt, Xsaveopt64,
};

const XSAVE: &[Mnemonic] = &[Xsave, Xsave64, Xsaveopt, Xsaveopt64, Xsavec, Xsavec64];
const OVERFLOW: u32 = 1 << 10;
const UNDERFLOW: u32 = 1 << 11;
const ALL_EXCEPTIONS: u32 = 0x1f80;

/// In the order in which they are tried.
static KNOWN: &[Known] = &[
    Known {
        who: Who::Any,
        when: |s| s.is(&[Cmpsb, Cmpsw, Cmpsd, Cmpsq]),
        what: What::WhichFault,
        reason: "CMPS: which of two faulting operands is first",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(&[Movsb, Movsw, Movsd, Movsq]),
        what: What::WhichFault,
        reason: "MOVS: which of two faulting operands is first",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(&[Bound]),
        what: What::WhichFault,
        reason: "BOUND: in how many pieces the bounds are read",
    },
    Known {
        who: AMD,
        when: condition::call_changes_width,
        what: What::Anything,
        reason: "far CALL between 64-bit and compatibility mode: AMD pushes on the stack as the mode it comes to has it",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(&[Jmp, Call, Lds, Les, Lss, Lgs]) && condition::far_pointer(s.ins),
        what: What::WhichFault,
        reason: "far pointers: in how many pieces they are read is the processor's choice",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(&[Retf, Iret, Iretd, Iretq]),
        what: What::WhichFault,
        reason: "far returns: the order of pops is the processor's choice",
    },
    Known {
        who: AMD,
        when: |s| s.is(&[Retf]) && s.size() != CodeSize::Bits64,
        what: What::Named(&["rsp"]),
        reason: "RETF imm16 with a 16-bit stack: AMD carries into the upper half of ESP",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(&[Vpinsrd, Vpextrd]) && s.size() != CodeSize::Bits64 && s.ends("#UD", ""),
        what: What::Anything,
        reason: "VPINSRD and VPEXTRD with VEX.W outside 64-bit mode are undefined; the decoder takes W for ignored",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(&[Call]),
        what: What::WhichFault,
        reason: "CALL: a target and a stack that both fault, which is first",
    },
    Known {
        who: AMD,
        when: |s| s.is(&[Call, Pusha, Pushad]) && !s.finished,
        what: What::Named(&["["]),
        reason: "far CALL and PUSHA: AMD has pushed when it finds the fault; what is below the stack pointer is undefined",
    },
    Known {
        who: AMD,
        when: |s| s.is(&[Popa, Popad]) && !s.finished,
        what: What::Named(&["r"]),
        reason: "POPA: AMD keeps what was popped before the fault",
    },
    Known {
        who: AMD,
        when: |s| s.is(&[INVALID]) && s.ends("", "#UD") && condition::valid_with_other_w(s.case),
        what: What::Anything,
        reason: "VEX.W: AMD ignores it in VPERMQ and its kin",
    },
    Known {
        who: AMD,
        when: |s| s.is(&[INVALID]) && condition::locked_verify(&s.case.bytes),
        what: What::Anything,
        reason: "LOCK VERR and VERW: AMD ignores LOCK",
    },
    Known {
        who: Who::Any,
        when: |s| s.ends("#GP(0x0)", "#SS(0x0)") && s.ins.memory_size().size() >= 16,
        what: What::WhichFault,
        reason: "operands that are not aligned and beyond the stack's limit: which is found first",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(XSAVE) && s.ends("#", "done"),
        what: What::Anything,
        reason: "XSAVE: whether bytes that are not written fault is the processor's choice",
    },
    Known {
        who: Who::Any,
        when: |s| (s.is(XSAVE) || s.is(&[Xrstor, Xrstor64])) && condition::both_write_or_read(s.found),
        what: What::WhichFault,
        reason: "XSAVE and XRSTOR: which of the image's bytes is touched first is the processor's choice",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(&[Fldenv, Fnstenv, Frstor, Fnsave, Fxsave, Fxsave64, Fxrstor, Fxrstor64]),
        what: What::WhichFault,
        reason: "state images: which of their bytes is touched first is the processor's choice",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(&[Fbstp, Fbld, Fstp, Fld]) && s.ins.memory_size().size() == 10,
        what: What::WhichFault,
        reason: "operands of ten bytes are touched in pieces",
    },
    Known {
        who: AMD,
        when: |s| s.is(&[Movsxd]) && condition::memory_operand(s.ins).is_some() && s.ends("#", ""),
        what: What::Anything,
        reason: "MOVSXD r16 reads 16 bits (Intel SDM vol. 2B), on AMD 32",
    },
    Known {
        who: AMD,
        when: |s| s.is(&[INVALID]) && s.case.bytes.contains(&0xf0) && s.ends("#GP", "#UD"),
        what: What::Anything,
        reason: "LOCK MOV CR0 is MOV CR8 on AMD",
    },
    Known {
        who: Who::Any,
        when: |s| {
            s.is(&[INVALID])
                && s.case.bytes.len() == MAX_BYTES
                && (s.ends("#GP", "#UD") || s.ends("#UD", "#GP"))
        },
        what: What::WhichFault,
        reason: "too many bytes, and no instruction either: which is found first",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(&[Pause]),
        what: What::Named(&["rax", "r8"]),
        reason: "PAUSE with REX.B is XCHG R8, RAX; iced decodes PAUSE",
    },
    Known {
        who: AMD,
        when: |s| s.is(&[Ldmxcsr, Vldmxcsr, Fxrstor, Fxrstor64, Xrstor, Xrstor64]) && s.ends("done", "#GP"),
        what: What::Anything,
        reason: "MXCSR bit 17: AMD's misaligned exception mask",
    },
    Known {
        who: AMD,
        when: |s| s.is(&[Maskmovq]),
        what: What::Named(X87),
        reason: "MASKMOVQ: AMD enters MMX state before its page fault",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(&[Maskmovq, Maskmovdqu, Vmaskmovdqu]) && s.ends("#", ""),
        what: What::Anything,
        reason: "masked stores: whether bytes that are not stored fault is the processor's choice (Intel SDM vol. 2B)",
    },
    Known {
        who: Who::Born(&[&ZEN_3, &ZEN_4]),
        when: |s| s.is(&[Vmaskmovps, Vmaskmovpd, Vpmaskmovd, Vpmaskmovq]) && condition::wraps_by_element(s),
        what: What::Anything,
        reason: "VMASKMOV and VPMASKMOV: the addresses of elements wrap at the address size; elsewhere the operand goes \
                 on beyond it",
    },
    Known {
        who: AMD,
        when: |s| {
            s.is(&[Sha1msg1, Sha1msg2, Sha1nexte, Sha1rnds4, Sha256msg1, Sha256msg2, Sha256rnds2])
                && condition::memory_operand(s.ins).is_some()
                && s.found.iter().any(|d| d.what == "end" && d.soft == "#GP(0x0)")
        },
        what: What::Anything,
        reason: "SHA: AMD takes operands that are not aligned, Intel does not (Intel SDM vol. 2B, exceptions type 4)",
    },
    Known {
        who: AMD,
        when: |s| s.is(&[Cvtpi2ps]) && condition::memory_operand(s.ins).is_some(),
        what: What::Named(X87),
        reason: "CVTPI2PS from memory: Intel enters MMX state (Intel SDM vol. 2A), AMD does not",
    },
    Known {
        who: AMD,
        when: |s| s.is(&[Cvtpi2ps]) && condition::memory_operand(s.ins).is_some() && s.ends("", "#MF"),
        what: What::Anything,
        reason: "CVTPI2PS from memory: Intel reports pending x87 exceptions (Intel SDM vol. 2A), AMD does not",
    },
    Known {
        who: AMD,
        when: |s| {
            s.is(&[Cvtpi2ps, Cvtpi2pd, Cvtpd2pi, Cvttpd2pi, Cvtps2pi, Cvttps2pi])
                && s.unmasked(ALL_EXCEPTIONS)
        },
        what: What::Named(X87),
        reason: "CVTPI2PS, CVTPS2PI and their kin: AMD enters MMX state before it raises #XM",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(&[Dpps, Dppd, Vdpps, Vdppd]) && s.unmasked(ALL_EXCEPTIONS),
        what: What::Anything,
        reason: "DPPS, DPPD: stages raise unmasked exceptions one by one; the software CPU looks at the end result",
    },
    Known {
        who: Who::Any,
        when: |s| condition::opmask(&s.case.bytes) && s.ends("", "#UD"),
        what: What::Anything,
        reason: "opmask instructions, which have VEX prefixes: hosts with AVX-512 have them, no CPU model does",
    },
    Known {
        who: Who::Any,
        when: |s| s.is(&[Loope, Loopne]) && (s.ins.has_rep_prefix() || s.ins.has_repne_prefix()),
        what: What::Anything,
        reason: "LOOPcc with a REP prefix is reserved (Intel SDM vol. 2A, 2.1.1)",
    },
    Known {
        who: Who::Any,
        when: |s| s.unmasked(OVERFLOW | UNDERFLOW) && condition::precision_only(s.found),
        what: What::Named(&["mxcsr"]),
        reason: "PE beside unmasked overflow or underflow, where exponents without bounds decide (see exec/sse/mxcsr.rs)",
    },
    // Errata that a program sees. Those of arithmetic (AMD 1288, HSD043, SKL071: DPPS) are not among them: the software
    // CPU executes the host's instruction. Numbers are those of Intel's specification updates and AMD's revision guides.
    Known {
        who: Who::Born(&[&HASWELL, &BROADWELL]),
        when: |s| {
            s.is(&[Vcvtss2si, Vcvtsd2si, Vcvttss2si, Vcvttsd2si])
                && condition::vex_l(&s.case.bytes)
                && s.ends("#UD", "")
        },
        what: What::Anything,
        reason: "VCVTSS2SI and its kin with VEX.L, which should be ignored, are #UD (HSD024, BDD023)",
    },
    Known {
        who: Who::Born(&[&HASWELL, &BROADWELL, &SKYLAKE, &KABY_LAKE, &COMET_LAKE]),
        when: |s| {
            s.is(&[Movbe])
                && s.ins.memory_size().size() == 8
                && s.case.bytes.contains(&0x66)
                && s.ends("#UD", "")
        },
        what: What::Anything,
        reason: "MOVBE of 64 bits with prefix 66H is #UD (HSD145, BDD074, SKL015, KBL015, CML015)",
    },
    Known {
        who: Who::Born(&[&SKYLAKE, &KABY_LAKE, &COMET_LAKE]),
        when: |s| s.is(&[Vcvtps2ph]) && condition::memory_operand(s.ins).is_some() && !s.finished,
        what: What::Named(&["mxcsr"]),
        reason: "VCVTPS2PH to memory that faults has set MXCSR's flags (SKL170, KBL125, CML105)",
    },
    Known {
        who: Who::Born(&[&ZEN]),
        when: |s| condition::page_faults_in_one_page(s.found),
        what: What::WhichFault,
        reason: "a store across cache lines that faults: CR2's bits 11 to 0 (AMD 1034)",
    },
];

#[cfg(test)]
mod tests;
