//! The traits every backend implements, and the one ([`VcpuBus`]) it is given.

use std::fmt::Debug;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::x86::{CpuFeatures, CpuModel, CpuState, Speculation};
use crate::{AccelError, DirtyPages, GpFault, GuestRam, InterruptPort, RamRegion};

/// Name of a backend as users write it: `kvm`, `jit`, `interp`, or one registered by an embedder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct AccelId(pub &'static str);

impl std::fmt::Display for AccelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// What a backend offers on this host, fixed for the life of the [`Accelerator`].
#[derive(Clone, Debug)]
pub struct AccelCaps {
    /// CPUID feature bits the backend can give a guest.
    pub features: CpuFeatures,
    /// What a guest is to know of speculation.
    pub speculation: Speculation,
    /// Most vCPUs in one VM.
    pub max_vcpus: u32,
    /// The backend does everything as the manuals say. Those whose parts are the host kernel's may take liberties:
    ///
    /// * A single step ends behind the handler of an event, not in front of it, and the handler may find TF set.
    /// * The local APIC finds no errors (its ESR stays 0), and the task priority's low four bits may get lost.
    /// * A REP INS that faults may have read more from its port than it has stored.
    /// * [`AccelVm::take_dirty`] may report pages that were not written.
    /// * Fetching instructions from where no RAM is gives [`Exit::Unsupported`].
    pub exact: bool,
}

impl AccelCaps {
    /// What both offer: what a VM can have that may run on either.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        Self {
            features: self.features.intersection(&other.features),
            speculation: self.speculation.worst_of(other.speculation),
            max_vcpus: self.max_vcpus.min(other.max_vcpus),
            exact: self.exact && other.exact,
        }
    }
}

/// What a VM is made of. The CPU model and RAM are shared by every backend the VM will ever run on.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// CPUID and MSRs the guest sees.
    pub model: Arc<CpuModel>,
    /// The guest's memory; slots passed to [`AccelVm::map`] are regions of it.
    pub ram: Arc<GuestRam>,
    /// Number of vCPUs that will be bound; their ids are `0..vcpus` and equal their APIC ids.
    pub vcpus: u32,
}

/// Identity of one vCPU, equal to its APIC id.
pub type VcpuId = u32;

/// How a vCPU starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuConfig {
    /// Index below [`VmSpec::vcpus`]. Vcpu 0 is the bootstrap processor.
    pub id: VcpuId,
}

/// Key of a memory slot, chosen by the machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SlotId(pub u32);

/// What the guest may do with a slot. Writes to a read-only slot go to [`VcpuBus::mmio_write`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// RAM.
    ReadWrite,
    /// ROM.
    ReadOnly,
}

/// A register whose stores are an event and nothing else, as a queue's doorbell.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IoEventAddress {
    /// A port.
    Port(u16),
    /// Guest-physical.
    Memory(u64),
}

/// Width of a device access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum IoSize {
    /// 1 byte.
    Byte = 1,
    /// 2 bytes.
    Word = 2,
    /// 4 bytes.
    Dword = 4,
    /// 8 bytes (MMIO only).
    Qword = 8,
}

impl IoSize {
    /// Width in bytes.
    pub const fn bytes(self) -> usize {
        self as usize
    }

    /// The size of `bytes` bytes, if it is 1, 2, 4 or 8.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// All ones in this width: what a read of nothing returns.
    pub const fn ones(self) -> u64 {
        u64::MAX >> (64 - 8 * self as u32)
    }
}

/// A way to execute guest instructions. Shared, stateless apart from host handles.
pub trait Accelerator: Debug + Send + Sync {
    /// The name users choose it by.
    fn id(&self) -> AccelId;
    /// What it offers on this host.
    fn caps(&self) -> &AccelCaps;
    /// Makes an empty VM: no memory mapped, no vCPU bound.
    ///
    /// # Errors
    /// The model asks for a feature outside [`AccelCaps::features`], too many vCPUs, or a host failure.
    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn AccelVm>, AccelError>;
}

/// One virtual machine on one backend.
pub trait AccelVm: Debug + Send + Sync {
    /// Makes `region` visible to the guest at its guest-physical address. Takes effect before it returns, also for
    /// running vCPUs.
    ///
    /// # Errors
    /// The slot is in use, or overlaps another.
    fn map(&self, slot: SlotId, region: &RamRegion, access: Access) -> Result<(), AccelError>;
    /// Removes a slot; the guest's accesses there become MMIO.
    ///
    /// # Errors
    /// No such slot.
    fn unmap(&self, slot: SlotId) -> Result<(), AccelError>;
    /// Binds a vCPU to the *calling thread*, which alone may use it afterwards. The vCPU has the architectural reset
    /// state (Intel SDM vol. 3, 10.1.1); vCPUs other than 0 wait for SIPI.
    ///
    /// # Errors
    /// The id is out of range or bound already, or a host failure.
    fn bind_vcpu(&self, cfg: &VcpuConfig, bus: Arc<dyn VcpuBus>) -> Result<Box<dyn Vcpu>, AccelError>;
    /// Where interrupts enter the VM. Usable from any thread, before, during and after `run`.
    fn interrupts(&self) -> Arc<dyn InterruptPort>;
    /// Has stores of the guest's that begin at `at`, of any size and value, write to `event`, an eventfd, in the place of a call
    /// of the [`VcpuBus`]. False: the backend does not offer it there, and calls the bus.
    ///
    /// # Errors
    /// There is one already, or a host failure.
    fn attach_ioeventfd(&self, at: IoEventAddress, event: &EventFd) -> Result<bool, AccelError> {
        let _ = (at, event);
        Ok(false)
    }
    /// Takes back [`attach_ioeventfd`](Self::attach_ioeventfd).
    ///
    /// # Errors
    /// Host failure.
    fn detach_ioeventfd(&self, at: IoEventAddress, event: &EventFd) -> Result<(), AccelError> {
        let _ = (at, event);
        Ok(())
    }
    /// Begins to record stores, for [`take_dirty`](Self::take_dirty): every store after this returns is recorded, of vCPUs,
    /// devices and whoever else writes RAM. Recording may cost the guest time. Once begun it goes on. Taking begins it, too, if
    /// nobody has. Of what was written before, some pages may be among the first that are taken, and some may be unknown.
    ///
    /// # Errors
    /// Host failure.
    fn start_dirty_log(&self) -> Result<(), AccelError>;
    /// Takes the pages of RAM, mapped or not, that were written since the last call, or since recording began. A store whose
    /// page is not among those taken is among the next ones: what is copied of a page after this returns is never older than
    /// the last store that was taken. Never waits for a device access.
    ///
    /// # Errors
    /// Host failure.
    fn take_dirty(&self) -> Result<DirtyPages, AccelError>;
}

/// One virtual CPU, used and dropped on the thread that bound it (so it is not `Send`).
///
/// # Contract of `run`
/// * Returns only at an instruction boundary, with no I/O owed: `save` right after is exact.
/// * HLT and wait-for-SIPI block inside until an interrupt, NMI, INIT, SIPI or kick.
/// * MMIO and port I/O never leave it: they call the [`VcpuBus`].
/// * A guest fault is delivered to the guest and is never an `Err`. `Err` means the host failed and the VM must stop.
/// * After any [`Exit`] but `TripleFault`, calling `run` again goes on where the guest stopped.
pub trait Vcpu {
    /// Runs the guest until one of the reasons in [`Exit`].
    ///
    /// # Errors
    /// A host failure; the vCPU's state is then unspecified.
    fn run(&mut self) -> Result<Exit, AccelError>;
    /// A handle other threads use to make `run` return. *Sticky*: a kick that comes before `run` makes the next `run`
    /// return `Kicked` at once. Several kicks may merge into one; a spurious `Kicked` is allowed.
    fn kicker(&self) -> Arc<dyn Kick>;
    /// The whole state. Does not change it.
    ///
    /// # Errors
    /// Host failure.
    fn save(&mut self) -> Result<CpuState, AccelError>;
    /// Replaces the whole state.
    ///
    /// # Errors
    /// The state asks for what the CPU model lacks ([`AccelError::InvalidState`]), or a host failure.
    fn load(&mut self, state: &CpuState) -> Result<(), AccelError>;
    /// Replaces the debugger's plan; the guest's own debug registers are kept apart.
    ///
    /// # Errors
    /// More hardware breakpoints than the backend has.
    fn set_debug(&mut self, plan: &DebugPlan) -> Result<(), AccelError>;
    /// Counters since the vCPU was bound.
    fn stats(&self) -> VcpuStats;
}

/// Makes a vCPU's `run` return. See [`Vcpu::kicker`].
pub trait Kick: Debug + Send + Sync {
    /// Asks for a return; never blocks.
    fn kick(&self);
}

/// The machine as a vCPU sees it. Called on vCPU threads, several at once, in the middle of guest instructions.
///
/// Implementations must not call back into the vCPU, and must not use floating point: software backends call with the
/// guest's rounding and exception masks in force.
pub trait VcpuBus: Debug + Send + Sync {
    /// A load from guest-physical memory where no RAM is mapped. Nothing there: all ones.
    fn mmio_read(&self, gpa: u64, size: IoSize) -> u64;
    /// A store where no RAM is mapped, or to a read-only slot.
    fn mmio_write(&self, gpa: u64, size: IoSize, value: u64);
    /// IN. `size` is at most 4 bytes.
    fn pio_read(&self, port: u16, size: IoSize) -> u32;
    /// OUT. `size` is at most 4 bytes.
    fn pio_write(&self, port: u16, size: IoSize, value: u32);
    /// RDMSR of an MSR that is the machine's, not the CPU's.
    ///
    /// # Errors
    /// No such MSR: the guest gets #GP(0).
    fn msr_read(&self, index: u32) -> Result<u64, GpFault>;
    /// WRMSR of an MSR that is the machine's, not the CPU's.
    ///
    /// # Errors
    /// No such MSR, or a value it does not take: the guest gets #GP(0).
    fn msr_write(&self, index: u32, value: u64) -> Result<(), GpFault>;
    /// The INTA cycle for the legacy controller: the vector, or `None` if its request has gone away.
    fn ack_extint(&self) -> Option<u8>;
    /// A local APIC finished a level-triggered `vector`; the IOAPIC may send it again.
    fn eoi(&self, vector: u8);
}

/// Why [`Vcpu::run`] returned.
#[non_exhaustive]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Somebody kicked (or, spuriously, nobody did).
    Kicked,
    /// The guest shut down by a fault in its double-fault handler (Intel SDM vol. 3, 6.15).
    TripleFault,
    /// The debugger's plan matched.
    Debug(DebugStop),
    /// The guest did something this backend cannot do; another may.
    Unsupported(UnsupportedDetail),
}

/// What an [`Exit::Unsupported`] was about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnsupportedDetail {
    /// What the backend could not do.
    pub what: String,
    /// Guest address of the instruction.
    pub rip: u64,
    /// Its bytes, as far as they could be fetched.
    pub bytes: Vec<u8>,
}

/// What the debugger asks of a vCPU.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DebugPlan {
    /// Stop before the instruction at each of these linear addresses; at most 4.
    pub breakpoints: Vec<u64>,
    /// Stop after each instruction.
    pub single_step: bool,
}

/// Where and why the debugger stopped the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DebugStop {
    /// Before the instruction at this linear address.
    Breakpoint(u64),
    /// After one instruction.
    Step,
}

/// Counters of one vCPU.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct VcpuStats {
    /// Guest instructions executed, where the backend knows.
    pub instructions: Option<u64>,
    /// Backend-specific counters, named as in its documentation.
    pub counters: Vec<(&'static str, u64)>,
    /// What else the backend tells people, in lines.
    pub report: Vec<String>,
}

impl VcpuStats {
    /// Adds what the same vCPU has done later, on this backend or another one. What is told in lines is the later one's.
    pub fn add(&mut self, later: Self) {
        self.instructions = self.instructions.zip(later.instructions).map(|(a, b)| a.wrapping_add(b));
        for (name, value) in later.counters {
            match self.counters.iter_mut().find(|(other, _)| *other == name) {
                Some((_, sum)) => *sum = sum.wrapping_add(value),
                None => self.counters.push((name, value)),
            }
        }
        self.report = later.report;
    }
}
