//! CPUID feature bits as a set with names.

use serde::{Deserialize, Serialize};

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = $word:ident $bit:literal $text:literal;)*) => {
        /// A CPU feature that software finds by CPUID (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E).
        #[allow(missing_docs)] // each is described by its CPUID name
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
        pub enum Feature { $($(#[$doc])* $name,)* }

        impl Feature {
            /// Every feature known here.
            pub const ALL: &'static [Feature] = &[$(Feature::$name,)*];

            /// CPUID word and bit where it is announced.
            pub const fn place(self) -> (CpuidWord, u32) {
                match self { $(Feature::$name => (CpuidWord::$word, $bit),)* }
            }

            /// Its name as in Linux's /proc/cpuinfo, where it has one there.
            pub const fn name(self) -> &'static str {
                match self { $(Feature::$name => $text,)* }
            }
        }
    };
}

/// The CPUID output words that carry feature bits.
#[allow(missing_docs)] // leaf, subleaf where there are several, register
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuidWord {
    L1Ecx,
    L1Edx,
    L7Ebx,
    L7Ecx,
    L7Edx,
    L72Edx,
    Ld1Eax,
    X1Ecx,
    X1Edx,
    X7Edx,
    X8Ebx,
    X21Eax,
    X21Ecx,
}

/// Number of [`CpuidWord`]s.
const WORDS: usize = 13;

features! {
    Sse3 = L1Ecx 0 "sse3"; Pclmulqdq = L1Ecx 1 "pclmulqdq"; Ssse3 = L1Ecx 9 "ssse3"; Fma = L1Ecx 12 "fma";
    Cx16 = L1Ecx 13 "cx16"; Pcid = L1Ecx 17 "pcid"; Sse41 = L1Ecx 19 "sse4_1"; Sse42 = L1Ecx 20 "sse4_2";
    X2apic = L1Ecx 21 "x2apic"; Movbe = L1Ecx 22 "movbe"; Popcnt = L1Ecx 23 "popcnt";
    TscDeadline = L1Ecx 24 "tsc_deadline_timer"; Aes = L1Ecx 25 "aes"; Xsave = L1Ecx 26 "xsave";
    Avx = L1Ecx 28 "avx"; F16c = L1Ecx 29 "f16c"; Rdrand = L1Ecx 30 "rdrand"; Hypervisor = L1Ecx 31 "hypervisor";
    Fpu = L1Edx 0 "fpu"; Vme = L1Edx 1 "vme"; De = L1Edx 2 "de"; Pse = L1Edx 3 "pse"; Tsc = L1Edx 4 "tsc";
    Msr = L1Edx 5 "msr"; Pae = L1Edx 6 "pae"; Mce = L1Edx 7 "mce"; Cx8 = L1Edx 8 "cx8"; Apic = L1Edx 9 "apic";
    Sep = L1Edx 11 "sep"; Mtrr = L1Edx 12 "mtrr"; Pge = L1Edx 13 "pge"; Mca = L1Edx 14 "mca";
    Cmov = L1Edx 15 "cmov"; Pat = L1Edx 16 "pat"; Pse36 = L1Edx 17 "pse36"; Clflush = L1Edx 19 "clflush";
    Mmx = L1Edx 23 "mmx"; Fxsr = L1Edx 24 "fxsr"; Sse = L1Edx 25 "sse"; Sse2 = L1Edx 26 "sse2";
    Fsgsbase = L7Ebx 0 "fsgsbase"; TscAdjust = L7Ebx 1 "tsc_adjust"; Bmi1 = L7Ebx 3 "bmi1"; Avx2 = L7Ebx 5 "avx2"; Smep = L7Ebx 7 "smep";
    Bmi2 = L7Ebx 8 "bmi2"; Erms = L7Ebx 9 "erms"; Invpcid = L7Ebx 10 "invpcid"; Rdseed = L7Ebx 18 "rdseed";
    Adx = L7Ebx 19 "adx"; Smap = L7Ebx 20 "smap"; Clflushopt = L7Ebx 23 "clflushopt"; Clwb = L7Ebx 24 "clwb";
    Sha = L7Ebx 29 "sha_ni";
    Umip = L7Ecx 2 "umip"; Gfni = L7Ecx 8 "gfni"; Vaes = L7Ecx 9 "vaes"; Vpclmulqdq = L7Ecx 10 "vpclmulqdq";
    Rdpid = L7Ecx 22 "rdpid";
    Fsrm = L7Edx 4 "fsrm"; MdClear = L7Edx 10 "md_clear"; SpecCtrl = L7Edx 26 "spec_ctrl";
    Stibp = L7Edx 27 "intel_stibp"; ArchCapabilities = L7Edx 29 "arch_capabilities"; Ssbd = L7Edx 31 "ssbd";
    Psfd = L72Edx 0 "intel_psfd"; IpredCtrl = L72Edx 1 "ipred_ctrl"; RrsbaCtrl = L72Edx 2 "rrsba_ctrl";
    DdpdU = L72Edx 3 "ddpd_u"; BhiCtrl = L72Edx 4 "bhi_ctrl"; McdtNo = L72Edx 5 "mcdt_no";
    Xsaveopt = Ld1Eax 0 "xsaveopt"; Xsavec = Ld1Eax 1 "xsavec"; Xgetbv1 = Ld1Eax 2 "xgetbv1";
    Xsaves = Ld1Eax 3 "xsaves";
    LahfLm = X1Ecx 0 "lahf_lm"; Abm = X1Ecx 5 "abm"; Sse4a = X1Ecx 6 "sse4a"; Misalignsse = X1Ecx 7 "misalignsse";
    Prefetchw = X1Ecx 8 "3dnowprefetch"; Mwaitx = X1Ecx 29 "mwaitx";
    Syscall = X1Edx 11 "syscall"; Nx = X1Edx 20 "nx"; Pdpe1gb = X1Edx 26 "pdpe1gb"; Rdtscp = X1Edx 27 "rdtscp";
    Lm = X1Edx 29 "lm";
    InvariantTsc = X7Edx 8 "constant_tsc";
    Clzero = X8Ebx 0 "clzero"; Xsaveerptr = X8Ebx 2 "xsaveerptr"; Rdpru = X8Ebx 4 "rdpru";
    Wbnoinvd = X8Ebx 9 "wbnoinvd"; AmdIbpb = X8Ebx 12 "amd_ibpb"; AmdIbrs = X8Ebx 14 "amd_ibrs";
    AmdStibp = X8Ebx 15 "amd_stibp"; AmdSsbd = X8Ebx 24 "amd_ssbd"; AmdSsbNo = X8Ebx 26 "amd_ssb_no";
    AmdPsfd = X8Ebx 28 "amd_psfd"; BtcNo = X8Ebx 29 "btc_no"; IbpbRet = X8Ebx 30 "ibpb_ret";
    LfenceRdtsc = X21Eax 2 "lfence_rdtsc"; VerwClear = X21Eax 5 "verw_clear";
    NullSelClrBase = X21Eax 6 "null_sel_clr_base"; AutoIbrs = X21Eax 8 "autoibrs"; Sbpb = X21Eax 27 "sbpb";
    IbpbBrtype = X21Eax 28 "ibpb_brtype"; SrsoNo = X21Eax 29 "srso_no";
    SrsoUserKernelNo = X21Eax 30 "srso_user_kernel_no";
    TsaSqNo = X21Ecx 1 "tsa_sq_no"; TsaL1No = X21Ecx 2 "tsa_l1_no";
}

/// A set of [`Feature`]s.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct CpuFeatures([u32; WORDS]);

impl CpuFeatures {
    /// No feature.
    pub const EMPTY: Self = Self([0; WORDS]);

    /// The set of `list`.
    pub const fn of(list: &[Feature]) -> Self {
        Self::EMPTY.with(list)
    }

    /// This set and `list`.
    pub const fn with(mut self, list: &[Feature]) -> Self {
        let mut i = 0;
        while i < list.len() {
            let (word, bit) = list[i].place();
            self.0[word as usize] |= 1 << bit;
            i += 1;
        }
        self
    }

    /// This set less `list`.
    pub const fn without(mut self, list: &[Feature]) -> Self {
        let mut i = 0;
        while i < list.len() {
            let (word, bit) = list[i].place();
            self.0[word as usize] &= !(1 << bit);
            i += 1;
        }
        self
    }

    /// Whether `feature` is in the set.
    pub const fn has(&self, feature: Feature) -> bool {
        let (word, bit) = feature.place();
        self.0[word as usize] & 1 << bit != 0
    }

    /// The bits of one CPUID output word.
    pub const fn word(&self, word: CpuidWord) -> u32 {
        self.0[word as usize]
    }

    /// Features either set has.
    pub const fn union(&self, other: &Self) -> Self {
        let mut both = *self;
        let mut i = 0;
        while i < WORDS {
            both.0[i] |= other.0[i];
            i += 1;
        }
        both
    }

    /// Features both sets have.
    pub fn intersection(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    /// Features this set has and `other` has not.
    pub fn minus(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    /// Names of the features that are here and not in `offered`.
    pub fn missing_from(&self, offered: &Self) -> Vec<&'static str> {
        let missing = |f: &&Feature| self.has(**f) && !offered.has(**f);
        Feature::ALL.iter().filter(missing).map(|f| f.name()).collect()
    }

    /// What the host's CPUID tells of, less AVX and what needs it where the host's system does not carry its state.
    pub fn of_host() -> Self {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        const OF_AVX: &[Feature] =
            &[Feature::Avx, Feature::Avx2, Feature::Fma, Feature::F16c, Feature::Vaes, Feature::Vpclmulqdq];
        let told = Self::from_cpuid(|leaf, subleaf| {
            if __cpuid(leaf & 0x8000_0000).eax < leaf {
                return [0; 4];
            }
            let out = __cpuid_count(leaf, subleaf);
            [out.eax, out.ebx, out.ecx, out.edx]
        });
        if std::is_x86_feature_detected!("avx") { told } else { told.without(OF_AVX) }
    }

    /// What `cpuid` tells of: a function from leaf and subleaf to EAX, EBX, ECX and EDX, which are 0 for a leaf that there
    /// is not.
    pub fn from_cpuid(cpuid: impl Fn(u32, u32) -> [u32; 4]) -> Self {
        let [_, _, l1_ecx, l1_edx] = cpuid(1, 0);
        let [l7_last, l7_ebx, l7_ecx, l7_edx] = cpuid(7, 0);
        let [_, _, _, l72_edx] = if l7_last >= 2 { cpuid(7, 2) } else { [0; 4] };
        let [ld1_eax, ..] = cpuid(0xd, 1);
        let [_, _, x1_ecx, x1_edx] = cpuid(0x8000_0001, 0);
        let [_, _, _, x7_edx] = cpuid(0x8000_0007, 0);
        let [_, x8_ebx, _, _] = cpuid(0x8000_0008, 0);
        let [x21_eax, _, x21_ecx, _] = cpuid(0x8000_0021, 0);
        Self([
            l1_ecx, l1_edx, l7_ebx, l7_ecx, l7_edx, l72_edx, ld1_eax, x1_ecx, x1_edx, x7_edx, x8_ebx,
            x21_eax, x21_ecx,
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_features_share_a_place() {
        let mut places: Vec<_> = Feature::ALL.iter().map(|f| (f.place().0 as usize, f.place().1)).collect();
        places.sort_unstable();
        let all = places.len();
        places.dedup();
        assert_eq!(places.len(), all);
    }

    #[test]
    fn missing_names_what_is_not_offered() {
        let want = CpuFeatures::of(&[Feature::Sse42, Feature::Avx, Feature::Lm]);
        let have = CpuFeatures::of(&[Feature::Sse42]);
        assert_eq!(want.missing_from(&have), ["avx", "lm"]);
        assert!(want.missing_from(&want).is_empty());
    }
}
