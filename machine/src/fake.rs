//! A backend for tests: its "guest" is a closure that uses the bus.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use accel_api::x86::*;
use accel_api::*;

use crate::memory_map::MIB;
use crate::{Machine, MachineBuilder, Source};

/// A machine on `accelerator`, with a kernel that is never executed.
pub(crate) fn on(accelerator: FakeAccelerator) -> MachineBuilder {
    Machine::builder()
        .memory(16 * MIB)
        .accelerator(Arc::new(accelerator))
        .kernel(Source::bytes("kernel", crate::boot::tests::elf(true)))
}

/// Likewise, whose guest is `program`.
pub(crate) fn guest(program: impl Fn(&mut Guest<'_>) -> Step + Send + Sync + 'static) -> MachineBuilder {
    on(FakeAccelerator::running(program))
}

/// OUT of a byte.
pub(crate) fn out(bus: &dyn VcpuBus, port: u16, value: u8) {
    bus.pio_write(port, IoSize::Byte, value.into());
}

/// Sends SLP_EN with SLP_TYP 5 to PM1a_CNT.
pub(crate) fn power_off(bus: &dyn VcpuBus) {
    bus.pio_write(0x604, IoSize::Word, 5 << 10 | 1 << 13);
}

/// A sink that remembers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Screen(pub(crate) Arc<Mutex<Vec<u8>>>);
impl Screen {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}
impl io::Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the guest's closure wants next.
pub(crate) enum Step {
    /// Be called again.
    Again,
    /// Halt until a kick or an interrupt.
    Halt,
    /// Leave `run`.
    Exit(Exit),
    /// Fail.
    Fail,
    /// Fail by a mistake of one's own.
    Slip,
}

/// What the guest's closure works with.
pub(crate) struct Guest<'a> {
    pub(crate) id: VcpuId,
    pub(crate) bus: &'a dyn VcpuBus,
    pub(crate) state: &'a mut CpuState,
    pub(crate) vm: &'a FakeVm,
}

pub(crate) type Program = dyn Fn(&mut Guest<'_>) -> Step + Send + Sync;

pub(crate) struct FakeAccelerator {
    id: AccelId,
    caps: AccelCaps,
    program: Arc<Program>,
    fails: Option<Fails>,
}

/// What a backend does not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fails {
    Create,
    Bind,
    Map,
    Load,
    /// Gives back another state than was loaded.
    Remember,
    DirtyLog,
    Route,
}

impl std::fmt::Debug for FakeAccelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeAccelerator")
    }
}

impl FakeAccelerator {
    pub(crate) fn named(id: &'static str) -> Self {
        Self { id: AccelId(id), ..Self::running(|_| Step::Halt) }
    }

    pub(crate) fn running(program: impl Fn(&mut Guest<'_>) -> Step + Send + Sync + 'static) -> Self {
        let caps = AccelCaps {
            features: CpuFeatures::of(Feature::ALL),
            speculation: Speculation::WITHOUT_EFFECT,
            max_vcpus: 8,
            exact: true,
        };
        Self { id: AccelId("fake"), caps, program: Arc::new(program), fails: None }
    }

    /// The same guest, on another backend.
    pub(crate) fn another(&self, id: &'static str) -> Self {
        Self { id: AccelId(id), caps: self.caps.clone(), program: self.program.clone(), fails: None }
    }

    pub(crate) fn failing(self, fails: Fails) -> Self {
        Self { fails: Some(fails), ..self }
    }

    pub(crate) fn with_vcpus(mut self, max: u32) -> Self {
        self.caps.max_vcpus = max;
        self
    }

    pub(crate) fn without(mut self, features: &[Feature]) -> Self {
        self.caps.features = self.caps.features.without(features);
        self
    }
}

impl Accelerator for FakeAccelerator {
    fn id(&self) -> AccelId {
        self.id
    }
    fn caps(&self) -> &AccelCaps {
        &self.caps
    }
    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn AccelVm>, AccelError> {
        if self.fails == Some(Fails::Create) {
            return Err(AccelError::BadVcpu(90));
        }
        let port = Arc::new(FakePort { fails: self.fails == Some(Fails::Route), ..FakePort::default() });
        let wakes = (0..spec.vcpus).map(|_| Arc::new(Wake::default())).collect();
        Ok(FakeVm::new(port, wakes, self.program.clone(), &spec.ram, self.fails))
    }
}

pub(crate) struct FakeVm {
    this: std::sync::Weak<FakeVm>,
    pub(crate) port: Arc<FakePort>,
    wakes: Vec<Arc<Wake>>,
    program: Arc<Program>,
    slots: Mutex<Vec<(SlotId, RamRegion)>>,
    ram: Arc<GuestRam>,
    fails: Option<Fails>,
}

impl FakeVm {
    fn new(
        port: Arc<FakePort>,
        wakes: Vec<Arc<Wake>>,
        program: Arc<Program>,
        ram: &Arc<GuestRam>,
        fails: Option<Fails>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            port,
            wakes,
            program,
            slots: Mutex::default(),
            ram: ram.clone(),
            fails,
        })
    }

    /// One without vCPUs.
    pub(crate) fn alone(ram: &Arc<GuestRam>) -> Arc<Self> {
        Self::new(Arc::default(), Vec::new(), Arc::new(|_| Step::Halt), ram, None)
    }

    /// The guest's memory.
    pub(crate) fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Guest-physical address and bytes of each slot.
    pub(crate) fn mapped(&self) -> Vec<(u64, u64)> {
        let mut list: Vec<_> = self.slots.lock().unwrap().iter().map(|(_, r)| (r.gpa(), r.size())).collect();
        list.sort_unstable();
        list
    }
}

impl std::fmt::Debug for FakeVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeVm")
    }
}

impl AccelVm for FakeVm {
    fn map(&self, slot: SlotId, region: &RamRegion, _: Access) -> Result<(), AccelError> {
        if self.fails == Some(Fails::Map) {
            return Err(AccelError::BadSlot { slot: slot.0, why: "no" });
        }
        let mut slots = self.slots.lock().unwrap();
        let overlaps =
            |r: &RamRegion| r.gpa() < region.gpa() + region.size() && region.gpa() < r.gpa() + r.size();
        if slots.iter().any(|(id, r)| *id == slot || overlaps(r)) {
            return Err(AccelError::BadSlot { slot: slot.0, why: "in use" });
        }
        slots.push((slot, region.clone()));
        Ok(())
    }
    fn unmap(&self, slot: SlotId) -> Result<(), AccelError> {
        let mut slots = self.slots.lock().unwrap();
        let bad = AccelError::BadSlot { slot: slot.0, why: "not mapped" };
        let at = slots.iter().position(|(id, _)| *id == slot).ok_or(bad)?;
        slots.remove(at);
        Ok(())
    }
    fn bind_vcpu(&self, cfg: &VcpuConfig, bus: Arc<dyn VcpuBus>) -> Result<Box<dyn Vcpu>, AccelError> {
        if self.fails == Some(Fails::Bind) {
            return Err(AccelError::BadVcpu(91));
        }
        let wake = self.wakes.get(cfg.id as usize).ok_or(AccelError::BadVcpu(cfg.id))?.clone();
        let vm = self.this.upgrade().ok_or(AccelError::BadVcpu(cfg.id))?;
        let state = CpuState::reset(cfg.id);
        Ok(Box::new(FakeVcpu { id: cfg.id, bus, wake, vm, state, runs: AtomicU64::new(0) }))
    }
    fn interrupts(&self) -> Arc<dyn InterruptPort> {
        self.port.clone()
    }
    fn start_dirty_log(&self) -> Result<(), AccelError> {
        if self.fails == Some(Fails::DirtyLog) {
            return Err(AccelError::BadVcpu(92));
        }
        Ok(())
    }
    fn take_dirty(&self) -> Result<DirtyPages, AccelError> {
        Ok(self.ram.flags().take_dirty())
    }
}

/// Remembers what came in.
#[derive(Debug, Default)]
pub(crate) struct FakePort {
    pub(crate) messages: Mutex<Vec<MsiMessage>>,
    pub(crate) nmis: Mutex<Vec<VcpuId>>,
    pub(crate) extint: Mutex<bool>,
    fails: bool,
}

impl InterruptPort for FakePort {
    fn signal_msi(&self, message: MsiMessage) -> Result<(), AccelError> {
        self.messages.lock().unwrap().push(message);
        Ok(())
    }
    fn set_route(&self, _: Gsi, _: Option<IrqRoute>) -> Result<(), AccelError> {
        if self.fails {
            return Err(AccelError::BadVcpu(93));
        }
        Ok(())
    }
    fn set_extint(&self, asserted: bool) {
        *self.extint.lock().unwrap() = asserted;
    }
    fn inject_nmi(&self, vcpu: VcpuId) {
        self.nmis.lock().unwrap().push(vcpu);
    }
}

/// A sticky kick.
#[derive(Debug, Default)]
struct Wake {
    kicked: Mutex<bool>,
    changed: Condvar,
}

impl Kick for Wake {
    fn kick(&self) {
        *self.kicked.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

struct FakeVcpu {
    id: VcpuId,
    bus: Arc<dyn VcpuBus>,
    wake: Arc<Wake>,
    vm: Arc<FakeVm>,
    state: CpuState,
    runs: AtomicU64,
}

impl Vcpu for FakeVcpu {
    fn run(&mut self) -> Result<Exit, AccelError> {
        loop {
            if std::mem::take(&mut *self.wake.kicked.lock().unwrap()) {
                break Ok(Exit::Kicked);
            }
            self.runs.fetch_add(1, Ordering::Relaxed);
            let mut guest =
                Guest { id: self.id, bus: self.bus.as_ref(), state: &mut self.state, vm: &self.vm };
            match (self.vm.program)(&mut guest) {
                Step::Again => {}
                Step::Exit(exit) => break Ok(exit),
                Step::Fail => break Err(AccelError::BadVcpu(self.id)),
                Step::Slip => {
                    let report = BackendReport { text: "host code\n".into(), ..BackendReport::default() };
                    let summary = "wrong in block 7".into();
                    break Err(AccelError::Internal { summary, report: Box::new(report) });
                }
                Step::Halt => {
                    let kicked = self.wake.kicked.lock().unwrap();
                    drop(self.wake.changed.wait_while(kicked, |k| !*k).unwrap());
                }
            }
        }
    }
    fn kicker(&self) -> Arc<dyn Kick> {
        self.wake.clone()
    }
    fn save(&mut self) -> Result<CpuState, AccelError> {
        assert_eq!(self.state.lapic.apic_id, self.id, "the state of another vCPU");
        let mut state = self.state.clone();
        if self.vm.fails == Some(Fails::Remember) {
            state.gpr[0] ^= 1;
        }
        Ok(state)
    }
    fn load(&mut self, state: &CpuState) -> Result<(), AccelError> {
        // The first state is loaded before anything is at stake.
        if self.vm.fails == Some(Fails::Load) && *state != CpuState::reset(self.id) {
            return Err(AccelError::BadVcpu(94));
        }
        self.state = state.clone();
        Ok(())
    }
    fn set_debug(&mut self, _: &DebugPlan) -> Result<(), AccelError> {
        Err(AccelError::BadDebugPlan("the fake has none"))
    }
    fn stats(&self) -> VcpuStats {
        VcpuStats { instructions: Some(self.runs.load(Ordering::Relaxed)), ..VcpuStats::default() }
    }
}
