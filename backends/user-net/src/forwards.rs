//! The host's ports that lead to the guest.

use crate::context::{Context, Kind};
use crate::options::{Forward, Protocol};
use crate::tcp::Tcp;
use crate::udp::Udp;
use rustix::event::epoll::{self, EventFlags};
use smoltcp::time::{Duration, Instant};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

/// Connections and datagrams taken in a row.
const TURN: usize = 32;
/// How long a port waits after the process has run out of descriptors or memory: its event comes again at once.
const REST: Duration = Duration::from_millis(100);

/// A forward that cannot be: thing, reason and remedy in a line.
#[derive(Debug, thiserror::Error)]
#[error("hostfwd={forward}: {reason}", reason = reason(.source))]
pub struct ForwardError {
    /// The forward
    pub forward: Forward,
    /// The system's error
    #[source]
    pub source: io::Error,
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "the port is in use: give another, or end the program that has it".to_owned(),
        ErrorKind::PermissionDenied => "this user may not listen there: give a port from 1024 on".to_owned(),
        ErrorKind::AddrNotAvailable => {
            "the host does not have that address: give one of its own, or 0.0.0.0 for all".to_owned()
        }
        _ => format!("the host does not listen there ({error}): give another address or port"),
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(Arc<UdpSocket>),
}

#[derive(Debug)]
struct Listener {
    id: u64,
    guest_port: u16,
    socket: Socket,
    /// Not watched until then.
    rests: Option<Instant>,
}

#[derive(Debug, Default)]
pub(crate) struct Forwards {
    listeners: Vec<Listener>,
}

impl Forwards {
    /// Takes the ports, and returns where each listens.
    pub(crate) fn open(
        context: &mut Context,
        forwards: &[Forward],
    ) -> Result<(Self, Vec<SocketAddr>), ForwardError> {
        let (mut listeners, mut bound) = (Vec::new(), Vec::new());
        for &forward in forwards {
            let id = context.id();
            let open = || -> io::Result<(Socket, SocketAddr)> {
                match forward.protocol {
                    Protocol::Tcp => {
                        let socket = TcpListener::bind(forward.host)?;
                        socket.set_nonblocking(true)?;
                        context.watch(&socket, Kind::Forward, id, EventFlags::IN)?;
                        let address = socket.local_addr()?;
                        Ok((Socket::Tcp(socket), address))
                    }
                    Protocol::Udp => {
                        let socket = UdpSocket::bind(forward.host)?;
                        socket.set_nonblocking(true)?;
                        context.watch(&socket, Kind::Forward, id, EventFlags::IN)?;
                        let address = socket.local_addr()?;
                        Ok((Socket::Udp(Arc::new(socket)), address))
                    }
                }
            };
            let (socket, address) = open().map_err(|source| ForwardError { forward, source })?;
            listeners.push(Listener { id, guest_port: forward.guest, socket, rests: None });
            bound.push(address);
        }
        Ok((Self { listeners }, bound))
    }

    /// Somebody calls.
    pub(crate) fn event(
        &mut self,
        context: &mut Context,
        tcp: &mut Tcp,
        udp: &mut Udp,
        id: u64,
        scratch: &mut [u8],
    ) {
        let Some(listener) = self.listeners.iter_mut().find(|listener| listener.id == id) else { return };
        for _ in 0..TURN {
            let outcome = match &listener.socket {
                Socket::Tcp(socket) => {
                    socket.accept().map(|(stream, _)| tcp.forward(context, stream, listener.guest_port))
                }
                Socket::Udp(socket) => socket.recv_from(scratch).map(|(length, peer)| {
                    if let Some(data) = scratch.get(..length) {
                        udp.forwarded(context, (id, listener.guest_port), socket, peer, data);
                    }
                }),
            };
            match outcome.map_err(|error| (error.kind(), error.raw_os_error())) {
                Ok(()) => {}
                Err((ErrorKind::WouldBlock, _)) => return,
                // What befell one connection or datagram (accept(2)).
                Err((
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted | ErrorKind::ConnectionRefused,
                    _,
                )) => {}
                Err(_) => {
                    listener.rest(context);
                    return;
                }
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.listeners.iter().filter_map(|listener| listener.rests).min()
    }

    pub(crate) fn expire(&mut self, context: &Context) {
        for listener in &mut self.listeners {
            if listener.rests.is_some_and(|rests| rests <= context.now) {
                listener.rests = None;
                if listener.watch(context).is_err() {
                    listener.rests = Some(context.now + REST);
                }
            }
        }
    }
}

impl Listener {
    fn rest(&mut self, context: &Context) {
        let stopped = match &self.socket {
            Socket::Tcp(socket) => epoll::delete(&context.epoll, socket),
            Socket::Udp(socket) => epoll::delete(&context.epoll, socket),
        };
        if stopped.is_ok() {
            self.rests = Some(context.now + REST);
        }
    }

    fn watch(&self, context: &Context) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(socket) => context.watch(socket, Kind::Forward, self.id, EventFlags::IN),
            Socket::Udp(socket) => context.watch(socket, Kind::Forward, self.id, EventFlags::IN),
        }
    }
}
