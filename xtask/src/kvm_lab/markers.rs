//! What of the lab's output is the command's: all between two markers.

/// Cuts the command's output out of what the machine writes, piece by piece.
#[derive(Debug)]
pub(super) struct Markers {
    begin: Vec<u8>,
    end: Vec<u8>,
    begun: bool,
    /// What has not been decided on: it may be the start of a marker.
    held: Vec<u8>,
}

/// What a piece of output came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Output of the command.
    pub(super) output: Vec<u8>,
    /// The command's exit status, once it has ended.
    pub(super) status: Option<u8>,
}

impl Markers {
    pub(super) fn new(token: &str) -> Self {
        Self {
            begin: format!("LAB-BEGIN {token}\n").into_bytes(),
            end: format!("LAB-END {token} ").into_bytes(),
            begun: false,
            held: Vec::new(),
        }
    }

    /// Whether the command has been started.
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    /// What was written outside of the markers, or is held back.
    pub(super) fn rest(&self) -> &[u8] {
        &self.held
    }

    pub(super) fn take(&mut self, bytes: &[u8]) -> Seen {
        self.held.extend_from_slice(bytes);
        if !self.begun {
            let Some(at) = find(&self.held, &self.begin) else { return Seen::default() };
            self.held.drain(..at + self.begin.len());
            self.begun = true;
        }
        let Some(at) = find(&self.held, &self.end) else {
            // A marker that is cut in two starts in the last bytes.
            let safe = self.held.len().saturating_sub(self.end.len() - 1);
            return Seen { output: self.held.drain(..safe).collect(), status: None };
        };
        let digits = &self.held[at + self.end.len()..];
        let Some(length) = digits.iter().position(|byte| *byte == b'\n') else {
            return Seen { output: self.held.drain(..at).collect(), status: None };
        };
        let status = std::str::from_utf8(&digits[..length]).ok().and_then(|digits| digits.parse().ok());
        Seen { output: self.held.drain(..at).collect(), status }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|part| part == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[u8] =
        b"noise LAB-BEGIN other\nLAB-BEGIN 7f\nLAB-END 7\xffbinary\0 no newlineLAB-END 7f 42\nmore";
    const OUTPUT: &[u8] = b"LAB-END 7\xffbinary\0 no newline";

    /// However it is cut.
    #[test]
    fn output_is_what_stands_between() {
        for size in 1..ALL.len() {
            let mut markers = Markers::new("7f");
            let (mut output, mut status) = (Vec::new(), None);
            for piece in ALL.chunks(size) {
                let seen = markers.take(piece);
                output.extend(seen.output);
                if seen.status.is_some() {
                    status = seen.status;
                    break;
                }
            }
            assert_eq!((&output[..], status), (OUTPUT, Some(42)), "{size}");
        }
    }

    #[test]
    fn without_an_end_there_is_no_status() {
        let mut markers = Markers::new("7f");
        assert_eq!(markers.take(b"LAB-BEGI"), Seen::default());
        assert!(!markers.begun());
        markers.take(b"N 7f\nabc");
        assert!(markers.begun());
        assert_eq!(markers.take(b"LAB-END 7f 1").status, None);
        assert_eq!(markers.rest(), b"LAB-END 7f 1");
    }
}
