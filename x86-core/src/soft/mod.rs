//! A VM on a software CPU: everything but the execution of instructions.
//!
//! A software backend is an [`Executor`]; [`SoftVm`] and [`SoftVcpu`] make an [`accel_api::AccelVm`] and
//! [`accel_api::Vcpu`] of it. The run loop here serves requests, timers and interrupts between the executor's slices.

mod alarm;
mod home;
mod vcpu;
mod vm;

use std::fmt::Debug;

pub use home::CpuHome;
pub use vcpu::SoftVcpu;
pub use vm::SoftVm;

use accel_api::x86::{CpuFeatures, Feature, PLATFORM_FEATURES, SPECULATION_FEATURES, Speculation};
use accel_api::{AccelCaps, AccelError};

use crate::{Cpu, Exec, StaleCode};

/// Executes instructions of one vCPU.
pub trait Executor: Debug + 'static {
    /// What its maker chooses for all executors of a VM.
    type Config: Clone + Debug + Send + Sync;

    /// Whether it looks at the vCPU's request word instead of its budget, and so must be told of timers by a request. It
    /// may then return before the first instruction.
    const POLLS: bool = false;

    /// The vCPU's state where the executor wants it, before [`Self::new`] sees it.
    ///
    /// # Errors
    /// There is no such memory.
    fn place(cpu: Box<Cpu>) -> Result<CpuHome, AccelError> {
        Ok(cpu.into())
    }

    /// An executor for `cpu` with nothing decoded.
    ///
    /// # Errors
    /// The host does not give what it needs.
    fn new(cpu: &mut Cpu, config: &Self::Config) -> Result<Self, AccelError>
    where
        Self: Sized;

    /// Runs from RIP until [`Cpu::budget`] is spent (or, if it [polls](Self::POLLS), something is requested) or
    /// [`Cpu::leave`] is set, at least one instruction; takes what it ran off the budget. RIP is exact on return.
    ///
    /// # Errors
    /// The fault of the instruction at RIP, not yet delivered.
    fn execute(&mut self, cpu: &mut Cpu) -> Exec;

    /// Drops what was decoded of code that was written; all of its page, if it likes.
    fn code_stale(&mut self, stale: StaleCode);

    /// Drops all that was decoded.
    fn all_code_stale(&mut self);

    /// Why it cannot go on, if it cannot. It has posted itself a kick, so that the run loop asks.
    fn failure(&mut self) -> Option<AccelError> {
        None
    }

    /// Whether [`Cpu::instructions`] is all that it has executed.
    fn counts(&self) -> bool {
        true
    }

    /// Counters for [`accel_api::VcpuStats`].
    fn counters(&self) -> Vec<(&'static str, u64)>;

    /// See [`accel_api::VcpuStats::report`].
    fn report(&self, cpu: &Cpu) -> Vec<String> {
        let _ = cpu;
        Vec::new()
    }
}

/// Features software CPUs implement whatever the host's are.
const EMULATED: CpuFeatures = PLATFORM_FEATURES.with(&[
    Feature::Fpu,
    Feature::Vme,
    Feature::De,
    Feature::Pse,
    Feature::Tsc,
    Feature::Msr,
    Feature::Pae,
    Feature::Cx8,
    Feature::Sep,
    Feature::Pge,
    Feature::Cmov,
    Feature::Pse36,
    Feature::Clflush,
    Feature::Mmx,
    Feature::Fxsr,
    Feature::Smep,
    Feature::Smap,
    Feature::Erms,
    Feature::Fsrm,
    Feature::LahfLm,
    Feature::Syscall,
    Feature::Nx,
    Feature::Pdpe1gb,
    Feature::Rdtscp,
    Feature::Lm,
    Feature::Fsgsbase,
    Feature::Prefetchw,
    Feature::Movbe,
    Feature::Adx,
    Feature::Xsave,
    Feature::Xsaveopt,
    Feature::Xsavec,
    Feature::Xgetbv1,
    Feature::Xsaves,
    Feature::Pcid,
    Feature::Invpcid,
    Feature::Umip,
    Feature::Rdpid,
    // The host's kernel is the generator, whatever its processor has.
    Feature::Rdrand,
    Feature::Rdseed,
    Feature::Clflushopt,
    Feature::Clwb,
    Feature::Clzero,
    Feature::Mwaitx,
    Feature::Rdpru,
    Feature::Wbnoinvd,
    // FSAVE and its kin store the pointers of the last x87 instruction whether it failed or not.
    Feature::Xsaveerptr,
    Feature::LfenceRdtsc,
    Feature::NullSelClrBase,
]);

/// Features that are executed by the host's own instructions, so the host must have them.
const PASSED_THROUGH: CpuFeatures = CpuFeatures::of(&[
    Feature::Sse,
    Feature::Sse2,
    Feature::Sse3,
    Feature::Ssse3,
    Feature::Sse41,
    Feature::Sse42,
    Feature::Popcnt,
    Feature::Cx16,
    Feature::Abm,
    Feature::Bmi1,
    Feature::Bmi2,
    Feature::Sse4a,
    Feature::Aes,
    Feature::Pclmulqdq,
    Feature::Sha,
    Feature::Gfni,
    Feature::Avx,
    Feature::Avx2,
    Feature::Fma,
    Feature::F16c,
    Feature::Vaes,
    Feature::Vpclmulqdq,
]);

/// Features that software CPUs offer on this host.
pub fn features() -> CpuFeatures {
    // Controls of speculation hold what is written to them.
    EMULATED.union(&SPECULATION_FEATURES).union(&PASSED_THROUGH.intersection(&CpuFeatures::of_host()))
}

/// What software CPUs offer on this host, `max_vcpus` of them in a VM.
pub fn caps(max_vcpus: u32) -> AccelCaps {
    AccelCaps { features: features(), speculation: Speculation::WITHOUT_EFFECT, max_vcpus, exact: true }
}

/// Most vCPUs of a software VM: APIC ids below the broadcast id.
pub const MAX_VCPUS: u32 = 64;
