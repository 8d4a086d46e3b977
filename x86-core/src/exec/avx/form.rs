//! Instructions whose operands are vector registers and at most one memory operand: what distinguishes one from another,
//! and the functions that execute them all.
#![allow(unsafe_code)] // raw operations work on pointers into the register file

use std::sync::LazyLock;

use accel_api::x86::{Feature, Ymm};
use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind, OpKind};

use super::{Float, access, crypto, fma, imm, moves, packed_float, packed_int, ready};
use crate::exec::Table;
use crate::exec::sse::{feature, mxcsr, number, tiny};
use crate::{Cpu, Exec, Fault};

/// A raw operation, without checks: `dst` gets the result and zeros above it, and is a source where the instruction has
/// it so; `a` is the first source of an instruction with two, `b` the last source, of which no more is read than the
/// operand has; `imm` the immediate byte, if there is one. All may overlap.
///
/// # Safety
/// The pointers must be valid, `b` for the operand's width, and the host must have AVX and the instruction set extension
/// that the instruction belongs to.
pub type AvxOp = unsafe fn(dst: *mut [u64; 4], a: *const [u64; 4], b: *const u8, imm: u8);

/// Where the operands of an [`AvxForm`] come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operands {
    /// `op dst, b[, imm8]`.
    Two,
    /// `op dst, a, b[, imm8]`.
    Three,
    /// `op dst, a, b, mask`: the raw operation wants the mask in its destination.
    Four,
    /// `op b/m, src[, imm8]`. In the memory form the destination is a temporary, whose first bytes are stored.
    Store,
}

/// A VEX instruction on vector registers. See [`avx_op`].
#[derive(Clone, Copy, Debug)]
pub struct AvxForm {
    /// The operation when all operands are registers.
    pub register: AvxOp,
    /// The operation when one is memory.
    pub memory: AvxOp,
    /// Roles of the operands.
    pub operands: Operands,
    /// Bytes of the memory operand: 1 to 32; 0 if it cannot be memory.
    pub bytes: u8,
    /// The memory operand must be aligned to its size, else #GP(0).
    pub aligned: bool,
    /// As in [`VecForm`](crate::exec::VecForm).
    pub float: Float,
    /// What the guest's CPU must have beyond AVX, else #UD.
    pub feature: Option<Feature>,
}

static FORMS: LazyLock<Vec<Option<AvxForm>>> = LazyLock::new(|| {
    let mut forms = Forms::new();
    moves::forms(&mut forms);
    packed_int::forms(&mut forms);
    packed_float::forms(&mut forms);
    fma::forms(&mut forms);
    imm::forms(&mut forms);
    crypto::forms(&mut forms);
    forms.by_code
});

/// The form of `code`, if it is VEX-encoded and its operands are vector registers and memory only. An executor that
/// calls the raw operation itself must see to [`Cpu::avx_ready`], `feature`, `aligned` and `float`.
pub fn avx_op(code: Code) -> Option<&'static AvxForm> {
    FORMS.get(code as usize)?.as_ref()
}

/// The forms while they are being collected.
pub(super) struct Forms {
    by_code: Vec<Option<AvxForm>>,
    /// All VEX instructions with the widths of their operands: `x`, `y`, `m` for memory only.
    vex: Vec<(Code, String)>,
}

impl Forms {
    fn new() -> Self {
        let vex = Code::values().filter(|code| code.op_code().encoding() == EncodingKind::VEX);
        Self {
            by_code: vec![None; Code::values().len()],
            vex: vex.map(|code| (code, widths(code))).collect(),
        }
    }

    /// Adds the instructions called `mnemonic` on operands of `widths` (letters `x` and `y`; spaces do not count).
    pub(super) fn add(
        &mut self,
        mnemonic: Mnemonic,
        widths: &str,
        float: Float,
        register: AvxOp,
        memory: AvxOp,
    ) {
        let wanted: Vec<char> = widths.chars().filter(|c| !c.is_whitespace()).collect();
        let fits = |have: &str| {
            have.len() == wanted.len()
                && have.chars().zip(&wanted).all(|(have, &want)| have == want || have == 'm')
        };
        let of_this =
            |(code, have): &(Code, String)| (code.mnemonic() == mnemonic && fits(have)).then_some(*code);
        let codes: Vec<Code> = self.vex.iter().filter_map(of_this).collect();
        debug_assert!(!codes.is_empty(), "{mnemonic:?} {widths}");
        for code in codes {
            self.add_code(code, float, register, memory);
        }
    }

    pub(super) fn add_code(&mut self, code: Code, float: Float, register: AvxOp, memory: AvxOp) {
        let bytes = code.op_code().memory_size().size() as u8;
        let form = AvxForm {
            register,
            memory,
            operands: operands(code),
            bytes,
            aligned: aligned(code.mnemonic()),
            float,
            feature: feature(code),
        };
        let slot = &mut self.by_code[code as usize];
        debug_assert!(slot.is_none(), "{code:?} twice");
        *slot = Some(form);
    }
}

/// Letters for the vector operands of `code`; a mask register is the last of them.
fn widths(code: Code) -> String {
    use OpCodeOperandKind as Kind;
    let letter = |kind: &Kind| match kind {
        Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_or_mem => Some('x'),
        Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_or_mem => Some('y'),
        Kind::mem => Some('m'),
        Kind::imm8 | Kind::xmm_is4 | Kind::ymm_is4 => None,
        _ => Some('?'),
    };
    code.op_code().op_kinds().iter().filter_map(letter).collect()
}

fn operands(code: Code) -> Operands {
    use OpCodeOperandKind as Kind;
    let kinds = code.op_code().op_kinds();
    if matches!(kinds.first(), Some(Kind::xmm_or_mem | Kind::ymm_or_mem | Kind::mem)) {
        return Operands::Store;
    }
    match kinds.last() {
        Some(Kind::xmm_is4 | Kind::ymm_is4) => Operands::Four,
        Some(Kind::imm8) if kinds.len() == 3 => Operands::Two,
        _ if kinds.len() == 2 => Operands::Two,
        _ => Operands::Three,
    }
}

/// VEX instructions take memory operands at any address but for these (Intel SDM vol. 2A, 2.4, exception class 1).
fn aligned(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa)
}

/// Registers the functions that execute forms.
pub(super) fn register(table: &mut Table) {
    for code in Code::values() {
        if let Some(form) = avx_op(code) {
            match form.operands {
                Operands::Two | Operands::Three | Operands::Four => table.set(&[code], exec_load),
                Operands::Store => table.set(&[code], exec_store),
            }
        }
    }
}

fn exec_load(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let Some(form) = avx_op(ins.code()) else { return Err(Fault::UD) };
    ready(cpu, form.feature)?;
    let last = if form.operands == Operands::Two { 1 } else { 2 };
    let mut loaded = [0; 4];
    let in_register = ins.op_kind(last) == OpKind::Register;
    if !in_register {
        loaded = access::load(cpu, ins, form.bytes, form.aligned)?;
    }
    let op = if in_register { form.register } else { form.memory };
    let (dst, a) = (number(ins.op0_register()), number(ins.op1_register()));
    if form.operands == Operands::Four || form.float != Float::None && cpu.sse_unmasked {
        let b = if in_register { cpu.vector.0[number(ins.op_register(last))] } else { loaded };
        return on_copies(cpu, ins, form, op, &b);
    }
    let file = cpu.vector.0.as_mut_ptr();
    // SAFETY: `ready` has made sure of the guest's features, which the host has too; the pointers are to registers, of which
    // `number` gives one that exists, or to `loaded`, which has 32 bytes.
    unsafe {
        let b = if in_register {
            file.add(number(ins.op_register(last))).cast_const()
        } else {
            &raw const loaded
        };
        op(file.add(dst), file.add(a), b.cast(), ins.immediate8());
    }
    Ok(())
}

/// Computes on a copy of the destination, or of the mask in its place. The destination is written if nothing was raised.
#[inline(never)]
fn on_copies(cpu: &mut Cpu, ins: &Instruction, form: &AvxForm, op: AvxOp, b: &Ymm) -> Exec {
    let dst = number(ins.op0_register());
    let old = if form.operands == Operands::Four { number(ins.op3_register()) } else { dst };
    let (old, a) = (cpu.vector.0[old], cpu.vector.0[number(ins.op1_register())]);
    let compute = || {
        let mut result = old;
        // SAFETY: as in `exec_load`.
        unsafe { op(&mut result, &a, b.as_ptr().cast(), ins.immediate8()) };
        result
    };
    cpu.vector.0[dst] = mxcsr::run(cpu, compute, |&result| tiny(form.float, result))?;
    Ok(())
}

fn exec_store(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let Some(form) = avx_op(ins.code()) else { return Err(Fault::UD) };
    ready(cpu, form.feature)?;
    let register = ins.op0_kind() == OpKind::Register;
    if !register && form.float != Float::None {
        // A store that faults must not have left flags in MXCSR.
        access::probe(cpu, ins, form.bytes)?;
    }
    let op = if register { form.register } else { form.memory };
    let src = cpu.vector.0[number(ins.op1_register())];
    let compute = || {
        let mut result = [0; 4];
        // SAFETY: as in `exec_load`.
        unsafe { op(&mut result, &src, src.as_ptr().cast(), ins.immediate8()) };
        result
    };
    let result = mxcsr::run(cpu, compute, |&result| tiny(form.float, result))?;
    if register {
        cpu.vector.0[number(ins.op0_register())] = result;
        return Ok(());
    }
    access::store(cpu, ins, form.bytes, form.aligned, result)
}
