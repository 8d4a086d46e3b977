//! The device behind KVM: opened with suspicion, and each refusal told with what helps.
//!
//! What is there is looked at before it is opened, because opening some other device can have effects. Then it must
//! answer KVM_GET_API_VERSION, and have every capability of [`NEEDED`].
#![allow(unsafe_code)] // `Kvm` takes a raw file descriptor

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use accel_api::{Absent, AbsentKind};
use kvm_bindings::*;
use kvm_ioctls::Kvm;

use crate::provider::Provider;

/// Where Linux has it.
pub const DEFAULT_PATH: &str = "/dev/kvm";

/// The only stable version of KVM's interface (Linux Documentation/virt/kvm/api.rst, KVM_GET_API_VERSION).
const API_VERSION: i32 = 12;

macro_rules! capabilities {
    ($($name:ident)*) => { &[$(($name, stringify!($name)),)*] };
}

/// Capabilities without which the backend cannot keep its promises. They are what its ioctls stand under in Linux
/// Documentation/virt/kvm/api.rst; Linux 5.16 on x86-64 has all of them.
const NEEDED: &[(u32, &str)] = capabilities! {
    KVM_CAP_USER_MEMORY KVM_CAP_DESTROY_MEMORY_REGION_WORKS KVM_CAP_READONLY_MEM KVM_CAP_IMMEDIATE_EXIT
    KVM_CAP_SET_TSS_ADDR KVM_CAP_SET_IDENTITY_MAP_ADDR KVM_CAP_SPLIT_IRQCHIP KVM_CAP_SIGNAL_MSI KVM_CAP_X2APIC_API
    KVM_CAP_TSC_DEADLINE_TIMER KVM_CAP_ENABLE_CAP_VM KVM_CAP_DISABLE_QUIRKS KVM_CAP_X86_USER_SPACE_MSR
    KVM_CAP_X86_MSR_FILTER KVM_CAP_EXT_CPUID KVM_CAP_MP_STATE KVM_CAP_VCPU_EVENTS KVM_CAP_DEBUGREGS KVM_CAP_XSAVE
    KVM_CAP_XCRS KVM_CAP_VCPU_ATTRIBUTES KVM_CAP_SET_GUEST_DEBUG KVM_CAP_USER_NMI
};

/// Why the device cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    /// No such path.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// The node is there and nothing behind it.
    #[error("{} is there, but no hardware virtualisation behind it", .0.display())]
    NoHardware(PathBuf),
    /// Access is denied.
    #[error("no permission to open {} ({})", path.display(), owner)]
    Denied {
        /// The device.
        path: PathBuf,
        /// Who may open it.
        owner: Owner,
    },
    /// The kernel forbids what the file's mode allows.
    #[error("opening {} is forbidden to this process", .0.display())]
    Forbidden(PathBuf),
    /// Another file.
    #[error("{} is {what}, not KVM's device", path.display())]
    NotKvm {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// Another version of the interface.
    #[error("{} speaks version {version} of KVM's interface, not {API_VERSION}", path.display())]
    Version {
        /// The device.
        path: PathBuf,
        /// What it speaks.
        version: i32,
    },
    /// A capability that is needed.
    #[error("KVM on this host lacks {}", .0.join(", "))]
    Lacks(Vec<&'static str>),
    /// The host is short of something, or somebody else uses the hardware.
    #[error("{} cannot be used now: {source}", path.display())]
    Busy {
        /// The device.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// Some other error.
    #[error("{} cannot be opened: {source}", path.display())]
    Other {
        /// The device.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
}

/// Whom a device belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    /// Permission bits.
    pub(crate) mode: u32,
    /// Name of the group, else its number.
    pub(crate) group: String,
    /// Whether the group is root's own.
    pub(crate) root_group: bool,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "mode {:04o}, group {}", self.mode, self.group)
    }
}

impl Owner {
    fn of(metadata: &fs::Metadata, groups: &str) -> Self {
        let gid = metadata.gid();
        // group(5): name, password, number, members.
        let line = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let named = line.filter(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(gid));
        let group = named.map(|fields| fields[0].to_owned()).next().unwrap_or_else(|| gid.to_string());
        Self { mode: metadata.mode() & 0o7777, group, root_group: gid == 0 }
    }
}

impl DeviceError {
    /// What the failure to open `path` with `errno` means.
    fn from_open(path: &Path, errno: i32, metadata: Option<&fs::Metadata>) -> Self {
        let path = path.to_owned();
        let source = std::io::Error::from_raw_os_error(errno);
        match (errno, metadata) {
            (libc::ENOENT | libc::ENOTDIR, _) => Self::Missing(path),
            (libc::ENODEV | libc::ENXIO, _) => Self::NoHardware(path),
            (libc::EACCES, Some(metadata)) => {
                let groups = fs::read_to_string("/etc/group").unwrap_or_default();
                Self::Denied { path, owner: Owner::of(metadata, &groups) }
            }
            (libc::EPERM | libc::EACCES, _) => Self::Forbidden(path),
            (libc::EBUSY | libc::ENOMEM | libc::EMFILE | libc::ENFILE, _) => Self::Busy { path, source },
            _ => Self::Other { path, source },
        }
    }

    /// Kind, for programs.
    pub(crate) fn kind(&self) -> AbsentKind {
        match self {
            Self::Missing(_) | Self::NoHardware(_) | Self::Other { .. } => AbsentKind::NoDevice,
            Self::Denied { .. } | Self::Forbidden(_) => AbsentKind::NoPermission,
            Self::NotKvm { .. } => AbsentKind::WrongDevice,
            Self::Version { .. } => AbsentKind::Version,
            Self::Lacks(_) => AbsentKind::MissingCapability,
            Self::Busy { .. } => AbsentKind::Busy,
        }
    }

    /// What helps on a host with this `provider`.
    pub(crate) fn remedy(&self, provider: &Provider) -> String {
        match self {
            Self::Missing(path) if path != Path::new(DEFAULT_PATH) => {
                format!("KVM's device is {DEFAULT_PATH} on Linux: check the path")
            }
            Self::Missing(_) | Self::NoHardware(_) => match provider {
                Provider::Module(module) => format!(
                    "the module {module} is loaded, so in a container pass the device in (--device {DEFAULT_PATH})"
                ),
                Provider::Processor(module) => format!("load the kernel module: modprobe {module}"),
                Provider::Nothing => {
                    "the processor offers neither VT-x nor AMD-V: enable it in the firmware or, in a \
                                      virtual machine, nested virtualisation on the host"
                        .to_owned()
                }
            },
            Self::Denied { owner: Owner { mode, group, root_group }, path } => {
                if *root_group || mode & 0o060 != 0o060 {
                    format!(
                        "give a group access: chgrp kvm {0} && chmod 660 {0}, as root; then usermod -aG kvm USER",
                        path.display()
                    )
                } else {
                    format!("join its group and log in again: usermod -aG {group} USER, as root")
                }
            }
            Self::Forbidden(path) => {
                format!(
                    "a container or sandbox keeps it away: pass the device in (--device {})",
                    path.display()
                )
            }
            Self::NotKvm { path, .. } if path != Path::new(DEFAULT_PATH) => {
                format!("KVM's device is {DEFAULT_PATH} on Linux: check the path")
            }
            Self::NotKvm { path, .. } => {
                format!("remove {0} and load the kernel module again, or: mknod {0} c 10 232", path.display())
            }
            Self::Version { .. } | Self::Lacks(_) => "use Linux 5.16 or newer on the host".to_owned(),
            Self::Busy { .. } => "stop other programs that virtualise or use much memory".to_owned(),
            Self::Other { .. } => "look for KVM in the kernel's log (dmesg)".to_owned(),
        }
    }

    /// All of it, as a probe reports it.
    pub(crate) fn absent(&self) -> Absent {
        let remedy = Some(self.remedy(&Provider::of_host()));
        Absent { kind: self.kind(), reason: self.to_string(), remedy }
    }
}

/// Opens KVM's device at `path`.
///
/// # Errors
/// It is not there, not KVM's, may not be opened, or lacks what is needed.
pub(crate) fn open(path: &Path) -> Result<Kvm, DeviceError> {
    let metadata = fs::metadata(path);
    if let Ok(metadata) = &metadata {
        let kind = metadata.file_type();
        if !kind.is_char_device() {
            let what = match () {
                () if kind.is_dir() => "a folder",
                () if kind.is_fifo() => "a FIFO",
                () if kind.is_block_device() => "a block device",
                () if kind.is_socket() => "a socket",
                () => "a regular file",
            };
            return Err(DeviceError::NotKvm { path: path.to_owned(), what });
        }
    }
    let name = CString::new(path.as_os_str().as_bytes());
    let opened = name.map_err(|_| libc::ENOENT).and_then(|name| open_device(&name));
    let fd = opened.map_err(|errno| DeviceError::from_open(path, errno, metadata.as_ref().ok()))?;
    let version = api_version(fd.as_raw_fd());
    if version < 0 {
        return Err(DeviceError::NotKvm { path: path.to_owned(), what: "another device" });
    }
    if version != API_VERSION {
        return Err(DeviceError::Version { path: path.to_owned(), version });
    }
    // SAFETY: the descriptor is open, and `Kvm` becomes its only owner.
    let kvm = unsafe { Kvm::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(fd)) };
    let lacks = missing(|capability| kvm.check_extension_raw(capability.into()));
    if lacks.is_empty() { Ok(kvm) } else { Err(DeviceError::Lacks(lacks)) }
}

/// The needed capabilities that `check` (KVM_CHECK_EXTENSION) does not have.
fn missing(check: impl Fn(u32) -> i32) -> Vec<&'static str> {
    NEEDED.iter().filter(|(capability, _)| check(*capability) <= 0).map(|(_, name)| *name).collect()
}

fn open_device(path: &CStr) -> Result<OwnedFd, i32> {
    // The file may be exchanged for another between look and open: that must neither block nor become our terminal.
    let flags = libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    // SAFETY: the path is a C string.
    let fd = unsafe { libc::open(path.as_ptr(), flags) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
    }
    // SAFETY: just opened, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn api_version(fd: RawFd) -> i32 {
    vmm_sys_util::ioctl_io_nr!(KVM_GET_API_VERSION, KVMIO, 0x00);
    // SAFETY: takes no argument, so that it does no harm to whatever file this is.
    unsafe { libc::ioctl(fd, KVM_GET_API_VERSION(), 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(error: &DeviceError, provider: &Provider) -> String {
        format!("{error} ({})", error.remedy(provider))
    }
    fn of_errno(errno: i32, metadata: Option<&fs::Metadata>) -> DeviceError {
        DeviceError::from_open(Path::new(DEFAULT_PATH), errno, metadata)
    }

    #[test]
    fn each_errno_has_its_kind_and_its_remedy() {
        let module = || Provider::Module("kvm_amd".into());
        for (errno, provider, kind, words) in [
            (libc::ENOENT, Provider::Processor("kvm_intel"), AbsentKind::NoDevice, "modprobe kvm_intel"),
            (libc::ENOENT, Provider::Nothing, AbsentKind::NoDevice, "nested virtualisation"),
            (libc::ENOENT, module(), AbsentKind::NoDevice, "container"),
            (libc::ENODEV, Provider::Processor("kvm_amd"), AbsentKind::NoDevice, "modprobe kvm_amd"),
            (libc::ENXIO, Provider::Nothing, AbsentKind::NoDevice, "firmware"),
            (libc::EPERM, module(), AbsentKind::NoPermission, "--device /dev/kvm"),
            (libc::EBUSY, module(), AbsentKind::Busy, "stop other programs"),
            (libc::ENOMEM, module(), AbsentKind::Busy, "memory"),
            (libc::EIO, module(), AbsentKind::NoDevice, "dmesg"),
        ] {
            let error = of_errno(errno, None);
            assert_eq!(error.kind(), kind, "{error}");
            let text = told(&error, &provider);
            assert!(text.contains(words) && text.contains("/dev/kvm"), "{text}");
        }
    }

    #[test]
    fn denied_names_the_group_if_joining_it_helps() {
        let owner = |mode, group: &str| Owner { mode, group: group.into(), root_group: group == "root" };
        let remedy = |owner| {
            let error = DeviceError::Denied { path: DEFAULT_PATH.into(), owner };
            assert_eq!(error.kind(), AbsentKind::NoPermission);
            told(&error, &Provider::Nothing)
        };
        let text = remedy(owner(0o660, "virt"));
        assert!(text.contains("mode 0660, group virt") && text.contains("usermod -aG virt"), "{text}");
        for text in [remedy(owner(0o600, "virt")), remedy(owner(0o660, "root"))] {
            assert!(text.contains("chgrp kvm") && text.contains("chmod 660"), "{text}");
        }
    }

    #[test]
    fn groups_are_named_as_the_group_file_names_them() {
        let metadata = fs::metadata("/").unwrap();
        let line = format!("daemon:x:99999:\nmine:x:{}:a,b\n", metadata.gid());
        assert_eq!(Owner::of(&metadata, &line).group, "mine");
        assert_eq!(Owner::of(&metadata, "broken\n::\n").group, metadata.gid().to_string());
        assert!(matches!(of_errno(libc::EACCES, Some(&metadata)), DeviceError::Denied { .. }));
    }

    #[test]
    fn files_that_are_no_device_are_not_opened() {
        let folder = std::env::temp_dir().join(format!("gearshift-device-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("file");
        fs::write(&file, "x").unwrap();
        for (path, what) in
            [(folder.as_path(), "folder"), (&file, "regular"), (Path::new("/dev/null"), "device")]
        {
            let error = open(path).unwrap_err();
            assert_eq!(error.kind(), AbsentKind::WrongDevice);
            assert!(error.to_string().contains(what), "{error}");
            assert!(error.remedy(&Provider::Nothing).contains("check the path"));
        }
        let error = open(&folder.join("none")).unwrap_err();
        assert_eq!(error.kind(), AbsentKind::NoDevice);
        assert!(open(&file.join("beneath")).unwrap_err().to_string().contains("does not exist"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn capabilities_are_told_by_name() {
        assert_eq!(missing(|_| 1), [""; 0]);
        let lacks = missing(|c| i32::from(c != KVM_CAP_SPLIT_IRQCHIP && c != KVM_CAP_XCRS));
        assert_eq!(lacks, ["KVM_CAP_SPLIT_IRQCHIP", "KVM_CAP_XCRS"]);
        let error = DeviceError::Lacks(lacks);
        assert_eq!(error.kind(), AbsentKind::MissingCapability);
        assert!(told(&error, &Provider::Nothing).contains("Linux 5.16"));
        let error = DeviceError::Version { path: DEFAULT_PATH.into(), version: 11 };
        assert_eq!((error.kind(), error.to_string().contains("version 11")), (AbsentKind::Version, true));
    }
}
