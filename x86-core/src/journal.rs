//! Stores that can be taken back.
//!
//! 1. While a [`Journal`] is in place the soft TLB answers no store and remembers nothing new, so each store comes through
//!    the slow path, where what it overwrites is noted. Accessed and dirty bits of page tables are stores like any other.
//! 2. What lies outside the CPU and its RAM must not be touched on trial: a device or local APIC access, and a store to
//!    code that somebody has decoded, *bar* the attempt instead. So does more data than a trial is worth.
#![allow(unsafe_code)] // copies guest RAM through host pointers that loads and stores have checked

use crate::{Cpu, host_read, host_write};

/// Bytes noted before a trial is given up.
const MOST: usize = 256 << 10;

/// A store that was made on trial.
#[derive(Clone, Copy, Debug)]
pub struct Noted {
    host: *mut u8,
    /// Its place in RAM, as offset in the RAM file.
    pub place: u64,
    /// Instructions that had been executed before the one that stored.
    pub step: usize,
    /// Where in [`Journal::old`] and [`Journal::new`] its bytes are.
    at: usize,
    len: usize,
}

/// What a store should have left, and what is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrongBytes {
    /// Offset in the RAM file: the guest-physical address below the hole of devices.
    pub place: u64,
    /// Instructions before the one that stored.
    pub step: usize,
    /// What the trial left.
    pub expected: Vec<u8>,
    /// What is there.
    pub found: Vec<u8>,
}

/// Notes of the stores made while it is in place.
#[derive(Debug, Default)]
pub struct Journal {
    notes: Vec<Noted>,
    old: Vec<u8>,
    new: Vec<u8>,
    step: usize,
    /// Notes whose new bytes are known.
    complete: usize,
    barred: bool,
}

impl Journal {
    /// Empties it for another trial.
    pub fn clear(&mut self) {
        self.notes.clear();
        self.old.clear();
        self.new.clear();
        (self.step, self.complete) = (0, 0);
        self.barred = false;
    }

    /// Something was asked for that cannot be done on trial; it was not done.
    pub fn barred(&self) -> bool {
        self.barred
    }

    pub(crate) fn bar(&mut self) {
        self.barred = true;
    }

    /// Notes `len` bytes at `host`, about to be written, if there is room for them.
    fn note(&mut self, page: usize, host: *mut u8, len: usize) {
        if self.old.len() + len > MOST {
            // The store happens all the same, and must be taken back.
            self.barred = true;
        }
        let place = (page as u64) << 12 | host as u64 & 0xfff;
        self.notes.push(Noted { host, place, step: self.step, at: self.old.len(), len });
        // SAFETY: whoever is about to write there has checked it for a write of this length.
        unsafe { append(&mut self.old, host, len) };
    }

    /// The instruction is over: what it stored is now there to be read.
    pub fn end_step(&mut self) {
        for note in &self.notes[self.complete..] {
            // SAFETY: as in `note`; the memory map has not changed since, as only this vCPU's own thread changes what it
            // uses, between instructions.
            unsafe { append(&mut self.new, note.host, note.len) };
        }
        self.complete = self.notes.len();
        self.step += 1;
    }

    /// Takes all stores back, the last one first.
    pub fn undo(&mut self) {
        for note in self.notes.iter().rev() {
            let old = &self.old[note.at..note.at + note.len];
            // SAFETY: as in `note`.
            unsafe { host_write(note.host, old) };
        }
    }

    /// Where RAM is not as the first `steps` instructions left it on trial.
    pub fn wrong_bytes(&self, steps: usize) -> Vec<WrongBytes> {
        let list: Vec<_> = self.notes[..self.complete].iter().filter(|n| n.step < steps).collect();
        let (mut wrong, mut found) = (Vec::new(), Vec::new());
        for (n, note) in list.iter().enumerate() {
            let expected = &self.new[note.at..note.at + note.len];
            found.clear();
            // SAFETY: as in `note`.
            unsafe { append(&mut found, note.host, note.len) };
            if expected == found {
                continue;
            }
            let later = &list[n + 1..];
            let stands = |at: usize| {
                let byte = note.host.wrapping_add(at) as usize;
                !later.iter().any(|l| (l.host as usize..l.host as usize + l.len).contains(&byte))
            };
            if (0..note.len).any(|at| expected[at] != found[at] && stands(at)) {
                let (expected, found) = (expected.to_vec(), found.clone());
                wrong.push(WrongBytes { place: note.place, step: note.step, expected, found });
            }
        }
        wrong
    }
}

/// Appends `len` bytes at `host`.
///
/// # Safety
/// As [`host_read`].
unsafe fn append(to: &mut Vec<u8>, host: *const u8, len: usize) {
    let at = to.len();
    to.resize(at + len, 0);
    // SAFETY: the caller's promise.
    unsafe { host_read(host, &mut to[at..]) };
}

impl Cpu {
    /// To be called before `len` bytes at `host`, in RAM page `page`, are written.
    #[inline(always)]
    pub(crate) fn about_to_write(&mut self, page: usize, host: *mut u8, len: usize) {
        if let Some(journal) = &mut self.journal {
            journal.note(page, host, len);
        }
    }

    /// Whether something outside must be left alone now; notes that it was asked for.
    #[inline(always)]
    pub(crate) fn on_trial(&mut self) -> bool {
        match &mut self.journal {
            Some(journal) => {
                journal.bar();
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cpu, peek, poke};
    use crate::{Ea, Mode};

    /// Runs `body` with a journal in place and returns that.
    fn on_trial(cpu: &mut Cpu, body: impl FnOnce(&mut Cpu)) -> Box<Journal> {
        cpu.journal = Some(Box::default());
        cpu.update_data_table();
        body(cpu);
        let journal = cpu.journal.take().unwrap();
        cpu.update_data_table();
        journal
    }

    #[test]
    fn every_way_to_store_is_taken_back() {
        let mut cpu = cpu(Mode::Long);
        poke(&mut cpu, 0x2ff0, &[0x11; 0x40]);
        // A hit in the TLB must not get around the journal.
        cpu.store(Ea::data(0x2ff0), 0x1111_1111_1111_1111u64).unwrap();
        let mut journal = on_trial(&mut cpu, |cpu| {
            cpu.store(Ea::data(0x2ff0), 1u64).unwrap();
            cpu.store(Ea::data(0x2ffc), 2u64).unwrap();
            cpu.rmw::<u32, ()>(Ea::data(0x2ff4), true, |old| Ok((old + 5, ()))).unwrap();
            cpu.rmw::<u64, ()>(Ea::data(0x2ff9), false, |old| Ok((old + 5, ()))).unwrap();
            cpu.store_bytes(Ea::data(0x3004), &[7; 20]).unwrap();
            cpu.system_store(0x3010, 9u16).unwrap();
            cpu.system_update(0x3020, |old| old | 0x80).unwrap();
            cpu.journal.as_mut().unwrap().end_step();
        });
        assert_ne!(peek(&mut cpu, 0x2ff0, 0x40), [0x11; 0x40]);
        assert!(journal.wrong_bytes(1).is_empty());
        journal.undo();
        assert_eq!(peek(&mut cpu, 0x2ff0, 0x40), [0x11; 0x40]);
        assert!(!journal.barred());
        assert!(journal.wrong_bytes(0).is_empty());
        let wrong = journal.wrong_bytes(1);
        assert!(wrong.len() >= 6, "{wrong:x?}");
    }

    #[test]
    fn bytes_that_were_overwritten_later_do_not_count() {
        let mut cpu = cpu(Mode::Long);
        let journal = on_trial(&mut cpu, |cpu| {
            cpu.store(Ea::data(0x2000), 0x0102_0304u32).unwrap();
            cpu.journal.as_mut().unwrap().end_step();
            cpu.store(Ea::data(0x2002), 0x55u8).unwrap();
            cpu.journal.as_mut().unwrap().end_step();
        });
        assert!(journal.wrong_bytes(2).is_empty());
        // As if the second instruction had not been executed.
        poke(&mut cpu, 0x2002, &[2]);
        assert!(journal.wrong_bytes(1).is_empty());
        let wrong = journal.wrong_bytes(2);
        assert_eq!((wrong.len(), wrong[0].place, wrong[0].step), (1, 0x2002, 1));
        assert_eq!((&wrong[0].expected[..], &wrong[0].found[..]), (&[0x55][..], &[2][..]));
    }

    #[test]
    fn devices_and_too_much_data_bar() {
        let mut cpu = cpu(Mode::Long);
        let beyond = crate::testing::RAM_SIZE;
        let journal = on_trial(&mut cpu, |cpu| cpu.store(Ea::data(beyond), 1u32).unwrap());
        assert!(journal.barred());
        let journal = on_trial(&mut cpu, |cpu| assert_eq!(cpu.load::<u8>(Ea::data(beyond)), Ok(0xff)));
        assert!(journal.barred());
        let mut journal = on_trial(&mut cpu, |cpu| {
            (0..=MOST / 4096)
                .for_each(|n| cpu.store_bytes(Ea::data(0x1000 * n as u64 + 0x1000), &[1; 4096]).unwrap());
        });
        assert!(journal.barred());
        journal.undo();
        assert_eq!(peek(&mut cpu, 0x1000, 8), [0; 8]);
    }
}
