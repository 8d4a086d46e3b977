//! Kernel and initrd files: where they come from, bounds-checked reads, what they are if they are no kernel.

use std::borrow::Cow;
use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use accel_api::{GuestRam, PAGE_SIZE, PageFlag, RamError};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::{BootError, Role};

/// Where a kernel or an initial RAM disk comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file of the host, opened when it is needed.
    Path(PathBuf),
    /// A regular file of the host that is open already.
    File {
        /// What messages call it.
        name: String,
        /// The file.
        file: Arc<File>,
    },
    /// Bytes in this process.
    Bytes {
        /// What messages call it.
        name: String,
        /// The contents.
        bytes: Cow<'static, [u8]>,
    },
}

impl Source {
    /// Bytes in this process; `name` is for messages.
    pub fn bytes(name: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self::Bytes { name: name.into(), bytes: bytes.into() }
    }

    /// What messages call it.
    pub fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::File { name, .. } | Self::Bytes { name, .. } => name.clone(),
        }
    }

    /// The same with its file opened, for whoever needs it again later.
    pub(crate) fn kept(self, role: Role) -> Result<Self, BootError> {
        let Self::Path(path) = &self else { return Ok(self) };
        let name = self.name();
        let (file, _) = open_file(role, &name, path)?;
        Ok(Self::File { name, file: Arc::new(file) })
    }
}

impl<P: Into<PathBuf>> From<P> for Source {
    fn from(path: P) -> Self {
        Self::Path(path.into())
    }
}

/// Bytes that one system call reads at most: Linux gives no more than 2 GiB less a page.
const READ_AT_ONCE: u64 = 1 << 30;

#[derive(Debug)]
enum Data<'a> {
    File {
        file: File,
        /// When it was last written, as of opening; not all file systems tell.
        modified: Option<SystemTime>,
    },
    Bytes(&'a [u8]),
}

/// A source opened for reading. All reads are checked against the length it had then.
#[derive(Debug)]
pub(super) struct Image<'a> {
    role: Role,
    name: String,
    data: Data<'a>,
    len: u64,
}

/// Opens a regular file. Of nothing else is anything asked: opening a pipe waits for a writer, and opening a device may
/// start it.
fn open_file(role: Role, name: &str, path: &Path) -> Result<(File, Metadata), BootError> {
    let failed = |source| BootError::Open { role, name: name.to_owned(), source };
    let regular = |kind| regular(role, name, kind);
    regular(std::fs::metadata(path).map_err(failed)?.file_type())?;
    // The path may name something else by now, which must not block either.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    regular(meta.file_type())?;
    Ok((file, meta))
}

fn regular(role: Role, name: &str, kind: FileType) -> Result<(), BootError> {
    let (found, remedy) = match () {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => ("a folder", "give the path of a file"),
        _ if kind.is_fifo() => ("a pipe", "write what comes from it into a file, and give that"),
        _ => ("a device or socket", "give the path of a file"),
    };
    Err(BootError::NotAFile { role, name: name.to_owned(), found, remedy })
}

impl<'a> Image<'a> {
    pub(super) fn open(role: Role, source: &'a Source) -> Result<Self, BootError> {
        let name = source.name();
        let (data, len) = match source {
            Source::Bytes { bytes, .. } => (Data::Bytes(bytes.as_ref()), bytes.len() as u64),
            Source::Path(path) => {
                let (file, meta) = open_file(role, &name, path)?;
                (Data::File { file, modified: meta.modified().ok() }, meta.len())
            }
            Source::File { file, .. } => {
                let failed = |source| BootError::Open { role, name: name.clone(), source };
                let meta = file.metadata().map_err(failed)?;
                regular(role, &name, meta.file_type())?;
                let file = file.try_clone().map_err(failed)?;
                (Data::File { file, modified: meta.modified().ok() }, meta.len())
            }
        };
        Ok(Self { role, name, data, len })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Checks that `len` bytes at `offset` are in the file.
    pub(super) fn check(&self, offset: u64, len: u64) -> Result<(), BootError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            end => Err(BootError::Truncated {
                role: self.role,
                name: self.name.clone(),
                need: end.unwrap_or(u64::MAX),
                have: self.len,
            }),
        }
    }

    /// Fills `buf` from `offset` on.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BootError> {
        self.check(offset, buf.len() as u64)?;
        match &self.data {
            Data::File { file, .. } => file.read_exact_at(buf, offset).map_err(|e| self.failed(e)),
            Data::Bytes(bytes) => {
                let start = offset as usize;
                buf.copy_from_slice(&bytes[start..start + buf.len()]);
                Ok(())
            }
        }
    }

    /// Copies `len` bytes at `offset` to guest memory at `gpa`, without a buffer in between. Holes of the file cost the
    /// guest no memory.
    pub(super) fn copy_to(&self, ram: &GuestRam, gpa: u64, offset: u64, len: u64) -> Result<(), BootError> {
        self.check(offset, len)?;
        let to = GuestAddress(gpa);
        if !ram.memory().check_range(to, len as usize) {
            return Err(BootError::NoRam { gpa });
        }
        match &self.data {
            Data::File { file, .. } => self.copy_file_to(file, ram, gpa, offset, len),
            Data::Bytes(bytes) => {
                let start = offset as usize;
                ram.memory()
                    .write_slice(&bytes[start..start + len as usize], to)
                    .map_err(|_| BootError::NoRam { gpa })
            }
        }
    }

    fn copy_file_to(
        &self,
        file: &File,
        ram: &GuestRam,
        gpa: u64,
        offset: u64,
        len: u64,
    ) -> Result<(), BootError> {
        let end = offset + len;
        let mut reader = file.try_clone().map_err(|e| self.failed(e))?;
        let mut at = offset;
        while at < end {
            let data = match seek(file, SeekFrom::Data(at)) {
                Ok(data) => data.min(end),
                // No data from here to the end of the file.
                Err(Errno::NXIO) => end,
                // A file system that does not tell.
                Err(_) => at,
            };
            zero(ram, gpa + (at - offset), data - at)?;
            let hole = seek(file, SeekFrom::Hole(data)).map_or(end, |hole| hole.min(end));
            at = data;
            if at < end {
                // Both descriptors have one position.
                seek(file, SeekFrom::Start(at)).map_err(|e| self.failed(e.into()))?;
            }
            while at < hole {
                let count = (hole - at).min(READ_AT_ONCE) as usize;
                let to = GuestAddress(gpa + (at - offset));
                match ram.memory().read_volatile_from(to, &mut reader, count) {
                    Ok(0) => return Err(self.changed()),
                    Ok(read) => at += read as u64,
                    // The kernel cannot write where an access of this process would raise SIGBUS.
                    Err(GuestMemoryError::IOError(e)) if e.raw_os_error() == Some(libc::EFAULT) => {
                        return Err(RamError::Lost { gpa: to.0 }.into());
                    }
                    // The range is RAM, so what else fails is the file.
                    Err(e) => return Err(self.failed(io::Error::other(e))),
                }
            }
        }
        Ok(())
    }

    /// Checks, after all has been read, that it is all of one state of the file. One that became shorter has a hole
    /// where its end was.
    pub(super) fn check_unchanged(&self) -> Result<(), BootError> {
        let Data::File { file, modified } = &self.data else { return Ok(()) };
        let now = file.metadata().map_err(|e| self.failed(e))?;
        if now.len() == self.len && now.modified().ok() == *modified { Ok(()) } else { Err(self.changed()) }
    }

    pub(super) fn damaged(&self, why: &'static str) -> BootError {
        BootError::Damaged { name: self.name.clone(), why }
    }

    pub(super) fn unsupported(&self, why: &'static str) -> BootError {
        BootError::Unsupported { name: self.name.clone(), why }
    }

    fn changed(&self) -> BootError {
        BootError::Changed { role: self.role, name: self.name.clone() }
    }

    fn failed(&self, source: io::Error) -> BootError {
        match source.kind() {
            // Within the length it had.
            io::ErrorKind::UnexpectedEof => self.changed(),
            _ => BootError::Read { role: self.role, name: self.name.clone(), source },
        }
    }
}

/// Makes RAM zero. Pages that were never written are, and stay without memory of the host behind them.
fn zero(ram: &GuestRam, gpa: u64, len: u64) -> Result<(), BootError> {
    const ZEROES: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
    let holds = |region: &&accel_api::RamRegion| (region.gpa()..region.gpa() + region.size()).contains(&gpa);
    let region = ram.regions().iter().find(holds).ok_or(BootError::NoRam { gpa })?;
    let (mut at, end) = (gpa, gpa + len);
    while at < end {
        let next = (at + 1).next_multiple_of(PAGE_SIZE).min(end);
        let page = (region.offset() + (at - region.gpa())) / PAGE_SIZE;
        if ram.flags().get(page as usize).contains(PageFlag::DIRTY) {
            ram.memory()
                .write_slice(&ZEROES[..(next - at) as usize], GuestAddress(at))
                .map_err(|_| BootError::NoRam { gpa: at })?;
        }
        at = next;
    }
    Ok(())
}

/// Says what a file that is no kernel is.
pub(super) fn not_a_kernel(image: &Image) -> Result<BootError, BootError> {
    let mut start = [0; 512];
    let have = image.len().min(512) as usize;
    image.read(0, &mut start[..have])?;
    let (found, remedy) = recognise(&start[..have]);
    Ok(BootError::NotAKernel { name: image.name().to_owned(), found, remedy })
}

/// Names a file by how it starts, and says what to do about it.
fn recognise(start: &[u8]) -> (&'static str, &'static str) {
    const DECOMPRESS: &str = "decompress it first, or give the bzImage (vmlinuz) it came with";
    const IS_INITRD: &str = "give it as the initrd";
    const MAYBE_INITRD: &str = "if it is an initrd, give it as that; if it is a kernel, decompress it first";
    const INSTALL: &str = "take the vmlinuz out of it";
    const NO_IDEA: &str = "give a vmlinuz, for example from /boot";
    let magics: [(&[u8], &str, &str); 12] = [
        (b"070701", "a cpio archive (initrd)", IS_INITRD),
        (b"070702", "a cpio archive (initrd)", IS_INITRD),
        (b"\x1f\x8b", "gzip-compressed data", MAYBE_INITRD),
        (b"\xfd7zXZ\0", "xz-compressed data", MAYBE_INITRD),
        (b"\x28\xb5\x2f\xfd", "zstd-compressed data", MAYBE_INITRD),
        (b"BZh", "bzip2-compressed data", MAYBE_INITRD),
        (b"\x02\x21\x4c\x18", "lz4-compressed data", DECOMPRESS),
        (b"!<arch>\n", "an ar archive (a Debian package?)", INSTALL),
        (b"\xed\xab\xee\xdb", "an RPM package", INSTALL),
        (b"QFI\xfb", "a qcow2 disk image", INSTALL),
        (b"#!", "a script", NO_IDEA),
        (b"MZ", "a Windows or EFI program without a Linux boot header", NO_IDEA),
    ];
    if start.is_empty() {
        return ("empty", NO_IDEA);
    }
    if start.get(0x38..0x3c) == Some(b"ARM\x64") {
        return ("a kernel for arm64", "give one for x86-64");
    }
    if let Some((_, found, remedy)) = magics.into_iter().find(|(magic, ..)| start.starts_with(magic)) {
        return (found, remedy);
    }
    if start.get(510..512) == Some(&[0x55, 0xaa]) {
        return ("a boot sector or disk image", INSTALL);
    }
    let text = |&b: &u8| matches!(b, b'\t' | b'\n' | b'\r' | b' '..=b'~');
    if start.iter().all(text) {
        return ("a text file", NO_IDEA);
    }
    ("of no kind known here", NO_IDEA)
}
