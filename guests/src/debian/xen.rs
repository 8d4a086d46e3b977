//! The Xen hypervisor, which kernels of Debian's run on as its first domain.

use super::apt::{Apt, Lists};
use super::cache::Cache;
use super::libraries::show_first;
use super::{FetchError, Packages, deb, mebibytes, obtain};
use flate2::read::GzDecoder;
use std::io::Read as _;
use std::path::PathBuf;

/// Name of the cache's folder, and of the file in it.
const XEN: &str = "xen";
/// One package a release of Debian; of several the first that the archive has.
const PACKAGES: &[&str] = &["xen-hypervisor-4.17-amd64", "xen-hypervisor-4.20-amd64"];
/// It is about 3 MiB; a damaged file must not ask for all memory.
const IMAGE_MAX: u64 = 64 << 20;

/// The hypervisor, ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xen {
    /// An ELF file with a multiboot header, unpacked.
    pub image: PathBuf,
    /// Package and version, as in `xen-hypervisor-4.17-amd64 4.17.5-1`.
    pub version: String,
}

/// Xen from the cache, else fetched. `progress` gets one-line messages for the user.
///
/// # Errors
/// See [`FetchError`]; the cache is unchanged then.
pub fn fetch_xen(progress: &mut dyn FnMut(&str)) -> Result<Xen, FetchError> {
    let cache = Cache::open(XEN)?;
    let packages = Packages {
        architecture: "amd64",
        download: |apt: &Apt<'_>, progress: &mut dyn FnMut(&str)| download(apt, progress),
        store: |(package, version): (PathBuf, String)| {
            let packed = deb::extract(&package, &is_image)?;
            let mut image = Vec::new();
            GzDecoder::new(&packed[..])
                .take(IMAGE_MAX)
                .read_to_end(&mut image)
                .map_err(|error| deb::bad(&package, format!("its hypervisor cannot be unpacked: {error}")))?;
            cache.store(&version, &[], &[(XEN, &image[..])])
        },
    };
    obtain(&cache, || from_cache(&cache), packages, progress)
}

fn from_cache(cache: &Cache) -> Option<Xen> {
    let manifest = cache.verified(&[XEN])?;
    Some(Xen { image: cache.file(XEN), version: manifest.version })
}

fn download(apt: &Apt<'_>, progress: &mut dyn FnMut(&str)) -> Result<(PathBuf, String), FetchError> {
    if apt.lists() == Lists::Host {
        progress("asking apt for the Xen hypervisor");
    }
    let xen = show_first(apt, PACKAGES)?;
    progress(&format!("downloading {} {} ({:.1} MiB)", xen.name, xen.version, mebibytes(&[&xen])));
    apt.download(&[&xen.name])?;
    Ok((apt.downloaded(&xen.name)?, format!("{} {}", xen.name, xen.version)))
}

/// Whether a file of the package is the hypervisor for multiboot loaders; there is one for UEFI beside it.
fn is_image(path: &str) -> bool {
    path.strip_prefix("boot/xen-").is_some_and(|rest| rest.ends_with(".gz"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_told_from_its_neighbours() {
        assert!(is_image("boot/xen-4.17-amd64.gz"));
        for other in ["boot/xen-4.17-amd64.efi", "boot/xen-4.17-amd64.config", "usr/share/doc/xen-4.17.gz"] {
            assert!(!is_image(other), "{other}");
        }
    }
}
