//! MSI-X: a function's interrupt messages, each with a mask and a pending bit (PCI Local Bus Specification 3.0, 6.8.2).
//!
//! An interrupt whose vector may not be sent (the vector or the function is masked, MSI-X is on but bus mastering is off) sets its
//! pending bit, and is sent as soon as it may. One that comes while MSI-X is off is nobody's: the device uses INTx then.

use std::sync::{Arc, Mutex};

use accel_api::MsiMessage;
use serde::{Deserialize, Serialize};
use state::{RestoreError, check};

use super::{ConfigSpace, PciError};
use crate::util::lock;
use crate::{MmioDevice, MsiSender};

/// Most vectors that a function can have.
pub const MAX_VECTORS: u16 = 2048;

/// Capability id.
const MSIX: u8 = 0x11;
/// Message control: MSI-X is on.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of a table entry.
const ENTRY: u64 = 16;

#[derive(Clone, Copy, Debug)]
struct Vector {
    message: MsiMessage,
    masked: bool,
    pending: bool,
}

impl Vector {
    const RESET: Self = Self { message: MsiMessage { address: 0, data: 0 }, masked: true, pending: false };
}

#[derive(Debug)]
struct State {
    vectors: Vec<Vector>,
    /// MSI-X is on.
    enabled: bool,
    /// Messages may go out.
    open: bool,
}

/// The vectors of a function: table and pending bits, in a BAR of their own.
#[derive(Debug)]
pub struct Msix {
    state: Mutex<State>,
    sender: Arc<dyn MsiSender>,
    /// Offset of the pending bits in the BAR; the table is at 0.
    pba: u64,
}

/// One vector as it is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedVector {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

impl Msix {
    pub(super) fn new(vectors: u16, sender: Arc<dyn MsiSender>) -> Result<Arc<Self>, PciError> {
        if !(1..=MAX_VECTORS).contains(&vectors) {
            return Err(PciError::Vectors(vectors));
        }
        let table = (u64::from(vectors) * ENTRY).next_power_of_two().max(0x800);
        let vectors = vec![Vector::RESET; vectors.into()];
        let state = Mutex::new(State { vectors, enabled: false, open: false });
        Ok(Arc::new(Self { state, sender, pba: table }))
    }

    /// Bytes of its BAR.
    pub(super) fn bar_len(&self) -> u64 {
        2 * self.pba
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        lock(&self.state).vectors.len() as u16
    }

    /// Adds the capability that says that table and pending bits are in `bar`.
    pub(super) fn add_capability(&self, config: &mut ConfigSpace, bar: u8) -> Result<u16, PciError> {
        let mut body = (self.vectors() - 1).to_le_bytes().to_vec();
        body.extend(u32::from(bar).to_le_bytes());
        body.extend((self.pba as u32 | u32::from(bar)).to_le_bytes());
        config.add_capability(MSIX, &body, &(ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    /// Takes over what the message control word and bus mastering say.
    pub(super) fn set_control(&self, control: u16, bus_master: bool) {
        let mut state = lock(&self.state);
        state.enabled = control & ENABLE != 0;
        state.open = state.enabled && control & FUNCTION_MASK == 0 && bus_master;
        self.send_pending(&mut state);
    }

    /// Is MSI-X on, so that INTx is not used?
    pub(super) fn enabled(control: u16) -> bool {
        control & ENABLE != 0
    }

    /// Raises the interrupt of `vector`; numbers beyond the last are ignored.
    pub fn notify(&self, vector: u16) {
        let mut state = lock(&self.state);
        let State { vectors, enabled, open } = &mut *state;
        let Some(vector) = vectors.get_mut(usize::from(vector)).filter(|_| *enabled) else { return };
        if *open && !vector.masked {
            self.sender.send(vector.message);
        } else {
            vector.pending = true;
        }
    }

    fn send_pending(&self, state: &mut State) {
        if state.open {
            for vector in state.vectors.iter_mut().filter(|vector| vector.pending && !vector.masked) {
                vector.pending = false;
                self.sender.send(vector.message);
            }
        }
    }

    /// The vectors after reset.
    pub(super) fn reset(&self) {
        let mut state = lock(&self.state);
        (state.enabled, state.open) = (false, false);
        state.vectors.fill(Vector::RESET);
    }

    pub(super) fn save(&self) -> Vec<SavedVector> {
        let state = lock(&self.state);
        let saved = |&Vector { message: MsiMessage { address, data }, masked, pending }: &Vector| {
            SavedVector { address, data, masked, pending }
        };
        state.vectors.iter().map(saved).collect()
    }

    /// Refuses what this table cannot hold.
    pub(super) fn check(&self, saved: &[SavedVector]) -> Result<(), RestoreError> {
        let vectors = usize::from(self.vectors());
        check(
            saved.len() == vectors,
            "msix",
            format_args!("{} vectors", saved.len()),
            format_args!("{vectors}"),
        )?;
        saved.iter().try_for_each(|vector| {
            check(vector.address & 3 == 0, "msix", format_args!("{:#x}", vector.address), "a multiple of 4")
        })
    }

    /// Takes over what [`check`](Self::check) has passed. Nothing is sent before [`set_control`](Self::set_control).
    pub(super) fn restore(&self, saved: &[SavedVector]) {
        let mut state = lock(&self.state);
        (state.enabled, state.open) = (false, false);
        for (vector, &SavedVector { address, data, masked, pending }) in state.vectors.iter_mut().zip(saved) {
            *vector = Vector { message: MsiMessage { address, data }, masked, pending };
        }
    }

    fn read_dword(&self, state: &State, offset: u64) -> u32 {
        if offset >= self.pba {
            let first = (offset - self.pba) as usize * 8;
            let pending = |n: usize| state.vectors.get(first + n).is_some_and(|vector| vector.pending);
            return (0..32).fold(0, |bits, n| bits | u32::from(pending(n)) << n);
        }
        let Some(vector) = state.vectors.get((offset / ENTRY) as usize) else { return 0 };
        match offset % ENTRY {
            0 => vector.message.address as u32,
            4 => (vector.message.address >> 32) as u32,
            8 => vector.message.data,
            _ => vector.masked.into(),
        }
    }

    fn write_dword(&self, state: &mut State, offset: u64, value: u32) {
        if offset >= self.pba {
            return;
        }
        let Some(vector) = state.vectors.get_mut((offset / ENTRY) as usize) else { return };
        let value64 = u64::from(value);
        match offset % ENTRY {
            0 => vector.message.address = vector.message.address & !0xffff_ffff | value64 & !3,
            4 => vector.message.address = vector.message.address & 0xffff_ffff | value64 << 32,
            8 => vector.message.data = value,
            _ => vector.masked = value & 1 != 0,
        }
    }
}

/// Accesses are of aligned dwords and qwords (6.8.2); others read all ones and write nothing.
impl MmioDevice for Msix {
    fn mmio_read(&self, offset: u64, size: u8) -> u64 {
        if !matches!(size, 4 | 8) || !offset.is_multiple_of(size.into()) {
            return u64::MAX;
        }
        let state = lock(&self.state);
        let high = if size == 8 { self.read_dword(&state, offset + 4) } else { 0 };
        u64::from(self.read_dword(&state, offset)) | u64::from(high) << 32
    }

    fn mmio_write(&self, offset: u64, size: u8, value: u64) {
        if !matches!(size, 4 | 8) || !offset.is_multiple_of(size.into()) {
            return;
        }
        let mut state = lock(&self.state);
        self.write_dword(&mut state, offset, value as u32);
        if size == 8 {
            self.write_dword(&mut state, offset + 4, (value >> 32) as u32);
        }
        self.send_pending(&mut state);
    }
}
