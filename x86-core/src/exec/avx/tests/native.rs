//! The same instruction on the host's processor and on ours, with random operands.
#![allow(unsafe_code)] // executes generated machine code, each instruction of which touches only what is given to it

use accel_api::x86::gpr;
use iced_x86::{Code, CpuidFeature, Mnemonic, OpCodeOperandKind as Kind};

use super::encode::{self, Fields, Rm, encode};
use super::{bench, coverage};
use crate::alu::flag;
use crate::exec::sse::{feature, mxcsr};
use crate::mode::Mode;
use crate::{Cpu, testing};

/// Where the memory operand lies in the guest; RSI and RDI point there.
const OPERAND: u64 = 0x4000;
/// Bytes of it.
const SIZE: usize = 256;
/// General registers that instructions use: RAX, RCX, RDX, RBX.
const GENERAL: usize = 4;

std::arch::global_asm!(
    // (rdi: state, rsi: code that ends in RET)
    "gearshift_test_native_avx:",
    "push rbx; push r12; push r13",
    "mov r12, rdi; mov r13, rsi; stmxcsr [r12 + 572]",
    ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "vmovups ymm\\i, [r12 + 32 * \\i]",
    ".endr",
    "mov rax, [r12 + 512]; mov rcx, [r12 + 520]; mov rdx, [r12 + 528]; mov rbx, [r12 + 536]",
    "mov rsi, [r12 + 544]; mov rdi, [r12 + 552]",
    "push qword ptr [r12 + 560]; popfq; ldmxcsr [r12 + 568]",
    "call r13",
    "pushfq; pop qword ptr [r12 + 560]; stmxcsr [r12 + 568]; cld",
    "mov [r12 + 512], rax; mov [r12 + 520], rcx; mov [r12 + 528], rdx; mov [r12 + 536], rbx",
    ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "vmovups [r12 + 32 * \\i], ymm\\i",
    ".endr",
    "vzeroupper; ldmxcsr [r12 + 572]; pop r13; pop r12; pop rbx; ret",
);

unsafe extern "sysv64" {
    fn gearshift_test_native_avx(state: *mut State, code: *const u8);
}

#[repr(C, align(64))]
#[derive(Clone, PartialEq, Debug)]
struct State {
    ymm: [[u64; 4]; 16],
    general: [u64; GENERAL],
    rsi: u64,
    rdi: u64,
    flags: u64,
    mxcsr: u32,
    host_mxcsr: u32,
    memory: [u8; SIZE],
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        ((self.next() >> 32) * n) >> 32
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// A quadword of lanes of one kind: corner cases of single and double precision (zeros, denormals, infinities, NaNs
    /// of both kinds), numbers that arithmetic keeps finite, or any bits.
    fn lanes(&mut self) -> u64 {
        const SINGLES: [u32; 16] = [
            0,
            1,
            0x007f_ffff,
            0x0080_0000,
            0x3f80_0000,
            0x3f80_0001,
            0x7f7f_ffff,
            0x7f80_0000,
            0x7f80_0001,
            0x7fc0_0000,
            0x7fff_ffff,
            0x4f00_0000,
            0x3f00_0000,
            0x3fc0_0000,
            0x1f80_0000,
            0x5f80_0000,
        ];
        const DOUBLES: [u64; 12] = [
            0,
            1,
            0x000f_ffff_ffff_ffff,
            0x0010_0000_0000_0000,
            0x3ff0_0000_0000_0000,
            0x7fef_ffff_ffff_ffff,
            0x7ff0_0000_0000_0000,
            0x7ff0_0000_0000_0001,
            0x7ff8_0000_0000_1234,
            0x41e0_0000_0000_0000,
            0x2000_0000_0000_0000,
            0x3690_0000_0000_0001,
        ];
        let single = |r: &mut Self| {
            let sign = u64::from(r.byte() & 1) << 31;
            sign | match r.below(3) {
                0 => u64::from(SINGLES[r.below(16) as usize]),
                1 => r.next() & 0x01ff_ffff | 0x3f00_0000,
                _ => r.next() & 0x7fff_ffff,
            }
        };
        match self.below(4) {
            0 => single(self) | single(self) << 32,
            1 => (self.next() & 1 << 63) | DOUBLES[self.below(12) as usize],
            2 => self.next() & 0x803f_ffff_ffff_ffff | 0x3fe0_0000_0000_0000,
            _ => self.next(),
        }
    }

    fn mxcsr(&mut self) -> u32 {
        const MASKED: u32 = 0x1f80;
        const FREE: u32 = 0xe07f;
        MASKED | if self.below(3) == 0 { 0 } else { self.next() as u32 & FREE }
    }
}

/// A page for machine code.
struct Page(*mut u8);

impl Page {
    fn new() -> Self {
        let access = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: a fresh private mapping.
        let page = unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        assert_ne!(page, libc::MAP_FAILED);
        Self(page.cast())
    }

    fn run(&self, code: &[u8], state: &mut State) {
        const RET: u8 = 0xc3;
        // SAFETY: the code and RET are less than a page, and the code touches only registers and `state.memory`.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.0, code.len());
            self.0.add(code.len()).write(RET);
            gearshift_test_native_avx(state, self.0);
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}

const REGISTERS: [usize; GENERAL] = [gpr::RAX, gpr::RCX, gpr::RDX, gpr::RBX];

/// Runs `code` on `cpu` from `state`, and returns what becomes of it.
fn ours(cpu: &mut Cpu, code: &[u8], state: &State) -> State {
    let mut after = state.clone();
    cpu.vector.0 = state.ymm;
    for (register, value) in REGISTERS.into_iter().zip(state.general) {
        cpu.gpr[register] = value;
    }
    (cpu.gpr[gpr::RSI], cpu.gpr[gpr::RDI]) = (OPERAND, OPERAND);
    cpu.set_rflags(state.flags);
    cpu.set_mxcsr(state.mxcsr);
    testing::poke(cpu, OPERAND, &state.memory);
    mxcsr::enter(cpu);
    let result = testing::run(cpu, code);
    mxcsr::leave(cpu);
    assert_eq!(result, Ok(()), "{code:x?}");
    after.ymm = cpu.vector.0;
    after.general = REGISTERS.map(|register| cpu.gpr[register]);
    after.flags = cpu.rflags();
    after.mxcsr = cpu.fpu.mxcsr;
    after.memory.copy_from_slice(&testing::peek(cpu, OPERAND, SIZE));
    after
}

fn fields(random: &mut Random, code: Code) -> Fields {
    let kinds = code.op_code().op_kinds();
    let general = |k: &Kind| matches!(k, Kind::r32_reg | Kind::r64_reg);
    let general_rm = kinds.iter().any(|k| matches!(k, Kind::r32_or_mem | Kind::r64_or_mem));
    let (can, must) = encode::memory(code);
    let number =
        |random: &mut Random, general| (random.below(if general { GENERAL as u64 } else { 16 })) as u8;
    let reg = number(random, kinds.iter().any(general));
    // Gathers want three different registers.
    let gather = kinds.iter().any(encode::vector);
    let vvvv = if gather { (reg + 1 + random.below(15) as u8) & 15 } else { number(random, false) };
    let rm = if gather {
        let start = number(random, false);
        let index = (0..16).map(|n| (start + n) & 15).find(|n| *n != reg && *n != vvvv).unwrap_or(0);
        Rm::Vector { index, scale: 1 << random.below(4) }
    } else if must || can && random.below(2) == 0 {
        Rm::Memory
    } else {
        Rm::Register(number(random, general_rm))
    };
    Fields { reg, vvvv, rm, imm: [random.byte(), random.byte()] }
}

/// Indices that stay within the memory operand, in both halves of a quadword.
fn small_indices(random: &mut Random) -> [u64; 4] {
    std::array::from_fn(|_| {
        let index = random.below(24);
        if random.below(2) == 0 { index } else { index | random.below(24) << 32 }
    })
}

fn state(random: &mut Random, code: Code, fields: &Fields) -> State {
    let mut state = State {
        ymm: std::array::from_fn(|_| std::array::from_fn(|_| random.lanes())),
        general: std::array::from_fn(|_| random.next() >> (random.below(2) * 32)),
        rsi: 0,
        rdi: 0,
        flags: random.next() & flag::ARITH | 2,
        mxcsr: random.mxcsr(),
        host_mxcsr: 0,
        memory: [0; SIZE],
    };
    for chunk in state.memory.as_chunks_mut::<8>().0 {
        *chunk = random.lanes().to_le_bytes();
    }
    if let Rm::Vector { index, .. } = fields.rm {
        let wide =
            code.op_code().op_kinds().iter().any(|k| matches!(k, Kind::mem_vsib64x | Kind::mem_vsib64y));
        let indices = small_indices(random);
        state.ymm[usize::from(index)] = indices.map(|i| if wide { i & 0xffff_ffff } else { i });
    }
    if code.mnemonic() == Mnemonic::Vldmxcsr {
        state.memory[..4].copy_from_slice(&random.mxcsr().to_le_bytes());
    }
    state
}

#[test]
fn the_host_and_we_agree() {
    let host = accel_api::x86::CpuFeatures::of_host();
    if !host.has(accel_api::x86::Feature::Avx) {
        return;
    }
    let mut random = Random(0x6172_7600);
    let mut cpu = bench(Mode::Long);
    let page = Page::new();
    let mut tried = 0;
    for code in coverage::ours() {
        let has = |f: &CpuidFeature| *f == CpuidFeature::AVX || feature(code).is_none_or(|f| host.has(f));
        let runs_here = code.cpuid_features().iter().all(has);
        if !runs_here {
            continue;
        }
        tried += 1;
        for _ in 0..500 {
            let fields = fields(&mut random, code);
            let bytes = encode(code, &fields);
            let mut expected = state(&mut random, code, &fields);
            let before = expected.clone();
            let memory = expected.memory.as_ptr() as u64;
            (expected.rsi, expected.rdi) = (memory, memory);
            page.run(&bytes, &mut expected);
            let mut actual = ours(&mut cpu, &bytes, &before);
            (actual.rsi, actual.rdi, actual.host_mxcsr) = (expected.rsi, expected.rdi, expected.host_mxcsr);
            expected.flags = expected.flags & flag::ARITH | before.flags & !flag::ARITH;
            assert!(
                actual == expected,
                "{code:?} {fields:x?} {bytes:x?}\nbefore   {before:x?}\nexpected {expected:x?}\nactual   {actual:x?}"
            );
        }
    }
    // A host of the x86-64-v3 level has the larger part of them.
    assert!(tried > 640 || !host.has(accel_api::x86::Feature::Avx2), "{tried}");
}
