//! Descriptor-table registers and the instructions that look at descriptors (Intel SDM vol. 3, 2.4 and 5.10).

use accel_api::x86::{DescriptorTable, Segment};
use iced_x86::{Code, Instruction, Register};

use crate::alu::{Word, flag};
use crate::exec::{Table, serialising};
use crate::mode::{Mode, bits};
use crate::segment::{is_null, rpl, system_type};
use crate::{Cpu, Descriptor, Exec, Fault, vector};

impl Cpu {
    /// SGDT, SIDT, SLDT, STR and SMSW outside CPL 0 are #GP(0) if CR4.UMIP is set.
    ///
    /// # Errors
    /// #GP(0).
    pub(super) fn user_may_store_tables(&self) -> Exec {
        if self.cpl != 0 && self.cr4 & bits::CR4_UMIP != 0 { Err(Fault::GP0) } else { Ok(()) }
    }

    /// #UD in real and virtual-8086 mode.
    fn needs_protected_mode(&self) -> Exec {
        if self.protected() { Ok(()) } else { Err(Fault::UD) }
    }
}

/// Reads limit and base; `base_bytes` is 3, 4 or 8.
fn read_table(cpu: &mut Cpu, ins: &Instruction, base_bytes: usize) -> Exec<DescriptorTable> {
    cpu.privileged()?;
    let stored = base_bytes.max(4);
    let ea = cpu.ea(ins, 2 + stored, false)?;
    let limit: u16 = cpu.load(ea)?;
    let base = match base_bytes {
        8 => cpu.load::<u64>(ea.plus(2))?,
        4 => cpu.load::<u32>(ea.plus(2))?.into(),
        _ => u64::from(cpu.load::<u32>(ea.plus(2))? & 0xff_ffff),
    };
    if !Cpu::canonical(base) {
        return Err(Fault::GP0);
    }
    Ok(DescriptorTable { base, limit })
}

fn lgdt<const BASE: usize>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    cpu.gdtr = read_table(cpu, ins, BASE)?;
    Ok(())
}

fn lidt<const BASE: usize>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    cpu.idtr = read_table(cpu, ins, BASE)?;
    Ok(())
}

/// The base is stored with 4 bytes also for 16-bit operands, as processors do.
fn write_table(cpu: &mut Cpu, ins: &Instruction, table: DescriptorTable) -> Exec {
    cpu.user_may_store_tables()?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let len = if cpu.mode == Mode::Long { 10 } else { 6 };
    let ea = cpu.ea(ins, len, true)?;
    cpu.store_bytes(ea, &bytes[..len])
}

fn sgdt(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    write_table(cpu, ins, cpu.gdtr)
}

fn sidt(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    write_table(cpu, ins, cpu.idtr)
}

fn lldt(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    cpu.needs_protected_mode()?;
    cpu.privileged()?;
    let selector = cpu.read_op(ins, 0)?;
    cpu.load_ldtr(selector)
}

fn ltr(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    cpu.needs_protected_mode()?;
    cpu.privileged()?;
    let selector = cpu.read_op(ins, 0)?;
    cpu.load_tr(selector)
}

fn store_selector(cpu: &mut Cpu, ins: &Instruction, which: fn(&Cpu) -> Segment) -> Exec {
    cpu.needs_protected_mode()?;
    cpu.user_may_store_tables()?;
    let selector = which(cpu).selector;
    if ins.op0_register() == Register::None {
        return cpu.write_op(ins, 0, selector);
    }
    cpu.write_gpr(ins.op0_register(), selector.into());
    Ok(())
}

fn sldt(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    store_selector(cpu, ins, |cpu| cpu.ldtr)
}

fn str(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    store_selector(cpu, ins, |cpu| cpu.tr)
}

/// The descriptor of `selector` if it exists and the current level may see it.
fn visible(cpu: &mut Cpu, selector: u16) -> Exec<Option<Descriptor>> {
    if is_null(selector) {
        return Ok(None);
    }
    match cpu.descriptor(selector, Fault::gp) {
        Ok(d) => {
            let seen = d.is_conforming() || (cpu.cpl <= d.dpl() && rpl(selector) <= d.dpl());
            Ok(seen.then_some(d))
        }
        Err(fault) if fault.vector() == vector::PF => Err(fault),
        Err(_) => Ok(None),
    }
}

/// LAR (`LIMIT` false) and LSL: `W` is the destination's width.
fn look<W: Word, const LIMIT: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    cpu.needs_protected_mode()?;
    let selector: u16 = cpu.read_op(ins, 1)?;
    let long = cpu.long_mode();
    let found = visible(cpu, selector)?.filter(|d| {
        !d.is_system()
            || match d.kind() {
                system_type::LDT | system_type::TSS | system_type::TSS_BUSY => true,
                system_type::TSS16 | system_type::TSS16_BUSY => !long,
                system_type::CALL => !LIMIT,
                system_type::CALL16 | system_type::TASK_GATE => !LIMIT && !long,
                _ => false,
            }
    });
    cpu.flags.assign(flag::ZF, found.is_some());
    if let Some(d) = found {
        let value = if LIMIT { d.limit().into() } else { d.0 >> 32 & 0xff_ff00 };
        cpu.write_gpr(ins.op0_register(), W::from_u64(value).to_u64());
    }
    Ok(())
}

/// VERR (`WRITE` false) and VERW.
fn verify<const WRITE: bool>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    cpu.needs_protected_mode()?;
    let selector: u16 = cpu.read_op(ins, 0)?;
    let wanted = |d: &Descriptor| if WRITE { d.is_writable() } else { d.is_readable() };
    let found = visible(cpu, selector)?.is_some_and(|d| wanted(&d));
    cpu.flags.assign(flag::ZF, found);
    Ok(())
}

fn arpl(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    cpu.needs_protected_mode()?;
    let wanted = cpu.read_gpr(ins.op1_register()) as u16 & 3;
    let low = if ins.op0_register() == Register::None {
        // Only an RPL that changes is written: the operand may be read-only.
        let old = cpu.read_op::<u16>(ins, 0)?;
        let low = old & 3 < wanted;
        if low {
            cpu.write_op(ins, 0, old & !3 | wanted)?;
        }
        low
    } else {
        let old = cpu.read_gpr(ins.op0_register());
        let low = old as u16 & 3 < wanted;
        if low {
            cpu.write_gpr(ins.op0_register(), old & !3 | u64::from(wanted));
        }
        low
    };
    cpu.flags.assign(flag::ZF, low);
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[Lgdt_m1632_16], |cpu, ins| serialising(cpu, ins, lgdt::<3>));
    table.set(&[Lgdt_m1632], |cpu, ins| serialising(cpu, ins, lgdt::<4>));
    table.set(&[Lgdt_m1664], |cpu, ins| serialising(cpu, ins, lgdt::<8>));
    table.set(&[Lidt_m1632_16], |cpu, ins| serialising(cpu, ins, lidt::<3>));
    table.set(&[Lidt_m1632], |cpu, ins| serialising(cpu, ins, lidt::<4>));
    table.set(&[Lidt_m1664], |cpu, ins| serialising(cpu, ins, lidt::<8>));
    table.set(&[Sgdt_m1632_16, Sgdt_m1632, Sgdt_m1664], sgdt);
    table.set(&[Sidt_m1632_16, Sidt_m1632, Sidt_m1664], sidt);
    table.set(&[Lldt_rm16, Lldt_r32m16, Lldt_r64m16], |cpu, ins| serialising(cpu, ins, lldt));
    table.set(&[Ltr_rm16, Ltr_r32m16, Ltr_r64m16], |cpu, ins| serialising(cpu, ins, ltr));
    table.set(&[Sldt_rm16, Sldt_r32m16, Sldt_r64m16], sldt);
    table.set(&[Str_rm16, Str_r32m16, Str_r64m16], str);
    table.set(&[Lar_r16_rm16], look::<u16, false>);
    table.set(&[Lar_r32_r32m16], look::<u32, false>);
    table.set(&[Lar_r64_r64m16], look::<u64, false>);
    table.set(&[Lsl_r16_rm16], look::<u16, true>);
    table.set(&[Lsl_r32_r32m16], look::<u32, true>);
    table.set(&[Lsl_r64_r64m16], look::<u64, true>);
    table.set(&[Verr_rm16, Verr_r32m16, Verr_r64m16], verify::<false>);
    table.set(&[Verw_rm16, Verw_r32m16, Verw_r64m16], verify::<true>);
    table.set(&[Arpl_rm16_r16, Arpl_r32m16_r32], arpl);
}
