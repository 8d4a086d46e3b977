//! What a user says of a network card, and the network behind it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::{NetBackend, RateLimit, StreamError, StreamNetwork, TapError, TapNetwork, UserNetwork};
use crate::disk::split_at_commas;
use crate::rate::Rate;
use crate::vsock::SocketFile;

/// An Ethernet address of one card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = String;

    /// Six pairs of hexadecimal digits with colons; not a group's, and not all zeroes.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why| format!("'mac={text}' {why}: take one such as 52:54:00:12:34:56");
        let mut bytes = [0; 6];
        let mut words = text.split(':');
        for byte in &mut bytes {
            let digits = |word: &&str| word.len() == 2 && word.bytes().all(|b| b.is_ascii_hexdigit());
            let word = words.next().filter(digits).ok_or_else(|| bad("is no address"))?;
            *byte = u8::from_str_radix(word, 16).map_err(|_| bad("is no address"))?;
        }
        match (words.next(), bytes) {
            (Some(_), _) => Err(bad("is no address")),
            (None, [0, 0, 0, 0, 0, 0]) => Err(bad("is nobody's address")),
            (None, [first, ..]) if first & 1 != 0 => Err(bad("is the address of a group")),
            (None, _) => Ok(Self(bytes)),
        }
    }
}

/// What is behind a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetKind {
    /// A network in process.
    User(user_net::Options),
    /// An interface of the host's kernel.
    Tap(String),
    /// A cable to another guest, whose socket is there.
    Socket(PathBuf),
}

/// A network card as `--net` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// What is behind it.
    pub kind: NetKind,
    /// Its address; `None`: [`NetOptions::default_mac`], or a random one where others are on the same network.
    pub mac: Option<MacAddress>,
    /// Largest payload of a frame; `None`: the tap's, or 1500.
    pub mtu: Option<u16>,
    /// Bytes a second, in each direction.
    pub rate: Option<u64>,
}

/// A network that cannot be had: thing, reason and remedy in a line.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The network in process.
    #[error(transparent)]
    User(#[from] user_net::StartError),
    /// A tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A socket.
    #[error(transparent)]
    Socket(#[from] StreamError),
    /// No random address.
    #[error("a network card's address: the host gives no random bytes ({0}); give one with mac=")]
    Random(std::io::Error),
}

/// A network, and what its user is to be told.
#[derive(Debug)]
pub struct Connected {
    /// What the device is plugged into.
    pub backend: Arc<dyn NetBackend>,
    /// Lines: ports of the host's that were not named.
    pub says: Vec<String>,
    /// What goes with the network, where the process is about to end without dropping it.
    pub file: Option<SocketFile>,
}

/// Least and most bytes of payload that a card can be told.
const MTU: std::ops::RangeInclusive<u16> = user_net::MIN_MTU..=65520;
/// The smallest rate, and the burst that it has at least: one frame of the largest.
const MIN_RATE: u64 = 1 << 10;
const MIN_BURST: u64 = 1 << 16;

impl NetOptions {
    /// The address of card `n`, unless told: those that QEMU gives.
    pub fn default_mac(n: usize) -> MacAddress {
        MacAddress([0x52, 0x54, 0x00, 0x12, 0x34, 0x56_u8.wrapping_add(n as u8)])
    }

    /// Connects card `n` to its network: its address, and the network.
    ///
    /// # Errors
    /// The host does not give what it takes: a port, a descriptor, a thread.
    pub fn connect(&self, n: usize) -> Result<(MacAddress, Connected), ConnectError> {
        let mac = match (self.mac, &self.kind) {
            (Some(mac), _) => mac,
            (None, NetKind::User(_)) => Self::default_mac(n),
            (None, NetKind::Tap(_) | NetKind::Socket(_)) => random_mac()?,
        };
        let mtu = self.mtu.unwrap_or(1500);
        let silent = |backend| Connected { backend, says: Vec::new(), file: None };
        let Connected { backend, says, file } = match &self.kind {
            NetKind::User(options) => connect_user(options, mac, mtu)?,
            NetKind::Tap(name) => silent(Arc::new(TapNetwork::open(name, self.mtu)?)),
            NetKind::Socket(path) => {
                let cable = StreamNetwork::open(path, mtu)?;
                let file = cable.socket_file().cloned();
                Connected { file, ..silent(Arc::new(cable)) }
            }
        };
        let backend = match self.rate {
            None => backend,
            // A tenth of a second may come at once.
            Some(per_second) => {
                let burst = (per_second / 10).max(MIN_BURST);
                Arc::new(RateLimit::new(backend, Rate { per_second, burst }))
            }
        };
        Ok((mac, Connected { backend, says, file }))
    }
}

/// One of those that are given out locally (IEEE 802, 8.2), and that begin as QEMU's do.
fn random_mac() -> Result<MacAddress, ConnectError> {
    let mut bytes = [0x52, 0x54, 0x00, 0, 0, 0];
    let [_, _, _, random @ ..] = &mut bytes;
    let failed = |error: rustix::io::Errno| ConnectError::Random(error.into());
    rustix::rand::getrandom(random, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    Ok(MacAddress(bytes))
}

fn connect_user(options: &user_net::Options, mac: MacAddress, mtu: u16) -> Result<Connected, ConnectError> {
    let config = user_net::Config { mtu, ..user_net::Config::new(options.clone(), mac.0) };
    let network = UserNetwork::start(config)?;
    let chosen = options.forwards.iter().zip(network.forwards());
    let says = chosen
        .filter(|(forward, _)| forward.host.port() == 0)
        .map(|(forward, at)| format!("hostfwd={forward} listens at {at}"))
        .collect();
    Ok(Connected { backend: Arc::new(network), says, file: None })
}

impl FromStr for NetOptions {
    type Err = String;

    /// `user[,hostfwd=tcp|udp:[ADDR:]HOST:GUEST]...[,restrict=on|off][,host=on|off]`, `tap=IF` or `socket=PATH`, each with
    /// `[,mac=M][,mtu=N][,rate=SIZE]`. A comma in a path is written twice.
    fn from_str(text: &str) -> Result<Self, String> {
        let (mut mac, mut mtu, mut rate) = (None, None, None);
        let mut rest = Vec::new();
        for word in split_at_commas(text) {
            match word.split_once('=') {
                Some(("mac", value)) => once("mac", &mut mac, value.parse()?)?,
                Some(("mtu", value)) => once("mtu", &mut mtu, parse_mtu(value)?)?,
                Some(("rate", value)) => once("rate", &mut rate, parse_rate(value)?)?,
                _ => rest.push(word),
            }
        }
        let kind = match rest.split_first() {
            Some((first, more)) if first.starts_with("tap=") || first.starts_with("socket=") => {
                plain_kind(first, more)?
            }
            _ => NetKind::User(rest.join(",").parse().map_err(explain)?),
        };
        Ok(Self { kind, mac, mtu, rate })
    }
}

const KEYS: &str = "options are mac, mtu and rate, and of user hostfwd, restrict and host";

fn explain(error: user_net::OptionsError) -> String {
    match error {
        user_net::OptionsError::Kind(kind) => {
            format!("there is no network '{kind}': take user, tap=IF or socket=PATH")
        }
        user_net::OptionsError::Unknown(word) => format!("there is no option '{word}' of a network: {KEYS}"),
        other => other.to_string(),
    }
}

/// `tap=IF` or `socket=PATH`, with nothing behind.
fn plain_kind(first: &str, more: &[String]) -> Result<NetKind, String> {
    if let Some(word) = more.first() {
        return Err(format!("there is no option '{word}' of '{first}': {KEYS}"));
    }
    match first.split_once('=') {
        Some((_, "")) | None => Err(format!("'{first}' names nothing: take tap=IF or socket=PATH")),
        Some(("tap", name)) => Ok(NetKind::Tap(name.to_owned())),
        Some((_, path)) => Ok(NetKind::Socket(path.into())),
    }
}

fn once<T>(name: &str, place: &mut Option<T>, value: T) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("'{name}' is given twice: leave one out")),
    }
}

fn parse_mtu(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let mtu = digits.then(|| text.parse().ok()).flatten().filter(|mtu| MTU.contains(mtu));
    mtu.ok_or_else(|| format!("'mtu={text}': take a number from {} to {}", MTU.start(), MTU.end()))
}

/// Bytes, with K, M or G for powers of 1024.
fn parse_rate(text: &str) -> Result<u64, String> {
    let shift = match text.bytes().last().map(|last| last.to_ascii_lowercase()) {
        Some(b'k') => 10,
        Some(b'm') => 20,
        Some(b'g') => 30,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { text.get(..text.len() - 1).unwrap_or_default() };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = plain.then(|| digits.parse::<u64>().ok()).flatten();
    let rate = number.and_then(|number| number.checked_mul(1 << shift)).filter(|rate| *rate >= MIN_RATE);
    rate.ok_or_else(|| format!("'rate={text}': take bytes a second from 1K on, such as 10M"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_read() {
        let options: NetOptions =
            "user,hostfwd=tcp:2222:22,mac=02:00:00:00:00:0A,mtu=9000,rate=10M,restrict=on".parse().unwrap();
        let NetKind::User(user) = &options.kind else { panic!("{options:?}") };
        assert_eq!((user.forwards.len(), user.restrict, user.host), (1, true, false));
        assert_eq!(options.mac.unwrap().to_string(), "02:00:00:00:00:0a");
        assert_eq!((options.mtu, options.rate), (Some(9000), Some(10 << 20)));
        let socket: NetOptions = "socket=/tmp/a,,b,mtu=1400".parse().unwrap();
        assert_eq!((socket.kind, socket.mtu), (NetKind::Socket("/tmp/a,b".into()), Some(1400)));
        let tap: NetOptions = "tap=tap0".parse().unwrap();
        assert_eq!(tap.kind, NetKind::Tap("tap0".into()));
        let plain: NetOptions = "user".parse().unwrap();
        assert_eq!((plain.mac, plain.mtu, plain.rate), (None, None, None));
        assert_eq!(NetOptions::default_mac(1).to_string(), "52:54:00:12:34:57");
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line() {
        for (text, part) in [
            ("", "no network ''"),
            ("tun", "no network 'tun': take user, tap=IF or socket=PATH"),
            ("user,colour=red", "no option 'colour=red' of a network: options are mac"),
            ("user,mac=52:54:00:12:34", "is no address"),
            ("user,mac=52:54:00:12:34:56:78", "is no address"),
            ("user,mac=+2:54:00:12:34:56", "is no address"),
            ("user,mac=01:00:5e:00:00:01", "address of a group"),
            ("user,mac=00:00:00:00:00:00", "nobody's address"),
            ("user,mac=02:00:00:00:00:01,mac=02:00:00:00:00:02", "'mac' is given twice"),
            ("user,mtu=1279", "take a number from 1280 to 65520"),
            ("user,mtu=+1500", "take a number"),
            ("user,mtu=70000", "take a number"),
            ("user,rate=0", "from 1K on"),
            ("user,rate=k", "from 1K on"),
            ("user,rate=99999999999999999999", "from 1K on"),
            ("user,rate=18014398509481984G", "from 1K on"),
            ("tap=", "names nothing"),
            ("socket=,mtu=1500", "names nothing"),
            ("tap=tap0,host=on", "no option 'host=on' of 'tap=tap0'"),
            ("user,restrict=on,host=on", "give one of them"),
            ("user,hostfwd=tcp:22", "the form is tcp:"),
        ] {
            let error = text.parse::<NetOptions>().unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn a_port_in_use_is_said_with_its_remedy() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let options: NetOptions = format!("user,hostfwd=tcp:{port}:22").parse().unwrap();
        let line = options.connect(0).unwrap_err().to_string();
        assert!(line.contains(&port.to_string()) && line.contains("in use: give another"), "{line}");
    }

    #[test]
    fn a_free_port_is_told() {
        let options: NetOptions = "user,hostfwd=tcp:0:22,rate=1M".parse().unwrap();
        let (mac, connected) = options.connect(2).unwrap();
        assert_eq!(mac.to_string(), "52:54:00:12:34:58");
        assert!(
            connected.says[0].starts_with("hostfwd=tcp:127.0.0.1:0:22 listens at 127.0.0.1:"),
            "{:?}",
            connected.says
        );
        assert_eq!(connected.backend.info().max_batch, 1, "a burst of a tenth of a second");
    }
}
