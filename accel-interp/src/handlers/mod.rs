//! Handlers of the hottest instruction forms of 64-bit code, and the one that runs every other instruction by its
//! function in x86-core.
//!
//! A handler changes nothing before its memory access has hit the TLB: on a miss the whole op is run again or handed
//! to x86-core. Arithmetic is x86-core's ([`Word`]), so there is one semantics; what is special here is only where
//! operands come from, and that flags nobody will read are not computed.
#![allow(unsafe_code)] // handlers are reached through function pointers in ops; see `Step`

pub(crate) mod alu;
pub(crate) mod avx;
pub(crate) mod branch;
pub(crate) mod data;
pub(crate) mod stack;
pub(crate) mod vector;

use x86_core::alu::Word;

use crate::engine::{code_base, code_offset};
use crate::op::{Exit, Generic, Op, Step};

/// Defines handlers: `fn name<Types; constants>(s) { body }`, with `s` the [`Step`].
macro_rules! handler {
    ($($(#[$doc:meta])* fn $name:ident
        $(<$($g:ident : $bound:path),* $(; $(const $c:ident : $t:ty),+)?>)?
        ($s:ident) $body:block)*) => {$(
        $(#[$doc])*
        pub(crate) unsafe extern "sysv64" fn $name $(<$($g: $bound,)* $($(const $c: $t),+)?>)? (
            cpu: *mut x86_core::Cpu,
            op: *const $crate::op::Op,
            engine: *mut $crate::engine::Engine,
        ) -> $crate::op::Exit {
            // SAFETY: a handler is only called by a chain, with the chain's own pointers.
            #[allow(unused_mut)]
            let mut $s = unsafe { $crate::op::Step::new(cpu, op, engine) };
            $body
        }
    )*};
}
pub(crate) use handler;

/// `handler::<.., X, ..>` for the operand's `indexed`.
macro_rules! indexed {
    ($indexed:expr, $x:ident => $handler:expr) => {
        if $indexed {
            const $x: bool = true;
            $handler as $crate::op::Handler
        } else {
            const $x: bool = false;
            $handler as $crate::op::Handler
        }
    };
}
pub(crate) use indexed;

/// Takes the value of an access that hit, or leaves the handler by the slow path.
macro_rules! hit {
    ($s:ident, load $w:ty, $ea:expr) => {{
        let ea = $ea;
        match $s.load::<$w>(ea) {
            Some(value) => value,
            None => return miss::<$w, false>($s, ea),
        }
    }};
    ($s:ident, store $w:ty, $ea:expr, $value:expr) => {{
        let ea = $ea;
        if $s.store::<$w>(ea, $value).is_none() {
            return miss::<$w, true>($s, ea);
        }
    }};
}
pub(crate) use hit;

/// The slow path for an access of `W`.
#[inline(always)]
pub(crate) fn miss<W: Word, const WRITE: bool>(s: Step<'_>, ea: u64) -> Exit {
    match W::BYTES {
        1 => s.miss::<1, WRITE>(ea),
        2 => s.miss::<2, WRITE>(ea),
        4 => s.miss::<4, WRITE>(ea),
        _ => s.miss::<8, WRITE>(ea),
    }
}

handler! {
    /// The first op of a block that was dropped: what is there now must be looked up.
    fn retired(s) {
        let rip = s.rip();
        let rip = s.peek(|cpu| code_offset(cpu, rip.wrapping_sub(code_base(cpu))));
        s.lookup(rip)
    }

    /// Ends a block that a branch ends already: never reached.
    fn end(s) {
        let rip = s.peek(|cpu| cpu.rip);
        s.lookup(rip)
    }

    /// Runs an instruction by its function in x86-core.
    fn generic(s) {
        let op = s.op();
        // SAFETY: the immediate of a generic op is the address of its `Generic`, kept with the block.
        let generic = unsafe { &*(op.imm as *const Generic) };
        let cpu = s.cpu();
        let page = cpu.code_page.wrapping_sub(code_base(cpu));
        let rip = code_offset(cpu, page.wrapping_add(u64::from(op.offset)));
        let delta = page.wrapping_sub(generic.page);
        if delta != 0 && generic.relative {
            return moved(s, rip);
        }
        let ins = &generic.instruction;
        cpu.rip = rip;
        cpu.next_rip = if delta == 0 { ins.next_ip() } else { rip.wrapping_add(ins.len() as u64) };
        if let Err(fault) = (generic.function)(cpu, ins) {
            return s.fault(fault);
        }
        if cpu.leave {
            let next = cpu.next_rip;
            s.spend(op.count + 1);
            return s.lookup(next);
        }
        s.next()
    }

    /// Likewise, for one that ends its block.
    fn generic_end(s) {
        let op = s.op();
        // SAFETY: as in `generic`.
        let generic = unsafe { &*(op.imm as *const Generic) };
        let cpu = s.cpu();
        let page = cpu.code_page.wrapping_sub(code_base(cpu));
        let rip = code_offset(cpu, page.wrapping_add(u64::from(op.offset)));
        let delta = page.wrapping_sub(generic.page);
        if delta != 0 && generic.relative {
            return moved(s, rip);
        }
        let ins = &generic.instruction;
        cpu.rip = rip;
        cpu.next_rip = if delta == 0 { ins.next_ip() } else { rip.wrapping_add(ins.len() as u64) };
        if let Err(fault) = (generic.function)(cpu, ins) {
            return s.fault(fault);
        }
        let next = cpu.next_rip;
        s.spend(op.count + 1);
        s.lookup(next)
    }
}

/// Runs an instruction that is not at the address it was decoded at and whose meaning depends on it.
#[cold]
fn moved(mut s: Step<'_>, rip: u64) -> Exit {
    let (cpu, engine) = s.parts();
    cpu.rip = rip;
    match engine.step(cpu) {
        Err(fault) => s.fault(fault),
        Ok(()) => {
            let count = s.op().count + 1;
            s.spend(count);
            Exit::Lookup
        }
    }
}

/// The handler of an op that stands for no instruction.
pub(crate) fn sentinel(offset: u16, count: u8, handler: crate::op::Handler) -> Op {
    Op { handler, imm: 0, disp: 0, dst: 0, src: 0, base: 0, index: 0, offset, scale: 0, count }
}
