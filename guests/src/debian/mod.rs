//! The default guest: Debian's kernel and an initial RAM file system around Debian's static busybox.
//!
//! 1. The packages come through the host's own apt: its sources, keyrings, proxies and pins, but with private state
//!    and cache folders, so no root is needed and nothing of the host changes. apt verifies what it downloads against
//!    the archive's signature; hosts without apt get [`FetchError::NoTool`].
//! 2. The host's package lists are used where they know the packages. Where they do not, or are so
//!    old that the archive no longer has what they name, fresh lists are fetched into a private folder.
//! 3. What is kept lies in the user's cache folder (`$GEARSHIFT_CACHE`, else `$XDG_CACHE_HOME/gearshift`,
//!    else `~/.cache/gearshift`), with a manifest of SHA-256 sums that is checked at every use: a damaged entry counts
//!    as absent and is fetched again. Files appear by renaming, under a lock, manifest last.
//! 4. [`fetch_libraries`] obtains libraries for programs in user space in the same way, [`fetch_xen`] the Xen hypervisor.
//! 5. The initramfs is not kept by the manifest: it is [`crate::initramfs`] around the cached busybox, written anew
//!    whenever it differs from what this version of the library makes.

mod apt;
mod cache;
mod deb;
mod libraries;
mod modules;
mod xen;

use crate::initramfs::{Compression, Initramfs};
use apt::{Apt, Lists, Package};
use cache::Cache;
use std::io;
use std::path::PathBuf;

pub use libraries::{LIBRARIES, LOADER, Libraries, cached_libraries, fetch_libraries};
pub use xen::{Xen, fetch_xen};

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// For virtual machines: package `linux-image-cloud-amd64`.
    Cloud,
    /// For any PC: package `linux-image-amd64`.
    Generic,
    /// 32 bits: package `linux-image-686`. Debian 12 is the last release that has it.
    I386,
}

impl Flavour {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cloud, Self::Generic, Self::I386];

    /// Short name: `cloud`, `generic` or `i386`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
            Self::I386 => "i386",
        }
    }

    /// The package whose dependency is the newest kernel.
    fn package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Generic => "linux-image-amd64",
            Self::I386 => "linux-image-686",
        }
    }

    fn architecture(self) -> &'static str {
        match self {
            Self::Cloud | Self::Generic => "amd64",
            Self::I386 => "i386",
        }
    }
}

impl std::str::FromStr for Flavour {
    type Err = UnknownFlavour;

    fn from_str(name: &str) -> Result<Self, UnknownFlavour> {
        Self::ALL.into_iter().find(|f| f.name() == name).ok_or_else(|| UnknownFlavour(name.to_owned()))
    }
}

/// Not the name of a [`Flavour`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown kernel flavour {0:?}: there are cloud, generic and i386")]
pub struct UnknownFlavour(pub String);

/// Files of a guest, ready to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultGuest {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM file system: a shell on the console (see [`crate::initramfs`]).
    pub initrd: PathBuf,
    /// Debian's static busybox, to build another initial RAM file system.
    pub busybox: PathBuf,
    /// Modules of this kernel that [`fetch_with_modules`] was once asked for, with those they need, in the order they
    /// load.
    pub modules: Vec<PathBuf>,
    /// Package and version of the kernel, as in `linux-image-6.1.0-1-cloud-amd64 6.1.1-1`.
    pub version: String,
}

/// Why there is no default guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The host is no Debian, or a derivative without these.
    #[error("this host has no {0}, which fetches and unpacks Debian's packages")]
    NoTool(&'static str),
    /// Nothing could be fetched.
    #[error("the package archive could not be reached: {0}")]
    Network(String),
    /// The archive answered, and has no such package.
    #[error("the package archives of this host have no {0}")]
    NoPackage(String),
    /// apt failed for another reason.
    #[error("apt failed: {0}")]
    Apt(String),
    /// A package is damaged or does not hold what it should.
    #[error("package {package}: {reason}")]
    BadArchive {
        /// Name of the package.
        package: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither `GEARSHIFT_CACHE`, `XDG_CACHE_HOME` nor `HOME` names an absolute path.
    #[error("no cache folder: neither GEARSHIFT_CACHE, XDG_CACHE_HOME nor HOME is an absolute path")]
    NoCacheFolder,
    /// The cache folder cannot be written or read.
    #[error("cache folder {path}: {source}")]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The guest from the cache, without any network; nothing where it is absent or damaged.
pub fn cached(flavour: Flavour) -> Option<DefaultGuest> {
    let cache = Cache::open(flavour.name()).ok()?;
    from_cache(&cache)
}

/// The guest from the cache, else fetched. `progress` gets one-line messages for the user.
///
/// Gives up after about 20 seconds in which nothing arrives.
///
/// # Errors
/// See [`FetchError`]; the cache is unchanged then.
pub fn fetch(flavour: Flavour, progress: &mut dyn FnMut(&str)) -> Result<DefaultGuest, FetchError> {
    fetch_with_modules(flavour, &[], progress)
}

/// As [`fetch`], with kernel modules of these names (`kvm-amd`) and those they need. Where the cache has the guest
/// without them, all of it is fetched again: modules are for exactly the kernel they were built with.
///
/// # Errors
/// See [`FetchError`]; the cache is unchanged then.
pub fn fetch_with_modules(
    flavour: Flavour,
    names: &[&str],
    progress: &mut dyn FnMut(&str),
) -> Result<DefaultGuest, FetchError> {
    let cache = Cache::open(flavour.name())?;
    let files: Vec<_> = names.iter().map(|name| cache.file(&modules::file_name(name))).collect();
    let complete = |guest: &DefaultGuest| files.iter().all(|file| guest.modules.contains(file));
    let packages = Packages {
        architecture: flavour.architecture(),
        download: |apt: &Apt<'_>, progress: &mut dyn FnMut(&str)| download(apt, flavour, progress),
        store: |(kernel_deb, busybox_deb, version): (PathBuf, PathBuf, String)| {
            let kernel = deb::extract(&kernel_deb, &|path| path.starts_with("boot/vmlinuz-"))?;
            let busybox =
                deb::extract(&busybox_deb, &|path| path == "bin/busybox" || path == "usr/bin/busybox")?;
            let modules = modules::extract(&kernel_deb, names)?;
            let modules: Vec<_> = modules.iter().map(|m| (m.file_name(), &m.bytes[..])).collect();
            let mut files = vec![(KERNEL, &kernel[..]), (BUSYBOX, &busybox[..])];
            files.extend(modules.iter().map(|(name, bytes)| (name.as_str(), *bytes)));
            cache.store(&version, &files)
        },
    };
    obtain(&cache, || from_cache(&cache).filter(complete), packages, progress)
}

/// What fills a folder of the cache.
struct Packages<D, S> {
    architecture: &'static str,
    /// Gets packages through apt; done again with fresh package lists where the host's may be at fault.
    download: D,
    /// Stores what is wanted of them.
    store: S,
}

/// What `have` finds in the cache, else in what `packages` put there.
fn obtain<T, P, D, S>(
    cache: &Cache,
    have: impl Fn() -> Option<T>,
    packages: Packages<D, S>,
    progress: &mut dyn FnMut(&str),
) -> Result<T, FetchError>
where
    D: Fn(&Apt<'_>, &mut dyn FnMut(&str)) -> Result<P, FetchError>,
    S: FnOnce(P) -> Result<(), FetchError>,
{
    if let Some(found) = have() {
        return Ok(found);
    }
    cache.create()?;
    let _lock = cache.lock(progress)?;
    // Another process may have fetched it while this one waited.
    if let Some(found) = have() {
        return Ok(found);
    }
    let scratch = cache.scratch()?;
    let mut apt = Apt::new(scratch.path(), packages.architecture)?;
    let downloaded = match (packages.download)(&apt, progress) {
        Ok(done) => done,
        Err(error) if !lists_may_be_old(&error) => return Err(error),
        Err(_) => {
            progress("fetching the archive's package lists (into a private folder)");
            apt.update()?;
            (packages.download)(&apt, progress)?
        }
    };
    progress("unpacking");
    (packages.store)(downloaded)?;
    have().ok_or_else(|| FetchError::Cache {
        path: cache.folder().to_owned(),
        source: io::Error::other("what was just written does not read back"),
    })
}

/// Whether new package lists can help: the archive answered with something else than the lists promise, or they do
/// not have the package. An archive that cannot be reached is not asked twice.
fn lists_may_be_old(error: &FetchError) -> bool {
    match error {
        FetchError::NoPackage(_) | FetchError::Apt(_) => true,
        FetchError::Network(reason) => reason.contains("404") || reason.contains("mismatch"),
        _ => false,
    }
}

/// Package of the static busybox.
const BUSYBOX_STATIC: &str = "busybox-static";

/// Files of the kernel's and busybox's package, and the kernel's name with version.
fn download(
    apt: &Apt<'_>,
    flavour: Flavour,
    progress: &mut dyn FnMut(&str),
) -> Result<(PathBuf, PathBuf, String), FetchError> {
    if apt.lists() == Lists::Host {
        progress(&format!("asking apt for {} and {BUSYBOX_STATIC}", flavour.package()));
    }
    let kernel = apt.kernel_behind(flavour.package())?;
    let busybox = apt.show(BUSYBOX_STATIC)?;
    let size = mebibytes(&[&kernel, &busybox]);
    progress(&format!("downloading {} {} and {BUSYBOX_STATIC} ({size:.1} MiB)", kernel.name, kernel.version));
    apt.download(&[&kernel.name, BUSYBOX_STATIC])?;
    let version = format!("{} {}", kernel.name, kernel.version);
    Ok((apt.downloaded(&kernel.name)?, apt.downloaded(BUSYBOX_STATIC)?, version))
}

/// Size of packages together.
fn mebibytes(packages: &[&Package]) -> f64 {
    packages.iter().map(|package| package.size as f64).sum::<f64>() / f64::from(1 << 20)
}

const KERNEL: &str = "vmlinuz";
const BUSYBOX: &str = "busybox";
const INITRD: &str = "initrd.img";

/// Checks the manifest and brings the initramfs up to date.
fn from_cache(cache: &Cache) -> Option<DefaultGuest> {
    let required = [KERNEL, BUSYBOX];
    let manifest = cache.verified(&required)?;
    write_initrd(cache, &cache.read(BUSYBOX)?).ok()?;
    Some(DefaultGuest {
        kernel: cache.file(KERNEL),
        initrd: cache.file(INITRD),
        busybox: cache.file(BUSYBOX),
        modules: manifest.optional(required.len()).map(|file| cache.file(file)).collect(),
        version: manifest.version,
    })
}

/// Not compressed: a guest unpacks two megabytes for nothing else, and unpacking is slow on a software processor.
fn write_initrd(cache: &Cache, busybox: &[u8]) -> Result<(), FetchError> {
    let archive = Initramfs::new(busybox).build(Compression::None);
    if cache.read(INITRD).is_some_and(|present| present == archive) {
        return Ok(());
    }
    cache.write(INITRD, &archive)
}
