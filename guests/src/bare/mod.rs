//! Bare-metal test guests, assembled from Rust.
//!
//! An [`Image`] wraps 64-bit code into an ELF64 file that any PVH loader starts
//! (Xen "x86/HVM direct boot ABI"). The model, in four parts:
//!
//! 1. *Entry.* The loader enters in 32-bit protected mode, paging off, `ebx` pointing at
//!    `hvm_start_info`. The prologue identity-maps the first 4 GiB with 2 MiB pages, enables SSE and long mode and jumps to
//!    64-bit code at CPL 0, interrupts off (Intel SDM vol. 3, 11.8.5 "Initializing IA-32e Mode").
//! 2. *Memory.* Everything is at fixed physical addresses ([`layout`]): code, tables, stack and
//!    a zeroed work area. The ELF's `p_memsz` covers all of it, so a loader refuses a machine too small.
//! 3. *Runtime.* A few callable routines ([`Runtime`]): serial output, decimal and hexadecimal numbers, one command
//!    line argument, power-off. They follow the System V convention: rbx, rbp, r12 to r15 and rsp survive.
//! 4. *Faults.* An IDT reports every unexpected exception in one line (`FAULT vector=...`) and leaves through the
//!    debug-exit port with [`ports::FAULT_EXIT`] plus the vector, so a wrong CPU is seen and not guessed from a triple fault.
//!
//! ```
//! use guests::bare::Image;
//! let elf = Image::new().assemble(|a, rt| {
//!     let text = rt.text("hello\n");
//!     a.lea(iced_x86::code_asm::rdi, iced_x86::code_asm::ptr(text))?;
//!     a.call(rt.puts)?;
//!     Ok(())
//! })?;
//! assert_eq!(&elf[..4], b"\x7fELF");
//! # Ok::<(), guests::bare::BuildError>(())
//! ```

mod elf;
mod prologue;
mod runtime;

use std::fmt;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

pub use runtime::Runtime;

/// Fixed physical addresses of a bare guest; virtual addresses are the same.
pub mod layout {
    /// Start of the image: the global descriptor table, then the 32-bit prologue.
    pub const LOAD: u64 = 0x10_0000;
    /// First 64-bit instruction.
    pub const CODE64: u64 = LOAD + 0x400;
    /// End of the room for code and data.
    pub const CODE_END: u64 = TABLES;
    /// Page tables: one PML4, one PDPT, four page directories.
    pub const TABLES: u64 = 0x20_0000;
    /// Level-4 page table.
    pub const PML4: u64 = TABLES;
    /// Page-directory-pointer table of the first 512 GiB.
    pub const PDPT: u64 = TABLES + 0x1000;
    /// Four page directories of the first 4 GiB, one after the other.
    pub const PD: u64 = TABLES + 0x2000;
    /// Interrupt descriptor table, 256 gates of 16 bytes.
    pub const IDT: u64 = TABLES + 0x6000;
    /// 64-bit task state segment (its RSP0 is [`STACK_TOP`]).
    pub const TSS: u64 = TABLES + 0x7000;
    /// Eight bytes that hold the address of `hvm_start_info`.
    pub const START_INFO: u64 = TABLES + 0x8000;
    /// Initial stack pointer; about 64 KiB below it are free.
    pub const STACK_TOP: u64 = TABLES + 0x2_0000;
    /// Work area of the guest's own code, zeroed by the loader.
    pub const WORK: u64 = 0x40_0000;

    /// 64-bit code segment, CPL 0.
    pub const KERNEL_CS: u16 = 0x08;
    /// Data segment, CPL 0.
    pub const KERNEL_DS: u16 = 0x10;
    /// Selector base for SYSRET: data at +8, 64-bit code at +16 (Intel SDM vol. 2, SYSRET).
    pub const USER_BASE: u16 = 0x18;
    /// Task state segment.
    pub const TSS_SELECTOR: u16 = 0x30;
}

/// I/O ports a bare guest uses.
pub mod ports {
    /// COM1, a 16550: data register; the line status register is at +5.
    pub const COM1: u16 = 0x3f8;
    /// PM1a control register of this machine model (ACPI 6.5, 4.8.3.2.1).
    pub const PM1A_CONTROL: u16 = 0x604;
    /// SLP_TYP value of soft-off (S5) in this machine model.
    pub const S5_SLP_TYP: u16 = 5;
    /// What to write to [`PM1A_CONTROL`] to power off: SLP_TYP and SLP_EN.
    pub const S5_REQUEST: u16 = S5_SLP_TYP << 10 | 1 << 13;
    /// Debug-exit port; the byte written is the exit value.
    pub const DEBUG_EXIT: u16 = 0xf4;
    /// Exit value of an unexpected exception of vector 0 (to 31): it also fits QEMU's seven bits of status.
    pub const FAULT_EXIT: u8 = 0x40;
    /// Post-code port: a write with no effect.
    pub const POST: u16 = 0x80;
}

/// Why a guest could not be assembled.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// The assembler refused an instruction or a label.
    Assembler(IcedError),
    /// Code and data are larger than the room below the page tables.
    TooLarge {
        /// Size of the image.
        bytes: usize,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Assembler(error) => write!(f, "the assembler refused the guest: {error}"),
            Self::TooLarge { bytes } => {
                write!(f, "the guest has {bytes} bytes, more than there is room for")
            }
        }
    }
}

// By hand: the build script compiles this module too, and has no use for a derive crate.
impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Assembler(error) => Some(error),
            Self::TooLarge { .. } => None,
        }
    }
}

impl From<IcedError> for BuildError {
    fn from(error: IcedError) -> Self {
        Self::Assembler(error)
    }
}

/// An ELF file of a guest that does without the prologue and the runtime: `image` is loaded at [`layout::LOAD`] and
/// entered there, in 32-bit protected mode; `memory` bytes from there on are the guest's.
pub fn wrap(image: &[u8], memory: u64) -> Vec<u8> {
    elf::pvh(image, layout::LOAD, memory, layout::LOAD)
}

/// Builder of one bare-metal guest.
#[derive(Debug, Clone)]
pub struct Image {
    user_pages: bool,
    work: u64,
}

impl Image {
    /// A guest with supervisor-only pages and a work area of 4 MiB.
    pub fn new() -> Self {
        Self { user_pages: false, work: 4 << 20 }
    }

    /// Maps the identity mapping with U/S = 1, so that CPL 3 code can run in it.
    pub fn user_pages(mut self, user: bool) -> Self {
        self.user_pages = user;
        self
    }

    /// Size in bytes of the zeroed work area at [`layout::WORK`].
    pub fn work(mut self, bytes: u64) -> Self {
        self.work = bytes;
        self
    }

    /// Assembles the guest: `body` emits the 64-bit code, which starts with the stack set and powers
    /// the machine off when control reaches its end.
    ///
    /// # Errors
    /// What the assembler refuses, and code that does not fit below [`layout::CODE_END`].
    pub fn assemble<F>(&self, body: F) -> Result<Vec<u8>, BuildError>
    where
        F: FnOnce(&mut CodeAssembler, &mut Runtime) -> Result<(), IcedError>,
    {
        let mut image = prologue::assemble(self.user_pages)?;
        let mut a = CodeAssembler::new(64)?;
        let mut runtime = Runtime::new(&mut a);
        runtime.emit_start(&mut a)?;
        body(&mut a, &mut runtime)?;
        runtime.emit_routines(&mut a)?;
        image.resize((layout::CODE64 - layout::LOAD) as usize, 0);
        image.extend(a.assemble(layout::CODE64)?);
        if image.len() as u64 > layout::CODE_END - layout::LOAD {
            return Err(BuildError::TooLarge { bytes: image.len() });
        }
        let memory = layout::WORK + self.work - layout::LOAD;
        Ok(elf::pvh(&image, layout::LOAD, memory, prologue::ENTRY))
    }
}

/// Assembles a guest that has no prologue and no runtime: the 32-bit code of `body` is at [`layout::LOAD`] and is
/// entered by the loader, in the state of the PVH entry (flat segments, paging and interrupts off). `memory` bytes from
/// there on are its own.
///
/// # Errors
/// What the assembler refuses, and code that does not fit into `memory`.
pub fn at_entry<F>(memory: u64, body: F) -> Result<Vec<u8>, BuildError>
where
    F: FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
{
    let mut a = CodeAssembler::new(32)?;
    body(&mut a)?;
    let image = a.assemble(layout::LOAD)?;
    if image.len() as u64 > memory {
        return Err(BuildError::TooLarge { bytes: image.len() });
    }
    Ok(elf::pvh(&image, layout::LOAD, memory, layout::LOAD))
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}
