//! What the vCPUs have done, for people.

use std::fmt::Write as _;

use accel_api::VcpuStats;

/// A line for each vCPU, and one for what follows from it.
pub(crate) fn text(list: &[VcpuStats]) -> String {
    let mut out = String::new();
    for (id, stats) in list.iter().enumerate() {
        // A String takes all that is written.
        let _ = match stats.instructions {
            Some(count) => write!(out, "vCPU {id}: {} instructions", grouped(count)),
            None => write!(out, "vCPU {id}"),
        };
        for (name, value) in &stats.counters {
            let _ = write!(out, ", {name} {}", grouped(*value));
        }
        out.push('\n');
        if !stats.calls.is_empty() {
            let calls: Vec<_> =
                stats.calls.iter().map(|(name, n)| format!("{name} {}", grouped(*n))).collect();
            let _ = writeln!(out, "vCPU {id}: calls for {}", calls.join(", "));
        }
        let rates = rates(stats);
        if !rates.is_empty() {
            let _ = writeln!(out, "vCPU {id}: instructions for each {}", rates.join(", "));
        }
    }
    out
}

/// How rare the JIT's slow ways were, where instructions were counted.
fn rates(stats: &VcpuStats) -> Vec<String> {
    const WAYS: [(&str, &str); 5] = [
        ("lookups", "lookup of a block"),
        ("jump_cache_misses", "jump cache miss"),
        ("tlb_misses", "TLB miss"),
        ("helper_calls", "helper call"),
        ("instructions_translated", "translated one"),
    ];
    let Some(instructions) = stats.instructions else { return Vec::new() };
    let of = |name: &str| stats.counters.iter().find(|(other, n)| *other == name && *n > 0).map(|(_, n)| *n);
    WAYS.iter()
        .filter_map(|(name, what)| Some(format!("{what} {}", grouped(instructions / of(name)?))))
        .collect()
}

/// How long it took, and how fast it was where instructions were counted.
pub(crate) fn speed(list: &[VcpuStats], seconds: f64) -> String {
    match list.iter().map(|stats| stats.instructions).sum::<Option<u64>>() {
        Some(count) if seconds > 0.0 => {
            format!("{seconds:.3} seconds, {:.1} million instructions a second", count as f64 / 1e6 / seconds)
        }
        _ => format!("{seconds:.3} seconds"),
    }
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('_');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_vcpu() {
        let list = [
            VcpuStats {
                instructions: Some(1_234_567),
                counters: vec![("exits", 12), ("blocks", 1000)],
                calls: vec![("syscall".to_owned(), 2000), ("cpuid".to_owned(), 3)],
            },
            VcpuStats { counters: vec![("lookups", 8)], ..VcpuStats::default() },
            VcpuStats {
                instructions: Some(80_000),
                counters: vec![("lookups", 8), ("tlb_misses", 0), ("helper_calls", 3)],
                calls: Vec::new(),
            },
        ];
        let expected = "vCPU 0: 1_234_567 instructions, exits 12, blocks 1_000\n\
                        vCPU 0: calls for syscall 2_000, cpuid 3\n\
                        vCPU 1, lookups 8\n\
                        vCPU 2: 80_000 instructions, lookups 8, tlb_misses 0, helper_calls 3\n\
                        vCPU 2: instructions for each lookup of a block 10_000, helper call 26_666\n";
        assert_eq!(text(&list), expected);
        assert_eq!(speed(&list, 2.0), "2.000 seconds");
        assert_eq!(speed(&list[..1], 2.0), "2.000 seconds, 0.6 million instructions a second");
    }
}
