//! A vCPU for criterion: a bare guest that waits for a number of rounds, does them, and says so.
//!
//! The guest reads the rounds from [`ROUNDS`], does them, writes to [`DONE`], which kicks the vCPU out of `run`, and
//! starts over. So one call of [`Rig::rounds`] enters and leaves the backend once, however many rounds it asks for.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use accel_api::{
    AccelVm, Access, CpuModel, Exit, GpFault, GuestRam, IoSize, Kick, SlotId, Vcpu, VcpuBus, VcpuConfig,
    VmSpec,
};
use guests::bare::{Image, Runtime};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::boot::{BootSpec, load};
use machine::memory_map::{ACPI_AREA, MIB, MemoryMap};
use machine::{AccelChoice, DEFAULT_MODEL, Registry, Source, TscFrequency};

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

/// One vCPU with its guest, ready.
pub(crate) struct Rig {
    vcpu: Box<dyn Vcpu>,
    bus: Arc<Bus>,
    _vm: Arc<dyn AccelVm>,
}

impl Rig {
    /// Of the backend called `accel`. `prepare` is executed once; `round` as often as asked, with ebp counting down to
    /// 1: it may change all registers but rbp and rsp.
    pub(crate) fn new(
        accel: &str,
        prepare: impl FnOnce(&mut CodeAssembler, &mut Runtime) -> Result<(), IcedError>,
        round: impl FnOnce(&mut CodeAssembler, &mut Runtime) -> Result<(), IcedError>,
    ) -> Self {
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
        });
        let choice: AccelChoice = accel.parse().expect("a name");
        let chosen = Registry::builtin().choose(&choice).expect("the backend works here");
        let map = MemoryMap::new(64 * MIB).expect("a size machines have");
        let ram = Arc::new(GuestRam::new(&map.ram_regions()).expect("64 MiB"));
        let kernel = Source::bytes("rig", elf.expect("the guest assembles"));
        let spec = BootSpec { kernel: &kernel, initrd: None, cmdline: "", rsdp: ACPI_AREA };
        let state = load(&ram, &map, &spec).expect("our own guest loads");
        let model = CpuModel::named(DEFAULT_MODEL, 1, TscFrequency::of_host().khz).expect("a known model");
        let spec = VmSpec { model: Arc::new(model), ram: ram.clone(), vcpus: 1 };
        let vm = chosen.accelerator.create_vm(&spec).expect("a VM");
        for (slot, region) in (0..).zip(ram.regions()) {
            vm.map(SlotId(slot), region, Access::ReadWrite).expect("an empty slot");
        }
        let bus = Arc::new(Bus::default());
        let mut vcpu = vm.bind_vcpu(&VcpuConfig { id: 0 }, bus.clone()).expect("vCPU 0");
        vcpu.load(&state).expect("a state of the boot protocol");
        bus.kick.set(vcpu.kicker()).expect("the first one");
        let mut rig = Self { vcpu, bus, _vm: vm };
        // Over the guest's prologue, with its code decoded or translated.
        rig.rounds(3);
        rig
    }

    /// Lets the guest do so many rounds; how long that took.
    pub(crate) fn rounds(&mut self, rounds: u64) -> Duration {
        let rounds = u32::try_from(rounds).expect("criterion asks for fewer");
        self.bus.rounds.store(rounds.max(1), Ordering::Relaxed);
        self.bus.done.store(false, Ordering::Relaxed);
        let start = Instant::now();
        while !self.bus.done.load(Ordering::Relaxed) {
            let exit = self.vcpu.run().expect("the backend works");
            assert_eq!(exit, Exit::Kicked);
        }
        start.elapsed()
    }
}
