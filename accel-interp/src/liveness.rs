//! Which instructions' flags are seen before they are set again: by an instruction that reads them, or by whoever handles a
//! fault.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits};

const ARITH: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// For each instruction: whether a flag it sets may be seen. At the end of the block, and where it may be left by a branch or
/// a fault, every flag may.
pub(crate) fn liveness(decoded: &[Instruction], live: &mut Vec<bool>) {
    live.clear();
    live.resize(decoded.len(), true);
    let mut wanted = ARITH;
    for (ins, live) in decoded.iter().zip(live.iter_mut()).rev() {
        if ins.flow_control() != FlowControl::Next {
            wanted = ARITH;
        }
        let sets = ins.rflags_modified() & ARITH;
        *live = sets & wanted != 0;
        if conditionally_sets_flags(ins) {
            // With a count of zero the old flags survive.
            wanted |= sets;
        } else {
            // Where the manual calls a flag undefined, processors may leave it alone.
            wanted &= !sets | ins.rflags_undefined();
        }
        wanted |= ins.rflags_read() & ARITH;
        if !cannot_fault(ins) {
            wanted = ARITH;
        }
    }
}

/// Whether an instruction raises no exception in 64-bit mode: it works on general registers only, and every processor has it.
fn cannot_fault(ins: &Instruction) -> bool {
    use Mnemonic::*;
    let general = |n| match ins.op_kind(n) {
        OpKind::Register => ins.op_register(n).is_gpr(),
        OpKind::Memory => ins.mnemonic() == Lea,
        _ => true,
    };
    let computes = matches!(
        ins.mnemonic(),
        Mov | Movzx
            | Movsx
            | Movsxd
            | Lea
            | Xchg
            | Bswap
            | Cdqe
            | Cwde
            | Cbw
            | Cdq
            | Cqo
            | Cwd
            | Nop
            | Add
            | Adc
            | Sub
            | Sbb
            | Cmp
            | And
            | Or
            | Xor
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Imul
            | Mul
            | Shl
            | Sal
            | Shr
            | Sar
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shld
            | Shrd
            | Bt
            | Bts
            | Btr
            | Btc
            | Bsf
            | Bsr
            | Clc
            | Stc
            | Cmc
            | Lahf
            | Sahf
    );
    let conditional = ins.condition_code() != iced_x86::ConditionCode::None;
    (computes || conditional) && !ins.has_lock_prefix() && (0..ins.op_count()).all(general)
}

/// Shifts by CL and repeated comparisons, which set no flag when the count is zero.
fn conditionally_sets_flags(ins: &Instruction) -> bool {
    let by_cl =
        (0..ins.op_count()).any(|n| ins.op_kind(n) == OpKind::Register && ins.op_register(n) == Register::CL);
    by_cl || ins.has_rep_prefix() || ins.has_repne_prefix()
}
