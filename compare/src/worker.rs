//! The hidden command that runs one guest of ours in a process of its own, as lean as a user's.
//!
//! The guest's console is its standard output. On standard error it says [`COUNTERS`] when a text went by, and at the end
//! one line with [`END`], so that whoever started it need not guess the end from an exit code.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use clap::Args;
use machine::{AccelChoice, GuestEnd, Machine, Registry};
use serde_json::{Map, Value, json};

/// Begins the line of counters on standard error.
pub(crate) const COUNTERS: &str = "COUNTERS ";
/// Begins the line that tells how the guest ended: one of [`crate::process::End`]'s texts.
pub(crate) const END: &str = "END ";

/// A subset of `gearshift run`'s, in its words.
#[derive(Debug, Args)]
pub struct Options {
    #[arg(long)]
    accel: AccelChoice,
    #[arg(long, default_value = machine::DEFAULT_MODEL)]
    cpu: String,
    #[arg(long, value_parser = mebibytes)]
    mem: u64,
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initrd: Option<PathBuf>,
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// Text on the console after which counters are written to standard error
    #[arg(long, default_value = "")]
    until: String,
}

fn mebibytes(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix('M').and_then(|n| n.parse::<u32>().ok());
    number.map(|n| u64::from(n) << 20).ok_or_else(|| format!("`{text}` is not a size such as 512M"))
}

/// Runs the guest to its end; whether it came to one of its own.
pub fn main(options: &Options, registry: &Registry) -> bool {
    match run(options, registry) {
        Ok(end) => match text(&end) {
            Some(text) => {
                say(&format!("{END}{text}"));
                true
            }
            None => {
                say(&end.to_string());
                false
            }
        },
        Err(error) => {
            say(&error.to_string());
            false
        }
    }
}

/// An end of the guest's own making, in the words of [`crate::process::End`].
fn text(end: &GuestEnd) -> Option<String> {
    match end {
        GuestEnd::PowerOff => Some("power-off".to_owned()),
        GuestEnd::Reset | GuestEnd::Panicked => Some("reset".to_owned()),
        GuestEnd::TripleFault { .. } => Some("triple fault".to_owned()),
        GuestEnd::DebugExit(value) => Some(format!("debug exit {value}")),
        _ => None,
    }
}

#[expect(clippy::print_stderr, reason = "what a process says of itself")]
fn say(line: &str) {
    eprintln!("{line}");
}

fn run(options: &Options, registry: &Registry) -> Result<GuestEnd, Box<dyn std::error::Error>> {
    let chosen = registry.choose(&options.accel)?;
    let (sender, reached) = mpsc::channel();
    let console =
        Console { until: options.until.clone().into_bytes(), tail: Vec::new(), reached: Some(sender) };
    let mut machine = Machine::builder()
        .accelerator(chosen.accelerator)
        .memory(options.mem)
        .cpu_model(&options.cpu)
        .kernel(options.kernel.clone())
        .cmdline(options.cmdline.clone())
        .console(console);
    if let Some(initrd) = &options.initrd {
        machine = machine.initrd(initrd.clone());
    }
    let machine = Arc::new(machine.start()?);
    let counted = machine.clone();
    std::thread::spawn(move || {
        if reached.recv().is_ok()
            && let Ok(stats) = counted.stats()
        {
            say(&format!("{COUNTERS}{}", counters(&stats)));
        }
    });
    Ok(machine.wait())
}

/// Sums over all vCPUs.
fn counters(stats: &[accel_api::VcpuStats]) -> Value {
    let mut sums: Map<String, Value> = Map::new();
    for vcpu in stats {
        let instructions = vcpu.instructions.map(|n| ("instructions", n));
        for (name, count) in instructions.into_iter().chain(vcpu.counters.iter().copied()) {
            let before = sums.get(name).and_then(Value::as_u64).unwrap_or(0);
            sums.insert(name.to_owned(), json!(before.saturating_add(count)));
        }
    }
    Value::Object(sums)
}

/// Standard output that tells when a text went through it.
struct Console {
    until: Vec<u8>,
    /// The last bytes, one fewer than the text has.
    tail: Vec<u8>,
    reached: Option<mpsc::Sender<()>>,
}

impl Console {
    fn look(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        if !self.until.is_empty() && self.tail.windows(self.until.len()).any(|part| part == self.until) {
            // Who waits may have gone with the guest.
            let _ = self.reached.take().map(|sender| sender.send(()));
        }
        let keep = self.until.len().saturating_sub(1);
        self.tail.drain(..self.tail.len().saturating_sub(keep));
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = io::stdout().write(bytes)?;
        if self.reached.is_some() {
            self.look(&bytes[..n]);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_found_across_writes_and_once() {
        let (sender, reached) = mpsc::channel();
        let mut console = Console { until: b"INIT".to_vec(), tail: Vec::new(), reached: Some(sender) };
        for part in ["xxIN", "I", "NI"] {
            console.look(part.as_bytes());
        }
        assert!(reached.try_recv().is_err());
        console.look(b"T and INIT");
        assert!(reached.try_recv().is_ok() && console.reached.is_none());
    }

    #[test]
    fn counters_are_sums() {
        let vcpu =
            accel_api::VcpuStats { instructions: Some(5), counters: vec![("blocks", 2)], report: vec![] };
        assert_eq!(counters(&[vcpu.clone(), vcpu]), json!({ "instructions": 10, "blocks": 4 }));
    }
}
