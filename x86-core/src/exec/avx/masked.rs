//! VMASKMOVPS, VMASKMOVPD, VPMASKMOVD and VPMASKMOVQ: elements whose mask has its top bit set are moved, and memory of
//! the others is not touched, whether it is there or not (Intel SDM vol. 2C, VMASKMOV).

use accel_api::Feature;
use iced_x86::{Code, Instruction, OpKind};

use super::access::{from_bytes, to_bytes};
use super::ready;
use crate::exec::Table;
use crate::exec::sse::number;
use crate::{Cpu, Ea, Exec};

/// Elements of `N` bytes in `LEN`: which ones, and what lies at the address of each.
struct Elements<const N: usize, const LEN: usize>([u8; 32]);

impl<const N: usize, const LEN: usize> Elements<N, LEN> {
    /// Calls `each` with the range of bytes of every run of neighbouring elements chosen.
    fn for_runs(&self, mut each: impl FnMut(std::ops::Range<usize>) -> Exec) -> Exec {
        let chosen = |i: usize| self.0[N * i + N - 1] & 0x80 != 0;
        let mut start = 0;
        while start < LEN / N {
            let end = (start..LEN / N).find(|&i| !chosen(i)).unwrap_or(LEN / N);
            if end > start {
                each(N * start..N * end)?;
            }
            start = end + 1;
        }
        Ok(())
    }
}

/// The address of the bytes from `at` of the memory operand.
fn address(cpu: &Cpu, ins: &Instruction, at: &std::ops::Range<usize>, write: bool) -> Exec<Ea> {
    let offset = cpu.ea_offset(ins).wrapping_add(at.start as u64);
    cpu.segmented(cpu.memory_segment(ins), offset, at.len(), write)
}

/// `op vector, mask, memory`: zeros where nothing is loaded.
fn load<const N: usize, const LEN: usize>(
    cpu: &mut Cpu,
    ins: &Instruction,
    feature: Option<Feature>,
) -> Exec {
    ready(cpu, feature)?;
    let mask = Elements::<N, LEN>(to_bytes(cpu.vector.0[number(ins.op1_register())]));
    let mut value = [0; 32];
    mask.for_runs(|range| {
        let ea = address(cpu, ins, &range, false)?;
        cpu.load_bytes(ea, &mut value[range])
    })?;
    cpu.vector.0[number(ins.op0_register())] = from_bytes(&value);
    Ok(())
}

/// `op memory, mask, vector`.
fn store<const N: usize, const LEN: usize>(
    cpu: &mut Cpu,
    ins: &Instruction,
    feature: Option<Feature>,
) -> Exec {
    ready(cpu, feature)?;
    let mask = Elements::<N, LEN>(to_bytes(cpu.vector.0[number(ins.op1_register())]));
    let value = to_bytes(cpu.vector.0[number(ins.op2_register())]);
    mask.for_runs(|range| {
        let ea = address(cpu, ins, &range, true)?;
        cpu.probe_write(ea, range.len())
    })?;
    mask.for_runs(|range| {
        let ea = address(cpu, ins, &range, true)?;
        cpu.store_bytes(ea, &value[range])
    })
}

fn exec<const N: usize, const LEN: usize>(
    cpu: &mut Cpu,
    ins: &Instruction,
    feature: Option<Feature>,
) -> Exec {
    if ins.op0_kind() == OpKind::Memory {
        store::<N, LEN>(cpu, ins, feature)
    } else {
        load::<N, LEN>(cpu, ins, feature)
    }
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    const AVX2: Option<Feature> = Some(Feature::Avx2);
    let t = table;
    t.set(&[VEX_Vmaskmovps_xmm_xmm_m128, VEX_Vmaskmovps_m128_xmm_xmm], |c, i| exec::<4, 16>(c, i, None));
    t.set(&[VEX_Vmaskmovps_ymm_ymm_m256, VEX_Vmaskmovps_m256_ymm_ymm], |c, i| exec::<4, 32>(c, i, None));
    t.set(&[VEX_Vmaskmovpd_xmm_xmm_m128, VEX_Vmaskmovpd_m128_xmm_xmm], |c, i| exec::<8, 16>(c, i, None));
    t.set(&[VEX_Vmaskmovpd_ymm_ymm_m256, VEX_Vmaskmovpd_m256_ymm_ymm], |c, i| exec::<8, 32>(c, i, None));
    t.set(&[VEX_Vpmaskmovd_xmm_xmm_m128, VEX_Vpmaskmovd_m128_xmm_xmm], |c, i| exec::<4, 16>(c, i, AVX2));
    t.set(&[VEX_Vpmaskmovd_ymm_ymm_m256, VEX_Vpmaskmovd_m256_ymm_ymm], |c, i| exec::<4, 32>(c, i, AVX2));
    t.set(&[VEX_Vpmaskmovq_xmm_xmm_m128, VEX_Vpmaskmovq_m128_xmm_xmm], |c, i| exec::<8, 16>(c, i, AVX2));
    t.set(&[VEX_Vpmaskmovq_ymm_ymm_m256, VEX_Vpmaskmovq_m256_ymm_ymm], |c, i| exec::<8, 32>(c, i, AVX2));
}
