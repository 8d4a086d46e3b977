//! A small VM for one guest snippet.
//!
//! 1. RAM: [`map`] says what lies where. All of the first 8 GiB is mapped to itself, the first 2 MiB by 4 KiB pages,
//!    the rest by 2 MiB pages; [`map::ALIAS`] shows [`map::ALIASED`] a second time. Only pages that a test hands to
//!    [`Rig::user_page`] are open to ring 3.
//! 2. The IDT leads every vector to a handler that records what it finds on its stack ([`Trap`]), ends the interrupt if
//!    [`cell::EOI_MODE`] says how, and goes back: after a fault to where [`cell::RESUME`] points. A fault that nobody
//!    expects ends the guest as failed.
//! 3. A [`Runner`] is a vCPU bound to the test's thread, with a watchdog that kicks it out of a hang.

mod handlers;
mod runner;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use accel_api::x86::*;
use accel_api::*;
use iced_x86::code_asm::CodeAssembler;
use vm_memory::{Bytes, GuestAddress};

use crate::fake_bus::FakeBus;
use crate::snippet::{Asm, assemble, exit};

pub use runner::Runner;

/// Guest-physical addresses.
pub mod map {
    /// GDT.
    pub const GDT: u64 = 0x1000;
    /// IDT of 256 64-bit gates.
    pub const IDT: u64 = 0x2000;
    /// 64-bit TSS.
    pub const TSS: u64 = 0x3000;
    /// Level-4 page table.
    pub const PML4: u64 = 0x4000;
    /// Its one PDPT.
    pub const PDPT: u64 = 0x5000;
    /// Eight page directories.
    pub const PD: u64 = 0x6000;
    /// Page table of the first 2 MiB.
    pub const PT: u64 = 0xe000;
    /// 256 entry stubs of 16 bytes, then the handler.
    pub const HANDLERS: u64 = 0x1_0000;
    /// Records of the handler.
    pub const TRAPS: u64 = 0x2_0000;
    /// The test's code.
    pub const CODE: u64 = 0x3_0000;
    /// Top of the stack; another page above it.
    pub const STACK: u64 = 0x6_0000;
    /// Top of the stack of RSP0, IST1.
    pub const STACK0: u64 = 0x6_8000;
    /// Where a start-up message leads vCPUs: vector 0x70.
    pub const STARTUP: u64 = 0x7_0000;
    /// Cells the handler reads: see [`super::cell`].
    pub const CELLS: u64 = 0x8_0000;
    /// Zeroed memory for tests, 512 KiB.
    pub const DATA: u64 = 0x10_0000;
    /// A page that is also at [`ALIAS`].
    pub const ALIASED: u64 = 0x18_0000;
    /// Linear address of the second view of [`ALIASED`].
    pub const ALIAS: u64 = 0x19_0000;
    /// Code for ring 3.
    pub const USER_CODE: u64 = 0x1a_0000;
    /// Stack of ring 3 grows down from here.
    pub const USER_STACK: u64 = 0x1b_0000;
    /// End of the RAM that starts at 0.
    pub const RAM_END: u64 = 0x40_0000;
    /// 64 KiB of read-only RAM.
    pub const ROM: u64 = 0x80_0000;
    /// 64 KiB that [`super::Rig::new`] does not map; slot [`EXTRA_SLOT`] is free for it.
    pub const EXTRA: u64 = 0xa0_0000;
    /// Slot number for [`EXTRA`].
    pub const EXTRA_SLOT: u32 = 7;
    /// Memory that devices can have.
    pub const DEVICE_BYTES: u64 = 0x4_0000;
    /// 64 KiB of RAM above 4 GiB.
    pub const HIGH: u64 = 1 << 32;
    /// No RAM: devices.
    pub const MMIO: u64 = 0xd000_0000;
    /// The local APIC.
    pub const APIC: u64 = 0xfee0_0000;
}

/// Cells at [`map::CELLS`].
pub mod cell {
    use super::map::CELLS;
    /// Number of traps recorded.
    pub const COUNT: u64 = CELLS;
    /// Where to go on after the next fault; used once.
    pub const RESUME: u64 = CELLS + 8;
    /// Where the next fault is expected.
    pub const EXPECTED_RIP: u64 = CELLS + 16;
    /// How to end interrupts of vectors from 32: 0 not at all, 1 xAPIC, 2 x2APIC.
    pub const EOI_MODE: u64 = CELLS + 24;
    /// Free for tests: eight cells.
    pub const USER: u64 = CELLS + 64;
}

/// Selectors of the GDT.
#[allow(missing_docs)]
pub mod sel {
    pub const CODE64: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const USER_CODE32: u16 = 0x1b;
    pub const USER_DATA: u16 = 0x23;
    pub const USER_CODE64: u16 = 0x2b;
    pub const TSS: u16 = 0x30;
    pub const CODE32: u16 = 0x40;
    pub const CODE16: u16 = 0x48;
    pub const DATA16: u16 = 0x50;
}

const GDT: [u64; 11] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_8b00_0000_0067 | map::TSS << 16,
    0,
    0x00cf_9b00_0000_ffff,
    0x0000_9b00_0000_ffff,
    0x0000_9300_0000_ffff,
];

/// Page-table entry bits (Intel SDM vol. 3, 4.5).
#[allow(missing_docs)]
pub mod pte {
    pub const P: u64 = 1;
    pub const W: u64 = 2;
    pub const U: u64 = 4;
    pub const A: u64 = 0x20;
    pub const D: u64 = 0x40;
    pub const PS: u64 = 0x80;
    pub const G: u64 = 0x100;
    pub const NX: u64 = 1 << 63;
}

/// How long a guest may take before the watchdog fails the test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the handler found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // what the processor pushes, and CR2
pub struct Trap {
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub cr2: u64,
    /// [`cell::EXPECTED_RIP`] at the time.
    pub expected_rip: u64,
}

/// A VM with RAM and tables; vCPUs are bound by [`Rig::vcpu`].
#[derive(Debug)]
pub struct Rig {
    /// Its memory.
    pub ram: Arc<GuestRam>,
    /// The backend's VM.
    pub vm: Arc<dyn AccelVm>,
    /// Its CPU model.
    pub model: Arc<CpuModel>,
    buses: Vec<Arc<FakeBus>>,
    bound: AtomicU32,
}

/// The host's TSC frequency in kHz, measured once; close enough for tests without upper bounds.
pub fn tsc_khz() -> u32 {
    static KHZ: OnceLock<u32> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let (start, tsc) = (Instant::now(), x86_core::host_tsc());
        while start.elapsed() < Duration::from_millis(2) {}
        let ticks = x86_core::host_tsc() - tsc;
        (u128::from(ticks) * 1_000_000 / start.elapsed().as_nanos()) as u32
    })
}

impl Rig {
    /// A VM of one vCPU.
    ///
    /// # Panics
    /// The backend cannot make it.
    pub fn new(accel: &Arc<dyn Accelerator>) -> Self {
        Self::smp(accel, 1)
    }

    /// A VM of `vcpus` vCPUs.
    ///
    /// # Panics
    /// The backend cannot make it.
    pub fn smp(accel: &Arc<dyn Accelerator>, vcpus: u32) -> Self {
        Self::with(accel, vcpus, &[])
    }

    /// A VM of one vCPU whose model has `features` besides.
    ///
    /// # Panics
    /// The backend cannot make it.
    pub fn with_features(accel: &Arc<dyn Accelerator>, features: &[Feature]) -> Self {
        Self::with(accel, 1, features)
    }

    fn with(accel: &Arc<dyn Accelerator>, vcpus: u32, features: &[Feature]) -> Self {
        let layout = [(0, map::RAM_END), (map::ROM, 0x1_0000), (map::EXTRA, 0x1_0000), (map::HIGH, 0x1_0000)];
        let ram = Arc::new(GuestRam::with_device_memory(&layout, map::DEVICE_BYTES).expect("RAM"));
        let mut model = CpuModel::named("x86-64-v2", vcpus, tsc_khz()).expect("model");
        model.fit(accel.caps());
        model.features = model.features.with(features);
        let model = Arc::new(model);
        let spec = VmSpec { model: model.clone(), ram: ram.clone(), vcpus };
        let vm = accel.create_vm(&spec).expect("create_vm");
        for (slot, access) in [(0, Access::ReadWrite), (1, Access::ReadOnly), (3, Access::ReadWrite)] {
            vm.map(SlotId(slot), &ram.regions()[slot as usize], access).expect("map");
        }
        let buses = (0..vcpus).map(|_| Arc::default()).collect();
        let rig = Self { ram, vm, model, buses, bound: AtomicU32::new(0) };
        rig.write_tables();
        rig
    }

    fn write_tables(&self) {
        for (n, entry) in GDT.iter().enumerate() {
            self.write(map::GDT + 8 * n as u64, *entry);
        }
        self.write(map::TSS + 4, map::STACK0);
        self.write(map::TSS + 0x24, map::STACK0 - 0x1000); // IST1
        self.write(map::TSS + 0x66, 0x68u16);
        let table = pte::P | pte::W | pte::U;
        self.write(map::PML4, map::PDPT | table);
        for n in 0..8u64 {
            self.write(map::PDPT + 8 * n, (map::PD + 0x1000 * n) | table);
        }
        for n in 0..8 * 512u64 {
            self.write(map::PD + 8 * n, n << 21 | pte::P | pte::W | pte::PS);
        }
        self.write(map::PD, map::PT | table);
        for n in 0..512u64 {
            self.write(map::PT + 8 * n, n << 12 | pte::P | pte::W);
        }
        self.map_page(map::ALIAS, map::ALIASED | pte::P | pte::W);
        self.bytes(map::HANDLERS, &assemble(64, map::HANDLERS, handlers::handlers));
        for vector in 0..256u64 {
            let entry = map::HANDLERS + 16 * vector;
            let dpl = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
            let ist = u64::from(vector == 8);
            let low = entry & 0xffff
                | u64::from(sel::CODE64) << 16
                | ist << 32
                | (0x8e | dpl << 5) << 40
                | (entry >> 16 & 0xffff) << 48;
            self.write(map::IDT + 16 * vector, low);
        }
    }

    /// Writes an object, as a device's DMA would.
    ///
    /// # Panics
    /// Outside RAM.
    pub fn write<T: vm_memory::ByteValued>(&self, gpa: u64, value: T) {
        self.ram.memory().write_obj(value, GuestAddress(gpa)).expect("RAM");
    }

    /// Writes bytes, as a device's DMA would.
    ///
    /// # Panics
    /// Outside RAM.
    pub fn bytes(&self, gpa: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(gpa)).expect("RAM");
    }

    /// Reads an object.
    ///
    /// # Panics
    /// Outside RAM.
    pub fn read<T: vm_memory::ByteValued>(&self, gpa: u64) -> T {
        self.ram.memory().read_obj(GuestAddress(gpa)).expect("RAM")
    }

    /// Reads consecutive quadwords.
    pub fn quads<const N: usize>(&self, gpa: u64) -> [u64; N] {
        std::array::from_fn(|n| self.read(gpa + 8 * n as u64))
    }

    /// The page-table entry of a linear address below 2 MiB.
    pub fn pte(&self, la: u64) -> u64 {
        self.read(map::PT + (la >> 12) * 8)
    }

    /// Sets the page-table entry of a linear address below 2 MiB.
    pub fn map_page(&self, la: u64, entry: u64) {
        self.write(map::PT + (la >> 12) * 8, entry);
    }

    /// Opens a page below 2 MiB to ring 3.
    pub fn user_page(&self, la: u64) {
        self.map_page(la, self.pte(la) | pte::U);
    }

    /// Puts 64-bit code at [`map::CODE`], followed by the guest's end.
    pub fn code(&self, body: impl FnOnce(&mut CodeAssembler) -> Asm) {
        self.code_at(64, map::CODE, |a| {
            body(a)?;
            exit(a)
        });
    }

    /// Puts code at `at`.
    pub fn code_at(&self, bits: u32, at: u64, body: impl FnOnce(&mut CodeAssembler) -> Asm) {
        self.bytes(at, &assemble(bits, at, body));
    }

    /// The machine of vCPU 0.
    pub fn bus(&self) -> &Arc<FakeBus> {
        &self.buses[0]
    }

    /// The machine of vCPU `id`.
    pub fn bus_of(&self, id: VcpuId) -> &Arc<FakeBus> {
        &self.buses[id as usize]
    }

    /// Interrupt inputs.
    pub fn port(&self) -> Arc<dyn InterruptPort> {
        self.vm.interrupts()
    }

    /// What the handlers recorded, oldest first.
    pub fn traps(&self) -> Vec<Trap> {
        let count = self.read::<u64>(cell::COUNT);
        let trap = |n: u64| {
            let [vector, error, rip, cs, rflags, rsp, cr2, expected_rip] =
                self.quads(map::TRAPS + 64 * (n % 1024));
            Trap { vector, error, rip, cs, rflags, rsp, cr2, expected_rip }
        };
        (0..count.min(1024)).map(trap).collect()
    }

    /// Vectors of [`Self::traps`].
    pub fn vectors(&self) -> Vec<u64> {
        self.traps().iter().map(|t| t.vector).collect()
    }

    /// State of vCPU `id` in 64-bit mode at [`map::CODE`], ring 0, interrupts off, local APIC on in xAPIC mode.
    pub fn long_mode(&self, id: VcpuId) -> CpuState {
        let mut state = protected(id);
        state.segments.cs = Segment::flat(sel::CODE64, 0xa09b);
        state.control.cr0 = 0x8001_0033;
        state.control.cr3 = map::PML4;
        state.control.cr4 = 0x620; // PAE, OSFXSR, OSXMMEXCPT
        state.msrs.efer = 0xd01; // SCE, LME, LMA, NXE
        state
    }

    /// The same with the local APIC in x2APIC mode.
    pub fn long_mode_x2apic(&self, id: VcpuId) -> CpuState {
        let mut state = self.long_mode(id);
        state.lapic.apic_base |= 1 << 10;
        state.lapic.normalise();
        state
    }

    /// State in flat 32-bit protected mode without paging at [`map::CODE`]; the IDT's limit is 0.
    pub fn protected(&self) -> CpuState {
        let mut state = protected(0);
        state.idtr.limit = 0;
        state.segments.tr = Segment { attributes: 0x8b, ..Segment::default() };
        state
    }

    /// State in real mode at [`map::CODE`], all segments there, the vector table at 0.
    pub fn real_mode(&self) -> CpuState {
        let mut state = CpuState::reset(0);
        let s = &mut state.segments;
        let here = (map::CODE >> 4) as u16;
        for seg in [&mut s.es, &mut s.cs, &mut s.ss, &mut s.ds, &mut s.fs, &mut s.gs] {
            *seg = Segment::real(here);
        }
        s.cs.attributes = 0x9b;
        (state.rip, state.gpr[gpr::RSP]) = (0, 0x8000);
        state.idtr.limit = 0x3ff;
        state.mp = MpState::Running;
        state
    }

    /// Binds vCPU `id` to this thread and loads `state`. In a VM of several vCPUs all must be bound at the same time;
    /// this waits for them.
    ///
    /// # Panics
    /// The backend refuses.
    pub fn vcpu(&self, id: VcpuId, state: &CpuState) -> Runner {
        let bus = self.buses[id as usize].clone();
        let mut vcpu = self.vm.bind_vcpu(&VcpuConfig { id }, bus.clone()).expect("bind_vcpu");
        bus.set_kick(vcpu.kicker());
        vcpu.load(state).expect("load");
        self.bound.fetch_add(1, Ordering::SeqCst);
        let start = Instant::now();
        while self.bound.load(Ordering::SeqCst) < self.buses.len() as u32 {
            assert!(start.elapsed() < PATIENCE, "another vCPU of the VM was never bound");
            std::thread::yield_now();
        }
        Runner::new(vcpu, bus)
    }

    /// Waits until a running guest has come round its loop so many times more, as it tells by the word at [`cell::USER`].
    ///
    /// # Panics
    /// It stands still.
    pub fn wait_turns(&self, turns: u32) {
        let (start, from) = (Instant::now(), self.read::<u32>(cell::USER));
        let gone = || self.read::<u32>(cell::USER).wrapping_sub(from);
        while gone() < turns && start.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        assert!(gone() >= turns, "the guest stands still");
    }

    /// State in PAE paging at [`map::CODE`], 32-bit code, whose page-directory-pointer table is at `table`.
    pub fn pae(&self, table: u64) -> CpuState {
        let mut state = self.protected();
        state.control.cr3 = table;
        state.control.cr4 = 0x20;
        state.control.cr0 = 0x8001_0011;
        state
    }

    /// Runs vCPU 0 from `state` to the guest's end.
    pub fn run(&self, state: &CpuState) -> CpuState {
        self.check(self.vcpu(0, state).finish())
    }

    /// [`Self::run`] in 64-bit mode.
    pub fn run_long(&self) -> CpuState {
        self.run(&self.long_mode(0))
    }

    /// Passes on a state the guest ended with.
    ///
    /// # Panics
    /// The guest ended through [`FAULT_PORT`](crate::fake_bus::FAULT_PORT).
    pub fn check(&self, ended: Result<CpuState, Box<CpuState>>) -> CpuState {
        ended.unwrap_or_else(|_| panic!("an exception nobody expected: {:x?}", self.traps()))
    }
}

fn protected(id: VcpuId) -> CpuState {
    let mut state = CpuState::reset(id);
    let data = Segment::flat(sel::DATA, 0xc093);
    let s = &mut state.segments;
    s.cs = Segment::flat(sel::CODE32, 0xc09b);
    (s.ds, s.es, s.ss, s.fs, s.gs) = (data, data, data, data, data);
    s.tr = Segment { selector: sel::TSS, base: map::TSS, limit: 0x67, attributes: 0x8b, unusable: false };
    s.ldtr = Segment { unusable: true, ..Segment::default() };
    state.gdtr = DescriptorTable { base: map::GDT, limit: size_of_val(&GDT) as u16 - 1 };
    state.idtr = DescriptorTable { base: map::IDT, limit: 0xfff };
    state.control.cr0 = 0x11;
    state.gpr = [0; 16];
    state.gpr[gpr::RSP] = map::STACK - 0x1000 * u64::from(id);
    (state.rip, state.rflags, state.mp) = (map::CODE, 2, MpState::Running);
    state.lapic.svr = 0x1ff;
    state
}
