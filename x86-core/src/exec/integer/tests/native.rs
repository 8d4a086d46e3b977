//! Random instructions on the host's processor and on ours.
#![allow(unsafe_code)] // executes generated machine code, each instruction of which touches only what is given to it

use std::sync::Arc;

use accel_api::x86::{CpuFeatures, Feature, gpr};

use crate::alu::flag;
use crate::mode::Mode;
use crate::testing;
use crate::{Cpu, MAX_INSTRUCTION};

/// Where the data lies, in the host's process as in the guest.
const DATA: u64 = 0x8_0000;
const DATA_LEN: usize = 0x2000;
const COMPARED_FLAGS: u64 = flag::ARITH;

std::arch::global_asm!(
    // (rdi: registers then flags, rsi: code that ends in RET)
    "gearshift_test_native:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15; push rdi; push rsi",
    "push qword ptr [rdi + 128]; popfq",
    "mov rax, [rdi]; mov rcx, [rdi + 8]; mov rdx, [rdi + 16]; mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 40]; mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]; mov r9, [rdi + 72]; mov r10, [rdi + 80]; mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]; mov r13, [rdi + 104]; mov r14, [rdi + 112]; mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "call qword ptr [rsp]",
    "pushfq; cld; push rdi; mov rdi, [rsp + 24]",
    "mov [rdi], rax; mov [rdi + 8], rcx; mov [rdi + 16], rdx; mov [rdi + 24], rbx",
    "mov [rdi + 40], rbp; mov [rdi + 48], rsi",
    "mov [rdi + 64], r8; mov [rdi + 72], r9; mov [rdi + 80], r10; mov [rdi + 88], r11",
    "mov [rdi + 96], r12; mov [rdi + 104], r13; mov [rdi + 112], r14; mov [rdi + 120], r15",
    "pop qword ptr [rdi + 56]; pop qword ptr [rdi + 128]",
    "pop rsi; pop rdi; pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx; ret",
);

unsafe extern "sysv64" {
    fn gearshift_test_native(state: *mut State, code: *const u8);
}

#[repr(C)]
#[derive(Clone, PartialEq, Debug)]
struct State {
    gpr: [u64; 16],
    flags: u64,
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 32) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Corner values of every width as often as others.
    fn operand(&mut self) -> u64 {
        let value = match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => self.below(70),
            5 => !(1 << self.below(64)),
            6 => [0x80, 0x8000, 0x8000_0000, 1 << 63, 0x7f, 0x7fff, 0x7fff_ffff][self.below(7) as usize],
            _ => self.next(),
        };
        if self.one_in(4) { value ^ self.next() << 32 } else { value }
    }
}

/// The host's side: a page of code, and data where the guest has it.
struct Host {
    code: *mut u8,
}

impl Host {
    /// `None` where the host forbids such mappings.
    fn new() -> Option<Self> {
        let map = |address: u64, len, protection, fixed| {
            // SAFETY: a new anonymous mapping; MAP_FIXED_NOREPLACE touches no other.
            let at = unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
                libc::mmap(address as *mut _, len, protection, flags, -1, 0)
            };
            (at != libc::MAP_FAILED).then_some(at.cast::<u8>())
        };
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        map(DATA, DATA_LEN, rw, libc::MAP_FIXED_NOREPLACE)?;
        Some(Self { code: map(0, 4096, rw | libc::PROT_EXEC, 0)? })
    }

    fn data(&self) -> &'static mut [u8] {
        // SAFETY: mapped in `new`, never unmapped; one test uses it, and not while native code runs.
        unsafe { std::slice::from_raw_parts_mut(DATA as *mut u8, DATA_LEN) }
    }

    fn run(&self, code: &[u8], state: &mut State) {
        assert!(code.len() <= MAX_INSTRUCTION);
        // SAFETY: the page holds the instruction and RET. The instruction is one of those generated below, whose
        // memory operand lies in the data, and which touches neither RSP nor other memory.
        unsafe {
            std::ptr::copy(code.as_ptr(), self.code, code.len());
            self.code.add(code.len()).write(0xc3);
            gearshift_test_native(state, self.code);
        }
    }
}

/// How an instruction is made.
#[derive(Clone, Copy)]
struct Template {
    /// Mandatory prefix, or 0.
    prefix: u8,
    opcode: &'static [u8],
    modrm: ModRm,
    /// Bytes of immediate; 4 means by operand size.
    imm: usize,
    feature: Option<Feature>,
}

#[derive(Clone, Copy, PartialEq)]
enum ModRm {
    None,
    /// Any register in `reg`, register or memory in `rm`.
    Any,
    /// Registers only (memory would be reached through a random bit offset).
    Registers,
    /// Memory only.
    Memory,
    /// An opcode extension in `reg`.
    Digit(u8),
    DigitMemory(u8),
}

const fn plain(opcode: &'static [u8], modrm: ModRm, imm: usize) -> Template {
    Template { prefix: 0, opcode, modrm, imm, feature: None }
}

const fn gated(prefix: u8, opcode: &'static [u8], modrm: ModRm, feature: Feature) -> Template {
    Template { prefix, opcode, modrm, imm: 0, feature: Some(feature) }
}

const BYTES: [u8; 256] = {
    let mut all = [0; 256];
    let mut i = 0;
    while i < 256 {
        all[i] = i as u8;
        i += 1;
    }
    all
};
const TWO: [[u8; 2]; 256] = {
    let mut all = [[0x0f, 0]; 256];
    let mut i = 0;
    while i < 256 {
        all[i][1] = i as u8;
        i += 1;
    }
    all
};

fn templates() -> Vec<Template> {
    use ModRm::*;
    let mut all = Vec::new();
    let one = |byte: usize| -> &'static [u8] { std::slice::from_ref(&BYTES[byte]) };
    let two = |byte: usize| -> &'static [u8] { &TWO[byte] };
    for op in 0..8 {
        for form in 0..4 {
            all.push(plain(one(op * 8 + form), Any, 0));
        }
        all.push(plain(one(op * 8 + 4), None, 1));
        all.push(plain(one(op * 8 + 5), None, 4));
        for (opcode, imm) in [
            (0x80, 1),
            (0x81, 4),
            (0x83, 1),
            (0xc0, 1),
            (0xc1, 1),
            (0xd0, 0),
            (0xd1, 0),
            (0xd2, 0),
            (0xd3, 0),
        ] {
            all.push(plain(one(opcode), Digit(op as u8), imm));
        }
    }
    for opcode in [0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x63] {
        all.push(plain(one(opcode), Any, 0));
    }
    all.push(plain(one(0x8d), Memory, 0));
    for digit in [0, 1] {
        all.push(plain(one(0xf6), Digit(digit), 1));
        all.push(plain(one(0xf7), Digit(digit), 4));
        all.push(plain(one(0xfe), Digit(digit), 0));
        all.push(plain(one(0xff), Digit(digit), 0));
    }
    for digit in 2..8 {
        all.push(plain(one(0xf6), Digit(digit), 0));
        all.push(plain(one(0xf7), Digit(digit), 0));
    }
    for (opcode, imm) in
        [(0x98, 0), (0x99, 0), (0xa8, 1), (0xa9, 4), (0xb0, 1), (0xb5, 1), (0x91, 0), (0x96, 0)]
    {
        all.push(plain(one(opcode), None, imm));
    }
    all.push(plain(one(0xc6), Digit(0), 1));
    all.push(plain(one(0xc7), Digit(0), 4));
    all.push(plain(one(0x69), Any, 4));
    all.push(plain(one(0x6b), Any, 1));
    for opcode in
        (0x40..0x50).chain([0xaf, 0xb0, 0xb1, 0xb6, 0xb7, 0xbc, 0xbd, 0xbe, 0xbf, 0xc0, 0xc1, 0xa5, 0xad])
    {
        all.push(plain(two(opcode), Any, 0));
    }
    for opcode in 0x90..0xa0 {
        all.push(plain(two(opcode), Digit(0), 0));
    }
    for opcode in [0xa4, 0xac] {
        all.push(plain(two(opcode), Any, 1));
    }
    for opcode in [0xa3, 0xab, 0xb3, 0xbb] {
        all.push(plain(two(opcode), Registers, 0));
    }
    for digit in 4..8 {
        all.push(plain(two(0xba), Digit(digit), 1));
    }
    for opcode in [0xc8, 0xcb, 0xcf] {
        all.push(plain(two(opcode), None, 0));
    }
    all.push(plain(two(0xc3), Memory, 0));
    all.push(plain(two(0xc7), DigitMemory(1), 0));
    all.push(gated(0xf3, two(0xb8), Any, Feature::Popcnt));
    all.push(gated(0xf3, two(0xbc), Any, Feature::Bmi1));
    all.push(gated(0xf3, two(0xbd), Any, Feature::Abm));
    all.push(gated(0xf2, &[0x0f, 0x38, 0xf0], Any, Feature::Sse42));
    all.push(gated(0xf2, &[0x0f, 0x38, 0xf1], Any, Feature::Sse42));
    all.push(gated(0, &[0x0f, 0x38, 0xf0], Memory, Feature::Movbe));
    all.push(gated(0, &[0x0f, 0x38, 0xf1], Memory, Feature::Movbe));
    all.push(gated(0x66, &[0x0f, 0x38, 0xf6], Any, Feature::Adx));
    all.push(gated(0xf3, &[0x0f, 0x38, 0xf6], Any, Feature::Adx));
    all
}

/// A register number other than RSP's.
fn register(r: &mut Random) -> u8 {
    loop {
        let n = r.below(16) as u8;
        if n != 4 {
            return n;
        }
    }
}

/// ModRM for `rm` a register or the memory at RDI, and the REX bits R and B it needs.
fn modrm(r: &mut Random, form: ModRm) -> (u8, u8) {
    let (reg, digit) = match form {
        ModRm::Digit(d) | ModRm::DigitMemory(d) => (d, true),
        _ => (register(r), false),
    };
    let memory = match form {
        ModRm::Memory | ModRm::DigitMemory(_) => true,
        ModRm::Registers => false,
        _ => r.one_in(2),
    };
    let rex_r = if digit { 0 } else { reg >> 3 << 2 };
    if memory {
        return (reg << 3 & 0x38 | 7, rex_r);
    }
    let rm = register(r);
    (0xc0 | reg << 3 & 0x38 | rm & 7, rex_r | rm >> 3)
}

fn instruction(r: &mut Random, t: &Template) -> Vec<u8> {
    let mut code = Vec::new();
    let size16 = t.prefix != 0x66 && r.one_in(4);
    if size16 {
        code.push(0x66);
    }
    if t.prefix != 0 {
        code.push(t.prefix);
    }
    let wide = r.one_in(3);
    let (byte, rex) = if t.modrm == ModRm::None { (0, 0) } else { modrm(r, t.modrm) };
    // Without REX, 4 to 7 as byte registers are AH to BH; never RSP, as `register` does not give 4 of either kind.
    if wide || rex != 0 || r.one_in(2) {
        code.push(0x40 | u8::from(wide) << 3 | rex);
    }
    code.extend_from_slice(t.opcode);
    if t.modrm != ModRm::None {
        code.push(byte);
    }
    let imm = if t.imm == 4 && size16 && !wide { 2 } else { t.imm };
    code.extend_from_slice(&r.operand().to_le_bytes()[..imm]);
    code
}

/// BMI instructions: map, pp, opcode, immediate bytes, opcode extension.
const VEX: &[(u8, u8, u8, usize, Option<u8>)] = &[
    (2, 0, 0xf2, 0, None),
    (2, 0, 0xf7, 0, None),
    (2, 0, 0xf3, 0, Some(1)),
    (2, 0, 0xf3, 0, Some(2)),
    (2, 0, 0xf3, 0, Some(3)),
    (2, 0, 0xf5, 0, None),
    (2, 3, 0xf5, 0, None),
    (2, 2, 0xf5, 0, None),
    (2, 1, 0xf7, 0, None),
    (2, 2, 0xf7, 0, None),
    (2, 3, 0xf7, 0, None),
    (2, 3, 0xf6, 0, None),
    (3, 3, 0xf0, 1, None),
];

fn vex_instruction(r: &mut Random) -> Vec<u8> {
    let (map, pp, opcode, imm, digit) = VEX[r.below(VEX.len() as u64) as usize];
    let (byte, rex) = modrm(r, digit.map_or(ModRm::Any, ModRm::Digit));
    let vvvv = if opcode == 0xf0 { 0 } else { register(r) };
    let wide = r.one_in(2);
    let rxb = 0xe0 ^ (rex & 4) << 5 ^ (rex & 1) << 5;
    let mut code = vec![0xc4, rxb | map, u8::from(wide) << 7 | (!vvvv & 15) << 3 | pp, opcode, byte];
    code.extend_from_slice(&r.operand().to_le_bytes()[..imm]);
    code
}

fn string_instruction(r: &mut Random) -> Vec<u8> {
    let opcode = [0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf][r.below(10) as usize];
    let mut code = Vec::new();
    if r.one_in(3) {
        code.push(0x67);
    }
    if r.one_in(4) {
        code.push(0x66);
    }
    match r.below(3) {
        0 => code.push(0xf2),
        1 => code.push(0xf3),
        _ => {}
    }
    if r.one_in(3) {
        code.push(0x48);
    }
    code.push(opcode);
    code
}

struct Bench {
    host: Host,
    cpu: Box<Cpu>,
    random: Random,
}

impl Bench {
    fn new(seed: u64) -> Option<Self> {
        let host = Host::new()?;
        let mut cpu = testing::cpu(Mode::Long);
        let offered = CpuFeatures::of_host();
        Arc::make_mut(&mut cpu.model).features = offered;
        let mut bench = Self { host, cpu, random: Random(seed) };
        bench.shuffle();
        Some(bench)
    }

    fn guest_data(&mut self) -> &mut [u8] {
        let page = self.cpu.map.page(DATA).expect("RAM");
        // SAFETY: the bench's RAM is one mapping, and nobody else uses it.
        unsafe { std::slice::from_raw_parts_mut(page.host, DATA_LEN) }
    }

    /// New data on both sides, with long runs of equal bytes.
    fn shuffle(&mut self) {
        let mut value = 0;
        for byte in self.host.data() {
            if self.random.one_in(3) {
                value = self.random.next() as u8;
            }
            *byte = value;
        }
        let host = self.host.data();
        self.guest_data().copy_from_slice(host);
    }

    fn state(&mut self) -> State {
        let mut gpr = [0; 16];
        gpr.iter_mut().for_each(|g| *g = self.random.operand());
        State { gpr, flags: self.random.next() & flag::ARITH }
    }

    /// Runs `code` on both sides from `state`; a guest fault leaves the host out of it. Whether it ran.
    fn compare(&mut self, code: &[u8], state: &State) -> bool {
        self.cpu.gpr = state.gpr;
        self.cpu.gpr[gpr::RSP] = 0;
        self.cpu.set_rflags(state.flags);
        if testing::run(&mut self.cpu, code).is_err() {
            return false;
        }
        assert_eq!(self.cpu.rip, 0x1000 + code.len() as u64, "{code:02x?} from {state:x?}");
        let mut native = state.clone();
        self.host.run(code, &mut native);
        native.gpr[gpr::RSP] = 0;
        let ours = State { gpr: self.cpu.gpr, flags: self.cpu.flags.to_rflags() & COMPARED_FLAGS };
        native.flags &= COMPARED_FLAGS;
        assert_eq!(ours, native, "{code:02x?} from {state:x?}");
        let host = self.host.data();
        assert!(self.guest_data() == host, "memory after {code:02x?} from {state:x?}");
        true
    }
}

#[test]
fn random_instructions_do_what_the_host_does() {
    let Some(mut bench) = Bench::new(0x9e37_79b9_7f4a_7c15) else { return };
    let templates = templates();
    let host = CpuFeatures::of_host();
    let mut ran = 0;
    for round in 0..400_000usize {
        if round % 4096 == 0 {
            bench.shuffle();
        }
        let template = templates[round % templates.len()];
        if template.feature.is_some_and(|f| !host.has(f)) {
            continue;
        }
        let code = instruction(&mut bench.random, &template);
        let mut state = bench.state();
        let offset = bench.random.below(DATA_LEN as u64 - 16);
        // CMPXCHG16B wants alignment; a pair that matches half the time shows both outcomes.
        let pair = template.opcode == [0x0f, 0xc7];
        let offset = if pair { offset & !15 } else { offset };
        state.gpr[gpr::RDI] = DATA + offset;
        if bench.random.one_in(2) {
            let data = &bench.host.data()[offset as usize..];
            state.gpr[gpr::RAX] = u64::from_le_bytes(data[..8].try_into().unwrap());
            state.gpr[gpr::RDX] = u64::from_le_bytes(data[8..16].try_into().unwrap());
            if pair && code[0] != 0x48 {
                state.gpr[gpr::RDX] = state.gpr[gpr::RAX] >> 32;
            }
        }
        ran += usize::from(bench.compare(&code, &state));
    }
    assert!(ran > 350_000, "{ran}");

    if host.has(Feature::Bmi1) && host.has(Feature::Bmi2) {
        for _ in 0..50_000 {
            let code = vex_instruction(&mut bench.random);
            let mut state = bench.state();
            state.gpr[gpr::RDI] = DATA + bench.random.below(DATA_LEN as u64 - 16);
            assert!(bench.compare(&code, &state), "{code:02x?}");
        }
    }

    for round in 0..50_000 {
        if round % 64 == 0 {
            bench.shuffle();
        }
        let code = string_instruction(&mut bench.random);
        let mut state = bench.state();
        let middle = 0xf00 + bench.random.below(0x200);
        state.gpr[gpr::RSI] = DATA + middle;
        state.gpr[gpr::RDI] = DATA + middle + bench.random.below(80) - 40;
        state.gpr[gpr::RCX] = bench.random.below(70);
        state.flags |= flag::DF * bench.random.below(2);
        if code[0] == 0x67 {
            // Only the low halves count; the upper ones show what is written back.
            for register in [gpr::RCX, gpr::RSI, gpr::RDI] {
                state.gpr[register] |= bench.random.next() << 32;
            }
        }
        assert!(bench.compare(&code, &state), "{code:02x?}");
    }

    // Bit strings: the register names bits before and behind the operand's own word.
    for round in 0..20_000 {
        let size: &[u8] = [&[0x66][..], &[], &[0x48]][bench.random.below(3) as usize];
        let code = [size, &[0x0f, [0xa3, 0xab, 0xb3, 0xbb][round % 4], 0x0f]].concat();
        let mut state = bench.state();
        state.gpr[gpr::RDI] = DATA + 0x1000 + bench.random.below(0x100);
        state.gpr[gpr::RCX] = bench.random.below(0x4000).wrapping_sub(0x2000);
        assert!(bench.compare(&code, &state), "{code:02x?}");
    }
}
