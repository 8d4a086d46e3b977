use super::*;
use crate::x86::Feature;

fn model(vcpus: u32) -> CpuModel {
    CpuModel::named("x86-64-v2", vcpus, 2_596_146).unwrap()
}

/// What a backend with these features offers on which speculation does not matter.
fn caps(features: CpuFeatures) -> AccelCaps {
    AccelCaps { features, speculation: Speculation::WITHOUT_EFFECT, max_vcpus: 8, exact: true }
}

#[test]
fn only_what_is_optional_is_left_out() {
    let mut m = model(1);
    let without = m.features.without(&[Smep, Rdtscp, Sse42]);
    m.fit(&caps(without));
    assert!(!m.features.has(Smep) && !m.features.has(Rdtscp) && m.features.has(Smap));
    assert_eq!(m.features.missing_from(&without), ["sse4_2"]);
}

#[test]
fn what_speculation_is_told_of_is_the_backends_truth() {
    let silicon = Signature { vendor: Vendor::Amd, family: 0x19, model: 1, stepping: 1 };
    let mut kvm = caps(V3.with(&[SpecCtrl, Stibp]));
    kvm.speculation = Speculation::of(silicon, 1 << 5);
    for (name, caps, bits, there) in [
        (
            "x86-64-v3",
            caps(V3.union(&SPECULATION_FEATURES)),
            Speculation::WITHOUT_EFFECT.arch_capabilities(),
            true,
        ),
        ("x86-64-v3", kvm.clone(), 1 << 5, false),
        ("x86-64-v2", kvm.common(&caps(V3.union(&SPECULATION_FEATURES))), 1 << 5, false),
    ] {
        let mut m = CpuModel::named(name, 1, 1).unwrap();
        m.fit(&caps);
        assert_eq!(
            (m.arch_capabilities, m.features.has(MdClear), m.features.has(Ssbd)),
            (bits, there, there)
        );
        assert!(m.features.has(SpecCtrl) && m.features.has(Stibp));
    }
}

#[test]
fn the_set_offers_what_all_of_it_offer() {
    let (mut a, b) = (caps(V3), caps(V2.with(&[Sha])));
    (a.max_vcpus, a.exact) = (4, false);
    let both = a.common(&b);
    assert_eq!((both.features, both.max_vcpus, both.exact), (V2, 4, false));
}

#[test]
fn the_host_model_is_what_both_have() {
    let mut m = CpuModel::named("host", 1, 1_000_000).unwrap();
    let known = CpuFeatures::of(Feature::ALL);
    assert!(m.features.missing_from(&known).is_empty() && m.features.minus(&known) == CpuFeatures::EMPTY);
    let supplied = PLATFORM_FEATURES.union(&SPECULATION_FEATURES).union(&KIN_OF_AMD);
    assert!(m.features.missing_from(&CpuFeatures::of_host().union(&supplied)).is_empty());
    m.fit(&caps(V2));
    assert!(m.features.missing_from(&V2).is_empty() && !m.features.has(Avx) && m.features.has(Sse2));
}

#[test]
fn unknown_models_are_named() {
    let error = CpuModel::named("z80", 1, 1).unwrap_err().to_string();
    assert!(error.contains("z80") && error.contains("x86-64-v2"), "{error}");
}
