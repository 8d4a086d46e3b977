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
    fn link(&self) -> LinkState {
        LinkState::Up
    }
    async fn link_changed(&self, _: LinkState) -> LinkState {
        LinkState::Down
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
