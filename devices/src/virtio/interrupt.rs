//! What a device tells its driver: used buffers, a changed configuration, that it needs a reset.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use crate::pci::Function;
use crate::util::lock;

/// No vector (virtio 1.2, 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// ISR: a queue has used buffers.
const QUEUE: u8 = 1 << 0;
/// ISR: the configuration has changed.
const CONFIG: u8 = 1 << 1;

/// Interrupts of one device: MSI-X where the driver uses it, else INTx with the ISR register (4.1.4.5).
#[derive(Debug)]
pub struct VirtioInterrupt {
    function: Arc<Function>,
    isr: Mutex<u8>,
    config_vector: AtomicU16,
    vectors: Vec<AtomicU16>,
    needs_reset: AtomicBool,
    generation: Mutex<Generation>,
}

/// config_generation.
#[derive(Debug, Default)]
struct Generation {
    count: u8,
    /// Read since the last change, so that the next one must be seen.
    read: bool,
}

impl VirtioInterrupt {
    pub(super) fn new(function: Arc<Function>, queues: usize) -> Arc<Self> {
        Arc::new(Self {
            function,
            isr: Mutex::default(),
            config_vector: AtomicU16::new(NO_VECTOR),
            vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            needs_reset: AtomicBool::new(false),
            generation: Mutex::default(),
        })
    }

    /// Queue `index` has used buffers that the driver wants to know of.
    pub fn queue(&self, index: u16) {
        let vector = self.vectors.get(usize::from(index)).map_or(NO_VECTOR, |v| v.load(Ordering::Acquire));
        // With no vector there is no interrupt, and NO_VECTOR is beyond every table.
        if !self.function.notify(vector) {
            self.raise(QUEUE);
        }
    }

    /// The device's configuration has changed: what is read from now on is the new one.
    pub fn config_changed(&self) {
        {
            let mut generation = lock(&self.generation);
            generation.count = generation.count.wrapping_add(generation.read.into());
            generation.read = false;
        }
        self.config();
    }

    /// The device cannot go on (2.1.1).
    pub fn needs_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::AcqRel) {
            self.config();
        }
    }

    fn config(&self) {
        self.function.notify(self.config_vector.load(Ordering::Acquire));
        // Set whether or not there is MSI-X; the line follows only without.
        self.raise(CONFIG);
    }

    fn raise(&self, bit: u8) {
        let mut isr = lock(&self.isr);
        *isr |= bit;
        self.function.set_intx(*isr != 0);
    }

    /// The ISR register: a read clears it and lets INTx go.
    pub(super) fn read_isr(&self) -> u8 {
        let mut isr = lock(&self.isr);
        self.function.set_intx(false);
        std::mem::take(&mut *isr)
    }

    /// config_generation, as it is read.
    pub(super) fn generation(&self) -> u8 {
        lock(&self.generation).count
    }

    /// A part of the configuration was read.
    pub(super) fn config_was_read(&self) {
        lock(&self.generation).read = true;
    }

    pub(super) fn is_broken(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The vector of a queue, or of the configuration.
    pub(super) fn vector(&self, queue: Option<u16>) -> u16 {
        self.slot(queue).map_or(NO_VECTOR, |slot| slot.load(Ordering::Acquire))
    }

    /// Sets it; what is beyond the table is no vector.
    pub(super) fn set_vector(&self, queue: Option<u16>, vector: u16) {
        let vectors = self.function.msix().map_or(0, |msix| msix.vectors());
        if let Some(slot) = self.slot(queue) {
            slot.store(if vector < vectors { vector } else { NO_VECTOR }, Ordering::Release);
        }
    }

    fn slot(&self, queue: Option<u16>) -> Option<&AtomicU16> {
        match queue {
            None => Some(&self.config_vector),
            Some(index) => self.vectors.get(usize::from(index)),
        }
    }

    /// A reset of the device: vectors, ISR, line.
    pub(super) fn reset(&self) {
        self.restore(0, false);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        self.vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::Release));
    }

    /// ISR and DEVICE_NEEDS_RESET, to be saved.
    pub(super) fn saved(&self) -> (u8, bool) {
        (*lock(&self.isr), self.is_broken())
    }

    pub(super) fn restore(&self, isr: u8, needs_reset: bool) {
        let mut now = lock(&self.isr);
        *now = isr;
        self.needs_reset.store(needs_reset, Ordering::Release);
        self.function.set_intx(isr != 0);
    }

    pub(super) fn set_generation(&self, count: u8) {
        // The driver may have read some of it.
        *lock(&self.generation) = Generation { count, read: true };
    }
}

/// Bits of the ISR register.
pub(crate) const ISR_BITS: u8 = QUEUE | CONFIG;
