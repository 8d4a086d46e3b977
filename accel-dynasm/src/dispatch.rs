//! The dispatcher: finds the block at RIP, has it translated if need be, and runs host code until a helper leaves it.
//!
//! It alone knows the code store, the translator and the runtime. [`translate`] makes a block, [`exits`] does what host
//! code asks for, [`step`] executes single instructions, [`verify`] checks blocks in lockstep, [`failure`] ends a vCPU
//! that must not go on.
#![allow(unsafe_code)] // sets up and enters host code

mod exits;
mod failure;
mod step;
mod translate;
mod verify;

use std::collections::HashSet;
use std::sync::Arc;

use accel_api::x86::CpuFeatures;
use accel_api::{AccelError, PAGE_SIZE};
use x86_core::lapic::TimerDeadline;
use x86_core::soft::{CpuHome, Executor};
use x86_core::{Cpu, Exec, Fault, Mode, StaleCode};

use crate::block_mode::BlockMode;
use crate::config::Config;
use crate::counters::{self, ExitCounters, HelperCounts};
use crate::debug::lockstep::Lockstep;
use crate::jit_context::addresses::Addresses;
use crate::jit_context::memory::{self, Placed};
use crate::runtime::helpers::Functions;
use crate::runtime::{Runtime, stubs};
use crate::store::blocks::Key;
use crate::store::inline_tlb::REFILLS;
use crate::store::{CodeStore, StoreOptions};
use crate::translate::Translator;
use crate::translate::plan::lazy_flags::LazyFlags;
use crate::translate::source::Options;

/// Instructions of self-modifying code that are interpreted before another look.
const SELF_MODIFYING_BUDGET: i64 = 64;

/// The JIT of one vCPU.
pub struct Dispatcher {
    runtime: Runtime,
    store: CodeStore,
    translator: Translator,
    addresses: Addresses,
    config: Arc<Config>,
    /// Executes code of 16 and 32 bits, and code whose accesses are watched.
    interpreter: accel_interp::Engine,
    /// The guest's vector registers are to be in the host's: the code that runs has used them.
    vectors: bool,
    /// The next block is to check each access on its own.
    ungrouped: bool,
    /// Pages that stores have been made to ask for.
    watched: HashSet<usize>,
    /// The fault for which host code was left.
    fault: Option<Fault>,
    deadline: Option<TimerDeadline>,
    counters: ExitCounters,
    pub(crate) helper_counts: HelperCounts,
    /// Checks host code, if it is to be checked.
    lockstep: Option<Box<Lockstep>>,
    /// Where the vCPU comes to a block that is to be checked, and the recipe for its flags there.
    arriving: Option<(u64, LazyFlags)>,
    /// In the middle of an excluded block: where, and how many of its instructions are left.
    stepping: Option<(u64, u16)>,
    /// Why the vCPU must not go on.
    failure: Option<AccelError>,
    guest_features: CpuFeatures,
}

/// The result of a search for code at RIP.
enum Found {
    /// A block.
    Code(u32),
    /// No instruction, or one whose second page has none.
    Single,
    /// Translations have changed meanwhile.
    Again,
    /// Code that the JIT does not translate.
    Interpret,
    /// Code that changes too often to be worth a translation.
    SelfModifying,
    /// A block of so many instructions that the user has excluded.
    Excluded(u16),
}

impl Dispatcher {
    /// The block at RIP, translated if need be; sets [`Cpu::code_page`].
    ///
    /// # Errors
    /// The fault of fetching the instruction.
    fn find(&mut self, cpu: &mut Cpu) -> Exec<Found> {
        let known = self.arrived(cpu);
        self.find_for(cpu, known)
    }

    /// The same, where the vCPU comes with flags that the recipe `known` gives, if there is to be such a variant.
    fn find_for(&mut self, cpu: &mut Cpu, known: Option<LazyFlags>) -> Exec<Found> {
        if cpu.mode != Mode::Long || cpu.strict || !matches!(cpu.cpl, 0 | 3) {
            return Ok(Found::Interpret);
        }
        self.sync(cpu);
        let rip = cpu.rip;
        if let Some((_, left)) = self.stepping.filter(|(at, _)| *at == rip) {
            return Ok(Found::Excluded(left));
        }
        cpu.code_page = rip & !(PAGE_SIZE - 1);
        let now = BlockMode::of(cpu, self.vectors);
        let cached = self.store.find_cached(rip, now, &cpu.tlb);
        if let Some(block) = cached.filter(|block| !self.ungrouped && self.store.suits(*block, known)) {
            self.runtime.context_mut().vectors = now.vectors().into();
            return Ok(Found::Code(block));
        }
        let Some(page) = cpu.code_page_at(rip)? else { return Ok(Found::Single) };
        let ungrouped = std::mem::take(&mut self.ungrouped);
        loop {
            let mut mode = BlockMode::of(cpu, self.vectors);
            if ungrouped {
                mode = mode.ungrouped();
            }
            let key = Key::new(page.index, rip, mode);
            let (found, known) = self.store.best_for(key, known.filter(|_| !ungrouped));
            let number = match found.filter(|number| self.is_whole(cpu, *number)) {
                Some(number) => number,
                None => match self.make(cpu, key, mode, page, known)? {
                    translate::Made::Block(number) => number,
                    translate::Made::Nothing => return Ok(Found::Single),
                    translate::Made::SelfModifying => return Ok(Found::SelfModifying),
                    translate::Made::Again => {
                        self.ungrouped = ungrouped;
                        return Ok(Found::Again);
                    }
                    translate::Made::WantsVectors => {
                        self.vectors = true;
                        self.runtime.context_mut().user_vectors |= u64::from(mode.user());
                        continue;
                    }
                },
            };
            if self.config.only.as_ref().is_some_and(|only| !only.contains(&key.hash())) {
                return Ok(Found::Excluded(self.store.blocks.get(number).instructions));
            }
            let global = page.global && self.is_global(cpu, number);
            if !mode.user() && !global {
                self.store.has_fleeting_code();
            }
            if !ungrouped {
                self.store.cache(rip, mode, number, &cpu.tlb, global);
            }
            self.runtime.context_mut().vectors = mode.vectors().into();
            return Ok(Found::Code(number));
        }
    }

    /// Brings the store in step with the vCPU's translations and mode.
    fn sync(&mut self, cpu: &Cpu) {
        let user = cpu.cpl == 3;
        let context = self.runtime.context_mut();
        if user != (context.was_user != 0) {
            context.was_user = user.into();
            self.vectors = user && context.user_vectors != 0;
        }
        if let Some(vectors) = self.store.sync(cpu, context.user_vectors != 0) {
            context.user_vectors = vectors.into();
        }
    }

    /// Runs host code from block `number` on until it is left; [`Self::fault`] tells of a fault.
    fn enter(&mut self, cpu: &mut Cpu, number: u32) {
        self.fault = None;
        self.note_waiting(cpu);
        let (code, entry) = (self.store.entry(number), self.runtime.entry());
        let before = self.counted();
        // SAFETY: `code` is the entry of a block, for whose mode `find` has looked. The stubs call functions of this
        // type, and both pointers come from exclusive references, which are not used until it returns.
        unsafe { entry.run(code, std::ptr::from_mut(cpu), std::ptr::from_mut(self)) };
        cpu.budget -= self.counted().wrapping_sub(before) as i64;
    }

    /// Before host code is entered or returned to. Whether an interrupt or NMI waits that may be taken now.
    fn note_waiting(&mut self, cpu: &mut Cpu) -> bool {
        let (interrupt, nmi) = (cpu.lapic.has_interrupt(), cpu.nmi_due());
        self.runtime.context_mut().waiting = u64::from(interrupt || nmi);
        nmi || interrupt && cpu.has(x86_core::alu::flag::IF)
    }

    /// Whether the run loop has to be told of another deadline of the local APIC's timer.
    fn timer_moved(&self, cpu: &Cpu) -> bool {
        cpu.lapic.next_deadline() != self.deadline
    }

    /// Instructions counted.
    fn counted(&self) -> u64 {
        self.runtime.context().instructions
    }

    /// Adds to the instructions counted.
    fn count(&mut self, n: i64) {
        if self.config.counts() {
            let count = &mut self.runtime.context_mut().instructions;
            *count = count.wrapping_add_signed(n);
        }
    }

    /// Invalidates code that the vCPU itself has written to.
    fn take_stale_code(&mut self, cpu: &mut Cpu) {
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
        let Placed { memory, context, jumps } = Placed::of(cpu);
        let addresses = Addresses::new(memory, cpu.shared.request_word());
        let options = StoreOptions {
            cache_bytes: config.cache_bytes,
            nameless: config.perf_map.is_some(),
            chains: config.verify.is_none(),
        };
        // SAFETY: the tables are there as long as the vCPU, which outlives its executor, and used by nothing else. Host
        // code runs only within `Entry::run`.
        let mut store = unsafe { CodeStore::new(options, BlockMode::of(cpu, false), jumps)? };
        let functions = Functions::of::<Self>();
        let stubs = stubs::emit(store.cursor(), &addresses, config.host.avx, &functions)?;
        store.place_stubs(&stubs.code, stubs.table);
        let [enter, fault] = [stubs.enter, stubs.fault].map(|at| store.stub_address(at));
        // SAFETY: the stubs were made for this context, which is there as long as the vCPU; nothing else has a pointer
        // to it.
        let mut runtime = unsafe { Runtime::new(context, store.range(), enter, fault)? };
        runtime.context_mut().refills = REFILLS;
        Ok(Self {
            runtime,
            store,
            translator: Translator::new(Options { bmi2: config.host.bmi2, counting: config.counts() }),
            addresses,
            config: config.clone(),
            interpreter: accel_interp::Engine::new(cpu, &())?,
            vectors: false,
            ungrouped: false,
            watched: HashSet::new(),
            fault: None,
            deadline: None,
            counters: ExitCounters::default(),
            helper_counts: HelperCounts::default(),
            lockstep: config.verify.map(|every| Box::new(Lockstep::new(every))),
            arriving: None,
            stepping: None,
            failure: None,
            guest_features: cpu.model.features.intersection(&config.host.features),
        })
    }

    fn execute(&mut self, cpu: &mut Cpu) -> Exec {
        crate::runtime::signals::prepare_thread();
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
                Found::SelfModifying => {
                    let rest = cpu.budget - SELF_MODIFYING_BUDGET;
                    cpu.budget = SELF_MODIFYING_BUDGET;
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
        self.interpreter.code_stale(stale);
        self.store.invalidate(stale);
        if stale.lines == u64::MAX {
            self.watched.remove(&stale.page);
        }
    }

    fn all_code_stale(&mut self) {
        for page in self.store.blocks.pages() {
            self.code_stale(StaleCode::page(page));
        }
        // Code that is interpreted lies on pages of its own, too.
        self.interpreter.all_code_stale();
        self.watched.clear();
    }

    fn counts(&self) -> bool {
        self.config.counts()
    }

    fn report(&self, cpu: &Cpu) -> Vec<String> {
        let instructions = self.config.counts().then_some(cpu.instructions);
        counters::report(&self.helper_counts, &self.store.counters, &self.counters, instructions)
    }

    fn failure(&mut self) -> Option<AccelError> {
        self.failure.take()
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut list = counters::list(&self.store.counters, &self.counters);
        if let Some(lockstep) = &self.lockstep {
            list.push(("blocks_compared", lockstep.compared));
            list.push(("blocks_not_comparable", lockstep.incomparable));
        }
        list.push(("blocks", self.store.blocks.len() as u64));
        list.push(("code_bytes", self.store.used() as u64));
        list
    }
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Dispatcher {
    /// For tests that look at its blocks.
    pub(crate) fn store(&self) -> &CodeStore {
        &self.store
    }
}
