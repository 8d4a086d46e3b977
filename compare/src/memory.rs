//! Memory of a process that runs a guest: in all, and what of it the guest has touched.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident now (VmRSS).
    pub resident: u64,
    /// Most that was ever resident (VmHWM).
    pub peak: u64,
    /// Resident pages of the mapping that is the guest's memory: what the guest, or a loader for it, touched. Nothing
    /// where that mapping cannot be told from others.
    pub guest: Option<u64>,
}

impl Memory {
    /// What the process needs for itself.
    pub fn overhead(&self) -> Option<u64> {
        self.guest.map(|guest| self.resident.saturating_sub(guest))
    }
}

/// Memory of a running process whose guest has `guest_bytes`.
///
/// # Errors
/// The process is gone.
pub(crate) fn of(pid: u32, guest_bytes: u64) -> io::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let field = |name| kib(&status, name).ok_or_else(|| io::Error::other("no such field in status"));
    Ok(Memory {
        resident: field("VmRSS:")?,
        peak: field("VmHWM:")?,
        guest: guest_resident(&maps, guest_bytes),
    })
}

/// The value of a line `name   123 kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Our memory is a memfd of a known name, in one mapping or several; others' is the one mapping of exactly its size.
fn guest_resident(smaps: &str, guest_bytes: u64) -> Option<u64> {
    let (mut ours, mut other) = (None, None);
    for mapping in mappings(smaps) {
        let Some(resident) = kib(mapping, "Rss:") else { continue };
        if mapping.lines().next().is_some_and(|first| first.contains("memfd:gearshift-ram")) {
            ours = Some(ours.unwrap_or(0) + resident);
        } else if kib(mapping, "Size:") == Some(guest_bytes) {
            other = Some(resident);
        }
    }
    ours.or(other)
}

/// Each mapping's lines: the first has no colon behind its first word, as all fields have.
fn mappings(smaps: &str) -> impl Iterator<Item = &str> {
    let is_head = |line: &str| !line.split_whitespace().next().is_none_or(|word| word.ends_with(':'));
    let mut starts = Vec::new();
    let mut at = 0;
    for line in smaps.split_inclusive('\n') {
        if is_head(line) {
            starts.push(at);
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).copied().chain([smaps.len()]).collect::<Vec<_>>();
    starts.into_iter().zip(ends).map(|(start, end)| &smaps[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f00-7f10 rw-s 00000000 00:01 5  /memfd:gearshift-ram (deleted)
Size:                640 kB
Rss:                  12 kB
VmFlags: rd wr sh
7f20-7f30 rw-s 000a0000 00:01 5  /memfd:gearshift-ram (deleted)
Size:             523520 kB
Rss:                3000 kB
7f30-7f40 rw-p 00000000 00:00 0 
Size:             524288 kB
Rss:                 100 kB
";

    #[test]
    fn guest_memory_is_found_by_name_or_by_size() {
        assert_eq!(guest_resident(SMAPS, 512 << 20), Some(3012 << 10));
        assert_eq!(guest_resident(&SMAPS.replace("gearshift-ram", "x"), 512 << 20), Some(100 << 10));
        assert_eq!(guest_resident(&SMAPS.replace("gearshift-ram", "x"), 1 << 20), None);
    }

    #[test]
    fn this_process_has_memory() {
        let memory = of(std::process::id(), 0).unwrap();
        assert!(memory.peak >= memory.resident && memory.resident > 100 << 10, "{memory:?}");
    }
}
