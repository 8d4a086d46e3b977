//! Interrupt messages: what travels between the interrupt command register, the I/O APIC, devices' MSIs and the
//! local APICs.

/// What a message asks its receiver to do (Intel SDM vol. 3, 11.6.1 and 11.11.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// Deliver the vector to every addressed processor.
    Fixed,
    /// Deliver the vector to the one addressed processor with the lowest task priority.
    LowestPriority,
    /// System management interrupt. This CPU has no system management mode: the message is dropped.
    Smi,
    /// Non-maskable interrupt; the vector is ignored.
    Nmi,
    /// INIT; the vector is ignored.
    Init,
    /// Start-up: run from `vector << 12` in real mode, if waiting for it.
    StartUp,
    /// Interrupt whose vector the receiver asks of the 8259 by an INTA cycle.
    ExtInt,
}

impl DeliveryMode {
    fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }

    /// True for the modes that carry a vector into the receiver's IRR.
    pub const fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// Who is addressed (Intel SDM vol. 3, 11.6.2 and 11.12.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The local APIC with this (x2APIC) ID.
    Physical(u32),
    /// Every local APIC whose logical ID meets this message destination address. How the two are compared is the
    /// receiver's choice: flat or cluster by its DFR, x2APIC cluster in x2APIC mode.
    Logical(u32),
    /// Every local APIC.
    All,
    /// Every local APIC but the sender's.
    AllButSender,
    /// The sender's own local APIC.
    Sender,
}

/// One interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicMessage {
    /// Who is addressed.
    pub destination: Destination,
    /// What is asked.
    pub mode: DeliveryMode,
    /// Level-triggered: the receiver's EOI is broadcast to the I/O APICs.
    pub level: bool,
    /// The vector, for the modes that have one.
    pub vector: u8,
}

const TRIGGER_LEVEL: u32 = 1 << 15;
const ASSERT: u32 = 1 << 14;
const XAPIC_BROADCAST: u32 = 0xff;
const X2APIC_BROADCAST: u32 = 0xffff_ffff;

impl ApicMessage {
    /// A fixed, edge-triggered interrupt.
    pub const fn fixed(destination: Destination, vector: u8) -> Self {
        Self { destination, mode: DeliveryMode::Fixed, level: false, vector }
    }

    /// Decodes a message-signalled interrupt (Intel SDM vol. 3, 11.11).
    ///
    /// `None` if it raises nothing: the address is not `0xfee?_????`, the delivery mode is reserved (3; 6, since a
    /// start-up cannot come from a device), or a level-triggered message says "de-assert".
    ///
    /// The destination has 8 bits, 0xff for everybody. The destination mode bit is honoured whether or not the
    /// redirection hint is set, as chipsets do; the hint turns a fixed message into a lowest-priority one.
    pub const fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        let level = data & TRIGGER_LEVEL != 0;
        if level && data & ASSERT == 0 {
            return None;
        }
        let redirect = address & 1 << 3 != 0;
        let mode = match data >> 8 & 7 {
            0 if redirect => DeliveryMode::LowestPriority,
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            7 => DeliveryMode::ExtInt,
            _ => return None,
        };
        let id = (address >> 12) as u32 & 0xff;
        let destination = if id == XAPIC_BROADCAST {
            Destination::All
        } else if address & 1 << 2 != 0 {
            Destination::Logical(id)
        } else {
            Destination::Physical(id)
        };
        Some(Self { destination, mode, level, vector: data as u8 })
    }

    /// Decodes a write to the interrupt command register (Intel SDM vol. 3, 11.6.1; 11.12.9 for `x2apic`, where
    /// bits 63:32 are the destination; otherwise bits 63:56 are).
    ///
    /// `None` if it sends nothing: a reserved delivery mode (3 and 7), or the INIT level de-assert, which this
    /// generation of APIC ignores. IPIs are edge-triggered whatever bit 15 says. Combinations of shorthand and mode
    /// that the manual calls invalid are sent as they are encoded.
    pub fn from_icr(icr: u64, x2apic: bool) -> Option<Self> {
        let low = icr as u32;
        let mode = DeliveryMode::from_bits(low >> 8)?;
        if mode == DeliveryMode::ExtInt {
            return None;
        }
        if mode == DeliveryMode::Init && low & TRIGGER_LEVEL != 0 && low & ASSERT == 0 {
            return None;
        }
        let (id, everybody) = if x2apic {
            ((icr >> 32) as u32, X2APIC_BROADCAST)
        } else {
            ((icr >> 56) as u32, XAPIC_BROADCAST)
        };
        let destination = match low >> 18 & 3 {
            1 => Destination::Sender,
            2 => Destination::All,
            3 => Destination::AllButSender,
            _ if id == everybody => Destination::All,
            _ if low & 1 << 11 != 0 => Destination::Logical(id),
            _ => Destination::Physical(id),
        };
        Some(Self { destination, mode, level: false, vector: low as u8 })
    }
}
