//! Kernel modules out of a kernel's package, with the modules they need, in the order they load.
//!
//! A package has no `modules.dep` (depmod writes that where the package is installed), but each module names what it
//! needs in its `.modinfo` section, as NUL-terminated `key=value` strings.

use super::{FetchError, deb};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{io, thread};

/// A module, ready for `insmod`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// As the kernel spells it, with `_` for `-`.
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

impl Module {
    /// How a module's file ends.
    pub(super) const SUFFIX: &str = ".ko";

    pub(super) fn file_name(&self) -> String {
        file_name(&self.name)
    }
}

/// The cache's file for a module.
pub(super) fn file_name(name: &str) -> String {
    format!("{}{}", canonical(name), Module::SUFFIX)
}

/// The modules of these names and all they need, in the order they load.
pub(super) fn extract(package: &Path, names: &[&str]) -> Result<Vec<Module>, FetchError> {
    let mut found: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut missing: Vec<String> = names.iter().map(|name| canonical(name)).collect();
    while !missing.is_empty() {
        let wanted = |path: &str| module_name(path).is_some_and(|name| missing.contains(&name));
        for (path, bytes) in deb::extract_some(package, &wanted, missing.len())? {
            let bytes = if path.ends_with(".xz") {
                unpack(bytes).map_err(|error| deb::bad(package, format!("{path}: xz: {error}")))?
            } else {
                bytes
            };
            found.extend(module_name(&path).map(|name| (name, bytes)));
        }
        if let Some(name) = missing.iter().find(|name| !found.contains_key(*name)) {
            return Err(deb::bad(package, format!("has no module {name}")));
        }
        missing = found.values().flat_map(|bytes| depends(bytes)).collect();
        missing.sort();
        missing.dedup();
        missing.retain(|name| !found.contains_key(name));
    }
    Ok(in_order(found))
}

/// What is needed before what needs it.
fn in_order(mut modules: BTreeMap<String, Vec<u8>>) -> Vec<Module> {
    let mut order = Vec::new();
    while !modules.is_empty() {
        let ready =
            |(_, bytes): &(&String, &Vec<u8>)| !depends(bytes).iter().any(|d| modules.contains_key(d));
        // depmod refuses cycles. In one, any module is as good as another.
        let next = modules.iter().find(ready).or_else(|| modules.iter().next());
        let Some(name) = next.map(|(name, _)| name.clone()) else { break };
        order.extend(modules.remove_entry(&name).map(|(name, bytes)| Module { name, bytes }));
    }
    order
}

/// Files and kernel mean the same module by `-` and `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The module in a file of this path.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    file.strip_suffix(".xz").unwrap_or(file).strip_suffix(Module::SUFFIX).map(canonical)
}

/// Names of the modules that a module needs.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let value = module.split(|byte| *byte == 0).find_map(|text| text.strip_prefix(KEY)).unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
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

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0").into_bytes()
    }

    #[test]
    fn dependencies_load_first() {
        let named = [("kvm_amd", "kvm,ccp"), ("kvm", "irqbypass"), ("ccp", ""), ("irqbypass", "")];
        let order = in_order(named.map(|(name, needs)| (name.to_owned(), module(needs))).into());
        let names: Vec<_> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["ccp", "irqbypass", "kvm", "kvm_amd"]);
        // A cycle ends, too.
        assert_eq!(in_order([("a".to_owned(), module("b")), ("b".to_owned(), module("a"))].into()).len(), 2);
    }

    #[test]
    fn names_are_the_kernels() {
        let name = |path| module_name(path);
        assert_eq!(name("lib/modules/6.1/kernel/arch/x86/kvm/kvm-amd.ko").as_deref(), Some("kvm_amd"));
        assert_eq!(name("lib/modules/6.12/kernel/virt/lib/irqbypass.ko.xz").as_deref(), Some("irqbypass"));
        assert_eq!(name("boot/vmlinuz-6.1"), None);
        assert_eq!(depends(&module("a-b,c")), ["a_b", "c"]);
        assert_eq!(depends(b"nothing"), Vec::<String>::new());
    }

    #[test]
    fn what_xz_refuses_is_an_error() {
        // Larger than a pipe holds, so that writer and reader must work side by side.
        assert!(unpack(vec![b'x'; 1 << 20]).is_err());
    }
}
