//! A file system on a disk, read-only.

use std::error::Error;
use std::io;

use ext4_view::{Ext4, Ext4Read};

use crate::partitions::Partition;
use crate::{Shared, TEXT_MAX};

/// Most names of a folder that are looked at.
const NAMES_MAX: usize = 4096;
/// How much of a file is read at once.
const PIECE: usize = 1 << 20;

/// A file system. ext2, ext3 or ext4: `ext4-view` replays the journal in memory, so that an image that was not unmounted shows what
/// its guest wrote.
#[derive(Debug)]
pub struct Files(Ext4);

/// One partition of a disk.
struct Window {
    disk: Shared,
    start: u64,
    length: u64,
}

impl Ext4Read for Window {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        let end = at.checked_add(into.len() as u64).filter(|end| *end <= self.length);
        let start = end.and_then(|_| self.start.checked_add(at));
        let start = start.ok_or_else(|| io::Error::other("beyond the end of the partition"))?;
        Ok(self.disk.borrow_mut().read(start, into)?)
    }
}

impl Files {
    /// The file system of a partition, if there is one.
    pub(crate) fn open(disk: &Shared, partition: &Partition) -> Option<Self> {
        let window = Window { disk: disk.clone(), start: partition.start, length: partition.length };
        Ext4::load(Box::new(window)).ok().map(Self)
    }

    /// A file of at most `limit` bytes; symbolic links are followed inside the file system.
    pub(crate) fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, String> {
        let path = absolute(path);
        let told = |error: ext4_view::Ext4Error| match error {
            ext4_view::Ext4Error::NotFound => "is not there".to_owned(),
            other => format!("cannot be read: {other}"),
        };
        let mut file = self.0.open(path.as_str()).map_err(told)?;
        if file.metadata().len() > limit {
            return Err(format!("has more than {limit} bytes"));
        }
        let mut bytes = Vec::new();
        let mut piece = vec![0; PIECE];
        loop {
            let count = file.read_bytes(&mut piece).map_err(told)?;
            bytes.extend_from_slice(piece.get(..count).unwrap_or_default());
            // The size was checked; that it is kept to is the crate's word.
            if count == 0 || bytes.len() as u64 > limit {
                break Ok(bytes);
            }
        }
    }

    /// A configuration file; what is not UTF-8 in it becomes U+FFFD.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        Some(String::from_utf8_lossy(&self.read(path, TEXT_MAX).ok()?).into_owned())
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.0.exists(absolute(path).as_str()).unwrap_or(false)
    }

    /// Names in a folder, sorted; none where there is no such folder.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = self.0.read_dir(absolute(path).as_str()) else { return Vec::new() };
        let names = entries.map_while(Result::ok).take(NAMES_MAX);
        let mut names: Vec<_> =
            names.filter_map(|entry| entry.file_name().as_str().ok().map(str::to_owned)).collect();
        names.sort();
        names
    }
}

fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}
