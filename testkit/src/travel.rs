//! A backend whose guests move: between instructions, the vCPU is saved, loaded into a fresh VM over the same RAM, and
//! the old VM is dropped. Any check that passes on a backend must pass on the backend travelling, which finds what
//! `save` and `load` lose.
//!
//! 1. On an exact backend the guest moves between single steps.
//! 2. Where stepping is not exact ([`accel_api::AccelCaps::exact`]), it moves behind its device accesses, and whenever a
//!    clock says so: asleep, in the middle of its loops, with interrupts on their way.
//! 3. VMs of several vCPUs stay where they are, since all vCPUs would have to stop for a move.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use accel_api::x86::*;
use accel_api::*;

/// Steps before the first pauses: at each of these the guest moves.
const EVERY_STEP: u64 = 192;
/// Steps after which the guest runs freely and stays, so that loops end in time.
const LAST_STEP: u64 = 3000;
/// Steps between moves in the meantime.
const STRIDE: u64 = 61;
/// Moves of a guest that is not stepped.
const MOVES: u64 = 40;
/// Time between two of its moves that no device access causes: at least this, and so many times what a move takes.
const PERIOD: Duration = Duration::from_millis(2);
const REST: u32 = 3;

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
        let place = Place { vm, slots: Vec::new(), routes: BTreeMap::new(), extint: false, logging: false };
        Ok(Arc::new(Shared { accel: self.inner.clone(), spec: spec.clone(), place: RwLock::new(place) })
            .wrap())
    }
}

/// Where the guest is now.
#[derive(Debug)]
struct Place {
    vm: Arc<dyn AccelVm>,
    slots: Vec<(SlotId, RamRegion, Access)>,
    routes: BTreeMap<Gsi, IrqRoute>,
    extint: bool,
    /// Stores are recorded.
    logging: bool,
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
        let exact = self.0.accel.caps().exact;
        let kick = Arc::new(Relay::default());
        let bus: Arc<dyn VcpuBus> =
            if exact { bus } else { Arc::new(Bus { inner: bus, kick: kick.clone() }) };
        let vcpu = self.0.here(|place| place.vm.bind_vcpu(cfg, bus.clone()))?;
        kick.lead_to(vcpu.kicker());
        let clock = (!exact).then(|| clock(kick.clone()));
        Ok(Box::new(Traveller {
            exact,
            _clock: clock,
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
    fn start_dirty_log(&self) -> Result<(), AccelError> {
        self.0.change(|place| {
            place.logging = true;
            place.vm.start_dirty_log()
        })
    }
    fn take_dirty(&self) -> Result<DirtyPages, AccelError> {
        self.0.here(|place| place.vm.take_dirty())
    }
}

#[derive(Debug)]
struct Port(Arc<Shared>);

impl InterruptPort for Port {
    fn signal_msi(&self, message: MsiMessage) -> Result<(), AccelError> {
        self.0.here(|place| place.vm.interrupts().signal_msi(message))
    }
    fn set_route(&self, pin: Gsi, route: Option<IrqRoute>) -> Result<(), AccelError> {
        self.0.change(|place| {
            match route {
                Some(route) => place.routes.insert(pin, route),
                None => place.routes.remove(&pin),
            };
            place.vm.interrupts().set_route(pin, route)
        })
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
#[derive(Debug, Default)]
struct Relay {
    kicked: AtomicBool,
    to: Mutex<Option<Arc<dyn Kick>>>,
    /// No earlier than this should a clock cause the next move, or the guest would do nothing else.
    resting_until: Mutex<Option<Instant>>,
}

impl Relay {
    /// A move was made that began at `start`.
    fn moved(&self, start: Instant) {
        let until = Instant::now() + start.elapsed() * REST;
        *self.resting_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    fn rested(&self) -> bool {
        self.resting_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none_or(|until| until < Instant::now())
    }

    fn lead_to(&self, kick: Arc<dyn Kick>) {
        *self.to.lock().unwrap_or_else(PoisonError::into_inner) = Some(kick);
    }

    /// Makes the vCPU stop for a move.
    fn nudge(&self) {
        if let Some(kick) = &*self.to.lock().unwrap_or_else(PoisonError::into_inner) {
            kick.kick();
        }
    }
}

impl Kick for Relay {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.nudge();
    }
}

/// Nudges until what it returns is dropped.
fn clock(kick: Arc<Relay>) -> Sender<()> {
    let (alive, gone) = channel();
    std::thread::spawn(move || {
        while gone.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
            if kick.rested() {
                kick.nudge();
            }
        }
    });
    alive
}

/// A bus whose every access ends in a move.
#[derive(Debug)]
struct Bus {
    inner: Arc<dyn VcpuBus>,
    kick: Arc<Relay>,
}

impl Bus {
    fn then_move<T>(&self, result: T) -> T {
        self.kick.nudge();
        result
    }
}

impl VcpuBus for Bus {
    fn mmio_read(&self, gpa: u64, size: IoSize) -> u64 {
        self.then_move(self.inner.mmio_read(gpa, size))
    }
    fn mmio_write(&self, gpa: u64, size: IoSize, value: u64) {
        self.inner.mmio_write(gpa, size, value);
        self.kick.nudge();
    }
    fn pio_read(&self, port: u16, size: IoSize) -> u32 {
        self.then_move(self.inner.pio_read(port, size))
    }
    fn pio_write(&self, port: u16, size: IoSize, value: u32) {
        self.inner.pio_write(port, size, value);
        self.kick.nudge();
    }
    fn msr_read(&self, index: u32) -> Result<u64, GpFault> {
        self.then_move(self.inner.msr_read(index))
    }
    fn msr_write(&self, index: u32, value: u64) -> Result<(), GpFault> {
        self.then_move(self.inner.msr_write(index, value))
    }
    fn ack_extint(&self) -> Option<u8> {
        // Without a vector nothing happens that could be lost in a move.
        let vector = self.inner.ack_extint();
        if vector.is_some() { self.then_move(vector) } else { None }
    }
    fn eoi(&self, vector: u8) {
        self.inner.eoi(vector);
        self.kick.nudge();
    }
}

struct Traveller {
    exact: bool,
    /// Of a guest that is not stepped.
    _clock: Option<Sender<()>>,
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
        let single_step = self.plan.single_step || self.exact && self.steps < LAST_STEP;
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
            for (pin, route) in &place.routes {
                vm.interrupts().set_route(*pin, Some(*route))?;
            }
            vm.interrupts().set_extint(place.extint);
            if place.logging {
                vm.start_dirty_log()?;
                // What the old one has recorded goes along.
                let flags = shared.spec.ram.flags();
                for page in place.vm.take_dirty()?.iter() {
                    flags.set(page, PageFlag::DIRTY);
                }
            }
            let (before, armed) = canonical(state);
            let (after, still_armed) = canonical(fresh.save()?);
            assert_eq!(before.diff(&after), [], "save, load, save");
            assert_eq!(armed, still_armed, "the timer's interrupt was lost or made up");
            self.kick.lead_to(fresh.kicker());
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
                    if !self.exact && self.steps < MOVES {
                        self.steps += 1;
                        let start = Instant::now();
                        self.relocate()?;
                        self.kick.moved(start);
                    }
                }
                Exit::Debug(DebugStop::Step) if !self.exact => return Ok(Exit::Debug(DebugStop::Step)),
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
