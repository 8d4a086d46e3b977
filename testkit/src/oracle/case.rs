//! One test case, and what came of it.

use accel_api::x86::{FpuState, Segment};
use iced_x86::{Decoder, Instruction};

use super::segments::{self, CODE64, DATA};

/// Linear address of the window: two writable pages, then one that can only be read; nothing around them.
pub const WINDOW: u64 = 0x2000_0000;
/// Bytes of the window, the read-only page included.
pub const WINDOW_SIZE: usize = 3 * 4096;
/// Bytes of its writable part.
pub const WRITABLE: usize = 2 * 4096;
/// Linear address of the code page. It can be executed and read.
pub const CODE: u64 = 0x2400_0000;
/// Bytes of the code page.
pub const CODE_SIZE: usize = 4096;
/// Where the instruction lies, `int3` all around it.
pub const START: u64 = CODE + 0x800;
/// Linear address of the stub that leads into code of 16 and 32 bits, which lies in the code page, too.
pub const STUB: u64 = CODE + 0xf00;
/// Bytes of the stub.
pub const STUB_SIZE: usize = 32;
/// Longest instruction in bytes.
pub const MAX_BYTES: usize = 15;

/// Default size of the code segment, which decides how bytes are decoded. 16 and 32 bits are compatibility mode's: the
/// oracle runs under a 64-bit kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CodeSize {
    /// 16 bits.
    Bits16,
    /// 32 bits.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

impl CodeSize {
    /// All of them.
    pub const ALL: [CodeSize; 3] = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64];

    /// As decoders have it: 16, 32, 64.
    pub const fn bitness(self) -> u32 {
        match self {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        }
    }
}

/// Indices into [`State::selectors`].
#[allow(missing_docs)] // the registers' own names
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// Registers.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    /// RAX to R15 in encoding order.
    pub gpr: [u64; 16],
    /// RIP, an offset into the code segment.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Selectors in [`seg`]'s order. What they mean is in [`segments`]. FS is the host's own and always 0.
    pub selectors: [u16; 6],
    /// x87, MMX, MXCSR, YMM.
    pub fpu: FpuState,
}

impl State {
    /// Zeros, all exceptions masked, in 64-bit mode.
    pub fn new() -> Self {
        let fpu = FpuState::reset();
        Self { gpr: [0; 16], rip: START, rflags: 0x202, selectors: [0, CODE64, DATA, 0, 0, 0], fpu }
    }

    /// Likewise with these selectors; RIP at the instruction.
    pub fn with_selectors(selectors: [u16; 6]) -> Self {
        Self { rip: START - segments::base(selectors[seg::CS]), selectors, ..Self::new() }
    }

    /// The size that the code segment gives.
    pub fn size(&self) -> CodeSize {
        match segments::segment(self.selectors[seg::CS]).attributes {
            a if a & Segment::LONG != 0 => CodeSize::Bits64,
            a if a & Segment::DB != 0 => CodeSize::Bits32,
            _ => CodeSize::Bits16,
        }
    }

    /// Linear address of byte 0 of a segment: 0 in 64-bit mode.
    pub fn base(&self, register: usize) -> u64 {
        if self.size() == CodeSize::Bits64 { 0 } else { segments::base(self.selectors[register]) }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// An instruction and its inputs.
#[derive(Clone, PartialEq, Debug)]
pub struct Case {
    /// The instruction's bytes, at most [`MAX_BYTES`].
    pub bytes: Vec<u8>,
    /// Registers before it.
    pub state: State,
    /// The window before it; [`WINDOW_SIZE`] bytes.
    pub memory: Vec<u8>,
}

impl Case {
    /// Code for the host to come from flat 32-bit code into the case's segments: LSS ESP and a far jump, with their
    /// operands behind them. `int3` for cases of 64-bit mode. The software CPU does not need it, but finds it in its
    /// memory as well.
    pub fn stub(&self) -> [u8; STUB_SIZE] {
        const OPERANDS: usize = 16;
        let mut stub = [0xcc; STUB_SIZE];
        if self.state.size() == CodeSize::Bits64 {
            return stub;
        }
        let operands = STUB as u32 + OPERANDS as u32;
        let selector = |register: usize| self.state.selectors[register].to_le_bytes();
        stub[..4].copy_from_slice(&[0x2e, 0x0f, 0xb2, 0x25]);
        stub[4..8].copy_from_slice(&operands.to_le_bytes());
        stub[8..11].copy_from_slice(&[0x2e, 0xff, 0x2d]);
        stub[11..15].copy_from_slice(&(operands + 8).to_le_bytes());
        stub[OPERANDS..][..4].copy_from_slice(&(self.state.gpr[4] as u32).to_le_bytes());
        stub[OPERANDS + 4..][..2].copy_from_slice(&selector(seg::SS));
        stub[OPERANDS + 8..][..4].copy_from_slice(&(self.state.rip as u32).to_le_bytes());
        stub[OPERANDS + 12..][..2].copy_from_slice(&selector(seg::CS));
        stub
    }

    /// The instruction.
    pub fn decode(&self) -> Instruction {
        let (bitness, options) = (self.state.size().bitness(), x86_core::DECODER_OPTIONS);
        Decoder::with_ip(bitness, &self.bytes, self.state.rip, options).decode()
    }
}

/// An exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Raised {
    /// Its vector.
    pub vector: u8,
    /// Its error code; 0 for vectors without one.
    pub error: u32,
    /// Linear address of a page fault; 0 for other vectors.
    pub address: u64,
}

/// How a case ended.
#[derive(Clone, PartialEq, Debug)]
pub enum End {
    /// The instruction finished; RIP is where it went on.
    Done,
    /// It raised an exception. RIP is its own.
    Fault(Raised),
    /// It does not end.
    Hang,
    /// The software CPU panicked.
    Panic(String),
}

/// What a case left behind.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Registers after it.
    pub state: State,
    /// The window after it.
    pub memory: Vec<u8>,
}
