//! What a processor is called is a promise: a guest asks for every name that the C compiler knows, and whatever the
//! compiler takes for granted of one that fits is there. The guest is Debian's kernel with one program; that it finds
//! random numbers at once is told by the same program.

mod common;

use accel_api::AccelId;
use accel_api::x86::{CpuFeatures, Feature, MODEL_NAMES};
use common::accelerators::{Console, each, end};
use common::compiler::{program_of_names, promises};
use common::guest::have;
use guests::debian::{self, Flavour};
use guests::initramfs::{Compression, Initramfs};
use machine::{GuestEnd, Machine, Source};

/// What is behind a compiler's macro; `Err` if that is nothing that a model has. Nothing for those that are no feature.
fn feature(macro_name: &str) -> Option<Result<Feature, ()>> {
    use Feature::*;
    Some(Ok(match macro_name {
        "__MMX__" => Mmx,
        "__FXSR__" => Fxsr,
        "__SSE__" => Sse,
        "__SSE2__" => Sse2,
        "__SSE3__" => Sse3,
        "__SSSE3__" => Ssse3,
        "__SSE4_1__" => Sse41,
        "__SSE4_2__" | "__CRC32__" => Sse42,
        "__SSE4A__" => Sse4a,
        "__POPCNT__" => Popcnt,
        "__ABM__" | "__LZCNT__" => Abm,
        "__LAHF_SAHF__" => LahfLm,
        "__GCC_HAVE_SYNC_COMPARE_AND_SWAP_16" => Cx16,
        "__AES__" => Aes,
        "__PCLMUL__" => Pclmulqdq,
        "__AVX__" => Avx,
        "__AVX2__" => Avx2,
        "__F16C__" => F16c,
        "__FMA__" => Fma,
        "__BMI__" => Bmi1,
        "__BMI2__" => Bmi2,
        "__MOVBE__" => Movbe,
        "__ADX__" => Adx,
        "__SHA__" => Sha,
        "__VAES__" => Vaes,
        "__VPCLMULQDQ__" => Vpclmulqdq,
        "__XSAVE__" => Xsave,
        "__XSAVEOPT__" => Xsaveopt,
        "__XSAVEC__" => Xsavec,
        "__XSAVES__" => Xsaves,
        "__FSGSBASE__" => Fsgsbase,
        "__INVPCID__" => Invpcid,
        "__PRFCHW__" => Prefetchw,
        "__RDRND__" => Rdrand,
        "__RDSEED__" => Rdseed,
        "__RDPID__" => Rdpid,
        "__RDPRU__" => Rdpru,
        "__CLFLUSHOPT__" => Clflushopt,
        "__CLWB__" => Clwb,
        "__CLZERO__" => Clzero,
        "__MWAITX__" => Mwaitx,
        "__WBNOINVD__" => Wbnoinvd,
        // How much is aligned by itself, that fused operations are fast, and the name: `__znver2__`.
        "__BIGGEST_ALIGNMENT__" => return None,
        other if other.starts_with("__FP_FAST_") || other.chars().any(|c| c.is_ascii_lowercase()) => {
            return None;
        }
        _ => return Some(Err(())),
    }))
}

/// Promises that are not kept where an AMD processor's family must be the host's: nothing but intrinsics makes use of them
/// (ADR 16).
fn excused(accel: AccelId, model: &str, vendor: &str) -> &'static [&'static str] {
    if accel.0 == "kvm" && model == "host" && vendor == "amd" {
        &["__MWAITX__", "__RDPRU__", "__PKU__"]
    } else {
        &[]
    }
}

/// CPUID's features by the lines `CPUID <leaf> <subleaf> <eax> <ebx> <ecx> <edx>`.
fn features(text: &str) -> CpuFeatures {
    let lines: Vec<Vec<u32>> = text
        .lines()
        .filter_map(|line| line.trim_end().strip_prefix("CPUID "))
        .map(|line| line.split(' ').map(|word| u32::from_str_radix(word, 16).expect("CPUID")).collect())
        .collect();
    CpuFeatures::from_cpuid(|leaf, subleaf| {
        let line = lines.iter().find(|line| line[..2] == [leaf, subleaf]);
        line.map_or([0; 4], |line| [line[2], line[3], line[4], line[5]])
    })
}

#[test]
fn names_are_promises_and_random_numbers_come_at_once() {
    if !have(Flavour::Cloud) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("names");
    let known = program_of_names(include_str!("../../guests/names/names.c"), &program);
    assert!(known.contains(&"amd") && known.contains(&"haswell"), "{known:?}");
    let guest = debian::cached(Flavour::Cloud).expect("what was just there");
    let busybox = std::fs::read(&guest.busybox).unwrap();
    let initramfs = Initramfs::new(&busybox).file("init", 0o755, std::fs::read(&program).unwrap()).unwrap();
    let initrd = initramfs.build(Compression::None);
    let tested = each("processors' names", |id, accelerator| {
        for model in MODEL_NAMES {
            if *model == "x86-64-v3" && !std::is_x86_feature_detected!("avx2") {
                continue;
            }
            let console = Console::default();
            let machine = Machine::builder()
                .accelerator(accelerator())
                .cpu_model(*model)
                .memory(256 << 20)
                .kernel(guest.kernel.clone())
                .initrd(Source::bytes("initrd", initrd.clone()))
                // The seed of the boot protocol is all there is: RDRAND does not count.
                .cmdline("console=ttyS0 quiet panic=-1 random.trust_cpu=off")
                .console(console.clone())
                .start()
                .unwrap();
            let end = end(&machine);
            let text = console.text();
            let about = format!("{model} on {id}:\n{text}");
            assert!(matches!(end, GuestEnd::PowerOff), "{end}, {about}");
            assert!(text.contains("END"), "{about}");
            assert!(text.contains("RANDOM 16\r"), "random numbers are late: {about}");
            // 2n + 1 for all n below 100, and the bits of all of them.
            assert!(text.contains("CLONES 10316\r"), "{about}");

            let names: Vec<_> =
                text.lines().filter_map(|line| line.strip_prefix("NAME ")).map(str::trim_end).collect();
            let vendor = names.iter().find(|name| ["intel", "amd"].contains(name));
            let vendor = vendor.unwrap_or_else(|| panic!("nobody's processor: {about}"));
            let features = features(&text);
            let excused = excused(id, model, vendor);
            for name in &names {
                let broken: Vec<_> = promises(name)
                    .into_iter()
                    .filter(|promise| match feature(promise) {
                        None => false,
                        Some(Ok(feature)) => !features.has(feature),
                        Some(Err(())) => true,
                    })
                    .filter(|promise| !excused.contains(&promise.as_str()))
                    .collect();
                assert!(broken.is_empty(), "{name} promises {broken:?}: {about}");
            }
            // The named models are what they are called after at least.
            match *model {
                "x86-64-v2" => assert!(names.contains(&"nehalem"), "{about}"),
                // A processor of KVM's may lack what is optional.
                "x86-64-v3" => assert!(names.contains(&"haswell") || id.0 == "kvm", "{about}"),
                _ => assert!(names.len() > 1 || !features.has(Feature::Sse42), "{about}"),
            }
        }
    });
    assert!(tested > 0, "no accelerator ran the guest");
}
