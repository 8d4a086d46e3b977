//! RDMSR, WRMSR and the time-stamp counter (Intel SDM vol. 4).
//!
//! 1. What the local APIC owns goes there; what the vCPU owns is here, but for MSRs that only hold what is written to
//!    them, which are [`accel_api::x86::Msrs`]' own; all else is asked of the machine through the bus, whose refusal is #GP(0).
//! 2. MSRs that CPUID announces exist only if the model announces them.

use accel_api::x86::{Feature, Vendor, gpr};
use iced_x86::{Code, Instruction};

use crate::cpu::seg;
use crate::exec::Table;
use crate::lapic::{Lapic, MSR_TSC_DEADLINE};
use crate::mode::bits::*;
use crate::{Cpu, Exec, Fault};

/// Indices of MSRs (Intel SDM vol. 4, table 2-2).
mod index {
    pub(super) const TSC: u32 = 0x10;
    pub(super) const TSC_ADJUST: u32 = 0x3b;
    pub(super) const SYSENTER_CS: u32 = 0x174;
    pub(super) const SYSENTER_ESP: u32 = 0x175;
    pub(super) const SYSENTER_EIP: u32 = 0x176;
    pub(super) const PAT: u32 = 0x277;
    pub(super) const EFER: u32 = 0xc000_0080;
    pub(super) const STAR: u32 = 0xc000_0081;
    pub(super) const LSTAR: u32 = 0xc000_0082;
    pub(super) const CSTAR: u32 = 0xc000_0083;
    pub(super) const FMASK: u32 = 0xc000_0084;
    pub(super) const FS_BASE: u32 = 0xc000_0100;
    pub(super) const GS_BASE: u32 = 0xc000_0101;
    pub(super) const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub(super) const TSC_AUX: u32 = 0xc000_0103;
}

impl Cpu {
    fn announced(&self, feature: Feature) -> Exec {
        if self.model.features.has(feature) { Ok(()) } else { Err(Fault::GP0) }
    }

    /// RDMSR of MSR `index`.
    ///
    /// # Errors
    /// #GP(0).
    pub fn read_msr(&mut self, index: u32) -> Exec<u64> {
        use index::*;
        Ok(match index {
            TSC => self.tsc_in_order(),
            _ if Lapic::owns_msr(index) => {
                if index == MSR_TSC_DEADLINE {
                    self.announced(Feature::TscDeadline)?;
                }
                let now = self.now();
                self.lapic.read_msr(index, now).map_err(|_| Fault::GP0)?
            }
            TSC_ADJUST => self.msrs.tsc_adjust,
            SYSENTER_CS => self.msrs.sysenter_cs,
            SYSENTER_ESP => self.msrs.sysenter_esp,
            SYSENTER_EIP => self.msrs.sysenter_eip,
            PAT => self.msrs.pat,
            EFER => self.efer,
            STAR => self.msrs.star,
            LSTAR => self.msrs.lstar,
            CSTAR => self.msrs.cstar,
            FMASK => self.msrs.fmask,
            FS_BASE => self.segs[seg::FS].base,
            GS_BASE => self.segs[seg::GS].base,
            KERNEL_GS_BASE => self.msrs.kernel_gs_base,
            TSC_AUX => {
                self.announced(Feature::Rdtscp).or(self.announced(Feature::Rdpid))?;
                self.msrs.tsc_aux.into()
            }
            _ => match self.msrs.read_held(&self.model, index) {
                Some(value) => value.map_err(|_| Fault::GP0)?,
                None => self.device(|bus| bus.msr_read(index)).map_err(|_| Fault::GP0)?,
            },
        })
    }

    /// What SYSENTER's address registers keep of `value`: on AMD's processors, which have no SYSENTER in long mode, 32 bits of
    /// anything (Linux arch/x86/kvm/svm/svm.c); on Intel's a canonical address (Intel SDM vol. 4, table 2-2).
    fn sysenter_address(&self, value: u64) -> Exec<u64> {
        if self.model.vendor() == Vendor::Amd { Ok(value & 0xffff_ffff) } else { canonical(value) }
    }

    /// WRMSR of `value` to MSR `index`.
    ///
    /// # Errors
    /// #GP(0); nothing has changed then.
    pub fn write_msr(&mut self, index: u32, value: u64) -> Exec {
        use index::*;
        match index {
            TSC => {
                let offset = value.wrapping_sub(self.host_time());
                let change = offset.wrapping_sub(self.tsc_offset);
                self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(change);
                self.tsc_offset = offset;
                self.leave = true; // deadlines in TSC ticks have moved
            }
            TSC_ADJUST => {
                let change = value.wrapping_sub(self.msrs.tsc_adjust);
                self.tsc_offset = self.tsc_offset.wrapping_add(change);
                self.msrs.tsc_adjust = value;
                self.leave = true;
            }
            _ if Lapic::owns_msr(index) => {
                if index == MSR_TSC_DEADLINE {
                    self.announced(Feature::TscDeadline)?;
                }
                let now = self.now();
                self.lapic.write_msr(index, value, now).map_err(|_| Fault::GP0)?;
                // An EOI may have gone to the bus, when nobody waited for us.
                self.serve_memory_requests();
                // It may have made an interrupt pending for this vCPU itself.
                self.leave = true;
            }
            SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff_ffff,
            SYSENTER_ESP => self.msrs.sysenter_esp = self.sysenter_address(value)?,
            SYSENTER_EIP => self.msrs.sysenter_eip = self.sysenter_address(value)?,
            PAT => {
                // Types 2 and 3 do not exist (Intel SDM vol. 3, 12.12.2).
                if value.to_le_bytes().iter().any(|t| !matches!(t, 0 | 1 | 4..=7)) {
                    return Err(Fault::GP0);
                }
                self.msrs.pat = value;
            }
            EFER => self.write_efer(value)?,
            STAR => self.msrs.star = value,
            LSTAR => self.msrs.lstar = canonical(value)?,
            CSTAR => self.msrs.cstar = canonical(value)?,
            FMASK => self.msrs.fmask = value,
            FS_BASE => self.segs[seg::FS].base = canonical(value)?,
            GS_BASE => self.segs[seg::GS].base = canonical(value)?,
            KERNEL_GS_BASE => self.msrs.kernel_gs_base = canonical(value)?,
            TSC_AUX => {
                self.announced(Feature::Rdtscp).or(self.announced(Feature::Rdpid))?;
                self.msrs.tsc_aux = only(value, 0xffff_ffff)? as u32;
            }
            _ => match self.msrs.write_held(&self.model, index, value) {
                Some(done) => done.map_err(|_| Fault::GP0)?,
                None => self.device(|bus| bus.msr_write(index, value)).map_err(|_| Fault::GP0)?,
            },
        }
        Ok(())
    }

    /// IA32_EFER (Intel SDM vol. 4, table 2-2): LMA is read-only, LME is fixed while paging is on.
    fn write_efer(&mut self, value: u64) -> Exec {
        let has = |feature, bits| if self.model.features.has(feature) { bits } else { 0 };
        let allowed = has(Feature::Syscall, EFER_SCE)
            | has(Feature::Lm, EFER_LME | EFER_LMA)
            | has(Feature::Nx, EFER_NXE)
            | has(Feature::AutoIbrs, EFER_AIBRSE);
        let new = only(value, allowed)? & !EFER_LMA | self.efer & EFER_LMA;
        let changed = self.efer ^ new;
        if changed & EFER_LME != 0 && self.cr0 & CR0_PG != 0 {
            return Err(Fault::GP0);
        }
        self.efer = new;
        if changed & EFER_NXE != 0 {
            self.tlb.flush_all();
        }
        self.update_mode();
        Ok(())
    }
}

/// `value` if it has no bits outside `mask`.
fn only(value: u64, mask: u64) -> Exec<u64> {
    if value & !mask == 0 { Ok(value) } else { Err(Fault::GP0) }
}

fn canonical(value: u64) -> Exec<u64> {
    if Cpu::canonical(value) { Ok(value) } else { Err(Fault::GP0) }
}

fn set_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.gpr[gpr::RAX] = value & 0xffff_ffff;
    cpu.gpr[gpr::RDX] = value >> 32;
}

fn rdmsr(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.privileged()?;
    let value = cpu.read_msr(cpu.gpr[gpr::RCX] as u32)?;
    set_edx_eax(cpu, value);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.privileged()?;
    let value = cpu.gpr[gpr::RAX] & 0xffff_ffff | cpu.gpr[gpr::RDX] << 32;
    let index = cpu.gpr[gpr::RCX] as u32;
    cpu.write_msr(index, value)?;
    // Not those of the local APIC that are written most (vol. 2, WRMSR).
    if matches!(index, MSR_TSC_DEADLINE | 0x802..=0x83f) {
        cpu.heed_requests();
    } else {
        cpu.serialise();
    }
    Ok(())
}

/// RDTSC and RDTSCP are privileged while CR4.TSD is set.
fn may_read_tsc(cpu: &Cpu) -> Exec {
    if cpu.cr4 & CR4_TSD != 0 { cpu.privileged() } else { Ok(()) }
}

fn rdtsc(cpu: &mut Cpu, _: &Instruction) -> Exec {
    may_read_tsc(cpu)?;
    let tsc = cpu.tsc();
    set_edx_eax(cpu, tsc);
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if !cpu.model.features.has(Feature::Rdtscp) {
        return Err(Fault::UD);
    }
    may_read_tsc(cpu)?;
    let tsc = cpu.tsc_in_order();
    set_edx_eax(cpu, tsc);
    cpu.gpr[gpr::RCX] = cpu.msrs.tsc_aux.into();
    Ok(())
}

/// RDPRU (AMD APM vol. 3): MPERF and APERF, both of which count with the TSC here; 0 for any other register.
fn rdpru(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if !cpu.model.features.has(Feature::Rdpru) {
        return Err(Fault::UD);
    }
    may_read_tsc(cpu)?;
    let value = if cpu.gpr[gpr::RCX] as u32 <= 1 { cpu.tsc() } else { 0 };
    set_edx_eax(cpu, value);
    Ok(())
}

/// There are no performance counters.
fn rdpmc(_: &mut Cpu, _: &Instruction) -> Exec {
    Err(Fault::GP0)
}

pub(super) fn register(table: &mut Table) {
    use Code::*;
    table.set(&[Rdmsr], rdmsr);
    table.set(&[Wrmsr], wrmsr);
    table.set(&[Rdtsc], rdtsc);
    table.set(&[Rdtscp], rdtscp);
    table.set(&[Rdpru], rdpru);
    table.set(&[Rdpmc], rdpmc);
}
