//! ELF notes.

use std::collections::BTreeSet;

use elf::endian::{EndianParse, LittleEndian};

/// The descriptor of the first note of `owner` with type `kind` among `notes`, the contents of a PT_NOTE segment.
///
/// Name and descriptor of a note are padded to 4 bytes or to 8, as its section is aligned, and a segment may hold
/// sections of both kinds: `.note.gnu.property`, aligned to 8, makes the segment so, but Xen's notes behind it keep their
/// 4. Each note therefore has two places where the next one may start; all such places are looked at, in order.
pub(super) fn find<'a>(notes: &'a [u8], owner: &[u8], kind: u32) -> Option<&'a [u8]> {
    let mut starts = BTreeSet::from([0]);
    while let Some(start) = starts.pop_first() {
        let mut at = start;
        // The header: sizes of name and descriptor, and the type, with 32 bits in files of either class.
        let mut next = || LittleEndian.parse_u32_at(&mut at, notes);
        let (Ok(name_len), Ok(desc_len), Ok(found_kind)) = (next(), next(), next()) else { continue };
        // Sizes of 32 bits do not overflow here.
        let name_end = at + name_len as usize;
        let wanted = found_kind == kind && notes.get(at..name_end) == Some(owner);
        for align in [4, 8] {
            let desc = name_end.next_multiple_of(align);
            let end = desc + desc_len as usize;
            if wanted && let Some(found) = notes.get(desc..end) {
                return Some(found);
            }
            starts.insert(end.next_multiple_of(align));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts a note behind `notes`, padded to `align`.
    fn put(notes: &mut Vec<u8>, align: usize, name: &[u8], kind: u32, desc: &[u8]) {
        notes.resize(notes.len().next_multiple_of(align), 0);
        for word in [name.len() as u32, desc.len() as u32, kind] {
            notes.extend(word.to_le_bytes());
        }
        for part in [name, desc] {
            notes.extend(part);
            notes.resize(notes.len().next_multiple_of(align), 0);
        }
    }

    #[test]
    fn notes_of_both_alignments_are_found_in_any_order() {
        let property = |notes: &mut Vec<u8>| put(notes, 8, b"GNU\0", 5, &[1; 16]);
        // What Linux has before its entry: a descriptor of 6 bytes, which is padded differently.
        let linux = |notes: &mut Vec<u8>| put(notes, 4, b"Xen\0", 6, b"linux\0");
        let entry = |notes: &mut Vec<u8>| put(notes, 4, b"Xen\0", 18, &[1, 2, 3, 4]);
        let entry8 = |notes: &mut Vec<u8>| put(notes, 8, b"Xen\0", 18, &[1, 2, 3, 4]);
        let odd8 = |notes: &mut Vec<u8>| put(notes, 8, b"Odd name\0", 1, &[9; 5]);
        type Part<'a> = &'a dyn Fn(&mut Vec<u8>);
        let cases: [&[Part<'_>]; 7] = [
            &[&entry],
            &[&property, &entry],
            &[&property, &linux, &entry],
            &[&linux, &property, &linux, &entry],
            &[&linux, &entry, &property],
            &[&odd8, &entry8],
            &[&linux, &odd8, &property, &linux, &linux, &entry],
        ];
        for (case, parts) in cases.iter().enumerate() {
            let mut notes = Vec::new();
            parts.iter().for_each(|part| part(&mut notes));
            assert_eq!(find(&notes, b"Xen\0", 18), Some(&[1, 2, 3, 4][..]), "case {case}");
            assert_eq!(find(&notes, b"Xen\0", 17), None, "case {case}");
        }
    }

    /// What looks like a note within a descriptor is none, and sizes beyond the end end the search.
    #[test]
    fn what_is_no_note_is_not_found() {
        let mut hidden = Vec::new();
        put(&mut hidden, 4, b"Xen\0", 18, &[1, 2, 3, 4]);
        let mut notes = Vec::new();
        put(&mut notes, 4, b"GNU\0", 3, &hidden);
        assert_eq!(find(&notes, b"Xen\0", 18), None);
        for len in 0..hidden.len() {
            assert_eq!(find(&hidden[..len], b"Xen\0", 18), None, "{len}");
        }
        assert_eq!(find(&[0xff; 64], b"Xen\0", 18), None);
        assert_eq!(find(&vec![0; 1 << 20], b"Xen\0", 18), None);
    }
}
