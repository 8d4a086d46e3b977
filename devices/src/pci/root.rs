//! Bus 0: which function answers a configuration access, and the two ways by which one comes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use state::{RestoreError, Section, StateUnit, check};

use super::{DecodeSpace, DeviceFunction, PciError, PciFunction, Pirqs, reg};
use crate::saved::pci::SavedPciRoot;
use crate::util::lock;
use crate::{MmioDevice, MsiSender, PioDevice};

/// The address register of mechanism 1, for accesses of four bytes only.
pub const CONFIG_ADDRESS_PORT: u16 = 0xcf8;
/// First of the four data ports of mechanism 1.
pub const CONFIG_DATA_PORT: u16 = 0xcfc;

/// Address register: configuration accesses are on.
const ENABLE: u32 = 1 << 31;
/// Bits of the address register that are kept: enable, bus, device, function, dword.
const ADDRESS_BITS: u32 = ENABLE | 0x00ff_fffc;
/// Header type: the device has several functions.
const MULTI_FUNCTION: u32 = 0x80;

/// What a function on the bus is wired to.
#[derive(Clone, Debug)]
pub struct PciSlot {
    pub(super) at: DeviceFunction,
    pub(super) decode: Arc<DecodeSpace>,
    pub(super) pirqs: Arc<Pirqs>,
    pub(super) msi: Arc<dyn MsiSender>,
}

impl PciSlot {
    /// The place `at`, wired to the machine's.
    pub fn new(
        at: DeviceFunction,
        decode: Arc<DecodeSpace>,
        pirqs: Arc<Pirqs>,
        msi: Arc<dyn MsiSender>,
    ) -> Self {
        Self { at, decode, pirqs, msi }
    }

    /// Which place it is.
    pub fn at(&self) -> DeviceFunction {
        self.at
    }
}

/// The root bus. Its ports are [`CONFIG_ADDRESS_PORT`] and the four from [`CONFIG_DATA_PORT`] on.
#[derive(Debug, Default)]
pub struct PciRoot {
    functions: Mutex<BTreeMap<DeviceFunction, Arc<dyn PciFunction>>>,
    address: Mutex<u32>,
}

impl PciRoot {
    /// A bus without functions.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds `function` at `at`.
    ///
    /// # Errors
    /// There is one.
    pub fn add(&self, at: DeviceFunction, function: Arc<dyn PciFunction>) -> Result<(), PciError> {
        let mut functions = lock(&self.functions);
        if functions.contains_key(&at) {
            return Err(PciError::Taken(at));
        }
        functions.insert(at, function);
        Ok(())
    }

    /// All functions, by place.
    pub fn functions(&self) -> Vec<(DeviceFunction, Arc<dyn PciFunction>)> {
        lock(&self.functions).iter().map(|(at, function)| (*at, function.clone())).collect()
    }

    /// Function 0 of the first device number that nobody has.
    ///
    /// # Errors
    /// All are used.
    pub fn free_place(&self) -> Result<DeviceFunction, PciError> {
        let functions = lock(&self.functions);
        (0..32)
            .find(|&device| functions.keys().all(|at| at.device() != device))
            .map(|device| DeviceFunction::new(device, 0))
            .ok_or(PciError::Full)
    }

    /// The function at `at`, and whether its device has others.
    fn find(&self, bus: u8, at: DeviceFunction) -> Option<(Arc<dyn PciFunction>, bool)> {
        // The lock is not held while the function is called.
        let functions = lock(&self.functions);
        let function = functions.get(&at).filter(|_| bus == 0)?;
        let others = functions.keys().any(|other| other.device() == at.device() && *other != at);
        Some((function.clone(), others))
    }

    /// Reads `size` (1, 2 or 4) bytes, which lie within an aligned dword, of a configuration space.
    pub fn config_read(&self, bus: u8, at: DeviceFunction, offset: u16, size: u8) -> u32 {
        let Some((function, others)) = self.find(bus, at) else { return u32::MAX };
        let value = function.config_read(offset, size);
        match reg::HEADER_TYPE.wrapping_sub(offset) {
            at @ 0..4 if others && at < size.into() => value | MULTI_FUNCTION << (8 * at),
            _ => value,
        }
    }

    /// Writes likewise.
    pub fn config_write(&self, bus: u8, at: DeviceFunction, offset: u16, size: u8, value: u32) {
        if let Some((function, _)) = self.find(bus, at) {
            function.config_write(offset, size, value);
        }
    }

    /// What the address register says of an access to `port`: bus, place, offset.
    fn selected(&self, port: u16, size: u8) -> Option<(u8, DeviceFunction, u16)> {
        let address = *lock(&self.address);
        let byte = port.wrapping_sub(CONFIG_DATA_PORT);
        // Accesses of the bus stay within the four ports.
        (address & ENABLE != 0 && byte < 4 && u16::from(size) <= 4 - byte).then(|| {
            let at = DeviceFunction::from_bits((address >> 8) as u8);
            ((address >> 16) as u8, at, (address & 0xfc) as u16 + byte)
        })
    }
}

impl PioDevice for PciRoot {
    fn pio_read(&self, port: u16, size: u8) -> u32 {
        if (port, size) == (CONFIG_ADDRESS_PORT, 4) {
            return *lock(&self.address);
        }
        let Some((bus, at, offset)) = self.selected(port, size) else { return u32::MAX };
        self.config_read(bus, at, offset, size)
    }

    fn pio_write(&self, port: u16, size: u8, value: u32) {
        if (port, size) == (CONFIG_ADDRESS_PORT, 4) {
            *lock(&self.address) = value & ADDRESS_BITS;
        } else if let Some((bus, at, offset)) = self.selected(port, size) {
            self.config_write(bus, at, offset, size, value);
        }
    }
}

impl StateUnit for PciRoot {
    fn name(&self) -> &str {
        "pci_root"
    }

    fn save(&self) -> Section {
        Section::of(&SavedPciRoot { address: *lock(&self.address) })
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let SavedPciRoot { address } = section.open()?;
        let good = address & !ADDRESS_BITS == 0;
        check(good, "address", format_args!("{address:#x}"), format_args!("within {ADDRESS_BITS:#x}"))?;
        *lock(&self.address) = address;
        Ok(())
    }

    fn reset(&self) {
        *lock(&self.address) = 0;
    }
}

/// The ECAM window: 4 KiB a function, 1 MiB a bus.
#[derive(Debug)]
pub struct Ecam(Arc<PciRoot>);

impl Ecam {
    /// The window onto `root`.
    pub fn new(root: Arc<PciRoot>) -> Arc<Self> {
        Arc::new(Self(root))
    }

    /// Bus, place and register of a byte of the window.
    fn split(offset: u64) -> (u8, DeviceFunction, u16) {
        ((offset >> 20) as u8, DeviceFunction::from_bits((offset >> 12) as u8), offset as u16 & 0xfff)
    }
}

/// An access that crosses a dword, as those of eight bytes do, is one of each of its bytes' dwords.
impl MmioDevice for Ecam {
    fn mmio_read(&self, offset: u64, size: u8) -> u64 {
        pieces(offset, size).fold(0, |value, (at, len)| {
            let (bus, place, register) = Self::split(at);
            let read =
                self.0.config_read(bus, place, register, len) & (u32::MAX >> (32 - 8 * u32::from(len)));
            value | u64::from(read) << (8 * (at - offset))
        })
    }

    fn mmio_write(&self, offset: u64, size: u8, value: u64) {
        for (at, len) in pieces(offset, size) {
            let (bus, place, register) = Self::split(at);
            self.0.config_write(bus, place, register, len, (value >> (8 * (at - offset))) as u32);
        }
    }
}

/// The accesses within aligned dwords, each of 1, 2 or 4 bytes, that one at `offset` falls into.
fn pieces(offset: u64, size: u8) -> impl Iterator<Item = (u64, u8)> {
    let end = offset + u64::from(size.min(8));
    let mut at = offset;
    std::iter::from_fn(move || {
        let left = (end - at).min(4 - at % 4);
        let len = match left {
            0 => return None,
            1 => 1,
            2 | 3 if at.is_multiple_of(2) => 2,
            4 => 4,
            _ => 1,
        };
        at += len;
        Some((at - len, len as u8))
    })
}
