//! Guests that nobody wrote: random states, random tables, random code.
//!
//! 1. A *batch* is a fresh VM whose RAM is filled from one seed ([`scene`]). Its vCPUs take random states one after the
//!    other and run until kicked.
//! 2. Meanwhile a *pest* thread kicks, writes RAM as DMA does, sends interrupts, maps and unmaps a slot and collects the
//!    dirty log.
//! 3. Whatever the guest does, `run` must return soon after a kick, its state must be saved and loaded again, the bus
//!    must see only accesses that are not RAM, and memory that is not mapped or read-only must stay as it was.
//!
//! [`fuzz`] has the same guests one at a time and from a fuzzer's bytes, each aimed at a part of the processor.
//!
//! A crash takes the process with it; the seed of each batch is printed before it starts (run with `--nocapture`).

pub mod fuzz;
mod scene;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};

use accel_api::x86::*;
use accel_api::*;
use vm_memory::{Bytes, GuestAddress};

use scene::Random;

/// Guest-physical layout: `(start, bytes)`.
const LOW: (u64, u64) = (0, 0x10_0000);
/// A slot that comes and goes.
const MOVING: (u64, u64) = (0x20_0000, 0x1_0000);
/// A slot that is read-only.
const ROM: (u64, u64) = (0x40_0000, 0x1_0000);
/// RAM that is never mapped, so that nothing may write there.
const OUTSIDE: (u64, u64) = (0x60_0000, 0x1_0000);
const LAYOUT: [(u64, u64); 4] = [LOW, MOVING, ROM, OUTSIDE];
const MOVING_SLOT: SlotId = SlotId(1);

/// States a vCPU takes in one batch.
const CASES: u32 = 48;
/// A `run` that has not returned so long after being kicked hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happened.
#[derive(Debug, Default)]
pub struct Report {
    /// States that ran.
    pub cases: u64,
    /// States that `load` refused.
    pub refused: u64,
    /// Guests that shut down.
    pub triple_faults: u64,
    /// Returns by a kick.
    pub kicked: u64,
    /// Accesses the bus saw.
    pub bus: u64,
}

#[derive(Debug, Default)]
struct Counters {
    cases: AtomicU64,
    refused: AtomicU64,
    triple_faults: AtomicU64,
    kicked: AtomicU64,
    bus: AtomicU64,
}

/// Runs batches from `seed` on for `time`, alternately with one and with two vCPUs.
///
/// # Panics
/// A rule of the module's description is broken. A hang aborts the process.
pub fn run(accel: &Arc<dyn Accelerator>, seed: u64, time: Duration) -> Report {
    let counters = Arc::new(Counters::default());
    let start = Instant::now();
    let mut n = 0;
    while start.elapsed() < time {
        #[allow(clippy::print_stderr)] // what a crash leaves behind
        {
            eprintln!("batch {:#x}", seed.wrapping_add(n));
        }
        batch(accel, seed.wrapping_add(n), 1 + (n % 2) as u32, &counters);
        n += 1;
    }
    let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
    let report = Report {
        cases: get(&counters.cases),
        refused: get(&counters.refused),
        triple_faults: get(&counters.triple_faults),
        kicked: get(&counters.kicked),
        bus: get(&counters.bus),
    };
    #[allow(clippy::print_stderr)] // for whoever runs it for hours
    {
        eprintln!("{report:?}");
    }
    report
}

/// [`run`] for as long as HOSTILE_SECONDS says (15 if it says nothing), from seed HOSTILE_SEED; there must be something to
/// see of what was to be tested.
///
/// # Panics
/// As [`run`]; if nothing was tested; if one of the variables is no number.
pub fn suite(accel: &Arc<dyn Accelerator>) {
    let number = |name| setting(name).unwrap_or(if name == "HOSTILE_SEED" { 1 } else { 15 });
    let report = run(accel, number("HOSTILE_SEED"), Duration::from_secs(number("HOSTILE_SECONDS")));
    assert!(report.cases > 100 && report.kicked > 0 && report.bus > 0, "nothing was tested: {report:?}");
    assert!(report.refused * 2 < report.cases, "too few states are loaded: {report:?}");
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// All that `accel` has.
fn model(accel: &Arc<dyn Accelerator>, vcpus: u32) -> CpuModel {
    let mut model = CpuModel::named("host", vcpus, crate::rig::tsc_khz()).expect("model");
    model.fit(accel.caps());
    model
}

fn batch(accel: &Arc<dyn Accelerator>, seed: u64, vcpus: u32, counters: &Arc<Counters>) {
    let ram = Arc::new(GuestRam::new(&LAYOUT).expect("RAM"));
    let spec = VmSpec { model: Arc::new(model(accel, vcpus)), ram: ram.clone(), vcpus };
    let vm = accel.create_vm(&spec).expect("create_vm");
    vm.map(SlotId(0), &ram.regions()[0], Access::ReadWrite).expect("map");
    vm.map(SlotId(2), &ram.regions()[2], Access::ReadOnly).expect("map");
    let mut random = Random::new(seed);
    scene::fill(&ram, &mut random);
    let before = [contents(&ram, ROM), contents(&ram, OUTSIDE)];

    let running = AtomicU64::new(u64::from(vcpus));
    let barrier = Barrier::new(vcpus as usize + 1);
    let kicks = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|s| {
        for id in 0..vcpus {
            let random = Random::new(seed ^ u64::from(id + 1) << 56);
            let (vm, kicks, barrier, running, counters) = (&vm, &kicks, &barrier, &running, counters.clone());
            let exact = accel.caps().exact;
            s.spawn(move || {
                let _done = Done(running);
                vcpu(vm, id, random, kicks, barrier, &counters, exact);
            });
        }
        barrier.wait();
        pest(&vm, &ram, random, &kicks.lock().expect("lock"), &running, counters, seed);
    });
    assert!(
        before == [contents(&ram, ROM), contents(&ram, OUTSIDE)],
        "batch {seed:#x} wrote where it may not"
    );
}

/// Counts down also when a check panics.
struct Done<'a>(&'a AtomicU64);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn contents(ram: &GuestRam, (at, len): (u64, u64)) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    ram.memory().read_slice(&mut bytes, GuestAddress(at)).expect("RAM");
    bytes
}

/// One vCPU through its states.
fn vcpu(
    vm: &Arc<dyn AccelVm>,
    id: VcpuId,
    mut random: Random,
    kicks: &std::sync::Mutex<Vec<Arc<dyn Kick>>>,
    barrier: &Barrier,
    counters: &Arc<Counters>,
    exact: bool,
) {
    let bus = Arc::new(Bus {
        exact,
        state: AtomicU64::new(random.next()),
        port: vm.interrupts(),
        inside: AtomicBool::new(false),
        kick: OnceLock::new(),
        counters: counters.clone(),
    });
    let mut vcpu = vm.bind_vcpu(&VcpuConfig { id }, bus.clone()).expect("bind_vcpu");
    bus.kick.set(vcpu.kicker()).expect("once");
    kicks.lock().expect("lock").push(vcpu.kicker());
    barrier.wait();
    for _ in 0..CASES {
        let state = scene::state(id, &mut random);
        if vcpu.load(&state).is_err() {
            counters.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        if random.one_in(8) {
            let plan = DebugPlan { breakpoints: vec![state.rip], single_step: random.one_in(2) };
            vcpu.set_debug(&plan).expect("plan");
        } else {
            vcpu.set_debug(&DebugPlan::default()).expect("plan");
        }
        counters.cases.fetch_add(1, Ordering::Relaxed);
        for _ in 0..1 + random.below(3) {
            match vcpu.run().expect("the host does not fail because of a guest") {
                Exit::Kicked => {
                    counters.kicked.fetch_add(1, Ordering::Relaxed);
                }
                Exit::TripleFault => {
                    counters.triple_faults.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Exit::Debug(_) => {}
                Exit::Unsupported(_) if !exact => break,
                other => panic!("{other:x?}"),
            }
        }
        // What it has come to can be saved, and loaded again.
        let after = vcpu.save().expect("save");
        vcpu.load(&after).expect("a state that was saved");
    }
}

/// Disturbs until the vCPUs are done.
fn pest(
    vm: &Arc<dyn AccelVm>,
    ram: &GuestRam,
    mut random: Random,
    kicks: &[Arc<dyn Kick>],
    running: &AtomicU64,
    counters: &Counters,
    seed: u64,
) {
    let port = vm.interrupts();
    let mut mapped = false;
    let (mut seen, mut since) = (0, Instant::now());
    while running.load(Ordering::SeqCst) > 0 {
        for _ in 0..random.below(4) {
            std::thread::yield_now();
        }
        match random.below(12) {
            0 => {
                let at = random.below(LOW.1 - 8);
                ram.memory().write_obj(random.next(), GuestAddress(at)).expect("RAM");
            }
            1 => {
                let message = MsiMessage {
                    address: 0xfee0_0000 | random.next() & 0xf_fffc,
                    data: random.next() as u32 & 0xcfff,
                };
                port.signal_msi(message).expect("signal_msi");
            }
            2 => port.inject_nmi(random.below(3) as u32),
            3 => port.set_extint(random.one_in(2)),
            4 if random.one_in(4) => {
                let changed = if mapped {
                    vm.unmap(MOVING_SLOT)
                } else {
                    vm.map(MOVING_SLOT, &ram.regions()[1], Access::ReadWrite)
                };
                changed.expect("map or unmap");
                mapped = !mapped;
            }
            5 => {
                vm.take_dirty().expect("take_dirty");
            }
            _ => kicks.iter().for_each(|k| k.kick()),
        }
        let now = counters.kicked.load(Ordering::Relaxed)
            + counters.triple_faults.load(Ordering::Relaxed)
            + counters.cases.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > PATIENCE {
            #[allow(clippy::print_stderr)] // a thread that hangs cannot be failed otherwise
            {
                eprintln!("batch {seed:#x}: a vCPU does not return when it is kicked");
            }
            std::process::abort();
        }
    }
}

/// Devices that answer anything, and now and then interrupt.
struct Bus {
    /// See [`accel_api::AccelCaps::exact`]. Processors may have more physical address bits than the model.
    exact: bool,
    state: AtomicU64,
    port: Arc<dyn InterruptPort>,
    /// An access is under way: the vCPU must not start another one on this thread.
    inside: AtomicBool,
    kick: OnceLock<Arc<dyn Kick>>,
    counters: Arc<Counters>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bus")
    }
}

impl Bus {
    fn access(&self) -> u64 {
        assert!(!self.inside.swap(true, Ordering::Relaxed), "two accesses of one vCPU at the same time");
        self.counters.bus.fetch_add(1, Ordering::Relaxed);
        let mut random = Random::new(self.state.fetch_add(1, Ordering::Relaxed));
        if random.one_in(16) {
            let message = MsiMessage { address: 0xfee0_0000, data: random.next() as u32 & 0xff };
            self.port.signal_msi(message).expect("signal_msi");
        }
        if random.one_in(64)
            && let Some(kick) = self.kick.get()
        {
            kick.kick();
        }
        self.inside.store(false, Ordering::Relaxed);
        random.next()
    }
}

impl VcpuBus for Bus {
    fn mmio_read(&self, gpa: u64, size: IoSize) -> u64 {
        let end = gpa.checked_add(size.bytes() as u64).expect("a wrapping access");
        for (start, len) in [LOW, ROM] {
            assert!(end <= start || gpa >= start + len, "a load of RAM at {gpa:#x} reached the bus");
        }
        assert!(end <= 1 << PHYS_BITS || !self.exact, "{gpa:#x} is beyond the physical addresses");
        self.access()
    }
    fn mmio_write(&self, gpa: u64, size: IoSize, _: u64) {
        let end = gpa.checked_add(size.bytes() as u64).expect("a wrapping access");
        assert!(end <= LOW.0 || gpa >= LOW.0 + LOW.1, "a store to RAM at {gpa:#x} reached the bus");
        assert!(end <= 1 << PHYS_BITS || !self.exact, "{gpa:#x} is beyond the physical addresses");
        self.access();
    }
    fn pio_read(&self, _: u16, size: IoSize) -> u32 {
        assert!(size <= IoSize::Dword);
        self.access() as u32
    }
    fn pio_write(&self, _: u16, size: IoSize, value: u32) {
        assert!(u64::from(value) <= size.ones(), "{value:#x} is wider than its size");
        self.access();
    }
    fn msr_read(&self, _: u32) -> Result<u64, GpFault> {
        if self.access() & 1 == 0 { Err(GpFault) } else { Ok(self.access()) }
    }
    fn msr_write(&self, _: u32, _: u64) -> Result<(), GpFault> {
        if self.access() & 1 == 0 { Err(GpFault) } else { Ok(()) }
    }
    fn ack_extint(&self) -> Option<u8> {
        let answer = self.access();
        (answer & 1 == 0).then_some((answer >> 8) as u8)
    }
    fn eoi(&self, _: u8) {}
}
