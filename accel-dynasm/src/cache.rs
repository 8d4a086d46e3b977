//! Memory for translated code: one file mapped twice, once to be written and once to be executed, so that no page is ever
//! both.
#![allow(unsafe_code)] // maps memory and writes code into it

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use accel_api::AccelError;

/// Code is filled in from the start; it is emptied as a whole.
#[derive(Debug)]
pub(crate) struct CodeCache {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    len: usize,
    used: usize,
}

impl CodeCache {
    /// Room for `len` bytes, a multiple of the page size. Pages cost nothing until they are filled. `nameless`: without a file
    /// of its own, as perf wants it of memory whose names it is to look up elsewhere.
    ///
    /// # Errors
    /// The host does not map memory as executable, or has none.
    pub(crate) fn new(len: usize, nameless: bool) -> Result<Self, AccelError> {
        let (writable, executable) = if nameless { map_nameless(len)? } else { map_file(len)? };
        Ok(Self { writable, executable, len, used: 0 })
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// Whether `len` more bytes fit.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.len - self.used >= len
    }

    /// Where the next code is going to lie.
    pub(crate) fn cursor(&self) -> usize {
        self.used
    }

    /// Appends code; returns its offset. The caller has looked for room.
    pub(crate) fn append(&mut self, code: &[u8]) -> usize {
        let at = self.used;
        assert!(self.has_room(code.len()), "code cache overrun");
        // SAFETY: within the mapping, just checked.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.as_ptr().add(at), code.len()) };
        self.used = (at + code.len()).next_multiple_of(16).min(self.len);
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
        self.link(at + 1, target);
    }

    fn overwrite(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.used, "not code");
        // SAFETY: within the mapping, just checked. No other thread executes this cache.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.writable.as_ptr().add(at), bytes.len()) };
    }

    /// Drops all code behind offset `keep`.
    pub(crate) fn truncate(&mut self, keep: usize) {
        self.used = self.used.min(keep.next_multiple_of(16));
    }

    /// The address at which the code at `offset` executes.
    pub(crate) fn address(&self, offset: usize) -> *const u8 {
        self.executable.as_ptr().wrapping_add(offset)
    }

    /// The offset of an address within.
    pub(crate) fn offset(&self, address: u64) -> Option<usize> {
        let at = usize::try_from(address).ok()?.checked_sub(self.executable.as_ptr() as usize)?;
        (at < self.used).then_some(at)
    }

    /// The bytes of some code.
    pub(crate) fn bytes(&self, range: std::ops::Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.used, "not code");
        // SAFETY: within the mapping; whoever writes does so through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.writable.as_ptr().add(range.start), range.len()) }
    }

    /// The executable mapping.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        let start = self.executable.as_ptr() as usize;
        start..start + self.len
    }
}

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
    // SAFETY: a descriptor that is nobody else's.
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
            let mut cache = CodeCache::new(8192, nameless).unwrap();
            // mov eax, 42; ret
            let at = cache.append(b"\xb8\x2a\0\0\0\xc3");
            // SAFETY: a function of that type, just written.
            let function: extern "sysv64" fn() -> u32 = unsafe { std::mem::transmute(cache.address(at)) };
            assert_eq!(function(), 42);
            let (code, data) = (mapping(cache.address(0)), mapping(cache.writable.as_ptr()));
            assert!(code.contains(" r-xs ") && data.contains(" rw-s "), "{code}\n{data}");
            // perf looks for the names of what lies in such mappings in its map.
            assert_eq!(code.contains("/dev/zero"), nameless, "{code}");
        }
    }
}
