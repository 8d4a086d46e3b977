//! Ctrl-a and what follows it, told apart from what is for the guest.

/// Ctrl-a.
const PREFIX: u8 = 0x01;

/// What the keys are.
pub(crate) const HELP: &str = "\
Ctrl-a x  quit
Ctrl-a s  show what the vCPUs have done
Ctrl-a g  change gear: the next accelerator takes the guest over
Ctrl-a b  show the balloon; Ctrl-a + gives the guest 64 MiB back, Ctrl-a - takes 64 MiB more
Ctrl-a p  press the power button: a guest that listens shuts down
Ctrl-a a  send Ctrl-a to the guest
Ctrl-a h  this help
";

/// Something typed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Typed {
    /// For the guest.
    Bytes(Vec<u8>),
    Quit,
    Stats,
    Gear,
    PowerButton,
    /// The balloon is shown, or grows or shrinks by so many MiB first.
    Balloon(i32),
    Help,
}

/// Remembers a Ctrl-a whose second key has not come yet.
#[derive(Debug, Default)]
pub(crate) struct Escapes {
    pending: bool,
}

impl Escapes {
    /// Takes `bytes` apart, in their order. Ctrl-a with another key than those of [`HELP`] is nothing.
    pub(crate) fn split(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let mut out = Vec::new();
        for &byte in bytes {
            let escaped = self.pending;
            self.pending = !escaped && byte == PREFIX;
            match (escaped, byte) {
                (true, b'x' | b'X') => out.push(Typed::Quit),
                (true, b's' | b'S') => out.push(Typed::Stats),
                (true, b'g' | b'G') => out.push(Typed::Gear),
                (true, b'b' | b'B') => out.push(Typed::Balloon(0)),
                (true, b'+' | b'=') => out.push(Typed::Balloon(-64)),
                (true, b'-') => out.push(Typed::Balloon(64)),
                (true, b'p' | b'P') => out.push(Typed::PowerButton),
                (true, b'h' | b'H' | b'?') => out.push(Typed::Help),
                (true, b'a' | b'A' | PREFIX) => send(&mut out, PREFIX),
                (true, _) | (false, PREFIX) => {}
                (false, byte) => send(&mut out, byte),
            }
        }
        out
    }
}

fn send(out: &mut Vec<Typed>, byte: u8) {
    match out.last_mut() {
        Some(Typed::Bytes(bytes)) => bytes.push(byte),
        _ => out.push(Typed::Bytes(vec![byte])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<Typed> {
        let mut escapes = Escapes::default();
        pieces.iter().flat_map(|piece| escapes.split(piece)).collect()
    }

    #[test]
    fn keys_are_found_within_and_across_reads() {
        let bytes = |text: &[u8]| Typed::Bytes(text.to_vec());
        assert_eq!(split(&[b"ab\x01xc"]), [bytes(b"ab"), Typed::Quit, bytes(b"c")]);
        assert_eq!(split(&[b"\x01", b"h", b"\x01", b"s\x01g"]), [Typed::Help, Typed::Stats, Typed::Gear]);
        assert_eq!(
            split(&[b"\x01", b"h", b"\x01", b"s\x01p"]),
            [Typed::Help, Typed::Stats, Typed::PowerButton]
        );
        assert_eq!(
            split(&[b"\x01b\x01", b"+\x01-+"]),
            [Typed::Balloon(0), Typed::Balloon(-64), Typed::Balloon(64), bytes(b"+")]
        );
        assert_eq!(split(&[b"1\x01a2", b"\x01", b"\x013"]), [bytes(b"1\x012"), bytes(b"\x013")]);
        assert_eq!(split(&[b"\x01\x01x", b"\x01qx\xff\x00"]), [bytes(b"\x01x"), bytes(b"x\xff\x00")]);
    }
}
