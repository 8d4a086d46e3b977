//! Which processor CPUID names: vendor, family, model, stepping.
//!
//! 1. Programs ask for names, not only for features: GCC's and LLVM's `__builtin_cpu_is`, and what they make of
//!    `target_clones("arch=...")`, decode vendor, family and model, and run code that takes for granted whatever the
//!    compiler knows of that processor. A name is thus a *promise* of features, and [`Signature::newest`] gives only
//!    names whose promises the features keep.
//! 2. Promises are those of GCC (`gcc/config/i386/i386.h`, PTA_*; `gcc/common/config/i386/cpuinfo.h`) and LLVM
//!    (`X86TargetParser.cpp`, `compiler-rt/lib/builtins/cpu_model/x86.c`) together. HLE is none: its prefixes are
//!    ignored by processors without it.
//! 3. Kernels look at the signature, too, for faults of that processor: see [`Signature::newest`] of `silicon`.

use serde::{Deserialize, Serialize};

use super::speculation::{AMD_SPECULATION, INTEL_SPECULATION};
use crate::x86::{CpuFeatures, Feature, Feature::*};

/// Whose processor it is, and so which of the two manuals it follows where they differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Vendor {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD.
    Amd,
}

impl Vendor {
    /// CPUID's name of it (leaf 0: EBX, EDX, ECX).
    pub const fn id(self) -> &'static [u8; 12] {
        match self {
            Self::Intel => b"GenuineIntel",
            Self::Amd => b"AuthenticAMD",
        }
    }

    /// The vendor called `id`. Processors made under another's licence count as that vendor's; of a vendor that is not
    /// known guests are told Intel.
    fn called(id: &[u8; 12]) -> Self {
        match id {
            b"AuthenticAMD" | b"HygonGenuine" => Self::Amd,
            _ => Self::Intel,
        }
    }

    /// Whether processors of this vendor may announce `feature`.
    pub const fn has(self, feature: Feature) -> bool {
        match self {
            Self::Intel => !AMD_ONLY.has(feature),
            Self::Amd => !INTEL_SPECULATION.has(feature),
        }
    }

    /// All features that processors of this vendor may announce.
    pub fn features(self) -> CpuFeatures {
        let other = match self {
            Self::Intel => AMD_ONLY,
            Self::Amd => INTEL_SPECULATION,
        };
        CpuFeatures::of(Feature::ALL).minus(&other)
    }
}

/// What only AMD's processors announce.
const AMD_ONLY: CpuFeatures = AMD_SPECULATION.with(&[
    Sse4a,
    Misalignsse,
    Mwaitx,
    Clzero,
    Xsaveerptr,
    Rdpru,
    LfenceRdtsc,
    NullSelClrBase,
]);

/// CPUID's name of a processor (Intel SDM vol. 2A, CPUID, figure 3-6; AMD APM vol. 3, Fn0000_0001).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Signature {
    /// Vendor.
    pub vendor: Vendor,
    /// Family, the extended one added.
    pub family: u8,
    /// Model, with the extended one in its upper half.
    pub model: u8,
    /// Stepping, 0 to 15.
    pub stepping: u8,
}

impl Signature {
    const fn of(vendor: Vendor, family: u8, model: u8, stepping: u8) -> Self {
        Self { vendor, family, model, stepping }
    }

    /// EAX of leaf 1.
    pub const fn eax(self) -> u32 {
        let (family, model) = (self.family as u32, self.model as u32);
        let (base, extended) = if family < 15 { (family, 0) } else { (15, family - 15) };
        extended << 20 | (model >> 4) << 16 | base << 8 | (model & 15) << 4 | self.stepping as u32
    }

    /// The processor of `vendor` with this EAX of leaf 1.
    pub const fn from_eax(vendor: Vendor, eax: u32) -> Self {
        let base = (eax >> 8 & 15) as u8;
        let family = if base == 15 { base.wrapping_add((eax >> 20) as u8) } else { base };
        let extended = base == 15 || base == 6 && matches!(vendor, Vendor::Intel);
        let model = (eax >> 4 & 15) as u8 | if extended { (eax >> 12 & 0xf0) as u8 } else { 0 };
        Self { vendor, family, model, stepping: (eax & 15) as u8 }
    }

    /// The newest processor of `vendor` that promises nothing beyond `features`.
    ///
    /// Where the guest's code meets the faults of `silicon` itself, an AMD processor's family is its: kernels choose
    /// their protection by it (safe returns, untrained predictors), and another's would not help. What only kernels and
    /// intrinsics reach ([`BY_NAME_ONLY`]) may then be missing. Intel's kernels are told by IA32_ARCH_CAPABILITIES.
    pub fn newest(vendor: Vendor, features: &CpuFeatures, silicon: Option<Self>) -> Self {
        let of_vendor = || NAMES.iter().filter(|name| name.signature.vendor == vendor);
        let silicon = silicon.filter(|s| s.vendor == vendor && vendor == Vendor::Amd);
        let by_family = silicon.and_then(|silicon| {
            // A family too new to be named here has the faults of the newest that is, or fewer.
            let mut older = of_vendor().filter(|name| name.signature.family <= silicon.family);
            older.find(|name| name.runs_on(features))
        });
        let name = by_family.or_else(|| of_vendor().find(|name| name.is_kept_by(features)));
        name.map_or(
            match vendor {
                // What hypervisors have long called a processor of no particular name.
                Vendor::Intel => Self::of(vendor, 15, 6, 1),
                Vendor::Amd => Self::of(vendor, 15, 0x6b, 1),
            },
            |name| name.signature,
        )
    }
}

/// A processor that compilers know.
struct Name {
    /// What they call it.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reader, and for tests"))]
    name: &'static str,
    signature: Signature,
    promises: CpuFeatures,
    /// Promises that no model keeps.
    beyond: &'static [&'static str],
}

/// Promised features that no compiler uses unless told by an intrinsic, or that are for kernels.
const BY_NAME_ONLY: CpuFeatures = CpuFeatures::of(&[Clzero, Mwaitx, Rdpru, Wbnoinvd, Invpcid]);

impl Name {
    /// Whether `features` are all that the name promises.
    fn is_kept_by(&self, features: &CpuFeatures) -> bool {
        self.beyond.is_empty() && self.promises.minus(features) == CpuFeatures::EMPTY
    }

    /// Whether what a compiler makes for the name of its own accord runs with `features`.
    fn runs_on(&self, features: &CpuFeatures) -> bool {
        self.promises.minus(&BY_NAME_ONLY).minus(features) == CpuFeatures::EMPTY
    }
}

const CORE2: CpuFeatures = CpuFeatures::of(&[Mmx, Fxsr, Sse, Sse2, Sse3, Ssse3, Cx16, LahfLm]);
const NEHALEM: CpuFeatures = CORE2.with(&[Sse41, Sse42, Popcnt]);
const WESTMERE: CpuFeatures = NEHALEM.with(&[Pclmulqdq]);
const SANDY_BRIDGE: CpuFeatures = WESTMERE.with(&[Avx, Xsave, Xsaveopt]);
const IVY_BRIDGE: CpuFeatures = SANDY_BRIDGE.with(&[Fsgsbase, Rdrand, F16c]);
const HASWELL: CpuFeatures = IVY_BRIDGE.with(&[Avx2, Bmi1, Bmi2, Abm, Fma, Movbe, Invpcid]);
const BROADWELL: CpuFeatures = HASWELL.with(&[Adx, Rdseed, Prefetchw]);

const BTVER1: CpuFeatures =
    CpuFeatures::of(&[Mmx, Fxsr, Sse, Sse2, Sse3, Ssse3, Sse4a, Cx16, LahfLm, Abm, Popcnt, Prefetchw, Xsave]);
const BTVER2: CpuFeatures = BTVER1.with(&[Sse41, Sse42, Aes, Pclmulqdq, Avx, Bmi1, F16c, Movbe, Xsaveopt]);
const ZNVER1: CpuFeatures = BTVER2
    .with(&[Adx, Avx2, Bmi2, Clflushopt, Clzero, Fma, Fsgsbase, Mwaitx, Rdrand, Rdseed, Sha, Xsavec, Xsaves]);
const ZNVER2: CpuFeatures = ZNVER1.with(&[Clwb, Rdpid, Rdpru, Wbnoinvd]);
const ZNVER3: CpuFeatures = ZNVER2.with(&[Invpcid, Vaes, Vpclmulqdq]);

const fn intel(name: &'static str, model: u8, stepping: u8, promises: CpuFeatures) -> Name {
    Name { name, signature: Signature::of(Vendor::Intel, 6, model, stepping), promises, beyond: &[] }
}

const fn amd(name: &'static str, family: u8, model: u8, stepping: u8, promises: CpuFeatures) -> Name {
    Name { name, signature: Signature::of(Vendor::Amd, family, model, stepping), promises, beyond: &[] }
}

/// The newest first. Not here are those that promise what no model has (Skylake: SGX; later ones: AVX-512 or AVX-VNNI;
/// Bulldozer and its kin: XOP; family 10h: 3DNow!), and small cores. Of several models with one name it is the server's.
const NAMES: &[Name] = &[
    intel("broadwell", 0x4f, 1, BROADWELL),
    intel("haswell", 0x3f, 2, HASWELL),
    intel("ivybridge", 0x3e, 4, IVY_BRIDGE),
    intel("sandybridge", 0x2d, 7, SANDY_BRIDGE),
    intel("westmere", 0x2c, 2, WESTMERE),
    intel("nehalem", 0x1a, 5, NEHALEM),
    intel("core2", 0x0f, 11, CORE2),
    Name { beyond: &["pku"], ..amd("znver3", 0x19, 0x01, 1, ZNVER3) },
    amd("znver2", 0x17, 0x31, 0, ZNVER2),
    amd("znver1", 0x17, 0x01, 2, ZNVER1),
    amd("btver2", 0x16, 0x30, 1, BTVER2),
    amd("btver1", 0x14, 0x02, 0, BTVER1),
];

/// The host's processor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostProcessor {
    /// What it is.
    pub signature: Signature,
    /// What it can do, as far as this process may.
    pub features: CpuFeatures,
}

impl HostProcessor {
    /// Asks CPUID.
    pub fn detect() -> Self {
        use std::arch::x86_64::__cpuid;
        let leaf0 = __cpuid(0);
        let mut id = [0; 12];
        for (word, at) in [leaf0.ebx, leaf0.edx, leaf0.ecx].into_iter().zip(id.chunks_exact_mut(4)) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        let signature = Signature::from_eax(Vendor::called(&id), __cpuid(1).eax);
        Self { signature, features: CpuFeatures::of_host() }
    }
}

#[cfg(test)]
mod tests;
