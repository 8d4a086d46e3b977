//! Writer of the `newc` cpio format.

use super::Node;
use std::collections::BTreeMap;
use std::io::Write as _;

// Types of st_mode.
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// The archive of `nodes`. A map's order puts directories before what they hold.
pub(super) fn write(nodes: &BTreeMap<String, Node>) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, (path, node)) in (1..).zip(nodes) {
        match node {
            Node::Directory => entry(&mut out, number, S_IFDIR | 0o755, (0, 0), path, &[]),
            Node::File { mode, bytes } => entry(&mut out, number, S_IFREG | mode, (0, 0), path, bytes),
            Node::Symlink(to) => entry(&mut out, number, S_IFLNK | 0o777, (0, 0), path, to.as_bytes()),
            Node::CharDevice { mode, major, minor } => {
                entry(&mut out, number, S_IFCHR | mode, (*major, *minor), path, &[]);
            }
        }
    }
    entry(&mut out, 0, 0, (0, 0), "TRAILER!!!", &[]);
    out
}

fn entry(out: &mut Vec<u8>, number: u32, mode: u32, device: (u32, u32), path: &str, bytes: &[u8]) {
    let links = if mode & S_IFDIR != 0 && mode & S_IFREG == 0 { 2 } else { 1 };
    let fields = [
        number,
        mode,
        0, // uid
        0, // gid
        links,
        0, // mtime
        bytes.len() as u32,
        0, // device of the file itself
        0,
        device.0,
        device.1,
        path.len() as u32 + 1,
        0, // no checksum in this variant
    ];
    out.extend(b"070701");
    for field in fields {
        write!(out, "{field:08X}").expect("memory takes all that is written");
    }
    out.extend(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend(bytes);
    pad(out);
}

/// Names and contents end on a multiple of four bytes.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes by hand from the format's description: field order, alignment after name and data, trailer.
    #[test]
    fn one_file() {
        let node = Node::File { mode: 0o644, bytes: b"hello".to_vec() };
        let archive = write(&BTreeMap::from([("ab".to_owned(), node)]));
        let mut expected = Vec::new();
        expected.extend(b"070701");
        for field in ["00000001", "000081A4", "00000000", "00000000", "00000001", "00000000", "00000005"] {
            expected.extend(field.as_bytes());
        }
        for field in ["00000000", "00000000", "00000000", "00000000", "00000003", "00000000"] {
            expected.extend(field.as_bytes());
        }
        // 110 bytes of header and 3 of name, to 116.
        expected.extend(b"ab\0\0\0\0hello\0\0\0");
        assert_eq!(&archive[..expected.len()], expected);
        assert!(archive[expected.len()..].starts_with(b"07070100000000"));
        assert!(archive.ends_with(b"TRAILER!!!\0\0\0\0"));
        assert_eq!(archive.len() % 4, 0);
    }

    #[test]
    fn directories_come_first() {
        let nodes = crate::initramfs::Initramfs::new(b"").file("a-b/c/d", 0o600, vec![]).unwrap().nodes;
        let paths: Vec<_> = nodes.keys().collect();
        for (n, path) in paths.iter().enumerate() {
            if let Some((parent, _)) = path.rsplit_once('/') {
                assert!(paths[..n].iter().any(|p| *p == parent), "{path}");
            }
        }
    }

    #[test]
    fn device_numbers_and_modes() {
        let node = Node::CharDevice { mode: 0o600, major: 5, minor: 1 };
        let archive = write(&BTreeMap::from([("dev/console".to_owned(), node)]));
        assert_eq!(&archive[14..22], b"00002180");
        assert_eq!(&archive[78..94], b"0000000500000001");
    }
}
