//! Libraries of Debian's for programs in user space, with the C library and the loader they were built against.
//!
//! They lie in one folder under their sonames, so that the loader finds all of them there and none of the host's:
//! `FOLDER/ld-linux-x86-64.so.2 --library-path FOLDER PROGRAM`.

use super::apt::{Apt, Lists, Package};
use super::cache::Cache;
use super::{FetchError, Packages, deb, mebibytes, obtain};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Name of the cache's folder.
const FOLDER: &str = "libraries";

/// The loader among the files.
pub const LOADER: &str = "ld-linux-x86-64.so.2";

/// The files, by soname: the loader, the C library, what compiled code asks of its compiler's runtime, and the libraries
/// that programs here open.
pub const LIBRARIES: &[&str] = &[
    LOADER,
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libz.so.1",
    "liblzma.so.5",
    "libsqlite3.so.0",
    "liblua5.4.so.0",
    "libzstd.so.1",
    "libcrypto.so.3",
];

/// Packages and the files they hold; of several names the first that the archive has, since releases rename packages.
const PACKAGES: &[(&[&str], &[&str])] = &[
    (&["libc6"], &[LOADER, "libc.so.6", "libm.so.6"]),
    (&["libgcc-s1"], &["libgcc_s.so.1"]),
    (&["zlib1g"], &["libz.so.1"]),
    (&["liblzma5"], &["liblzma.so.5"]),
    (&["libsqlite3-0"], &["libsqlite3.so.0"]),
    (&["liblua5.4-0"], &["liblua5.4.so.0"]),
    // libcrypto needs it in newer releases.
    (&["libzstd1"], &["libzstd.so.1"]),
    (&["libssl3t64", "libssl3"], &["libcrypto.so.3"]),
];

/// The libraries, ready to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libraries {
    /// Holds all of [`LIBRARIES`].
    pub folder: PathBuf,
    /// Packages and versions, as in `libc6 2.36-9, zlib1g 1:1.2.13`.
    pub version: String,
}

impl Libraries {
    /// The file of one of [`LIBRARIES`].
    pub fn file(&self, soname: &str) -> PathBuf {
        self.folder.join(soname)
    }
}

/// The libraries from the cache, without any network; nothing where they are absent or damaged.
pub fn cached_libraries() -> Option<Libraries> {
    from_cache(&Cache::open(FOLDER).ok()?)
}

/// The libraries from the cache, else fetched, all of the release that the host's apt prefers: what the host's compiler
/// links runs with them. `progress` gets one-line messages for the user.
///
/// # Errors
/// See [`FetchError`]; the cache is unchanged then.
pub fn fetch_libraries(progress: &mut dyn FnMut(&str)) -> Result<Libraries, FetchError> {
    let cache = Cache::open(FOLDER)?;
    let packages = Packages {
        architecture: "amd64",
        download: |apt: &Apt<'_>, progress: &mut dyn FnMut(&str)| download(apt, progress),
        store: |(debs, version): (Vec<PathBuf>, String)| {
            let mut files = Vec::new();
            for (deb, (_, sonames)) in debs.iter().zip(PACKAGES) {
                for soname in *sonames {
                    files.push((*soname, extract(deb, soname)?));
                }
            }
            let files: Vec<_> = files.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
            cache.store(&version, &[], &files)
        },
    };
    obtain(&cache, || from_cache(&cache), packages, progress)
}

fn from_cache(cache: &Cache) -> Option<Libraries> {
    let manifest = cache.verified(LIBRARIES)?;
    // The one file here that is started.
    fs::set_permissions(cache.file(LOADER), Permissions::from_mode(0o755)).ok()?;
    Some(Libraries { folder: cache.folder().to_owned(), version: manifest.version })
}

/// Files of all [`PACKAGES`], and their names with versions.
fn download(apt: &Apt<'_>, progress: &mut dyn FnMut(&str)) -> Result<(Vec<PathBuf>, String), FetchError> {
    if apt.lists() == Lists::Host {
        progress("asking apt for the libraries of the user-space suite");
    }
    let found = PACKAGES.iter().map(|(names, _)| show_first(apt, names)).collect::<Result<Vec<_>, _>>()?;
    let size = mebibytes(&found.iter().collect::<Vec<_>>());
    progress(&format!("downloading {} packages with libraries ({size:.1} MiB)", found.len()));
    apt.download(&found.iter().map(|package| package.name.as_str()).collect::<Vec<_>>())?;
    let debs = found.iter().map(|package| apt.downloaded(&package.name)).collect::<Result<_, _>>()?;
    let versions: Vec<_> = found.iter().map(|p| format!("{} {}", p.name, p.version)).collect();
    Ok((debs, versions.join(", ")))
}

/// The first of these packages that the archive has; the error is that of the last.
pub(super) fn show_first(apt: &Apt<'_>, names: &[&str]) -> Result<Package, FetchError> {
    let (last, others) = names.split_last().ok_or_else(|| FetchError::NoPackage(String::new()))?;
    others.iter().find_map(|name| apt.show(name).ok()).map_or_else(|| apt.show(last), Ok)
}

/// The library of that soname. Its file may have more of the version in its name; the soname then is a link to it.
fn extract(deb: &Path, soname: &str) -> Result<Vec<u8>, FetchError> {
    deb::extract(deb, &|path| is_library(path, soname))
}

fn is_library(path: &str, soname: &str) -> bool {
    let Some((folder, file)) = path.rsplit_once('/') else { return false };
    let rest = file.strip_prefix(soname);
    // Releases differ in whether /lib is a link to /usr/lib.
    folder.ends_with("lib/x86_64-linux-gnu") && rest.is_some_and(|r| r.is_empty() || r.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_library_comes_from_one_package() {
        let held: Vec<_> = PACKAGES.iter().flat_map(|(_, files)| files.iter()).collect();
        // In the manifest's order, which is the order of storing.
        assert_eq!(held, LIBRARIES.iter().collect::<Vec<_>>());
    }

    #[test]
    fn libraries_are_told_from_their_neighbours() {
        assert!(is_library("lib/x86_64-linux-gnu/libz.so.1.2.13", "libz.so.1"));
        assert!(is_library("usr/lib/x86_64-linux-gnu/libcrypto.so.3", "libcrypto.so.3"));
        for other in [
            "usr/lib/x86_64-linux-gnu/liblua5.4-c++.so.0.0.0",
            "usr/lib/x86_64-linux-gnu/liblua5.4.so.01",
            "usr/lib/x86_64-linux-gnu/more/liblua5.4.so.0",
            "liblua5.4.so.0",
        ] {
            assert!(!is_library(other, "liblua5.4.so.0"), "{other}");
        }
    }
}
