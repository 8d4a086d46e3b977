//! Gathers (Intel SDM vol. 2C, VGATHERDPS and VPGATHERDD): elements whose mask has its top bit set are loaded one by one,
//! from the lowest up, each from an address of its own.
//!
//! An element that faults leaves those below it loaded and their mask cleared, so that the instruction, begun again, goes
//! on where it stopped. Of the mask nothing else has changed then: as on AMD's processors, while Intel's manual has it
//! made of whole elements first, which tells the restarted instruction the same.

use accel_api::x86::{Feature, Ymm};
use iced_x86::{Code, Instruction, Register};

use super::ready;
use crate::alu::Word;
use crate::exec::Table;
use crate::exec::sse::number;
use crate::operand::address_mask;
use crate::{Cpu, Exec};

/// Lane `i` of `W`.
#[inline(always)]
pub(super) fn lane<W: Word>(value: &Ymm, i: usize) -> W {
    let bit = W::BITS as usize * i;
    W::from_u64(value[bit / 64] >> (bit % 64))
}

#[inline(always)]
pub(super) fn set_lane<W: Word>(value: &mut Ymm, i: usize, new: W) {
    let bit = W::BITS as usize * i;
    let mask = u64::MAX >> (64 - W::BITS) << (bit % 64);
    value[bit / 64] = value[bit / 64] & !mask | new.to_u64() << (bit % 64);
}

/// Gathers `LANES` elements of `W` with indices of `I`.
fn gather<W: Word, I: Word, const LANES: usize>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    ready(cpu, Some(Feature::Avx2))?;
    let (dst, mask, index) =
        (number(ins.op0_register()), number(ins.op2_register()), number(ins.memory_index()));
    let offsets = Offsets::new(cpu, ins);
    let segment = cpu.memory_segment(ins);
    let indices = cpu.vector.0[index];
    for i in 0..LANES {
        let chosen = lane::<W>(&cpu.vector.0[mask], i).to_u64() >> (W::BITS - 1) != 0;
        if chosen {
            let ea = cpu.segmented(segment, offsets.of(lane::<I>(&indices, i)), W::BYTES, false)?;
            cpu.at_any_alignment(|cpu| {
                let element = cpu.load::<W>(ea)?;
                set_lane(&mut cpu.vector.0[dst], i, element);
                Ok(())
            })?;
        }
        set_lane(&mut cpu.vector.0[mask], i, W::from_u64(0));
    }
    let used = LANES * W::BYTES / 8;
    cpu.vector.0[dst][used..].fill(0);
    cpu.vector.0[mask][used..].fill(0);
    Ok(())
}

/// Base, scale and displacement of a vector of addresses.
struct Offsets {
    base: u64,
    scale: u64,
    mask: u64,
}

impl Offsets {
    fn new(cpu: &Cpu, ins: &Instruction) -> Self {
        let base = ins.memory_base();
        let mask = match (base, ins.memory_displ_size()) {
            (Register::None, 4) => 0xffff_ffff,
            (Register::None, _) => u64::MAX,
            _ => address_mask(ins),
        };
        let base = if base == Register::None { 0 } else { cpu.read_gpr(base) };
        Self {
            base: base.wrapping_add(ins.memory_displacement64()),
            scale: u64::from(ins.memory_index_scale()),
            mask,
        }
    }

    /// The offset of the element with `index`, which is signed.
    fn of<I: Word>(&self, index: I) -> u64 {
        self.base.wrapping_add((index.to_i64() as u64).wrapping_mul(self.scale)) & self.mask
    }
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[VEX_Vpgatherdd_xmm_vm32x_xmm, VEX_Vgatherdps_xmm_vm32x_xmm], gather::<u32, u32, 4>);
    table.set(&[VEX_Vpgatherdd_ymm_vm32y_ymm, VEX_Vgatherdps_ymm_vm32y_ymm], gather::<u32, u32, 8>);
    table.set(&[VEX_Vpgatherdq_xmm_vm32x_xmm, VEX_Vgatherdpd_xmm_vm32x_xmm], gather::<u64, u32, 2>);
    table.set(&[VEX_Vpgatherdq_ymm_vm32x_ymm, VEX_Vgatherdpd_ymm_vm32x_ymm], gather::<u64, u32, 4>);
    table.set(&[VEX_Vpgatherqd_xmm_vm64x_xmm, VEX_Vgatherqps_xmm_vm64x_xmm], gather::<u32, u64, 2>);
    table.set(&[VEX_Vpgatherqd_xmm_vm64y_xmm, VEX_Vgatherqps_xmm_vm64y_xmm], gather::<u32, u64, 4>);
    table.set(&[VEX_Vpgatherqq_xmm_vm64x_xmm, VEX_Vgatherqpd_xmm_vm64x_xmm], gather::<u64, u64, 2>);
    table.set(&[VEX_Vpgatherqq_ymm_vm64y_ymm, VEX_Vgatherqpd_ymm_vm64y_ymm], gather::<u64, u64, 4>);
}
