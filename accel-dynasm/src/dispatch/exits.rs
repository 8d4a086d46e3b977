//! The reasons for which host code is left: look-ups, misses of the soft TLB, instructions that x86-core executes,
//! requests and faults.

use std::any::Any;

use x86_core::alu::flag;
use x86_core::{AccessKind, Cpu, Ea, Exec, Fault};

use super::failure::signal_name;
use super::{Dispatcher, Found};
use crate::runtime::helpers::{Helpers, LEAVE};
use crate::store::blocks::Block;
use crate::store::inline_tlb::REFILLS;
use crate::translate::output::{INDIRECT, NOTHING, RETIRED, Site, SiteKind};

/// The site with a number, and its block's number; without one, leaves the function.
macro_rules! site {
    ($self:expr, $cpu:expr, $site:expr) => {
        match $self.store.blocks.sites.get($site) {
            Some(known) => *known,
            None => {
                let what = format!("it asked for site {:#x}, which does not exist", $site);
                return $self.fail($cpu, &what, None);
            }
        }
    };
}

impl Helpers for Dispatcher {
    /// The block at RIP. `argument`: [`NOTHING`] or [`RETIRED`]; or the direct jump that asks for its target; or, with
    /// [`INDIRECT`], the site of a jump whose target the jump cache did not have.
    fn look_up(&mut self, cpu: &mut Cpu, argument: u32) -> *const u8 {
        match argument {
            NOTHING | RETIRED => {}
            _ if argument & INDIRECT != 0 => {
                self.counters.jump_cache_misses += 1;
                let (number, site) = site!(self, cpu, argument & !INDIRECT);
                if !Cpu::canonical(cpu.rip)
                    && let SiteKind::Indirect { moved } = site.kind
                {
                    return self.bad_target(cpu, number, &site, moved);
                }
            }
            jump => match self.store.jump(jump) {
                Some(jump) => self.take_flags(cpu, if jump.host_flags { NOTHING } else { jump.known }),
                None => {
                    let what = format!("it asked for jump {jump:#x}, which does not exist");
                    return self.fail(cpu, &what, None);
                }
            },
        }
        self.go_on(cpu, argument)
    }

    fn tlb_miss(&mut self, cpu: &mut Cpu, site: u32) -> *const u8 {
        let (number, site) = site!(self, cpu, site);
        // Tried again, the check saves them again if it has saved them; else it has no need of them.
        cpu.flags.0 = self.runtime.context().flags as u16;
        if site.kind == SiteKind::Refill {
            if self.refilled(cpu, number, &site) {
                return self.resume(number, site.retry);
            }
            self.take_flags(cpu, site.flags);
            self.count(-1 - i64::from(site.rest));
            return self.go_on(cpu, NOTHING);
        }
        self.counters.tlb_misses += 1;
        let (SiteKind::Access { size, write } | SiteKind::Group { size, write }) = site.kind else {
            return self.fail(cpu, "it asked for an access where there is none", None);
        };
        let ea = self.runtime.context().ea;
        // D bits are set by the stores themselves, which a group's check may be well before.
        let group = matches!(site.kind, SiteKind::Group { .. });
        let kind = if write && !group { AccessKind::Write } else { AccessKind::Read };
        // A fault, if any, is found again by the instruction itself, which knows its order and its segment.
        let filled = cpu.span(Ea::data(ea), size.into(), kind).is_ok();
        let entry = cpu.tlb.entry(cpu.tlb_mode(), ea);
        let tag = if write { entry.write_tag } else { entry.read_tag };
        if filled && ea ^ tag <= 4096 - u64::from(size) {
            return self.resume(number, site.retry);
        }
        self.take_flags(cpu, site.flags);
        cpu.rip = address(self.store.blocks.get(number), &site, cpu);
        if group {
            self.counters.group_misses += 1;
            self.count(-1 - i64::from(site.rest));
            self.ungrouped = true;
            self.store.group_missed(number);
            return self.go_on(cpu, NOTHING);
        }
        self.counters.slow_accesses += 1;
        self.compare_before(cpu, &site);
        let done = cpu.execute_one().map(|ins| ins.next_ip());
        self.executed(cpu, number, &site, done)
    }

    fn execute_helper(&mut self, cpu: &mut Cpu, site: u32) -> *const u8 {
        self.counters.helper_calls += 1;
        let (number, site) = site!(self, cpu, site);
        let (SiteKind::Helper(helper) | SiteKind::Begun(helper)) = site.kind else {
            return self.fail(cpu, "it asked for an instruction where there is none", None);
        };
        self.take_flags(cpu, site.flags);
        cpu.rip = address(self.store.blocks.get(number), &site, cpu);
        if site.kind == SiteKind::Helper(helper) {
            self.compare_before(cpu, &site);
        }
        let block = self.store.blocks.get(number);
        let helper = &self.store.blocks.helpers[helper];
        self.helper_counts.count(&helper.instruction);
        // It was decoded for another address of its page.
        let moved = helper.relative && block.page != block.page_now(cpu);
        let done = if moved {
            cpu.execute_one().map(|ins| ins.next_ip())
        } else {
            let next = cpu.rip.wrapping_add(helper.instruction.len() as u64);
            cpu.next_rip = next;
            (helper.function)(cpu, &helper.instruction).map(|()| next)
        };
        self.executed(cpu, number, &site, done)
    }

    fn poll(&mut self, cpu: &mut Cpu, site: u32) -> *const u8 {
        let (number, site) = site!(self, cpu, site);
        self.take_flags(cpu, site.flags);
        cpu.rip = address(self.store.blocks.get(number), &site, cpu);
        self.count(-1 - i64::from(site.rest));
        LEAVE
    }

    /// x86-core finds which exception the guest gets.
    fn fault(&mut self, cpu: &mut Cpu) -> *const u8 {
        self.counters.host_faults += 1;
        let (pc, signal) = (self.runtime.context().fault_pc, self.runtime.context().fault_signal);
        let known = self.store.fault_at(pc);
        let Some((rip, vectors, fault)) = known.map(|(block, fault)| {
            (block.page_now(cpu) + u64::from(fault.offset), block.mode.vectors(), fault)
        }) else {
            return self.fail(cpu, &format!("it raised {}", signal_name(signal)), Some(pc));
        };
        if vectors {
            self.take_vectors(cpu);
        }
        cpu.rip = rip;
        self.take_flags(cpu, fault.flags);
        self.count(-1 - i64::from(fault.rest));
        if let Err(fault) = self.single(cpu) {
            return self.raise(fault);
        }
        self.go_on(cpu, NOTHING)
    }

    fn panicked(&mut self, cpu: &Cpu, payload: &(dyn Any + Send)) -> *const u8 {
        self.fail_by_panic(cpu, payload)
    }
}

impl Dispatcher {
    /// A computed jump to an address that is not canonical: a fault of the jump, which is undone. The address that CALL
    /// has stored by then stays, below the stack.
    #[cold]
    fn bad_target(&mut self, cpu: &mut Cpu, number: u32, site: &Site, moved: i32) -> *const u8 {
        cpu.rip = address(self.store.blocks.get(number), site, cpu);
        let rsp = &mut cpu.gpr[accel_api::x86::gpr::RSP];
        *rsp = rsp.wrapping_add_signed(i64::from(moved));
        self.count(-1 - i64::from(site.rest));
        self.raise(Fault::GP0)
    }

    /// Leaves host code for `fault` to be delivered at RIP.
    fn raise(&mut self, fault: Fault) -> *const u8 {
        self.fault = Some(fault);
        LEAVE
    }

    /// Host code was left where the recipe with number `flags` gives the flags; with [`NOTHING`] they were in the
    /// host's.
    fn take_flags(&mut self, cpu: &mut Cpu, flags: u32) {
        if let Some(flags) = self.store.blocks.recipes.get(flags) {
            cpu.flags = flags.flags(cpu, self.runtime.context());
        }
    }

    /// The guest's vector registers are those that the host had at its exception.
    fn take_vectors(&mut self, cpu: &mut Cpu) {
        // Without AVX only the lower halves are in the host's.
        let words = if self.config.host.avx { 4 } else { 2 };
        for (register, found) in cpu.vector.0.iter_mut().zip(&self.runtime.context().fault_vectors) {
            register[..words].copy_from_slice(&found[..words]);
        }
    }

    /// Where to go on at RIP, with an argument of the stub `lookup`.
    fn go_on(&mut self, cpu: &mut Cpu, mut argument: u32) -> *const u8 {
        if self.is_checking() {
            self.arrive(cpu, argument);
            return LEAVE;
        }
        loop {
            self.counters.lookups += 1;
            self.take_stale_code(cpu);
            if cpu.leave {
                // An instruction may have been executed on its own since, or may be now.
                argument = NOTHING;
            }
            if cpu.leave && !self.settle(cpu) || cpu.shared.requested() != 0 {
                return LEAVE;
            }
            let evictions = self.store.counters.evictions;
            match self.find_for(cpu, self.store.recipe_at(argument)) {
                Ok(Found::Code(block)) => {
                    if self.is_due(block) {
                        self.arrive(cpu, argument);
                        return LEAVE;
                    }
                    if evictions != self.store.counters.evictions {
                        // The jump may be gone, and its number another's.
                    } else if argument & INDIRECT == 0 {
                        self.store.chain(argument, block);
                    } else if argument != NOTHING {
                        self.store.remember(cpu.rip, block);
                    }
                    self.note_waiting(cpu);
                    return self.store.entry(block);
                }
                Ok(Found::Single) => {
                    if let Err(fault) = self.single(cpu) {
                        return self.raise(fault);
                    }
                    // This is not the target of the jump.
                    argument = NOTHING;
                }
                Ok(Found::Again | Found::Interpret | Found::SelfModifying | Found::Excluded(_)) => {
                    return LEAVE;
                }
                Err(fault) => return self.raise(fault),
            }
        }
    }

    /// Whether host code can go on, though [`Cpu::leave`] was set: the run loop is not needed for that.
    fn settle(&mut self, cpu: &mut Cpu) -> bool {
        if cpu.shadow && !cpu.armed && !cpu.has(flag::TF) && cpu.pending_debug == 0 {
            // No interrupt before the next instruction, and no look at requests either.
            cpu.shadow = false;
            cpu.debug_shadow = false;
            cpu.system_flags &= !flag::RF;
            if let Err(fault) = self.single(cpu) {
                self.fault = Some(fault);
                return false;
            }
            self.take_stale_code(cpu);
        }
        if self.timer_moved(cpu) || !cpu.undisturbed() {
            return false;
        }
        cpu.leave = false;
        cpu.system_flags &= !flag::RF;
        true
    }

    /// Goes on after an instruction that x86-core has executed; `done` has the address of the next one.
    fn executed(&mut self, cpu: &mut Cpu, number: u32, site: &Site, done: Exec<u64>) -> *const u8 {
        let next = match done {
            Ok(next) => next,
            Err(fault) => {
                self.count(-1 - i64::from(site.rest));
                return self.raise(fault);
            }
        };
        cpu.rip = cpu.next_rip;
        if self.timer_moved(cpu) || self.note_waiting(cpu) {
            cpu.leave = true;
        }
        let mode = self.store.blocks.get(number).mode;
        let same = mode.holds(cpu) && !cpu.strict;
        if cpu.leave || !same || self.store.moved(cpu) || site.next == 0 || cpu.rip != next {
            self.count(-i64::from(site.rest));
            return self.go_on(cpu, NOTHING);
        }
        if matches!(site.kind, SiteKind::Helper(_) | SiteKind::Begun(_)) {
            self.runtime.context_mut().flags = cpu.flags.0.into();
        }
        self.resume(number, site.next)
    }

    /// Back into block `number`.
    fn resume(&mut self, number: u32, at: u32) -> *const u8 {
        self.runtime.context_mut().vectors = self.store.blocks.get(number).mode.vectors().into();
        self.store.address(number, at)
    }

    /// Inline TLB entries have been filled so often that it is time to look at the clock; whether the block, in which
    /// `site` did so last, goes on. If not, it is dropped, and RIP is at the access.
    fn refilled(&mut self, cpu: &mut Cpu, number: u32, site: &Site) -> bool {
        self.runtime.context_mut().refills = REFILLS;
        self.counters.inline_tlb_refills += REFILLS as u64;
        if !self.store.inline_tlb.too_fast() {
            return true;
        }
        let block = self.store.blocks.get(number);
        let page = block.key.ram_page();
        cpu.rip = address(block, site, cpu);
        self.store.inline_tlb.exclude(page, site.offset);
        self.counters.inline_tlb_given_up += 1;
        self.store.retire(number);
        false
    }
}

/// Linear address of the instruction of `site`.
fn address(block: &Block, site: &Site, cpu: &Cpu) -> u64 {
    block.page_now(cpu) + u64::from(site.offset)
}
