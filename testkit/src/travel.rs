//! A backend whose guests move: between instructions, the vCPU is saved, loaded into a fresh VM over the same RAM, and
//! the old VM is dropped. Any check that passes on a backend must pass on the backend travelling, which finds what
//! `save` and `load` lose.
//!
//! VMs of several vCPUs stay where they are, since all vCPUs would have to stop for a move.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use accel_api::*;

/// Steps before the first pauses: at each of these the guest moves.
const EVERY_STEP: u64 = 192;
/// Steps after which the guest runs freely and stays, so that loops end in time.
const LAST_STEP: u64 = 3000;
/// Steps between moves in the meantime.
const STRIDE: u64 = 61;

/// Wraps a backend.
pub fn travelling(inner: Arc<dyn Accelerator>) -> Arc<dyn Accelerator> {
    Arc::new(Travelling { inner })
}

#[derive(Debug)]
struct Travelling {
    inner: Arc<dyn Accelerator>,
}

impl Accelerator for Travelling {
    fn id(&self) -> AccelId {
        self.inner.id()
    }
    fn caps(&self) -> &AccelCaps {
        self.inner.caps()
    }
    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn AccelVm>, AccelError> {
        let vm = self.inner.create_vm(spec)?;
        if spec.vcpus > 1 {
            return Ok(vm);
        }
        let place = Place { vm, slots: Vec::new(), extint: false };
        Ok(Arc::new(Shared { accel: self.inner.clone(), spec: spec.clone(), place: RwLock::new(place) })
            .wrap())
    }
}

/// Where the guest is now.
#[derive(Debug)]
struct Place {
    vm: Arc<dyn AccelVm>,
    slots: Vec<(SlotId, RamRegion, Access)>,
    extint: bool,
}

#[derive(Debug)]
struct Shared {
    accel: Arc<dyn Accelerator>,
    spec: VmSpec,
    /// Held for reading while something enters the VM, for writing during a move: nothing gets lost in between.
    place: RwLock<Place>,
}

impl Shared {
    fn wrap(self: Arc<Self>) -> Arc<dyn AccelVm> {
        Arc::new(Vm(self))
    }
    fn here<T>(&self, f: impl FnOnce(&Place) -> T) -> T {
        f(&self.place.read().unwrap_or_else(PoisonError::into_inner))
    }
    fn change<T>(&self, f: impl FnOnce(&mut Place) -> T) -> T {
        f(&mut self.place.write().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug)]
struct Vm(Arc<Shared>);

impl AccelVm for Vm {
    fn map(&self, slot: SlotId, region: &RamRegion, access: Access) -> Result<(), AccelError> {
        self.0.change(|place| {
            place.vm.map(slot, region, access)?;
            place.slots.push((slot, region.clone(), access));
            Ok(())
        })
    }
    fn unmap(&self, slot: SlotId) -> Result<(), AccelError> {
        self.0.change(|place| {
            place.vm.unmap(slot)?;
            place.slots.retain(|s| s.0 != slot);
            Ok(())
        })
    }
    fn bind_vcpu(&self, cfg: &VcpuConfig, bus: Arc<dyn VcpuBus>) -> Result<Box<dyn Vcpu>, AccelError> {
        let vcpu = self.0.here(|place| place.vm.bind_vcpu(cfg, bus.clone()))?;
        let kick = Arc::new(Relay { kicked: AtomicBool::new(false), to: Mutex::new(vcpu.kicker()) });
        Ok(Box::new(Traveller {
            shared: self.0.clone(),
            config: *cfg,
            bus,
            kick,
            vcpu: Some(vcpu),
            plan: DebugPlan::default(),
            steps: 0,
        }))
    }
    fn interrupts(&self) -> Arc<dyn InterruptPort> {
        Arc::new(Port(self.0.clone()))
    }
    fn collect_dirty(&self, into: &PageFlags) -> Result<(), AccelError> {
        self.0.here(|place| place.vm.collect_dirty(into))
    }
}

#[derive(Debug)]
struct Port(Arc<Shared>);

impl InterruptPort for Port {
    fn signal_msi(&self, message: MsiMessage) -> Result<(), AccelError> {
        self.0.here(|place| place.vm.interrupts().signal_msi(message))
    }
    fn set_route(&self, pin: u8, route: Option<IoapicRoute>) -> Result<(), AccelError> {
        self.0.here(|place| place.vm.interrupts().set_route(pin, route))
    }
    fn set_extint(&self, asserted: bool) {
        self.0.change(|place| {
            place.extint = asserted;
            place.vm.interrupts().set_extint(asserted);
        });
    }
    fn inject_nmi(&self, vcpu: VcpuId) {
        self.0.here(|place| place.vm.interrupts().inject_nmi(vcpu));
    }
}

/// Passes kicks on to wherever the vCPU is.
#[derive(Debug)]
struct Relay {
    kicked: AtomicBool,
    to: Mutex<Arc<dyn Kick>>,
}

impl Kick for Relay {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.to.lock().unwrap_or_else(PoisonError::into_inner).kick();
    }
}

struct Traveller {
    shared: Arc<Shared>,
    config: VcpuConfig,
    bus: Arc<dyn VcpuBus>,
    kick: Arc<Relay>,
    /// `None` only in the middle of a move.
    vcpu: Option<Box<dyn Vcpu>>,
    plan: DebugPlan,
    steps: u64,
}

impl Traveller {
    fn vcpu(&mut self) -> &mut dyn Vcpu {
        self.vcpu.as_deref_mut().expect("a move that failed")
    }

    /// The plan that stops the inner vCPU after each instruction, or no longer.
    fn apply_plan(&mut self) -> Result<(), AccelError> {
        let single_step = self.plan.single_step || self.steps < LAST_STEP;
        let plan = DebugPlan { breakpoints: self.plan.breakpoints.clone(), single_step };
        self.vcpu().set_debug(&plan)
    }

    fn relocate(&mut self) -> Result<(), AccelError> {
        let shared = self.shared.clone();
        let moved = shared.change(|place| {
            let state = self.vcpu().save()?;
            let vm = shared.accel.create_vm(&shared.spec)?;
            for (slot, region, access) in &place.slots {
                vm.map(*slot, region, *access)?;
            }
            let mut fresh = vm.bind_vcpu(&self.config, self.bus.clone())?;
            fresh.load(&state)?;
            vm.interrupts().set_extint(place.extint);
            let (before, armed) = canonical(state);
            let (after, still_armed) = canonical(fresh.save()?);
            assert_eq!(before.diff(&after), [], "save, load, save");
            assert_eq!(armed, still_armed, "the timer's interrupt was lost or made up");
            *self.kick.to.lock().unwrap_or_else(PoisonError::into_inner) = fresh.kicker();
            if self.kick.kicked.load(Ordering::SeqCst) {
                fresh.kicker().kick();
            }
            self.vcpu = Some(fresh);
            place.vm = vm;
            Ok::<_, AccelError>(())
        });
        moved?;
        self.apply_plan()
    }
}

/// What must survive a move: everything but the passage of time. Whether the timer will still interrupt, or has just
/// done so, is one thing here.
fn canonical(mut state: CpuState) -> (CpuState, bool) {
    state.normalise();
    let lapic = &mut state.lapic;
    let vector = lapic.lvt_timer as u8;
    let request = &mut lapic.irr[usize::from(vector >> 6)];
    let bit = 1 << (vector & 63);
    let masked = lapic.lvt_timer & 1 << 16 != 0;
    let armed = lapic.timer_remaining_ns != 0 || lapic.tsc_deadline != 0 || *request & bit != 0;
    *request &= !bit;
    (lapic.timer_remaining_ns, lapic.tsc_deadline) = (0, 0);
    (state, armed && !masked)
}

impl Vcpu for Traveller {
    fn run(&mut self) -> Result<Exit, AccelError> {
        self.apply_plan()?;
        loop {
            match self.vcpu().run()? {
                Exit::Kicked => {
                    if self.kick.kicked.swap(false, Ordering::SeqCst) {
                        return Ok(Exit::Kicked);
                    }
                }
                Exit::Debug(DebugStop::Step) => {
                    self.steps += 1;
                    if self.steps < EVERY_STEP || self.steps < LAST_STEP && self.steps.is_multiple_of(STRIDE)
                    {
                        self.relocate()?;
                    } else if self.steps == LAST_STEP {
                        self.apply_plan()?;
                    }
                    if self.plan.single_step {
                        return Ok(Exit::Debug(DebugStop::Step));
                    }
                }
                // The vCPU that stopped at a breakpoint goes on: no other knows that it must pass it.
                other => return Ok(other),
            }
        }
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }

    fn save(&mut self) -> Result<CpuState, AccelError> {
        self.vcpu().save()
    }

    fn load(&mut self, state: &CpuState) -> Result<(), AccelError> {
        self.vcpu().load(state)?;
        self.relocate()
    }

    fn set_debug(&mut self, plan: &DebugPlan) -> Result<(), AccelError> {
        let old = std::mem::replace(&mut self.plan, plan.clone());
        let result = self.apply_plan();
        if result.is_err() {
            self.plan = old;
        }
        result
    }

    fn stats(&self) -> VcpuStats {
        self.vcpu.as_deref().map(Vcpu::stats).unwrap_or_default()
    }
}
