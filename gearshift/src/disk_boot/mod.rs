//! What is booted when disks are named and no kernel: the first disk that has one.
//!
//! Partition tables, file systems and boot entries are whatever a guest wrote. They are parsed by a process without rights
//! ([`helper`], this program again), which has nothing but two pipes: it asks for bytes of the disk, and tells what it has found. This
//! side serves what it asks for from the disk that the machine has open, whatever its format, and believes it nothing: lengths are
//! bounded, texts are printable ASCII, and a kernel is a file like any other to the loader.

mod helper;
mod protocol;

use std::borrow::Cow;
use std::io::{self, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use backends::disk::{BlockBackend, BlockCommand, BlockRequest, DiskImage, SECTOR};
use boot_disk::Found;
use machine::Source;

use crate::default_guest::Guest;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use protocol::Message;

pub(crate) use helper::{HelperArgs, help};

/// The hidden command that is the helper.
pub(crate) const HELPER: &str = "boot-disk-helper";
/// Most bytes that a helper may read: a file system that leads in circles ends here.
const READ_MAX: u64 = 8 << 30;

/// A disk of the machine's: what the user calls it, and its sectors.
pub(crate) type Named<'a> = (&'a Path, Arc<DiskImage>);

/// What the first of these disks that can be booted boots.
///
/// # Errors
/// None can; the line speaks of the first.
pub(crate) fn obtain(disks: &[Named<'_>]) -> Result<Guest, Failure> {
    let mut first = None;
    for (letter, (path, disk)) in ('a'..='z').zip(disks) {
        match ask(disk.as_ref(), &format!("/dev/vd{letter}")) {
            Ok(found) => return Ok(guest(path, found)),
            Err(reason) => first = first.or(Some((path, reason))),
        }
    }
    let line = match first {
        Some((path, reason)) => format!(
            "{} cannot be booted: {reason}; name a kernel with --kernel, or boot Debian's beside the disk with --guest cloud",
            path.display()
        ),
        None => "there is no disk to boot".to_owned(),
    };
    Err(Failure::new(ExitCode::File, line))
}

fn guest(path: &Path, found: Found) -> Guest {
    Guest {
        name: format!("{:?} of {}", found.title, path.display()),
        kernel: Source::bytes("the disk's kernel", found.kernel),
        initrd: found.initrd.map(|bytes| Source::bytes("the disk's initial RAM disk", bytes)),
        cmdline: Cow::Owned(found.cmdline),
    }
}

/// What a helper finds on `disk`, which the guest calls `device`.
fn ask(disk: &dyn BlockBackend, device: &str) -> Result<Found, String> {
    let size = disk.info().capacity.saturating_mul(SECTOR);
    let mut child = Command::new("/proc/self/exe")
        .args([HELPER, "--size", &size.to_string(), "--device", device])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("no process to read it in: {error}"))?;
    let answer = match (child.stdin.take(), child.stdout.take()) {
        (Some(to), Some(from)) => serve(disk, to, from),
        _ => Err("the process that reads it has no pipes".to_owned()),
    };
    answer.map_err(|reason| ended(&mut child, reason)).inspect(|_| {
        // It has said all, and ends by itself.
        let _ = child.wait();
    })
}

/// Ends the helper; a signal that it died of is the better reason.
fn ended(child: &mut Child, reason: String) -> String {
    // A helper that is gone has closed its pipe, and one that is not has nothing more to say.
    let status = child.try_wait();
    let _ = child.kill();
    let status = status.ok().flatten().or_else(|| child.wait().ok());
    match status.and_then(|status| status.signal()) {
        Some(libc::SIGKILL) | None => reason,
        Some(libc::SIGXCPU) => "looking for its kernel takes too long".to_owned(),
        Some(signal) => format!("the process that looks for its kernel died of signal {signal}"),
    }
}

/// Reads for the helper until it has an answer.
fn serve(disk: &dyn BlockBackend, mut to: ChildStdin, from: ChildStdout) -> Result<Found, String> {
    let gone = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
            "the process that looks for its kernel ended without an answer; its file systems may be damaged"
                .to_owned()
        }
        _ => format!("the process that looks for its kernel does not answer: {error}"),
    };
    let mut from = BufReader::with_capacity(1 << 16, from);
    let mut left = READ_MAX;
    loop {
        match Message::read(&mut from).map_err(gone)? {
            Message::Read { at, length } => {
                left = left.checked_sub(length.into()).ok_or("looking for its kernel reads without end")?;
                let bytes = read(disk, at, length);
                protocol::reply(&mut to, bytes.as_deref()).and_then(|()| to.flush()).map_err(gone)?;
            }
            Message::Found(found) => return Ok(found),
            Message::Nothing(reason) => return Err(reason),
        }
    }
}

/// Bytes of the disk, from the sectors they lie in.
fn read(disk: &dyn BlockBackend, at: u64, length: u32) -> Option<Vec<u8>> {
    let sector = at / SECTOR;
    let skip = usize::try_from(at % SECTOR).ok()?;
    let end = skip.checked_add(usize::try_from(length).ok()?)?;
    let data = vec![0; end.next_multiple_of(SECTOR as usize)];
    let mut batch = [BlockRequest::new(BlockCommand::Read { sector, data })];
    backends::runtime().ok()?.block_on(disk.submit(&mut batch));
    let [BlockRequest { command: BlockCommand::Read { data, .. }, result: Ok(()) }] = batch else {
        return None;
    };
    data.get(skip..end).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use backends::disk::DiskOptions;

    use super::*;

    /// Whatever a helper asks for lies inside the disk or is refused.
    #[test]
    fn bytes_are_cut_out_of_sectors() {
        let file = std::env::temp_dir().join(format!("gearshift-cut-{}.raw", std::process::id()));
        let bytes: Vec<u8> = (0..2048u32).map(|n| (n / 3) as u8).collect();
        std::fs::write(&file, &bytes).unwrap();
        let disk = DiskImage::open(&DiskOptions::new(file.clone())).unwrap();
        for (at, length) in [(0, 1), (511, 2), (512, 512), (1000, 1048), (2047, 1)] {
            let range = at as usize..at as usize + length as usize;
            assert_eq!(read(&disk, at, length).unwrap(), bytes[range], "{at} {length}");
        }
        for (at, length) in [(2048, 1), (2047, 2), (u64::MAX, 1), (0, u32::MAX)] {
            assert_eq!(read(&disk, at, length), None, "{at} {length}");
        }
        std::fs::remove_file(&file).unwrap();
    }
}
