//! What a user says of a network card, and the network behind it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{NetBackend, RateLimit, UserNetwork};
use crate::rate::Rate;

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
}

/// A network card as `--net` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// What is behind it.
    pub kind: NetKind,
    /// Its address; `None`: [`NetOptions::default_mac`].
    pub mac: Option<MacAddress>,
    /// Largest payload of a frame; `None`: 1500.
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
}

/// A network, and what its user is to be told.
#[derive(Debug)]
pub struct Connected {
    /// What the device is plugged into.
    pub backend: Arc<dyn NetBackend>,
    /// Lines: ports of the host's that were not named.
    pub says: Vec<String>,
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
        let mac = self.mac.unwrap_or_else(|| Self::default_mac(n));
        let mtu = self.mtu.unwrap_or(1500);
        let Connected { backend, says } = match &self.kind {
            NetKind::User(options) => connect_user(options, mac, mtu)?,
        };
        let backend = match self.rate {
            None => backend,
            // A tenth of a second may come at once.
            Some(per_second) => {
                let burst = (per_second / 10).max(MIN_BURST);
                Arc::new(RateLimit::new(backend, Rate { per_second, burst }))
            }
        };
        Ok((mac, Connected { backend, says }))
    }
}

fn connect_user(options: &user_net::Options, mac: MacAddress, mtu: u16) -> Result<Connected, ConnectError> {
    let config = user_net::Config { mtu, ..user_net::Config::new(options.clone(), mac.0) };
    let network = UserNetwork::start(config)?;
    let chosen = options.forwards.iter().zip(network.forwards());
    let says = chosen
        .filter(|(forward, _)| forward.host.port() == 0)
        .map(|(forward, at)| format!("hostfwd={forward} listens at {at}"))
        .collect();
    Ok(Connected { backend: Arc::new(network), says })
}

impl FromStr for NetOptions {
    type Err = String;

    /// `user[,hostfwd=tcp|udp:[ADDR:]HOST:GUEST]...[,restrict=on|off][,host=on|off][,mac=M][,mtu=N][,rate=SIZE]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (mut mac, mut mtu, mut rate) = (None, None, None);
        let mut rest = Vec::new();
        for word in text.split(',') {
            match word.split_once('=') {
                Some(("mac", value)) => once("mac", &mut mac, value.parse()?)?,
                Some(("mtu", value)) => once("mtu", &mut mtu, parse_mtu(value)?)?,
                Some(("rate", value)) => once("rate", &mut rate, parse_rate(value)?)?,
                _ => rest.push(word),
            }
        }
        let kind =
            NetKind::User(rest.join(",").parse().map_err(|error: user_net::OptionsError| match error {
                user_net::OptionsError::Kind(kind) => format!("there is no network '{kind}': take user"),
                user_net::OptionsError::Unknown(word) => {
                    format!("there is no option '{word}' of a network: {KEYS}")
                }
                other => other.to_string(),
            })?);
        Ok(Self { kind, mac, mtu, rate })
    }
}

const KEYS: &str = "options are hostfwd, restrict, host, mac, mtu and rate";

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
        let NetKind::User(user) = &options.kind;
        assert_eq!((user.forwards.len(), user.restrict, user.host), (1, true, false));
        assert_eq!(options.mac.unwrap().to_string(), "02:00:00:00:00:0a");
        assert_eq!((options.mtu, options.rate), (Some(9000), Some(10 << 20)));
        let plain: NetOptions = "user".parse().unwrap();
        assert_eq!((plain.mac, plain.mtu, plain.rate), (None, None, None));
        assert_eq!(NetOptions::default_mac(1).to_string(), "52:54:00:12:34:57");
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line() {
        for (text, part) in [
            ("", "no network ''"),
            ("tun", "no network 'tun': take user"),
            ("user,colour=red", "no option 'colour=red' of a network: options are hostfwd"),
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
