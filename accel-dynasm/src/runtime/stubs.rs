//! The way into translated code, and the ways out of it into Rust.
//!
//! A stub is jumped to with an argument in R11 and the guest's other registers in the host's. It stores them, switches to
//! the host's stack and calls a function, whose result is where to go on, or null to leave.

use accel_api::AccelError;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};

use crate::jit_context::CLASSES;
use crate::jit_context::addresses::Addresses;
use crate::runtime::transfer;
use crate::store::code_cache::{CodeCache, JUMP_LEN};
use crate::store::jump_cache;

/// What a stub calls: the vCPU, its engine and the stub's argument; where to go on.
pub(crate) type Function =
    unsafe extern "sysv64" fn(*mut x86_core::Cpu, *mut crate::dispatch::Dispatcher, u32) -> *const u8;

/// Enters translated code at an address; comes back when a function has returned null. The vCPU is passed for the compiler to
/// know that it changes: translated code knows where it is.
pub(crate) type Enter = unsafe extern "sysv64" fn(*const u8, *mut x86_core::Cpu);

/// Offsets of the stubs in the code cache.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Stubs {
    pub enter: usize,
    /// Each without and with the guest's vector registers in the host's.
    pub lookup: [usize; 2],
    pub miss: [usize; 2],
    pub generic: [usize; 2],
    pub poll: [usize; 2],
    pub fault: [usize; 2],
    pub syscall: [usize; 2],
    pub sysret: [usize; 2],
    /// By whether SMAP keeps the code from a program's data.
    pub iret: [[usize; 2]; 2],
    /// By class of code, for jumps.
    pub victim: [usize; CLASSES],
}

/// The functions, in the order of [`Stubs`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Functions {
    pub lookup: Function,
    pub miss: Function,
    pub generic: Function,
    pub poll: Function,
    pub fault: Function,
}

const RAX: u8 = 0;
/// Registers that are stored and loaded; RAX goes by itself, RSP last, R10 and R11 are in memory.
const STORED: [u8; 12] = [1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 14, 15];

pub(crate) fn emit(
    cache: &mut CodeCache,
    addresses: &Addresses,
    avx: bool,
    functions: &Functions,
) -> Result<Stubs, AccelError> {
    let start = cache.cursor();
    let mut asm = VecAssembler::<X64Relocation>::new(start);
    let resume = asm.new_dynamic_label();
    let go = asm.new_dynamic_label();
    let mut stubs = Stubs { enter: start + asm.offset().0, ..Stubs::default() };
    dynasm!(asm
        ; .arch x64
        ; push rbx
        ; push rbp
        ; push r12
        ; push r13
        ; push r14
        ; push r15
        ; sub rsp, 8
        ; mov [addresses.host_rsp()], rsp
        ; mov rax, rdi
        ; =>resume
        ; test rax, rax
        ; jnz =>go
        ; add rsp, 8
        ; pop r15
        ; pop r14
        ; pop r13
        ; pop r12
        ; pop rbp
        ; pop rbx
        ; ret
        ; =>go
        ; mov [addresses.target()], rax
        ; cmp QWORD [addresses.vectors()], 0
        ; je >scalar
    );
    vectors(&mut asm, addresses, avx, false);
    dynasm!(asm ; .arch x64 ; scalar:);
    for r in STORED {
        dynasm!(asm ; .arch x64 ; mov Rq(r), [addresses.gpr(r)]);
    }
    dynasm!(asm
        ; .arch x64
        ; mov r10, [addresses.gpr(10)]
        ; mov r11, [addresses.gpr(11)]
        ; mov rsp, [addresses.gpr(4)]
        ; movzx eax, WORD [addresses.flags]
        // OF from its bit, the others from AH.
        ; add al, 0x7f
        ; sahf
        ; mov rax, [addresses.gpr(RAX)]
        ; jmp QWORD [addresses.target()]
    );

    let list = [
        (&mut stubs.lookup, functions.lookup),
        (&mut stubs.miss, functions.miss),
        (&mut stubs.generic, functions.generic),
        (&mut stubs.poll, functions.poll),
        (&mut stubs.fault, functions.fault),
    ];
    for (offsets, function) in list {
        for (with_vectors, offset) in offsets.iter_mut().enumerate() {
            dynasm!(asm ; .arch x64 ; .align 16);
            *offset = start + asm.offset().0;
            dynasm!(asm
                ; .arch x64
                ; mov [addresses.gpr(RAX)], rax
                ; lahf
                ; seto al
                ; mov [addresses.flags], ax
            );
            for r in STORED {
                dynasm!(asm ; .arch x64 ; mov [addresses.gpr(r)], Rq(r));
            }
            dynasm!(asm
                ; .arch x64
                ; mov [addresses.gpr(4)], rsp
                ; mov rsp, [addresses.host_rsp()]
            );
            if with_vectors == 1 {
                vectors(&mut asm, addresses, avx, true);
            }
            dynasm!(asm
                ; .arch x64
                ; mov edi, addresses.cpu
                ; mov rsi, [addresses.engine()]
                ; mov edx, r11d
                ; mov rax, QWORD function as usize as i64
                ; call rax
                ; jmp =>resume
            );
        }
    }
    transfer::emit(&mut asm, start, addresses, avx, &mut stubs);
    jump_cache::emit(&mut asm, start, addresses, &mut stubs);
    let code = asm.take().map_err(|_| AccelError::Host {
        what: "assemble the ways into translated code",
        source: std::io::ErrorKind::Other.into(),
    })?;
    cache.append(&code);
    Ok(stubs)
}

/// JumpCache to offset `to` of the code cache, from code that is going to lie at offset `start`.
pub(crate) fn jump(asm: &mut VecAssembler<X64Relocation>, start: usize, to: usize) {
    let from = start + asm.offset().0 + JUMP_LEN;
    asm.push(0xe9);
    asm.extend(&((to as i64 - from as i64) as i32).to_le_bytes());
}

/// Stores or loads the vector registers.
pub(crate) fn vectors(asm: &mut VecAssembler<X64Relocation>, addresses: &Addresses, avx: bool, store: bool) {
    for r in 0..16 {
        let at = addresses.vector(r);
        match (avx, store) {
            (true, true) => dynasm!(asm ; .arch x64 ; vmovups [at], Ry(r)),
            (true, false) => dynasm!(asm ; .arch x64 ; vmovups Ry(r), [at]),
            (false, true) => dynasm!(asm ; .arch x64 ; movups [at], Rx(r)),
            (false, false) => dynasm!(asm ; .arch x64 ; movups Rx(r), [at]),
        }
    }
    if avx && store {
        // Rust's own instructions are slow on some processors while upper halves are in use.
        dynasm!(asm ; .arch x64 ; vzeroupper);
    }
}
