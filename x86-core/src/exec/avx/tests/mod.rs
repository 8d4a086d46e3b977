//! Every VEX instruction on vector registers on the host's processor and here; and what surrounds it: checks, faults.

mod checks;
mod coverage;
mod encode;
mod native;

use crate::mode::Mode;
use crate::{Cpu, testing};

/// A vCPU in `mode` with all that the host has, AVX switched on.
fn bench(mode: Mode) -> Box<Cpu> {
    let mut cpu = testing::cpu(mode);
    testing::give_host_features(&mut cpu);
    cpu
}
