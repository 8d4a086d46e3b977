//! Pre-decoded operations and the way from one to the next.
//!
//! A block is an array of [`Op`]s. Each holds the address of the [`Handler`] that executes it, and a handler ends in a
//! call of the next one in tail position, which the optimiser turns into a jump: nothing returns until something has to
//! be looked up, and the processor's branch predictor sees one indirect jump a handler. Should a build not turn the
//! calls into jumps, the chain is still no longer than the instruction budget.
//!
//! Handlers do not maintain RIP: it is [`Cpu::code_page`] plus the op's offset, and only computed where it is needed.
#![allow(unsafe_code)] // ops address the vCPU by byte offset and chain by raw pointer; `Step` is where that is confined

use std::marker::PhantomData;

use iced_x86::Instruction;
use x86_core::alu::{ArithFlags, Word};
use x86_core::exec::ExecFn;
use x86_core::{AccessKind, Cpu, Ea, Fault, TlbEntry, host_load, host_store};

use crate::engine::Engine;

/// Why a chain of handlers returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Exit {
    /// Go on at `cpu.rip`.
    Lookup,
    /// `engine.fault` is to be raised at `cpu.rip`.
    Fault,
}

/// Executes one op and all that follow. A panic in it ends the process: an ABI that unwinds would keep a frame for each op, and
/// makes the interpreter slower by a factor of 3.9 (ADR 17).
pub(crate) type Handler = unsafe extern "sysv64" fn(*mut Cpu, *const Op, *mut Engine) -> Exit;

/// One decoded operation: a guest instruction, or two fused.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub handler: Handler,
    /// Immediate; of a branch the first op of its target once linked, 0 before; of a generic op a [`Generic`].
    pub imm: u64,
    /// Displacement of the address; of a branch the target less the code page.
    pub disp: i32,
    /// Byte offsets into [`Cpu`]: operands, base and index of the address.
    pub dst: u16,
    pub src: u16,
    pub base: u16,
    pub index: u16,
    /// Offset of the (first) instruction in its page.
    pub offset: u16,
    /// log2 of the index's scale.
    pub scale: u8,
    /// Instructions of the block before this op.
    pub count: u8,
}

impl Op {
    /// The second immediate of an op whose first is taken: 32 bits, in place of base and index.
    #[inline(always)]
    pub(crate) fn small(&self) -> i64 {
        i64::from((u32::from(self.base) | u32::from(self.index) << 16) as i32)
    }

    /// Sets [`Self::small`].
    pub(crate) fn set_small(&mut self, value: i32) {
        self.base = value as u16;
        self.index = (value >> 16) as u16;
    }
}

/// An instruction executed by its function in x86-core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generic {
    pub instruction: Instruction,
    pub function: ExecFn,
    /// Linear address of the page it was decoded in.
    pub page: u64,
    /// Has an operand relative to RIP, which moves with the page.
    pub relative: bool,
}

/// One step of a chain, as its handler sees it.
///
/// Invariant, on which every method stands: `cpu` and `engine` are the exclusive references of the
/// [`Engine::execute`](crate::Engine) that started the chain, in which they are not otherwise used until it returns; `op` lies in a
/// block that the engine keeps until then; every op but a block's last, which stands for no instruction, is followed by
/// another; the offsets in an op are those of fields of [`Cpu`], as `lower` computes them.
///
/// Not `Copy`, and what it lends of the vCPU and the engine it lends by its own borrow: two exclusive references to one of
/// them cannot be had.
pub(crate) struct Step<'block> {
    cpu: *mut Cpu,
    /// Not a reference: the step goes on to the ops behind it, where a reference to one does not reach.
    op: *const Op,
    engine: *mut Engine,
    block: PhantomData<&'block Op>,
}

impl<'block> Step<'block> {
    /// # Safety
    /// The arguments must be those of a handler (see the invariant), and there must be one `Step` of them at a time.
    #[inline(always)]
    pub(crate) unsafe fn new(cpu: *mut Cpu, op: *const Op, engine: *mut Engine) -> Self {
        Self { cpu, op, engine, block: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn op(&self) -> &'block Op {
        // SAFETY: the invariant: the block outlives the handler.
        unsafe { &*self.op }
    }

    #[inline(always)]
    pub(crate) fn cpu(&mut self) -> &mut Cpu {
        // SAFETY: the invariant.
        unsafe { &mut *self.cpu }
    }

    #[inline(always)]
    pub(crate) fn engine(&mut self) -> &mut Engine {
        // SAFETY: the invariant.
        unsafe { &mut *self.engine }
    }

    /// Both at once.
    #[inline(always)]
    pub(crate) fn parts(&mut self) -> (&mut Cpu, &mut Engine) {
        // SAFETY: the invariant; they are two.
        unsafe { (&mut *self.cpu, &mut *self.engine) }
    }

    /// A field of the vCPU that is copied out.
    #[inline(always)]
    pub(crate) fn peek<T: Copy>(&self, field: impl FnOnce(&Cpu) -> T) -> T {
        // SAFETY: the invariant.
        field(unsafe { &*self.cpu })
    }

    /// The field of `W` at byte offset `place`.
    #[inline(always)]
    pub(crate) fn get<W: Word>(&self, place: u16) -> W {
        // SAFETY: the invariant: an aligned field of that width or wider (x86 is little endian); AH to BH are bytes.
        unsafe { self.cpu.cast::<u8>().add(place as usize).cast::<W>().read() }
    }

    /// Sets a register: a 32-bit result clears the upper half, narrower ones leave the rest alone.
    #[inline(always)]
    pub(crate) fn set<W: Word>(&mut self, place: u16, value: W) {
        // SAFETY: as in `get`; general registers are 64 bits wide.
        unsafe {
            let field = self.cpu.cast::<u8>().add(place as usize);
            if W::BYTES == 4 {
                field.cast::<u64>().write(value.to_u64())
            } else {
                field.cast::<W>().write(value)
            }
        }
    }

    /// A pointer to the field at byte offset `place`.
    #[inline(always)]
    pub(crate) fn field<T>(&self, place: u16) -> *mut T {
        // SAFETY: the invariant.
        unsafe { self.cpu.cast::<u8>().add(place as usize).cast() }
    }

    #[inline(always)]
    pub(crate) fn flags(&mut self) -> &mut ArithFlags {
        &mut self.cpu().flags
    }

    /// Linear address of the op's memory operand. With `X` it has an index (or a segment base in its place).
    #[inline(always)]
    pub(crate) fn ea<const X: bool>(&self) -> u64 {
        let op = self.op();
        let mut ea = self.get::<u64>(op.base).wrapping_add_signed(i64::from(op.disp));
        if X {
            ea = ea.wrapping_add(self.get::<u64>(op.index) << (op.scale & 3));
        }
        ea
    }

    #[inline(always)]
    fn entry(&self, ea: u64) -> &TlbEntry {
        // SAFETY: the invariant.
        unsafe { (*self.cpu).data_entry(ea) }
    }

    /// Host address of `bytes` loadable bytes at `ea`, if the TLB knows them.
    #[inline(always)]
    pub(crate) fn readable(&self, ea: u64, bytes: usize) -> Option<*const u8> {
        let entry = self.entry(ea);
        (ea ^ entry.read_tag <= 4096 - bytes as u64).then(|| ea.wrapping_add(entry.addend) as *const u8)
    }

    /// Host address of `bytes` storable bytes at `ea`, if the TLB knows them.
    #[inline(always)]
    pub(crate) fn writable(&self, ea: u64, bytes: usize) -> Option<*mut u8> {
        let entry = self.entry(ea);
        (ea ^ entry.write_tag <= 4096 - bytes as u64).then(|| ea.wrapping_add(entry.addend) as *mut u8)
    }

    #[inline(always)]
    pub(crate) fn load<W: Word>(&self, ea: u64) -> Option<W> {
        // SAFETY: a read tag maps the page to RAM.
        self.readable(ea, W::BYTES).map(|host| unsafe { host_load(host) })
    }

    #[inline(always)]
    pub(crate) fn store<W: Word>(&mut self, ea: u64, value: W) -> Option<()> {
        // SAFETY: a write tag maps the page to writable RAM.
        self.writable(ea, W::BYTES).map(|host| unsafe { host_store(host, value) })
    }

    /// Goes on with the next op of the block.
    #[inline(always)]
    pub(crate) fn next(self) -> Exit {
        // SAFETY: the invariant: an op that does not end its block is followed by another.
        unsafe {
            let next = self.op.add(1);
            ((*next).handler)(self.cpu, next, self.engine)
        }
    }

    /// Executes this op again.
    #[inline(always)]
    pub(crate) fn again(self) -> Exit {
        // SAFETY: the invariant.
        unsafe { ((*self.op).handler)(self.cpu, self.op, self.engine) }
    }

    /// Goes on with another block.
    ///
    /// # Safety
    /// `first` must be the first op of a block the engine keeps.
    #[inline(always)]
    pub(crate) unsafe fn jump(self, first: *const Op) -> Exit {
        // SAFETY: the caller's promise and the invariant.
        unsafe { ((*first).handler)(self.cpu, first, self.engine) }
    }

    /// Hands this op, whose access the TLB does not know, to the slow path.
    #[inline(always)]
    pub(crate) fn miss<const BYTES: usize, const WRITE: bool>(mut self, ea: u64) -> Exit {
        self.engine().missed = ea;
        // SAFETY: the invariant.
        unsafe { refill::<BYTES, WRITE>(self.cpu, self.op, self.engine) }
    }

    /// RIP of this op.
    #[inline(always)]
    pub(crate) fn rip(&self) -> u64 {
        self.peek(|cpu| cpu.code_page) + u64::from(self.op().offset)
    }

    /// Takes `count` instructions off the budget; whether any is left.
    #[inline(always)]
    pub(crate) fn spend(&mut self, count: u8) -> bool {
        let cpu = self.cpu();
        cpu.budget -= i64::from(count);
        cpu.budget > 0
    }

    /// Ends the chain at `rip`, to be looked up.
    #[inline(always)]
    pub(crate) fn lookup(mut self, rip: u64) -> Exit {
        self.cpu().rip = rip;
        Exit::Lookup
    }

    /// Ends the chain with a fault of this op.
    #[cold]
    pub(crate) fn fault(mut self, fault: Fault) -> Exit {
        self.spend(self.op().count);
        self.engine().fault = fault;
        Exit::Fault
    }

    /// Executes this op's instruction by its function in x86-core.
    #[cold]
    pub(crate) fn slow(self) -> Exit {
        // SAFETY: the invariant.
        unsafe { single(self.cpu, self.op, self.engine) }
    }

    #[inline(always)]
    pub(crate) fn this(&self) -> *const Op {
        self.op
    }
}

/// The TLB does not know `engine.missed`: fills it and runs the op again, or, where it cannot be filled (a device, a
/// page boundary, a page of decoded code), executes the instruction by its function in x86-core.
#[cold]
#[inline(never)]
unsafe extern "sysv64" fn refill<const BYTES: usize, const WRITE: bool>(
    cpu: *mut Cpu,
    op: *const Op,
    engine: *mut Engine,
) -> Exit {
    // SAFETY: called by a handler with its own arguments.
    let mut s = unsafe { Step::new(cpu, op, engine) };
    let ea = s.engine().missed;
    let kind = if WRITE { AccessKind::Write } else { AccessKind::Read };
    // A fault, if any, is found again by the instruction itself, which knows its order and its segment.
    let known = s.cpu().span(Ea::data(ea), BYTES, kind);
    let hit = if WRITE { s.writable(ea, BYTES).is_some() } else { s.readable(ea, BYTES).is_some() };
    if known.is_ok() && hit {
        return s.again();
    }
    s.slow()
}

/// Executes the one instruction at this op by decoding it afresh. A fused op's second half is found by lookup.
#[cold]
#[inline(never)]
unsafe extern "sysv64" fn single(cpu: *mut Cpu, op: *const Op, engine: *mut Engine) -> Exit {
    // SAFETY: called by a handler with its own arguments.
    let mut s = unsafe { Step::new(cpu, op, engine) };
    let rip = s.rip();
    s.cpu().rip = rip;
    let (cpu, engine) = s.parts();
    match engine.step(cpu) {
        Ok(()) => {
            let next = s.peek(|cpu| cpu.rip);
            // SAFETY: every block ends in an op that stands for no instruction, so another op follows this one.
            let follower = unsafe { &*s.this().add(1) };
            if next == s.peek(|cpu| cpu.code_page) + u64::from(follower.offset) && !s.peek(|cpu| cpu.leave) {
                return s.next();
            }
            let count = s.op().count.saturating_add(1);
            s.spend(count);
            Exit::Lookup
        }
        Err(fault) => s.fault(fault),
    }
}
