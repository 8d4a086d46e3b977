//! Counters of a vCPU, which `--stats` shows.

use accel_api::count_text;
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

/// What the counters tell people: the instructions that had to be called, and, where `instructions` were counted, how rare
/// the slow ways were.
pub(crate) fn report(
    calls: &HelperCounts,
    store: &StoreCounters,
    exits: &ExitCounters,
    instructions: Option<u64>,
) -> Vec<String> {
    let mut lines = Vec::new();
    let calls: Vec<_> =
        calls.list().into_iter().map(|(name, n)| format!("{name} {}", count_text(n))).collect();
    if !calls.is_empty() {
        lines.push(format!("calls for {}", calls.join(", ")));
    }
    let ways = [
        (exits.lookups, "lookup of a block"),
        (exits.jump_cache_misses, "jump cache miss"),
        (exits.tlb_misses, "TLB miss"),
        (exits.helper_calls, "helper call"),
        (store.instructions_translated, "translated one"),
    ];
    let rate = |(n, way): (u64, &str)| Some(format!("{way} {}", count_text(instructions?.checked_div(n)?)));
    let rates: Vec<_> = ways.into_iter().filter_map(rate).collect();
    if !rates.is_empty() {
        lines.push(format!("instructions for each {}", rates.join(", ")));
    }
    lines
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_calls_and_rates() {
        let (store, exits) =
            (StoreCounters::default(), ExitCounters { lookups: 8, helper_calls: 3, ..Default::default() });
        let mut calls = HelperCounts::default();
        assert!(report(&calls, &store, &exits, None).is_empty());
        let cpuid = iced_x86::Instruction::with(iced_x86::Code::Cpuid);
        (0..2000).for_each(|_| calls.count(&cpuid));
        assert_eq!(
            report(&calls, &store, &exits, Some(80_000)),
            ["calls for cpuid 2_000", "instructions for each lookup of a block 10_000, helper call 26_666"]
        );
    }
}
