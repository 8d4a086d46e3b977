//! x87 and MMX registers as the executors hold them: in physical order.
//!
//! FXSAVE and [`FpuState`] hold the registers in stack order, which would make each push and pop move eighty bytes.
//! Here register `i` stays where it is and TOP moves, as in the silicon; MMX register `i` is register `i`'s mantissa.

use accel_api::x86::FpuState;

/// Bits of the x87 status word (Intel SDM vol. 1, 8.1.3).
#[allow(missing_docs)] // the manual's names
pub mod fsw {
    pub const IE: u16 = 1;
    pub const DE: u16 = 1 << 1;
    pub const ZE: u16 = 1 << 2;
    pub const OE: u16 = 1 << 3;
    pub const UE: u16 = 1 << 4;
    pub const PE: u16 = 1 << 5;
    pub const SF: u16 = 1 << 6;
    pub const ES: u16 = 1 << 7;
    pub const C0: u16 = 1 << 8;
    pub const C1: u16 = 1 << 9;
    pub const C2: u16 = 1 << 10;
    pub const TOP: u16 = 7 << 11;
    pub const C3: u16 = 1 << 14;
    pub const B: u16 = 1 << 15;
    /// The six exception flags, placed as their masks are in the control word.
    pub const EXCEPTIONS: u16 = 0x3f;
    /// All condition codes.
    pub const CODES: u16 = C0 | C1 | C2 | C3;
}

/// An 80-bit floating-point number in a 16-byte slot, as FXSAVE lays it out.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C, align(16))]
pub struct F80 {
    /// Significand, integer bit included.
    pub mantissa: u64,
    /// Exponent in bits 0 to 14, sign in bit 15, all others 0.
    pub exponent: u64,
}

impl F80 {
    /// The QNaN that a masked invalid operation gives (Intel SDM vol. 1, 4.8.3.7).
    pub const INDEFINITE: Self = Self { mantissa: 0xc000_0000_0000_0000, exponent: 0xffff };

    /// Whether this is a NaN, quiet or signalling.
    pub const fn is_nan(self) -> bool {
        self.exponent & 0x7fff == 0x7fff && self.mantissa << 1 != 0
    }

    /// From ten bytes, little endian.
    pub fn from_bytes(bytes: &[u8; 10]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j] = *bytes;
        Self {
            mantissa: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            exponent: u64::from(u16::from_le_bytes([i, j])),
        }
    }

    /// To ten bytes, little endian.
    pub fn to_bytes(self) -> [u8; 10] {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&self.mantissa.to_le_bytes());
        bytes[8..].copy_from_slice(&(self.exponent as u16).to_le_bytes());
        bytes
    }
}

/// x87 and MMX registers, and MXCSR.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C, align(16))]
pub struct FpuRegs {
    /// R0 to R7.
    pub r: [F80; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word, TOP included; ES and B always follow from the flags and their masks.
    pub fsw: u16,
    /// Bit i is set when R`i` is not empty.
    pub ftw: u8,
    /// Last opcode: the low 3 bits of its first byte, then its second byte.
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last data pointer.
    pub fdp: u64,
    /// MXCSR; its sticky flags are in the host's MXCSR while guest code runs.
    pub mxcsr: u32,
}

impl FpuRegs {
    /// State after FNINIT and with MXCSR at reset (Intel SDM vol. 3, table 10-1).
    pub const fn reset() -> Self {
        let zero = F80 { mantissa: 0, exponent: 0 };
        Self { r: [zero; 8], fcw: 0x37f, fsw: 0, ftw: 0, fop: 0, fip: 0, fdp: 0, mxcsr: 0x1f80 }
    }

    /// From the neutral state, its vector registers left aside.
    pub fn from_state(state: &FpuState) -> Self {
        let FpuState { fcw, fsw, ftw, fop, fip, fdp, st, mxcsr, ymm: _, xstate_bv: _ } = state;
        let (fcw, fsw, ftw, fop, fip, fdp) = (*fcw, *fsw, *ftw, *fop, *fip, *fdp);
        let mut regs = Self { r: Default::default(), fcw, fsw, ftw, fop, fip, fdp, mxcsr: *mxcsr };
        regs.normalise();
        let top = regs.top();
        for (i, value) in st.iter().enumerate() {
            regs.r[(top + i) & 7] = F80::from_bytes(value);
        }
        regs
    }

    /// To the neutral state's registers; its vector registers are left as they are.
    pub fn to_state(&self, state: &mut FpuState) {
        let FpuState { fcw, fsw, ftw, fop, fip, fdp, st, mxcsr, ymm: _, xstate_bv: _ } = state;
        (*fcw, *fsw, *ftw, *fop) = (self.fcw, self.fsw, self.ftw, self.fop);
        (*fip, *fdp, *mxcsr) = (self.fip, self.fdp, self.mxcsr);
        for (i, value) in st.iter_mut().enumerate() {
            *value = self.r[(self.top() + i) & 7].to_bytes();
        }
    }

    /// Index of ST0's register.
    #[inline(always)]
    pub const fn top(&self) -> usize {
        (self.fsw >> 11 & 7) as usize
    }

    /// Replaces what software can load of the control and status words by what the registers hold of it: reserved
    /// control bits are fixed, ES and B follow from the flags.
    pub fn normalise(&mut self) {
        self.fcw = self.fcw & 0x1f3f | 0x40;
        self.fop &= 0x7ff;
        self.update_summary();
    }

    /// Makes ES and B follow from the exception flags and their masks.
    #[inline(always)]
    pub fn update_summary(&mut self) {
        let pending = self.fsw & !self.fcw & fsw::EXCEPTIONS != 0;
        let summary = if pending { fsw::ES | fsw::B } else { 0 };
        self.fsw = self.fsw & !(fsw::ES | fsw::B) | summary;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stack_order_and_physical_order() {
        let mut state = FpuState::reset();
        (state.fsw, state.ftw, state.fop, state.fip, state.fdp) = (0x2800, 0xe0, 0x123, 4, 5);
        for (i, value) in state.st.iter_mut().enumerate() {
            *value = [i as u8; 10];
        }
        let regs = FpuRegs::from_state(&state);
        assert_eq!((regs.top(), regs.r[5].to_bytes(), regs.r[4].to_bytes()), (5, [0; 10], [7; 10]));
        let mut back = FpuState::reset();
        regs.to_state(&mut back);
        assert_eq!(back, state);
    }

    /// Whatever a saved state says: reserved bits as the silicon has them, the summary by the flags.
    #[test]
    fn odd_words_are_put_right() {
        let state = FpuState { fcw: 0xffbe, fsw: 0x0001, fop: 0xffff, ..FpuState::reset() };
        let regs = FpuRegs::from_state(&state);
        assert_eq!((regs.fcw, regs.fsw, regs.fop), (0x1f7e, fsw::IE | fsw::ES | fsw::B, 0x7ff));
    }
}
