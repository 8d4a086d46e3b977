use super::*;
use crate::AccelCaps;
use crate::x86::{CpuModel, CpuidInputs, MODEL_NAMES, SPECULATION_FEATURES, Speculation};

/// Names by Intel's model numbers, as GCC 14 (`get_intel_cpu`) and LLVM 20 (`getIntelProcessorTypeAndSubtype`) decode
/// them; the second is that of the type, if it has promises of its own.
const INTEL: &[(&[u8], &[&str])] = &[
    (&[0x0f, 0x16, 0x17, 0x1d], &["core2"]),
    (&[0x1a, 0x1e, 0x1f, 0x2e], &["nehalem", "corei7"]),
    (&[0x25, 0x2c, 0x2f], &["westmere", "corei7"]),
    (&[0x2a, 0x2d], &["sandybridge", "corei7"]),
    (&[0x3a, 0x3e], &["ivybridge", "corei7"]),
    (&[0x3c, 0x3f, 0x45, 0x46], &["haswell", "corei7"]),
    (&[0x3d, 0x47, 0x4f, 0x56], &["broadwell", "corei7"]),
    (&[0x4e, 0x5e, 0x8e, 0x9e, 0xa5, 0xa6], &["skylake", "corei7"]),
    (&[0x1c, 0x26, 0x27, 0x35, 0x36], &["bonnell"]),
    (&[0x37, 0x4a, 0x4c, 0x4d, 0x5a, 0x5d, 0x75], &["silvermont"]),
    (&[0x5c, 0x5f, 0x7a, 0x86, 0x8a, 0x96, 0x9c], &["goldmont or later"]),
    (
        &[0x97, 0x9a, 0xaa, 0xac, 0xb5, 0xb7, 0xba, 0xbd, 0xbe, 0xbf, 0xc5, 0xc6, 0xcc],
        &["alderlake or later"],
    ),
    (
        &[0x55, 0x57, 0x66, 0x6a, 0x6c, 0x7d, 0x7e, 0x85, 0x8c, 0x8d, 0x8f, 0xa7, 0xa8, 0xad, 0xae, 0xcf],
        &["AVX-512"],
    ),
    (&[0xaf, 0xb6, 0xdd], &["sierraforest or later"]),
];

/// Names of AMD's processors: by GCC's `get_amd_cpu`, which asks features where a model has no name of its own, and LLVM's
/// `getAMDProcessorTypeAndSubtype`.
fn names_of_amd(family: u8, model: u8, features: &CpuFeatures) -> Vec<&'static str> {
    let has = |feature| features.has(feature);
    let gcc = match (family, model) {
        (0x10, _) => Some("amdfam10"),
        (0x14, _) => Some("btver1"),
        (0x15, _) => Some("bdver"),
        (0x16, _) => Some("btver2"),
        (0x17, 0..=0x1f) => Some("znver1"),
        (0x17, 0x30..) => Some("znver2"),
        (0x17, _) if has(Clwb) => Some("znver2"),
        (0x17, _) if has(Clzero) => Some("znver1"),
        (0x19, 0..=0x0f) => Some("znver3"),
        (0x19, 0x10..=0x1f | 0x60..=0xaf) => Some("znver4"),
        (0x19, _) if has(Vaes) => Some("znver3"),
        (0x1a.., _) => Some("znver5 or later"),
        _ => None,
    };
    let llvm = match (family, model) {
        (0x17, 0x30..=0x3f | 0x47 | 0x60..=0x7f | 0x84..=0x87 | 0x90..=0xaf) => Some("znver2"),
        (0x17, 0x10..=0x2f) => Some("znver1"),
        (0x19, 0..=0x0f | 0x20..=0x5f) => Some("znver3"),
        (0x19, _) => Some("znver4"),
        _ => None,
    };
    gcc.into_iter().chain(llvm).collect()
}

/// What `-march=NAME` switches on in GCC 12 to 14 or LLVM 17 to 20, spelled as there; of GCC's without `hle`.
fn flags(name: &str) -> String {
    const OLD: &str = "mmx fxsr sse sse2 sse3 ssse3 cx16 sahf";
    const AMD: &str = "mmx fxsr sse sse2 sse3 ssse3 cx16 sahf sse4a lzcnt popcnt prfchw";
    match name {
        "core2" => OLD.to_owned(),
        "nehalem" | "corei7" => format!("{OLD} sse4.1 sse4.2 popcnt"),
        "westmere" => flags("nehalem") + " pclmul",
        "sandybridge" => flags("westmere") + " avx xsave xsaveopt",
        "ivybridge" => flags("sandybridge") + " fsgsbase rdrnd f16c",
        "haswell" => flags("ivybridge") + " avx2 bmi bmi2 lzcnt fma movbe invpcid",
        "broadwell" => flags("haswell") + " adx rdseed prfchw",
        "skylake" => flags("broadwell") + " aes clflushopt xsavec xsaves sgx",
        "btver1" => format!("{AMD} xsave"),
        "btver2" => format!("{AMD} sse4.1 sse4.2 aes pclmul avx bmi f16c movbe xsave xsaveopt"),
        "znver1" => {
            format!(
                "{AMD} adx aes avx avx2 bmi bmi2 clflushopt clzero f16c fma fsgsbase movbe mwaitx pclmul rdrnd \
                 rdseed sha sse4.1 sse4.2 xsave xsavec xsaveopt xsaves"
            )
        }
        "znver2" => flags("znver1") + " clwb rdpid rdpru wbnoinvd",
        "znver3" => flags("znver2") + " invpcid pku vaes vpclmulqdq",
        _ => panic!("{name} promises what no model has"),
    }
}

/// The feature behind a flag of the compilers; `None` for those that no model has.
fn feature(flag: &str) -> Option<Feature> {
    Some(match flag {
        "mmx" => Mmx,
        "fxsr" => Fxsr,
        "sse" => Sse,
        "sse2" => Sse2,
        "sse3" => Sse3,
        "ssse3" => Ssse3,
        "cx16" => Cx16,
        "sahf" => LahfLm,
        "sse4.1" => Sse41,
        "sse4.2" => Sse42,
        "sse4a" => Sse4a,
        "popcnt" => Popcnt,
        "lzcnt" => Abm,
        "prfchw" => Prefetchw,
        "pclmul" => Pclmulqdq,
        "aes" => Aes,
        "avx" => Avx,
        "avx2" => Avx2,
        "f16c" => F16c,
        "fma" => Fma,
        "bmi" => Bmi1,
        "bmi2" => Bmi2,
        "movbe" => Movbe,
        "adx" => Adx,
        "sha" => Sha,
        "vaes" => Vaes,
        "vpclmulqdq" => Vpclmulqdq,
        "xsave" => Xsave,
        "xsaveopt" => Xsaveopt,
        "xsavec" => Xsavec,
        "xsaves" => Xsaves,
        "fsgsbase" => Fsgsbase,
        "invpcid" => Invpcid,
        "rdrnd" => Rdrand,
        "rdseed" => Rdseed,
        "rdpid" => Rdpid,
        "rdpru" => Rdpru,
        "clflushopt" => Clflushopt,
        "clwb" => Clwb,
        "clzero" => Clzero,
        "mwaitx" => Mwaitx,
        "wbnoinvd" => Wbnoinvd,
        "sgx" | "pku" => return None,
        _ => panic!("an unknown flag: {flag}"),
    })
}

/// The names that programs see, and the features they see, by CPUID's output alone.
fn seen(model: &CpuModel) -> (Signature, Vec<&'static str>, CpuFeatures) {
    let inputs = CpuidInputs { apic_enabled: true, ..CpuidInputs::default() };
    let cpuid = |leaf, subleaf| {
        if leaf > model.cpuid(leaf & 0x8000_0000, 0, inputs).eax {
            return [0; 4];
        }
        let out = model.cpuid(leaf, subleaf, inputs);
        [out.eax, out.ebx, out.ecx, out.edx]
    };
    let features = CpuFeatures::from_cpuid(cpuid);
    let vendor = match cpuid(0, 0)[1] {
        0x756e_6547 => Vendor::Intel,
        0x6874_7541 => Vendor::Amd,
        other => panic!("EBX of leaf 0 is {other:#x}"),
    };
    let signature = Signature::from_eax(vendor, cpuid(1, 0)[0]);
    let Signature { family, model, .. } = signature;
    let names = match vendor {
        Vendor::Amd => names_of_amd(family, model, &features),
        Vendor::Intel if family == 6 => {
            let row = INTEL.iter().find(|(models, _)| models.contains(&model));
            row.map_or_else(Vec::new, |(_, names)| names.to_vec())
        }
        Vendor::Intel => Vec::new(),
    };
    (signature, names, features)
}

/// Flags that programs are promised by the model's name and do not find.
fn broken_promises(model: &CpuModel) -> Vec<String> {
    let (_, names, features) = seen(model);
    let flags: Vec<String> = names.iter().map(|name| flags(name)).collect();
    let flags = flags.iter().flat_map(|flags| flags.split_whitespace());
    flags.filter(|flag| !feature(flag).is_some_and(|f| features.has(f))).map(str::to_owned).collect()
}

const LEVEL_2: &str = "mmx fxsr sse sse2 sse3 ssse3 cx16 sahf sse4.1 sse4.2 popcnt";

/// A processor with the features of these flags, and what every 64-bit processor has.
fn host(vendor: Vendor, family: u8, model: u8, flags: &str) -> HostProcessor {
    let signature = Signature { vendor, family, model, stepping: 1 };
    let common =
        [Fpu, De, Pse, Tsc, Msr, Pae, Mce, Cx8, Apic, Sep, Mtrr, Pge, Mca, Cmov, Pat, Pse36, Clflush]
            .into_iter()
            .chain([Syscall, Nx, Lm, Smep, Smap, Erms, Pcid, Umip, Xgetbv1, Rdtscp, Pdpe1gb]);
    let list: Vec<_> = common.chain(flags.split_whitespace().filter_map(feature)).collect();
    HostProcessor { signature, features: CpuFeatures::of(&list) }
}

fn hosts() -> Vec<(&'static str, HostProcessor)> {
    let (intel, amd) = (Vendor::Intel, Vendor::Amd);
    let icelake = flags("skylake") + " sha vaes vpclmulqdq rdpid clwb wbnoinvd";
    vec![
        ("minimal", host(intel, 6, 0x0f, "mmx fxsr sse sse2")),
        ("level 2", host(intel, 6, 0x25, LEVEL_2)),
        ("Haswell", host(intel, 6, 0x3c, &flags("haswell"))),
        ("Broadwell", host(intel, 6, 0x47, &flags("broadwell"))),
        ("Skylake", host(intel, 6, 0x55, &(flags("skylake") + " clwb"))),
        ("Ice Lake", host(intel, 6, 0x6a, &icelake)),
        ("Sapphire Rapids", host(intel, 6, 0x8f, &icelake)),
        ("K8", host(amd, 15, 0x41, "mmx fxsr sse sse2 sse3")),
        ("Jaguar", host(amd, 0x16, 0x30, &flags("btver2"))),
        ("Zen", host(amd, 0x17, 0x01, &flags("znver1"))),
        ("Zen 2", host(amd, 0x17, 0x71, &flags("znver2"))),
        ("Zen 3", host(amd, 0x19, 0x21, &flags("znver3"))),
        ("Zen 4", host(amd, 0x19, 0x61, &flags("znver3"))),
        ("Zen 5", host(amd, 0x1a, 0x44, &flags("znver3"))),
    ]
}

/// What a software CPU with these features offers.
fn software(features: CpuFeatures) -> AccelCaps {
    AccelCaps { features, speculation: Speculation::WITHOUT_EFFECT, max_vcpus: 1, exact: true }
}

/// What KVM offers on `host`: nothing that the host's processor lacks.
fn kvm(host: &HostProcessor) -> AccelCaps {
    let missing = CpuFeatures::of(&[Mwaitx, Rdpru]);
    let features = host.features.union(&crate::x86::PLATFORM_FEATURES).minus(&missing);
    AccelCaps { speculation: Speculation::of(host.signature, 0), ..software(features) }
}

fn fitted(host: &HostProcessor, name: &str, caps: &AccelCaps) -> CpuModel {
    let mut model = CpuModel::on(host, name, 1, 1_000_000).unwrap();
    model.fit(caps);
    model
}

#[test]
fn every_name_keeps_its_promises_whatever_host_and_backend_lack() {
    let all = CpuFeatures::of(Feature::ALL);
    // xorshift64
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for (host_name, host) in hosts() {
        let mut lacking: Vec<Vec<Feature>> = Feature::ALL.iter().map(|f| vec![*f]).collect();
        lacking.push(Vec::new());
        for few in 0..2000 {
            let chance = if few % 2 == 0 { 3 } else { 40 };
            lacking.push(Feature::ALL.iter().filter(|_| next() % chance == 0).copied().collect());
        }
        for lacking in lacking {
            for name in MODEL_NAMES {
                let model = fitted(&host, name, &software(all.without(&lacking)));
                let broken = broken_promises(&model);
                assert!(broken.is_empty(), "{name} on {host_name} without {lacking:?}: {broken:?}");
                // An unfitted model promises nothing it lacks either.
                let model = CpuModel::on(&host, name, 1, 1).unwrap();
                assert!(broken_promises(&model).is_empty(), "{name} on {host_name}, unfitted");
                let mut kvm = kvm(&host);
                kvm.features = kvm.features.without(&lacking);
                let broken = broken_promises(&fitted(&host, name, &kvm));
                // AMD's family must be the host's there: what only kernels and intrinsics reach may lack.
                let excused = |flag: &String| {
                    flag == "pku" || feature(flag).is_some_and(|feature| BY_NAME_ONLY.has(feature))
                };
                let amd_host = *name == "host" && host.signature.vendor == Vendor::Amd;
                assert!(
                    broken.iter().all(|flag| amd_host && excused(flag)),
                    "{name} on KVM on {host_name} without {lacking:?}: {broken:?}"
                );
            }
        }
    }
}

#[test]
fn the_host_is_named_after_its_vendor_and_the_newest_that_fits() {
    let all = software(CpuFeatures::of(Feature::ALL));
    for (host_name, host) in hosts() {
        let (family, model) = match host_name {
            "minimal" => (15, 6),
            "level 2" => (6, 0x1a),
            "Haswell" => (6, 0x3f),
            "K8" => (15, 0x6b),
            "Jaguar" => (0x16, 0x30),
            "Zen" => (0x17, 0x01),
            _ if host.signature.vendor == Vendor::Amd => (0x17, 0x31),
            _ => (6, 0x4f),
        };
        let (signature, ..) = seen(&fitted(&host, "host", &all));
        assert_eq!(
            (signature.vendor, signature.family, signature.model),
            (host.signature.vendor, family, model)
        );
        for (name, model) in [("x86-64-v2", 0x1a), ("x86-64-v3", 0x3f)] {
            let (signature, ..) = seen(&fitted(&host, name, &all));
            assert_eq!((signature.vendor, signature.family, signature.model), (Vendor::Intel, 6, model));
        }
    }
}

/// Where the guest's code meets the processor's own faults, its kernel must find the family that has them.
#[test]
fn on_silicon_amds_family_is_the_hosts() {
    for (host_name, host) in hosts() {
        let (signature, ..) = seen(&fitted(&host, "host", &kvm(&host)));
        let family = match host_name {
            "Zen 5" => 0x19, // named after the newest that there is a name for
            _ => host.signature.family,
        };
        if host_name.starts_with("Zen") {
            assert_eq!((signature.vendor, signature.family), (Vendor::Amd, family), "{host_name}");
        }
        // With software in the set, too.
        let set = kvm(&host).common(&software(CpuFeatures::of(Feature::ALL)));
        assert_eq!(seen(&fitted(&host, "host", &set)).0, signature, "{host_name}");
    }
}

#[test]
fn eax_of_leaf_1_there_and_back() {
    for name in NAMES {
        let Signature { vendor, .. } = name.signature;
        assert_eq!(Signature::from_eax(vendor, name.signature.eax()), name.signature, "{}", name.name);
    }
    let rome = Signature { vendor: Vendor::Amd, family: 0x17, model: 0x31, stepping: 0 };
    assert_eq!(rome.eax(), 0x0083_0f10);
    let broadwell = Signature { vendor: Vendor::Intel, family: 6, model: 0x4f, stepping: 1 };
    assert_eq!(broadwell.eax(), 0x0004_06f1);
    // Of AMD's families below 15 the extended model does not count.
    assert_eq!(Signature::from_eax(Vendor::Amd, 0x0001_0662).model, 6);
}

#[test]
fn vendors_have_features_of_their_own() {
    assert_eq!(Vendor::called(b"HygonGenuine"), Vendor::Amd);
    assert_eq!(Vendor::called(b"CentaurHauls"), Vendor::Intel);
    for (_, host) in hosts() {
        let model = CpuModel::on(&host, "host", 1, 1).unwrap();
        let foreign = Feature::ALL.iter().find(|f| model.features.has(**f) && !model.vendor().has(**f));
        assert_eq!(foreign, None);
    }
    assert!(Vendor::Amd.has(AutoIbrs) && !Vendor::Intel.has(AutoIbrs) && SPECULATION_FEATURES.has(AutoIbrs));
    let both = Vendor::Amd.features().intersection(&Vendor::Intel.features());
    assert!(both.has(Avx2) && both.has(Syscall));
    assert_eq!(Vendor::Amd.features().union(&Vendor::Intel.features()), CpuFeatures::of(Feature::ALL));
}

/// The host the tests run on: it is somebody's, and its own model keeps its promises with whatever it has.
#[test]
fn this_host() {
    let host = HostProcessor::detect();
    let model = fitted(&host, "host", &software(host.features));
    assert_eq!((model.vendor(), broken_promises(&model)), (host.signature.vendor, Vec::new()));
}
