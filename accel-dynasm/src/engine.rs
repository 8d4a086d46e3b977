//! Finds, translates, links and drops blocks.
#![allow(unsafe_code)] // enters translated code, and reads guest code through host pointers

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use accel_api::{AccelError, PAGE_SIZE, PageFlag};
use x86_core::lapic::TimerDeadline;
use x86_core::soft::{CpuHome, Executor};
use x86_core::{Cpu, Exec, Fault, Mode as CpuMode, StaleCode, exec, lines};

use crate::blocks::{Block, Blocks, Generic, Key, Listing};
use crate::cache::CodeCache;
use crate::config::Config;
use crate::home::{self, Context, Home};
use crate::jumps::Jumps;
use crate::lockstep::{self, Lockstep};
use crate::mode::Mode;
use crate::places::Places;
use crate::recent::{RECENT, Recent, recent_index};
use crate::restless::Restless;
use crate::stats::{Calls, Stats};
use crate::stubs::{self, Enter};
use crate::translate::admit::Admission;
use crate::translate::{Bases, Link, MAX_INSTRUCTIONS, Outcome, Source, Translator};
use crate::{calls, signals};

/// Arguments of the stub that looks up: nothing to remember; with this bit, a site that found nothing in its jump table;
/// else a link.
pub(crate) const NOTHING: u32 = u32::MAX;
pub(crate) const INDIRECT: u32 = 1 << 31;
/// Likewise: from a block that was dropped, to which a jump table led.
pub(crate) const RETIRED: u32 = u32::MAX - 1;

/// Failed checks of a group after which a block is translated without groups.
const MAX_GROUP_MISSES: u32 = 32;
/// More than one block can take.
const MAX_CODE: usize = 64 << 10;
/// Instructions of restless code that are interpreted before another look.
const RESTLESS_BUDGET: i64 = 64;

/// The translator of one vCPU.
pub struct Engine {
    pub(crate) cache: CodeCache,
    pub(crate) places: Places,
    pub(crate) blocks: Blocks,
    pub(crate) home: *mut Home,
    pub(crate) jumps: Jumps,
    pub(crate) links: Vec<(u32, Link)>,
    /// Links to other pages that have been made.
    far: Vec<u32>,
    translator: Translator,
    pub(crate) config: Arc<Config>,
    /// Executes what is not 64-bit code, and code whose accesses are watched.
    interpreter: accel_interp::Engine,
    /// The guest's vector registers are to be in the host's: the code at hand has used them.
    pub(crate) vectors: bool,
    /// The next block is to check each access on its own.
    pub(crate) separate: bool,
    /// What was found lately, while `stamp` is what it was.
    recent: Box<[Recent; RECENT]>,
    stamp: u64,
    /// Pages that stores have been made to ask for.
    watched: HashSet<usize>,
    restless: Restless,
    /// Blocks whose groups have failed too often.
    ungrouped: HashSet<Key>,
    /// Why translated code was left.
    pub(crate) fault: Option<Fault>,
    deadline: Option<TimerDeadline>,
    write_generation: u64,
    fetch_generation: u64,
    global_fetch_generation: u64,
    /// Code of the kernel lies on pages that are not global.
    fleeting: bool,
    circumstances: u16,
    pub(crate) stats: Stats,
    pub(crate) calls: Calls,
    /// Translated code is checked.
    pub(crate) lockstep: Option<Box<Lockstep>>,
    /// In the middle of an excluded block: where, and how many of its instructions are left.
    pub(crate) stepping: Option<(u64, u16)>,
    /// Why it must not go on.
    pub(crate) failure: Option<AccelError>,
    guest_features: accel_api::CpuFeatures,
    _registered: signals::Registration,
}

/// What there is to run.
pub(crate) enum Found {
    Code(u32),
    /// An instruction that no block can hold.
    Single,
    /// Translations have changed meanwhile.
    Again,
    /// Not for the translator.
    Interpret,
    /// Code that changes too often to be worth a translation.
    Restless,
    /// A block of so many instructions that the user has excluded.
    Excluded(u16),
}

impl Engine {
    /// The block at RIP, translated if need be; sets [`Cpu::code_page`].
    pub(crate) fn find(&mut self, cpu: &mut Cpu) -> Exec<Found> {
        if cpu.mode != CpuMode::Long || cpu.strict || !matches!(cpu.cpl, 0 | 3) {
            return Ok(Found::Interpret);
        }
        self.follow(cpu);
        self.write_generation = cpu.tlb.write_generation;
        let rip = cpu.rip;
        if let Some((_, left)) = self.stepping.filter(|(at, _)| *at == rip) {
            return Ok(Found::Excluded(left));
        }
        cpu.code_page = rip & !(PAGE_SIZE - 1);
        let recent = &self.recent[recent_index(rip)];
        let now = Mode::of(cpu, self.vectors);
        if recent.address == rip && recent.mode == now && recent.stamp == self.stamp && !self.separate {
            // SAFETY: our home lives as long as we do, and no code runs.
            unsafe { (*self.home).context.vectors = now.vectors().into() };
            return Ok(Found::Code(recent.block));
        }
        let Some(page) = cpu.code_page_at(rip)? else { return Ok(Found::Single) };
        let separate = std::mem::take(&mut self.separate);
        loop {
            let mut mode = Mode::of(cpu, self.vectors);
            if separate {
                mode = mode.separate();
            }
            let key = Key::new(page.index, rip, mode);
            let number = match self.blocks.find(key).filter(|n| !self.blocks.get(*n).dropped) {
                Some(number) => number,
                None if self.watch(cpu, page.index) => {
                    self.separate = separate;
                    return Ok(Found::Again);
                }
                None if self.restless.is(key) => return Ok(Found::Restless),
                None => match self.translate(cpu, key, mode, page.host)? {
                    (Outcome::Done, number) => number,
                    (Outcome::NoInstruction, _) => return Ok(Found::Single),
                    (Outcome::WantsVectors, _) => {
                        self.vectors = true;
                        self.context().user_vectors |= u64::from(mode.user());
                        continue;
                    }
                },
            };
            if self.config.only.as_ref().is_some_and(|only| !only.contains(&key.hash())) {
                return Ok(Found::Excluded(self.blocks.get(number).instructions));
            }
            self.fleeting |= !mode.user() && !page.global;
            if !separate {
                self.recent[recent_index(rip)] =
                    Recent { address: rip, mode, stamp: self.stamp, block: number };
            }
            // SAFETY: our home lives as long as we do, and no code runs.
            unsafe { (*self.home).context.vectors = mode.vectors().into() };
            return Ok(Found::Code(number));
        }
    }

    fn context(&mut self) -> &mut Context {
        // SAFETY: our home lives as long as we do, and no code runs.
        unsafe { &mut (*self.home).context }
    }

    /// Forgets what no longer holds, now that the vCPU may have changed its translations or its circumstances.
    fn follow(&mut self, cpu: &Cpu) {
        let user = cpu.cpl == 3;
        let context = self.context();
        if user != (context.was_user != 0) {
            context.was_user = user.into();
            self.vectors = user && context.user_vectors != 0;
        }
        let mode = Mode::of(cpu, false);
        let global = cpu.tlb.global_fetch_generation != self.global_fetch_generation;
        let changed = cpu.tlb.fetch_generation != self.fetch_generation;
        if !changed && mode.circumstances() == self.circumstances {
            return;
        }
        let kernel = global || changed && self.fleeting;
        self.circumstances = mode.circumstances();
        self.fetch_generation = cpu.tlb.fetch_generation;
        self.global_fetch_generation = cpu.tlb.global_fetch_generation;
        self.context().user_vectors = 0;
        self.stamp += 1;
        self.jumps.clear(self.home, |class| kernel || Mode::is_user_class(class));
        if kernel {
            self.fleeting = false;
            for link in std::mem::take(&mut self.far) {
                self.unlink(link);
            }
        }
    }

    #[cold]
    fn translate(&mut self, cpu: &mut Cpu, key: Key, mode: Mode, host: *const u8) -> Exec<(Outcome, u32)> {
        if !self.cache.has_room(MAX_CODE) {
            self.flush();
        }
        let separate = mode.is_separate() || self.ungrouped.contains(&key);
        let admission = Admission {
            features: self.guest_features,
            bmi1: cpu.model.features.has(accel_api::Feature::Bmi1),
            mode,
        };
        let start = key.offset() as usize;
        let mut bytes = [0u8; MAX_INSTRUCTIONS * x86_core::MAX_INSTRUCTION];
        let len = bytes.len().min(PAGE_SIZE as usize - start);
        let mut limit = MAX_INSTRUCTIONS;
        // Another vCPU that goes on storing to code must not keep us here: after a few tries, one instruction.
        for _ in 0..4 {
            let writes = cpu.vm.code_writes.load(Ordering::SeqCst);
            // SAFETY: `start + len` is at most the size of the RAM page.
            unsafe { std::ptr::copy(host.add(start), bytes.as_mut_ptr(), len) };
            let source =
                Source { bytes: &bytes[..len], page: cpu.code_page, offset: start as u16, mode, separate };
            let bases = Bases {
                site: self.blocks.sites.len() as u32,
                link: self.links.len() as u32,
                generic: self.blocks.generics.len() as u32,
                code: self.cache.cursor(),
            };
            let outcome = self.translator.translate(&source, &admission, &self.places, bases, limit);
            if outcome != Outcome::Done {
                return Ok((outcome, 0));
            }
            let Some(code) = self.translator.code() else {
                // A distance that does not fit; one instruction at a time, all do.
                limit = 1;
                continue;
            };
            cpu.vm.code.add(key.ram_page(), lines(start, self.translator.output.length.into()));
            // A store between our reading and this could not know that it hits code.
            if cpu.vm.code_writes.load(Ordering::SeqCst) == writes {
                let guest = &bytes[..usize::from(self.translator.output.length)];
                return Ok((Outcome::Done, self.insert(key, mode, cpu.code_page, guest, code)));
            }
        }
        Ok((Outcome::NoInstruction, 0))
    }

    fn insert(&mut self, key: Key, mode: Mode, page: u64, guest: &[u8], mut code: Vec<u8>) -> u32 {
        let number = self.blocks.next_number();
        if let Some(constant) = self.config.sabotage {
            lockstep::sabotage(&mut code, constant);
        }
        let at = self.cache.append(&code) as u32;
        let out = &mut self.translator.output;
        self.stats.translated += 1;
        self.stats.instructions_translated += u64::from(out.instructions);
        self.blocks.sites.extend(out.sites.iter().map(|site| (number, *site)));
        self.blocks.generics.extend(out.generics.iter().map(|&instruction| Generic {
            instruction,
            function: exec::lookup(instruction.code()),
            relative: instruction.is_ip_rel_memory_operand()
                || instruction.flow_control() != iced_x86::FlowControl::Next,
        }));
        // As assembled, they lead to where they ask.
        self.links.extend(out.links.iter().map(|link| (number, *link)));
        let block = Block {
            key,
            mode,
            page,
            code: at,
            code_len: code.len() as u32,
            length: out.length,
            instructions: out.instructions as u16,
            entry: at + out.entry,
            far_entry: at + out.far_entry,
            retired: at + out.retired,
            misses: 0,
            incoming: Vec::new(),
            dropped: false,
            faults: out.faults.as_slice().into(),
            listing: self
                .config
                .keeps_listings()
                .then(|| Box::new(Listing { guest: guest.into(), starts: out.starts.as_slice().into() })),
        };
        self.show(&block, &code);
        self.blocks.insert(block);
        number
    }

    /// Makes stores to `page` visible to us from now on, before its bytes are read; whether translations have changed
    /// meanwhile.
    #[cold]
    fn watch(&mut self, cpu: &mut Cpu, page: usize) -> bool {
        if !self.watched.insert(page) && cpu.vm.flags.get(page).contains(PageFlag::CODE) {
            return false;
        }
        cpu.vm.flags.set(page, PageFlag::CODE);
        cpu.tlb.drop_write_tags_of(page);
        cpu.vm.code_watched(page, cpu.id as usize);
        cpu.serve_memory_requests()
    }

    /// Drops everything. No translated code may be going to be returned to.
    fn flush(&mut self) {
        self.stats.flushes += 1;
        self.stamp += 1;
        self.blocks.clear();
        self.ungrouped.clear();
        self.restless.clear();
        self.links.clear();
        self.far.clear();
        self.jumps.clear(self.home, |_| true);
        self.cache.truncate(self.places.stubs.end);
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.forget();
        }
    }

    /// Where block `number` is entered.
    pub(crate) fn entry(&self, number: u32) -> *const u8 {
        self.cache.address(self.blocks.get(number).entry as usize)
    }

    /// Makes the jump with number `link` lead to the block that was found for it.
    pub(crate) fn link(&mut self, link: u32, number: u32) {
        if self.lockstep.is_some() {
            return;
        }
        let Some(&(from, record)) = self.links.get(link as usize) else { return };
        let (from, to) = (self.blocks.get(from), self.blocks.get(number));
        // Circumstances may have changed on the way.
        if from.mode.together() != to.mode {
            return;
        }
        self.stats.links += 1;
        self.cache.link((from.code + record.field) as usize, to.entry as usize);
        self.blocks.get_mut(number).incoming.push(link);
        if record.far {
            self.far.push(link);
        }
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

    /// Makes every way into block `number`, which is dropped, ask again.
    fn retire(&mut self, number: u32) {
        for link in std::mem::take(&mut self.blocks.get_mut(number).incoming) {
            self.unlink(link);
        }
        // The jump tables may lead here.
        let block = self.blocks.get(number);
        self.cache.put_jump(block.entry as usize, block.retired as usize);
    }

    fn unlink(&mut self, link: u32) {
        let (block, link) = self.links[link as usize];
        let code = self.blocks.get(block).code;
        self.cache.link((code + link.field) as usize, (code + link.ask) as usize);
    }

    /// A group's check has failed in block `number`, for good.
    pub(crate) fn group_missed(&mut self, number: u32) {
        self.separate = true;
        let block = self.blocks.get_mut(number);
        block.misses += 1;
        if block.misses == MAX_GROUP_MISSES {
            self.stats.separated += 1;
            self.stamp += 1;
            block.dropped = true;
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
            let enter: Enter = std::mem::transmute(self.cache.address(self.places.stubs.enter));
            enter(code, cpu);
            cpu.budget -= (*context).instructions.wrapping_sub(before) as i64;
        }
    }

    /// Whether translations of code may have changed since a block was last looked up; or what stores may do, which it may
    /// have checked for stores that are still to come.
    pub(crate) fn moved(&self, cpu: &Cpu) -> bool {
        cpu.tlb.fetch_generation != self.fetch_generation || cpu.tlb.write_generation != self.write_generation
    }

    /// Whether the run loop has to be told of another deadline of the local APIC's timer.
    pub(crate) fn timer_moved(&self, cpu: &Cpu) -> bool {
        cpu.lapic.next_deadline() != self.deadline
    }

    /// Whether the host instruction at address `pc` may raise an exception for the guest's; if so, whether the guest's vector
    /// registers are in the host's there.
    pub(crate) fn may_fault(&self, pc: u64) -> Option<bool> {
        let at = self.cache.offset(pc)?;
        let block = self.blocks.at_code(at)?;
        let distance = at as u32 - block.code;
        block.faults.iter().any(|(host, ..)| *host == distance).then(|| block.mode.vectors())
    }

    /// Instructions counted.
    pub(crate) fn counted(&self) -> u64 {
        // SAFETY: our home; no translated code runs.
        unsafe { (*self.home).context.instructions }
    }

    /// Before translated code is entered or gone back to. Whether an interrupt or NMI waits that may be taken now.
    pub(crate) fn note_waiting(&mut self, cpu: &mut Cpu) -> bool {
        let interrupt = cpu.lapic.has_interrupt();
        // SAFETY: our home; no translated code runs.
        unsafe { (*self.home).context.waiting = u64::from(interrupt || cpu.nmi_pending) };
        interrupt && cpu.has(x86_core::alu::flag::IF)
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

impl Executor for Engine {
    type Config = Arc<Config>;
    const POLLS: bool = true;

    fn place(cpu: Box<Cpu>) -> Result<CpuHome, AccelError> {
        home::place(cpu)
    }

    fn new(cpu: &mut Cpu, config: &Arc<Config>) -> Result<Self, AccelError> {
        let home = home::of(cpu);
        let mut cache = CodeCache::new(config.cache_bytes, config.perf_map.is_some())?;
        let mut places = Places::new(home, cpu.shared.request_word());
        places.stubs = stubs::emit(&mut cache, &places, config.host.avx, &calls::FUNCTIONS)?;
        let fault = [0, 1].map(|v| cache.address(places.stubs.fault[v]) as usize);
        let registered = signals::register(cache.range(), fault, home)?;
        let mut jumps = Jumps::default();
        jumps.empty(home);
        Ok(Self {
            cache,
            places,
            blocks: Blocks::default(),
            home,
            jumps,
            links: Vec::new(),
            far: Vec::new(),
            translator: Translator::new(config.host.bmi2, config.counts()),
            config: config.clone(),
            interpreter: accel_interp::Engine::new(cpu, &())?,
            vectors: false,
            separate: false,
            recent: Box::new([Recent { address: 0, mode: Mode::of(cpu, false), stamp: 0, block: 0 }; RECENT]),
            stamp: 1,
            watched: HashSet::new(),
            restless: Restless::default(),
            ungrouped: HashSet::new(),
            fault: None,
            deadline: None,
            write_generation: 0,
            fetch_generation: 0,
            global_fetch_generation: 0,
            fleeting: false,
            circumstances: 0,
            stats: Stats::default(),
            calls: Calls::default(),
            lockstep: config.verify.map(|every| Box::new(Lockstep::new(every))),
            stepping: None,
            failure: None,
            guest_features: cpu.model.features.intersection(&config.host.features),
            _registered: registered,
        })
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
                Found::Restless => {
                    let rest = cpu.budget - RESTLESS_BUDGET;
                    cpu.budget = RESTLESS_BUDGET;
                    let result = self.interpreter.execute(cpu);
                    cpu.budget += rest;
                    return result;
                }
                Found::Excluded(instructions) => return self.step_through(cpu, instructions),
            };
            if self.lockstep.as_mut().is_some_and(|l| l.due(number)) {
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
        let hit = |b: &Block| lines(b.key.offset() as usize, b.length.into()) & stale.lines != 0;
        let dropped = self.blocks.drop_page(stale.page, hit);
        self.restless.dropped(stale.page, dropped.iter().map(|n| self.blocks.get(*n).key));
        if stale.lines == u64::MAX {
            self.watched.remove(&stale.page);
        }
        for number in dropped {
            self.retire(number);
        }
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

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("counters", &self.counters()).finish_non_exhaustive()
    }
}
