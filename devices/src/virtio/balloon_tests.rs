//! The balloon, as drivers of all kinds see it.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use accel_api::{GuestRam, PageFlag};
use state::StateUnit;
use vm_memory::{Bytes, GuestAddress};

use super::VirtioDevice as _;
use super::balloon::{Balloon, BalloonStats};
use super::driver::*;
use crate::pci::PciFunction as _;

const STATS: u64 = 1 << 1;
const REPORTING: u64 = 1 << 5;
/// The balloon's RAM, apart from the driver's: these numbers of pages are not those of rings.
const PAGES: u64 = 64;

struct Board {
    driver: Driver,
    balloon: Arc<Balloon>,
    ram: Arc<GuestRam>,
}

impl Board {
    fn new() -> Self {
        let ram = Arc::new(GuestRam::new(&[(0, PAGES << 12)]).unwrap());
        let balloon = Balloon::new("balloon", ram.clone()).unwrap();
        let this = Self { driver: Driver::new(balloon.clone()), balloon, ram };
        this.ram.memory().write_slice(&vec![0x5a; (PAGES << 12) as usize], GuestAddress(0)).unwrap();
        for page in 0..PAGES as usize {
            this.ram.flags().clear(page, PageFlag::DIRTY);
        }
        this
    }

    /// Is ready, with `queue` enabled where the driver's ring is.
    fn start(&mut self, features: u64, queue: u16) {
        self.driver.negotiate(VERSION_1 | EVENT_IDX | features);
        self.driver.enable(queue, DESC, AVAIL, USED);
        self.driver.write(0x14, 1, READY.into());
        assert_eq!(self.driver.status(), READY);
    }

    /// Makes the chain at `head` available on `queue`, and waits until it has been used.
    fn give(&mut self, queue: u16, head: u16) {
        self.driver.push(head);
        self.driver.write(0x3000 + 4 * u64::from(queue), 2, 0);
        self.driver.until(|driver| driver.used() == driver.avail);
    }

    /// Pages that read as zeros.
    fn empty(&self) -> Vec<u64> {
        let is_empty = |page: &u64| {
            let byte: u8 = self.ram.memory().read_obj(GuestAddress(page << 12)).unwrap();
            byte == 0
        };
        (0..PAGES).filter(is_empty).collect()
    }

    /// Pages that the host has given.
    fn resident(&self) -> u64 {
        rustix::fs::fstat(self.ram.fd().as_fd()).unwrap().st_blocks as u64 / 8
    }
}

#[test]
fn pages_that_are_named_are_the_hosts_again() {
    let mut board = Board::new();
    assert_eq!((board.driver.virtio.function().config_read(2, 2), board.resident()), (0x1045, PAGES));
    board.start(0, 0);
    // Two neighbours, one twice, none of the RAM's, in two buffers of which one ends within a number.
    let numbers = [7u32, 6, 20, 20, PAGES as u32, u32::MAX, 9];
    (0u64..).zip(numbers).for_each(|(n, number)| board.driver.put(DATA + 4 * n, number));
    board.driver.describe(0, (DATA, 10), NEXT, 1);
    board.driver.describe(1, (DATA + 10, 17), 0, 0);
    board.give(0, 0);
    // Looked at first: who reads a page has it.
    assert_eq!((board.resident(), board.empty()), (PAGES - 3, vec![6, 7, 20]));
    let dirty = |page| board.ram.flags().get(page).contains(PageFlag::DIRTY);
    assert!(dirty(6) && dirty(7) && dirty(20) && !dirty(9), "what has changed counts as written");
}

#[test]
fn the_driver_hears_of_the_target_and_says_what_it_has_given() {
    let mut board = Board::new();
    board.balloon.set_target(3);
    board.start(0, 0);
    assert_eq!(board.driver.read(0x2000, 4), 3);
    board.driver.use_msix();
    board.driver.board.messages.take();
    board.balloon.set_target(0x0102_0304);
    assert_eq!((board.driver.read(0x2000, 4), board.driver.board.messages.take().len()), (0x0102_0304, 1));
    board.driver.write(0x2000, 4, 99);
    board.driver.write(0x2004, 4, 0x0a0b);
    board.driver.write(0x2005, 1, 0x0c);
    let status = board.balloon.status();
    assert_eq!((status.target, status.actual), (0x0102_0304, 0x0c0b));
    let saved = board.balloon.save();
    board.driver.write(0x14, 1, 0);
    let status = board.balloon.status();
    assert_eq!((status.target, status.actual), (0x0102_0304, 0));
    board.balloon.set_target(5);
    board.balloon.restore(&saved).unwrap();
    assert_eq!(board.balloon.save(), saved);
    StateUnit::reset(&*board.balloon);
    assert_eq!((board.balloon.status().target, board.balloon.status().actual), (0x0102_0304, 0));
}

#[test]
fn statistics_stay_with_the_device_until_new_ones_are_wanted() {
    let mut board = Board::new();
    board.start(STATS, 2);
    let tell = |board: &mut Board, free: u64| {
        for (n, (tag, value)) in (0u64..).zip([(4u16, free), (5, 1000), (77, 1), (6, 500)]) {
            board.driver.put(DATA + 10 * n, tag);
            board.driver.put(DATA + 10 * n + 2, value);
        }
        board.driver.describe(0, (DATA, 43), 0, 0);
        board.driver.push(0);
        board.driver.write(0x3008, 2, 0);
    };
    let stats =
        |free| BalloonStats { free: Some(free), total: Some(1000), available: Some(500), caches: None };
    tell(&mut board, 300);
    board.driver.until(|_| board.balloon.status().stats == stats(300));
    assert_eq!(board.driver.used(), 0);
    board.balloon.ask_for_stats();
    board.driver.until(|driver| driver.used() == 1);
    // The driver is asked to ring for the next one.
    board.driver.until(|driver| driver.get::<u16>(USED + 4 + 8 * u64::from(SIZE)) == 1);
    tell(&mut board, 200);
    board.driver.until(|_| board.balloon.status().stats == stats(200));
    assert_eq!(board.driver.used(), 1);
}

#[test]
fn free_pages_that_are_reported_are_the_hosts_and_numbers_of_queues_are_dense() {
    for (features, queue) in [(REPORTING, 2), (REPORTING | STATS, 3)] {
        let mut board = Board::new();
        board.start(features, queue);
        board.driver.describe(0, (0x4000, 0x3000), NEXT | WRITE, 1);
        // Not whole pages, and beyond the RAM.
        board.driver.describe(1, (0xa800, 0x1000), NEXT | WRITE, 2);
        board.driver.describe(2, (PAGES << 12, 0x1000), NEXT | WRITE, 3);
        board.driver.describe(3, ((PAGES - 1) << 12, u32::MAX), WRITE, 0);
        board.give(queue, 0);
        assert_eq!(board.empty(), [4, 5, 6]);
    }
}

#[test]
fn chains_that_cannot_be_go_back_and_the_device_lives() {
    let mut board = Board::new();
    board.start(0, 0);
    board.driver.describe(0, (DATA, 4), WRITE, 0);
    board.driver.describe(1, (MEMORY - 2, 8), 0, 0);
    board.driver.describe(2, (DATA, 3), 0, 0);
    board.driver.describe(3, (DATA, 4), NEXT, 3);
    // More numbers than there are pages, most of them page 0.
    board.driver.put(DATA, 12u32);
    board.driver.describe(4, (DATA, (MEMORY - DATA) as u32), 0, 0);
    for head in 0..=4 {
        board.give(0, head);
    }
    assert_eq!((board.driver.status(), board.empty()), (READY, vec![0, 12]));
    assert_eq!(board.balloon.queue_sizes().len(), 4);
}
