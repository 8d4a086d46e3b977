//! What a user says of a vsock device.

use std::path::PathBuf;
use std::str::FromStr;

use crate::disk::split_at_commas;

/// Bytes that the path of a Unix socket has at most (`sun_path`, with its final NUL).
const MOST_PATH: usize = 107;
/// Behind the path: `_` and a port.
const SUFFIX: usize = "_4294967295".len();
/// CIDs that a guest can have; those below are taken, the last one stands for any.
const CIDS: std::ops::Range<u32> = 3..u32::MAX;

/// A vsock device as `--vsock` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockOptions {
    /// The Unix socket that programs of the host connect to.
    pub path: PathBuf,
    /// The guest's CID.
    pub cid: u32,
}

impl FromStr for VsockOptions {
    type Err = String;

    /// `PATH[,cid=N]`; a comma in the path is written twice.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = split_at_commas(text).into_iter();
        let path = words.next().filter(|path| !path.is_empty());
        let path = path.ok_or("a vsock device needs a Unix socket: PATH[,cid=N]")?;
        let most = MOST_PATH - SUFFIX;
        if path.len() > most || path.contains('\0') {
            return Err(format!(
                "'{path}' cannot be a Unix socket's path with a port behind it: take at most {most} bytes"
            ));
        }
        let mut cid = CIDS.start;
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((&word, ""));
            if key != "cid" {
                return Err(format!("there is no vsock option '{key}': the only one is cid"));
            }
            let good = value.parse().ok().filter(|cid| CIDS.contains(cid));
            cid = good.ok_or_else(|| format!("'{word}': take 3 to {}", CIDS.end - 1))?;
        }
        Ok(Self { path: path.into(), cid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_a_cid() {
        let options = |path: &str, cid| Ok(VsockOptions { path: path.into(), cid });
        assert_eq!("v.sock".parse(), options("v.sock", 3));
        assert_eq!("/a,,b,cid=42".parse(), options("/a,b", 42));
        assert_eq!("v,cid=4294967294".parse(), options("v", u32::MAX - 1));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = "x".repeat(97);
        for (text, part) in [
            ("", "needs a Unix socket"),
            (&long, "at most 96 bytes"),
            ("v,cid=2", "'cid=2': take 3 to 4294967294"),
            ("v,cid=4294967295", "take 3"),
            ("v,cid=x", "take 3"),
            ("v,cid", "take 3"),
            ("v,port=1", "no vsock option 'port'"),
        ] {
            let error = text.parse::<VsockOptions>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
