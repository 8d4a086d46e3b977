//! What a user says of a disk.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Sectors one after the other; also block devices.
    Raw,
    /// QEMU's format, versions 2 and 3.
    Qcow2,
    /// VMware's flat extents, read-only.
    Vmdk,
}

impl Format {
    /// Its name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            "vmdk" => Ok(Self::Vmdk),
            _ => Err(format!("there is no disk format '{name}': take raw, qcow2 or vmdk")),
        }
    }
}

/// How the host caches a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// In the host's page cache.
    #[default]
    Writeback,
    /// Not at all: `O_DIRECT`. The drive's own cache is still there, so flushes matter as before.
    None,
}

impl FromStr for Cache {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "writeback" => Ok(Self::Writeback),
            "none" => Ok(Self::None),
            _ => Err(format!("there is no disk cache mode '{name}': take writeback or none")),
        }
    }
}

/// Which backing files and extents an image may name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackingPolicy {
    /// Those in the folder of the image and below.
    #[default]
    Folder,
    /// Any that the user may read.
    Allow,
}

/// A disk as `--disk` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// The image or block device.
    pub path: PathBuf,
    /// Its format. Without one the rule of [`super::probe`] holds.
    pub format: Option<Format>,
    /// The guest may not write, and the host's file is not opened for it.
    pub read_only: bool,
    /// Writes go to an overlay that vanishes with the disk; the image is opened read-only.
    pub snapshot: bool,
    /// Serial number: at most 20 printable ASCII characters.
    pub serial: String,
    /// How the host caches it.
    pub cache: Cache,
    /// Which other files the image may name.
    pub backing: BackingPolicy,
}

impl DiskOptions {
    /// A writable disk at `path` with everything else as it is by default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: None,
            read_only: false,
            snapshot: false,
            serial: String::new(),
            cache: Cache::default(),
            backing: BackingPolicy::default(),
        }
    }
}

impl FromStr for DiskOptions {
    type Err = String;

    /// `FILE[,format=raw|qcow2|vmdk][,readonly=on|off][,snapshot=on|off][,serial=S][,cache=writeback|none][,backing=allow]`.
    /// A comma in the file's name is written twice.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = split_at_commas(text).into_iter();
        let path = words.next().filter(|path| !path.is_empty());
        let mut options = Self::new(path.ok_or("a disk needs a file: FILE[,OPTION=VALUE]...")?);
        for word in words {
            let (key, value) =
                word.split_once('=').ok_or_else(|| format!("disk option '{word}' has no value: {KEYS}"))?;
            match key {
                "format" => options.format = Some(value.parse()?),
                "readonly" => options.read_only = switch(key, value)?,
                "snapshot" => options.snapshot = switch(key, value)?,
                "serial" => {
                    check_serial(value)?;
                    value.clone_into(&mut options.serial);
                }
                "cache" => options.cache = value.parse()?,
                "backing" if value == "allow" => options.backing = BackingPolicy::Allow,
                "backing" => return Err(format!("'backing={value}': the only value is allow")),
                _ => return Err(format!("there is no disk option '{key}': {KEYS}")),
            }
        }
        Ok(options)
    }
}

const KEYS: &str = "options are format, readonly, snapshot, serial, cache and backing";

fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("'{key}={value}': take on or off")),
    }
}

/// A serial number as virtio-blk, ATA and NVMe can all carry it.
pub(super) fn check_serial(serial: &str) -> Result<(), String> {
    if serial.len() <= 20 && serial.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Ok(());
    }
    Err(format!("the serial number {serial:?} is not at most 20 printable ASCII characters"))
}

/// Cuts at commas; two of them are one that does not cut.
pub(crate) fn split_at_commas(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_options() {
        let text = "a,,b.img,format=qcow2,readonly=on,snapshot=off,serial=X 1,cache=none,backing=allow";
        let expected = DiskOptions {
            format: Some(Format::Qcow2),
            read_only: true,
            serial: "X 1".to_owned(),
            cache: Cache::None,
            backing: BackingPolicy::Allow,
            ..DiskOptions::new("a,b.img")
        };
        assert_eq!(text.parse(), Ok(expected));
        assert_eq!("x".parse(), Ok(DiskOptions::new("x")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "needs a file"),
            (",format=raw", "needs a file"),
            ("x,format=vhd", "'vhd'"),
            ("x,ro", "'ro'"),
            ("x,readonly=yes", "readonly=yes"),
            ("x,cache=unsafe", "'unsafe'"),
            ("x,backing=any", "backing=any"),
            ("x,serial=123456789012345678901", "20 printable"),
            ("x,serial=\u{e9}", "20 printable"),
            ("x,size=1", "'size'"),
        ] {
            let error = text.parse::<DiskOptions>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
