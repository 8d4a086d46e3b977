//! The host's name servers: where the DNS relay asks.

use smoltcp::time::{Duration, Instant};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::time::SystemTime;

const DNS_PORT: u16 = 53;
/// glibc's MAXNS.
const MAX_RESOLVERS: usize = 3;
/// How often the file is looked at.
const FRESH: Duration = Duration::from_secs(2);
/// More of a file is no resolv.conf.
const MAX_FILE: u64 = 64 << 10;

/// Where the relay asks, in order.
#[derive(Debug)]
pub(crate) enum Resolvers {
    Fixed(Vec<SocketAddr>),
    /// As a file in the format of resolv.conf(5) says, which is read again when it has changed: hosts change networks.
    File {
        path: PathBuf,
        changed: Option<SystemTime>,
        looked: Option<Instant>,
        list: Vec<SocketAddr>,
    },
}

impl Resolvers {
    pub(crate) fn file(path: PathBuf) -> Self {
        Self::File { path, changed: None, looked: None, list: Vec::new() }
    }

    /// The list as it is now; never empty.
    pub(crate) fn list(&mut self, now: Instant) -> Vec<SocketAddr> {
        match self {
            Self::Fixed(list) => list.clone(),
            Self::File { path, changed, looked, list } => {
                if looked.is_none_or(|looked| now >= looked + FRESH) {
                    *looked = Some(now);
                    let modified = std::fs::metadata(&*path).and_then(|data| data.modified()).ok();
                    if list.is_empty() || modified != *changed {
                        *changed = modified;
                        *list = parse(&read(path).unwrap_or_default());
                    }
                }
                list.clone()
            }
        }
    }
}

fn read(path: &std::path::Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The name servers of a resolv.conf; the host itself if there are none (resolv.conf(5)).
fn parse(text: &str) -> Vec<SocketAddr> {
    let mut list: Vec<_> = text.lines().filter_map(name_server).take(MAX_RESOLVERS).collect();
    if list.is_empty() {
        list.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DNS_PORT));
    }
    list
}

fn name_server(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_ascii_whitespace();
    let address = words.next().filter(|&word| word == "nameserver").and(words.next())?;
    let (address, scope) = match address.split_once('%') {
        Some((address, scope)) => (address, Some(scope)),
        None => (address, None),
    };
    match address.parse().ok()? {
        IpAddr::V6(v6) => {
            let scope = scope.map_or(Some(0), scope_id)?;
            Some(SocketAddr::V6(SocketAddrV6::new(v6, DNS_PORT, 0, scope)))
        }
        v4 => scope.is_none().then_some(SocketAddr::new(v4, DNS_PORT)),
    }
}

/// An interface's number, from itself or its name.
fn scope_id(scope: &str) -> Option<u32> {
    scope.parse().ok().or_else(|| {
        let safe = !scope.contains(['/', '.']);
        let path = format!("/sys/class/net/{scope}/ifindex");
        safe.then(|| std::fs::read_to_string(path).ok()).flatten()?.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_as_the_library_reads_it() {
        let text = "# nameserver 9.9.9.9\nsearch lan\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 # old\n\
                    nameserver fe80::1%7\nnameserver 192.0.2.2\n";
        let expected = ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%7]:53"];
        assert_eq!(parse(text).iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        for empty in ["", "nameserver", "nameserver lan", "nameserver 1.2.3.4%5", "nameserver fe80::1%../x"] {
            assert_eq!(parse(empty).iter().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1:53"]);
        }
        // systemd-resolved's stub is the host's own and is asked there; the guest never hears of it.
        assert_eq!(parse("nameserver 127.0.0.53")[0].to_string(), "127.0.0.53:53");
    }

    #[test]
    fn a_file_that_changes_is_read_again_and_a_missing_one_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let mut resolvers = Resolvers::file(path.clone());
        let mut at = |seconds| resolvers.list(Instant::from_secs(seconds))[0].to_string();
        assert_eq!(at(0), "127.0.0.1:53");
        std::fs::write(&path, "nameserver 192.0.2.1").unwrap();
        assert_eq!(at(1), "127.0.0.1:53");
        assert_eq!(at(10), "192.0.2.1:53");
        std::fs::write(&path, "nameserver 192.0.2.2").unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::options().append(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!(at(20), "192.0.2.2:53");
    }
}
