//! MOVS, CMPS, SCAS, LODS, STOS, with and without REP.
//!
//! 1. RSI, RDI and RCX are used in the address size; a repeated instruction writes them back after each chunk, so a
//!    fault finds the progress made (Intel SDM vol. 2B, REP).
//! 2. A chunk is one element through the ordinary loads and stores or, for MOVS and STOS going up in RAM, as many as lie
//!    in one page on each side, copied or filled at once.
//! 3. After [`FUEL`] a repeated instruction ends with `next_rip` at itself, so that interrupts and kicks are seen; the
//!    executor comes back. With TF set or a breakpoint armed it does so after every element, for the trap.
#![allow(unsafe_code)] // chunks are copied in guest RAM through host pointers

use std::arch::asm;

use accel_api::x86::gpr;
use iced_x86::{Instruction, OpKind};

use super::{Table, codes};
use crate::alu::{ArithFlags, Word, flag};
use crate::cpu::seg;
use crate::{AccessKind, Cpu, Ea, Exec, Span, host_copy, host_load, host_store};

/// Bytes moved in bulk before an executor gets its turn.
const FUEL: u64 = 64 << 10;
/// Fuel that an element costs that is not part of a bulk chunk.
const ELEMENT_FUEL: u64 = 16;
/// Fuel that counts as much as one instruction in [`Cpu::budget`].
const FUEL_PER_INSTRUCTION: u64 = 64;

/// Addresses of one string instruction.
#[derive(Clone, Copy)]
struct Strings {
    /// Mask of the address size.
    mask: u64,
    /// Segment of the source.
    segment: usize,
    /// Bytes from one element to the next, negative when DF is set.
    step: i64,
}

/// What a chunk did.
struct Chunk {
    elements: u64,
    fuel: u64,
    /// A repetition goes on.
    more: bool,
}

impl Chunk {
    const ELEMENT: Self = Self { elements: 1, fuel: ELEMENT_FUEL, more: true };
}

impl Strings {
    fn new(cpu: &Cpu, ins: &Instruction, bytes: usize) -> Self {
        let size = |n| match ins.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(0xffff),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(0xffff_ffff),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(u64::MAX),
            _ => None,
        };
        let step = if cpu.has(flag::DF) { -(bytes as i64) } else { bytes as i64 };
        Self { mask: size(0).or(size(1)).unwrap_or(u64::MAX), segment: cpu.memory_segment(ins), step }
    }

    fn index(&self, cpu: &Cpu, register: usize) -> u64 {
        cpu.gpr[register] & self.mask
    }

    /// Writes an index register in the address size.
    fn set(&self, cpu: &mut Cpu, register: usize, value: u64) {
        match self.mask {
            0xffff => cpu.set_reg(register, value as u16),
            _ => cpu.gpr[register] = value & self.mask,
        }
    }

    /// Moves an index register on by `elements`.
    fn advance(&self, cpu: &mut Cpu, register: usize, elements: u64) {
        let value = cpu.gpr[register].wrapping_add_signed(self.step.wrapping_mul(elements as i64));
        self.set(cpu, register, value);
    }

    fn source(&self, cpu: &Cpu, bytes: usize) -> Exec<Ea> {
        cpu.segmented(self.segment, self.index(cpu, gpr::RSI), bytes, false)
    }

    /// ES:RDI, which no prefix overrides.
    fn destination(&self, cpu: &Cpu, bytes: usize, write: bool) -> Exec<Ea> {
        cpu.segmented(seg::ES, self.index(cpu, gpr::RDI), bytes, write)
    }

    /// The RAM from the element at `register` on, for going up: the span, and how many elements fit in it, in the
    /// segment and in the address size. `None` when one element at a time is the only way.
    fn bulk<W: Word>(
        &self,
        cpu: &mut Cpu,
        register: usize,
        limit: u64,
        kind: AccessKind,
    ) -> Exec<Option<(Span, u64)>> {
        let write = kind == AccessKind::Write;
        let segment = if register == gpr::RDI { seg::ES } else { self.segment };
        let offset = self.index(cpu, register);
        let ea = cpu.segmented(segment, offset, W::BYTES, write)?;
        let Some(span) = cpu.span(ea, W::BYTES, kind)? else { return Ok(None) };
        // Elements that lie whole before the end of the address space that the register can name.
        let reach = ((self.mask - offset) / W::BYTES as u64).max(1);
        let elements = limit.min((span.len / W::BYTES) as u64).min(reach);
        if cpu.segmented(segment, offset, elements as usize * W::BYTES, write).is_err() {
            return Ok(None);
        }
        if write {
            cpu.about_to_write(span.page, span.host, elements as usize * W::BYTES);
        }
        Ok(Some((span, elements)))
    }
}

/// Runs `chunk` once, or with a REP prefix until RCX is used up or it says to stop. `chunk` gets the most elements it
/// may do and has moved RSI and RDI when it returns.
fn run(
    cpu: &mut Cpu,
    ins: &Instruction,
    strings: &Strings,
    mut chunk: impl FnMut(&mut Cpu, &Strings, u64) -> Exec<Chunk>,
) -> Exec {
    if !ins.has_rep_prefix() && !ins.has_repne_prefix() {
        return chunk(cpu, strings, 1).map(|_| ());
    }
    // With a count of 0 nothing is written, not even the upper halves that a 32-bit address size would clear.
    let mut left = strings.index(cpu, gpr::RCX);
    let mut spent = 0;
    while left != 0 {
        let most = if cpu.stops_repeats() { 1 } else { left.min(FUEL) };
        let done = chunk(cpu, strings, most)?;
        left = left.saturating_sub(done.elements);
        spent += done.fuel;
        strings.set(cpu, gpr::RCX, left);
        if !done.more {
            break;
        }
        if left != 0 && (spent >= FUEL || cpu.stops_repeats()) {
            cpu.give_up_turn();
            cpu.budget = cpu.budget.min(0);
            break;
        }
    }
    cpu.budget -= (spent / FUEL_PER_INSTRUCTION) as i64;
    Ok(())
}

fn movs<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let strings = Strings::new(cpu, ins, W::BYTES);
    run(cpu, ins, &strings, |cpu, s, most| {
        if most > 1
            && s.step > 0
            && let Some(chunk) = copy_chunk::<W>(cpu, s, most)?
        {
            return Ok(chunk);
        }
        let from = s.source(cpu, W::BYTES)?;
        let to = s.destination(cpu, W::BYTES, true)?;
        let value: W = cpu.load(from)?;
        cpu.store(to, value)?;
        s.advance(cpu, gpr::RSI, 1);
        s.advance(cpu, gpr::RDI, 1);
        Ok(Chunk::ELEMENT)
    })
}

fn copy_chunk<W: Word>(cpu: &mut Cpu, s: &Strings, most: u64) -> Exec<Option<Chunk>> {
    let Some((from, most)) = s.bulk::<W>(cpu, gpr::RSI, most, AccessKind::Read)? else { return Ok(None) };
    let Some((to, elements)) = s.bulk::<W>(cpu, gpr::RDI, most, AccessKind::Write)? else { return Ok(None) };
    let bytes = elements as usize * W::BYTES;
    let ahead = (to.host as usize).wrapping_sub(from.host as usize);
    if ahead == 0 || ahead >= bytes {
        // SAFETY: both spans hold `bytes` bytes of RAM. Not overlapping, or overlapping downwards, where copying the
        // bytes in order gives the same.
        unsafe { host_copy(from.host, to.host, bytes) };
    } else {
        // The destination lies in the source ahead: elements written are read again, in order.
        for at in (0..bytes).step_by(W::BYTES) {
            // SAFETY: `at + W::BYTES` is at most `bytes`, which both spans hold.
            unsafe { host_store::<W>(to.host.add(at), host_load::<W>(from.host.add(at))) };
        }
    }
    cpu.wrote(to, bytes);
    s.advance(cpu, gpr::RSI, elements);
    s.advance(cpu, gpr::RDI, elements);
    Ok(Some(Chunk { elements, fuel: bytes as u64, more: true }))
}

fn stos<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let strings = Strings::new(cpu, ins, W::BYTES);
    let value: W = cpu.reg(gpr::RAX);
    run(cpu, ins, &strings, |cpu, s, most| {
        if most > 1
            && s.step > 0
            && let Some((to, elements)) = s.bulk::<W>(cpu, gpr::RDI, most, AccessKind::Write)?
        {
            let bytes = elements as usize * W::BYTES;
            // SAFETY: the span holds `bytes` bytes of writable RAM.
            unsafe { fill(to.host, value, bytes) };
            cpu.wrote(to, bytes);
            s.advance(cpu, gpr::RDI, elements);
            return Ok(Chunk { elements, fuel: bytes as u64, more: true });
        }
        let to = s.destination(cpu, W::BYTES, true)?;
        cpu.store(to, value)?;
        s.advance(cpu, gpr::RDI, 1);
        Ok(Chunk::ELEMENT)
    })
}

/// # Safety
/// `host` must be valid for `bytes` bytes, a multiple of the element's.
unsafe fn fill<W: Word>(host: *mut u8, value: W, bytes: usize) {
    let first = value.to_u64() as u8;
    let uniform = W::from_u64(u64::from_ne_bytes([first; 8]));
    if value == uniform {
        // SAFETY: the caller's promise.
        unsafe { host.write_bytes(first, bytes) };
        return;
    }
    let count = bytes / W::BYTES;
    let value = value.to_u64();
    macro_rules! rep {
        ($text:literal) => {
            asm!($text, inout("rdi") host => _, inout("rcx") count => _, in("rax") value,
                options(nostack, preserves_flags))
        };
    }
    // SAFETY: the caller's promise; DF is clear between functions.
    unsafe {
        match W::BYTES {
            1 => rep!("rep stosb"),
            2 => rep!("rep stosw"),
            4 => rep!("rep stosd"),
            _ => rep!("rep stosq"),
        }
    }
}

fn lods<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let strings = Strings::new(cpu, ins, W::BYTES);
    run(cpu, ins, &strings, |cpu, s, _| {
        let from = s.source(cpu, W::BYTES)?;
        let value: W = cpu.load(from)?;
        cpu.set_reg(gpr::RAX, value);
        s.advance(cpu, gpr::RSI, 1);
        Ok(Chunk::ELEMENT)
    })
}

/// Whether REPE or REPNE goes on after a comparison.
fn repeats(ins: &Instruction, flags: ArithFlags) -> bool {
    // A later prefix wins in the decoder, so at most one of the two is told.
    if ins.has_repne_prefix() { !flags.zf() } else { flags.zf() }
}

fn cmps<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let strings = Strings::new(cpu, ins, W::BYTES);
    run(cpu, ins, &strings, |cpu, s, _| {
        let a = s.source(cpu, W::BYTES)?;
        let b = s.destination(cpu, W::BYTES, false)?;
        let a: W = cpu.load(a)?;
        let b: W = cpu.load(b)?;
        a.sub(b, &mut cpu.flags);
        s.advance(cpu, gpr::RSI, 1);
        s.advance(cpu, gpr::RDI, 1);
        Ok(Chunk { more: repeats(ins, cpu.flags), ..Chunk::ELEMENT })
    })
}

fn scas<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let strings = Strings::new(cpu, ins, W::BYTES);
    let a: W = cpu.reg(gpr::RAX);
    run(cpu, ins, &strings, |cpu, s, _| {
        let b = s.destination(cpu, W::BYTES, false)?;
        let b: W = cpu.load(b)?;
        a.sub(b, &mut cpu.flags);
        s.advance(cpu, gpr::RDI, 1);
        Ok(Chunk { more: repeats(ins, cpu.flags), ..Chunk::ELEMENT })
    })
}

pub(super) fn register(table: &mut Table) {
    codes! { table;
        Movsb_m8_m8 => movs::<u8>;
        Movsw_m16_m16 => movs::<u16>;
        Movsd_m32_m32 => movs::<u32>;
        Movsq_m64_m64 => movs::<u64>;
        Cmpsb_m8_m8 => cmps::<u8>;
        Cmpsw_m16_m16 => cmps::<u16>;
        Cmpsd_m32_m32 => cmps::<u32>;
        Cmpsq_m64_m64 => cmps::<u64>;
        Scasb_AL_m8 => scas::<u8>;
        Scasw_AX_m16 => scas::<u16>;
        Scasd_EAX_m32 => scas::<u32>;
        Scasq_RAX_m64 => scas::<u64>;
        Lodsb_AL_m8 => lods::<u8>;
        Lodsw_AX_m16 => lods::<u16>;
        Lodsd_EAX_m32 => lods::<u32>;
        Lodsq_RAX_m64 => lods::<u64>;
        Stosb_m8_AL => stos::<u8>;
        Stosw_m16_AX => stos::<u16>;
        Stosd_m32_EAX => stos::<u32>;
        Stosq_m64_RAX => stos::<u64>;
    }
}
