//! Every VEX instruction on vector registers on the host's processor and here; and what surrounds it: checks, faults.

mod coverage;
mod encode;
mod native;

use std::sync::Arc;

use accel_api::{CpuFeatures, Feature};

use crate::mode::{Mode, bits};
use crate::{Cpu, testing};

/// A vCPU in `mode` with AVX switched on and everything tested here that the host has too.
fn bench(mode: Mode) -> Box<Cpu> {
    let mut cpu = testing::cpu(mode);
    let mut model = (*cpu.model).clone();
    let extra = CpuFeatures::of(&[
        Feature::Xsave,
        Feature::Avx,
        Feature::Avx2,
        Feature::Fma,
        Feature::F16c,
        Feature::Aes,
        Feature::Pclmulqdq,
        Feature::Vaes,
        Feature::Vpclmulqdq,
        Feature::Gfni,
        Feature::Sse4a,
    ]);
    model.features = model.features.union(&extra.intersection(&CpuFeatures::of_host()));
    cpu.model = Arc::new(model);
    cpu.cr4 |= bits::CR4_OSXSAVE;
    cpu.xcr0 = 7;
    cpu.update_mode();
    cpu
}
