//! Hardware task switches out of and into code that runs as blocks (Intel SDM vol. 3, chapter 8).

use std::sync::Arc;

use crate::rig::{Rig, map, sel};
use crate::snippet::exit;
use accel_api::Accelerator;
use accel_api::x86::{DescriptorTable, Segment, gpr};
use iced_x86::code_asm::*;

const GDT: u64 = map::DATA;
const IDT: u64 = map::DATA + 0x100;
const TSS: u64 = map::DATA + 0x200;
const OTHER_TSS: u64 = map::DATA + 0x300;
const COUNT: u64 = map::DATA + 0x400;
const OTHER_CODE: u64 = map::DATA + 0x1000;
const OTHER_STACK: u64 = map::DATA + 0x3000;
/// In the rig's table they stand for something else; this one has its own.
const TR: u16 = 0x18;
const OTHER: u16 = 0x20;

const fn tss(base: u64, rights: u64) -> u64 {
    0x67 | (base & 0xff_ffff) << 16 | rights << 40 | (base >> 24) << 56
}

/// A task is called a thousand times by CALL and as often through a task gate by INT, and goes on behind its IRET each
/// time.
pub fn coroutines(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let flat = [0, 0, 0x00cf_9300_0000_ffff, tss(TSS, 0x8b), tss(OTHER_TSS, 0x89)];
    for (n, entry) in flat.into_iter().enumerate() {
        rig.write(GDT + 8 * n as u64, entry);
    }
    rig.write(GDT + u64::from(sel::CODE32), 0x00cf_9b00_0000_ffffu64);
    rig.write(IDT + 8 * 0x10, u64::from(OTHER) << 16 | 0x85 << 40);
    let fields =
        [(0x20, OTHER_CODE as u32), (0x24, 2), (0x38, OTHER_STACK as u32), (0x4c, sel::CODE32.into())];
    for (at, value) in fields {
        rig.write(OTHER_TSS + at, value);
    }
    for at in [0x48, 0x50, 0x54] {
        rig.write(OTHER_TSS + at, u32::from(sel::DATA));
    }
    rig.code_at(32, OTHER_CODE, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(dword_ptr(COUNT))?;
        a.inc(ebx)?; // the task's own
        a.iretd()?;
        a.jmp(top)
    });
    rig.code_at(32, map::CODE, |a| {
        let mut top = a.create_label();
        a.mov(ecx, 1000)?;
        a.set_label(&mut top)?;
        a.db(&[0x9a, 0, 0, 0, 0, OTHER as u8, 0])?;
        a.int(0x10)?;
        a.dec(ecx)?;
        a.jnz(top)?;
        exit(a)
    });
    let mut state = rig.protected();
    state.gdtr = DescriptorTable { base: GDT, limit: 0x47 };
    state.idtr = DescriptorTable { base: IDT, limit: 0x87 };
    state.segments.tr = Segment { selector: TR, base: TSS, limit: 0x67, attributes: 0x8b, unusable: false };
    state.gpr[gpr::RBX] = 7;
    let end = rig.run(&state);
    assert_eq!((rig.read::<u32>(COUNT), rig.read::<u32>(OTHER_TSS + 0x34)), (2000, 2000));
    assert_eq!((end.gpr[gpr::RBX], end.gpr[gpr::RCX], end.segments.tr.selector), (7, 0, TR));
}
