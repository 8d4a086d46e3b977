//! The bytes of a configuration space and what a guest may do to them.

use state::{RestoreError, check};

use super::{PciError, command, reg};

/// Bytes of a configuration space.
pub const CONFIG_LEN: usize = 256;

/// First byte that is the device's own (PCI Local Bus Specification 3.0, 6.1).
const DEVICE_REGISTERS: usize = 0x40;
/// Status bit: there is a list of capabilities.
const HAS_CAPABILITIES: u8 = 1 << 4;

/// Who a function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class code: base class, subclass, programming interface.
    pub class: u32,
    /// Vendor of the subsystem.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// A bit that, once set, makes others read-only until reset.
#[derive(Clone, Copy, Debug)]
struct LockBit {
    offset: u16,
    bit: u8,
    /// Cleared as the lock is set.
    clears: u8,
    /// What is locked: bits of the bytes from `offset` on.
    held: [u8; 2],
}

/// A configuration space.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_LEN],
    reset: [u8; CONFIG_LEN],
    writable: [u8; CONFIG_LEN],
    /// Bits that writing a one clears.
    clearable: [u8; CONFIG_LEN],
    lock: Option<LockBit>,
    /// Where the next capability goes, and the pointer to it.
    next_capability: usize,
    last_pointer: usize,
}

impl ConfigSpace {
    /// A type 0 header without BARs and capabilities. The guest can write the command bits that every function has, the cache
    /// line size and the interrupt line.
    pub fn new(identity: &Identity) -> Self {
        let Identity { vendor, device, revision, class, subsystem_vendor, subsystem } = *identity;
        let mut config = Self {
            bytes: [0; CONFIG_LEN],
            reset: [0; CONFIG_LEN],
            writable: [0; CONFIG_LEN],
            clearable: [0; CONFIG_LEN],
            lock: None,
            next_capability: DEVICE_REGISTERS,
            last_pointer: usize::from(reg::CAPABILITIES),
        };
        config.register(0x00, &vendor.to_le_bytes(), &[]);
        config.register(0x02, &device.to_le_bytes(), &[]);
        config.register(0x08, &(class << 8 | u32::from(revision)).to_le_bytes(), &[]);
        config.register(0x2c, &subsystem_vendor.to_le_bytes(), &[]);
        config.register(0x2e, &subsystem.to_le_bytes(), &[]);
        let writable = command::BUS_MASTER | command::INTX_DISABLE | 1 << 6 | 1 << 8;
        config.register(reg::COMMAND, &[0, 0], &writable.to_le_bytes());
        config.register(0x0c, &[0], &[0xff]);
        config.register(reg::INTERRUPT_LINE, &[0], &[0xff]);
        config
    }

    /// Sets what the bytes from `offset` on are after reset, and which of their bits the guest can write (none where `writable`
    /// is shorter).
    pub fn register(&mut self, offset: u16, reset: &[u8], writable: &[u8]) {
        let masks = writable.iter().copied().chain(std::iter::repeat(0));
        for ((at, &value), mask) in (usize::from(offset)..CONFIG_LEN).zip(reset).zip(masks) {
            (self.bytes[at], self.reset[at], self.writable[at]) = (value, value, mask);
        }
    }

    /// Lets the guest write more bits of the bytes from `offset` on.
    pub fn allow(&mut self, offset: u16, writable: &[u8]) {
        for (at, mask) in (usize::from(offset)..CONFIG_LEN).zip(writable) {
            self.writable[at] |= mask;
        }
    }

    /// Bits of the bytes from `offset` on that a write of one clears.
    pub(super) fn clear_by_one(&mut self, offset: u16, bits: &[u8]) {
        for (at, bits) in (usize::from(offset)..CONFIG_LEN).zip(bits) {
            self.clearable[at] |= bits;
        }
    }

    /// Makes `bit` of the byte at `offset` one that, as it is set, clears `clears` there and makes the bits `held` of two bytes
    /// read-only until reset.
    pub(crate) fn lock_bit(&mut self, offset: u16, bit: u8, clears: u8, held: [u8; 2]) {
        self.lock = Some(LockBit { offset, bit, clears, held });
    }

    /// Appends a capability: `body` is what follows its id and its pointer. Returns its offset.
    ///
    /// # Errors
    /// There is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u16, PciError> {
        let at = self.next_capability;
        self.add_capability_at(at, id, body, writable)?;
        Ok(at as u16)
    }

    /// The same at `at`, a multiple of 4.
    pub(super) fn add_capability_at(
        &mut self,
        at: usize,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<(), PciError> {
        let end = (at + 2 + body.len()).next_multiple_of(4);
        if end > CONFIG_LEN {
            return Err(PciError::Capabilities { id, len: 2 + body.len() });
        }
        self.register(at as u16, &[id, 0], &[]);
        self.register(at as u16 + 2, body, writable);
        self.register(self.last_pointer as u16, &[at as u8], &[]);
        let status = self.reset[usize::from(reg::STATUS)] | HAS_CAPABILITIES;
        self.register(reg::STATUS, &[status], &[]);
        self.last_pointer = at + 1;
        self.next_capability = self.next_capability.max(end);
        Ok(())
    }

    /// Reads `size` bytes, at most 4; what is beyond the end reads as ones.
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        let byte = |at: usize| self.bytes.get(at).copied().unwrap_or(0xff);
        let bytes =
            (0..usize::from(size.min(4))).map(|n| u32::from(byte(usize::from(offset) + n)) << (8 * n));
        bytes.fold(0, |value, byte| value | byte)
    }

    /// Writes the low `size` bytes of `value` as the guest does.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) {
        let held = self.lock.filter(|lock| self.bytes[usize::from(lock.offset)] & lock.bit != 0);
        for (n, new) in value.to_le_bytes().into_iter().enumerate().take(usize::from(size)) {
            let at = usize::from(offset) + n;
            let Some(byte) = self.bytes.get_mut(at) else { return };
            let mut writable = self.writable[at];
            if let Some(lock) = held
                && let Some(bits) = at.checked_sub(usize::from(lock.offset)).and_then(|n| lock.held.get(n))
            {
                writable &= !bits;
            }
            *byte = (*byte & !writable | new & writable) & !(new & self.clearable[at]);
        }
        if let (None, Some(lock)) = (held, self.lock) {
            let byte = &mut self.bytes[usize::from(lock.offset)];
            if *byte & lock.bit != 0 {
                *byte &= !lock.clears;
            }
        }
    }

    /// Two bytes.
    pub fn word(&self, offset: u16) -> u16 {
        self.read(offset, 2) as u16
    }

    /// Four bytes.
    pub fn dword(&self, offset: u16) -> u32 {
        self.read(offset, 4)
    }

    /// Eight bytes.
    pub fn qword(&self, offset: u16) -> u64 {
        u64::from(self.dword(offset)) | u64::from(self.dword(offset.saturating_add(4))) << 32
    }

    /// What it is after reset.
    pub(super) fn reset(&mut self) {
        self.bytes = self.reset;
    }

    /// The bytes as dwords.
    pub(super) fn save(&self) -> Vec<u32> {
        (0..CONFIG_LEN as u16).step_by(4).map(|at| self.dword(at)).collect()
    }

    /// The same space with other contents, of which the guest can have written all that differs.
    pub(super) fn with(&self, saved: &[u32]) -> Result<Self, RestoreError> {
        check(saved.len() == CONFIG_LEN / 4, "config", format_args!("{} dwords", saved.len()), "64 dwords")?;
        let mut config = self.clone();
        for (n, byte) in saved.iter().flat_map(|dword| dword.to_le_bytes()).enumerate() {
            let fixed = !(self.writable[n] | self.clearable[n]);
            let good = (byte ^ self.reset[n]) & fixed == 0;
            check(good, "config", format_args!("{byte:#x} at {n:#x}"), "what this function has there")?;
            config.bytes[n] = byte;
        }
        Ok(config)
    }
}
