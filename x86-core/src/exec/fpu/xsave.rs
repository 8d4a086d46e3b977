//! XSAVE and its relatives for x87, SSE and AVX state (Intel SDM vol. 1, 13).
//!
//! All three components are managed by XCR0; there are no supervisor components, so IA32_XSS is 0 and XSAVES and
//! XRSTORS differ from XSAVEC and XRSTOR in their privilege only. The modified optimisation (13.9) is not made use of:
//! it is the processor's choice.

use iced_x86::{Code, Instruction};

use super::image::{self, Image, Parts, check_mxcsr, xmm_count};
use crate::exec::Table;
use crate::exec::mxcsr;
use crate::mode::bits;
use crate::{Cpu, Ea, Exec, F80, Fault, FpuRegs};
use accel_api::x86::{Feature, gpr};

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
const COMPACTED: u64 = 1 << 63;
/// Offset and size of the header.
const HEADER: u64 = 512;
const HEADER_SIZE: usize = 64;
/// Offset of the AVX component; the compacted format has it in the same place, being the first extended one.
const YMM: u64 = 576;
const YMM_SIZE: usize = 256;
/// MXCSR's initial value.
const MXCSR_INIT: u32 = 0x1f80;

pub(super) fn register(t: &mut Table) {
    t.set(&[Code::Xsave_mem], |c, i| save(c, i, &XSAVE, false));
    t.set(&[Code::Xsave64_mem], |c, i| save(c, i, &XSAVE, true));
    t.set(&[Code::Xsaveopt_mem], |c, i| save(c, i, &XSAVEOPT, false));
    t.set(&[Code::Xsaveopt64_mem], |c, i| save(c, i, &XSAVEOPT, true));
    t.set(&[Code::Xsavec_mem], |c, i| save(c, i, &XSAVEC, false));
    t.set(&[Code::Xsavec64_mem], |c, i| save(c, i, &XSAVEC, true));
    t.set(&[Code::Xsaves_mem], |c, i| save(c, i, &XSAVES, false));
    t.set(&[Code::Xsaves64_mem], |c, i| save(c, i, &XSAVES, true));
    t.set(&[Code::Xrstor_mem], |c, i| restore(c, i, false, false));
    t.set(&[Code::Xrstor64_mem], |c, i| restore(c, i, false, true));
    t.set(&[Code::Xrstors_mem], |c, i| restore(c, i, true, false));
    t.set(&[Code::Xrstors64_mem], |c, i| restore(c, i, true, true));
}

/// How the saving instructions differ.
struct Flavour {
    feature: Feature,
    /// Components in their initial configuration are not written.
    init: bool,
    compacted: bool,
    privileged: bool,
}

const XSAVE: Flavour = Flavour { feature: Feature::Xsave, init: false, compacted: false, privileged: false };
const XSAVEOPT: Flavour = Flavour { feature: Feature::Xsaveopt, init: true, ..XSAVE };
const XSAVEC: Flavour = Flavour { feature: Feature::Xsavec, init: true, compacted: true, ..XSAVE };
const XSAVES: Flavour = Flavour { feature: Feature::Xsaves, privileged: true, ..XSAVEC };

impl Cpu {
    /// XINUSE: components that are not in their initial configuration (Intel SDM vol. 1, 13.6).
    pub(crate) fn state_in_use(&self) -> u64 {
        let init = FpuRegs { mxcsr: self.fpu.mxcsr, ..FpuRegs::reset() };
        let any = |lanes: std::ops::Range<usize>| self.vector.0.iter().any(|r| r[lanes.clone()] != [0, 0]);
        let x87 = if self.fpu != init { X87 } else { 0 };
        let sse = if any(0..2) { SSE } else { 0 };
        let avx = if any(2..4) { AVX } else { 0 };
        x87 | sse | avx
    }
}

/// Checks common to all, and the area's address.
fn begin(
    cpu: &mut Cpu,
    ins: &Instruction,
    feature: Feature,
    privileged: bool,
    write: bool,
) -> Exec<(Ea, u64)> {
    let features = &cpu.model.features;
    let exists = features.has(Feature::Xsave) && features.has(feature);
    if !exists || cpu.cr4 & bits::CR4_OSXSAVE == 0 {
        return Err(Fault::UD);
    }
    if cpu.cr0 & bits::CR0_TS != 0 {
        return Err(Fault::NM);
    }
    if privileged && cpu.cpl != 0 {
        return Err(Fault::GP0);
    }
    let wanted = u64::from(cpu.reg::<u32>(gpr::RDX)) << 32 | u64::from(cpu.reg::<u32>(gpr::RAX));
    let ea = cpu.ea(ins, HEADER as usize + HEADER_SIZE, write)?;
    if ea.la & 63 != 0 {
        return Err(Fault::GP0);
    }
    Ok((ea, wanted & cpu.xcr0))
}

fn save(cpu: &mut Cpu, ins: &Instruction, how: &Flavour, wide: bool) -> Exec {
    let (ea, wanted) = begin(cpu, ins, how.feature, how.privileged, true)?;
    mxcsr::sync(cpu);
    let mut in_use = cpu.state_in_use();
    // XSAVEC and XSAVES count MXCSR to SSE here; XSAVE and XSAVEOPT write it apart.
    if how.compacted && cpu.fpu.mxcsr != MXCSR_INIT {
        in_use |= SSE;
    }
    let written = if how.init { wanted & in_use } else { wanted };
    // MXCSR goes with SSE or AVX, in compacted format with SSE alone (13.7 and 13.10).
    let mxcsr = if how.compacted { written & SSE != 0 } else { wanted & (SSE | AVX) != 0 };
    let parts = Parts { x87: written & X87 != 0, sse: written & SSE != 0, mxcsr, wide, xmm: xmm_count(cpu) };

    let mut legacy = Image([0; 512]);
    legacy.write(cpu, parts);
    let mut high = [0; YMM_SIZE];
    for (bytes, ymm) in high.as_chunks_mut::<16>().0.iter_mut().zip(&cpu.vector.0) {
        bytes[..8].copy_from_slice(&ymm[2].to_le_bytes());
        bytes[8..].copy_from_slice(&ymm[3].to_le_bytes());
    }
    let high = &high[..16 * parts.xmm];

    // Each piece is a range of the area; all are checked before the first is written.
    let xmm = image::XMM..image::XMM + 16 * parts.xmm;
    let pieces: [(bool, u64, &[u8]); 5] = [
        (parts.x87, 0, &legacy.0[..24]),
        (parts.mxcsr, 24, &legacy.0[24..32]),
        (parts.x87, 32, &legacy.0[32..image::XMM]),
        (parts.sse, xmm.start as u64, &legacy.0[xmm]),
        (written & AVX != 0, YMM, high),
    ];
    cpu.probe_write(ea, HEADER as usize + HEADER_SIZE)?;
    // All of it, also what the mode or the optimisation leaves unwritten, as processors do.
    if wanted & AVX != 0 {
        cpu.probe_write(ea.plus(YMM), YMM_SIZE)?;
    }
    // In standard format the bits of components that are not asked for stay.
    let others = if how.compacted { 0 } else { cpu.load::<u64>(ea.plus(HEADER))? & !wanted };
    for (_, at, bytes) in pieces.into_iter().filter(|piece| piece.0) {
        cpu.store_bytes(ea.plus(at), bytes)?;
    }
    cpu.store(ea.plus(HEADER), others | wanted & in_use)?;
    if how.compacted {
        cpu.store(ea.plus(HEADER + 8), COMPACTED | wanted)?;
    }
    Ok(())
}

fn restore(cpu: &mut Cpu, ins: &Instruction, privileged: bool, wide: bool) -> Exec {
    let feature = if privileged { Feature::Xsaves } else { Feature::Xsave };
    let (ea, wanted) = begin(cpu, ins, feature, privileged, false)?;
    // The legacy region is accessed whatever of it is asked for, as processors do.
    let mut legacy = Image([0; 512]);
    cpu.load_bytes(ea, &mut legacy.0)?;
    let mut header = [0; HEADER_SIZE];
    cpu.load_bytes(ea.plus(HEADER), &mut header)?;
    let words = header.as_chunks::<8>().0;
    let word = |i: usize| u64::from_le_bytes(words[i]);
    let (xstate, layout) = (word(0), word(1));
    let compacted = layout & COMPACTED != 0;
    // 13.8 and 13.12: what the header may say. Bytes 16 to 63 are reserved in compacted format, 8 to 23 in standard.
    let refused = if compacted {
        let here = layout & !COMPACTED;
        !cpu.model.features.has(Feature::Xsavec)
            || here & !cpu.xcr0 != 0
            || xstate & !here != 0
            || header[16..].iter().any(|&byte| byte != 0)
    } else {
        privileged || xstate & !cpu.xcr0 != 0 || header[8..24].iter().any(|&byte| byte != 0)
    };
    if refused {
        return Err(Fault::GP0);
    }
    let load = wanted & xstate;
    let init = wanted & !xstate;
    let xmm = xmm_count(cpu);
    let mut high = [0; YMM_SIZE];
    if load & AVX != 0 {
        cpu.load_bytes(ea.plus(YMM), &mut high)?;
    }
    // MXCSR: in standard format loaded whenever SSE or AVX is asked for, whatever XSTATE_BV; in compacted format it is
    // a part of SSE.
    let mxcsr = if compacted {
        (wanted & SSE != 0).then(|| if load & SSE != 0 { legacy.mxcsr() } else { MXCSR_INIT })
    } else {
        (wanted & (SSE | AVX) != 0).then(|| legacy.mxcsr())
    };
    if let Some(value) = mxcsr {
        check_mxcsr(value)?;
        mxcsr::replace(cpu, value);
    }
    legacy.read(cpu, Parts { x87: load & X87 != 0, sse: load & SSE != 0, mxcsr: false, wide, xmm });
    if init & X87 != 0 {
        cpu.fpu.initialise();
        cpu.fpu.r = [F80::default(); 8];
    }
    for (i, ymm) in cpu.vector.0[..xmm].iter_mut().enumerate() {
        if init & SSE != 0 {
            [ymm[0], ymm[1]] = [0, 0];
        }
        if wanted & AVX != 0 {
            let lanes = high.as_chunks::<8>().0;
            [ymm[2], ymm[3]] = [u64::from_le_bytes(lanes[2 * i]), u64::from_le_bytes(lanes[2 * i + 1])];
        }
    }
    Ok(())
}
