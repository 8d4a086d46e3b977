//! CPUID's output (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E).
//!
//! Frequencies are announced by leaves 0x15 and 0x16, whoever the vendor, and by the hypervisor's leaf 0x4000_0010; the
//! crystal is the local APIC timer's 1 GHz.

use crate::x86::{APIC_TIMER_HZ, CpuModel, CpuidWord, Feature::*, PHYS_BITS, Vendor};

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
const LAST_EXTENDED_INTEL: u32 = 0x8000_0008;
const LAST_EXTENDED_AMD: u32 = 0x8000_0021;

impl CpuModel {
    /// Executes CPUID with `leaf` in EAX and `subleaf` in ECX.
    ///
    /// A leaf beyond the last gives the last basic leaf on Intel's processors, zeros on AMD's.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, inputs: CpuidInputs) -> CpuidResult {
        let intel = self.vendor() == Vendor::Intel;
        let last_extended = if intel { LAST_EXTENDED_INTEL } else { LAST_EXTENDED_AMD };
        let leaf = match leaf {
            0..=LAST_BASIC | 0x4000_0000..=LAST_HYPERVISOR => leaf,
            0x8000_0000.. if leaf <= last_extended => leaf,
            _ if intel => LAST_BASIC,
            _ => return CpuidResult::default(),
        };
        let word = |word| self.features.word(word);
        match leaf {
            0 => vendor(LAST_BASIC, self.vendor().id(), [0, 2, 1]),
            1 => self.leaf1(inputs),
            // No cache descriptors: see leaf 4.
            2 if intel => regs(0x00ff_ff01, 0, 0, 0),
            4 if intel => self.cache(subleaf, (self.vcpus.next_power_of_two() - 1) & 0x3f),
            // ARAT: the APIC timer does not stop.
            6 => regs(1 << 2, 0, 0, 0),
            7 => match subleaf {
                0 => {
                    let last = if word(CpuidWord::L72Edx) == 0 { 0 } else { 2 };
                    regs(last, word(CpuidWord::L7Ebx), word(CpuidWord::L7Ecx), word(CpuidWord::L7Edx))
                }
                2 => regs(0, 0, 0, word(CpuidWord::L72Edx)),
                _ => CpuidResult::default(),
            },
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
            0x8000_0000 => vendor_in(last_extended, self.vendor()),
            0x8000_0001 => self.extended_features(),
            0x8000_0002..=0x8000_0004 => brand(leaf - 0x8000_0002),
            // Caches as leaf 4 has them, in KiB, with 16 ways: code 8. AMD's L1, and its TLBs of 64 and 1024 entries.
            0x8000_0005 if !intel => {
                regs(0xff40_ff40, 0xff40_ff40, L1_KIB << 24 | 0x8_0140, L1_KIB << 24 | 0x8_0140)
            }
            0x8000_0006 if intel => regs(0, 0, L2_KIB << 16 | 0x8040, 0),
            0x8000_0006 => {
                let tlb = 0x8400_8400; // 1024 entries, 16 ways
                regs(tlb, tlb, L2_KIB << 16 | 0x8140, (L3_KIB / 512) << 18 | 0x8140)
            }
            0x8000_0007 => regs(0, 0, 0, word(CpuidWord::X7Edx)),
            0x8000_0008 => self.address_sizes(),
            0x8000_001d => self.cache(subleaf, 0),
            // One thread a core, all of them in node 0.
            0x8000_001e => regs(inputs.apic_id, inputs.apic_id & 0xff, 0, 0),
            0x8000_0021 => regs(word(CpuidWord::X21Eax), 0, word(CpuidWord::X21Ecx), 0),
            _ => CpuidResult::default(),
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
        CpuidResult { eax: self.signature.eax(), ebx, ecx, edx }
    }

    /// Leaf 0x8000_0001. AMD's processors repeat in EDX what leaf 1 has there.
    fn extended_features(&self) -> CpuidResult {
        const REPEATED: u32 = 0x0183_f3ff;
        const MMXEXT: u32 = 1 << 22; // a part of SSE
        const CMP_LEGACY: u32 = 1 << 1; // logical processors are cores
        const TOPOEXT: u32 = 1 << 22;
        let (ecx, edx) = (self.features.word(CpuidWord::X1Ecx), self.features.word(CpuidWord::X1Edx));
        match self.vendor() {
            Vendor::Intel => regs(0, 0, ecx, edx),
            Vendor::Amd => {
                let cores = if self.vcpus > 1 { CMP_LEGACY } else { 0 };
                let repeated = self.features.word(CpuidWord::L1Edx) & REPEATED;
                regs(self.signature.eax(), 0, ecx | TOPOEXT | cores, edx | MMXEXT | repeated)
            }
        }
    }

    /// Leaf 0x8000_0008: sizes of addresses, and AMD's number of cores and of RDPRU's registers.
    fn address_sizes(&self) -> CpuidResult {
        let sizes = PHYS_BITS | 48 << 8;
        match self.vendor() {
            Vendor::Intel => regs(sizes, self.features.word(CpuidWord::X8Ebx), 0, 0),
            Vendor::Amd => {
                let cores = self.vcpus.next_power_of_two().trailing_zeros() << 12 | (self.vcpus - 1) & 0xff;
                let rdpru = if self.features.has(Rdpru) { 1 << 16 } else { 0 };
                regs(sizes, self.features.word(CpuidWord::X8Ebx), cores, rdpru)
            }
        }
    }

    /// Leaves 4 and 0x8000_001d: L1d, L1i and L2 of each core, L3 shared by the package; 64-byte lines. Leaf 4 also has
    /// the number of core ids in the package, less one.
    fn cache(&self, subleaf: u32, cores: u32) -> CpuidResult {
        let (kind, level, ways, kib, shared) = match subleaf {
            0 => (1, 1, 8, L1_KIB, 1),
            1 => (2, 1, 8, L1_KIB, 1),
            2 => (3, 2, 16, L2_KIB, 1),
            3 => (3, 3, 16, L3_KIB, self.vcpus),
            _ => return CpuidResult::default(),
        };
        CpuidResult {
            eax: kind | level << 5 | 1 << 8 | (shared.next_power_of_two() - 1) << 14 | cores << 26,
            ebx: 63 | (ways - 1) << 22,
            ecx: kib * 1024 / (64 * ways) - 1,
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
}

/// Sizes of the caches: L1 data and L1 code each, L2, L3.
const L1_KIB: u32 = 32;
const L2_KIB: u32 = 1024;
const L3_KIB: u32 = 16 * 1024;

fn regs(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
    CpuidResult { eax, ebx, ecx, edx }
}

/// Leaf 0x8000_0000, in which AMD's processors repeat their vendor.
fn vendor_in(eax: u32, of: Vendor) -> CpuidResult {
    match of {
        Vendor::Intel => regs(eax, 0, 0, 0),
        Vendor::Amd => vendor(eax, of.id(), [0, 2, 1]),
    }
}

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
mod tests;
