use super::*;
use crate::x86::{CpuFeatures, Feature, HostProcessor, Signature};

fn model(vcpus: u32) -> CpuModel {
    CpuModel::named("x86-64-v2", vcpus, 2_596_146).unwrap()
}

/// A Zen 3 host's own model.
fn amd(vcpus: u32) -> CpuModel {
    let signature = Signature { vendor: Vendor::Amd, family: 0x19, model: 1, stepping: 1 };
    let host = HostProcessor { signature, features: CpuFeatures::of(Feature::ALL) };
    CpuModel::on(&host, "host", vcpus, 2_596_146).unwrap()
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
fn leaves_beyond_the_last_give_the_last_basic_leaf_or_nothing() {
    let m = model(1);
    let last = m.cpuid(LAST_BASIC, 0, CpuidInputs::default());
    assert_eq!(m.cpuid(0x17, 0, CpuidInputs::default()), last);
    assert_eq!(m.cpuid(0x8000_0009, 0, CpuidInputs::default()), last);
    assert_eq!(m.cpuid(0xffff_ffff, 0, CpuidInputs::default()), last);
    for leaf in [2, 4, 0x17, 0x8000_0022, 0xffff_ffff] {
        assert_eq!(amd(1).cpuid(leaf, 0, CpuidInputs::default()), CpuidResult::default(), "AMD: {leaf:#x}");
    }
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
fn amds_leaves() {
    let m = amd(6);
    let leaf = |leaf, subleaf| {
        let r = m.cpuid(leaf, subleaf, CpuidInputs { apic_id: 5, apic_enabled: true, ..Default::default() });
        [r.eax, r.ebx, r.ecx, r.edx]
    };
    let text: Vec<u8> =
        [leaf(0, 0)[1], leaf(0, 0)[3], leaf(0, 0)[2]].iter().flat_map(|w| w.to_le_bytes()).collect();
    assert_eq!(text, b"AuthenticAMD");
    assert_eq!(leaf(0x8000_0000, 0), [0x8000_0021, leaf(0, 0)[1], leaf(0, 0)[2], leaf(0, 0)[3]]);
    assert_eq!((leaf(1, 0)[0], leaf(0x8000_0001, 0)[0]), (0x0083_0f10, 0x0083_0f10));
    // Six logical processors are six cores; core ids have three bits.
    assert_eq!((leaf(1, 0)[3] >> 28 & 1, leaf(0x8000_0001, 0)[2] >> 1 & 1), (1, 1));
    assert_eq!(leaf(0x8000_0008, 0)[2], 3 << 12 | 5);
    assert_eq!((leaf(0x8000_001e, 0), leaf(0xb, 1)[3]), ([5, 5, 0, 0], 5));
    // What leaf 1 has in EDX is repeated, SYSCALL and what else is AMD's own aside.
    let (one, extended) = (leaf(1, 0)[3], leaf(0x8000_0001, 0)[3]);
    assert_eq!(extended & 0x0183_f3ff, one & 0x0183_f3ff);
    assert_eq!((extended >> 11 & 1, extended >> 22 & 1), (1, 1));
    assert_eq!(amd(1).cpuid(0x8000_0001, 0, CpuidInputs::default()).ecx >> 1 & 1, 0);
}

/// The sizes of the caches are the same by every leaf that tells them.
#[test]
fn caches_are_told_alike() {
    for (m, by_cache) in [(model(3), 4), (amd(3), 0x8000_001d)] {
        let leaf = |leaf, subleaf| m.cpuid(leaf, subleaf, CpuidInputs::default());
        let kib = |subleaf| {
            let r = leaf(by_cache, subleaf);
            ((r.ebx >> 22) + 1) * ((r.ebx & 0xfff) + 1) * (r.ecx + 1) / 1024
        };
        assert_eq!([kib(0), kib(1), kib(2), kib(3)], [32, 32, 1024, 16384]);
        assert_eq!(leaf(by_cache, 3).eax >> 14 & 0xfff, 3, "L3 is shared by up to four");
        assert_eq!(leaf(0x8000_0006, 0).ecx >> 16, kib(2));
        if m.vendor() == Vendor::Amd {
            let (l1, l23) = (leaf(0x8000_0005, 0), leaf(0x8000_0006, 0));
            assert_eq!((l1.ecx >> 24, l1.edx >> 24, (l23.edx >> 18) * 512), (kib(0), kib(1), kib(3)));
        }
    }
}

#[test]
fn features_are_where_software_looks_for_them() {
    for m in [model(1), amd(1)] {
        let inputs = CpuidInputs { apic_enabled: true, ..Default::default() };
        let told = CpuFeatures::from_cpuid(|leaf, subleaf| {
            if leaf > m.cpuid(leaf & 0x8000_0000, 0, inputs).eax {
                return [0; 4];
            }
            let r = m.cpuid(leaf, subleaf, inputs);
            [r.eax, r.ebx, r.ecx, r.edx]
        });
        assert_eq!(m.features.minus(&told), CpuFeatures::EMPTY);
        assert_eq!(told.intersection(&CpuFeatures::of(Feature::ALL)).minus(&m.features), CpuFeatures::EMPTY);
        let rdpru = m.cpuid(0x8000_0008, 0, CpuidInputs::default()).edx >> 16;
        assert_eq!(rdpru, u32::from(m.features.has(Rdpru)), "its last register is APERF");
    }
}
