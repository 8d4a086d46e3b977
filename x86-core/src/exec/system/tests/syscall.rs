//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the base instructions (vol. 2; vol. 3, 5.8.7 and 5.8.8).

use accel_api::x86::gpr;

use super::*;
use crate::Fault;
use crate::alu::flag;
use crate::cpu::seg;
use crate::mode::{Mode, bits};
use crate::testing::run;
use crate::testing_tables::*;

const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSRET: &[u8] = &[0x48, 0x0f, 0x07];
const SYSRET32: &[u8] = &[0x0f, 0x07];
const SYSENTER: &[u8] = &[0x0f, 0x34];
const SYSEXIT: &[u8] = &[0x48, 0x0f, 0x35];

fn ready(cpl: u8) -> Box<Cpu> {
    let mut c = cpu_with_tables(Mode::Long, cpl);
    c.msrs.star = 0x0023_0010_0000_0000;
    c.msrs.lstar = 0xffff_8000_0000_1000;
    c.msrs.fmask = flag::IF | flag::TF | flag::AC | flag::DF;
    c
}

#[test]
fn syscall_and_sysret() {
    let mut c = ready(3);
    c.set_rflags(flag::IF | flag::AC | flag::CF | flag::ID);
    run(&mut c, SYSCALL).unwrap();
    assert_eq!((c.rip, c.cpl, c.mode), (0xffff_8000_0000_1000, 0, Mode::Long));
    assert_eq!(c.gpr[gpr::RCX], 0x1002);
    assert_eq!(c.gpr[11], 2 | flag::IF | flag::AC | flag::CF | flag::ID);
    assert_eq!(c.rflags(), 2 | flag::CF | flag::ID);
    let (cs, ss) = (c.segs[seg::CS], c.segs[seg::SS]);
    assert_eq!((cs.selector, cs.attributes, ss.selector, ss.attributes), (0x10, 0xa09b, 0x18, 0xc093));

    c.gpr[11] = u64::MAX; // VM and RF and what is reserved do not come through
    run(&mut c, SYSRET).unwrap();
    assert_eq!((c.rip, c.cpl, c.rflags()), (0x1002, 3, 0x3c_7fd7));
    let (cs, ss) = (c.segs[seg::CS], c.segs[seg::SS]);
    assert_eq!((cs.selector, cs.attributes, ss.selector, ss.attributes), (0x33, 0xa0fb, 0x2b, 0xc0f3));

    let mut c = ready(0);
    (c.gpr[gpr::RCX], c.gpr[11]) = (0x8000_0000_1234, 0);
    assert_eq!(run(&mut c, SYSRET), Err(Fault::GP0)); // not canonical: still at level 0
    assert_eq!(c.cpl, 0);
    c.gpr[gpr::RCX] = 0xf_0000_1234;
    run(&mut c, SYSRET32).unwrap();
    assert_eq!((c.rip, c.mode, c.segs[seg::CS].selector), (0x1234, Mode::Protected32, 0x23));
    // Compatibility mode has no SYSCALL on Intel's processors, and nothing has without SCE.
    assert_eq!(run(&mut c, SYSCALL), Err(Fault::UD));
    let mut c = ready(3);
    c.efer &= !bits::EFER_SCE;
    assert_eq!(run(&mut c, SYSCALL), Err(Fault::UD));
}

#[test]
fn sysenter_and_sysexit() {
    let mut c = ready(3);
    assert_eq!(run(&mut c, SYSENTER), Err(Fault::GP0));
    (c.msrs.sysenter_cs, c.msrs.sysenter_esp, c.msrs.sysenter_eip) = (0x10, 0x8000, 0xffff_8000_0000_0000);
    c.set_rflags(flag::IF | flag::CF);
    run(&mut c, SYSENTER).unwrap();
    assert_eq!((c.rip, c.gpr[gpr::RSP], c.cpl), (0xffff_8000_0000_0000, 0x8000, 0));
    assert_eq!((c.rflags(), c.segs[seg::CS].selector, c.segs[seg::SS].selector), (2 | flag::CF, 0x10, 0x18));
    (c.gpr[gpr::RDX], c.gpr[gpr::RCX]) = (0x4000, 0x7000);
    run(&mut c, SYSEXIT).unwrap();
    assert_eq!((c.rip, c.gpr[gpr::RSP], c.cpl, c.mode), (0x4000, 0x7000, 3, Mode::Long));
    assert_eq!((c.segs[seg::CS].selector, c.segs[seg::SS].selector), (0x33, 0x3b));
    assert_eq!(run(&mut c, SYSEXIT), Err(Fault::GP0));
}

#[test]
fn bases() {
    let mut c = ready(0);
    c.segs[seg::GS].base = 1;
    c.msrs.kernel_gs_base = 2;
    run(&mut c, &[0x0f, 0x01, 0xf8]).unwrap();
    assert_eq!((c.segs[seg::GS].base, c.msrs.kernel_gs_base), (2, 1));
    assert_eq!(run(&mut c, &[0xf3, 0x48, 0x0f, 0xae, 0xc0]), Err(Fault::UD));
    c.cr4 |= bits::CR4_FSGSBASE;
    c.gpr[gpr::RAX] = 0xffff_8000_1234_5678;
    run(&mut c, &[0xf3, 0x48, 0x0f, 0xae, 0xd0]).unwrap(); // wrfsbase rax
    run(&mut c, &[0xf3, 0x48, 0x0f, 0xae, 0xc3]).unwrap(); // rdfsbase rbx
    assert_eq!(c.gpr[gpr::RBX], 0xffff_8000_1234_5678);
    run(&mut c, &[0xf3, 0x0f, 0xae, 0xd8]).unwrap(); // wrgsbase eax
    assert_eq!(c.segs[seg::GS].base, 0x1234_5678);
    c.gpr[gpr::RAX] = 1 << 47;
    assert_eq!(run(&mut c, &[0xf3, 0x48, 0x0f, 0xae, 0xd0]), Err(Fault::GP0));
}
