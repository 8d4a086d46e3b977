//! [`CpuState`] from and to KVM, in the order that loses nothing.
//!
//! Saving starts with the MP state, whose ioctl makes a pending INIT or start-up message take effect, and the local APIC,
//! for which KVM must finish what it has put off.
//!
//! Loading goes MP state, registers, XCR0 and vector state, local APIC (whose mode is part of the system registers), MSRs
//! (the TSC's offset, then the deadline that is measured by it), debug registers, and events last, since several of the
//! ioctls before clear them.

mod events;
mod fpu;
pub(crate) mod lapic;
mod registers;

use accel_api::AccelError;
use accel_api::x86::{CpuState, DebugRegs, MpState, Msrs, Vendor};
use kvm_bindings::*;
use kvm_ioctls::VcpuFd;

use crate::msr::index;
use crate::sys::{get_sregs2, host, loading, set_sregs2, set_tsc_offset, tsc_offset};
use crate::vcpu::KvmVcpu;

/// The whole state.
pub(crate) fn save(vcpu: &mut KvmVcpu) -> Result<CpuState, AccelError> {
    let mp = mp_state(vcpu.fd())?;
    let (page, deadline) = lapic::page(vcpu)?;
    let fd = vcpu.fd();
    // Again: what was put off may have woken a halted vCPU.
    let mp = if mp == KVM_MP_STATE_HALTED { mp_state(fd)? } else { mp };
    let regs = fd.get_regs().map_err(host("KVM_GET_REGS"))?;
    let sregs = fd.get_sregs().map_err(host("KVM_GET_SREGS"))?;
    let xcr0 = xcr0(fd)?;
    let fpu = fpu::save(fd)?;
    let kvm_debugregs { db: dr, dr6, dr7, flags: _, reserved: _ } =
        fd.get_debug_regs().map_err(host("KVM_GET_DEBUGREGS"))?;
    let tsc_offset = tsc_offset(fd)?.wrapping_add(vcpu.lease.removed());
    let mut held = vcpu.msrs.clone();
    if vcpu.spec.model.spec_ctrl_bits() != 0 {
        held.spec_ctrl = get_msr(vcpu.fd(), index::SPEC_CTRL)?;
    }
    let mut msrs = save_msrs(vcpu.fd(), held, sregs.efer)?;
    if vcpu.spec.model.vendor() == Vendor::Amd {
        // An emulated processor under KVM may keep more of what a guest writes than KVM takes back.
        msrs.sysenter_esp &= 0xffff_ffff;
        msrs.sysenter_eip &= 0xffff_ffff;
    }
    let (events, sipi) = events::save(vcpu)?;
    let (gpr, rip, rflags) = registers::general(&regs);
    let (segments, gdtr, idtr, mut control) = registers::system(&sregs, xcr0);
    if control.pae_paging(sregs.efer) {
        control.pdptrs = pdptrs(vcpu.fd())?;
    }
    let lapic = lapic::save(
        vcpu,
        &page,
        sregs.apic_base,
        deadline,
        sipi.filter(|_| mp == KVM_MP_STATE_SIPI_RECEIVED),
    );
    Ok(CpuState {
        gpr,
        rip,
        rflags,
        segments,
        gdtr,
        idtr,
        control,
        debug: DebugRegs { dr, dr6, dr7 },
        fpu,
        msrs,
        events,
        mp: match mp {
            _ if vcpu.shutdown => MpState::Shutdown,
            KVM_MP_STATE_HALTED => MpState::Halted,
            KVM_MP_STATE_RUNNABLE => MpState::Running,
            _ => MpState::WaitForSipi,
        },
        lapic,
        tsc_offset,
    })
}

/// Replaces the whole state.
pub(crate) fn load(vcpu: &mut KvmVcpu, state: &CpuState) -> Result<(), AccelError> {
    let CpuState {
        gpr,
        rip,
        rflags,
        segments,
        gdtr,
        idtr,
        control,
        debug: DebugRegs { dr, dr6, dr7 },
        fpu,
        msrs,
        events,
        mp,
        lapic,
        tsc_offset,
    } = state;
    vcpu.shutdown = *mp == MpState::Shutdown;
    let mp_state = match mp {
        MpState::Running | MpState::Shutdown => KVM_MP_STATE_RUNNABLE,
        MpState::Halted => KVM_MP_STATE_HALTED,
        MpState::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
    };
    let fd = vcpu.fd();
    // An event of before must not meet the new registers, nor system management mode, to which a guest may have sent itself,
    // the new MP state.
    let none = kvm_vcpu_events { flags: KVM_VCPUEVENT_VALID_SMM, ..kvm_vcpu_events::default() };
    fd.set_vcpu_events(&none).map_err(loading("events"))?;
    fd.set_mp_state(kvm_mp_state { mp_state }).map_err(loading("MP state"))?;
    let regs = registers::to_general(gpr, *rip, *rflags);
    fd.set_regs(&regs).map_err(loading("registers"))?;
    let sregs = registers::to_system(segments, gdtr, idtr, control, msrs.efer, lapic);
    fd.set_sregs(&sregs).map_err(loading("segments and control registers"))?;
    if let Some(pdptrs) = control.pdptrs.filter(|_| control.pae_paging(msrs.efer)) {
        // In the place of those that KVM has just read from the table.
        set_pdptrs(fd, pdptrs)?;
    }
    set_xcr0(fd, control.xcr0)?;
    fpu::load(fd, fpu)?;
    let removed = vcpu.lease.removed();
    set_tsc_offset(vcpu.fd(), tsc_offset.wrapping_sub(removed))?;
    lapic::load(vcpu, lapic)?;
    load_msrs(vcpu.fd(), msrs)?;
    if vcpu.spec.model.spec_ctrl_bits() != 0 {
        set_msrs(vcpu.fd(), [(index::SPEC_CTRL, msrs.spec_ctrl)])?;
    }
    vcpu.msrs = msrs.clone();
    let debug = kvm_debugregs { db: *dr, dr6: *dr6, dr7: *dr7, flags: 0, reserved: [0; 9] };
    vcpu.fd().set_debug_regs(&debug).map_err(loading("debug registers"))?;
    lapic::load_deadline(vcpu, lapic)?;
    events::load(vcpu, events, lapic, &regs)
}

/// Has the guest take an external interrupt of `vector` before its next instruction.
pub(crate) fn inject_interrupt(vcpu: &mut KvmVcpu, vector: u8) -> Result<(), AccelError> {
    let fd = vcpu.fd();
    if mp_state(fd)? == KVM_MP_STATE_HALTED {
        fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
            .map_err(host("KVM_SET_MP_STATE"))?;
    }
    // Not KVM_INTERRUPT: a vector that waits there is in no state that can be saved.
    let mut events = fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
    events.interrupt.injected = 1;
    events.interrupt.nr = vector;
    events.interrupt.soft = 0;
    // Nothing else of it: an NMI may have come since it was read.
    events.flags = 0;
    fd.set_vcpu_events(&events).map_err(host("KVM_SET_VCPU_EVENTS"))
}

/// The four entries of PAE paging, where KVM gives them (Linux 5.14).
fn pdptrs(fd: &VcpuFd) -> Result<Option<[u64; 4]>, AccelError> {
    let sregs = get_sregs2(fd)?;
    Ok(sregs.filter(|s| s.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0).map(|s| s.pdptrs))
}

/// Sets them, where KVM takes them.
fn set_pdptrs(fd: &VcpuFd, pdptrs: [u64; 4]) -> Result<(), AccelError> {
    let Some(mut sregs) = get_sregs2(fd)? else { return Ok(()) };
    sregs.flags |= u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID);
    sregs.pdptrs = pdptrs;
    set_sregs2(fd, &sregs)
}

fn mp_state(fd: &VcpuFd) -> Result<u32, AccelError> {
    Ok(fd.get_mp_state().map_err(host("KVM_GET_MP_STATE"))?.mp_state)
}

fn xcr0(fd: &VcpuFd) -> Result<u64, AccelError> {
    let xcrs = fd.get_xcrs().map_err(host("KVM_GET_XCRS"))?;
    let used = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
    Ok(used.filter(|xcr| xcr.xcr == 0).map(|xcr| xcr.value).next().unwrap_or(1))
}

fn set_xcr0(fd: &VcpuFd, value: u64) -> Result<(), AccelError> {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
    (xcrs.xcrs[0].xcr, xcrs.xcrs[0].value) = (0, value);
    fd.set_xcrs(&xcrs).map_err(loading("XCR0"))
}

/// Reads one MSR.
fn get_msr(fd: &VcpuFd, index: u32) -> Result<u64, AccelError> {
    let [value] = get_msrs(fd, [index])?;
    Ok(value)
}

fn get_msrs<const N: usize>(fd: &VcpuFd, indices: [u32; N]) -> Result<[u64; N], AccelError> {
    let mut list = msr_list(indices.map(|index| (index, 0)))?;
    let got = fd.get_msrs(&mut list).map_err(host("KVM_GET_MSRS"))?;
    match list.as_slice() {
        entries if got == N => Ok(std::array::from_fn(|n| entries[n].data)),
        _ => Err(AccelError::InvalidState(format!("KVM does not have MSR {:#x}", indices[got]))),
    }
}

fn set_msrs<const N: usize>(fd: &VcpuFd, values: [(u32, u64); N]) -> Result<(), AccelError> {
    let done = fd.set_msrs(&msr_list(values)?).map_err(host("KVM_SET_MSRS"))?;
    match values.get(done) {
        None => Ok(()),
        Some((index, value)) => {
            Err(AccelError::InvalidState(format!("KVM does not take {value:#x} in MSR {index:#x}")))
        }
    }
}

fn msr_list<const N: usize>(values: [(u32, u64); N]) -> Result<kvm_bindings::Msrs, AccelError> {
    let entries = values.map(|(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() });
    kvm_bindings::Msrs::from_entries(&entries).map_err(|_| AccelError::InvalidState("too many MSRs".into()))
}

/// MSRs: those `held` here, the others from KVM.
fn save_msrs(fd: &VcpuFd, held: Msrs, efer: u64) -> Result<Msrs, AccelError> {
    use index::*;
    let [star, lstar, cstar, fmask, kernel_gs_base, tsc_aux, sysenter_cs, sysenter_esp, sysenter_eip, pat] =
        get_msrs(
            fd,
            [
                STAR,
                LSTAR,
                CSTAR,
                FMASK,
                KERNEL_GS_BASE,
                TSC_AUX,
                SYSENTER_CS,
                SYSENTER_ESP,
                SYSENTER_EIP,
                PAT,
            ],
        )?;
    Ok(Msrs {
        efer,
        star,
        lstar,
        cstar,
        fmask,
        kernel_gs_base,
        tsc_aux: tsc_aux as u32,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
        ..held
    })
}

/// The MSRs that KVM holds; EFER is among the system registers.
fn load_msrs(fd: &VcpuFd, msrs: &Msrs) -> Result<(), AccelError> {
    let Msrs {
        efer: _,
        star,
        lstar,
        cstar,
        fmask,
        kernel_gs_base,
        tsc_aux,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
        misc_enable: _,
        // Where there is one: see [`load`].
        spec_ctrl: _,
        tsc_adjust: _,
        mcg_status: _,
        debugctl: _,
        hwcr: _,
        syscfg: _,
        mtrr: _,
    } = msrs;
    set_msrs(
        fd,
        [
            (index::STAR, *star),
            (index::LSTAR, *lstar),
            (index::CSTAR, *cstar),
            (index::FMASK, *fmask),
            (index::KERNEL_GS_BASE, *kernel_gs_base),
            (index::TSC_AUX, (*tsc_aux).into()),
            (index::SYSENTER_CS, *sysenter_cs),
            (index::SYSENTER_ESP, *sysenter_esp),
            (index::SYSENTER_EIP, *sysenter_eip),
            (index::PAT, *pat),
        ],
    )
}
