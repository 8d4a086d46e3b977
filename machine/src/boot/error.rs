//! Why a guest cannot be booted: the thing, the reason, the remedy.

use std::fmt;
use std::io;

use crate::memory_map::MIB;

/// What a file is meant to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The kernel.
    Kernel,
    /// The initial RAM disk.
    Initrd,
    /// A part of a [`MemoryImage`](super::MemoryImage).
    Piece,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Piece => "memory image",
        })
    }
}

/// What helps against a file that the host does not give.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "check the path",
        io::ErrorKind::PermissionDenied => "make it readable for this user, or copy it",
        _ => "check the file, or copy it",
    }
}

/// Why a guest cannot be booted.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The host does not have the memory.
    #[error(transparent)]
    Ram(#[from] accel_api::RamError),
    /// The file cannot be opened.
    #[error("cannot open {role} `{name}`: {source}; {}", remedy(source))]
    Open {
        /// What it is meant to be.
        role: Role,
        /// Its name.
        name: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A folder, pipe, device or socket.
    #[error("{role} `{name}` is {found}, not a regular file: {remedy}")]
    NotAFile {
        /// What it is meant to be.
        role: Role,
        /// Its name.
        name: String,
        /// What it is.
        found: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The file cannot be read.
    #[error("cannot read {role} `{name}`: {source}; {}", remedy(source))]
    Read {
        /// What it is meant to be.
        role: Role,
        /// Its name.
        name: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file became shorter, or was written to, between its opening and the end of its reading.
    #[error("{role} `{name}` changed while it was read: start again once it is complete")]
    Changed {
        /// What it is meant to be.
        role: Role,
        /// Its name.
        name: String,
    },
    /// The file ends before what its header promises.
    #[error(
        "{role} `{name}` is truncated: its header promises {need} bytes, it has {have}; copy or download it again"
    )]
    Truncated {
        /// What it is meant to be.
        role: Role,
        /// Its name.
        name: String,
        /// Bytes promised.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// No kernel.
    #[error("kernel `{name}` is {found}, not a bzImage or x86 ELF kernel: {remedy}")]
    NotAKernel {
        /// Its name.
        name: String,
        /// What it was recognised as.
        found: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A kernel this machine cannot enter.
    #[error("kernel `{name}` cannot be booted here: {why}")]
    Unsupported {
        /// Its name.
        name: String,
        /// What is in the way, and what would help.
        why: &'static str,
    },
    /// A header contradicts itself or the file.
    #[error("kernel `{name}` is damaged: {why}; copy or download it again")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The kernel does not fit into memory.
    #[error(
        "kernel `{name}` needs memory up to {} MiB, the machine's ends at {} MiB: give it more",
        end.div_ceil(MIB), room / MIB
    )]
    KernelTooLarge {
        /// Its name.
        name: String,
        /// First address after it.
        end: u64,
        /// First address after the RAM it may use.
        room: u64,
    },
    /// The initial RAM disk does not fit into this memory.
    #[error(
        "initrd `{name}` of {len} bytes does not fit: {room} bytes are left beside the kernel; give the machine more \
         memory, at least {least_mib}M"
    )]
    InitrdTooLarge {
        /// Its name.
        name: String,
        /// Its bytes.
        len: u64,
        /// Bytes there are.
        room: u64,
        /// Mebibytes of memory with which it fits.
        least_mib: u64,
    },
    /// The initial RAM disk does not fit where the kernel can take it, however large the memory is.
    #[error(
        "initrd `{name}` of {len} bytes does not fit: this kernel takes it below {} MiB only, which leaves at most \
         {room} bytes; make it smaller, or give a bzImage of Linux 3.8 or later for x86-64",
        limit / MIB
    )]
    InitrdBeyondKernel {
        /// Its name.
        name: String,
        /// Its bytes.
        len: u64,
        /// The most bytes there can be.
        room: u64,
        /// First address it must not reach.
        limit: u64,
    },
    /// The kernel takes fewer bytes.
    #[error("the command line has {len} bytes, the kernel takes {max}: shorten it")]
    CmdlineTooLong {
        /// Bytes given.
        len: u64,
        /// Bytes it takes.
        max: u64,
    },
    /// A NUL would end the command line early.
    #[error("the command line contains a NUL byte: remove it")]
    CmdlineNul,
    /// A part of a [`MemoryImage`](super::MemoryImage) that lies where it cannot.
    #[error("memory image `{name}` of {len} bytes cannot lie at {gpa:#x}: {why}")]
    Misplaced {
        /// Its name.
        name: String,
        /// Its guest-physical address.
        gpa: u64,
        /// Its bytes.
        len: u64,
        /// What is in the way, and what would help.
        why: &'static str,
    },
    /// The memory handed in does not match its map.
    #[error("there is no RAM at {gpa:#x}, where the boot protocol needs some")]
    NoRam {
        /// Guest-physical address.
        gpa: u64,
    },
}
