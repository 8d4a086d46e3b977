//! Raw operations as inline assembly of the host's own instruction.

/// A [`VecOp`](super::VecOp) of one host instruction on two registers, given as text. `int` promises that it leaves
/// RFLAGS and MXCSR's flags alone.
macro_rules! host_op {
    (int $text:literal) => { $crate::exec::sse::raw::host_op!(@ $text, preserves_flags) };
    (float $text:literal) => { $crate::exec::sse::raw::host_op!(@ $text) };
    (@ $text:literal $(, $option:ident)*) => {{
        unsafe fn raw(dst: *mut [u64; 4], src: *const [u64; 2], _: u8) {
            // SAFETY: the caller's promise; the assembly computes in two registers.
            unsafe {
                let mut a = core::arch::x86_64::_mm_loadu_si128(dst.cast());
                let b = core::arch::x86_64::_mm_loadu_si128(src.cast());
                core::arch::asm!(concat!($text, " {a}, {b}"), a = inout(xmm_reg) a, b = in(xmm_reg) b,
                    options(nomem, nostack $(, $option)*));
                core::arch::x86_64::_mm_storeu_si128(dst.cast(), a);
            }
        }
        raw as $crate::exec::sse::VecOp
    }};
}

/// A [`VecOp`](super::VecOp) of one host instruction with an immediate: `mask` keeps the bits of it that matter, and
/// each value that can remain has its own instruction.
macro_rules! host_imm_op {
    ($text:literal, $mask:literal, [$($value:literal)*]) => {{
        unsafe fn raw(dst: *mut [u64; 4], src: *const [u64; 2], imm: u8) {
            // SAFETY: the caller's promise; the assembly computes in two registers.
            unsafe {
                let mut a = core::arch::x86_64::_mm_loadu_si128(dst.cast());
                let b = core::arch::x86_64::_mm_loadu_si128(src.cast());
                match imm & $mask {
                    $($value => core::arch::asm!(concat!($text, " {a}, {b}, ", $value), a = inout(xmm_reg) a,
                        b = in(xmm_reg) b, options(nomem, nostack)),)*
                    _ => {}
                }
                core::arch::x86_64::_mm_storeu_si128(dst.cast(), a);
            }
        }
        raw as $crate::exec::sse::VecOp
    }};
}

/// Adds forms: `rows! { forms, shape, float, int|float: Code "text", ... }`.
macro_rules! rows {
    ($forms:ident, $float:expr, $kind:ident: $($code:ident $text:literal),* $(,)?) => {
        $($forms.add(
            iced_x86::Code::$code,
            $crate::exec::sse::Shape::Load,
            $float,
            $crate::exec::sse::raw::host_op!($kind $text),
        );)*
    };
}

pub(super) use {host_imm_op, host_op, rows};
