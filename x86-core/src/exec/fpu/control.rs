//! Control instructions and the environment in memory (Intel SDM vol. 1, 8.1.10 and 8.3.9).

use iced_x86::{Code, Instruction};

use super::stack::{available, begin, enter, leave, no_pending, sti};
use crate::exec::Table;
use crate::mode::bits;
use crate::{Cpu, Exec, F80, Fault, FpuRegs, fsw};
use accel_api::x86::gpr;

pub(super) fn register(t: &mut Table) {
    t.set(&[Code::Fninit], |c, _| control::<false>(c, |r| r.initialise()));
    t.set(&[Code::Finit], |c, _| control::<true>(c, |r| r.initialise()));
    t.set(&[Code::Fnclex], |c, _| control::<false>(c, clear_exceptions));
    t.set(&[Code::Fclex], |c, _| control::<true>(c, clear_exceptions));
    // What these did ended with the 80287.
    t.set(&[Code::Fneni, Code::Fndisi, Code::Fnsetpm], |c, _| control::<false>(c, |_| {}));
    t.set(&[Code::Feni, Code::Fdisi, Code::Fsetpm], |c, _| control::<true>(c, |_| {}));
    t.set(&[Code::Fldcw_m2byte], load_control);
    t.set(&[Code::Fnstcw_m2byte], |c, i| store_word::<false>(c, i, |r| r.fcw));
    t.set(&[Code::Fstcw_m2byte], |c, i| store_word::<true>(c, i, |r| r.fcw));
    t.set(&[Code::Fnstsw_m2byte], |c, i| store_word::<false>(c, i, |r| r.fsw));
    t.set(&[Code::Fstsw_m2byte], |c, i| store_word::<true>(c, i, |r| r.fsw));
    t.set(&[Code::Fnstsw_AX], |c, _| status_to_ax::<false>(c));
    t.set(&[Code::Fstsw_AX], |c, _| status_to_ax::<true>(c));
    t.set(&[Code::Fldenv_m14byte], load_environment::<14, 14>);
    t.set(&[Code::Fldenv_m28byte], load_environment::<28, 28>);
    t.set(&[Code::Frstor_m94byte], load_environment::<14, 94>);
    t.set(&[Code::Frstor_m108byte], load_environment::<28, 108>);
    t.set(&[Code::Fnstenv_m14byte], store_environment::<14, 14, false>);
    t.set(&[Code::Fnstenv_m28byte], store_environment::<28, 28, false>);
    t.set(&[Code::Fnsave_m94byte], store_environment::<14, 94, false>);
    t.set(&[Code::Fnsave_m108byte], store_environment::<28, 108, false>);
    t.set(&[Code::Fstenv_m14byte], store_environment::<14, 14, true>);
    t.set(&[Code::Fstenv_m28byte], store_environment::<28, 28, true>);
    t.set(&[Code::Fsave_m94byte], store_environment::<14, 94, true>);
    t.set(&[Code::Fsave_m108byte], store_environment::<28, 108, true>);
    t.set(&[Code::Wait], wait);
    t.set(&[Code::Fnop], |c, _| stack_control(c, |_| {}));
    t.set(&[Code::Fincstp], |c, _| stack_control(c, |r| step(r, 1)));
    t.set(&[Code::Fdecstp], |c, _| stack_control(c, |r| step(r, 7)));
    t.set(&[Code::Ffree_sti], |c, i| {
        let i = sti(i, 0);
        stack_control(c, |r| {
            r.fsw &= !fsw::C1;
            r.free(i);
        })
    });
    t.set(&[Code::Ffreep_sti], |c, i| {
        let i = sti(i, 0);
        stack_control(c, |r| {
            r.fsw &= !fsw::C1;
            r.free(i);
            r.pop();
        })
    });
}

impl FpuRegs {
    /// FNINIT.
    pub(super) fn initialise(&mut self) {
        (self.fcw, self.fsw, self.ftw) = (0x37f, 0, 0);
        (self.fop, self.fip, self.fdp) = (0, 0, 0);
    }
}

fn clear_exceptions(regs: &mut FpuRegs) {
    regs.fsw &= !(fsw::EXCEPTIONS | fsw::SF | fsw::ES | fsw::B);
}

fn step(regs: &mut FpuRegs, by: u16) {
    regs.fsw &= !fsw::C1;
    regs.move_top(by);
}

#[inline(always)]
fn control<const WAIT: bool>(cpu: &mut Cpu, change: fn(&mut FpuRegs)) -> Exec {
    if WAIT {
        begin(cpu)?
    } else {
        available(cpu)?
    }
    change(&mut cpu.fpu);
    Ok(())
}

#[inline(always)]
fn stack_control(cpu: &mut Cpu, change: impl FnOnce(&mut FpuRegs)) -> Exec {
    enter(cpu)?;
    change(&mut cpu.fpu);
    leave(cpu)
}

/// WAIT: CR0.EM does not matter to it, TS only together with MP (Intel SDM vol. 3, 2.5).
fn wait(cpu: &mut Cpu, _: &Instruction) -> Exec {
    const BOTH: u64 = bits::CR0_MP | bits::CR0_TS;
    if cpu.cr0 & BOTH == BOTH { Err(Fault::NM) } else { no_pending(cpu) }
}

fn load_control(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    begin(cpu)?;
    cpu.fpu.fcw = cpu.read_op::<u16>(ins, 0)?;
    cpu.fpu.normalise();
    Ok(())
}

#[inline(always)]
fn store_word<const WAIT: bool>(cpu: &mut Cpu, ins: &Instruction, get: fn(&FpuRegs) -> u16) -> Exec {
    if WAIT {
        begin(cpu)?
    } else {
        available(cpu)?
    }
    let value = get(&cpu.fpu);
    cpu.write_op(ins, 0, value)
}

#[inline(always)]
fn status_to_ax<const WAIT: bool>(cpu: &mut Cpu) -> Exec {
    if WAIT {
        begin(cpu)?
    } else {
        available(cpu)?
    }
    let value = cpu.fpu.fsw;
    cpu.set_reg(gpr::RAX, value);
    Ok(())
}

/// FLDENV (`N` equal to `ENV`) and FRSTOR.
fn load_environment<const ENV: usize, const N: usize>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    begin(cpu)?;
    let ea = cpu.ea(ins, N, false)?;
    let mut bytes = [0; 108];
    cpu.load_bytes(ea, &mut bytes[..N])?;
    let protected = cpu.protected();
    cpu.fpu.set_environment(&bytes[..ENV], protected);
    let top = cpu.fpu.top();
    let values = bytes[ENV..N].as_chunks::<10>().0;
    for (i, value) in values.iter().enumerate() {
        cpu.fpu.r[(top + i) & 7] = F80::from_bytes(value);
    }
    Ok(())
}

/// FNSTENV (`N` equal to `ENV`), which masks all exceptions, and FNSAVE, which initialises.
fn store_environment<const ENV: usize, const N: usize, const WAIT: bool>(
    cpu: &mut Cpu,
    ins: &Instruction,
) -> Exec {
    if WAIT {
        begin(cpu)?
    } else {
        available(cpu)?
    }
    let ea = cpu.ea(ins, N, true)?;
    let mut bytes = [0; 108];
    cpu.fpu.environment(&mut bytes[..ENV], cpu.protected());
    let values = bytes[ENV..N].as_chunks_mut::<10>().0;
    for (i, value) in values.iter_mut().enumerate() {
        *value = cpu.fpu.st(i).to_bytes();
    }
    cpu.store_bytes(ea, &bytes[..N])?;
    if N == ENV {
        cpu.fpu.fcw |= fsw::EXCEPTIONS;
        cpu.fpu.update_summary();
    } else {
        cpu.fpu.initialise();
    }
    Ok(())
}

impl FpuRegs {
    /// The tag word with two bits a register: valid, zero, special, empty.
    fn full_tags(&self) -> u16 {
        let tag = |i: usize| match (self.ftw >> i & 1, self.r[i].exponent & 0x7fff, self.r[i].mantissa) {
            (0, ..) => 3,
            (_, 0, 0) => 1,
            (_, 0 | 0x7fff, _) => 2,
            (_, _, mantissa) if mantissa >> 63 == 0 => 2,
            _ => 0,
        };
        (0..8).fold(0, |word, i| word | tag(i) << (2 * i))
    }

    /// The environment in 14 or 28 bytes. Code and data segments are stored as 0, as by processors that have given
    /// them up (CPUID leaf 7, EBX bit 13); in real mode the pointers are the offsets.
    fn environment(&self, out: &mut [u8], protected: bool) {
        let (fip, fdp) = (self.fip as u32, self.fdp as u32);
        let wide = out.len() == 28;
        let (fip_high, fdp_high) = match (protected, wide) {
            (true, true) => (u32::from(self.fop) << 16, 0),
            (true, false) => (0, 0),
            (false, true) => ((fip >> 16) << 12 | u32::from(self.fop), (fdp >> 16) << 12),
            (false, false) => ((fip >> 4 & 0xf000) | u32::from(self.fop), fdp >> 4 & 0xf000),
        };
        let fields = [
            u32::from(self.fcw),
            u32::from(self.fsw),
            u32::from(self.full_tags()),
            fip,
            fip_high,
            fdp,
            fdp_high,
        ];
        // The unused upper halves of words read as ones.
        let ones = match protected {
            true => [0, 1, 2, 6].as_slice(),
            false => [0, 1, 2, 3, 5].as_slice(),
        };
        for (i, field) in fields.into_iter().enumerate() {
            if wide {
                let field = if ones.contains(&i) { field | 0xffff_0000 } else { field };
                out[4 * i..4 * i + 4].copy_from_slice(&field.to_le_bytes());
            } else {
                out[2 * i..2 * i + 2].copy_from_slice(&(field as u16).to_le_bytes());
            }
        }
    }

    /// The reverse of [`Self::environment`]; tags are taken as empty or not.
    fn set_environment(&mut self, bytes: &[u8], protected: bool) {
        let wide = bytes.len() == 28;
        let mut fields = [0u32; 7];
        for (i, field) in fields.iter_mut().enumerate() {
            *field = if wide {
                u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
            } else {
                u32::from(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]))
            };
        }
        let [fcw, status, tags, fip, fip_high, fdp, fdp_high] = fields;
        let (fcw, status, tags) = (fcw as u16, status as u16, tags as u16);
        let (fip, fdp, fop) = match (protected, wide) {
            (true, true) => (fip, fdp, fip_high >> 16),
            (true, false) => (fip, fdp, 0),
            (false, true) => {
                let high = |word: u32| (word >> 12 & 0xffff) << 16;
                (fip & 0xffff | high(fip_high), fdp & 0xffff | high(fdp_high), fip_high)
            }
            (false, false) => {
                let high = |word: u32| (word & 0xf000) << 4;
                (fip | high(fip_high), fdp | high(fdp_high), fip_high)
            }
        };
        (self.fcw, self.fsw) = (fcw, status);
        (self.fip, self.fdp, self.fop) = (u64::from(fip), u64::from(fdp), fop as u16);
        self.ftw = (0..8).fold(0, |ftw, i| ftw | u8::from(tags >> (2 * i) & 3 != 3) << i);
        self.normalise();
    }
}
