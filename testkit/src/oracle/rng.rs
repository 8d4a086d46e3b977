//! Reproducible random numbers, and operand values that are likely to hurt.

use accel_api::x86::FpuState;

/// SplitMix64: small, fast, and every seed is a good one.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream of case `index` under `seed`.
    pub fn new(seed: u64, index: u64) -> Self {
        let mut rng = Self(seed);
        let mixed = rng.next() ^ index.wrapping_mul(0xd134_2543_de82_ef95);
        Self(mixed)
    }

    /// 64 random bits.
    #[allow(clippy::should_implement_trait)] // endless, so no iterator
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// True `percent` times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `items`, which are not none.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// An integer: corner values of every width, small numbers, single bits, random bits.
    pub fn integer(&mut self) -> u64 {
        const CORNERS: [u64; 20] = [
            0,
            1,
            u64::MAX,
            1 << 63,
            i64::MAX as u64,
            1 << 31,
            0x7fff_ffff,
            0xffff_ffff,
            1 << 32,
            0x8000,
            0x7fff,
            0xffff,
            0x80,
            0x7f,
            0xff,
            0xffff_ffff_8000_0000,
            0xffff_ffff_ffff_8000,
            0xffff_ffff_ffff_ff80,
            0x8000_0000_8000_0000,
            0x8080_8080_8080_8080,
        ];
        match self.below(8) {
            0 | 1 => self.pick(&CORNERS),
            2 => self.below(70),
            3 => 1 << self.below(64),
            4 => self.next() >> self.below(64),
            5 => (self.next() as i64 >> self.below(64)) as u64,
            6 => self.pick(&CORNERS).wrapping_add(self.below(5)).wrapping_sub(2),
            _ => self.next(),
        }
    }

    /// Bits of a single-precision number.
    pub fn single(&mut self) -> u32 {
        let sign = (self.below(2) as u32) << 31;
        let bits = match self.below(16) {
            0 => 0,
            1 => 0x3f80_0000,
            2 => 0x7f80_0000,
            3 => 0x7fc0_0000 | self.next() as u32 & 0x3f_ffff,
            4 => 0x7f80_0001 | self.next() as u32 & 0x3f_ffff,
            5 => 1,
            6 => self.next() as u32 & 0x7f_ffff,
            7 => 0x0080_0000 | self.next() as u32 & 3,
            8 => 0x7f7f_ffff - (self.next() as u32 & 3),
            9 => 0x4b00_0000 + (self.next() as u32 & 0x07ff_ffff),
            10 | 11 => (self.below(2000) as f32 / 2.0).to_bits(),
            12 => 0x3f80_0000 | self.next() as u32 & 0x7f_ffff,
            _ => self.next() as u32 & 0x7fff_ffff,
        };
        sign | bits
    }

    /// Bits of a double-precision number.
    pub fn double(&mut self) -> u64 {
        const FRACTION: u64 = (1 << 52) - 1;
        let sign = self.below(2) << 63;
        let bits = match self.below(16) {
            0 => 0,
            1 => 1f64.to_bits(),
            2 => f64::INFINITY.to_bits(),
            3 => 0x7ff8 << 48 | self.next() & FRACTION >> 1,
            4 => 0x7ff0 << 48 | 1 | self.next() & FRACTION >> 1,
            5 => 1,
            6 => self.next() & FRACTION,
            7 => 1 << 52 | self.next() & 3,
            8 => f64::MAX.to_bits() - (self.next() & 3),
            9 => (self.integer() as i64 as f64).to_bits() & !(1 << 63),
            10 | 11 => (self.below(2000) as f64 / 2.0).to_bits(),
            // About the limits of single precision.
            12 => (0x380 - 24 + self.below(32)) << 52 | self.next() & FRACTION,
            13 => (0x47e + self.below(3)) << 52 | self.next() & FRACTION,
            _ => self.next() & i64::MAX as u64,
        };
        sign | bits
    }

    /// An 80-bit number, encodings that no processor makes included.
    pub fn extended(&mut self) -> [u8; 10] {
        const INTEGER: u64 = 1 << 63;
        let (exponent, mantissa) = match self.below(20) {
            0 => (0, 0),
            1 => (0x3fff, INTEGER),
            2 => (0x7fff, INTEGER),
            3 => (0x7fff, INTEGER | 1 << 62 | self.next() >> 2),
            4 => (0x7fff, INTEGER | 1 | self.next() >> 3),
            5 => (0, 1 + self.below(4)),
            6 => (0, self.next() >> 1),
            7 => (0, INTEGER | self.next()),
            8 => (0x7ffe, INTEGER | self.next()),
            9 => (1 + self.below(3) as u16, INTEGER | self.next()),
            // Unnormal, pseudo-infinity, pseudo-NaN.
            10 => (self.next() as u16 & 0x7fff, self.next() >> 1),
            11 | 12 => (0x3fff + self.below(66) as u16, INTEGER | self.next()),
            13 => (0x3fff - self.below(40) as u16, INTEGER | self.next()),
            14 => (0x3fff + self.below(12) as u16, INTEGER | self.below(64) << 57),
            // About the limits of single and double precision.
            15 => (0x3fff - 1023 - 2 + self.below(4) as u16, INTEGER | self.next()),
            16 => (0x3fff + 1022 + self.below(4) as u16, INTEGER | self.next()),
            17 => (0x3fff - 127 - 2 + self.below(4) as u16, INTEGER | self.next()),
            18 => (0x3fff + 126 + self.below(4) as u16, INTEGER | self.next()),
            _ => (self.next() as u16 & 0x7fff, INTEGER | self.next()),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
        bytes[8..].copy_from_slice(&(exponent | (self.below(2) as u16) << 15).to_le_bytes());
        bytes
    }

    /// Sixteen bytes as integers or as numbers of either precision.
    pub fn lanes(&mut self) -> [u64; 2] {
        match self.below(4) {
            0 => [self.integer(), self.integer()],
            1 => [self.double(), self.double()],
            2 => std::array::from_fn(|_| u64::from(self.single()) | u64::from(self.single()) << 32),
            _ => [self.next(), self.next()],
        }
    }

    /// Sixteen bytes of the kind that memory operands of the x87 are, too.
    pub fn memory(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        match self.below(5) {
            0 => bytes[..10].copy_from_slice(&self.extended()),
            1 => {
                // Packed decimal: nines and zeros are the corners; at times no digit at all.
                for byte in &mut bytes[..10] {
                    *byte = (self.below(10) << 4 | self.below(10)) as u8;
                }
            }
            _ => {
                let [low, high] = self.lanes();
                bytes = (u128::from(high) << 64 | u128::from(low)).to_le_bytes();
            }
        }
        bytes
    }

    /// x87, MXCSR and vector registers.
    pub fn fpu(&mut self) -> FpuState {
        let mut fpu = FpuState::reset();
        fpu.xstate_bv = 7;
        for register in &mut fpu.ymm {
            let ([a, b], [c, d]) = (self.lanes(), self.lanes());
            *register = [a, b, c, d];
        }
        // Masked mostly; sticky flags at random; rounding, FTZ and DAZ at random.
        let control = self.next() as u32;
        fpu.mxcsr = if self.percent(40) { 0x1f80 } else { 0x1f80 | control & 0xe07f };
        if self.percent(15) {
            fpu.mxcsr &= !(self.next() as u32 & 0x1f80);
        }
        for value in &mut fpu.st {
            *value = self.extended();
            if self.percent(10) {
                value[8] = 0xff;
                value[9] = 0xff;
            }
        }
        fpu.ftw = match self.below(4) {
            0 => 0,
            1 => self.next() as u8,
            _ => 0xff,
        };
        let word = self.next() as u16;
        fpu.fcw = if self.percent(40) { 0x37f } else { 0x7f | word & 0xf00 };
        if self.percent(10) {
            fpu.fcw &= !(self.next() as u16 & 0x3f);
        }
        fpu.fsw = self.next() as u16 & 0x7f7f;
        if self.percent(85) {
            // No exception pending.
            fpu.fsw &= fpu.fcw | !0x3f;
        }
        let pending = fpu.fsw & !fpu.fcw & 0x3f != 0;
        fpu.fsw = fpu.fsw & !0x8080 | if pending { 0x8080 } else { 0 };
        fpu
    }
}
