//! Disks made here.

/// A disk of `sectors` with a GPT and these partitions `(first sector, length)`.
pub(crate) fn gpt_disk(partitions: &[(u64, u64)], sectors: usize) -> Vec<u8> {
    let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    let mut disk = vec![0; sectors * 512];
    disk[446 + 4] = 0xee;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut entries = vec![0; 128 * 128];
    for (entry, (start, length)) in entries.chunks_exact_mut(128).zip(partitions) {
        entry[..32].fill(7);
        entry[32..40].copy_from_slice(&start.to_le_bytes());
        entry[40..48].copy_from_slice(&(start + length - 1).to_le_bytes());
    }
    let last = sectors - 1;
    for (header, table) in [(1, 2), (last, last - 32)] {
        let mut bytes = [0; 92];
        bytes[..8].copy_from_slice(b"EFI PART");
        bytes[12..16].copy_from_slice(&92u32.to_le_bytes());
        bytes[72..80].copy_from_slice(&(table as u64).to_le_bytes());
        bytes[80..84].copy_from_slice(&128u32.to_le_bytes());
        bytes[84..88].copy_from_slice(&128u32.to_le_bytes());
        bytes[88..92].copy_from_slice(&sum.checksum(&entries).to_le_bytes());
        let check = sum.checksum(&bytes);
        bytes[16..20].copy_from_slice(&check.to_le_bytes());
        disk[header * 512..][..92].copy_from_slice(&bytes);
        disk[table * 512..][..entries.len()].copy_from_slice(&entries);
    }
    disk
}
