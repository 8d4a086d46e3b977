//! Makes the block at RIP: reads guest code, has it translated and inserts it into the store.

use std::sync::atomic::Ordering;

use accel_api::x86::Feature;
use accel_api::{PAGE_SIZE, PageFlag};
use x86_core::{CodePage, Cpu, Exec, MAX_INSTRUCTION, exec, host_read};

use super::Dispatcher;
use crate::block_mode::BlockMode;
use crate::debug::injected_bug;
use crate::store::blocks::{Key, SECOND_LINES};
use crate::store::insert::NewBlock;
use crate::translate::MAX_INSTRUCTIONS;
use crate::translate::output::Outcome;
use crate::translate::plan::classify::Classifier;
use crate::translate::plan::lazy_flags::LazyFlags;
use crate::translate::source::Source;

const PAGE: usize = PAGE_SIZE as usize;
/// Pages remembered that stores have been made to ask for: more than a full code cache has code of.
const MOST_WATCHED: usize = 1 << 16;

/// The result of making a block.
pub(super) enum Made {
    Block(u32),
    /// No instruction, or one whose second page has none.
    Nothing,
    /// Translations of addresses have changed meanwhile.
    Again,
    /// Code that changes too often to be worth a translation.
    SelfModifying,
    /// The guest's vector registers have to be in the host's.
    WantsVectors,
}

impl Dispatcher {
    /// Makes the block at RIP, which is on `page`.
    ///
    /// # Errors
    /// Those of [`Cpu::watch_code`].
    #[cold]
    pub(super) fn make(
        &mut self,
        cpu: &mut Cpu,
        key: Key,
        mode: BlockMode,
        page: CodePage,
        known: Option<LazyFlags>,
    ) -> Exec<Made> {
        if self.watch(cpu, page.index)? {
            return Ok(Made::Again);
        }
        if self.store.is_suspect(key) {
            return Ok(Made::SelfModifying);
        }
        let mut outcome = self.translate(cpu, key, mode, page.host, known, None);
        if outcome.0 == Outcome::Crosses {
            let Some(second) = self.second_page(cpu) else { return Ok(Made::Nothing) };
            if self.watch(cpu, second.index)? {
                return Ok(Made::Again);
            }
            outcome = self.translate(cpu, key, mode, page.host, None, Some(second));
        }
        Ok(match outcome {
            (Outcome::Done, number) => Made::Block(number),
            (Outcome::NoInstruction | Outcome::Crosses, _) => Made::Nothing,
            (Outcome::WantsVectors, _) => Made::WantsVectors,
        })
    }

    /// Makes stores to `page` visible to us from now on, before its bytes are read; whether translations of addresses
    /// have changed meanwhile.
    ///
    /// # Errors
    /// Those of [`Cpu::watch_code`].
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

    /// Translates the block with `key`, whose page is at `host`, for flags that `known` gives; with a `second` page,
    /// the instruction that crosses into it. The block's number, if it is done.
    fn translate(
        &mut self,
        cpu: &mut Cpu,
        key: Key,
        mode: BlockMode,
        host: *const u8,
        known: Option<LazyFlags>,
        second: Option<CodePage>,
    ) -> (Outcome, u32) {
        let ungrouped = mode.is_ungrouped() || self.store.is_ungrouped(key);
        let bmi1 = cpu.model.features.has(Feature::Bmi1);
        let classifier = Classifier { features: self.guest_features, bmi1, mode };
        let start = key.offset() as usize;
        let mut bytes = [0u8; PAGE + MAX_INSTRUCTION];
        let len = if second.is_some() { bytes.len() } else { PAGE };
        let mut limit = MAX_INSTRUCTIONS;
        // Another vCPU that goes on storing to code must not keep us here: after a few tries, one instruction.
        for _ in 0..6 {
            let writes = cpu.vm.code_writes.load(Ordering::SeqCst);
            // What is before the block is not looked at, but for the start of an instruction that leaves the page.
            let first = start.min(PAGE - MAX_INSTRUCTION);
            // SAFETY: the rest of a page of RAM.
            unsafe { host_read(host.add(first), &mut bytes[first..PAGE]) };
            if let Some(second) = second {
                // SAFETY: the start of another.
                unsafe { host_read(second.host, &mut bytes[PAGE..]) };
            }
            let source = Source {
                bytes: &bytes[..len],
                page: cpu.code_page,
                offset: start as u16,
                mode,
                ungrouped,
                no_inline_tlb: self.store.inline_tlb.excluded(key.ram_page()),
                known,
            };
            let outcome = self.translator.translate(&source, &classifier, &self.addresses, limit);
            if outcome != Outcome::Done {
                return (outcome, 0);
            }
            // A distance may not fit, and a block of many instructions may be more than a region has room for.
            let Some(code) = self.translator.code().filter(|code| self.make_room(code.len())) else {
                limit = 1;
                continue;
            };
            cpu.vm.code.add(key.ram_page(), self.translator.output.lines);
            if let Some(second) = second {
                cpu.vm.code.add(second.index, SECOND_LINES);
            }
            // A store between our reading and this could not know that it hits code.
            if cpu.vm.code_writes.load(Ordering::SeqCst) == writes {
                let guest = &bytes[start..start + usize::from(self.translator.output.length)];
                let new = NewBlock {
                    key,
                    mode,
                    known,
                    second: second.map(|second| second.index),
                    page: cpu.code_page,
                    listing: self.config.keeps_listings().then_some(guest),
                };
                return (Outcome::Done, self.insert(new, code));
            }
        }
        (Outcome::NoInstruction, 0)
    }

    /// Whether there is room for `len` bytes of code.
    fn make_room(&mut self, len: usize) -> bool {
        let evictions = self.store.counters.evictions;
        let room = self.store.make_room(len);
        if evictions != self.store.counters.evictions
            && let Some(lockstep) = &mut self.lockstep
        {
            lockstep.forget();
        }
        room
    }

    /// Inserts the last translation, whose code is `code`.
    fn insert(&mut self, new: NewBlock<'_>, mut code: Vec<u8>) -> u32 {
        let out = &self.translator.output;
        self.store.relocate(&mut code, out);
        if let Some(constant) = self.config.sabotage {
            injected_bug::sabotage(&mut code, constant);
        }
        let bug = self.config.bug.filter(|(constant, _)| injected_bug::contains(&code, *constant));
        if let Some((_, bug)) = bug {
            bug.inject(&mut code, out.entry as usize, self.store.distance_to_helper_stub());
        }
        let number = self.store.insert(new, &code, out, |instruction| match bug {
            Some(_) => injected_bug::panics,
            None => exec::lookup(instruction.code()),
        });
        self.show(number);
        number
    }

    /// Shows a new block to the user's tools.
    fn show(&self, number: u32) {
        let block = self.store.blocks.get(number);
        let (address, code) = self.store.code(block);
        let start = block.page + block.key.offset();
        if let Some(perf) = &self.config.perf_map {
            perf.add(address, code.len(), start);
        }
        if let Some(dump) = &self.config.jitdump {
            dump.add(address, code, start);
        }
        if let Some(show) = &self.config.show {
            show.show(block, (address, code));
        }
    }
}
