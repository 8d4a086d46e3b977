//! The host's side, with packets of guests that are good or hostile.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::packet::{HOST_CID, NO_RECEIVE, NO_SEND, STREAM};
use super::*;

/// Where the test's guest is.
const CID: u64 = 42;
/// Its buffer, unless told.
const ALLOC: u32 = 1 << 20;

struct Guest {
    host: VsockHost,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

/// Of a packet: op, host's port, guest's port, flags.
type Seen = (Op, u32, u32, u32);

fn seen(header: &Header) -> Seen {
    assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, STREAM));
    (header.op, header.src_port, header.dst_port, header.flags)
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let host = VsockHost::new(VsockOptions { path: path.clone(), cid: CID as u32 }).unwrap();
        Self { host, path, _dir: dir }
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path.display())).unwrap()
    }

    /// A program of the host's that asks for `port`.
    fn client(&self, port: u32) -> UnixStream {
        let mut client = UnixStream::connect(&self.path).unwrap();
        client.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        client
    }

    fn header(op: Op, host: u32, guest: u32) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            kind: STREAM,
            op,
            buf_alloc: ALLOC,
            ..Header::default()
        }
    }

    fn send(&mut self, op: Op, host: u32, guest: u32, data: &[u8]) {
        self.host.take(&Header { len: data.len() as u32, ..Self::header(op, host, guest) }, data);
    }

    /// The next packet, if there is one now.
    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        // Who is accepted has said something the second time.
        self.host.poll();
        self.host.poll();
        let mut data = Vec::new();
        let header = self.host.give(MAX_DATA, &mut data)?;
        assert_eq!(header.len as usize, data.len());
        Some((header, data))
    }

    /// The next packet; waits for it.
    fn wait(&mut self) -> (Header, Vec<u8>) {
        loop {
            if let Some(packet) = self.next() {
                return packet;
            }
            let events = self.host.events();
            poll(&mut [PollFd::new(&events, PollFlags::IN)], None).unwrap();
        }
    }

    fn see(&mut self) -> Seen {
        seen(&self.wait().0)
    }

    /// An open connection to port 52 of the guest, and the host's port.
    fn open(&mut self) -> (UnixStream, u32) {
        let mut client = self.client(52);
        let (op, host, ..) = self.see();
        assert_eq!(op, Op::Request);
        self.send(Op::Response, host, 52, &[]);
        let mut line = vec![0; format!("OK {host}\n").len()];
        client.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {host}\n").as_bytes());
        (client, host)
    }
}

fn ends(mut client: &UnixStream) -> bool {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).map_or(true, |_| rest.is_empty())
}

#[test]
fn a_program_of_the_host_talks_to_a_port_of_the_guest_and_each_half_ends_by_itself() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.open();
    assert_eq!(host, 1 << 30);
    client.write_all(b"hello").unwrap();
    let (header, data) = guest.wait();
    assert_eq!((seen(&header), data.as_slice()), ((Op::Data, host, 52, 0), &b"hello"[..]));
    assert_eq!((header.buf_alloc, header.fwd_cnt), (BUFFER, 0));
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.see(), (Op::Shutdown, host, 52, NO_SEND));
    guest.send(Op::Data, host, 52, b"and back");
    let mut back = [0; 8];
    client.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"and back");
    guest.send(Op::CreditRequest, host, 52, &[]);
    let (header, _) = guest.wait();
    assert_eq!((header.op, header.fwd_cnt), (Op::CreditUpdate, 8));
    let both = Header { flags: NO_RECEIVE | NO_SEND, ..Guest::header(Op::Shutdown, host, 52) };
    guest.host.take(&both, &[]);
    assert_eq!(guest.see(), (Op::Reset, host, 52, 0));
    assert!(ends(&client) && guest.host.connections() == 0);
}

#[test]
fn the_guest_ends_its_half_and_hears_the_rest() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.open();
    guest.send(Op::Data, host, 52, b"question");
    guest.host.take(&Header { flags: NO_SEND, ..Guest::header(Op::Shutdown, host, 52) }, &[]);
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all, "question");
    client.write_all(b"answer").unwrap();
    drop(client);
    let (header, data) = guest.wait();
    assert_eq!((header.op, data.as_slice()), (Op::Data, &b"answer"[..]));
    assert_eq!(guest.see(), (Op::Shutdown, host, 52, NO_RECEIVE | NO_SEND));
    guest.send(Op::Reset, host, 52, &[]);
    assert!(guest.next().is_none() && guest.host.connections() == 0);
}

#[test]
fn lines_that_ask_for_nothing_end_their_connection_and_the_guest_hears_of_none() {
    let mut guest = Guest::new();
    let long = "CONNECT 00000000000000000000000000000000000001\n";
    for line in
        ["CONECT 1\n", "CONNECT\n", "CONNECT x\n", "CONNECT 1 2\n", "CONNECT 4294967296\n", "\n", long]
    {
        let mut client = UnixStream::connect(&guest.path).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        assert!(guest.next().is_none(), "{line}");
        assert!(ends(&client) && guest.host.connections() == 0, "{line}");
    }
    let mut client = UnixStream::connect(&guest.path).unwrap();
    client.write_all(b"connect 1").unwrap();
    assert!(guest.next().is_none() && guest.host.connections() == 1, "the line may go on");
    client.write_all(b"7\nmore").unwrap();
    let (op, host, port, _) = guest.see();
    assert_eq!((op, port), (Op::Request, 17));
    assert!(guest.next().is_none(), "nothing is sent before the guest answers");
    guest.send(Op::Response, host, 17, &[]);
    assert_eq!(guest.wait().1, b"more");
}

#[test]
fn where_nobody_listens_is_nobody() {
    let mut guest = Guest::new();
    let client = guest.client(9);
    let (_, host, ..) = guest.see();
    guest.send(Op::Reset, host, 9, &[]);
    assert!(ends(&client));
    guest.send(Op::Request, 8, 1024, &[]);
    assert_eq!(guest.see(), (Op::Reset, 8, 1024, 0));
    let client = guest.client(9);
    let (_, host, ..) = guest.see();
    drop(client);
    assert_eq!(guest.see(), (Op::Reset, host, 9, 0), "who asked has gone");
}

#[test]
fn the_guest_connects_to_a_program_of_the_host() {
    let mut guest = Guest::new();
    let listener = guest.listen(7);
    guest.send(Op::Request, 7, 1024, &[]);
    assert_eq!(guest.see(), (Op::Response, 7, 1024, 0));
    let (mut server, _) = listener.accept().unwrap();
    guest.send(Op::Data, 7, 1024, b"ping");
    let mut ping = [0; 4];
    server.read_exact(&mut ping).unwrap();
    server.write_all(b"pong").unwrap();
    assert_eq!((guest.wait().1.as_slice(), &ping), (&b"pong"[..], b"ping"));
    guest.send(Op::Request, 7, 1024, &[]);
    assert_eq!(guest.see(), (Op::Reset, 7, 1024, 0), "there is one of these ports");
    assert!(ends(&server));
}

#[test]
fn no_more_is_sent_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.open();
    let credit = |alloc, forwarded| Header {
        buf_alloc: alloc,
        fwd_cnt: forwarded,
        ..Guest::header(Op::CreditUpdate, host, 52)
    };
    guest.host.take(&credit(10, 0), &[]);
    client.write_all(&[7; 25]).unwrap();
    assert_eq!(guest.wait().1.len(), 10);
    assert_eq!(guest.see().0, Op::CreditRequest);
    assert!(guest.next().is_none(), "asked once");
    // A shrunk buffer, and bytes that have left it without having been sent.
    for (alloc, forwarded) in [(5, 0), (10, 11), (10, 0)] {
        guest.host.take(&credit(alloc, forwarded), &[]);
        assert!(guest.next().is_none(), "{alloc} {forwarded}");
    }
    guest.host.take(&credit(10, 10), &[]);
    assert_eq!(guest.wait().1.len(), 10);
    guest.host.take(&credit(ALLOC, 20), &[]);
    // After the one that was asked for.
    let rest = loop {
        let (header, data) = guest.wait();
        if header.op == Op::Data {
            break data;
        }
    };
    assert_eq!(rest.len(), 5);
}

/// Sends what `credit` allows; the guest's part of flow control.
fn fill(guest: &mut Guest, host: u32, sent: &mut u32, limit: u32) {
    let mut free = BUFFER;
    loop {
        let len = free.min(MAX_DATA as u32).min(limit - *sent);
        if len == 0 {
            return;
        }
        let data: Vec<u8> = (*sent..*sent + len).map(|n| (n / 7) as u8).collect();
        guest.send(Op::Data, host, 52, &data);
        *sent += len;
        guest.send(Op::CreditRequest, host, 52, &[]);
        let (header, _) = guest.wait();
        assert_eq!(header.op, Op::CreditUpdate);
        free = BUFFER - (*sent - header.fwd_cnt);
    }
}

#[test]
fn a_program_that_does_not_read_holds_the_guest_back_and_who_goes_on_is_refused() {
    let mut guest = Guest::new();
    let (mut client, host) = guest.open();
    let mut sent = 0;
    fill(&mut guest, host, &mut sent, u32::MAX);
    assert!(guest.next().is_none(), "no credit: held back");
    let mut bytes = vec![0; sent as usize];
    let reader = thread::spawn(move || {
        client.read_exact(&mut bytes).unwrap();
        (client, bytes)
    });
    assert_eq!(guest.see().0, Op::CreditUpdate, "told without being asked");
    let all_has_gone = |guest: &mut Guest| {
        guest.send(Op::CreditRequest, host, 52, &[]);
        guest.wait().0.fwd_cnt == sent
    };
    while !all_has_gone(&mut guest) {
        thread::yield_now();
    }
    let (_client, bytes) = reader.join().unwrap();
    assert!(bytes.iter().zip(0u32..).all(|(byte, n)| *byte == (n / 7) as u8));

    let mut all = sent;
    fill(&mut guest, host, &mut all, u32::MAX);
    guest.send(Op::Data, host, 52, b"x");
    assert_eq!(guest.see(), (Op::Reset, host, 52, 0));
    assert_eq!(guest.host.connections(), 0);
}

#[test]
fn megabytes_go_both_ways() {
    const LEN: u32 = 8 << 20;
    let mut guest = Guest::new();
    let (client, host) = guest.open();
    let (mut reader, mut writer) = (client.try_clone().unwrap(), client);
    let read = thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let write = thread::spawn(move || {
        let bytes: Vec<u8> = (0..LEN).map(|n| (n / 3) as u8).collect();
        writer.write_all(&bytes).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let (mut received, mut sent, mut free, mut ended) = (Vec::new(), 0, BUFFER, false);
    while !ended || sent < LEN {
        let len = free.min(MAX_DATA as u32).min(LEN - sent);
        if len > 0 {
            let data: Vec<u8> = (sent..sent + len).map(|n| (n / 7) as u8).collect();
            guest.send(Op::Data, host, 52, &data);
            sent += len;
            free -= len;
        }
        if let Some((header, data)) = if len > 0 { guest.next() } else { Some(guest.wait()) } {
            free = BUFFER - (sent - header.fwd_cnt);
            match header.op {
                Op::Shutdown => ended = true,
                Op::Data | Op::CreditUpdate | Op::CreditRequest => {}
                other => panic!("{other:?}"),
            }
            received.extend(data);
            let update =
                Header { fwd_cnt: received.len() as u32, ..Guest::header(Op::CreditUpdate, host, 52) };
            guest.host.take(&update, &[]);
        }
    }
    write.join().unwrap();
    assert!(received.len() == LEN as usize && received.iter().zip(0u32..).all(|(b, n)| *b == (n / 3) as u8));
    guest.host.take(&Header { flags: NO_RECEIVE | NO_SEND, ..Guest::header(Op::Shutdown, host, 52) }, &[]);
    // What the socket has not taken yet goes first.
    while guest.wait().0.op != Op::Reset {}
    let bytes = read.join().unwrap();
    assert!(bytes.len() == LEN as usize && bytes.iter().zip(0u32..).all(|(b, n)| *b == (n / 7) as u8));
}

#[test]
fn connections_and_refusals_are_bounded() {
    let mut guest = Guest::new();
    let listener = guest.listen(7);
    let mut servers = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 {
        guest.send(Op::Request, 7, port, &[]);
        assert_eq!(guest.see(), (Op::Response, 7, port, 0));
        servers.push(listener.accept().unwrap());
    }
    guest.send(Op::Request, 7, 5000, &[]);
    assert_eq!(guest.see(), (Op::Reset, 7, 5000, 0));
    assert_eq!(guest.host.connections(), MAX_CONNECTIONS);
    // Those of the host have a bound of their own.
    let (client, _) = guest.open();
    let mut refused = 0;
    while guest.host.can_take() {
        guest.send(Op::Request, 9, refused, &[]);
        refused += 1;
    }
    assert_eq!(refused, 256);
    assert_eq!(guest.see(), (Op::Reset, 9, 0, 0));
    assert!(guest.host.can_take());
    guest.host.reset();
    assert!(ends(&client) && guest.next().is_none());
}

#[test]
fn a_program_more_than_there_is_room_for_waits_for_its_place() {
    let mut guest = Guest::new();
    let mut clients: Vec<UnixStream> = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 {
        clients.push(guest.client(port));
        assert_eq!(guest.see().0, Op::Request);
    }
    let _last = guest.client(1000);
    assert!(guest.next().is_none() && guest.host.connections() == MAX_CONNECTIONS);
    clients.pop();
    let end = Instant::now() + Duration::from_secs(60);
    let mut next = || loop {
        assert!(Instant::now() < end);
        if let Some((header, _)) = guest.next() {
            return (header.op, header.dst_port);
        }
    };
    assert_eq!([next(), next()], [(Op::Reset, MAX_CONNECTIONS as u32 - 1), (Op::Request, 1000)]);
}

#[test]
fn packets_that_cannot_be_are_refused_and_those_of_others_are_nothing() {
    let mut guest = Guest::new();
    let (client, host) = guest.open();
    let header = Guest::header(Op::Data, host, 52);
    guest.host.take(&Header { src_cid: 7, ..header }, b"x");
    assert!(guest.next().is_none());
    for wrong in
        [Header { dst_cid: 9, ..header }, Header { kind: 2, ..header }, Header { dst_port: 1, ..header }]
    {
        guest.host.take(&wrong, b"x");
        let (answer, _) = guest.wait();
        assert_eq!((answer.op, answer.src_cid, answer.kind), (Op::Reset, wrong.dst_cid, wrong.kind));
        assert_eq!((answer.src_port, answer.dst_port), (wrong.dst_port, 52));
    }
    guest.host.take(&Header { dst_port: 1, op: Op::Reset, ..header }, b"");
    assert!(guest.next().is_none(), "a refusal is not refused");
    guest.send(Op::Invalid, host, 52, &[]);
    assert_eq!(guest.see(), (Op::Reset, host, 52, 0));
    assert!(ends(&client));
    // Asked, and answered by data.
    let client = guest.client(53);
    let (_, host, ..) = guest.see();
    guest.send(Op::Data, host, 53, b"x");
    assert_eq!(guest.see(), (Op::Reset, host, 53, 0));
    assert!(ends(&client));
}

#[test]
fn the_entry_of_the_socket_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let options = VsockOptions { path: path.clone(), cid: 3 };
    let first = VsockHost::new(options.clone()).unwrap();
    let error = VsockHost::new(options.clone()).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "vsock: cannot listen at {}: something is there; end what uses it, or name another path",
            path.display()
        )
    );
    first.socket_file().remove();
    assert!(!path.exists());
    // One that was killed leaves its entry behind.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let second = VsockHost::new(options.clone()).unwrap();
    drop(first);
    assert!(path.exists(), "the first one's is gone, this is another's");
    drop(second);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(VsockHost::new(options).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}
