//! `syscall`: a CPL 3 loop of SYSCALL and SYSRET. `pagefault`: first touches that a #PF handler maps.

use super::{Program, no_setup};
use crate::bare::Runtime;
use crate::bare::layout::{KERNEL_CS, PDPT, USER_BASE, WORK};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(super) const SYSCALL: Program =
    Program { name: "syscall", iterations: 3_000_000, user_pages: true, setup: no_setup, body: syscall };

pub(super) const PAGEFAULT: Program = Program {
    name: "pagefault",
    iterations: 500_000,
    user_pages: false,
    setup: map_nothing,
    body: pagefault,
};

// Intel SDM vol. 4, table 2-2.
const MSR_EFER: u32 = 0xc000_0080;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_FMASK: u32 = 0xc000_0084;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// Number of the call that ends the CPL 3 program.
const EXIT: u32 = 0xff;

/// The kernel counts its calls in per-CPU data behind GS and returns count * argument.
fn syscall(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    let [mut kernel, mut user, mut done] = std::array::from_fn(|_| a.create_label());
    a.mov(rbp, rcx)?;
    a.mov(ecx, MSR_EFER)?;
    a.rdmsr()?;
    a.or(eax, 1)?; // SCE
    a.wrmsr()?;
    a.lea(rax, ptr(kernel))?;
    write_msr(a, MSR_LSTAR)?;
    a.mov(rax, u64::from(USER_BASE) << 48 | u64::from(KERNEL_CS) << 32)?;
    write_msr(a, MSR_STAR)?;
    a.mov(eax, 0x700)?; // TF, IF, DF
    write_msr(a, MSR_FMASK)?;
    a.mov(rax, WORK)?;
    write_msr(a, MSR_KERNEL_GS_BASE)?;
    a.mov(qword_ptr(WORK), 0)?;
    a.xor(ebx, ebx)?;
    a.lea(rcx, ptr(user))?;
    a.mov(r11d, 2)?;
    a.sysretq()?;

    a.set_label(&mut kernel)?;
    a.cmp(eax, EXIT)?;
    a.je(done)?;
    a.swapgs()?;
    a.inc(qword_ptr(0).gs())?;
    a.mov(rax, qword_ptr(0).gs())?;
    a.swapgs()?;
    a.imul_2(rax, rdi)?;
    a.sysretq()?;

    a.set_label(&mut user)?;
    a.mov(rdi, rbp)?;
    a.xor(eax, eax)?;
    a.syscall()?;
    a.rol(rbx, 3)?;
    a.xor(rbx, rax)?;
    a.dec(rbp)?;
    a.jnz(user)?;
    a.mov(eax, EXIT)?;
    a.syscall()?;
    a.set_label(&mut done)
}

fn write_msr(a: &mut CodeAssembler, index: u32) -> Result<(), IcedError> {
    a.mov(rdx, rax)?;
    a.shr(rdx, 32)?;
    a.mov(ecx, index)?;
    a.wrmsr()
}

/// Virtual window of 1024 pages at 256 GiB; its tables and the 256 pages that it shows are in the work area.
const WINDOW: u64 = 256 << 30;
const PAGES: u32 = 1024;
const DIRECTORY: u64 = WORK;
const LEAVES: u64 = WORK + 0x1000;
const POOL: u64 = WORK + 0x10_0000;
const POOL_PAGES: u32 = 256;

fn map_nothing(a: &mut CodeAssembler, _: &mut Runtime) -> Result<(), IcedError> {
    a.mov(qword_ptr(PDPT + (WINDOW >> 30) * 8), DIRECTORY as i32 | 3)?;
    a.mov(qword_ptr(DIRECTORY), LEAVES as i32 | 3)?;
    a.mov(qword_ptr(DIRECTORY + 8), (LEAVES + 0x1000) as i32 | 3)?;
    a.mov(rdi, POOL)?;
    a.xor(eax, eax)?;
    a.mov(ecx, POOL_PAGES * 4096 / 8)?;
    a.rep().stosq()
}

/// Touches page after page, writes and reads in turn, each the first touch since the window was emptied. The
/// handler folds page number and error code into rbx (Intel SDM vol. 3, 5.7: W/R is bit 1, P is clear).
fn pagefault(a: &mut CodeAssembler, rt: &mut Runtime) -> Result<(), IcedError> {
    let [mut handler, mut sweep, mut top, mut read, mut next, mut done] =
        std::array::from_fn(|_| a.create_label());
    a.mov(r12, rcx)?;
    a.mov(edi, 14)?;
    a.lea(rsi, ptr(handler))?;
    a.call(rt.set_gate)?;
    a.xor(ebx, ebx)?;

    a.set_label(&mut sweep)?;
    a.mov(rdi, LEAVES)?;
    a.xor(eax, eax)?;
    a.mov(ecx, PAGES)?;
    a.rep().stosq()?;
    a.mov(rax, cr3)?;
    a.mov(cr3, rax)?;
    a.mov(rsi, WINDOW)?;
    a.set_label(&mut top)?;
    a.test(r12d, 1)?;
    a.jz(read)?;
    a.mov(qword_ptr(rsi), r12)?;
    a.jmp(next)?;
    a.set_label(&mut read)?;
    a.add(rbx, qword_ptr(rsi))?;
    a.set_label(&mut next)?;
    a.dec(r12)?;
    a.jz(done)?;
    a.add(rsi, 4096)?;
    a.bt(rsi, 22)?;
    a.jnc(top)?;
    a.jmp(sweep)?;

    a.set_label(&mut handler)?;
    a.push(rax)?;
    a.push(rdx)?;
    a.mov(rdx, cr2)?;
    a.shr(rdx, 12)?;
    a.and(edx, PAGES - 1)?;
    a.rol(rbx, 1)?;
    a.xor(rbx, rdx)?;
    a.xor(rbx, qword_ptr(rsp + 16))?;
    a.imul_3(eax, edx, 7)?;
    a.and(eax, POOL_PAGES - 1)?;
    a.shl(eax, 12)?;
    a.add(eax, POOL as i32 | 3)?;
    a.mov(qword_ptr(rdx * 8 + LEAVES as i32), rax)?;
    a.pop(rdx)?;
    a.pop(rax)?;
    a.add(rsp, 8)?;
    a.iretq()?;
    a.set_label(&mut done)
}
