//! What a driver with offloads gets and gives: long segments and partial checksums.

mod common;

use common::{Guest, Random, complete, gateway};
use smoltcp::wire::{Ipv4Packet, TcpPacket};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use user_net::Offloads;

#[test]
fn long_segments_come_with_what_is_needed_to_cut_them() {
    const TOTAL: usize = 4 << 20;
    let mut guest = Guest::new("user,host=on");
    guest.net.guest_reset(Offloads { checksum: true, tcp4: true });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let handle = guest.connected(gateway(listener.local_addr().unwrap().port()));
    let (mut stream, _) = listener.accept().unwrap();
    let mut random = Random(3);
    let data: Vec<u8> = (0..TOTAL).map(|_| random.next() as u8).collect();
    let copy = data.clone();
    let writer = std::thread::spawn(move || {
        stream.write_all(&copy).unwrap();
        stream
    });
    let (mut received, mut long) = (Vec::new(), 0);
    guest.until("the data", |guest| {
        for frame in &guest.wire.incoming {
            if frame.bytes[12..14] == [8, 0] {
                assert!(frame.checksum.is_some());
                let mut frame = frame.clone();
                complete(&mut frame);
                let packet = Ipv4Packet::new_checked(&frame.bytes[14..]).unwrap();
                let segment = TcpPacket::new_checked(packet.payload()).unwrap();
                assert!(packet.verify_checksum());
                assert!(segment.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()));
                if let Some(cut) = frame.segment {
                    assert_eq!((cut.size, cut.header), (1460, 54));
                    long += 1;
                } else {
                    assert!(frame.bytes.len() <= 1514);
                }
            }
        }
        let socket = guest.socket(handle);
        while let Ok(1..) = socket.recv(|bytes| {
            received.extend_from_slice(bytes);
            (bytes.len(), bytes.len())
        }) {}
        (received.len() == TOTAL).then_some(())
    });
    assert!(received == data, "the bytes are the right ones");
    assert!(long > 10, "{long} long segments");
    drop(writer.join().unwrap());
}

#[test]
fn long_segments_of_the_guests_are_taken() {
    let mut config = user_net::Config::new(common::options("user,host=on"), common::MAC);
    // The guest's stack then sends segments as long as segmentation offload would.
    config.mtu = 65000;
    let mut guest = Guest::with(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let handle = guest.connected(gateway(listener.local_addr().unwrap().port()));
    let (mut stream, _) = listener.accept().unwrap();
    let reader = std::thread::spawn(move || {
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        data
    });
    let data: Vec<u8> = (0..3_000_000u32).map(|number| (number % 249) as u8).collect();
    guest.send(handle, &data);
    guest.socket(handle).close();
    guest.until("the host's reading", |_| reader.is_finished().then_some(()));
    assert!(reader.join().unwrap() == data);
}
