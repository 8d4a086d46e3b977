//! TCP: which connection a segment belongs to, how connections begin, and whose turn it is.
//!
//! 1. A SYN of the guest's makes the host's socket connect. Only when that has succeeded does a stack see the SYN and
//!    answer it; a refusal is answered by a reset, an unreachable address by ICMP's word for it.
//! 2. A FIN of either side is passed on and the other direction goes on; a reset is passed on as one.
//! 3. A connection has a turn when something happens to it. It moves bytes as far as the buffers of both sides allow:
//!    a side that does not read stops the other by its window.
//! 4. The table is bounded. When it is full, connections that wait longest for their host make room, then those that
//!    were silent for minutes; then new ones are refused.

mod flow;
mod stack;

use crate::addresses::{GATEWAY, GUEST};
use crate::context::{Context, Kind};
use crate::icmp;
use crate::packet::Packet;
use crate::route::{Decision, Why, decide};
use flow::{Flow, Next, Side, Tuple};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpAddress, IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};
use stack::Stack;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::net::{IpAddr, SocketAddr, TcpStream};

const EVENTS: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);
/// Buffers of one direction of one connection.
const LARGEST_BUFFER: usize = 256 << 10;
const SMALLEST_BUFFER: usize = 16 << 10;
/// A timer that has come and did nothing comes again no sooner.
const SHORTEST_TIMER: Duration = Duration::from_millis(2);
/// A connection that was silent for so long makes room for another.
const SILENT: Duration = Duration::from_secs(300);
/// Ports of the gateway's from which forwarded connections come.
const FIRST_PORT: u16 = 32768;

#[derive(Debug, Default)]
pub(crate) struct Tcp {
    flows: HashMap<u64, Flow>,
    tuples: HashMap<Tuple, u64>,
    timers: BTreeSet<(Instant, u64)>,
    turns: VecDeque<u64>,
    /// Bytes of all buffers.
    buffers: usize,
    next_port: u16,
    random: RandomState,
}

impl Tcp {
    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is something to do that waits for nothing but room for frames.
    pub(crate) fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|&(time, _)| time)
    }

    /// Ends everything: the guest has started anew.
    pub(crate) fn reset(&mut self) {
        for flow in self.flows.values() {
            flow.reset_host();
        }
        *self = Self { next_port: self.next_port, ..Self::default() };
    }

    /// A segment of the guest's.
    pub(crate) fn input(&mut self, context: &mut Context, packet: &Packet<'_>) {
        let Some(segment) = packet.tcp() else { return };
        let guest = SocketAddr::new(packet.source, segment.src_port());
        let other = SocketAddr::new(packet.destination, segment.dst_port());
        let tuple = Tuple { guest, other };
        let opens = segment.syn() && !segment.ack();
        let number = segment.seq_number().0 as u32;
        if let Some(&id) = self.tuples.get(&tuple) {
            let Some(flow) = self.flows.get_mut(&id) else { return };
            // Another SYN on the same addresses: the guest has forgotten the old connection.
            let anew = opens && flow.syn != Some(number);
            match &mut flow.side {
                _ if anew => self.abandon(id),
                Side::Connecting { .. } => {
                    if segment.rst() {
                        self.abandon(id);
                    }
                    return;
                }
                Side::Open(stack) => {
                    flow.heard = context.now;
                    stack.feed(context, &packet.for_stack());
                    self.queue(id);
                    return;
                }
                // The guest has our last word already.
                Side::Draining { .. } => {}
            }
        }
        if opens {
            self.open(context, tuple, packet, &segment);
        } else if !segment.rst() {
            refuse(context, packet, &segment);
        }
    }

    /// A SYN of the guest's that belongs to nothing.
    fn open(&mut self, context: &mut Context, tuple: Tuple, packet: &Packet<'_>, segment: &TcpPacket<&[u8]>) {
        let mut targets = match decide(context, tuple.other, IpProtocol::Tcp) {
            Decision::Connect(targets) => targets,
            Decision::Refuse => return refuse(context, packet, segment),
            Decision::Unreachable(why) => return icmp::unreachable(context, packet, why),
            Decision::Ignore => return,
        };
        self.forget(tuple);
        if !self.make_room(context) {
            return refuse(context, packet, segment);
        }
        let id = context.id();
        targets.reverse();
        match connect_any(context, id, &mut targets) {
            Ok(host) => {
                let side = Side::Connecting { syn: packet.for_stack().into_owned(), others: targets };
                let number = segment.seq_number().0 as u32;
                self.insert(id, Flow::new(tuple, host, side, Some(number), context.now));
            }
            Err(error) => match verdict(error) {
                Some(why) => icmp::unreachable(context, packet, why),
                None => refuse(context, packet, segment),
            },
        }
    }

    /// A connection that the host has accepted for a forward: calls the guest.
    pub(crate) fn forward(&mut self, context: &mut Context, host: TcpStream, guest_port: u16) {
        let guest = SocketAddr::new(IpAddr::V4(GUEST), guest_port);
        let id = context.id();
        let made = host.set_nonblocking(true).is_ok()
            && context.watch(&host, Kind::Tcp, id, EVENTS).is_ok()
            && self.make_room(context);
        let Some(port) = self.free_port(guest).filter(|_| made) else {
            let _ = rustix::net::sockopt::set_socket_linger(&host, Some(std::time::Duration::ZERO));
            return;
        };
        settle(&host);
        let local = (IpAddr::V4(GATEWAY), port);
        let buffer = self.buffer(context);
        let mut stack = Stack::new(context, local.0, guest.ip(), buffer, self.random.hash_one(id));
        if stack.connect(guest_port, local).is_err() {
            return;
        }
        let tuple = Tuple { guest, other: SocketAddr::from(local) };
        let mut flow = Flow::new(tuple, host, Side::Open(Box::new(stack)), None, context.now);
        flow.buffers = 2 * buffer;
        self.buffers += flow.buffers;
        self.insert(id, flow);
        self.queue(id);
    }

    /// An event of a host's socket.
    pub(crate) fn event(&mut self, context: &mut Context, id: u64, flags: EventFlags) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let error = flags.contains(EventFlags::ERR);
        let hung_up = flags.contains(EventFlags::HUP);
        flow.readable |= error || hung_up || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        flow.writable |= error || hung_up || flags.contains(EventFlags::OUT);
        if matches!(flow.side, Side::Connecting { .. }) {
            if flow.writable {
                self.connected(context, id);
            }
        } else {
            self.queue(id);
        }
    }

    /// The host's socket has connected, or not.
    fn connected(&mut self, context: &mut Context, id: u64) {
        let buffer = self.buffer(context);
        let seed = self.random.hash_one(id);
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let Side::Connecting { syn, others } = &mut flow.side else { return };
        let syn = std::mem::take(syn);
        let result = match flow.host.take_error() {
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        };
        if let Err(error) = result {
            let mut others = std::mem::take(others);
            (flow.readable, flow.writable) = (false, false);
            if let Ok(host) = connect_any(context, id, &mut others) {
                flow.host = host;
                flow.side = Side::Connecting { syn, others };
                return;
            }
            self.remove(id);
            // A host that did not answer has the guest hear nothing too: its own patience decides.
            if error != Errno::TIMEDOUT {
                not_connected(context, &syn, error);
            }
            return;
        }
        settle(&flow.host);
        let tuple = flow.tuple;
        let mut stack = Stack::new(context, tuple.other.ip(), tuple.guest.ip(), buffer, seed);
        if stack.listen(tuple.other.port()).is_err() {
            self.abandon(id);
            return;
        }
        stack.feed(context, &syn);
        flow.side = Side::Open(Box::new(stack));
        flow.buffers = 2 * buffer;
        self.buffers += flow.buffers;
        self.queue(id);
    }

    /// Gives those a turn that wait for one, each at most once.
    pub(crate) fn turns(&mut self, context: &mut Context) {
        while let Some(&(time, id)) = self.timers.first()
            && time <= context.now
        {
            self.timers.pop_first();
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.timer = None;
                self.queue(id);
            }
        }
        for _ in 0..self.turns.len() {
            // Those who wait go on from where they are, so nobody is always the last.
            if !context.out.has_room() {
                break;
            }
            let Some(id) = self.turns.pop_front() else { break };
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            flow.queued = false;
            match flow.turn(context) {
                Next::Wait => self.set_timer(context, id),
                Next::Turn | Next::Room => self.queue(id),
                Next::End => drop(self.remove(id)),
            }
        }
    }

    fn set_timer(&mut self, context: &Context, id: u64) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let wanted = match &mut flow.side {
            Side::Open(stack) => stack.deadline(context.now),
            _ => None,
        };
        let Some(wanted) = wanted.map(|time| time.max(context.now + SHORTEST_TIMER)) else { return };
        // A timer that comes too early does no harm, and most are moved further out.
        if flow.timer.is_none_or(|timer| wanted < timer) {
            if let Some(timer) = flow.timer.replace(wanted) {
                self.timers.remove(&(timer, id));
            }
            self.timers.insert((wanted, id));
        }
    }

    fn queue(&mut self, id: u64) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !std::mem::replace(&mut flow.queued, true)
        {
            self.turns.push_back(id);
        }
    }

    fn insert(&mut self, id: u64, flow: Flow) {
        self.tuples.insert(flow.tuple, id);
        self.flows.insert(id, flow);
    }

    fn remove(&mut self, id: u64) -> Option<Flow> {
        let flow = self.flows.remove(&id)?;
        if self.tuples.get(&flow.tuple) == Some(&id) {
            self.tuples.remove(&flow.tuple);
        }
        if let Some(timer) = flow.timer {
            self.timers.remove(&(timer, id));
        }
        self.buffers -= flow.buffers;
        Some(flow)
    }

    /// Ends a connection without a word to the guest.
    fn abandon(&mut self, id: u64) {
        if let Some(flow) = self.remove(id) {
            flow.reset_host();
        }
    }

    /// Takes the name of a connection whose end only the host has still to hear.
    fn forget(&mut self, tuple: Tuple) {
        self.tuples.remove(&tuple);
    }

    fn make_room(&mut self, context: &Context) -> bool {
        if self.flows.len() < context.limits.tcp {
            return true;
        }
        let waits = |flow: &Flow| match flow.side {
            Side::Connecting { .. } => true,
            Side::Draining { .. } | Side::Open(_) => flow.heard + SILENT < context.now,
        };
        let oldest = self.flows.iter().filter(|(_, flow)| waits(flow)).min_by_key(|(_, flow)| flow.heard);
        let Some(id) = oldest.map(|(&id, _)| id) else { return false };
        self.abandon(id);
        true
    }

    /// Bytes for each buffer of a new connection: a part of what is left.
    fn buffer(&self, context: &Context) -> usize {
        let left = context.limits.tcp_buffers.saturating_sub(self.buffers);
        (left / 32).clamp(SMALLEST_BUFFER, LARGEST_BUFFER)
    }

    fn free_port(&mut self, guest: SocketAddr) -> Option<u16> {
        for _ in 0..=u16::MAX - FIRST_PORT {
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
            let other = SocketAddr::new(IpAddr::V4(GATEWAY), self.next_port);
            if !self.tuples.contains_key(&Tuple { guest, other }) {
                return Some(self.next_port);
            }
        }
        None
    }
}

/// Begins to connect to the last of `targets` that can be begun, and takes it and those behind away.
fn connect_any(context: &Context, id: u64, targets: &mut Vec<SocketAddr>) -> Result<TcpStream, Errno> {
    let mut last = Errno::ADDRNOTAVAIL;
    while let Some(target) = targets.pop() {
        match connect(target) {
            Ok(host) => {
                context.watch(&host, Kind::Tcp, id, EVENTS).map_err(|_| Errno::NOMEM)?;
                return Ok(host);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn connect(target: SocketAddr) -> Result<TcpStream, Errno> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error),
    }
}

/// The guest decides when segments go; a peer that has gone without a word is found out in time. Neither can fail for a
/// TCP socket, nor would it matter.
fn settle(host: &TcpStream) {
    let _ = host.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_keepalive(host, true);
}

/// What ICMP calls an error of `connect`; none if it is a refusal.
fn verdict(error: Errno) -> Option<Why> {
    match error {
        Errno::NETUNREACH | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT | Errno::INVAL => Some(Why::NoNetwork),
        Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::TIMEDOUT => Some(Why::NoHost),
        Errno::ACCESS | Errno::PERM => Some(Why::Prohibited),
        _ => None,
    }
}

/// Tells the guest that its SYN, which is the packet `syn`, led nowhere.
fn not_connected(context: &mut Context, syn: &[u8], error: Errno) {
    let mut none = crate::reassembly::Reassembly::default();
    let packet = match syn.first().map(|first| first >> 4) {
        Some(4) => crate::packet::ipv4(syn, true, context.now, &mut none),
        _ => crate::packet::ipv6(syn, true, context.now, &mut none),
    };
    let Some(packet) = packet else { return };
    match verdict(error) {
        Some(why) => icmp::unreachable(context, &packet, why),
        None => {
            if let Some(segment) = packet.tcp() {
                refuse(context, &packet, &segment);
            }
        }
    }
}

/// Answers a segment by a reset (RFC 9293, 3.10.7.1).
fn refuse(context: &mut Context, packet: &Packet<'_>, segment: &TcpPacket<&[u8]>) {
    let (seq_number, ack_number) = if segment.ack() {
        (segment.ack_number(), None)
    } else {
        (TcpSeqNumber(0), Some(segment.seq_number() + segment.segment_len()))
    };
    let reset = TcpRepr {
        src_port: segment.dst_port(),
        dst_port: segment.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut bytes = vec![0; reset.buffer_len()];
    let (source, destination) = (IpAddress::from(packet.destination), IpAddress::from(packet.source));
    reset.emit(
        &mut TcpPacket::new_unchecked(&mut bytes[..]),
        &source,
        &destination,
        &ChecksumCapabilities::default(),
    );
    context.out.packet(packet.destination, packet.source, IpProtocol::Tcp, &bytes);
}
