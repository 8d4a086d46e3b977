//! Why KVM_RUN returned: the shared page's union, read by its exit reason.
#![allow(unsafe_code)] // the page is a C union, with data behind it

use accel_api::AccelError;
use kvm_bindings::*;
use kvm_ioctls::VcpuFd;

use crate::sys::host;

/// What [`enter`] came back with.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Interrupted by a signal or `immediate_exit`; the guest's last instruction is complete.
    Interrupted,
    /// Nothing happened; enter again.
    Again,
    /// An interrupt of the 8259 can be delivered now.
    WindowOpen,
    /// `count` accesses of `size` bytes to a port.
    Port { port: u16, size: usize, write: bool },
    /// An access to memory that is none.
    Mmio { gpa: u64, len: usize, write: bool },
    /// RDMSR or WRMSR that the filter denied.
    ReadMsr(u32),
    /// With the value.
    WriteMsr(u32, u64),
    /// EOI of a level-triggered vector.
    Eoi(u8),
    /// Triple fault.
    Shutdown,
    /// The debugger's plan: DR6 and the linear address.
    Debug { dr6: u64, pc: u64 },
    /// KVM cannot go on, for this reason, with the instruction's bytes as far as it knows them.
    Stuck { why: String, bytes: Vec<u8> },
}

/// Enters the guest, once.
///
/// # Errors
/// Host failure.
pub(crate) fn enter(vcpu: &mut VcpuFd) -> Result<Stop, AccelError> {
    // What kvm-ioctls makes of the exit is dropped: it lacks the size of port accesses.
    match vcpu.run() {
        Ok(_) => {}
        Err(error) => {
            return match error.errno() {
                libc::EINTR => Ok(Stop::Interrupted),
                libc::EAGAIN => Ok(Stop::Again),
                // As an access of this process would raise SIGBUS.
                libc::EFAULT => {
                    Err(host("KVM_RUN cannot reach a page of guest RAM, which the host may not have")(error))
                }
                _ => Err(host("KVM_RUN")(error)),
            };
        }
    }
    Ok(stop(vcpu.get_kvm_run()))
}

fn stop(run: &kvm_run) -> Stop {
    let union = &run.__bindgen_anon_1;
    let reason = run.exit_reason;
    // SAFETY: KVM_RUN returned 0, so the kernel has filled in the member that the exit reason stands for, and all of them
    // are plain numbers.
    unsafe {
        match reason {
            KVM_EXIT_IO => {
                let io = union.io;
                let write = u32::from(io.direction) == KVM_EXIT_IO_OUT;
                Stop::Port { port: io.port, size: io.size.into(), write }
            }
            KVM_EXIT_MMIO => {
                let mmio = union.mmio;
                Stop::Mmio { gpa: mmio.phys_addr, len: (mmio.len as usize).min(8), write: mmio.is_write != 0 }
            }
            KVM_EXIT_X86_RDMSR => Stop::ReadMsr(union.msr.index),
            KVM_EXIT_X86_WRMSR => Stop::WriteMsr(union.msr.index, union.msr.data),
            KVM_EXIT_IOAPIC_EOI => Stop::Eoi(union.eoi.vector),
            KVM_EXIT_IRQ_WINDOW_OPEN => Stop::WindowOpen,
            KVM_EXIT_INTR => Stop::Interrupted,
            KVM_EXIT_SHUTDOWN => Stop::Shutdown,
            KVM_EXIT_DEBUG => Stop::Debug { dr6: union.debug.arch.dr6, pc: union.debug.arch.pc },
            KVM_EXIT_INTERNAL_ERROR => internal_error(run),
            KVM_EXIT_FAIL_ENTRY => {
                let code = union.fail_entry.hardware_entry_failure_reason;
                stuck(format!("the processor refuses to enter the guest (hardware reason {code:#x})"))
            }
            KVM_EXIT_UNKNOWN => {
                let code = union.hw.hardware_exit_reason;
                stuck(format!("KVM does not know the processor's exit reason {code:#x}"))
            }
            KVM_EXIT_SYSTEM_EVENT => stuck(format!("KVM reports system event {}", union.system_event.type_)),
            other => {
                stuck(format!("KVM returned with exit reason {other}, which this program does not know"))
            }
        }
    }
}

fn stuck(why: String) -> Stop {
    Stop::Stuck { why, bytes: Vec::new() }
}

fn internal_error(run: &kvm_run) -> Stop {
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, whose member is plain numbers, and so is the other view of it.
    let (internal, emulation) =
        unsafe { (run.__bindgen_anon_1.internal, run.__bindgen_anon_1.emulation_failure) };
    let why = match internal.suberror {
        KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate an instruction".to_owned(),
        KVM_INTERNAL_ERROR_SIMUL_EX => "KVM met an exception while it delivered another".to_owned(),
        KVM_INTERNAL_ERROR_DELIVERY_EV => {
            "KVM met an exit it cannot handle while it delivered an event".to_owned()
        }
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "KVM met an exit reason it does not expect".to_owned(),
        other => format!("KVM reports internal error {other}"),
    };
    let mut bytes = Vec::new();
    if internal.suberror == KVM_INTERNAL_ERROR_EMULATION
        && emulation.ndata > 0
        && emulation.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0
    {
        // SAFETY: the flag says that the kernel has filled in the instruction's bytes.
        let instruction = unsafe { emulation.__bindgen_anon_1.__bindgen_anon_1 };
        let size = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
        bytes.extend_from_slice(&instruction.insn_bytes[..size]);
    }
    Stop::Stuck { why, bytes }
}

/// The data of a [`Stop::Port`]: all its accesses, one after the other.
pub(crate) fn port_data(vcpu: &mut VcpuFd) -> &mut [u8] {
    let run = std::ptr::from_mut(vcpu.get_kvm_run());
    // SAFETY: called after a port exit only, where the kernel says where in the vCPU's mapping the data lie and how long
    // they are; nothing else refers to them while the vCPU is borrowed.
    unsafe {
        let io = (*run).__bindgen_anon_1.io;
        let data = run.cast::<u8>().add(io.data_offset as usize);
        std::slice::from_raw_parts_mut(data, io.count as usize * usize::from(io.size))
    }
}

/// The data of a [`Stop::Mmio`].
pub(crate) fn mmio_data(vcpu: &mut VcpuFd) -> &mut [u8; 8] {
    // SAFETY: bytes are valid whatever the union holds.
    unsafe { &mut vcpu.get_kvm_run().__bindgen_anon_1.mmio.data }
}

/// Answers a [`Stop::ReadMsr`] or [`Stop::WriteMsr`]: with a value, or with #GP(0).
pub(crate) fn answer_msr(vcpu: &mut VcpuFd, answer: Option<u64>) {
    // SAFETY: numbers are valid whatever the union holds.
    let msr = unsafe { &mut vcpu.get_kvm_run().__bindgen_anon_1.msr };
    match answer {
        Some(value) => (msr.error, msr.data) = (0, value),
        None => msr.error = 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(exit_reason: u32) -> kvm_run {
        kvm_run { exit_reason, ..kvm_run::default() }
    }

    #[test]
    fn reasons_nobody_knows_are_told_by_number() {
        for (reason, number) in [(12345, "12345"), (KVM_EXIT_S390_TSCH, "22")] {
            let Stop::Stuck { why, .. } = stop(&run(reason)) else { panic!("{reason}") };
            assert!(why.contains(number), "{why}");
        }
        let mut failed = run(KVM_EXIT_FAIL_ENTRY);
        failed.__bindgen_anon_1.fail_entry.hardware_entry_failure_reason = 0x8000_0021;
        let Stop::Stuck { why, .. } = stop(&failed) else { panic!("entered") };
        assert!(why.contains("0x80000021"), "{why}");
    }

    #[test]
    fn a_failed_emulation_has_the_bytes_where_the_kernel_gives_them() {
        let mut failed = run(KVM_INTERNAL_ERROR_EMULATION);
        failed.exit_reason = KVM_EXIT_INTERNAL_ERROR;
        // SAFETY: the members were zeroed with the rest of the page, and are plain numbers.
        unsafe {
            let detail = &mut failed.__bindgen_anon_1.emulation_failure;
            (detail.suberror, detail.ndata) = (KVM_INTERNAL_ERROR_EMULATION, 3);
            let Stop::Stuck { bytes, .. } = stop(&failed) else { panic!("went on") };
            assert!(bytes.is_empty());
            let detail = &mut failed.__bindgen_anon_1.emulation_failure;
            detail.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES.into();
            let instruction = &mut detail.__bindgen_anon_1.__bindgen_anon_1;
            instruction.insn_bytes[..2].copy_from_slice(&[0x0f, 0x0b]);
            // More than there is room for: not to be believed.
            instruction.insn_size = 200;
        }
        let Stop::Stuck { why, bytes } = stop(&failed) else { panic!("went on") };
        assert_eq!((bytes.len(), &bytes[..2]), (15, &[0x0f, 0x0b][..]));
        assert!(why.contains("emulate"), "{why}");
    }

    #[test]
    fn an_mmio_exit_is_never_longer_than_its_data() {
        let mut exit = run(KVM_EXIT_MMIO);
        exit.__bindgen_anon_1.mmio.len = 4000;
        assert!(matches!(stop(&exit), Stop::Mmio { len: 8, .. }));
    }
}
