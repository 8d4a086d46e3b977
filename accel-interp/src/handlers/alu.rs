//! Arithmetic and logic: register, immediate and memory forms, with and without flags.

use x86_core::alu::wide::NoByte;
use x86_core::alu::{ArithFlags, Word};

use super::{handler, hit, miss};
use crate::op::{Handler, Step};

/// A two-operand operation.
pub(crate) trait Alu: 'static {
    /// Has a result to be written.
    const WRITES: bool = true;
    /// Is a comparison: conditions may be read off the operands.
    const COMPARES: bool = false;
    fn flags<W: Word>(a: W, b: W, f: &mut ArithFlags) -> W;
    /// The result alone.
    fn plain<W: Word>(a: W, b: W) -> W;
}

macro_rules! alu {
    ($($name:ident $writes:literal $compares:literal $op:ident |$a:ident, $b:ident| $plain:expr;)*) => {$(
        pub(crate) struct $name;
        impl Alu for $name {
            const WRITES: bool = $writes;
            const COMPARES: bool = $compares;
            #[inline(always)]
            fn flags<W: Word>(a: W, b: W, f: &mut ArithFlags) -> W {
                a.$op(b, f)
            }
            #[inline(always)]
            fn plain<W: Word>(a: W, b: W) -> W {
                let ($a, $b) = (a.to_u64(), b.to_u64());
                W::from_u64($plain)
            }
        }
    )*};
}

alu! {
    Add true false add |a, b| a.wrapping_add(b);
    Or true false or |a, b| a | b;
    And true false and |a, b| a & b;
    Sub true false sub |a, b| a.wrapping_sub(b);
    Xor true false xor |a, b| a ^ b;
    Cmp false true sub |a, b| a.wrapping_sub(b);
    Test false false and |a, b| a & b;
}

/// ADC and SBB read the flags, so there is no plain form to gain from.
macro_rules! carry {
    ($($name:ident $op:ident;)*) => {$(
        pub(crate) struct $name;
        impl Alu for $name {
            #[inline(always)]
            fn flags<W: Word>(a: W, b: W, f: &mut ArithFlags) -> W {
                a.$op(b, f)
            }
            #[inline(always)]
            fn plain<W: Word>(a: W, _: W) -> W {
                a
            }
        }
    )*};
}
carry! { Adc adc; Sbb sbb; }

#[inline(always)]
fn compute<O: Alu, W: Word, const F: bool>(s: &mut Step<'_>, a: W, b: W) -> W {
    if F { O::flags(a, b, s.flags()) } else { O::plain(a, b) }
}

handler! {
    fn reg_reg<O: Alu, W: Word; const F: bool>(s) {
        let op = s.op();
        let (a, b) = (s.get(op.dst), s.get(op.src));
        let r = compute::<O, W, F>(&mut s, a, b);
        if O::WRITES {
            s.set::<W>(op.dst, r);
        }
        s.next()
    }

    fn reg_imm<O: Alu, W: Word; const F: bool>(s) {
        let op = s.op();
        let (a, b) = (s.get(op.dst), W::from_u64(op.imm));
        let r = compute::<O, W, F>(&mut s, a, b);
        if O::WRITES {
            s.set::<W>(op.dst, r);
        }
        s.next()
    }

    fn reg_mem<O: Alu, W: Word; const F: bool, const X: bool>(s) {
        let op = s.op();
        let b = hit!(s, load W, s.ea::<X>());
        let a = s.get(op.dst);
        let r = compute::<O, W, F>(&mut s, a, b);
        if O::WRITES {
            s.set::<W>(op.dst, r);
        }
        s.next()
    }

    fn mem_reg<O: Alu, W: Word; const F: bool, const X: bool>(s) {
        let b = s.get::<W>(s.op().src);
        let ea = s.ea::<X>();
        if O::WRITES {
            let Some(host) = s.writable(ea, W::BYTES) else { return miss::<W, true>(s, ea) };
            // SAFETY: a write tag maps the page to writable RAM.
            let a = unsafe { x86_core::host_load::<W>(host) };
            let r = compute::<O, W, F>(&mut s, a, b);
            // SAFETY: as above.
            unsafe { x86_core::host_store(host, r) };
        } else {
            let a = hit!(s, load W, ea);
            compute::<O, W, F>(&mut s, a, b);
        }
        s.next()
    }

    fn mem_imm<O: Alu, W: Word; const F: bool, const X: bool>(s) {
        let b = W::from_u64(s.op().imm);
        let ea = s.ea::<X>();
        if O::WRITES {
            let Some(host) = s.writable(ea, W::BYTES) else { return miss::<W, true>(s, ea) };
            // SAFETY: a write tag maps the page to writable RAM.
            let a = unsafe { x86_core::host_load::<W>(host) };
            let r = compute::<O, W, F>(&mut s, a, b);
            // SAFETY: as above.
            unsafe { x86_core::host_store(host, r) };
        } else {
            let a = hit!(s, load W, ea);
            compute::<O, W, F>(&mut s, a, b);
        }
        s.next()
    }
}

/// Forms of a two-operand instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    RegReg,
    RegImm,
    /// Memory forms; whether the address has an index.
    RegMem(bool),
    MemReg(bool),
    MemImm(bool),
}

fn of_form<O: Alu, W: Word, const F: bool>(form: Form) -> Handler {
    match form {
        Form::RegReg => reg_reg::<O, W, F>,
        Form::RegImm => reg_imm::<O, W, F>,
        Form::RegMem(false) => reg_mem::<O, W, F, false>,
        Form::RegMem(true) => reg_mem::<O, W, F, true>,
        Form::MemReg(false) => mem_reg::<O, W, F, false>,
        Form::MemReg(true) => mem_reg::<O, W, F, true>,
        Form::MemImm(false) => mem_imm::<O, W, F, false>,
        Form::MemImm(true) => mem_imm::<O, W, F, true>,
    }
}

fn of_size<O: Alu>(form: Form, size: usize, flags: bool) -> Option<Handler> {
    Some(match (size, flags) {
        (1, true) => of_form::<O, u8, true>(form),
        (4, true) => of_form::<O, u32, true>(form),
        (8, true) => of_form::<O, u64, true>(form),
        (1, false) => of_form::<O, u8, false>(form),
        (4, false) => of_form::<O, u32, false>(form),
        (8, false) => of_form::<O, u64, false>(form),
        (2, _) => of_form::<O, u16, true>(form),
        _ => return None,
    })
}

/// The handler of a two-operand instruction, if there is one for its size.
pub(crate) fn binary(m: iced_x86::Mnemonic, form: Form, size: usize, flags: bool) -> Option<Handler> {
    use iced_x86::Mnemonic as M;
    match m {
        M::Add => of_size::<Add>(form, size, flags),
        M::Or => of_size::<Or>(form, size, flags),
        M::And => of_size::<And>(form, size, flags),
        M::Sub => of_size::<Sub>(form, size, flags),
        M::Xor => of_size::<Xor>(form, size, flags),
        M::Adc => of_size::<Adc>(form, size, true),
        M::Sbb => of_size::<Sbb>(form, size, true),
        // Without a reader of their flags these still touch memory.
        M::Cmp => of_size::<Cmp>(form, size, true),
        M::Test => of_size::<Test>(form, size, true),
        _ => None,
    }
}

/// A one-operand operation on a register.
pub(crate) trait Unary: 'static {
    fn flags<W: Word>(a: W, f: &mut ArithFlags) -> W;
    fn plain<W: Word>(a: W) -> W;
}

macro_rules! unary {
    ($($name:ident $op:ident |$a:ident| $plain:expr;)*) => {$(
        pub(crate) struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn flags<W: Word>(a: W, f: &mut ArithFlags) -> W {
                a.$op(f)
            }
            #[inline(always)]
            fn plain<W: Word>(a: W) -> W {
                let $a = a.to_u64();
                W::from_u64($plain)
            }
        }
    )*};
}
unary! {
    Inc inc |a| a.wrapping_add(1);
    Dec dec |a| a.wrapping_sub(1);
    Neg neg |a| a.wrapping_neg();
}

/// A shift or rotate.
pub(crate) trait Shift: 'static {
    fn flags<W: Word>(a: W, count: u8, f: &mut ArithFlags) -> W;
}

macro_rules! shift {
    ($($name:ident $op:ident;)*) => {$(
        pub(crate) struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn flags<W: Word>(a: W, count: u8, f: &mut ArithFlags) -> W {
                a.$op(count, f)
            }
        }
    )*};
}
shift! { Shl shl; Shr shr; Sar sar; Rol rol; Ror ror; }

/// The low half of a product, which is the same for signed and unsigned; the flags are IMUL's.
#[inline(always)]
fn multiply<W: NoByte, const F: bool>(s: &mut Step<'_>, a: W, b: W) -> W {
    if F { a.imul2(b, s.flags()) } else { W::from_u64(a.to_u64().wrapping_mul(b.to_u64())) }
}

handler! {
    fn unary_reg<O: Unary, W: Word; const F: bool>(s) {
        let place = s.op().dst;
        let a = s.get::<W>(place);
        let r = if F { O::flags(a, s.flags()) } else { O::plain(a) };
        s.set::<W>(place, r);
        s.next()
    }

    fn unary_mem<O: Unary, W: Word; const X: bool>(s) {
        let ea = s.ea::<X>();
        let Some(host) = s.writable(ea, W::BYTES) else { return miss::<W, true>(s, ea) };
        // SAFETY: a write tag maps the page to writable RAM.
        let a = unsafe { x86_core::host_load::<W>(host) };
        let r = O::flags(a, s.flags());
        // SAFETY: as above.
        unsafe { x86_core::host_store(host, r) };
        s.next()
    }

    fn not_reg<W: Word>(s) {
        let place = s.op().dst;
        s.set::<W>(place, W::from_u64(!s.get::<W>(place).to_u64()));
        s.next()
    }

    fn shift_imm<O: Shift, W: Word; const F: bool>(s) {
        let op = s.op();
        // A copy that is not written back: where nobody reads the flags the compiler sees no use of them.
        let mut f = *s.flags();
        let r = O::flags(s.get::<W>(op.dst), op.imm as u8, &mut f);
        s.set::<W>(op.dst, r);
        if F {
            *s.flags() = f;
        }
        s.next()
    }

    fn shift_cl<O: Shift, W: Word>(s) {
        let op = s.op();
        let count = s.cpu().gpr[1] as u8;
        let r = O::flags(s.get::<W>(op.dst), count, s.flags());
        s.set::<W>(op.dst, r);
        s.next()
    }

    fn imul_reg<W: NoByte; const F: bool>(s) {
        let op = s.op();
        let (a, b) = (s.get(op.dst), s.get(op.src));
        let r = multiply::<W, F>(&mut s, a, b);
        s.set::<W>(op.dst, r);
        s.next()
    }

    fn imul_mem<W: NoByte; const F: bool, const X: bool>(s) {
        let b = hit!(s, load W, s.ea::<X>());
        let (place, a) = (s.op().dst, s.get(s.op().dst));
        let r = multiply::<W, F>(&mut s, a, b);
        s.set::<W>(place, r);
        s.next()
    }

    fn imul_imm<W: NoByte; const F: bool>(s) {
        let op = s.op();
        let (a, b) = (s.get(op.src), W::from_u64(op.imm));
        let r = multiply::<W, F>(&mut s, a, b);
        s.set::<W>(op.dst, r);
        s.next()
    }

    /// BT of a register by a register.
    fn bt_reg<W: Word>(s) {
        let op = s.op();
        let bit = s.get::<W>(op.src).to_u64() & u64::from(W::BITS - 1);
        let on = s.get::<W>(op.dst).to_u64() >> bit & 1 != 0;
        s.flags().assign(x86_core::alu::flag::CF, on);
        s.next()
    }

    /// BT of a register by a constant.
    fn bt_imm<W: Word>(s) {
        let op = s.op();
        let on = s.get::<W>(op.dst).to_u64() >> (op.imm & u64::from(W::BITS - 1)) & 1 != 0;
        s.flags().assign(x86_core::alu::flag::CF, on);
        s.next()
    }
}

/// The handler for an operand size: `W` in the expression is the size's type.
macro_rules! by_size {
    ($size:expr, $w:ident => $handler:expr) => {
        by_size!(@ $size, $w => $handler; 1 u8, 2 u16, 4 u32, 8 u64)
    };
    (@ $size:expr, $w:ident => $handler:expr; $($bytes:literal $t:ty),*) => {
        match $size {
            $($bytes => {
                type $w = $t;
                Some($handler as $crate::op::Handler)
            })*
            _ => None,
        }
    };
}
pub(crate) use by_size;

/// The handler of INC, DEC, NEG or NOT of a register.
pub(crate) fn unary(m: iced_x86::Mnemonic, size: usize, flags: bool) -> Option<Handler> {
    use iced_x86::Mnemonic as M;
    match (m, flags) {
        (M::Inc, true) => by_size!(size, W => unary_reg::<Inc, W, true>),
        (M::Inc, false) => by_size!(size, W => unary_reg::<Inc, W, false>),
        (M::Dec, true) => by_size!(size, W => unary_reg::<Dec, W, true>),
        (M::Dec, false) => by_size!(size, W => unary_reg::<Dec, W, false>),
        (M::Neg, true) => by_size!(size, W => unary_reg::<Neg, W, true>),
        (M::Neg, false) => by_size!(size, W => unary_reg::<Neg, W, false>),
        (M::Not, _) => by_size!(size, W => not_reg::<W>),
        _ => None,
    }
}

/// The handler of INC, DEC or NEG in memory.
pub(crate) fn unary_memory(m: iced_x86::Mnemonic, size: usize, indexed: bool) -> Option<Handler> {
    use iced_x86::Mnemonic as M;
    match (m, indexed) {
        (M::Inc, false) => by_size!(size, W => unary_mem::<Inc, W, false>),
        (M::Inc, true) => by_size!(size, W => unary_mem::<Inc, W, true>),
        (M::Dec, false) => by_size!(size, W => unary_mem::<Dec, W, false>),
        (M::Dec, true) => by_size!(size, W => unary_mem::<Dec, W, true>),
        (M::Neg, false) => by_size!(size, W => unary_mem::<Neg, W, false>),
        (M::Neg, true) => by_size!(size, W => unary_mem::<Neg, W, true>),
        _ => None,
    }
}

/// The handler of a shift of a register by a constant (`by_cl` false) or by CL.
pub(crate) fn shift(m: iced_x86::Mnemonic, size: usize, flags: bool, by_cl: bool) -> Option<Handler> {
    use iced_x86::Mnemonic as M;
    macro_rules! pick {
        ($op:ident) => {
            match (by_cl, flags) {
                (true, _) => by_size!(size, W => shift_cl::<$op, W>),
                (false, true) => by_size!(size, W => shift_imm::<$op, W, true>),
                (false, false) => by_size!(size, W => shift_imm::<$op, W, false>),
            }
        };
    }
    match m {
        M::Shl | M::Sal => pick!(Shl),
        M::Shr => pick!(Shr),
        M::Sar => pick!(Sar),
        M::Rol => pick!(Rol),
        M::Ror => pick!(Ror),
        _ => None,
    }
}

/// The handler of IMUL with two operands, or with three if `by_constant`; whether the second is in memory, and whether that
/// has an index.
pub(crate) fn multiplication(
    size: usize,
    flags: bool,
    by_constant: bool,
    memory: Option<bool>,
) -> Option<Handler> {
    macro_rules! pick {
        ($w:ty, $f:literal) => {
            match (by_constant, memory) {
                (false, None) => imul_reg::<$w, $f> as Handler,
                (true, None) => imul_imm::<$w, $f>,
                (false, Some(false)) => imul_mem::<$w, $f, false>,
                (false, Some(true)) => imul_mem::<$w, $f, true>,
                (true, Some(_)) => return None,
            }
        };
    }
    Some(match (size, flags) {
        (4, false) => pick!(u32, false),
        (4, true) => pick!(u32, true),
        (8, false) => pick!(u64, false),
        (8, true) => pick!(u64, true),
        _ => return None,
    })
}
