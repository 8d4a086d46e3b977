//! Ranges that a guest moves: where they want to be, and where they are.
//!
//! Each [`DecodeWindow`] has a range that it wants, or none. It is put on its bus if nothing is there: no memory, none of the
//! machine's fixed devices, no other window. Who comes second waits, and is put there as soon as the place is free. So no address
//! ever has two owners, whatever the registers say, and a guest that puts things in order gets what it asked for.

use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};

use crate::bus::{MmioBus, PioBus};
use crate::util::lock;
use crate::waiting::Waiter;
use crate::{MmioDevice, PioDevice};

/// The windows of one machine.
#[derive(Debug)]
pub struct DecodeSpace {
    mmio: Arc<MmioBus>,
    pio: Arc<PioBus>,
    /// Memory, and what else no window may cover though it is on no bus.
    taken: Vec<Range<u64>>,
    windows: Mutex<Vec<Window>>,
}

#[derive(Debug)]
struct Window {
    device: Arc<dyn MmioDevice>,
    ports: bool,
    wanted: Option<Place>,
    mapped: Option<Place>,
}

/// First address and bytes.
type Place = (u64, u64);

/// A range that moves. Its device sees offsets from its start, in memory and among the ports alike.
#[derive(Debug)]
pub struct DecodeWindow {
    // Weak: the space has the devices, and these have their functions, which have windows.
    space: Weak<DecodeSpace>,
    index: usize,
}

impl DecodeSpace {
    /// A space without windows over two buses. `taken` are guest-physical ranges that no window covers: the RAM, and what the
    /// processors themselves answer.
    pub fn new(mmio: Arc<MmioBus>, pio: Arc<PioBus>, taken: Vec<Range<u64>>) -> Arc<Self> {
        Arc::new(Self { mmio, pio, taken, windows: Mutex::default() })
    }

    /// A window onto `device`, which is nowhere yet: among the ports, or in memory.
    pub fn window(self: &Arc<Self>, device: Arc<dyn MmioDevice>, ports: bool) -> DecodeWindow {
        let mut windows = lock(&self.windows);
        windows.push(Window { device, ports, wanted: None, mapped: None });
        DecodeWindow { space: Arc::downgrade(self), index: windows.len() - 1 }
    }

    fn place(&self, index: usize, wanted: Option<Place>) {
        let mut windows = lock(&self.windows);
        let Some(window) = windows.get_mut(index) else { return };
        if window.wanted == wanted {
            return;
        }
        window.wanted = wanted;
        if let Some((start, _)) = window.mapped.take() {
            // It was added there, and nobody else removes it.
            let _ = if window.ports { self.pio.remove(start as u16) } else { self.mmio.remove(start) };
        }
        // The place that was left may be what another waits for.
        for window in windows.iter_mut().filter(|window| window.mapped.is_none()) {
            window.mapped = window.wanted.filter(|&place| self.map(window, place));
        }
    }

    fn map(&self, window: &Window, (start, len): Place) -> bool {
        let device = window.device.clone();
        if window.ports {
            let (Ok(base), Ok(len)) = (u16::try_from(start), u16::try_from(len)) else { return false };
            return self.pio.add(base, len, Arc::new(Ports { base, device })).is_ok();
        }
        let Some(end) = start.checked_add(len) else { return false };
        self.taken.iter().all(|taken| end <= taken.start || taken.end <= start)
            && self.mmio.add(start, len, device).is_ok()
    }
}

impl DecodeWindow {
    /// Wants to be at `place` (first address, bytes), or nowhere.
    pub fn place(&self, place: Option<(u64, u64)>) {
        if let Some(space) = self.space.upgrade() {
            space.place(self.index, place);
        }
    }

    /// Where it is.
    pub fn mapped(&self) -> Option<(u64, u64)> {
        lock(&self.space.upgrade()?.windows).get(self.index)?.mapped
    }
}

/// A device at ports, which sees offsets. A new one for each place: an access that is on its way when the window moves still
/// has the offset that it was made with.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) base: u16,
    pub(crate) device: Arc<dyn MmioDevice>,
}

impl PioDevice for Ports {
    fn pio_read(&self, port: u16, size: u8) -> u32 {
        self.device.mmio_read(port.wrapping_sub(self.base).into(), size) as u32
    }
    fn pio_write(&self, port: u16, size: u8, value: u32) {
        self.device.mmio_write(port.wrapping_sub(self.base).into(), size, value.into());
    }
    fn throttle(&self, waiter: &Arc<Waiter>) {
        self.device.throttle(waiter);
    }
}
