//! The transport and the entropy device, as drivers of all kinds see them.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use state::StateUnit;
use state::testing::UnitRig;
use vm_memory::{Bytes, GuestAddress};

use super::driver::*;
use super::rng::{MOST, Rng};
use super::*;
use crate::pci::{PciFunction, command, reg};
use crate::testing;
use crate::util::lock;

fn rng() -> Driver {
    Driver::new(Rng::new("rng").unwrap())
}

/// virtio 1.2, 4.1.4.
#[test]
fn a_driver_finds_what_it_needs() {
    let driver = rng();
    let config = |at, size| driver.virtio.config_read(at, size);
    assert_eq!(config(0, 4), 0x1044_1af4);
    assert_eq!((config(8, 4), config(0x2c, 4), config(0x3d, 1)), (0x00ff_0001, 0x1044_1af4, 1));
    let capabilities = driver.capabilities();
    let kinds: Vec<_> = capabilities.iter().map(|(_, id, kind)| (*id, *kind)).collect();
    assert_eq!(kinds, [(9, 1), (9, 3), (9, 2), (9, 5), (0x11, 0)], "no configuration of no bytes");
    let lengths: Vec<_> = capabilities[..4].iter().map(|(at, ..)| config(at + 2, 1)).collect();
    assert_eq!(lengths, [16, 16, 20, 20]);
    let at = capabilities[2].0;
    let notify = [4, 8, 12, 16].map(|n| config(at + n, 4));
    assert_eq!(notify, [0, 0x3000, 4, 4], "BAR 0, offset, length, multiplier");
    assert_eq!(config(capabilities[4].0 + 2, 2), 1, "a vector for the queue, one for the configuration");
    assert_eq!(driver.read(0x12, 2), 1, "num_queues");
    for (select, features) in [(0, 1 << 29 | 1 << 28), (1, 1 | 1 << 8), (2, 0), (u32::MAX, 0)] {
        driver.write(0, 4, select.into());
        assert_eq!(driver.read(4, 4), features, "half {select}");
    }
    // A queue that is not there has no size, and a doorbell that harms nobody.
    driver.write(0x16, 2, 1);
    assert_eq!((driver.read(0x18, 2), driver.read(0x1a, 2), driver.read(0x1e, 2)), (0, 0xffff, 0));
    driver.write(0x3004, 2, 1);
    driver.write(0x3ffe, 2, 1);
    driver.write(0x18, 2, 4);
    driver.write(0x1c, 2, 1);
    driver.write(0x16, 2, 0);
    assert_eq!((driver.read(0x18, 2), driver.read(0x1a, 2), driver.read(0x1c, 2)), (64, 0xffff, 0));
}

/// 2.2.2, 3.1.1.
#[test]
fn features_are_negotiated_before_the_driver_is_ready() {
    let mut driver = rng();
    for refused in [0, VERSION_1 | 1, VERSION_1 | 1 << 33, EVENT_IDX] {
        driver.negotiate(refused);
        assert_eq!(driver.status(), 3, "{refused:#x}");
        driver.write(0x14, 1, READY.into());
        assert_eq!(driver.status(), 3, "neither FEATURES_OK nor DRIVER_OK");
    }
    driver.negotiate(VERSION_1 | EVENT_IDX);
    assert_eq!(driver.status(), 0xb);
    driver.write(0x08, 4, 0);
    driver.write(0x0c, 4, 0);
    assert_eq!(driver.read(0x0c, 4), EVENT_IDX, "fixed by FEATURES_OK");
    driver.write(0x14, 1, 0x8b);
    assert_eq!(driver.status(), 0x8b, "FAILED");
    driver.write(0x14, 1, 0);
    assert_eq!((driver.status(), driver.read(0x0c, 4)), (0, 0));
    // Drivers that enable no queue at all.
    driver.negotiate(VERSION_1);
    driver.write(0x14, 1, READY.into());
    assert_eq!(driver.status(), READY);
    driver.kick();
}

#[test]
fn queue_registers_take_what_can_be_and_are_fixed_once_enabled() {
    let driver = rng();
    for (size, kept) in [(128, 64), (0, 64), (3, 64), (8, 8)] {
        driver.write(0x18, 2, size);
        assert_eq!(driver.read(0x18, 2), kept);
    }
    driver.write(0x20, 8, 0x1_2345_6780);
    driver.write(0x2c, 4, 2);
    assert_eq!(
        (driver.read(0x20, 8), driver.read(0x24, 4), driver.read(0x28, 8)),
        (0x1_2345_6780, 1, 2 << 32)
    );
    driver.write(0x1c, 2, 1);
    driver.write(0x18, 2, 16);
    driver.write(0x20, 4, 0);
    driver.write(0x1c, 2, 0);
    assert_eq!((driver.read(0x18, 2), driver.read(0x20, 8), driver.read(0x1c, 2)), (8, 0x1_2345_6780, 1));
    // Widths that no field has.
    driver.write(0x14, 4, 1);
    driver.write(0x16, 1, 5);
    assert_eq!((driver.status(), driver.read(0x16, 2)), (0, 0));
    assert_eq!((driver.read(0x3f, 1), driver.read(0x0fff, 1), driver.read(0x1001, 1)), (0, 0, 0));
}

#[test]
fn a_whole_chain_is_filled_and_its_length_told() {
    let mut driver = rng();
    driver.use_msix();
    driver.start(VERSION_1);
    driver.use_msix();
    driver.fill(DATA - 8, 0x100, 0);
    // Readable, then three that are writable, one of no bytes.
    driver.describe(0, (0x8000, 64), NEXT, 5);
    driver.describe(5, (DATA, 40), NEXT | WRITE, 2);
    driver.describe(2, (DATA + 0x80, 0), NEXT | WRITE, 3);
    driver.describe(3, (DATA + 0x40, 17), WRITE, 0);
    driver.fill(0x8000, 64, 0xaa);
    driver.push(0);
    assert_eq!(driver.complete(), (0, 57));
    driver.until(|driver| driver.board.messages.take() == [(0xfee0_0000, 1)]);
    let bytes = driver.bytes(DATA - 8, 0x100);
    assert!(bytes[8..48].iter().any(|&b| b != 0) && bytes[0x48..0x59].iter().any(|&b| b != 0));
    assert!(bytes[..8].iter().chain(&bytes[48..0x48]).chain(&bytes[0x59..]).all(|&b| b == 0));
    assert_eq!(driver.bytes(0x8000, 64), [0xaa; 64], "what is readable is not written");
    // As many as fit, and round the ring.
    for _ in 0..10 {
        for n in 0..SIZE {
            driver.describe(n, (DATA, 8), WRITE, 0);
            driver.push(n);
        }
        assert_eq!(driver.complete(), (15, 8));
    }
    // An indirect table.
    driver.describe(1, (0x9000, 32), INDIRECT, 0);
    driver.describe_in(0x9000, 0, (DATA, 8), NEXT | WRITE, 1);
    driver.describe_in(0x9000, 1, (DATA + 8, 8), WRITE, 0);
    driver.push(1);
    assert_eq!(driver.complete(), (1, 16));
    // A bound on what one request costs.
    driver.describe(0, (DATA, 0xc_0000), WRITE, 0);
    driver.push(0);
    assert_eq!(driver.complete(), (0, MOST as u32));
}

/// What cannot be is given back unused, and the device goes on.
#[test]
fn hostile_chains_are_given_back() {
    let mut driver = rng();
    driver.start(VERSION_1);
    type Chain = fn(&Driver);
    let chains: [(Chain, u32); 12] = [
        (|d| d.describe(4, (DATA, 8), NEXT | WRITE, 4), 0),
        (|d| d.describe(4, (1 << 40, 16), WRITE, 0), 0),
        (|d| d.describe(4, (MEMORY - 8, 16), WRITE, 0), 0),
        (|d| d.describe(4, (u64::MAX - 7, 16), WRITE, 0), 0),
        (|d| d.describe(4, (DATA, u32::MAX), WRITE, 0), 0),
        (|d| d.describe(4, (DATA, 0), WRITE, 0), 0),
        (|d| d.describe(4, (DATA, 8), 0, 0), 0),
        (|d| d.describe(4, (0xfee0_0000, 32), INDIRECT, 0), 0),
        (|d| d.describe(4, (0x9000, 17), INDIRECT, 0), 0),
        (|d| d.describe(4, (0x9000, 0), INDIRECT, 0), 0),
        (
            |d| {
                d.describe(4, (0x9000, 16), INDIRECT, 0);
                d.describe_in(0x9000, 0, (0x9000, 16), INDIRECT, 0);
            },
            0,
        ),
        // The next descriptor is beyond the table: what came before it is used.
        (|d| d.describe(4, (DATA, 8), NEXT | WRITE, SIZE), 8),
    ];
    for (n, (chain, least)) in chains.into_iter().enumerate() {
        chain(&driver);
        driver.push(4);
        let (head, len) = driver.complete();
        assert_eq!(head, 4, "chain {n}");
        assert!(len <= MOST as u32 && (len == least || n == 0 || n == 2), "chain {n}: {len}");
        assert_eq!(driver.status(), READY, "chain {n}");
        driver.serves();
    }
}

/// Rings and indices that cannot be: the device asks for a reset, touches nothing more, and works behind one.
#[test]
fn a_queue_that_cannot_be_needs_a_reset() {
    type Break = fn(&mut Driver);
    let breaks: [Break; 6] = [
        // The available index runs ahead, or back.
        |d| d.put(AVAIL + 2, SIZE + 2),
        |d| d.put(AVAIL + 2, 0xffff_u16),
        // A head beyond the table.
        |d| d.push(SIZE),
        |d| d.push(0xffff),
        // Rings beyond memory, and not aligned.
        |d| {
            d.negotiate(VERSION_1);
            d.enable(0, DESC, MEMORY - 2, USED);
            d.write(0x14, 1, READY.into());
        },
        |d| {
            d.negotiate(VERSION_1);
            d.enable(0, DESC + 8, AVAIL, USED);
            d.write(0x14, 1, READY.into());
        },
    ];
    let mut driver = rng();
    for (n, broken) in breaks.into_iter().enumerate() {
        driver.start(VERSION_1);
        driver.use_msix();
        driver.serves();
        driver.board.messages.take();
        driver.use_msix();
        broken(&mut driver);
        driver.kick();
        driver.until(|driver| driver.status() & NEEDS_RESET != 0);
        assert_eq!(driver.read(0x1000, 1) & 2, 2, "break {n}: told as a change of the configuration");
        driver.kick();
        driver.kick();
        assert_eq!(driver.status(), READY | NEEDS_RESET);
    }
    driver.start(VERSION_1);
    driver.serves();
}

/// 4.1.4.5.
#[test]
fn without_msix_there_is_intx_which_a_read_of_isr_drops() {
    let mut driver = rng();
    driver.board.lpc.config_write(crate::pci::lpc::PIRQ_ROUT_EH + 3, 1, 10);
    let level = |driver: &Driver| driver.board.pic[10].level();
    driver.start(VERSION_1);
    assert!(!level(&driver), "nothing is told as the driver gets ready");
    driver.serves();
    driver.until(level);
    assert_eq!((driver.read(0x1000, 1), level(&driver), driver.read(0x1000, 1)), (1, false, 0));
    driver.serves();
    driver.until(level);
    driver.write(0x14, 1, 0);
    assert!(!level(&driver), "dropped at reset");
    assert_eq!(driver.read(0x1000, 1), 0);
}

/// 2.7.7, 2.7.10.
#[test]
fn event_indices_save_interrupts() {
    let mut driver = rng();
    driver.start(VERSION_1 | EVENT_IDX);
    driver.use_msix();
    // The driver wants to know of the third used buffer.
    driver.put(AVAIL + 4 + 2 * u64::from(SIZE), 2u16);
    for _ in 0..2 {
        driver.serves();
    }
    assert_eq!(driver.board.messages.take(), []);
    driver.serves();
    driver.until(|driver| !driver.board.messages.take().is_empty());
    // And the device of the next available one.
    driver.until(|driver| driver.get::<u16>(USED + 4 + 8 * u64::from(SIZE)) == 3);
}

/// What was under way when the driver resets is not told, and nothing is written behind the reset.
#[test]
fn a_reset_ends_what_is_under_way() {
    let mut driver = rng();
    for _ in 0..50 {
        driver.start(VERSION_1);
        driver.use_msix();
        for n in 0..SIZE {
            driver.describe(n, (DATA, 0x4000), WRITE, 0);
            driver.push(n);
        }
        driver.kick();
        driver.write(0x14, 1, 0);
        driver.board.messages.take();
        driver.fill(USED, (MEMORY - USED) as usize, 0x5a);
        driver.kick();
        std::thread::yield_now();
        let now = driver.bytes(USED, (MEMORY - USED) as usize);
        assert!(now.iter().all(|&byte| byte == 0x5a), "written behind a reset");
        assert_eq!(driver.board.messages.take(), []);
        assert_eq!((driver.read(0x10, 2), driver.read(0x1a, 2)), (0xffff, 0xffff), "vectors are reset, too");
    }
    driver.start(VERSION_1);
    driver.serves();
}

/// 2.6.1, 4.1.4.3.2.
#[test]
fn a_queue_is_reset_alone_and_enabled_again() {
    let mut driver = rng();
    driver.start(VERSION_1);
    driver.serves();
    driver.write(0x3a, 2, 1);
    assert_eq!(driver.read(0x1c, 2), 1, "not negotiated");
    driver.start(VERSION_1 | RING_RESET);
    driver.serves();
    driver.write(0x3a, 2, 1);
    assert_eq!((driver.read(0x3a, 2), driver.read(0x1c, 2), driver.read(0x18, 2)), (0, 0, 64));
    driver.describe(0, (DATA, 32), WRITE, 0);
    driver.push(0);
    driver.kick();
    driver.put(USED, 0u32);
    driver.put(AVAIL, 0u32);
    driver.avail = 0;
    driver.push(0);
    assert_eq!(driver.used(), 0);
    driver.enable(0, DESC, AVAIL, USED);
    driver.until(|driver| driver.used() == 1);
    driver.serves();
}

#[test]
fn memory_is_touched_only_by_a_bus_master() {
    let mut driver = rng();
    driver.start(VERSION_1);
    driver.virtio.config_write(reg::COMMAND, 2, command::MEMORY.into());
    driver.describe(0, (DATA, 32), WRITE, 0);
    driver.push(0);
    driver.kick();
    for _ in 0..100 {
        std::thread::yield_now();
    }
    assert_eq!(driver.used(), 0);
    driver.virtio.config_write(reg::COMMAND, 2, (command::MEMORY | command::BUS_MASTER).into());
    driver.until(|driver| driver.used() == 1);
}

/// 4.1.4.9: a window onto the BARs for who cannot map them.
#[test]
fn registers_are_reached_through_the_configuration_space() {
    let mut driver = rng();
    let at = driver.capabilities()[3].0;
    let access = |driver: &Driver, bar, offset, len| {
        driver.virtio.config_write(at + 4, 1, bar);
        driver.virtio.config_write(at + 8, 4, offset);
        driver.virtio.config_write(at + 12, 4, len);
    };
    access(&driver, 0, 0x18, 2);
    assert_eq!(driver.virtio.config_read(at + 16, 4) & 0xffff, 64);
    access(&driver, 0, 0x14, 1);
    driver.virtio.config_write(at + 16, 4, 1);
    assert_eq!(driver.status(), 1);
    access(&driver, 1, 0, 4);
    driver.virtio.config_write(at + 16, 4, 0xfee0_1000);
    assert_eq!(driver.board.mmio.read(TABLE, 4), 0xfee0_1000);
    for (bar, offset, len) in [(2, 0, 4), (0, 0x3ffe, 4), (0, u32::MAX, 1), (0, 1, 2), (0, 0, 3), (0, 0, 0)] {
        access(&driver, bar, offset, len);
        driver.virtio.config_write(at + 16, 4, 0x1234);
        assert_eq!(driver.virtio.config_read(at + 16, 4), 0x1234, "no access: what was written");
    }
    driver.start(VERSION_1);
    driver.describe(0, (DATA, 32), WRITE, 0);
    driver.push(0);
    access(&driver, 0, 0x3000, 2);
    driver.virtio.config_write(at + 16, 2, 0);
    driver.until(|driver| driver.used() == 1);
}

/// A device with a configuration, that serves nothing.
#[derive(Debug, Default)]
struct Knob {
    config: Mutex<[u8; 6]>,
    activations: AtomicU32,
}

impl VirtioDevice for Knob {
    fn kind(&self) -> u16 {
        0x3f
    }
    fn class(&self) -> u32 {
        0x02_0000
    }
    fn features(&self) -> u64 {
        1 << 5
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![16, 256]
    }
    fn config(&self) -> Vec<u8> {
        lock(&self.config).to_vec()
    }
    fn config_write(&self, offset: u32, data: &[u8]) {
        lock(&self.config)[offset as usize..][..data.len()].copy_from_slice(data);
    }
    fn activate(&self, activation: Activation) {
        assert_eq!(activation.features, VERSION_1 | 1 << 5);
        let live: Vec<_> = activation.queues.iter().map(|queue| queue.is_live()).collect();
        assert_eq!(live, [true, false], "the driver enabled one of two");
        self.activations.fetch_add(1, SeqCst);
    }
    fn service(&self) -> &dyn Service {
        self
    }
}

impl Service for Knob {
    fn reset(&self) {}
    fn pause(&self) {}
    fn resume(&self) {}
}

#[test]
fn a_change_of_the_configuration_shows_in_its_generation() {
    let knob = Arc::new(Knob::default());
    let mut driver = Driver::new(knob.clone());
    let generation = |driver: &Driver| driver.read(0x15, 1);
    let device = driver.capabilities()[2];
    assert_eq!((device.2, driver.virtio.config_read(device.0 + 12, 4)), (4, 6));
    let first = generation(&driver);
    driver.write(0x2000, 4, 0x4433_2211);
    assert_eq!((driver.read(0x2001, 2), generation(&driver)), (0x3322, first));
    for (offset, size) in [(4, 4), (6, 1), (0xfff, 1), (0, 8)] {
        driver.write(0x2000 + offset, size, 0xffff);
        assert_eq!(driver.read(0x2000 + offset, size), u64::MAX >> (64 - 8 * size), "beyond its end");
    }
    driver.start(VERSION_1 | 1 << 5);
    assert_eq!((knob.activations.load(SeqCst), driver.read(0x1000, 1)), (1, 0));
    driver.use_msix();
    driver.virtio.interrupt().config_changed();
    let second = generation(&driver);
    assert_ne!(second, first);
    assert_eq!((driver.board.messages.take(), driver.read(0x1000, 1)), (vec![(0xfee0_0000, 0)], 2));
    driver.virtio.interrupt().config_changed();
    assert_eq!(generation(&driver), second, "nobody has read it in between");
    driver.read(0x2000, 1);
    driver.virtio.interrupt().config_changed();
    assert_ne!(generation(&driver), second);
    let device = |sizes: Vec<u16>| {
        #[derive(Debug)]
        struct Sized(Vec<u16>, Knob);
        impl VirtioDevice for Sized {
            fn kind(&self) -> u16 {
                1
            }
            fn class(&self) -> u32 {
                0
            }
            fn features(&self) -> u64 {
                0
            }
            fn queue_sizes(&self) -> Vec<u16> {
                self.0.clone()
            }
            fn config(&self) -> Vec<u8> {
                self.1.config()
            }
            fn activate(&self, _: Activation) {}
            fn service(&self) -> &dyn Service {
                &self.1
            }
        }
        let slot = driver.board.slot(crate::pci::DeviceFunction::new(9, 0));
        VirtioPci::new("sized", Arc::new(Sized(sizes, Knob::default())), &slot, driver.ram.clone())
    };
    for sizes in [vec![], vec![0], vec![3], vec![16; 1025]] {
        assert!(device(sizes.clone()).unwrap_err().to_string().contains("1 to 1024 queues"), "{sizes:?}");
    }
}

/// The guest's store takes none of the locks that others may hold.
#[test]
fn a_notification_takes_no_lock() {
    let mut driver = rng();
    driver.start(VERSION_1);
    driver.describe(0, (DATA, 32), WRITE, 0);
    driver.push(0);
    driver.virtio.with_all_locked(|| driver.kick());
    driver.until(|driver| driver.used() == 1);
}

/// Nothing moves while the machine is paused; a copy goes on where the first one stood.
#[test]
fn a_paused_device_is_still_and_a_copy_goes_on() {
    let mut one = rng();
    one.start(VERSION_1 | EVENT_IDX);
    one.use_msix();
    one.serves();
    one.virtio.quiesce();
    one.board.messages.take();
    one.describe(3, (DATA, 24), WRITE, 0);
    one.push(3);
    one.kick();
    for _ in 0..100 {
        std::thread::yield_now();
    }
    assert_eq!(one.used(), 1, "paused");
    let section = one.virtio.save();
    assert_eq!(one.virtio.save(), section);

    let mut two = rng();
    two.virtio.quiesce();
    two.virtio.restore(&section).unwrap();
    let memory = one.bytes(0, MEMORY as usize);
    two.ram.memory().write_slice(&memory, GuestAddress(0)).unwrap();
    two.avail = one.avail;
    assert_eq!((two.virtio.save(), two.board.messages.take()), (section.clone(), vec![]));
    two.virtio.release();
    two.until(|two| two.used() == 2);
    assert_eq!(two.used_element(1), (3, 24));
    two.until(|two| !two.board.messages.take().is_empty());
    two.serves();
    one.virtio.release();
    one.until(|one| one.used() == 2);
    // A device of another kind is refused, and is as it was.
    let knob = Driver::new(Arc::new(Knob::default()));
    let before = knob.virtio.save();
    assert!(knob.virtio.restore(&section).is_err());
    assert_eq!(knob.virtio.save(), before);
}

struct Whole(Driver);

impl UnitRig for Whole {
    fn new() -> Self {
        let driver = rng();
        driver.virtio.quiesce();
        Self(driver)
    }
    fn another(&self) -> Self {
        Self::new()
    }
    fn unit(&self) -> &dyn StateUnit {
        &*self.0.virtio
    }
    fn disturb(&self, seed: u64) {
        let mut random = testing::Rng::new(seed);
        let driver = &self.0;
        driver.place();
        if seed.is_multiple_of(2) {
            driver.write(0x14, 1, 3);
            driver.write(0x08, 4, 1);
            driver.write(0x0c, 4, 1);
            driver.write(0x14, 1, 0xb);
            driver.use_msix();
            driver.enable(0, DESC, AVAIL, USED);
            driver.write(0x14, 1, READY.into());
        }
        for _ in 0..40 {
            let (offset, size) = (random.below(0x40), random.pick(&[1, 2, 4, 8]));
            driver.write(offset, size, random.next() >> random.below(64));
            driver.virtio.config_write(0x40 + random.below(0x80) as u16, 4, random.next() as u32);
        }
    }
}

state::unit_tests!(Whole);

/// Any access at any place, and any bytes as rings, while the device serves them.
#[test]
fn random_drivers_do_no_harm() {
    for seed in 0..6 {
        let mut random = testing::Rng::new(seed);
        let mut driver = rng();
        for round in 0..60 {
            driver.start(VERSION_1 | if round % 2 == 0 { EVENT_IDX } else { 0 });
            let noise: Vec<u8> =
                (0..0x3000).map(|_| random.pick(&[0, 0, 0, 1, 2, 3, 4, 0x10, 0xff])).collect();
            driver.ram.memory().write_slice(&noise, GuestAddress(DESC)).unwrap();
            for _ in 0..20 {
                driver.put(AVAIL + 2, random.below(18) as u16);
                driver.kick();
                driver.write(random.below(0x4000), random.pick(&[1, 2, 4, 8]), random.next());
                driver.read(random.below(0x4000), random.pick(&[1, 2, 4, 8]));
            }
        }
        driver.start(VERSION_1);
        driver.serves();
    }
}
