//! Control and debug registers (Intel SDM vol. 3, 2.5, 4.10.4.1 and 18.2; checks of vol. 2, MOV).
//!
//! Whatever a translation may depend on empties the soft TLB when it changes; CR0.WP is among them, because entries hold
//! the outcome of the walk and not the rights.

use accel_api::x86::{Feature, PHYS_BITS, Segment, gpr};
use iced_x86::{Code, Instruction, Register};

use crate::alu::Word;
use crate::cpu::seg;
use crate::dr6;
use crate::exec::{Table, serialising};
use crate::mode::{Mode, bits::*};
use crate::{Cpu, Exec, Fault};

const CR0_DEFINED: u64 =
    CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG;

impl Cpu {
    /// Writes CR0: enters and leaves protected mode, paging and long mode.
    ///
    /// # Errors
    /// #GP(0) for combinations the manual forbids.
    pub fn write_cr0(&mut self, value: u64) -> Exec {
        if value >> 32 != 0 {
            return Err(Fault::GP0);
        }
        let new = value & CR0_DEFINED | CR0_ET;
        let on = |bit| new & bit != 0;
        if on(CR0_PG) && !on(CR0_PE) || on(CR0_NW) && !on(CR0_CD) {
            return Err(Fault::GP0);
        }
        let changed = self.cr0 ^ new;
        let mut efer = self.efer;
        if changed & CR0_PG != 0 {
            let cs_long = self.segs[seg::CS].attributes & Segment::LONG != 0;
            if on(CR0_PG) {
                if efer & EFER_LME != 0 {
                    const TSS32: u8 = 8;
                    if self.cr4 & CR4_PAE == 0 || cs_long || self.tr.kind() & TSS32 == 0 {
                        return Err(Fault::GP0);
                    }
                    efer |= EFER_LMA;
                } else if self.cr4 & CR4_PAE != 0 {
                    self.load_pdptes(self.cr3)?;
                }
            } else {
                if self.mode == Mode::Long || self.cr4 & CR4_PCIDE != 0 {
                    return Err(Fault::GP0);
                }
                efer &= !EFER_LMA;
            }
        }
        let pae = self.pae_paging() && on(CR0_PG);
        if pae && changed & (CR0_CD | CR0_NW) != 0 {
            self.load_pdptes(self.cr3)?;
        }
        self.cr0 = new;
        self.efer = efer;
        if changed & (CR0_PG | CR0_PE | CR0_WP) != 0 {
            self.tlb.flush_all();
        }
        self.update_mode();
        Ok(())
    }

    /// Writes CR3.
    ///
    /// # Errors
    /// #GP(0) for reserved bits, also in the page-directory-pointer table of PAE paging.
    pub fn write_cr3(&mut self, value: u64) -> Exec {
        const KEEP_TRANSLATIONS: u64 = 1 << 63;
        let tagged = self.cr4 & CR4_PCIDE != 0;
        let new = if tagged { value & !KEEP_TRANSLATIONS } else { value };
        if self.long_mode() && new >> PHYS_BITS != 0 {
            return Err(Fault::GP0);
        }
        if self.pae_paging() {
            self.load_pdptes(new)?;
        }
        let old = std::mem::replace(&mut self.cr3, new);
        if tagged {
            self.tlb.switch_space(old, new, value & KEEP_TRANSLATIONS != 0);
        } else {
            self.tlb.flush_non_global();
        }
        self.leave = true;
        Ok(())
    }

    /// The current process-context identifier (Intel SDM vol. 3, 4.10.1).
    pub(crate) fn pcid(&self) -> u64 {
        if self.cr4 & CR4_PCIDE != 0 { self.cr3 & CR3_PCID } else { 0 }
    }

    fn cr4_allowed(&self) -> u64 {
        let has = |feature, bits| if self.model.features.has(feature) { bits } else { 0 };
        has(Feature::Vme, CR4_VME | CR4_PVI)
            | has(Feature::Tsc, CR4_TSD)
            | has(Feature::De, CR4_DE)
            | has(Feature::Pse, CR4_PSE)
            | has(Feature::Pae, CR4_PAE)
            | has(Feature::Mce, CR4_MCE)
            | has(Feature::Pge, CR4_PGE)
            | CR4_PCE
            | has(Feature::Fxsr, CR4_OSFXSR)
            | has(Feature::Sse, CR4_OSXMMEXCPT)
            | has(Feature::Umip, CR4_UMIP)
            | has(Feature::Fsgsbase, CR4_FSGSBASE)
            | has(Feature::Pcid, CR4_PCIDE)
            | has(Feature::Xsave, CR4_OSXSAVE)
            | has(Feature::Smep, CR4_SMEP)
            | has(Feature::Smap, CR4_SMAP)
    }

    /// Writes CR4.
    ///
    /// # Errors
    /// #GP(0) for bits of features the model does not announce, and for combinations the manual forbids.
    pub fn write_cr4(&mut self, value: u64) -> Exec {
        const TRANSLATION: u64 = CR4_PGE | CR4_PAE | CR4_PSE | CR4_SMEP | CR4_SMAP | CR4_PCIDE;
        const PDPTES: u64 = CR4_PGE | CR4_PAE | CR4_PSE | CR4_SMEP;
        if value & !self.cr4_allowed() != 0 {
            return Err(Fault::GP0);
        }
        let changed = self.cr4 ^ value;
        if self.long_mode() && value & CR4_PAE == 0 {
            return Err(Fault::GP0);
        }
        if changed & value & CR4_PCIDE != 0 && (!self.long_mode() || self.cr3 & 0xfff != 0) {
            return Err(Fault::GP0);
        }
        let pae = self.cr0 & CR0_PG != 0 && !self.long_mode() && value & CR4_PAE != 0;
        if pae && changed & PDPTES != 0 {
            self.load_pdptes(self.cr3)?;
        }
        self.cr4 = value;
        if changed & TRANSLATION != 0 {
            self.tlb.flush_all();
        }
        self.update_mode();
        Ok(())
    }
}

fn mov_to_cr(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let number = ins.op0_register().number();
    if !matches!(number, 0 | 2 | 3 | 4 | 8) {
        return Err(Fault::UD);
    }
    cpu.privileged()?;
    let value = cpu.read_gpr(ins.op1_register());
    match number {
        0 => cpu.write_cr0(value),
        2 => {
            cpu.cr2 = value;
            Ok(())
        }
        3 => cpu.write_cr3(value),
        4 => cpu.write_cr4(value),
        _ => {
            cpu.lapic.set_cr8(value).map_err(|_| Fault::GP0)?;
            // A lower priority may let an interrupt through.
            cpu.leave = true;
            // Not a serialising one (9.3).
            return Ok(());
        }
    }?;
    cpu.serialise();
    Ok(())
}

fn mov_from_cr<W: Word>(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let number = ins.op1_register().number();
    if !matches!(number, 0 | 2 | 3 | 4 | 8) {
        return Err(Fault::UD);
    }
    cpu.privileged()?;
    let value = match number {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        _ => cpu.lapic.cr8(),
    };
    cpu.write_gpr(ins.op0_register(), W::from_u64(value).to_u64());
    Ok(())
}

fn clts(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.privileged()?;
    cpu.cr0 &= !CR0_TS;
    cpu.update_mode();
    Ok(())
}

fn lmsw(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    const MSW: u64 = CR0_PE | CR0_MP | CR0_EM | CR0_TS;
    cpu.privileged()?;
    let value = u64::from(cpu.read_op::<u16>(ins, 0)?);
    // PE can be set this way but not cleared.
    cpu.write_cr0(cpu.cr0 & (!MSW | CR0_PE) | value & MSW)
}

fn smsw(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    cpu.user_may_store_tables()?;
    if ins.op0_register() == Register::None {
        return cpu.write_op(ins, 0, cpu.cr0 as u16);
    }
    cpu.write_gpr(ins.op0_register(), cpu.cr0);
    Ok(())
}

/// Index of a debug register, with DR4 and DR5 standing for DR6 and DR7 unless CR4.DE forbids them (18.2.2).
fn debug_register(cpu: &mut Cpu, register: Register) -> Exec<usize> {
    const GD: u64 = 1 << 13;
    let number = register.number();
    if number > 7 || (matches!(number, 4 | 5) && cpu.cr4 & CR4_DE != 0) {
        return Err(Fault::UD);
    }
    cpu.privileged()?;
    if cpu.dr7 & GD != 0 {
        cpu.pending_debug |= dr6::BD;
        return Err(Fault::GENERAL_DETECT);
    }
    Ok(if matches!(number, 4 | 5) { number + 2 } else { number })
}

fn mov_to_dr(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let index = debug_register(cpu, ins.op0_register())?;
    let value = cpu.read_gpr(ins.op1_register());
    if index >= 6 && value >> 32 != 0 {
        return Err(Fault::GP0);
    }
    match index {
        6 => cpu.dr6 = value & 0xe00f | 0xffff_0ff0,
        7 => cpu.set_dr7(value & 0xffff_23ff | 0x400),
        _ => cpu.dr[index & 3] = value,
    }
    cpu.leave = true;
    Ok(())
}

fn mov_from_dr(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let value = match debug_register(cpu, ins.op1_register())? {
        6 => cpu.dr6,
        7 => cpu.dr7,
        index => cpu.dr[index & 3],
    };
    let size = ins.op0_register().size();
    cpu.write_gpr(ins.op0_register(), if size == 8 { value } else { value & 0xffff_ffff });
    Ok(())
}

/// INVD and WBINVD: there are no caches that the guest could see.
fn cache_control(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.privileged()
}

fn xgetbv(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if cpu.cr4 & CR4_OSXSAVE == 0 {
        return Err(Fault::UD);
    }
    let value = match cpu.gpr[gpr::RCX] as u32 {
        0 => cpu.xcr0,
        // What is not in its initial configuration (Intel SDM vol. 1, 13.2).
        1 if cpu.model.features.has(Feature::Xgetbv1) => cpu.xcr0 & cpu.state_in_use(),
        _ => return Err(Fault::GP0),
    };
    cpu.gpr[gpr::RAX] = value & 0xffff_ffff;
    cpu.gpr[gpr::RDX] = value >> 32;
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, _: &Instruction) -> Exec {
    const X87: u64 = 1;
    const SSE: u64 = 2;
    const AVX: u64 = 4;
    if cpu.cr4 & CR4_OSXSAVE == 0 {
        return Err(Fault::UD);
    }
    cpu.privileged()?;
    let value = cpu.gpr[gpr::RAX] & 0xffff_ffff | cpu.gpr[gpr::RDX] << 32;
    let bad = value & !cpu.model.xcr0_mask() != 0 || value & X87 == 0 || value & (SSE | AVX) == AVX;
    if cpu.gpr[gpr::RCX] as u32 != 0 || bad {
        return Err(Fault::GP0);
    }
    cpu.xcr0 = value;
    cpu.update_mode();
    Ok(())
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[Mov_cr_r32, Mov_cr_r64], mov_to_cr);
    table.set(&[Mov_r32_cr], mov_from_cr::<u32>);
    table.set(&[Mov_r64_cr], mov_from_cr::<u64>);
    table.set(&[Mov_dr_r32, Mov_dr_r64], |cpu, ins| serialising(cpu, ins, mov_to_dr));
    table.set(&[Mov_r32_dr, Mov_r64_dr], mov_from_dr);
    table.set(&[Clts], clts);
    table.set(&[Lmsw_rm16, Lmsw_r32m16, Lmsw_r64m16], |cpu, ins| serialising(cpu, ins, lmsw));
    table.set(&[Smsw_rm16, Smsw_r32m16, Smsw_r64m16], smsw);
    table.set(&[Invd, Wbinvd, Wbnoinvd], |cpu, ins| serialising(cpu, ins, cache_control));
    table.set(&[Xgetbv], xgetbv);
    table.set(&[Xsetbv], xsetbv);
}
