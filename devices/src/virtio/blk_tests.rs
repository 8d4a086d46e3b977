//! The block device, as drivers of all kinds see it, in front of a disk of memory.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use backends::disk::{BlockBackend, BlockCommand, BlockError, BlockInfo, BlockRequest, RangeLimits};

use super::blk::Blk;
use super::driver::*;
use crate::pci::PciFunction as _;
use crate::util::lock;

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8100;
const FLUSH: u64 = 1 << 9;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// 64 sectors; remembers what it was asked for.
#[derive(Debug)]
struct Disk {
    info: BlockInfo,
    bytes: Mutex<Vec<u8>>,
    log: Mutex<Vec<String>>,
    /// Flushes fail.
    fails: bool,
}

impl Disk {
    fn new(change: impl FnOnce(&mut Self)) -> Arc<Self> {
        let limits = Some(RangeLimits { max_sectors: 16, alignment: 8 });
        let info = BlockInfo {
            capacity: 64,
            read_only: false,
            block_size: 512,
            physical_block_size: 4096,
            write_back: true,
            discard: limits,
            write_zeroes: limits,
            serial: "GS-0042".into(),
        };
        let mut disk = Self { info, bytes: vec![0x5a; 64 * 512].into(), log: Mutex::default(), fails: false };
        change(&mut disk);
        Arc::new(disk)
    }

    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.log))
    }
}

impl BlockBackend for Disk {
    fn info(&self) -> BlockInfo {
        self.info.clone()
    }

    // By hand, since nothing here is done later.
    fn submit<'a, 'b, 'f>(
        &'a self,
        batch: &'b mut [BlockRequest],
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'f>>
    where
        'a: 'f,
        'b: 'f,
        Self: 'f,
    {
        for request in batch {
            request.result = request.check(&self.info);
            if request.result.is_err() {
                continue;
            }
            lock(&self.log).push(format!("{:?}", request.command));
            let mut bytes = lock(&self.bytes);
            let at = |sector: u64, len: usize| sector as usize * 512..sector as usize * 512 + len;
            request.result = match &mut request.command {
                BlockCommand::Read { sector, data } => {
                    let len = data.len();
                    data.copy_from_slice(&bytes[at(*sector, len)]);
                    Ok(())
                }
                BlockCommand::Write { sector, data } => {
                    bytes[at(*sector, data.len())].copy_from_slice(data);
                    Ok(())
                }
                BlockCommand::Flush if self.fails => Err(BlockError::NoSpace),
                BlockCommand::WriteZeroes { sector, count, .. } => {
                    bytes[at(*sector, *count as usize * 512)].fill(0);
                    Ok(())
                }
                BlockCommand::Flush | BlockCommand::Discard { .. } => Ok(()),
            };
        }
        Box::pin(std::future::ready(()))
    }
}

fn driver(disk: &Arc<Disk>, features: u64) -> Driver {
    let mut driver = Driver::new(Blk::new("blk", disk.clone(), 1).unwrap());
    driver.start(VERSION_1 | features);
    driver
}

/// Puts a header, and makes a chain available of it, `buffers`, and a status; status and length it is used with.
fn ask(driver: &mut Driver, kind: u32, sector: u64, buffers: &[(u64, u32, u16)]) -> (u8, u32) {
    driver.put(HEADER, kind);
    driver.put(HEADER + 4, 0u32);
    driver.put(HEADER + 8, sector);
    driver.put(STATUS, 0xffu8);
    driver.describe(0, (HEADER, 16), NEXT, 1);
    for (n, (address, len, flags)) in (1..).zip(buffers) {
        driver.describe(n, (*address, *len), NEXT | flags, n + 1);
    }
    driver.describe(buffers.len() as u16 + 1, (STATUS, 1), WRITE, 0);
    driver.push(0);
    let (head, len) = driver.complete();
    assert_eq!(head, 0);
    (driver.get(STATUS), len)
}

/// virtio 1.2, 5.2.3 and 5.2.4.
#[test]
fn a_driver_finds_a_disk() {
    let disk = Disk::new(|_| {});
    let found = Driver::new(Blk::new("blk", disk, 4).unwrap());
    let config = |at: u64, size| found.read(0x2000 + at, size);
    assert_eq!(found.virtio.config_read(0, 4), 0x1042_1af4);
    assert_eq!((config(0, 8), config(12, 4), config(20, 4), config(24, 1)), (64, 254, 512, 3));
    assert_eq!((config(34, 2), config(36, 4), config(40, 4), config(44, 4)), (4, 16, 16, 8));
    assert_eq!((config(48, 4), config(52, 4), config(56, 1)), (16, 16, 1));
    found.write(0, 4, 0);
    let offered = found.read(4, 4);
    assert_eq!(offered & 0xffff, 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14);
    let disk = Disk::new(|disk| disk.info.read_only = true);
    let found = Driver::new(Blk::new("blk", disk, 1).unwrap());
    found.write(0, 4, 0);
    assert_eq!(found.read(4, 4) & 0xffff, 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10);
}

#[test]
fn what_is_written_is_read() {
    let disk = Disk::new(|_| {});
    let mut driver = driver(&disk, FLUSH);
    driver.fill(DATA, 512, 0x11);
    driver.fill(DATA + 0x1000, 1024, 0x22);
    assert_eq!(ask(&mut driver, 1, 3, &[(DATA, 512, 0), (DATA + 0x1000, 1024, 0)]), (OK, 1));
    assert_eq!(disk.take_log(), ["write of 1536 bytes at sector 3"]);
    driver.fill(DATA, 0x2000, 0);
    assert_eq!(ask(&mut driver, 0, 2, &[(DATA, 700, WRITE), (DATA + 0x1000, 1860, WRITE)]), (OK, 2561));
    let all = [driver.bytes(DATA, 700), driver.bytes(DATA + 0x1000, 1860)].concat();
    assert_eq!(
        (all[511], all[512], all[1023], all[1024], all[2047], all[2048]),
        (0x5a, 0x11, 0x11, 0x22, 0x22, 0x5a)
    );
    assert_eq!(ask(&mut driver, 4, 0, &[]), (OK, 1));
    assert_eq!(disk.take_log(), ["read of 2560 bytes at sector 2", "flush"]);
    // Header and data in one buffer.
    driver.fill(HEADER + 16, 512, 0x33);
    driver.put(HEADER, 1u32);
    driver.put(HEADER + 8, 9u64);
    driver.describe(0, (HEADER, 528), NEXT, 1);
    driver.describe(1, (STATUS + 0x1000, 1), WRITE, 0);
    driver.push(0);
    assert_eq!((driver.complete(), driver.get::<u8>(STATUS + 0x1000)), ((0, 1), OK));
    assert_eq!(lock(&disk.bytes)[9 * 512..10 * 512], [0x33; 512]);
    assert_eq!(ask(&mut driver, 8, 0, &[(DATA, 20, WRITE)]), (OK, 21));
    assert_eq!(driver.bytes(DATA, 20), b"GS-0042\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

/// A driver that knows no flush has its writes stable when they are used.
#[test]
fn without_flush_writes_are_stable() {
    let disk = Disk::new(|_| {});
    let mut device = driver(&disk, 0);
    assert_eq!(ask(&mut device, 1, 0, &[(DATA, 512, 0)]), (OK, 1));
    assert_eq!(disk.take_log(), ["write of 512 bytes at sector 0", "flush"]);
    assert_eq!(ask(&mut device, 0, 0, &[(DATA, 512, WRITE)]), (OK, 513));
    assert_eq!(disk.take_log(), ["read of 512 bytes at sector 0"]);
    let disk = Disk::new(|disk| disk.fails = true);
    let mut device = driver(&disk, 0);
    assert_eq!(ask(&mut device, 1, 0, &[(DATA, 512, 0)]), (IOERR, 1));
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let disk = Disk::new(|_| {});
    let mut driver = driver(&disk, FLUSH);
    let range = |driver: &Driver, n: u64, sector: u64, count: u32, flags: u32| {
        driver.put(DATA + 16 * n, sector);
        driver.put(DATA + 16 * n + 8, count);
        driver.put(DATA + 16 * n + 12, flags);
    };
    range(&driver, 0, 8, 4, 1);
    range(&driver, 1, 20, 2, 0);
    assert_eq!(ask(&mut driver, 13, 0, &[(DATA, 32, 0)]), (OK, 1));
    assert_eq!(disk.take_log(), ["zeroes to 4 sectors at 8", "zeroes to 2 sectors at 20"]);
    assert_eq!(ask(&mut driver, 11, 0, &[(DATA, 16, 0)]), (UNSUPP, 1), "a flag that discard has not");
    range(&driver, 0, 8, 4, 0);
    assert_eq!(ask(&mut driver, 11, 0, &[(DATA, 16, 0)]), (OK, 1));
    range(&driver, 0, 8, 4, 2);
    assert_eq!(ask(&mut driver, 13, 0, &[(DATA, 16, 0)]), (UNSUPP, 1));
    range(&driver, 0, 60, 5, 0);
    assert_eq!(ask(&mut driver, 13, 0, &[(DATA, 16, 0)]), (IOERR, 1), "beyond the end");
    range(&driver, 0, 0, 17, 0);
    assert_eq!(ask(&mut driver, 11, 0, &[(DATA, 16, 0)]), (IOERR, 1), "beyond the limit");
    for len in [0, 15, 17 * 16] {
        assert_eq!(ask(&mut driver, 13, 0, &[(DATA, len, 0)]).0, IOERR, "{len}");
    }
    assert_eq!(disk.take_log(), ["discard of 4 sectors at 8"]);
}

/// What cannot be is refused or given back, and the device goes on.
#[test]
fn hostile_requests() {
    let disk = Disk::new(|_| {});
    let mut driver = driver(&disk, FLUSH);
    for (kind, sector, buffers, status) in [
        (0, 64, vec![(DATA, 512, WRITE)], IOERR),
        (0, u64::MAX, vec![(DATA, 512, WRITE)], IOERR),
        (0, u64::MAX >> 9, vec![(DATA, 1024, WRITE)], IOERR),
        (0, 0, vec![(DATA, 511, WRITE)], IOERR),
        (1, 0, vec![(DATA, 513, 0)], IOERR),
        (1, 63, vec![(DATA, 1024, 0)], IOERR),
        (7, 0, vec![], UNSUPP),
        (u32::MAX, 0, vec![], UNSUPP),
        // Data the wrong way round.
        (1, 0, vec![(DATA, 512, WRITE)], OK),
        (0, 0, vec![(DATA, 512, 0)], OK),
    ] {
        assert_eq!(ask(&mut driver, kind, sector, &buffers).0, status, "{kind} {sector:#x} {buffers:x?}");
    }
    assert_eq!(disk.take_log(), ["write of 0 bytes at sector 0", "read of 0 bytes at sector 0"]);
    type Chain = fn(&Driver);
    let chains: [Chain; 6] = [
        // No status; a short header; no header; memory that is none; a loop; more than a request may move.
        |d| d.describe(4, (HEADER, 16), 0, 0),
        |d| {
            d.describe(4, (HEADER, 15), NEXT, 5);
            d.describe(5, (STATUS, 1), WRITE, 0);
        },
        |d| d.describe(4, (STATUS, 1), WRITE, 0),
        |d| {
            d.describe(4, (1 << 40, 16), NEXT, 5);
            d.describe(5, (STATUS, 1), WRITE, 0);
        },
        |d| d.describe(4, (HEADER, 16), NEXT, 4),
        |d| {
            d.put(HEADER, 0u32);
            d.describe(4, (HEADER, 16), NEXT, 5);
            (5..14).for_each(|n| d.describe(n, (DATA, 0x8_0000), NEXT | WRITE, n + 1));
            d.describe(14, (STATUS, 1), WRITE, 0);
        },
    ];
    for (n, chain) in chains.into_iter().enumerate() {
        chain(&driver);
        driver.push(4);
        assert_eq!(driver.complete().0, 4, "chain {n}");
        assert_eq!(driver.status(), READY, "chain {n}");
        assert_eq!(ask(&mut driver, 0, 1, &[(DATA, 512, WRITE)]), (OK, 513), "behind chain {n}");
    }
}

/// Many at once, over the bounds of a turn, and a reset with some of them under way.
#[test]
fn many_requests_and_a_reset() {
    let disk = Disk::new(|_| {});
    let mut driver = driver(&disk, FLUSH);
    for round in 0..50u64 {
        driver.put(HEADER, 0u32);
        driver.put(HEADER + 8, round % 64);
        for n in 0..5 {
            driver.describe(3 * n, (HEADER, 16), NEXT, 3 * n + 1);
            driver.describe(3 * n + 1, (DATA + 512 * u64::from(n), 512), NEXT | WRITE, 3 * n + 2);
            driver.describe(3 * n + 2, (STATUS + u64::from(n), 1), WRITE, 0);
            driver.push(3 * n);
        }
        assert_eq!(driver.complete().1, 513);
    }
    driver.push(0);
    driver.kick();
    driver.start(VERSION_1 | FLUSH);
    assert_eq!(ask(&mut driver, 0, 1, &[(DATA, 512, WRITE)]), (OK, 513));
}
