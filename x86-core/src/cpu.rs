//! Working state of one vCPU.

use std::mem::offset_of;
use std::sync::Arc;

use accel_api::VcpuBus;
use accel_api::host_time::Lease;
use accel_api::x86::{CpuModel, DescriptorTable, InjectedEvent, MpState, Msrs, Segment, Ymm};

use crate::alu::{ArithFlags, flag};
use crate::journal::Journal;
use crate::lapic::{Lapic, Now};
use crate::mode::{Mode, bits};
use crate::shared::{VcpuShared, VmShared, request};
use crate::{DataTable, FpuRegs, MemoryMap, StaleCode, Tlb, TlbMode};

/// Indices into [`Cpu::segs`], in encoding order.
#[allow(missing_docs)] // the registers' own names
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// One vCPU. Executors address the first fields by offset, so their order matters and they come first.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Cpu {
    /// RAX to R15. A 32-bit result is stored zero-extended.
    pub gpr: [u64; 16],
    /// Always 0: the base or index of an address that has none.
    pub zero: u64,
    /// Linear address of the page the current code lies in (CS base included).
    pub code_page: u64,
    /// Instructions left until the executor looks at requests and timers.
    pub budget: i64,
    /// The current table of [`Cpu::tlb`], see [`Cpu::update_data_table`].
    pub data_table: DataTable,
    /// Arithmetic flags.
    pub flags: ArithFlags,
    /// How code is decoded; follows CR0, EFER, CS and VM.
    pub mode: Mode,
    /// 0 to 3.
    pub cpl: u8,
    /// The executor must not go on with code it has prefetched: code was overwritten, a mode changed, an event may
    /// have become deliverable. Cleared by the executor when it has looked.
    pub leave: bool,
    /// Interrupts wait for one more instruction (STI, MOV SS, POP SS).
    pub shadow: bool,
    /// SSE instructions may run: CR4.OSFXSR set, CR0.EM and TS clear.
    pub sse_ready: bool,
    /// Some MXCSR exception is unmasked.
    pub sse_unmasked: bool,
    /// Offset in the code segment of the current instruction, and of the next.
    pub rip: u64,
    /// Where execution goes on after the current instruction.
    pub next_rip: u64,
    /// RFLAGS without the arithmetic flags and bit 1.
    pub system_flags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segs: [Segment; 6],
    /// XMM0 to XMM15, with the upper halves of YMM.
    pub vector: VectorFile,

    /// x87, MMX and MXCSR. MXCSR's sticky flags are in the host's MXCSR while guest code runs.
    pub fpu: FpuRegs,
    /// LDTR.
    pub ldtr: Segment,
    /// TR.
    pub tr: Segment,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// The page-directory-pointer-table entries of PAE paging, as CR3 was loaded (Intel SDM vol. 3, 4.4.1).
    pub pdptes: [u64; 4],
    /// XCR0.
    pub xcr0: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// DR7 enables some breakpoint: instructions are executed by [`Cpu::step`].
    pub armed: bool,
    /// DR7 enables some data breakpoint.
    pub watching: bool,
    /// Data accesses are checked for alignment or data breakpoints: [`Cpu::data_table`] is the one where none hits.
    pub strict: bool,
    /// MOV SS or POP SS came just before: no debug exception (Intel SDM vol. 3, 6.8.3).
    pub debug_shadow: bool,
    /// Causes, as bits of DR6, of the debug trap due behind the current instruction.
    pub pending_debug: u64,
    /// MSRs; `efer` here is not used.
    pub msrs: Msrs,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Guest TSC less the host's time.
    pub tsc_offset: u64,
    /// Under which the host's time is read.
    pub lease: Lease,
    /// Linear address of the last page fault, until it is delivered.
    pub fault_address: u64,
    /// Running, halted or waiting.
    pub mp: MpState,
    /// An NMI has been taken and IRET has not come yet.
    pub nmi_masked: bool,
    /// VEX instructions on vector registers may run: see [`Cpu::avx_enabled`]; and CR0.TS is clear.
    pub avx_ready: bool,
    /// An event taken and not yet delivered.
    pub injected: Option<InjectedEvent>,
    /// Decoded code that this vCPU itself has overwritten; the executor takes it.
    pub stale_code: Vec<StaleCode>,
    /// [`VmShared::told`] when this vCPU last had no request to drop code.
    pub told: u64,
    /// Instructions executed.
    pub instructions: u64,
    /// Stores are made on trial: see [`crate::Journal`].
    pub journal: Option<Box<Journal>>,

    /// Translations.
    pub tlb: Tlb,
    /// Guest-physical memory.
    pub map: Arc<MemoryMap>,
    /// Local APIC.
    pub lapic: Lapic,
    /// Devices.
    pub bus: Arc<dyn VcpuBus>,
    /// CPUID and MSRs.
    pub model: Arc<CpuModel>,
    /// The VM.
    pub vm: Arc<VmShared>,
    /// This vCPU's requests.
    pub shared: Arc<VcpuShared>,
    /// Index of this vCPU.
    pub id: u32,
}

/// The vector registers.
#[repr(C, align(32))]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VectorFile(pub [Ymm; 16]);

impl Cpu {
    /// A vCPU in the reset state.
    pub fn new(
        id: u32,
        vm: Arc<VmShared>,
        model: Arc<CpuModel>,
        bus: Arc<dyn VcpuBus>,
        lapic: Lapic,
    ) -> Box<Self> {
        let state = accel_api::x86::CpuState::reset(id);
        let shared = vm.vcpus[id as usize].clone();
        let mut cpu = Box::new(Self {
            gpr: [0; 16],
            zero: 0,
            code_page: 0,
            budget: 0,
            data_table: DataTable::NONE,
            flags: ArithFlags::default(),
            mode: Mode::Real,
            cpl: 0,
            leave: false,
            shadow: false,
            sse_ready: false,
            avx_ready: false,
            sse_unmasked: false,
            rip: 0,
            next_rip: 0,
            system_flags: 0,
            segs: [Segment::real(0); 6],
            vector: VectorFile::default(),
            fpu: FpuRegs::reset(),
            ldtr: state.segments.ldtr,
            tr: state.segments.tr,
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            pdptes: [0; 4],
            xcr0: 1,
            efer: 0,
            armed: false,
            watching: false,
            strict: false,
            debug_shadow: false,
            pending_debug: 0,
            msrs: state.msrs.clone(),
            dr: [0; 4],
            dr6: 0,
            dr7: 0,
            tsc_offset: 0,
            lease: Lease::default(),
            fault_address: 0,
            mp: MpState::Running,
            nmi_masked: false,
            injected: None,
            stale_code: Vec::new(),
            told: 0,
            instructions: 0,
            journal: None,
            tlb: Tlb::default(),
            map: vm.map(),
            lapic,
            bus,
            model,
            vm,
            shared,
            id,
        });
        cpu.load_state(&state);
        cpu
    }

    /// RFLAGS.
    pub fn rflags(&self) -> u64 {
        self.system_flags | self.flags.to_rflags() | 2
    }

    /// Sets all of RFLAGS, reserved bits excepted.
    pub fn set_rflags(&mut self, value: u64) {
        let vm = (self.system_flags ^ value) & flag::VM != 0;
        self.flags = ArithFlags::from_rflags(value);
        self.system_flags = value & flag::SYSTEM;
        if vm {
            self.update_mode();
        } else {
            self.update_data_table();
        }
    }

    /// Whether a flag outside the arithmetic ones is set.
    #[inline(always)]
    pub fn has(&self, system_flag: u64) -> bool {
        self.system_flags & system_flag != 0
    }

    /// RFLAGS.IOPL.
    pub fn iopl(&self) -> u8 {
        (self.system_flags >> 12 & 3) as u8
    }

    /// Whether the processor is in long mode (64-bit or compatibility).
    #[inline(always)]
    pub fn long_mode(&self) -> bool {
        self.efer & bits::EFER_LMA != 0
    }

    /// Whether it is in protected mode and not in virtual-8086 mode.
    #[inline(always)]
    pub fn protected(&self) -> bool {
        !matches!(self.mode, Mode::Real | Mode::Virtual8086)
    }

    /// Recomputes what follows from CR0, CR4, XCR0, EFER, RFLAGS, CS and SS. Called after any of them changed.
    pub fn update_mode(&mut self) {
        let cs = self.segs[seg::CS].attributes;
        let mode = if self.cr0 & bits::CR0_PE == 0 {
            Mode::Real
        } else if self.has(flag::VM) {
            Mode::Virtual8086
        } else if self.long_mode() && cs & Segment::LONG != 0 {
            Mode::Long
        } else if cs & Segment::DB != 0 {
            Mode::Protected32
        } else {
            Mode::Protected16
        };
        self.cpl = match mode {
            Mode::Real => 0,
            Mode::Virtual8086 => 3,
            _ => self.segs[seg::SS].dpl(),
        };
        self.mode = mode;
        let fpu_off = self.cr0 & (bits::CR0_EM | bits::CR0_TS) != 0;
        self.sse_ready = self.cr4 & bits::CR4_OSFXSR != 0 && !fpu_off;
        self.avx_ready = self.avx_enabled() && self.cr0 & bits::CR0_TS == 0;
        self.leave = true;
        self.update_data_table();
    }

    /// Chooses the data table for the current privilege, SMAP and AC.
    pub fn update_data_table(&mut self) {
        self.strict = self.watching || self.checks_alignment();
        self.data_table = if self.strict || self.journal.is_some() {
            DataTable::NONE
        } else {
            DataTable::of(self.tlb_mode())
        };
    }

    /// How data is accessed now.
    #[inline(always)]
    pub fn tlb_mode(&self) -> TlbMode {
        if self.cpl == 3 {
            TlbMode::User
        } else if self.cr4 & bits::CR4_SMAP != 0 && !self.has(flag::AC) {
            TlbMode::SupervisorOnly
        } else {
            TlbMode::Supervisor
        }
    }

    /// The host's time, read before or after the loads around it.
    #[inline(always)]
    pub fn host_time(&mut self) -> u64 {
        self.lease.time(host_tsc()).unwrap_or_else(|| self.renew_lease())
    }

    /// The host's time once all instructions before are done.
    #[inline(always)]
    fn host_time_in_order(&mut self) -> u64 {
        self.lease.time(host_tsc_in_order()).unwrap_or_else(|| self.renew_lease())
    }

    #[cold]
    fn renew_lease(&mut self) -> u64 {
        self.lease = Lease::take();
        self.lease.beginning()
    }

    /// Guest time-stamp counter, read before or after the loads around it, as RDTSC does.
    #[inline(always)]
    pub fn tsc(&mut self) -> u64 {
        self.host_time().wrapping_add(self.tsc_offset)
    }

    /// Guest time-stamp counter, read after all instructions before, as RDTSCP does.
    #[inline(always)]
    pub fn tsc_in_order(&mut self) -> u64 {
        self.host_time_in_order().wrapping_add(self.tsc_offset)
    }

    /// The moment, as the local APIC counts it: nanoseconds by the host's time, which the guest cannot set.
    pub fn now(&mut self) -> Now {
        let host = self.host_time();
        Now { ns: self.tsc_to_ns(host), tsc: host.wrapping_add(self.tsc_offset) }
    }

    /// TSC ticks in nanoseconds.
    pub fn tsc_to_ns(&self, tsc: u64) -> u64 {
        let khz = u128::from(self.model.tsc_khz.max(1));
        (u128::from(tsc) * 1_000_000 / khz) as u64
    }

    /// The host's time at which a timer of the local APIC is due.
    pub fn deadline_tsc(&self, deadline: crate::lapic::TimerDeadline) -> u64 {
        match deadline {
            crate::lapic::TimerDeadline::Tsc(tsc) => tsc.wrapping_sub(self.tsc_offset),
            crate::lapic::TimerDeadline::Ns(ns) => {
                let ticks = (u128::from(ns) * u128::from(self.model.tsc_khz)).div_ceil(1_000_000);
                u64::try_from(ticks).unwrap_or(u64::MAX)
            }
        }
    }

    /// Whether a maskable interrupt could be taken now.
    pub fn interrupts_open(&self) -> bool {
        self.has(flag::IF) && !self.shadow
    }

    /// Whether an NMI waits that is not masked.
    #[inline]
    pub fn nmi_due(&mut self) -> bool {
        !self.nmi_masked && self.lapic.nmi_pending()
    }

    /// Whether there is nothing for the run loop to do before the next instruction, whatever [`Cpu::leave`] says: an
    /// executor that asks may clear it and go on.
    #[inline]
    pub fn undisturbed(&mut self) -> bool {
        self.shared.requested() == 0
            && self.stale_code.is_empty()
            && self.mp == MpState::Running
            && self.injected.is_none()
            && self.pending_debug == 0
            && !(self.armed || self.shadow || self.has(flag::TF))
            && !self.lapic.init_pending()
            && !self.nmi_due()
            && !(self.has(flag::IF) && self.lapic.has_interrupt())
            && !self.virtual_interrupt_due()
    }

    /// What a serialising instruction is besides what it does (Intel SDM vol. 3, 9.3): nothing behind it begins before all in
    /// front of it is done and its stores are seen by others, and behind it other processors' changes to code are seen
    /// (9.1.3).
    #[inline]
    pub(crate) fn serialise(&mut self) {
        serialise_host();
        self.heed_requests();
    }

    /// If something is requested, makes the executor look before the next instruction: behind a device access, which
    /// may have been the cause (a kick, DMA into code), and at instructions that serialise.
    #[inline]
    pub(crate) fn heed_requests(&mut self) {
        if self.shared.requested() != 0 {
            self.leave = true;
        }
    }

    /// Ends a repeated string instruction at an instruction boundary before its count is used up; it goes on when it is
    /// executed again. RF tells whoever comes in between, and keeps its code breakpoint from it (Intel SDM vol. 3, 6.8.3).
    pub(crate) fn give_up_turn(&mut self) {
        self.next_rip = self.rip;
        self.system_flags |= flag::RF;
        self.leave = true;
    }

    /// Serves the requests that are about how memory is reached: needed before going on whenever others did not wait
    /// for this vCPU. Whether translations have changed.
    pub fn serve_memory_requests(&mut self) -> bool {
        const MEMORY: u32 = request::REMAP | request::DIRTY | request::WRITES;
        if self.shared.requested() & MEMORY == 0 {
            return false;
        }
        let requests = self.shared.take(MEMORY);
        if requests & request::REMAP != 0 {
            self.remap();
        }
        if requests & request::DIRTY != 0 {
            self.tlb.drop_write_tags();
        }
        if requests & request::WRITES != 0 {
            // Who decodes the page waits until we have looked, so that what we stored before is seen.
            match self.shared.take_watched_pages().pages() {
                Some(pages) => pages.for_each(|watched| _ = self.tlb.drop_write_tags_of(watched.page)),
                None => self.tlb.drop_write_tags(),
            }
        }
        requests & request::REMAP != 0
    }

    /// Byte offset in `Cpu` of general register `index`.
    pub const fn gpr_offset(index: usize) -> usize {
        offset_of!(Cpu, gpr) + 8 * index
    }

    /// Byte offset in `Cpu` of the base of segment `index`.
    pub const fn seg_base_offset(index: usize) -> usize {
        offset_of!(Cpu, segs) + size_of::<Segment>() * index + offset_of!(Segment, base)
    }

    /// Byte offset in `Cpu` of the word that says that inline TLB entries are filled: [`crate::tlb::InlineTlb::filled_offset`].
    pub const fn inline_tlb_filled_offset() -> usize {
        offset_of!(Cpu, tlb) + crate::tlb::InlineTlb::filled_offset()
    }

    /// Byte offsets in `Cpu` of tag and addend of an inline TLB entry: [`crate::tlb::InlineTlb::offsets`].
    pub const fn inline_tlb_offsets(mode: TlbMode, write: bool, number: usize) -> (usize, usize) {
        let (tag, addend) = crate::tlb::InlineTlb::offsets(mode, write, number);
        (offset_of!(Cpu, tlb) + tag, offset_of!(Cpu, tlb) + addend)
    }

    /// Byte offset in `Cpu` of vector register `index`.
    pub const fn vector_offset(index: usize) -> usize {
        offset_of!(Cpu, vector) + size_of::<Ymm>() * index
    }
}

/// The host's time-stamp counter.
#[allow(unsafe_code)] // RDTSC has no safe wrapper
#[inline(always)]
pub fn host_tsc() -> u64 {
    // SAFETY: RDTSC reads a counter; every x86-64 processor has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The host's time-stamp counter, read once all instructions before are done (Intel SDM vol. 2, RDTSC).
#[allow(unsafe_code)] // LFENCE and RDTSC have no safe wrapper
#[inline(always)]
fn host_tsc_in_order() -> u64 {
    // SAFETY: every x86-64 processor has both.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        std::arch::x86_64::_rdtsc()
    }
}

/// Makes the host do what serialising instructions do to data: a locked instruction waits until the stores before it are seen,
/// those past the caches included (Intel SDM vol. 3, 9.2.2 and 12.3.1), and LFENCE keeps what follows from beginning earlier.
#[allow(unsafe_code)] // a locked instruction and LFENCE
#[inline(always)]
fn serialise_host() {
    let mut own = 0u32;
    // SAFETY: changes nothing, on a variable of ours.
    unsafe {
        std::arch::asm!("lock or dword ptr [{0}], 0", "lfence", in(reg) &raw mut own, options(nostack));
    }
}
