//! Two-operand SSE instructions: x86-core's raw operations with operands resolved ahead of time.

use x86_core::exec::sse::{Float, Shape, VecForm, VecOp};

use super::{handler, indexed};
use crate::op::{Exit, Handler, Op, Step};

/// Whether the raw operation may be called: SSE is on, and no unmasked exception can come of it.
#[inline(always)]
fn ready<const FLOAT: bool>(s: &Step<'_>) -> bool {
    s.peek(|cpu| cpu.sse_ready && !(FLOAT && cpu.sse_unmasked))
}

/// Calls the op's raw operation.
#[inline(always)]
fn apply(s: &Step<'_>, dst: *mut [u64; 4], src: *const [u64; 2], imm: u8) {
    // SAFETY: the immediate of a vector op is its `VecOp`, put there by `set` for an instruction whose feature the host
    // has; both pointers are valid by the callers.
    unsafe {
        let operation = std::mem::transmute::<u64, VecOp>(s.op().imm);
        operation(dst, src, imm);
    }
}

/// The memory operand, zero-extended, with the step that goes on; `Err` is the way out of the handler.
#[inline(always)]
fn load<const BYTES: usize, const ALIGNED: bool, const X: bool>(
    s: Step<'_>,
) -> Result<(Step<'_>, [u64; 2]), Exit> {
    let ea = s.ea::<X>();
    if ALIGNED && ea & 15 != 0 {
        return Err(s.slow());
    }
    let Some(host) = s.readable(ea, BYTES) else { return Err(s.miss::<BYTES, false>(ea)) };
    // SAFETY: a read tag maps the page, and with it these bytes, to RAM.
    let value = unsafe {
        match BYTES {
            16 => x86_core::host_load16(host),
            8 => [x86_core::host_load::<u64>(host), 0],
            4 => [u64::from(x86_core::host_load::<u32>(host)), 0],
            _ => [u64::from(x86_core::host_load::<u16>(host)), 0],
        }
    };
    Ok((s, value))
}

/// Stores the low bytes of `value`.
///
/// # Safety
/// `host` must be valid for `BYTES` bytes.
#[inline(always)]
unsafe fn store_low<const BYTES: usize>(host: *mut u8, value: [u64; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        match BYTES {
            16 => x86_core::host_store16(host, value),
            8 => x86_core::host_store(host, value[0]),
            _ => x86_core::host_store(host, value[0] as u32),
        }
    }
}

handler! {
    fn registers<; const FLOAT: bool>(s) {
        if !ready::<FLOAT>(&s) {
            return s.slow();
        }
        let op = s.op();
        apply(&s, s.field(op.dst), s.field(op.src), op.disp as u8);
        s.next()
    }

    fn from_memory<; const BYTES: usize, const ALIGNED: bool, const X: bool, const FLOAT: bool>(s) {
        if !ready::<FLOAT>(&s) {
            return s.slow();
        }
        let (s, value) = match load::<BYTES, ALIGNED, X>(s) {
            Ok(loaded) => loaded,
            Err(exit) => return exit,
        };
        apply(&s, s.field(s.op().dst), &value, s.op().src as u8);
        s.next()
    }

    fn to_memory<; const BYTES: usize, const ALIGNED: bool, const X: bool>(s) {
        if !ready::<false>(&s) {
            return s.slow();
        }
        let ea = s.ea::<X>();
        if ALIGNED && ea & 15 != 0 {
            return s.slow();
        }
        let Some(host) = s.writable(ea, BYTES) else { return s.miss::<BYTES, true>(ea) };
        let mut value = [0; 4];
        apply(&s, &mut value, s.field(s.op().src), 0);
        // SAFETY: a write tag maps the page, and with it these bytes, to writable RAM.
        unsafe { store_low::<BYTES>(host, [value[0], value[1]]) };
        s.next()
    }

    // Whole-register moves, the most frequent vector instructions by far, without a call.

    fn move_registers(s) {
        if !ready::<false>(&s) {
            return s.slow();
        }
        let op = s.op();
        // SAFETY: both are offsets of vector registers.
        unsafe { *s.field::<[u64; 2]>(op.dst) = *s.field::<[u64; 2]>(op.src) };
        s.next()
    }

    /// Also of 4 or 8 bytes: a scalar load clears the rest of the low half.
    fn move_from_memory<; const BYTES: usize, const ALIGNED: bool, const X: bool>(s) {
        if !ready::<false>(&s) {
            return s.slow();
        }
        let (s, value) = match load::<BYTES, ALIGNED, X>(s) {
            Ok(loaded) => loaded,
            Err(exit) => return exit,
        };
        // SAFETY: the offset of a vector register.
        unsafe { *s.field::<[u64; 2]>(s.op().dst) = value };
        s.next()
    }

    fn move_to_memory<; const BYTES: usize, const ALIGNED: bool, const X: bool>(s) {
        if !ready::<false>(&s) {
            return s.slow();
        }
        let ea = s.ea::<X>();
        if ALIGNED && ea & 15 != 0 {
            return s.slow();
        }
        let Some(host) = s.writable(ea, BYTES) else { return s.miss::<BYTES, true>(ea) };
        // SAFETY: the offset of a vector register; a write tag maps these bytes to writable RAM.
        unsafe { store_low::<BYTES>(host, *s.field::<[u64; 2]>(s.op().src)) };
        s.next()
    }
}

/// The handler of a form with both operands in registers, and its op's immediate.
pub(crate) fn register_form(form: &VecForm, whole_move: bool) -> (Handler, u64) {
    let float = form.float != Float::None;
    let handler: Handler = match (whole_move, float) {
        (true, _) => move_registers,
        (_, true) => registers::<true>,
        (_, false) => registers::<false>,
    };
    (handler, form.register as usize as u64)
}

/// The handler of a form with a memory operand, and its op's immediate.
pub(crate) fn memory_form(form: &VecForm, plain_move: bool, x: bool) -> Option<(Handler, u64)> {
    let float = form.float != Float::None;
    let handler = match (form.shape, form.bytes, form.aligned, plain_move) {
        (Shape::Load, 16, true, true) => indexed!(x, X => move_from_memory::<16, true, X>),
        (Shape::Load, 16, false, true) => indexed!(x, X => move_from_memory::<16, false, X>),
        (Shape::Load, 8, _, true) => indexed!(x, X => move_from_memory::<8, false, X>),
        (Shape::Load, 4, _, true) => indexed!(x, X => move_from_memory::<4, false, X>),
        (Shape::Store, 16, true, true) => indexed!(x, X => move_to_memory::<16, true, X>),
        (Shape::Store, 16, false, true) => indexed!(x, X => move_to_memory::<16, false, X>),
        (Shape::Store, 8, _, true) => indexed!(x, X => move_to_memory::<8, false, X>),
        (Shape::Store, 4, _, true) => indexed!(x, X => move_to_memory::<4, false, X>),
        (Shape::Load, 16, true, _) if float => indexed!(x, X => from_memory::<16, true, X, true>),
        (Shape::Load, 16, true, _) => indexed!(x, X => from_memory::<16, true, X, false>),
        (Shape::Load, 8, ..) if float => indexed!(x, X => from_memory::<8, false, X, true>),
        (Shape::Load, 8, ..) => indexed!(x, X => from_memory::<8, false, X, false>),
        (Shape::Load, 4, ..) if float => indexed!(x, X => from_memory::<4, false, X, true>),
        (Shape::Load, 4, ..) => indexed!(x, X => from_memory::<4, false, X, false>),
        (Shape::Store, 16, true, _) => indexed!(x, X => to_memory::<16, true, X>),
        (Shape::Store, 8, ..) => indexed!(x, X => to_memory::<8, false, X>),
        (Shape::Store, 4, ..) => indexed!(x, X => to_memory::<4, false, X>),
        _ => return None,
    };
    Some((handler, form.memory as usize as u64))
}

/// Puts an immediate byte where the handlers look for it.
pub(crate) fn set_immediate(op: &mut Op, memory: bool, imm: u8) {
    if memory {
        op.src = imm.into();
    } else {
        op.disp = imm.into();
    }
}
