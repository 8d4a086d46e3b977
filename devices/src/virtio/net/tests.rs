//! The network device, as drivers of all kinds see it, on a cable whose other end the test holds.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use backends::net::{
    Frame, FrameHeader, LinkState, NetBackend, NetError, NetInfo, Offloads, PartialChecksum, SegmentKind,
    Segmentation,
};
use state::StateUnit as _;

use super::Net;
use crate::pci::PciFunction as _;
use crate::util::lock;
use crate::virtio::driver::*;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const HOST_TSO4: u64 = 1 << 11;
const MRG_RXBUF: u64 = 1 << 15;

/// Rings of the queue that sends.
const TX: (u64, u64, u64) = (0x5000, 0x6000, 0x7000);
/// Its buffers.
const OUT: u64 = 0x4_0000;
/// Frames that the cable takes before it makes its sender wait.
const ROOM: usize = 100;

/// The other end.
#[derive(Debug, Default)]
struct Cable(Mutex<Ends>);

#[derive(Debug, Default)]
struct Ends {
    sent: Vec<Frame>,
    held: bool,
    arriving: VecDeque<Frame>,
    asked: usize,
    gone: bool,
    down: bool,
    accepted: Option<Offloads>,
    wakers: Vec<Waker>,
}

impl Cable {
    fn change<T>(&self, change: impl FnOnce(&mut Ends) -> T) -> T {
        let mut ends = lock(&self.0);
        let result = change(&mut ends);
        let wakers = std::mem::take(&mut ends.wakers);
        drop(ends);
        wakers.into_iter().for_each(Waker::wake);
        result
    }

    fn deliver(&self, frames: impl IntoIterator<Item = Frame>) {
        self.change(|ends| ends.arriving.extend(frames));
    }

    /// A future that asks `ready` now and whenever something has changed.
    fn when<'f, T>(
        &'f self,
        mut ready: impl FnMut(&mut Ends) -> Option<T> + Send + 'f,
    ) -> Pin<Box<dyn Future<Output = T> + Send + 'f>> {
        Box::pin(std::future::poll_fn(move |context| {
            let mut ends = lock(&self.0);
            match ready(&mut ends) {
                Some(value) => Poll::Ready(value),
                None => {
                    ends.wakers.push(context.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }
}

fn result(gone: bool) -> Result<(), NetError> {
    if gone { Err(NetError { reason: "gone".into() }) } else { Ok(()) }
}

impl NetBackend for Cable {
    fn info(&self) -> NetInfo {
        let both = Offloads::CHECKSUM | Offloads::TSO4;
        NetInfo { mtu: 1500, accepts: both, delivers: both, max_batch: 8 }
    }

    fn link(&self) -> LinkState {
        if lock(&self.0).down { LinkState::Down } else { LinkState::Up }
    }

    fn link_changed<'a, 'f>(&'a self, seen: LinkState) -> Pin<Box<dyn Future<Output = LinkState> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        self.when(move |ends| {
            let now = if ends.down { LinkState::Down } else { LinkState::Up };
            (now != seen).then_some(now)
        })
    }

    fn set_offloads(&self, accepted: Offloads) {
        lock(&self.0).accepted = Some(accepted);
    }

    fn send<'a, 'b, 'f>(
        &'a self,
        frames: &'b mut Vec<Frame>,
    ) -> Pin<Box<dyn Future<Output = Result<(), NetError>> + Send + 'f>>
    where
        'a: 'f,
        'b: 'f,
        Self: 'f,
    {
        self.when(move |ends| {
            let room = if ends.held { 0 } else { ROOM.saturating_sub(ends.sent.len()) };
            let count = room.min(frames.len());
            ends.sent.extend(frames.drain(..count));
            (ends.gone || count > 0).then(|| result(ends.gone))
        })
    }

    fn receive<'a, 'b, 'f>(
        &'a self,
        into: &'b mut Vec<Frame>,
        max: usize,
    ) -> Pin<Box<dyn Future<Output = Result<(), NetError>> + Send + 'f>>
    where
        'a: 'f,
        'b: 'f,
        Self: 'f,
    {
        self.when(move |ends| {
            ends.asked = ends.asked.max(max);
            let count = max.min(ends.arriving.len());
            into.extend(ends.arriving.drain(..count));
            (ends.gone || count > 0).then(|| result(ends.gone))
        })
    }
}

/// A driver with both queues.
struct Card {
    driver: Driver,
    cable: Arc<Cable>,
    sent: u16,
}

impl Card {
    fn new(features: u64) -> Self {
        let cable = Arc::new(Cable::default());
        let driver = Driver::new(Net::new("net", cable.clone(), MAC).unwrap());
        let mut card = Self { driver, cable, sent: 0 };
        card.start(features);
        card
    }

    fn start(&mut self, features: u64) {
        self.driver.negotiate(VERSION_1 | features);
        self.driver.enable(0, DESC, AVAIL, USED);
        self.driver.enable(1, TX.0, TX.1, TX.2);
        self.driver.put(TX.1, 0u32);
        self.driver.put(TX.2, 0u32);
        self.sent = 0;
        self.driver.write(0x14, 1, READY.into());
        assert_eq!(self.driver.status(), READY);
    }

    /// Lays out a buffer of these parts, the first as descriptor `head`.
    fn lay(&mut self, head: u16, parts: &[(u64, u32)]) {
        for (n, part) in (head..).zip(parts) {
            let last = usize::from(n - head) + 1 == parts.len();
            self.driver.describe(n, *part, WRITE | if last { 0 } else { NEXT }, n + 1);
        }
        self.driver.push(head);
        self.driver.kick();
    }

    /// Waits for element `n` of the queue that receives: head and length.
    fn received(&self, n: u16) -> (u32, u32) {
        self.driver.until(|driver| driver.used().wrapping_sub(n) as i16 > 0);
        self.driver.used_element(n)
    }

    fn push_tx(&mut self, head: u16) {
        self.driver.put(TX.1 + 4 + 2 * u64::from(self.sent % SIZE), head);
        self.sent += 1;
        self.driver.put(TX.1 + 2, self.sent);
        self.driver.write(0x3004, 2, 0);
    }

    fn sent_used(&self) -> u16 {
        self.driver.get(TX.2 + 2)
    }

    /// Sends header and data as one chain of two, and waits until the buffers are back.
    fn send(&mut self, header: [u8; 12], len: u32) {
        self.driver.put(OUT, header);
        self.driver.describe_in(TX.0, 0, (OUT, 12), NEXT, 1);
        self.driver.describe_in(TX.0, 1, (OUT + 0x1000, len), 0, 0);
        self.push_tx(0);
        let want = self.sent;
        self.driver.until(|driver| driver.get::<u16>(TX.2 + 2) == want);
    }

    fn arrived(&self) -> Vec<Frame> {
        self.cable.change(|ends| std::mem::take(&mut ends.sent))
    }

    /// Waits for frames at the other end.
    fn until_sent(&self, count: usize) {
        self.driver.until(|_| lock(&self.cable.0).sent.len() >= count);
    }
}

fn frame(len: usize, byte: u8) -> Frame {
    Frame { header: FrameHeader::default(), data: vec![byte; len] }
}

/// virtio 1.2, 5.1.3 and 5.1.4.
#[test]
fn a_driver_finds_a_card() {
    let card = Card::new(0);
    let driver = &card.driver;
    let config = |at: u64, size| driver.read(0x2000 + at, size);
    assert_eq!(driver.virtio.config_read(0, 4), 0x1041_1af4);
    assert_eq!((config(0, 4), config(4, 2)), (0x1200_5452, 0x5634));
    assert_eq!((config(6, 2), config(8, 2), config(10, 2)), (1, 1, 1500));
    driver.write(0, 4, 0);
    let offered = driver.read(4, 4) & 0xff_ffff;
    assert_eq!(offered, CSUM | GUEST_CSUM | 1 << 3 | 1 << 5 | GUEST_TSO4 | HOST_TSO4 | MRG_RXBUF | 1 << 16);
    card.cable.change(|ends| ends.down = true);
    driver.until(|driver| driver.read(0x1000, 1) == 2);
    assert_eq!(config(6, 2), 0, "the link is down");
    card.cable.change(|ends| ends.down = false);
    driver.until(|driver| driver.read(0x1000, 1) == 2);
    assert_eq!(config(6, 2), 1);
}

#[test]
fn frames_go_out() {
    let mut card = Card::new(CSUM | HOST_TSO4);
    card.driver.fill(OUT + 0x1000, 9000, 0x11);
    card.send([0; 12], 60);
    assert_eq!(card.arrived(), [frame(60, 0x11)]);
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    card.send([1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], 60);
    assert_eq!(card.arrived()[0].header, FrameHeader { checksum, ..FrameHeader::default() });
    card.send([1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0], 9000);
    let cut = Segmentation { kind: SegmentKind::Tcp4, size: 1460, header: 54, ecn: false };
    let header = FrameHeader { checksum, segmentation: Some(cut), verified: false };
    assert_eq!(card.arrived(), [Frame { header, ..frame(9000, 0x11) }]);
    // Header and data in one descriptor, and the header in pieces.
    card.driver.put(OUT, [0u8; 12]);
    card.driver.fill(OUT + 12, 70, 0x22);
    card.driver.describe_in(TX.0, 3, (OUT, 82), 0, 0);
    card.push_tx(3);
    card.until_sent(1);
    card.driver.describe_in(TX.0, 4, (OUT, 5), NEXT, 5);
    card.driver.describe_in(TX.0, 5, (OUT + 5, 40), NEXT, 6);
    card.driver.describe_in(TX.0, 6, (OUT + 45, 37), 0, 0);
    card.push_tx(4);
    card.until_sent(2);
    assert_eq!(card.arrived(), [frame(70, 0x22), frame(70, 0x22)]);
}

/// What was not agreed on or cannot be is dropped, and the device goes on.
#[test]
fn headers_that_cannot_be() {
    let mut card = Card::new(CSUM | HOST_TSO4);
    for (why, header) in [
        ("a checksum behind the end", [1, 0, 0, 0, 0, 0, 40, 0, 19, 0, 0, 0]),
        ("far behind it", [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
        ("segments of nothing", [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0]),
        ("segments without a checksum", [0, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]),
        ("headers longer than the frame", [1, 1, 61, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]),
        ("segments of IPv6", [1, 4, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]),
        ("ECN", [1, 0x81, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]),
        ("UDP fragments", [1, 3, 42, 0, 0xb4, 5, 34, 0, 6, 0, 0, 0]),
        ("no such kind", [1, 0x7f, 42, 0, 0xb4, 5, 34, 0, 6, 0, 0, 0]),
    ] {
        card.send(header, 60);
        assert_eq!(card.arrived(), [], "{why}");
        card.send([1, 0, 0, 0, 0, 0, 40, 0, 18, 0, 0, 0], 60);
        card.until_sent(1);
        assert_eq!(card.arrived().len(), 1, "behind {why}");
    }
    card.start(0);
    card.send([1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], 60);
    assert_eq!(card.arrived(), [], "a checksum that was not agreed on");
    // Segments want checksums, which were not taken.
    card.start(HOST_TSO4);
    card.send([1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0], 60);
    assert_eq!(card.arrived(), []);
}

#[test]
fn chains_that_cannot_be() {
    let mut card = Card::new(0);
    card.driver.put(OUT, [0u8; 12]);
    type Chain = fn(&Driver);
    let chains: [Chain; 5] = [
        |d| d.describe_in(TX.0, 4, (OUT, 11), 0, 0),
        |d| d.describe_in(TX.0, 4, (1 << 40, 80), 0, 0),
        |d| d.describe_in(TX.0, 4, (OUT, 80), WRITE, 0),
        // A loop.
        |d| d.describe_in(TX.0, 4, (OUT, 0x2000), NEXT, 4),
        // Longer than a frame can be.
        |d| d.describe_in(TX.0, 4, (OUT, 12 + 18 + 65536), 0, 0),
    ];
    for (n, chain) in chains.into_iter().enumerate() {
        chain(&card.driver);
        card.push_tx(4);
        let want = card.sent;
        card.driver.until(|driver| driver.get::<u16>(TX.2 + 2) == want);
        assert_eq!((card.arrived(), card.driver.status()), (vec![], READY), "chain {n}");
        card.send([0; 12], 60);
        card.until_sent(1);
        assert_eq!(card.arrived().len(), 1, "behind chain {n}");
    }
}

#[test]
fn frames_come_in() {
    let mut card = Card::new(GUEST_CSUM | GUEST_TSO4);
    assert_eq!(lock(&card.cable.0).accepted, Some(Offloads::CHECKSUM | Offloads::TSO4));
    card.lay(0, &[(DATA, 12), (DATA + 0x1000, 2000)]);
    card.lay(2, &[(DATA + 0x2000, 2000)]);
    card.cable.deliver([frame(60, 0x11)]);
    assert_eq!(card.received(0), (0, 72));
    assert_eq!(card.driver.bytes(DATA, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(card.driver.bytes(DATA + 0x1000, 61), [vec![0x11; 60], vec![0]].concat());
    let cut = Segmentation { kind: SegmentKind::Tcp4, size: 1460, header: 54, ecn: false };
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let header = FrameHeader { checksum, segmentation: Some(cut), verified: true };
    card.cable.deliver([Frame { header, ..frame(1900, 0x22) }]);
    assert_eq!(card.received(1), (2, 1912));
    assert_eq!(card.driver.bytes(DATA + 0x2000, 12), [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 1, 0]);
    // Verified, and one for which there is no buffer yet.
    let verified = FrameHeader { verified: true, ..FrameHeader::default() };
    card.cable.deliver([Frame { header: verified, ..frame(100, 0x33) }]);
    card.lay(2, &[(DATA + 0x2000, 2000)]);
    assert_eq!(card.received(2), (2, 112));
    assert_eq!(card.driver.bytes(DATA + 0x2000, 13), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x33]);
}

/// Of what was not agreed on nothing comes, and a frame too long for its buffer leaves the buffer to the next one.
#[test]
fn frames_that_do_not_fit() {
    let mut card = Card::new(0);
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let partial = Frame { header: FrameHeader { checksum, ..FrameHeader::default() }, ..frame(60, 1) };
    let verified = Frame { header: FrameHeader { verified: true, ..FrameHeader::default() }, ..frame(60, 4) };
    card.cable.deliver([partial, frame(989, 2), frame(988, 3), verified]);
    card.lay(0, &[(DATA, 1000)]);
    assert_eq!(card.received(0), (0, 1000));
    assert_eq!(card.driver.bytes(DATA + 12, 1), [3]);
    // No buffers at all: given back, and the frame waits for one.
    card.lay(1, &[(DATA, 11)]);
    assert_eq!(card.received(1), (1, 0));
    card.lay(2, &[(1 << 40, 2000)]);
    assert_eq!(card.received(2), (2, 0));
    card.driver.describe(3, (DATA, 2000), 0, 0);
    card.driver.push(3);
    card.driver.kick();
    assert_eq!(card.received(3), (3, 0));
    card.lay(4, &[(DATA, 100)]);
    assert_eq!(card.received(4), (4, 72));
    assert_eq!(card.driver.bytes(DATA, 13), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4]);
}

/// VIRTIO_NET_F_MRG_RXBUF (5.1.6.4): the driver sees all buffers of a frame at once, or none.
#[test]
fn buffers_are_merged() {
    for event_idx in [0, EVENT_IDX] {
        let mut card = Card::new(MRG_RXBUF | event_idx);
        for n in 0..3u16 {
            card.lay(n, &[(DATA + 0x1000 * u64::from(n), 100)]);
        }
        // 312 bytes want four.
        card.cable.deliver([frame(300, 0x44)]);
        card.driver.until(|_| lock(&card.cable.0).arriving.is_empty());
        assert_eq!(card.driver.used(), 0);
        card.lay(3, &[(DATA + 0x3000, 100)]);
        assert_eq!(card.received(3), (3, 12));
        let elements: Vec<_> = (0..3).map(|n| card.driver.used_element(n)).collect();
        assert_eq!((card.driver.used(), elements), (4, vec![(0, 100), (1, 100), (2, 100)]));
        assert_eq!(card.driver.bytes(DATA, 13), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0x44]);
        assert_eq!(card.driver.bytes(DATA + 0x3000, 13), [vec![0x44; 12], vec![0]].concat());
        card.lay(4, &[(DATA, 100)]);
        card.cable.deliver([frame(60, 0x55)]);
        assert_eq!(card.received(4), (4, 72));
        // What all the driver's buffers cannot hold is dropped.
        for n in 0..SIZE {
            card.driver.describe(n, (DATA + 0x100 * u64::from(n), 20), WRITE, 0);
            card.driver.push(n);
        }
        card.driver.kick();
        card.cable.deliver([frame(20 * usize::from(SIZE), 0x66), frame(60, 0x77)]);
        assert_eq!(card.received(8), (3, 12));
        assert_eq!((card.driver.used(), card.driver.bytes(DATA + 12, 1)), (9, vec![0x77]));
    }
}

/// While the other end takes nothing, the queue is left alone; nothing is asked for without a buffer.
#[test]
fn both_directions_are_held_back() {
    let mut card = Card::new(0);
    card.cable.change(|ends| ends.held = true);
    card.driver.put(OUT, [0u8; 12]);
    card.driver.describe_in(TX.0, 0, (OUT, 72), 0, 0);
    for _ in 0..SIZE {
        card.push_tx(0);
    }
    // A batch is in the device.
    card.driver.until(|driver| driver.get::<u16>(TX.2 + 2) >= 1);
    let held = card.sent_used();
    assert!(held <= 8, "{held}");
    (0..held).for_each(|_| card.push_tx(0));
    assert_eq!((card.sent_used(), card.arrived().len()), (held, 0));
    card.cable.change(|ends| ends.held = false);
    card.until_sent(usize::from(card.sent));
    assert_eq!(card.arrived().len(), usize::from(card.sent));
    // And over the bound of the cable, in order.
    card.cable.change(|ends| ends.sent = vec![frame(1, 0); ROOM - 1]);
    for n in 0..4u16 {
        card.driver.put(
            OUT + 0x100 * u64::from(n),
            [[0u8; 12], [n as u8; 12]].concat().try_into().map(|b: [u8; 24]| b).unwrap(),
        );
        card.driver.describe_in(TX.0, n, (OUT + 0x100 * u64::from(n), 24), 0, 0);
        card.push_tx(n);
    }
    card.until_sent(ROOM);
    card.arrived();
    card.until_sent(3);
    assert_eq!(card.arrived(), [frame(12, 1), frame(12, 2), frame(12, 3)]);

    card.cable.deliver((0..50).map(|n| frame(60, n)));
    assert_eq!(lock(&card.cable.0).asked, 0, "there is no buffer");
    for n in 0..50u16 {
        card.lay(n % SIZE, &[(DATA, 100)]);
        assert_eq!(card.received(n), (u32::from(n % SIZE), 72));
        assert_eq!(card.driver.bytes(DATA + 12, 1), [n as u8]);
    }
    assert_eq!(lock(&card.cable.0).asked, 1, "no more than there are buffers");
}

/// A cable that ends takes the link down; frames of the guest's are lost from then on.
#[test]
fn the_other_end_goes() {
    let mut card = Card::new(1 << 16);
    card.lay(0, &[(DATA, 100)]);
    card.cable.change(|ends| ends.gone = true);
    card.driver.until(|driver| driver.read(0x2006, 2) == 0);
    card.send([0; 12], 60);
    card.lay(1, &[(DATA, 100)]);
    card.cable.change(|ends| (ends.gone, ends.arriving) = (false, VecDeque::from([frame(60, 1)])));
    card.send([0; 12], 60);
    assert_eq!((card.arrived(), card.driver.used(), card.driver.status()), (vec![], 0, READY));
}

/// A reset with both futures pending, and a driver that comes after.
#[test]
fn a_reset_lets_go_of_everything() {
    let mut card = Card::new(MRG_RXBUF);
    card.cable.change(|ends| ends.held = true);
    card.lay(0, &[(DATA, 100)]);
    card.driver.put(OUT, [0u8; 12]);
    card.driver.describe_in(TX.0, 0, (OUT, 72), 0, 0);
    card.push_tx(0);
    card.driver.until(|driver| driver.get::<u16>(TX.2 + 2) == 1);
    card.start(GUEST_CSUM);
    assert_eq!(lock(&card.cable.0).accepted, Some(Offloads::CHECKSUM));
    card.cable.change(|ends| ends.held = false);
    card.cable.deliver([frame(60, 9)]);
    assert_eq!((card.driver.used(), card.arrived()), (0, vec![]));
    card.lay(5, &[(DATA, 100)]);
    assert_eq!(card.received(0), (5, 72));
    card.send([0; 12], 60);
    card.until_sent(1);
}

/// What is saved goes on in another machine: buffers that lie there, and the queues' indices.
#[test]
fn a_saved_card_goes_on() {
    let mut one = Card::new(GUEST_CSUM | MRG_RXBUF);
    one.lay(0, &[(DATA, 100)]);
    one.cable.deliver([frame(60, 1)]);
    assert_eq!(one.received(0), (0, 72));
    one.lay(1, &[(DATA, 100)]);
    one.driver.virtio.quiesce();
    one.cable.deliver([frame(60, 2)]);
    let section = one.driver.virtio.save();
    assert_eq!(one.driver.used(), 1, "a paused device does nothing");

    let mut two = Card::new(0);
    two.driver.virtio.quiesce();
    for at in [DESC, AVAIL, USED, TX.0, TX.1, TX.2] {
        let bytes = one.driver.bytes(at, 0x1000);
        vm_memory::Bytes::write_slice(two.driver.ram.memory(), &bytes, vm_memory::GuestAddress(at)).unwrap();
    }
    two.driver.virtio.restore(&section).unwrap();
    assert_eq!(two.driver.virtio.save(), section);
    assert_eq!(lock(&two.cable.0).accepted, Some(Offloads::CHECKSUM));
    two.cable.deliver([frame(60, 3)]);
    two.driver.virtio.release();
    assert_eq!(two.received(1), (1, 72));
    assert_eq!(two.driver.bytes(DATA + 12, 1), [3]);
    two.send([0; 12], 60);
    two.until_sent(1);
    one.driver.virtio.release();
    assert_eq!(one.received(1), (1, 72));
}

/// Rings and indices that cannot be: the device asks for a reset and works after it.
#[test]
fn indices_that_cannot_be() {
    for queue in [0u64, 1] {
        let mut card = Card::new(MRG_RXBUF);
        card.cable.deliver([frame(60, 1)]);
        card.driver.put(if queue == 0 { AVAIL } else { TX.1 } + 2, SIZE + 1);
        card.driver.write(0x3000 + 4 * queue, 2, 0);
        card.driver.until(|driver| driver.status() & NEEDS_RESET != 0);
        card.start(0);
        card.send([0; 12], 60);
        card.until_sent(1);
    }
}

/// Any bytes as rings and headers, with frames in both directions, while the device serves them.
#[test]
fn random_drivers_do_no_harm() {
    for seed in 0..6 {
        let mut random = crate::testing::Rng::new(seed);
        let mut card = Card::new(MRG_RXBUF);
        for round in 0..40 {
            let features = [0, EVENT_IDX, MRG_RXBUF, MRG_RXBUF | EVENT_IDX | GUEST_CSUM | CSUM | HOST_TSO4];
            card.start(features[round % 4]);
            card.cable.deliver((0..8).map(|n| frame(60 << n, 1)));
            for at in [DESC, TX.0] {
                let noise: Vec<u8> =
                    (0..0x3000).map(|_| random.pick(&[0, 0, 0, 1, 2, 3, 4, 0x10, 0xff])).collect();
                vm_memory::Bytes::write_slice(card.driver.ram.memory(), &noise, vm_memory::GuestAddress(at))
                    .unwrap();
            }
            for _ in 0..20 {
                let queue = random.below(2);
                card.driver.put([AVAIL, TX.1][queue as usize] + 2, random.below(18) as u16);
                card.driver.write(0x3000 + 4 * queue, 2, 0);
            }
            card.cable.change(|ends| (ends.sent.clear(), ends.arriving.clear()));
        }
        card.start(0);
        card.lay(0, &[(DATA, 100)]);
        card.cable.change(|ends| (ends.sent.clear(), ends.arriving.clear()));
        card.cable.deliver([frame(60, 1)]);
        assert_eq!(card.received(0).0, 0);
        card.send([0; 12], 60);
        card.until_sent(1);
    }
}
