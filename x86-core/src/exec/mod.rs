//! Semantics of every instruction, one file a family.
//!
//! A function is called with [`Cpu::rip`] at the instruction and [`Cpu::next_rip`] behind it. It may change `next_rip`
//! (branches), set [`Cpu::leave`] when code decoded ahead may not be what runs next, and [`Cpu::shadow`]. On a fault it
//! has changed no register and no memory, except where the manual says so (string instructions keep their progress).

pub mod avx;
mod fpu;
mod integer;
pub mod sse;
mod system;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use iced_x86::{Code, Instruction};

use crate::{Cpu, Exec, Fault};

pub use avx::{AvxForm, AvxOp, Operands, avx_op};
pub use sse::{Float, Shape, VecForm, VecOp, load16, mxcsr, store16, vec_op};

/// Semantics of one instruction.
pub type ExecFn = fn(&mut Cpu, &Instruction) -> Exec;

/// Executes an instruction that serialises (Intel SDM vol. 3, 9.3) by `function`.
fn serialising(cpu: &mut Cpu, ins: &Instruction, function: ExecFn) -> Exec {
    function(cpu, ins)?;
    cpu.serialise();
    Ok(())
}

/// Functions by iced's `Code`.
pub(crate) struct Table(Vec<ExecFn>);

impl Table {
    /// Sets the function of each of `codes`. Each has one: the first registration must be the only one.
    pub(crate) fn set(&mut self, codes: &[Code], function: ExecFn) {
        for &code in codes {
            debug_assert!(
                self.0[code as usize] as usize == undefined as *const () as usize,
                "{code:?} twice"
            );
            self.0[code as usize] = function;
        }
    }
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table(vec![undefined as ExecFn; Code::values().len()]);
    integer::register(&mut table);
    system::register(&mut table);
    sse::register(&mut table);
    avx::register(&mut table);
    fpu::register(&mut table);
    table
});

/// The function for `code`; instructions that the CPU does not have raise #UD.
pub fn lookup(code: Code) -> ExecFn {
    TABLE.0[code as usize]
}

/// Whether `code` has semantics of its own, not just #UD.
pub fn is_defined(code: Code) -> bool {
    lookup(code) as usize != undefined as *const () as usize
}

fn undefined(_: &mut Cpu, _: &Instruction) -> Exec {
    Err(Fault::UD)
}
