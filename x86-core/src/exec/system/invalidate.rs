//! INVLPG and INVPCID (Intel SDM vol. 3, 4.10.4.1).

use accel_api::x86::Feature;
use iced_x86::{Code, Instruction};

use crate::exec::{Table, serialising};
use crate::mode::{
    Mode,
    bits::{CR3_PCID, CR4_PCIDE},
};
use crate::{Cpu, Exec, Fault};

fn invlpg(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    cpu.privileged()?;
    let index = cpu.memory_segment(ins);
    let offset = cpu.ea_offset(ins);
    let address = if cpu.mode == Mode::Long {
        let base = if index >= crate::cpu::seg::FS { cpu.segs[index].base } else { 0 };
        base.wrapping_add(offset)
    } else {
        cpu.segs[index].base.wrapping_add(offset) & 0xffff_ffff
    };
    // Like a NOP for an address that is not canonical: there is no translation of it.
    cpu.tlb.flush_page(address);
    cpu.leave = true;
    Ok(())
}

/// INVPCID: the type in the register, PCID and address in the descriptor (vol. 2A, INVPCID).
fn invpcid(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    if !cpu.model.features.has(Feature::Invpcid) {
        return Err(Fault::UD);
    }
    cpu.privileged()?;
    let kind = cpu.read_gpr(ins.op0_register());
    let ea = cpu.ea(ins, 16, false)?;
    let pcid: u64 = cpu.load(ea)?;
    let address: u64 = cpu.load(ea.plus(8))?;
    let current = pcid == cpu.pcid();
    match kind {
        _ if pcid & !CR3_PCID != 0 => return Err(Fault::GP0),
        0 | 1 if !current && cpu.cr4 & CR4_PCIDE == 0 => return Err(Fault::GP0),
        0 if !Cpu::canonical(address) => return Err(Fault::GP0),
        // One address of one PCID.
        0 if current => cpu.tlb.flush_page(address),
        0 => cpu.tlb.flush_other_page(pcid, address),
        // All of one PCID but global translations.
        1 if current => cpu.tlb.flush_non_global(),
        1 => cpu.tlb.flush_other(pcid),
        2 => cpu.tlb.flush_all(),
        // All of all PCIDs but global translations.
        3 => {
            cpu.tlb.flush_non_global();
            cpu.tlb.flush_others();
        }
        _ => return Err(Fault::GP0),
    }
    cpu.leave = true;
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    table.set(&[Code::Invlpg_m], |cpu, ins| serialising(cpu, ins, invlpg));
    table.set(&[Code::Invpcid_r32_m128, Code::Invpcid_r64_m128], |cpu, ins| serialising(cpu, ins, invpcid));
}
