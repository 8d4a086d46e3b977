//! Which kernel module stands behind KVM on this host, or should.

use std::arch::x86_64::__cpuid;

/// What of KVM there is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Provider {
    /// This module is loaded.
    Module(String),
    /// None is; the processor would take this one.
    Processor(&'static str),
    /// None is, and the processor has nothing for one.
    Nothing,
}

impl Provider {
    /// The one of this host.
    pub(crate) fn of_host() -> Self {
        let modules = std::fs::read_dir("/sys/module").into_iter().flatten().flatten();
        let names = modules.filter_map(|entry| entry.file_name().into_string().ok());
        Self::of(names, hardware())
    }

    fn of(modules: impl Iterator<Item = String>, hardware: Option<&'static str>) -> Self {
        let mut modules: Vec<_> = modules.filter(|name| name.starts_with("kvm_")).collect();
        // Distributions may have the modules of both vendors in the kernel; the processor's own is the one at work, and
        // a module beside these is there because neither can be.
        modules
            .sort_by_key(|name| (Some(name.as_str()) != hardware, name == "kvm_intel" || name == "kvm_amd"));
        match (modules.into_iter().next(), hardware) {
            (Some(module), _) => Self::Module(module),
            (None, Some(module)) => Self::Processor(module),
            (None, None) => Self::Nothing,
        }
    }

    /// The module's name, if one is loaded.
    pub(crate) fn module(self) -> Option<String> {
        match self {
            Self::Module(module) => Some(module),
            Self::Processor(_) | Self::Nothing => None,
        }
    }
}

/// The module for this processor: by VMX (Intel SDM vol. 2A, CPUID leaf 1) or SVM (AMD APM vol. 3, Fn8000_0001).
fn hardware() -> Option<&'static str> {
    if __cpuid(1).ecx & 1 << 5 != 0 {
        return Some("kvm_intel");
    }
    let extended = __cpuid(0x8000_0000).eax >= 0x8000_0001;
    (extended && __cpuid(0x8000_0001).ecx & 1 << 2 != 0).then_some("kvm_amd")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_at_work_is_the_processors_own_or_the_odd_one() {
        let of = |modules: &str, hardware| Provider::of(modules.split(' ').map(str::to_owned), hardware);
        let module = |name: &str| Provider::Module(name.to_owned());
        assert_eq!(of("ext4 kvm kvm_intel", Some("kvm_intel")), module("kvm_intel"));
        assert_eq!(of("kvm_intel kvm_amd kvm", Some("kvm_amd")), module("kvm_amd"));
        assert_eq!(of("kvm_amd kvm_pvm kvm", None), module("kvm_pvm"));
        assert_eq!(of("kvm irqbypass", Some("kvm_amd")), Provider::Processor("kvm_amd"));
        assert_eq!(of("", None), Provider::Nothing);
        assert_eq!(of("kvm_pvm", None).module().as_deref(), Some("kvm_pvm"));
    }
}
