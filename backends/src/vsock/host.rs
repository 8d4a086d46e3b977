//! All connections of one guest.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::connection::{Connection, Over, Ports};
use super::packet::{HOST_CID, Header, Op, STREAM};
use super::{SocketFile, VsockOptions};

/// Most connections that began at one side, of which there are two.
pub const MAX_CONNECTIONS: usize = 256;
/// Most refusals that wait for the guest to read them before no more of its packets are taken.
const MAX_RESETS: usize = 256;
/// The first port of the host's that connections of its programs come from, as Firecracker has it.
const FIRST_PORT: u32 = 1 << 30;
/// What epoll says of the listening socket; of connections it says their token.
const LISTENER: u64 = 0;

/// Why there is no vsock device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// No socket can listen there.
    #[error("vsock: cannot listen at {}: {}", path.display(), reason(error))]
    Listen {
        /// The path.
        path: PathBuf,
        /// The host's error.
        #[source]
        error: io::Error,
    },
    /// The host has no descriptor.
    #[error("vsock: no descriptor: {0}; raise the limit on open files (ulimit -n)")]
    Descriptor(#[from] io::Error),
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "something is there; end what uses it, or name another path".to_owned(),
        ErrorKind::NotFound => "its folder is not there; make it, or name another path".to_owned(),
        _ => format!("{error}; name a path in a folder that you may write"),
    }
}

/// The host's end of the guest's vsock device.
#[derive(Debug)]
pub struct VsockHost {
    options: VsockOptions,
    listener: UnixListener,
    file: SocketFile,
    epoll: OwnedFd,
    connections: HashMap<u64, Connection>,
    tokens: HashMap<Ports, u64>,
    next_token: u64,
    next_port: u32,
    /// Connections that may have something for the guest.
    ready: VecDeque<u64>,
    /// Refusals.
    resets: VecDeque<Header>,
    /// Somebody may wait to be accepted.
    acceptable: bool,
}

/// Connects to the Unix socket at `path`, without waiting.
pub(crate) fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

impl VsockHost {
    /// Listens as `options` say.
    ///
    /// # Errors
    /// No socket can be there, or the host has no descriptor.
    pub fn new(options: VsockOptions) -> Result<Self, VsockError> {
        let listen = |error| VsockError::Listen { path: options.path.clone(), error };
        let (listener, file) = SocketFile::listen(&options.path).map_err(listen)?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        let data = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, data, epoll::EventFlags::IN | epoll::EventFlags::ET)
            .map_err(io::Error::from)?;
        Ok(Self {
            options,
            listener,
            file,
            epoll,
            connections: HashMap::new(),
            tokens: HashMap::new(),
            next_token: LISTENER + 1,
            next_port: FIRST_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            acceptable: true,
        })
    }

    /// The guest's CID.
    pub fn guest_cid(&self) -> u32 {
        self.options.cid
    }

    /// The entry of the socket, which goes with this, or before.
    pub fn socket_file(&self) -> &SocketFile {
        &self.file
    }

    /// Readable when [`poll`](Self::poll) has something to do.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Connections that there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Ends all connections: the guest has lost them.
    pub fn reset(&mut self) {
        self.connections.clear();
        self.tokens.clear();
        self.ready.clear();
        self.resets.clear();
        // What waits has told so already, perhaps.
        self.acceptable = true;
    }

    /// Looks at what the sockets say.
    pub fn poll(&mut self) {
        const AT_ONCE: usize = 64;
        loop {
            let mut events: Vec<epoll::Event> = Vec::with_capacity(AT_ONCE);
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let count = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&now)).unwrap_or(0);
            for event in events {
                match event.data.u64() {
                    LISTENER => self.acceptable = true,
                    token => self.event(token, event.flags),
                }
            }
            if count < AT_ONCE {
                break;
            }
        }
        self.accept();
    }

    fn event(&mut self, token: u64, flags: epoll::EventFlags) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let mut done = connection.event(flags);
        if done.is_ok() && connection.waits_for_line() {
            match connection.read_line() {
                Ok(None) => return,
                Ok(Some(guest)) => {
                    let ports = Ports { host: self.free_port(guest), guest };
                    if let Some(connection) = self.connections.get_mut(&token) {
                        connection.ask(ports);
                        self.tokens.insert(ports, token);
                    }
                }
                Err(over) => done = Err(over),
            }
        }
        self.after(token, done);
    }

    /// A port of the host's that no connection to the guest's port has.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = FIRST_PORT | host.wrapping_add(1) & (FIRST_PORT - 1);
            if !self.tokens.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    /// Something was done to a connection: it may have packets now, or be over.
    fn after(&mut self, token: u64, done: Result<(), Over>) {
        match done {
            Err(Over) => self.refuse(token),
            Ok(()) => {
                let listed = self.connections.get_mut(&token).map(|connection| &mut connection.listed);
                if listed.is_some_and(|listed| !std::mem::replace(listed, true)) {
                    self.ready.push_back(token);
                }
            }
        }
    }

    /// Ends a connection; the guest is told if it knows of it.
    fn refuse(&mut self, token: u64) {
        if let Some(connection) = self.remove(token)
            && connection.is_known()
        {
            self.resets.push_back(self.header(connection.ports, Op::Reset, 0));
        }
    }

    fn remove(&mut self, token: u64) -> Option<Connection> {
        let connection = self.connections.remove(&token)?;
        if !connection.waits_for_line() {
            self.tokens.remove(&connection.ports);
        }
        Some(connection)
    }

    fn header(&self, ports: Ports, op: Op, flags: u32) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.options.cid.into(),
            src_port: ports.host,
            dst_port: ports.guest,
            kind: STREAM,
            op,
            flags,
            ..Header::default()
        }
    }

    fn has_room(&self, by_guest: bool) -> bool {
        self.connections.values().filter(|connection| connection.by_guest == by_guest).count()
            < MAX_CONNECTIONS
    }

    fn accept(&mut self) {
        while self.acceptable && self.has_room(false) {
            match self.listener.accept() {
                Ok((socket, _)) if socket.set_nonblocking(true).is_ok() => {
                    self.add(Connection::of_host(socket.into()));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.acceptable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // No descriptor, mostly. It is tried again when something else happens.
                Err(error) => return tracing::debug!("vsock: cannot accept: {error}"),
            }
        }
    }

    /// Adds a connection that nobody has heard of yet; its token.
    fn add(&mut self, connection: Connection) -> Option<u64> {
        let token = self.next_token;
        self.next_token += 1;
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, connection.socket(), epoll::EventData::new_u64(token), flags).ok()?;
        if !connection.waits_for_line() {
            self.tokens.insert(connection.ports, token);
        }
        self.connections.insert(token, connection);
        Some(token)
    }

    /// Whether [`take`](Self::take) may be called: the guest reads what it is answered.
    pub fn can_take(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Takes a packet of the guest's with its data.
    pub fn take(&mut self, header: &Header, data: &[u8]) {
        if header.src_cid != u64::from(self.options.cid) {
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let is_ours = header.dst_cid == HOST_CID && header.kind == STREAM;
        match self.tokens.get(&ports).copied().filter(|_| is_ours) {
            Some(token) if header.op == Op::Reset => drop(self.remove(token)),
            Some(token) => {
                if let Some(connection) = self.connections.get_mut(&token) {
                    let done = connection.take(header, data);
                    self.after(token, done);
                }
            }
            None if header.op == Op::Reset => {}
            None => {
                if !(is_ours && header.op == Op::Request && self.connect(header)) {
                    self.resets.push_back(Header {
                        src_cid: header.dst_cid,
                        kind: header.kind,
                        ..self.header(ports, Op::Reset, 0)
                    });
                }
            }
        }
        self.accept();
    }

    /// Connects to the program of the host's that the guest asks for.
    fn connect(&mut self, request: &Header) -> bool {
        if !self.has_room(true) {
            return false;
        }
        let mut path = self.options.path.clone().into_os_string();
        path.push(format!("_{}", request.dst_port));
        let connection =
            connect_to(Path::new(&path)).ok().map(|socket| Connection::of_guest(socket, request));
        match connection.and_then(|connection| self.add(connection)) {
            Some(token) => {
                self.after(token, Ok(()));
                true
            }
            None => false,
        }
    }

    /// The next packet to the guest, with at most `room` bytes of data (above 0), which replace what is in `data`.
    pub fn give(&mut self, room: usize, data: &mut Vec<u8>) -> Option<Header> {
        data.clear();
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(token) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.listed = false;
            match connection.next(room, data) {
                Ok(None) => {}
                Ok(Some((op, flags))) => {
                    let ports = connection.ports;
                    let header = Header { len: data.len() as u32, ..self.header(ports, op, flags) };
                    // The others come first.
                    self.after(token, Ok(()));
                    return self.connections.get_mut(&token).map(|connection| connection.stamp(header));
                }
                Err(Over) => {
                    data.clear();
                    self.refuse(token);
                    if let Some(reset) = self.resets.pop_front() {
                        return Some(reset);
                    }
                }
            }
        }
        None
    }
}
