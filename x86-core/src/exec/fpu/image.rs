//! The 512-byte FXSAVE image (Intel SDM vol. 1, 10.5), which also begins the XSAVE area.
#![allow(unsafe_code)] // the image is copied to and from guest RAM through one checked span

use iced_x86::{Code, Instruction};

use super::stack::available;
use crate::exec::Table;
use crate::exec::mxcsr;
use crate::mode::Mode;
use crate::{AccessKind, Cpu, Ea, Exec, F80, Fault, VectorFile};

pub(super) fn register(t: &mut Table) {
    t.set(&[Code::Fxsave_m512byte], save::<false>);
    t.set(&[Code::Fxsave64_m512byte], save::<true>);
    t.set(&[Code::Fxrstor_m512byte], restore::<false>);
    t.set(&[Code::Fxrstor64_m512byte], restore::<true>);
}

/// MXCSR_MASK: every bit but the reserved ones can be set.
pub(super) const MXCSR_MASK: u32 = 0xffff;

/// Bytes of the image that FXSAVE writes in 64-bit mode; the rest is reserved or the program's.
const USED: usize = 416;

/// Where XMM0 lies in it.
pub(super) const XMM: usize = 160;

/// An image in processor memory.
#[repr(C, align(64))]
pub(super) struct Image(pub(super) [u8; 512]);

/// What of the image a transfer touches.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    pub(super) x87: bool,
    pub(super) sse: bool,
    /// MXCSR and its mask.
    pub(super) mxcsr: bool,
    /// Pointers have 64 bits and no segments.
    pub(super) wide: bool,
    /// XMM registers reachable in this mode: 8 or 16.
    pub(super) xmm: usize,
}

impl Parts {
    pub(super) fn all(cpu: &Cpu, wide: bool) -> Self {
        Self { x87: true, sse: true, mxcsr: true, wide, xmm: xmm_count(cpu) }
    }
}

/// XMM registers that the current mode can name.
pub(super) fn xmm_count(cpu: &Cpu) -> usize {
    if cpu.mode == Mode::Long { 16 } else { 8 }
}

/// CR4.OSFXSR does not matter to FXSAVE and FXRSTOR here: without it a processor may or may not move XMM and MXCSR
/// (Intel SDM vol. 3, 2.5), and moving them is what current ones do.
fn begin(cpu: &mut Cpu, ins: &Instruction, write: bool) -> Exec<Ea> {
    available(cpu)?;
    let ea = cpu.ea(ins, 512, write)?;
    if ea.la & 15 != 0 { Err(Fault::GP0) } else { Ok(ea) }
}

fn save<const WIDE: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let ea = begin(cpu, ins, true)?;
    mxcsr::sync(cpu);
    let parts = Parts::all(cpu, WIDE);
    let len = USED - (16 - parts.xmm) * 16;
    if let Some(span) = cpu.span(ea, 512, AccessKind::Write)? {
        // SAFETY: the span covers 512 bytes of writable RAM; `Image` is bytes, but only its first `USED` are written.
        unsafe { write_image(cpu, span.host, parts) };
        cpu.wrote(span, len);
        return Ok(());
    }
    let mut image = Image([0; 512]);
    image.write(cpu, parts);
    cpu.probe_write(ea, 512)?;
    cpu.store_bytes(ea, &image.0[..len])
}

fn restore<const WIDE: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let ea = begin(cpu, ins, false)?;
    let parts = Parts::all(cpu, WIDE);
    // The image may change under our eyes, so MXCSR is read once, checked, and then used. Everything else takes any
    // value.
    match cpu.span(ea, 512, AccessKind::Read)? {
        Some(span) => {
            // SAFETY: the span covers 512 bytes of RAM.
            let mxcsr = unsafe { span.host.add(24).cast::<u32>().read_unaligned() };
            check_mxcsr(mxcsr)?;
            // SAFETY: as above.
            unsafe { read_image(cpu, span.host, parts) };
            mxcsr::replace(cpu, mxcsr);
        }
        None => {
            let mut image = Image([0; 512]);
            cpu.load_bytes(ea, &mut image.0)?;
            let mxcsr = image.mxcsr();
            check_mxcsr(mxcsr)?;
            image.read(cpu, parts);
            mxcsr::replace(cpu, mxcsr);
        }
    }
    Ok(())
}

/// #GP(0) for reserved bits.
pub(super) fn check_mxcsr(value: u32) -> Exec {
    if value & !MXCSR_MASK != 0 { Err(Fault::GP0) } else { Ok(()) }
}

impl Image {
    pub(super) fn mxcsr(&self) -> u32 {
        u32::from_le_bytes([self.0[24], self.0[25], self.0[26], self.0[27]])
    }

    /// Fills in `parts`.
    pub(super) fn write(&mut self, cpu: &Cpu, parts: Parts) {
        // SAFETY: the image has 512 bytes.
        unsafe { write_image(cpu, self.0.as_mut_ptr(), parts) }
    }

    /// Loads `parts` but MXCSR.
    pub(super) fn read(&self, cpu: &mut Cpu, parts: Parts) {
        // SAFETY: the image has 512 bytes.
        unsafe { read_image(cpu, self.0.as_ptr(), parts) }
    }
}

type Xmm = [u64; 2];

/// # Safety
/// `at` must be valid for 512 bytes.
#[inline(always)]
unsafe fn write_image(cpu: &Cpu, at: *mut u8, parts: Parts) {
    let regs = &cpu.fpu;
    // SAFETY: all offsets lie below 512; guest images are not always aligned for these types.
    unsafe {
        if parts.x87 {
            let words = u64::from(regs.fcw)
                | u64::from(regs.fsw) << 16
                | u64::from(regs.ftw) << 32
                | u64::from(regs.fop) << 48;
            let (fip, fdp) = if parts.wide { (regs.fip, regs.fdp) } else { (low(regs.fip), low(regs.fdp)) };
            let header = at.cast::<u64>();
            header.write_unaligned(words);
            header.add(1).write_unaligned(fip);
            header.add(2).write_unaligned(fdp);
            let (top, slots) = (regs.top(), at.add(32).cast::<F80>());
            for i in 0..8 {
                slots.add(i).write_unaligned(regs.r[(top + i) & 7]);
            }
        }
        if parts.mxcsr {
            let mxcsr = u64::from(regs.mxcsr) | u64::from(MXCSR_MASK) << 32;
            at.add(24).cast::<u64>().write_unaligned(mxcsr);
        }
        if parts.sse {
            let slots = at.add(XMM).cast::<Xmm>();
            for (i, ymm) in cpu.vector.0[..parts.xmm].iter().enumerate() {
                slots.add(i).write_unaligned([ymm[0], ymm[1]]);
            }
        }
    }
}

/// MXCSR is left to the caller.
///
/// # Safety
/// `at` must be valid for 512 bytes.
#[inline(always)]
unsafe fn read_image(cpu: &mut Cpu, at: *const u8, parts: Parts) {
    // SAFETY: as in `write_image`.
    unsafe {
        if parts.x87 {
            let regs = &mut cpu.fpu;
            let header = at.cast::<u64>();
            let words = header.read_unaligned();
            let (fip, fdp) = (header.add(1).read_unaligned(), header.add(2).read_unaligned());
            (regs.fip, regs.fdp) = if parts.wide { (fip, fdp) } else { (low(fip), low(fdp)) };
            (regs.fcw, regs.fsw) = (words as u16, (words >> 16) as u16);
            (regs.ftw, regs.fop) = ((words >> 32) as u8, (words >> 48) as u16);
            regs.normalise();
            let (top, slots) = (regs.top(), at.add(32).cast::<F80>());
            for i in 0..8 {
                let F80 { mantissa, exponent } = slots.add(i).read_unaligned();
                regs.r[(top + i) & 7] = F80 { mantissa, exponent: exponent & 0xffff };
            }
        }
        if parts.sse {
            let VectorFile(file) = &mut cpu.vector;
            let slots = at.add(XMM).cast::<Xmm>();
            for (i, ymm) in file[..parts.xmm].iter_mut().enumerate() {
                [ymm[0], ymm[1]] = slots.add(i).read_unaligned();
            }
        }
    }
}

/// An offset of 32 bits with a segment selector of 0 behind it.
fn low(pointer: u64) -> u64 {
    pointer & 0xffff_ffff
}
