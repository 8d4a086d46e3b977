//! What a helper and its parent say to each other on two pipes. Numbers are little-endian.

use std::io::{self, Read, Write};

use boot_disk::{CMDLINE_MAX, Found, INITRD_MAX, KERNEL_MAX};

/// Most bytes that are asked for at once.
pub(super) const PIECE_MAX: u32 = 1 << 20;
/// Longest title or reason.
const TEXT_MAX: usize = 1024;

/// What a helper says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// It wants bytes of the disk.
    Read { at: u64, length: u32 },
    /// It has what is to be booted.
    Found(Found),
    /// There is nothing, for a reason.
    Nothing(String),
}

impl Message {
    /// The next message. One that cannot be is an error, and so is the end.
    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        let [kind] = array(from)?;
        Ok(match kind {
            b'R' => {
                let (at, length) = (number::<8>(from)?, number::<4>(from)?);
                let length = u32::try_from(length).ok().filter(|length| (1..=PIECE_MAX).contains(length));
                Self::Read { at, length: length.ok_or_else(cannot_be)? }
            }
            b'F' => Self::Found(Found {
                title: text(from, TEXT_MAX)?,
                cmdline: text(from, CMDLINE_MAX)?,
                kernel: bytes(from, KERNEL_MAX)?,
                initrd: match number::<1>(from)? {
                    0 => None,
                    _ => Some(bytes(from, INITRD_MAX)?),
                },
            }),
            b'N' => Self::Nothing(text(from, TEXT_MAX)?),
            _ => return Err(cannot_be()),
        })
    }

    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let put = |to: &mut dyn Write, bytes: &[u8]| {
            to.write_all(&(bytes.len() as u64).to_le_bytes()).and_then(|()| to.write_all(bytes))
        };
        match self {
            Self::Read { at, length } => {
                to.write_all(b"R")?;
                to.write_all(&at.to_le_bytes())?;
                to.write_all(&length.to_le_bytes())?;
            }
            Self::Found(found) => {
                to.write_all(b"F")?;
                put(to, found.title.as_bytes())?;
                put(to, found.cmdline.as_bytes())?;
                put(to, &found.kernel)?;
                to.write_all(&[found.initrd.is_some().into()])?;
                if let Some(initrd) = &found.initrd {
                    put(to, initrd)?;
                }
            }
            Self::Nothing(reason) => {
                to.write_all(b"N")?;
                let end = reason.len().min(TEXT_MAX);
                put(to, reason.as_bytes().get(..end).unwrap_or_default())?;
            }
        }
        to.flush()
    }
}

/// Answers a [`Message::Read`]: the bytes, or that they cannot be had.
pub(super) fn reply(to: &mut impl Write, bytes: Option<&[u8]>) -> io::Result<()> {
    to.write_all(&[bytes.is_some().into()])?;
    to.write_all(bytes.unwrap_or_default())
}

/// The answer to a request for `into.len()` bytes.
pub(super) fn answer(from: &mut impl Read, into: &mut [u8]) -> io::Result<()> {
    match number::<1>(from)? {
        0 => Err(io::Error::other("the disk cannot be read there")),
        _ => from.read_exact(into),
    }
}

fn cannot_be() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it says what cannot be")
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn number<const N: usize>(from: &mut impl Read) -> io::Result<u64> {
    Ok(array::<N>(from)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn bytes(from: &mut impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let length = number::<8>(from)?;
    if length > limit {
        return Err(cannot_be());
    }
    let mut bytes = Vec::new();
    // Memory is taken as bytes come.
    from.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Printable ASCII, which reaches a terminal or a kernel's command line.
fn text(from: &mut impl Read, limit: usize) -> io::Result<String> {
    let bytes = bytes(from, limit as u64)?;
    let safe = bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
    String::from_utf8(bytes).ok().filter(|_| safe).ok_or_else(cannot_be)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        let initrd = Some(vec![7; 99]);
        Found { title: "t".into(), kernel: vec![1, 2], initrd, cmdline: "root=x".into() }
    }

    fn written(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn messages_read_back_and_pieces_of_them_are_refused() {
        let read = Message::Read { at: 1 << 40, length: PIECE_MAX };
        for message in [read, Message::Found(found()), Message::Nothing("no".into())] {
            let bytes = written(&message);
            assert_eq!(Message::read(&mut &bytes[..]).unwrap(), message);
            for end in 0..bytes.len() {
                assert!(Message::read(&mut &bytes[..end]).is_err(), "{end}");
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |bytes: &[u8]| {
            let error = Message::read(&mut &bytes[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        };
        refused(b"X");
        for length in [0, PIECE_MAX + 1, u32::MAX] {
            refused(&[&b"R\0\0\0\0\0\0\0\0"[..], &length.to_le_bytes()].concat());
        }
        // Lengths are refused before anything is read for them, and so is what a terminal would obey.
        refused(&[&b"N"[..], &u64::MAX.to_le_bytes()].concat());
        refused(&written(&Message::Nothing("\x1b[2J".into())));
        refused(&written(&Message::Found(Found { cmdline: "a\nb".into(), ..found() })));
        let long = Found { cmdline: "x".repeat(CMDLINE_MAX + 1), ..found() };
        refused(&written(&Message::Found(long)));
    }
}
