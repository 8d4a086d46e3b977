//! One connection: a host's socket on the one side, the guest's stack on the other, and what goes between.

use super::stack::{Sent, Stack};
use crate::context::Context;
use smoltcp::socket::tcp::{RecvError, State};
use smoltcp::time::Instant;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// What names a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tuple {
    pub(crate) guest: SocketAddr,
    pub(crate) other: SocketAddr,
}

/// What a connection needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// An event.
    Wait,
    /// Another turn.
    Turn,
    /// A turn when there is room for frames.
    Room,
    /// Nothing: it has ended.
    End,
}

#[derive(Debug)]
pub(crate) enum Side {
    /// The host's socket connects. The guest's SYN waits, with the sequence number it has, and other addresses to try.
    Connecting { syn: Vec<u8>, others: Vec<SocketAddr> },
    /// Both sides talk.
    Open(Box<Stack>),
    /// The guest has closed, and the rest goes to the host.
    Draining { rest: Vec<u8> },
}

#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) tuple: Tuple,
    pub(crate) host: TcpStream,
    pub(crate) side: Side,
    /// The sequence number of the guest's SYN; none if the host called.
    pub(crate) syn: Option<u32>,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// No more comes from the host.
    host_ended: bool,
    /// No more comes from the guest once its buffer is empty.
    guest_ended: bool,
    /// The host knows.
    told_host: bool,
    /// When it is in the table of timers.
    pub(crate) timer: Option<Instant>,
    pub(crate) queued: bool,
    /// The guest's last packet.
    pub(crate) heard: Instant,
    /// Bytes of its buffers.
    pub(crate) buffers: usize,
}

impl Flow {
    pub(crate) fn new(tuple: Tuple, host: TcpStream, side: Side, syn: Option<u32>, now: Instant) -> Self {
        Self {
            tuple,
            host,
            side,
            syn,
            readable: false,
            writable: false,
            host_ended: false,
            guest_ended: false,
            told_host: false,
            timer: None,
            queued: false,
            heard: now,
            buffers: 0,
        }
    }

    /// Moves what can be moved, in both directions.
    pub(crate) fn turn(&mut self, context: &mut Context) -> Next {
        match &mut self.side {
            Side::Connecting { .. } => Next::Wait,
            Side::Draining { .. } => self.drain(),
            Side::Open(_) => self.exchange(context),
        }
    }

    fn exchange(&mut self, context: &mut Context) -> Next {
        let Side::Open(stack) = &mut self.side else { return Next::End };
        self.guest_ended |= matches!(
            stack.socket().state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        let failed = to_host(stack, &self.host, &mut self.writable).is_err()
            || to_guest(stack, &self.host, &mut self.readable, &mut self.host_ended).is_err();
        if failed {
            stack.socket().abort();
            stack.send(context);
            return self.end();
        }
        if self.guest_ended && !self.told_host && stack.socket().recv_queue() == 0 {
            self.told_host = true;
            // An error means that the host has gone, which reading tells.
            let _ = self.host.shutdown(Shutdown::Write);
        }
        if self.host_ended {
            stack.socket().close();
        }
        let sent = stack.send(context);
        match (stack.socket().state(), sent) {
            (State::Closed | State::Listen, _) | (State::TimeWait, Sent::All) => self.end(),
            (_, Sent::All) => Next::Wait,
            (_, Sent::Some) => Next::Turn,
            (_, Sent::Blocked) => Next::Room,
        }
    }

    /// The guest's side is over: properly, or not.
    fn end(&mut self) -> Next {
        let Side::Open(stack) = &mut self.side else { return Next::End };
        if !(self.guest_ended && self.host_ended) {
            self.reset_host();
            return Next::End;
        }
        let mut rest = Vec::new();
        while let Ok(true) = stack.socket().recv(|bytes| {
            rest.extend_from_slice(bytes);
            (bytes.len(), !bytes.is_empty())
        }) {}
        self.side = Side::Draining { rest };
        self.drain()
    }

    fn drain(&mut self) -> Next {
        let Side::Draining { rest } = &mut self.side else { return Next::End };
        while !rest.is_empty() {
            match (&self.host).write(rest) {
                Ok(count) => {
                    rest.drain(..count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Wait,
                Err(_) => break,
            }
        }
        Next::End
    }

    /// Has the host's peer see a reset when the socket is closed.
    pub(crate) fn reset_host(&self) {
        // It fails only for what is no socket.
        let _ = rustix::net::sockopt::set_socket_linger(&self.host, Some(Duration::ZERO));
    }
}

/// The guest's bytes to the host, until either has no more.
fn to_host(stack: &mut Stack, host: &TcpStream, writable: &mut bool) -> std::io::Result<()> {
    while *writable && stack.socket().can_recv() {
        let mut host = host;
        let outcome = stack.socket().recv(|bytes| match host.write(bytes) {
            Ok(count) => (count, Ok(count == bytes.len())),
            Err(error) => (0, Err(error)),
        });
        match outcome {
            Ok(Ok(all)) => *writable = all,
            Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => *writable = false,
            Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(RecvError::Finished | RecvError::InvalidState) => break,
        }
    }
    Ok(())
}

/// The host's bytes to the guest's buffer, until either has no more.
fn to_guest(
    stack: &mut Stack,
    host: &TcpStream,
    readable: &mut bool,
    ended: &mut bool,
) -> std::io::Result<()> {
    while *readable && !*ended && stack.socket().can_send() {
        let mut host = host;
        let outcome = stack.socket().send(|bytes| match host.read(bytes) {
            Ok(count) => (count, Ok(count)),
            Err(error) => (0, Err(error)),
        });
        match outcome {
            Ok(Ok(0)) => *ended = true,
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => *readable = false,
            Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => break,
        }
    }
    Ok(())
}
