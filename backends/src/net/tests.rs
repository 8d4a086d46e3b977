//! The network in process through the seam, and rates.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::rate_limit::RateLimit;
use super::*;
use crate::rate::Rate;

const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// Who has 10.0.2.2?
fn arp() -> Frame {
    let mut data = vec![0xff; 6];
    data.extend(MAC);
    data.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    data.extend(MAC);
    data.extend([10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    Frame { header: FrameHeader::default(), data }
}

#[test]
fn the_gateway_answers() {
    let options: NetOptions = "user,mtu=9000".parse().unwrap();
    let (mac, connected) = options.connect(0).unwrap();
    let net = connected.backend;
    assert_eq!((mac.0, net.info().mtu, net.link()), (MAC, 9000, LinkState::Up));
    let runtime = crate::runtime().unwrap();
    net.set_offloads(Offloads::empty());
    let mut frames = vec![arp(), arp()];
    runtime.block_on(async { net.send(&mut frames).await }).unwrap();
    assert_eq!(frames, []);
    let mut answers = Vec::new();
    while answers.len() < 2 {
        runtime.block_on(net.receive(&mut answers, 1)).unwrap();
    }
    assert!(answers.iter().all(|frame| frame.header.verified && frame.data.starts_with(&MAC)), "{answers:?}");
}

/// Takes two frames a call, and gives what it has taken.
#[derive(Debug, Default)]
struct Loop(Mutex<Vec<Frame>>);

#[async_trait]
impl NetBackend for Loop {
    fn info(&self) -> NetInfo {
        NetInfo { mtu: 1500, accepts: Offloads::empty(), delivers: Offloads::empty(), max_batch: 16 }
    }
    fn set_offloads(&self, _: Offloads) {}
    async fn send(&self, frames: &mut Vec<Frame>) -> Result<(), NetError> {
        let count = frames.len().min(2);
        self.0.lock().unwrap().extend(frames.drain(..count));
        Ok(())
    }
    async fn receive(&self, into: &mut Vec<Frame>, max: usize) -> Result<(), NetError> {
        let mut held = self.0.lock().unwrap();
        let count = held.len().min(max);
        into.extend(held.drain(..count));
        Ok(())
    }
}

fn frames(count: usize, len: usize) -> Vec<Frame> {
    vec![Frame { header: FrameHeader::default(), data: vec![0; len] }; count]
}

#[test]
fn what_passed_is_paid() {
    let rate = Rate { per_second: 10, burst: 4 << 16 };
    let limit = RateLimit::new(Arc::new(Loop::default()), rate);
    assert_eq!(limit.info().max_batch, 4);
    let runtime = crate::runtime().unwrap();
    let mut batch = frames(3, 1000);
    // The bucket is full: nothing waits, and what was left over is not paid.
    runtime.block_on(limit.send(&mut batch)).unwrap();
    assert_eq!((batch.len(), limit.send_opens()), (1, None));
    let now = Instant::now();
    limit.pay_send(4 << 16, now);
    let opens = limit.send_opens().unwrap();
    // 2000 bytes were taken before, some time of which has been paid off since.
    assert!(opens > now && opens <= now + Duration::from_secs(200), "{:?}", opens - now);
    let mut received = Vec::new();
    runtime.block_on(limit.receive(&mut received, 16)).unwrap();
    assert_eq!(received.len(), 2, "the other direction is open");
}

fn received(net: &Arc<dyn NetBackend>, count: usize) -> Vec<Frame> {
    let mut frames = Vec::new();
    while frames.len() < count {
        crate::runtime().unwrap().block_on(net.receive(&mut frames, 64)).unwrap();
    }
    frames
}

fn send_all(net: &Arc<dyn NetBackend>, mut frames: Vec<Frame>) {
    while !frames.is_empty() {
        crate::runtime().unwrap().block_on(net.send(&mut frames)).unwrap();
    }
}

fn until(net: &Arc<dyn NetBackend>, state: LinkState) {
    let other = if state == LinkState::Up { LinkState::Down } else { LinkState::Up };
    assert_eq!(crate::runtime().unwrap().block_on(net.link_changed(other)), state);
}

fn cable(path: &std::path::Path) -> Arc<dyn NetBackend> {
    Arc::new(StreamNetwork::open(path, 1500).unwrap())
}

/// Who comes first listens; a peer that goes takes the link down, and another one brings it up.
#[test]
fn two_guests_are_joined() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cable");
    let one = cable(&path);
    assert_eq!(one.link(), LinkState::Down);
    send_all(&one, frames(3, 100));
    let two = cable(&path);
    until(&one, LinkState::Up);
    until(&two, LinkState::Up);
    let sent: Vec<_> =
        (0..100u8).map(|n| Frame { data: vec![n; 60 + usize::from(n)], ..Frame::default() }).collect();
    send_all(&one, sent.clone());
    assert_eq!(received(&two, 100), sent);
    send_all(&two, sent.clone());
    assert_eq!(received(&one, 100), sent);
    // Neither what is left undone nor what is too long or too short.
    let partial =
        FrameHeader { checksum: Some(PartialChecksum { start: 34, offset: 16 }), ..FrameHeader::default() };
    let mut some = vec![Frame { header: partial, data: vec![1; 60] }];
    some.extend([frames(1, 1519), frames(1, 13), frames(1, 1518)].concat());
    send_all(&one, some);
    assert_eq!(received(&two, 1), frames(1, 1518));
    drop(two);
    // The end is seen by who reads or writes.
    let reader = {
        let one = one.clone();
        std::thread::spawn(move || received(&one, 1))
    };
    until(&one, LinkState::Down);
    let three = cable(&path);
    until(&one, LinkState::Up);
    until(&three, LinkState::Up);
    send_all(&three, frames(1, 77));
    assert_eq!(reader.join().unwrap(), frames(1, 77));
    drop((one, three));
    let _again = cable(&path);
}

/// Its bytes are QEMU's; a peer that sends what is no frame is let go, and the next one is served.
#[test]
fn peers_of_all_kinds() {
    use std::io::{Read as _, Write as _};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cable");
    let net = cable(&path);
    let mut peer = std::os::unix::net::UnixStream::connect(&path).unwrap();
    until(&net, LinkState::Up);
    send_all(&net, frames(1, 60));
    let mut bytes = [1; 64];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, *[vec![0, 0, 0, 60], vec![0; 60]].concat());
    // A byte at a time, nothing, and what is too short for a frame; then a length that none has.
    let data = [&[0, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 14][..], &[7; 14], &[0, 1, 0, 18]].concat();
    for byte in &data {
        peer.write_all(&[*byte]).unwrap();
    }
    assert_eq!(received(&net, 1), [Frame { data: vec![7; 14], ..Frame::default() }]);
    let reader = {
        let net = net.clone();
        std::thread::spawn(move || received(&net, 1))
    };
    assert_eq!(peer.read(&mut bytes).unwrap(), 0, "let go");
    let mut next = std::os::unix::net::UnixStream::connect(&path).unwrap();
    next.write_all(&[&[0, 0, 0, 20][..], &[8; 20]].concat()).unwrap();
    assert_eq!(reader.join().unwrap()[0].data, [8; 20]);
}

/// What a peer does not read makes the sender wait; a future that is dropped meanwhile leaves no half of a frame.
#[test]
fn a_peer_that_does_not_read_holds_back() {
    use std::io::Read as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cable");
    let net = cable(&path);
    let mut peer = std::os::unix::net::UnixStream::connect(&path).unwrap();
    until(&net, LinkState::Up);
    let runtime = crate::runtime().unwrap();
    let mut waker = std::task::Context::from_waker(std::task::Waker::noop());
    let mut taken = 0;
    let stopped = loop {
        assert!(taken < 100_000, "a socket's buffer has an end");
        let mut batch = frames(8, 1500);
        let ready = {
            let _within = runtime.enter();
            net.send(&mut batch).as_mut().poll(&mut waker).is_ready()
        };
        taken += 8 - batch.len();
        if !ready {
            break taken;
        }
    };
    let sender = {
        let net = net.clone();
        std::thread::spawn(move || send_all(&net, frames(1, 1000)))
    };
    let mut bytes = vec![0; stopped * 1504 + 1004];
    peer.read_exact(&mut bytes).unwrap();
    assert!(bytes.chunks_exact(1504).all(|frame| frame.starts_with(&[0, 0, 5, 220])));
    sender.join().unwrap();
}

#[test]
fn networks_that_cannot_be_are_said_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "text").unwrap();
    for (option, words) in [
        (format!("socket={}", file.display()), ["no socket", "another path"]),
        (format!("socket={}/none/s", folder.path().display()), ["no such folder", "make it"]),
        (format!("socket=/tmp/{}", "x".repeat(200)), ["too long", "shorter"]),
        ("tap=a-name-that-is-too-long".to_owned(), ["a-name-that-is-too-long", "1 to 15"]),
        ("tap=a/b".to_owned(), ["a/b", "slashes"]),
    ] {
        let line = option.parse::<NetOptions>().unwrap().connect(0).unwrap_err().to_string();
        assert!(words.iter().all(|word| line.contains(word)) && !line.contains('\n'), "{option}: {line}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"text");
}
