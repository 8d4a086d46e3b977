//! Routines every bare guest can call, and its exception report.

use super::layout::{IDT, KERNEL_CS, START_INFO};
use super::{ports, prologue};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// `hvm_start_info.magic`.
const START_MAGIC: u32 = 0x336e_c578;
/// Offset of `hvm_start_info.cmdline_paddr`.
const CMDLINE: u32 = 24;
/// Vectors that push an error code (Intel SDM vol. 3, table 7-1).
const WITH_ERROR_CODE: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;
const VECTORS: u32 = 32;

/// Labels of the callable routines. Arguments in rdi, rsi; rax, rcx, rdx, rsi, rdi and r8 to r11 are lost.
#[derive(Debug)]
pub struct Runtime {
    /// Writes the zero-terminated string at rdi.
    pub puts: CodeLabel,
    /// Writes the byte dil; a line feed is preceded by a carriage return.
    pub putc: CodeLabel,
    /// Writes rdi in decimal, right-aligned in at least rsi characters (up to 40).
    pub put_dec: CodeLabel,
    /// Writes rdi as 16 hexadecimal digits.
    pub put_hex: CodeLabel,
    /// Writes rdi / 100 with two decimals, the whole part right-aligned in rsi characters.
    pub put_cents: CodeLabel,
    /// Value in rax of the decimal command line argument whose `name=` is the string at rdi; rsi where absent.
    pub argument: CodeLabel,
    /// Time-stamp counter in rax, after all earlier instructions (LFENCE before RDTSC); only rdx is lost.
    pub tsc: CodeLabel,
    /// Writes gate dil of the IDT: interrupt gate, DPL 0, to the handler at rsi.
    pub set_gate: CodeLabel,
    /// Powers the machine off; does not return.
    pub poweroff: CodeLabel,
    fault: CodeLabel,
    stubs: Vec<CodeLabel>,
    texts: Vec<(CodeLabel, String)>,
    spare: Vec<CodeLabel>,
}

impl Runtime {
    pub(super) fn new(a: &mut CodeAssembler) -> Self {
        let mut label = || a.create_label();
        Self {
            puts: label(),
            putc: label(),
            put_dec: label(),
            put_hex: label(),
            put_cents: label(),
            argument: label(),
            tsc: label(),
            set_gate: label(),
            poweroff: label(),
            fault: label(),
            stubs: (0..VECTORS).map(|_| label()).collect(),
            texts: Vec::new(),
            // Labels for `text`, which has no assembler at hand.
            spare: (0..256).map(|_| label()).collect(),
        }
    }

    /// Label of a zero-terminated copy of `text` in the image.
    ///
    /// # Panics
    /// After 250 texts: the room for labels is fixed.
    pub fn text(&mut self, text: &str) -> CodeLabel {
        if let Some((label, _)) = self.texts.iter().find(|(_, t)| t == text) {
            return *label;
        }
        let label = self.spare.pop().expect("too many texts in one guest");
        self.texts.push((label, text.to_owned()));
        label
    }

    /// Emits code that writes `text`.
    pub fn print(&mut self, a: &mut CodeAssembler, text: &str) -> Result<(), IcedError> {
        let label = self.text(text);
        a.lea(rdi, ptr(label))?;
        a.call(self.puts)
    }

    pub(super) fn emit_start(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        prologue::enter_long_mode(a)?;
        for (vector, stub) in self.stubs.iter().enumerate() {
            a.mov(edi, vector as u32)?;
            a.lea(rsi, ptr(*stub))?;
            a.call(self.set_gate)?;
        }
        // The pseudo-descriptor is built on the stack.
        a.mov(rax, IDT)?;
        a.push(rax)?;
        a.mov(rax, u64::from(VECTORS * 16 - 1) << 48)?;
        a.push(rax)?;
        a.lidt(ptr(rsp + 6))?;
        a.add(rsp, 16)
    }

    /// Everything after the guest's own code, which falls into the power-off.
    pub(super) fn emit_routines(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        self.emit_poweroff(a)?;
        self.emit_putc(a)?;
        self.emit_puts(a)?;
        self.emit_put_dec(a)?;
        self.emit_put_hex(a)?;
        self.emit_put_cents(a)?;
        self.emit_argument(a)?;
        self.emit_tsc(a)?;
        self.emit_set_gate(a)?;
        self.emit_fault(a)?;
        for (mut label, text) in std::mem::take(&mut self.texts) {
            a.set_label(&mut label)?;
            let mut bytes = text.into_bytes();
            bytes.push(0);
            a.db(&bytes)?;
        }
        Ok(())
    }

    fn emit_poweroff(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let mut halt = a.create_label();
        a.set_label(&mut self.poweroff)?;
        a.mov(edx, u32::from(ports::PM1A_CONTROL))?;
        a.mov(eax, u32::from(ports::S5_REQUEST))?;
        a.out(dx, ax)?;
        // A machine with another SLP_TYP for S5 is still running.
        a.xor(eax, eax)?;
        a.out(i32::from(ports::DEBUG_EXIT as u8), al)?;
        a.set_label(&mut halt)?;
        a.cli()?;
        a.hlt()?;
        a.jmp(halt)
    }

    fn emit_putc(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let (mut send, mut wait) = (a.create_label(), a.create_label());
        a.set_label(&mut self.putc)?;
        a.cmp(dil, 10)?;
        a.jne(send)?;
        a.push(rdi)?;
        a.mov(edi, 13)?;
        a.call(send)?;
        a.pop(rdi)?;
        a.set_label(&mut send)?;
        a.mov(edx, u32::from(ports::COM1 + 5))?;
        // LSR bit 5 (THRE): the transmitter takes a byte. An absent UART reads all ones.
        a.set_label(&mut wait)?;
        a.in_(al, dx)?;
        a.test(al, 0x20)?;
        a.jz(wait)?;
        a.mov(edx, u32::from(ports::COM1))?;
        a.mov(eax, edi)?;
        a.out(dx, al)?;
        a.ret()
    }

    fn emit_puts(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let (mut next, mut done) = (a.create_label(), a.create_label());
        a.set_label(&mut self.puts)?;
        a.mov(rsi, rdi)?;
        a.set_label(&mut next)?;
        a.movzx(edi, byte_ptr(rsi))?;
        a.test(edi, edi)?;
        a.jz(done)?;
        a.call(self.putc)?;
        a.inc(rsi)?;
        a.jmp(next)?;
        a.set_label(&mut done)?;
        a.ret()
    }

    /// Digits grow downwards in a buffer on the stack, then spaces up to the width.
    fn emit_put_dec(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let (mut digit, mut pad, mut out) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut self.put_dec)?;
        a.sub(rsp, 64)?;
        a.lea(r8, ptr(rsp + 63))?;
        a.mov(byte_ptr(r8), 0)?;
        a.mov(r9, r8)?;
        a.mov(rax, rdi)?;
        a.mov(ecx, 10)?;
        a.set_label(&mut digit)?;
        a.xor(edx, edx)?;
        a.div(rcx)?;
        a.add(edx, 48)?;
        a.dec(r8)?;
        a.mov(byte_ptr(r8), dl)?;
        a.test(rax, rax)?;
        a.jnz(digit)?;
        a.set_label(&mut pad)?;
        a.mov(rax, r9)?;
        a.sub(rax, r8)?;
        a.cmp(rax, rsi)?;
        a.jae(out)?;
        a.cmp(rax, 40)?;
        a.jae(out)?;
        a.dec(r8)?;
        a.mov(byte_ptr(r8), 32)?;
        a.jmp(pad)?;
        a.set_label(&mut out)?;
        a.mov(rdi, r8)?;
        a.call(self.puts)?;
        a.add(rsp, 64)?;
        a.ret()
    }

    fn emit_put_hex(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let (mut next, mut decimal) = (a.create_label(), a.create_label());
        a.set_label(&mut self.put_hex)?;
        a.mov(r8, rdi)?;
        a.mov(r9d, 16)?;
        a.set_label(&mut next)?;
        a.rol(r8, 4)?;
        a.mov(edi, r8d)?;
        a.and(edi, 15)?;
        a.add(edi, 48)?;
        a.cmp(edi, 58)?;
        a.jb(decimal)?;
        a.add(edi, 97 - 58)?;
        a.set_label(&mut decimal)?;
        a.call(self.putc)?;
        a.dec(r9d)?;
        a.jnz(next)?;
        a.ret()
    }

    fn emit_put_cents(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.set_label(&mut self.put_cents)?;
        a.mov(rax, rdi)?;
        a.xor(edx, edx)?;
        a.mov(ecx, 100)?;
        a.div(rcx)?;
        a.push(rdx)?;
        a.mov(rdi, rax)?;
        a.call(self.put_dec)?;
        a.mov(edi, 46)?;
        a.call(self.putc)?;
        a.pop(rax)?;
        a.xor(edx, edx)?;
        a.mov(ecx, 10)?;
        a.div(rcx)?;
        a.push(rdx)?;
        a.lea(edi, ptr(rax + 48))?;
        a.call(self.putc)?;
        a.pop(rdi)?;
        a.add(edi, 48)?;
        a.call(self.putc)?;
        a.ret()
    }

    /// r8: command line, r9: `name=`, r10: default.
    fn emit_argument(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let [mut token, mut compare, mut skip, mut value, mut digit, mut found, mut absent] =
            std::array::from_fn(|_| a.create_label());
        a.set_label(&mut self.argument)?;
        a.mov(r9, rdi)?;
        a.mov(r10, rsi)?;
        a.mov(r8, qword_ptr(START_INFO))?;
        a.cmp(dword_ptr(r8), START_MAGIC as i32)?;
        a.jne(absent)?;
        a.mov(r8, qword_ptr(r8 + CMDLINE))?;
        a.test(r8, r8)?;
        a.jz(absent)?;

        a.set_label(&mut token)?;
        a.mov(rdi, r9)?;
        a.mov(rsi, r8)?;
        a.set_label(&mut compare)?;
        a.movzx(eax, byte_ptr(rdi))?;
        a.test(eax, eax)?;
        a.jz(value)?;
        a.cmp(al, byte_ptr(rsi))?;
        a.jne(skip)?;
        a.inc(rdi)?;
        a.inc(rsi)?;
        a.jmp(compare)?;

        a.set_label(&mut skip)?;
        a.movzx(eax, byte_ptr(r8))?;
        a.test(eax, eax)?;
        a.jz(absent)?;
        a.inc(r8)?;
        a.cmp(al, 32)?;
        a.jne(skip)?;
        a.jmp(token)?;

        a.set_label(&mut value)?;
        a.xor(eax, eax)?;
        a.set_label(&mut digit)?;
        a.movzx(edx, byte_ptr(rsi))?;
        a.sub(edx, 48)?;
        a.cmp(edx, 10)?;
        a.jae(found)?;
        a.lea(rax, ptr(rax + rax * 4))?;
        a.lea(rax, ptr(rdx + rax * 2))?;
        a.inc(rsi)?;
        a.jmp(digit)?;
        a.set_label(&mut found)?;
        a.ret()?;
        a.set_label(&mut absent)?;
        a.mov(rax, r10)?;
        a.ret()
    }

    fn emit_tsc(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.set_label(&mut self.tsc)?;
        a.lfence()?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.ret()
    }

    /// 64-bit interrupt gate (Intel SDM vol. 3, figure 7-8): present, DPL 0, type 14.
    fn emit_set_gate(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.set_label(&mut self.set_gate)?;
        a.movzx(eax, dil)?;
        a.shl(eax, 4)?;
        a.mov(rdx, IDT)?;
        a.add(rax, rdx)?;
        a.mov(word_ptr(rax), si)?;
        a.mov(word_ptr(rax + 2), u32::from(KERNEL_CS))?;
        a.mov(word_ptr(rax + 4), 0x8e00u32)?;
        a.shr(rsi, 16)?;
        a.mov(word_ptr(rax + 6), si)?;
        a.shr(rsi, 16)?;
        a.mov(dword_ptr(rax + 8), esi)?;
        a.mov(dword_ptr(rax + 12), 0)?;
        a.ret()
    }

    /// Stack on entry of the common part: vector, error code, RIP, CS, RFLAGS, RSP, SS.
    fn emit_fault(&mut self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        for vector in 0..VECTORS {
            a.set_label(&mut self.stubs[vector as usize])?;
            if WITH_ERROR_CODE >> vector & 1 == 0 {
                a.push(0)?;
            }
            a.push(vector as i32)?;
            a.jmp(self.fault)?;
        }
        a.set_label(&mut self.fault)?;
        a.cld()?;
        a.pop(rbx)?;
        self.print(a, "\nFAULT vector=")?;
        a.mov(rdi, rbx)?;
        a.xor(esi, esi)?;
        a.call(self.put_dec)?;
        for (text, slot) in [(" error=", 0), (" rip=", 8), (" rsp=", 32)] {
            self.print(a, text)?;
            a.mov(rdi, qword_ptr(rsp + slot))?;
            a.call(self.put_hex)?;
        }
        self.print(a, " cr2=")?;
        a.mov(rdi, cr2)?;
        a.call(self.put_hex)?;
        a.mov(edi, 10)?;
        a.call(self.putc)?;
        a.mov(eax, ebx)?;
        a.or(eax, ports::FAULT_EXIT as i32)?;
        a.out(i32::from(ports::DEBUG_EXIT as u8), al)?;
        a.jmp(self.poweroff)
    }
}
