//! The half of a local APIC that other threads see.
//!
//! 1. Senders put interrupts in with `post_*`; the vCPU's thread takes everything out with `drain`.
//! 2. One word, `pending`, says whether there is anything to take and of which kind. A sender writes the details
//!    (vector bits) first and the word last; the owner swaps the word first and reads the details after. So a
//!    detail is never left behind without a flag, and a flag may at worst be found with nothing behind it.
//! 3. A sender that finds its flag already up need not kick: who raised it did, and the owner has not looked yet.
//! 4. `destination` is the owner's published copy of what senders need to tell whether a message addresses it.

use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::registers::x2apic_logical_id;
use super::vectors::VectorSet;

/// There are bits in `irr`.
const VECTORS: u32 = 1 << 0;
const NMI: u32 = 1 << 1;
const INIT: u32 = 1 << 2;
/// A start-up message; its vector is in bits 15:8 of the same word, so that both change together.
const SIPI: u32 = 1 << 3;
/// An ExtINT message (not the LINT0 line).
const EXTINT: u32 = 1 << 4;
/// LINT0 went from low to high.
const LINT0_ROSE: u32 = 1 << 5;
/// LINT1 went from low to high.
const LINT1_ROSE: u32 = 1 << 6;
/// A fixed message had a vector below 16.
const ILLEGAL_VECTOR: u32 = 1 << 7;
const SIPI_SHIFT: u32 = 8;
const SIPI_VECTOR: u32 = 0xff << SIPI_SHIFT;
/// More than one NMI.
const MORE_NMIS: u32 = 1 << 16;

/// What senders must know of a local APIC to address it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addressing {
    /// Bits 31:24 of the xAPIC's ID register.
    pub(super) xapic_id: u8,
    /// Bits 31:24 of the xAPIC's LDR.
    pub(super) logical_id: u8,
    /// DFR model: flat, otherwise cluster.
    pub(super) flat: bool,
    /// In x2APIC mode.
    pub(super) x2apic: bool,
    /// IA32_APIC_BASE.EN.
    pub(super) enabled: bool,
    /// SVR bit 8.
    pub(super) software_enabled: bool,
}

impl Addressing {
    /// After power-up: xAPIC mode, software-disabled, no logical ID.
    pub(super) const fn reset(apic_id: u32) -> Self {
        let xapic_id = apic_id as u8;
        Self { xapic_id, logical_id: 0, flat: true, x2apic: false, enabled: true, software_enabled: false }
    }

    const fn pack(self) -> u32 {
        self.logical_id as u32
            | (self.flat as u32) << 8
            | (self.x2apic as u32) << 9
            | (self.enabled as u32) << 10
            | (self.software_enabled as u32) << 11
            | (self.xapic_id as u32) << 16
    }

    const fn unpack(word: u32) -> Self {
        Self {
            xapic_id: (word >> 16) as u8,
            logical_id: word as u8,
            flat: word & 1 << 8 != 0,
            x2apic: word & 1 << 9 != 0,
            enabled: word & 1 << 10 != 0,
            software_enabled: word & 1 << 11 != 0,
        }
    }
}

/// Everything that was waiting in an inbox.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    pub(super) vectors: VectorSet,
    /// Which of `vectors` are level-triggered.
    pub(super) level: VectorSet,
    /// At most two.
    pub(super) nmis: u8,
    pub(super) init: bool,
    pub(super) sipi: Option<u8>,
    pub(super) extint: bool,
    pub(super) lint0_rose: bool,
    pub(super) lint1_rose: bool,
    pub(super) illegal_vector: bool,
}

/// Interrupts on their way to one vCPU's local APIC. Every method may be called from any thread and none blocks.
///
/// Each `post_*` and each line setter returns true if the vCPU must be kicked: it may be halted, or running without
/// having seen that there is something new. False means that an earlier sender's kick covers this item too.
#[derive(Debug)]
#[repr(align(64))] // two vCPUs' inboxes on one cache line would slow each other's polling
pub struct LapicInbox {
    pending: AtomicU32,
    addressing: AtomicU32,
    irr: [AtomicU64; 4],
    level: [AtomicU64; 4],
    lint0: AtomicBool,
    lint1: AtomicBool,
    task_priority: AtomicU8,
    apic_id: u32,
}

impl LapicInbox {
    /// An empty inbox for the local APIC with this (x2APIC) ID, addressed as after power-up.
    pub fn new(apic_id: u32) -> Self {
        Self {
            pending: AtomicU32::new(0),
            addressing: AtomicU32::new(Addressing::reset(apic_id).pack()),
            irr: Default::default(),
            level: Default::default(),
            lint0: AtomicBool::new(false),
            lint1: AtomicBool::new(false),
            task_priority: AtomicU8::new(0),
            apic_id,
        }
    }

    /// The (x2APIC) ID, fixed for the life of the vCPU.
    pub fn apic_id(&self) -> u32 {
        self.apic_id
    }

    /// True if something was posted that the owner has not taken yet: one load, for the vCPU's event check.
    #[inline(always)]
    pub fn has_work(&self) -> bool {
        self.pending.load(Ordering::Acquire) != 0
    }

    fn raise(&self, flag: u32) -> bool {
        self.pending.fetch_or(flag, Ordering::AcqRel) & flag == 0
    }

    /// Posts a fixed interrupt. A vector below 16 is not accepted: the receiver's ESR reports it
    /// (Intel SDM vol. 3, 11.5.3).
    pub fn post_vector(&self, vector: u8, level: bool) -> bool {
        if vector < 16 {
            return self.raise(ILLEGAL_VECTOR);
        }
        let (word, bit) = VectorSet::place(vector);
        if level {
            self.level[word].fetch_or(bit, Ordering::Relaxed);
        } else if self.level[word].load(Ordering::Relaxed) & bit != 0 {
            self.level[word].fetch_and(!bit, Ordering::Relaxed);
        }
        self.irr[word].fetch_or(bit, Ordering::Release);
        self.raise(VECTORS)
    }

    /// Posts a non-maskable interrupt. Of those that wait, two count.
    pub fn post_nmi(&self) -> bool {
        let old = self.update_pending(|word| word | if word & NMI != 0 { MORE_NMIS } else { NMI });
        old & NMI == 0
    }

    /// Posts an INIT. A start-up message that came before it is void.
    pub fn post_init(&self) -> bool {
        let old = self.update_pending(|word| word & !(SIPI | SIPI_VECTOR) | INIT);
        old & INIT == 0
    }

    /// Posts a start-up message. Of several that wait, the first counts.
    pub fn post_sipi(&self, vector: u8) -> bool {
        let old = self.update_pending(|word| {
            if word & SIPI != 0 { word } else { word | SIPI | u32::from(vector) << SIPI_SHIFT }
        });
        old & SIPI == 0
    }

    /// Posts an ExtINT message (I/O APIC or MSI; the 8259's line is [`Self::set_lint0`]).
    pub fn post_extint(&self) -> bool {
        self.raise(EXTINT)
    }

    /// Sets the level of LINT0, where the 8259's INTR output is wired.
    pub fn set_lint0(&self, high: bool) -> bool {
        let was = self.lint0.swap(high, Ordering::AcqRel);
        high && !was && self.raise(LINT0_ROSE)
    }

    /// Sets the level of LINT1, where the board's NMI source is wired.
    pub fn set_lint1(&self, high: bool) -> bool {
        let was = self.lint1.swap(high, Ordering::AcqRel);
        high && !was && self.raise(LINT1_ROSE)
    }

    /// The level of LINT0.
    pub fn lint0(&self) -> bool {
        self.lint0.load(Ordering::Acquire)
    }

    fn update_pending(&self, change: impl Fn(u32) -> u32) -> u32 {
        let mut word = self.pending.load(Ordering::Acquire);
        loop {
            let new = change(word);
            match self.pending.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(old) => return old,
                Err(now) => word = now,
            }
        }
    }

    /// Takes everything out (owner's thread).
    pub(super) fn drain(&self) -> Incoming {
        let word = self.pending.swap(0, Ordering::AcqRel);
        let mut incoming = Incoming {
            nmis: u8::from(word & NMI != 0) + u8::from(word & MORE_NMIS != 0),
            init: word & INIT != 0,
            sipi: (word & SIPI != 0).then_some((word >> SIPI_SHIFT) as u8),
            extint: word & EXTINT != 0,
            lint0_rose: word & LINT0_ROSE != 0,
            lint1_rose: word & LINT1_ROSE != 0,
            illegal_vector: word & ILLEGAL_VECTOR != 0,
            ..Incoming::default()
        };
        if word & VECTORS != 0 {
            for (index, waiting) in self.irr.iter().enumerate() {
                if waiting.load(Ordering::Relaxed) != 0 {
                    let taken = waiting.swap(0, Ordering::Acquire);
                    incoming.vectors.0[index] = taken;
                    incoming.level.0[index] = taken & self.level[index].load(Ordering::Relaxed);
                }
            }
        }
        incoming
    }

    /// Publishes how messages find this local APIC (owner's thread).
    pub(super) fn publish(&self, addressing: Addressing) {
        self.addressing.store(addressing.pack(), Ordering::Release);
    }

    /// Publishes the task priority for lowest-priority arbitration (owner's thread).
    pub(super) fn publish_task_priority(&self, tpr: u8) {
        self.task_priority.store(tpr, Ordering::Relaxed);
    }

    pub(super) fn addressing(&self) -> Addressing {
        Addressing::unpack(self.addressing.load(Ordering::Acquire))
    }

    pub(super) fn task_priority(&self) -> u8 {
        self.task_priority.load(Ordering::Relaxed)
    }

    /// True if a physical destination means this local APIC (Intel SDM vol. 3, 11.6.2.1): its ID; in xAPIC mode its ID
    /// register, where a destination that does not fit there is still the ID. A broadcast is not decided here.
    pub(super) fn matches_physical(&self, id: u32) -> bool {
        let own = self.addressing();
        match u8::try_from(id) {
            Ok(id) if !own.x2apic => id == own.xapic_id,
            _ => id == self.apic_id,
        }
    }

    /// True if a logical destination address means this local APIC (Intel SDM vol. 3, 11.6.2.2 for xAPIC mode,
    /// 11.12.10.2 for x2APIC mode). A broadcast address is not decided here: it is [`super::Destination::All`].
    pub(super) fn matches_logical(&self, mda: u32) -> bool {
        let own = self.addressing();
        if own.x2apic {
            let id = x2apic_logical_id(self.apic_id);
            return id >> 16 == mda >> 16 && id & mda & 0xffff != 0;
        }
        let Ok(mda) = u8::try_from(mda) else { return false };
        if own.flat {
            own.logical_id & mda != 0
        } else {
            own.logical_id >> 4 == mda >> 4 && own.logical_id & mda & 0xf != 0
        }
    }
}
