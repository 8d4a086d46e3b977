//! Branches, and comparisons fused with the conditional branch behind them.
//!
//! A direct branch within its page is linked to its target once that is decoded. One to another page, and every
//! indirect one, asks the jump cache, since what lies at an address there can change under it.

use accel_api::x86::gpr::RSP;
use x86_core::Cpu;
use x86_core::alu::Word;

use super::alu::{Alu, Cmp, Form, Test};
use super::data::by_condition;
use super::{handler, hit, miss};
use crate::engine::{code_base, code_offset};
use crate::op::{Exit, Handler, Op, Step};

/// Ends the block by the branch of this op, which retires `retired` instructions.
#[inline(always)]
fn take(mut s: Step<'_>, retired: u8) -> Exit {
    let op = s.op();
    if !s.spend(op.count + retired) {
        let to = target(&s);
        return s.lookup(to);
    }
    if op.imm != 0 {
        // SAFETY: `Engine::execute` linked it to a block of the same store, which is emptied only as a whole.
        return unsafe { s.jump(op.imm as *const Op) };
    }
    unlinked(s)
}

#[inline(always)]
fn target(s: &Step<'_>) -> u64 {
    s.peek(|cpu| cpu.code_page).wrapping_add_signed(i64::from(s.op().disp))
}

#[inline(always)]
fn unlinked(mut s: Step<'_>) -> Exit {
    let to = target(&s);
    if (0..4096).contains(&s.op().disp) {
        let this = s.this().cast_mut();
        s.engine().link = this;
        return s.lookup(to);
    }
    go(s, to)
}

/// Goes on at `rip`, through the jump cache if it knows.
#[inline(always)]
fn go(mut s: Step<'_>, rip: u64) -> Exit {
    let engine = s.engine();
    let entry = engine.jump_entry(rip);
    if entry.rip == rip && engine.is_current(entry) {
        let first = entry.first;
        s.cpu().code_page = rip & !0xfff;
        // SAFETY: an entry of this epoch points at a block of the store.
        return unsafe { s.jump(first) };
    }
    s.lookup(rip)
}

/// Ends the block at the computed address `rip`, which is canonical.
#[inline(always)]
fn indirect(mut s: Step<'_>, rip: u64) -> Exit {
    let count = s.op().count + 1;
    if !s.spend(count) {
        return s.lookup(rip);
    }
    go(s, rip)
}

handler! {
    /// JMP, and the end of a block that is long enough.
    fn jmp(s) {
        take(s, 1)
    }

    /// The block goes on elsewhere without a branch.
    fn fall(s) {
        take(s, 0)
    }

    /// The same outside 64-bit mode.
    fn fall_legacy(s) {
        let op = s.op();
        s.spend(op.count);
        let cpu = s.cpu();
        let rip = cpu.code_page.wrapping_add(u64::from(op.offset)).wrapping_sub(code_base(cpu));
        let rip = code_offset(cpu, rip);
        s.lookup(rip)
    }

    fn jcc<; const CC: u8>(s) {
        if s.flags().condition(CC) {
            return take(s, 1);
        }
        s.next()
    }

    fn call(s) {
        let back = s.cpu().code_page + u64::from(s.op().src);
        let rsp = s.cpu().gpr[RSP].wrapping_sub(8);
        hit!(s, store u64, rsp, back);
        s.cpu().gpr[RSP] = rsp;
        take(s, 1)
    }

    /// RET, with the bytes to release in the immediate.
    fn ret(s) {
        let rsp = s.cpu().gpr[RSP];
        let rip = hit!(s, load u64, rsp);
        if !Cpu::canonical(rip) {
            return s.slow();
        }
        let imm = s.op().imm;
        s.cpu().gpr[RSP] = rsp.wrapping_add(8).wrapping_add(imm);
        indirect(s, rip)
    }

    fn jmp_reg(s) {
        let rip = s.get::<u64>(s.op().src);
        if !Cpu::canonical(rip) {
            return s.slow();
        }
        indirect(s, rip)
    }

    fn jmp_mem<; const X: bool>(s) {
        let rip = hit!(s, load u64, s.ea::<X>());
        if !Cpu::canonical(rip) {
            return s.slow();
        }
        indirect(s, rip)
    }

    fn call_reg(s) {
        let rip = s.get::<u64>(s.op().src);
        if !Cpu::canonical(rip) {
            return s.slow();
        }
        let back = s.cpu().code_page + s.op().imm;
        let rsp = s.cpu().gpr[RSP].wrapping_sub(8);
        hit!(s, store u64, rsp, back);
        s.cpu().gpr[RSP] = rsp;
        indirect(s, rip)
    }

    fn call_mem<; const X: bool>(s) {
        let rip = hit!(s, load u64, s.ea::<X>());
        if !Cpu::canonical(rip) {
            return s.slow();
        }
        let back = s.cpu().code_page + s.op().imm;
        let rsp = s.cpu().gpr[RSP].wrapping_sub(8);
        // Not `hit!`, which starts over: if both pages have the same place in the TLB, each would evict the other's
        // entry for ever.
        if s.store::<u64>(rsp, back).is_none() {
            return s.slow();
        }
        s.cpu().gpr[RSP] = rsp;
        indirect(s, rip)
    }

    fn fused_reg_reg<O: Alu, W: Word; const CC: u8>(s) {
        let op = s.op();
        let (a, b) = (s.get(op.dst), s.get(op.src));
        fused::<O, W, CC>(s, a, b)
    }

    fn fused_reg_imm<O: Alu, W: Word; const CC: u8>(s) {
        let op = s.op();
        let a = s.get(op.dst);
        fused::<O, W, CC>(s, a, W::from_u64(op.small() as u64))
    }
}

/// Compares, keeps the flags and branches on them.
#[inline(always)]
fn fused<O: Alu, W: Word, const CC: u8>(mut s: Step<'_>, a: W, b: W) -> Exit {
    let mut f = *s.flags();
    let r = O::flags(a, b, &mut f);
    *s.flags() = f;
    // Known from the operands for the common conditions, which the host then compares and branches on directly.
    let holds = match CC & !1 {
        2 if O::COMPARES => a.to_u64() < b.to_u64(),
        4 => r.to_u64() == 0,
        6 if O::COMPARES => a.to_u64() <= b.to_u64(),
        8 => r.to_i64() < 0,
        12 if O::COMPARES => a.to_i64() < b.to_i64(),
        14 if O::COMPARES => a.to_i64() <= b.to_i64(),
        cc => f.condition(cc),
    } != (CC & 1 != 0);
    if holds {
        return take(s, 2);
    }
    s.next()
}

fn fused_of<O: Alu>(form: Form, size: usize, cc: u8) -> Option<Handler> {
    match (form, size) {
        (Form::RegReg, 1) => by_condition!(cc, CC => fused_reg_reg::<O, u8, CC>),
        (Form::RegReg, 4) => by_condition!(cc, CC => fused_reg_reg::<O, u32, CC>),
        (Form::RegReg, 8) => by_condition!(cc, CC => fused_reg_reg::<O, u64, CC>),
        (Form::RegImm, 1) => by_condition!(cc, CC => fused_reg_imm::<O, u8, CC>),
        (Form::RegImm, 4) => by_condition!(cc, CC => fused_reg_imm::<O, u32, CC>),
        (Form::RegImm, 8) => by_condition!(cc, CC => fused_reg_imm::<O, u64, CC>),
        _ => None,
    }
}

/// The handler of a comparison and the conditional branch behind it.
pub(crate) fn compare_and_branch(m: iced_x86::Mnemonic, form: Form, size: usize, cc: u8) -> Option<Handler> {
    use iced_x86::Mnemonic as M;
    match m {
        M::Cmp => fused_of::<Cmp>(form, size, cc),
        M::Test => fused_of::<Test>(form, size, cc),
        _ => None,
    }
}

pub(crate) fn conditional(cc: u8) -> Option<Handler> {
    by_condition!(cc, CC => jcc::<CC>)
}
