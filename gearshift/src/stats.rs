//! What the vCPUs have done, for people.

use std::fmt::Write as _;

use accel_api::VcpuStats;

/// A line for each vCPU.
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
    }
    out
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
            VcpuStats { instructions: Some(1_234_567), counters: vec![("exits", 12), ("blocks", 1000)] },
            VcpuStats::default(),
        ];
        assert_eq!(text(&list), "vCPU 0: 1_234_567 instructions, exits 12, blocks 1_000\nvCPU 1\n");
    }
}
