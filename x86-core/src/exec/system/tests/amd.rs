//! What only AMD's processors have, and what they do otherwise than Intel's (AMD APM vol. 2 and 3).

use std::sync::Arc;

use accel_api::x86::{Feature, Signature, Vendor, gpr};

use super::*;
use crate::Fault;
use crate::alu::flag;
use crate::cpu::seg;
use crate::mode::{Mode, bits};
use crate::testing::{cpu, peek, poke, run};
use crate::testing_tables::*;

const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSRET: &[u8] = &[0x0f, 0x07];
const SYSENTER: &[u8] = &[0x0f, 0x34];
const SYSEXIT: &[u8] = &[0x0f, 0x35];
const CLZERO: &[u8] = &[0x0f, 0x01, 0xfc];
const MONITORX: &[u8] = &[0x0f, 0x01, 0xfa];
const MWAITX: &[u8] = &[0x0f, 0x01, 0xfb];
const RDPRU: &[u8] = &[0x0f, 0x01, 0xfd];

/// `c` as a processor of AMD's with `features` besides its own.
fn of_amd(mut c: Box<Cpu>, features: &[Feature]) -> Box<Cpu> {
    let model = Arc::make_mut(&mut c.model);
    model.signature = Signature { vendor: Vendor::Amd, family: 0x17, model: 0x31, stepping: 0 };
    model.features = model.features.with(features);
    c
}

/// In compatibility mode at level 3, with SYSCALL's registers set.
fn compatible() -> Box<Cpu> {
    let mut c = of_amd(cpu_with_tables(Mode::Long, 0), &[]);
    c.msrs.star = 0x0023_0010_8000_4000;
    (c.msrs.lstar, c.msrs.cstar) = (0xffff_8000_0000_1000, 0xffff_8000_0000_2000);
    c.msrs.fmask = flag::IF | flag::TF | flag::DF;
    (c.gpr[gpr::RCX], c.gpr[11]) = (0x1234, flag::IF | flag::CF);
    run(&mut c, SYSRET).unwrap();
    assert_eq!((c.mode, c.cpl, c.long_mode()), (Mode::Protected32, 3, true));
    c.rip = 0x1000;
    c
}

#[test]
fn syscall_in_compatibility_mode() {
    let mut c = compatible();
    run(&mut c, SYSCALL).unwrap();
    assert_eq!((c.rip, c.mode, c.cpl), (0xffff_8000_0000_2000, Mode::Long, 0));
    assert_eq!((c.gpr[gpr::RCX], c.gpr[11]), (0x1002, 2 | flag::IF | flag::CF));
    assert_eq!(c.rflags(), 2 | flag::CF);
    assert_eq!((c.segs[seg::CS].selector, c.segs[seg::SS].selector), (0x10, 0x18));
    assert_eq!((c.segs[seg::CS].attributes, c.segs[seg::SS].attributes), (0xa09b, 0xc093));
    let mut c = compatible();
    c.efer &= !bits::EFER_SCE;
    assert_eq!(run(&mut c, SYSCALL), Err(Fault::UD));
}

#[test]
fn syscall_and_sysret_in_legacy_mode() {
    let mut c = of_amd(cpu_with_tables(Mode::Protected32, 3), &[]);
    c.efer |= bits::EFER_SCE;
    c.msrs.star = 0x0023_0008_8000_4000;
    (c.gpr[11], c.rip) = (7, 0x1000);
    c.set_rflags(flag::IF | flag::CF | flag::DF);
    run(&mut c, SYSCALL).unwrap();
    assert_eq!((c.rip, c.mode, c.cpl), (0x8000_4000, Mode::Protected32, 0));
    // R11 is none of its registers here, FMASK has no effect.
    assert_eq!((c.gpr[gpr::RCX], c.gpr[11], c.rflags()), (0x1002, 7, 2 | flag::CF | flag::DF));
    assert_eq!((c.segs[seg::CS].attributes, c.segs[seg::SS].attributes), (0xc09b, 0xc093));
    run(&mut c, SYSRET).unwrap();
    assert_eq!((c.rip, c.mode, c.cpl), (0x1002, Mode::Protected32, 3));
    assert_eq!(c.rflags(), 2 | flag::CF | flag::DF | flag::IF);
    assert_eq!((c.segs[seg::CS].selector, c.segs[seg::SS].selector), (0x23, 0x2b));
    assert_eq!(run(&mut c, SYSRET), Err(Fault::GP0));
    for mode in [Mode::Real, Mode::Virtual8086] {
        let mut c = of_amd(cpu(mode), &[]);
        c.efer |= bits::EFER_SCE;
        assert_eq!((run(&mut c, SYSCALL), run(&mut c, SYSRET)), (Err(Fault::UD), Err(Fault::UD)));
    }
}

#[test]
fn no_sysenter_in_long_mode() {
    for mut c in [compatible(), of_amd(cpu_with_tables(Mode::Long, 0), &[])] {
        c.msrs.sysenter_cs = 0x10;
        assert_eq!((run(&mut c, SYSENTER), run(&mut c, SYSEXIT)), (Err(Fault::UD), Err(Fault::UD)));
    }
    let mut c = of_amd(cpu_with_tables(Mode::Protected32, 3), &[]);
    (c.msrs.sysenter_cs, c.msrs.sysenter_eip) = (8, 0x4000);
    run(&mut c, SYSENTER).unwrap();
    assert_eq!((c.rip, c.cpl), (0x4000, 0));
}

/// Linux in long mode writes addresses of 64 bits, which nothing will use.
#[test]
fn sysenters_addresses_have_32_bits() {
    for index in [0x175, 0x176] {
        let mut c = of_amd(cpu(Mode::Long), &[]);
        for value in [0xffff_fe00_0000_3000, 0x8000_0000_1234_5678] {
            c.write_msr(index, value).unwrap();
            assert_eq!(c.read_msr(index), Ok(value & 0xffff_ffff));
        }
        let mut c = cpu(Mode::Long);
        c.write_msr(index, 0xffff_fe00_0000_3000).unwrap();
        assert_eq!(c.write_msr(index, 0x8000_0000_1234_5678), Err(Fault::GP0));
        assert_eq!(c.read_msr(index), Ok(0xffff_fe00_0000_3000));
    }
}

#[test]
fn a_line_of_zeros() {
    for (mode, prefix, at) in [
        (Mode::Long, &[][..], 0x3000),
        (Mode::Long, &[0x67], 0x3000),
        (Mode::Long, &[0x64], 0x3100), // fs
        (Mode::Protected32, &[0x67], 0x3000),
        (Mode::Real, &[], 0x3000),
    ] {
        let mut c = of_amd(cpu(mode), &[Feature::Clzero]);
        c.segs[seg::FS].base = 0x100;
        let code = [prefix, CLZERO].concat();
        poke(&mut c, at - 64, &[0xaa; 192]);
        // What the address size cuts off does not count.
        let above = if prefix == [0x67] || mode == Mode::Real { 0x7_0000_0000 } else { 0 };
        c.gpr[gpr::RAX] = 0x303f | above;
        run(&mut c, &code).unwrap();
        let mut expected = [0xaa; 192];
        expected[64..128].fill(0);
        assert_eq!(peek(&mut c, at - 64, 192), expected, "{mode:?} {prefix:x?}");
    }
    let mut c = cpu(Mode::Long);
    assert_eq!(run(&mut c, CLZERO), Err(Fault::UD));
    let mut c = of_amd(cpu(Mode::Protected32), &[Feature::Clzero]);
    c.segs[seg::DS].limit = 0x2fff;
    c.gpr[gpr::RAX] = 0x3000;
    assert_eq!(run(&mut c, CLZERO), Err(Fault::GP0));
    let mut c = of_amd(cpu(Mode::Long), &[Feature::Clzero]);
    c.gpr[gpr::RAX] = 1 << 63;
    assert_eq!(run(&mut c, CLZERO), Err(Fault::GP0));
}

#[test]
fn waiting_for_a_store_ends_at_once() {
    let mut c = cpu(Mode::Long);
    assert_eq!((run(&mut c, MONITORX), run(&mut c, MWAITX)), (Err(Fault::UD), Err(Fault::UD)));
    let mut c = of_amd(c, &[Feature::Mwaitx]);
    c.gpr[gpr::RAX] = 0x3000;
    run(&mut c, MONITORX).unwrap();
    (c.gpr[gpr::RAX], c.gpr[gpr::RBX], c.gpr[gpr::RCX]) = (0xf0, u64::MAX, 2);
    let before = (c.gpr, c.rflags());
    run(&mut c, MWAITX).unwrap();
    assert_eq!((c.gpr, c.rflags()), before);
    c.gpr[gpr::RCX] = 4;
    assert_eq!(run(&mut c, MWAITX), Err(Fault::GP0));
    c.gpr[gpr::RCX] = 1;
    assert_eq!(run(&mut c, MONITORX), Err(Fault::GP0));
    (c.gpr[gpr::RAX], c.gpr[gpr::RCX]) = (1 << 63, 0);
    assert_eq!(run(&mut c, MONITORX), Err(Fault::GP0));
}

#[test]
fn counters_for_programs() {
    let mut c = cpu_with_tables(Mode::Long, 3);
    assert_eq!(run(&mut c, RDPRU), Err(Fault::UD));
    let mut c = of_amd(c, &[Feature::Rdpru]);
    let read = |c: &mut Cpu, register| {
        c.gpr[gpr::RCX] = register;
        run(c, RDPRU).map(|()| c.gpr[gpr::RAX] | c.gpr[gpr::RDX] << 32)
    };
    let before = c.tsc();
    let (mperf, aperf) = (read(&mut c, 0).unwrap(), read(&mut c, 1).unwrap());
    assert!(before <= mperf && mperf <= aperf && aperf <= c.tsc());
    assert_eq!(read(&mut c, 2), Ok(0));
    c.cr4 |= bits::CR4_TSD;
    assert_eq!(read(&mut c, 0), Err(Fault::GP0));
}

/// EFER.AIBRSE is AMD's word for IBRS that is always on; where CPUID does not announce it, it is reserved.
#[test]
fn automatic_ibrs() {
    let mut c = of_amd(cpu(Mode::Long), &[Feature::AutoIbrs]);
    let efer = c.efer | bits::EFER_AIBRSE;
    assert_eq!((c.write_msr(0xc000_0080, efer), c.efer), (Ok(()), efer));
    let model = Arc::make_mut(&mut c.model);
    model.features = model.features.without(&[Feature::AutoIbrs]);
    assert_eq!(c.write_msr(0xc000_0080, efer), Err(Fault::GP0));
}
