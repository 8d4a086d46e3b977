//! The transport over PCI (virtio 1.2, 4.1): capabilities, common configuration, status, notifications, state.

use std::fmt::{self, Debug};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use accel_api::GuestRam;
use state::{RestoreError, Section, StateUnit};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::interrupt::NO_VECTOR;
use super::queue::Rings;
use super::{Activation, VirtQueue, VirtioDevice, VirtioInterrupt};
use crate::MmioDevice;
use crate::pci::{
    BarKind, ConfigSpace, DmaMemory, Function, Identity, PciError, PciFunction, PciSlot, command, reg,
};
use crate::saved::virtio::{Parts, SavedVirtio};
use crate::util::lock;

/// Vendor of virtio devices, and the first device number of those without the legacy interface (4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;

/// Capability of a vendor's own, and what it points to (4.1.4).
const VENDOR_SPECIFIC: u8 = 0x09;
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// What lies where in BAR 0, each a page of its own.
const COMMON: u64 = 0x0000;
const COMMON_LEN: u64 = 0x40;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const PAGE: u64 = 0x1000;
const BAR_LEN: u64 = 0x4000;
/// Bytes between the doorbells of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;
/// Most queues: their doorbells fill a page.
const MAX_QUEUES: usize = 1024;

/// BAR of the MSI-X table.
const MSIX_BAR: u8 = 1;

const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
/// Bits that a driver sets: ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, FAILED.
pub(crate) const STATUS_BITS: u8 = 0x0f | VIRTIO_CONFIG_S_FAILED as u8;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;
const TRANSPORT_FEATURES: u64 = VERSION_1 | EVENT_IDX | RING_RESET | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Why a device cannot be on the bus.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    /// Its function cannot be.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// The host has no descriptor for a doorbell.
    #[error("no descriptor for a virtio queue: {0}; raise the limit on open files (ulimit -n)")]
    Doorbell(#[from] io::Error),
    /// Numbers of queues and sizes that cannot be.
    #[error("a virtio device has 1 to {MAX_QUEUES} queues of a power of two up to 32768, not {0:?}")]
    Queues(Vec<u16>),
}

/// Registers of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueRegisters {
    pub(crate) size: u16,
    pub(crate) enabled: bool,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self { size: max_size, enabled: false, desc: 0, avail: 0, used: 0 }
    }

    fn rings(&self) -> Rings {
        let Self { size, enabled: _, desc, avail, used } = *self;
        Rings { size, desc, avail, used }
    }
}

/// The common configuration, but for vectors and generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Common {
    pub(crate) device_feature_select: u32,
    pub(crate) driver_feature_select: u32,
    pub(crate) driver_features: u64,
    pub(crate) status: u8,
    pub(crate) queue_select: u16,
    pub(crate) queues: Vec<QueueRegisters>,
}

impl Common {
    fn new(queues: &[Arc<VirtQueue>]) -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            queue_select: 0,
            queues: queues.iter().map(|queue| QueueRegisters::new(queue.max_size())).collect(),
        }
    }
}

/// A virtio device on the PCI bus.
pub struct VirtioPci {
    name: String,
    function: Arc<Function>,
    device: Arc<dyn VirtioDevice>,
    /// Bytes of its configuration.
    config_len: u64,
    common: Mutex<Common>,
    queues: Vec<Arc<VirtQueue>>,
    interrupt: Arc<VirtioInterrupt>,
    memory: DmaMemory,
    /// Offset of the capability that reaches BARs through the configuration space.
    window: u16,
    /// Restored, and not yet let go: queues are then looked at, and drivers told, once.
    restored: AtomicBool,
}

/// A capability of this transport, behind its id and pointer.
fn capability(kind: u8, offset: u64, len: u64, more: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + more.len() as u8, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(more);
    body
}

impl VirtioPci {
    /// The BAR with everything but the MSI-X table.
    pub const NOTIFY_BAR: u8 = 0;

    /// `device`, called `name` among the state units, for the place `slot`. It is to be added to the root, and to the units.
    ///
    /// # Errors
    /// Queues that cannot be, or a host without descriptors.
    pub fn new(
        name: impl Into<String>,
        device: Arc<dyn VirtioDevice>,
        slot: &PciSlot,
        ram: Arc<GuestRam>,
    ) -> Result<Arc<Self>, VirtioError> {
        let name = name.into();
        let sizes = device.queue_sizes();
        let can_be = |size: &u16| size.is_power_of_two() && *size <= 32768;
        if !(1..=MAX_QUEUES).contains(&sizes.len()) || !sizes.iter().all(can_be) {
            return Err(VirtioError::Queues(sizes));
        }
        let identity = Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + device.kind(),
            revision: 1,
            class: device.class(),
            subsystem_vendor: VENDOR,
            subsystem: FIRST_DEVICE + device.kind(),
        };
        let config_len = device.config().len() as u64;
        let mut window = 0;
        let add_capabilities = |config: &mut ConfigSpace| {
            let mut add = |body: &[u8]| config.add_capability(VENDOR_SPECIFIC, body, &[]);
            add(&capability(COMMON_CFG, COMMON, COMMON_LEN, &[]))?;
            add(&capability(ISR_CFG, ISR, 1, &[]))?;
            // A driver refuses one of no bytes.
            if config_len > 0 {
                add(&capability(DEVICE_CFG, DEVICE, config_len, &[]))?;
            }
            let doorbells = u64::from(NOTIFY_MULTIPLIER) * sizes.len() as u64;
            add(&capability(NOTIFY_CFG, NOTIFY, doorbells, &NOTIFY_MULTIPLIER.to_le_bytes()))?;
            let body = capability(PCI_CFG, 0, 0, &[0; 4]);
            // The driver writes BAR, offset, length and data.
            let mut writable = vec![0xff; body.len()];
            (writable[0], writable[1], writable[3], writable[4], writable[5]) = (0, 0, 0, 0, 0);
            window = config.add_capability(VENDOR_SPECIFIC, &body, &writable)?;
            Ok(())
        };
        // One for each queue and one for the configuration.
        let vectors = sizes.len() as u16 + 1;
        let function = Function::builder(name.clone(), &identity)
            .config(add_capabilities)?
            .bar(Self::NOTIFY_BAR, BarKind::Memory32, BAR_LEN)
            .msix(MSIX_BAR, vectors)
            .intx()
            .build(slot)?;
        let queue = |(index, &size): (u16, &u16)| {
            VirtQueue::new(index, size, NOTIFY + u64::from(NOTIFY_MULTIPLIER) * u64::from(index))
                .map(Arc::new)
        };
        let queues = (0..).zip(&sizes).map(queue).collect::<io::Result<Vec<_>>>()?;
        let this = Arc::new(Self {
            name,
            interrupt: VirtioInterrupt::new(function.clone(), queues.len()),
            memory: function.dma(ram),
            function,
            device,
            config_len,
            common: Mutex::new(Common::new(&queues)),
            queues,
            window,
            restored: AtomicBool::new(false),
        });
        this.function.connect(Self::NOTIFY_BAR, this.clone());
        Ok(this)
    }

    /// Its queues, whose doorbells a kernel may ring.
    pub fn queues(&self) -> &[Arc<VirtQueue>] {
        &self.queues
    }

    /// What it tells its driver by.
    pub fn interrupt(&self) -> &Arc<VirtioInterrupt> {
        &self.interrupt
    }

    /// Calls `f` while everything of the transport that can be locked is.
    #[cfg(test)]
    pub(super) fn with_all_locked(&self, f: impl FnOnce()) {
        let _common = lock(&self.common);
        self.queues.iter().for_each(|queue| assert!(queue.is_live() || queue.index() > 0));
        super::queue::with_locked(&self.queues, f);
    }

    fn features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    /// Resets the device (2.4.1): queues, features, vectors, interrupt. With the registers locked.
    fn reset_device(&self, common: &mut Common) {
        self.device.reset();
        self.queues.iter().for_each(|queue| queue.stop());
        *common = Common::new(&self.queues);
        self.interrupt.reset();
    }

    fn ring_all(&self) {
        self.queues.iter().for_each(|queue| queue.doorbell().ring());
    }

    fn start_queue(&self, common: &Common, queue: &VirtQueue, next: (u16, u16)) {
        if let Some(registers) = common.queues.get(usize::from(queue.index())).filter(|q| q.enabled)
            && !queue.start(&registers.rings(), common.driver_features & EVENT_IDX != 0, next)
        {
            self.interrupt.needs_reset();
        }
    }

    fn activate(&self, common: &Common) {
        self.device.activate(Activation {
            queues: self.queues.clone(),
            memory: self.memory.clone(),
            interrupt: self.interrupt.clone(),
            features: common.driver_features,
        });
    }

    fn write_status(&self, common: &mut Common, value: u8) {
        if value == 0 {
            return self.reset_device(common);
        }
        let mut set = value & STATUS_BITS & !common.status;
        let features = common.driver_features;
        if features & !self.features() != 0 || features & VERSION_1 == 0 {
            set &= !FEATURES_OK;
        }
        if (common.status | set) & FEATURES_OK == 0 {
            set &= !DRIVER_OK;
        }
        common.status |= set;
        if set & DRIVER_OK != 0 {
            self.queues.iter().for_each(|queue| self.start_queue(common, queue, (0, 0)));
            self.activate(common);
            // Buffers may lie there already.
            self.ring_all();
        }
    }

    fn is_running(common: &Common) -> bool {
        common.status & DRIVER_OK != 0
    }

    /// The common configuration (4.1.4.3) as bytes.
    fn common_bytes(&self) -> [u8; COMMON_LEN as usize] {
        let common = lock(&self.common);
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let selected = common.queue_select;
        let queue = common.queues.get(usize::from(selected));
        let broken = if self.interrupt.is_broken() { NEEDS_RESET } else { 0 };
        let mut bytes = [0; COMMON_LEN as usize];
        let mut put = |at: usize, value: &[u8]| {
            bytes.iter_mut().skip(at).zip(value).for_each(|(byte, value)| *byte = *value);
        };
        put(0x00, &common.device_feature_select.to_le_bytes());
        put(0x04, &half(self.features(), common.device_feature_select).to_le_bytes());
        put(0x08, &common.driver_feature_select.to_le_bytes());
        put(0x0c, &half(common.driver_features, common.driver_feature_select).to_le_bytes());
        put(0x10, &self.interrupt.vector(None).to_le_bytes());
        put(0x12, &(self.queues.len() as u16).to_le_bytes());
        put(0x14, &[common.status | broken, self.interrupt.generation()]);
        put(0x16, &selected.to_le_bytes());
        // A queue that is not there has size 0, no vector, and the first doorbell.
        put(0x1a, &NO_VECTOR.to_le_bytes());
        if let Some(queue) = queue {
            put(0x18, &queue.size.to_le_bytes());
            put(0x1a, &self.interrupt.vector(Some(selected)).to_le_bytes());
            put(0x1c, &u16::from(queue.enabled).to_le_bytes());
            put(0x1e, &selected.to_le_bytes());
            put(0x20, &queue.desc.to_le_bytes());
            put(0x28, &queue.avail.to_le_bytes());
            put(0x30, &queue.used.to_le_bytes());
        }
        bytes
    }

    /// One field is written; accesses of other widths are none (4.1.3.1), but for the halves of 64 bits and both at once.
    fn write_common(&self, offset: u64, size: u8, value: u64) {
        let common = &mut *lock(&self.common);
        let (word, dword) = (value as u16, value as u32);
        let selected = common.queue_select;
        match (offset, size) {
            (0x00, 4) => common.device_feature_select = dword,
            (0x08, 4) => common.driver_feature_select = dword,
            (0x0c, 4) if common.status & FEATURES_OK == 0 => {
                let features = common.driver_features;
                common.driver_features = match common.driver_feature_select {
                    0 => features & !0xffff_ffff | u64::from(dword),
                    1 => features & 0xffff_ffff | u64::from(dword) << 32,
                    _ => features,
                };
            }
            (0x10, 2) => self.interrupt.set_vector(None, word),
            (0x14, 1) => self.write_status(common, value as u8),
            (0x16, 2) => common.queue_select = word,
            (0x1a, 2) => self.interrupt.set_vector(Some(selected), word),
            (0x18 | 0x1c | 0x3a, 2) | (0x20..0x38, 4 | 8) => self.write_queue(common, offset, size, value),
            _ => {}
        }
    }

    fn write_queue(&self, common: &mut Common, offset: u64, size: u8, value: u64) {
        let index = usize::from(common.queue_select);
        let (Some(registers), Some(queue)) = (common.queues.get_mut(index), self.queues.get(index)) else {
            return;
        };
        let halves = |register: &mut u64| match (offset & 7, size) {
            (0, 8) => *register = value,
            (0, _) => *register = *register & !0xffff_ffff | value & 0xffff_ffff,
            (4, 4) => *register = *register & 0xffff_ffff | value << 32,
            _ => {}
        };
        match offset {
            0x3a if value & 1 != 0 && common.driver_features & RING_RESET != 0 => {
                // Serving it ends here, so that the register reads as done at once (2.6.1).
                queue.stop();
                *registers = QueueRegisters::new(queue.max_size());
            }
            // What an enabled queue is, it stays.
            _ if registers.enabled => {}
            0x18 => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.max_size() {
                    registers.size = size;
                }
            }
            0x1c if value == 1 => {
                registers.enabled = true;
                if Self::is_running(common) {
                    self.start_queue(common, queue, (0, 0));
                    queue.doorbell().ring();
                }
            }
            0x20..0x28 => halves(&mut registers.desc),
            0x28..0x30 => halves(&mut registers.avail),
            0x30..0x38 => halves(&mut registers.used),
            _ => {}
        }
    }

    /// The part of an access that the device's configuration has.
    fn device_range(&self, offset: u64, size: u8) -> Option<u32> {
        let end = offset.checked_add(size.into())?;
        (end <= self.config_len).then_some(offset as u32)
    }

    /// The access that the window in the configuration space (4.1.4.9) asks for: BAR, offset, bytes.
    fn window_access(&self) -> Option<(u8, u64, u8)> {
        let read = |at, size| self.function.config_read(self.window + at, size);
        let (bar, offset, len) = (read(4, 1) as u8, u64::from(read(8, 4)), read(12, 4));
        let end = self.function.bars().iter().find(|known| known.index == bar)?.len;
        let fits =
            matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len.into()) && offset + u64::from(len) <= end;
        fits.then_some((bar, offset, len as u8))
    }

    /// Whether an access to the configuration space touches the window's data.
    fn is_window_data(&self, offset: u16, size: u8) -> bool {
        let data = self.window + 16;
        offset < data + 4 && data < offset.saturating_add(size.into())
    }
}

impl PciFunction for VirtioPci {
    fn function(&self) -> &Function {
        &self.function
    }

    fn config_read(&self, offset: u16, size: u8) -> u32 {
        if self.is_window_data(offset, size)
            && let Some((bar, at, len)) = self.window_access()
        {
            let value = match (bar, self.function.msix()) {
                (Self::NOTIFY_BAR, _) => self.mmio_read(at, len),
                (_, Some(msix)) => msix.mmio_read(at, len),
                _ => u64::MAX,
            };
            self.function.config_write(self.window + 16, len, value as u32);
        }
        self.function.config_read(offset, size)
    }

    fn config_write(&self, offset: u16, size: u8, value: u32) {
        self.function.config_write(offset, size, value);
        if self.is_window_data(offset, size)
            && let Some((bar, at, len)) = self.window_access()
        {
            let data = u64::from(self.function.config_read(self.window + 16, len));
            match (bar, self.function.msix()) {
                (Self::NOTIFY_BAR, _) => self.mmio_write(at, len, data),
                (_, Some(msix)) => msix.mmio_write(at, len, data),
                _ => {}
            }
        }
        let is_command = offset < reg::COMMAND + 2 && reg::COMMAND < offset.saturating_add(size.into());
        if is_command && self.function.config_read(reg::COMMAND, 2) as u16 & command::BUS_MASTER != 0 {
            // It may look at its queues now.
            self.ring_all();
        }
    }
}

/// BAR 0.
impl MmioDevice for VirtioPci {
    fn mmio_read(&self, offset: u64, size: u8) -> u64 {
        match offset / PAGE * PAGE {
            COMMON => {
                let bytes = self.common_bytes();
                let from = offset.min(COMMON_LEN) as usize;
                let bytes = bytes.iter().skip(from).take(size.into()).rev();
                bytes.fold(0, |value, &byte| value << 8 | u64::from(byte))
            }
            ISR if offset == ISR => self.interrupt.read_isr().into(),
            DEVICE => {
                let Some(at) = self.device_range(offset - DEVICE, size) else { return u64::MAX };
                // Before the bytes are read: a change in between must be seen by the next look at the generation.
                self.interrupt.config_was_read();
                let mut data = [0; 8];
                let config = self.device.config();
                let bytes = config.iter().skip(at as usize).take(size.into());
                data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                u64::from_le_bytes(data)
            }
            _ => 0,
        }
    }

    fn mmio_write(&self, offset: u64, size: u8, value: u64) {
        match offset / PAGE * PAGE {
            // No lock, and no look at what is written: the register's place says which queue it is.
            NOTIFY => {
                let index = (offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER);
                if let Some(queue) = self.queues.get(index as usize) {
                    queue.doorbell().ring();
                }
            }
            COMMON => self.write_common(offset, size, value),
            DEVICE => {
                if let Some(at) = self.device_range(offset - DEVICE, size)
                    && let Some(data) = value.to_le_bytes().get(..size.into())
                {
                    self.device.config_write(at, data);
                }
            }
            _ => {}
        }
    }
}

impl StateUnit for VirtioPci {
    fn name(&self) -> &str {
        &self.name
    }

    fn save(&self) -> Section {
        let common = lock(&self.common);
        let next = self.queues.iter().map(|queue| queue.next()).collect();
        let vectors = (0..self.queues.len() as u16).map(|n| self.interrupt.vector(Some(n))).collect();
        let (isr, needs_reset) = self.interrupt.saved();
        let parts = Parts {
            next,
            vectors,
            config_vector: self.interrupt.vector(None),
            isr,
            needs_reset,
            generation: self.interrupt.generation(),
            function: self.function.saved(),
        };
        Section::of(&SavedVirtio::new(&common, parts))
    }

    /// The device goes on with [`release`](StateUnit::release): it then looks at every queue, and tells the driver once for each,
    /// since neither what rang nor what was about to be told is saved.
    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let saved: SavedVirtio = section.open()?;
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size()).collect();
        let vectors = self.function.msix().map_or(0, |msix| msix.vectors());
        let (restored, parts) = saved.check(&sizes, vectors, self.features())?;
        let mut common = lock(&self.common);
        self.device.reset();
        if let Err(refused) = self.function.take(&parts.function) {
            // As it was before: the queues are live still.
            if Self::is_running(&common) {
                self.activate(&common);
                self.ring_all();
            }
            return Err(refused);
        }
        self.queues.iter().for_each(|queue| queue.stop());
        *common = restored;
        self.interrupt.set_vector(None, parts.config_vector);
        (0..).zip(&parts.vectors).for_each(|(n, &vector)| self.interrupt.set_vector(Some(n), vector));
        self.interrupt.restore(parts.isr, parts.needs_reset);
        self.interrupt.set_generation(parts.generation);
        if Self::is_running(&common) {
            for (queue, &next) in self.queues.iter().zip(&parts.next) {
                self.start_queue(&common, queue, next);
            }
            self.activate(&common);
            self.restored.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn reset(&self) {
        self.restored.store(false, Ordering::Release);
        {
            let mut common = lock(&self.common);
            self.reset_device(&mut common);
            self.interrupt.set_generation(0);
        }
        self.function.reset();
    }

    fn quiesce(&self) {
        self.device.service().pause();
    }

    fn release(&self) {
        self.device.service().resume();
        if self.restored.swap(false, Ordering::AcqRel) {
            self.ring_all();
            for queue in self.queues.iter().filter(|queue| queue.is_live()) {
                self.interrupt.queue(queue.index());
            }
        }
    }
}

impl Debug for VirtioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPci")
            .field("name", &self.name)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}
