//! The APIC bus: takes an interrupt message to the local APICs it addresses.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::inbox::LapicInbox;
use super::message::{ApicMessage, DeliveryMode, Destination};

/// Makes a vCPU look at its inbox: wakes it from HLT or wait-for-SIPI, or makes it leave its fast path.
///
/// Called from any thread, after the item is in the inbox. A kick must be sticky (one that comes just before the
/// vCPU goes to sleep keeps it awake) and may be spurious. It need not make the vCPU's `run` return.
pub trait VcpuKick: Send + Sync {
    /// Kicks the vCPU with this index.
    fn kick(&self, vcpu: usize);
}

impl<F: Fn(usize) + Send + Sync> VcpuKick for F {
    fn kick(&self, vcpu: usize) {
        self(vcpu);
    }
}

/// All local APICs of a VM as senders see them.
///
/// A vCPU's index is its place in the list of IDs that `new` was given. As long as no xAPIC has been given another ID, a
/// physical destination is found by search; a logical one is matched against what each local APIC published last.
pub struct ApicBus {
    inboxes: Vec<Arc<LapicInbox>>,
    /// (APIC ID, vCPU index), sorted.
    by_id: Vec<(u32, usize)>,
    /// Some xAPIC's ID register has been written.
    renumbered: AtomicBool,
    kick: Arc<dyn VcpuKick>,
    /// Where the next search among equal task priorities starts.
    turn: AtomicUsize,
}

impl fmt::Debug for ApicBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApicBus").field("inboxes", &self.inboxes).finish_non_exhaustive()
    }
}

impl ApicBus {
    /// A bus with one empty inbox for each of the IDs, which must differ from each other.
    pub fn new(apic_ids: impl IntoIterator<Item = u32>, kick: Arc<dyn VcpuKick>) -> Self {
        let inboxes: Vec<_> = apic_ids.into_iter().map(|id| Arc::new(LapicInbox::new(id))).collect();
        let mut by_id: Vec<_> =
            inboxes.iter().enumerate().map(|(vcpu, inbox)| (inbox.apic_id(), vcpu)).collect();
        by_id.sort_unstable();
        Self { inboxes, by_id, renumbered: AtomicBool::new(false), kick, turn: AtomicUsize::new(0) }
    }

    /// The inbox of the vCPU with this index.
    pub fn inbox(&self, vcpu: usize) -> Option<&Arc<LapicInbox>> {
        self.inboxes.get(vcpu)
    }

    /// Delivers a message and kicks the receivers that need it. Returns how many local APICs accepted it.
    ///
    /// `sender` is the index of the vCPU on whose thread, and by whose ICR, the message is sent: it is meant by the
    /// shorthands and is not kicked, since it looks at its inbox itself when the ICR write is done. Devices pass
    /// `None`, for which "all but the sender" is everybody and "the sender" is nobody.
    ///
    /// A disabled local APIC accepts nothing; a software-disabled one only NMI, INIT and start-up
    /// (Intel SDM vol. 3, 11.4.7.2).
    pub fn deliver(&self, message: &ApicMessage, sender: Option<usize>) -> usize {
        match message.destination {
            Destination::Physical(id) if self.renumbered.load(Ordering::Acquire) => {
                self.scatter(message, sender, |_, inbox| inbox.matches_physical(id))
            }
            Destination::Physical(id) => match self.by_id.binary_search_by_key(&id, |entry| entry.0) {
                Ok(at) => usize::from(self.post(self.by_id[at].1, message, sender)),
                Err(_) => 0,
            },
            Destination::Sender => sender.map_or(0, |vcpu| usize::from(self.post(vcpu, message, sender))),
            Destination::Logical(mda) => self.scatter(message, sender, |_, inbox| inbox.matches_logical(mda)),
            Destination::All => self.scatter(message, sender, |_, _| true),
            Destination::AllButSender => self.scatter(message, sender, |vcpu, _| Some(vcpu) != sender),
        }
    }

    /// From now on physical destinations are compared with what each local APIC has published.
    pub(super) fn renumber(&self) {
        self.renumbered.store(true, Ordering::Release);
    }

    /// Sets the level of the 8259's INTR output, which is wired to LINT0 of every local APIC.
    pub fn set_lint0(&self, high: bool) {
        for (vcpu, inbox) in self.inboxes.iter().enumerate() {
            if inbox.set_lint0(high) {
                self.kick.kick(vcpu);
            }
        }
    }

    /// Raises an NMI at one vCPU whatever its local APIC is set to (a debugger's or operator's NMI). False if there
    /// is no such vCPU.
    pub fn inject_nmi(&self, vcpu: usize) -> bool {
        let Some(inbox) = self.inboxes.get(vcpu) else { return false };
        if inbox.post_nmi() {
            self.kick.kick(vcpu);
        }
        true
    }

    fn scatter(
        &self,
        message: &ApicMessage,
        sender: Option<usize>,
        addressed: impl Fn(usize, &LapicInbox) -> bool,
    ) -> usize {
        if message.mode == DeliveryMode::LowestPriority {
            let chosen = self.arbitrate(addressed);
            return chosen.map_or(0, |vcpu| usize::from(self.post(vcpu, message, sender)));
        }
        let mut accepted = 0;
        for (vcpu, inbox) in self.inboxes.iter().enumerate() {
            if addressed(vcpu, inbox) && self.post(vcpu, message, sender) {
                accepted += 1;
            }
        }
        accepted
    }

    /// The addressed and enabled vCPU with the lowest task priority (Intel SDM vol. 3, 11.6.2.4); equals take turns.
    fn arbitrate(&self, addressed: impl Fn(usize, &LapicInbox) -> bool) -> Option<usize> {
        let count = self.inboxes.len();
        let start = self.turn.load(Ordering::Relaxed) % count.max(1);
        let mut best: Option<(u8, usize)> = None;
        for vcpu in (start..count).chain(0..start) {
            let inbox = &self.inboxes[vcpu];
            let own = inbox.addressing();
            if !own.enabled || !own.software_enabled || !addressed(vcpu, inbox) {
                continue;
            }
            let priority = inbox.task_priority() >> 4;
            if best.is_none_or(|(lowest, _)| priority < lowest) {
                best = Some((priority, vcpu));
            }
        }
        let (_, vcpu) = best?;
        self.turn.store(vcpu.wrapping_add(1), Ordering::Relaxed);
        Some(vcpu)
    }

    /// Puts the message into one inbox. False if that local APIC does not accept it.
    fn post(&self, vcpu: usize, message: &ApicMessage, sender: Option<usize>) -> bool {
        let Some(inbox) = self.inboxes.get(vcpu) else { return false };
        let own = inbox.addressing();
        if !own.enabled {
            return false;
        }
        let must_kick = match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if own.software_enabled => {
                inbox.post_vector(message.vector, message.level)
            }
            DeliveryMode::ExtInt if own.software_enabled => inbox.post_extint(),
            DeliveryMode::Nmi => inbox.post_nmi(),
            DeliveryMode::Init => inbox.post_init(),
            DeliveryMode::StartUp => inbox.post_sipi(message.vector),
            DeliveryMode::Fixed | DeliveryMode::LowestPriority | DeliveryMode::ExtInt | DeliveryMode::Smi => {
                return false;
            }
        };
        if must_kick && Some(vcpu) != sender {
            self.kick.kick(vcpu);
        }
        true
    }
}
