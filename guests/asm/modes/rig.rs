//! What the guests of this folder are made of: chunks of 16-, 32- and 64-bit code at fixed addresses, descriptor
//! tables, and checks.
//!
//! 1. The loader enters at 1 MiB in 32-bit protected mode. The prologue copies the image to [`LOW`], where real mode
//!    reaches it, loads the tables and jumps to [`MAIN`].
//! 2. An exception ends in a record ([`VECTOR`] and what follows it) of exactly what the processor pushed. If one was
//!    expected, the guest goes on at the resume address, at privilege 0 with flat segments; else it ends with
//!    `FAULT_EXIT` plus the vector. [`Code::expect`] writes all of that.
//! 3. A check that fails ends the guest with its number, from 1 on; the guest's end is 0.

use std::ops::{Deref, DerefMut};

use crate::bare::{self, BuildError, layout::LOAD, ports};
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, Code as Opcode, IcedError, Instruction};

/// What is recorded of an exception, in dwords: the vector, then the frame from its lowest address on. Where the
/// processor pushes no error code there is 0.
pub const VECTOR: u32 = 0x600;
pub const ERROR: u32 = 0x604;
pub const EIP: u32 = 0x608;
pub const CS: u32 = 0x60c;
pub const EFLAGS: u32 = 0x610;
/// ESP, SS and, out of virtual-8086 mode, ES, DS, FS and GS.
pub const OUTER: u32 = 0x614;
/// ESP as it was when the exception had been delivered.
pub const HANDLER_ESP: u32 = 0x630;
/// The vector that DS held when the exception had been delivered.
pub const HANDLER_DS: u32 = 0x634;
pub(super) const SAVED_EAX: u32 = 0x638;
/// Where an expected exception goes on; 0 where none is expected.
pub(super) const RESUME: u32 = 0x63c;
/// Where a change of mode leads.
pub(super) const TARGET: u32 = 0x640;
/// 256 bytes for the guest's own variables.
pub const DATA: u32 = 0x700;

/// Stacks grow down from these.
pub const REAL_STACK: u32 = 0x2000;
pub const STACK: u32 = 0x3000;
pub const RING0_STACK: u32 = 0x4000;
pub const USER_STACK: u32 = 0x5000;

/// Start of the image; 16-bit code lies below 64 KiB.
pub const LOW: u32 = 0x8000;
const REAL_STUBS: u32 = 0x8000;
const REAL_COMMON: u32 = 0x8200;
pub(super) const ENTER_REAL: u32 = 0x8300;
pub(super) const ENTER_PROTECTED: u32 = 0x8400;
/// Pseudo-descriptors of GDT, IDT and IVT, where 16-bit code reaches them.
const POINTERS: u32 = 0x8700;
/// 16-bit code of the guest.
pub const CODE16: u32 = 0x8800;
const STUBS: u32 = 0x1_0000;
const COMMON: u32 = 0x1_0400;
/// The guest's first instruction, 32-bit code.
pub const MAIN: u32 = 0x1_0800;
/// More 32-bit code.
pub const MORE: u32 = 0x1_4000;
/// 64-bit code.
pub const CODE64: u32 = 0x1_8000;
pub const GDT: u32 = 0x1_c000;
pub const IDT: u32 = 0x1_c400;
/// Task state segment (Intel SDM vol. 3, 8.2.1) with its I/O permission bitmap.
pub const TSS: u32 = 0x1_c800;
/// 256 bytes of tables of the guest's own.
pub const TABLES: u32 = 0x1_cc00;
const END: u32 = 0x1_d000;
/// Zeroed memory for page tables, and for pages to be mapped.
pub const PAGES: u32 = 0x2_0000;

/// Flat segments of privilege 0 and 3; 16-bit ones of privilege 0, based at 0; 64-bit code.
pub const FLAT_CS: u16 = 0x08;
pub const FLAT_DS: u16 = 0x10;
pub const USER_CS: u16 = 0x1b;
pub const USER_DS: u16 = 0x23;
pub const CS_16: u16 = 0x28;
pub const DS_16: u16 = 0x30;
pub const CS_64: u16 = 0x38;
pub const TSS_SELECTOR: u16 = 0x40;
/// First descriptor of the guest's own.
pub const FREE: u16 = 0x48;
const DESCRIPTORS: u32 = 64;
const VECTORS: u32 = 0x30;
/// Vector of a gate that every privilege may use.
pub const USER_INT: u8 = 0x20;

/// Vectors that push an error code (Intel SDM vol. 3, table 7-1).
const WITH_ERROR_CODE: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;

pub type Result<T = ()> = std::result::Result<T, IcedError>;

/// A segment descriptor (Intel SDM vol. 3, 3.4.5): `access` is bits 47 to 40, `flags` bits 55 to 52.
pub const fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | (access as u64) << 40
        | (limit >> 16 & 15) << 48
        | (flags as u64) << 52
        | (base >> 24) << 56
}

/// A gate (Intel SDM vol. 3, 6.8.3 and 7.11): `access` is bits 47 to 40, `count` the parameters of a call gate.
pub const fn gate(selector: u16, offset: u32, access: u8, count: u8) -> u64 {
    (offset as u64 & 0xffff)
        | (selector as u64) << 16
        | (count as u64) << 32
        | (access as u64) << 40
        | (offset as u64 >> 16) << 48
}

/// Which RIP an exception saves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// That of the instruction.
    At,
    /// That of the next one.
    After,
}

/// A guest in the making.
pub struct Rig {
    image: Vec<u8>,
    checks: Vec<&'static str>,
    error: Option<BuildError>,
}

/// A place whose address is known to code before it.
pub struct Mark {
    /// Its place in [`Code::marks`].
    pub(super) index: usize,
    pub address: u32,
}

/// Code of one width, being assembled.
pub struct Code<'a> {
    asm: CodeAssembler,
    pub(super) marks: Vec<CodeLabel>,
    pub(super) known: &'a [u32],
    pub(super) checks: &'a mut Vec<&'static str>,
}

impl Rig {
    pub fn new() -> Self {
        let mut rig = Self { image: vec![0; (END - LOW) as usize], checks: Vec::new(), error: None };
        rig.tables();
        rig.stubs();
        rig
    }

    /// Puts bytes at an address of the image.
    pub fn put(&mut self, at: u32, bytes: &[u8]) {
        let start = (at - LOW) as usize;
        self.image[start..start + bytes.len()].copy_from_slice(bytes);
    }

    pub fn descriptor(&mut self, selector: u16, value: u64) {
        self.put(GDT + u32::from(selector & !7), &value.to_le_bytes());
    }

    pub fn gate(&mut self, vector: u8, value: u64) {
        self.put(IDT + u32::from(vector) * 8, &value.to_le_bytes());
    }

    /// Assembles `body` at `at`. It runs several times, until the addresses of its marks are known.
    pub fn code(&mut self, bits: u32, at: u32, body: impl Fn(&mut Code<'_>) -> Result) {
        match self.assemble(bits, at, body) {
            Ok(bytes) => {
                let start = (at - LOW) as usize;
                let free = self.image[start..].iter().take(bytes.len()).all(|&b| b == 0);
                assert!(free && bytes.len() <= 0x4000, "chunks at {at:#x} overlap");
                self.put(at, &bytes);
            }
            Err(error) => self.error = self.error.take().or(Some(error.into())),
        }
    }

    fn assemble(&mut self, bits: u32, at: u32, body: impl Fn(&mut Code<'_>) -> Result) -> Result<Vec<u8>> {
        let before = self.checks.len();
        let mut known = Vec::new();
        loop {
            self.checks.truncate(before);
            let asm = CodeAssembler::new(bits)?;
            let mut code = Code { asm, marks: Vec::new(), known: &known, checks: &mut self.checks };
            body(&mut code)?;
            let Code { mut asm, marks, .. } = code;
            let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
            let result = asm.assemble_options(at.into(), options)?;
            let now =
                marks.iter().map(|mark| Ok(result.label_ip(mark)? as u32)).collect::<Result<Vec<_>>>()?;
            if now == known {
                return Ok(result.inner.code_buffer);
            }
            known = now;
        }
    }

    /// The ELF file and what its checks are.
    pub fn finish(self) -> std::result::Result<(Vec<u8>, Vec<&'static str>), BuildError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        assert!(self.checks.len() < usize::from(ports::FAULT_EXIT), "too many checks in one guest");
        const COPY: u32 = 0x1000;
        let mut asm = CodeAssembler::new(32)?;
        asm.cli()?;
        asm.cld()?;
        // No device is to interrupt where interrupts are enabled.
        asm.mov(al, 0xff)?;
        asm.out(0x21, al)?;
        asm.out(0xa1, al)?;
        asm.mov(esi, LOAD as u32 + COPY)?;
        asm.mov(edi, LOW)?;
        asm.mov(ecx, (END - LOW) / 4)?;
        asm.rep().movsd()?;
        asm.lgdt(ptr(POINTERS))?;
        asm.lidt(ptr(POINTERS + 8))?;
        far_jump(&mut asm, FLAT_CS, COMMON + 0x200)?;
        let mut out = asm.assemble(LOAD)?;
        out.resize(COPY as usize, 0);
        out.extend(&self.image);
        Ok((bare::wrap(&out, 0x20_0000), self.checks))
    }

    fn tables(&mut self) {
        let flat = |access| descriptor(0, 0xf_ffff, access, 0xc);
        for (selector, value) in [
            (FLAT_CS, flat(0x9b)),
            (FLAT_DS, flat(0x93)),
            (USER_CS, flat(0xfb)),
            (USER_DS, flat(0xf3)),
            (CS_16, descriptor(0, 0xffff, 0x9b, 0)),
            (DS_16, descriptor(0, 0xffff, 0x93, 0)),
            (CS_64, descriptor(0, 0xf_ffff, 0x9b, 0xa)),
            (TSS_SELECTOR, descriptor(TSS, 0x68 + 0x20, 0x89, 0)),
        ] {
            self.descriptor(selector, value);
        }
        for vector in 0..VECTORS {
            let open = matches!(vector, 3 | 4) || vector >= u32::from(USER_INT);
            let access = if open { 0xee } else { 0x8e };
            self.gate(vector as u8, gate(FLAT_CS, STUBS + vector * 16, access, 0));
        }
        self.put(TSS + 4, &RING0_STACK.to_le_bytes());
        self.put(TSS + 8, &u32::from(FLAT_DS).to_le_bytes());
        // The bitmap follows: all ports refused, and the byte that ends it.
        self.put(TSS + 0x66, &0x68u16.to_le_bytes());
        self.put(TSS + 0x68, &[0xff; 0x21]);
        let pointers = [(DESCRIPTORS * 8 - 1, GDT), (VECTORS * 8 - 1, IDT), (0x3ff, 0)];
        for (i, (limit, base)) in (0u32..).zip(pointers) {
            self.put(POINTERS + i * 8, &(limit as u16).to_le_bytes());
            self.put(POINTERS + i * 8 + 2, &base.to_le_bytes());
        }
    }

    /// Entries and common part of the exception handlers, and the ways between real and protected mode.
    fn stubs(&mut self) {
        for vector in 0..VECTORS {
            self.code(32, STUBS + vector * 16, |c| {
                if vector >= 32 || WITH_ERROR_CODE >> vector & 1 == 0 {
                    c.push(0)?;
                }
                c.push(vector as i32)?;
                c.jmp(u64::from(COMMON))
            });
            self.code(16, REAL_STUBS + vector * 8, |c| {
                c.push(vector as i32)?;
                c.jmp(u64::from(REAL_COMMON))
            });
        }
        self.code(32, COMMON, |c| {
            c.push(eax)?;
            c.push(ds)?;
            c.mov(eax, u32::from(FLAT_DS))?;
            c.mov(ds, ax)?;
            c.pop(dword_ptr(HANDLER_DS))?;
            c.pop(dword_ptr(SAVED_EAX))?;
            c.lea(eax, ptr(esp + 4))?;
            c.mov(dword_ptr(HANDLER_ESP), eax)?;
            // More than the frame is read: not through a stack segment that may end with it.
            c.load(ss, FLAT_DS)?;
            for slot in 0..11 {
                c.pop(dword_ptr(VECTOR + slot * 4))?;
            }
            c.flat_segments(STACK)?;
            c.push(2)?;
            c.popfd()?;
            c.resume(dword_ptr(TARGET))
        });
        self.code(32, COMMON + 0x200, |c| {
            c.flat_segments(STACK)?;
            c.mov(eax, u32::from(TSS_SELECTOR))?;
            c.ltr(ax)?;
            c.jmp(u64::from(MAIN))
        });
        self.code(16, REAL_COMMON, |c| {
            c.push(eax)?;
            c.push(ds)?;
            c.xor(eax, eax)?;
            c.mov(ds, ax)?;
            for slot in 0..7 {
                c.mov(dword_ptr(VECTOR + slot * 4), eax)?;
            }
            c.pop(word_ptr(HANDLER_DS))?;
            c.pop(dword_ptr(SAVED_EAX))?;
            c.pop(word_ptr(VECTOR))?;
            c.mov(word_ptr(HANDLER_ESP), sp)?;
            for slot in [EIP, CS, EFLAGS] {
                c.pop(word_ptr(slot))?;
            }
            c.real_segments()?;
            c.resume(word_ptr(TARGET))
        });
        // Intel SDM vol. 3, 11.9.2, "Switching Back to Real-Address Mode".
        self.code(16, ENTER_REAL, |c| {
            c.mov(eax, u32::from(DS_16))?;
            for segment in [ds, es, ss, fs, gs] {
                c.mov(segment, ax)?;
            }
            c.lidt(ptr(POINTERS + 16))?;
            c.mov(eax, cr0)?;
            c.and(eax, !1)?;
            c.mov(cr0, eax)?;
            far_jump(&mut c.asm, 0, ENTER_REAL + 0x80)
        });
        self.code(16, ENTER_REAL + 0x80, |c| {
            c.real_segments()?;
            c.jmp(word_ptr(TARGET))
        });
        self.code(16, ENTER_PROTECTED, |c| {
            c.cli()?;
            c.xor(eax, eax)?;
            c.mov(ds, ax)?;
            c.mov(eax, cr0)?;
            c.or(eax, 1)?;
            c.mov(cr0, eax)?;
            far_jump(&mut c.asm, FLAT_CS, COMMON + 0x300)
        });
        self.code(32, COMMON + 0x300, |c| {
            c.flat_segments(STACK)?;
            c.lidt(ptr(POINTERS + 8))?;
            c.jmp(dword_ptr(TARGET))
        });
    }
}

pub fn far_jump(a: &mut CodeAssembler, selector: u16, offset: u32) -> Result {
    a.add_instruction(Instruction::with_far_branch(Opcode::Jmp_ptr1632, selector, offset)?)
}

impl Deref for Code<'_> {
    type Target = CodeAssembler;
    fn deref(&self) -> &CodeAssembler {
        &self.asm
    }
}

impl DerefMut for Code<'_> {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.asm
    }
}
