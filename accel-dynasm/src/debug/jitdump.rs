//! Translated code for perf(1), which finds it in a file: names and bytes of each block, with times, so that
//! `perf inject --jit` tells code apart that lay at the same address one after the other, and `perf annotate` shows it.
//!
//! The format is that of Linux's tools/perf/Documentation/jitdump-specification.txt.
#![allow(unsafe_code)] // maps the file, and reads the clock

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use crate::debug::perf_map::{Bounded, Notice, guest_name, new_file};

const MAGIC: u32 = u32::from_be_bytes(*b"JiTD");
const VERSION: u32 = 1;
const HEADER_LEN: u32 = 40;
const EM_X86_64: u32 = 62;
/// Kind of record: code is there from now on.
const CODE_LOAD: u32 = 0;
/// Of a record of this kind, before the name.
const LOAD_LEN: usize = 56;
/// Bytes of a file.
const MOST: u64 = 1 << 30;

/// The file, to which each block adds a record when it is translated, up to 1 GiB. It stays behind for `perf inject
/// --jit`.
#[derive(Debug)]
pub struct JitDump {
    path: PathBuf,
    state: Mutex<State>,
    _marker: Marker,
}

#[derive(Debug)]
struct State {
    file: Bounded,
    /// Blocks that have been told.
    index: u64,
}

impl JitDump {
    /// Makes `jit-PID.dump` in `folder`; perf knows it by this name. `notice` is told when it is full.
    ///
    /// # Errors
    /// It exists already, be it as a link, or cannot be made; or it lies on a file system whose files cannot be mapped
    /// as executable.
    pub fn in_folder(folder: &Path, notice: Notice) -> io::Result<Self> {
        let path = folder.join(format!("jit-{}.dump", std::process::id()));
        let mut file = new_file(&path)?;
        let mut header = Vec::new();
        for word in [MAGIC, VERSION, HEADER_LEN, EM_X86_64, 0, std::process::id()] {
            header.extend(word.to_le_bytes());
        }
        header.extend(now().to_le_bytes());
        // Flags: the times are of the monotonic clock.
        header.extend(0u64.to_le_bytes());
        let ready = file.write_all(&header).and_then(|()| Marker::new(&file));
        let marker = ready.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        let file = Bounded::new(path.clone(), file, MOST, notice);
        let state = Mutex::new(State { file, index: 0 });
        Ok(Self { path, state, _marker: marker })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells that `code`, which was translated from guest address `guest`, lies at host address `address` from now on.
    pub(crate) fn add(&self, address: u64, code: &[u8], guest: u64) {
        let name = guest_name(guest);
        let len = LOAD_LEN + name.len() + 1 + code.len();
        // SAFETY: has no arguments and cannot fail.
        let thread = unsafe { libc::gettid() };
        let mut record = Vec::with_capacity(len);
        // Records lie in the order of their times.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        record.extend(CODE_LOAD.to_le_bytes());
        record.extend((len as u32).to_le_bytes());
        record.extend(now().to_le_bytes());
        record.extend(std::process::id().to_le_bytes());
        record.extend(thread.to_le_bytes());
        for value in [address, address, code.len() as u64, state.index] {
            record.extend(value.to_le_bytes());
        }
        record.extend(name.as_bytes());
        record.push(0);
        record.extend(code);
        state.index += 1;
        state.file.add(&record);
    }
}

/// Nanoseconds of the clock that `perf record -k mono` takes.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the result; this clock is there on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The file's first page, mapped as if it was to be executed: perf records such mappings, and by this one finds the
/// file.
#[derive(Debug)]
struct Marker(NonNull<u8>);

/// Bytes to map.
const MARKER: usize = accel_api::PAGE_SIZE as usize;

// SAFETY: the mapping is never read or written.
unsafe impl Send for Marker {}
// SAFETY: likewise.
unsafe impl Sync for Marker {}

impl Marker {
    fn new(file: &File) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MARKER,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            let reason = format!("perf wants it mapped as executable, and the host refuses: {error}");
            return Err(io::Error::new(error.kind(), reason));
        }
        NonNull::new(at.cast()).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and not used.
        unsafe { libc::munmap(self.0.as_ptr().cast(), MARKER) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&bytes[at..at + N]);
        u64::from_le_bytes(wide)
    }

    #[test]
    fn perf_can_read_what_is_written() {
        let folder = std::env::temp_dir().join(format!("gearshift-jitdump-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let before = now();
        let notice = || Notice(std::sync::Arc::new(|line| panic!("{line}")));
        let dump = JitDump::in_folder(&folder, notice()).unwrap();
        let blocks = [(0x7f00_1000, &b"\xc3"[..], 0x40_0000), (0x7f00_1010, b"\x90\0\xc3", u64::MAX << 31)];
        for (address, code, guest) in blocks {
            dump.add(address, code, guest);
        }
        let bytes = std::fs::read(dump.path()).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let again = JitDump::in_folder(&folder, notice()).unwrap_err();
        let missing = JitDump::in_folder(&folder.join("missing"), notice()).unwrap_err();
        std::fs::remove_dir_all(&folder).unwrap();

        let pid = u64::from(std::process::id());
        let marker = maps.lines().find(|line| line.contains(dump.path().to_str().unwrap())).unwrap();
        assert!(
            marker.contains(" r-xp 00000000 ") && marker.contains(&format!("/jit-{pid}.dump")),
            "{marker}"
        );
        assert_eq!(bytes[..4], *b"DTiJ");
        let header = [4, 8, 12, 16, 20].map(|at| number::<4>(&bytes, at));
        assert_eq!((header, number::<8>(&bytes, 32)), ([1, 40, 62, 0, pid], 0));
        let mut time = number::<8>(&bytes, 24);
        assert!(time >= before);
        let mut at = 40;
        for (n, (address, code, guest)) in blocks.into_iter().enumerate() {
            let record = &bytes[at..at + number::<4>(&bytes, at + 4) as usize];
            assert_eq!((number::<4>(record, 0), number::<4>(record, 16)), (0, pid));
            assert!(number::<8>(record, 8) >= time);
            time = number::<8>(record, 8);
            let values = [24, 32, 40, 48].map(|at| number::<8>(record, at));
            assert_eq!(values, [address, address, code.len() as u64, n as u64]);
            assert_eq!(record[56..], [format!("guest:{guest:016x}\0").as_bytes(), code].concat());
            at += record.len();
        }
        assert!(at == bytes.len() && time <= now());
        assert_eq!((again.kind(), missing.kind()), (io::ErrorKind::AlreadyExists, io::ErrorKind::NotFound));
        assert!(missing.to_string().contains("missing/jit-"), "{missing}");
    }
}
