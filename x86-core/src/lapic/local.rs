//! The registers' half of a local APIC: priorities, acceptance, EOI, local interrupts, resets.

use std::fmt;
use std::sync::Arc;

use accel_api::x86::Events;

use super::bus::ApicBus;
use super::inbox::{Addressing, LapicInbox};
use super::message::{ApicMessage, DeliveryMode, Destination};
use super::registers::{self as reg, Lvt};
use super::timer::{Now, Timer, TimerDeadline};
use super::vectors::VectorSet;

/// A general protection fault, `#GP(0)`: the access is to be refused and nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpFault;

impl fmt::Display for GpFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("#GP(0) from the local APIC")
    }
}

impl std::error::Error for GpFault {}

/// What a local APIC says to the rest of the machine.
pub trait ApicHost: Send + Sync {
    /// Broadcast of the EOI of a level-triggered vector to the I/O APICs (Intel SDM vol. 3, 11.8.5). Called on the
    /// vCPU's thread; may deliver messages to the same vCPU.
    fn eoi(&self, vector: u8);
}

/// What is fixed about a local APIC when its vCPU is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LapicConfig {
    /// The bootstrap processor: IA32_APIC_BASE.BSP after power-up.
    pub bsp: bool,
    /// CPUID.1:ECX bit 21: x2APIC mode can be entered.
    pub x2apic: bool,
    /// SVR bit 12 and bit 24 of the version register: the guest may suppress EOI broadcasts.
    pub eoi_suppression: bool,
    /// MAXPHYADDR, which bounds IA32_APIC_BASE.
    pub phys_addr_bits: u8,
}

/// Mode of a local APIC by IA32_APIC_BASE (Intel SDM vol. 3, table 11-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Disabled,
    XApic,
    X2Apic,
}

impl Mode {
    /// `None` for EXTD without EN.
    pub(super) const fn from_base(base: u64) -> Option<Self> {
        match (base & reg::BASE_ENABLED != 0, base & reg::BASE_X2APIC != 0) {
            (false, false) => Some(Self::Disabled),
            (true, false) => Some(Self::XApic),
            (true, true) => Some(Self::X2Apic),
            (false, true) => None,
        }
    }
}

/// One vCPU's local APIC, owned by the vCPU's thread. See the [module](super) for its place and the CPU's duties.
pub struct Lapic {
    pub(super) bus: Arc<ApicBus>,
    pub(super) inbox: Arc<LapicInbox>,
    pub(super) vcpu: usize,
    pub(super) host: Arc<dyn ApicHost>,
    pub(super) config: LapicConfig,

    pub(super) base: u64,
    pub(super) tpr: u8,
    /// Kept up to date with `tpr` and `isr`.
    pub(super) ppr: u8,
    pub(super) irr: VectorSet,
    pub(super) isr: VectorSet,
    pub(super) tmr: VectorSet,
    /// xAPIC mode's ID; in other modes it waits for that mode, as after power-up.
    pub(super) xapic_id: u8,
    /// xAPIC mode's; in x2APIC mode derived from the ID.
    pub(super) ldr: u32,
    pub(super) dfr: u32,
    pub(super) svr: u32,
    /// What a read of ESR gives.
    pub(super) esr: u32,
    /// Errors since the last write of ESR.
    pub(super) esr_new: u32,
    /// High half as the register of the current mode has it: destination in bits 63:56 or 63:32.
    pub(super) icr: u64,
    pub(super) lvt: [u32; Lvt::COUNT],
    pub(super) timer: Timer,

    /// NMIs that wait for the CPU: at most two.
    pub(super) nmis: u8,
    pub(super) init: bool,
    pub(super) sipi: Option<u8>,
    /// An ExtINT message, or a LINT pin in ExtINT mode that is edge-like; not the LINT0 level.
    pub(super) extint: bool,
}

impl fmt::Debug for Lapic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lapic")
            .field("vcpu", &self.vcpu)
            .field("base", &format_args!("{:#x}", self.base))
            .field("svr", &format_args!("{:#x}", self.svr))
            .field("tpr", &self.tpr)
            .field("irr", &self.irr)
            .field("isr", &self.isr)
            .field("timer", &self.timer)
            .finish_non_exhaustive()
    }
}

impl Lapic {
    /// The local APIC of the vCPU with index `vcpu` on `bus`, as after power-up. What the inbox holds already stays
    /// there: another vCPU may have sent INIT before this one's thread came up. `None` if the bus has no such vCPU.
    pub fn new(bus: Arc<ApicBus>, vcpu: usize, config: LapicConfig, host: Arc<dyn ApicHost>) -> Option<Self> {
        let inbox = Arc::clone(bus.inbox(vcpu)?);
        let xapic_id = inbox.apic_id() as u8;
        let mut lapic = Self {
            bus,
            inbox,
            vcpu,
            host,
            config,
            base: 0,
            tpr: 0,
            ppr: 0,
            irr: VectorSet::EMPTY,
            isr: VectorSet::EMPTY,
            tmr: VectorSet::EMPTY,
            xapic_id,
            ldr: 0,
            dfr: reg::DFR_RESET,
            svr: reg::SVR_RESET,
            esr: 0,
            esr_new: 0,
            icr: 0,
            lvt: [Lvt::MASKED; Lvt::COUNT],
            timer: Timer::RESET,
            nmis: 0,
            init: false,
            sipi: None,
            extint: false,
        };
        lapic.base = lapic.reset_base();
        lapic.publish();
        Some(lapic)
    }

    fn reset_base(&self) -> u64 {
        reg::DEFAULT_BASE | reg::BASE_ENABLED | if self.config.bsp { reg::BASE_BSP } else { 0 }
    }

    /// Power-up reset (Intel SDM vol. 3, 11.4.7.1), also of what is still in the inbox.
    pub fn reset(&mut self) {
        self.inbox.drain();
        self.base = self.reset_base();
        self.xapic_id = self.apic_id() as u8;
        self.clear_registers();
        self.nmis = 0;
        self.extint = false;
        self.init = false;
        self.sipi = None;
        self.publish();
    }

    /// INIT (Intel SDM vol. 3, 11.4.7.3): like power-up, but the ID and IA32_APIC_BASE, with it x2APIC mode, stay.
    /// Pending interrupts and NMIs are dropped; a start-up message that followed the INIT stays.
    pub fn init(&mut self) {
        self.pull();
        self.clear_registers();
        self.nmis = 0;
        self.extint = false;
        self.publish();
    }

    /// The registers' state after power-up, without IA32_APIC_BASE and the ID.
    fn clear_registers(&mut self) {
        self.tpr = 0;
        self.irr = VectorSet::EMPTY;
        self.isr = VectorSet::EMPTY;
        self.tmr = VectorSet::EMPTY;
        self.ldr = 0;
        self.dfr = reg::DFR_RESET;
        self.svr = reg::SVR_RESET;
        self.esr = 0;
        self.esr_new = 0;
        self.icr = 0;
        self.lvt = [Lvt::MASKED; Lvt::COUNT];
        self.timer = Timer::RESET;
        self.update_ppr();
    }

    /// Tells senders how to address this local APIC.
    pub(super) fn publish(&self) {
        let mode = self.mode();
        self.inbox.publish(Addressing {
            xapic_id: self.xapic_id,
            logical_id: (self.ldr >> 24) as u8,
            flat: self.dfr >> 28 == 0xf,
            x2apic: mode == Mode::X2Apic,
            enabled: mode != Mode::Disabled,
            software_enabled: self.software_enabled(),
        });
        self.inbox.publish_task_priority(self.tpr);
    }

    /// The inbox, for the vCPU's event check.
    pub fn inbox(&self) -> &Arc<LapicInbox> {
        &self.inbox
    }

    /// The (x2APIC) ID.
    pub fn apic_id(&self) -> u32 {
        self.inbox.apic_id()
    }

    pub(super) fn mode(&self) -> Mode {
        // `base` never holds EXTD without EN.
        Mode::from_base(self.base).unwrap_or(Mode::Disabled)
    }

    /// IA32_APIC_BASE.EN: CPUID.1:EDX bit 9 follows it (Intel SDM vol. 3, 11.4.3).
    pub fn is_enabled(&self) -> bool {
        self.mode() != Mode::Disabled
    }

    /// True in x2APIC mode.
    pub fn is_x2apic(&self) -> bool {
        self.mode() == Mode::X2Apic
    }

    /// IA32_APIC_BASE.BSP: after INIT this CPU starts by itself, others wait for a start-up message.
    pub fn is_bsp(&self) -> bool {
        self.base & reg::BASE_BSP != 0
    }

    /// Where the register page is: in xAPIC mode only. It covers RAM that may lie there.
    pub fn mmio_base(&self) -> Option<u64> {
        (self.mode() == Mode::XApic).then_some(self.base & !(reg::MMIO_SIZE - 1))
    }

    pub(super) fn software_enabled(&self) -> bool {
        self.svr & reg::SVR_ENABLED != 0
    }

    // ---- Incoming ----

    /// Takes over what the inbox holds. Cheap when it is empty.
    #[inline]
    pub fn pull(&mut self) {
        if self.inbox.has_work() {
            self.take_over();
        }
    }

    #[cold]
    fn take_over(&mut self) {
        let incoming = self.inbox.drain();
        if incoming.init {
            self.init = true;
            self.sipi = None;
        }
        self.sipi = self.sipi.or(incoming.sipi);
        self.raise_nmis(incoming.nmis);
        if !self.is_enabled() {
            // Without a local APIC, LINT0 is the CPU's INTR pin (a level) and LINT1 its NMI pin (11.4.3). Messages
            // can only be stragglers that were sent before it was disabled.
            self.raise_nmis(incoming.lint1_rose.into());
            return;
        }
        self.extint |= incoming.extint;
        for (word, taken) in incoming.vectors.0.into_iter().enumerate() {
            self.irr.0[word] |= taken;
            self.tmr.0[word] = self.tmr.0[word] & !taken | incoming.level.0[word];
        }
        if incoming.illegal_vector {
            self.report_error(reg::ESR_RECEIVE_ILLEGAL_VECTOR);
        }
        if incoming.lint0_rose && !self.lint0_is_level() && !self.lint0_is_extint() {
            self.fire(Lvt::Lint0);
        }
        if incoming.lint1_rose {
            self.fire(Lvt::Lint1);
        }
        self.refresh_lint0();
    }

    /// True once for each INIT: the CPU is to be reset, and [`Self::init`] called.
    pub fn take_init(&mut self) -> bool {
        self.pull();
        std::mem::take(&mut self.init)
    }

    /// The vector of a start-up message, once. A CPU that does not wait for one has to drop it. Nothing comes out
    /// before the INIT in front of it was taken: both may arrive between a call of [`Self::take_init`] and this.
    pub fn take_sipi(&mut self) -> Option<u8> {
        self.pull();
        if self.init { None } else { self.sipi.take() }
    }

    fn raise_nmis(&mut self, more: u8) {
        self.nmis = (self.nmis + more).min(Events::nmi_limit(false));
    }

    /// True if an NMI waits.
    #[inline]
    pub fn nmi_pending(&mut self) -> bool {
        self.pull();
        self.nmis != 0
    }

    /// True once for each NMI. Of those that come before one is taken, two count.
    pub fn take_nmi(&mut self) -> bool {
        self.pull();
        let waits = self.nmis != 0;
        self.nmis = self.nmis.saturating_sub(1);
        waits
    }

    /// The CPU is about to let NMIs in again: of those that came while it did not, one counts (Intel SDM vol. 3, 6.7.1).
    pub fn merge_nmis(&mut self) {
        self.pull();
        self.nmis = self.nmis.min(Events::nmi_limit(true));
    }

    /// NMIs that wait, without those that are still in the inbox.
    pub(crate) fn nmis(&self) -> u8 {
        self.nmis
    }

    /// Replaces the NMIs that wait.
    pub(crate) fn set_nmis(&mut self, count: u8) {
        self.nmis = count.min(Events::nmi_limit(false));
    }

    /// True if an INIT waits.
    #[inline]
    pub fn init_pending(&mut self) -> bool {
        self.pull();
        self.init
    }

    /// True if an interrupt waits whose vector the CPU must ask of the 8259 by an INTA cycle. It comes before
    /// [`Self::pending_vector`] and is not subject to the task priority.
    pub fn extint_pending(&mut self) -> bool {
        self.pull();
        if !self.is_enabled() {
            return self.inbox.lint0();
        }
        self.extint || self.lint0_is_extint() && self.inbox.lint0()
    }

    /// The CPU has run the INTA cycle for [`Self::extint_pending`].
    pub fn accept_extint(&mut self) {
        self.extint = false;
    }

    // ---- Priority (Intel SDM vol. 3, 11.8.3 to 11.8.5) ----

    pub(super) fn update_ppr(&mut self) {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        // Where the classes are equal the manual leaves the sub-class open; KVM shows TPR's.
        self.ppr = if self.tpr & 0xf0 >= in_service { self.tpr } else { in_service };
    }

    /// The vector the CPU may be interrupted with now: the highest in IRR, if its class is above PPR's.
    #[inline]
    pub fn pending_vector(&mut self) -> Option<u8> {
        self.pull();
        self.irr.highest().filter(|vector| vector >> 4 > self.ppr >> 4)
    }

    /// True if an interrupt waits that a CPU with RFLAGS.IF = 1 takes: for HLT and for STI, IRET and POPF.
    #[inline]
    pub fn has_interrupt(&mut self) -> bool {
        self.pending_vector().is_some() || self.extint_pending()
    }

    /// The CPU takes `vector` (of [`Self::pending_vector`]): it moves from IRR to ISR. Returns the vector to
    /// deliver: the spurious one, with ISR as it was, if `vector` is not deliverable any more (11.9).
    pub fn accept(&mut self, vector: u8) -> u8 {
        if !self.irr.contains(vector) || vector >> 4 <= self.ppr >> 4 {
            return self.svr as u8;
        }
        self.irr.remove(vector);
        self.isr.insert(vector);
        self.update_ppr();
        vector
    }

    /// End of interrupt: the highest vector leaves ISR; if it was level-triggered, the I/O APICs hear of it unless
    /// SVR bit 12 says no.
    pub(super) fn end_of_interrupt(&mut self) {
        let Some(vector) = self.isr.highest() else { return };
        self.isr.remove(vector);
        self.update_ppr();
        if !self.tmr.contains(vector) {
            return;
        }
        let lint0 = &mut self.lvt[Lvt::Lint0 as usize];
        if *lint0 as u8 == vector {
            *lint0 &= !Lvt::REMOTE_IRR;
        }
        if self.svr & reg::SVR_SUPPRESS_EOI == 0 {
            self.host.eoi(vector);
        }
        self.pull();
        self.refresh_lint0();
    }

    /// CR8: bits 7:4 of TPR (Intel SDM vol. 3, 11.8.6).
    pub fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    /// Writes CR8.
    ///
    /// # Errors
    ///
    /// #GP if a bit above 3 is set.
    pub fn set_cr8(&mut self, value: u64) -> Result<(), GpFault> {
        match u8::try_from(value) {
            Ok(class @ 0..=15) => self.set_tpr(class << 4),
            _ => return Err(GpFault),
        }
        Ok(())
    }

    pub(super) fn set_tpr(&mut self, value: u8) {
        self.tpr = value;
        self.update_ppr();
        self.inbox.publish_task_priority(value);
    }

    // ---- Local interrupts (Intel SDM vol. 3, 11.5) ----

    /// Puts an interrupt of this local APIC's own making into IRR.
    pub(super) fn accept_local(&mut self, vector: u8, level: bool) {
        if vector < 16 {
            self.report_error(reg::ESR_RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        self.irr.insert(vector);
        self.tmr.set(vector, level);
    }

    /// The event of a local vector table entry happens.
    pub(super) fn fire(&mut self, entry: Lvt) {
        let lvt = self.lvt[entry as usize];
        if lvt & Lvt::MASKED != 0 {
            return;
        }
        let mode = match entry {
            Lvt::Timer | Lvt::Error => 0,
            _ => lvt >> 8 & 7,
        };
        match mode {
            0 => self.accept_local(lvt as u8, false),
            4 => self.raise_nmis(1),
            5 => {
                self.init = true;
                self.sipi = None;
            }
            7 => self.extint = true,
            _ => {}
        }
    }

    /// Logs errors; the first since the last write of ESR raises the error interrupt (11.5.3).
    pub(super) fn report_error(&mut self, bits: u32) {
        let armed = self.esr_new == 0;
        self.esr_new |= bits;
        // An illegal vector in the error entry itself comes back here once, and finds the interrupt not armed.
        if armed {
            self.fire(Lvt::Error);
        }
    }

    fn lint0_is_extint(&self) -> bool {
        let lvt = self.lvt[Lvt::Lint0 as usize];
        lvt & Lvt::MASKED == 0 && lvt >> 8 & 7 == 7
    }

    fn lint0_is_level(&self) -> bool {
        let lvt = self.lvt[Lvt::Lint0 as usize];
        lvt & Lvt::LEVEL != 0 && lvt >> 8 & 7 == 0
    }

    /// A fixed, level-triggered LINT0 interrupts again as long as the line is up and the last one has its EOI.
    pub(super) fn refresh_lint0(&mut self) {
        let lvt = self.lvt[Lvt::Lint0 as usize];
        if self.lint0_is_level() && lvt & (Lvt::MASKED | Lvt::REMOTE_IRR) == 0 && self.inbox.lint0() {
            if lvt as u8 >= 16 {
                self.lvt[Lvt::Lint0 as usize] |= Lvt::REMOTE_IRR;
            }
            self.accept_local(lvt as u8, true);
        }
    }

    // ---- Timer ----

    /// When [`Self::expire`] has to be called next; `None` if no timer interrupt is due ever. Asks for nothing
    /// while the timer's entry is masked: the timer is brought up to date when it is next looked at.
    pub fn next_deadline(&self) -> Option<TimerDeadline> {
        if self.lvt[Lvt::Timer as usize] & Lvt::MASKED != 0 {
            return None;
        }
        self.timer.deadline()
    }

    /// Lets the timer interrupt if it is due. May be called at any time.
    pub fn expire(&mut self, now: Now) {
        if self.timer.expire(now) {
            self.fire(Lvt::Timer);
        }
    }

    // ---- Outgoing ----

    /// Sends what ICR says (Intel SDM vol. 3, 11.6).
    pub(super) fn send_icr(&mut self) {
        let Some(message) = ApicMessage::from_icr(self.icr, self.is_x2apic()) else { return };
        if message.mode.has_vector() && message.vector < 16 {
            self.report_error(reg::ESR_SEND_ILLEGAL_VECTOR);
            return;
        }
        if message.destination == Destination::Sender && message.mode == DeliveryMode::Fixed {
            self.send_to_self(message.vector);
            return;
        }
        self.bus.deliver(&message, Some(self.vcpu));
        self.pull();
    }

    /// A fixed interrupt to this local APIC, without the detour over the bus.
    pub(super) fn send_to_self(&mut self, vector: u8) {
        if self.software_enabled() {
            self.accept_local(vector, false);
        }
    }

    // ---- IA32_APIC_BASE ----

    /// IA32_APIC_BASE (MSR 0x1b).
    pub fn apic_base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE. Leaving for the disabled state loses all registers; entering x2APIC mode keeps them, except
    /// LDR, which is then derived, the ID register and ICR's destination (Intel SDM vol. 3, 11.12.5).
    ///
    /// # Errors
    ///
    /// #GP for reserved bits, EXTD without EN, x2APIC to xAPIC and disabled to x2APIC.
    pub fn set_apic_base(&mut self, value: u64) -> Result<(), GpFault> {
        let to = self.check_base(value).ok_or(GpFault)?;
        let from = self.mode();
        if matches!((from, to), (Mode::X2Apic, Mode::XApic) | (Mode::Disabled, Mode::X2Apic)) {
            return Err(GpFault);
        }
        self.base = value;
        match (from, to) {
            (Mode::XApic | Mode::X2Apic, Mode::Disabled) => {
                self.pull();
                self.clear_registers();
                self.extint = false;
            }
            (Mode::XApic, Mode::X2Apic) => self.icr &= 0xffff_ffff,
            _ => {}
        }
        if to != Mode::XApic {
            self.xapic_id = self.apic_id() as u8;
        }
        self.publish();
        Ok(())
    }

    /// The mode that a value of IA32_APIC_BASE means; `None` if it is not valid here.
    pub(super) fn check_base(&self, value: u64) -> Option<Mode> {
        let width = u32::from(self.config.phys_addr_bits.clamp(32, 52));
        let address = ((1 << width) - 1) & !(reg::MMIO_SIZE - 1);
        let mut allowed = address | reg::BASE_BSP | reg::BASE_ENABLED;
        if self.config.x2apic {
            allowed |= reg::BASE_X2APIC;
        }
        if value & !allowed != 0 {
            return None;
        }
        Mode::from_base(value)
    }
}
