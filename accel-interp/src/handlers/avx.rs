//! VEX instructions on vector registers: x86-core's raw operations with operands resolved ahead of time. Sources in memory
//! are read by the raw operation itself, straight from guest RAM.

use x86_core::exec::avx::{AvxForm, AvxOp, Float, Operands, copy32};
use x86_core::{host_load, host_load16, host_store, host_store16};

use super::{handler, indexed};
use crate::op::{Handler, Op, Step};

/// Bits of an op's immediate below the instruction's own: a [`AvxOp`]'s address, which user space has no more bits of.
const ADDRESS_BITS: u32 = 56;

/// Whether the raw operation may be called: AVX is on, and no unmasked exception can come of it.
#[inline(always)]
fn ready<const FLOAT: bool>(s: &Step<'_>) -> bool {
    s.peek(|cpu| cpu.avx_ready && !(FLOAT && cpu.sse_unmasked))
}

/// Calls the op's raw operation with its first source.
#[inline(always)]
fn apply(s: &Step<'_>, dst: *mut [u64; 4], b: *const u8) {
    let op = s.op();
    // SAFETY: the immediate of an AVX op is its `AvxOp` and the immediate byte, put there by `form` for an instruction whose
    // features the host has; the registers are the op's, and `b` is valid by the callers.
    unsafe {
        let address = op.imm & ((1 << ADDRESS_BITS) - 1);
        let operation = std::mem::transmute::<u64, AvxOp>(address);
        operation(dst, s.field(op.src), b, (op.imm >> ADDRESS_BITS) as u8);
    }
}

/// A register's new value of at most 16 bytes, with zeros above.
#[inline(always)]
fn set_low(s: &Step<'_>, [low, high]: [u64; 2]) {
    // SAFETY: the offset of a vector register.
    unsafe { *s.field::<[u64; 4]>(s.op().dst) = [low, high, 0, 0] };
}

handler! {
    /// The last source's place is where memory operands have their base.
    fn registers<; const FLOAT: bool>(s) {
        if !ready::<FLOAT>(&s) {
            return s.slow();
        }
        apply(&s, s.field(s.op().dst), s.field(s.op().base));
        s.next()
    }

    fn from_memory<; const BYTES: usize, const X: bool, const FLOAT: bool>(s) {
        if !ready::<FLOAT>(&s) {
            return s.slow();
        }
        let ea = s.ea::<X>();
        let Some(host) = s.readable(ea, BYTES) else { return s.miss::<BYTES, false>(ea) };
        apply(&s, s.field(s.op().dst), host);
        s.next()
    }

    fn to_memory<; const BYTES: usize, const X: bool>(s) {
        if !ready::<false>(&s) {
            return s.slow();
        }
        let ea = s.ea::<X>();
        let Some(host) = s.writable(ea, BYTES) else { return s.miss::<BYTES, true>(ea) };
        let mut value = [0; 4];
        apply(&s, &mut value, s.field(s.op().src));
        // SAFETY: a write tag maps the page, and with it these bytes, to writable RAM.
        unsafe {
            match BYTES {
                16 => host_store16(host, [value[0], value[1]]),
                _ => host_store(host, value[0]),
            }
        }
        s.next()
    }

    // Whole-register moves, the most frequent by far, without a call.

    fn move_registers<; const BYTES: usize>(s) {
        if !ready::<false>(&s) {
            return s.slow();
        }
        let src = s.field::<u8>(s.op().base);
        // SAFETY: both are offsets of vector registers; AVX being on, the host has it.
        unsafe {
            match BYTES {
                32 => copy32(s.field(s.op().dst), src),
                _ => set_low(&s, host_load16(src)),
            }
        }
        s.next()
    }

    /// Also of 4 or 8 bytes: a scalar load clears the rest of the register.
    fn move_from_memory<; const BYTES: usize, const ALIGNED: bool, const X: bool>(s) {
        if !ready::<false>(&s) {
            return s.slow();
        }
        let ea = s.ea::<X>();
        if ALIGNED && ea & (BYTES as u64 - 1) != 0 {
            return s.slow();
        }
        let Some(host) = s.readable(ea, BYTES) else { return s.miss::<BYTES, false>(ea) };
        // SAFETY: a read tag maps the page, and with it these bytes, to RAM; the destination is a vector register.
        unsafe {
            match BYTES {
                32 => copy32(s.field(s.op().dst), host),
                16 => set_low(&s, host_load16(host)),
                8 => set_low(&s, [host_load(host), 0]),
                _ => set_low(&s, [u64::from(host_load::<u32>(host)), 0]),
            }
        }
        s.next()
    }

    fn move_to_memory<; const BYTES: usize, const ALIGNED: bool, const X: bool>(s) {
        if !ready::<false>(&s) {
            return s.slow();
        }
        let ea = s.ea::<X>();
        if ALIGNED && ea & (BYTES as u64 - 1) != 0 {
            return s.slow();
        }
        let Some(host) = s.writable(ea, BYTES) else { return s.miss::<BYTES, true>(ea) };
        let src = s.field::<u64>(s.op().src);
        // SAFETY: the offset of a vector register; a write tag maps these bytes to writable RAM.
        unsafe {
            match BYTES {
                32 => copy32(host, src.cast()),
                16 => host_store16(host, [src.read(), src.add(1).read()]),
                8 => host_store(host, src.read()),
                _ => host_store(host, src.read() as u32),
            }
        }
        s.next()
    }
}

/// Sets the immediate of an op that calls a raw operation.
fn with_operation(op: &mut Op, operation: AvxOp, imm: u8) {
    op.imm = operation as usize as u64 | u64::from(imm) << ADDRESS_BITS;
}

/// The handler of a form with registers only; `whole` tells that it moves one of so many bytes. The op's immediate is set.
pub(crate) fn register_form(op: &mut Op, form: &AvxForm, whole: Option<usize>, imm: u8) {
    with_operation(op, form.register, imm);
    op.handler = match (whole, form.float) {
        (Some(32), _) => move_registers::<32>,
        (Some(16), _) => move_registers::<16>,
        (_, Float::None) => registers::<false>,
        _ => registers::<true>,
    };
}

/// The handler of a form with a memory operand; `plain_move` tells that it only moves. The op's immediate is set.
pub(crate) fn memory_form(op: &mut Op, form: &AvxForm, plain_move: bool, x: bool, imm: u8) -> Option<()> {
    with_operation(op, form.memory, imm);
    let float = form.float != Float::None;
    let store = form.operands == Operands::Store;
    let handler: Handler = match (form.bytes, store, form.aligned) {
        (32, false, true) => indexed!(x, X => move_from_memory::<32, true, X>),
        (16, false, true) => indexed!(x, X => move_from_memory::<16, true, X>),
        (32, true, true) => indexed!(x, X => move_to_memory::<32, true, X>),
        (16, true, true) => indexed!(x, X => move_to_memory::<16, true, X>),
        (32, false, _) if plain_move => indexed!(x, X => move_from_memory::<32, false, X>),
        (16, false, _) if plain_move => indexed!(x, X => move_from_memory::<16, false, X>),
        (8, false, _) if plain_move => indexed!(x, X => move_from_memory::<8, false, X>),
        (4, false, _) if plain_move => indexed!(x, X => move_from_memory::<4, false, X>),
        (32, true, _) if plain_move => indexed!(x, X => move_to_memory::<32, false, X>),
        (16, true, _) if plain_move => indexed!(x, X => move_to_memory::<16, false, X>),
        (8, true, _) if plain_move => indexed!(x, X => move_to_memory::<8, false, X>),
        (4, true, _) if plain_move => indexed!(x, X => move_to_memory::<4, false, X>),
        (16, true, _) if !float => indexed!(x, X => to_memory::<16, X>),
        (8, true, _) if !float => indexed!(x, X => to_memory::<8, X>),
        (_, true, _) => return None,
        (32, ..) if float => indexed!(x, X => from_memory::<32, X, true>),
        (16, ..) if float => indexed!(x, X => from_memory::<16, X, true>),
        (8, ..) if float => indexed!(x, X => from_memory::<8, X, true>),
        (4, ..) if float => indexed!(x, X => from_memory::<4, X, true>),
        (32, ..) => indexed!(x, X => from_memory::<32, X, false>),
        (16, ..) => indexed!(x, X => from_memory::<16, X, false>),
        (8, ..) => indexed!(x, X => from_memory::<8, X, false>),
        (4, ..) => indexed!(x, X => from_memory::<4, X, false>),
        _ => return None,
    };
    op.handler = handler;
    Some(())
}
