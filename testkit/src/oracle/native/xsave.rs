//! The standard format of XSAVE (Intel SDM vol. 1, 13.4) for x87, SSE and AVX.

use accel_api::x86::FpuState;

/// Legacy area, header and AVX.
pub(super) const XSAVE_SIZE: usize = 512 + 64 + 256;

pub(super) fn to_xsave(fpu: &FpuState, out: &mut [u8; XSAVE_SIZE]) {
    out.fill(0);
    out[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    out[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    out[4] = fpu.ftw;
    out[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    for (i, value) in fpu.st.iter().enumerate() {
        out[32 + 16 * i..][..10].copy_from_slice(value);
    }
    for (i, [a, b, c, d]) in fpu.ymm.iter().enumerate() {
        for (place, lane) in [(160, a), (168, b), (576, c), (584, d)] {
            out[place + 16 * i..][..8].copy_from_slice(&lane.to_le_bytes());
        }
    }
    out[512] = 7;
}

pub(super) fn from_xsave(area: &[u8; XSAVE_SIZE]) -> FpuState {
    let word = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
    let lane = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&area[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let mut fpu = FpuState::reset();
    fpu.mxcsr = lane(24) as u32;
    // A component whose bit is clear is in its initial state, whatever the area holds.
    let present = lane(512);
    fpu.xstate_bv = present & 7;
    if present & 1 != 0 {
        (fpu.fcw, fpu.fsw, fpu.ftw) = (word(0), word(2), area[4]);
        for (i, value) in fpu.st.iter_mut().enumerate() {
            value.copy_from_slice(&area[32 + 16 * i..][..10]);
        }
    }
    for (i, register) in fpu.ymm.iter_mut().enumerate() {
        if present & 2 != 0 {
            (register[0], register[1]) = (lane(160 + 16 * i), lane(168 + 16 * i));
        }
        if present & 4 != 0 {
            (register[2], register[3]) = (lane(576 + 16 * i), lane(584 + 16 * i));
        }
    }
    fpu
}
