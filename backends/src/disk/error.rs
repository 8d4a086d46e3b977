//! Why an image cannot be opened, in one line with the remedy.

use super::options::Format;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why an image cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The host said no.
    #[error("cannot open disk {}: {source}{}", path.display(), remedy(source))]
    Host {
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Neither a file nor a block device.
    #[error("cannot open disk {}: it is {what}; a disk is a regular file or a block device", path.display())]
    NotADisk {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Another process has the image, with rights that exclude ours.
    #[error(
        "disk {} is in use by another process, which {holds}; end it, or open the disk with readonly=on in both",
        path.display()
    )]
    Locked {
        /// The image.
        path: PathBuf,
        /// What the other does or excludes.
        holds: &'static str,
    },
    /// The name does not say the format, and the content may be a guest's doing.
    #[error(
        "disk {} looks like {looks}, but its name does not say so, and a guest can write that into a raw disk; \
         name the format: format={looks} or format=raw",
        path.display()
    )]
    Ambiguous {
        /// The image.
        path: PathBuf,
        /// The format of its first bytes.
        looks: &'static str,
    },
    /// The content is not what the format demands.
    #[error("disk {} is not a usable {format} image: {reason}", path.display())]
    Invalid {
        /// The image.
        path: PathBuf,
        /// The format that was named or found.
        format: Format,
        /// What is wrong, and the remedy.
        reason: String,
    },
    /// The image names a file that it may not name.
    #[error(
        "disk {} needs {}, which is outside of the folder of the disk; if you trust the image, add backing=allow",
        image.display(), path.display()
    )]
    Outside {
        /// The image that names it.
        image: PathBuf,
        /// What is named.
        path: PathBuf,
    },
    /// The format can only be read here.
    #[error("disk {}: {format} images are read-only; add readonly=on or snapshot=on", path.display())]
    ReadOnlyFormat {
        /// The image.
        path: PathBuf,
        /// Its format.
        format: Format,
    },
    /// An option cannot be what it is.
    #[error("disk {}: {reason}", path.display())]
    Option {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; readonly=on or snapshot=on need no right to write"
        }
        io::ErrorKind::NotFound => "; gearshift image create makes one",
        io::ErrorKind::InvalidInput => "; where its file system has no O_DIRECT, take cache=writeback",
        _ => "",
    }
}
