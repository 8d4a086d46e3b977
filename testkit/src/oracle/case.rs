//! One test case, and what came of it.

use accel_api::FpuState;

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
/// Longest instruction in bytes.
pub const MAX_BYTES: usize = 15;

/// Registers.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    /// RAX to R15 in encoding order.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// x87, MMX, MXCSR, YMM.
    pub fpu: FpuState,
}

impl State {
    /// Zeros, all exceptions masked.
    pub fn new() -> Self {
        Self { gpr: [0; 16], rip: START, rflags: 0x202, fpu: FpuState::reset() }
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
