//! Names and bits of the local APIC's registers (Intel SDM vol. 3, table 11-1 and table 11-6).
//!
//! A register's number is its xAPIC offset divided by 16, and its x2APIC MSR minus 0x800.

/// IA32_APIC_BASE.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// First of the MSRs that are the x2APIC's registers.
pub const MSR_X2APIC_FIRST: u32 = 0x800;
/// Last of the MSRs that are set aside for the x2APIC.
pub const MSR_X2APIC_LAST: u32 = 0x8ff;

/// Where the xAPIC page is after power-up.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;
/// Size in bytes of the xAPIC page.
pub const MMIO_SIZE: u64 = 0x1000;

/// IA32_APIC_BASE: this is the bootstrap processor.
pub const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode (EXTD).
pub const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: local APIC enabled (EN).
pub const BASE_ENABLED: u64 = 1 << 11;

pub(super) const ID: u8 = 0x02;
pub(super) const VERSION: u8 = 0x03;
pub(super) const TPR: u8 = 0x08;
pub(super) const APR: u8 = 0x09;
pub(super) const PPR: u8 = 0x0a;
pub(super) const EOI: u8 = 0x0b;
pub(super) const REMOTE_READ: u8 = 0x0c;
pub(super) const LDR: u8 = 0x0d;
pub(super) const DFR: u8 = 0x0e;
pub(super) const SVR: u8 = 0x0f;
pub(super) const ISR: u8 = 0x10;
pub(super) const ISR_LAST: u8 = 0x17;
pub(super) const TMR: u8 = 0x18;
pub(super) const TMR_LAST: u8 = 0x1f;
pub(super) const IRR: u8 = 0x20;
pub(super) const IRR_LAST: u8 = 0x27;
pub(super) const ESR: u8 = 0x28;
pub(super) const ICR_LOW: u8 = 0x30;
pub(super) const ICR_HIGH: u8 = 0x31;
pub(super) const LVT_TIMER: u8 = 0x32;
pub(super) const LVT_ERROR: u8 = 0x37;
pub(super) const TIMER_INITIAL: u8 = 0x38;
pub(super) const TIMER_CURRENT: u8 = 0x39;
pub(super) const TIMER_DIVIDE: u8 = 0x3e;
pub(super) const SELF_IPI: u8 = 0x3f;

/// Integrated APIC, version 0x14, highest LVT entry 5: there is no CMCI entry.
pub(super) const VERSION_VALUE: u32 = 0x0005_0014;
/// Version register: SVR bit 12 works.
pub(super) const VERSION_EOI_SUPPRESSION: u32 = 1 << 24;

/// SVR bits that always exist: vector, software enable, focus check.
pub(super) const SVR_MASK: u32 = 0x3ff;
pub(super) const SVR_ENABLED: u32 = 1 << 8;
pub(super) const SVR_SUPPRESS_EOI: u32 = 1 << 12;
pub(super) const SVR_RESET: u32 = 0xff;

pub(super) const DFR_RESET: u32 = 0xffff_ffff;
pub(super) const DFR_FIXED: u32 = 0x0fff_ffff;
pub(super) const LDR_MASK: u32 = 0xff00_0000;

pub(super) const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
pub(super) const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
pub(super) const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// ICR bits 31:20, 17:16 and 13. Bit 12 (delivery status) is dropped rather than refused: processors ignore it.
pub(super) const ICR_RESERVED: u32 = 0xfff3_2000;
/// ICR bit 12: a message leaves at once, so the status always reads idle.
pub(super) const ICR_BUSY: u32 = 1 << 12;

pub(super) const TIMER_DIVIDE_MASK: u32 = 0b1011;

/// The x2APIC's LDR, derived from its ID: cluster in bits 31:16, one bit of 16 below (Intel SDM vol. 3, 11.12.10.2).
pub(super) const fn x2apic_logical_id(apic_id: u32) -> u32 {
    apic_id >> 4 << 16 | 1 << (apic_id & 0xf)
}

/// The entries of the local vector table, in register order from 0x32 (Intel SDM vol. 3, 11.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lvt {
    Timer,
    Thermal,
    Perf,
    Lint0,
    Lint1,
    Error,
}

impl Lvt {
    pub(super) const COUNT: usize = 6;
    pub(super) const MASKED: u32 = 1 << 16;
    pub(super) const LEVEL: u32 = 1 << 15;
    pub(super) const REMOTE_IRR: u32 = 1 << 14;
    const DELIVERY_STATUS: u32 = 1 << 12;

    /// The entry with this register number.
    pub(super) const fn from_register(register: u8) -> Option<Self> {
        Some(match register {
            0x32 => Self::Timer,
            0x33 => Self::Thermal,
            0x34 => Self::Perf,
            0x35 => Self::Lint0,
            0x36 => Self::Lint1,
            0x37 => Self::Error,
            _ => return None,
        })
    }

    /// The bits that software may write.
    pub(super) const fn writable(self) -> u32 {
        match self {
            Self::Timer => 0x0007_00ff,
            Self::Thermal | Self::Perf => 0x0001_07ff,
            Self::Lint0 | Self::Lint1 => 0x0001_a7ff,
            Self::Error => 0x0001_00ff,
        }
    }

    /// The bits that exist: a write of ones to any other is #GP in x2APIC mode.
    pub(super) const fn defined(self) -> u32 {
        match self {
            Self::Lint0 | Self::Lint1 => self.writable() | Self::DELIVERY_STATUS | Self::REMOTE_IRR,
            _ => self.writable() | Self::DELIVERY_STATUS,
        }
    }
}
