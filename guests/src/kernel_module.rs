//! Linux kernel modules: what they say of themselves, and the files that `modprobe` finds them by.
//!
//! A kernel's package has no `modules.dep` (depmod writes that where the package is installed), but each module names what it
//! needs, what it is a driver of and which kernel it is for in its `.modinfo` section, as NUL-terminated `key=value` strings.

use std::collections::BTreeMap;

/// A module, ready for `insmod`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelModule {
    name: String,
    bytes: Vec<u8>,
}

impl KernelModule {
    /// How a module's file ends.
    pub(crate) const SUFFIX: &str = ".ko";

    /// The module in a file's content; `name` with `-` or `_`.
    pub fn new(name: &str, bytes: Vec<u8>) -> Self {
        Self { name: canonical(name), bytes }
    }

    /// As the kernel spells it, with `_` for `-`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file's content.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Name of its file.
    pub(crate) fn file_name(&self) -> String {
        file_name(&self.name)
    }

    /// Values of a key in `.modinfo`.
    fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = String> + 'a {
        let texts = self.bytes.split(|byte| *byte == 0);
        let values = texts.filter_map(move |text| text.strip_prefix(key.as_bytes())?.strip_prefix(b"="));
        values.map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// Names of the modules that it needs itself.
    pub(crate) fn depends(&self) -> Vec<String> {
        let names = self.values("depends").next().unwrap_or_default();
        names.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
    }

    /// The kernel that it is for, as `uname -r` says it.
    fn release(&self) -> Option<String> {
        // "6.1.0-1-amd64 SMP preempt mod_unload modversions"
        self.values("vermagic").next()?.split(' ').next().map(str::to_owned)
    }
}

/// The name of a module's file.
pub(crate) fn file_name(name: &str) -> String {
    format!("{}{}", canonical(name), KernelModule::SUFFIX)
}

/// Files and kernel mean the same module by `-` and `_`.
pub(crate) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// All of them, each behind those that it needs.
pub(crate) fn in_order(modules: Vec<KernelModule>) -> Vec<KernelModule> {
    let mut left: BTreeMap<String, KernelModule> =
        modules.into_iter().map(|module| (module.name.clone(), module)).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let ready =
            |(_, module): &(&String, &KernelModule)| !module.depends().iter().any(|d| left.contains_key(d));
        // depmod refuses cycles. In one, any module is as good as another.
        let next = left.iter().find(ready).or_else(|| left.iter().next());
        let Some(name) = next.map(|(name, _)| name.clone()) else { break };
        order.extend(left.remove(&name));
    }
    order
}

/// Those of `modules` that have these names and those that they need, in the order they load.
pub(crate) fn needed(modules: &[KernelModule], names: &[String]) -> Vec<KernelModule> {
    let mut found: BTreeMap<&str, &KernelModule> = BTreeMap::new();
    let mut missing: Vec<String> = names.to_vec();
    while let Some(name) = missing.pop() {
        let module = modules.iter().find(|module| module.name == name);
        if let Some(module) = module.filter(|module| !found.contains_key(module.name())) {
            found.insert(module.name(), module);
            missing.extend(module.depends());
        }
    }
    in_order(found.into_values().cloned().collect())
}

/// The folder of a kernel's modules.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Its name below `lib/modules`, which is the kernel's release.
    pub(crate) release: String,
    /// Name and content of its files: the modules, `modules.dep` and `modules.alias` (depmod(8)).
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

/// The folder of these modules. Nothing where there are none.
pub(crate) fn tree(modules: &[KernelModule]) -> Option<Tree> {
    // It becomes part of a path.
    let plain = |release: &String| !release.is_empty() && !release.starts_with('.') && !release.contains('/');
    let release = modules.iter().find_map(KernelModule::release).filter(plain)?;
    let (mut dep, mut alias) =
        (String::new(), String::from("# Aliases extracted from modules themselves.\n"));
    let mut files = Vec::new();
    for module in modules {
        // modprobe loads the last one first.
        let mut order = needed(modules, std::slice::from_ref(&module.name));
        order.retain(|other| other.name != module.name);
        let needs: String = order.iter().rev().map(|other| format!(" {}", other.file_name())).collect();
        dep += &format!("{}:{needs}\n", module.file_name());
        for pattern in module.values("alias") {
            alias += &format!("alias {pattern} {}\n", module.name);
        }
        files.push((module.file_name(), module.bytes.clone()));
    }
    files.push(("modules.dep".to_owned(), dep.into_bytes()));
    files.push(("modules.alias".to_owned(), alias.into_bytes()));
    Some(Tree { release, files })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, depends: &str) -> KernelModule {
        let info = format!(
            "\x7fELF\0license=GPL\0alias=virtio:d0000{name}v*\0depends={depends}\0name=x\0vermagic=6.1.0-1 SMP \0"
        );
        KernelModule::new(name, info.into_bytes())
    }

    fn names(modules: &[KernelModule]) -> Vec<&str> {
        modules.iter().map(KernelModule::name).collect()
    }

    #[test]
    fn dependencies_load_first() {
        let named = [("kvm-amd", "kvm,ccp"), ("kvm", "irqbypass"), ("ccp", ""), ("irqbypass", ""), ("z", "")];
        let all = in_order(named.map(|(name, needs)| module(name, needs)).into());
        assert_eq!(names(&all), ["ccp", "irqbypass", "kvm", "kvm_amd", "z"]);
        assert_eq!(names(&needed(&all, &["kvm_amd".into()])), ["ccp", "irqbypass", "kvm", "kvm_amd"]);
        assert_eq!(
            names(&needed(&all, &["z".into(), "absent".into(), "kvm".into()])),
            ["irqbypass", "kvm", "z"]
        );
        // Cycles end, too.
        let cycle = vec![module("a", "b"), module("b", "a")];
        assert_eq!(needed(&cycle, &["a".into()]).len(), 2);
    }

    #[test]
    fn what_modules_say_is_read() {
        assert_eq!(module("x", "a-b,c").depends(), ["a_b", "c"]);
        assert_eq!(KernelModule::new("x", b"nothing".to_vec()).depends(), Vec::<String>::new());
        assert_eq!(module("x", "").release().as_deref(), Some("6.1.0-1"));
    }

    #[test]
    fn modprobe_finds_what_is_needed() {
        let Tree { release, files } =
            tree(&[module("ring", ""), module("net", "fail-over,ring"), module("fail-over", "ring")])
                .unwrap();
        assert_eq!(release, "6.1.0-1");
        let text = |name: &str| {
            let (_, bytes) = files.iter().find(|(file, _)| file == name).unwrap();
            String::from_utf8(bytes.clone()).unwrap()
        };
        assert_eq!(text("modules.dep"), "ring.ko:\nnet.ko: fail_over.ko ring.ko\nfail_over.ko: ring.ko\n");
        assert!(text("modules.alias").contains("\nalias virtio:d0000netv* net\n"));
        assert_eq!(tree(&[]), None);
        let outside = KernelModule::new("x", b"\0vermagic=../../etc SMP\0".to_vec());
        assert_eq!(tree(&[outside]), None);
    }
}
