//! A tap: an interface of the host's kernel whose cable is a file.
#![allow(unsafe_code, reason = "a tap's ioctls have no safe wrapper")]

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;

use async_trait::async_trait;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::{Frame, HEADER, NetBackend, NetError, NetInfo, Offloads, emit_header, parse_header};

const DEVICE: &str = "/dev/net/tun";
/// Frames in a call.
const BATCH: usize = 64;
/// Bytes of a frame at most, and its header.
const LONGEST: usize = HEADER + 18 + 65535;
/// What the kernel does and lets be done.
const OFFLOADS: [(Offloads, u32); 4] = [
    (Offloads::CHECKSUM, libc::TUN_F_CSUM),
    (Offloads::TSO4, libc::TUN_F_TSO4),
    (Offloads::TSO6, libc::TUN_F_TSO6),
    (Offloads::ECN, libc::TUN_F_TSO_ECN),
];

/// The other end of an interface.
#[derive(Debug)]
pub struct TapNetwork {
    name: String,
    file: AsyncFd<OwnedFd>,
    mtu: u16,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    accepted: Offloads,
    buffer: Vec<u8>,
}

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// A name that no interface has.
    #[error("net tap={0}: an interface's name has 1 to 15 characters, without slashes and spaces")]
    Name(String),
    /// The host does not give it.
    #[error("net tap={name}: {}", reason(name, .source))]
    Host {
        /// The interface
        name: String,
        /// The system's error
        source: io::Error,
    },
}

fn reason(name: &str, error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => format!(
            "this user may not open it: make it for the user, as root: `ip tuntap add dev {name} mode tap user $USER`"
        ),
        ErrorKind::NotFound => format!("the host has no {DEVICE}: load the module `tun`, or use --net user"),
        ErrorKind::ResourceBusy => "another program has it: end that, or give another tap".to_owned(),
        ErrorKind::InvalidInput => "it is no tap: give another, or make one (`ip tuntap add`)".to_owned(),
        _ => format!("it cannot be had ({error}): give another tap"),
    }
}

impl TapNetwork {
    /// Opens the tap called `name`. `mtu`: what the guest is told, else what the interface has.
    ///
    /// # Errors
    /// A name that cannot be, or the host does not give it.
    pub fn open(name: &str, mtu: Option<u16>) -> Result<Self, TapError> {
        let can_be = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
        if !(1..libc::IFNAMSIZ).contains(&name.len()) || !name.bytes().all(can_be) {
            return Err(TapError::Name(name.to_owned()));
        }
        let failed = |source| TapError::Host { name: name.to_owned(), source };
        let runtime = crate::runtime().map_err(failed)?;
        let _within = runtime.enter();
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        attach(&file, name).map_err(failed)?;
        // SAFETY: an OwnedFd names the same open descriptor until it is dropped, which AsyncFd does behind its deregistration.
        let file = unsafe { AsyncFd::register(file) }.map_err(|error| failed(error.into()))?;
        let has = fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok();
        let has = has.and_then(|text| text.trim().parse().ok());
        let state = State { accepted: Offloads::empty(), buffer: vec![0; LONGEST] };
        let tap =
            Self { name: name.to_owned(), file, mtu: mtu.or(has).unwrap_or(1500), state: Mutex::new(state) };
        tap.set_offloads(Offloads::empty());
        Ok(tap)
    }

    fn gone(&self, error: &io::Error) -> NetError {
        let reason = format!("tap {} is gone ({error}); the guest's link is down", self.name);
        tracing::error!("{reason}");
        NetError { reason }
    }

    /// Writes frames from the front, as many as the kernel takes; an error only where it takes none.
    fn write(&self, frames: &mut Vec<Frame>) -> io::Result<()> {
        let mut sent = 0;
        let mut stopped = None;
        for frame in frames.iter() {
            // What cannot be said is dropped, as what the kernel does not want, or has no interface that is up for.
            if let Some(header) = emit_header(&frame.header, 0, Offloads::all()) {
                let parts = [io::IoSlice::new(&header), io::IoSlice::new(&frame.data)];
                if let Err(error @ (Errno::AGAIN | Errno::BADFD | Errno::NODEV)) =
                    rustix::io::writev(&self.file, &parts)
                {
                    stopped = Some(error);
                    break;
                }
            }
            sent += 1;
        }
        frames.drain(..sent);
        match stopped {
            Some(error) if sent == 0 => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Reads the frames that there are, at most `max`.
    fn read(&self, into: &mut Vec<Frame>, max: usize) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let State { accepted, buffer } = &mut *state;
        let before = into.len();
        while into.len() - before < max {
            let len = match rustix::io::read(&self.file, &mut **buffer) {
                Ok(len) => len,
                Err(Errno::INTR) => continue,
                Err(_) if into.len() > before => break,
                Err(error) => return Err(error.into()),
            };
            let Some((header, data)) =
                buffer.get(..len).and_then(|bytes| bytes.split_first_chunk::<HEADER>())
            else {
                continue;
            };
            if let Some(mut parsed) = parse_header(header, data.len(), *accepted) {
                parsed.verified = header[0] & DATA_VALID != 0;
                into.push(Frame { header: parsed, data: data.to_vec() });
            }
        }
        Ok(())
    }
}

/// The kernel has seen to the checksum (VIRTIO_NET_HDR_F_DATA_VALID).
const DATA_VALID: u8 = virtio_bindings::virtio_net::VIRTIO_NET_HDR_F_DATA_VALID as u8;

/// Makes `file` the cable of the tap called `name`, with virtio's header in front of each frame.
fn attach(file: &OwnedFd, name: &str) -> io::Result<()> {
    // SAFETY: ifreq is plain data, and all zeroes are one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the request lives through the call, and is what TUNSETIFF reads and writes.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let len = HEADER as libc::c_int;
    // SAFETY: the number lives through the call, which only reads it.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[async_trait]
impl NetBackend for TapNetwork {
    fn info(&self) -> NetInfo {
        let all = OFFLOADS.iter().fold(Offloads::empty(), |all, (offload, _)| all | *offload);
        NetInfo { mtu: self.mtu, accepts: all, delivers: all, max_batch: BATCH }
    }

    fn set_offloads(&self, accepted: Offloads) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bits = OFFLOADS.iter().filter(|(offload, _)| accepted.contains(*offload));
        let bits = bits.fold(0, |all, (_, bit)| all | bit);
        // SAFETY: TUNSETOFFLOAD takes a number and no memory.
        let done = unsafe {
            libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(bits))
        };
        // A kernel that refuses delivers whole frames, and so does one that is asked for nothing.
        state.accepted = if done < 0 { Offloads::empty() } else { accepted };
    }

    async fn send(&self, frames: &mut Vec<Frame>) -> Result<(), NetError> {
        let mut sent = self.write(frames);
        while sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
            let mut ready = self.file.writable().await.map_err(|error| self.gone(&error))?;
            if let Ok(now) = ready.try_io(|_| self.write(frames)) {
                sent = now;
            }
        }
        sent.map_err(|error| self.gone(&error))
    }

    async fn receive(&self, into: &mut Vec<Frame>, max: usize) -> Result<(), NetError> {
        let before = into.len();
        while into.len() == before {
            let mut ready = self.file.readable().await.map_err(|error| self.gone(&error))?;
            match ready.try_io(|_| self.read(into, max.min(BATCH))) {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => return Err(self.gone(&error)),
            }
        }
        Ok(())
    }
}
