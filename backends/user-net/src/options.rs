//! The text form, `user[,hostfwd=tcp:[ADDR:]HOST:GUEST][,restrict=on][,host=on]`, and what it says.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// The two protocols that are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the host's that leads to one of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP
    pub protocol: Protocol,
    /// Where the host listens. Port 0 takes any free one; [`crate::UserNet::forwards`] tells which.
    pub host: SocketAddr,
    /// The guest's port, not 0.
    pub guest: u16,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.protocol, self.host, self.guest)
    }
}

/// What a user says of the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Ports that lead to the guest.
    pub forwards: Vec<Forward>,
    /// The guest reaches nothing outside: forwards, DHCP and DNS stay.
    pub restrict: bool,
    /// The host's loopback is reached at the gateway's address.
    pub host: bool,
}

/// Why a text is no description of a user network: thing, reason and remedy in a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// The first word is another.
    #[error("{0:?} is no user network: it starts with \"user\"")]
    Kind(String),
    /// The option does not exist.
    #[error(
        "user network: no option {0:?}; there are hostfwd=tcp:[ADDR:]HOST:GUEST, restrict=on and host=on"
    )]
    Unknown(String),
    /// The option is neither on nor off.
    #[error("user network: {name}={value:?}: give on or off")]
    Switch {
        /// The option
        name: &'static str,
        /// What was given
        value: String,
    },
    /// The option is there twice.
    #[error("user network: {0} is given twice: leave one out")]
    Twice(&'static str),
    /// A forward that cannot be read.
    #[error("hostfwd={value:?}: {reason}; the form is tcp:[ADDR:]HOST:GUEST, for example tcp:2222:22")]
    Forward {
        /// What was given
        value: String,
        /// What is wrong with it
        reason: &'static str,
    },
    /// Two forwards of one port.
    #[error("hostfwd={0} is given twice: leave one out")]
    SameForward(Forward),
    /// The one shuts what the other opens.
    #[error("user network: restrict=on shuts what host=on opens: give one of them")]
    Contradiction,
}

impl FromStr for Options {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let mut words = text.split(',');
        let kind = words.next().unwrap_or_default();
        if kind != "user" {
            return Err(OptionsError::Kind(kind.to_owned()));
        }
        let mut options = Self::default();
        let (mut restrict, mut host) = (None, None);
        for word in words {
            match word.split_once('=') {
                Some(("hostfwd", value)) => {
                    let forward: Forward = value.parse()?;
                    let same = |f: &Forward| (f.protocol, f.host) == (forward.protocol, forward.host);
                    if forward.host.port() != 0 && options.forwards.iter().any(same) {
                        return Err(OptionsError::SameForward(forward));
                    }
                    options.forwards.push(forward);
                }
                Some(("restrict", value)) => switch("restrict", value, &mut restrict)?,
                Some(("host", value)) => switch("host", value, &mut host)?,
                _ => return Err(OptionsError::Unknown(word.to_owned())),
            }
        }
        options.restrict = restrict.unwrap_or(false);
        options.host = host.unwrap_or(false);
        if options.restrict && options.host {
            return Err(OptionsError::Contradiction);
        }
        Ok(options)
    }
}

fn switch(name: &'static str, value: &str, slot: &mut Option<bool>) -> Result<(), OptionsError> {
    let on = match value {
        "on" => true,
        "off" => false,
        _ => return Err(OptionsError::Switch { name, value: value.to_owned() }),
    };
    match slot.replace(on) {
        Some(_) => Err(OptionsError::Twice(name)),
        None => Ok(()),
    }
}

impl FromStr for Forward {
    type Err = OptionsError;

    fn from_str(text: &str) -> Result<Self, OptionsError> {
        let bad = |reason| OptionsError::Forward { value: text.to_owned(), reason };
        let (protocol, rest) = text.split_once(':').ok_or_else(|| bad("there are no ports"))?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(bad("the protocol is neither tcp nor udp")),
        };
        let (rest, guest) = rest.rsplit_once(':').ok_or_else(|| bad("the guest's port is missing"))?;
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => (Some(address), host),
            None => (None, rest),
        };
        let address = match address {
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(address) => match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
                Some(v6) => IpAddr::V6(v6.parse().map_err(|_| bad("the address in [ ] is not an IPv6 one"))?),
                None => IpAddr::V4(
                    address
                        .parse()
                        .map_err(|_| bad("the address is not an IPv4 one, and IPv6 needs [ ] around"))?,
                ),
            },
        };
        let host = port(host).ok_or_else(|| bad("the host's port is not a number from 0 to 65535"))?;
        let guest = port(guest).filter(|&guest| guest != 0);
        let guest = guest.ok_or_else(|| bad("the guest's port is not a number from 1 to 65535"))?;
        Ok(Self { protocol, host: SocketAddr::new(address, host), guest })
    }
}

/// Digits only: `u16::from_str` also takes a plus sign.
fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        text.parse().map_err(|error: OptionsError| error.to_string())
    }

    #[test]
    fn the_forms_of_a_description() {
        assert_eq!(parse("user"), Ok(Options::default()));
        let options =
            parse("user,hostfwd=tcp:2222:22,hostfwd=udp:0.0.0.0:53:5353,hostfwd=tcp:[::1]:0:80,restrict=on");
        let forward = |protocol, host: &str, guest| Forward { protocol, host: host.parse().unwrap(), guest };
        let expected = Options {
            forwards: vec![
                forward(Protocol::Tcp, "127.0.0.1:2222", 22),
                forward(Protocol::Udp, "0.0.0.0:53", 5353),
                forward(Protocol::Tcp, "[::1]:0", 80),
            ],
            restrict: true,
            host: false,
        };
        assert_eq!(options, Ok(expected));
        assert_eq!(parse("user,host=on,restrict=off").map(|o| (o.host, o.restrict)), Ok((true, false)));
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line() {
        for (text, part) in [
            ("", "starts with \"user\""),
            ("tap=tap0", "starts with \"user\""),
            ("user,", "no option \"\""),
            ("user,hostfwd", "no option \"hostfwd\""),
            ("user,mtu=9000", "no option \"mtu=9000\""),
            ("user,restrict=yes", "give on or off"),
            ("user,host=on,host=off", "host is given twice"),
            ("user,restrict=on,host=on", "give one of them"),
            ("user,hostfwd=tcp", "there are no ports"),
            ("user,hostfwd=sctp:1:2", "neither tcp nor udp"),
            ("user,hostfwd=tcp:22", "the guest's port is missing"),
            ("user,hostfwd=tcp:22:0", "from 1 to 65535"),
            ("user,hostfwd=tcp:22:", "from 1 to 65535"),
            ("user,hostfwd=tcp:+22:22", "from 0 to 65535"),
            ("user,hostfwd=tcp:65536:22", "from 0 to 65535"),
            ("user,hostfwd=tcp:localhost:22:22", "not an IPv4 one"),
            ("user,hostfwd=tcp:::1:22:22", "not an IPv4 one"),
            ("user,hostfwd=tcp:[1.2.3.4]:22:22", "not an IPv6 one"),
            ("user,hostfwd=tcp::2222:22", "not an IPv4 one"),
            ("user,hostfwd=tcp:1:2,hostfwd=tcp:1:3", "given twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn one_port_of_both_protocols_is_no_repetition() {
        assert!(parse("user,hostfwd=tcp:53:53,hostfwd=udp:53:53,hostfwd=tcp:0:1,hostfwd=tcp:0:2").is_ok());
    }
}
