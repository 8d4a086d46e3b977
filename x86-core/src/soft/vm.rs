//! The VM: memory slots, vCPUs, interrupt inputs.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use accel_api::host_time::Pulse;
use accel_api::{
    AccelError, AccelId, AccelVm, Access, DirtyPages, Gsi, InterruptPort, IrqRoute, MsiMessage, RamRegion,
    SlotId, Vcpu, VcpuBus, VcpuConfig, VcpuId, VmSpec,
};

use super::alarm::Alarm;
use super::{Executor, MAX_VCPUS, SoftVcpu, features};
use crate::Cpu;
use crate::lapic::{ApicBus, ApicHost, ApicMessage, Lapic, LapicConfig};
use crate::shared::{VmShared, request};

/// A VM whose vCPUs run on `E`.
#[derive(Debug)]
pub struct SoftVm<E: Executor> {
    spec: VmSpec,
    shared: Arc<VmShared>,
    apic: Arc<ApicBus>,
    bound: Arc<[AtomicBool]>,
    config: E::Config,
    alarm: Arc<Alarm>,
    executor: PhantomData<fn() -> E>,
    /// Time goes on while vCPUs sleep.
    _pulse: Pulse,
}

impl<E: Executor> SoftVm<E> {
    /// An empty VM for the backend `id`.
    ///
    /// # Errors
    /// The model asks for features this host's software CPU lacks, or for too many vCPUs.
    pub fn new(id: AccelId, spec: &VmSpec, config: E::Config) -> Result<Arc<Self>, AccelError> {
        let missing = spec.model.features.missing_from(&features());
        if !missing.is_empty() {
            let missing = missing.into_iter().map(str::to_owned).collect();
            return Err(AccelError::MissingFeatures { accel: id, missing });
        }
        if spec.vcpus == 0 || spec.vcpus > MAX_VCPUS {
            return Err(AccelError::TooManyVcpus { accel: id, asked: spec.vcpus, max: MAX_VCPUS });
        }
        let shared = VmShared::new(spec.ram.flags().clone(), spec.vcpus);
        let inboxes: Weak<VmShared> = Arc::downgrade(&shared);
        let kick = move |vcpu: usize| {
            if let Some(vm) = inboxes.upgrade() {
                vm.vcpus[vcpu].post(request::INTERRUPT);
            }
        };
        let pulse = Pulse::start()
            .map_err(|source| AccelError::Host { what: "no thread for the pulse of time", source })?;
        Ok(Arc::new(Self {
            spec: spec.clone(),
            alarm: Arc::new(Alarm::new(shared.clone(), spec.model.tsc_khz)),
            config,
            shared,
            apic: Arc::new(ApicBus::new(0..spec.vcpus, Arc::new(kick))),
            bound: (0..spec.vcpus).map(|_| AtomicBool::new(false)).collect(),
            executor: PhantomData,
            _pulse: pulse,
        }))
    }
}

impl<E: Executor> SoftVm<E> {
    /// No vCPU can store to a page without flagging it when this returns.
    fn settle_dirty(&self) {
        self.shared.post_all(request::DIRTY);
        self.shared.vcpus.iter().for_each(|v| v.settle(request::DIRTY));
    }
}

impl<E: Executor> AccelVm for SoftVm<E> {
    fn map(&self, slot: SlotId, region: &RamRegion, access: Access) -> Result<(), AccelError> {
        // Page indices of another RAM would not fit our flags.
        let why = |why| AccelError::BadSlot { slot: slot.0, why };
        if !Arc::ptr_eq(region.flags(), self.spec.ram.flags()) {
            return Err(why("is not a region of this VM's RAM"));
        }
        self.shared.remap(|map| map.with(slot, region, access)).map_err(why)
    }

    fn unmap(&self, slot: SlotId) -> Result<(), AccelError> {
        self.shared.remap(|map| map.without(slot)).map_err(|why| AccelError::BadSlot { slot: slot.0, why })
    }

    fn bind_vcpu(&self, cfg: &VcpuConfig, bus: Arc<dyn VcpuBus>) -> Result<Box<dyn Vcpu>, AccelError> {
        let free = self.bound.get(cfg.id as usize).is_some_and(|b| !b.swap(true, Ordering::AcqRel));
        let config = LapicConfig {
            bsp: cfg.id == 0,
            x2apic: self.spec.model.features.has(accel_api::x86::Feature::X2apic),
            eoi_suppression: false,
            phys_addr_bits: accel_api::x86::PHYS_BITS as u8,
        };
        let host = Arc::new(EoiToBus { bus: bus.clone(), vm: self.shared.clone(), id: cfg.id as usize });
        let lapic = Lapic::new(self.apic.clone(), cfg.id as usize, config, host);
        let (true, Some(lapic)) = (free, lapic) else { return Err(AccelError::BadVcpu(cfg.id)) };
        let cpu = Cpu::new(cfg.id, self.shared.clone(), self.spec.model.clone(), bus, lapic);
        let made =
            E::place(cpu).and_then(|mut cpu| E::new(&mut cpu, &self.config).map(|executor| (cpu, executor)));
        let (cpu, executor) =
            made.inspect_err(|_| self.bound[cfg.id as usize].store(false, Ordering::Release))?;
        let (alarm, bound) = (self.alarm.clone(), self.bound.clone());
        Ok(Box::new(SoftVcpu::new(cpu, executor, alarm, bound, self.spec.ram.clone())))
    }

    fn interrupts(&self) -> Arc<dyn InterruptPort> {
        Arc::new(SoftPort { apic: self.apic.clone() })
    }

    fn start_dirty_log(&self) -> Result<(), AccelError> {
        // Pages are flagged as they become writable in the TLB, always; from here on that must happen anew. Flags that are
        // there may be another accelerator's, from which the guest comes.
        self.settle_dirty();
        Ok(())
    }

    fn take_dirty(&self) -> Result<DirtyPages, AccelError> {
        // Flags first: a page that is stored to between the two is among those taken, whose copy comes later. In the other
        // order, one that became writable between the two would be stored to without a flag from then on.
        let taken = self.spec.ram.flags().take_dirty();
        self.settle_dirty();
        Ok(taken)
    }
}

#[derive(Debug)]
struct EoiToBus {
    bus: Arc<dyn VcpuBus>,
    vm: Arc<VmShared>,
    id: usize,
}

impl ApicHost for EoiToBus {
    /// Called by the vCPU, for which nobody waits meanwhile, as for any access to the bus.
    fn eoi(&self, vector: u8) {
        let present = self.vm.vcpus[self.id].leave();
        self.bus.eoi(vector);
        if present {
            self.vm.enter(self.id, 0);
        }
    }
}

#[derive(Debug)]
struct SoftPort {
    apic: Arc<ApicBus>,
}

impl InterruptPort for SoftPort {
    fn signal_msi(&self, message: MsiMessage) -> Result<(), AccelError> {
        if let Some(message) = ApicMessage::from_msi(message.address, message.data) {
            self.apic.deliver(&message, None);
        }
        Ok(())
    }

    fn set_route(&self, _: Gsi, _: Option<IrqRoute>) -> Result<(), AccelError> {
        // The trigger mode travels with each message, so EOIs of level interrupts are known without it.
        Ok(())
    }

    fn set_extint(&self, asserted: bool) {
        self.apic.set_lint0(asserted);
    }

    fn inject_nmi(&self, vcpu: VcpuId) {
        self.apic.inject_nmi(vcpu as usize);
    }
}
