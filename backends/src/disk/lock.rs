//! Advisory locks on images, the same bytes as QEMU's, so that its programs and ours exclude each other.
//!
//! A user of an image states two sets of permissions: those it *has*, and those it does not *share*. For each it holds a
//! shared lock of one byte: 100 + n for a permission that it has, 200 + n for one that it does not share. Then it looks
//! whether somebody else holds 200 + n for what it has, or 100 + n for what it does not share (QEMU, `block/file-posix.c`).
//! The locks are of the open file (`F_OFD_SETLK`): they go with its last descriptor, whatever other descriptors of the file
//! the process closes.
#![allow(unsafe_code, reason = "fcntl with locks of open files has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// First byte of permissions that somebody has.
const HAS: u8 = 100;
/// First byte of permissions that somebody does not share.
const UNSHARED: u8 = 200;

/// Permissions, by their numbers in QEMU (`BLK_PERM_*`).
const READ: u8 = 0;
const WRITE: u8 = 1;
const RESIZE: u8 = 3;

/// What a lock is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    /// Nobody may write or resize while we read.
    Read,
    /// Nobody else may write or resize either.
    Write,
}

/// The outcome of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The locks are held as long as the file is open.
    Held,
    /// The file system has no such locks.
    Unsupported,
    /// Somebody else has the image; what they do.
    Conflict(&'static str),
}

/// Locks `file`. After a conflict the caller closes the file, which gives the locks back.
pub(super) fn lock(file: &File, intent: Intent) -> io::Result<Outcome> {
    let has: &[u8] = match intent {
        Intent::Read => &[READ],
        Intent::Write => &[READ, WRITE, RESIZE],
    };
    let unshared = [WRITE, RESIZE];
    // All locks before the first look: of two that begin at once at least one sees the other.
    for byte in has.iter().map(|n| HAS + n).chain(unshared.iter().map(|n| UNSHARED + n)) {
        match call(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte) {
            Ok(_) => {}
            Err(error) => return classify(error),
        }
    }
    for byte in has.iter().map(|n| UNSHARED + n).chain(unshared.iter().map(|n| HAS + n)) {
        // What would stop an exclusive lock is somebody's shared one; our own file's locks do not count.
        if call(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte)? != libc::F_UNLCK {
            let holds = match byte {
                byte if byte == HAS + WRITE || byte == HAS + RESIZE => "writes to it",
                _ => "allows no writer beside it",
            };
            return Ok(Outcome::Conflict(holds));
        }
    }
    Ok(Outcome::Held)
}

fn classify(error: io::Error) -> io::Result<Outcome> {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(Outcome::Conflict("has it for itself alone")),
        Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS) => Ok(Outcome::Unsupported),
        _ => Err(error),
    }
}

/// One fcntl on one byte; the kind of lock in its answer.
fn call(file: &File, command: libc::c_int, kind: libc::c_int, byte: u8) -> io::Result<libc::c_int> {
    // SAFETY: `flock` is plain data, for which zeroes are a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte.into();
    lock.l_len = 1;
    // SAFETY: the descriptor is open and the command takes a pointer to a `flock`, which lives across the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(lock.l_type.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(file: &tempfile::NamedTempFile) -> File {
        File::options().read(true).write(true).open(file.path()).unwrap()
    }

    #[test]
    fn one_writer_or_many_readers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = open(&file);
        assert_eq!(lock(&writer, Intent::Write).unwrap(), Outcome::Held);
        let write = lock(&open(&file), Intent::Write).unwrap();
        assert_eq!(write, Outcome::Conflict("allows no writer beside it"));
        assert_eq!(lock(&open(&file), Intent::Read).unwrap(), Outcome::Conflict("writes to it"));
        drop(writer);
        let first = open(&file);
        assert_eq!(lock(&first, Intent::Read).unwrap(), Outcome::Held);
        let second = open(&file);
        assert_eq!(lock(&second, Intent::Read).unwrap(), Outcome::Held);
        let refused = lock(&open(&file), Intent::Write).unwrap();
        assert_eq!(refused, Outcome::Conflict("allows no writer beside it"));
    }

    #[test]
    fn a_lock_outlives_other_descriptors_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let writer = open(&file);
        assert_eq!(lock(&writer, Intent::Write).unwrap(), Outcome::Held);
        drop(open(&file));
        let duplicate = writer.try_clone().unwrap();
        drop(writer);
        assert_ne!(lock(&open(&file), Intent::Read).unwrap(), Outcome::Held);
        drop(duplicate);
        assert_eq!(lock(&open(&file), Intent::Read).unwrap(), Outcome::Held);
    }
}
