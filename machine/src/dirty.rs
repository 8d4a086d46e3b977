//! Pages that were written, for several consumers: a snapshot, a migration, a display.
//!
//! An accelerator gives each written page away once. What one consumer takes from it is put aside for all others, so each sees
//! every page exactly as often as it was written between two of its own takes, merged.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use accel_api::{AccelError, AccelVm, DirtyPages};

/// The pages written that some consumer has not seen.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    vm: Mutex<Arc<dyn AccelVm>>,
    waiting: Mutex<Vec<Weak<Mutex<DirtyPages>>>>,
}

impl DirtyLog {
    pub(crate) fn new(vm: Arc<dyn AccelVm>) -> Arc<Self> {
        Arc::new(Self { vm: Mutex::new(vm), waiting: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Mutex<DirtyPages>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vm(&self) -> Arc<dyn AccelVm> {
        self.vm.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is written from now on is `vm`'s to tell; nothing runs at this moment. What the one before has to tell is taken from
    /// it.
    ///
    /// # Errors
    /// The new one cannot record stores, or the old one fails; nothing has changed then.
    pub(crate) fn follow(&self, vm: &Arc<dyn AccelVm>) -> Result<(), AccelError> {
        let waiting = self.lock();
        if waiting.iter().any(|other| other.strong_count() > 0) {
            vm.start_dirty_log()?;
            self.put_aside(&waiting)?;
        }
        self.stay_with(vm);
        Ok(())
    }

    /// The same, where `vm` has told until now.
    pub(crate) fn stay_with(&self, vm: &Arc<dyn AccelVm>) {
        *self.vm.lock().unwrap_or_else(PoisonError::into_inner) = vm.clone();
    }

    /// A new consumer, which sees what is written from now on.
    ///
    /// # Errors
    /// The accelerator cannot record stores.
    pub(crate) fn consumer(self: &Arc<Self>) -> Result<DirtyConsumer, AccelError> {
        self.vm().start_dirty_log()?;
        // What was written until now is the others' alone.
        self.share()?;
        let mut waiting = self.lock();
        waiting.retain(|other| other.strong_count() > 0);
        let own = Arc::<Mutex<DirtyPages>>::default();
        waiting.push(Arc::downgrade(&own));
        Ok(DirtyConsumer { log: self.clone(), waiting: own })
    }

    /// Takes what the accelerator has and puts it aside for all.
    fn share(&self) -> Result<(), AccelError> {
        let waiting = self.lock();
        self.put_aside(&waiting)
    }

    fn put_aside(&self, waiting: &[Weak<Mutex<DirtyPages>>]) -> Result<(), AccelError> {
        let taken = self.vm().take_dirty()?;
        for other in waiting.iter().filter_map(Weak::upgrade) {
            other.lock().unwrap_or_else(PoisonError::into_inner).merge(&taken);
        }
        Ok(())
    }
}

/// One who wants to know which pages were written. Dropped, it costs nothing more.
#[derive(Debug)]
pub struct DirtyConsumer {
    log: Arc<DirtyLog>,
    waiting: Arc<Mutex<DirtyPages>>,
}

impl DirtyConsumer {
    /// The pages written since the last call, or since it was made. What is copied of them after this returns is never older
    /// than the last store that is told here; a later store is told the next time. The guest may run.
    ///
    /// # Errors
    /// The accelerator fails.
    pub fn take(&self) -> Result<DirtyPages, AccelError> {
        self.log.share()?;
        Ok(std::mem::take(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use crate::fake::{Step, guest};

    #[test]
    fn each_consumer_sees_each_page_once() {
        let machine = guest(|_| Step::Halt).build().unwrap();
        let write = |page: u64| machine.ram().memory().write_obj(1u8, GuestAddress(page << 12)).unwrap();
        let pages = |pages: &accel_api::DirtyPages| pages.iter().collect::<Vec<_>>();
        let one = machine.dirty_consumer().unwrap();
        one.take().unwrap();
        write(0x20);
        let two = machine.dirty_consumer().unwrap();
        write(0x21);
        assert_eq!(pages(&one.take().unwrap()), [0x20, 0x21]);
        write(0x22);
        write(0x21);
        assert_eq!(pages(&two.take().unwrap()), [0x21, 0x22], "and nothing from before it was there");
        assert!(two.take().unwrap().is_empty());
        assert_eq!(pages(&one.take().unwrap()), [0x21, 0x22]);
        drop(two);
        write(0x23);
        assert_eq!(pages(&one.take().unwrap()), [0x23]);
        // A reset writes all of it.
        machine.reset().unwrap();
        assert_eq!(one.take().unwrap().count() as u64, machine.ram().size() >> 12);
    }
}
