//! A cable between two guests of one host: a Unix stream socket, and on it each frame behind its length in four bytes, most
//! significant first, as QEMU's `-netdev stream` and `-netdev socket` have it.
//!
//! 1. Who comes first listens, who comes next connects. When the peer goes, the listener waits for another one, and who had connected
//!    tries again each second; the link is down meanwhile, and frames are dropped, as in a cable that is out.
//! 2. Nothing is left to the peer here: checksums are whole, no frame is larger than the MTU says.
//! 3. A peer that sends what is no frame is let go. What it does not read makes the guest's sender wait.

use std::io::{self, ErrorKind};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;

use super::{Frame, FrameHeader, LinkState, NetBackend, NetError, NetInfo, Offloads};
use crate::vsock::SocketFile;
use crate::vsock::host::connect_to;

/// Bytes of a length.
const LENGTH: usize = 4;
/// Bytes of a frame: Ethernet's header at least, with a VLAN tag and the largest IP packet at most.
const SHORTEST: usize = 14;
const LONGEST: usize = 18 + 65535;
/// Bytes of each direction that are on their way; more than a frame.
const BUFFER: usize = 1 << 18;
/// Frames in a call.
const BATCH: usize = 64;
/// How long one waits who has lost the other.
const AGAIN: Duration = Duration::from_secs(1);

/// One end of the cable.
#[derive(Debug)]
pub struct StreamNetwork {
    peer: Arc<watch::Sender<Option<Arc<Peer>>>>,
    mtu: u16,
    /// The listener's entry in the file system.
    file: Option<SocketFile>,
    keeper: JoinHandle<()>,
}

/// The other end.
#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    lost: Notify,
    out: Mutex<Outgoing>,
    arriving: Mutex<Arriving>,
}

/// Frames that were taken and not written yet.
#[derive(Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
}

/// Bytes that were read and are not frames yet.
#[derive(Debug)]
struct Arriving {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// Why there is no cable.
#[derive(Debug, thiserror::Error)]
#[error("net socket={}: {}", path.display(), reason(.source))]
pub struct StreamError {
    path: PathBuf,
    source: io::Error,
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AlreadyExists | ErrorKind::AddrInUse => {
            "there is a file that is no socket: give another path, or remove it".to_owned()
        }
        ErrorKind::PermissionDenied => {
            "this user may not use it: give a path in a folder of this user's".to_owned()
        }
        ErrorKind::NotFound => "there is no such folder: make it, or give another path".to_owned(),
        ErrorKind::InvalidFilename | ErrorKind::InvalidInput => {
            "the path is too long for a socket: give a shorter one".to_owned()
        }
        _ => format!("the socket cannot be had ({error}): give another path"),
    }
}

/// How an end came to be.
enum End {
    Listens(StdListener, SocketFile),
    Connects(StdStream),
}

/// Connects to who listens at `path`; where nobody does, listens there.
fn open(path: &Path) -> io::Result<End> {
    let connect = || connect_to(path).map(|socket| End::Connects(socket.into()));
    let nobody =
        |error: &io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused);
    match connect() {
        // What is no socket refuses, too.
        Err(error) if nobody(&error) => match SocketFile::listen(path) {
            Ok((listener, file)) => Ok(End::Listens(listener, file)),
            // Somebody was faster; if not, it is no socket.
            Err(error) if error.kind() == ErrorKind::AddrInUse => connect().map_err(|_| error),
            Err(error) => Err(error),
        },
        other => other,
    }
}

impl StreamNetwork {
    /// One end of the cable at `path`, for frames with `mtu` bytes of payload.
    ///
    /// # Errors
    /// No socket can be had there.
    pub fn open(path: &Path, mtu: u16) -> Result<Self, StreamError> {
        let failed = |source| StreamError { path: path.to_owned(), source };
        let runtime = crate::runtime().map_err(failed)?;
        let _within = runtime.enter();
        let peer = Arc::new(watch::Sender::new(None));
        let (keeper, file) = match open(path).map_err(failed)? {
            End::Listens(listener, file) => {
                listener.set_nonblocking(true).map_err(failed)?;
                let listener = UnixListener::from_std(listener).map_err(failed)?;
                (runtime.spawn(keep_listening(listener, peer.clone())), Some(file))
            }
            End::Connects(stream) => {
                let stream = UnixStream::from_std(stream).map_err(failed)?;
                (runtime.spawn(keep_connected(path.to_owned(), stream, peer.clone())), None)
            }
        };
        Ok(Self { peer, mtu, file, keeper })
    }

    /// The socket's entry in the file system, if this end listens.
    pub fn socket_file(&self) -> Option<&SocketFile> {
        self.file.as_ref()
    }

    fn peer(&self) -> Option<Arc<Peer>> {
        self.peer.borrow().clone()
    }
}

impl Drop for StreamNetwork {
    fn drop(&mut self) {
        self.keeper.abort();
        // Who waits for a peer has this dropped; the stream goes with the last of them.
        self.peer.send_replace(None);
    }
}

/// Serves one peer after the other.
async fn keep_listening(listener: UnixListener, peer: Arc<watch::Sender<Option<Arc<Peer>>>>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => serve(stream, &peer).await,
            // No descriptor, for example: another time.
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Connects again whenever the peer is lost.
async fn keep_connected(path: PathBuf, first: UnixStream, peer: Arc<watch::Sender<Option<Arc<Peer>>>>) {
    let mut stream = Some(first);
    loop {
        if let Some(stream) = stream.take() {
            serve(stream, &peer).await;
        }
        tokio::time::sleep(AGAIN).await;
        let socket = connect_to(&path).map(StdStream::from);
        stream = socket.and_then(UnixStream::from_std).ok();
    }
}

async fn serve(stream: UnixStream, peer: &watch::Sender<Option<Arc<Peer>>>) {
    let now = Arc::new(Peer {
        stream,
        lost: Notify::new(),
        out: Mutex::default(),
        arriving: Mutex::new(Arriving { buffer: vec![0; BUFFER], start: 0, end: 0 }),
    });
    peer.send_replace(Some(now.clone()));
    now.lost.notified().await;
    peer.send_replace(None);
}

impl Peer {
    /// Lets it go, which its keeper learns.
    fn lose(&self) {
        // What is gone already cannot be shut.
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Both);
        self.lost.notify_one();
    }

    /// Writes what was taken. Dropped, it goes on where it was.
    async fn flush(&self, out: &mut Outgoing) -> io::Result<()> {
        while let Some(rest) = out.bytes.get(out.written..).filter(|rest| !rest.is_empty()) {
            match self.stream.try_write(rest) {
                Ok(written) => out.written += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(error) => return Err(error),
            }
        }
        out.bytes.clear();
        out.written = 0;
        Ok(())
    }

    /// Reads until there is a frame, and gives those that there are, at most `max`.
    async fn frames(&self, arriving: &mut Arriving, into: &mut Vec<Frame>, max: usize) -> io::Result<()> {
        loop {
            if arriving.frames(into, max)? > 0 {
                return Ok(());
            }
            match self.stream.try_read(arriving.room()) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => arriving.end += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.stream.readable().await?,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Arriving {
    /// Place for more, which there always is: a frame and its length are shorter than the buffer.
    fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Takes whole frames out of what was read; how many. What is too short for a frame is passed over.
    fn frames(&mut self, into: &mut Vec<Frame>, max: usize) -> io::Result<usize> {
        let mut count = 0;
        while count < max {
            let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
            let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else { break };
            let length = u32::from_be_bytes(*length) as usize;
            if length > LONGEST {
                // Those before are frames; it comes up again behind them.
                return if count > 0 { Ok(count) } else { Err(ErrorKind::InvalidData.into()) };
            }
            let Some(data) = rest.get(..length) else { break };
            if length >= SHORTEST {
                into.push(Frame { header: FrameHeader::default(), data: data.to_vec() });
                count += 1;
            }
            self.start += LENGTH + length;
        }
        Ok(count)
    }
}

impl Outgoing {
    /// Takes frames from the front as far as the bound, at least one.
    fn take(&mut self, frames: &mut Vec<Frame>, mtu: u16) {
        let mut count = 0;
        for frame in frames.iter() {
            if count > 0 && self.bytes.len() + LENGTH + frame.data.len() > BUFFER {
                break;
            }
            count += 1;
            let len = frame.data.len();
            // With a VLAN tag it may be four bytes longer than it would.
            let fits = (SHORTEST..=usize::from(mtu) + 18).contains(&len);
            if fits && frame.header.checksum.is_none() && frame.header.segmentation.is_none() {
                self.bytes.extend((len as u32).to_be_bytes());
                self.bytes.extend(&frame.data);
            }
        }
        frames.drain(..count);
    }
}

#[async_trait]
impl NetBackend for StreamNetwork {
    fn info(&self) -> NetInfo {
        NetInfo { mtu: self.mtu, accepts: Offloads::empty(), delivers: Offloads::empty(), max_batch: BATCH }
    }

    fn link(&self) -> LinkState {
        state(&self.peer.borrow())
    }

    async fn link_changed(&self, seen: LinkState) -> LinkState {
        let mut peers = self.peer.subscribe();
        let now = peers.wait_for(|peer| state(peer) != seen).await.map(|peer| state(&peer));
        // The sender is ours.
        now.unwrap_or(LinkState::Down)
    }

    fn set_offloads(&self, _: Offloads) {}

    async fn send(&self, frames: &mut Vec<Frame>) -> Result<(), NetError> {
        let Some(peer) = self.peer() else {
            frames.clear();
            return Ok(());
        };
        let mut out = peer.out.lock().await;
        let sent = async {
            peer.flush(&mut out).await?;
            out.take(frames, self.mtu);
            peer.flush(&mut out).await
        };
        if sent.await.is_err() {
            peer.lose();
            frames.clear();
        }
        Ok(())
    }

    async fn receive(&self, into: &mut Vec<Frame>, max: usize) -> Result<(), NetError> {
        let mut peers = self.peer.subscribe();
        loop {
            let peer = peers.borrow_and_update().clone();
            if let Some(peer) = peer {
                let mut arriving = peer.arriving.lock().await;
                match peer.frames(&mut arriving, into, max.min(BATCH)).await {
                    Ok(()) => return Ok(()),
                    Err(_) => peer.lose(),
                }
            }
            if peers.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

fn state(peer: &Option<Arc<Peer>>) -> LinkState {
    if peer.is_some() { LinkState::Up } else { LinkState::Down }
}
