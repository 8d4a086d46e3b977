//! Finds, decodes, links and drops blocks, and runs chains of them.
#![allow(unsafe_code)] // starts chains of handlers and patches links in ops that the store keeps

use std::sync::atomic::Ordering;

use accel_api::{AccelError, PAGE_SIZE, PageFlag};
use x86_core::soft::Executor;
use x86_core::{Cpu, Exec, Fault, StaleCode, lines};
use x86_core::{Mode, seg};

use crate::lower::{self, Lowered};
use crate::op::{Exit, Op};
use crate::store::{Key, Store};

/// Entries of the jump cache; a power of two.
const JUMPS: usize = 4096;

/// A block by the linear address of its first byte: what indirect jumps, returns and jumps to other pages look at.
#[derive(Clone, Copy)]
pub(crate) struct Jump {
    pub rip: u64,
    /// `Engine::epoch` when it was filled in, or [`Engine::lasting_epoch`] if its page is global.
    pub(crate) epoch: u64,
    pub first: *mut Op,
}

/// The interpreter of one vCPU.
pub struct Engine {
    store: Store,
    jumps: Box<[Jump; JUMPS]>,
    /// Stands for everything a jump cache entry depends on but RIP: translations, privilege, mode, dropped blocks. No two
    /// sets of circumstances have the same one.
    pub epoch: u64,
    /// Likewise for code on global pages, which stays where it is when CR3 is loaded.
    pub(crate) lasting_epoch: u64,
    epochs: Epochs,
    /// Address that the TLB did not know.
    pub(crate) missed: u64,
    /// Fault to be raised.
    pub(crate) fault: Fault,
    /// Same-page branch that wants to be linked to where the chain ended.
    pub(crate) link: *mut Op,
    scratch: Lowered,
    stats: Stats,
}

/// What an epoch stands for.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Context {
    fetch_generation: u64,
    mode: u8,
    drops: u64,
}

/// Epochs by what they stand for, the latest first.
type Known = [(Context, u64); 8];

/// The epochs of each privilege, so that going to the kernel and back changes none. Some are remembered of other address
/// spaces, to which the vCPU may come back.
#[derive(Default)]
struct Epochs {
    last: u64,
    /// By whether the code is the user's.
    current: [Known; 2],
    lasting: [Known; 2],
}

impl Epochs {
    /// The epoch that stands for `context`, a new one if there is none.
    #[inline]
    fn of(known: &mut Known, context: Context, last: &mut u64) -> u64 {
        if known[0].0 != context || known[0].1 == 0 {
            let at = known.iter().position(|(c, epoch)| *c == context && *epoch != 0);
            let end = at.map_or(known.len(), |at| at + 1);
            known[..end].rotate_right(1);
            if at.is_none() {
                *last += 1;
                known[0] = (context, *last);
            }
        }
        known[0].1
    }
}

#[derive(Clone, Copy, Default)]
struct Stats {
    decoded: u64,
    lookups: u64,
    single_steps: u64,
    dropped_pages: u64,
    flushes: u64,
}

/// What there is to run at an address.
enum Found {
    Block(*mut Op),
    /// An instruction that no block can hold: it crosses into another page, or lies outside RAM.
    Single,
    /// The memory map has changed meanwhile.
    Again,
}

impl Engine {
    /// The jump cache entry for `rip`.
    #[inline(always)]
    pub(crate) fn jump_entry(&self, rip: u64) -> &Jump {
        &self.jumps[jump_index(rip)]
    }

    /// Decodes and executes the instruction at RIP on its own.
    ///
    /// # Errors
    /// Its fault; RIP stays.
    pub(crate) fn step(&mut self, cpu: &mut Cpu) -> Exec {
        self.stats.single_steps += 1;
        cpu.execute_one()?;
        cpu.rip = cpu.next_rip;
        Ok(())
    }

    /// The block at RIP, decoded if need be; sets [`Cpu::code_page`].
    fn find(&mut self, cpu: &mut Cpu) -> Exec<Found> {
        let rip = cpu.rip;
        self.set_epochs(cpu);
        let la = cpu.code_address(rip);
        cpu.code_page = la & !(PAGE_SIZE - 1);
        let known = self.jump_entry(la);
        if known.rip == la && self.is_current(known) {
            return Ok(Found::Block(known.first));
        }
        let Some(page) = cpu.code_page_at(la)? else { return Ok(Found::Single) };
        let key = Key::new(page.index, la & (PAGE_SIZE - 1), mode_key(cpu));
        let first = match self.store.find(key) {
            Some(first) => first,
            None if self.watch(cpu, page.index)? => return Ok(Found::Again),
            None => match self.decode(cpu, key, page.index)? {
                Some(first) => first,
                None => return Ok(Found::Single),
            },
        };
        let epoch = if page.global { self.lasting_epoch } else { self.epoch };
        self.jumps[jump_index(la)] = Jump { rip: la, epoch, first };
        Ok(Found::Block(first))
    }

    fn set_epochs(&mut self, cpu: &Cpu) {
        let user = usize::from(cpu.cpl == 3);
        let context = Context {
            fetch_generation: cpu.tlb.fetch_generation,
            mode: mode_key(cpu),
            drops: self.stats.dropped_pages + self.stats.flushes,
        };
        let lasting = Context { fetch_generation: cpu.tlb.global_fetch_generation, ..context };
        let Epochs { last, current, lasting: all_lasting } = &mut self.epochs;
        self.epoch = Epochs::of(&mut current[user], context, last);
        self.lasting_epoch = Epochs::of(&mut all_lasting[user], lasting, last);
    }

    /// Whether a jump cache entry holds now.
    #[inline(always)]
    pub(crate) fn is_current(&self, entry: &Jump) -> bool {
        entry.epoch == self.epoch || entry.epoch == self.lasting_epoch
    }

    #[cold]
    fn decode(&mut self, cpu: &mut Cpu, key: Key, page: usize) -> Exec<Option<*mut Op>> {
        if self.store.full() {
            self.flush();
            self.set_epochs(cpu);
        }
        let mut lowered = std::mem::take(&mut self.scratch);
        let mut first = None;
        // Another vCPU that goes on storing to code must not keep us here: after a few tries, one instruction.
        for _ in 0..4 {
            let writes = cpu.vm.code_writes.load(Ordering::SeqCst);
            if let Err(fault) = lower::block(cpu, &mut self.store, &mut lowered) {
                self.scratch = lowered;
                return Err(fault);
            }
            if lowered.ops.is_empty() {
                break;
            }
            cpu.vm.code.add(page, lines(lowered.start, lowered.bytes));
            // A store between our reading and this could not know that it hits code.
            if cpu.vm.code_writes.load(Ordering::SeqCst) == writes {
                self.stats.decoded += lowered.instructions as u64;
                first = Some(self.store.insert(key, &lowered.ops));
                break;
            }
        }
        self.scratch = lowered;
        Ok(first)
    }

    /// Makes stores to `page` visible to us from now on, before its bytes are read; whether translations have changed
    /// meanwhile.
    ///
    /// # Errors
    /// Those of [`Cpu::watch_code`].
    #[cold]
    fn watch(&self, cpu: &mut Cpu, page: usize) -> Exec<bool> {
        if self.store.has_page(page) && cpu.vm.flags.get(page).contains(PageFlag::CODE) {
            return Ok(false);
        }
        cpu.watch_code(page)
    }

    /// Drops everything. No chain may be running.
    pub(crate) fn flush(&mut self) {
        self.stats.flushes += 1;
        self.link = std::ptr::null_mut();
        self.store.clear();
    }
}

impl Executor for Engine {
    type Config = ();

    fn new(_: &mut Cpu, (): &()) -> Result<Self, AccelError> {
        let none = Jump { rip: 1 << 63, epoch: 0, first: std::ptr::null_mut() };
        Ok(Self {
            store: Store::default(),
            jumps: Box::new([none; JUMPS]),
            epoch: 0,
            lasting_epoch: 0,
            epochs: Epochs::default(),
            missed: 0,
            fault: Fault::UD,
            link: std::ptr::null_mut(),
            scratch: Lowered::default(),
            stats: Stats::default(),
        })
    }

    fn execute(&mut self, cpu: &mut Cpu) -> Exec {
        self.link = std::ptr::null_mut();
        while cpu.budget > 0 && !cpu.leave {
            self.stats.lookups += 1;
            let first = match self.find(cpu)? {
                Found::Block(first) => first,
                Found::Again => continue,
                Found::Single => {
                    self.link = std::ptr::null_mut();
                    cpu.budget -= 1;
                    self.step(cpu)?;
                    continue;
                }
            };
            if !self.link.is_null() {
                // SAFETY: the branch lies in a block of the store, which is emptied only in `find`, which clears `link`
                // then; no chain runs.
                unsafe { (*self.link).imm = first as u64 };
                self.link = std::ptr::null_mut();
            }
            // SAFETY: `first` begins a block that the store keeps, its handler takes these three; the references are not
            // used until it returns.
            let exit = unsafe {
                let handler = (*first).handler;
                let engine: *mut Self = self;
                handler(cpu, first, engine)
            };
            if exit == Exit::Fault {
                return Err(self.fault);
            }
        }
        Ok(())
    }

    fn code_stale(&mut self, stale: StaleCode) {
        self.stats.dropped_pages += 1;
        self.link = std::ptr::null_mut();
        self.store.drop_page(stale.page, |first| {
            // SAFETY: a block of the store; no chain runs. Links into it stay and meet this handler.
            unsafe { (*first).handler = crate::handlers::retired };
        });
    }

    fn all_code_stale(&mut self) {
        self.flush();
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Stats { decoded, lookups, single_steps, dropped_pages, flushes } = self.stats;
        vec![
            ("blocks", self.store.blocks() as u64),
            ("instructions_decoded", decoded),
            ("block_lookups", lookups),
            ("single_steps", single_steps),
            ("code_pages_dropped", dropped_pages),
            ("cache_flushes", flushes),
        ]
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

#[inline(always)]
fn jump_index(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize & (JUMPS - 1)
}

/// What of the CPU's state a block is decoded for.
fn mode_key(cpu: &Cpu) -> u8 {
    // Real and virtual-8086 mode decode alike, and so do both widths of 16-bit code.
    match cpu.mode {
        Mode::Long => 2,
        Mode::Protected32 => 1,
        Mode::Real | Mode::Virtual8086 | Mode::Protected16 => 0,
    }
}

/// Linear address less RIP: the base of CS outside 64-bit mode.
pub(crate) fn code_base(cpu: &Cpu) -> u64 {
    if cpu.mode == Mode::Long { 0 } else { cpu.segs[seg::CS].base }
}

/// `rip` in the width of the mode: outside 64-bit mode code may wrap around at 4 GiB.
#[inline(always)]
pub(crate) fn code_offset(cpu: &Cpu, rip: u64) -> u64 {
    if cpu.mode == Mode::Long { rip } else { rip & 0xffff_ffff }
}
