//! The local APIC: KVM's register page, and the timer, which is more than its registers.

use accel_api::AccelError;
use accel_api::x86::LapicState;
use kvm_bindings::kvm_lapic_state;

use super::{get_msr, set_msrs};
use crate::msr::index::TSC_DEADLINE;
use crate::sys::{host, loading};
use crate::vcpu::KvmVcpu;

/// Offsets in the page (Intel SDM vol. 3, table 11-1).
mod at {
    pub(super) const ID: usize = 0x20;
    pub(super) const TPR: usize = 0x80;
    pub(super) const LDR: usize = 0xd0;
    pub(super) const DFR: usize = 0xe0;
    pub(super) const SVR: usize = 0xf0;
    pub(super) const ISR: usize = 0x100;
    pub(super) const TMR: usize = 0x180;
    pub(super) const IRR: usize = 0x200;
    pub(super) const ESR: usize = 0x280;
    pub(super) const ICR: usize = 0x300;
    pub(super) const ICR2: usize = 0x310;
    pub(super) const LVT_TIMER: usize = 0x320;
    pub(super) const LVT_THERMAL: usize = 0x330;
    pub(super) const LVT_PERF: usize = 0x340;
    pub(super) const LVT_LINT0: usize = 0x350;
    pub(super) const LVT_LINT1: usize = 0x360;
    pub(super) const LVT_ERROR: usize = 0x370;
    pub(super) const TIMER_INITIAL: usize = 0x380;
    pub(super) const TIMER_CURRENT: usize = 0x390;
    pub(super) const TIMER_DIVIDE: usize = 0x3e0;
}

/// IA32_APIC_BASE: x2APIC mode.
const X2APIC: u64 = 1 << 10;

/// Timer modes, bits 18:17 of its LVT entry (Intel SDM vol. 3, 11.5.1).
const ONE_SHOT: u32 = 0;
const DEADLINE: u32 = 2;

const fn mode(lvt_timer: u32) -> u32 {
    lvt_timer >> 17 & 3
}

fn get(page: &kvm_lapic_state, at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| page.regs[at + n] as u8))
}

fn set(page: &mut kvm_lapic_state, at: usize, value: u32) {
    for (n, byte) in value.to_le_bytes().into_iter().enumerate() {
        page.regs[at + n] = byte as _;
    }
}

/// 256 bits in eight registers.
fn get_bits(page: &kvm_lapic_state, at: usize) -> [u64; 4] {
    let word = |n: usize| u64::from(get(page, at + 0x10 * n));
    std::array::from_fn(|n| word(2 * n) | word(2 * n + 1) << 32)
}

fn set_bits(page: &mut kvm_lapic_state, at: usize, bits: &[u64; 4]) {
    for (n, quad) in bits.iter().enumerate() {
        set(page, at + 0x20 * n, *quad as u32);
        set(page, at + 0x20 * n + 0x10, (*quad >> 32) as u32);
    }
}

/// The register page and IA32_TSC_DEADLINE, at a moment when no expiry of a counting timer is on its way to its request: KVM
/// keeps one to itself until the guest is entered again, where no register shows it.
///
/// The deadline is read before the requests: a timer that expires in between is then armed for the past, and expires again
/// where it is loaded. The other order could lose the only interrupt there is.
pub(super) fn page(vcpu: &mut KvmVcpu) -> Result<(kvm_lapic_state, u64), AccelError> {
    let counting = |page: &kvm_lapic_state| {
        mode(get(page, at::LVT_TIMER)) != DEADLINE && get(page, at::TIMER_CURRENT) != 0
    };
    let read = |vcpu: &mut KvmVcpu| vcpu.fd().get_lapic().map_err(host("KVM_GET_LAPIC"));
    let before = read(vcpu)?;
    if vcpu.entered() || counting(&before) {
        vcpu.settle_kernel()?;
    }
    let deadline = get_msr(vcpu.fd(), TSC_DEADLINE)?;
    let mut after = read(vcpu)?;
    if counting(&before) && !counting(&after) {
        // It expired in between, before KVM had settled or after.
        vcpu.settle_kernel()?;
        after = read(vcpu)?;
    }
    Ok((after, deadline))
}

/// The state from KVM's register page.
pub(super) fn save(
    vcpu: &KvmVcpu,
    page: &kvm_lapic_state,
    apic_base: u64,
    tsc_deadline: u64,
    sipi: Option<u8>,
) -> LapicState {
    let register = |at| get(page, at);
    let mut state = LapicState {
        apic_id: vcpu.id,
        xapic_id: (register(at::ID) >> 24) as u8,
        apic_base,
        tpr: register(at::TPR) as u8,
        irr: get_bits(page, at::IRR),
        isr: get_bits(page, at::ISR),
        tmr: get_bits(page, at::TMR),
        ldr: register(at::LDR),
        dfr: if apic_base & X2APIC != 0 { u32::MAX } else { register(at::DFR) },
        svr: register(at::SVR),
        esr: register(at::ESR),
        // KVM's local APIC finds no errors.
        esr_new: 0,
        icr: u64::from(register(at::ICR)) | u64::from(register(at::ICR2)) << 32,
        lvt_timer: register(at::LVT_TIMER),
        lvt_thermal: register(at::LVT_THERMAL),
        lvt_perf: register(at::LVT_PERF),
        lvt_lint0: register(at::LVT_LINT0),
        lvt_lint1: register(at::LVT_LINT1),
        lvt_error: register(at::LVT_ERROR),
        timer_initial: register(at::TIMER_INITIAL),
        timer_divide: register(at::TIMER_DIVIDE),
        timer_remaining_ns: 0,
        tsc_deadline,
        init: false,
        sipi,
        extint: vcpu.requests.extint_message(),
    };
    state.set_timer_current(register(at::TIMER_CURRENT));
    if let (0, Some(initial)) = (state.timer_initial, vcpu.expired_timer) {
        state.timer_initial = initial;
    }
    state
}

/// Replaces the register page. The mode has been set with the system registers.
pub(super) fn load(vcpu: &mut KvmVcpu, state: &LapicState) -> Result<(), AccelError> {
    let LapicState {
        apic_id,
        xapic_id,
        apic_base,
        tpr,
        irr,
        isr,
        tmr,
        ldr,
        dfr,
        svr,
        esr,
        esr_new: _,
        icr,
        lvt_timer,
        lvt_thermal,
        lvt_perf,
        lvt_lint0,
        lvt_lint1,
        lvt_error,
        timer_initial,
        timer_divide,
        timer_remaining_ns: _,
        tsc_deadline: _,
        init: _,
        sipi: _,
        extint: _,
    } = state;
    let mut page = vcpu.fd().get_lapic().map_err(host("KVM_GET_LAPIC"))?;
    let before = get(&page, at::LVT_TIMER);
    let current = state.timer_current();
    // KVM starts the timer anew from the page, and takes a one-shot timer that has expired for one that expires now. It
    // gets one that was never started instead, and the count is remembered for the next `save`.
    let expired = mode(*lvt_timer) == ONE_SHOT && current == 0;
    vcpu.expired_timer = (expired && *timer_initial != 0).then_some(*timer_initial);
    let id = if apic_base & X2APIC != 0 { *apic_id } else { u32::from(*xapic_id) << 24 };
    for (at, value) in [
        (at::ID, id),
        (at::TPR, (*tpr).into()),
        (at::LDR, *ldr),
        (at::DFR, *dfr),
        (at::SVR, *svr),
        (at::ESR, *esr),
        (at::ICR, *icr as u32),
        (at::ICR2, (*icr >> 32) as u32),
        (at::LVT_TIMER, *lvt_timer),
        (at::LVT_THERMAL, *lvt_thermal),
        (at::LVT_PERF, *lvt_perf),
        (at::LVT_LINT0, *lvt_lint0),
        (at::LVT_LINT1, *lvt_lint1),
        (at::LVT_ERROR, *lvt_error),
        (at::TIMER_INITIAL, if expired { 0 } else { *timer_initial }),
        (at::TIMER_CURRENT, current),
        (at::TIMER_DIVIDE, *timer_divide),
    ] {
        set(&mut page, at, value);
    }
    set_bits(&mut page, at::IRR, irr);
    set_bits(&mut page, at::ISR, isr);
    set_bits(&mut page, at::TMR, tmr);
    // KVM stops the timer when it goes into or out of deadline mode, behind the registers' back: then once more.
    let times = 1 + usize::from((mode(before) == DEADLINE) != (mode(*lvt_timer) == DEADLINE));
    (0..times).try_for_each(|_| vcpu.fd().set_lapic(&page)).map_err(loading("local APIC"))
}

/// Arms the TSC deadline: when the TSC is what it will be.
pub(super) fn load_deadline(vcpu: &mut KvmVcpu, state: &LapicState) -> Result<(), AccelError> {
    if mode(state.lvt_timer) != DEADLINE {
        return Ok(());
    }
    set_msrs(vcpu.fd(), [(TSC_DEADLINE, state.tsc_deadline)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_arrays_are_eight_registers_sixteen_bytes_apart() {
        let mut page = kvm_lapic_state::default();
        let bits = [1 << 63 | 1, 2, 3 << 40, u64::MAX];
        set_bits(&mut page, at::IRR, &bits);
        assert_eq!(get_bits(&page, at::IRR), bits);
        assert_eq!((get(&page, at::IRR), get(&page, at::IRR + 0x10)), (1, 1 << 31));
        assert_eq!(get(&page, at::ISR + 0x70), 0);
    }
}
