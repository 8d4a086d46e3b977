//! Raw operations as inline assembly of the host's own instruction, named by iced's mnemonic.
//!
//! Operands have letters for their width: `x` and `y` are XMM and YMM registers; a source in memory can also be `b`, `w`,
//! `d` or `q`, which are 1, 2, 4 or 8 bytes, loaded into an XMM register with zeros above. The destination is register 0, the
//! sources are 1 and 2, a mask is 3. An instruction that is VEX-encoded zeroes what its destination has above its width,
//! so that always all of it is stored.

/// The name of a register.
macro_rules! reg {
    (y $n:literal) => {
        concat!("ymm", $n)
    };
    ($narrow:tt $n:literal) => {
        concat!("xmm", $n)
    };
}

/// Loads register 2 from `{b}`, reading no more than the operand has.
macro_rules! load {
    (y) => {
        "vmovups ymm2, [{b}]"
    };
    (x) => {
        "vmovups xmm2, [{b}]"
    };
    (q) => {
        "vmovq xmm2, qword ptr [{b}]"
    };
    (d) => {
        "vmovd xmm2, dword ptr [{b}]"
    };
    (w) => {
        "vpxor xmm2, xmm2, xmm2\nvpinsrw xmm2, xmm2, word ptr [{b}], 0"
    };
    (b) => {
        "vpxor xmm2, xmm2, xmm2\nvpinsrb xmm2, xmm2, byte ptr [{b}], 0"
    };
}

/// Behind an instruction on YMM registers: the host's legacy SSE instructions are slow on some processors while upper
/// halves are in use.
macro_rules! clean {
    () => { "" };
    (y $($rest:tt)*) => { "vzeroupper" };
    ($x:tt $($rest:tt)*) => { $crate::exec::avx::raw::clean!($($rest)*) };
}

/// Values of an immediate, as `.irp` lists them.
macro_rules! values {
    (2) => { "0, 1" };
    (4) => { "0, 1, 2, 3" };
    (8) => { "0, 1, 2, 3, 4, 5, 6, 7" };
    (16) => { concat!(values!(8), ", 8, 9, 10, 11, 12, 13, 14, 15") };
    (32) => { concat!(values!(16), ", 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31") };
    (64) => { concat!(values!(@ ""), ", ", values!(@ "1"), ", ", values!(@ "2"), ", ", values!(@ "3")) };
    (256) => { concat!(
        values!(64), ", ", values!(@ "4"), ", ", values!(@ "5"), ", ", values!(@ "6"), ", ", values!(@ "7"), ", ",
        values!(@ "8"), ", ", values!(@ "9"), ", ", values!(@ "a"), ", ", values!(@ "b"), ", ",
        values!(@ "c"), ", ", values!(@ "d"), ", ", values!(@ "e"), ", ", values!(@ "f")) };
    (@ $high:literal) => { concat!(
        "0x", $high, "0, 0x", $high, "1, 0x", $high, "2, 0x", $high, "3, 0x", $high, "4, 0x", $high, "5, 0x",
        $high, "6, 0x", $high, "7, 0x", $high, "8, 0x", $high, "9, 0x", $high, "a, 0x", $high, "b, 0x",
        $high, "c, 0x", $high, "d, 0x", $high, "e, 0x", $high, "f") };
}

/// Assembly on vector registers, any of which it may change: VZEROUPPER changes all. `int` promises that it leaves RFLAGS and
/// MXCSR's flags alone.
macro_rules! vector_asm {
    (int $($asm:tt)*) => { $crate::exec::avx::raw::vector_asm!(@ $($asm)* options(nostack, preserves_flags)) };
    (float $($asm:tt)*) => { $crate::exec::avx::raw::vector_asm!(@ $($asm)* options(nostack)) };
    (@ $($asm:tt)*) => {
        core::arch::asm!($($asm)*,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
            out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _,
            out("xmm13") _, out("xmm14") _, out("xmm15") _)
    };
}

/// An [`AvxOp`](super::AvxOp) of one host instruction; `int` or `float` as for [`vector_asm`].
///
/// * `avx_op!(int Vpaddb y y y)`: destination and two sources.
/// * `avx_op!(int Vpabsb x x)`: destination and one source.
/// * `avx_op!(float fused Vfmadd132ps y y y)`: the destination is a source too.
/// * `avx_op!(int mask Vblendvps y y y)`: the destination's old value is the mask.
/// * `avx_op!(int text "vbroadcastss ymm0, [{b}]" y)`: as written, from `{b}` to register 0.
macro_rules! avx_op {
    (@two $kind:ident $text:expr; $($w:tt)*) => {{
        unsafe fn raw(dst: *mut [u64; 4], _: *const [u64; 4], b: *const u8, _: u8) {
            use $crate::exec::avx::raw::{clean, vector_asm};
            // SAFETY: the caller's promise; only what the pointers reach is read or written.
            unsafe {
                vector_asm!($kind $text, "vmovups [{d}], ymm0", clean!($($w)*), d = in(reg) dst, b = in(reg) b,)
            }
        }
        raw as $crate::exec::avx::AvxOp
    }};
    (@three $kind:ident $old:expr, $op:expr; $d:tt $a:tt $b:tt) => {{
        unsafe fn raw(dst: *mut [u64; 4], a: *const [u64; 4], b: *const u8, _: u8) {
            use $crate::exec::avx::raw::{clean, load, reg, vector_asm};
            // SAFETY: as above.
            unsafe {
                vector_asm!($kind
                    $old, concat!("vmovups ", reg!($a 1), ", [{a}]"), load!($b), $op, "vmovups [{d}], ymm0",
                    clean!($d $a $b), d = in(reg) dst, a = in(reg) a, b = in(reg) b,)
            }
        }
        raw as $crate::exec::avx::AvxOp
    }};
    ($kind:ident text $text:literal $d:tt) => {
        $crate::exec::avx::raw::avx_op!(@two $kind $text; $d)
    };
    ($kind:ident $m:ident $d:tt $b:tt) => {
        $crate::exec::avx::raw::avx_op!(@two $kind
            concat!($crate::exec::avx::raw::load!($b), "\n", stringify!($m), " ",
                $crate::exec::avx::raw::reg!($d 0), ", ", $crate::exec::avx::raw::reg!($b 2)); $d $b)
    };
    ($kind:ident $m:ident $d:tt $a:tt $b:tt) => {
        $crate::exec::avx::raw::avx_op!(@three $kind "",
            concat!(stringify!($m), " ", reg!($d 0), ", ", reg!($a 1), ", ", reg!($b 2)); $d $a $b)
    };
    ($kind:ident fused $m:ident $d:tt $a:tt $b:tt) => {
        $crate::exec::avx::raw::avx_op!(@three $kind concat!("vmovups ", reg!($d 0), ", [{d}]"),
            concat!(stringify!($m), " ", reg!($d 0), ", ", reg!($a 1), ", ", reg!($b 2)); $d $a $b)
    };
    ($kind:ident mask $m:ident $d:tt $a:tt $b:tt) => {
        $crate::exec::avx::raw::avx_op!(@three $kind concat!("vmovups ", reg!($d 3), ", [{d}]"),
            concat!(stringify!($m), " ", reg!($d 0), ", ", reg!($a 1), ", ", reg!($b 2), ", ", reg!($d 3)); $d $a $b)
    };
}

/// An [`AvxOp`](super::AvxOp) of one host instruction with an immediate. Each value that `mask` leaves has its own
/// instruction in a table of 16 bytes an entry, which is jumped into.
macro_rules! avx_imm_op {
    ($kind:ident $m:ident $count:tt $mask:literal: $d:tt $a:tt $b:tt) => {{
        unsafe fn raw(dst: *mut [u64; 4], a: *const [u64; 4], b: *const u8, imm: u8) {
            use $crate::exec::avx::raw::{clean, load, reg, values, vector_asm};
            // SAFETY: the caller's promise; only what the pointers reach is read or written, and the jump is to one of the
            // table's entries.
            unsafe {
                vector_asm!($kind
                    concat!("vmovups ", reg!($a 1), ", [{a}]"), load!($b),
                    "lea {t}, [rip + 2f]", "lea {t}, [{t} + {i}]", "jmp {t}", ".p2align 4", "2:",
                    concat!(".irp i, ", values!($count)), ".p2align 4",
                    concat!(stringify!($m), " ", reg!($d 0), ", ", reg!($a 1), ", ", reg!($b 2), ", \\i"),
                    "jmp 3f", ".endr", "3:",
                    "vmovups [{d}], ymm0", clean!($d $a $b),
                    d = in(reg) dst, a = in(reg) a, b = in(reg) b, i = in(reg) usize::from(imm & $mask) * 16,
                    t = out(reg) _,)
            }
        }
        raw as $crate::exec::avx::AvxOp
    }};
    ($kind:ident $m:ident $count:tt $mask:literal: $d:tt $b:tt) => {{
        unsafe fn raw(dst: *mut [u64; 4], _: *const [u64; 4], b: *const u8, imm: u8) {
            use $crate::exec::avx::raw::{clean, load, reg, values, vector_asm};
            // SAFETY: as above.
            unsafe {
                vector_asm!($kind
                    load!($b),
                    "lea {t}, [rip + 2f]", "lea {t}, [{t} + {i}]", "jmp {t}", ".p2align 4", "2:",
                    concat!(".irp i, ", values!($count)), ".p2align 4",
                    concat!(stringify!($m), " ", reg!($d 0), ", ", reg!($b 2), ", \\i"),
                    "jmp 3f", ".endr", "3:",
                    "vmovups [{d}], ymm0", clean!($d $b),
                    d = in(reg) dst, b = in(reg) b, i = in(reg) usize::from(imm & $mask) * 16,
                    t = out(reg) _,)
            }
        }
        raw as $crate::exec::avx::AvxOp
    }};
}

/// Adds forms: `rows! { forms, int|float [fused|mask], [(widths | narrow source) float, ...]: Mnemonic ... }`. The
/// letter behind `|` is the source's width in memory where it differs.
macro_rules! rows {
    ($forms:ident, $kind:ident, $widths:tt: $($m:ident)*) => {
        $($crate::exec::avx::raw::rows!(@each $forms, ($kind) $m $widths);)*
    };
    ($forms:ident, $kind:ident $role:ident, $widths:tt: $($m:ident)*) => {
        $($crate::exec::avx::raw::rows!(@each $forms, ($kind $role) $m $widths);)*
    };
    (@each $forms:ident, $kind:tt $m:ident [$(($($w:tt)*) $float:ident $(($lanes:literal))?),*]) => {
        $($crate::exec::avx::raw::rows!(@one $forms, $kind $m, $crate::exec::avx::Float::$float $(($lanes))?; $($w)*);)*
    };
    (@one $forms:ident, ($($kind:ident)*) $m:ident, $float:expr; $d:tt $a:tt $b:tt | $n:tt) => {
        $forms.add(iced_x86::Mnemonic::$m, &stringify!($d $a $b), $float,
            $crate::exec::avx::raw::avx_op!($($kind)* $m $d $a $b),
            $crate::exec::avx::raw::avx_op!($($kind)* $m $d $a $n))
    };
    (@one $forms:ident, ($($kind:ident)*) $m:ident, $float:expr; $d:tt $b:tt | $n:tt) => {
        $forms.add(iced_x86::Mnemonic::$m, &stringify!($d $b), $float,
            $crate::exec::avx::raw::avx_op!($($kind)* $m $d $b),
            $crate::exec::avx::raw::avx_op!($($kind)* $m $d $n))
    };
    (@one $forms:ident, ($($kind:ident)*) $m:ident, $float:expr; $($w:tt)*) => {{
        let op = $crate::exec::avx::raw::avx_op!($($kind)* $m $($w)*);
        $forms.add(iced_x86::Mnemonic::$m, &stringify!($($w)*), $float, op, op)
    }};
}

/// Adds forms with an immediate: `imm_rows! { forms, int|float, [(widths | narrow) float, ...] count, mask: Mnemonic ... }`.
macro_rules! imm_rows {
    ($forms:ident, $kind:ident, $widths:tt $count:tt, $mask:literal: $($m:ident)*) => {
        $($crate::exec::avx::raw::imm_rows!(@each $forms, $kind $m $count $mask $widths);)*
    };
    (@each $forms:ident, $kind:ident $m:ident $count:tt $mask:literal
        [$(($($w:tt)*) $float:ident $(($lanes:literal))?),*]) => {
        $($crate::exec::avx::raw::imm_rows!(@one $forms, $kind $m $count $mask,
            $crate::exec::avx::Float::$float $(($lanes))?; $($w)*);)*
    };
    (@one $forms:ident, $kind:ident $m:ident $count:tt $mask:literal, $float:expr; $d:tt $a:tt $b:tt | $n:tt) => {
        $forms.add(iced_x86::Mnemonic::$m, &stringify!($d $a $b), $float,
            $crate::exec::avx::raw::avx_imm_op!($kind $m $count $mask: $d $a $b),
            $crate::exec::avx::raw::avx_imm_op!($kind $m $count $mask: $d $a $n))
    };
    (@one $forms:ident, $kind:ident $m:ident $count:tt $mask:literal, $float:expr; $($w:tt)*) => {{
        let op = $crate::exec::avx::raw::avx_imm_op!($kind $m $count $mask: $($w)*);
        $forms.add(iced_x86::Mnemonic::$m, &stringify!($($w)*), $float, op, op)
    }};
}

pub(in crate::exec) use values;
pub(super) use {avx_imm_op, avx_op, clean, imm_rows, load, reg, rows, vector_asm};
