//! PUSH, POP and LEAVE of 64 bits.

use accel_api::x86::gpr::{RBP, RSP};

use super::{handler, hit, miss};

handler! {
    fn push_reg(s) {
        let value = s.get::<u64>(s.op().src);
        let rsp = s.cpu().gpr[RSP].wrapping_sub(8);
        hit!(s, store u64, rsp, value);
        s.cpu().gpr[RSP] = rsp;
        s.next()
    }

    fn push_imm(s) {
        let rsp = s.cpu().gpr[RSP].wrapping_sub(8);
        hit!(s, store u64, rsp, s.op().imm);
        s.cpu().gpr[RSP] = rsp;
        s.next()
    }

    fn pop_reg(s) {
        let rsp = s.cpu().gpr[RSP];
        let value = hit!(s, load u64, rsp);
        s.cpu().gpr[RSP] = rsp.wrapping_add(8);
        s.set::<u64>(s.op().dst, value);
        s.next()
    }

    fn leave(s) {
        let rbp = s.cpu().gpr[RBP];
        let value = hit!(s, load u64, rbp);
        s.cpu().gpr[RSP] = rbp.wrapping_add(8);
        s.cpu().gpr[RBP] = value;
        s.next()
    }
}
