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
//! 5. The initramfs is not kept by the manifest: it is [`crate::initramfs`] around the cached busybox and the kernel's modules for
//!    virtio devices, written anew whenever it differs from what this version of the library makes.

mod apt;
mod cache;
mod deb;
mod libraries;
mod modules;
mod xen;

use crate::initramfs::{Compression, Initramfs};
use crate::kernel_module::{KernelModule, canonical, needed};
use apt::{Apt, Lists, Package};
use cache::Cache;
use modules::DRIVERS;
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
    /// Modules of this kernel that [`fetch_with_modules`] was asked for, with those they need, in the order they load. The
    /// drivers of what a machine here can have are in the initial RAM file system.
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
    from_cache(&cache_of(flavour).ok()?, &[])
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
/// without them, all of it is fetched again, with what others have asked for: modules are for exactly the kernel they were
/// built with.
///
/// # Errors
/// See [`FetchError`]; the cache is unchanged then.
pub fn fetch_with_modules(
    flavour: Flavour,
    names: &[&str],
    progress: &mut dyn FnMut(&str),
) -> Result<DefaultGuest, FetchError> {
    let cache = cache_of(flavour)?;
    let names: Vec<String> = names.iter().map(|name| canonical(name)).collect();
    let packages = Packages {
        architecture: flavour.architecture(),
        download: |apt: &Apt<'_>, progress: &mut dyn FnMut(&str)| download(apt, flavour, progress),
        store: |(kernel_deb, busybox_deb, version): (PathBuf, PathBuf, String)| {
            let kernel = deb::extract(&kernel_deb, &|path| path.starts_with("boot/vmlinuz-"))?;
            let busybox =
                deb::extract(&busybox_deb, &|path| path == "bin/busybox" || path == "usr/bin/busybox")?;
            // The lock is held: nobody else adds to what was asked for.
            let before = cache.verified(&REQUIRED).map(|manifest| manifest.modules).unwrap_or_default();
            let drivers = DRIVERS.iter().map(|name| (*name).to_owned());
            let mut optional: Vec<String> = before.into_iter().chain(drivers).collect();
            optional.retain(|name| !names.contains(name));
            let modules = modules::extract(&kernel_deb, &names, &optional)?;
            let mut asked = [names.clone(), optional].concat();
            asked.sort();
            asked.dedup();
            let modules: Vec<_> = modules.iter().map(|m| (m.file_name(), m.bytes())).collect();
            let mut files = vec![(KERNEL, &kernel[..]), (BUSYBOX, &busybox[..])];
            files.extend(modules.iter().map(|(name, bytes)| (name.as_str(), *bytes)));
            cache.store(&version, &asked, &files)
        },
    };
    obtain(&cache, || from_cache(&cache, &names), packages, progress)
}

/// Where a flavour's files lie.
fn cache_of(flavour: Flavour) -> Result<Cache, FetchError> {
    Cache::open(&format!("guest-{}", flavour.name()))
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
/// What there must be.
const REQUIRED: [&str; 2] = [KERNEL, BUSYBOX];

/// Checks the manifest and brings the initramfs up to date. Nothing if drivers are missing, or modules of these names.
fn from_cache(cache: &Cache, names: &[String]) -> Option<DefaultGuest> {
    let manifest = cache.verified(&REQUIRED)?;
    let asked = |name: &str| manifest.modules.iter().any(|asked| asked == name);
    if !names.iter().all(|name| asked(name)) || !DRIVERS.iter().all(|name| asked(name)) {
        return None;
    }
    let module = |file: &str| {
        let name = file.strip_suffix(KernelModule::SUFFIX)?;
        Some(KernelModule::new(name, cache.read(file)?))
    };
    let modules: Vec<_> = manifest.optional(REQUIRED.len()).map(module).collect::<Option<_>>()?;
    let drivers: Vec<_> = DRIVERS.iter().map(|name| (*name).to_owned()).collect();
    write_initrd(cache, &cache.read(BUSYBOX)?, &needed(&modules, &drivers)).ok()?;
    Some(DefaultGuest {
        kernel: cache.file(KERNEL),
        initrd: cache.file(INITRD),
        busybox: cache.file(BUSYBOX),
        modules: needed(&modules, names).iter().map(|module| cache.file(&module.file_name())).collect(),
        version: manifest.version,
    })
}

/// Not compressed: a guest unpacks three megabytes for nothing else, and unpacking is slow on a software processor.
fn write_initrd(cache: &Cache, busybox: &[u8], drivers: &[KernelModule]) -> Result<(), FetchError> {
    let archive = Initramfs::new(busybox).modules(drivers).build(Compression::None);
    if cache.read(INITRD).is_some_and(|present| present == archive) {
        return Ok(());
    }
    cache.write(INITRD, &archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, depends: &str) -> (String, Vec<u8>) {
        let info = format!("\0depends={depends}\0vermagic=6.1.0-1 SMP\0");
        (format!("{name}.ko"), info.into_bytes())
    }

    /// Callers with different sets of modules find theirs in one entry, each in the order they load.
    #[test]
    fn one_entry_serves_all_who_asked() {
        let folder = std::env::temp_dir().join(format!("gearshift-entry-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let cache = Cache::at(folder.clone());
        let modules =
            [module("kvm", "irqbypass"), module("irqbypass", ""), module("virtio_pci", "a"), module("a", "")];
        let mut files: Vec<(&str, &[u8])> = vec![(KERNEL, b"kernel"), (BUSYBOX, b"busybox")];
        files.extend(modules.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])));
        let drivers: Vec<String> = DRIVERS.iter().map(|name| (*name).to_owned()).collect();
        let kvm = ["kvm".to_owned()];
        // An entry from before there were drivers in it is none.
        cache.store("v", &kvm, &files).unwrap();
        assert_eq!(from_cache(&cache, &kvm), None);
        cache.store("v", &[&drivers[..], &kvm].concat(), &files).unwrap();
        let names = |names: &[String]| from_cache(&cache, names).map(|guest| guest.modules);
        let file = |name: &str| cache.file(&format!("{name}.ko"));
        assert_eq!(names(&[]), Some(vec![]));
        assert_eq!(names(&kvm), Some(vec![file("irqbypass"), file("kvm")]));
        // ext4 was asked for, and the kernel has it built in.
        assert_eq!(names(&["ext4".to_owned()]), Some(vec![]));
        assert_eq!(names(&["ccp".to_owned()]), None);
        let initrd = std::fs::read(cache.file(INITRD)).unwrap();
        let holds = |name: &str| initrd.windows(name.len()).any(|window| window == name.as_bytes());
        assert!(holds("lib/modules/6.1.0-1/virtio_pci.ko") && holds("lib/modules/6.1.0-1/a.ko"));
        assert!(!holds("kvm.ko"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
