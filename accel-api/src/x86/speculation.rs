//! What guests are told of the faults of speculative execution, by IA32_ARCH_CAPABILITIES and by CPUID's bits of the
//! same kind.
//!
//! 1. A guest protects its programs from each other where it is told that the processor needs it. Told too little it is
//!    open, told too much it is slow. So a backend says what is true where the guest's code runs.
//! 2. On a software CPU such protection has no effect, whatever the host's processor is: guests are told that none is
//!    needed ([`Speculation::WITHOUT_EFFECT`]). `docs/threat-model.md` says what that leaves open.
//! 3. What may run on several backends is told the worst of all: [`Speculation::worst_of`].

use crate::x86::{CpuFeatures, Feature::*, Signature};

/// Bits of IA32_ARCH_CAPABILITIES (Intel SDM vol. 4, table 2-2; Linux arch/x86/include/asm/msr-index.h).
mod bit {
    pub(super) const RDCL_NO: u32 = 0;
    pub(super) const IBRS_ALL: u32 = 1;
    pub(super) const RSBA: u32 = 2;
    pub(super) const SKIP_L1DFL_VMENTRY: u32 = 3;
    pub(super) const SSB_NO: u32 = 4;
    pub(super) const MDS_NO: u32 = 5;
    pub(super) const PSCHANGE_MC_NO: u32 = 6;
    pub(super) const TAA_NO: u32 = 8;
    pub(super) const SBDR_SSDP_NO: u32 = 13;
    pub(super) const FBSDP_NO: u32 = 14;
    pub(super) const PSDP_NO: u32 = 15;
    pub(super) const FB_CLEAR: u32 = 17;
    pub(super) const RRSBA: u32 = 19;
    pub(super) const BHI_NO: u32 = 20;
    pub(super) const PBRSB_NO: u32 = 24;
    pub(super) const GDS_NO: u32 = 26;
    pub(super) const RFDS_NO: u32 = 27;
    pub(super) const RFDS_CLEAR: u32 = 28;
    pub(super) const ITS_NO: u32 = 62;
}

const fn bits(list: &[u32]) -> u64 {
    let (mut value, mut i) = (0, 0);
    while i < list.len() {
        value |= 1 << list[i];
        i += 1;
    }
    value
}

/// Good to have: the processor is not affected, or what clears its buffers and predictors works.
const GOOD: u64 = {
    use bit::*;
    bits(&[
        RDCL_NO,
        IBRS_ALL,
        SKIP_L1DFL_VMENTRY,
        SSB_NO,
        MDS_NO,
        PSCHANGE_MC_NO,
        TAA_NO,
        SBDR_SSDP_NO,
        FBSDP_NO,
        PSDP_NO,
        FB_CLEAR,
        BHI_NO,
        PBRSB_NO,
        GDS_NO,
        RFDS_NO,
        ITS_NO,
    ])
};

/// Bad to have: return predictors that fall back to others' predictions, register files that leak.
const BAD: u64 = bits(&[bit::RSBA, bit::RRSBA, bit::RFDS_CLEAR]);

/// IA32_ARCH_CAPABILITIES.RSBA: predictions of returns may come from where branches are predicted. Intel's processors do not
/// say it of themselves; hypervisors do, where the guest cannot tell by the signature.
pub const ARCH_CAPABILITIES_RSBA: u64 = 1 << bit::RSBA;

/// Features that tell of speculation, or let software control it, on Intel's processors; AMD's tell the same by other bits.
/// Those that control it do nothing else.
pub(crate) const INTEL_SPECULATION: CpuFeatures = CpuFeatures::of(&[
    MdClear,
    SpecCtrl,
    Stibp,
    ArchCapabilities,
    Ssbd,
    Psfd,
    IpredCtrl,
    RrsbaCtrl,
    DdpdU,
    BhiCtrl,
    McdtNo,
]);

/// The same on AMD's.
pub(crate) const AMD_SPECULATION: CpuFeatures = CpuFeatures::of(&[
    AmdIbpb,
    AmdIbrs,
    AmdStibp,
    AmdSsbd,
    AmdSsbNo,
    AmdPsfd,
    BtcNo,
    IbpbRet,
    VerwClear,
    AutoIbrs,
    Sbpb,
    IbpbBrtype,
    SrsoNo,
    SrsoUserKernelNo,
    TsaSqNo,
    TsaL1No,
]);

/// Both.
pub const SPECULATION_FEATURES: CpuFeatures = INTEL_SPECULATION.union(&AMD_SPECULATION);

/// What is true of speculation where a backend runs guests, beyond what its features say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Speculation {
    /// IA32_ARCH_CAPABILITIES, without bits that are neither known to be good nor to be bad.
    arch_capabilities: u64,
    /// The processor whose faults the guest's own protection is for; `None` where it has no effect.
    silicon: Option<Signature>,
}

impl Speculation {
    /// Guests' protection has no effect, so guests are told that they need none.
    pub const WITHOUT_EFFECT: Self = Self { arch_capabilities: GOOD, silicon: None };

    /// Guests run on `silicon` itself, which says this IA32_ARCH_CAPABILITIES of itself.
    pub const fn of(silicon: Signature, arch_capabilities: u64) -> Self {
        Self { arch_capabilities: arch_capabilities & (GOOD | BAD), silicon: Some(silicon) }
    }

    /// What holds for a guest that may run here and there: immune only to what both are immune to, with every hazard of
    /// either, on the older processor.
    #[must_use]
    pub fn worst_of(self, other: Self) -> Self {
        let (a, b) = (self.arch_capabilities, other.arch_capabilities);
        let older = |a: Signature, b: Signature| if b.family < a.family { b } else { a };
        let silicon = match (self.silicon, other.silicon) {
            (Some(a), Some(b)) => Some(older(a, b)),
            (a, b) => a.or(b),
        };
        Self { arch_capabilities: a & b & GOOD | (a | b) & BAD, silicon }
    }

    /// Bits of IA32_ARCH_CAPABILITIES by which a guest that was told `told` believes itself safer than it is here.
    pub const fn belied(self, told: u64) -> u64 {
        told & GOOD & !self.arch_capabilities | self.arch_capabilities & BAD & !told
    }

    /// IA32_ARCH_CAPABILITIES.
    pub const fn arch_capabilities(self) -> u64 {
        self.arch_capabilities
    }

    /// The processor whose faults the guest's own protection is for; `None` where it has no effect.
    pub const fn silicon(self) -> Option<Signature> {
        self.silicon
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::Vendor;

    const ZEN3: Signature = Signature { vendor: Vendor::Amd, family: 0x19, model: 1, stepping: 1 };
    const ZEN2: Signature = Signature { family: 0x17, model: 0x31, ..ZEN3 };

    fn on(silicon: Signature, list: &[u32]) -> Speculation {
        Speculation::of(silicon, bits(list))
    }

    #[test]
    fn the_worst_of_two_has_the_immunities_of_both_and_the_hazards_of_either() {
        let a = on(ZEN3, &[bit::RDCL_NO, bit::MDS_NO, bit::RSBA]);
        let b = on(ZEN2, &[bit::RDCL_NO, bit::SSB_NO, bit::RFDS_CLEAR]);
        let worst = on(ZEN2, &[bit::RDCL_NO, bit::RSBA, bit::RFDS_CLEAR]);
        assert_eq!((a.worst_of(b), b.worst_of(a)), (worst, worst));
        assert_eq!(a.worst_of(a), a);
        // Whoever joins, it gets no better.
        assert_eq!(worst.worst_of(a), worst);
    }

    #[test]
    fn software_adds_nothing_to_the_truth_of_silicon() {
        let kvm = on(ZEN3, &[bit::RDCL_NO, bit::RRSBA]);
        let none = Speculation::WITHOUT_EFFECT;
        assert_eq!((none.worst_of(kvm), kvm.worst_of(none)), (kvm, kvm));
        assert_eq!(none.worst_of(none), none);
        assert_eq!((none.silicon(), kvm.silicon()), (None, Some(ZEN3)));
    }

    #[test]
    fn bits_that_nobody_knows_are_not_handed_on() {
        // TSX_CTRL and XAPIC_DISABLE promise MSRs that guests do not have.
        assert_eq!(on(ZEN3, &[7, 21, 63, bit::GDS_NO]).arch_capabilities(), 1 << bit::GDS_NO);
        // Every hazard is absent, every immunity present, where nothing has an effect.
        assert_eq!(Speculation::WITHOUT_EFFECT.arch_capabilities() & BAD, 0);
        assert_eq!(Speculation::WITHOUT_EFFECT.arch_capabilities(), GOOD);
    }

    #[test]
    fn features_and_bits_are_good_or_bad_not_both() {
        assert_eq!(GOOD & BAD, 0);
        for feature in crate::x86::Feature::ALL.iter().filter(|f| SPECULATION_FEATURES.has(**f)) {
            assert!(Vendor::Intel.has(*feature) != Vendor::Amd.has(*feature), "{}", feature.name());
        }
    }
}
