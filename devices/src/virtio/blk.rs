//! The block device (virtio 1.2, 5.2).
//!
//! 1. A turn takes what the driver has put into the queue, up to a bound in requests and in bytes, makes one batch of it, and
//!    gives that to the back end. Buffers are copied on both ways, so that nobody refers to guest memory while the host works.
//! 2. A driver that has not negotiated VIRTIO_BLK_F_FLUSH knows no flush: its writes are stable when they are used (5.2.6.2).
//! 3. The status is the last byte that the device may write; a chain without one is given back with nothing written.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::Arc;

use backends::disk::{BlockBackend, BlockCommand, BlockError, BlockInfo, BlockRequest, MAX_REQUEST, SECTOR};
use virtio_bindings::virtio_blk::*;

use super::{
    Activation, Chain, Memory, QueueError, Service, Turn, VirtQueue, VirtioDevice, VirtioInterrupt, Worker,
};

/// Device type.
const KIND: u16 = 2;
/// Descriptors of each queue.
const QUEUE_SIZE: u16 = 256;
/// Most buffers of a request: all descriptors but those of its header and its status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Ranges that a discard or write-zeroes request can have.
const MAX_RANGES: u32 = 16;
/// Bytes of a range of those.
const RANGE: usize = 16;
/// Requests in a turn.
const BUDGET: usize = 64;
/// Bytes of data in a turn.
const TURN_BYTES: usize = 2 * MAX_REQUEST;
/// Bytes of a request's header.
const HEADER: usize = 16;
/// Bytes of a serial number (5.2.6).
const ID_BYTES: usize = 20;
/// Bytes of the configuration.
const CONFIG: usize = 60;

/// The device.
#[derive(Debug)]
pub struct Blk {
    worker: Worker,
    backend: Arc<dyn BlockBackend>,
    queues: u16,
}

impl Blk {
    /// A disk of `queues` queues, at least one, in front of `backend`, whose thread is called `thread`.
    ///
    /// # Errors
    /// The host has no descriptor.
    pub fn new(
        thread: impl Into<String>,
        backend: Arc<dyn BlockBackend>,
        queues: u16,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { worker: Worker::new(thread)?, backend, queues: queues.max(1) }))
    }

    /// The configuration (5.2.4).
    fn configuration(&self) -> [u8; CONFIG] {
        let info = self.backend.info();
        let mut config = [0; CONFIG];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(place) = config.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        put(0, &info.capacity.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &info.block_size.to_le_bytes());
        let exponent = (info.physical_block_size / info.block_size.max(1)).checked_ilog2().unwrap_or(0);
        put(24, &[exponent as u8]);
        put(32, &[1]);
        put(34, &self.queues.to_le_bytes());
        if let Some(limits) = info.discard {
            put(36, &limits.max_sectors.to_le_bytes());
            put(40, &MAX_RANGES.to_le_bytes());
            put(44, &limits.alignment.to_le_bytes());
        }
        if let Some(limits) = info.write_zeroes {
            put(48, &limits.max_sectors.to_le_bytes());
            put(52, &MAX_RANGES.to_le_bytes());
            put(56, &[1]);
        }
        config
    }
}

impl VirtioDevice for Blk {
    fn kind(&self) -> u16 {
        KIND
    }
    fn class(&self) -> u32 {
        // Mass storage, of no other kind.
        0x01_8000
    }
    fn features(&self) -> u64 {
        let info = self.backend.info();
        let always = [VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_FLUSH];
        let mut features = always.iter().fold(0, |all, bit| all | 1 << bit);
        for (bit, offered) in [
            (VIRTIO_BLK_F_RO, info.read_only),
            (VIRTIO_BLK_F_MQ, self.queues > 1),
            (VIRTIO_BLK_F_DISCARD, info.discard.is_some() && !info.read_only),
            (VIRTIO_BLK_F_WRITE_ZEROES, info.write_zeroes.is_some() && !info.read_only),
        ] {
            features |= u64::from(offered) << bit;
        }
        features
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }
    fn config(&self) -> Vec<u8> {
        self.configuration().to_vec()
    }

    fn activate(&self, activation: Activation) {
        let flushes = activation.features & 1 << VIRTIO_BLK_F_FLUSH != 0;
        let backend = self.backend.clone();
        let serve = move |queue: &VirtQueue, memory: &Memory, interrupt: &VirtioInterrupt| {
            serve(queue, memory, interrupt, backend.as_ref(), flushes)
        };
        self.worker.activate(activation, Box::new(serve));
    }
    fn service(&self) -> &dyn Service {
        &self.worker
    }
}

/// What a chain asks for.
enum Asked {
    /// Nothing that can be done; this is the status.
    Nothing(u32),
    /// The serial number.
    Serial,
    /// These, of the back end.
    Disk(Vec<BlockRequest>),
}

impl Asked {
    /// Bytes of data that are moved.
    fn bytes(&self) -> usize {
        let Self::Disk(requests) = self else { return 0 };
        let data = requests.iter().map(|request| match &request.command {
            BlockCommand::Read { data, .. } | BlockCommand::Write { data, .. } => data.len(),
            _ => 0,
        });
        data.sum()
    }
}

/// Serves one turn: up to [`BUDGET`] requests of [`TURN_BYTES`].
fn serve<'m>(
    queue: &VirtQueue,
    memory: &'m Memory,
    interrupt: &VirtioInterrupt,
    backend: &dyn BlockBackend,
    flushes: bool,
) -> Result<Turn, QueueError> {
    let info = backend.info();
    let mut bytes = 0;
    let take = |chain: Chain<'m>| {
        let asked = read_request(&chain, memory, &info).unwrap_or(Asked::Nothing(VIRTIO_BLK_S_IOERR));
        bytes += asked.bytes();
        ((chain, asked), bytes < TURN_BYTES)
    };
    queue.serve_batch(memory, interrupt, BUDGET, take, |taken| {
        let mut batch = Vec::new();
        let mut places = Vec::new();
        for (chain, mut asked) in taken {
            let first = batch.len();
            if let Asked::Disk(requests) = &mut asked {
                batch.append(requests);
            }
            places.push((chain, asked, first..batch.len()));
        }
        if !flushes && batch.iter().any(|request| request.command.writes()) {
            batch.push(BlockRequest::new(BlockCommand::Flush));
        }
        // Without threads every request stays failed.
        if let Ok(runtime) = backends::runtime() {
            runtime.block_on(backend.submit(&mut batch));
        }
        let stable = flushes || batch.last().is_none_or(|last| last.result.is_ok());
        let answer = |(chain, asked, place): (Chain<'_>, Asked, Range<usize>)| {
            answer(chain, &asked, memory, &info, batch.get(place).unwrap_or_default(), stable)
        };
        places.into_iter().map(answer).collect()
    })
}

/// What the chain asks for. `None`: it cannot be.
fn read_request(chain: &Chain<'_>, memory: &Memory, info: &BlockInfo) -> Option<Asked> {
    let mut reader = chain.clone().reader(memory).ok()?;
    let mut header = [0u8; HEADER];
    reader.read_exact(&mut header).ok()?;
    let [kind, _, sector_low, sector_high] = words(&header);
    let sector = u64::from(sector_low) | u64::from(sector_high) << 32;
    let room = chain.clone().writer(memory).ok()?.available_bytes().checked_sub(1)?;
    let mut commands = Vec::new();
    match kind {
        VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => {
            let write = kind == VIRTIO_BLK_T_OUT;
            let len = if write { reader.available_bytes() } else { room };
            if len > MAX_REQUEST || !(len as u64).is_multiple_of(SECTOR) {
                return None;
            }
            let mut data = vec![0; len];
            if write {
                reader.read_exact(&mut data).ok()?;
            }
            commands.push(match write {
                true => BlockCommand::Write { sector, data },
                false => BlockCommand::Read { sector, data },
            });
        }
        VIRTIO_BLK_T_FLUSH => commands.push(BlockCommand::Flush),
        VIRTIO_BLK_T_GET_ID => return Some(Asked::Serial),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            let zeroes = kind == VIRTIO_BLK_T_WRITE_ZEROES;
            if (if zeroes { info.write_zeroes } else { info.discard }).is_none() {
                return Some(Asked::Nothing(VIRTIO_BLK_S_UNSUPP));
            }
            let len = reader.available_bytes();
            if len == 0 || !len.is_multiple_of(RANGE) || len > RANGE * MAX_RANGES as usize {
                return None;
            }
            let mut ranges = vec![0; len];
            reader.read_exact(&mut ranges).ok()?;
            for range in ranges.chunks_exact(RANGE) {
                let [low, high, count, flags] = words(range);
                let (sector, count) = (u64::from(low) | u64::from(high) << 32, u64::from(count));
                // Of the flags there is one, of one of the two (5.2.6.2).
                let unmap = flags & 1 != 0;
                if flags & !1 != 0 || unmap && !zeroes {
                    return Some(Asked::Nothing(VIRTIO_BLK_S_UNSUPP));
                }
                commands.push(match zeroes {
                    true => BlockCommand::WriteZeroes { sector, count, unmap },
                    false => BlockCommand::Discard { sector, count },
                });
            }
        }
        _ => return Some(Asked::Nothing(VIRTIO_BLK_S_UNSUPP)),
    }
    Some(Asked::Disk(commands.into_iter().map(BlockRequest::new).collect()))
}

/// Four little-endian words.
fn words(bytes: &[u8]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    words
}

/// Tells the driver how its request went: data, then the status. The bytes written.
fn answer(
    chain: Chain<'_>,
    asked: &Asked,
    memory: &Memory,
    info: &BlockInfo,
    requests: &[BlockRequest],
    stable: bool,
) -> u32 {
    let Ok(mut writer) = chain.writer(memory) else { return 0 };
    let Some(room) = writer.available_bytes().checked_sub(1) else { return 0 };
    let Ok(mut status_byte) = writer.split_at(room) else { return 0 };
    let mut put = |bytes: &[u8]| writer.write_all(bytes).is_ok();
    let (status, written) = match asked {
        Asked::Nothing(status) => (*status, 0),
        Asked::Serial => {
            let mut id = [0; ID_BYTES];
            id.iter_mut().zip(info.serial.bytes()).for_each(|(to, from)| *to = from);
            let len = room.min(ID_BYTES);
            let done = put(id.get(..len).unwrap_or_default());
            if done { (VIRTIO_BLK_S_OK, len) } else { (VIRTIO_BLK_S_IOERR, 0) }
        }
        Asked::Disk(_) => {
            let failed = requests.iter().find_map(|request| request.result.err());
            let lost = !stable && requests.iter().any(|request| request.command.writes());
            match (failed, requests) {
                (Some(BlockError::Unsupported), _) => (VIRTIO_BLK_S_UNSUPP, 0),
                (Some(_), _) => (VIRTIO_BLK_S_IOERR, 0),
                (None, _) if lost => (VIRTIO_BLK_S_IOERR, 0),
                (None, [BlockRequest { command: BlockCommand::Read { data, .. }, .. }]) => {
                    if put(data) {
                        (VIRTIO_BLK_S_OK, data.len())
                    } else {
                        (VIRTIO_BLK_S_IOERR, 0)
                    }
                }
                (None, _) => (VIRTIO_BLK_S_OK, 0),
            }
        }
    };
    // A status that is not behind the data is behind what was not written of them.
    match status_byte.write_all(&[status as u8]) {
        Ok(()) if written == room => written as u32 + 1,
        Ok(()) => written as u32,
        Err(_) => 0,
    }
}
