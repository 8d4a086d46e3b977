//! Pieces of code that all stubs use.

use dynasmrt::{DynasmApi, VecAssembler, dynasm, x64::X64Relocation};

pub(super) type Assembler = VecAssembler<X64Relocation>;

/// Bytes of [`jump`].
const JUMP_LEN: usize = 5;

/// Jumps to offset `to` of the code cache, from code that is going to lie at offset `start`.
pub(super) fn jump(asm: &mut Assembler, start: usize, to: usize) {
    let from = start + asm.offset().0 + JUMP_LEN;
    asm.push(0xe9);
    asm.extend(&((to as i64 - from as i64) as i32).to_le_bytes());
}

/// Which way vector registers go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    Store,
    Load,
}

/// Stores or loads the vector registers, each at its place.
pub(super) fn vectors(asm: &mut Assembler, avx: bool, way: Way, place: impl Fn(u8) -> i32) {
    for r in 0..16 {
        let at = place(r);
        match (avx, way) {
            (true, Way::Store) => dynasm!(asm ; .arch x64 ; vmovups [at], Ry(r)),
            (true, Way::Load) => dynasm!(asm ; .arch x64 ; vmovups Ry(r), [at]),
            (false, Way::Store) => dynasm!(asm ; .arch x64 ; movups [at], Rx(r)),
            (false, Way::Load) => dynasm!(asm ; .arch x64 ; movups Rx(r), [at]),
        }
    }
    if avx && way == Way::Store {
        // Rust's own instructions are slow on some processors while upper halves are in use.
        dynasm!(asm ; .arch x64 ; vzeroupper);
    }
}
