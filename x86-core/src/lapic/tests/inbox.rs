//! The inbox under concurrent senders.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::*;

/// Senders on several threads, each with vectors of its own, post one only after the owner has seen the last: each
/// arrives once, with its trigger mode, and whoever sleeps is woken by a kick.
#[test]
fn every_vector_arrives_once() {
    const SENDERS: usize = 4;
    const ROUNDS: usize = 2_000;

    let owner = thread::current();
    let kick = Arc::new(move |_| owner.unpark());
    let bus = Arc::new(ApicBus::new([0], kick));
    let mut lapic = Lapic::new(bus.clone(), 0, CONFIG, Arc::new(EoiLog::default())).unwrap();
    lapic.set_apic_base(DEFAULT_BASE | BASE_ENABLED | BASE_X2APIC).unwrap();
    lapic.write(SVR, 0x1ff);
    let seen: [AtomicUsize; 256] = std::array::from_fn(|_| AtomicUsize::new(0));
    let nmis_seen = AtomicUsize::new(0);

    thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (bus, seen, nmis_seen) = (&bus, &seen, &nmis_seen);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    // 56 vectors a sender, interleaved so that senders share words.
                    let vector = (32 + sender + SENDERS * (round % 56)) as u8;
                    let level = round % 3 == 0;
                    let before = seen[usize::from(vector)].load(Ordering::Acquire);
                    let message = ApicMessage { level, ..ApicMessage::fixed(Destination::All, vector) };
                    assert_eq!(bus.deliver(&message, None), 1);
                    if sender == 0 {
                        let nmis = nmis_seen.load(Ordering::Acquire);
                        bus.inject_nmi(0);
                        while nmis_seen.load(Ordering::Acquire) == nmis {
                            thread::yield_now();
                        }
                    }
                    while seen[usize::from(vector)].load(Ordering::Acquire) == before {
                        thread::yield_now();
                    }
                }
            });
        }
        let (mut taken, mut nmis) = (0, 0);
        while taken < SENDERS * ROUNDS || nmis < ROUNDS {
            let mut idle = true;
            if lapic.take_nmi() {
                nmis += 1;
                nmis_seen.fetch_add(1, Ordering::Release);
                idle = false;
            }
            if let Some(vector) = lapic.pending_vector() {
                assert_eq!(lapic.accept(vector), vector);
                lapic.write(EOI, 0);
                taken += 1;
                seen[usize::from(vector)].fetch_add(1, Ordering::Release);
                idle = false;
            }
            if idle {
                thread::park();
            }
        }
    });
    assert_eq!(lapic.pending_vector(), None);
    let total: usize = seen.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    assert_eq!(total, SENDERS * ROUNDS);
}

/// INIT with start-up behind it, raced against the owner: a start-up is never seen without its INIT before it.
#[test]
fn init_and_start_up_keep_their_order() {
    const ROUNDS: usize = 5_000;
    let rig = Rig::reset(&[0]);
    let inbox = Arc::clone(rig.lapics[0].inbox());
    let mut lapic = rig.lapics.into_iter().next().unwrap();
    let started = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..ROUNDS {
                inbox.post_init();
                inbox.post_sipi(round as u8);
                while started.load(Ordering::Acquire) == round {
                    thread::yield_now();
                }
            }
            stop.store(true, Ordering::Release);
        });
        let mut waiting = false;
        while !stop.load(Ordering::Acquire) {
            if lapic.take_init() {
                lapic.init();
                waiting = true;
            } else if let Some(vector) = lapic.take_sipi() {
                assert!(waiting, "no INIT before");
                assert_eq!(vector, started.load(Ordering::Relaxed) as u8);
                waiting = false;
                started.fetch_add(1, Ordering::Release);
            } else {
                thread::yield_now();
            }
        }
    });
    assert_eq!(started.into_inner(), ROUNDS);
}

/// Only the first of several posts between two pulls asks for a kick; after a pull the next one does again.
#[test]
fn kick_is_asked_for_once() {
    let inbox = LapicInbox::new(0);
    assert!(!inbox.has_work());
    assert!(inbox.post_vector(0x40, false));
    assert!(inbox.has_work());
    assert!(!inbox.post_vector(0x41, false));
    assert!(inbox.post_nmi());
    assert!(!inbox.post_nmi());
    let incoming = inbox.drain();
    assert!(incoming.vectors.contains(0x40) && incoming.vectors.contains(0x41) && incoming.nmi);
    assert!(!inbox.has_work());
    assert!(inbox.post_vector(0x40, false));
}

/// The bounds of a vector set.
#[test]
fn vector_set() {
    let mut set = VectorSet::EMPTY;
    assert_eq!(set.highest(), None);
    for vector in [0, 63, 64, 127, 128, 255] {
        set.insert(vector);
        assert!(set.contains(vector));
        assert_eq!(set.highest(), Some(vector));
    }
    assert_eq!((set.register(1), set.register(2), set.register(7)), (1 << 31, 1, 1 << 31));
    assert_eq!(VectorSet::from_registers(std::array::from_fn(|at| set.register(at as u8))), set);
    set.remove(255);
    assert_eq!(set.highest(), Some(128));
    assert!(!set.is_empty());
}
