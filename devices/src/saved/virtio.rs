//! Saved type of a virtio device on the PCI bus.

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, check};

use super::pci::SavedFunction;
use crate::virtio::{Common, ISR_BITS, QueueRegisters, STATUS_BITS};

/// One queue.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedQueue {
    size: u16,
    enabled: bool,
    desc: u64,
    avail: u64,
    used: u64,
    vector: u16,
    next_avail: u16,
    next_used: u16,
}

/// The fields are those of [`Common`], of the interrupt and of the queues.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedVirtio {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    status: u8,
    needs_reset: bool,
    queue_select: u16,
    config_vector: u16,
    isr: u8,
    generation: u8,
    queues: Vec<SavedQueue>,
    function: SavedFunction,
}

impl Saved for SavedVirtio {
    const VERSION: u32 = 1;
}

/// What is saved beside the common registers.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Next indices of each queue: available, used.
    pub(crate) next: Vec<(u16, u16)>,
    pub(crate) vectors: Vec<u16>,
    pub(crate) config_vector: u16,
    pub(crate) isr: u8,
    pub(crate) needs_reset: bool,
    pub(crate) generation: u8,
    pub(crate) function: SavedFunction,
}

impl SavedVirtio {
    pub(crate) fn new(common: &Common, parts: Parts) -> Self {
        let Parts { next, vectors, config_vector, isr, needs_reset, generation, function } = parts;
        let Common {
            device_feature_select,
            driver_feature_select,
            driver_features,
            status,
            queue_select,
            queues,
        } = common;
        let saved = |((registers, (next_avail, next_used)), vector): ((&QueueRegisters, (u16, u16)), u16)| {
            let QueueRegisters { size, enabled, desc, avail, used } = *registers;
            SavedQueue { size, enabled, desc, avail, used, vector, next_avail, next_used }
        };
        Self {
            device_feature_select: *device_feature_select,
            driver_feature_select: *driver_feature_select,
            driver_features: *driver_features,
            status: *status,
            needs_reset,
            queue_select: *queue_select,
            config_vector,
            isr,
            generation,
            queues: queues.iter().zip(next).zip(vectors).map(saved).collect(),
            function,
        }
    }

    /// Refuses what a device with queues of these sizes, `vectors` vectors and these features cannot have.
    pub(crate) fn check(
        self,
        sizes: &[u16],
        vectors: u16,
        features: u64,
    ) -> Result<(Common, Parts), RestoreError> {
        let Self {
            device_feature_select,
            driver_feature_select,
            driver_features,
            status,
            needs_reset,
            queue_select,
            config_vector,
            isr,
            generation,
            queues: saved,
            function,
        } = self;
        let vector_can_be = |vector: u16| {
            check(
                vector < vectors || vector == 0xffff,
                "vector",
                vector,
                format_args!("below {vectors}, or 65535"),
            )
        };
        check(status & !STATUS_BITS == 0, "status", status, format_args!("within {STATUS_BITS:#x}"))?;
        if status & 8 != 0 {
            let more = driver_features & !features;
            check(
                more == 0,
                "driver_features",
                format_args!("{driver_features:#x}"),
                "what the device offers",
            )?;
        } else {
            check(status & 4 == 0, "status", status, "without DRIVER_OK where FEATURES_OK is not set")?;
        }
        check(isr & !ISR_BITS == 0, "isr", isr, format_args!("within {ISR_BITS:#x}"))?;
        vector_can_be(config_vector)?;
        check(saved.len() == sizes.len(), "queues", saved.len(), sizes.len())?;
        let (mut queues, mut next, mut queue_vectors) = (Vec::new(), Vec::new(), Vec::new());
        for (saved, &max) in saved.into_iter().zip(sizes) {
            let SavedQueue { size, enabled, desc, avail, used, vector, next_avail, next_used } = saved;
            let good = size.is_power_of_two() && size <= max;
            check(good, "size", size, format_args!("a power of two up to {max}"))?;
            vector_can_be(vector)?;
            queues.push(QueueRegisters { size, enabled, desc, avail, used });
            next.push((next_avail, next_used));
            queue_vectors.push(vector);
        }
        let common = Common {
            device_feature_select,
            driver_feature_select,
            driver_features,
            status,
            queue_select,
            queues,
        };
        let vectors = queue_vectors;
        Ok((common, Parts { next, vectors, config_vector, isr, needs_reset, generation, function }))
    }
}
