//! VMASKMOVPS, VMASKMOVPD, VPMASKMOVD and VPMASKMOVQ: elements whose mask has its top bit set are moved, and memory of
//! the others is not touched, whether it is there or not (Intel SDM vol. 2C, VMASKMOV).

use accel_api::x86::{Feature, Ymm};
use iced_x86::{Code, Instruction, OpKind};

use super::gather::{lane, set_lane};
use super::ready;
use crate::alu::Word;
use crate::exec::Table;
use crate::exec::sse::number;
use crate::{Cpu, Ea, Exec};

/// The address of element `i` if `mask` chooses it.
fn element<W: Word>(cpu: &Cpu, ins: &Instruction, mask: &Ymm, i: usize, write: bool) -> Exec<Option<Ea>> {
    if lane::<W>(mask, i).to_u64() >> (W::BITS - 1) == 0 {
        return Ok(None);
    }
    let offset = cpu.ea_offset(ins).wrapping_add((W::BYTES * i) as u64);
    cpu.segmented(cpu.memory_segment(ins), offset, W::BYTES, write).map(Some)
}

/// `op vector, mask, memory`: zeros where nothing is loaded.
fn load<W: Word, const LANES: usize>(cpu: &mut Cpu, ins: &Instruction, feature: Option<Feature>) -> Exec {
    ready(cpu, feature)?;
    let mask = cpu.vector.0[number(ins.op1_register())];
    let mut value = [0; 4];
    for i in 0..LANES {
        if let Some(ea) = element::<W>(cpu, ins, &mask, i, false)? {
            set_lane(&mut value, i, cpu.load::<W>(ea)?);
        }
    }
    cpu.vector.0[number(ins.op0_register())] = value;
    Ok(())
}

/// `op memory, mask, vector`: all or nothing.
fn store<W: Word, const LANES: usize>(cpu: &mut Cpu, ins: &Instruction, feature: Option<Feature>) -> Exec {
    ready(cpu, feature)?;
    let mask = cpu.vector.0[number(ins.op1_register())];
    let value = cpu.vector.0[number(ins.op2_register())];
    for i in 0..LANES {
        if let Some(ea) = element::<W>(cpu, ins, &mask, i, true)? {
            cpu.probe_write(ea, W::BYTES)?;
        }
    }
    for i in 0..LANES {
        if let Some(ea) = element::<W>(cpu, ins, &mask, i, true)? {
            cpu.store(ea, lane::<W>(&value, i))?;
        }
    }
    Ok(())
}

fn exec<W: Word, const LANES: usize>(cpu: &mut Cpu, ins: &Instruction, feature: Option<Feature>) -> Exec {
    cpu.at_any_alignment(|cpu| {
        if ins.op0_kind() == OpKind::Memory {
            store::<W, LANES>(cpu, ins, feature)
        } else {
            load::<W, LANES>(cpu, ins, feature)
        }
    })
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    const AVX2: Option<Feature> = Some(Feature::Avx2);
    let t = table;
    t.set(&[VEX_Vmaskmovps_xmm_xmm_m128, VEX_Vmaskmovps_m128_xmm_xmm], |c, i| exec::<u32, 4>(c, i, None));
    t.set(&[VEX_Vmaskmovps_ymm_ymm_m256, VEX_Vmaskmovps_m256_ymm_ymm], |c, i| exec::<u32, 8>(c, i, None));
    t.set(&[VEX_Vmaskmovpd_xmm_xmm_m128, VEX_Vmaskmovpd_m128_xmm_xmm], |c, i| exec::<u64, 2>(c, i, None));
    t.set(&[VEX_Vmaskmovpd_ymm_ymm_m256, VEX_Vmaskmovpd_m256_ymm_ymm], |c, i| exec::<u64, 4>(c, i, None));
    t.set(&[VEX_Vpmaskmovd_xmm_xmm_m128, VEX_Vpmaskmovd_m128_xmm_xmm], |c, i| exec::<u32, 4>(c, i, AVX2));
    t.set(&[VEX_Vpmaskmovd_ymm_ymm_m256, VEX_Vpmaskmovd_m256_ymm_ymm], |c, i| exec::<u32, 8>(c, i, AVX2));
    t.set(&[VEX_Vpmaskmovq_xmm_xmm_m128, VEX_Vpmaskmovq_m128_xmm_xmm], |c, i| exec::<u64, 2>(c, i, AVX2));
    t.set(&[VEX_Vpmaskmovq_ymm_ymm_m256, VEX_Vpmaskmovq_m256_ymm_ymm], |c, i| exec::<u64, 4>(c, i, AVX2));
}
