//! One byte of atomic flags for each 4 KiB page of guest RAM.
//!
//! Everything that writes RAM meets here: software CPUs set `DIRTY` before a page may be stored to without asking
//! again, device DMA reports through vm-memory's [`Bitmap`], KVM's dirty log is merged in. `CODE` marks pages whose
//! decoded or translated form somebody holds; a write to one is told to the [`CodeObserver`]s.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::PAGE_SIZE;

bitflags::bitflags! {
    /// What is known of a page.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PageFlag: u8 {
        /// Written since the flag was last cleared.
        const DIRTY = 1;
        /// Decoded or translated code of this page exists.
        const CODE = 2;
    }
}

/// Told of writes to `CODE` pages that did not go through a software CPU's own store path.
pub trait CodeObserver: Send + Sync {
    /// Page number `page` (index into the RAM, not a guest address) was written.
    fn code_written(&self, page: usize);
}

/// The flags of all pages, indexed by RAM offset / 4096.
pub struct PageFlags {
    flags: Box<[AtomicU8]>,
    observers: RwLock<Vec<Weak<dyn CodeObserver>>>,
}

impl PageFlags {
    /// Flags for `pages` pages, all clear.
    pub fn new(pages: usize) -> Self {
        let mut flags = Vec::new();
        flags.resize_with(pages, AtomicU8::default);
        Self { flags: flags.into_boxed_slice(), observers: RwLock::default() }
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.flags.len()
    }

    /// Flags of `page`; none beyond the end.
    pub fn get(&self, page: usize) -> PageFlag {
        let bits = self.flags.get(page).map_or(0, |f| f.load(Ordering::Acquire));
        PageFlag::from_bits_truncate(bits)
    }

    /// Sets flags, returning those before.
    pub fn set(&self, page: usize, flags: PageFlag) -> PageFlag {
        let bits = self.flags.get(page).map_or(0, |f| f.fetch_or(flags.bits(), Ordering::AcqRel));
        PageFlag::from_bits_truncate(bits)
    }

    /// Clears flags, returning those before.
    pub fn clear(&self, page: usize, flags: PageFlag) -> PageFlag {
        let bits = self.flags.get(page).map_or(0, |f| f.fetch_and(!flags.bits(), Ordering::AcqRel));
        PageFlag::from_bits_truncate(bits)
    }

    /// Records a write of `len` bytes at RAM offset `offset` by something that is not a vCPU.
    pub fn mark_written(&self, offset: u64, len: usize) {
        if len == 0 {
            return;
        }
        let first = offset / PAGE_SIZE;
        let last = offset.saturating_add(len as u64 - 1) / PAGE_SIZE;
        for page in first..=last.min(self.flags.len() as u64) {
            let page = page as usize;
            if self.set(page, PageFlag::DIRTY).contains(PageFlag::CODE) {
                self.notify(page);
            }
        }
    }

    /// Registers an observer for as long as it lives.
    pub fn observe_code(&self, observer: Weak<dyn CodeObserver>) {
        let mut list = self.observers.write().unwrap_or_else(PoisonError::into_inner);
        list.retain(|o| o.strong_count() > 0);
        list.push(observer);
    }

    #[cold]
    fn notify(&self, page: usize) {
        let list = self.observers.read().unwrap_or_else(PoisonError::into_inner);
        for observer in list.iter().filter_map(Weak::upgrade) {
            observer.code_written(page);
        }
    }
}

impl fmt::Debug for PageFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageFlags").field("pages", &self.pages()).finish_non_exhaustive()
    }
}

/// [`PageFlags`] as vm-memory's bitmap of one region, so that every write through vm-memory is recorded.
#[derive(Clone, Debug)]
pub struct PageBitmap {
    flags: Arc<PageFlags>,
    base: u64,
}

impl PageBitmap {
    /// The view that starts at RAM offset `base`.
    pub fn new(flags: Arc<PageFlags>, base: u64) -> Self {
        Self { flags, base }
    }
}

impl WithBitmapSlice<'_> for PageBitmap {
    type S = Self;
}

impl BitmapSlice for PageBitmap {}

impl Bitmap for PageBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.flags.mark_written(self.base + offset as u64, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.flags.get(((self.base + offset as u64) / PAGE_SIZE) as usize).contains(PageFlag::DIRTY)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { flags: self.flags.clone(), base: self.base + offset as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Log(Mutex<Vec<usize>>);
    impl CodeObserver for Log {
        fn code_written(&self, page: usize) {
            self.0.lock().unwrap().push(page);
        }
    }

    #[test]
    fn dma_into_code_reaches_observers_once_a_page() {
        let flags = Arc::new(PageFlags::new(8));
        let log = Arc::new(Log::default());
        flags.observe_code(Arc::downgrade(&log) as Weak<dyn CodeObserver>);
        flags.set(2, PageFlag::CODE);
        flags.set(5, PageFlag::CODE);
        let region = PageBitmap::new(flags.clone(), PAGE_SIZE);
        region.slice_at(0x800).mark_dirty(0x700, 0x200);
        assert_eq!(*log.0.lock().unwrap(), [2]);
        assert!(flags.get(1).contains(PageFlag::DIRTY) && flags.get(2).contains(PageFlag::DIRTY));
        assert!(!flags.get(3).contains(PageFlag::DIRTY));
    }

    #[test]
    fn writes_beyond_the_end_are_harmless() {
        let flags = PageFlags::new(2);
        flags.mark_written(PAGE_SIZE, 1 << 40);
        assert!(flags.get(1).contains(PageFlag::DIRTY));
        assert!(flags.get(2).is_empty());
    }
}
