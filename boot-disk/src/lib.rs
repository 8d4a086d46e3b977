//! What a disk boots: kernel, initial RAM disk and command line, found as a boot loader finds them.
//!
//! Everything on the disk is hostile. Whoever calls [`find`] does so in a process without rights, with bounds on memory
//! and time: this crate bounds what it reads of each file, but a file system can send it round and round.
//!
//! 1. [`partitions`]: GPT and MBR, or a file system without any.
//! 2. [`files`]: ext2, ext3 and ext4, by the crate `ext4-view`.
//! 3. On all file systems, in this order: the default entry of [GRUB's configuration](grub), the best entry of the
//!    [boot loader specification](bls), and [kernels where Debian puts them](plain).

pub mod bls;
pub mod files;
pub mod grub;
pub mod partitions;
mod plain;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use files::Files;
use thiserror::Error;

/// Largest kernel.
pub const KERNEL_MAX: u64 = 256 << 20;
/// Most bytes of all parts of an initial RAM disk together.
pub const INITRD_MAX: u64 = 512 << 20;
/// Longest command line: what Linux takes on x86 (`COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX: usize = 2047;
/// Most bytes of a configuration file.
const TEXT_MAX: u64 = 1 << 20;
/// What a guest without a display says something on.
const CONSOLE: &str = "console=ttyS0";

/// A disk to look at.
pub trait Disk {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Fills `into` from byte `at` on.
    ///
    /// # Errors
    /// The host's, and whatever lies beyond the end.
    fn read(&mut self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

/// A disk in memory.
impl Disk for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let from = at.checked_add(into.len()).and_then(|end| self.get(at..end));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A disk that several look at.
pub(crate) type Shared = Rc<RefCell<dyn Disk>>;

fn shared(disk: impl Disk + 'static) -> Shared {
    Rc::new(RefCell::new(disk))
}

/// What is to be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The entry's title, or the kernel's path, in printable ASCII.
    pub title: String,
    /// The kernel.
    pub kernel: Vec<u8>,
    /// The initial RAM disk, if the entry has one; several parts are one behind the other.
    pub initrd: Option<Vec<u8>>,
    /// What the kernel is told. `console=ttyS0` comes last if the entry names no console.
    pub cmdline: String,
}

/// Why a disk boots nothing. The texts hold printable ASCII only, whatever the disk holds.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NotFound {
    /// The disk cannot be read.
    #[error("it cannot be read: {0}")]
    Disk(#[from] io::Error),
    /// Nothing on it is a file system that this crate knows.
    #[error("it has no file system that can be read here (ext2, ext3, ext4)")]
    NoFileSystem,
    /// There are file systems, and no kernel.
    #[error("it has neither an entry of GRUB or the boot loader specification nor a kernel in / or /boot")]
    NoEntry,
    /// An entry names a file that is not there, too large or damaged.
    #[error("the entry {title:?} names {path}, which {reason}")]
    File {
        /// The entry.
        title: String,
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The command line is longer than Linux takes.
    #[error(
        "the entry {0:?} has a command line of more than {CMDLINE_MAX} bytes, or with other than printable ASCII"
    )]
    Cmdline(String),
}

/// An entry of whatever configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// What a menu shows.
    pub title: String,
    /// The kernel's path.
    pub kernel: String,
    /// Paths of the initial RAM disk's parts.
    pub initrd: Vec<String>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Looks what `disk` boots, which the guest has as `device` (`/dev/vda`).
///
/// # Errors
/// [`NotFound`].
pub fn find(disk: impl Disk + 'static, device: &str) -> Result<Found, NotFound> {
    let disk = shared(disk);
    let mut systems = Vec::new();
    for partition in partitions::list(&disk)? {
        if let Some(files) = Files::open(&disk, &partition) {
            let root = match partition.number {
                Some(number) => format!("{device}{number}"),
                None => device.to_owned(),
            };
            systems.push((files, root));
        }
    }
    if systems.is_empty() {
        return Err(NotFound::NoFileSystem);
    }
    let finders: [fn(&Files) -> Option<Entry>; 2] = [grub::entry, bls::entry];
    for finder in finders {
        if let Some((files, entry)) =
            systems.iter().find_map(|(files, _)| finder(files).map(|entry| (files, entry)))
        {
            return load(files, entry);
        }
    }
    let root = systems.iter().find(|(files, _)| plain::is_root(files)).map(|(_, root)| root.as_str());
    let found = systems.iter().find_map(|(files, _)| plain::entry(files, root).map(|entry| (files, entry)));
    let (files, entry) = found.ok_or(NotFound::NoEntry)?;
    load(files, entry)
}

/// Reads what the entry names.
fn load(files: &Files, entry: Entry) -> Result<Found, NotFound> {
    let title = printable(&entry.title);
    let read = |path: &str, limit: u64| {
        // The paths of a separate /boot count from it; a /boot of the root's may be left out all the same.
        let below = format!("/boot/{}", path.trim_start_matches('/'));
        let done = files.read(path, limit).or_else(|first| files.read(&below, limit).map_err(|_| first));
        done.map_err(|reason| NotFound::File {
            title: title.clone(),
            path: printable(path),
            reason: printable(&reason),
        })
    };
    let kernel = read(&entry.kernel, KERNEL_MAX)?;
    let mut initrd = None;
    for path in &entry.initrd {
        let all: &mut Vec<u8> = initrd.get_or_insert_default();
        // Each part begins at a multiple of four (Linux, buffer-format.rst).
        all.resize(all.len().next_multiple_of(4), 0);
        let left = INITRD_MAX.saturating_sub(all.len() as u64);
        all.extend(read(path, left)?);
    }
    let mut cmdline = entry.cmdline.trim().to_owned();
    if !cmdline.split(' ').any(|word| word.starts_with("console=")) {
        cmdline = format!("{cmdline} {CONSOLE}").trim_start().to_owned();
    }
    if cmdline.len() > CMDLINE_MAX || !cmdline.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(NotFound::Cmdline(title));
    }
    Ok(Found { title, kernel, initrd, cmdline })
}

/// A text of the disk's for a terminal: printable ASCII, and not long.
fn printable(text: &str) -> String {
    let safe = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    text.chars().take(200).map(safe).collect()
}

#[cfg(test)]
mod tests;
