//! Counters.

use iced_x86::Instruction;

/// Of one vCPU.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counters {
    pub translated: u64,
    pub instructions_translated: u64,
    pub lookups: u64,
    pub links: u64,
    pub jump_misses: u64,
    pub tlb_misses: u64,
    pub refills: u64,
    pub roaming: u64,
    pub slow_accesses: u64,
    pub group_misses: u64,
    pub separated: u64,
    pub generic_calls: u64,
    pub single_steps: u64,
    pub host_faults: u64,
    pub invalidations: u64,
    pub evictions: u64,
    pub evicted: u64,
}

impl Counters {
    pub(crate) fn list(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("blocks_translated", self.translated),
            ("instructions_translated", self.instructions_translated),
            ("lookups", self.lookups),
            ("links", self.links),
            ("jump_table_misses", self.jump_misses),
            ("tlb_misses", self.tlb_misses),
            ("anchor_refills", self.refills),
            ("anchors_given_up", self.roaming),
            ("slow_accesses", self.slow_accesses),
            ("group_misses", self.group_misses),
            ("blocks_separated", self.separated),
            ("generic_calls", self.generic_calls),
            ("single_steps", self.single_steps),
            ("host_faults", self.host_faults),
            ("code_invalidations", self.invalidations),
            ("regions_evicted", self.evictions),
            ("blocks_evicted", self.evicted),
        ]
    }
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
