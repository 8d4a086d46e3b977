//! Kernels without an entry, where Debian puts them: links in / or /boot, else the newest `vmlinuz-VERSION`.

use crate::files::Files;
use crate::{Entry, bls};

/// Links to the kernel of today, and to its initial RAM disk.
const LINKS: [(&str, &str); 2] = [("/vmlinuz", "/initrd.img"), ("/boot/vmlinuz", "/boot/initrd.img")];
/// How initial RAM disks begin, by distribution, in front of the version.
const INITRDS: [&str; 2] = ["initrd.img-", "initramfs-"];

/// Whether a file system is the root of a Linux.
pub(crate) fn is_root(files: &Files) -> bool {
    ["/sbin/init", "/usr/sbin/init", "/usr/lib/os-release", "/etc/os-release"]
        .iter()
        .any(|path| files.exists(path))
}

/// The entry of a kernel on `files`, with `root` as the root's device.
pub(crate) fn entry(files: &Files, root: Option<&str>) -> Option<Entry> {
    let (kernel, initrd) = linked(files).or_else(|| newest(files))?;
    let cmdline = root.map(|root| format!("root={root} ro")).unwrap_or_default();
    Some(Entry { title: kernel.clone(), kernel, initrd: initrd.into_iter().collect(), cmdline })
}

fn linked(files: &Files) -> Option<(String, Option<String>)> {
    LINKS
        .iter()
        .find(|(kernel, _)| files.exists(kernel))
        .map(|(kernel, initrd)| ((*kernel).to_owned(), files.exists(initrd).then(|| (*initrd).to_owned())))
}

fn newest(files: &Files) -> Option<(String, Option<String>)> {
    ["/boot", ""].iter().find_map(|folder| {
        let names = files.names(folder);
        let mut kernels: Vec<String> = names
            .iter()
            .filter(|name| name.starts_with("vmlinuz-") && !name.contains("rescue"))
            .cloned()
            .collect();
        bls::newest_first(&mut kernels);
        let kernel = kernels.first()?;
        let version = kernel.trim_start_matches("vmlinuz-");
        let candidates =
            INITRDS.iter().flat_map(|start| [format!("{start}{version}"), format!("{start}{version}.img")]);
        let initrd = candidates.into_iter().find(|name| names.contains(name));
        Some((format!("{folder}/{kernel}"), initrd.map(|name| format!("{folder}/{name}"))))
    })
}
