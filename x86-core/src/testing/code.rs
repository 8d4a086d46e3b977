//! Random instructions: some of random bytes, most of the forms that compilers use.

use iced_x86::{Decoder, FlowControl, Mnemonic};

use crate::exec;

/// Ways to set flags: all or some, by registers and by memory on the stack.
pub const FLAG_SETTERS: [&[u8]; 16] = [
    &[0x25, 0, 4, 0, 0],             // and eax, 0x400
    &[0x48, 0x29, 0xd8],             // sub rax, rbx
    &[0x00, 0xd8],                   // add al, bl
    &[0x66, 0x31, 0xc0],             // xor ax, ax
    &[0x48, 0xff, 0xc3],             // inc rbx
    &[0xff, 0xcb],                   // dec ebx
    &[0xf7, 0xdb],                   // neg ebx
    &[0xc1, 0xe0, 3],                // shl eax, 3
    &[0x48, 0xd3, 0xf8],             // sar rax, cl
    &[0xc1, 0xc8, 5],                // ror eax, 5
    &[0x48, 0x0f, 0xaf, 0xc3],       // imul rax, rbx
    &[0x6b, 0xc3, 0x7f],             // imul eax, ebx, 127
    &[0x48, 0x0f, 0xba, 0xe0, 3],    // bt rax, 3
    &[0x11, 0xd8],                   // adc eax, ebx
    &[0x48, 0x0f, 0xaf, 0x04, 0x24], // imul rax, [rsp]
    &[0x48, 0x39, 0x04, 0x24],       // cmp [rsp], rax
];

/// Instructions that fault: at the address in RDI, which cannot be used, by RSI, which is not aligned, by RCX, which is 0; and
/// others.
pub const FLAG_FAULTS: [&[u8]; 11] = [
    &[0x48, 0x8b, 0x07], // mov rax, [rdi]
    &[0x89, 0x07],       // mov [rdi], eax
    &[0x29, 0x07],       // sub [rdi], eax
    &[0xf7, 0x1f],       // neg dword [rdi]
    &[0xd1, 0x27],       // shl dword [rdi], 1
    &[0x0f, 0xc1, 0x07], // xadd [rdi], eax
    &[0xf7, 0xf1],       // div ecx
    &[0x0f, 0x0b],       // ud2
    &[0xcc],             // int3
    &[0x0f, 0x28, 0x06], // movaps xmm0, [rsi]
    &[0xff, 0xe7],       // jmp rdi
];

/// A generator of numbers (xorshift64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// 64 random bits.
    #[allow(clippy::should_implement_trait)] // an iterator would have an end
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// Whether a test can compare what the instruction does: it falls through, does the same in every run, and stays in the
/// test's mode.
fn is_comparable(bytes: &[u8]) -> Option<usize> {
    let ins = Decoder::new(64, bytes, crate::DECODER_OPTIONS).decode();
    let outside = matches!(
        ins.mnemonic(),
        Mnemonic::Rdtsc
            | Mnemonic::Rdtscp
            | Mnemonic::Rdpru
            | Mnemonic::Rdrand
            | Mnemonic::Rdseed
            | Mnemonic::Hlt
            | Mnemonic::Wrmsr
    ) || ins.is_privileged()
        || (0..ins.op_count()).any(|n| {
            let r = ins.op_register(n);
            r.is_segment_register() || r.is_cr() || r.is_dr()
        });
    let good = !ins.is_invalid()
        && ins.flow_control() == FlowControl::Next
        && !outside
        && exec::is_defined(ins.code());
    good.then_some(ins.len())
}

/// An instruction of random bytes that falls through.
pub fn random_instruction(random: &mut Random) -> Vec<u8> {
    loop {
        let mut bytes = [0u8; 15];
        bytes[..8].copy_from_slice(&random.next().to_le_bytes());
        bytes[8..].copy_from_slice(&random.next().to_le_bytes()[..7]);
        // Random bytes seldom make the forms compilers use: steer towards them.
        match random.below(6) {
            // VEX, on one of the three maps that there are.
            4 => bytes[0] = 0xc5,
            5 => {
                bytes[1] = bytes[1] & 0xe0 | (1 + bytes[3] % 3);
                bytes[0] = 0xc4;
            }
            0 => {
                bytes[1] = bytes[0];
                bytes[0] = 0x40 | (bytes[2] & 0xf);
            }
            1 => {
                bytes[1] = 0x80 | bytes[1] & 0x7f;
                bytes[0] &= 0x3b;
            }
            2 => bytes[0] = 0x0f,
            _ => {}
        }
        if let Some(len) = is_comparable(&bytes) {
            return bytes[..len].to_vec();
        }
    }
}

/// Registers that [`super::blocks`] gives small numbers, for indices; the others point to data.
pub(super) fn is_small(register: u8) -> bool {
    register & 3 == 1
}

fn small(random: &mut Random) -> u8 {
    random.below(4) as u8 * 4 + 1
}

/// A register, R10 and R11 more often than others.
fn any(random: &mut Random) -> u8 {
    if random.below(4) == 0 { 10 + random.below(2) as u8 } else { random.below(16) as u8 }
}

/// Makes instructions that work on data.
#[derive(Clone, Copy, Debug)]
pub struct Compiler {
    /// From code to data.
    pub distance: i32,
    /// The data's address, if instructions can have it in them.
    pub absolute: Option<i32>,
}

impl Compiler {
    /// One or more instructions that fall through, unless they fault.
    pub fn instruction(&self, random: &mut Random) -> Vec<u8> {
        loop {
            let bytes = match random.below(10) {
                0 | 1 => return random_instruction(random),
                2 => return self.stack(random),
                3 => return self.jump(random),
                4 => self.vector(random),
                _ => self.integer(random),
            };
            if let Some(len) = is_comparable(&bytes)
                && len == bytes.len()
            {
                return bytes;
            }
        }
    }

    fn integer(&self, random: &mut Random) -> Vec<u8> {
        const ALU: [u8; 36] = [
            0x00, 0x01, 0x02, 0x03, 0x08, 0x09, 0x0a, 0x0b, 0x10, 0x11, 0x13, 0x19, 0x1b, 0x21, 0x23, 0x28,
            0x29, 0x2a, 0x2b, 0x31, 0x33, 0x38, 0x39, 0x3a, 0x3b, 0x63, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89,
            0x8a, 0x8b, 0x8d, 0x8d,
        ];
        const TWO: [u8; 16] =
            [0xaf, 0xb6, 0xb7, 0xbe, 0xbf, 0xb0, 0xb1, 0xc0, 0xc1, 0xbc, 0xbd, 0xb8, 0xa4, 0xa5, 0x44, 0x95];
        let reg = any(random);
        match random.below(8) {
            0..=3 => {
                let opcode = random.of(&ALU);
                self.form(random, &[opcode], reg, &[])
            }
            4 => {
                let opcode = random.of(&TWO);
                let immediate = [random.next() as u8];
                let immediate = if opcode == 0xa4 { &immediate[..] } else { &[] };
                self.form(random, &[0x0f, opcode], reg, immediate)
            }
            5 => {
                let immediate = (random.next() as u32).to_le_bytes();
                let (opcode, len) =
                    random.of(&[(0x80u8, 1), (0x81, 4), (0x83, 1), (0xc7, 4), (0xc1, 1), (0xc0, 1)]);
                let digit = if opcode == 0xc7 { 0 } else { reg & 7 };
                self.form(random, &[opcode], digit, &immediate[..len])
            }
            6 => {
                // NOT, NEG, MUL, IMUL, DIV, IDIV; INC, DEC; by CL.
                let (opcode, digit) = random.of(&[
                    (0xf7u8, 2u8),
                    (0xf7, 3),
                    (0xf7, 4),
                    (0xf7, 5),
                    (0xf7, 6),
                    (0xf6, 7),
                    (0xff, 0),
                    (0xfe, 1),
                    (0xd3, 4),
                    (0xd3, 7),
                    (0xd3, 2),
                    (0xd2, 5),
                ]);
                self.form(random, &[opcode], digit, &[])
            }
            _ => {
                let cc = random.below(16) as u8;
                let opcode = random.of(&[0x40, 0x90]);
                self.form(random, &[0x0f, opcode | cc], reg, &[])
            }
        }
    }

    fn vector(&self, random: &mut Random) -> Vec<u8> {
        const FORMS: [(u8, u8); 20] = [
            (0, 0x28),
            (0, 0x29),
            (0, 0x10),
            (0, 0x11),
            (0, 0x58),
            (0, 0x2e),
            (0, 0x13),
            (0, 0x16),
            (0x66, 0xfe),
            (0x66, 0x6f),
            (0x66, 0x7f),
            (0x66, 0xd6),
            (0x66, 0x6e),
            (0x66, 0x7e),
            (0xf3, 0x6f),
            (0xf3, 0x7f),
            (0xf3, 0x7e),
            (0xf2, 0x10),
            (0xf2, 0x2a),
            (0xf3, 0x2c),
        ];
        let (prefix, opcode) = random.of(&FORMS);
        let reg = any(random);
        let mut bytes = if prefix == 0 { Vec::new() } else { vec![prefix] };
        bytes.extend(self.operand(random, &[0x0f, opcode], reg, &[], false));
        bytes
    }

    /// With prefixes as they come.
    fn form(&self, random: &mut Random, opcode: &[u8], reg: u8, immediate: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut immediate = immediate;
        if random.below(8) == 0 {
            bytes.push(0x66);
            if immediate.len() == 4 {
                immediate = &immediate[..2];
            }
        }
        let wide = random.below(2) == 0;
        bytes.extend(self.operand(random, opcode, reg, immediate, wide));
        bytes
    }

    /// REX, opcode, a ModRM byte with all that follows it, and an immediate.
    fn operand(&self, random: &mut Random, opcode: &[u8], reg: u8, immediate: &[u8], wide: bool) -> Vec<u8> {
        let mut segment = None;
        let (mut index, mut scale) = (4, 0);
        let mut disp: (i32, u8) = match random.below(3) {
            0 => (0, 0),
            1 => (i32::from(random.next() as i8), 1),
            _ => (random.below(0x1000) as i32 - 0x800, 4),
        };
        // The low three bits of ModRM.rm and its mode; SIB if the former is 4.
        let mut base = any(random);
        let mut mode = random.of(&[0u8, 1, 1, 2, 3]);
        match random.below(8) {
            0 => {
                (mode, base) = (0, 5);
                disp = (self.distance + random.below(0x3800) as i32, 4);
            }
            1 if self.absolute.is_some() => {
                (mode, base, index) = (0, 4 | 0x80, 4);
                disp = (self.absolute.unwrap_or(0) + random.below(0x3800) as i32, 4);
            }
            2 => {
                segment = Some(random.of(&[0x64u8, 0x65]));
                base = small(random);
                mode = mode.max(1) % 3;
            }
            3 | 4 => {
                let choice = [small(random), 10, 11];
                (index, scale) = (random.of(&choice), random.below(4) as u8);
            }
            _ => {}
        }
        if base & 0x80 == 0 && !(mode == 0 && base == 5) {
            if mode == 0 && base & 7 == 5 {
                mode = 1;
            }
            disp.1 = [0, 1, 4, 0][mode as usize];
            if mode == 1 {
                disp.0 = i32::from(disp.0 as i8);
            }
        }
        let no_base = base & 0x80 != 0;
        let rip = mode == 0 && base == 5 && disp.1 == 4;
        let sib = mode != 3 && !rip && (no_base || base & 7 == 4 || index != 4);
        let mut bytes: Vec<u8> = segment.into_iter().collect();
        let base_high = if no_base || rip { 0 } else { base >> 3 & 1 };
        let index_high = if sib { index >> 3 & 1 } else { 0 };
        let rex = 0x40 | u8::from(wide) << 3 | reg >> 3 << 2 | index_high << 1 | base_high;
        if rex != 0x40 || random.below(8) == 0 {
            bytes.push(rex);
        }
        bytes.extend(opcode);
        let rm = if sib { 4 } else { base & 7 };
        bytes.push(mode << 6 | (reg & 7) << 3 | rm);
        if sib {
            let low = if no_base { 5 } else { base & 7 };
            bytes.push(scale << 6 | (index & 7) << 3 | low);
        }
        if mode != 3 {
            bytes.extend(&disp.0.to_le_bytes()[..disp.1 as usize]);
        }
        bytes.extend(immediate);
        bytes
    }

    /// What moves RSP.
    fn stack(&self, random: &mut Random) -> Vec<u8> {
        let r = any(random);
        let rex = |r: u8| 0x40 | r >> 3;
        match random.below(12) {
            0..=3 => vec![rex(r), 0x50 | r & 7],
            4 | 5 => vec![rex(r), 0x58 | r & 7],
            6 => vec![0x6a, random.next() as u8],
            7 => self.operand(random, &[0xff], 6, &[], false),
            8 => self.operand(random, &[0x8f], 0, &[], false),
            // ADD RSP and SUB RSP; MOV RBP, RSP and LEAVE.
            9 => vec![0x48, 0x83, random.of(&[0xc4, 0xec]), 8 * random.below(8) as u8],
            10 => vec![0x48, 0x89, 0xe5, 0xc9],
            _ => vec![0x9c, 0x9d],
        }
    }

    /// Jumps of all kinds to what comes next.
    fn jump(&self, random: &mut Random) -> Vec<u8> {
        let r = any(random);
        let (high, low) = (r >> 3, r & 7);
        // LEA r, [RIP + n]
        let lea = |n: u8| vec![0x48 | high << 2, 0x8d, low << 3 | 5, n, 0, 0, 0];
        let and = |mut a: Vec<u8>, b: &[u8]| {
            a.extend(b);
            a
        };
        match random.below(6) {
            0 => vec![0xe8, 0, 0, 0, 0],
            1 => vec![0xeb, 0],
            // JMP r, CALL r: three bytes with REX.
            2 => and(lea(3), &[0x40 | high, 0xff, 0xe0 | low]),
            3 => and(lea(3), &[0x40 | high, 0xff, 0xd0 | low]),
            // PUSH r; RET
            4 => and(lea(3), &[0x40 | high, 0x50 | low, 0xc3]),
            // CALL over a RET; it returns to a jump over itself: call 2; jmp 1; ret
            _ => vec![0xe8, 2, 0, 0, 0, 0xeb, 1, 0xc3],
        }
    }
}
