//! The lock-free half of the local APIC, and what keeps vCPUs out of guest code, under every order that their threads' accesses
//! can have, weak memory included.
//!
//! The real source is compiled here once more, with loom's atomics in the place of the standard library's.

mod sync {
    pub(crate) use loom::sync::atomic;
}

#[allow(dead_code, unreachable_pub, missing_docs)]
#[path = "../src/lapic"]
mod lapic {
    pub(crate) mod inbox;
    mod registers;
    mod vectors;

    pub(crate) use inbox::LapicInbox;

    /// What an owner has taken.
    #[derive(Default, Debug)]
    pub(crate) struct Taken {
        pub(crate) vectors: [u64; 4],
        pub(crate) level: [u64; 4],
        pub(crate) nmis: u32,
        pub(crate) inits: u32,
        pub(crate) sipis: Vec<u8>,
    }

    impl Taken {
        pub(crate) fn drain(&mut self, inbox: &LapicInbox) {
            let new = inbox.drain();
            for word in 0..4 {
                self.vectors[word] |= new.vectors.0[word];
                self.level[word] |= new.level.0[word];
            }
            self.nmis += u32::from(new.nmis);
            self.inits += u32::from(new.init);
            self.sipis.extend(new.sipi);
        }

        pub(crate) fn has(&self, vector: u8) -> bool {
            self.vectors[usize::from(vector / 64)] >> (vector % 64) & 1 != 0
        }

        pub(crate) fn is_level(&self, vector: u8) -> bool {
            self.level[usize::from(vector / 64)] >> (vector % 64) & 1 != 0
        }
    }
}

#[allow(dead_code)]
#[path = "../src/presence.rs"]
mod presence;

use lapic::{LapicInbox, Taken};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

/// Runs `senders` beside an owner that looks as often as it is kicked, under every order; returns what it has taken to
/// `check`. Each sender returns whether the vCPU must be kicked. The owner's looks are bounded; the last one comes only if a
/// kick is left, as a vCPU that sleeps has it.
fn every_order(senders: &'static [fn(&LapicInbox) -> bool], check: fn(&Taken)) {
    loom::model(move || {
        let inbox = Arc::new(LapicInbox::new(0));
        let kicked = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = senders
            .iter()
            .map(|send| {
                let (inbox, kicked) = (inbox.clone(), kicked.clone());
                thread::spawn(move || {
                    if send(&inbox) {
                        kicked.fetch_or(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let mut taken = Taken::default();
        if kicked.swap(0, Ordering::SeqCst) != 0 {
            taken.drain(&inbox);
        }
        for thread in threads {
            thread.join().unwrap();
        }
        if kicked.swap(0, Ordering::SeqCst) != 0 {
            taken.drain(&inbox);
        }
        check(&taken);
        assert!(!inbox.has_work(), "something is left that no kick tells of");
    });
}

/// A sender that finds the flag up does not kick: the kick of the one that raised it must do for both.
#[test]
fn no_vector_is_left_behind() {
    every_order(&[|inbox| inbox.post_vector(0x31, false), |inbox| inbox.post_vector(0x32, true)], |taken| {
        assert!(taken.has(0x31) && taken.has(0x32), "{taken:x?}");
        assert!(taken.is_level(0x32) && !taken.is_level(0x31), "{taken:x?}");
    });
}

#[test]
fn vectors_in_different_words_and_an_nmi() {
    every_order(&[|inbox| inbox.post_vector(0xe0, false), |inbox| inbox.post_nmi()], |taken| {
        assert!(taken.has(0xe0), "{taken:x?}");
        assert_eq!(taken.nmis, 1);
    });
}

/// Two NMIs are two, whichever is first and whatever the owner has taken by then.
#[test]
fn nmis_are_counted() {
    every_order(&[|inbox| inbox.post_nmi(), |inbox| inbox.post_nmi()], |taken| assert_eq!(taken.nmis, 2));
}

/// A start-up message that comes behind INIT is taken with it or after it; one that came before is void.
#[test]
fn init_and_start_up_messages_keep_their_order() {
    every_order(&[|inbox| inbox.post_init() | inbox.post_sipi(0x9a), |inbox| inbox.post_nmi()], |taken| {
        assert_eq!((taken.inits, &taken.sipis[..], taken.nmis), (1, &[0x9a][..], 1));
    });
    every_order(&[|inbox| inbox.post_sipi(0x12), |inbox| inbox.post_sipi(0x34)], |taken| {
        let first = taken.sipis[0];
        assert!(matches!(taken.sipis.len(), 1 | 2) && [0x12, 0x34].contains(&first), "{taken:x?}");
    });
}

/// Who is alone has memory to itself, with all that was stored before; who asks and does not wait keeps others out from then on.
#[test]
fn who_is_alone_and_who_is_present() {
    use presence::{Presence, Solitude};
    #[derive(Default)]
    struct Vm {
        solitude: Solitude,
        vcpus: [Presence; 2],
        memory: UnsafeCell<()>,
    }
    loom::model(|| {
        let vm = Arc::new(Vm::default());
        let other = vm.clone();
        let other = thread::spawn(move || {
            if other.vcpus[1].try_enter(&other.solitude) {
                // Loom finds out whether anybody else does meanwhile.
                other.memory.with_mut(|_| ());
                other.vcpus[1].leave();
            }
        });
        vm.vcpus[0].want(&vm.solitude);
        while vm.vcpus[1].is_present() {
            thread::yield_now();
        }
        vm.memory.with_mut(|_| ());
        vm.vcpus[0].come_back();
        assert!(vm.vcpus[0].may_enter(&vm.solitude), "its own wish does not keep it out");
        vm.vcpus[0].unwant(&vm.solitude);
        other.join().unwrap();
        assert!(vm.vcpus[1].try_enter(&vm.solitude));
    });
}
