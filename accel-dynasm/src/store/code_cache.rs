//! Memory for host code: one file mapped twice, once to be written and once to be executed, so that no page is ever
//! both.
#![allow(unsafe_code)] // maps memory and writes code into it

use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use accel_api::{AccelError, PAGE_SIZE};

use super::regions::{MOST_NUMBERS, REGIONS};

/// Blocks begin at multiples of this.
const ALIGN: usize = 16;

/// Least and most bytes of a cache: of regions that hold a few blocks, and of code that can jump from end to end.
pub(crate) const LEAST: usize = 32 << 10;
pub(crate) const MOST: usize = 1 << 30;

/// Bytes of a jump that [`CodeCache::put_jump`] puts.
pub(crate) const JUMP_LEN: usize = 5;

/// Code at the start stays (the stubs); after them come blocks, region by region.
#[derive(Debug)]
pub(crate) struct CodeCache {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    len: usize,
    /// Where the regions begin, and how long each is.
    start: usize,
    region_len: usize,
    /// The region that is being filled, and where the code in each ends.
    current: usize,
    ends: [usize; REGIONS],
}

impl CodeCache {
    /// Room for `len` bytes, or as many as there can be. Pages cost nothing until they are filled. `nameless`: without
    /// a file of its own, as perf wants it of memory whose names it is to look up elsewhere.
    ///
    /// # Errors
    /// The host does not map memory as executable, or has none.
    pub(crate) fn new(len: usize, nameless: bool) -> Result<Self, AccelError> {
        let len = len.clamp(LEAST, MOST).next_multiple_of(PAGE_SIZE as usize);
        let (writable, executable) = if nameless { map_nameless(len)? } else { map_file(len)? };
        Ok(Self { writable, executable, len, start: 0, region_len: len, current: 0, ends: [0; REGIONS] })
    }

    /// Lets the code that has been appended stay, and makes regions of the rest.
    pub(crate) fn divide(&mut self) {
        self.start = self.cursor();
        self.region_len = ((self.len - self.start) / REGIONS) & !(ALIGN - 1);
        self.current = 0;
        self.ends = std::array::from_fn(|region| self.range_of(region).start);
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        let regions = self.ends.iter().enumerate();
        self.start + regions.map(|(region, end)| end - self.range_of(region).start).sum::<usize>()
    }

    /// The region that is being filled.
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    /// Goes on to the region that was filled first, whose code is overwritten from now on; which it is.
    pub(crate) fn turn(&mut self) -> usize {
        self.current = (self.current + 1) % REGIONS;
        self.ends[self.current] = self.range_of(self.current).start;
        self.current
    }

    /// Whether the region that is being filled has nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.cursor() == self.range_of(self.current).start
    }

    /// Whether `len` more bytes fit into the region that is being filled.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.range_of(self.current).end - self.cursor() >= len
    }

    /// Where the next code is going to lie.
    pub(crate) fn cursor(&self) -> usize {
        self.ends[self.current]
    }

    /// Offsets of a region.
    fn range_of(&self, region: usize) -> Range<usize> {
        let start = self.start + region * self.region_len;
        start..start + self.region_len
    }

    /// The region in which offset `at` lies.
    pub(crate) fn region_at(&self, at: usize) -> Option<usize> {
        let region = at.checked_sub(self.start)? / self.region_len;
        (region < REGIONS).then_some(region)
    }

    /// The addresses at which the code of a region executes.
    pub(crate) fn addresses(&self, region: usize) -> Range<u64> {
        let range = self.range_of(region);
        self.address(range.start) as u64..self.address(range.end) as u64
    }

    /// Appends code; returns its offset. The caller has looked for room.
    pub(crate) fn append(&mut self, code: &[u8]) -> usize {
        let at = self.cursor();
        assert!(self.has_room(code.len()), "code cache overrun");
        self.overwrite(at, code);
        self.ends[self.current] =
            (at + code.len()).next_multiple_of(ALIGN).min(self.range_of(self.current).end);
        at
    }

    /// Makes the jump whose 32-bit distance lies at offset `field` lead to offset `target`.
    pub(crate) fn link(&mut self, field: usize, target: usize) {
        let distance = (target as i64 - (field as i64 + 4)) as i32;
        self.overwrite(field, &distance.to_le_bytes());
    }

    /// Puts a jump to offset `target` over the code at offset `at`.
    pub(crate) fn put_jump(&mut self, at: usize, target: usize) {
        self.overwrite(at, &[0xe9]);
        self.link(at + JUMP_LEN - 4, target);
    }

    fn overwrite(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len, "not in the cache");
        // SAFETY: within the mapping, just checked. No other thread executes this cache.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.writable.as_ptr().add(at), bytes.len()) };
    }

    /// The address at which the code at `offset` executes.
    pub(crate) fn address(&self, offset: usize) -> *const u8 {
        self.executable.as_ptr().wrapping_add(offset)
    }

    /// The offset of an address within.
    pub(crate) fn offset(&self, address: u64) -> Option<usize> {
        let at = usize::try_from(address).ok()?.checked_sub(self.executable.as_ptr() as usize)?;
        (at < self.len).then_some(at)
    }

    /// The bytes of some code.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len, "not in the cache");
        // SAFETY: within the mapping, which is written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.writable.as_ptr().add(range.start), range.len()) }
    }

    /// The executable mapping.
    pub(crate) fn range(&self) -> Range<usize> {
        let start = self.executable.as_ptr() as usize;
        start..start + self.len
    }
}

/// Each item that is numbered belongs to at least a byte of code.
const _: () = assert!(MOST / REGIONS <= MOST_NUMBERS);

/// Maps new shared memory, or `fd`.
fn map(len: usize, protection: i32, fd: Option<&OwnedFd>) -> Option<NonNull<u8>> {
    let (flags, fd) = match fd {
        Some(fd) => (libc::MAP_SHARED, fd.as_raw_fd()),
        None => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1),
    };
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, 0) };
    if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast::<u8>()) }
}

/// The two mappings, of a file in memory.
fn map_file(len: usize) -> Result<(NonNull<u8>, NonNull<u8>), AccelError> {
    // SAFETY: a name that ends in zero.
    let fd = unsafe { libc::memfd_create(c"gearshift-code".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(AccelError::last_os("make a file for translated code"));
    }
    // SAFETY: a new descriptor, which has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a descriptor that is open.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), len as libc::off_t) } != 0 {
        return Err(AccelError::last_os("make room for translated code"));
    }
    let writable = map(len, libc::PROT_READ | libc::PROT_WRITE, Some(&fd))
        .ok_or_else(|| AccelError::last_os("map memory for translated code"))?;
    let Some(executable) = map(len, libc::PROT_READ | libc::PROT_EXEC, Some(&fd)) else {
        let error = AccelError::last_os("map translated code as executable");
        unmap(writable, len);
        return Err(error);
    };
    Ok((writable, executable))
}

/// The two mappings, of memory that has no name.
fn map_nameless(len: usize) -> Result<(NonNull<u8>, NonNull<u8>), AccelError> {
    let writable = map(len, libc::PROT_READ | libc::PROT_WRITE, None)
        .ok_or_else(|| AccelError::last_os("map memory for translated code"))?;
    // SAFETY: moving nothing of a shared mapping makes another of the same pages (mremap(2)), at an address of the kernel's
    // choice, whose protection is then changed.
    let executable = unsafe {
        let at = libc::mremap(writable.as_ptr().cast(), 0, len, libc::MREMAP_MAYMOVE);
        (at != libc::MAP_FAILED && libc::mprotect(at, len, libc::PROT_READ | libc::PROT_EXEC) == 0)
            .then_some(at)
    };
    match executable.and_then(|at| NonNull::new(at.cast())) {
        Some(executable) => Ok((writable, executable)),
        None => {
            let error = AccelError::last_os("map translated code as executable");
            unmap(writable, len);
            Err(error)
        }
    }
}

fn unmap(at: NonNull<u8>, len: usize) {
    // SAFETY: the caller has mapped it with this length, and does not use it any more.
    unsafe { libc::munmap(at.as_ptr().cast(), len) };
}

impl Drop for CodeCache {
    fn drop(&mut self) {
        unmap(self.writable, self.len);
        unmap(self.executable, self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line of /proc/self/maps for the page at `at`.
    fn mapping(at: *const u8) -> String {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.starts_with(&format!("{:x}-", at.addr())));
        line.expect("it is mapped").to_owned()
    }

    #[test]
    fn code_that_is_written_executes_and_no_page_is_both() {
        for nameless in [false, true] {
            let mut cache = CodeCache::new(LEAST, nameless).unwrap();
            // mov eax, 42; ret
            let at = cache.append(b"\xb8\x2a\0\0\0\xc3");
            // SAFETY: a function of that type, just written.
            let function: extern "sysv64" fn() -> u32 = unsafe { std::mem::transmute(cache.address(at)) };
            assert_eq!(function(), 42);
            let (code, data) = (mapping(cache.address(0)), mapping(cache.writable.as_ptr()));
            assert!(code.contains(" r-xs ") && data.contains(" rw-s "), "{code}\n{data}");
            // perf looks up names of code in such mappings in its map.
            assert_eq!(code.contains("/dev/zero"), nameless, "{code}");
        }
    }
    #[test]
    fn regions_are_filled_in_turn() {
        let mut cache = CodeCache::new(LEAST, false).unwrap();
        cache.append(&[0xcc; 100]);
        cache.divide();
        let len = cache.region_len;
        assert_eq!((cache.cursor(), len), (112, (LEAST - 112) / REGIONS / ALIGN * ALIGN));
        let code = vec![0x90; len / 2 + 1];
        for turn in 0..2 * REGIONS {
            let region = turn % REGIONS;
            assert!(cache.is_empty() && cache.current() == region);
            let at = cache.append(&code);
            assert_eq!(
                (at, cache.region_at(at), cache.region_at(111)),
                (112 + region * len, Some(region), None)
            );
            assert!(cache.has_room(len / 2 - ALIGN) && !cache.has_room(len / 2) && !cache.is_empty());
            assert!(cache.addresses(region).contains(&(cache.address(at) as u64)));
            assert!(cache.used() <= LEAST && cache.used() > (turn + 1).min(REGIONS) * len / 2);
            cache.turn();
        }
        assert_eq!(cache.region_at(LEAST), None);
    }
}
