//! Kernel modules out of a kernel's package, with the modules they need.

use super::{FetchError, deb};
use crate::kernel_module::{KernelModule, canonical};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{io, thread};

/// Drivers of what a Gearshift machine can have, and what they need. What a kernel has built in is no module of its package; of
/// Debian's kernels the one for virtual machines has ext4 built in, the others have it as a module.
pub(super) const DRIVERS: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "virtiofs",
    "ext4",
];
/// What those need in known releases. The package is read once for all that is named at once, and again for what is
/// needed besides.
const KNOWN_NEEDS: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "net_failover",
    "failover",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "fuse",
    "jbd2",
    "mbcache",
    "crc16",
];

/// The modules of these names and all they need. Of the `optional` ones those that there are.
pub(super) fn extract(
    package: &Path,
    required: &[String],
    optional: &[String],
) -> Result<Vec<KernelModule>, FetchError> {
    let mut found: BTreeMap<String, KernelModule> = BTreeMap::new();
    let mut missing: Vec<String> = required.iter().chain(optional).cloned().collect();
    let mut guessed: Vec<String> = KNOWN_NEEDS.iter().map(|name| (*name).to_owned()).collect();
    let mut may_lack = optional.to_vec();
    while !missing.is_empty() {
        let guesses = std::mem::take(&mut guessed);
        let wanted = |path: &str| {
            module_name(path).is_some_and(|name| missing.contains(&name) || guesses.contains(&name))
        };
        for (path, bytes) in deb::extract_some(package, &wanted, missing.len() + guesses.len())? {
            let bytes = if path.ends_with(".xz") {
                unpack(bytes).map_err(|error| deb::bad(package, format!("{path}: xz: {error}")))?
            } else {
                bytes
            };
            let module = module_name(&path).map(|name| KernelModule::new(&name, bytes));
            found.extend(module.map(|module| (module.name().to_owned(), module)));
        }
        if let Some(name) = missing.iter().find(|name| !found.contains_key(*name) && !may_lack.contains(name))
        {
            return Err(deb::bad(package, format!("has no module {name}")));
        }
        // What an optional one needs must be there.
        may_lack.clear();
        missing = found.values().flat_map(KernelModule::depends).collect();
        missing.sort();
        missing.dedup();
        missing.retain(|name| !found.contains_key(name));
    }
    Ok(found.into_values().collect())
}

/// The module in a file of this path.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    file.strip_suffix(".xz").unwrap_or(file).strip_suffix(KernelModule::SUFFIX).map(canonical)
}

/// Newer releases compress their modules.
fn unpack(packed: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut xz = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let input = xz.stdin.take();
    // On a thread of its own: each side of the pipe would wait for the other. That xz does not read it all is seen by
    // its status.
    let writer = thread::spawn(move || input.map(|mut input| input.write_all(&packed)));
    let output = xz.wait_with_output()?;
    // Only a panic could be lost here, and it would have been of no consequence.
    drop(writer.join());
    if output.status.success() { Ok(output.stdout) } else { Err(io::Error::other("it is damaged")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels() {
        let name = |path| module_name(path);
        assert_eq!(name("lib/modules/6.1/kernel/arch/x86/kvm/kvm-amd.ko").as_deref(), Some("kvm_amd"));
        assert_eq!(name("lib/modules/6.12/kernel/virt/lib/irqbypass.ko.xz").as_deref(), Some("irqbypass"));
        assert_eq!(name("boot/vmlinuz-6.1"), None);
    }

    #[test]
    fn what_xz_refuses_is_an_error() {
        // Larger than a pipe holds, so that writer and reader must work side by side.
        assert!(unpack(vec![b'x'; 1 << 20]).is_err());
    }
}
