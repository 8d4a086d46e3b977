//! Processors by vendor, family and model, and what the oracle knows of them.
//!
//! Generations differ where no manual tells: in which of two faults is found first, in what an instruction leaves behind
//! when it faults, in operands that wrap, and in errata. [`GENERATIONS`] names those that are told apart; those on which
//! the oracle has run, with every difference accounted for, are *compared*: one more difference there is an error of ours.
//! On any other processor it may be that processor's way, which somebody has to look at. See [`super::verdict`].

use std::arch::x86_64::__cpuid;
use std::fmt;
use std::ops::RangeInclusive;

/// Who made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// "AuthenticAMD".
    Amd,
    /// "GenuineIntel".
    Intel,
    /// Anybody else, and processors that are emulated by software, whatever name they bear.
    Other,
}

/// A processor's signature (CPUID leaf 1, EAX), extended family and model included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processor {
    /// Who made it.
    pub vendor: Vendor,
    /// Family, as Linux shows it.
    pub family: u32,
    /// Model, likewise.
    pub model: u32,
}

impl Processor {
    /// The one this runs on, by what CPUID tells: under a hypervisor that is what it likes to tell.
    pub fn host() -> Self {
        let leaf = __cpuid(0);
        let name: Vec<u8> = [leaf.ebx, leaf.edx, leaf.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
        let vendor = match &name[..] {
            _ if crate::processor::is_emulated() => Vendor::Other,
            b"AuthenticAMD" => Vendor::Amd,
            b"GenuineIntel" => Vendor::Intel,
            _ => Vendor::Other,
        };
        Self::new(vendor, __cpuid(1).eax)
    }

    /// One with this signature (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, Fn0000_0001_EAX).
    pub fn new(vendor: Vendor, signature: u32) -> Self {
        let (family, model) = (signature >> 8 & 0xf, signature >> 4 & 0xf);
        Self {
            vendor,
            family: family + if family == 0xf { signature >> 20 & 0xff } else { 0 },
            model: model | if family >= 6 { signature >> 12 & 0xf0 } else { 0 },
        }
    }

    /// Its generation, if that has a name here.
    pub fn generation(&self) -> Option<&'static Generation> {
        GENERATIONS.iter().copied().find(|generation| generation.includes(self))
    }

    /// Whether the oracle has run on its like before, so that a new difference is an error.
    pub fn is_compared(&self) -> bool {
        self.generation().is_some_and(|generation| generation.compared)
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vendor = match self.vendor {
            Vendor::Amd => "AMD",
            Vendor::Intel => "Intel",
            Vendor::Other => "other vendor's",
        };
        write!(f, "{vendor} family {} model {}", self.family, self.model)?;
        match self.generation() {
            Some(generation) => write!(f, " ({})", generation.name),
            None => Ok(()),
        }
    }
}

/// Processors with one core design.
#[derive(Debug)]
pub struct Generation {
    /// What it is called.
    pub name: &'static str,
    vendor: Vendor,
    family: u32,
    models: &'static [RangeInclusive<u32>],
    /// Whether the oracle has run here and every difference has been accounted for.
    pub compared: bool,
}

impl Generation {
    const fn amd(name: &'static str, family: u32, models: &'static [RangeInclusive<u32>]) -> Self {
        Self { name, vendor: Vendor::Amd, family, models, compared: false }
    }

    const fn intel(name: &'static str, models: &'static [RangeInclusive<u32>]) -> Self {
        Self { name, vendor: Vendor::Intel, family: 6, models, compared: false }
    }

    const fn compared(self) -> Self {
        Self { compared: true, ..self }
    }

    /// Whether `processor` is one of these.
    pub fn includes(&self, processor: &Processor) -> bool {
        (self.vendor, self.family) == (processor.vendor, processor.family)
            && self.models.iter().any(|models| models.contains(&processor.model))
    }
}

// Models: AMD's by the revision guides and Linux' arch/x86/kernel/cpu/amd.c, Intel's by Linux'
// arch/x86/include/asm/intel-family.h. Servers of Intel's have names of their own: the specification updates of the
// clients do not speak of them.
pub(super) static ZEN: Generation = Generation::amd("Zen", 0x17, &[0..=0x2f, 0x50..=0x5f]);
pub(super) static ZEN_2: Generation =
    Generation::amd("Zen 2", 0x17, &[0x30..=0x4f, 0x60..=0x7f, 0x90..=0x91, 0xa0..=0xaf]);
pub(super) static ZEN_3: Generation = Generation::amd("Zen 3", 0x19, &[0..=0xf, 0x20..=0x5f]).compared();
pub(super) static ZEN_4: Generation = Generation::amd("Zen 4", 0x19, &[0x10..=0x1f, 0x60..=0xaf]).compared();
pub(super) static ZEN_5: Generation =
    Generation::amd("Zen 5", 0x1a, &[0..=0x2f, 0x40..=0x4f, 0x60..=0x7f]).compared();
pub(super) static HASWELL: Generation = Generation::intel("Haswell", &[0x3c..=0x3c, 0x45..=0x46]);
pub(super) static BROADWELL: Generation = Generation::intel("Broadwell", &[0x3d..=0x3d, 0x47..=0x47]);
pub(super) static SKYLAKE: Generation = Generation::intel("Skylake", &[0x4e..=0x4e, 0x5e..=0x5e]);
pub(super) static KABY_LAKE: Generation =
    Generation::intel("Kaby Lake and Coffee Lake", &[0x8e..=0x8e, 0x9e..=0x9e]);
pub(super) static COMET_LAKE: Generation = Generation::intel("Comet Lake", &[0xa5..=0xa6]);
static HASWELL_SERVER: Generation = Generation::intel("Haswell server", &[0x3f..=0x3f]);
static BROADWELL_SERVER: Generation = Generation::intel("Broadwell server", &[0x4f..=0x4f, 0x56..=0x56]);
static SKYLAKE_SERVER: Generation = Generation::intel("Skylake server to Cooper Lake", &[0x55..=0x55]);
static ICE_LAKE: Generation = Generation::intel(
    "Ice Lake to Rocket Lake",
    &[0x6a..=0x6a, 0x6c..=0x6c, 0x7d..=0x7e, 0x8c..=0x8d, 0xa7..=0xa7],
);
static ALDER_LAKE: Generation = Generation::intel(
    "Alder Lake and Raptor Lake",
    &[0x97..=0x97, 0x9a..=0x9a, 0xb7..=0xb7, 0xba..=0xba, 0xbf..=0xbf],
);
static SAPPHIRE_RAPIDS: Generation =
    Generation::intel("Sapphire Rapids and Emerald Rapids", &[0x8f..=0x8f, 0xcf..=0xcf]);

/// All that are told apart.
pub static GENERATIONS: [&Generation; 16] = [
    &ZEN,
    &ZEN_2,
    &ZEN_3,
    &ZEN_4,
    &ZEN_5,
    &HASWELL,
    &HASWELL_SERVER,
    &BROADWELL,
    &BROADWELL_SERVER,
    &SKYLAKE,
    &SKYLAKE_SERVER,
    &KABY_LAKE,
    &COMET_LAKE,
    &ICE_LAKE,
    &ALDER_LAKE,
    &SAPPHIRE_RAPIDS,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_taken_apart() {
        for (vendor, signature, family, model, name) in [
            (Vendor::Amd, 0x00a0_0f11, 0x19, 0x01, Some("Zen 3")),
            (Vendor::Amd, 0x00a2_0f10, 0x19, 0x21, Some("Zen 3")),
            (Vendor::Amd, 0x00a1_0f11, 0x19, 0x11, Some("Zen 4")),
            (Vendor::Amd, 0x00a6_0f12, 0x19, 0x61, Some("Zen 4")),
            (Vendor::Amd, 0x00b0_0f21, 0x1a, 0x02, Some("Zen 5")),
            (Vendor::Amd, 0x0083_0f10, 0x17, 0x31, Some("Zen 2")),
            (Vendor::Amd, 0x0080_0f12, 0x17, 0x01, Some("Zen")),
            (Vendor::Amd, 0x00ba_0f00, 0x1a, 0xa0, None),
            (Vendor::Intel, 0x0003_06c3, 6, 0x3c, Some("Haswell")),
            (Vendor::Intel, 0x0008_06f8, 6, 0x8f, Some("Sapphire Rapids and Emerald Rapids")),
            (Vendor::Intel, 0x0005_0657, 6, 0x55, Some("Skylake server to Cooper Lake")),
            (Vendor::Intel, 0x0000_0f4a, 15, 4, None),
            (Vendor::Intel, 0x0000_0586, 5, 8, None),
            (Vendor::Other, 0x0003_06c3, 6, 0x3c, None),
            (Vendor::Other, 0x00a0_0f11, 0x19, 0x01, None),
        ] {
            let processor = Processor::new(vendor, signature);
            assert_eq!((processor.family, processor.model), (family, model), "{signature:#x}");
            assert_eq!(processor.generation().map(|g| g.name), name, "{signature:#x}");
        }
    }

    #[test]
    fn no_processor_has_two_generations() {
        for vendor in [Vendor::Amd, Vendor::Intel, Vendor::Other] {
            for (family, model) in (0..0x20).flat_map(|family| (0..0x100).map(move |model| (family, model))) {
                let processor = Processor { vendor, family, model };
                let names = GENERATIONS.iter().filter(|g| g.includes(&processor)).count();
                assert!(names <= 1, "{processor:?}");
            }
        }
    }
}
