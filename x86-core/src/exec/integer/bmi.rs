//! BMI1 and BMI2 (VEX-encoded) and ADX: #UD unless the guest's processor has them.
#![allow(unsafe_code)] // host instructions that not every host has; each is asked for first

use accel_api::x86::Feature;
use iced_x86::Instruction;

use super::{Table, codes, require};
use crate::alu::wide::Wide;
use crate::alu::{ArithFlags, Word, bit, bit::BmiWord, flag};
use crate::{Cpu, Exec, Fault};

/// #UD without the feature on both sides; VEX prefixes also need protected mode (Intel SDM vol. 2A, 2.3.5.1).
fn allowed(cpu: &Cpu, feature: Feature) -> Exec {
    require(cpu, feature)?;
    if cpu.protected() && bit::host_has(feature) { Ok(()) } else { Err(Fault::UD) }
}

/// A function that makes its result of operands 1 and 2.
trait Op2 {
    const FEATURE: Feature;
    /// # Safety
    /// The host has [`Self::FEATURE`].
    unsafe fn apply<W: BmiWord>(a: W, b: W, f: &mut ArithFlags) -> W;
}

macro_rules! operations {
    ($($name:ident $feature:ident |$a:ident, $b:ident, $f:ident| $result:expr;)*) => {$(
        struct $name;
        impl Op2 for $name {
            const FEATURE: Feature = Feature::$feature;
            #[allow(unused_unsafe)] // some are done without the host
            unsafe fn apply<W: BmiWord>($a: W, $b: W, $f: &mut ArithFlags) -> W {
                // SAFETY: the host has the feature by the caller's promise.
                unsafe { $result }
            }
        }
    )*};
}

fn count<W: Word>(b: W) -> u64 {
    b.to_u64() & u64::from(W::BITS - 1)
}

operations! {
    Andn Bmi1 |a, b, f| a.andn(b, f);
    Bextr Bmi1 |a, b, f| a.bextr(b, f);
    Bzhi Bmi2 |a, b, f| a.bzhi(b, f);
    Pdep Bmi2 |a, b, _f| a.pdep(b);
    Pext Bmi2 |a, b, _f| a.pext(b);
    Shlx Bmi2 |a, b, _f| W::from_u64(a.to_u64() << count(b));
    Shrx Bmi2 |a, b, _f| W::from_u64(a.to_u64() >> count(b));
    Sarx Bmi2 |a, b, _f| W::from_u64((a.to_i64() >> count(b)) as u64);
    Rorx Bmi2 |a, b, _f| rotate_right(a, count(b));
}

fn rotate_right<W: Word>(a: W, count: u64) -> W {
    let a = a.to_u64();
    W::from_u64(a >> count | a << ((u64::from(W::BITS) - count) & 63))
}

fn op2<W: BmiWord, O: Op2>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    allowed(cpu, O::FEATURE)?;
    let a: W = cpu.read_op(ins, 1)?;
    let b: W = cpu.read_op(ins, 2)?;
    // SAFETY: `allowed` asked the host.
    let result = unsafe { O::apply(a, b, &mut cpu.flags) };
    cpu.write_op(ins, 0, result)
}

/// A function of operand 1 only.
fn op1<W: BmiWord>(cpu: &mut Cpu, ins: &Instruction, op: unsafe fn(W, &mut ArithFlags) -> W) -> Exec {
    allowed(cpu, Feature::Bmi1)?;
    let a = cpu.read_op(ins, 1)?;
    // SAFETY: only BMI1 functions are passed here, and `allowed` asked the host.
    let result = unsafe { op(a, &mut cpu.flags) };
    cpu.write_op(ins, 0, result)
}

fn blsi<W: BmiWord>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    op1(cpu, ins, W::blsi)
}

fn blsmsk<W: BmiWord>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    op1(cpu, ins, W::blsmsk)
}

fn blsr<W: BmiWord>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    op1(cpu, ins, W::blsr)
}

/// MULX: RDX times operand 2, no flags. When both destinations are the same it holds the high half.
fn mulx<W: BmiWord>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    allowed(cpu, Feature::Bmi2)?;
    let b: W = cpu.read_op(ins, 2)?;
    let a: W = cpu.reg(accel_api::x86::gpr::RDX);
    let (low, high) = Wide::mul(a, b, &mut ArithFlags::default());
    cpu.write_op(ins, 1, low)?;
    cpu.write_op(ins, 0, high)
}

/// ADCX (carry in CF) and ADOX (carry in OF); no other flag changes.
fn add_with<W: Word>(cpu: &mut Cpu, ins: &Instruction, carry: u64) -> Exec {
    require(cpu, Feature::Adx)?;
    let b: W = cpu.read_op(ins, 1)?;
    let a: W = cpu.read_op(ins, 0)?;
    let carry_in = u128::from(cpu.flags.to_rflags() & carry != 0);
    let sum = u128::from(a.to_u64()) + u128::from(b.to_u64()) + carry_in;
    cpu.flags.assign(carry, sum >> W::BITS != 0);
    cpu.write_op(ins, 0, W::from_u64(sum as u64))
}

fn adcx<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    add_with::<W>(cpu, ins, flag::CF)
}

fn adox<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    add_with::<W>(cpu, ins, flag::OF)
}

pub(super) fn register(table: &mut Table) {
    codes! { table;
        VEX_Andn_r32_r32_rm32 => op2::<u32, Andn>;
        VEX_Andn_r64_r64_rm64 => op2::<u64, Andn>;
        VEX_Bextr_r32_rm32_r32 => op2::<u32, Bextr>;
        VEX_Bextr_r64_rm64_r64 => op2::<u64, Bextr>;
        VEX_Bzhi_r32_rm32_r32 => op2::<u32, Bzhi>;
        VEX_Bzhi_r64_rm64_r64 => op2::<u64, Bzhi>;
        VEX_Pdep_r32_r32_rm32 => op2::<u32, Pdep>;
        VEX_Pdep_r64_r64_rm64 => op2::<u64, Pdep>;
        VEX_Pext_r32_r32_rm32 => op2::<u32, Pext>;
        VEX_Pext_r64_r64_rm64 => op2::<u64, Pext>;
        VEX_Shlx_r32_rm32_r32 => op2::<u32, Shlx>;
        VEX_Shlx_r64_rm64_r64 => op2::<u64, Shlx>;
        VEX_Shrx_r32_rm32_r32 => op2::<u32, Shrx>;
        VEX_Shrx_r64_rm64_r64 => op2::<u64, Shrx>;
        VEX_Sarx_r32_rm32_r32 => op2::<u32, Sarx>;
        VEX_Sarx_r64_rm64_r64 => op2::<u64, Sarx>;
        VEX_Rorx_r32_rm32_imm8 => op2::<u32, Rorx>;
        VEX_Rorx_r64_rm64_imm8 => op2::<u64, Rorx>;
        VEX_Blsi_r32_rm32 => blsi::<u32>;
        VEX_Blsi_r64_rm64 => blsi::<u64>;
        VEX_Blsmsk_r32_rm32 => blsmsk::<u32>;
        VEX_Blsmsk_r64_rm64 => blsmsk::<u64>;
        VEX_Blsr_r32_rm32 => blsr::<u32>;
        VEX_Blsr_r64_rm64 => blsr::<u64>;
        VEX_Mulx_r32_r32_rm32 => mulx::<u32>;
        VEX_Mulx_r64_r64_rm64 => mulx::<u64>;
        Adcx_r32_rm32 => adcx::<u32>;
        Adcx_r64_rm64 => adcx::<u64>;
        Adox_r32_rm32 => adox::<u32>;
        Adox_r64_rm64 => adox::<u64>;
    }
}
