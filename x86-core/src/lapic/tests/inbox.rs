//! The inbox under concurrent senders.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

/// No test waits longer than this for another thread to get on: it fails then.
const STALL: Duration = Duration::from_secs(20);

fn wait_until(done: impl Fn() -> bool) {
    let limit = Instant::now() + STALL;
    while !done() {
        assert!(Instant::now() < limit, "something was lost");
        thread::yield_now();
    }
}

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
                        wait_until(|| nmis_seen.load(Ordering::Acquire) != nmis);
                    }
                    wait_until(|| seen[usize::from(vector)].load(Ordering::Acquire) != before);
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
                let since = Instant::now();
                thread::park_timeout(STALL);
                assert!(since.elapsed() < STALL, "a kick was lost");
            }
        }
    });
    assert_eq!(lapic.pending_vector(), None);
    let total: usize = seen.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    assert_eq!(total, SENDERS * ROUNDS);
}

/// Senders and a draining owner at full speed on the bits of one word: what is posted is drained once, no more, no
/// less, and not before there is a flag for it.
#[test]
fn bursts_into_one_word() {
    const SENDERS: usize = 2;
    const BURST: usize = 30;
    const ROUNDS: usize = 20_000;
    let inbox = LapicInbox::new(0);
    let drained: [AtomicUsize; 64] = std::array::from_fn(|_| AtomicUsize::new(0));
    let running = AtomicUsize::new(SENDERS);
    thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (inbox, drained, running) = (&inbox, &drained, &running);
            scope.spawn(move || {
                let mine = sender * BURST..(sender + 1) * BURST;
                let all =
                    |round| drained[mine.clone()].iter().all(|count| count.load(Ordering::Acquire) == round);
                for round in 1..=ROUNDS {
                    for vector in mine.clone() {
                        inbox.post_vector(64 + vector as u8, false);
                    }
                    wait_until(|| all(round));
                }
                running.fetch_sub(1, Ordering::Release);
            });
        }
        let (mut last_work, mut idle) = (Instant::now(), 0u64);
        while running.load(Ordering::Acquire) != 0 {
            if !inbox.has_work() {
                assert!(last_work.elapsed() < 2 * STALL, "the senders have given up");
                // Mostly spinning, to drain while the bits are still coming in.
                idle += 1;
                if idle.is_multiple_of(64) {
                    thread::yield_now();
                }
                continue;
            }
            last_work = Instant::now();
            let incoming = inbox.drain();
            for (vector, count) in drained.iter().enumerate() {
                count.fetch_add(usize::from(incoming.vectors.contains(64 + vector as u8)), Ordering::AcqRel);
            }
        }
    });
    for (vector, count) in drained.iter().enumerate() {
        let expected = if vector < SENDERS * BURST { ROUNDS } else { 0 };
        assert_eq!(count.load(Ordering::Relaxed), expected, "vector {vector}");
    }
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
                wait_until(|| started.load(Ordering::Acquire) != round);
            }
            stop.store(true, Ordering::Release);
        });
        let mut waiting = false;
        let limit = Instant::now() + 10 * STALL;
        while !stop.load(Ordering::Acquire) && Instant::now() < limit {
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
    assert!(!inbox.post_nmi() && !inbox.post_nmi());
    let incoming = inbox.drain();
    assert!(incoming.vectors.contains(0x40) && incoming.vectors.contains(0x41));
    assert_eq!(incoming.nmis, 2, "of several, two count");
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
