//! What translated code calls, through the stubs: everything that is not worth being translated.
//!
//! The vCPU's state is complete in [`Cpu`] while one of these runs, but for RIP, which follows from the site.
#![allow(unsafe_code)] // called with raw pointers by generated code

use x86_core::alu::flag;
use x86_core::{AccessKind, Cpu, Ea, Exec, Fault};

use crate::debug::injected_bug::{LEAVE, called, signal_name};
use crate::dispatch::{Dispatcher, Found, INDIRECT, NOTHING, RETIRED};
use crate::runtime::stubs::Functions;
use crate::store::blocks::Block;
use crate::translate::{Site, SiteKind};

pub(crate) const FUNCTIONS: Functions = Functions { lookup, miss, generic, poll, fault };

macro_rules! called_by_stubs {
    ($($(#[$doc:meta])* $name:ident: $work:ident;)*) => {$(
        $(#[$doc])*
        unsafe extern "sysv64" fn $name(cpu: *mut Cpu, engine: *mut Dispatcher, argument: u32) -> *const u8 {
            // SAFETY: called by a stub.
            unsafe { called(cpu, engine, |cpu, engine| $work(cpu, engine, argument)) }
        }
    )*};
}

called_by_stubs! {
    /// The block at RIP.
    lookup: look_up;
    /// The soft TLB does not know the address of an access.
    miss: fill;
    /// Executes an instruction by its function.
    generic: execute;
    /// Something is requested.
    poll: leave_for_request;
    /// A host instruction has raised an exception.
    fault: find_fault;
}

/// The site with number `site`, and its block's number.
///
/// # Errors
/// There is none: where to go on.
fn site(cpu: &Cpu, engine: &mut Dispatcher, site: u32) -> Result<(u32, Site), *const u8> {
    match engine.blocks.sites.get(site) {
        Some(known) => Ok(*known),
        None => Err(engine.slip(cpu, &format!("it asked for site {site:#x}, which there is not"), None)),
    }
}

/// Likewise; goes on there.
macro_rules! site {
    ($cpu:expr, $engine:expr, $site:expr) => {
        match site($cpu, $engine, $site) {
            Ok(known) => known,
            Err(leave) => return leave,
        }
    };
}

/// The block at RIP. `argument`: [`NOTHING`]; or the link that wants to lead there; or, with [`INDIRECT`], the site of a
/// jump that the jump table did not know.
fn look_up(cpu: &mut Cpu, engine: &mut Dispatcher, argument: u32) -> *const u8 {
    match argument {
        NOTHING | RETIRED => {}
        _ if argument & INDIRECT != 0 => {
            engine.stats.jump_misses += 1;
            let (number, site) = site!(cpu, engine, argument & !INDIRECT);
            if !Cpu::canonical(cpu.rip)
                && let SiteKind::Indirect { moved } = site.kind
            {
                return bad_target(cpu, engine, number, &site, moved);
            }
        }
        link if engine.blocks.links.get(link).is_some() => engine.flags_of_link(cpu, link),
        link => return engine.slip(cpu, &format!("it asked for link {link:#x}, which there is not"), None),
    }
    go_on(cpu, engine, argument)
}

/// A computed jump to an address that is not canonical: a fault of the jump, which is taken back. What CALL has stored by
/// then stays, below the stack.
#[cold]
fn bad_target(cpu: &mut Cpu, engine: &mut Dispatcher, number: u32, site: &Site, moved: i32) -> *const u8 {
    cpu.rip = address(engine.blocks.get(number), site, cpu);
    let rsp = &mut cpu.gpr[accel_api::gpr::RSP];
    *rsp = rsp.wrapping_add_signed(i64::from(moved));
    engine.count(-1 - i64::from(site.rest));
    raise(engine, Fault::GP0)
}

/// Leaves translated code for `fault` to be delivered at RIP.
fn raise(engine: &mut Dispatcher, fault: Fault) -> *const u8 {
    engine.fault = Some(fault);
    LEAVE
}

/// Linear address of the instruction of `site`.
fn address(block: &Block, site: &Site, cpu: &Cpu) -> u64 {
    block.page_now(cpu) + u64::from(site.offset)
}

/// Where to go on at RIP.
fn go_on(cpu: &mut Cpu, engine: &mut Dispatcher, mut argument: u32) -> *const u8 {
    if engine.lockstep.as_ref().is_some_and(|l| l.active()) {
        engine.arrive(cpu, argument);
        return LEAVE;
    }
    loop {
        engine.stats.lookups += 1;
        engine.take_stale_code(cpu);
        if cpu.leave {
            // An instruction may have been executed on its own since, or may be now.
            argument = NOTHING;
        }
        if cpu.leave && !settle(cpu, engine) || cpu.shared.requested() != 0 {
            return LEAVE;
        }
        let evictions = engine.stats.evictions;
        match engine.find_for(cpu, engine.known_at(argument)) {
            Ok(Found::Code(code)) => {
                if engine.is_due(code) {
                    engine.arrive(cpu, argument);
                    return LEAVE;
                }
                if evictions != engine.stats.evictions {
                    // The link may be gone, and its number another's.
                } else if argument & INDIRECT == 0 {
                    engine.link(argument, code);
                } else if argument != NOTHING {
                    engine.remember(cpu.rip, code);
                }
                engine.note_waiting(cpu);
                return engine.entry(code);
            }
            Ok(Found::Single) => {
                if let Err(fault) = engine.single(cpu) {
                    return raise(engine, fault);
                }
                // What was to be linked is not this.
                argument = NOTHING;
            }
            Ok(Found::Again | Found::Interpret | Found::SelfModifyingCode | Found::Excluded(_)) => {
                return LEAVE;
            }
            Err(fault) => return raise(engine, fault),
        }
    }
}

/// Whether what [`Cpu::leave`] was set for needs nobody outside.
fn settle(cpu: &mut Cpu, engine: &mut Dispatcher) -> bool {
    if cpu.shadow && !cpu.armed && !cpu.has(flag::TF) && cpu.pending_debug == 0 {
        // No interrupt before the next instruction, and no look at requests either.
        cpu.shadow = false;
        cpu.debug_shadow = false;
        cpu.system_flags &= !flag::RF;
        if let Err(fault) = engine.single(cpu) {
            engine.fault = Some(fault);
            return false;
        }
        engine.take_stale_code(cpu);
    }
    if engine.timer_moved(cpu) || !cpu.undisturbed() {
        return false;
    }
    cpu.leave = false;
    cpu.system_flags &= !flag::RF;
    true
}

/// The soft TLB does not know the address of an access.
fn fill(cpu: &mut Cpu, engine: &mut Dispatcher, argument: u32) -> *const u8 {
    let (number, site) = site!(cpu, engine, argument);
    // Tried again, the check saves them again if it has saved them; else it has no need of them.
    cpu.flags.0 = engine.context().flags as u16;
    if site.kind == SiteKind::Refill {
        if engine.refilled(cpu, number, &site) {
            return resume(engine, number, site.retry);
        }
        engine.take_flags(cpu, site.flags);
        engine.count(-1 - i64::from(site.rest));
        return go_on(cpu, engine, NOTHING);
    }
    engine.stats.tlb_misses += 1;
    let (SiteKind::Access { size, write } | SiteKind::Group { size, write }) = site.kind else {
        return engine.slip(cpu, "it asked for an access where there is none", None);
    };
    // SAFETY: our home; translated code does not run.
    let ea = unsafe { (*engine.home).context.ea };
    // D bits are set by the stores themselves, which a group's check may be well before.
    let group = matches!(site.kind, SiteKind::Group { .. });
    let kind = if write && !group { AccessKind::Write } else { AccessKind::Read };
    // A fault, if any, is found again by the instruction itself, which knows its order and its segment.
    let filled = cpu.span(Ea::data(ea), size.into(), kind).is_ok();
    let entry = cpu.tlb.entry(cpu.tlb_mode(), ea);
    let tag = if write { entry.write_tag } else { entry.read_tag };
    if filled && ea ^ tag <= 4096 - u64::from(size) {
        return resume(engine, number, site.retry);
    }
    engine.take_flags(cpu, site.flags);
    cpu.rip = address(engine.blocks.get(number), &site, cpu);
    if group {
        engine.stats.group_misses += 1;
        engine.count(-1 - i64::from(site.rest));
        engine.group_missed(number);
        return go_on(cpu, engine, NOTHING);
    }
    engine.stats.slow_accesses += 1;
    engine.compare_before(cpu, &site);
    let done = cpu.execute_one().map(|ins| ins.next_ip());
    executed(cpu, engine, number, &site, done)
}

/// Executes an instruction by its function.
fn execute(cpu: &mut Cpu, engine: &mut Dispatcher, argument: u32) -> *const u8 {
    engine.stats.generic_calls += 1;
    let (number, site) = site!(cpu, engine, argument);
    let (SiteKind::Generic(generic) | SiteKind::Begun(generic)) = site.kind else {
        return engine.slip(cpu, "it asked for an instruction where there is none", None);
    };
    engine.take_flags(cpu, site.flags);
    cpu.rip = address(engine.blocks.get(number), &site, cpu);
    if site.kind == SiteKind::Generic(generic) {
        engine.compare_before(cpu, &site);
    }
    let block = engine.blocks.get(number);
    let generic = &engine.blocks.generics[generic];
    engine.calls.count(&generic.instruction);
    let moved = generic.relative && block.page != block.page_now(cpu);
    let done = if moved {
        cpu.execute_one().map(|ins| ins.next_ip())
    } else {
        let next = cpu.rip.wrapping_add(generic.instruction.len() as u64);
        cpu.next_rip = next;
        (generic.function)(cpu, &generic.instruction).map(|()| next)
    };
    executed(cpu, engine, number, &site, done)
}

/// Goes on behind an instruction that x86-core has executed; `done` has the address of what follows it.
fn executed(cpu: &mut Cpu, engine: &mut Dispatcher, number: u32, site: &Site, done: Exec<u64>) -> *const u8 {
    let next = match done {
        Ok(next) => next,
        Err(fault) => {
            engine.count(-1 - i64::from(site.rest));
            return raise(engine, fault);
        }
    };
    cpu.rip = cpu.next_rip;
    if engine.timer_moved(cpu) || engine.note_waiting(cpu) {
        cpu.leave = true;
    }
    let mode = engine.blocks.get(number).mode;
    let same = mode.holds(cpu) && !cpu.strict;
    if cpu.leave || !same || engine.moved(cpu) || site.next == 0 || cpu.rip != next {
        engine.count(-i64::from(site.rest));
        return go_on(cpu, engine, NOTHING);
    }
    if matches!(site.kind, SiteKind::Generic(_) | SiteKind::Begun(_)) {
        engine.context().flags = cpu.flags.0.into();
    }
    resume(engine, number, site.next)
}

/// Back into block `number`.
fn resume(engine: &mut Dispatcher, number: u32, at: u32) -> *const u8 {
    let block = engine.blocks.get(number);
    // SAFETY: our home; translated code does not run.
    unsafe { (*engine.home).context.vectors = block.mode.vectors().into() };
    engine.cache.address((block.code + at) as usize)
}

/// Something is requested.
fn leave_for_request(cpu: &mut Cpu, engine: &mut Dispatcher, argument: u32) -> *const u8 {
    let (number, site) = site!(cpu, engine, argument);
    engine.take_flags(cpu, site.flags);
    cpu.rip = address(engine.blocks.get(number), &site, cpu);
    engine.count(-1 - i64::from(site.rest));
    LEAVE
}

/// A host instruction has raised an exception: x86-core finds which one the guest gets.
fn find_fault(cpu: &mut Cpu, engine: &mut Dispatcher, _: u32) -> *const u8 {
    engine.stats.host_faults += 1;
    let (pc, signal) = (engine.context().fault_pc, engine.context().fault_signal);
    let Some((block, fault)) = engine.at_fault(pc) else {
        let what = format!("it raised {}", signal_name(signal));
        return engine.slip(cpu, &what, Some(pc));
    };
    cpu.rip = block.page_now(cpu) + u64::from(fault.offset);
    engine.take_flags(cpu, fault.flags);
    engine.count(-1 - i64::from(fault.rest));
    if let Err(fault) = engine.single(cpu) {
        return raise(engine, fault);
    }
    go_on(cpu, engine, NOTHING)
}
