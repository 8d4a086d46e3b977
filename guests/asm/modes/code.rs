//! What chunks of code say: checks, expected exceptions, changes of mode and privilege.

use super::rig::*;
use crate::bare::ports;
use iced_x86::code_asm::*;

impl Code<'_> {
    /// A place to be set later with [`place`](Self::place).
    pub fn mark(&mut self) -> Mark {
        let label = self.create_label();
        // In the first pass a stand-in of the size addresses have.
        let address = self.known.get(self.marks.len()).copied().unwrap_or(LOW);
        self.marks.push(label);
        Mark { index: self.marks.len() - 1, address }
    }

    pub fn place(&mut self, mark: Mark) -> Result {
        // A label learns where it is by being set, so the copy that is kept is the one to set.
        let mut label = self.marks[mark.index];
        self.here(&mut label)?;
        self.marks[mark.index] = label;
        Ok(())
    }

    /// Sets a label on no instruction, as an instruction takes no more than one.
    fn here(&mut self, label: &mut CodeLabel) -> Result {
        self.set_label(label)?;
        self.zero_bytes()
    }

    fn number(&mut self, what: &'static str) -> u32 {
        self.checks.push(what);
        self.checks.len() as u32
    }

    fn end(&mut self, value: u32) -> Result {
        let mut halt = self.create_label();
        self.mov(al, value)?;
        self.out(i32::from(ports::DEBUG_EXIT as u8), al)?;
        self.set_label(&mut halt)?;
        self.cli()?;
        self.hlt()?;
        self.jmp(halt)
    }

    /// The guest's good end, which it also says on the serial port.
    pub fn passed(&mut self) -> Result {
        self.mov(dx, u32::from(ports::COM1))?;
        for byte in b"passed\r\n" {
            self.mov(al, u32::from(*byte))?;
            self.out(dx, al)?;
        }
        self.end(0)
    }

    /// A check that holds if `jump` jumps.
    pub fn check(
        &mut self,
        what: &'static str,
        jump: impl Fn(&mut CodeAssembler, CodeLabel) -> Result,
    ) -> Result {
        let number = self.number(what);
        let mut good = self.create_label();
        jump(self, good)?;
        self.end(number)?;
        self.here(&mut good)
    }

    /// A check that dwords of memory have values.
    pub fn equal(&mut self, what: &'static str, pairs: &[(u32, u32)]) -> Result {
        let number = self.number(what);
        let (mut bad, mut good) = (self.create_label(), self.create_label());
        for &(at, value) in pairs {
            self.cmp(dword_ptr(at), value)?;
            self.jne(bad)?;
        }
        self.jmp(good)?;
        self.set_label(&mut bad)?;
        self.end(number)?;
        self.here(&mut good)
    }

    /// A check that `instruction`, after `setup`, raises an exception with this vector and error code, and saves the
    /// RIP of `saved`. Registers are what they were, but at privilege 0 with flat segments and stack.
    pub fn expect(
        &mut self,
        what: &'static str,
        (vector, error, saved): (u8, u32, Saved),
        setup: impl Fn(&mut Self) -> Result,
        instruction: impl Fn(&mut Self) -> Result,
    ) -> Result {
        let (at, after, resume) = (self.mark(), self.mark(), self.mark());
        let address = if saved == Saved::At { at.address } else { after.address };
        self.mov(dword_ptr(RESUME), resume.address)?;
        setup(self)?;
        self.place(at)?;
        instruction(self)?;
        self.place(after)?;
        let mut none = self.create_label();
        self.jmp(none)?;
        self.place(resume)?;
        let number = self.number(what);
        let mut good = self.create_label();
        for (at, value) in [(VECTOR, vector.into()), (ERROR, error), (EIP, address)] {
            self.cmp(dword_ptr(at), value)?;
            self.jne(none)?;
        }
        self.jmp(good)?;
        self.set_label(&mut none)?;
        self.end(number)?;
        self.here(&mut good)
    }

    /// Runs `body`, which ends with some exception, whatever and wherever; what of it is right is checked afterwards.
    pub fn until_exception(&mut self, body: impl Fn(&mut Self) -> Result) -> Result {
        let resume = self.mark();
        self.mov(dword_ptr(RESUME), resume.address)?;
        body(self)?;
        self.place(resume)
    }

    /// An exception of `instruction` that saves its own RIP.
    pub fn fault(
        &mut self,
        what: &'static str,
        vector: u8,
        error: u32,
        setup: impl Fn(&mut Self) -> Result,
        instruction: impl Fn(&mut Self) -> Result,
    ) -> Result {
        self.expect(what, (vector, error, Saved::At), setup, instruction)
    }

    /// An exception or interrupt of `instruction` that saves the RIP of the next one.
    pub fn trap(
        &mut self,
        what: &'static str,
        vector: u8,
        setup: impl Fn(&mut Self) -> Result,
        instruction: impl Fn(&mut Self) -> Result,
    ) -> Result {
        self.expect(what, (vector, 0, Saved::After), setup, instruction)
    }

    /// INT n.
    pub fn interrupt(&mut self, vector: u8) -> Result {
        self.int(u32::from(vector))
    }

    /// Goes to privilege 3 with these EFLAGS: flat segments, a stack of its own. For 32-bit code.
    pub fn user(&mut self, eflags: u32) -> Result {
        let here = self.mark();
        self.mov(eax, u32::from(USER_DS))?;
        for segment in [ds, es, fs, gs] {
            self.mov(segment, ax)?;
        }
        self.push(i32::from(USER_DS))?;
        self.push(USER_STACK as i32)?;
        self.push(eflags as i32)?;
        self.push(i32::from(USER_CS))?;
        self.push(here.address as i32)?;
        self.iretd()?;
        self.place(here)
    }

    /// Flat segments of privilege 0 and a stack.
    pub fn flat_segments(&mut self, stack: u32) -> Result {
        self.mov(eax, u32::from(FLAT_DS))?;
        for segment in [ds, es, ss, fs, gs] {
            self.mov(segment, ax)?;
        }
        self.mov(esp, stack)
    }

    /// Segments at 0 and a stack, in real mode.
    pub(super) fn real_segments(&mut self) -> Result {
        self.xor(eax, eax)?;
        for segment in [ds, es, ss, fs, gs] {
            self.mov(segment, ax)?;
        }
        self.mov(esp, REAL_STACK)
    }

    /// The end of an exception's handler: on to where it was expected, or the guest's end.
    pub(super) fn resume(&mut self, target: AsmMemoryOperand) -> Result {
        let mut expected = self.create_label();
        self.cmp(dword_ptr(RESUME), 0)?;
        self.jne(expected)?;
        // Where it was, in hexadecimal, to the debug console.
        let mut digit = self.create_label();
        self.mov(ebx, dword_ptr(EIP))?;
        self.mov(ecx, 8)?;
        self.set_label(&mut digit)?;
        self.rol(ebx, 4)?;
        self.mov(al, bl)?;
        self.and(al, 15)?;
        self.cmp(al, 10)?;
        self.sbb(al, 0x69)?;
        self.das()?;
        self.out(0xe9, al)?;
        self.dec(ecx)?;
        self.jnz(digit)?;
        self.mov(al, byte_ptr(VECTOR))?;
        self.or(al, u32::from(ports::FAULT_EXIT))?;
        self.out(i32::from(ports::DEBUG_EXIT as u8), al)?;
        self.set_label(&mut expected)?;
        self.mov(eax, dword_ptr(RESUME))?;
        self.mov(dword_ptr(RESUME), 0)?;
        self.mov(dword_ptr(TARGET), eax)?;
        self.mov(eax, dword_ptr(SAVED_EAX))?;
        self.jmp(target)
    }

    /// Leaves 32-bit protected mode for 16-bit code at `at` in real mode.
    pub fn go_real(&mut self, at: u32) -> Result {
        self.mov(dword_ptr(TARGET), at)?;
        far_jump(self, CS_16, ENTER_REAL)
    }

    /// Leaves real mode for 32-bit code at `at`. DS is at 0.
    pub fn go_protected(&mut self, at: u32) -> Result {
        self.mov(dword_ptr(TARGET), at)?;
        self.jmp(u64::from(ENTER_PROTECTED))
    }

    /// Loads a data segment register through EAX.
    pub fn load(&mut self, segment: AsmRegisterSegment, selector: u16) -> Result {
        self.mov(eax, u32::from(selector))?;
        self.mov(segment, ax)
    }
}

/// No preparation.
pub fn nothing(_: &mut Code<'_>) -> Result {
    Ok(())
}
