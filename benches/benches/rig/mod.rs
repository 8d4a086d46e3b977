//! A vCPU for criterion: a bare guest that waits for a number of rounds, does them, and says so.
//!
//! The guest reads the rounds from [`ROUNDS`], does them, writes to [`DONE`], which kicks the vCPU out of `run`, and
//! starts over. So one call of [`Rig::rounds`] enters and leaves the backend once, however many rounds it asks for.
//!
//! [`on_each`] measures the same guest on every backend of the registry that works on this host. One that works and
//! cannot run this guest (a KVM that emulates ring 0 knows only some instructions) is left out, with a line.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use accel_api::x86::CpuModel;
use accel_api::{
    AccelVm, Access, Exit, GpFault, GuestRam, IoSize, Kick, SlotId, Vcpu, VcpuBus, VcpuConfig, VmSpec,
};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId};
use guests::bare::{Image, Runtime};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::boot::{BootSpec, load};
use machine::memory_map::{ACPI_AREA, MIB, MemoryMap};
use machine::{AccelChoice, DEFAULT_MODEL, Needs, Registry, Source, TscFrequency};

/// Port that gives the number of rounds.
const ROUNDS: u16 = 0x5f0;
/// Port that ends them.
const DONE: u16 = 0x5f4;

#[derive(Debug, Default)]
struct Bus {
    rounds: AtomicU32,
    done: AtomicBool,
    kick: OnceLock<Arc<dyn Kick>>,
}

impl VcpuBus for Bus {
    fn mmio_read(&self, _: u64, size: IoSize) -> u64 {
        size.ones()
    }
    fn mmio_write(&self, _: u64, _: IoSize, _: u64) {}
    fn pio_read(&self, port: u16, size: IoSize) -> u32 {
        if port == ROUNDS { self.rounds.load(Ordering::Relaxed) } else { size.ones() as u32 }
    }
    fn pio_write(&self, port: u16, _: IoSize, value: u32) {
        if port == DONE {
            self.done.store(true, Ordering::Relaxed);
            if let Some(kick) = self.kick.get() {
                kick.kick();
            }
        }
        black_box(value);
    }
    fn msr_read(&self, _: u32) -> Result<u64, GpFault> {
        Err(GpFault)
    }
    fn msr_write(&self, _: u32, _: u64) -> Result<(), GpFault> {
        Err(GpFault)
    }
    fn ack_extint(&self) -> Option<u8> {
        None
    }
    fn eoi(&self, _: u8) {}
}

/// Emits a part of the guest.
pub(crate) type Emit<'a> = &'a dyn Fn(&mut CodeAssembler, &mut Runtime) -> Result<(), IcedError>;

/// For guests that need no preparation.
pub(crate) const NOTHING: Emit<'static> = &|_, _| Ok(());

/// Measures rounds on every backend that works here. `prepare` is executed once; `round` as often as asked, with ebp
/// counting down to 1: it may change all registers but rbp and rsp.
pub(crate) fn on_each(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    prepare: Emit<'_>,
    round: Emit<'_>,
) {
    for_each_rig(name, prepare, round, |backend, mut rig| {
        group.bench_function(BenchmarkId::new(name, backend), |b| b.iter_custom(|rounds| rig.rounds(rounds)));
    });
}

/// Makes the guest on every backend that works here.
#[expect(clippy::print_stderr, reason = "criterion prints as well")]
pub(crate) fn for_each_rig(
    name: &str,
    prepare: Emit<'_>,
    round: Emit<'_>,
    mut measure: impl FnMut(&str, Rig),
) {
    let registry = Registry::builtin();
    for descriptor in registry.list() {
        match Rig::new(&registry, descriptor.id.0, prepare, round) {
            Ok(rig) => measure(descriptor.id.0, rig),
            Err(error) => eprintln!("left out: {name} on {}: {error}", descriptor.id),
        }
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// One vCPU with its guest, ready.
pub(crate) struct Rig {
    vcpu: Box<dyn Vcpu>,
    bus: Arc<Bus>,
    _vm: Arc<dyn AccelVm>,
}

impl Rig {
    fn new(registry: &Registry, accel: &str, prepare: Emit<'_>, round: Emit<'_>) -> Result<Self, Failed> {
        let elf = Image::new().work(32 * MIB).assemble(|a, rt| {
            let (mut start, mut top) = (a.create_label(), a.create_label());
            prepare(a, rt)?;
            a.set_label(&mut start)?;
            a.mov(edx, u32::from(ROUNDS))?;
            a.in_(eax, dx)?;
            a.mov(ebp, eax)?;
            a.set_label(&mut top)?;
            round(a, rt)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.mov(edx, u32::from(DONE))?;
            a.out(dx, eax)?;
            a.jmp(start)
        })?;
        let chosen = registry.survey().choose(&accel.parse::<AccelChoice>()?, &Needs::default())?;
        let map = MemoryMap::new(64 * MIB)?;
        let ram = Arc::new(GuestRam::new(&map.ram_regions())?);
        let kernel = Source::bytes("rig", elf);
        let spec = BootSpec::new(&kernel, ACPI_AREA);
        let state = load(&ram, &map, &spec)?;
        let mut model = CpuModel::named(DEFAULT_MODEL, 1, TscFrequency::of_host().khz)?;
        // The guests need no feature, and a provider of KVM without hardware may lack some.
        model.fit(chosen.accelerator.caps());
        let spec = VmSpec { model: Arc::new(model), ram: ram.clone(), vcpus: 1 };
        let vm = chosen.accelerator.create_vm(&spec)?;
        for (slot, region) in (0..).zip(ram.regions()) {
            vm.map(SlotId(slot), region, Access::ReadWrite)?;
        }
        let bus = Arc::new(Bus::default());
        let mut vcpu = vm.bind_vcpu(&VcpuConfig { id: 0 }, bus.clone())?;
        vcpu.load(&state)?;
        // Nobody else sets it.
        let _ = bus.kick.set(vcpu.kicker());
        let mut rig = Self { vcpu, bus, _vm: vm };
        // Over the guest's prologue, with its code decoded or translated; and all of it has run once.
        rig.try_rounds(3)?;
        Ok(rig)
    }

    /// Lets the guest do so many rounds; how long that took.
    pub(crate) fn rounds(&mut self, rounds: u64) -> Duration {
        self.try_rounds(rounds).expect("what has run before runs again")
    }

    fn try_rounds(&mut self, rounds: u64) -> Result<Duration, Failed> {
        let rounds = u32::try_from(rounds)?;
        self.bus.rounds.store(rounds.max(1), Ordering::Relaxed);
        self.bus.done.store(false, Ordering::Relaxed);
        let start = Instant::now();
        while !self.bus.done.load(Ordering::Relaxed) {
            match self.vcpu.run()? {
                Exit::Kicked => {}
                other => return Err(format!("the guest ended: {other:?}").into()),
            }
        }
        Ok(start.elapsed())
    }
}
