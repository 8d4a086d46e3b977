//! The harness: a page of machine code around one instruction, random images, comparison.

use std::fmt::Write;

use accel_api::x86::gpr;

use crate::alu::flag;
use crate::mode::Mode;
use crate::testing::{self, poke};
use crate::{Cpu, Exec, F80, FpuRegs, fsw};

/// Where the memory operand lies in the guest; RSI points there.
pub(super) const OPERAND: u64 = 0x4000;
/// Bytes of it that are compared.
pub(super) const OPERAND_SIZE: usize = 576;

/// Everything an instruction may read or write.
#[derive(Clone, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Case {
    pub(super) image: [u8; 512],
    pub(super) rax: u64,
    pub(super) rflags: u64,
    host_mxcsr: u32,
    pub(super) memory: Operand,
}

#[derive(Clone, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Operand(pub(super) [u8; OPERAND_SIZE]);

/// A page for machine code.
pub(super) struct Native(*mut u8);

impl Native {
    pub(super) fn new() -> Self {
        // SAFETY: a fresh private mapping.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED);
        Self(page.cast())
    }

    /// Places `instruction`, which may use [rsi] and rax.
    pub(super) fn load(&mut self, instruction: &[u8]) {
        let offset = |field: usize| (field as u32).to_le_bytes();
        let rax = offset(std::mem::offset_of!(Case, rax));
        let rflags = offset(std::mem::offset_of!(Case, rflags));
        let mxcsr = offset(std::mem::offset_of!(Case, host_mxcsr));
        let memory = offset(std::mem::offset_of!(Case, memory));
        let parts: [&[u8]; 20] = [
            &[0x53, 0x48, 0x89, 0xfb], // push rbx; mov rbx, rdi
            &[0x0f, 0xae, 0x9b],
            &mxcsr,                    // stmxcsr [rbx + mxcsr]
            &[0x48, 0x0f, 0xae, 0x0b], // fxrstor64 [rbx]
            &[0x48, 0x8d, 0xb3],
            &memory, // lea rsi, [rbx + memory]
            &[0x48, 0x8b, 0x83],
            &rax, // mov rax, [rbx + rax]
            &[0xff, 0xb3],
            &rflags,
            &[0x9d], // push qword [rbx + rflags]; popfq
            instruction,
            &[0x9c, 0x8f, 0x83],
            &rflags, // pushfq; pop qword [rbx + rflags]
            &[0x48, 0x89, 0x83],
            &rax,                      // mov [rbx + rax], rax
            &[0x48, 0x0f, 0xae, 0x03], // fxsave64 [rbx]
            &[0xdb, 0xe3, 0x0f, 0xae, 0x93],
            &mxcsr,        // fninit; ldmxcsr [rbx + mxcsr]
            &[0x5b, 0xc3], // pop rbx; ret
        ];
        let mut at = self.0;
        for part in parts {
            // SAFETY: all of it is less than the page.
            unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), at, part.len());
                at = at.add(part.len());
            }
        }
    }

    pub(super) fn run(&self, case: &mut Case) {
        // SAFETY: the page holds a function of this type, which keeps to the ABI.
        let function: extern "sysv64" fn(*mut Case) = unsafe { std::mem::transmute(self.0) };
        function(case);
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// An 80-bit value: corner cases of every class (Intel SDM vol. 1, tables 4-3 and 8-3), or anything.
    pub(super) fn value(&mut self) -> F80 {
        const MANTISSAS: [u64; 12] = [
            0,
            1,
            1 << 63,
            1 << 63 | 1,
            u64::MAX,
            u64::MAX >> 1,
            3 << 62,
            3 << 62 | 1,
            1 << 62,
            0x8000_0000_0000_0400,
            0x8000_0080_0000_0000,
            0xffff_ffff_ffff_f800,
        ];
        const EXPONENTS: [u64; 20] = [
            0, 1, 2, 0x7fff, 0x7ffe, 0x3fff, 0x3ffe, 0x4000, 0x403e, 0x403f, 0x401e, 0x400e, 0x407e, 0x3f81,
            0x3f80, 0x43fe, 0x3c01, 0x3bff, 0x3fbe, 0x400c,
        ];
        let mantissa = if self.one_in(2) { MANTISSAS[self.below(12) as usize] } else { self.next() };
        let exponent = match self.below(4) {
            0 => EXPONENTS[self.below(20) as usize],
            1 => self.next() & 0x7fff,
            _ => 0x3fff - 40 + self.below(80),
        };
        // Most numbers are normal.
        let normal = exponent != 0 && !self.one_in(8);
        let mantissa = if normal { mantissa | 1 << 63 } else { mantissa };
        F80 { mantissa, exponent: exponent | (self.next() & 1) << 15 }
    }

    /// A case without pending exceptions. Exceptions are unmasked in one of four, registers empty in one of four.
    pub(super) fn case(&mut self) -> Case {
        let mut case = Case {
            image: [0; 512],
            rax: self.next(),
            rflags: self.next() & flag::ARITH | 0x202,
            host_mxcsr: 0,
            memory: Operand([0; OPERAND_SIZE]),
        };
        let rounding = (self.next() & 0xf00) as u16;
        let masks = if self.one_in(4) { (self.next() & 0x3f) as u16 } else { 0x3f };
        let control = rounding | masks | 0x40;
        // Old flags only where they are masked.
        let status = self.next() as u16 & (fsw::CODES | fsw::TOP | fsw::SF | control & fsw::EXCEPTIONS);
        let tags = if self.one_in(4) { self.next() as u8 } else { 0xff };
        // Pushing needs room.
        let tags = if self.one_in(2) { tags & !(1 << ((status >> 11).wrapping_sub(1) & 7)) } else { tags };
        case.image[0..2].copy_from_slice(&control.to_le_bytes());
        case.image[2..4].copy_from_slice(&status.to_le_bytes());
        case.image[4] = tags;
        let mxcsr = self.next() as u32 & 0xe07f | 0x1f80;
        case.image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        for i in 0..8 {
            let value = self.value();
            case.image[32 + 16 * i..][..10].copy_from_slice(&value.to_bytes());
        }
        for byte in &mut case.image[160..416] {
            *byte = self.next() as u8;
        }
        for byte in &mut case.memory.0 {
            *byte = self.next() as u8;
        }
        let random = self.value();
        match self.below(6) {
            0 => case.memory.0[..10].copy_from_slice(&random.to_bytes()),
            1 => case.memory.0[..8].copy_from_slice(&(random.mantissa as f64).to_le_bytes()),
            2 => case.memory.0[..4].copy_from_slice(&(random.mantissa as f32).to_le_bytes()),
            3 => {
                // Exponents of all ones or zeros in both formats.
                let high =
                    [0x7ff0, 0x7ff8, 0x7f80, 0xffc0, 0, 0x8000, 0x000f, 0xff80][self.below(8) as usize];
                let low = if self.one_in(2) { 0 } else { self.next() };
                let word = low & 0xffff_ffff_ffff >> self.below(40) | high << 48;
                let at = if self.one_in(2) { word } else { word.rotate_left(32) };
                case.memory.0[..8].copy_from_slice(&at.to_le_bytes());
            }
            4 => {
                // Decimal digits for FBLD.
                for byte in &mut case.memory.0[..10] {
                    *byte = (self.below(10) * 16 + self.below(10)) as u8;
                }
            }
            _ => {}
        }
        case
    }
}

/// Puts `case` into `cpu`. The host's MXCSR, which collects the guest's flags, starts without any.
pub(super) fn load(cpu: &mut Cpu, case: &Case) {
    let clear = 0x1f80u32;
    // SAFETY: the ABI's own value.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &clear, options(nostack, readonly)) };
    let word = |at: usize| u16::from_le_bytes([case.image[at], case.image[at + 1]]);
    let mut regs = FpuRegs { fcw: word(0), fsw: word(2), ftw: case.image[4], ..FpuRegs::reset() };
    for i in 0..8 {
        let mut value = [0; 10];
        value.copy_from_slice(&case.image[32 + 16 * i..][..10]);
        let slot = (regs.top() + i) & 7;
        regs.r[slot] = F80::from_bytes(&value);
    }
    cpu.fpu = regs;
    cpu.set_mxcsr(u32::from(word(24)));
    for (i, ymm) in cpu.vector.0.iter_mut().enumerate() {
        for (lane, half) in ymm.iter_mut().take(2).enumerate() {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&case.image[160 + 16 * i + 8 * lane..][..8]);
            *half = u64::from_le_bytes(bytes);
        }
    }
    cpu.gpr[gpr::RAX] = case.rax;
    cpu.gpr[gpr::RSI] = OPERAND;
    cpu.gpr[gpr::RDI] = OPERAND;
    cpu.set_rflags(case.rflags);
    poke(cpu, OPERAND, &case.memory.0);
}

/// The state of `cpu` as a native run would leave it.
pub(super) fn unload(cpu: &mut Cpu, case: &mut Case) {
    let (regs, image) = (&cpu.fpu, &mut case.image);
    image[0..2].copy_from_slice(&regs.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&regs.fsw.to_le_bytes());
    image[4] = regs.ftw;
    image[24..28].copy_from_slice(&regs.mxcsr.to_le_bytes());
    for i in 0..8 {
        image[32 + 16 * i..][..10].copy_from_slice(&regs.st(i).to_bytes());
    }
    for (i, ymm) in cpu.vector.0.iter().enumerate() {
        for lane in 0..2 {
            image[160 + 16 * i + 8 * lane..][..8].copy_from_slice(&ymm[lane].to_le_bytes());
        }
    }
    case.rax = cpu.gpr[gpr::RAX];
    case.rflags = cpu.rflags();
    case.memory.0.copy_from_slice(&testing::peek(cpu, OPERAND, OPERAND_SIZE));
}

/// Where two cases differ, the pointers and FOP (which each vendor keeps as it likes) left out.
pub(super) fn differences(before: &Case, native: &Case, ours: &Case) -> String {
    let mut text = String::new();
    let word = |case: &Case, at: usize| u16::from_le_bytes([case.image[at], case.image[at + 1]]);
    let mut note = |name: &str, b: &[u8], n: &[u8], o: &[u8]| {
        if n != o {
            let hex = |bytes: &[u8]| bytes.iter().rev().map(|b| format!("{b:02x}")).collect::<String>();
            let _ = writeln!(text, "{name}: before {} native {} ours {}", hex(b), hex(n), hex(o));
        }
    };
    note("fcw", &before.image[0..2], &native.image[0..2], &ours.image[0..2]);
    note("fsw", &before.image[2..4], &native.image[2..4], &ours.image[2..4]);
    note("ftw", &before.image[4..5], &native.image[4..5], &ours.image[4..5]);
    note("mxcsr", &before.image[24..28], &native.image[24..28], &ours.image[24..28]);
    for i in 0..24 {
        let (name, len) = if i < 8 { (format!("st{i}"), 10) } else { (format!("xmm{}", i - 8), 16) };
        let range = 32 + 16 * i..32 + 16 * i + len;
        note(&name, &before.image[range.clone()], &native.image[range.clone()], &ours.image[range]);
    }
    note("rax", &before.rax.to_le_bytes(), &native.rax.to_le_bytes(), &ours.rax.to_le_bytes());
    note("rflags", &before.rflags.to_le_bytes(), &native.rflags.to_le_bytes(), &ours.rflags.to_le_bytes());
    for i in 0..OPERAND_SIZE / 16 {
        let range = 16 * i..16 * i + 16;
        let name = format!("memory[{:#x}]", 16 * i);
        note(&name, &before.memory.0[range.clone()], &native.memory.0[range.clone()], &ours.memory.0[range]);
    }
    if !text.is_empty() {
        let _ = writeln!(
            text,
            "(fcw {:04x} fsw {:04x} ftw {:02x}",
            word(before, 0),
            word(before, 2),
            before.image[4]
        );
        for i in 0..8 {
            let _ = write!(
                text,
                " {:04x}:{:016x}",
                word(before, 40 + 16 * i),
                u64::from_le_bytes(before.image[32 + 16 * i..][..8].try_into().unwrap())
            );
        }
        let _ = writeln!(text, ")");
    }
    text
}

/// Runs `instruction` both ways `count` times on random cases that `prepare` adjusts; `settle`
/// hides what may differ in the outcomes. The error is the first difference.
pub(super) fn compare(
    instruction: &[u8],
    count: usize,
    mut prepare: impl FnMut(&mut Random, &mut Case),
    settle: fn(&mut Case),
) -> Result<(), String> {
    let mut native = Native::new();
    native.load(instruction);
    let mut cpu = testing::cpu(Mode::Long);
    poke(&mut cpu, 0x1000, instruction);
    let mut random = Random(instruction.iter().fold(1, |seed, &byte| seed * 257 + u64::from(byte)));
    for n in 0..count {
        let mut before = random.case();
        prepare(&mut random, &mut before);
        load(&mut cpu, &before);
        let result: Exec = testing::run(&mut cpu, instruction);
        let (mut expected, mut ours) = (before.clone(), before.clone());
        native.run(&mut expected);
        expected.host_mxcsr = 0;
        unload(&mut cpu, &mut ours);
        settle(&mut expected);
        settle(&mut ours);
        let text = differences(&before, &expected, &ours);
        if result.is_err() || !text.is_empty() {
            return Err(format!("{instruction:02x?} case {n}: {result:?}\n{text}"));
        }
    }
    Ok(())
}
