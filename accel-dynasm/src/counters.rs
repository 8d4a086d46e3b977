//! Counters of a vCPU, which `--stats` shows.

use iced_x86::Instruction;

/// Counters of the code store.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct StoreCounters {
    pub translated: u64,
    pub instructions_translated: u64,
    pub chained: u64,
    pub ungrouped: u64,
    pub invalidations: u64,
    /// Regions.
    pub evictions: u64,
    /// Blocks.
    pub evicted: u64,
}

/// How often host code was left, by reason.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct ExitCounters {
    pub lookups: u64,
    pub jump_cache_misses: u64,
    pub tlb_misses: u64,
    pub inline_tlb_refills: u64,
    pub inline_tlb_given_up: u64,
    pub slow_accesses: u64,
    pub group_misses: u64,
    pub helper_calls: u64,
    pub single_steps: u64,
    pub host_faults: u64,
}

/// All counters by name.
pub(crate) fn list(store: &StoreCounters, exits: &ExitCounters) -> Vec<(&'static str, u64)> {
    vec![
        ("blocks_translated", store.translated),
        ("instructions_translated", store.instructions_translated),
        ("lookups", exits.lookups),
        ("jumps_chained", store.chained),
        ("jump_cache_misses", exits.jump_cache_misses),
        ("tlb_misses", exits.tlb_misses),
        ("inline_tlb_refills", exits.inline_tlb_refills),
        ("inline_tlb_given_up", exits.inline_tlb_given_up),
        ("slow_accesses", exits.slow_accesses),
        ("group_misses", exits.group_misses),
        ("blocks_ungrouped", store.ungrouped),
        ("helper_calls", exits.helper_calls),
        ("single_steps", exits.single_steps),
        ("host_faults", exits.host_faults),
        ("code_invalidations", store.invalidations),
        ("regions_evicted", store.evictions),
        ("blocks_evicted", store.evicted),
    ]
}

/// Instructions executed by their functions in x86-core, by mnemonic.
#[derive(Clone, Default, Debug)]
pub(crate) struct HelperCounts(Vec<u64>);

impl HelperCounts {
    /// Most mnemonics in a list.
    const MOST: usize = 20;

    #[inline]
    pub(crate) fn count(&mut self, ins: &Instruction) {
        let at = ins.mnemonic() as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        self.0[at] += 1;
    }

    /// The most frequent first.
    pub(crate) fn list(&self) -> Vec<(String, u64)> {
        let mut list: Vec<_> = iced_x86::Mnemonic::values()
            .zip(&self.0)
            .filter(|(_, n)| **n > 0)
            .map(|(m, n)| (m, *n))
            .collect();
        list.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        list.into_iter().take(Self::MOST).map(|(m, n)| (format!("{m:?}").to_lowercase(), n)).collect()
    }
}
