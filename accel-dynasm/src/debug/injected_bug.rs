//! Bugs that are injected on purpose, for tests of what becomes of one.

use iced_x86::Instruction;
use x86_core::{Cpu, Exec};

/// A bug at the start of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InjectedBug {
    /// UD2.
    Illegal,
    /// INT3.
    Trap,
    /// A load from where nothing is mapped.
    Load,
    /// A jump to where nothing is mapped.
    Jump,
    /// The number of a site that does not exist.
    Site,
    /// Functions that are called panic.
    Panic,
}

impl InjectedBug {
    /// Injects it into `code` at `entry`; `stub` is where instructions are executed by functions, counted from the
    /// code's start.
    pub(crate) fn inject(self, code: &mut [u8], entry: usize, stub: i64) {
        // mov r11d, 0x7ffffff0; jmp stub
        let mut site = [0x41, 0xbb, 0xf0, 0xff, 0xff, 0x7f, 0xe9, 0, 0, 0, 0];
        let distance = (stub - (entry + site.len()) as i64) as i32;
        site[7..].copy_from_slice(&distance.to_le_bytes());
        let bytes: &[u8] = match self {
            Self::Illegal => &[0x0f, 0x0b],
            Self::Trap => &[0xcc],
            // mov rax, [0x10]
            Self::Load => &[0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0],
            // mov eax, 0x20; jmp rax
            Self::Jump => &[0xb8, 0x20, 0, 0, 0, 0xff, 0xe0],
            Self::Site => &site,
            Self::Panic => &[],
        };
        code[entry..entry + bytes.len()].copy_from_slice(bytes);
    }
}

/// Whether `code` has `constant` in it.
pub(crate) fn contains(code: &[u8], constant: u32) -> bool {
    code.windows(4).any(|bytes| bytes == constant.to_le_bytes())
}

/// Takes the place of any instruction's function.
pub(crate) fn panics(_: &mut Cpu, _: &Instruction) -> Exec {
    panic!("on purpose")
}

/// Changes each occurrence of `constant` in `code`: a wrong translation for lockstep to find.
#[cold]
pub(crate) fn sabotage(code: &mut [u8], constant: u32) {
    let bytes = constant.to_le_bytes();
    for at in 0..code.len().saturating_sub(3) {
        if code[at..at + 4] == bytes {
            code[at] ^= 1;
        }
    }
}
