//! Every raw operation against an independent computation, and what surrounds it: operands, checks, faults.

mod conversions;
mod coverage;
mod crypto;
mod faults;
mod float;
mod forms;
mod imm;
mod int;
mod moves;
mod mxcsr;
mod strings;

use std::sync::Arc;

use accel_api::x86::{CpuFeatures, Feature};
use iced_x86::{Code, Instruction, OpKind, Register};

use crate::exec::{self, mxcsr as control};
use crate::mode::Mode;
use crate::{Cpu, Exec, testing};

/// Where memory operands lie: `[rsi]`.
const BUFFER: u64 = 0x4000;

/// A vCPU in 64-bit mode with everything tested here that the host has too.
fn bench() -> Box<Cpu> {
    let mut cpu = testing::cpu(Mode::Long);
    let mut model = (*cpu.model).clone();
    let extra = CpuFeatures::of(&[Feature::Aes, Feature::Pclmulqdq, Feature::Sha]);
    for &feature in Feature::ALL {
        if extra.intersection(&CpuFeatures::of_host()).has(feature) {
            model.features = model.features.with(&[feature]);
        }
    }
    cpu.model = Arc::new(model);
    cpu.gpr[6] = BUFFER;
    cpu
}

fn set(cpu: &mut Cpu, register: usize, value: u128) {
    let upper = [0x1111_2222_3333_4444, 0x5555_6666_7777_8888];
    cpu.vector.0[register] = [value as u64, (value >> 64) as u64, upper[0], upper[1]];
}

/// The low half; the upper must be as [`set`] left it.
fn get(cpu: &Cpu, register: usize) -> u128 {
    let [low, high, third, fourth] = cpu.vector.0[register];
    assert_eq!((third, fourth), (0x1111_2222_3333_4444, 0x5555_6666_7777_8888), "upper half changed");
    u128::from(low) | u128::from(high) << 64
}

/// `code` on registers, `op0, op1[, imm]`.
fn on_registers(code: Code, op0: Register, op1: Register, imm: u8) -> Instruction {
    let mut ins = Instruction::new();
    ins.set_code(code);
    ins.set_op0_kind(OpKind::Register);
    ins.set_op0_register(op0);
    if op1 == Register::None {
        ins.set_op1_kind(OpKind::Immediate8);
    } else {
        ins.set_op1_kind(OpKind::Register);
        ins.set_op1_register(op1);
    }
    if ins.op_count() > 2 {
        ins.set_op2_kind(OpKind::Immediate8);
    }
    ins.set_immediate8(imm);
    ins
}

/// `ins` with `[rsi]` for operand `n`.
fn with_memory(mut ins: Instruction, n: u32) -> Instruction {
    ins.set_op_kind(n, OpKind::Memory);
    ins.set_memory_base(Register::RSI);
    ins.set_memory_displ_size(0);
    ins
}

/// Executes under the guest's MXCSR.
fn execute(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    control::enter(cpu);
    let result = exec::lookup(ins.code())(cpu, ins);
    control::leave(cpu);
    result
}

/// The same for machine code.
fn run(cpu: &mut Cpu, code: &[u8]) -> Exec {
    control::enter(cpu);
    let result = testing::run(cpu, code);
    control::leave(cpu);
    result
}

fn poke(cpu: &mut Cpu, address: u64, value: u128) {
    testing::poke(cpu, address, &value.to_le_bytes());
}

fn peek(cpu: &mut Cpu, address: u64) -> u128 {
    testing::peek(cpu, address, 16).iter().rev().fold(0, |all, &byte| all << 8 | u128::from(byte))
}

/// A small generator (xorshift64*), so that failures repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 128 bits, with corner values of every lane width mixed in.
    fn wide(&mut self) -> u128 {
        const CORNERS: [u64; 8] = [
            0,
            u64::MAX,
            0x8080_8080_8080_8080,
            0x7fff_7fff_7fff_7fff,
            0x8000_0000_8000_0000,
            1,
            1 << 63,
            0x00ff_0100_0001_ffff,
        ];
        let mut half = || match self.next() % 4 {
            0 => CORNERS[(self.next() % 8) as usize],
            _ => self.next(),
        };
        u128::from(half()) | u128::from(half()) << 64
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[(self.next() % from.len() as u64) as usize]
    }

    fn single(&mut self) -> f32 {
        const CORNERS: [u32; 20] = [
            0,
            1 << 31,
            0x3f80_0000,
            0xbf80_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_1234,
            0xffc0_4321,
            0x7f80_0001,
            0xffbf_ffff,
            1,
            0x8000_0001,
            0x007f_ffff,
            0x0080_0000,
            0x8080_0000,
            0x7f7f_ffff,
            0x4f00_0000,
            0xcf00_0000,
            0x3f00_0000,
            0xc020_0000,
        ];
        let any = self.next();
        f32::from_bits(match any % 4 {
            0 => self.pick(&CORNERS),
            // Of moderate size, so that sums and conversions are of interest.
            1 | 2 => (any >> 32) as u32 & 0x81ff_ffff | 0x3e00_0000,
            _ => (any >> 32) as u32,
        })
    }

    fn double(&mut self) -> f64 {
        const CORNERS: [u64; 20] = [
            0,
            1 << 63,
            0x3ff0 << 48,
            0xbff0 << 48,
            0x7ff0 << 48,
            0xfff0 << 48,
            0x7ff8_0000_0000_1234,
            0xfff8_0000_0000_4321,
            0x7ff0_0000_0000_0001,
            0xfff7_ffff_ffff_ffff,
            1,
            1 << 63 | 1,
            0x000f_ffff_ffff_ffff,
            0x0010 << 48,
            0x8010 << 48,
            0x7fef_ffff_ffff_ffff,
            0x41e0 << 48,
            0xc3e0 << 48,
            0x3fe0 << 48,
            0xc004 << 48,
        ];
        let any = self.next();
        f64::from_bits(match any % 4 {
            0 => self.pick(&CORNERS),
            1 | 2 => any & 0x803f_ffff_ffff_ffff | 0x3fc0_0000_0000_0000,
            _ => any.rotate_left(7),
        })
    }

    fn singles(&mut self) -> u128 {
        (0..4).fold(0, |all, _| all << 32 | u128::from(self.single().to_bits()))
    }

    fn doubles(&mut self) -> u128 {
        (0..2).fold(0, |all, _| all << 64 | u128::from(self.double().to_bits()))
    }
}

/// A lane of a vector.
trait Lane: Copy {
    const BITS: u32;
    fn of(value: u128) -> Self;
    fn bits(self) -> u128;
}

macro_rules! lane {
    ($($t:ty, $unsigned:ty;)*) => {$(
        impl Lane for $t {
            const BITS: u32 = <$t>::BITS;
            fn of(value: u128) -> Self {
                value as $t
            }
            fn bits(self) -> u128 {
                self as $unsigned as u128
            }
        }
    )*};
}

lane! { u8, u8; i8, u8; u16, u16; i16, u16; u32, u32; i32, u32; u64, u64; i64, u64; }

impl Lane for f32 {
    const BITS: u32 = 32;
    fn of(value: u128) -> Self {
        f32::from_bits(value as u32)
    }
    fn bits(self) -> u128 {
        u128::from(self.to_bits())
    }
}

impl Lane for f64 {
    const BITS: u32 = 64;
    fn of(value: u128) -> Self {
        f64::from_bits(value as u64)
    }
    fn bits(self) -> u128 {
        u128::from(self.to_bits())
    }
}

/// Lane `i` of `value`.
fn lane<T: Lane>(value: u128, i: usize) -> T {
    T::of(value >> (i as u32 * T::BITS))
}

/// A vector from lanes, the lowest first.
fn vector<T: Lane>(lanes: impl IntoIterator<Item = T>) -> u128 {
    lanes.into_iter().enumerate().fold(0, |all, (i, l)| all | l.bits() << (i as u32 * T::BITS))
}

/// Lane by lane.
fn each<T: Lane>(a: u128, b: u128, f: impl Fn(T, T) -> T) -> u128 {
    vector((0..128 / T::BITS as usize).map(|i| f(lane(a, i), lane(b, i))))
}
