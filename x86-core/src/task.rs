//! Hardware task switches (Intel SDM vol. 3, chapter 8), which exist outside long mode.
//!
//! 1. A far JMP or CALL to a TSS descriptor or a task gate, an event through a task gate, and IRET with NT set come here
//!    with what they know of the task being left.
//! 2. Until the new TSS has been read and the old one written, a fault belongs to the old task, which goes on as it was.
//! 3. From then on the new task is the current one: RIP stands at its first instruction, and what is wrong with its
//!    segments is raised in its context (8.3, step 13). Segment registers not checked yet are unusable then.

use crate::alu::flag;
use crate::cpu::seg;
use crate::dr6;
use crate::mode::bits::{CR0_PG, CR0_TS};
use crate::segment::{BUSY, SelectorFault, is_null, null_segment, rpl, system_type, virtual8086_segment};
use crate::{Cpu, Descriptor, Exec, Fault};

/// Why a task is left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Jump,
    Call,
    /// IRET to the task that the back link names.
    Return,
    /// An event, with what is to be pushed on the new task's stack.
    Event(Option<u32>),
}

impl Reason {
    /// The old task stays busy, and the new one is linked to it (8.3, table 8-2).
    fn nests(self) -> bool {
        matches!(self, Reason::Call | Reason::Event(_))
    }
}

/// The task being left: its EIP and flags are those of the instruction to go on with.
#[derive(Clone, Copy)]
pub(crate) struct Leaving {
    pub(crate) reason: Reason,
    pub(crate) eip: u64,
    pub(crate) rflags: u64,
}

/// Offsets in a TSS (8.2.1 and 8.6). From `dynamic` on lie EIP, EFLAGS, eight general registers, and the segment registers
/// from ES on, each `width` bytes.
#[derive(Clone, Copy)]
struct Layout {
    width: usize,
    dynamic: usize,
    segments: usize,
    ldt: usize,
    /// The smallest limit.
    limit: u32,
}

const LAYOUT32: Layout = Layout { width: 4, dynamic: 0x20, segments: 6, ldt: 0x60, limit: 0x67 };
const LAYOUT16: Layout = Layout { width: 2, dynamic: 0x0e, segments: 4, ldt: 0x2a, limit: 0x2b };
/// Offsets that only the 32-bit TSS has.
const CR3: usize = 0x1c;
const TRAP: usize = 0x64;
/// EIP, EFLAGS and the general registers.
const FIXED: usize = 10;

impl Layout {
    /// By the type of the TSS's descriptor.
    const fn of(kind: u8) -> Self {
        if kind & 8 != 0 { LAYOUT32 } else { LAYOUT16 }
    }
}

/// A TSS, as far as its layout goes.
struct Image {
    bytes: [u8; LAYOUT32.limit as usize + 1],
    layout: Layout,
}

impl Image {
    fn word(&self, at: usize, width: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes[..width].copy_from_slice(&self.bytes[at..at + width]);
        u32::from_le_bytes(bytes)
    }

    /// Item `n` of the dynamic part.
    fn item(&self, n: usize) -> u32 {
        self.word(self.layout.dynamic + n * self.layout.width, self.layout.width)
    }

    /// Selector of segment register `index`; null where the TSS has none.
    fn selector(&self, index: usize) -> u16 {
        if index < self.layout.segments { self.item(FIXED + index) as u16 } else { 0 }
    }
}

impl Cpu {
    /// Far JMP or CALL to the system descriptor `d` of `selector`, a TSS or a task gate.
    ///
    /// # Errors
    /// #GP, #NP, #TS, #SS, #PF.
    #[cold]
    pub(crate) fn far_to_task(&mut self, selector: u16, d: Descriptor, reason: Reason) -> Exec {
        if d.dpl() < self.cpl || d.dpl() < rpl(selector) {
            return Err(Fault::gp(selector));
        }
        let leaving = Leaving { reason, eip: self.next_rip, rflags: self.rflags() };
        if d.kind() == system_type::TASK_GATE {
            if !d.present() {
                return Err(Fault::np(selector));
            }
            return self.switch_task(d.gate_selector(), leaving);
        }
        self.switch_task(selector, leaving)
    }

    /// IRET with NT set: back to the task that the TSS names (8.4).
    ///
    /// # Errors
    /// #TS, #NP, #GP, #SS, #PF.
    #[cold]
    pub(crate) fn return_to_task(&mut self) -> Exec {
        let link: u16 = self.tss_field(0)?;
        let rflags = self.rflags() & !flag::NT;
        self.switch_task(link, Leaving { reason: Reason::Return, eip: self.next_rip, rflags })
    }

    /// Switches to the task of the TSS `selector`. RIP is then in the new task, also if that raises a fault.
    ///
    /// # Errors
    /// #GP, #NP, #TS, #SS, #PF.
    pub(crate) fn switch_task(&mut self, selector: u16, leaving: Leaving) -> Exec {
        let tss = self.task_descriptor(selector, leaving.reason)?;
        let base = tss.base();
        let layout = Layout::of(tss.kind());
        let mut new = Image { bytes: [0; LAYOUT32.limit as usize + 1], layout };
        self.system_load_bytes(base, &mut new.bytes[..layout.limit as usize + 1])?;
        self.save_task(&leaving)?;
        let entered = leaving.reason != Reason::Return;
        if entered {
            // First of all that others see: of two processors that switch to the same task, one finds it busy.
            self.mark_busy(selector)?;
        }
        let left = if leaving.reason.nests() {
            self.system_store(base, self.tr.selector)
        } else {
            self.update_type(self.tr.selector, |kind| kind & !BUSY).map(drop)
        };
        if let Err(fault) = left {
            if entered {
                self.update_type(selector, |kind| kind & !BUSY)?;
            }
            return Err(fault);
        }
        self.tr = tss.segment(selector);
        self.tr.attributes |= u16::from(BUSY);
        self.enter_task(&new, leaving.reason)
    }

    /// The descriptor of a TSS that may be switched to (8.3, steps 3 and 4).
    fn task_descriptor(&mut self, selector: u16, reason: Reason) -> Exec<Descriptor> {
        let back = reason == Reason::Return;
        let bad: SelectorFault = if back { Fault::ts } else { Fault::gp };
        const IN_LDT: u16 = 4;
        if selector & IN_LDT != 0 || is_null(selector) {
            return Err(bad(selector));
        }
        let d = self.descriptor(selector, bad)?;
        let wanted = match d.kind() {
            system_type::TSS | system_type::TSS16 => !back,
            system_type::TSS_BUSY | system_type::TSS16_BUSY => back,
            _ => false,
        };
        if !d.is_system() || !wanted {
            return Err(bad(selector));
        }
        if !d.present() {
            return Err(Fault::np(selector));
        }
        if d.limit() < Layout::of(d.kind()).limit {
            return Err(Fault::ts(selector));
        }
        Ok(d)
    }

    /// Stores the dynamic part of the current TSS (8.3, step 8).
    fn save_task(&mut self, leaving: &Leaving) -> Exec {
        let layout = Layout::of(self.tr.kind());
        if self.tr.unusable || self.tr.limit < layout.limit {
            return Err(Fault::ts(self.tr.selector));
        }
        let head = [leaving.eip, leaving.rflags];
        let selectors = self.segs.iter().take(layout.segments).map(|s| u64::from(s.selector));
        let items = head.into_iter().chain(self.gpr.iter().take(8).copied()).chain(selectors);
        let mut bytes = [0; (FIXED + LAYOUT32.segments) * LAYOUT32.width];
        for (slot, item) in bytes.chunks_exact_mut(layout.width).zip(items) {
            slot.copy_from_slice(&item.to_le_bytes()[..layout.width]);
        }
        let len = (FIXED + layout.segments) * layout.width;
        self.system_store_bytes(self.tr.base.wrapping_add(layout.dynamic as u64), &bytes[..len])
    }

    /// Loads the state of the new task; its faults are the new task's (8.3, steps 12 to 14).
    fn enter_task(&mut self, new: &Image, reason: Reason) -> Exec {
        const LOCAL_BREAKPOINTS: u64 = 0x155;
        let wide = new.layout.width == 4;
        self.cr0 |= CR0_TS;
        self.set_dr7(self.dr7 & !LOCAL_BREAKPOINTS);
        let nested = if reason.nests() { flag::NT } else { 0 };
        let eip = u64::from(new.item(0));
        (self.rip, self.next_rip) = (eip, eip);
        // The manual leaves the upper halves undefined that a 16-bit TSS does not have; processors set them.
        let upper = if wide { 0 } else { 0xffff_0000 };
        for (n, register) in self.gpr.iter_mut().take(8).enumerate() {
            *register = (upper | new.item(2 + n)).into();
        }
        let cs = new.selector(seg::CS);
        for index in 0..self.segs.len() {
            self.segs[index] = null_segment(new.selector(index), 0);
        }
        // Until SS is loaded it stands for the CPL, which is the RPL of CS.
        self.segs[seg::SS] = null_segment(new.selector(seg::SS), rpl(cs));
        self.ldtr = null_segment(new.word(new.layout.ldt, 2) as u16, 0);
        self.set_rflags(u64::from(new.item(1)) | nested);
        let v86 = self.has(flag::VM);
        if v86 {
            self.segs = std::array::from_fn(|index| virtual8086_segment(new.selector(index)));
        }
        self.update_mode();
        if wide && new.bytes[TRAP] & 1 != 0 {
            self.pending_debug |= dr6::BT;
        }
        if wide && self.cr0 & CR0_PG != 0 {
            self.write_cr3(new.word(CR3, 4).into())?;
        }
        self.load_task_ldt()?;
        if !v86 {
            self.load_task_segments(cs, new)?;
        }
        if eip > u64::from(self.segs[seg::CS].limit) {
            return Err(Fault::GP0);
        }
        match reason {
            Reason::Event(Some(code)) if wide => self.push(code),
            Reason::Event(Some(code)) => self.push(code as u16),
            _ => Ok(()),
        }
    }

    fn load_task_ldt(&mut self) -> Exec {
        let selector = self.ldtr.selector;
        if is_null(selector) {
            return Ok(());
        }
        // All that LLDT raises is #TS here, also that it is not present (table 8-1).
        match self.load_ldtr(selector) {
            Err(fault) if fault.vector() != crate::vector::PF => Err(Fault::ts(selector)),
            result => result,
        }
    }

    /// Checks and loads the segment registers in the order of table 8-1.
    fn load_task_segments(&mut self, cs: u16, new: &Image) -> Exec {
        if is_null(cs) {
            return Err(Fault::ts(cs));
        }
        let mut code = self.descriptor(cs, Fault::ts)?;
        let matches = if code.is_conforming() { code.dpl() <= rpl(cs) } else { code.dpl() == rpl(cs) };
        if !code.is_code() || !matches {
            return Err(Fault::ts(cs));
        }
        let ss = new.selector(seg::SS);
        if is_null(ss) {
            return Err(Fault::ts(ss));
        }
        let stack = self.check_stack_segment(ss, rpl(cs), Fault::ts)?;
        if !code.present() {
            return Err(Fault::np(cs));
        }
        self.mark_accessed(cs, &mut code)?;
        self.segs[seg::SS] = stack;
        self.segs[seg::CS] = code.segment(cs);
        self.update_mode();
        for index in [seg::DS, seg::ES, seg::FS, seg::GS] {
            self.segs[index] = self.data_segment(new.selector(index), Fault::ts)?;
        }
        Ok(())
    }
}

/// Whether a far transfer to a system descriptor of type `kind` switches tasks, or tries to.
pub(crate) fn leads_to_task(kind: u8) -> bool {
    matches!(
        kind,
        system_type::TSS
            | system_type::TSS_BUSY
            | system_type::TSS16
            | system_type::TSS16_BUSY
            | system_type::TASK_GATE
    )
}
