//! Connections, from a guest of smoltcp's to sockets of this process's on the loopback.

mod common;

use common::{Guest, Random, Sum, gateway};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A connection through the gateway, and the host's end of it.
fn pair(guest: &mut Guest, listener: &TcpListener) -> (SocketHandle, TcpStream) {
    let handle = guest.connected(gateway(listener.local_addr().unwrap().port()));
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    (handle, stream)
}

fn reset_on_close(stream: &TcpStream) {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO)).unwrap();
}

#[test]
fn dhcp_then_a_connection() {
    let mut guest =
        Guest::without_address(user_net::Config::new(common::options("user,host=on"), common::MAC));
    let (address, router, dns) = guest.configure();
    assert_eq!(address.to_string(), "10.0.2.15/24");
    assert_eq!(router, Some(user_net::addresses::GATEWAY));
    assert_eq!(dns, [user_net::addresses::RESOLVER]);
    let (listener, _) = listener();
    let (handle, mut stream) = pair(&mut guest, &listener);
    guest.send(handle, b"from the guest");
    guest.poll();
    let mut data = [0; 14];
    stream.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"from the guest");
    stream.write_all(b"from the host").unwrap();
    assert_eq!(guest.receive(handle, 13), b"from the host");
}

#[test]
fn a_hundred_megabytes_in_both_directions_at_once() {
    const TOTAL: usize = 100_000_000;
    let mut guest = Guest::new("user,host=on");
    let (listener, _) = listener();
    let (handle, stream) = pair(&mut guest, &listener);
    let pattern: Vec<u8> = {
        let mut random = Random(7);
        (0..1 << 20).map(|_| random.next() as u8).collect()
    };
    let at = |offset: usize| &pattern[offset % (1 << 20)..];
    let mut expected = Sum::new();
    let mut offset = 0;
    while offset < TOTAL {
        let piece = at(offset);
        let piece = &piece[..piece.len().min(TOTAL - offset)];
        expected.add(piece);
        offset += piece.len();
    }
    let host = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut offset = 0;
            while offset < TOTAL {
                let piece = at(offset);
                offset += (&stream).write(&piece[..piece.len().min(TOTAL - offset)]).unwrap();
            }
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let reader = scope.spawn(|| {
            let (mut sum, mut buffer, mut total) = (Sum::new(), vec![0; 1 << 16], 0);
            loop {
                let count = (&stream).read(&mut buffer).unwrap();
                if count == 0 {
                    return (total, sum);
                }
                sum.add(&buffer[..count]);
                total += count;
            }
        });
        let (mut sent, mut received, mut sum) = (0, 0, Sum::new());
        let end = std::time::Instant::now() + 5 * common::PATIENCE;
        while sent < TOTAL || received < TOTAL || guest.socket(handle).may_recv() {
            assert!(std::time::Instant::now() < end, "{sent} sent and {received} received");
            let socket = guest.socket(handle);
            if sent < TOTAL {
                let piece = at(sent);
                sent += socket.send_slice(&piece[..piece.len().min(TOTAL - sent)]).unwrap();
                if sent == TOTAL {
                    socket.close();
                }
            }
            while let Ok(count @ 1..) = socket.recv(|bytes| {
                sum.add(bytes);
                (bytes.len(), bytes.len())
            }) {
                received += count;
            }
            guest.poll();
        }
        writer.join().unwrap();
        assert_eq!((received, sum), (TOTAL, expected));
        while !reader.is_finished() {
            guest.poll();
        }
        reader.join().unwrap()
    });
    assert_eq!(host, (TOTAL, expected));
    guest.until_empty();
}

#[test]
fn refused_looks_refused() {
    // The port was ours, so nobody else listens there.
    let (listener, port) = listener();
    drop(listener);
    for (text, port) in [("user,host=on", port), ("user", 22), ("user,restrict=on", 22)] {
        let mut guest = Guest::new(text);
        let handle = guest.connect(gateway(port));
        guest.until(text, |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
        assert_eq!(guest.net.counts().tcp, 0);
    }
    // Without host=on a port that does listen is refused too.
    let (_listener, port) = self::listener();
    let mut guest = Guest::new("user");
    let handle = guest.connect(gateway(port));
    guest.until("refusal", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
}

#[test]
fn half_closed_connections_go_on() {
    let mut guest = Guest::new("user,host=on");
    let (listener, _) = listener();
    // The guest ends first and still receives.
    let (handle, mut stream) = pair(&mut guest, &listener);
    guest.send(handle, b"question");
    guest.socket(handle).close();
    let host = std::thread::spawn(move || {
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        stream.write_all(&[b'x'; 300_000]).unwrap();
        question
    });
    let answer = guest.receive(handle, 300_000);
    assert!(answer.iter().all(|&byte| byte == b'x'));
    assert_eq!(host.join().unwrap(), "question");
    guest.until("the host's end", |guest| (!guest.socket(handle).may_recv()).then_some(()));
    guest.until_empty();
    // The host ends first and still receives.
    let (handle, mut stream) = pair(&mut guest, &listener);
    stream.write_all(b"banner").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive(handle, 6), b"banner");
    guest.until("the host's end", |guest| (guest.socket(handle).state() == State::CloseWait).then_some(()));
    let host = std::thread::spawn(move || {
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        data
    });
    guest.send(handle, &[b'y'; 300_000]);
    guest.socket(handle).close();
    guest.until("the host's reading", |_| host.is_finished().then_some(()));
    assert_eq!(host.join().unwrap(), [b'y'; 300_000]);
    guest.until_empty();
}

#[test]
fn what_the_guest_sent_last_reaches_a_host_that_is_slow() {
    let mut guest = Guest::new("user,host=on");
    let (listener, _) = listener();
    let (handle, mut stream) = pair(&mut guest, &listener);
    // More than the kernel's buffers hold, so the network holds some of it when the guest is done.
    stream.shutdown(Shutdown::Write).unwrap();
    guest.until("the host's end", |guest| (guest.socket(handle).state() == State::CloseWait).then_some(()));
    let mut sent = 0;
    let mut still = 0;
    while still < 50 {
        let count = guest.socket(handle).send_slice(&[b'z'; 65536]).unwrap();
        still = if count == 0 { still + 1 } else { 0 };
        sent += count;
        guest.poll();
    }
    guest.socket(handle).close();
    let host = std::thread::spawn(move || {
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        data.len()
    });
    guest.until("the host's reading", |_| host.is_finished().then_some(()));
    assert_eq!(host.join().unwrap(), sent);
    guest.until_empty();
}

#[test]
fn resets_go_through_both_ways() {
    let mut guest = Guest::new("user,host=on");
    let (listener, _) = listener();
    let (handle, mut stream) = pair(&mut guest, &listener);
    guest.socket(handle).abort();
    guest.poll();
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    guest.until_empty();
    let (handle, stream) = pair(&mut guest, &listener);
    reset_on_close(&stream);
    drop(stream);
    guest.until("a reset", |guest| (guest.socket(handle).state() == State::Closed).then_some(()));
    guest.until_empty();
}

#[test]
fn ten_thousand_closes_leave_nothing() {
    const EACH: usize = 2500;
    const AT_ONCE: usize = 25;
    let mut guest = Guest::new("user,host=on");
    let (listener, port) = listener();
    listener.set_nonblocking(true).unwrap();
    for kind in 0..4 {
        for _ in 0..EACH / AT_ONCE {
            let handles: Vec<_> = (0..AT_ONCE).map(|_| guest.connect(gateway(port))).collect();
            let mut streams = Vec::new();
            guest.until("connections", |guest| {
                while let Ok((stream, _)) = listener.accept() {
                    streams.push(stream);
                }
                let open = handles.iter().filter(|&&handle| guest.socket(handle).may_send()).count();
                (open == AT_ONCE && streams.len() == AT_ONCE).then_some(())
            });
            for (&handle, stream) in handles.iter().zip(streams) {
                match kind {
                    0 => guest.socket(handle).close(),
                    1 => stream.shutdown(Shutdown::Both).unwrap(),
                    2 => guest.socket(handle).abort(),
                    _ => reset_on_close(&stream),
                }
            }
            guest.until("closes", |guest| {
                let mut open = 0;
                for &handle in &handles {
                    let socket = guest.socket(handle);
                    if socket.state() == State::CloseWait {
                        socket.close();
                    }
                    open += usize::from(socket.is_open());
                }
                (open == 0).then_some(())
            });
            for handle in handles {
                guest.sockets.remove(handle);
            }
        }
        guest.until_empty();
    }
}

#[test]
fn forwards_lead_in() {
    let mut guest = Guest::new("user,hostfwd=tcp:0:80,hostfwd=tcp:0:81,restrict=on");
    let ports = guest.net.forwards().to_vec();
    assert!(ports.iter().all(|address| address.ip().is_loopback()));
    let handle = guest.tcp();
    guest.socket(handle).listen(80).unwrap();
    let host = |address: SocketAddr| {
        std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
            stream.write_all(b"GET /").and_then(|()| {
                let mut answer = [0; 6];
                stream.read_exact(&mut answer)?;
                Ok(answer)
            })
        })
    };
    let client = host(ports[0]);
    assert_eq!(guest.receive(handle, 5), b"GET /");
    let remote = guest.socket(handle).remote_endpoint().unwrap();
    assert_eq!(remote.addr, user_net::addresses::GATEWAY.into());
    guest.send(handle, b"200 OK");
    guest.until("the answer", |_| client.is_finished().then_some(()));
    assert_eq!(&client.join().unwrap().unwrap(), b"200 OK");
    // Nobody listens on the guest's port 81.
    let client = host(ports[1]);
    guest.until("the refusal", |_| client.is_finished().then_some(()));
    let error = client.join().unwrap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error:?}");
    guest.socket(handle).abort();
    guest.until_empty();
}

#[test]
fn a_port_in_use_is_said_in_a_line_with_the_remedy() {
    let (_listener, port) = listener();
    let options = common::options(&format!("user,hostfwd=tcp:{port}:22"));
    let error =
        user_net::UserNet::start(user_net::Config::new(options, common::MAC)).unwrap_err().to_string();
    let expected = format!(
        "hostfwd=tcp:127.0.0.1:{port}:22: the port is in use: give another, or end the program that has it"
    );
    assert_eq!(error, expected);
}

#[test]
fn a_guest_that_starts_anew_loses_its_connections() {
    let mut guest = Guest::new("user,host=on");
    let (listener, _) = listener();
    let (_, mut stream) = pair(&mut guest, &listener);
    guest.net.guest_reset(user_net::Offloads::default());
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    guest.sockets = smoltcp::iface::SocketSet::new(Vec::new());
    guest.until_empty();
    // And has new ones.
    pair(&mut guest, &listener);
}
