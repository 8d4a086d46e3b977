//! Keeps the other vCPUs out of guest code: for locked accesses that no host instruction does, and for walks that lose every
//! race (ADR 15).
//!
//! 1. [`VmShared::be_alone`] asks every other vCPU to leave guest code and waits until it has. It leaves where it looks at
//!    requests, at the latest at the end of its slice, and stays out until the [`Alone`] is dropped. In a device access it is
//!    out already, and stays out behind it.
//! 2. Who waits to be alone is out itself. So two that want it have their turns, and nobody waits in a circle.
//! 3. [`VmShared::ask_others_out`] asks and does not wait: those who come to look are kept out.
//! 4. Of an access alone only a device's part can take long. A kick of a vCPU ends its wait for another's: between
//!    instructions, where it decodes one, and where it waits to be alone itself, for which the instruction is given up and begun
//!    again ([`Fault::AGAIN`]). In the middle of an instruction, behind a device access of its own, nothing can end the wait but the
//!    other's access, and the other's kick ends that; but no third access comes first: who wants to be alone lets those in who
//!    are kept out there.

use accel_api::PageFlag;

use crate::shared::{VcpuShared, VmShared, request};
use crate::sync::atomic::{Ordering, fence};
use crate::{Cpu, Exec, Fault};

/// The other vCPUs stay out of guest code while it lives, once they are.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    vm: &'a VmShared,
    id: usize,
}

/// No other vCPU is in guest code while it lives.
#[derive(Debug)]
pub(crate) struct Alone<'a> {
    // Dropped in this order: who has the next turn finds the others as free as it found them.
    _asked: Asked<'a>,
    _turn: Turn<'a>,
}

/// No other vCPU is alone while it lives.
#[derive(Debug)]
struct Turn<'a> {
    vm: &'a VmShared,
    id: usize,
}

impl VmShared {
    fn others(&self, id: usize) -> impl Iterator<Item = &VcpuShared> {
        self.vcpus.iter().enumerate().filter(move |(n, _)| *n != id).map(|(_, vcpu)| &**vcpu)
    }

    /// vCPU `id` goes into guest code, once nobody else wants to be alone. False if one of `requests` is asked for before; it
    /// is not in guest code then.
    pub fn enter(&self, id: usize, requests: u32) -> bool {
        let own = &self.vcpus[id];
        if own.presence.try_enter(&self.solitude) {
            return true;
        }
        // Nothing but its turn lets it go on.
        own.presence.set_owed(requests == 0);
        let came = loop {
            if !own.wait_until(|| own.presence.may_enter(&self.solitude), requests) {
                break false;
            }
            if own.presence.try_enter(&self.solitude) {
                break true;
            }
        };
        own.presence.set_owed(false);
        came
    }

    /// Asks all vCPUs but `id` to leave guest code and stay out.
    pub(crate) fn ask_others_out(&self, id: usize) -> Asked<'_> {
        self.vcpus[id].presence.want(&self.solitude);
        self.others(id).filter(|vcpu| vcpu.presence.is_present()).for_each(|vcpu| vcpu.post(request::LEAVE));
        Asked { vm: self, id }
    }

    /// Waits until no vCPU but `id` is in guest code; `id` must not be either. Nothing if one of `requests` is asked for while
    /// another is alone.
    pub(crate) fn be_alone(&self, id: usize, requests: u32) -> Option<Alone<'_>> {
        let take = || self.turn.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if !take() && !self.vcpus[id].wait_until(take, requests) {
            return None;
        }
        let turn = Turn { vm: self, id };
        for vcpu in self.others(id) {
            while vcpu.presence.is_owed() {
                std::thread::yield_now();
            }
        }
        let asked = self.ask_others_out(id);
        for vcpu in self.others(id) {
            while vcpu.presence.is_present() {
                std::thread::yield_now();
            }
        }
        Some(Alone { _asked: asked, _turn: turn })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.vm.turn.store(false, Ordering::Release);
        // Those who want it may be about to sleep.
        fence(Ordering::SeqCst);
        self.vm.others(self.id).for_each(VcpuShared::look_again);
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.vm.vcpus[self.id].presence.unwant(&self.vm.solitude);
        self.vm.others(self.id).for_each(VcpuShared::look_again);
    }
}

impl Cpu {
    /// Does `access` while no other vCPU is in guest code, as processors lock the bus (Intel SDM vol. 3, 9.1.2). What was known
    /// of memory may have changed by then. The instruction has changed nothing yet.
    ///
    /// # Errors
    /// Those of `access`; or [`Fault::AGAIN`]: a kick comes while another vCPU is alone.
    #[cold]
    pub(crate) fn alone<R>(&mut self, access: impl FnOnce(&mut Self) -> Exec<R>) -> Exec<R> {
        let vm = self.vm.clone();
        let present = self.shared.presence.leave();
        let _alone = vm.be_alone(self.id as usize, self.gives_up_for()).ok_or(Fault::AGAIN)?;
        if present {
            self.shared.presence.come_back();
        }
        // Nobody has waited for us meanwhile.
        self.leave |= self.serve_memory_requests();
        access(self)
    }

    /// Makes stores to RAM page `page`, code of which is about to be decoded, visible from now on; between two instructions.
    /// Whether translations have changed meanwhile.
    ///
    /// # Errors
    /// [`Fault::AGAIN`]: a kick comes while another vCPU is alone.
    pub fn watch_code(&mut self, page: usize) -> Exec<bool> {
        self.vm.flags.set(page, PageFlag::CODE);
        self.tlb.drop_write_tags_of(page);
        if !self.vm.code_watched(page, self.id as usize, self.gives_up_for()) {
            return Err(Fault::AGAIN);
        }
        Ok(self.serve_memory_requests())
    }

    /// The requests for which an instruction is given up that has changed nothing yet. The vCPU is out of guest code then, and
    /// stays there on its way to the run loop, which serves them first. A debug trap that MOV SS holds back keeps the run loop
    /// from that, and waits for the end of this instruction.
    fn gives_up_for(&self) -> u32 {
        if self.pending_debug == 0 { request::KICK } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use accel_api::{Kick, PageFlags};

    use super::*;

    fn vm(vcpus: u32) -> Arc<VmShared> {
        VmShared::new(Arc::new(PageFlags::new(1)), vcpus)
    }

    /// Four vCPUs are in guest code, want to be alone there, and want it in the middle of a walk.
    #[test]
    fn nobody_is_in_guest_code_beside_who_is_alone() {
        const ROUNDS: u32 = 300;
        let (vm, inside) = (vm(4), AtomicU32::new(0));
        std::thread::scope(|s| {
            for id in 0..4 {
                let (vm, inside) = (&vm, &inside);
                s.spawn(move || {
                    for round in 0..ROUNDS {
                        assert!(vm.enter(id, 0));
                        inside.fetch_add(1, Ordering::SeqCst);
                        let asked = (round % 3 == 0).then(|| vm.ask_others_out(id));
                        std::thread::yield_now();
                        drop(asked);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        vm.vcpus[id].leave();
                        let _alone = vm.be_alone(id, 0).expect("nobody is kicked");
                        assert_eq!(inside.load(Ordering::SeqCst), 0);
                        // As behind a device access of its own.
                        assert!(vm.enter(id, 0));
                        vm.vcpus[id].leave();
                    }
                });
            }
        });
        assert!((0..4).all(|id| vm.vcpus[id].presence.may_enter(&vm.solitude)));
    }

    #[test]
    fn those_inside_are_asked_to_leave_and_no_others() {
        let vm = vm(3);
        assert!(vm.enter(1, 0));
        let asked = vm.ask_others_out(0);
        assert_eq!([0, 1, 2].map(|id| vm.vcpus[id].requested()), [0, request::LEAVE, 0]);
        assert!(vm.vcpus[1].leave());
        std::thread::scope(|s| {
            let one = s.spawn(|| vm.enter(1, 0));
            drop(asked);
            assert!(one.join().unwrap());
        });
    }

    #[test]
    fn a_kick_ends_the_wait_of_who_is_kept_out() {
        let vm = vm(2);
        let _alone = vm.be_alone(0, 0);
        std::thread::scope(|s| {
            let one = s.spawn(|| vm.enter(1, request::KICK));
            // Another request does not.
            vm.vcpus[1].post(request::INTERRUPT);
            vm.vcpus[1].kick();
            assert!(!one.join().unwrap());
        });
        assert!(!vm.vcpus[1].presence.is_present());
        assert!(!vm.enter(1, request::KICK), "kicks stay until they are taken");
    }

    #[test]
    fn a_kick_ends_the_wait_for_ones_turn() {
        let vm = vm(2);
        let alone = vm.be_alone(0, 0);
        std::thread::scope(|s| {
            let one = s.spawn(|| vm.be_alone(1, request::KICK).is_none());
            vm.vcpus[1].post(request::INTERRUPT);
            vm.vcpus[1].kick();
            assert!(one.join().unwrap());
        });
        drop(alone);
        assert!(
            vm.be_alone(1, request::KICK).is_some(),
            "a kick does not keep it from a turn that it can have"
        );
        assert!(vm.be_alone(0, 0).is_some());
    }

    /// One vCPU is alone again and again, another is kept out in the middle of an instruction.
    #[test]
    fn who_is_kept_out_within_an_instruction_comes_in_before_the_next_access() {
        let (vm, came) = (vm(2), AtomicU32::new(0));
        std::thread::scope(|s| {
            for round in 1..=100 {
                let alone = vm.be_alone(0, 0);
                let one = s.spawn(|| {
                    assert!(vm.enter(1, 0));
                    came.fetch_add(1, Ordering::SeqCst);
                    vm.vcpus[1].leave();
                });
                while !vm.vcpus[1].presence.is_owed() {
                    std::thread::yield_now();
                }
                drop(alone);
                drop(vm.be_alone(0, 0));
                assert_eq!(came.load(Ordering::SeqCst), round);
                one.join().unwrap();
            }
        });
    }
}
