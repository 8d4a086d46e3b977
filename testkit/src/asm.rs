//! Snippets of guest code, assembled with iced's `code_asm`.
//!
//! ```
//! use iced_x86::code_asm::{eax, rcx};
//! let code = testkit::asm::assemble(64, 0x1000, |a| {
//!     let mut again = a.create_label();
//!     a.mov(rcx, 10u64)?;
//!     a.set_label(&mut again)?;
//!     a.add(eax, 3)?;
//!     a.loop_(again)?;
//!     a.hlt()
//! });
//! assert_eq!(code.last(), Some(&0xf4));
//! ```

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

/// Machine code of what `write` asks for, to run at `address` with a code segment of `bitness` bits (16, 32 or 64).
///
/// # Panics
/// If the snippet cannot be assembled: it is a constant of a test, so that is the test's error.
pub fn assemble(
    bitness: u32,
    address: u64,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let code = CodeAssembler::new(bitness).and_then(|mut assembler| {
        write(&mut assembler)?;
        assembler.assemble(address)
    });
    code.unwrap_or_else(|error| panic!("snippet at {address:#x}: {error}"))
}

/// One line of disassembly of `bytes` at `address`, in NASM's syntax.
pub fn disassemble(bitness: u32, address: u64, bytes: &[u8]) -> String {
    use iced_x86::{Decoder, Formatter as _, NasmFormatter};
    let instruction = Decoder::with_ip(bitness, bytes, address, x86_core::DECODER_OPTIONS).decode();
    let mut text = String::new();
    NasmFormatter::new().format(&instruction, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::code_asm::{ax, rax};

    #[test]
    fn bitness_chooses_prefixes() {
        assert_eq!(assemble(16, 0, |a| a.inc(ax)), [0x40]);
        assert_eq!(assemble(64, 0, |a| a.inc(rax)), [0x48, 0xff, 0xc0]);
        assert_eq!(disassemble(64, 0x1000, &[0xeb, 0xfe]), "jmp short 0000000000001000h");
    }
}
