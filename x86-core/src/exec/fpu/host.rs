//! The host's x87 unit as calculator.
//!
//! Each function loads its operands from memory, executes one instruction under the guest's control word with the
//! guest's own exception masks, reads the status word, and leaves the unit as the ABI wants it: stack empty, control
//! word 0x37f. An unmasked exception is not taken here: the unit only reports it at the next waiting instruction
//! (Intel SDM vol. 1, 8.6), and FNCLEX comes first. So results are the silicon's also where an exception is unmasked:
//! operands left alone, exponents biased.
//!
//! FLD and FSTP of 80-bit values raise nothing and round nothing. Host status flags are sticky over calls; a call
//! clears them only where that could matter, since clearing costs more than adding.
#![allow(unsafe_code)] // inline assembly on the x87 unit; memory operands are Rust references

use std::arch::asm;
use std::sync::LazyLock;

use crate::{F80, FpuRegs, fsw};

/// Control word that the ABI asks for.
const DEFAULT: u16 = 0x37f;

/// How to run the host's unit.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Env {
    /// The guest's control word.
    control: u16,
    default: u16,
    /// Flags that must not be left over from an earlier call: those the guest's status word has not got, and those
    /// that are unmasked.
    clear: u8,
}

impl Env {
    #[inline(always)]
    pub(super) fn new(regs: &FpuRegs) -> Self {
        let known = regs.fsw & regs.fcw & fsw::EXCEPTIONS;
        Self { control: regs.fcw, default: DEFAULT, clear: !known as u8 & 0x7f }
    }

    /// For an operation whose own flags must be told from older ones.
    pub(super) fn fresh(regs: &FpuRegs) -> Self {
        Self { clear: 0x7f, ..Self::new(regs) }
    }
}

/// A result and the status word.
pub(super) type Raw = (F80, u16);

/// Runs `$op`, then `$store`. When an unmasked exception is pending `$store` runs with everything masked, on whatever
/// the stack then holds, and FNINIT puts the stack right.
macro_rules! x87 {
    ($env:expr, [$($op:expr),*], [$($store:expr),*], $($operand:tt)*) => {{
        let env: &Env = $env;
        let sw: u16;
        // SAFETY: the operands are references to memory as wide as the instruction's access, the stack is empty
        // before and after, and the control word is the ABI's again.
        unsafe {
            asm!(
                "fnstsw ax",
                "test al, {clear}",
                "jz 2f",
                "fnclex",
                "2:",
                "cmp word ptr [{env}], 0x37f",
                "je 3f",
                "fldcw [{env}]",
                "3:",
                $($op,)*
                "fnstsw ax",
                "test al, al",
                "jns 4f",
                "fnclex",
                "fldcw [{env} + 2]",
                $($store,)*
                "fninit",
                "jmp 5f",
                "4:",
                $($store,)*
                "cmp word ptr [{env}], 0x37f",
                "je 5f",
                "fldcw [{env} + 2]",
                "5:",
                $($operand)*
                env = in(reg) env,
                clear = in(reg_byte) env.clear,
                out("ax") sw,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                options(nostack),
            );
        }
        sw
    }};
}

/// Functions from a 64-bit (or narrower, zero-extended) memory operand to a value that is pushed.
macro_rules! loads {
    ($($name:ident $op:literal;)*) => { $(
        pub(super) fn $name(env: &Env, m: &u64) -> Raw {
            let mut r = F80::default();
            let sw = x87!(env, [concat!($op, " [{m}]")], ["fstp tbyte ptr [{r}]"],
                m = in(reg) m, r = in(reg) &mut r,);
            (r, sw)
        }
    )* };
}

loads! {
    fld_m32 "fld dword ptr";
    fld_m64 "fld qword ptr";
    fild_m16 "fild word ptr";
    fild_m32 "fild dword ptr";
    fild_m64 "fild qword ptr";
}

/// FBLD; the operand is ten bytes in a slot.
pub(super) fn fbld(env: &Env, m: &F80) -> Raw {
    let mut r = F80::default();
    let sw =
        x87!(env, ["fbld tbyte ptr [{m}]"], ["fstp tbyte ptr [{r}]"], m = in(reg) m, r = in(reg) &mut r,);
    (r, sw)
}

/// Functions from ST0 to a memory operand, in the low bytes of the value returned.
macro_rules! stores {
    ($($name:ident $op:literal;)*) => { $(
        pub(super) fn $name(env: &Env, a: &F80) -> Raw {
            let mut r = F80::default();
            let sw = x87!(env, ["fld tbyte ptr [{a}]", concat!($op, " [{r}]")], [],
                a = in(reg) a, r = in(reg) &mut r,);
            (r, sw)
        }
    )* };
}

stores! {
    fst_m32 "fstp dword ptr";
    fst_m64 "fstp qword ptr";
    fist_m16 "fistp word ptr";
    fist_m32 "fistp dword ptr";
    fist_m64 "fistp qword ptr";
    fisttp_m16 "fisttp word ptr";
    fisttp_m32 "fisttp dword ptr";
    fisttp_m64 "fisttp qword ptr";
    fbstp "fbstp tbyte ptr";
}

/// Constants, rounded as the control word says.
macro_rules! constants {
    ($($name:ident $op:literal;)*) => { $(
        pub(super) fn $name(env: &Env) -> Raw {
            let mut r = F80::default();
            let sw = x87!(env, [$op], ["fstp tbyte ptr [{r}]"], r = in(reg) &mut r,);
            (r, sw)
        }
    )* };
}

constants! {
    fld1 "fld1";
    fldl2t "fldl2t";
    fldl2e "fldl2e";
    fldpi "fldpi";
    fldlg2 "fldlg2";
    fldln2 "fldln2";
    fldz "fldz";
}

/// Functions from ST0 to ST0.
macro_rules! unary {
    ($($name:ident $op:literal;)*) => { $(
        pub(super) fn $name(env: &Env, a: &F80) -> Raw {
            let mut r = F80::default();
            let sw = x87!(env, ["fld tbyte ptr [{a}]", $op], ["fstp tbyte ptr [{r}]"],
                a = in(reg) a, r = in(reg) &mut r,);
            (r, sw)
        }
    )* };
}

unary! {
    fsqrt "fsqrt";
    frndint "frndint";
    f2xm1 "f2xm1";
    fsin "fsin";
    fcos "fcos";
    ftst "ftst";
    fxam "fxam";
}

/// Functions from ST0 to ST0 and perhaps one more value pushed; the result is ST0 and ST1 after.
macro_rules! pushing {
    ($($name:ident $op:literal;)*) => { $(
        pub(super) fn $name(env: &Env, a: &F80) -> ([F80; 2], u16) {
            let mut r = [F80::default(); 2];
            let sw = x87!(env, ["fld tbyte ptr [{a}]", $op],
                ["fstp tbyte ptr [{r}]", "fstp tbyte ptr [{r} + 16]", "fninit"],
                a = in(reg) a, r = in(reg) &mut r,);
            (r, sw)
        }
    )* };
}

pushing! {
    fptan "fptan";
    fsincos "fsincos";
    fxtract "fxtract";
}

/// Functions from ST0 and ST1 that leave ST0's new value on the stack: the popping ones ST1's, the others ST0's.
macro_rules! binary {
    ($($name:ident $op:literal;)*) => { $(
        pub(super) fn $name(env: &Env, a: &F80, b: &F80) -> Raw {
            let mut r = F80::default();
            let sw = x87!(env, ["fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]", $op],
                ["fstp tbyte ptr [{r}]", "fninit"],
                a = in(reg) a, b = in(reg) b, r = in(reg) &mut r,);
            (r, sw)
        }
    )* };
}

binary! {
    fscale "fscale";
    fprem "fprem";
    fprem1 "fprem1";
    fyl2x "fyl2x";
    fyl2xp1 "fyl2xp1";
    fpatan "fpatan";
}

/// An operation that has a register form and four memory forms.
pub(super) trait Operation {
    /// With another register.
    fn st(env: &Env, a: &F80, b: &F80) -> Raw;
    /// With memory of format `F`.
    fn mem<const F: u8>(env: &Env, a: &F80, m: &u64) -> Raw;
}

/// Memory formats of [`Operation::mem`].
#[allow(missing_docs)]
pub(super) mod format {
    pub(in super::super) const M32: u8 = 0;
    pub(in super::super) const M64: u8 = 1;
    pub(in super::super) const I16: u8 = 2;
    pub(in super::super) const I32: u8 = 3;
}

macro_rules! operations {
    ($($name:ident $op:literal $integer:literal;)*) => { $(
        pub(super) struct $name;

        impl Operation for $name {
            fn st(env: &Env, a: &F80, b: &F80) -> Raw {
                let mut r = F80::default();
                let sw = x87!(env,
                    ["fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]", concat!($op, " st(0), st(1)")],
                    ["fstp tbyte ptr [{r}]", "fstp st(0)"],
                    a = in(reg) a, b = in(reg) b, r = in(reg) &mut r,);
                (r, sw)
            }

            fn mem<const F: u8>(env: &Env, a: &F80, m: &u64) -> Raw {
                let mut r = F80::default();
                macro_rules! form {
                    ($text:expr) => {
                        x87!(env, ["fld tbyte ptr [{a}]", $text], ["fstp tbyte ptr [{r}]"],
                            a = in(reg) a, m = in(reg) m, r = in(reg) &mut r,)
                    };
                }
                let sw = match F {
                    format::M32 => form!(concat!($op, " dword ptr [{m}]")),
                    format::M64 => form!(concat!($op, " qword ptr [{m}]")),
                    format::I16 => form!(concat!($integer, " word ptr [{m}]")),
                    _ => form!(concat!($integer, " dword ptr [{m}]")),
                };
                (r, sw)
            }
        }
    )* };
}

operations! {
    Add "fadd" "fiadd";
    Mul "fmul" "fimul";
    Sub "fsub" "fisub";
    Subr "fsubr" "fisubr";
    Div "fdiv" "fidiv";
    Divr "fdivr" "fidivr";
}

/// FCOM; the value returned means nothing.
pub(super) struct Com;

impl Operation for Com {
    fn st(env: &Env, a: &F80, b: &F80) -> Raw {
        let sw = x87!(env, ["fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]", "fcom st(1)"],
            ["fstp st(0)", "fstp st(0)"], a = in(reg) a, b = in(reg) b,);
        (*a, sw)
    }

    fn mem<const F: u8>(env: &Env, a: &F80, m: &u64) -> Raw {
        macro_rules! form {
            ($text:expr) => {
                x87!(env, ["fld tbyte ptr [{a}]", $text], ["fstp st(0)"], a = in(reg) a, m = in(reg) m,)
            };
        }
        let sw = match F {
            format::M32 => form!("fcom dword ptr [{m}]"),
            format::M64 => form!("fcom qword ptr [{m}]"),
            format::I16 => form!("ficom word ptr [{m}]"),
            _ => form!("ficom dword ptr [{m}]"),
        };
        (*a, sw)
    }
}

/// FUCOM.
pub(super) fn fucom(env: &Env, a: &F80, b: &F80) -> Raw {
    let sw = x87!(env, ["fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]", "fucom st(1)"],
        ["fstp st(0)", "fstp st(0)"], a = in(reg) a, b = in(reg) b,);
    (*a, sw)
}

/// Whether FCOMI clears C1 on this processor: the manuals say so, not all processors do.
pub(super) fn fcomi_clears_c1() -> bool {
    static CLEARS: LazyLock<bool> = LazyLock::new(|| {
        let env = Env { control: DEFAULT, default: DEFAULT, clear: 0x7f };
        // FXAM of a negative number sets C1.
        let sw = x87!(&env, ["fld1", "fchs", "fxam", "fcomi st(0), st(0)"], ["fstp st(0)"],);
        sw & fsw::C1 == 0
    });
    *CLEARS
}
