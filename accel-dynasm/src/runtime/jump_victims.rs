//! Looks for a block in the victim cache of a jump cache, where code of a block has not found it in the first part.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use super::asm::{Assembler, jump};
use crate::block_mode::BlockMode;
use crate::jit_context::addresses::Addresses;
use crate::jit_context::{CLASSES, JUMP_ENTRIES, VICTIM_MIX, VICTIMS};

/// Emits a stub for each class of code. The address is in R10, the argument for `lookup` in
/// [`JitContext::site`](crate::jit_context::JitContext::site).
pub(super) fn emit(
    asm: &mut Assembler,
    start: usize,
    addresses: &Addresses,
    lookup: [usize; 2],
) -> [usize; CLASSES] {
    const PART: i32 = 8 * JUMP_ENTRIES as i32;
    std::array::from_fn(|class| {
        dynasm!(asm ; .arch x64 ; .align 16);
        let at = start + asm.offset().0;
        dynasm!(asm
            ; .arch x64
            ; mov [addresses.rax()], rax
            ; lahf
            ; seto al
            ; mov [addresses.temporary()], ax
            ; mov r11, r10
            ; shr r11, 16
            ; imul r11d, r11d, VICTIM_MIX as i32
            ; add r11d, r10d
            ; and r11d, VICTIMS as i32 - 1
            ; mov rax, [r11 * 8 + addresses.negated(class) + PART]
            ; add rax, r10
            ; movzx eax, WORD [addresses.temporary()]
            ; jnz >unknown
            ; add al, 0x7f
            ; sahf
            ; mov rax, [addresses.rax()]
            ; jmp QWORD [r11 * 8 + addresses.code(class) + PART]
            ; unknown:
            ; add al, 0x7f
            ; sahf
            ; mov rax, [addresses.rax()]
            ; mov [addresses.rip], r10
            ; mov r11d, [addresses.site()]
        );
        jump(asm, start, lookup[usize::from(BlockMode::class_has_vectors(class))]);
        at
    })
}
