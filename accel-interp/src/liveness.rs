//! Which instructions' flags are read before they are set again.

use iced_x86::{FlowControl, Instruction, OpKind, Register, RflagsBits};

const ARITH: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// For each instruction: whether a flag it sets may be read. At the end of the block and where it may be left by a
/// branch, every flag may. Where it may be left by a fault the flags that are set again before they are read may be
/// stale: the guest cannot tell after it has resumed.
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
    }
}

/// Shifts by CL and repeated comparisons, which set no flag when the count is zero.
fn conditionally_sets_flags(ins: &Instruction) -> bool {
    let by_cl =
        (0..ins.op_count()).any(|n| ins.op_kind(n) == OpKind::Register && ins.op_register(n) == Register::CL);
    by_cl || ins.has_rep_prefix() || ins.has_repne_prefix()
}
