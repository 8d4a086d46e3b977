//! Features of the host's processor that translated code may use.

use accel_api::x86::CpuFeatures;

/// Host instructions that translated code may use besides those that the guest asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostCpu {
    /// RORX; without it, a copy and a shift.
    pub bmi2: bool,
    /// The vector registers have upper halves, and VEX instructions to save them with.
    pub avx: bool,
    /// Features that the guest's own instructions may need, to be executed as they are.
    pub features: CpuFeatures,
}

impl HostCpu {
    /// This host.
    pub fn detect() -> Self {
        Self {
            bmi2: std::arch::is_x86_feature_detected!("bmi2"),
            avx: std::arch::is_x86_feature_detected!("avx"),
            features: CpuFeatures::of_host(),
        }
    }
}
