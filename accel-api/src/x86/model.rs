//! What the guest sees of its processor, fixed when the VM is made: features, the processor they make it, what is true of
//! its speculation. `cpuid.rs` and `msr.rs` tell it to the guest.

use serde::{Deserialize, Serialize};

use crate::AccelCaps;
use crate::x86::{
    CpuFeatures, Feature::*, HostProcessor, SPECULATION_FEATURES, Signature, Speculation, Vendor,
};

/// Frequency of the local APIC timer before its divider, on every backend (KVM's in-kernel APIC counts so).
pub const APIC_TIMER_HZ: u64 = 1_000_000_000;

/// Bits of a guest-physical address.
pub const PHYS_BITS: u32 = 40;

/// Everything of the x86-64 psABI's v2 level, and the platform that a PC kernel expects around it. Without VME, which
/// is no part of the level and which some hosts' hypervisors do not give.
const V2: CpuFeatures = CpuFeatures::of(&[
    Fpu,
    De,
    Pse,
    Tsc,
    Msr,
    Pae,
    Mce,
    Cx8,
    Apic,
    Sep,
    Mtrr,
    Pge,
    Mca,
    Cmov,
    Pat,
    Pse36,
    Clflush,
    Mmx,
    Fxsr,
    Sse,
    Sse2,
    Sse3,
    Ssse3,
    Cx16,
    Sse41,
    Sse42,
    X2apic,
    Popcnt,
    TscDeadline,
    Hypervisor,
    Smep,
    Smap,
    Erms,
    Fsrm,
    Rdrand,
    Rdseed,
    LahfLm,
    Syscall,
    Nx,
    Pdpe1gb,
    Rdtscp,
    Lm,
    Fsgsbase,
    Pcid,
    Invpcid,
    Prefetchw,
    InvariantTsc,
    TscAdjust,
]);

/// What the psABI's v3 level has beyond v2, all of the XSAVE family, through which kernels carry AVX state, and what
/// processors of that level have for cryptography.
const V3: CpuFeatures = V2.with(&[
    Avx, Avx2, Bmi1, Bmi2, F16c, Fma, Abm, Movbe, Xsave, Xsaveopt, Xsavec, Xgetbv1, Xsaves, Aes, Pclmulqdq,
]);

/// What programs and kernels take for granted of AMD's processors and a hypervisor below may hide, though a software CPU
/// needs nothing of the host for it.
const KIN_OF_AMD: CpuFeatures =
    CpuFeatures::of(&[Clzero, Mwaitx, Rdpru, Wbnoinvd, Xsaveerptr, LfenceRdtsc, NullSelClrBase]);

/// Features a backend implements whatever the host's CPU is: they are the platform's, not the instruction set's.
pub const PLATFORM_FEATURES: CpuFeatures = CpuFeatures::of(&[
    X2apic,
    TscDeadline,
    Hypervisor,
    ArchCapabilities,
    InvariantTsc,
    TscAdjust,
    Mtrr,
    Mce,
    Mca,
    Pat,
    Apic,
]);

/// What named models have beyond their psABI level because kernels are better with it, and do without where it is
/// missing: see [`CpuModel::fit`].
pub const OPTIONAL_FEATURES: CpuFeatures = CpuFeatures::of(&[
    Fsgsbase, Smep, Smap, Pcid, Invpcid, Erms, Fsrm, Prefetchw, Pdpe1gb, Rdtscp, LahfLm, Xsaveopt, Xsavec,
    Xgetbv1, Xsaves, Rdrand, Rdseed, Aes, Pclmulqdq, TscAdjust,
]);

/// Names that [`CpuModel::named`] takes.
pub const MODEL_NAMES: &[&str] = &["x86-64-v2", "x86-64-v3", HOST];

/// The model that has whatever the host's processor and the accelerator both have.
const HOST: &str = "host";

/// Vendor of the named models, wherever they run.
const NAMED_VENDOR: Vendor = Vendor::Intel;

/// A processor as guests see it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CpuModel {
    /// Name the user chose.
    pub name: String,
    /// Features announced.
    pub features: CpuFeatures,
    /// Guest TSC frequency in kHz, the host's own.
    pub tsc_khz: u32,
    /// vCPUs in the package.
    pub vcpus: u32,
    /// The processor that CPUID names.
    pub signature: Signature,
    /// IA32_ARCH_CAPABILITIES, which is there if it is announced.
    pub arch_capabilities: u64,
}

/// No model of that name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no CPU model `{name}`: choose one of {}", MODEL_NAMES.join(", "))]
pub struct UnknownModel {
    /// The name asked for.
    pub name: String,
}

impl CpuModel {
    /// The model called `name` on this host, for `vcpus` vCPUs and a TSC of `tsc_khz`. It is to be [fitted](Self::fit) to
    /// what runs it.
    ///
    /// # Errors
    /// No such model.
    pub fn named(name: &str, vcpus: u32, tsc_khz: u32) -> Result<Self, UnknownModel> {
        Self::on(&HostProcessor::detect(), name, vcpus, tsc_khz)
    }

    /// The same on another host.
    ///
    /// # Errors
    /// No such model.
    pub fn on(host: &HostProcessor, name: &str, vcpus: u32, tsc_khz: u32) -> Result<Self, UnknownModel> {
        let (vendor, features) = match name {
            "x86-64-v2" => (NAMED_VENDOR, V2.union(&SPECULATION_FEATURES)),
            "x86-64-v3" => (NAMED_VENDOR, V3.union(&SPECULATION_FEATURES)),
            HOST => {
                let there = host.features.union(&PLATFORM_FEATURES).union(&SPECULATION_FEATURES);
                match host.signature.vendor {
                    Vendor::Amd => (Vendor::Amd, there.union(&KIN_OF_AMD)),
                    vendor => (vendor, there),
                }
            }
            _ => return Err(UnknownModel { name: name.to_owned() }),
        };
        let features = features.intersection(&vendor.features());
        Ok(Self {
            name: name.to_owned(),
            features,
            tsc_khz,
            vcpus,
            signature: Signature::newest(vendor, &features, None),
            arch_capabilities: Speculation::WITHOUT_EFFECT.arch_capabilities(),
        })
    }

    /// Whose processor it is.
    pub const fn vendor(&self) -> Vendor {
        self.signature.vendor
    }

    /// Leaves out what is optional and not offered by `caps` (of the model `host` everything is optional), and names the
    /// processor that is left. With [what all backends offer](AccelCaps::common) that a VM shall ever run on, the model is
    /// one that each of them can give.
    pub fn fit(&mut self, caps: &AccelCaps) {
        let optional = OPTIONAL_FEATURES.union(&SPECULATION_FEATURES);
        let required = if self.name == HOST { CpuFeatures::EMPTY } else { self.features.minus(&optional) };
        self.features = self.features.intersection(&caps.features.union(&required));
        self.signature = Signature::newest(self.vendor(), &self.features, caps.speculation.silicon());
        self.arch_capabilities = caps.speculation.arch_capabilities();
    }

    /// What a backend with `caps` cannot give of it: features by their names, and bits of IA32_ARCH_CAPABILITIES.
    pub fn missing_from(&self, caps: &AccelCaps) -> Vec<String> {
        let features = self.features.missing_from(&caps.features).into_iter().map(str::to_owned);
        let told = if self.features.has(ArchCapabilities) { self.arch_capabilities } else { 0 };
        let belied = if told == 0 { 0 } else { caps.speculation.belied(told) };
        let bits = (0..64).filter(|bit| belied >> bit & 1 == 1);
        features.chain(bits.map(|bit| format!("bit {bit} of IA32_ARCH_CAPABILITIES"))).collect()
    }

    /// State components that XCR0 may have: x87, SSE, and AVX where there is any (Intel SDM vol. 1, 13.3).
    pub fn xcr0_mask(&self) -> u64 {
        if self.features.has(Avx) { 7 } else { 3 }
    }
}

#[cfg(test)]
mod tests;
