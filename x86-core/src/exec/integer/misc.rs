//! BOUND, RDRAND, RDSEED, RDPID.
#![allow(unsafe_code)] // getrandom(2) into a buffer

use accel_api::x86::Feature;
use iced_x86::Instruction;

use super::{Table, codes, require};
use crate::alu::{ArithFlags, Word, flag};
use crate::{Cpu, Exec, Fault};

/// BOUND: #BR if the index is outside the two signed bounds.
fn bound<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let index: W = cpu.read_op(ins, 0)?;
    let ea = cpu.ea(ins, 2 * W::BYTES, false)?;
    let lower = cpu.load::<W>(ea)?.to_i64();
    let upper = cpu.load::<W>(ea.plus(W::BYTES as u64))?.to_i64();
    if (lower..=upper).contains(&index.to_i64()) { Ok(()) } else { Err(Fault::BR) }
}

/// Random bits of the host's kernel, if it has some ready.
fn host_random() -> Option<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: the buffer is as long as told.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    (got == bytes.len() as isize).then(|| u64::from_ne_bytes(bytes))
}

/// RDRAND and RDSEED: CF tells whether the value is random; without one it is 0. The other flags are cleared.
fn random<W: Word>(cpu: &mut Cpu, ins: &Instruction, feature: Feature) -> Exec {
    require(cpu, feature)?;
    let value = host_random();
    cpu.flags = ArithFlags::default();
    cpu.flags.assign(flag::CF, value.is_some());
    cpu.write_op(ins, 0, W::from_u64(value.unwrap_or(0)))
}

fn rdrand<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    random::<W>(cpu, ins, Feature::Rdrand)
}

fn rdseed<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    random::<W>(cpu, ins, Feature::Rdseed)
}

/// RDPID: IA32_TSC_AUX, at any privilege.
fn rdpid(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    require(cpu, Feature::Rdpid)?;
    cpu.write_gpr(ins.op0_register(), cpu.msrs.tsc_aux.into());
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    codes! { table;
        Bound_r16_m1616 => bound::<u16>;
        Bound_r32_m3232 => bound::<u32>;
        Rdrand_r16 => rdrand::<u16>;
        Rdrand_r32 => rdrand::<u32>;
        Rdrand_r64 => rdrand::<u64>;
        Rdseed_r16 => rdseed::<u16>;
        Rdseed_r32 => rdseed::<u32>;
        Rdseed_r64 => rdseed::<u64>;
        Rdpid_r32 | Rdpid_r64 => rdpid;
    }
}
