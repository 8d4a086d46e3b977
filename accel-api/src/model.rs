//! What the guest sees of its processor: CPUID leaves and MSRs, fixed when the VM is made.
//!
//! The model presents an Intel-style processor that is not vulnerable to the known speculative attacks
//! (IA32_ARCH_CAPABILITIES), so that guest kernels leave out mitigations that only cost time in software. Frequencies
//! are announced by leaves 0x15 and 0x16: the crystal is the local APIC timer's 1 GHz.

use serde::{Deserialize, Serialize};

use crate::{CpuFeatures, CpuidWord, Feature};

use Feature::*;

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
    SpecCtrl,
    ArchCapabilities,
    MdClear,
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
]);

/// What the psABI's v3 level has beyond v2, and all of the XSAVE family, through which kernels carry AVX state.
const V3: CpuFeatures =
    V2.with(&[Avx, Avx2, Bmi1, Bmi2, F16c, Fma, Abm, Movbe, Xsave, Xsaveopt, Xsavec, Xgetbv1, Xsaves]);

/// Features a backend implements whatever the host's CPU is: they are the platform's, not the instruction set's.
pub const PLATFORM_FEATURES: CpuFeatures = CpuFeatures::of(&[
    X2apic,
    TscDeadline,
    Hypervisor,
    SpecCtrl,
    ArchCapabilities,
    MdClear,
    InvariantTsc,
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
    Xgetbv1, Xsaves,
]);

/// Names that [`CpuModel::named`] takes.
pub const MODEL_NAMES: &[&str] = &["x86-64-v2", "x86-64-v3", HOST];

/// The model that has whatever the host's processor and the accelerator both have.
const HOST: &str = "host";

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
}

/// No model of that name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no CPU model `{name}`: choose one of {}", MODEL_NAMES.join(", "))]
pub struct UnknownModel {
    /// The name asked for.
    pub name: String,
}

/// What of CPUID's output depends on the vCPU and its registers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CpuidInputs {
    /// APIC id.
    pub apic_id: u32,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// IA32_APIC_BASE says that the local APIC is on.
    pub apic_enabled: bool,
    /// XCR0. With 0 the size of the XSAVE area is that of what is always on.
    pub xcr0: u64,
}

/// CPUID's output registers.
#[allow(missing_docs)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

const LAST_BASIC: u32 = 0x16;
const LAST_HYPERVISOR: u32 = 0x4000_0010;
const LAST_EXTENDED: u32 = 0x8000_0008;

impl CpuModel {
    /// The model called `name`, for `vcpus` vCPUs and a TSC of `tsc_khz`.
    ///
    /// # Errors
    /// No such model.
    pub fn named(name: &str, vcpus: u32, tsc_khz: u32) -> Result<Self, UnknownModel> {
        let features = match name {
            "x86-64-v2" => V2,
            "x86-64-v3" => V3,
            HOST => {
                CpuFeatures::of(Feature::ALL).intersection(&CpuFeatures::of_host().union(&PLATFORM_FEATURES))
            }
            _ => return Err(UnknownModel { name: name.to_owned() }),
        };
        Ok(Self { name: name.to_owned(), features, tsc_khz, vcpus })
    }

    /// Leaves out what is optional and not `offered`; of the model `host` everything is optional. With what all backends offer that a VM shall ever run on, the model is
    /// one that each of them can give.
    pub fn fit(&mut self, offered: &CpuFeatures) {
        let required =
            if self.name == HOST { CpuFeatures::EMPTY } else { self.features.minus(&OPTIONAL_FEATURES) };
        let kept = offered.union(&required);
        self.features = self.features.intersection(&kept);
    }

    /// Executes CPUID with `leaf` in EAX and `subleaf` in ECX (Intel SDM vol. 2A, CPUID).
    ///
    /// As on Intel's processors, a leaf beyond the last gives the last basic leaf.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, inputs: CpuidInputs) -> CpuidResult {
        let leaf = match leaf {
            0..=LAST_BASIC | 0x4000_0000..=LAST_HYPERVISOR | 0x8000_0000..=LAST_EXTENDED => leaf,
            _ => LAST_BASIC,
        };
        let regs = |eax, ebx, ecx, edx| CpuidResult { eax, ebx, ecx, edx };
        let zero = CpuidResult::default();
        match leaf {
            0 => vendor(LAST_BASIC, b"GenuineIntel", [0, 2, 1]),
            1 => self.leaf1(inputs),
            // No cache descriptors: see leaf 4.
            2 => regs(0x00ff_ff01, 0, 0, 0),
            4 => self.cache(subleaf),
            // ARAT: the APIC timer does not stop.
            6 => regs(1 << 2, 0, 0, 0),
            7 if subleaf == 0 => regs(
                0,
                self.features.word(CpuidWord::L7Ebx),
                self.features.word(CpuidWord::L7Ecx),
                self.features.word(CpuidWord::L7Edx),
            ),
            0xb => self.topology(subleaf, inputs.apic_id),
            0xd if self.features.has(Xsave) => self.xsave_area(subleaf, inputs.xcr0),
            0x15 => {
                let (numerator, denominator) = ratio(self.tsc_khz);
                regs(denominator, numerator, APIC_TIMER_HZ as u32, 0)
            }
            0x16 => {
                let mhz = self.tsc_khz.div_ceil(1000) & 0xffff;
                regs(mhz, mhz, 100, 0)
            }
            0x4000_0000 => vendor(LAST_HYPERVISOR, b"GearshiftVMM", [0, 1, 2]),
            // TSC and APIC timer frequency in kHz, as several hypervisors tell it.
            LAST_HYPERVISOR => regs(self.tsc_khz, (APIC_TIMER_HZ / 1000) as u32, 0, 0),
            0x8000_0000 => regs(LAST_EXTENDED, 0, 0, 0),
            0x8000_0001 => {
                regs(0, 0, self.features.word(CpuidWord::X1Ecx), self.features.word(CpuidWord::X1Edx))
            }
            0x8000_0002..=0x8000_0004 => brand(leaf - 0x8000_0002),
            0x8000_0006 => regs(0, 0, 0x0100_6040, 0),
            0x8000_0007 => regs(0, 0, 0, self.features.word(CpuidWord::X7Edx)),
            0x8000_0008 => regs(PHYS_BITS | 48 << 8, 0, 0, 0),
            _ => zero,
        }
    }

    fn leaf1(&self, inputs: CpuidInputs) -> CpuidResult {
        let mut ecx = self.features.word(CpuidWord::L1Ecx);
        let mut edx = self.features.word(CpuidWord::L1Edx);
        if inputs.osxsave {
            ecx |= 1 << 27;
        }
        if !inputs.apic_enabled {
            edx &= !(1 << 9);
        }
        if self.vcpus > 1 {
            edx |= 1 << 28; // HTT: the package has several logical processors
        }
        let ebx = inputs.apic_id << 24 | (self.vcpus.next_power_of_two() & 0xff) << 16 | 8 << 8;
        CpuidResult { eax: SIGNATURE, ebx, ecx, edx }
    }

    /// Leaf 4: L1d 32 KiB, L1i 32 KiB, L2 1 MiB, L3 16 MiB shared by the package; 64-byte lines.
    fn cache(&self, subleaf: u32) -> CpuidResult {
        let (kind, level, ways, sets, shared) = match subleaf {
            0 => (1, 1, 8, 64, 1),
            1 => (2, 1, 8, 64, 1),
            2 => (3, 2, 16, 1024, 1),
            3 => (3, 3, 16, 16384, self.vcpus),
            _ => return CpuidResult::default(),
        };
        let cores = self.vcpus.next_power_of_two() - 1;
        CpuidResult {
            eax: kind | level << 5 | 1 << 8 | (shared.next_power_of_two() - 1) << 14 | (cores & 0x3f) << 26,
            ebx: 63 | (ways - 1) << 22,
            ecx: sets - 1,
            edx: 0,
        }
    }

    /// Leaf 0xb: one thread a core, all cores in one package.
    fn topology(&self, subleaf: u32, apic_id: u32) -> CpuidResult {
        let (shift, count, kind) = match subleaf {
            0 => (0, 1, 1),
            1 => (self.vcpus.next_power_of_two().trailing_zeros(), self.vcpus, 2),
            _ => (0, 0, 0),
        };
        CpuidResult { eax: shift, ebx: count, ecx: subleaf & 0xff | kind << 8, edx: apic_id }
    }

    /// State components that XCR0 may have: x87, SSE, and AVX where there is any (Intel SDM vol. 1, 13.3).
    pub fn xcr0_mask(&self) -> u64 {
        if self.features.has(Avx) { 7 } else { 3 }
    }

    /// Leaf 0xd: which state components there are and where they lie in an XSAVE area. There are no supervisor
    /// components (IA32_XSS), so both formats have AVX state, the only extended one, in the same place.
    fn xsave_area(&self, subleaf: u32, xcr0: u64) -> CpuidResult {
        const AVX: u64 = 4;
        // The legacy region and the header, then the upper halves of 16 registers.
        const BASE: u32 = 512 + 64;
        const AVX_SIZE: u32 = 256;
        let size = |components: u64| if components & AVX != 0 { BASE + AVX_SIZE } else { BASE };
        let all = self.xcr0_mask();
        match subleaf {
            0 => CpuidResult { eax: all as u32, ebx: size(xcr0), ecx: size(all), edx: 0 },
            1 => {
                let compacted = self.features.has(Xsavec) || self.features.has(Xsaves);
                let ebx = if compacted { size(xcr0) } else { 0 };
                CpuidResult { eax: self.features.word(CpuidWord::Ld1Eax), ebx, ecx: 0, edx: 0 }
            }
            2 if all & AVX != 0 => CpuidResult { eax: AVX_SIZE, ebx: BASE, ecx: 0, edx: 0 },
            _ => CpuidResult::default(),
        }
    }

    /// IA32_ARCH_CAPABILITIES: not affected by any of the attacks it can speak of (Intel SDM vol. 4).
    pub const fn arch_capabilities(&self) -> u64 {
        const BITS: [u32; 16] = [0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 17, 20, 24, 26, 27, 62];
        let (mut value, mut i) = (0, 0);
        while i < BITS.len() {
            value |= 1 << BITS[i];
            i += 1;
        }
        value
    }
}

/// Family 6, model 0x8f, stepping 4: a model that no kernel's list of vulnerable processors names.
const SIGNATURE: u32 = 0x000806f4;

fn vendor(eax: u32, name: &[u8; 12], order: [usize; 3]) -> CpuidResult {
    let word =
        |i: usize| u32::from_le_bytes([name[4 * i], name[4 * i + 1], name[4 * i + 2], name[4 * i + 3]]);
    CpuidResult { eax, ebx: word(order[0]), ecx: word(order[1]), edx: word(order[2]) }
}

fn brand(part: u32) -> CpuidResult {
    const NAME: &[u8; 48] = b"Gearshift virtual CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let at = part as usize % 3 * 16;
    let word =
        |i: usize| u32::from_le_bytes([NAME[at + i], NAME[at + i + 1], NAME[at + i + 2], NAME[at + i + 3]]);
    CpuidResult { eax: word(0), ebx: word(4), ecx: word(8), edx: word(12) }
}

/// The fraction nearest to `tsc_khz` / crystal kHz whose numerator times the crystal's kHz fits 32 bits: Linux computes
/// that product in 32 bits. Mostly within 1 ppm of the truth; 120 ppm just beside a multiple of the crystal.
fn ratio(tsc_khz: u32) -> (u32, u32) {
    let crystal_khz = APIC_TIMER_HZ / 1000;
    let (limit, khz) = (u64::from(u32::MAX) / crystal_khz, u64::from(tsc_khz.max(1)));
    let error = |&(n, d): &(u64, u64)| (n * crystal_khz / d).abs_diff(khz);
    let best = (1..=limit)
        .map(|d| ((khz * d + crystal_khz / 2) / crystal_khz, d))
        .filter(|&(n, _)| (1..=limit).contains(&n))
        .min_by_key(error);
    best.map_or((1, 1), |(n, d)| (n as u32, d as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(vcpus: u32) -> CpuModel {
        CpuModel::named("x86-64-v2", vcpus, 2_596_146).unwrap()
    }

    #[test]
    fn tsc_ratio_is_close_in_linux_arithmetic() {
        for khz in [1_000_000u32, 1_999_999, 2_596_146, 3_000_001, 3_999_117, 4_200_000, 800_003] {
            let (n, d) = ratio(khz);
            let linux = 1_000_000u32.checked_mul(n).unwrap() / d;
            assert!(linux.abs_diff(khz) <= 1 + khz / 8_000, "{khz}: {n}/{d} gives {linux}");
        }
    }

    #[test]
    fn leaves_beyond_the_last_give_the_last_basic_leaf() {
        let m = model(1);
        let last = m.cpuid(LAST_BASIC, 0, CpuidInputs::default());
        assert_eq!(m.cpuid(0x17, 0, CpuidInputs::default()), last);
        assert_eq!(m.cpuid(0x8000_0009, 0, CpuidInputs::default()), last);
        assert_eq!(m.cpuid(0xffff_ffff, 0, CpuidInputs::default()), last);
    }

    #[test]
    fn vendor_and_apic_bits() {
        let m = model(2);
        let l0 = m.cpuid(0, 0, CpuidInputs::default());
        let text: Vec<u8> = [l0.ebx, l0.edx, l0.ecx].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(text, b"GenuineIntel");
        let off = m.cpuid(1, 0, CpuidInputs { apic_id: 1, ..Default::default() });
        let on = m.cpuid(1, 0, CpuidInputs { apic_id: 1, apic_enabled: true, osxsave: true, xcr0: 7 });
        assert_eq!((off.edx >> 9 & 1, on.edx >> 9 & 1, on.ecx >> 27 & 1, on.ebx >> 24), (0, 1, 1, 1));
        assert_eq!(m.cpuid(0xb, 1, CpuidInputs::default()).ebx, 2);
    }

    #[test]
    fn only_what_is_optional_is_left_out() {
        let mut m = model(1);
        let without = m.features.without(&[Smep, Rdtscp, Sse42]);
        m.fit(&without);
        assert!(!m.features.has(Smep) && !m.features.has(Rdtscp) && m.features.has(Smap));
        assert_eq!(m.features.missing_from(&without), ["sse4_2"]);
    }

    #[test]
    fn the_xsave_leaf_follows_xcr0_and_the_model() {
        let mut m = CpuModel::named("x86-64-v3", 1, 1_000_000).unwrap();
        let leaf = |m: &CpuModel, subleaf, xcr0| {
            let r = m.cpuid(0xd, subleaf, CpuidInputs { xcr0, ..Default::default() });
            [r.eax, r.ebx, r.ecx, r.edx]
        };
        assert_eq!(leaf(&m, 0, 1), [7, 576, 832, 0]);
        assert_eq!(leaf(&m, 0, 7), [7, 832, 832, 0]);
        assert_eq!(leaf(&m, 1, 3), [15, 576, 0, 0]);
        assert_eq!(leaf(&m, 1, 7), [15, 832, 0, 0]);
        assert_eq!(leaf(&m, 2, 7), [256, 576, 0, 0]);
        assert_eq!((leaf(&m, 3, 7), leaf(&m, 63, 7)), ([0; 4], [0; 4]));
        m.features = m.features.without(&[Avx, Xsavec, Xsaves]);
        assert_eq!(leaf(&m, 0, 3), [3, 576, 576, 0]);
        assert_eq!((leaf(&m, 1, 3), leaf(&m, 2, 3)), ([5, 0, 0, 0], [0; 4]));
        assert_eq!(leaf(&model(1), 0, 1), [0; 4]);
    }

    #[test]
    fn the_host_model_is_what_both_have() {
        let mut m = CpuModel::named("host", 1, 1_000_000).unwrap();
        let known = CpuFeatures::of(Feature::ALL);
        assert!(m.features.missing_from(&known).is_empty() && m.features.minus(&known) == CpuFeatures::EMPTY);
        assert!(m.features.missing_from(&CpuFeatures::of_host().union(&PLATFORM_FEATURES)).is_empty());
        m.fit(&V2);
        assert!(m.features.missing_from(&V2).is_empty() && !m.features.has(Avx) && m.features.has(Sse2));
    }

    #[test]
    fn unknown_models_are_named() {
        let error = CpuModel::named("z80", 1, 1).unwrap_err().to_string();
        assert!(error.contains("z80") && error.contains("x86-64-v2"), "{error}");
    }
}
