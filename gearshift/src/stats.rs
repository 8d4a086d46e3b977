//! What the vCPUs have done, for people.

use std::fmt::Write as _;

use accel_api::{VcpuStats, count_text};

/// A line for each vCPU, and one for what follows from it.
pub(crate) fn text(list: &[VcpuStats]) -> String {
    let mut out = String::new();
    for (id, stats) in list.iter().enumerate() {
        // A String takes all that is written.
        let _ = match stats.instructions {
            Some(count) => write!(out, "vCPU {id}: {} instructions", count_text(count)),
            None => write!(out, "vCPU {id}"),
        };
        for (name, value) in &stats.counters {
            let _ = write!(out, ", {name} {}", count_text(*value));
        }
        out.push('\n');
        for line in &stats.report {
            let _ = writeln!(out, "vCPU {id}: {line}");
        }
    }
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_vcpu() {
        let list = [
            VcpuStats {
                instructions: Some(1_234_567),
                counters: vec![("exits", 12), ("blocks", 1000)],
                report: vec!["calls for syscall 2_000".to_owned(), "and so on".to_owned()],
            },
            VcpuStats { counters: vec![("lookups", 8)], ..VcpuStats::default() },
            VcpuStats {
                instructions: Some(80_000),
                counters: vec![("lookups", 8), ("tlb_misses", 0)],
                report: Vec::new(),
            },
        ];
        let expected = "vCPU 0: 1_234_567 instructions, exits 12, blocks 1_000\n\
                        vCPU 0: calls for syscall 2_000\n\
                        vCPU 0: and so on\n\
                        vCPU 1, lookups 8\n\
                        vCPU 2: 80_000 instructions, lookups 8, tlb_misses 0\n";
        assert_eq!(text(&list), expected);
        assert_eq!(speed(&list, 2.0), "2.000 seconds");
        assert_eq!(speed(&list[..1], 2.0), "2.000 seconds, 0.6 million instructions a second");
    }
}
