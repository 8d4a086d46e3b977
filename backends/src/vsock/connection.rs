//! One connection: a socket of the host's on one side, packets of the guest's on the other.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::packet::{Header, MAX_DATA, NO_RECEIVE, NO_SEND, Op};

/// Bytes of a connection that the guest can have on their way to the socket: its credit.
pub const BUFFER: u32 = 256 << 10;
/// Longest first line of a program of the host's.
const MOST_LINE: usize = 32;

/// Who is connected: a port of the host's and one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// The connection cannot be any more.
#[derive(Debug)]
pub(super) struct Over;

/// How far it has come.
#[derive(Debug)]
enum Stage {
    /// The program of the host's has not said which port it wants: its line so far.
    Line(Vec<u8>),
    /// The guest is to be asked.
    Ask,
    /// It has been asked.
    Asked,
    /// The guest has asked, and is to be answered.
    Answer,
    Open,
}

#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    stage: Stage,
    pub(super) ports: Ports,
    pub(super) by_guest: bool,
    /// In the host's list of those that may have something for the guest.
    pub(super) listed: bool,

    /// Data for the socket that it has not taken.
    waiting: VecDeque<u8>,
    writable: bool,
    /// The socket takes nothing any more: data go nowhere.
    deaf: bool,
    /// Bytes that came from the guest, that have left us, and that it knows have left us: all modulo 2^32.
    received: u32,
    forwarded: u32,
    told_forwarded: u32,
    wants_update: bool,
    /// What the guest does no more.
    guest_ends: u32,
    write_is_shut: bool,

    readable: bool,
    /// Nothing more comes from the socket.
    at_end: bool,
    /// The program at the other end has closed it.
    gone: bool,
    told_ends: u32,
    /// Bytes that the guest was sent, the size of its buffer, and the bytes that have left that.
    sent: u32,
    guest_alloc: u32,
    guest_forwarded: u32,
    asked_for_credit: bool,
}

impl Connection {
    fn new(socket: OwnedFd, stage: Stage, ports: Ports, by_guest: bool) -> Self {
        Self {
            socket,
            stage,
            ports,
            by_guest,
            listed: false,
            waiting: VecDeque::new(),
            writable: true,
            deaf: false,
            received: 0,
            forwarded: 0,
            told_forwarded: 0,
            wants_update: false,
            guest_ends: 0,
            write_is_shut: false,
            readable: true,
            at_end: false,
            gone: false,
            told_ends: 0,
            sent: 0,
            guest_alloc: 0,
            guest_forwarded: 0,
            asked_for_credit: false,
        }
    }

    /// A program of the host's has connected.
    pub(super) fn of_host(socket: OwnedFd) -> Self {
        Self::new(socket, Stage::Line(Vec::new()), Ports { host: 0, guest: 0 }, false)
    }

    /// The guest has, by `request`.
    pub(super) fn of_guest(socket: OwnedFd, request: &Header) -> Self {
        let ports = Ports { host: request.dst_port, guest: request.src_port };
        let mut this = Self::new(socket, Stage::Answer, ports, true);
        this.note_credit(request);
        this
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The guest has heard of it.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self.stage, Stage::Line(_) | Stage::Ask)
    }

    pub(super) fn waits_for_line(&self) -> bool {
        matches!(self.stage, Stage::Line(_))
    }

    /// Something has happened to the socket.
    pub(super) fn event(&mut self, flags: EventFlags) -> Result<(), Over> {
        self.readable |= flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        self.writable |= flags.contains(EventFlags::OUT);
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            (self.gone, self.readable) = (true, true);
        }
        match self.stage {
            // What there is of a line is still read.
            Stage::Line(_) => Ok(()),
            Stage::Ask | Stage::Asked if self.gone => Err(Over),
            _ => self.flush(),
        }
    }

    /// Reads on in the line `CONNECT port`; the port when it is there. What follows it stays in the socket.
    pub(super) fn read_line(&mut self) -> Result<Option<u32>, Over> {
        let Stage::Line(line) = &mut self.stage else { return Ok(None) };
        loop {
            let mut byte = [0];
            match recv(&self.socket, &mut byte, RecvFlags::empty()) {
                Ok((_, 1)) if byte == *b"\n" => return port_of(line).map(Some).ok_or(Over),
                Ok((_, 1)) if line.len() < MOST_LINE => line.extend(byte),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Ok(_) | Err(_) => return Err(Over),
            }
        }
    }

    /// The line was read, and these are the ports: the guest is asked.
    pub(super) fn ask(&mut self, ports: Ports) {
        (self.stage, self.ports) = (Stage::Ask, ports);
    }

    /// The next packet to the guest with at most `room` bytes of data, which replace `data`; op and flags of its header.
    pub(super) fn next(&mut self, room: usize, data: &mut Vec<u8>) -> Result<Option<(Op, u32)>, Over> {
        data.clear();
        match self.stage {
            Stage::Line(_) | Stage::Asked => return Ok(None),
            Stage::Ask => {
                self.stage = Stage::Asked;
                return Ok(Some((Op::Request, 0)));
            }
            Stage::Answer => {
                self.stage = Stage::Open;
                return Ok(Some((Op::Response, 0)));
            }
            Stage::Open => {}
        }
        if self.readable && !self.at_end {
            let credit = self.credit();
            if credit == 0 {
                if !std::mem::replace(&mut self.asked_for_credit, true) {
                    return Ok(Some((Op::CreditRequest, 0)));
                }
            } else if self.read(room.min(credit as usize), data)? {
                return Ok(Some((Op::Data, 0)));
            }
        }
        let ends = self.ends();
        if ends != self.told_ends {
            self.told_ends = ends;
            return Ok(Some((Op::Shutdown, ends)));
        }
        Ok(self.wants_update.then_some((Op::CreditUpdate, 0)))
    }

    /// Reads up to `most` bytes; false if there is none.
    fn read(&mut self, most: usize, data: &mut Vec<u8>) -> Result<bool, Over> {
        data.resize(most.min(MAX_DATA), 0);
        let read = loop {
            match recv(&self.socket, data.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        data.truncate(read.as_ref().map_or(0, |(_, len)| *len));
        match read {
            Ok((_, 0)) => self.at_end = true,
            Ok((_, len)) => self.sent = self.sent.wrapping_add(len as u32),
            Err(Errno::AGAIN) => self.readable = false,
            // The program was killed with data of ours unread: what it had sent before has been read.
            Err(Errno::CONNRESET) => (self.at_end, self.gone) = (true, true),
            Err(_) => return Err(Over),
        }
        Ok(!data.is_empty())
    }

    /// What the guest is to know that this end does no more.
    fn ends(&self) -> u32 {
        let mut ends = 0;
        if self.at_end {
            ends |= NO_SEND;
        }
        if self.deaf || self.gone {
            ends |= NO_RECEIVE;
        }
        ends
    }

    /// The header that says where this end's buffer is. Whoever asks sends it.
    pub(super) fn stamp(&mut self, header: Header) -> Header {
        self.told_forwarded = self.forwarded;
        self.wants_update = false;
        Header { buf_alloc: BUFFER, fwd_cnt: self.forwarded, ..header }
    }

    /// Bytes that the guest has room for.
    fn credit(&self) -> u32 {
        // A guest may shrink its buffer, or say what cannot be.
        self.guest_alloc.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    fn note_credit(&mut self, header: &Header) {
        (self.guest_alloc, self.guest_forwarded) = (header.buf_alloc, header.fwd_cnt);
        if self.credit() > 0 {
            self.asked_for_credit = false;
        }
    }

    /// Takes a packet of the guest's.
    pub(super) fn take(&mut self, header: &Header, data: &[u8]) -> Result<(), Over> {
        self.note_credit(header);
        match (header.op, &self.stage) {
            (Op::Response, Stage::Asked) => {
                self.stage = Stage::Open;
                // The socket has taken nothing yet, so it has room.
                let line = format!("OK {}\n", self.ports.host);
                match send(&self.socket, line.as_bytes(), SendFlags::NOSIGNAL) {
                    Ok(sent) if sent == line.len() => Ok(()),
                    _ => Err(Over),
                }
            }
            (Op::Data, Stage::Open) => self.take_data(data),
            (Op::Shutdown, Stage::Open) => {
                self.guest_ends |= header.flags & (NO_RECEIVE | NO_SEND);
                if self.guest_ends & NO_RECEIVE != 0 && !self.at_end {
                    self.at_end = true;
                    let _ = shutdown(&self.socket, Shutdown::Read);
                }
                self.flush()
            }
            (Op::CreditUpdate, Stage::Open) => Ok(()),
            (Op::CreditRequest, Stage::Open) => {
                self.wants_update = true;
                Ok(())
            }
            _ => Err(Over),
        }
    }

    fn take_data(&mut self, data: &[u8]) -> Result<(), Over> {
        let free = BUFFER.saturating_sub(self.received.wrapping_sub(self.forwarded));
        if data.len() > free as usize || self.guest_ends & NO_SEND != 0 {
            return Err(Over);
        }
        self.received = self.received.wrapping_add(data.len() as u32);
        let mut rest = data;
        while self.waiting.is_empty() && !rest.is_empty() {
            let sent = self.write(rest);
            if sent == 0 {
                break;
            }
            rest = rest.get(sent..).unwrap_or_default();
        }
        if !self.deaf {
            self.waiting.extend(rest);
        }
        self.flush()
    }

    /// Writes some of `bytes`; 0: the socket takes none now, or none any more.
    fn write(&mut self, bytes: &[u8]) -> usize {
        while self.writable && !self.deaf {
            match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.forwarded = self.forwarded.wrapping_add(sent as u32);
                    return sent;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => self.deaf = true,
            }
        }
        0
    }

    /// Writes what waits, and does what comes behind it.
    fn flush(&mut self) -> Result<(), Over> {
        let mut waiting = std::mem::take(&mut self.waiting);
        while !waiting.is_empty() {
            let sent = self.write(waiting.as_slices().0);
            if sent == 0 {
                break;
            }
            waiting.drain(..sent);
        }
        if self.deaf {
            waiting = VecDeque::new();
            self.forwarded = self.received;
        }
        self.waiting = waiting;
        if self.waiting.is_empty() && self.guest_ends & NO_SEND != 0 {
            if self.guest_ends & NO_RECEIVE != 0 {
                return Err(Over);
            }
            if !std::mem::replace(&mut self.write_is_shut, true) {
                let _ = shutdown(&self.socket, Shutdown::Write);
            }
        }
        // What the guest thinks is free.
        let believed = BUFFER.saturating_sub(self.received.wrapping_sub(self.told_forwarded));
        self.wants_update |= believed < BUFFER / 2 && self.told_forwarded != self.forwarded;
        Ok(())
    }
}

/// The port in `CONNECT port`.
fn port_of(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (command, port) = (words.next()?, words.next()?);
    (command.eq_ignore_ascii_case("connect") && words.next().is_none()).then(|| port.parse().ok()).flatten()
}
