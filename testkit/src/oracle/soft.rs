//! One instruction in the software CPU, at the same addresses and with the same rights as natively.
#![allow(unsafe_code)] // guest RAM is filled and read through its host address

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use accel_api::x86::{CpuFeatures, CpuModel, CpuState, DescriptorTable, Feature, Segment};
use accel_api::{Access, GpFault, GuestRam, IoSize, SlotId, VcpuBus};
use x86_core::lapic::{ApicBus, ApicHost, Lapic, LapicConfig};
use x86_core::shared::VmShared;
use x86_core::soft::{CpuHome, Executor};
use x86_core::{Cpu, Exec, Fault, Mode, exec};

use super::case::{
    CODE, CODE_SIZE, Case, End, Outcome, Raised, START, STUB, STUB_SIZE, State, WINDOW, WINDOW_SIZE, WRITABLE,
};
use super::segments::{GDT, LDT, segment};

/// RAM: page tables first, then the window, then the code page.
const RAM_SIZE: u64 = 1 << 20;
const TABLES: u64 = 0x1000;
const WINDOW_GPA: u64 = 0x10_000;
const CODE_GPA: u64 = 0x20_000;

/// GDT and LDT lie in the kernel's half, where no access of a program tells whether they are there.
const DESCRIPTORS: u64 = 0xffff_8000_0000_0000;
const DESCRIPTORS_GPA: u64 = 0x30_000;
/// Offset of the LDT.
const LDT_AT: u64 = 0x800;

/// x87, SSE and AVX. The host may have more components; [`super::generate`] does not ask for them.
pub(super) const XCR0: u64 = 7;

/// Code pages of an executor: each is for one case, so that no code ever changes.
const PAGES: u64 = 64;
const PAGES_GPA: u64 = 0x40_000;

/// Iterations of one string instruction before it is taken to hang: more than the window has bytes.
const MAX_STEPS: usize = 100_000;

/// A software CPU in long mode at privilege level 3.
#[derive(Debug)]
pub struct Soft {
    cpu: CpuHome,
    /// What executes instead of [`execute`].
    executor: Option<Box<dyn Execute>>,
    state: CpuState,
    ram: GuestRam,
    xsave: bool,
    /// Cases run.
    cases: u64,
}

/// An [`Executor`] whatever its choices.
pub trait Execute: std::fmt::Debug {
    /// See [`Executor::execute`].
    ///
    /// # Errors
    /// The fault of the instruction at RIP.
    fn execute(&mut self, cpu: &mut Cpu) -> Exec;
}

impl<E: Executor> Execute for E {
    fn execute(&mut self, cpu: &mut Cpu) -> Exec {
        Executor::execute(self, cpu)
    }
}

/// Makes an executor, and puts the vCPU where that wants it.
pub type Backend = fn(Box<Cpu>) -> (CpuHome, Box<dyn Execute>);

/// The [`Backend`] that `E` is by its usual choices.
///
/// # Panics
/// The host does not give what it needs.
pub fn backend<E: Executor<Config: Default>>(cpu: Box<Cpu>) -> (CpuHome, Box<dyn Execute>) {
    let mut home = E::place(cpu).expect("a place for the vCPU");
    let executor = E::new(&mut home, &E::Config::default()).expect("an executor");
    (home, Box::new(executor))
}

#[derive(Debug)]
struct NoBus;

impl VcpuBus for NoBus {
    fn mmio_read(&self, _: u64, size: IoSize) -> u64 {
        size.ones()
    }
    fn mmio_write(&self, _: u64, _: IoSize, _: u64) {}
    fn pio_read(&self, _: u16, size: IoSize) -> u32 {
        size.ones() as u32
    }
    fn pio_write(&self, _: u16, _: IoSize, _: u32) {}
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

impl ApicHost for NoBus {
    fn eoi(&self, _: u8) {}
}

impl Soft {
    /// One with `features` and the platform's; without `ldt` its LDT is empty. It executes by single steps, or by what
    /// `backend` makes.
    ///
    /// # Panics
    /// If the host has no memory for a megabyte of RAM.
    pub fn new(features: CpuFeatures, ldt: bool, backend: Option<Backend>) -> Self {
        let ram = GuestRam::new(&[(0, RAM_SIZE)]).expect("1 MiB of RAM");
        let vm = VmShared::new(ram.flags().clone(), 1);
        vm.remap(|map| map.with(SlotId(0), &ram.regions()[0], Access::ReadWrite))
            .expect("an empty map takes any slot");
        let mut model = CpuModel::named("x86-64-v2", 1, 1_000_000).expect("a known model");
        model.features = features;
        let bus = Arc::new(ApicBus::new([0], Arc::new(|_| {})));
        let config = LapicConfig { bsp: true, x2apic: true, eoi_suppression: false, phys_addr_bits: 40 };
        let lapic = Lapic::new(bus, 0, config, Arc::new(NoBus)).expect("vCPU 0 is on the bus");
        let mut cpu = Cpu::new(0, vm, Arc::new(model), Arc::new(NoBus), lapic);
        x86_core::testing::enter(&mut cpu, Mode::Long);
        let mut state = CpuState::reset(0);
        cpu.save_state(&mut state);
        // The memory map is new.
        cpu.serve_memory_requests();
        let (cpu, executor) = match backend {
            Some(make) => {
                let (home, executor) = make(cpu);
                (home, Some(executor))
            }
            None => (cpu.into(), None),
        };
        let mut soft = Self { cpu, executor, state, ram, xsave: features.has(Feature::Xsave), cases: 0 };
        soft.set_up();
        soft.state.segments.ldtr.unusable = !ldt;
        soft
    }

    fn set_up(&mut self) {
        use x86_core::bits;
        const PRESENT_WRITE_USER: u64 = 7;
        const PRESENT_USER: u64 = 5;
        const PRESENT_WRITE: u64 = 3;
        const NO_EXECUTE: u64 = 1 << 63;
        // One table a level: window and code lie in the same gigabyte, in different 2 MiB.
        let (pml4, pdpt, directory, window_table, code_table) =
            (TABLES, TABLES + 0x1000, TABLES + 0x2000, TABLES + 0x3000, TABLES + 0x4000);
        let index = |address: u64, level: u64| (address >> (12 + 9 * level) & 511) * 8;
        self.entry(pml4 + index(WINDOW, 3), pdpt | PRESENT_WRITE_USER);
        self.entry(pdpt + index(WINDOW, 2), directory | PRESENT_WRITE_USER);
        self.entry(directory + index(WINDOW, 1), window_table | PRESENT_WRITE_USER);
        self.entry(directory + index(CODE, 1), code_table | PRESENT_WRITE_USER);
        for page in (0..WINDOW_SIZE as u64).step_by(4096) {
            let rights = if page < WRITABLE as u64 { PRESENT_WRITE_USER } else { PRESENT_USER };
            self.entry(window_table + index(WINDOW + page, 0), (WINDOW_GPA + page) | rights | NO_EXECUTE);
        }
        self.entry(code_table + index(CODE, 0), CODE_GPA | PRESENT_USER);
        self.bytes(CODE_GPA, CODE_SIZE).fill(0xcc);
        self.bytes(PAGES_GPA, PAGES as usize * CODE_SIZE).fill(0xcc);
        let (kernel_pdpt, kernel_directory, kernel_table) =
            (TABLES + 0x5000, TABLES + 0x6000, TABLES + 0x7000);
        self.entry(pml4 + index(DESCRIPTORS, 3), kernel_pdpt | PRESENT_WRITE);
        self.entry(kernel_pdpt + index(DESCRIPTORS, 2), kernel_directory | PRESENT_WRITE);
        self.entry(kernel_directory + index(DESCRIPTORS, 1), kernel_table | PRESENT_WRITE);
        self.entry(kernel_table + index(DESCRIPTORS, 0), DESCRIPTORS_GPA | PRESENT_WRITE);
        for (at, table) in [(DESCRIPTORS_GPA, &GDT[..]), (DESCRIPTORS_GPA + LDT_AT, &LDT)] {
            for (slot, descriptor) in (at..).step_by(8).zip(table) {
                self.entry(slot, descriptor.raw());
            }
        }
        self.state.gdtr = DescriptorTable { base: DESCRIPTORS, limit: 8 * GDT.len() as u16 - 1 };
        // No gate: as with the kernel's, which programs may not call, INT n raises #GP.
        self.state.idtr = DescriptorTable::default();
        let segments = &mut self.state.segments;
        segments.ldtr = Segment {
            selector: 0x50,
            base: DESCRIPTORS + LDT_AT,
            limit: 8 * LDT.len() as u32 - 1,
            attributes: 0x82,
            unusable: false,
        };
        // Too short for an I/O permission bitmap: no port is allowed.
        segments.tr.limit = 0x65;
        let control = &mut self.state.control;
        control.cr3 = pml4;
        control.cr0 |= bits::CR0_PG | bits::CR0_WP | bits::CR0_AM;
        control.cr4 |= bits::CR4_UMIP | bits::CR4_FSGSBASE;
        if self.xsave {
            control.cr4 |= bits::CR4_OSXSAVE;
            control.xcr0 = XCR0;
        }
    }

    fn entry(&mut self, gpa: u64, value: u64) {
        self.bytes(gpa, 8).copy_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, gpa: u64, len: usize) -> &mut [u8] {
        assert!(gpa + len as u64 <= RAM_SIZE);
        let host = self.ram.regions()[0].host_addr().wrapping_add(gpa as usize);
        // SAFETY: within the region, and no vCPU runs while `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(host, len) }
    }

    /// Whether another is to be made for the next case.
    pub fn used_up(&self) -> bool {
        self.executor.is_some() && self.cases >= PAGES
    }

    /// Runs one case.
    pub fn run(&mut self, case: &Case) -> Outcome {
        let mut page = CODE_GPA;
        if self.executor.is_some() {
            page = PAGES_GPA + self.cases % PAGES * CODE_SIZE as u64;
            self.entry(TABLES + 0x4000 + (CODE >> 12 & 511) * 8, page | 5);
            self.cpu.tlb.flush_all();
        }
        self.cases += 1;
        let at = page + (START - CODE);
        self.bytes(WINDOW_GPA, WINDOW_SIZE).copy_from_slice(&case.memory);
        self.bytes(at, case.bytes.len()).copy_from_slice(&case.bytes);
        self.bytes(page + (STUB - CODE), STUB_SIZE).copy_from_slice(&case.stub());
        let segments = &mut self.state.segments;
        let registers = [
            &mut segments.es,
            &mut segments.cs,
            &mut segments.ss,
            &mut segments.ds,
            &mut segments.fs,
            &mut segments.gs,
        ];
        for (register, &selector) in registers.into_iter().zip(&case.state.selectors) {
            *register = segment(selector);
        }
        self.state.gpr = case.state.gpr;
        self.state.rip = case.state.rip;
        self.state.rflags = case.state.rflags;
        self.state.fpu = case.state.fpu.clone();
        self.cpu.load_state(&self.state);
        self.cpu.fault_address = 0;
        let (cpu, executor) = (&mut *self.cpu, &mut self.executor);
        let result = catch_unwind(AssertUnwindSafe(|| {
            exec::mxcsr::enter(cpu);
            match executor {
                Some(executor) => execute_by(&mut **executor, cpu, case.state.rip),
                None => execute(cpu, case.state.rip),
            }
        }));
        exec::mxcsr::leave(&mut self.cpu);
        let end = match result {
            Ok(Ok(true)) => End::Done,
            Ok(Ok(false)) => End::Hang,
            Ok(Err(fault)) => End::Fault(self.raised(fault)),
            Err(payload) => {
                let text = payload.downcast_ref::<String>().cloned();
                let text = text.or_else(|| payload.downcast_ref::<&str>().map(|s| s.to_string()));
                End::Panic(text.unwrap_or_default())
            }
        };
        let mut after = self.state.clone();
        self.cpu.save_state(&mut after);
        let s = &after.segments;
        let selectors = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs].map(|segment| segment.selector);
        let state = State { gpr: after.gpr, rip: after.rip, rflags: after.rflags, selectors, fpu: after.fpu };
        self.bytes(at, case.bytes.len()).fill(0xcc);
        Outcome { end, state, memory: self.bytes(WINDOW_GPA, WINDOW_SIZE).to_vec() }
    }

    fn raised(&self, fault: Fault) -> Raised {
        let page_fault = fault.vector() == x86_core::vector::PF;
        Raised {
            vector: fault.vector(),
            error: fault.error_code().unwrap_or(0),
            address: if page_fault { self.cpu.fault_address } else { 0 },
        }
    }
}

/// Executes the instruction at RIP. A string instruction may leave RIP where it is after each piece of its work. Returns
/// whether it came to its end.
fn execute(cpu: &mut Cpu, start: u64) -> Exec<bool> {
    for _ in 0..MAX_STEPS {
        let instruction = cpu.decode_at(cpu.rip)?;
        cpu.next_rip = instruction.next_ip();
        exec::lookup(instruction.code())(cpu, &instruction)?;
        cpu.rip = cpu.next_rip;
        let string = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if cpu.rip != start || !string {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Likewise, by an executor: it goes on until a fault, which is that of another instruction once RIP is.
fn execute_by(executor: &mut dyn Execute, cpu: &mut Cpu, start: u64) -> Exec<bool> {
    for _ in 0..MAX_STEPS {
        (cpu.leave, cpu.shadow, cpu.budget) = (false, false, 1);
        match executor.execute(cpu) {
            Err(fault) if cpu.rip == start => return Err(fault),
            Ok(()) if cpu.rip == start => {}
            _ => return Ok(true),
        }
    }
    Ok(false)
}
