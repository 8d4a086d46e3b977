//! What `kvm-ioctls` does not wrap: vCPU attributes, the kick's signal, the threads it is sent to.
#![allow(unsafe_code)] // raw ioctls and signals

use std::io;
use std::sync::OnceLock;

use accel_api::AccelError;
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

vmm_sys_util::ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
vmm_sys_util::ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Makes an error of `what` KVM refused.
pub(crate) fn host(what: &'static str) -> impl Fn(errno::Error) -> AccelError {
    move |error| AccelError::Host { what, source: io::Error::from_raw_os_error(error.errno()) }
}

/// The same for parts of a [`accel_api::x86::CpuState`]: a value that KVM refuses is the state's fault, not the host's.
pub(crate) fn loading(what: &'static str) -> impl Fn(errno::Error) -> AccelError {
    move |error| match error.errno() {
        libc::EINVAL => AccelError::InvalidState(format!("KVM does not take its {what}")),
        errno => AccelError::Host { what, source: io::Error::from_raw_os_error(errno) },
    }
}

/// What KVM adds to the host's TSC to get the guest's (Linux 5.16 and later).
pub(crate) fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, AccelError> {
    let mut offset = 0u64;
    let attribute = tsc_attribute(&raw mut offset);
    // SAFETY: the attribute is 8 bytes, and its address is that of a u64 that lives through the call.
    check(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) }, "KVM_VCPU_TSC_OFFSET")?;
    Ok(offset)
}

/// Sets it.
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<(), AccelError> {
    let attribute = tsc_attribute(&raw mut offset);
    // SAFETY: as above; the kernel only reads it.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) }, "KVM_VCPU_TSC_OFFSET")
}

fn tsc_attribute(offset: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: offset.expose_provenance() as u64,
    }
}

fn check(result: libc::c_int, what: &'static str) -> Result<(), AccelError> {
    if result < 0 { Err(AccelError::last_os(what)) } else { Ok(()) }
}

/// The host's time stamp counter, which guests' counters are offsets from.
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: RDTSC is part of x86-64, and user space may execute it wherever this program can run at all.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// A thread that signals can be sent to. Valid as long as the thread runs: whoever keeps one must drop it before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread(libc::pthread_t);

impl Thread {
    /// The calling thread, which from now on is interrupted by [`Self::interrupt`].
    ///
    /// # Errors
    /// The signal cannot be had.
    pub(crate) fn current() -> Result<Self, AccelError> {
        static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
        // The signal's only purpose is that system calls return; the vCPU's requests say what is to be done.
        extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        let installed =
            HANDLER.get_or_init(|| register_signal_handler(SIGRTMIN(), nothing).map_err(|e| e.errno()));
        if let Err(errno) = installed {
            return Err(AccelError::Host {
                what: "no handler for the kick's signal",
                source: io::Error::from_raw_os_error(*errno),
            });
        }
        unblock_signal(SIGRTMIN()).map_err(|error| AccelError::Host {
            what: "the kick's signal cannot be unblocked",
            source: io::Error::other(error.to_string()),
        })?;
        // SAFETY: pthread_self has no preconditions.
        Ok(Self(unsafe { libc::pthread_self() }))
    }

    /// Makes a system call that the thread is in return.
    pub(crate) fn interrupt(self) {
        // SAFETY: the thread still runs, by this type's rule. Failing with EAGAIN (too many signals queued) is harmless, since
        // then one is pending already.
        unsafe { libc::pthread_kill(self.0, SIGRTMIN()) };
    }
}

vmm_sys_util::ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_bindings::kvm_sregs2);
vmm_sys_util::ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_bindings::kvm_sregs2);

/// System registers in the form that has the four entries of PAE paging. `None`: this kernel does not know it (before Linux 5.14).
///
/// # Errors
/// Host failure.
pub(crate) fn get_sregs2(vcpu: &VcpuFd) -> Result<Option<kvm_bindings::kvm_sregs2>, AccelError> {
    let mut sregs = kvm_bindings::kvm_sregs2::default();
    // SAFETY: the kernel fills in a structure of this type, which lives through the call.
    let done = unsafe { vmm_sys_util::ioctl::ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) };
    match check(done, "KVM_GET_SREGS2") {
        Ok(()) => Ok(Some(sregs)),
        Err(AccelError::Host { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(AccelError::Host { source, .. }) if source.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets them.
///
/// # Errors
/// KVM refuses a value, or a host failure.
pub(crate) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_bindings::kvm_sregs2) -> Result<(), AccelError> {
    // SAFETY: the kernel reads a structure of this type, which lives through the call.
    let done = unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) };
    check(done, "KVM_SET_SREGS2")
}

/// KVM_SET_SIGNAL_MASK's argument with a mask of the kernel's size.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
}

vmm_sys_util::ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, u32);

/// Calls `enter`, which does KVM_RUN, in such a way that KVM does all it does around an entry of the guest but the entry.
///
/// A pending signal keeps it from entering. (`immediate_exit` is no substitute, since with it KVM returns before.) So one
/// is made to be pending, by being blocked everywhere but in KVM_RUN.
pub(crate) fn almost_enter<T>(
    vcpu: &mut VcpuFd,
    enter: impl FnOnce(&mut VcpuFd) -> Result<T, AccelError>,
) -> Result<T, AccelError> {
    vcpu.set_kvm_immediate_exit(0);
    let signal = SIGRTMIN();
    let unblocked = SignalMask { len: 8, set: [0; 8] };
    // SAFETY: the sets are initialised by sigemptyset before they are used, the mask is as long as it says and lives through
    // the call. Signals that arrive while all are unblocked are handled as ever.
    unsafe {
        let mut kick: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut kick);
        libc::sigaddset(&raw mut kick, signal);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const kick, &raw mut before);
        libc::raise(signal);
        let masked = check(ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &unblocked), "KVM_SET_SIGNAL_MASK");
        let entered = masked.and_then(|()| enter(vcpu));
        // Without a mask KVM_RUN takes the thread's.
        let none =
            vmm_sys_util::ioctl::ioctl_with_ptr::<_, u8>(vcpu, KVM_SET_SIGNAL_MASK(), std::ptr::null());
        // Not a wait: it is pending, or several of it are.
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        while libc::sigtimedwait(&raw const kick, std::ptr::null_mut(), &raw const now) == signal {}
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        check(none, "KVM_SET_SIGNAL_MASK")?;
        entered
    }
}
