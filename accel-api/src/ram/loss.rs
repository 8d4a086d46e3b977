//! Pages of guest RAM that the host cannot give.
//!
//! 1. RAM is reserved, not committed. A page that the host does not have when somebody touches it (memory or a control group's
//!    share of it is used up, what was swapped out cannot be read, a memory chip has failed) raises SIGBUS there (mmap(2)): in
//!    a vCPU, a device, a loader.
//! 2. The handler puts a page of zeros that is not the guest's in its place, so that the access comes to its end, and notes the
//!    loss. The VM must not go on with that: the thread's vCPU is made to leave ([`stop_on_loss`]), and
//!    [`Vcpu::run`](crate::Vcpu::run) fails with [`MemoryLost`](crate::AccelError::MemoryLost). Who touches RAM from a thread
//!    of its own asks [`GuestRam::loss`](crate::GuestRam::loss) afterwards.
//! 3. A second loss in a region takes everything behind it along: a process may have some ten thousand mappings, and the
//!    guest's memory is of no more use.
//! 4. Signals that come from elsewhere go to who had them before.
#![allow(unsafe_code)] // a signal handler, which maps memory

use std::cell::Cell;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::PAGE_SIZE;
use crate::signal::Front;

/// Regions at a time: those of a thousand VMs.
const SLOTS: usize = 4096;

/// A region that the handler knows.
struct Slot {
    start: AtomicUsize,
    /// 0 where the slot is free.
    end: AtomicUsize,
    /// One more than the distance of the first byte that was lost from the start; 0 if none was.
    lost: AtomicUsize,
}

static REGIONS: [Slot; SLOTS] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), lost: AtomicUsize::new(0) } };
        SLOTS];
static IN_USE: Mutex<()> = Mutex::new(());
/// Slots that have ever been in use.
static HIGHEST: AtomicUsize = AtomicUsize::new(0);
static BUS: Front = Front::new(libc::SIGBUS);

/// Makes the handler know a region of RAM, as long as it lives.
#[derive(Debug)]
pub(super) struct Guard(usize);

impl Guard {
    /// Of the `len` bytes mapped at `start`.
    ///
    /// # Errors
    /// There are too many regions.
    pub(super) fn new(start: *mut u8, len: usize) -> io::Result<Self> {
        // SAFETY: the handler makes system calls and touches atomics and a plain thread-local word.
        unsafe { BUS.install(handler) };
        let _guard = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let free = REGIONS.iter().position(|slot| slot.end.load(Ordering::Relaxed) == 0);
        let n = free.ok_or_else(|| io::Error::other("too many regions of RAM in one process"))?;
        let slot = &REGIONS[n];
        slot.lost.store(0, Ordering::Relaxed);
        slot.start.store(start.expose_provenance(), Ordering::Relaxed);
        slot.end.store(start.addr() + len, Ordering::Release);
        HIGHEST.fetch_max(n + 1, Ordering::Release);
        Ok(Self(n))
    }

    /// The first byte that was lost, as distance from the start.
    #[inline]
    pub(super) fn lost(&self) -> Option<u64> {
        REGIONS[self.0].lost.load(Ordering::Acquire).checked_sub(1).map(|at| at as u64)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _guard = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        REGIONS[self.0].end.store(0, Ordering::Release);
    }
}

thread_local! {
    /// What makes this thread's vCPU leave.
    static STOP: Cell<Option<(NonNull<AtomicU32>, u32)>> = const { Cell::new(None) };
}

/// Does `work`; a loss that is found meanwhile on this thread sets `bits` in `word`.
pub fn stop_on_loss<R>(word: &AtomicU32, bits: u32, work: impl FnOnce() -> R) -> R {
    struct Before(Option<(NonNull<AtomicU32>, u32)>);
    impl Drop for Before {
        fn drop(&mut self) {
            STOP.set(self.0);
        }
    }
    let _before = Before(STOP.replace(Some((NonNull::from(word), bits))));
    work()
}

/// Whether a SIGBUS came of guest RAM. If so, the access goes on when the handler returns. For handlers in front of ours.
///
/// # Safety
/// Called in a handler of SIGBUS, with what that was called with.
pub unsafe fn take_bus_error(info: *mut libc::siginfo_t) -> bool {
    // SAFETY: the kernel's description of the signal.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // Misaligned accesses, and signals that somebody sent, have other codes.
    matches!(code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR) && replace(address)
}

extern "C" fn handler(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: what the kernel has called us with.
    unsafe {
        if !take_bus_error(info) {
            BUS.pass_on(info, context);
        }
    }
}

/// Replaces the page at `address` if it is guest RAM.
fn replace(address: usize) -> bool {
    let known = &REGIONS[..HIGHEST.load(Ordering::Acquire)];
    let within = |slot: &&Slot| {
        let end = slot.end.load(Ordering::Acquire);
        address < end && slot.start.load(Ordering::Relaxed) <= address
    };
    let Some(slot) = known.iter().find(within) else { return false };
    let (start, end) = (slot.start.load(Ordering::Relaxed), slot.end.load(Ordering::Relaxed));
    let first =
        slot.lost.compare_exchange(0, address - start + 1, Ordering::AcqRel, Ordering::Acquire).is_ok();
    let page = address & !(PAGE_SIZE as usize - 1);
    let done = first && map_zeros(page, PAGE_SIZE as usize) || map_zeros(page, end - page);
    if done && let Some((word, bits)) = STOP.get() {
        // SAFETY: borrowed by the `stop_on_loss` that has put it there and is not over.
        unsafe { word.as_ref() }.fetch_or(bits, Ordering::SeqCst);
    }
    done
}

/// Maps memory of this process alone in the place of guest RAM.
fn map_zeros(at: usize, len: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let at = std::ptr::with_exposed_provenance_mut(at);
    // SAFETY: within a region of RAM, which is mapped as long as it is known; it is reached through raw pointers only, and
    // none of its bytes is promised to anybody. The error number of the interrupted code is put back.
    unsafe {
        let errno = libc::__errno_location();
        let before = errno.read();
        let mapped = libc::mmap(at, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        errno.write(before);
        mapped != libc::MAP_FAILED
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Address as _, Bytes, GuestAddress};

    use super::*;
    use crate::GuestRam;

    /// RAM at two places, whose file ends in the middle of the second.
    fn short() -> GuestRam {
        let ram = GuestRam::new(&[(0, 0x4000), (1 << 32, 0x10_0000)]).unwrap();
        truncate(&ram, 0x4000 + 0x2000);
        ram
    }

    fn truncate(ram: &GuestRam, len: i64) {
        use std::os::fd::AsRawFd as _;
        // SAFETY: a descriptor that is open.
        assert_eq!(unsafe { libc::ftruncate(ram.fd().as_raw_fd(), len) }, 0);
    }

    #[test]
    fn a_page_that_the_host_does_not_give_is_noted_and_reads_as_zeros() {
        let ram = short();
        let at = |page: u64| GuestAddress((1 << 32) + page * PAGE_SIZE);
        ram.memory().write_obj(7u64, at(1)).unwrap();
        assert_eq!(ram.loss(), None);
        ram.memory().write_obj(9u64, at(5).unchecked_add(8)).unwrap();
        assert_eq!(ram.loss(), Some((1 << 32) + 0x5008));
        assert_eq!(ram.memory().read_obj::<u64>(at(5).unchecked_add(8)).unwrap(), 9);
        // Reads, and all of the rest, in any order, without a mapping for each page.
        let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        let before = maps();
        for page in (2..0x100).rev() {
            assert_eq!(ram.memory().read_obj::<u32>(at(page)).unwrap(), 0);
        }
        assert!(maps() < before + 20, "{before} to {}", maps());
        assert_eq!(ram.memory().read_obj::<u64>(at(1)).unwrap(), 7, "in front of it nothing is lost");
        assert_eq!(ram.loss(), Some((1 << 32) + 0x5008), "the first one counts");
        // Another one is not touched.
        assert_eq!(GuestRam::new(&[(0, 0x4000)]).unwrap().loss(), None);
    }

    #[test]
    fn the_thread_that_finds_it_is_told() {
        let (outer, inner, ram) = (AtomicU32::new(0), AtomicU32::new(0), short());
        let touch = |ram: &GuestRam| ram.memory().write_obj(1u8, GuestAddress((1 << 32) + 0x3000)).unwrap();
        let told = || (outer.load(Ordering::SeqCst), inner.load(Ordering::SeqCst));
        stop_on_loss(&outer, 1, || {
            stop_on_loss(&inner, 4, || {
                let other = short();
                std::thread::scope(|s| drop(s.spawn(|| touch(&other))));
                assert_eq!(told(), (0, 0), "another thread's");
                touch(&ram);
                assert_eq!(told(), (0, 4));
            });
            touch(&short());
            assert_eq!(told(), (1, 4));
        });
        outer.store(0, Ordering::SeqCst);
        touch(&short());
        assert_eq!(told(), (0, 4));
    }
}
