//! Guests that do not keep to the rules: raw frames into a network whose time the test chooses.

mod common;

use common::{MAC, Random, gateway, options};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, IpRepr, Ipv4Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;
use user_net::{Config, Frame, Limits, Stepped, addresses};

#[path = "common/script.rs"]
mod script;

const TICK: Duration = Duration::from_millis(1);

fn network(text: &str, limits: Limits) -> Stepped {
    let mut config = Config::new(options(text), MAC);
    config.limits = limits;
    Stepped::new(&config).unwrap()
}

fn frame(kind: u16, payload: &[u8]) -> Frame {
    let mut bytes = addresses::GATEWAY_MAC.to_vec();
    bytes.extend_from_slice(&MAC);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(payload);
    Frame { bytes, ..Frame::default() }
}

fn ip(to: SocketAddr, protocol: IpProtocol, payload: &[u8]) -> Frame {
    let header = IpRepr::new(addresses::GUEST.into(), to.ip().into(), protocol, payload.len(), 64);
    let mut bytes = vec![0; header.header_len()];
    header.emit(&mut bytes[..], &ChecksumCapabilities::default());
    bytes.extend_from_slice(payload);
    frame(0x0800, &bytes)
}

fn segment(from: u16, to: SocketAddr, control: TcpControl, seq: u32, ack: Option<u32>, data: &[u8]) -> Frame {
    let segment = TcpRepr {
        src_port: from,
        dst_port: to.port(),
        control,
        seq_number: TcpSeqNumber(seq as i32),
        ack_number: ack.map(|ack| TcpSeqNumber(ack as i32)),
        window_len: 65535,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: data,
    };
    let mut bytes = vec![0; segment.buffer_len()];
    segment.emit(
        &mut TcpPacket::new_unchecked(&mut bytes[..]),
        &addresses::GUEST.into(),
        &to.ip().into(),
        &ChecksumCapabilities::default(),
    );
    ip(to, IpProtocol::Tcp, &bytes)
}

/// Control, sequence and acknowledgement of a segment for the guest; none of another frame.
fn parse(frame: &Frame) -> Option<(TcpControl, u32, Option<u32>)> {
    let packet = Ipv4Packet::new_checked(frame.bytes.get(14..)?).ok()?;
    let segment = TcpPacket::new_checked(packet.payload()).ok()?;
    let addresses: (IpAddress, IpAddress) = (packet.src_addr().into(), packet.dst_addr().into());
    let repr = TcpRepr::parse(&segment, &addresses.0, &addresses.1, &ChecksumCapabilities::default()).ok()?;
    Some((repr.control, repr.seq_number.0 as u32, repr.ack_number.map(|ack| ack.0 as u32)))
}

/// Steps until a segment comes.
fn answer(network: &mut Stepped) -> (TcpControl, u32, Option<u32>) {
    let end = std::time::Instant::now() + common::PATIENCE;
    loop {
        network.step(TICK);
        if let Some(answer) = network.output().iter().find_map(parse) {
            return answer;
        }
        assert!(std::time::Instant::now() < end, "no answer");
    }
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, gateway(port))
}

/// Opens a connection; returns our next sequence number.
fn open(network: &mut Stepped, to: SocketAddr, from: u16, seq: u32) -> u32 {
    network.input(&segment(from, to, TcpControl::Syn, seq, None, &[]));
    let (control, theirs, ack) = answer(network);
    assert_eq!((control, ack), (TcpControl::Syn, Some(seq.wrapping_add(1))));
    network.input(&segment(from, to, TcpControl::None, seq + 1, Some(theirs.wrapping_add(1)), &[]));
    network.step(TICK);
    // The window that the handshake could not tell.
    network.output();
    theirs.wrapping_add(1)
}

#[test]
fn a_new_syn_on_a_stale_tuple_is_a_new_connection() {
    let (listener, to) = listener();
    let mut network = network("user,host=on", Limits::default());
    open(&mut network, to, 4000, 100);
    let (mut old, _) = listener.accept().unwrap();
    let theirs = open(&mut network, to, 4000, 900_000);
    let (mut new, _) = listener.accept().unwrap();
    assert_eq!(old.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    network.input(&segment(4000, to, TcpControl::Psh, 900_001, Some(theirs), b"new"));
    network.step(TICK);
    let mut data = [0; 3];
    new.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"new");
    assert_eq!(network.counts().tcp, 1);
}

#[test]
fn a_scan_by_syn_and_reset_leaves_no_slot() {
    let (listener, to) = listener();
    let mut network = network("user,host=on", Limits::default());
    for round in 0..1000u16 {
        network.input(&segment(5000 + round, to, TcpControl::Syn, 7, None, &[]));
        let (control, ..) = answer(&mut network);
        assert_eq!(control, TcpControl::Syn);
        network.input(&segment(5000 + round, to, TcpControl::Rst, 8, None, &[]));
        network.step(TICK);
        assert_eq!(network.counts().tcp, 0, "round {round}");
        listener.accept().unwrap();
    }
}

#[test]
fn a_handshake_that_is_not_finished_ends_after_a_time() {
    let (_listener, to) = listener();
    let mut network = network("user,host=on", Limits::default());
    network.input(&segment(5000, to, TcpControl::Syn, 7, None, &[]));
    answer(&mut network);
    for _ in 0..40 {
        network.step(Duration::from_secs(1));
        network.output();
    }
    assert_eq!(network.counts().tcp, 0);
}

#[test]
fn a_guest_that_is_gone_loses_its_connections_after_hours() {
    let (listener, to) = listener();
    let mut network = network("user,host=on", Limits::default());
    open(&mut network, to, 5000, 1);
    let (mut stream, _) = listener.accept().unwrap();
    for _ in 0..100 {
        network.step(Duration::from_secs(60));
    }
    assert_eq!(network.counts().tcp, 1, "after less than two hours it is still there");
    for _ in 0..30 {
        network.step(Duration::from_secs(60));
    }
    assert_eq!(network.counts().tcp, 0);
    assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn who_waits_does_not_turn_in_circles() {
    let (listener, to) = listener();
    let mut network = network("user,host=on", Limits::default());
    assert_eq!(network.due(), None);
    open(&mut network, to, 5000, 1);
    let (mut stream, _) = listener.accept().unwrap();
    let rest = |network: &mut Stepped| {
        // What is under way comes to an end, and timers that were set early move on.
        network.step(TICK);
        network.step(Duration::from_secs(3));
        for _ in 0..50 {
            network.output();
            network.step(TICK);
        }
        network.due()
    };
    // An idle connection waits for its keep-alive.
    assert!(rest(&mut network) > Some(Duration::from_secs(60)), "{:?}", network.due());
    // A guest that acknowledges nothing is asked again after the retransmission time-out, however much the host sends.
    stream.write_all(&[1; 100_000]).unwrap();
    assert!(rest(&mut network) > Some(Duration::from_millis(50)), "{:?}", network.due());
    // Nor does it matter that the host has ended.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(rest(&mut network) > Some(Duration::from_millis(50)), "{:?}", network.due());
}

#[test]
fn a_segment_of_no_connection_is_reset() {
    let mut network = network("user", Limits::default());
    network.input(&segment(4000, gateway(80), TcpControl::Psh, 5, Some(77), b"data"));
    assert_eq!(answer(&mut network), (TcpControl::Rst, 77, None));
    network.input(&segment(4000, gateway(80), TcpControl::Rst, 5, Some(77), &[]));
    network.step(TICK);
    assert!(network.output().is_empty(), "a reset is not answered");
}

#[test]
fn floods_stay_within_the_limits() {
    let limits = Limits { tcp: 40, tcp_buffers: 1 << 20, udp: 30, dns: 5, ping: 3 };
    let (_listener, to) = listener();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut config = Config::new(options("user,host=on"), MAC);
    (config.limits, config.resolvers) = (limits, Some(vec![silent.local_addr().unwrap()]));
    let mut network = Stepped::new(&config).unwrap();
    let mut datagram = vec![0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for round in 0..3000u16 {
        network.input(&segment(1000 + round, to, TcpControl::Syn, u32::from(round), None, &[]));
        datagram[..2].copy_from_slice(&(1000 + round).to_be_bytes());
        for (address, port) in [(gateway(port), port), (SocketAddr::from((addresses::RESOLVER, 53)), 53)] {
            datagram[2..4].copy_from_slice(&port.to_be_bytes());
            network.input(&ip(address, IpProtocol::Udp, &datagram));
        }
        // ARP from everybody; the first fragment of a packet that does not end.
        let [high, low] = round.to_be_bytes();
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, high, low, 10, 0, 2, low, 0, 0, 0, 0, 0, 0];
        arp.extend_from_slice(&[10, 0, 2, 2]);
        network.input(&frame(0x0806, &arp));
        let mut fragment =
            vec![0x45, 0, 0x05, 0xb8, high, low, 0x20, 0, 64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2];
        Ipv4Packet::new_unchecked(&mut fragment[..]).fill_checksum();
        fragment.resize(1464, 0);
        network.input(&frame(0x0800, &fragment));
        if round % 16 == 0 {
            network.step(TICK);
        }
        let counts = network.counts();
        assert!(
            counts.tcp <= limits.tcp && counts.udp <= limits.udp && counts.dns <= limits.dns,
            "{counts:?}"
        );
    }
    // What is not fetched is bounded too.
    assert!(network.output().len() <= 512);
    // When the flood is over everything ends, and a new connection is served.
    for _ in 0..200 {
        network.step(Duration::from_secs(1));
        network.output();
    }
    assert_eq!(network.counts(), user_net::Counts::default());
    open(&mut network, to, 999, 5);
}

#[test]
fn nobody_sends_as_somebody_else() {
    let (listener, to) = listener();
    listener.set_nonblocking(true).unwrap();
    let mut network = network("user,host=on", Limits::default());
    for source in ["10.0.2.2", "10.0.2.3", "127.0.0.1", "192.0.2.1", "0.0.0.0", "255.255.255.255"] {
        let mut syn = segment(4000, to, TcpControl::Syn, 1, None, &[]);
        let source: std::net::Ipv4Addr = source.parse().unwrap();
        syn.bytes[26..30].copy_from_slice(&source.octets());
        Ipv4Packet::new_unchecked(&mut syn.bytes[14..34]).fill_checksum();
        syn.checksum = Some(user_net::frames::PartialChecksum { start: 34, offset: 16 });
        network.input(&syn);
        network.step(TICK);
        assert!(network.output().is_empty(), "{source}");
        assert_eq!(network.counts().tcp, 0, "{source}");
    }
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn damaged_packets_are_dropped() {
    let (listener, to) = listener();
    listener.set_nonblocking(true).unwrap();
    let mut network = network("user,host=on", Limits::default());
    let syn = segment(4000, to, TcpControl::Syn, 1, None, &[]);
    for byte in 14..syn.bytes.len() {
        let mut damaged = syn.clone();
        damaged.bytes[byte] ^= 0x10;
        network.input(&damaged);
    }
    for length in 0..syn.bytes.len() {
        network.input(&Frame { bytes: syn.bytes[..length].to_vec(), ..Frame::default() });
    }
    network.step(TICK);
    assert_eq!(network.counts().tcp, 0);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// What the fuzz target `user_net` does, with random bytes.
#[test]
fn random_scripts_do_not_panic() {
    let mut host = script::Host::new();
    let mut random = Random(0x9e37_79b9);
    for _ in 0..300 {
        let bytes: Vec<u8> = (0..2000).map(|_| (random.next() >> 16) as u8).collect();
        script::run(&mut host, &bytes);
    }
    assert!(host.heard > 0, "the scripts get as far as data");
}

#[test]
fn the_tables_leave_descriptors_to_others() {
    let limits = Limits::default().within(1024);
    assert_eq!((limits.tcp, limits.udp, limits.dns, limits.ping), (512, 128, 64, 32));
    assert_eq!(Limits::default().within(usize::MAX), Limits::default());
}

/// Valid frames with some bytes changed, whose checksums count as right, between valid ones.
#[test]
fn changed_frames_do_not_panic_and_leave_the_network_alive() {
    let (listener, to) = listener();
    listener.set_nonblocking(true).unwrap();
    let mut random = Random(0x1234_5678);
    for _ in 0..60 {
        let mut network = network("user,host=on", Limits { tcp: 8, ..Limits::default() });
        let mut theirs = 0;
        for round in 0..400u32 {
            let number = random.next();
            let control =
                [TcpControl::None, TcpControl::Psh, TcpControl::Fin, TcpControl::Rst, TcpControl::Syn];
            let control = control[(number % 5) as usize];
            let seq = (number >> 8) as u32 % 2000;
            let ack = (number & 0x80 != 0).then_some(theirs + (number >> 40) as u32 % 3);
            let mut frame = segment(
                4000 + (number >> 32) as u16 % 3,
                to,
                control,
                seq,
                ack,
                &[3; 700][..(number >> 50) as usize % 700],
            );
            if round % 2 == 0 {
                for _ in 0..number % 4 {
                    let at = random.next() as usize % frame.bytes.len();
                    frame.bytes[at] = random.next() as u8;
                }
                if frame.bytes[14] == 0x45 {
                    Ipv4Packet::new_unchecked(&mut frame.bytes[14..34]).fill_checksum();
                }
            }
            frame.checksum = Some(user_net::frames::PartialChecksum { start: 34, offset: 16 });
            network.input(&frame);
            network.step(Duration::from_micros(random.next() % 300_000));
            if let Some((.., seq, _)) = network.output().iter().find_map(parse) {
                theirs = seq;
            }
            while listener.accept().is_ok() {}
        }
        network.guest_reset(user_net::Offloads::default());
        open(&mut network, to, 3999, 5);
    }
}
