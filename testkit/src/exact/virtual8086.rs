//! An 8086 program under a monitor, with the virtual-8086 mode extensions (Intel SDM vol. 3, 21.3).

use std::sync::Arc;

use crate::rig::{Rig, map, sel};
use crate::snippet::exit;
use accel_api::Accelerator;
use accel_api::x86::{DescriptorTable, Segment, gpr};
use iced_x86::code_asm::*;

const GDT: u64 = map::DATA;
const IDT: u64 = map::DATA + 0x100;
const TSS: u64 = map::DATA + 0x200;
const ENTRIES: u64 = map::DATA + 0x400;
const MONITOR: u64 = map::DATA + 0x1000;
const STACK: u64 = map::DATA + 0x3000;
const CODE: u16 = 0x08;
const GP: u64 = 13;

/// STI and INT n stay in the program; HLT calls the monitor, and so does going on with VIF and VIP set.
pub fn program_and_monitor(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.write(GDT + u64::from(CODE), 0x00cf_9b00_0000_ffffu64);
    rig.write(GDT + u64::from(sel::DATA), 0x00cf_9300_0000_ffffu64);
    rig.write(IDT + 8 * GP, MONITOR & 0xffff | u64::from(CODE) << 16 | 0x8e << 40 | (MONITOR >> 16) << 48);
    rig.write(TSS + 4, STACK as u32);
    rig.write(TSS + 8, u32::from(sel::DATA));
    rig.write(TSS + 0x66, 0x88u16); // the redirection map of INT n lies before the one of ports, all zeros
    rig.write(0x21 * 4, [0x00u8, 0x01, 0x00, 0x30]); // 3000:0100
    rig.code_at(32, MONITOR, |a| {
        let mut second = a.create_label();
        a.pop(eax)?; // error code
        a.mov(eax, u32::from(sel::DATA))?; // DS is null on the way out of virtual-8086 mode
        a.mov(ds, eax)?;
        a.inc(dword_ptr(ENTRIES))?;
        a.cmp(dword_ptr(ENTRIES), 2)?;
        a.je(second)?;
        a.inc(dword_ptr(esp))?; // behind the HLT
        a.or(dword_ptr(esp + 8), 0x18_0000)?; // VIF, VIP
        a.iretd()?;
        a.set_label(&mut second)?;
        a.mov(edx, dword_ptr(esp))?;
        exit(a)
    });
    rig.code_at(16, map::CODE, |a| {
        let mut top = a.create_label();
        a.mov(cx, 1000)?; // 3 bytes
        a.sti()?; // 1
        a.set_label(&mut top)?;
        a.int(0x21)?; // 2
        a.loop_(top)?; // 2
        a.hlt()?;
        a.inc(si) // never
    });
    rig.code_at(16, map::CODE + 0x100, |a| {
        a.inc(di)?;
        a.iret()
    });
    let mut state = rig.protected();
    state.gdtr = DescriptorTable { base: GDT, limit: 0x1f };
    state.idtr = DescriptorTable { base: IDT, limit: 0x7f };
    state.segments.tr = Segment { selector: 0x18, base: TSS, limit: 0xff, attributes: 0x8b, unusable: false };
    let s = &mut state.segments;
    for seg in [&mut s.es, &mut s.cs, &mut s.ss, &mut s.ds, &mut s.fs, &mut s.gs] {
        *seg = Segment { attributes: 0xf3, ..Segment::real((map::CODE >> 4) as u16) };
    }
    state.control.cr4 |= 1; // VME
    (state.rip, state.rflags, state.gpr) = (0, 1 << 17 | 2, [0; 16]);
    state.gpr[gpr::RSP] = 0x8000;
    let end = rig.run(&state);
    assert_eq!(rig.read::<u32>(ENTRIES), 2);
    assert_eq!((end.gpr[gpr::RDI], end.gpr[gpr::RSI], end.gpr[gpr::RDX]), (1000, 0, 9));
}
