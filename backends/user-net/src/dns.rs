//! The DNS relay for UDP. (TCP to the relay is a connection like others, to a name server of the host's.)
//!
//! Each query has a socket of its own, so each has an unpredictable port and only its server's answer is taken. A
//! server that does not answer in time, or refuses, is followed by the next.

use crate::context::{Context, Kind, earlier};
use rustix::event::epoll::EventFlags;
use smoltcp::time::{Duration, Instant};
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

const PORT: u16 = 53;
/// A header, without which nothing is a query (RFC 1035, 4.1.1).
const HEADER: usize = 12;
/// How long a server has before the next is asked, and how long the last has.
const PATIENCE: Duration = Duration::from_secs(2);
const LAST_PATIENCE: Duration = Duration::from_secs(8);
/// Datagrams looked at in a row.
const TURN: usize = 8;

#[derive(Debug)]
struct Query {
    guest: SocketAddr,
    /// The relay's address that was asked.
    asked: IpAddr,
    message: Vec<u8>,
    socket: UdpSocket,
    /// Servers that were not asked yet, the next one last.
    others: Vec<SocketAddr>,
    deadline: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Dns {
    queries: HashMap<u64, Query>,
}

impl Dns {
    pub(crate) fn len(&self) -> usize {
        self.queries.len()
    }

    pub(crate) fn reset(&mut self) {
        self.queries.clear();
    }

    /// A query of the guest's.
    pub(crate) fn input(&mut self, context: &mut Context, guest: SocketAddr, asked: IpAddr, message: &[u8]) {
        if message.len() < HEADER {
            return;
        }
        // The same question again while it is being asked: its answer answers both.
        if self.queries.values().any(|query| query.guest == guest && query.message == message) {
            return;
        }
        if self.queries.len() >= context.limits.dns {
            let oldest = self.queries.keys().min().copied();
            self.queries.remove(&oldest.unwrap_or_default());
        }
        let mut others = context.resolvers.list(context.now);
        others.reverse();
        self.ask(context, guest, asked, message.to_vec(), others);
    }

    /// Asks the last of `others` that can be asked; the query is lost if there is none.
    fn ask(
        &mut self,
        context: &mut Context,
        guest: SocketAddr,
        asked: IpAddr,
        message: Vec<u8>,
        mut others: Vec<SocketAddr>,
    ) {
        while let Some(server) = others.pop() {
            let id = context.id();
            let Ok(socket) = send(server, &message) else { continue };
            if context.watch(&socket, Kind::Dns, id, EventFlags::IN).is_err() {
                return;
            }
            let patience = if others.is_empty() { LAST_PATIENCE } else { PATIENCE };
            let deadline = context.now + patience;
            self.queries.insert(id, Query { guest, asked, message, socket, others, deadline });
            return;
        }
    }

    /// An answer, or an error, has come.
    pub(crate) fn event(&mut self, context: &mut Context, id: u64, scratch: &mut [u8]) {
        for _ in 0..TURN {
            let Some(query) = self.queries.get(&id) else { return };
            match query.socket.recv(scratch) {
                Ok(length) => {
                    let Some(answer) = scratch.get(..length) else { return };
                    // Another identifier is an answer to nobody here.
                    if answer.len() >= HEADER && answer[..2] == query.message[..2] {
                        let guest = (query.guest.ip(), query.guest.port());
                        context.out.udp((query.asked, PORT), guest, answer);
                        self.queries.remove(&id);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.next_server(context, id),
            }
        }
    }

    fn next_server(&mut self, context: &mut Context, id: u64) {
        if let Some(query) = self.queries.remove(&id) {
            self.ask(context, query.guest, query.asked, query.message, query.others);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.queries.values().map(|query| query.deadline).fold(None, |a, b| earlier(a, Some(b)))
    }

    pub(crate) fn expire(&mut self, context: &mut Context) {
        let late = |query: &Query| query.deadline <= context.now;
        let old: Vec<_> = self.queries.iter().filter(|(_, q)| late(q)).map(|(&id, _)| id).collect();
        for id in old {
            self.next_server(context, id);
        }
    }
}

fn send(server: SocketAddr, message: &[u8]) -> io::Result<UdpSocket> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(server)?;
    socket.send(message)?;
    Ok(socket)
}
