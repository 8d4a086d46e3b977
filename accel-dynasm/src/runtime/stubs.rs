//! The way into host code, and the ways out of it into Rust.
//!
//! A stub is jumped to with an argument in R11 and the guest's other registers in the host's. It stores them, switches
//! to the host's stack and calls a function ([`super::helpers`]), whose result is where to go on, or null to leave.

use accel_api::AccelError;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

use super::asm::{Assembler, Way, vectors};
use super::helpers::{Function, Functions};
use super::{jump_victims, transfer};
use crate::jit_context::addresses::Addresses;
use crate::translate::output::StubTable;

/// All stubs of a vCPU.
pub(crate) struct Stubs {
    pub code: Vec<u8>,
    /// Offset in the code cache at which host code is entered.
    pub enter: usize,
    /// Offset in the code cache at which execution goes on after an exception of the host.
    pub fault: usize,
    /// The stubs that blocks jump to.
    pub table: StubTable,
}

const RAX: u8 = 0;
/// Registers that are stored and loaded; RAX goes by itself, RSP last, R10 and R11 are in memory.
const STORED: [u8; 12] = [1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 14, 15];

/// Emits the stubs, for offset `start` of the code cache.
///
/// # Errors
/// They cannot be assembled.
pub(crate) fn emit(
    start: usize,
    addresses: &Addresses,
    avx: bool,
    functions: &Functions,
) -> Result<Stubs, AccelError> {
    let mut asm = Assembler::new(start);
    let resume = asm.new_dynamic_label();
    let mut emitter = Emitter { asm: &mut asm, start, addresses, avx, resume };
    let enter = emitter.enter();
    let mut both = |function| [emitter.exit(function, None), emitter.exit(function, Some(Vectors::Guest))];
    let mut table = StubTable {
        lookup: both(functions.lookup),
        tlb_miss: both(functions.tlb_miss),
        helper: both(functions.helper),
        poll: both(functions.poll),
        ..StubTable::default()
    };
    let fault = emitter.exit(functions.fault, Some(Vectors::Unknown));
    transfer::emit(&mut asm, start, addresses, avx, &mut table);
    table.jump_cache_victims = jump_victims::emit(&mut asm, start, addresses, table.lookup);
    let code = asm.take().map_err(|_| AccelError::Host {
        what: "assemble the ways into host code",
        source: std::io::ErrorKind::Other.into(),
    })?;
    Ok(Stubs { code, enter, fault, table })
}

/// Vector registers that an exit stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Vectors {
    /// They are the guest's.
    Guest,
    /// They are the guest's or not: the helper is to find out.
    Unknown,
}

struct Emitter<'a> {
    asm: &'a mut Assembler,
    start: usize,
    addresses: &'a Addresses,
    avx: bool,
    /// Goes on at the host address in RAX.
    resume: DynamicLabel,
}

impl Emitter<'_> {
    /// Enters host code at the address that is the first argument; comes back when a helper has returned null.
    fn enter(&mut self) -> usize {
        let go = self.asm.new_dynamic_label();
        let (at, addresses) = (self.start + self.asm.offset().0, self.addresses);
        dynasm!(self.asm
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
            ; =>self.resume
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
        vectors(self.asm, self.avx, Way::Load, |r| addresses.vector(r));
        dynasm!(self.asm ; .arch x64 ; scalar:);
        for r in STORED {
            dynasm!(self.asm ; .arch x64 ; mov Rq(r), [addresses.gpr(r)]);
        }
        dynasm!(self.asm
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
        at
    }

    /// Leaves host code for `function`.
    fn exit(&mut self, function: Function, stored: Option<Vectors>) -> usize {
        dynasm!(self.asm ; .arch x64 ; .align 16);
        let (at, addresses) = (self.start + self.asm.offset().0, self.addresses);
        dynasm!(self.asm
            ; .arch x64
            ; mov [addresses.gpr(RAX)], rax
            ; lahf
            ; seto al
            ; mov [addresses.flags], ax
        );
        for r in STORED {
            dynasm!(self.asm ; .arch x64 ; mov [addresses.gpr(r)], Rq(r));
        }
        dynasm!(self.asm
            ; .arch x64
            ; mov [addresses.gpr(4)], rsp
            ; mov rsp, [addresses.host_rsp()]
        );
        match stored {
            None => {}
            Some(Vectors::Guest) => vectors(self.asm, self.avx, Way::Store, |r| addresses.vector(r)),
            Some(Vectors::Unknown) => {
                vectors(self.asm, self.avx, Way::Store, |r| addresses.fault_vector(r));
            }
        }
        dynasm!(self.asm
            ; .arch x64
            ; mov edi, addresses.cpu
            ; mov rsi, [addresses.dispatcher()]
            ; mov edx, r11d
            ; mov rax, QWORD function as usize as i64
            ; call rax
            ; jmp =>self.resume
        );
        at
    }
}
