//! The guests: 32-bit code from the first instruction on, so that the ioctl program needs no page tables either.

use guests::bare::{self, BuildError, layout};
use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction};

use super::Event;

/// IN gives how many events to make.
pub(super) const COUNT: u16 = 0x5f0;
/// OUT tells that they are made, or that an interrupt has come.
pub(super) const DONE: u16 = 0x5f4;
/// OUT does nothing: the event of [`Event::Port`].
const NOTHING: u8 = 0x80;
/// An address where there is neither memory nor a device.
const NOWHERE: u32 = machine::memory_map::DEVICE_HOLE as u32 + 0x1000;
/// Vector of the interrupt that wakes [`Event::Halt`].
pub(super) const VECTOR: u8 = 0x40;

/// All of a guest's memory, and what is where in it.
const MEMORY: u64 = 1 << 20;
const IDT: u32 = layout::LOAD as u32 + 0x1_0000;
/// The six bytes that LGDT and LIDT take.
const PSEUDO: u32 = layout::LOAD as u32 + 0x1_8000;
const STACK: u32 = layout::LOAD as u32 + 0x2_0000;

/// The local APIC's registers (Intel SDM vol. 3, table 12-1).
const SPURIOUS: u32 = machine::memory_map::LAPIC_BASE as u32 + 0xf0;
const EOI: u32 = machine::memory_map::LAPIC_BASE as u32 + 0xb0;

/// The guest that makes events of this kind.
pub(super) fn guest(event: Event) -> Result<Vec<u8>, BuildError> {
    bare::at_entry(MEMORY, |a| match event {
        Event::Port => rounds(a, |a| a.out(u32::from(NOTHING), al)),
        Event::Mmio => rounds(a, |a| a.mov(dword_ptr(NOWHERE), eax)),
        Event::Halt => halt(a),
        Event::Kick => {
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            a.jmp(here)
        }
    })
}

/// Does `event` as often as it is told, says so, and starts over.
fn rounds(
    a: &mut CodeAssembler,
    event: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let (mut start, mut top) = (a.create_label(), a.create_label());
    a.set_label(&mut start)?;
    a.mov(edx, u32::from(COUNT))?;
    a.in_(eax, dx)?;
    a.mov(ecx, eax)?;
    a.set_label(&mut top)?;
    event(a)?;
    a.dec(ecx)?;
    a.jnz(top)?;
    a.mov(edx, u32::from(DONE))?;
    a.out(dx, eax)?;
    a.jmp(start)
}

/// Halts for good; each interrupt is told.
fn halt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const CODE: u16 = 8;
    const DATA: u32 = 16;
    let [mut lgdt, mut far_return, mut lidt, mut sleep] = std::array::from_fn(|_| a.create_label());
    a.mov(esp, STACK)?;
    // The entry's segments are in a table that only the loader knows. A CALL gives the address of what is behind it.
    a.call(lgdt)?;
    a.dq(&[0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff])?;
    a.set_label(&mut lgdt)?;
    a.pop(eax)?;
    a.mov(word_ptr(PSEUDO), 3 * 8 - 1)?;
    a.mov(dword_ptr(PSEUDO + 2), eax)?;
    a.lgdt(ptr(PSEUDO))?;
    a.mov(eax, DATA)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(ss, eax)?;
    a.push(i32::from(CODE))?;
    a.call(far_return)?;

    a.call(lidt)?;
    // The handler. It does not return by IRET, which a KVM that emulates ring 0 does not know in protected mode.
    a.mov(edx, u32::from(DONE))?;
    a.out(dx, eax)?;
    a.mov(dword_ptr(EOI), 0)?;
    a.mov(esp, STACK)?;
    a.jmp(sleep)?;

    a.set_label(&mut far_return)?;
    a.add_instruction(Instruction::with(Code::Retfd))?;

    // A 32-bit interrupt gate (Intel SDM vol. 3, 7.11).
    a.set_label(&mut lidt)?;
    a.pop(eax)?;
    a.mov(ebx, eax)?;
    a.and(eax, 0xffff)?;
    a.or(eax, i32::from(CODE) << 16)?;
    a.and(ebx, 0xffff_0000u32 as i32)?;
    a.or(ebx, 0x8e00)?;
    let gate = IDT + 8 * u32::from(VECTOR);
    a.mov(dword_ptr(gate), eax)?;
    a.mov(dword_ptr(gate + 4), ebx)?;
    a.mov(word_ptr(PSEUDO), 256 * 8 - 1)?;
    a.mov(dword_ptr(PSEUDO + 2), IDT)?;
    a.lidt(ptr(PSEUDO))?;
    // Software-enabled, spurious interrupts on vector 255.
    a.mov(dword_ptr(SPURIOUS), 0x1ff)?;

    a.set_label(&mut sleep)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(sleep)
}
