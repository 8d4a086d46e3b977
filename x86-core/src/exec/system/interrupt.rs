//! INT n, INT3, INT1 and INTO (Intel SDM vol. 2, INT n; vol. 3, 6.4.4).

use iced_x86::{Code, Instruction};

use crate::alu::flag;
use crate::exec::Table;
use crate::mode::Mode;
use crate::{Cpu, Exec, Fault, vector};

fn int(cpu: &mut Cpu, ins: &Instruction) -> Exec {
    let vector = ins.immediate8();
    if cpu.mode == Mode::Virtual8086 {
        if cpu.redirects(vector)? {
            return cpu.redirected_interrupt(vector);
        }
        if cpu.iopl() < 3 {
            return Err(Fault::GP0);
        }
    }
    cpu.software_interrupt(vector)
}

/// INT3 and INTO are not subject to IOPL in virtual-8086 mode, only to the gate's DPL.
fn int3(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.software_interrupt(vector::BP)
}

fn into(cpu: &mut Cpu, _: &Instruction) -> Exec {
    if cpu.rflags() & flag::OF != 0 { cpu.software_interrupt(vector::OF) } else { Ok(()) }
}

fn int1(cpu: &mut Cpu, _: &Instruction) -> Exec {
    cpu.debug_interrupt()
}

pub(super) fn register(table: &mut Table) {
    table.set(&[Code::Int_imm8], int);
    table.set(&[Code::Int3], int3);
    table.set(&[Code::Into], into);
    table.set(&[Code::Int1], int1);
}
