//! The socket device, as drivers of all kinds see it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use backends::vsock::{Header, Op, VsockHost, VsockOptions};
use state::StateUnit as _;

use super::driver::*;
use super::vsock::Vsock;
use crate::pci::PciFunction as _;

const CID: u32 = 7;
const RX: Ring = Ring { queue: 0, desc: 0x1000, avail: 0x2000, used: 0x3000 };
const TX: Ring = Ring { queue: 1, desc: 0x4000, avail: 0x5000, used: 0x6000 };
const EVENTS: Ring = Ring { queue: 2, desc: 0x7000, avail: 0x8000, used: 0x9000 };
/// Where a packet of the driver's is.
const OUT: u64 = 0x2_0000;

/// Where the rings of a queue are.
struct Ring {
    queue: u16,
    desc: u64,
    avail: u64,
    used: u64,
}

impl Ring {
    fn start(&self, driver: &Driver) {
        driver.put(self.avail, 0u32);
        driver.put(self.used, 0u32);
        driver.enable(self.queue, self.desc, self.avail, self.used);
    }

    /// Makes the chain at `head` available, and rings.
    fn push(&self, driver: &Driver, head: u16) {
        let index: u16 = driver.get(self.avail + 2);
        driver.put(self.avail + 4 + 2 * u64::from(index % SIZE), head);
        driver.put(self.avail + 2, index.wrapping_add(1));
        driver.write(0x3000 + 4 * u64::from(self.queue), 2, 0);
    }

    fn used(&self, driver: &Driver) -> u16 {
        driver.get(self.used + 2)
    }

    /// Waits for the `n`th used chain, counted from 0; its length.
    fn wait(&self, driver: &Driver, n: u16) -> u32 {
        driver.until(|driver| self.used(driver) > n);
        driver.get(self.used + 4 + 8 * u64::from(n % SIZE) + 4)
    }
}

struct Board {
    driver: Driver,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Board {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let host = VsockHost::new(VsockOptions { path: path.clone(), cid: CID }).unwrap();
        let driver = Driver::new(Vsock::new("vsock", host).unwrap());
        Self { driver, path, _dir: dir }
    }

    fn start(&mut self) {
        self.driver.negotiate(VERSION_1 | EVENT_IDX | 1);
        [RX, TX, EVENTS].iter().for_each(|ring| ring.start(&self.driver));
        self.driver.write(0x14, 1, READY.into());
        assert_eq!(self.driver.status(), READY);
    }

    /// Gives the device buffer `n`, of `len` bytes.
    fn offer(&self, n: u16, len: u32) {
        self.driver.describe_in(RX.desc, n, (Self::buffer(n), len), WRITE, 0);
        RX.push(&self.driver, n);
    }

    fn buffer(n: u16) -> u64 {
        DATA + 0x1000 * u64::from(n)
    }

    /// The `n`th packet of the device's, which is in buffer `n`.
    fn packet(&self, n: u16) -> (Header, Vec<u8>) {
        let len = RX.wait(&self.driver, n) as usize;
        let bytes = self.driver.bytes(Self::buffer(n), len);
        let (header, data) = bytes.split_at(Header::LEN);
        (Header::from_bytes(header.try_into().unwrap()), data.to_vec())
    }

    /// Sends a packet whose bytes are in buffers of these lengths, and waits until it is taken.
    fn send(&self, header: &Header, data: &[u8], pieces: &[u32]) {
        let all = [&header.to_bytes()[..], data].concat();
        all.iter().zip(OUT..).for_each(|(byte, at)| self.driver.put(at, *byte));
        let mut at = OUT;
        for (n, &len) in (0u16..).zip(pieces) {
            let more = usize::from(n) + 1 < pieces.len();
            self.driver.describe_in(TX.desc, n, (at, len), if more { NEXT } else { 0 }, n + 1);
            at += u64::from(len);
        }
        let n = TX.used(&self.driver);
        TX.push(&self.driver, 0);
        assert_eq!(TX.wait(&self.driver, n), 0, "nothing is written to it");
    }

    fn header(op: Op, host: u32, len: usize) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: 2,
            src_port: 5,
            dst_port: host,
            len: len as u32,
            kind: 1,
            op,
            buf_alloc: 4096,
            ..Header::default()
        }
    }

    /// A program of the host's that talks to port 5, and the port that it comes from. Uses buffer 0.
    fn connect(&self) -> (UnixStream, u32) {
        let mut client = UnixStream::connect(&self.path).unwrap();
        client.write_all(b"CONNECT 5\n").unwrap();
        self.offer(0, 4096);
        let (request, _) = self.packet(0);
        assert_eq!((request.op, request.dst_cid, request.dst_port), (Op::Request, CID.into(), 5));
        self.send(&Self::header(Op::Response, request.src_port, 0), b"", &[44]);
        let line = format!("OK {}\n", request.src_port);
        let mut read = vec![0; line.len()];
        client.read_exact(&mut read).unwrap();
        assert_eq!(read, line.as_bytes());
        (client, request.src_port)
    }
}

#[test]
fn it_is_what_it_says_and_its_driver_learns_that_it_has_no_connections() {
    let mut board = Board::new();
    let driver = &board.driver;
    assert_eq!(driver.virtio.function().config_read(2, 2), 0x1053);
    assert_eq!((driver.read(0x2000, 8), driver.read(0x2004, 4)), (CID.into(), 0));
    assert_eq!(driver.read(0x12, 2), 3);
    board.start();
    board.driver.describe_in(EVENTS.desc, 0, (DATA, 4), WRITE, 0);
    board.driver.put(DATA, u32::MAX);
    EVENTS.push(&board.driver, 0);
    assert_eq!((EVENTS.wait(&board.driver, 0), board.driver.get::<u32>(DATA)), (4, 0));
    // Once.
    EVENTS.push(&board.driver, 0);
    let _ = board.connect();
    assert_eq!(EVENTS.used(&board.driver), 1);
}

#[test]
fn packets_go_both_ways_however_their_buffers_are_cut() {
    let mut board = Board::new();
    board.start();
    let (mut client, host) = board.connect();
    for pieces in [&[44, 6][..], &[50], &[1, 43, 2, 4], &[20, 30], &[44, 6, 100]] {
        board.send(&Board::header(Op::Data, host, 6), b"abcdef", pieces);
        let mut read = [0; 6];
        client.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"abcdef", "{pieces:?}");
    }
    // No more than a buffer holds, and one that holds nothing behind a header goes back.
    client.write_all(b"0123456789").unwrap();
    for (n, len) in [(1, 43), (2, 44 + 4), (3, 44), (4, 4096)] {
        board.offer(n, len);
    }
    assert_eq!(RX.wait(&board.driver, 1), 0);
    assert_eq!(board.packet(2).1, b"0123");
    assert_eq!((RX.wait(&board.driver, 3), board.packet(4).1.as_slice()), (0, &b"456789"[..]));
}

#[test]
fn packets_that_cannot_be_go_back_and_the_device_lives() {
    let mut board = Board::new();
    board.start();
    let (client, host) = board.connect();
    let driver = &board.driver;
    // Shorter than a header, nowhere, not to be read, looping.
    driver.describe_in(TX.desc, 1, (OUT, 43), 0, 0);
    driver.describe_in(TX.desc, 2, (MEMORY - 8, 44), 0, 0);
    driver.describe_in(TX.desc, 3, (OUT, 44), WRITE, 0);
    driver.describe_in(TX.desc, 4, (OUT, 44), NEXT, 4);
    for head in 1..=4 {
        let n = TX.used(driver);
        TX.push(driver, head);
        assert_eq!(TX.wait(driver, n), 0);
    }
    assert_eq!(driver.status(), READY);
    // More data than there are: the connection cannot be.
    board.offer(1, 4096);
    board.send(&Board::header(Op::Data, host, 1000), b"abc", &[44, 3]);
    let (header, data) = board.packet(1);
    assert_eq!((header.op, header.src_port, data.len()), (Op::Reset, host, 0));
    let mut client = client;
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn refusals_that_nobody_reads_hold_the_driver_back() {
    let mut board = Board::new();
    board.start();
    let header = Board::header(Op::Request, 1, 0);
    for _ in 0..256 {
        board.send(&header, b"", &[44]);
    }
    board.driver.describe_in(TX.desc, 0, (OUT, 44), 0, 0);
    TX.push(&board.driver, 0);
    // A buffer for one refusal makes room for one packet.
    board.offer(0, 4096);
    assert_eq!(board.packet(0).0.op, Op::Reset);
    board.driver.until(|driver| TX.used(driver) == 257);
}

#[test]
fn a_reset_and_a_restore_end_its_connections() {
    let mut board = Board::new();
    board.start();
    let (mut client, _) = board.connect();
    board.driver.write(0x14, 1, 0);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);

    board.start();
    let (mut client, _) = board.connect();
    board.driver.virtio.quiesce();
    let saved = board.driver.virtio.save();
    board.driver.virtio.restore(&saved).unwrap();
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    board.driver.virtio.release();
    board.driver.describe_in(EVENTS.desc, 0, (DATA, 4), WRITE, 0);
    EVENTS.push(&board.driver, 0);
    assert_eq!(EVENTS.wait(&board.driver, 0), 4);
}
