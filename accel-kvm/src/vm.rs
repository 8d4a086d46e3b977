//! The VM: a split irqchip, an MSR filter, and vCPUs that are made once and bound as often as wanted.

use std::sync::{Arc, Mutex, PoisonError};

use accel_api::host_time::Pulse;
use accel_api::{
    AccelError, AccelVm, Access, DirtyPages, IOAPIC_PINS, InterruptPort, IoEventAddress, RamRegion, SlotId,
    Vcpu, VcpuBus, VcpuConfig, VmSpec,
};
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_X2APIC_API, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, KVM_X86_QUIRK_FIX_HYPERCALL_INSN,
    KVM_X86_QUIRK_LAPIC_MMIO_HOLE, KVM_X86_QUIRK_LINT0_REENABLED, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS,
    KVM_X86_QUIRK_OUT_7E_INC_RIP, kvm_enable_cap,
};
use kvm_ioctls::{Kvm, NoDatamatch, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupts::KvmPort;
use crate::requests::VcpuRequests;
use crate::slots::Slots;
use crate::sys::host;
use crate::vcpu::KvmVcpu;
use crate::{cpuid, msr};

/// Three pages that KVM needs on Intel processors without unrestricted guests. The machine has neither RAM nor devices
/// there, and they leave the last 16 MiB below 4 GiB to a ROM.
const TSS_ADDRESS: usize = 0xfeff_d000;
/// One page for the same.
const IDENTITY_MAP_ADDRESS: u64 = 0xfeff_c000;

/// What KVM does otherwise than processors, for old guests' sake, and does not for ours: it unmasks LINT0 at reset, answers
/// where the local APIC is not, counts RIP on early at port 0x7e, rewrites the other vendor's hypercall instruction in the
/// guest's memory, and executes MONITOR and MWAIT where CPUID does not have them.
const QUIRKS: u32 = KVM_X86_QUIRK_LINT0_REENABLED
    | KVM_X86_QUIRK_LAPIC_MMIO_HOLE
    | KVM_X86_QUIRK_OUT_7E_INC_RIP
    | KVM_X86_QUIRK_FIX_HYPERCALL_INSN
    | KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS;

/// KVM cannot destroy a single vCPU, nor make it twice: an unbound one is parked here. `None` while bound.
pub(crate) type ParkedVcpu = Mutex<Option<VcpuFd>>;

#[derive(Debug)]
pub(crate) struct KvmVm {
    fd: Arc<VmFd>,
    spec: VmSpec,
    slots: Slots,
    requests: Arc<[Arc<VcpuRequests>]>,
    parked: Arc<[ParkedVcpu]>,
    port: Arc<KvmPort>,
    /// Time goes on while vCPUs sleep.
    _pulse: Pulse,
}

impl KvmVm {
    pub(crate) fn new(kvm: &Kvm, spec: &VmSpec) -> Result<Self, AccelError> {
        let fd = create(kvm)?;
        let enable = |cap: u32, arg: u32, what| {
            let mut cap = kvm_enable_cap { cap, ..kvm_enable_cap::default() };
            cap.args[0] = arg.into();
            fd.enable_cap(&cap).map_err(host(what))
        };
        enable(KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS, "KVM_CAP_SPLIT_IRQCHIP")?;
        // 0xff is an APIC id like any other in x2APIC mode, and ids have 32 bits there.
        let x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        enable(KVM_CAP_X2APIC_API, x2apic, "KVM_CAP_X2APIC_API")?;
        // Kernels before 5.19 have no way to disable more than the first.
        let all = fd.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into()).max(0) as u32;
        let (cap, quirks) = if all != 0 {
            (KVM_CAP_DISABLE_QUIRKS2, QUIRKS & all)
        } else {
            (KVM_CAP_DISABLE_QUIRKS, QUIRKS & 7)
        };
        enable(cap, quirks, "KVM_CAP_DISABLE_QUIRKS2")?;
        enable(KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, "KVM_CAP_X86_USER_SPACE_MSR")?;
        msr::set_filter(&fd, &spec.model)?;
        fd.set_tss_address(TSS_ADDRESS).map_err(host("KVM_SET_TSS_ADDR"))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(host("KVM_SET_IDENTITY_MAP_ADDR"))?;

        let cpuid = |id| cpuid::table(&spec.model, id);
        let parked = (0..spec.vcpus).map(|id| {
            let vcpu = fd.create_vcpu(id.into()).map_err(host("KVM_CREATE_VCPU"))?;
            vcpu.set_cpuid2(&cpuid(id)?).map_err(host("KVM_SET_CPUID2"))?;
            Ok(Mutex::new(Some(vcpu)))
        });
        let parked = parked.collect::<Result<_, AccelError>>()?;
        let fd = Arc::new(fd);
        let requests: Arc<[Arc<VcpuRequests>]> = (0..spec.vcpus).map(|_| Arc::default()).collect();
        let port = Arc::new(KvmPort::new(fd.clone(), requests.clone()));
        let pulse = Pulse::start()
            .map_err(|source| AccelError::Host { what: "no thread for the pulse of time", source })?;
        Ok(Self { fd, spec: spec.clone(), slots: Slots::default(), requests, parked, port, _pulse: pulse })
    }
}

/// KVM_CREATE_VM, which a signal may interrupt.
pub(crate) fn create(kvm: &Kvm) -> Result<VmFd, AccelError> {
    loop {
        match kvm.create_vm() {
            Ok(vm) => return Ok(vm),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(host("KVM_CREATE_VM")(error)),
        }
    }
}

fn address(at: IoEventAddress) -> kvm_ioctls::IoEventAddress {
    match at {
        IoEventAddress::Port(port) => kvm_ioctls::IoEventAddress::Pio(port.into()),
        IoEventAddress::Memory(gpa) => kvm_ioctls::IoEventAddress::Mmio(gpa),
    }
}

impl AccelVm for KvmVm {
    fn map(&self, slot: SlotId, region: &RamRegion, access: Access) -> Result<(), AccelError> {
        // The dirty log is reported by page numbers of this VM's RAM.
        if !Arc::ptr_eq(region.flags(), self.spec.ram.flags()) {
            return Err(AccelError::BadSlot { slot: slot.0, why: "is not a region of this VM's RAM" });
        }
        self.slots.map(&self.fd, slot, region, access)
    }

    fn unmap(&self, slot: SlotId) -> Result<(), AccelError> {
        self.slots.unmap(&self.fd, slot)
    }

    fn bind_vcpu(&self, cfg: &VcpuConfig, bus: Arc<dyn VcpuBus>) -> Result<Box<dyn Vcpu>, AccelError> {
        let place = self.parked.get(cfg.id as usize);
        let free = place.and_then(|place| place.lock().unwrap_or_else(PoisonError::into_inner).take());
        let Some(fd) = free else { return Err(AccelError::BadVcpu(cfg.id)) };
        let requests = self.requests[cfg.id as usize].clone();
        Ok(Box::new(KvmVcpu::new(
            cfg.id,
            fd,
            self.fd.clone(),
            self.parked.clone(),
            requests,
            self.spec.clone(),
            bus,
        )?))
    }

    fn interrupts(&self) -> Arc<dyn InterruptPort> {
        self.port.clone()
    }

    fn attach_ioeventfd(&self, at: IoEventAddress, event: &EventFd) -> Result<bool, AccelError> {
        if self.fd.check_extension_raw(KVM_CAP_IOEVENTFD_ANY_LENGTH.into()) <= 0 {
            return Ok(false);
        }
        self.fd.register_ioevent(event, &address(at), NoDatamatch).map_err(host("KVM_IOEVENTFD"))?;
        Ok(true)
    }

    fn detach_ioeventfd(&self, at: IoEventAddress, event: &EventFd) -> Result<(), AccelError> {
        self.fd.unregister_ioevent(event, &address(at), NoDatamatch).map_err(host("KVM_IOEVENTFD"))
    }

    fn start_dirty_log(&self) -> Result<(), AccelError> {
        self.slots.start_log(&self.fd)
    }

    fn take_dirty(&self) -> Result<DirtyPages, AccelError> {
        self.slots.collect(&self.fd)?;
        Ok(self.spec.ram.flags().take_dirty())
    }
}
