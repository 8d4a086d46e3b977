//! Partition tables: GPT (UEFI 2.10, chapter 5) and MBR with logical partitions.
//!
//! Own code: fixed layouts of a few fields. Of the crates there are, one asserts what a hostile header says, the others stand on a
//! serializer that nobody keeps any more.

use std::io;

use crc::{CRC_32_ISO_HDLC, Crc};

use crate::Shared;

/// Bytes in a sector.
const SECTOR: u64 = 512;
/// Most partitions that are looked at: 128 is what every tool makes room for in a GPT.
const PARTITIONS_MAX: u32 = 256;
/// Where logical partitions begin.
const FIRST_LOGICAL: u32 = 5;

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As Linux counts them, from 1; none is the whole disk.
    pub number: Option<u32>,
    /// First byte.
    pub start: u64,
    /// How many.
    pub length: u64,
}

/// The partitions of a disk in the order of their numbers. One without a table is one partition; partitions that reach beyond the
/// disk are left out.
///
/// # Errors
/// The disk cannot be read.
pub(crate) fn list(disk: &Shared) -> io::Result<Vec<Partition>> {
    let size = disk.borrow().size();
    let whole = Partition { number: None, start: 0, length: size };
    let Some(first) = sector(disk, 0)? else { return Ok(vec![whole]) };
    // What has a file system in its first sector may end it as a table does.
    let found = if le(&first, 510, 2) == 0xaa55 { table(disk, &first)? } else { Vec::new() };
    let inside =
        |p: &Partition| p.length != 0 && p.start.checked_add(p.length).is_some_and(|end| end <= size);
    let found: Vec<_> = found.into_iter().filter(inside).collect();
    Ok(if found.is_empty() { vec![whole] } else { found })
}

fn table(disk: &Shared, first: &[u8]) -> io::Result<Vec<Partition>> {
    let entries = mbr(first);
    // 0xee protects a disk with a GPT from tools that do not know it.
    if entries.iter().any(|entry| entry.kind == 0xee) {
        return gpt(disk);
    }
    let mut all = Vec::new();
    for (number, entry) in (1..).zip(&entries) {
        if entry.is_extended() {
            logical(disk, entry.start, &mut all)?;
        } else if entry.kind != 0 {
            all.push(entry.partition(number, 0));
        }
    }
    all.sort_by_key(|partition: &Partition| partition.number);
    Ok(all)
}

/// An entry of an MBR or of the head of a logical partition. In sectors.
struct MbrEntry {
    kind: u8,
    start: u64,
    length: u64,
}

impl MbrEntry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn partition(&self, number: u32, base: u64) -> Partition {
        let start = (base + self.start) * SECTOR;
        Partition { number: Some(number), start, length: self.length * SECTOR }
    }
}

fn mbr(sector: &[u8]) -> Vec<MbrEntry> {
    let entries = sector.get(446..510).unwrap_or_default().chunks_exact(16);
    entries
        .map(|entry| MbrEntry {
            kind: le(entry, 4, 1) as u8,
            start: le(entry, 8, 4),
            length: le(entry, 12, 4),
        })
        .collect()
}

/// Follows the chain of an extended partition that begins at sector `base`.
fn logical(disk: &Shared, base: u64, all: &mut Vec<Partition>) -> io::Result<()> {
    let mut at = base;
    for number in FIRST_LOGICAL..PARTITIONS_MAX {
        let Some(head) = sector(disk, at)?.filter(|head| le(head, 510, 2) == 0xaa55) else { break };
        let entries = mbr(&head);
        let [entry, next, ..] = &entries[..] else { break };
        if entry.kind != 0 {
            all.push(entry.partition(number, at));
        }
        if !next.is_extended() || next.start == 0 {
            break;
        }
        at = base + next.start;
    }
    Ok(())
}

/// The GPT, whose sums must be right; the backup's where the first is damaged.
fn gpt(disk: &Shared) -> io::Result<Vec<Partition>> {
    let last = disk.borrow().size() / SECTOR;
    for at in [1, last.saturating_sub(1)] {
        if let Some(all) = gpt_at(disk, at)? {
            return Ok(all);
        }
    }
    Ok(Vec::new())
}

fn gpt_at(disk: &Shared, at: u64) -> io::Result<Option<Vec<Partition>>> {
    let Some(mut header) = sector(disk, at)?.filter(|header| header.starts_with(b"EFI PART")) else {
        return Ok(None);
    };
    let sum = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let (length, expected) = (le(&header, 12, 4) as usize, le(&header, 16, 4));
    if let Some(field) = header.get_mut(16..20) {
        field.fill(0);
    }
    let valid = header.get(..length).filter(|bytes| bytes.len() >= 92);
    if valid.is_none_or(|bytes| u64::from(sum.checksum(bytes)) != expected) {
        return Ok(None);
    }
    let (first, count, size) = (le(&header, 72, 8), le(&header, 80, 4), le(&header, 84, 4));
    if count > u64::from(PARTITIONS_MAX) || !(128..=4096).contains(&size) {
        return Ok(None);
    }
    let (Some(start), length) = (first.checked_mul(SECTOR), count * size) else { return Ok(None) };
    if start.checked_add(length).is_none_or(|end| end > disk.borrow().size()) {
        return Ok(None);
    }
    let mut entries = vec![0; length as usize];
    disk.borrow_mut().read(start, &mut entries)?;
    if u64::from(sum.checksum(&entries)) != le(&header, 88, 4) {
        return Ok(None);
    }
    let partition = |(number, entry): (u32, &[u8])| {
        let (start, end) = (le(entry, 32, 8), le(entry, 40, 8));
        let used = entry.get(..16)?.iter().any(|byte| *byte != 0);
        let length = end.checked_sub(start)?.checked_add(1)?.checked_mul(SECTOR)?;
        used.then_some(Partition { number: Some(number), start: start.checked_mul(SECTOR)?, length })
    };
    Ok(Some((1..).zip(entries.chunks_exact(size as usize)).filter_map(partition).collect()))
}

/// A sector of the disk; none beyond its end.
fn sector(disk: &Shared, number: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(at) = number.checked_mul(SECTOR) else { return Ok(None) };
    if at.checked_add(SECTOR).is_none_or(|end| end > disk.borrow().size()) {
        return Ok(None);
    }
    let mut bytes = vec![0; SECTOR as usize];
    disk.borrow_mut().read(at, &mut bytes)?;
    Ok(Some(bytes))
}

/// The little-endian number of `length` bytes at `at`; 0 beyond the end.
fn le(bytes: &[u8], at: usize, length: usize) -> u64 {
    let field = bytes.get(at..at + length).unwrap_or_default();
    field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared;
    use crate::tests::gpt_disk;

    fn entry(kind: u8, start: u32, length: u32) -> Vec<u8> {
        [&[0, 0, 0, 0, kind, 0, 0, 0][..], &start.to_le_bytes(), &length.to_le_bytes()].concat()
    }

    fn put(disk: &mut [u8], sector: usize, entries: &[Vec<u8>]) {
        let bytes = entries.concat();
        disk[sector * 512 + 446..][..bytes.len()].copy_from_slice(&bytes);
        disk[sector * 512 + 510..][..2].copy_from_slice(&[0x55, 0xaa]);
    }

    fn numbers(bytes: Vec<u8>) -> Vec<(Option<u32>, u64, u64)> {
        let list = list(&shared(bytes)).unwrap();
        list.iter().map(|p| (p.number, p.start / 512, p.length / 512)).collect()
    }

    #[test]
    fn primary_and_logical_partitions_have_linuxs_numbers() {
        let mut disk = vec![0; 100 * 512];
        let whole = (None, 0, 100);
        assert_eq!(numbers(disk.clone()), [whole]);
        put(&mut disk, 0, &[entry(0x83, 1, 10), entry(0x05, 20, 60), entry(0, 0, 0), entry(0x82, 90, 5)]);
        put(&mut disk, 20, &[entry(0x83, 1, 9), entry(0x05, 10, 20)]);
        put(&mut disk, 30, &[entry(0x83, 2, 8), entry(0, 0, 0)]);
        let all = [(Some(1), 1, 10), (Some(4), 90, 5), (Some(5), 21, 9), (Some(6), 32, 8)];
        assert_eq!(numbers(disk.clone()), all);
        // A chain that comes back to itself ends, and what reaches beyond the disk is left out.
        put(&mut disk, 30, &[entry(0x83, 2, 800), entry(0x05, 10, 20)]);
        assert_eq!(numbers(disk)[..3], all[..3]);
    }

    #[test]
    fn a_gpt_is_read_and_its_backup_where_it_is_damaged() {
        let disk = gpt_disk(&[(40, 10), (60, 20)], 200);
        let all = [(Some(1), 40, 10), (Some(2), 60, 20)];
        assert_eq!(numbers(disk.clone()), all);
        for at in [512, 512 + 20, 512 + 80, 1024, 1024 + 32] {
            let mut damaged = disk.clone();
            damaged[at] ^= 1;
            assert_eq!(numbers(damaged.clone()), all, "{at}");
            damaged[199 * 512] ^= 1;
            assert_eq!(numbers(damaged), [(None, 0, 200)], "{at}");
        }
    }
}
