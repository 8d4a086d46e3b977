//! What a user can choose.

use crate::HostCpu;

/// How code is translated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// What the host's processor is taken to have.
    pub host: HostCpu,
    /// Bytes of translated code that a vCPU keeps.
    pub cache_bytes: usize,
    /// Count the instructions that are executed, which costs some speed.
    pub counting: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { host: HostCpu::detect(), cache_bytes: 64 << 20, counting: false }
    }
}
