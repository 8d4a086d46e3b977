//! Instructions whose operands are a vector register and a vector register or memory: what distinguishes one from
//! another, and the one function that executes them all.
#![allow(unsafe_code)] // raw operations work on pointers into the register file

use std::sync::LazyLock;

use accel_api::x86::{Feature, Ymm};
use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind, Register};

use super::access::{self, Xmm};
use super::{crypto, imm, moves, mxcsr, packed_float, packed_int, ready, sse4a};
use crate::exec::Table;
use crate::{Cpu, Exec, Fault};

/// A raw operation, without checks: `dst` is a vector register of the guest, of which legacy SSE changes the low half
/// only; `src` a register or the value of a memory operand, zero-extended; `imm` the immediate byte, if there is one.
/// `src` may lie within `dst`.
///
/// # Safety
/// Both pointers must be valid, and the host must have the instruction set extension that the instruction belongs to.
pub type VecOp = unsafe fn(dst: *mut [u64; 4], src: *const [u64; 2], imm: u8);

/// Where the operands of a [`VecForm`] come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// `op xmm, xmm/m[, imm8]`.
    Load,
    /// `op xmm/m, xmm`. In the memory form `dst` is a temporary, whose first bytes are stored.
    Store,
    /// `op xmm, imm8`: `src` is not used.
    Immediate,
}

/// How an operation uses the floating-point environment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Float {
    /// Not at all.
    None,
    /// It may raise exceptions other than underflow.
    Flags,
    /// It computes single-precision results in the low lanes, as many as given: underflow is possible.
    Single(u8),
    /// It computes double-precision results in the low lanes, as many as given.
    Double(u8),
    /// It computes half-precision results in the low lanes, as many as given.
    Half(u8),
}

/// An instruction on vector registers. See [`vec_op`].
#[derive(Clone, Copy, Debug)]
pub struct VecForm {
    /// The operation when both operands are registers.
    pub register: VecOp,
    /// The operation when one is memory.
    pub memory: VecOp,
    /// Roles of the operands.
    pub shape: Shape,
    /// Bytes of the memory operand: 2, 4, 8 or 16; 0 if it cannot be memory.
    pub bytes: u8,
    /// The memory operand must be aligned to 16 bytes, else #GP(0).
    pub aligned: bool,
    /// With anything but [`Float::None`] and [`Cpu::sse_unmasked`] set, the raw operation must not be called directly:
    /// the function [`lookup`](crate::exec::lookup) finds knows how to raise #XM.
    pub float: Float,
    /// What the guest's CPU must have beyond SSE2, else #UD.
    pub feature: Option<Feature>,
}

static FORMS: LazyLock<Vec<Option<VecForm>>> = LazyLock::new(|| {
    let mut forms = Forms(vec![None; Code::values().len()]);
    moves::forms(&mut forms);
    packed_int::forms(&mut forms);
    packed_float::forms(&mut forms);
    imm::forms(&mut forms);
    crypto::forms(&mut forms);
    sse4a::forms(&mut forms);
    forms.0
});

/// The form of `code`, if its operands are vector registers and memory only. An executor that calls the raw operation
/// itself must see to [`Cpu::sse_ready`], `feature`, `aligned` and `float`.
pub fn vec_op(code: Code) -> Option<&'static VecForm> {
    FORMS.get(code as usize)?.as_ref()
}

/// The forms while they are being collected.
pub(super) struct Forms(Vec<Option<VecForm>>);

impl Forms {
    pub(super) fn add(&mut self, code: Code, shape: Shape, float: Float, op: VecOp) {
        self.add_split(code, shape, float, op, op);
    }

    /// One whose register form does something else than its memory form.
    pub(super) fn add_split(
        &mut self,
        code: Code,
        shape: Shape,
        float: Float,
        register: VecOp,
        memory: VecOp,
    ) {
        let bytes = code.op_code().memory_size().size() as u8;
        let form = VecForm {
            register,
            memory,
            shape,
            bytes,
            aligned: bytes == 16 && !unaligned(code.mnemonic()),
            float,
            feature: feature(code),
        };
        let slot = &mut self.0[code as usize];
        debug_assert!(slot.is_none(), "{code:?} twice");
        *slot = Some(form);
    }
}

/// Instructions that take 16 bytes of memory at any address.
fn unaligned(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu | Mnemonic::Lddqu)
}

/// The feature that an instruction needs beyond SSE2, which all x86-64 processors have, or beyond AVX if its encoding is
/// VEX.
pub(in crate::exec) fn feature(code: Code) -> Option<Feature> {
    code.cpuid_features().iter().find_map(|f| {
        Some(match f {
            CpuidFeature::SSE3 => Feature::Sse3,
            CpuidFeature::SSSE3 => Feature::Ssse3,
            CpuidFeature::SSE4_1 => Feature::Sse41,
            CpuidFeature::SSE4_2 => Feature::Sse42,
            CpuidFeature::AES => Feature::Aes,
            CpuidFeature::PCLMULQDQ => Feature::Pclmulqdq,
            CpuidFeature::SHA => Feature::Sha,
            CpuidFeature::SSE4A => Feature::Sse4a,
            CpuidFeature::GFNI => Feature::Gfni,
            CpuidFeature::AVX2 => Feature::Avx2,
            CpuidFeature::FMA => Feature::Fma,
            CpuidFeature::F16C => Feature::F16c,
            CpuidFeature::VAES => Feature::Vaes,
            CpuidFeature::VPCLMULQDQ => Feature::Vpclmulqdq,
            _ => return None,
        })
    })
}

/// Registers the function that executes forms.
pub(super) fn register(table: &mut Table) {
    for code in Code::values() {
        if let Some(form) = vec_op(code) {
            match form.shape {
                Shape::Load => table.set(&[code], exec_load),
                Shape::Store => table.set(&[code], exec_store),
                Shape::Immediate => table.set(&[code], exec_immediate),
            }
        }
    }
}

/// Index of a vector register.
#[inline(always)]
pub(in crate::exec) fn number(register: Register) -> usize {
    register.number() & 15
}

/// The low half of vector register `index`.
#[inline(always)]
pub(super) fn xmm(cpu: &Cpu, index: usize) -> Xmm {
    let [low, high, ..] = cpu.vector.0[index];
    [low, high]
}

/// A register or the value of the memory operand.
#[inline(always)]
pub(super) fn operand(cpu: &mut Cpu, ins: &Instruction, n: u32, bytes: u8, aligned: bool) -> Exec<Xmm> {
    if ins.op_kind(n) == OpKind::Register {
        Ok(xmm(cpu, number(ins.op_register(n))))
    } else {
        access::load(cpu, ins, bytes, aligned)
    }
}

fn exec_load(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let Some(form) = vec_op(ins.code()) else { return Err(Fault::UD) };
    ready(cpu, form.feature)?;
    let (op, src) = if ins.op1_kind() == OpKind::Register {
        (form.register, xmm(cpu, number(ins.op1_register())))
    } else {
        (form.memory, access::load(cpu, ins, form.bytes, form.aligned)?)
    };
    let dst = number(ins.op0_register());
    if form.float != Float::None && cpu.sse_unmasked {
        return checked(cpu, form, op, dst, &src, ins.immediate8());
    }
    // SAFETY: `ready` has made sure of the guest's feature, which the host has too.
    unsafe { op(&mut cpu.vector.0[dst], &src, ins.immediate8()) };
    Ok(())
}

/// Computes on a copy of the destination, which is written back if nothing was raised.
#[cold]
#[inline(never)]
fn checked(cpu: &mut Cpu, form: &VecForm, op: VecOp, dst: usize, src: &Xmm, imm: u8) -> Exec {
    let old = cpu.vector.0[dst];
    let compute = || {
        let mut result = old;
        // SAFETY: as in `exec_load`.
        unsafe { op(&mut result, src, imm) };
        result
    };
    cpu.vector.0[dst] = mxcsr::run(cpu, compute, |result| tiny(form.float, *result))?;
    Ok(())
}

fn exec_store(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let Some(form) = vec_op(ins.code()) else { return Err(Fault::UD) };
    ready(cpu, form.feature)?;
    let src = xmm(cpu, number(ins.op1_register()));
    if ins.op0_kind() == OpKind::Register {
        // SAFETY: as in `exec_load`.
        unsafe { (form.register)(&mut cpu.vector.0[number(ins.op0_register())], &src, 0) };
        return Ok(());
    }
    let mut value = [0; 4];
    // SAFETY: as in `exec_load`.
    unsafe { (form.memory)(&mut value, &src, 0) };
    access::store(cpu, ins, form.bytes, form.aligned, [value[0], value[1]])
}

fn exec_immediate(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let Some(form) = vec_op(ins.code()) else { return Err(Fault::UD) };
    ready(cpu, form.feature)?;
    // SAFETY: as in `exec_load`; the second operand is not used.
    unsafe { (form.register)(&mut cpu.vector.0[number(ins.op0_register())], &[0; 2], ins.immediate8()) };
    Ok(())
}

/// Whether a lane that was computed is a denormal.
pub(in crate::exec) fn tiny(float: Float, value: Ymm) -> bool {
    let lane = |i: u8, bits: u8| {
        let bit = u32::from(i) * u32::from(bits);
        value[(bit / 64) as usize & 3] >> (bit % 64)
    };
    match float {
        Float::None | Float::Flags => false,
        Float::Single(lanes) => (0..lanes).any(|i| f32::from_bits(lane(i, 32) as u32).is_subnormal()),
        Float::Double(lanes) => (0..lanes).any(|i| f64::from_bits(lane(i, 64)).is_subnormal()),
        Float::Half(lanes) => (0..lanes).any(|i| {
            let half = lane(i, 16);
            half & 0x7c00 == 0 && half & 0x3ff != 0
        }),
    }
}
