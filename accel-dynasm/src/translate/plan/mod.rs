//! The plan of a block: a description of each of its instructions, made before any code is emitted.
//!
//! 1. [`classify`] decides how each instruction is translated, [`step`] describes it.
//! 2. [`values`] follows registers through additions of constants, pushes and pops. Accesses at known distances from
//!    one value make a *group*, which is checked against the soft TLB as a whole, once. If the check fails the block is
//!    left for its *ungrouped* form, in which each access has a check of its own.
//! 3. [`flag_effects`] knows the effects of instructions on the arithmetic flags, [`lazy_flags`] has recipes that give
//!    flags again, and [`flag_plan`] finds out where a block needs them.

pub(crate) mod classify;
pub(crate) mod flag_effects;
pub(crate) mod flag_plan;
pub(crate) mod lazy_flags;
pub(crate) mod step;
pub(crate) mod string;
pub(crate) mod values;

use iced_x86::{Code, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};
use x86_core::segment_index;

use self::classify::{Action, Classifier, uses_vectors};
use self::flag_effects::Effect;
use self::flag_plan::Costs;
use self::step::{Access, Base, Group, RBP, RSP, SCRATCH, Step, Use, full};
use self::values::{Value, first_values, follow};
use super::encode::{self, Memory, names_high_byte};
use crate::jit_context::GROUPS;

/// Most bytes that one group spans: the more, the likelier it crosses into another page.
const MAX_SPAN: i64 = 1024;
/// Instructions that it costs an access on its own to be checked elsewhere.
const ALONE: u32 = 2;

/// The longest operand in the host's memory.
const LONGEST: Memory = Memory { base: Some(13), index: Some((11, 0)), disp: i32::MAX };

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub steps: Vec<Step>,
    pub groups: Vec<Group>,
    /// The step before which requests are looked for, if the block may be part of a loop.
    pub poll: Option<usize>,
    /// The values of registers before each step, and at the end.
    pub values: Vec<[Value; 18]>,
    pub costs: Costs,
}

impl Plan {
    pub(crate) fn clear(&mut self) {
        self.steps.clear();
        self.groups.clear();
        self.values.clear();
        self.poll = None;
    }

    /// Takes the last instruction back.
    pub(crate) fn pop(&mut self) {
        self.steps.pop();
        self.values.pop();
    }

    /// Adds an instruction; whether the block goes on after it.
    pub(crate) fn add(
        &mut self,
        ins: Instruction,
        bytes: &[u8],
        page: u64,
        classifier: &Classifier,
        info: &mut InstructionInfoFactory,
    ) -> bool {
        let mut action = classifier.action(&ins);
        let offset = (ins.ip().wrapping_sub(page)) as u16;
        let mut step = Step {
            ins,
            offset,
            action,
            effect: Effect::default(),
            live: true,
            checks: false,
            seen_after: true,
            lost_after: true,
            uses: [Use::default(); 2],
            operand: None,
            stack: None,
            vector: matches!(action, Action::Copy | Action::Memory) && uses_vectors(&ins),
            ignores_prefix: classifier.ignores_prefix(&ins),
        };
        step.uses = operands(&ins, info);
        describe(&mut step, page, info);
        if needs_both_scratch(&step) || !reaches(&step, page, classifier.mode.user()) {
            action = if action.is_branch() { Action::HelperEnd } else { Action::Helper };
            (step.action, step.operand, step.stack, step.vector) = (action, None, None, false);
        }
        // A prefix that the guest ignores is left out; that works only for the first.
        let code = if step.ignores_prefix { bytes.strip_prefix(&[0xf3]) } else { Some(bytes) };
        let memory = step.action == Action::Memory;
        let works = |code| !memory || encode::with_memory(code, LONGEST, names_high_byte(&ins)).is_some();
        if step.operand.is_some_and(|o| o.size == 0) || !code.is_some_and(works) {
            step.action = if action.ends_block() { Action::HelperEnd } else { Action::Helper };
            (step.operand, step.stack, step.vector) = (None, None, false);
        }
        step.effect = Effect::of(&ins, step.action, step.ignores_prefix);
        if self.values.is_empty() {
            self.values.push(first_values());
        }
        let mut values = self.values[self.steps.len()];
        follow(&mut values, &step, self.steps.len() as u32 + 1, info);
        self.values.push(values);
        let goes_on = !step.action.ends_block();
        self.steps.push(step);
        goes_on
    }

    /// The last instruction keeps interrupts from the next, which therefore has to be in the block.
    pub(crate) fn holds_interrupts(&self) -> bool {
        self.steps.last().is_some_and(|s| s.action == Action::System && s.ins.code() == Code::Sti)
    }

    /// Looks at the block as a whole; `known`: the flags can be had at its start without having been saved.
    pub(crate) fn finish(&mut self, ungrouped: bool, known: bool) {
        if self.holds_interrupts()
            && let Some(last) = self.steps.last_mut()
        {
            last.action = Action::Helper;
            last.effect = Effect::of(&last.ins, last.action, last.ignores_prefix);
        }
        self.want_flags(known);
        if !ungrouped {
            self.group();
        }
        if let Some(first) = self.steps.iter().position(may_loop) {
            // Not after it: a loop may never come there. And not between STI and the instruction it shields.
            let shielded = |n: usize| n > 0 && self.steps[n - 1].ins.code() == Code::Sti;
            let places = (0..=first).filter(|n| !shielded(*n));
            self.poll = self.cheapest(places).or(Some(0));
        }
        self.place_flags();
    }

    /// The cost of a check before step `at`.
    fn cost(&self, at: usize) -> u32 {
        self.costs.of(at, self.steps[at].live)
    }

    /// The first of the steps before which a check costs least.
    fn cheapest(&self, mut steps: impl Iterator<Item = usize> + Clone) -> Option<usize> {
        steps
            .clone()
            .find(|at| self.cost(*at) == 0)
            .or_else(|| steps.by_ref().min_by_key(|at| self.cost(*at)))
    }

    fn group(&mut self) {
        // Accesses in order: step, whether it is the stack's, value it is relative to, range.
        let mut open: Vec<Cluster> = Vec::new();
        for at in 0..self.steps.len() {
            let step = &self.steps[at];
            let both = [(step.operand, false), (step.stack, true)];
            for (access, stack) in both {
                let Some(access) = access else { continue };
                if access.index.is_some() || access.segment.is_some() {
                    continue;
                }
                let value = self.values[at][access.base.slot()];
                let Some(low) = value.plus.checked_add(access.disp) else { continue };
                let high = i64::from(low) + i64::from(access.size);
                let page = access.base == Base::Page;
                let fits = |c: &&mut Cluster| {
                    let (l, h) = (c.low.min(i64::from(low)), c.high.max(high));
                    let near = if page { l >> 12 == (h - 1) >> 12 } else { h - l <= MAX_SPAN };
                    c.unknown == value.unknown && near
                };
                if page && low >> 12 != ((high - 1) >> 12) as i32 {
                    continue;
                }
                match open.iter_mut().rev().find(fits) {
                    Some(cluster) => {
                        cluster.low = cluster.low.min(i64::from(low));
                        cluster.high = cluster.high.max(high);
                        cluster.write |= access.write;
                        cluster.members.push((at, stack));
                    }
                    None => open.push(Cluster {
                        unknown: value.unknown,
                        low: low.into(),
                        high,
                        write: access.write,
                        base: access.base,
                        members: vec![(at, stack)],
                    }),
                }
            }
        }
        for cluster in open {
            let (first, _) = cluster.members[0];
            let more = cluster.members.len() > 1;
            if self.groups.len() >= GROUPS {
                continue;
            }
            let slot = cluster.base.slot();
            // A branch that closes a loop mostly leads back: code after it is not worth a check in each turn.
            let turns = |at: usize| self.steps[at].action == Action::Jcc && may_loop(&self.steps[at]);
            let known = (0..=first).rev().take_while(|at| {
                self.values[*at][slot].unknown == cluster.unknown && (*at == first || !turns(*at))
            });
            let Some(at) = self.cheapest(known) else { continue };
            // On its own an access is better off with a check that can be repeated; unless that costs more.
            if !more && self.cost(at) + ALONE >= self.cost(first) {
                continue;
            }
            let id = self.groups.len() as u8;
            let low = cluster.low - i64::from(self.values[at][slot].plus);
            let Ok(low) = i32::try_from(low) else { continue };
            self.costs.place(at);
            self.groups.push(Group {
                at,
                base: cluster.base,
                low,
                size: (cluster.high - cluster.low) as u16,
                write: cluster.write,
            });
            for (at, stack) in cluster.members {
                let step = &mut self.steps[at];
                let access = if stack { &mut step.stack } else { &mut step.operand };
                if let Some(access) = access {
                    access.group = Some(id);
                }
            }
        }
    }
}

struct Cluster {
    unknown: u32,
    low: i64,
    high: i64,
    write: bool,
    base: Base,
    members: Vec<(usize, bool)>,
}

/// A branch that could lead back here without anybody looking for requests.
fn may_loop(step: &Step) -> bool {
    match step.action {
        // By its distance: around the end of the addresses, a lower one may lie ahead.
        Action::Jump | Action::Jcc | Action::Call => {
            step.ins.near_branch64().wrapping_sub(step.ins.ip()).cast_signed() <= 0
        }
        Action::Return | Action::JumpIndirect | Action::CallIndirect => true,
        _ => false,
    }
}

/// How R10 and R11 are used as operands.
fn operands(ins: &Instruction, info: &mut InstructionInfoFactory) -> [Use; 2] {
    let mut uses = [Use::default(); 2];
    let names = |n: u32, r: u8| {
        let register = ins.op_register(n);
        ins.op_kind(n) == OpKind::Register && register.is_gpr() && full(register) == r
    };
    if !(0..ins.op_count()).any(|n| names(n, 10) || names(n, 11)) {
        return uses;
    }
    let info = info.info(ins);
    for (use_, r) in uses.iter_mut().zip(SCRATCH) {
        for n in (0..ins.op_count()).filter(|n| names(*n, r)) {
            let narrow = ins.op_register(n).size() < 4;
            match info.op_access(n) {
                OpAccess::Read | OpAccess::CondRead => use_.read = true,
                OpAccess::Write => {
                    use_.write = true;
                    use_.read |= narrow;
                }
                OpAccess::None | OpAccess::NoMemAccess => {}
                _ => *use_ = Use { read: true, write: true },
            }
        }
    }
    uses
}

/// Fills in the accesses.
fn describe(step: &mut Step, page: u64, info: &mut InstructionInfoFactory) {
    let ins = &step.ins;
    let stack = |disp: i32, write: bool| Access {
        base: Base::Register(RSP),
        index: None,
        disp,
        segment: None,
        size: 8,
        write,
        group: None,
    };
    match step.action {
        Action::System if ins.code() == Code::Pushfq => step.stack = Some(stack(-8, true)),
        Action::Push => {
            step.stack = Some(stack(-8, true));
            if ins.op0_kind() == OpKind::Memory {
                step.operand = Some(operand(ins, page, false));
            }
        }
        Action::Call => step.stack = Some(stack(-8, true)),
        Action::CallIndirect => {
            step.stack = Some(stack(-8, true));
            if ins.op0_kind() == OpKind::Memory {
                step.operand = Some(operand(ins, page, false));
            }
        }
        Action::JumpIndirect if ins.op0_kind() == OpKind::Memory => {
            step.operand = Some(operand(ins, page, false));
        }
        Action::Pop | Action::Return => step.stack = Some(stack(0, false)),
        Action::Leave => step.stack = Some(Access { base: Base::Register(RBP), ..stack(0, false) }),
        Action::Memory => step.operand = Some(operand(ins, page, writes_memory(ins, info))),
        _ => {}
    }
}

fn operand(ins: &Instruction, page: u64, write: bool) -> Access {
    let segment = segment_index(ins.memory_segment()).filter(|s| *s >= x86_core::seg::FS);
    let displacement = ins.memory_displacement64();
    let (base, disp) = match ins.memory_base() {
        Register::RIP => (Base::Page, displacement.wrapping_sub(page) as i64),
        Register::None => (Base::None, displacement as i64),
        register => (Base::Register(register.number() as u8), displacement as i64),
    };
    let index = match ins.memory_index() {
        Register::None => None,
        register => Some((register.number() as u8, ins.memory_index_scale().trailing_zeros() as u8)),
    };
    // Size 0 leaves the instruction to a helper.
    let fits = i32::try_from(disp).is_ok();
    let size = if fits { ins.memory_size().size() as u16 } else { 0 };
    Access { base, index, disp: disp as i32, segment, size, write, group: None }
}

/// Whether the memory operand is written, too. An access too many as a write is only slower, one too few is wrong.
fn writes_memory(ins: &Instruction, info: &mut InstructionInfoFactory) -> bool {
    let info = info.info(ins);
    (0..ins.op_count()).any(|n| {
        ins.op_kind(n) == OpKind::Memory
            && !matches!(info.op_access(n), OpAccess::Read | OpAccess::CondRead | OpAccess::None)
    })
}

/// Whether a distance from the page says where the instruction leads, and there can be code there.
fn reaches(step: &Step, page: u64, user: bool) -> bool {
    let target = match step.action {
        Action::Jump | Action::Jcc | Action::Call => step.ins.near_branch64(),
        Action::Lea => return !user || fits(step.ins.memory_displacement64(), page),
        _ => return true,
    };
    // Where the page of user code lies is known only when it runs.
    x86_core::Cpu::canonical(target) && (!user || fits(target, page))
}

fn fits(target: u64, page: u64) -> bool {
    i32::try_from(target.wrapping_sub(page).cast_signed()).is_ok()
}

/// Both scratch registers are operands that are read: none is left for the address.
fn needs_both_scratch(step: &Step) -> bool {
    step.operand.is_some() && step.uses.iter().all(|u| u.read)
}
