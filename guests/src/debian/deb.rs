//! Files out of a Debian package: `dpkg-deb` decompresses, we read its tar stream.

use super::FetchError;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};

const BLOCK: usize = 512;
/// No file wanted here is larger; a damaged size field must not ask for all memory.
const FILE_MAX: u64 = 256 << 20;

/// A file's path (without a leading `./`) and content.
type Entry = (String, Vec<u8>);

/// The first regular file of the package whose path (without a leading `./`) is `wanted`.
pub(super) fn extract(package: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<u8>, FetchError> {
    let found = extract_some(package, wanted, 1)?;
    let file = found.into_iter().next();
    file.map(|(_, bytes)| bytes)
        .ok_or_else(|| bad(package, "does not hold the file that it should".to_owned()))
}

/// The first regular files, at most `limit`, of the package whose path (without a leading `./`) is `wanted`.
pub(super) fn extract_some(
    package: &Path,
    wanted: &dyn Fn(&str) -> bool,
    limit: usize,
) -> Result<Vec<Entry>, FetchError> {
    let bad = |reason| bad(package, reason);
    let spawned = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(FetchError::NoTool("dpkg-deb")),
        Err(error) => return Err(bad(format!("dpkg-deb: {error}"))),
    };
    let found = match child.stdout.take() {
        Some(stdout) => find(io::BufReader::with_capacity(1 << 16, stdout), wanted, limit),
        None => Err(io::Error::other("no output to read")),
    };
    // The stream is closed: dpkg-deb ends by itself, or by SIGPIPE where the file stood early.
    let status = child.wait().map_err(|error| bad(format!("dpkg-deb: {error}")))?;
    match found {
        Ok(found) if found.len() == limit || status.success() => Ok(found),
        Ok(_) => Err(bad("dpkg-deb cannot unpack it".to_owned())),
        Err(error) => Err(bad(format!("cannot be unpacked: {error}"))),
    }
}

pub(super) fn bad(package: &Path, reason: String) -> FetchError {
    let package = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
    FetchError::BadArchive { package, reason }
}

/// Walks a tar stream (POSIX ustar; entries of other kinds are skipped by their size).
fn find(mut tar: impl Read, wanted: &dyn Fn(&str) -> bool, limit: usize) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut header = [0u8; BLOCK];
    while found.len() < limit {
        match tar.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            other => other?,
        }
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "damaged tar header");
        // Checksum: the sum of all bytes with its own field as spaces.
        let sum = octal(&header[148..156]).ok_or_else(damaged)?;
        let bytes = header.iter().enumerate();
        let actual: u64 =
            bytes.map(|(n, byte)| if (148..156).contains(&n) { 32 } else { u64::from(*byte) }).sum();
        if sum != actual {
            return Err(damaged());
        }
        let size = octal(&header[124..136]).filter(|size| *size <= FILE_MAX).ok_or_else(damaged)?;
        let name = String::from_utf8_lossy(text(&header[..100])).into_owned();
        let name = name.strip_prefix("./").unwrap_or(&name);
        let mut left = size.next_multiple_of(BLOCK as u64);
        if matches!(header[156], b'0' | 0) && wanted(name) {
            let mut bytes = Vec::new();
            tar.by_ref().take(size).read_to_end(&mut bytes)?;
            if bytes.len() as u64 != size {
                return Err(damaged());
            }
            left -= size;
            found.push((name.to_owned(), bytes));
            if found.len() == limit {
                break;
            }
        }
        if io::copy(&mut tar.by_ref().take(left), &mut io::sink())? != left {
            return Err(damaged());
        }
    }
    Ok(found)
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text(field)).ok()?.trim();
    u64::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0u8; BLOCK];
        out[..name.len()].copy_from_slice(name.as_bytes());
        out[124..135].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
        out[156] = kind;
        out[148..156].fill(b' ');
        let sum: u64 = out.iter().map(|b| u64::from(*b)).sum();
        out[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out
    }

    fn archive() -> Vec<u8> {
        let mut tar = entry("./boot/", b'5', b"");
        tar.extend(entry("./boot/System.map", b'0', &[7; 700]));
        tar.extend(entry("./boot/vmlinuz-1", b'0', b"kernel"));
        tar.extend([0; 2 * BLOCK]);
        tar
    }

    #[test]
    fn a_file_behind_others_is_found() {
        let find = |wanted: &dyn Fn(&str) -> bool, limit| find(&archive()[..], wanted, limit).unwrap();
        let kernel = ("boot/vmlinuz-1".to_owned(), b"kernel".to_vec());
        assert_eq!(find(&|path| path.starts_with("boot/vmlinuz-"), 1), [kernel.clone()]);
        assert_eq!(find(&|path| path == "boot/", 1), []);
        let map = ("boot/System.map".to_owned(), vec![7; 700]);
        assert_eq!(find(&|_| true, 1), [map.clone()]);
        assert_eq!(find(&|_| true, 9), [map, kernel]);
    }

    /// Every cut and every flipped header byte: an error or nothing, never another file.
    #[test]
    fn damaged_archives_are_refused() {
        let whole = archive();
        let wanted = |path: &str| path == "boot/vmlinuz-1";
        let data = BLOCK + BLOCK + 1024 + BLOCK;
        for end in 0..data + 6 {
            let found = find(&whole[..end], &wanted, 1);
            assert!(found.unwrap_or_default().is_empty(), "{end}");
        }
        for at in 0..BLOCK {
            let mut tar = whole.clone();
            tar[at] ^= 0x15;
            // Trailing NUL or space of the checksum field itself is not summed.
            if !(148..156).contains(&at) {
                assert!(find(&tar[..], &wanted, 1).is_err(), "{at}");
            }
        }
    }

    #[test]
    fn what_is_no_package_is_a_bad_archive() {
        let path = std::env::temp_dir().join(format!("gearshift-no-package-{}.deb", std::process::id()));
        std::fs::write(&path, "not a package").unwrap();
        let result = extract(&path, &|_| true);
        std::fs::remove_file(&path).unwrap();
        // Hosts without dpkg say so.
        assert!(matches!(result, Err(FetchError::BadArchive { .. } | FetchError::NoTool(_))), "{result:?}");
    }
}
