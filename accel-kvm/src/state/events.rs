//! What is about to happen to the CPU.

use accel_api::AccelError;
use accel_api::x86::{EventKind, Events, InjectedEvent, LapicState};
use kvm_bindings::*;

use crate::interrupts::local_message;
use crate::sys::{host, loading};
use crate::vcpu::KvmVcpu;

/// RFLAGS.IF.
const IF: u64 = 1 << 9;

/// Delivery modes of messages (Intel SDM vol. 3, 11.11.2).
const INIT: u32 = 5 << 8;
const STARTUP: u32 = 6 << 8;

/// The events, and the vector of a start-up message that KVM has taken.
pub(super) fn save(vcpu: &mut KvmVcpu) -> Result<(Events, Option<u8>), AccelError> {
    let raised = vcpu.requests.nmis();
    let events = vcpu.fd().get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
    let kvm_vcpu_events { exception, interrupt, nmi, sipi_vector, .. } = events;
    let injected = if exception.injected | exception.pending != 0 {
        let error_code = (exception.has_error_code != 0).then_some(exception.error_code);
        Some(InjectedEvent { vector: exception.nr, kind: EventKind::Exception, error_code })
    } else if interrupt.injected != 0 && interrupt.soft == 0 {
        Some(InjectedEvent { vector: interrupt.nr, kind: EventKind::ExternalInterrupt, error_code: None })
    } else if nmi.injected != 0 {
        Some(InjectedEvent { vector: 2, kind: EventKind::Nmi, error_code: None })
    } else {
        // A software interrupt that was not delivered has changed nothing, and RIP is still at its instruction, which
        // raises it again.
        None
    };
    // KVM masks NMIs once it injects one; in the neutral state that comes with the delivery.
    let nmi_masked = nmi.masked != 0 && nmi.injected == 0;
    // Before Linux 6.4, KVM tells of two that wait as of one.
    let nmi_pending = nmi.pending.saturating_add(raised).min(Events::nmi_limit(nmi_masked));
    let shadow = u32::from(interrupt.shadow);
    // AMD's processors do not tell one from the other, and KVM then gives both.
    let debug_shadow = shadow == KVM_X86_SHADOW_INT_MOV_SS;
    let interrupt_shadow = shadow != 0;
    let events =
        Events { injected, interrupt_shadow, debug_shadow, debug_pending: 0, nmi_pending, nmi_masked };
    Ok((events, Some(sipi_vector as u8)))
}

/// Replaces them; and sends the messages that wait for the CPU itself, which KVM takes in no other way.
pub(super) fn load(
    vcpu: &mut KvmVcpu,
    events: &Events,
    lapic: &LapicState,
    regs: &kvm_regs,
) -> Result<(), AccelError> {
    let Events { injected, interrupt_shadow, debug_shadow, debug_pending, nmi_pending, nmi_masked } = events;
    // KVM has no place for it. It is gone one instruction later.
    if debug_pending & Events::DEBUG_CAUSES != 0 {
        return Err(AccelError::InvalidState("a debug exception waits, which KVM cannot hold".into()));
    }
    // KVM gets them at the next entry, as if they had just been raised: until then it cannot lose count of them.
    vcpu.requests.set_nmis(*nmi_pending);
    vcpu.requests.set_extint_message(lapic.extint);
    let mut kvm = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..kvm_vcpu_events::default()
    };
    kvm.nmi.masked = (*nmi_masked).into();
    if *interrupt_shadow {
        // Processors refuse STI's shadow where interrupts are off.
        let sti = regs.rflags & IF != 0 && !debug_shadow;
        kvm.interrupt.shadow = if sti { KVM_X86_SHADOW_INT_STI } else { KVM_X86_SHADOW_INT_MOV_SS } as u8;
    }
    match injected {
        None => {}
        Some(InjectedEvent { vector, kind: EventKind::Exception, error_code }) => {
            kvm.exception.injected = 1;
            kvm.exception.nr = *vector;
            kvm.exception.has_error_code = error_code.is_some().into();
            kvm.exception.error_code = error_code.unwrap_or(0);
        }
        Some(InjectedEvent { kind: EventKind::Nmi, .. }) => (kvm.nmi.injected, kvm.nmi.masked) = (1, 1),
        Some(InjectedEvent { vector, kind: EventKind::ExternalInterrupt, .. }) => {
            (kvm.interrupt.injected, kvm.interrupt.nr) = (1, *vector);
        }
        Some(InjectedEvent { vector, kind: EventKind::Software { length }, .. }) => {
            // KVM would look for the instruction. Its privilege has been checked; what is left of it is an
            // interrupt that returns behind it.
            let rip = regs.rip.wrapping_add((*length).into());
            vcpu.fd().set_regs(&kvm_regs { rip, ..*regs }).map_err(loading("registers"))?;
            (kvm.interrupt.injected, kvm.interrupt.nr) = (1, *vector);
        }
    }
    vcpu.fd().set_vcpu_events(&kvm).map_err(loading("events"))?;
    let messages = [lapic.init.then_some(INIT), lapic.sipi.map(|vector| STARTUP | u32::from(vector))];
    for data in messages.into_iter().flatten() {
        vcpu.vm.signal_msi(local_message(vcpu.id, data)).map_err(host("KVM_SIGNAL_MSI"))?;
    }
    Ok(())
}
