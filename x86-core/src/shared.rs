//! What several threads may touch of a software VM: requests to its vCPUs, and the memory map.
//!
//! A vCPU in guest code looks at its request word every thousand instructions or so, never in the middle of one. A
//! requester that must know when the vCPU has seen a change waits in [`VcpuShared::settle`].

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Duration;

use accel_api::{CodeObserver, Kick, PageFlag, PageFlags};

use crate::presence::{Presence, Solitude};
use crate::request_word::RequestWord;
use crate::{CodeMap, MemoryMap, PageList, StaleCode};

/// Bits of a vCPU's request word.
pub mod request {
    /// Leave `run`.
    pub const KICK: u32 = 1;
    /// The interrupt inbox has something new.
    pub const INTERRUPT: u32 = 2;
    /// Pages of decoded code were written: [`super::VcpuShared::take_stale_code`].
    pub const CODE: u32 = 4;
    /// Somebody decodes new code, stores to which must ask from now on: [`super::VcpuShared::take_watched_pages`].
    pub const WRITES: u32 = 8;
    /// The memory map changed.
    pub const REMAP: u32 = 16;
    /// The dirty flags are about to be cleared: every store must ask again.
    pub const DIRTY: u32 = 32;
    /// The timer of the local APIC is due: `soft::Alarm`.
    pub const TIMER: u32 = 64;
    /// Leave guest code until [`super::VmShared::enter`] lets the vCPU in again.
    pub const LEAVE: u32 = 128;
}

/// The part of a vCPU that other threads use.
#[derive(Debug, Default)]
pub struct VcpuShared {
    requests: RequestWord,
    stale_code: Mutex<PageList>,
    watched_pages: Mutex<PageList>,
    /// In guest code, so that requests take effect only once it looks.
    pub(crate) presence: Presence,
    sleep: Mutex<()>,
    wake: Condvar,
    /// Waits in [`Self::wait_until`].
    waits: AtomicBool,
}

impl VcpuShared {
    /// Asks for something ([`request`]); wakes the vCPU if it sleeps. Never blocks on guest code.
    pub fn post(&self, bits: u32) {
        let before = self.requests.fetch_or(bits, Ordering::SeqCst);
        if before & bits != bits {
            // The sleeper checks the word with this lock held, so it cannot miss the notification.
            let _guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
    }

    /// The request word, left as it is.
    #[inline(always)]
    pub fn requested(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The request word, for who sets bits in it as [`Self::post`] does and need not wake the vCPU: it runs.
    pub(crate) fn word(&self) -> &AtomicU32 {
        &self.requests
    }

    /// Where the request word lies, for code that polls it.
    pub fn request_word(&self) -> *const AtomicU32 {
        &raw const *self.requests
    }

    /// Takes those of the requests that are in `bits`; the vCPU serves them before it touches guest memory again.
    pub fn take(&self, bits: u32) -> u32 {
        self.requests.fetch_and(!bits, Ordering::SeqCst) & bits
    }

    /// Sleeps until something is requested or `timeout` passes.
    pub fn sleep(&self, timeout: Option<Duration>) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        while self.requests.load(Ordering::SeqCst) == 0 {
            match timeout {
                None => guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let _ = self.wake.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner);
                    return;
                }
            }
        }
    }

    /// Tells that the vCPU leaves guest code; returns whether it was there. It comes back by [`VmShared::enter`].
    pub fn leave(&self) -> bool {
        self.presence.leave()
    }

    /// Sleeps until `free`, or one of `requests` is asked for; whether `free` came first. Who makes it free calls
    /// [`Self::look_again`].
    pub(crate) fn wait_until(&self, free: impl Fn() -> bool, requests: u32) -> bool {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.waits.store(true, Ordering::Relaxed);
        // Who frees it looks second whether we wait.
        fence(Ordering::SeqCst);
        let freed = loop {
            if free() {
                break true;
            }
            if self.requests.load(Ordering::SeqCst) & requests != 0 {
                break false;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.waits.store(false, Ordering::Relaxed);
        freed
    }

    /// Wakes the vCPU from [`Self::wait_until`], if it waits there.
    pub(crate) fn look_again(&self) {
        // It says that it waits before it looks, and what it looks at has changed by now.
        if self.waits.load(Ordering::Relaxed) {
            let _guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
    }

    /// Waits until the vCPU has taken the requests `bits`, or is outside guest code, where it will look before it goes
    /// in.
    pub fn settle(&self, bits: u32) {
        // It says that it is there before it looks at requests.
        fence(Ordering::SeqCst);
        while self.requests.load(Ordering::SeqCst) & bits != 0 && self.presence.is_present() {
            std::thread::yield_now();
        }
    }

    /// What has become stale of decoded code, since the last call.
    pub fn take_stale_code(&self) -> PageList {
        std::mem::take(&mut *self.stale_code.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Pages that somebody else decoded, since the last call: stores to them must ask.
    pub fn take_watched_pages(&self) -> PageList {
        std::mem::take(&mut *self.watched_pages.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, list: &Mutex<PageList>, item: StaleCode, bit: u32) {
        list.lock().unwrap_or_else(PoisonError::into_inner).add(item.page, item.lines);
        self.post(bit);
    }
}

impl Kick for VcpuShared {
    fn kick(&self) {
        self.post(request::KICK);
    }
}

/// The part of a VM that its vCPUs share.
#[derive(Debug)]
pub struct VmShared {
    /// Decoded lines.
    pub code: CodeMap,
    /// Flags of the RAM's pages.
    pub flags: Arc<PageFlags>,
    /// One entry a vCPU, by id.
    pub vcpus: Vec<Arc<VcpuShared>>,
    /// Counts stores to pages with decoded code: who decodes looks whether one came in between.
    pub code_writes: AtomicU64,
    /// Counts how often decoded lines began to be forgotten, and how often all had been told of it.
    forgetting: AtomicU64,
    forgotten: AtomicU64,
    telling: Mutex<()>,
    /// See [`crate::exclusion`].
    pub(crate) solitude: Solitude,
    /// Whether a vCPU is alone in guest code, or is about to be.
    pub(crate) turn: AtomicBool,
    map: RwLock<Arc<MemoryMap>>,
}

impl VmShared {
    /// A VM of `vcpus` vCPUs with no memory mapped.
    pub fn new(flags: Arc<PageFlags>, vcpus: u32) -> Arc<Self> {
        let shared = Arc::new(Self {
            code: CodeMap::new(flags.pages()),
            vcpus: (0..vcpus).map(|_| Arc::new(VcpuShared::default())).collect(),
            code_writes: AtomicU64::new(0),
            forgetting: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            telling: Mutex::new(()),
            solitude: Solitude::default(),
            turn: AtomicBool::new(false),
            map: RwLock::default(),
            flags,
        });
        let observer = Arc::downgrade(&shared);
        shared.flags.observe_code(observer);
        shared
    }

    /// The current memory map.
    pub fn map(&self) -> Arc<MemoryMap> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the memory map by what `change` makes of it; when it returns every vCPU uses the new one.
    ///
    /// # Errors
    /// Those of `change`; the map is then as before.
    pub fn remap<E>(&self, change: impl FnOnce(&MemoryMap) -> Result<MemoryMap, E>) -> Result<(), E> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        *map = Arc::new(change(&map)?);
        drop(map);
        self.post_all(request::REMAP);
        self.vcpus.iter().for_each(|v| v.settle(request::REMAP));
        Ok(())
    }

    /// Posts a request to every vCPU.
    pub fn post_all(&self, bits: u32) {
        self.vcpus.iter().for_each(|v| v.post(bits));
    }

    /// Decoded code is stale: forgets it and tells every vCPU but `writer`, which looks after itself. Stores to other lines of
    /// the page go on to ask. Returns how often that had been done before.
    pub fn code_stale(&self, stale: StaleCode, writer: Option<usize>) -> u64 {
        let _one_by_one = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        // First: a vCPU that finds the mark gone finds that it has something to be told.
        let before = self.forgetting.fetch_add(1, Ordering::SeqCst);
        if stale.lines == u64::MAX {
            self.flags.clear(stale.page, PageFlag::CODE);
        }
        self.code.remove(stale.page, stale.lines);
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            if Some(id) != writer {
                vcpu.push(&vcpu.stale_code, stale, request::CODE);
            }
        }
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        before
    }

    /// Whether lines have been forgotten since `told`, an earlier answer of [`Self::told`]: a vCPU may still have code of
    /// lines that [`Self::code`] does not know any more.
    #[inline]
    pub fn forgot_since(&self, told: u64) -> bool {
        self.forgetting.load(Ordering::SeqCst) != told
    }

    /// How often all vCPUs have been told that lines are forgotten; each finds what it was told in its requests.
    #[inline]
    pub fn told(&self) -> u64 {
        self.forgotten.load(Ordering::SeqCst)
    }

    /// vCPU `reader` is about to decode code of `page`: the others' stores to it must ask from now on. What they stored
    /// without asking is visible when this returns. The reader may have been asked for something meanwhile, and must
    /// look before it goes on with guest code; if false, one of `requests`, and it is not in guest code any more.
    pub(crate) fn code_watched(&self, page: usize, reader: usize, requests: u32) -> bool {
        let others = || self.vcpus.iter().enumerate().filter(|(id, _)| *id != reader).map(|(_, vcpu)| vcpu);
        let page = StaleCode::page(page);
        others().for_each(|vcpu| vcpu.push(&vcpu.watched_pages, page, request::WRITES));
        // Two readers wait for each other here.
        let present = self.vcpus.get(reader).is_some_and(|own| own.leave());
        others().for_each(|vcpu| vcpu.settle(request::WRITES));
        !present || self.enter(reader, requests)
    }
}

impl CodeObserver for VmShared {
    fn code_written(&self, page: usize) {
        // As a vCPU's store does, behind the bytes: who has just read the old ones looks whether it has changed.
        self.code_writes.fetch_add(1, Ordering::SeqCst);
        self.code_stale(StaleCode::page(page), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_request_is_not_lost() {
        let v = VcpuShared::default();
        v.kick();
        v.sleep(None);
        assert_eq!(v.take(u32::MAX), request::KICK);
        assert_eq!(v.take(u32::MAX), 0);
    }

    #[test]
    fn a_request_wakes_the_sleeper() {
        let v = Arc::new(VcpuShared::default());
        let other = v.clone();
        let sleeper = std::thread::spawn(move || {
            other.sleep(None);
            other.take(u32::MAX)
        });
        std::thread::sleep(Duration::from_millis(5));
        v.post(request::INTERRUPT);
        assert_eq!(sleeper.join().unwrap(), request::INTERRUPT);
    }

    #[test]
    fn dma_into_code_makes_it_stale_for_every_vcpu() {
        let flags = Arc::new(PageFlags::new(4));
        let vm = VmShared::new(flags.clone(), 2);
        vm.code.add(3, 1);
        flags.set(3, PageFlag::CODE);
        flags.mark_written(3 * 4096, 1);
        for vcpu in &vm.vcpus {
            assert_eq!(vcpu.take(u32::MAX), request::CODE);
            let stale: Vec<_> = vcpu.take_stale_code().pages().unwrap().collect();
            assert_eq!(stale, [StaleCode::page(3)]);
        }
        assert_eq!(vm.code.get(3), 0);
    }
}
