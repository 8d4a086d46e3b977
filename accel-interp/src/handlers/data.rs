//! Data movement: MOV, MOVZX, MOVSX, LEA, CMOVcc, SETcc, XCHG and the sign extensions of RAX.

use x86_core::alu::Word;

use super::alu::by_size;
use super::{handler, hit, miss};
use crate::op::Handler;

handler! {
    fn mov_reg<W: Word>(s) {
        let op = s.op();
        let value = s.get::<W>(op.src);
        s.set::<W>(op.dst, value);
        s.next()
    }

    fn mov_imm<W: Word>(s) {
        let op = s.op();
        s.set::<W>(op.dst, W::from_u64(op.imm));
        s.next()
    }

    fn load<W: Word; const X: bool>(s) {
        let value = hit!(s, load W, s.ea::<X>());
        s.set::<W>(s.op().dst, value);
        s.next()
    }

    fn store_reg<W: Word; const X: bool>(s) {
        let value = s.get::<W>(s.op().src);
        hit!(s, store W, s.ea::<X>(), value);
        s.next()
    }

    fn store_imm<W: Word; const X: bool>(s) {
        hit!(s, store W, s.ea::<X>(), W::from_u64(s.op().imm));
        s.next()
    }

    /// LEA into a register of `W`.
    fn lea<W: Word; const X: bool>(s) {
        let ea = s.ea::<X>();
        s.set::<W>(s.op().dst, W::from_u64(ea));
        s.next()
    }

    /// MOVZX and, for `SIGNED`, MOVSX and MOVSXD: from `F` to `T`.
    fn extend_reg<F: Word, T: Word; const SIGNED: bool>(s) {
        let op = s.op();
        let value = s.get::<F>(op.src);
        s.set::<T>(op.dst, T::from_u64(if SIGNED { value.to_i64() as u64 } else { value.to_u64() }));
        s.next()
    }

    fn extend_mem<F: Word, T: Word; const SIGNED: bool, const X: bool>(s) {
        let value = hit!(s, load F, s.ea::<X>());
        s.set::<T>(s.op().dst, T::from_u64(if SIGNED { value.to_i64() as u64 } else { value.to_u64() }));
        s.next()
    }

    fn cmov_reg<W: Word; const CC: u8>(s) {
        let op = s.op();
        // A 32-bit destination loses its upper half also when the condition does not hold.
        let value = if s.flags().condition(CC) { s.get::<W>(op.src) } else { s.get::<W>(op.dst) };
        s.set::<W>(op.dst, value);
        s.next()
    }

    fn setcc<; const CC: u8>(s) {
        let holds = s.flags().condition(CC);
        s.set::<u8>(s.op().dst, u8::from(holds));
        s.next()
    }

    fn xchg_reg<W: Word>(s) {
        let op = s.op();
        let (a, b) = (s.get::<W>(op.dst), s.get::<W>(op.src));
        s.set::<W>(op.dst, b);
        s.set::<W>(op.src, a);
        s.next()
    }

    /// CDQ, CQO: the sign of RAX throughout RDX.
    fn sign_rdx<W: Word>(s) {
        let sign = s.cpu().gpr[0] as i64;
        let sign = W::from_u64(sign as u64).to_i64() >> 63;
        s.set::<W>(x86_core::Cpu::gpr_offset(2) as u16, W::from_u64(sign as u64));
        s.next()
    }
}

/// The handler for a condition code: `CC` in the expression is the code.
macro_rules! by_condition {
    ($cc:expr, $c:ident => $handler:expr) => {
        by_condition!(@ $cc, $c => $handler; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $cc:expr, $c:ident => $handler:expr; $($n:literal)*) => {
        match $cc {
            $($n => {
                const $c: u8 = $n;
                Some($handler as $crate::op::Handler)
            })*
            _ => None,
        }
    };
}
pub(crate) use by_condition;

pub(crate) fn mov_registers(size: usize) -> Option<Handler> {
    by_size!(size, W => mov_reg::<W>)
}

pub(crate) fn mov_immediate(size: usize) -> Option<Handler> {
    by_size!(size, W => mov_imm::<W>)
}

pub(crate) fn load_memory(size: usize, indexed: bool) -> Option<Handler> {
    if indexed { by_size!(size, W => load::<W, true>) } else { by_size!(size, W => load::<W, false>) }
}

pub(crate) fn store_register(size: usize, indexed: bool) -> Option<Handler> {
    if indexed {
        by_size!(size, W => store_reg::<W, true>)
    } else {
        by_size!(size, W => store_reg::<W, false>)
    }
}

pub(crate) fn store_immediate(size: usize, indexed: bool) -> Option<Handler> {
    if indexed {
        by_size!(size, W => store_imm::<W, true>)
    } else {
        by_size!(size, W => store_imm::<W, false>)
    }
}

pub(crate) fn lea_address(size: usize, indexed: bool) -> Option<Handler> {
    if indexed { by_size!(size, W => lea::<W, true>) } else { by_size!(size, W => lea::<W, false>) }
}

pub(crate) fn exchange(size: usize) -> Option<Handler> {
    by_size!(size, W => xchg_reg::<W>)
}

/// MOVZX, MOVSX, MOVSXD from a register.
pub(crate) fn extend_register(from: usize, to: usize, signed: bool) -> Option<Handler> {
    macro_rules! pick {
        ($($f:literal $t:literal $from:ty, $to:ty;)*) => {
            match (from, to, signed) {
                $(($f, $t, true) => Some(extend_reg::<$from, $to, true> as Handler),
                ($f, $t, false) => Some(extend_reg::<$from, $to, false> as Handler),)*
                _ => None,
            }
        };
    }
    pick! { 1 2 u8, u16; 1 4 u8, u32; 1 8 u8, u64; 2 4 u16, u32; 2 8 u16, u64; 4 8 u32, u64; }
}

/// MOVZX, MOVSX, MOVSXD from memory.
pub(crate) fn extend_memory(from: usize, to: usize, signed: bool, indexed: bool) -> Option<Handler> {
    macro_rules! pick {
        ($($f:literal $t:literal $from:ty, $to:ty;)*) => {
            match (from, to, signed, indexed) {
                $(($f, $t, true, true) => Some(extend_mem::<$from, $to, true, true> as Handler),
                ($f, $t, true, false) => Some(extend_mem::<$from, $to, true, false> as Handler),
                ($f, $t, false, true) => Some(extend_mem::<$from, $to, false, true> as Handler),
                ($f, $t, false, false) => Some(extend_mem::<$from, $to, false, false> as Handler),)*
                _ => None,
            }
        };
    }
    pick! { 1 2 u8, u16; 1 4 u8, u32; 1 8 u8, u64; 2 4 u16, u32; 2 8 u16, u64; 4 8 u32, u64; }
}

pub(crate) fn cmov(size: usize, cc: u8) -> Option<Handler> {
    match size {
        4 => by_condition!(cc, CC => cmov_reg::<u32, CC>),
        8 => by_condition!(cc, CC => cmov_reg::<u64, CC>),
        _ => None,
    }
}

pub(crate) fn set_condition(cc: u8) -> Option<Handler> {
    by_condition!(cc, CC => setcc::<CC>)
}

pub(crate) fn sign_extend_rdx(size: usize) -> Option<Handler> {
    match size {
        4 => Some(sign_rdx::<u32>),
        8 => Some(sign_rdx::<u64>),
        _ => None,
    }
}
