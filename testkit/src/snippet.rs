//! Guest code of tests, assembled from closures.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, ptr, qword_ptr, r15};

use crate::fake_bus::EXIT_PORT;
use crate::rig::cell;

/// What closures that emit code return.
pub type Asm = Result<(), IcedError>;

/// A piece of guest code, and two numbers that say what is to come of it.
pub type Case<'a> = (&'a dyn Fn(&mut CodeAssembler) -> Asm, u64, u64);

/// Assembles `body` for `bits` (16, 32 or 64) at linear address `at`.
///
/// # Panics
/// The assembler refuses something: a mistake in the test.
pub fn assemble(bits: u32, at: u64, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Vec<u8> {
    let code = CodeAssembler::new(bits).and_then(|mut a| {
        body(&mut a)?;
        a.assemble(at)
    });
    code.unwrap_or_else(|e| panic!("the test's guest code does not assemble: {e}"))
}

/// Ends the guest: OUT to [`EXIT_PORT`], then a loop of one instruction, so that the state after the kick is the same
/// wherever in the loop it arrives.
///
/// # Errors
/// Those of the assembler.
pub fn exit(a: &mut CodeAssembler) -> Asm {
    a.out(u32::from(EXIT_PORT), al)?;
    stay(a)
}

/// A jump to itself.
///
/// # Errors
/// Those of the assembler.
pub fn stay(a: &mut CodeAssembler) -> Asm {
    let mut here = a.create_label();
    a.set_label(&mut here)?;
    a.jmp(here)
}

/// Emits one instruction that is expected to fault (64-bit code): its address goes to [`cell::EXPECTED_RIP`], and the
/// handler resumes behind it. Uses R15.
///
/// # Errors
/// Those of the assembler.
pub fn faulting(a: &mut CodeAssembler, instruction: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm {
    let (mut at, mut behind) = (a.create_label(), a.create_label());
    a.lea(r15, ptr(behind))?;
    a.mov(qword_ptr(cell::RESUME), r15)?;
    a.lea(r15, ptr(at))?;
    a.mov(qword_ptr(cell::EXPECTED_RIP), r15)?;
    a.set_label(&mut at)?;
    instruction(a)?;
    a.set_label(&mut behind)?;
    a.nop()
}
