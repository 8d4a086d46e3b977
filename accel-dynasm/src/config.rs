//! The configuration of the JIT.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::debug::injected_bug::InjectedBug;
use crate::debug::jitdump::JitDump;
use crate::debug::listing::BlockDump;
use crate::debug::perf_map::PerfMap;
use crate::host::HostCpu;

/// How code is translated.
#[derive(Clone, Debug)]
pub struct Config {
    /// Features that the host's processor is taken to have.
    pub host: HostCpu,
    /// Bytes of translated code that a vCPU keeps: from 32 KiB to 1 GiB; a smaller or larger number is taken for the
    /// nearest of these.
    pub cache_bytes: usize,
    /// Count the instructions that are executed, which costs some speed.
    pub counting: bool,
    /// Check one in so many blocks, and each one the first times, against the semantics functions (1: all). Only for a
    /// VM of one vCPU: RAM is compared too, which no other thread must store to meanwhile; a thread that reads it may
    /// see stores that are taken back.
    pub verify: Option<u64>,
    /// Translate only blocks whose hash lies here; others are executed instruction by instruction.
    pub only: Option<RangeInclusive<u64>>,
    /// Blocks to show.
    pub show: Option<Arc<BlockDump>>,
    /// Where perf finds the names of translated code.
    pub perf_map: Option<Arc<PerfMap>>,
    /// Where perf finds translated code itself.
    pub jitdump: Option<Arc<JitDump>>,
    /// Mistranslates this constant, for tests of [`Self::verify`].
    #[doc(hidden)]
    pub sabotage: Option<u32>,
    /// Injects a bug into blocks that have this constant, for tests of how one is reported.
    #[doc(hidden)]
    pub bug: Option<(u32, InjectedBug)>,
}

impl Config {
    /// Instructions are counted, for the user or to compare.
    pub(crate) fn counts(&self) -> bool {
        self.counting || self.verify.is_some()
    }

    /// Blocks may have to be shown.
    pub(crate) fn keeps_listings(&self) -> bool {
        self.verify.is_some() || self.show.is_some()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host: HostCpu::detect(),
            cache_bytes: 64 << 20,
            counting: false,
            verify: None,
            only: None,
            show: None,
            perf_map: None,
            jitdump: None,
            sabotage: None,
            bug: None,
        }
    }
}
