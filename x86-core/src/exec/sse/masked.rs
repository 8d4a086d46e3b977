//! Instructions with XMM0 as a third, implicit operand, and MASKMOVDQU.
#![allow(unsafe_code)] // inline assembly

use std::arch::asm;
use std::arch::x86_64::{_mm_loadu_si128, _mm_storeu_si128};

use iced_x86::{Code, Instruction, OpKind};

use super::access::Xmm;
use super::form::{feature, number, operand, xmm};
use super::gpr::set_xmm;
use super::{ready, ready_as};
use crate::exec::Table;
use crate::{Cpu, Exec};
use accel_api::x86::gpr;

/// # Safety
/// The host must have the instruction.
type MaskOp = unsafe fn(&mut Xmm, &Xmm, &Xmm);

macro_rules! mask_op {
    ($text:literal) => {{
        unsafe fn raw(dst: &mut Xmm, src: &Xmm, mask: &Xmm) {
            // SAFETY: the caller's promise; the assembly computes in registers.
            unsafe {
                let mut a = _mm_loadu_si128(dst.as_ptr().cast());
                let b = _mm_loadu_si128(src.as_ptr().cast());
                let mask = _mm_loadu_si128(mask.as_ptr().cast());
                asm!(concat!($text, " {a}, {b}, xmm0"), a = inout(xmm_reg) a, b = in(xmm_reg) b, in("xmm0") mask,
                    options(nomem, nostack, preserves_flags));
                _mm_storeu_si128(dst.as_mut_ptr().cast(), a);
            }
        }
        raw as MaskOp
    }};
}

fn exec_mask(cpu: &mut Cpu, ins: &Instruction, op: MaskOp) -> Exec {
    ready(cpu, feature(ins.code()))?;
    let src = operand(cpu, ins, 1, 16, true)?;
    let dst = number(ins.op0_register());
    let (mut value, mask) = (xmm(cpu, dst), xmm(cpu, 0));
    // SAFETY: `ready` has made sure of the guest's feature, which the host has too.
    unsafe { op(&mut value, &src, &mask) };
    set_xmm::<false>(cpu, dst, value);
    Ok(())
}

/// MASKMOVDQU: bytes of the first operand whose mask byte has its top bit set go to \[rDI\]. Pages that get no byte are
/// not touched (Intel SDM vol. 2A: whether they fault is up to the processor).
fn maskmovdqu<const VEX: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready_as::<VEX>(cpu, None)?;
    let bytes = |[low, high]: Xmm| (u128::from(low) | u128::from(high) << 64).to_le_bytes();
    let value = bytes(xmm(cpu, number(ins.op1_register())));
    let mask = bytes(xmm(cpu, number(ins.op2_register())));
    let rdi = cpu.gpr[gpr::RDI];
    let offset = match ins.op0_kind() {
        OpKind::MemorySegDI => rdi & 0xffff,
        OpKind::MemorySegEDI => rdi & 0xffff_ffff,
        _ => rdi,
    };
    let segment = cpu.memory_segment(ins);
    let ea = cpu.segmented(segment, offset, 16, true)?;
    cpu.at_any_alignment(|cpu| {
        for_runs(&mask, |start, end| cpu.probe_write(ea.plus(start as u64), end - start))?;
        for_runs(&mask, |start, end| cpu.store_bytes(ea.plus(start as u64), &value[start..end]))
    })
}

/// Calls `each` for every run of bytes with their top bits set.
fn for_runs(mask: &[u8; 16], mut each: impl FnMut(usize, usize) -> Exec) -> Exec {
    let mut start = 0;
    while start < mask.len() {
        let chosen = |i: &usize| mask[*i] & 0x80 != 0;
        let end = (start..mask.len()).take_while(chosen).last().map_or(start, |last| last + 1);
        if end > start {
            each(start, end)?;
        }
        start = end + 1;
    }
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[Pblendvb_xmm_xmmm128], |cpu, ins| exec_mask(cpu, ins, mask_op!("pblendvb")));
    table.set(&[Blendvps_xmm_xmmm128], |cpu, ins| exec_mask(cpu, ins, mask_op!("blendvps")));
    table.set(&[Blendvpd_xmm_xmmm128], |cpu, ins| exec_mask(cpu, ins, mask_op!("blendvpd")));
    table.set(&[Sha256rnds2_xmm_xmmm128], |cpu, ins| exec_mask(cpu, ins, mask_op!("sha256rnds2")));
    table.set(&[Maskmovdqu_rDI_xmm_xmm], maskmovdqu::<false>);
    table.set(&[VEX_Vmaskmovdqu_rDI_xmm_xmm], maskmovdqu::<true>);
}
