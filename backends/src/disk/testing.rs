//! A disk for tests that loses what was not flushed, as a drive does when its power is cut.

use super::backend::{BlockBackend, BlockCommand, BlockError, BlockInfo, BlockRequest, RangeLimits, SECTOR};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// A sector's bytes.
type Sector = Box<[u8; SECTOR as usize]>;

/// A disk in memory with a volatile cache. [`LossyDisk::cut_power`] keeps, of each sector written since the last flush, one
/// of its versions at random, the one from before the flush included.
#[derive(Debug)]
pub struct LossyDisk {
    capacity: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stable: BTreeMap<u64, Sector>,
    /// What was written since the last flush, oldest first.
    volatile: BTreeMap<u64, Vec<Sector>>,
    /// Requests until the power fails; none is never.
    left: Option<u64>,
}

impl State {
    fn read(&self, sector: u64) -> Option<&Sector> {
        self.volatile.get(&sector).and_then(|versions| versions.last()).or_else(|| self.stable.get(&sector))
    }

    fn write(&mut self, sector: u64, data: Sector) {
        self.volatile.entry(sector).or_default().push(data);
    }

    fn flush(&mut self) {
        for (sector, mut versions) in std::mem::take(&mut self.volatile) {
            if let Some(last) = versions.pop() {
                self.stable.insert(sector, last);
            }
        }
    }
}

/// One sector's bytes of `data`, as far as they go.
fn sector_of(data: &[u8]) -> Sector {
    let mut sector = Box::new([0; SECTOR as usize]);
    sector.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    sector
}

/// The next number of a xorshift generator: tests repeat with their seed.
pub fn random(state: &mut u64) -> u64 {
    let mut x = (*state).max(1);
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    *state = x;
    x.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

impl LossyDisk {
    /// An empty disk of `capacity` sectors.
    pub fn new(capacity: u64) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    /// The power fails after `requests` more requests: those that follow fail and change nothing.
    pub fn fail_after(&self, requests: u64) {
        self.lock().left = Some(requests);
    }

    /// Power is cut and comes back. Which writes survive follows from `seed`.
    pub fn cut_power(&self, seed: u64) {
        let mut state = self.lock();
        let mut seed = seed;
        for (sector, mut versions) in std::mem::take(&mut state.volatile) {
            let kept = random(&mut seed) % (versions.len() as u64 + 1);
            if kept > 0 {
                let version = versions.swap_remove(usize::try_from(kept - 1).unwrap_or(0));
                state.stable.insert(sector, version);
            }
        }
        state.left = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn perform(state: &mut State, command: &mut BlockCommand) -> Result<(), BlockError> {
        if let Some(left) = &mut state.left {
            *left = left.checked_sub(1).ok_or(BlockError::Io)?;
        }
        match command {
            BlockCommand::Read { sector, data } => {
                for (n, chunk) in (*sector..).zip(data.chunks_mut(SECTOR as usize)) {
                    match state.read(n) {
                        Some(content) => chunk.copy_from_slice(&content[..chunk.len()]),
                        None => chunk.fill(0),
                    }
                }
            }
            BlockCommand::Write { sector, data } => {
                for (n, chunk) in (*sector..).zip(data.chunks(SECTOR as usize)) {
                    state.write(n, sector_of(chunk));
                }
            }
            BlockCommand::Flush => state.flush(),
            BlockCommand::Discard { sector, count } | BlockCommand::WriteZeroes { sector, count, .. } => {
                (*sector..*sector + *count).for_each(|n| state.write(n, sector_of(&[])));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl BlockBackend for LossyDisk {
    fn info(&self) -> BlockInfo {
        let limits = Some(RangeLimits { max_sectors: 1 << 16, alignment: 1 });
        BlockInfo {
            capacity: self.capacity,
            read_only: false,
            block_size: 512,
            physical_block_size: 512,
            write_back: true,
            discard: limits,
            write_zeroes: limits,
            serial: "lossy".to_owned(),
        }
    }

    async fn submit(&self, batch: &mut [BlockRequest]) {
        let info = self.info();
        let mut state = self.lock();
        for request in batch {
            request.result =
                request.check(&info).and_then(|()| Self::perform(&mut state, &mut request.command));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submit(disk: &LossyDisk, command: BlockCommand) -> BlockRequest {
        let mut batch = [BlockRequest::new(command)];
        crate::runtime().unwrap().block_on(disk.submit(&mut batch));
        let [request] = batch;
        request
    }

    fn write(disk: &LossyDisk, sector: u64, value: u8) -> Result<(), BlockError> {
        submit(disk, BlockCommand::Write { sector, data: vec![value; 512] }).result
    }

    fn read(disk: &LossyDisk, sector: u64) -> u8 {
        let request = submit(disk, BlockCommand::Read { sector, data: vec![0; 512] });
        let BlockCommand::Read { data, .. } = request.command else { panic!() };
        assert!(data.iter().all(|b| *b == data[0]), "a sector is torn");
        data[0]
    }

    #[test]
    fn what_was_flushed_survives_and_the_rest_may() {
        let mut outcomes = [false; 3];
        for seed in 1..200 {
            let disk = LossyDisk::new(8);
            write(&disk, 0, 1).unwrap();
            write(&disk, 1, 1).unwrap();
            submit(&disk, BlockCommand::Flush).result.unwrap();
            write(&disk, 1, 2).unwrap();
            write(&disk, 1, 3).unwrap();
            assert_eq!(read(&disk, 1), 3);
            disk.cut_power(seed);
            assert_eq!(read(&disk, 0), 1);
            outcomes[usize::from(read(&disk, 1)) - 1] = true;
        }
        assert_eq!(outcomes, [true; 3]);
    }

    #[test]
    fn power_fails_at_a_point() {
        let disk = LossyDisk::new(8);
        disk.fail_after(1);
        assert_eq!(write(&disk, 0, 1), Ok(()));
        assert_eq!(write(&disk, 1, 1), Err(BlockError::Io));
        assert_eq!(submit(&disk, BlockCommand::Flush).result, Err(BlockError::Io));
        disk.cut_power(3);
        assert_eq!(read(&disk, 1), 0);
    }
}
