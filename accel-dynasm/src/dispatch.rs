//! Finds, translates, links and drops blocks.
#![allow(unsafe_code)] // enters translated code, and reads guest code through host pointers

mod exits;
mod step;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use accel_api::{AccelError, PAGE_SIZE, PageFlag};
use x86_core::lapic::TimerDeadline;
use x86_core::soft::{CpuHome, Executor};
use x86_core::{CodePage, Cpu, Exec, Fault, MAX_INSTRUCTION, Mode as CpuMode, StaleCode, exec, host_read};

use crate::block_mode::BlockMode;
use crate::config::Config;
use crate::counters::{Counters, HelperCounts};
use crate::debug::injected_bug;
use crate::debug::lockstep::{self, Lockstep};
use crate::jit_context::addresses::Addresses;
use crate::jit_context::{JitContext, VcpuMemory, memory};
use crate::runtime::signals;
use crate::runtime::stubs::{self, Enter};
use crate::store::address_space::{Followed, generation};
use crate::store::blocks::{Block, Blocks, Generic, Key, Listing, SECOND_LINES};
use crate::store::chaining::ChainedJump;
use crate::store::code_cache::CodeCache;
use crate::store::inline_tlb::{InlineTlbPolicy, REFILLS};
use crate::store::jump_cache::JumpCache;
use crate::store::lookup_cache::{LookupEntry, RECENT, recent_index};
use crate::store::smc::SelfModifyingCode;
use crate::translate::admit::Admission;
use crate::translate::{Bases, LazyFlags, MAX_INSTRUCTIONS, MayFault, Outcome, Source, Translator};

/// Arguments of the stub that looks up: nothing to remember; with this bit, a site that found nothing in its jump table;
/// else a link.
pub(crate) const NOTHING: u32 = u32::MAX;
pub(crate) const INDIRECT: u32 = 1 << 31;
/// Likewise: from a block that was dropped, to which a jump table led.
pub(crate) const RETIRED: u32 = u32::MAX - 1;

const PAGE: usize = PAGE_SIZE as usize;
/// Failed checks of a group after which a block is translated without groups.
const MAX_GROUP_MISSES: u32 = 32;
/// Pages remembered that stores have been made to ask for: more than a full code cache has code of.
const MOST_WATCHED: usize = 1 << 16;
/// Instructions of restless code that are interpreted before another look.
const RESTLESS_BUDGET: i64 = 64;

/// The translator of one vCPU.
pub struct Dispatcher {
    pub(crate) cache: CodeCache,
    pub(crate) addresses: Addresses,
    pub(crate) blocks: Blocks,
    pub(crate) home: *mut VcpuMemory,
    pub(crate) jumps: JumpCache,
    /// Links to other pages that have been made.
    pub(crate) far: Vec<u32>,
    translator: Translator,
    pub(crate) config: Arc<Config>,
    /// Executes what is not 64-bit code, and code whose accesses are watched.
    interpreter: accel_interp::Engine,
    /// The guest's vector registers are to be in the host's: the code at hand has used them.
    pub(crate) vectors: bool,
    pub(crate) followed: Followed,
    /// The next block is to check each access on its own.
    pub(crate) separate: bool,
    /// What was found lately, while `stamp` is what it was.
    recent: Box<[LookupEntry; RECENT]>,
    pub(crate) stamp: u64,
    /// Pages that stores have been made to ask for.
    watched: HashSet<usize>,
    restless: SelfModifyingCode,
    pub(crate) roaming: InlineTlbPolicy,
    /// Blocks whose groups have failed too often.
    pub(crate) ungrouped: HashSet<Key>,
    /// Why translated code was left.
    pub(crate) fault: Option<Fault>,
    deadline: Option<TimerDeadline>,
    pub(crate) stats: Counters,
    pub(crate) calls: HelperCounts,
    /// Translated code is checked.
    pub(crate) lockstep: Option<Box<Lockstep>>,
    /// See [`Dispatcher::arrive`].
    pub(crate) arriving: Option<(u64, LazyFlags)>,
    /// In the middle of an excluded block: where, and how many of its instructions are left.
    pub(crate) stepping: Option<(u64, u16)>,
    /// Why it must not go on.
    pub(crate) failure: Option<AccelError>,
    guest_features: accel_api::CpuFeatures,
    registered: signals::Registration,
}

/// What there is to run.
pub(crate) enum Found {
    Code(u32),
    /// No instruction, or one whose second page has none.
    Single,
    /// Translations have changed meanwhile.
    Again,
    /// Not for the translator.
    Interpret,
    /// Code that changes too often to be worth a translation.
    SelfModifyingCode,
    /// A block of so many instructions that the user has excluded.
    Excluded(u16),
}

impl Dispatcher {
    /// The block at RIP, translated if need be; sets [`Cpu::code_page`].
    pub(crate) fn find(&mut self, cpu: &mut Cpu) -> Exec<Found> {
        let known = self.arrived(cpu);
        self.find_for(cpu, known)
    }

    /// Likewise, for who comes with flags `known` if there is to be such a block.
    pub(crate) fn find_for(&mut self, cpu: &mut Cpu, known: Option<LazyFlags>) -> Exec<Found> {
        if cpu.mode != CpuMode::Long || cpu.strict || !matches!(cpu.cpl, 0 | 3) {
            return Ok(Found::Interpret);
        }
        self.follow(cpu);
        let rip = cpu.rip;
        if let Some((_, left)) = self.stepping.filter(|(at, _)| *at == rip) {
            return Ok(Found::Excluded(left));
        }
        cpu.code_page = rip & !(PAGE_SIZE - 1);
        let recent = &self.recent[recent_index(rip)];
        let now = BlockMode::of(cpu, self.vectors);
        let holds = recent.address == rip && recent.mode == now && recent.holds(self.stamp, &cpu.tlb);
        if holds && !self.separate && self.suits(recent.block, known) {
            // SAFETY: our home lives as long as we do, and no code runs.
            unsafe { (*self.home).context.vectors = now.vectors().into() };
            return Ok(Found::Code(recent.block));
        }
        let Some(page) = cpu.code_page_at(rip)? else { return Ok(Found::Single) };
        let separate = std::mem::take(&mut self.separate);
        loop {
            let mut mode = BlockMode::of(cpu, self.vectors);
            if separate {
                mode = mode.separate();
            }
            let key = Key::new(page.index, rip, mode);
            let (found, known) = self.best_for(key, known.filter(|_| !separate));
            let number = match found.filter(|number| self.is_whole(cpu, *number)) {
                Some(number) => number,
                None if self.watch(cpu, page.index)? => {
                    self.separate = separate;
                    return Ok(Found::Again);
                }
                None if self.restless.is(key) => return Ok(Found::SelfModifyingCode),
                None => {
                    let mut outcome = self.translate(cpu, key, mode, page.host, known, None);
                    if outcome.0 == Outcome::Crosses {
                        let Some(second) = self.second_page(cpu) else { return Ok(Found::Single) };
                        if self.watch(cpu, second.index)? {
                            self.separate = separate;
                            return Ok(Found::Again);
                        }
                        outcome = self.translate(cpu, key, mode, page.host, None, Some(second));
                    }
                    match outcome {
                        (Outcome::Done, number) => number,
                        (Outcome::NoInstruction | Outcome::Crosses, _) => return Ok(Found::Single),
                        (Outcome::WantsVectors, _) => {
                            self.vectors = true;
                            self.context().user_vectors |= u64::from(mode.user());
                            continue;
                        }
                    }
                }
            };
            if self.config.only.as_ref().is_some_and(|only| !only.contains(&key.hash())) {
                return Ok(Found::Excluded(self.blocks.get(number).instructions));
            }
            let global = page.global && self.is_global(cpu, number);
            self.followed.fleeting |= !mode.user() && !global;
            if !separate {
                let generation = generation(&cpu.tlb, global);
                self.recent[recent_index(rip)] =
                    LookupEntry { address: rip, mode, stamp: self.stamp, generation, block: number };
            }
            // SAFETY: our home lives as long as we do, and no code runs.
            unsafe { (*self.home).context.vectors = mode.vectors().into() };
            return Ok(Found::Code(number));
        }
    }

    pub(crate) fn context(&mut self) -> &mut JitContext {
        // SAFETY: our home lives as long as we do, and no code runs.
        unsafe { &mut (*self.home).context }
    }

    /// Translates the block with `key`, whose page is at `host`, for who comes with flags `known`; with a `second` page, the
    /// instruction that crosses into it.
    #[cold]
    fn translate(
        &mut self,
        cpu: &mut Cpu,
        key: Key,
        mode: BlockMode,
        host: *const u8,
        known: Option<LazyFlags>,
        second: Option<CodePage>,
    ) -> (Outcome, u32) {
        let separate = mode.is_separate() || self.ungrouped.contains(&key);
        let admission = Admission {
            features: self.guest_features,
            bmi1: cpu.model.features.has(accel_api::Feature::Bmi1),
            mode,
        };
        let start = key.offset() as usize;
        let mut bytes = [0u8; PAGE + MAX_INSTRUCTION];
        let len = if second.is_some() { bytes.len() } else { PAGE };
        let mut limit = MAX_INSTRUCTIONS;
        // Another vCPU that goes on storing to code must not keep us here: after a few tries, one instruction.
        for _ in 0..6 {
            let writes = cpu.vm.code_writes.load(Ordering::SeqCst);
            // SAFETY: a page of RAM.
            unsafe { host_read(host, &mut bytes[..PAGE]) };
            if let Some(second) = second {
                // SAFETY: the start of another.
                unsafe { host_read(second.host, &mut bytes[PAGE..]) };
            }
            let source = Source {
                bytes: &bytes[..len],
                page: cpu.code_page,
                offset: start as u16,
                mode,
                separate,
                roaming: self.roaming.of(key.ram_page()),
                known,
            };
            let region = self.cache.current();
            let bases = Bases {
                site: self.blocks.sites.next(region),
                link: self.blocks.links.next(region),
                generic: self.blocks.generics.next(region),
                code: self.cache.cursor(),
            };
            let outcome = self.translator.translate(&source, &admission, &self.addresses, bases, limit);
            if outcome != Outcome::Done {
                return (outcome, 0);
            }
            let Some(code) = self.translator.code() else {
                // A distance that does not fit; one instruction at a time, all do.
                limit = 1;
                continue;
            };
            if !self.cache.has_room(code.len()) {
                if self.cache.is_empty() {
                    limit = 1;
                } else {
                    // What was assembled works only where it was to lie.
                    self.evict();
                }
                continue;
            }
            cpu.vm.code.add(key.ram_page(), self.translator.output.lines);
            if let Some(second) = second {
                cpu.vm.code.add(second.index, SECOND_LINES);
            }
            // A store between our reading and this could not know that it hits code.
            if cpu.vm.code_writes.load(Ordering::SeqCst) == writes {
                let guest = &bytes[start..start + usize::from(self.translator.output.length)];
                let second = second.map(|second| second.index);
                return (Outcome::Done, self.insert(key, known, second, mode, cpu.code_page, guest, code));
            }
        }
        (Outcome::NoInstruction, 0)
    }

    #[allow(clippy::too_many_arguments)] // what a block is of
    fn insert(
        &mut self,
        key: Key,
        known: Option<LazyFlags>,
        second: Option<usize>,
        mode: BlockMode,
        page: u64,
        guest: &[u8],
        mut code: Vec<u8>,
    ) -> u32 {
        let region = self.cache.current();
        let number = self.blocks.list.next(region);
        if let Some(constant) = self.config.sabotage {
            lockstep::sabotage(&mut code, constant);
        }
        let slip = self.config.slip.filter(|(constant, _)| injected_bug::contains(&code, *constant));
        if let Some((_, slip)) = slip {
            let stub = self.addresses.stubs.generic[0] as i64 - self.cache.cursor() as i64;
            slip.inject(&mut code, self.translator.output.entry as usize, stub);
        }
        let at = self.cache.append(&code) as u32;
        let out = &mut self.translator.output;
        self.stats.translated += 1;
        self.stats.instructions_translated += u64::from(out.instructions);
        self.blocks.recipes.take(region, out);
        self.blocks.sites.extend(region, out.sites.iter().map(|site| (number, *site)));
        let generics = out.generics.iter().map(|&instruction| Generic {
            instruction,
            function: if slip.is_some() { injected_bug::panics } else { exec::lookup(instruction.code()) },
            relative: instruction.is_ip_rel_memory_operand()
                || instruction.flow_control() != iced_x86::FlowControl::Next,
        });
        self.blocks.generics.extend(region, generics);
        let mut number_of_known = NOTHING;
        if let Some(known) = known.filter(|_| out.flags_matter) {
            number_of_known = self.blocks.recipes.number(region, known);
        }
        self.blocks.links.extend(region, out.links.iter().map(|link| ChainedJump::new(number, *link)));
        let block = Block {
            key,
            second,
            mode,
            page,
            code: at,
            code_len: code.len() as u32,
            length: out.length,
            lines: out.lines,
            instructions: out.instructions as u16,
            entry: at + out.entry,
            far_entry: at + out.far_entry,
            retired: at + out.retired,
            misses: 0,
            incoming: NOTHING,
            checked: 0,
            dropped: false,
            faults: out.faults.as_slice().into(),
            known: number_of_known,
            flags_matter: out.flags_matter,
            listing: self
                .config
                .keeps_listings()
                .then(|| Box::new(Listing { guest: guest.into(), starts: out.starts.as_slice().into() })),
        };
        self.show(&block, &code);
        self.blocks.insert(region, block);
        number
    }

    /// Makes stores to `page` visible to us from now on, before its bytes are read; whether translations have changed
    /// meanwhile.
    ///
    /// # Errors
    /// Those of [`Cpu::watch_code`].
    #[cold]
    fn watch(&mut self, cpu: &mut Cpu, page: usize) -> Exec<bool> {
        if self.watched.len() >= MOST_WATCHED {
            // They are made to ask once more.
            self.watched.clear();
        }
        if !self.watched.insert(page) && cpu.vm.flags.get(page).contains(PageFlag::CODE) {
            return Ok(false);
        }
        cpu.watch_code(page)
    }

    /// Where block `number` is entered.
    pub(crate) fn entry(&self, number: u32) -> *const u8 {
        self.cache.address(self.blocks.get(number).entry as usize)
    }

    /// Enters the block that was found for `address` into the jump table.
    pub(crate) fn remember(&mut self, address: u64, to: u32) {
        if self.lockstep.is_some() {
            return;
        }
        let block = self.blocks.get(to);
        if block.mode.is_separate() {
            return;
        }
        let entry = self.cache.address(block.far_entry as usize);
        self.jumps.set(self.home, block.mode.class(), address, entry);
    }

    /// A group's check has failed in block `number`, for good.
    pub(crate) fn group_missed(&mut self, number: u32) {
        self.separate = true;
        let block = self.blocks.get_mut(number);
        block.misses += 1;
        if block.misses == MAX_GROUP_MISSES {
            self.stats.separated += 1;
            self.ungrouped.insert(block.key);
            self.retire(number);
        }
    }

    /// Runs translated code from block `number` on until it comes back; `fault` tells of a fault.
    pub(crate) fn enter(&mut self, cpu: &mut Cpu, number: u32) {
        self.fault = None;
        self.note_waiting(cpu);
        let code = self.entry(number);
        // SAFETY: our home, which lives as long as we do.
        let context = unsafe { &raw mut (*self.home).context };
        // SAFETY: the stub takes an address in the cache that is an entry of a block, for whose circumstances `find`
        // has looked; it uses `cpu`, which is at our home, and us, both of which are exclusively borrowed here and
        // not used until it returns.
        unsafe {
            (*context).engine = std::ptr::from_mut(self).addr() as u64;
            let before = (*context).instructions;
            let enter: Enter = std::mem::transmute(self.cache.address(self.addresses.stubs.enter));
            self.registered.run(|| enter(code, cpu));
            cpu.budget -= (*context).instructions.wrapping_sub(before) as i64;
        }
    }

    /// Whether the run loop has to be told of another deadline of the local APIC's timer.
    pub(crate) fn timer_moved(&self, cpu: &Cpu) -> bool {
        cpu.lapic.next_deadline() != self.deadline
    }

    /// Whether the host instruction at address `pc` may raise an exception for the guest's; if so, its block.
    pub(crate) fn at_fault(&self, pc: u64) -> Option<(&Block, MayFault)> {
        let block = self.block_at(pc)?;
        let distance = self.cache.offset(pc)? as u32 - block.code;
        let fault = block.faults.iter().find(|fault| fault.at == distance)?;
        Some((block, *fault))
    }

    /// The block that the host instruction at address `pc` belongs to.
    pub(crate) fn block_at(&self, pc: u64) -> Option<&Block> {
        let at = self.cache.offset(pc)?;
        self.blocks.at_code(self.cache.region_at(at)?, at)
    }

    /// Instructions counted.
    pub(crate) fn counted(&self) -> u64 {
        // SAFETY: our home; no translated code runs.
        unsafe { (*self.home).context.instructions }
    }
    /// Before translated code is entered or gone back to. Whether an interrupt or NMI waits that may be taken now.
    pub(crate) fn note_waiting(&mut self, cpu: &mut Cpu) -> bool {
        let (interrupt, nmi) = (cpu.lapic.has_interrupt(), cpu.nmi_due());
        // SAFETY: our home; no translated code runs.
        unsafe { (*self.home).context.waiting = u64::from(interrupt || nmi) };
        nmi || interrupt && cpu.has(x86_core::alu::flag::IF)
    }

    /// Adds to the instructions counted.
    pub(crate) fn count(&mut self, n: i64) {
        if self.config.counts() {
            // SAFETY: our home; no translated code runs.
            let count = unsafe { &mut (*self.home).context.instructions };
            *count = count.wrapping_add_signed(n);
        }
    }

    /// Takes what the vCPU itself has written to its code.
    pub(crate) fn take_stale_code(&mut self, cpu: &mut Cpu) {
        while let Some(stale) = cpu.stale_code.pop() {
            self.code_stale(stale);
        }
    }
}

impl Executor for Dispatcher {
    type Config = Arc<Config>;
    const POLLS: bool = true;

    fn place(cpu: Box<Cpu>) -> Result<CpuHome, AccelError> {
        memory::place(cpu)
    }

    fn new(cpu: &mut Cpu, config: &Arc<Config>) -> Result<Self, AccelError> {
        let home = memory::of(cpu);
        let mut cache = CodeCache::new(config.cache_bytes, config.perf_map.is_some())?;
        let mut addresses = Addresses::new(home, cpu.shared.request_word());
        addresses.stubs = stubs::emit(&mut cache, &addresses, config.host.avx, &exits::FUNCTIONS)?;
        cache.divide();
        let fault = [0, 1].map(|v| cache.address(addresses.stubs.fault[v]) as usize);
        let registered = signals::register(cache.range(), fault, home)?;
        let mut jumps = JumpCache::default();
        jumps.empty(home);
        let mut engine = Self {
            cache,
            addresses,
            blocks: Blocks::default(),
            home,
            jumps,
            far: Vec::new(),
            translator: Translator::new(config.host.bmi2, config.counts()),
            config: config.clone(),
            interpreter: accel_interp::Engine::new(cpu, &())?,
            vectors: false,
            followed: Followed::default(),
            separate: false,
            recent: Box::new([LookupEntry::none(BlockMode::of(cpu, false)); RECENT]),
            stamp: 1,
            watched: HashSet::new(),
            restless: SelfModifyingCode::default(),
            roaming: InlineTlbPolicy::default(),
            ungrouped: HashSet::new(),
            fault: None,
            deadline: None,
            stats: Counters::default(),
            calls: HelperCounts::default(),
            lockstep: config.verify.map(|every| Box::new(Lockstep::new(every))),
            stepping: None,
            arriving: None,
            failure: None,
            guest_features: cpu.model.features.intersection(&config.host.features),
            registered,
        };
        engine.context().refills = REFILLS;
        Ok(engine)
    }

    fn execute(&mut self, cpu: &mut Cpu) -> Exec {
        signals::prepare_thread();
        self.deadline = cpu.lapic.next_deadline();
        loop {
            let number = match self.find(cpu)? {
                Found::Code(number) => number,
                Found::Again => return Ok(()),
                Found::Single => {
                    cpu.budget -= 1;
                    self.single(cpu)?;
                    if cpu.leave || cpu.shared.requested() != 0 {
                        return Ok(());
                    }
                    continue;
                }
                Found::Interpret => return self.interpreter.execute(cpu),
                Found::SelfModifyingCode => {
                    let rest = cpu.budget - RESTLESS_BUDGET;
                    cpu.budget = RESTLESS_BUDGET;
                    let result = self.interpreter.execute(cpu);
                    cpu.budget += rest;
                    return result;
                }
                Found::Excluded(instructions) => return self.step_through(cpu, instructions),
            };
            if self.is_due(number) {
                self.run_checked(cpu, number);
            } else {
                self.enter(cpu, number);
            }
            return match self.fault.take() {
                Some(fault) => Err(fault),
                None => Ok(()),
            };
        }
    }

    fn code_stale(&mut self, stale: StaleCode) {
        self.stats.invalidations += 1;
        self.stamp += 1;
        self.interpreter.code_stale(stale);
        let dropped = self.blocks.drop_page(stale.page, |b| b.lines_in(stale.page) & stale.lines != 0);
        self.restless.dropped(stale.page, dropped.iter().map(|n| self.blocks.get(*n).key));
        if stale.lines == u64::MAX {
            self.roaming.forget(stale.page);
            self.watched.remove(&stale.page);
        }
        for number in dropped {
            self.retire(number);
        }
    }

    fn all_code_stale(&mut self) {
        for page in self.blocks.pages() {
            self.code_stale(StaleCode::page(page));
        }
        // Code that is interpreted lies on pages of its own, too.
        self.interpreter.all_code_stale();
        self.watched.clear();
    }

    fn counts(&self) -> bool {
        self.config.counts()
    }

    fn calls(&self) -> Vec<(String, u64)> {
        self.calls.list()
    }

    fn failure(&mut self) -> Option<AccelError> {
        self.failure.take()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut list = self.stats.list();
        if let Some(lockstep) = &self.lockstep {
            list.push(("blocks_compared", lockstep.compared));
            list.push(("blocks_not_comparable", lockstep.incomparable));
        }
        list.push(("blocks", self.blocks.len() as u64));
        list.push(("code_bytes", self.cache.used() as u64));
        list
    }
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("counters", &self.counters()).finish_non_exhaustive()
    }
}
