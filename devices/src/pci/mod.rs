//! PCI: configuration spaces, BARs, interrupts, and the two bridges that a Q35-shaped root bus has.
//!
//! 1. [`PciRoot`] is bus 0. Configuration accesses reach it by mechanism 1 (ports 0xcf8 and 0xcfc, PCI Local Bus Specification
//!    3.0, 3.2.2.3.2) and by the ECAM window (PCI Express Base Specification 3.0, 7.2.2). What does not exist reads all ones.
//! 2. A [`Function`] is the front of one function: a type 0 header with capabilities ([`ConfigSpace`]), BARs, INTx and MSI-X.
//!    A device owns one and hangs its registers behind the BARs; it may add to it by [`PciFunction`].
//! 3. Whatever the guest can move lies in the [`DecodeSpace`]: BARs, the ECAM window, the ACPI registers. It is on a bus only
//!    where nothing else is; otherwise it waits until the place is free.
//! 4. The [`host_bridge`] and the [`lpc`] bridge answer at their registers as their datasheets say. Those that nothing stands
//!    behind here hold what they are given.
//!
//! # Locks
//!
//! A function's lock comes first. With it held, it may move windows (the lock of the decode space, then a bus's), drive its line
//! (the line's lock, [`Pirqs`], the controllers) and change its vectors ([`Msix`], then [`MsiSender`](crate::traits::MsiSender)). A device that calls its
//! function may hold its own lock, so nothing here calls a device with a lock held.
//!
//! DEVNOTE: there is one bus. Functions on it are integrated into the root complex and need no PCI Express capability; it comes
//! with root ports. Configuration spaces have 256 bytes; offsets beyond read all ones, as those of conventional functions.

mod config;
mod decode;
mod function;
pub mod host_bridge;
pub mod lpc;
mod msix;
mod pirq;
mod root;

#[cfg(test)]
mod interrupt_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use config::{CONFIG_LEN, ConfigSpace, Identity};
#[cfg(test)]
pub(crate) use decode::Ports;
pub use decode::{DecodeSpace, DecodeWindow};
pub use function::{BarInfo, BarKind, DmaMemory, Function, FunctionBuilder};

pub(crate) use msix::SavedVector;
pub use msix::{MAX_VECTORS, Msix};
pub use pirq::{PIRQS, Pirqs};
pub use root::{CONFIG_ADDRESS_PORT, CONFIG_DATA_PORT, Ecam, PciRoot, PciSlot};

use std::fmt::Debug;

/// Registers of a type 0 header (PCI Local Bus Specification 3.0, 6.1), as far as they are named here.
pub mod reg {
    /// Command.
    pub const COMMAND: u16 = 0x04;
    /// Status.
    pub const STATUS: u16 = 0x06;
    /// Header type.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// First base address register.
    pub const BAR0: u16 = 0x10;
    /// Offset of the first capability.
    pub const CAPABILITIES: u16 = 0x34;
    /// Interrupt line: a note of the firmware for the system.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin, 1 to 4 for INTA to INTD; 0: none.
    pub const INTERRUPT_PIN: u16 = 0x3d;
}

/// Bits of the command register (6.2.2).
pub mod command {
    /// Answers at its I/O BARs.
    pub const IO: u16 = 1 << 0;
    /// Answers at its memory BARs.
    pub const MEMORY: u16 = 1 << 1;
    /// May access memory and send messages.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// Leaves its INTx alone.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// A function's place on bus 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceFunction(u8);

impl DeviceFunction {
    /// `device` is 0 to 31, `function` 0 to 7; higher bits are dropped.
    pub const fn new(device: u8, function: u8) -> Self {
        Self(device << 3 | function & 7)
    }

    /// From bits 7:0 of a requester id.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Device number.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// Function number.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

impl std::fmt::Display for DeviceFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "00:{:02x}.{}", self.device(), self.function())
    }
}

impl Debug for DeviceFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a function cannot be what it is described as, or where.
#[non_exhaustive]
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// Another function is there.
    #[error("another PCI function is at {0}; put this one elsewhere")]
    Taken(DeviceFunction),
    /// All device numbers are used.
    #[error("the PCI bus has no free place: 32 devices are there already")]
    Full,
    /// A BAR that cannot be.
    #[error("BAR {index} of {len:#x} bytes cannot be: {why}")]
    Bar {
        /// Number of the BAR.
        index: u8,
        /// Bytes asked for.
        len: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// More capabilities than a configuration space holds.
    #[error("no room for capability {id:#x} of {len} bytes: configuration space has 256 bytes")]
    Capabilities {
        /// Its id.
        id: u8,
        /// Bytes.
        len: usize,
    },
    /// A number of MSI-X vectors that cannot be.
    #[error("{0} MSI-X vectors asked for: a function has 1 to 2048")]
    Vectors(u16),
}

/// A function of the bus, as the root calls it.
pub trait PciFunction: Send + Sync + Debug {
    /// Its front.
    fn function(&self) -> &Function;

    /// Reads `size` (1, 2 or 4) bytes of the configuration space; the access lies within an aligned dword.
    fn config_read(&self, offset: u16, size: u8) -> u32 {
        self.function().config_read(offset, size)
    }

    /// Writes the low `size` bytes of `value` likewise.
    fn config_write(&self, offset: u16, size: u8, value: u32) {
        self.function().config_write(offset, size, value);
    }
}
