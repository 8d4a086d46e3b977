//! The memory balloon (virtio 1.2, 5.5): the guest gives memory back to the host while it runs.
//!
//! 1. The host says how many pages it wants ([`Balloon::set_target`]); the driver takes them from its system and names them. A page
//!    that is named, or reported as free, is the host's again and reads as zeros ([`GuestRam::discard`]).
//! 2. A driver that wants a page back uses it; the deflate queue needs no work.
//! 3. The buffer with statistics stays with the device until somebody asks for new ones ([`Balloon::ask_for_stats`]).
//! 4. The numbers of queues are dense over the features that the driver has taken (5.5.2): without statistics, reports are queue 2.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use accel_api::{GuestRam, PAGE_SIZE};
use state::{RestoreError, Section, StateUnit};

use super::{
    Activation, Chain, Memory, QueueError, Service, Turn, VirtQueue, VirtioDevice, VirtioInterrupt, Worker,
};
use crate::saved::balloon::SavedBalloon;
use crate::util::lock;

/// Device type.
const KIND: u16 = 5;
/// Inflate, deflate, statistics, reports of free pages.
const QUEUE_SIZES: [u16; 4] = [128, 128, 16, 64];
/// VIRTIO_BALLOON_F_STATS_VQ, _DEFLATE_ON_OOM, _PAGE_REPORTING.
const STATS: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const REPORTING: u64 = 1 << 5;
/// Chains in a turn.
const BUDGET: usize = 4;
/// Page numbers that one chain can have; Linux's have 256.
const MOST_PAGES: usize = 4096;
/// Bytes of one statistic: tag, value.
const STAT: usize = 10;
/// Statistics of one chain that are looked at.
const MOST_STATS: usize = 64;

/// What the guest tells of its memory; `None`: it does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStats {
    /// Bytes that nobody uses.
    pub free: Option<u64>,
    /// Bytes that the system has.
    pub total: Option<u64>,
    /// Bytes that could be had without swapping.
    pub available: Option<u64>,
    /// Bytes of files that are kept in memory.
    pub caches: Option<u64>,
}

/// How it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStatus {
    /// Pages of 4 KiB that the host wants.
    pub target: u32,
    /// Pages that the driver says it has given.
    pub actual: u32,
    /// The driver's last statistics.
    pub stats: BalloonStats,
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Reports,
}

impl Role {
    /// Of queue `index`, for a driver that has taken `features`.
    fn of(index: u16, features: u64) -> Option<Self> {
        let stats = (features & STATS != 0).then_some(Self::Stats);
        let reports = (features & REPORTING != 0).then_some(Self::Reports);
        let roles = [Some(Self::Inflate), Some(Self::Deflate), stats, reports];
        roles.into_iter().flatten().nth(index.into())
    }
}

#[derive(Debug, Default)]
struct State {
    status: BalloonStatus,
    /// While a driver is ready: where it is told, and the queue of its statistics.
    driver: Option<(Arc<VirtioInterrupt>, Option<Arc<VirtQueue>>)>,
    /// New statistics are wanted.
    wants_stats: bool,
}

/// The device.
#[derive(Debug)]
pub struct Balloon {
    ram: Arc<GuestRam>,
    state: Arc<Mutex<State>>,
    worker: Worker,
}

impl Balloon {
    /// A balloon for `ram`, whose thread is called `thread`.
    ///
    /// # Errors
    /// The host has no descriptor.
    pub fn new(thread: impl Into<String>, ram: Arc<GuestRam>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { ram, state: Arc::default(), worker: Worker::new(thread)? }))
    }

    /// Wants `pages` pages of 4 KiB of the guest. It gives what it can.
    pub fn set_target(&self, pages: u32) {
        let mut state = lock(&self.state);
        state.status.target = pages;
        let interrupt = state.driver.as_ref().map(|(interrupt, _)| interrupt.clone());
        drop(state);
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    /// Has the driver tell new statistics; [`Self::status`] shows them when they have come.
    pub fn ask_for_stats(&self) {
        let mut state = lock(&self.state);
        state.wants_stats = true;
        if let Some((_, Some(queue))) = &state.driver {
            queue.doorbell().ring();
        }
    }

    /// How it stands.
    pub fn status(&self) -> BalloonStatus {
        lock(&self.state).status
    }
}

/// Gives the pages that `chain` names to the host.
fn inflate(chain: Chain<'_>, memory: &Memory, ram: &GuestRam) {
    let Ok(mut reader) = chain.reader(memory) else { return };
    let mut bytes = vec![0; reader.available_bytes().min(4 * MOST_PAGES) & !3];
    if reader.read_exact(&mut bytes).is_err() {
        return;
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
    let mut pages: Vec<u64> = bytes.chunks_exact(4).map(number).collect();
    pages.sort_unstable();
    pages.dedup();
    // Neighbours at once.
    for run in pages.chunk_by(|one, next| one + 1 == *next) {
        if let Some(first) = run.first() {
            ram.discard(first * PAGE_SIZE, run.len() as u64 * PAGE_SIZE);
        }
    }
}

/// Gives the buffers of `chain`, which are free pages, to the host.
fn report(chain: Chain<'_>, ram: &GuestRam) {
    for buffer in chain.writable() {
        ram.discard(buffer.addr().0, buffer.len().into());
    }
}

/// What `chain` tells. `None`: it cannot be read.
fn stats(chain: Chain<'_>, memory: &Memory) -> Option<BalloonStats> {
    let mut reader = chain.reader(memory).ok()?;
    let mut bytes = vec![0; (reader.available_bytes() / STAT).min(MOST_STATS) * STAT];
    reader.read_exact(&mut bytes).ok()?;
    let mut stats = BalloonStats::default();
    for stat in bytes.chunks_exact(STAT) {
        let (tag, value) = stat.split_at(2);
        let value = Some(value.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)));
        match tag {
            [4, 0] => stats.free = value,
            [5, 0] => stats.total = value,
            [6, 0] => stats.available = value,
            [7, 0] => stats.caches = value,
            _ => {}
        }
    }
    Some(stats)
}

fn serve(
    role: Option<Role>,
    queue: &VirtQueue,
    memory: &Memory,
    interrupt: &VirtioInterrupt,
    ram: &GuestRam,
    state: &Mutex<State>,
) -> Result<Turn, QueueError> {
    queue.serve_while(memory, interrupt, BUDGET, |chain| {
        match role {
            Some(Role::Inflate) => inflate(chain, memory, ram),
            Some(Role::Reports) => report(chain, ram),
            Some(Role::Deflate) | None => {}
            Some(Role::Stats) => {
                let mut state = lock(state);
                if !std::mem::take(&mut state.wants_stats) {
                    state.status.stats = stats(chain, memory).unwrap_or_default();
                    // It stays with us.
                    return None;
                }
            }
        }
        Some(0)
    })
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> u16 {
        KIND
    }
    fn class(&self) -> u32 {
        // A device of no defined class.
        0x00_ff00
    }
    fn features(&self) -> u64 {
        STATS | DEFLATE_ON_OOM | REPORTING
    }
    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.to_vec()
    }
    fn config(&self) -> Vec<u8> {
        let BalloonStatus { target, actual, .. } = self.status();
        [target.to_le_bytes(), actual.to_le_bytes()].concat()
    }
    fn config_write(&self, offset: u32, data: &[u8]) {
        let actual = &mut lock(&self.state).status.actual;
        let mut bytes = actual.to_le_bytes();
        // What the host wants is not the driver's to write.
        for (at, byte) in (offset as usize..).zip(data) {
            if let Some(place) = at.checked_sub(4).and_then(|at| bytes.get_mut(at)) {
                *place = *byte;
            }
        }
        *actual = u32::from_le_bytes(bytes);
    }

    fn activate(&self, activation: Activation) {
        let features = activation.features;
        let stats =
            activation.queues.iter().find(|queue| Role::of(queue.index(), features) == Some(Role::Stats));
        lock(&self.state).driver = Some((activation.interrupt.clone(), stats.cloned()));
        let (ram, state) = (self.ram.clone(), self.state.clone());
        let serve = move |queue: &VirtQueue, memory: &Memory, interrupt: &VirtioInterrupt| {
            serve(Role::of(queue.index(), features), queue, memory, interrupt, &ram, &state)
        };
        self.worker.activate(activation, Box::new(serve));
    }
    fn service(&self) -> &dyn Service {
        &self.worker
    }
    fn reset(&self) {
        self.worker.reset();
        let mut state = lock(&self.state);
        state.driver = None;
        state.wants_stats = false;
        state.status = BalloonStatus { target: state.status.target, ..BalloonStatus::default() };
    }
}

/// What its transport does not save: target and actual. It comes behind the transport, whose restore resets the device.
impl StateUnit for Balloon {
    fn name(&self) -> &str {
        "balloon"
    }

    fn save(&self) -> Section {
        let BalloonStatus { target, actual, stats: _ } = self.status();
        Section::of(&SavedBalloon { target, actual })
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let SavedBalloon { target, actual } = section.open()?;
        let mut state = lock(&self.state);
        (state.status.target, state.status.actual) = (target, actual);
        Ok(())
    }

    /// The target is the host's, and stays.
    fn reset(&self) {
        lock(&self.state).status.actual = 0;
    }
}
