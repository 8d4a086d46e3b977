//! A file in memory for tests: it is full at a length, and loses writes that were not synced when power is cut.
#![allow(unsafe_code, reason = "imago's `Storage` has unsafe methods; these have no contract of their own")]

use super::super::testing::random;
use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Debug, Default)]
struct State {
    stable: Vec<u8>,
    current: Vec<u8>,
    /// Writes since the last sync.
    unsynced: Vec<(usize, Vec<u8>)>,
    limit: usize,
    /// Writes until the power fails.
    left: Option<u64>,
}

/// The file; its clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct Faulty {
    state: Arc<Mutex<State>>,
    helper: Arc<CommonStorageHelper>,
}

impl Faulty {
    pub(super) fn new(content: Vec<u8>, limit: usize) -> Self {
        let state = State { stable: content.clone(), current: content, limit, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), helper: Arc::default() }
    }

    pub(super) fn fail_after(&self, writes: u64) {
        self.lock().left = Some(writes);
    }

    /// What the file holds after power was cut: of the unsynced writes any sectors may be there.
    pub(super) fn after_power_cut(&self, mut seed: u64) -> Vec<u8> {
        let state = self.lock();
        let mut content = state.stable.clone();
        for (offset, data) in &state.unsynced {
            for (n, sector) in data.chunks(512).enumerate() {
                if random(&mut seed).is_multiple_of(2) {
                    put(&mut content, offset + n * 512, sector);
                }
            }
        }
        content
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn put(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    content.resize(content.len().max(offset + data.len()), 0);
    content[offset..offset + data.len()].copy_from_slice(data);
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

impl Storage for Faulty {
    fn size(&self) -> io::Result<u64> {
        Ok(self.lock().current.len() as u64)
    }

    unsafe fn pure_readv(&self, mut bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let state = self.lock();
        let rest = state.current.get(offset as usize..).unwrap_or_default();
        let length = bufv.len() as usize;
        let mut data = rest[..length.min(rest.len())].to_vec();
        data.resize(length, 0);
        bufv.copy_from_slice(&data);
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let mut data = vec![0; bufv.len() as usize];
        bufv.copy_into_slice(&mut data);
        let mut state = self.lock();
        if let Some(left) = &mut state.left {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("no power"))?;
        }
        let offset = offset as usize;
        if offset + data.len() > state.limit {
            return Err(io::ErrorKind::StorageFull.into());
        }
        put(&mut state.current, offset, &data);
        state.unsynced.push((offset, data));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock();
        if state.left == Some(0) {
            return Err(io::Error::other("no power"));
        }
        state.stable = state.current.clone();
        state.unsynced.clear();
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, new_size: u64, _: PreallocateMode) -> io::Result<()> {
        let mut state = self.lock();
        if new_size as usize > state.limit {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.current.resize(new_size as usize, 0);
        Ok(())
    }
}
