//! Which format a disk has when nobody named it.
//!
//! Whoever writes a raw disk writes its first sector, and that is the guest. If content alone decided, a guest could put a
//! qcow2 header there, whose backing file is any file of the host's, and read that file after the next start. So the content
//! only decides together with the file's name, which no guest can change:
//!
//! | name | begins like an image format | otherwise |
//! |---|---|---|
//! | ends in `.qcow2` | qcow2, if that is what it begins like | refused: not a qcow2 image |
//! | anything else, and block devices | refused: the user has to name the format | raw |

use super::error::OpenError;
use super::options::Format;
use imago::io_buffers::IoBuffer;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Bytes of a file that are looked at: a block of any drive.
const HEAD: usize = 4096;

/// First bytes of formats that a raw disk must not begin with unless the user says that it is raw.
const MAGICS: [(&[u8], &str); 10] = [
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"# Disk DescriptorFile", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
    (b"<<< ", "vdi"),
    (b"QED\0", "qed"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
];

/// The format of an open file that nobody named, by the table above.
pub(super) fn format(file: &File, path: &Path) -> Result<Format, OpenError> {
    let head = read_head(file).map_err(|source| OpenError::Host { path: path.to_owned(), source })?;
    let looks = MAGICS.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| *name);
    let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("qcow2"));
    match (named, looks) {
        (true, Some("qcow2")) => Ok(Format::Qcow2),
        (true, _) => Err(OpenError::Invalid {
            path: path.to_owned(),
            format: Format::Qcow2,
            reason: "it does not begin with qcow2's magic number; if it is raw, add format=raw".to_owned(),
        }),
        (false, Some(looks)) => Err(OpenError::Ambiguous { path: path.to_owned(), looks }),
        (false, None) => Ok(Format::Raw),
    }
}

/// The first bytes of the file, at most 4096. The buffer suits descriptors with `O_DIRECT` too.
pub(super) fn read_head(file: &File) -> io::Result<Vec<u8>> {
    let mut buffer = IoBuffer::new(HEAD, HEAD)?;
    let head = buffer.as_mut().into_slice();
    loop {
        match file.read_at(head, 0) {
            Ok(length) => return Ok(head.get(..length).unwrap_or_default().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
