//! x87, SSE and AVX state, through an XSAVE area in standard format (Intel SDM vol. 1, 13.4).
#![allow(unsafe_code)] // KVM_SET_XSAVE takes an area whose size only its caller knows

use accel_api::AccelError;
use accel_api::x86::FpuState;
use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;

use crate::sys::{host, loading};

/// Offsets in the area: the legacy region as FXSAVE64 writes it, the header, the upper halves of YMM registers (whose
/// offset CPUID tells, and which is the same on every processor).
const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
const FOP: usize = 6;
const FIP: usize = 8;
const FDP: usize = 16;
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;
const XSTATE_BV: usize = 512;
const YMM_HIGH: usize = 576;

/// State components (Intel SDM vol. 1, 13.1).
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;

/// The area as bytes.
struct Area([u8; 4096]);

impl Area {
    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|n| self.0[at + n])
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.get(at))
    }

    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    fn from_kvm(xsave: &kvm_xsave) -> Self {
        let mut area = Self([0; 4096]);
        for (bytes, word) in area.0.chunks_exact_mut(4).zip(xsave.region) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        area
    }

    fn to_kvm(&self) -> kvm_xsave {
        let mut xsave = kvm_xsave::default();
        for (word, bytes) in xsave.region.iter_mut().zip(self.0.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        xsave
    }
}

/// What KVM has.
pub(super) fn save(fd: &VcpuFd) -> Result<FpuState, AccelError> {
    Ok(from_area(&Area::from_kvm(&fd.get_xsave().map_err(host("KVM_GET_XSAVE"))?)))
}

/// Replaces it.
pub(super) fn load(fd: &VcpuFd, fpu: &FpuState) -> Result<(), AccelError> {
    // Only where there is something: a provider of KVM may have less than the processor, and refuse the bit.
    let area = to_area(fpu, fpu.ymm.iter().any(|ymm| ymm[2] | ymm[3] != 0));
    // SAFETY: the kernel reads 4096 bytes (KVM_CAP_XSAVE2 is larger only for state that a program must first ask for, which
    // this one does not), and `kvm_xsave` has them.
    unsafe { fd.set_xsave(&area.to_kvm()) }.map_err(loading("vector state"))
}

fn from_area(area: &Area) -> FpuState {
    let quad = |at: usize, n: usize| area.u64(at + 8 * n);
    FpuState {
        fcw: area.u16(FCW),
        fsw: area.u16(FSW),
        ftw: area.u16(FTW) as u8,
        fop: area.u16(FOP),
        fip: area.u64(FIP),
        fdp: area.u64(FDP),
        st: std::array::from_fn(|n| area.get(ST + 16 * n)),
        mxcsr: u32::from_le_bytes(area.get(MXCSR)),
        ymm: std::array::from_fn(|n| {
            let (low, high) = (XMM + 16 * n, YMM_HIGH + 16 * n);
            [quad(low, 0), quad(low, 1), quad(high, 0), quad(high, 1)]
        }),
        xstate_bv: area.u64(XSTATE_BV) & (X87 | SSE | AVX),
    }
}

fn to_area(fpu: &FpuState, avx: bool) -> Area {
    // A component whose bit is clear would be set to its initial state, whatever the area holds.
    let FpuState { fcw, fsw, ftw, fop, fip, fdp, st, mxcsr, ymm, xstate_bv: _ } = fpu;
    let mut area = Area([0; 4096]);
    area.put(FCW, fcw.to_le_bytes());
    area.put(FSW, fsw.to_le_bytes());
    area.put(FTW, u16::from(*ftw).to_le_bytes());
    area.put(FOP, fop.to_le_bytes());
    area.put(FIP, fip.to_le_bytes());
    area.put(FDP, fdp.to_le_bytes());
    area.put(MXCSR, mxcsr.to_le_bytes());
    for (n, st) in st.iter().enumerate() {
        area.put(ST + 16 * n, *st);
    }
    for (n, ymm) in ymm.iter().enumerate() {
        for (lane, value) in ymm.iter().enumerate() {
            let at = if lane < 2 { XMM } else { YMM_HIGH - 16 };
            area.put(at + 16 * n + 8 * lane, value.to_le_bytes());
        }
    }
    area.put(XSTATE_BV, (X87 | SSE | if avx { AVX } else { 0 }).to_le_bytes());
    area
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_survives_the_round_trip() {
        let mut before = FpuState::reset();
        (before.fcw, before.fsw, before.ftw, before.fop) = (0x27f, 0x3800, 0x81, 0x1d9);
        (before.fip, before.fdp, before.mxcsr) = (1 << 40, 2 << 40, 0x7fa5);
        before.st = std::array::from_fn(|n| std::array::from_fn(|i| (16 * n + i) as u8));
        before.ymm = std::array::from_fn(|n| std::array::from_fn(|i| (n as u64) << 32 | (i as u64 + 1)));
        before.xstate_bv = X87 | SSE | AVX;
        let area = Area::from_kvm(&to_area(&before, true).to_kvm());
        assert_eq!(from_area(&area), before);
        assert_eq!(to_area(&before, false).u64(XSTATE_BV), X87 | SSE);
    }
}
