//! The guest sees the CPU model, the whole of it and nothing else: CPUID, MSRs.

use std::sync::Arc;

use accel_api::Accelerator;
use accel_api::x86::{CpuidInputs, CpuidResult, Feature, gpr};
use iced_x86::code_asm::*;

use crate::fake_bus::Event;
use crate::rig::{Rig, cell, map};
use crate::snippet::faulting;

/// CPUID gives what the model says, on every leaf and subleaf, in the model's range and around it.
pub fn cpuid(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let bases = [0u32, 0x4000_0000, 0x8000_0000, 0xc000_0000];
    let leaves: Vec<u32> = bases.iter().flat_map(|b| *b..*b + 0x24).chain([0x4000_0100, u32::MAX]).collect();
    let table = 0x20_0000;
    for (n, leaf) in leaves.iter().enumerate() {
        rig.write(table + 4 * n as u64, *leaf);
    }
    let out = 0x21_0000;
    rig.code(|a| {
        let (mut leaf, mut subleaf) = (a.create_label(), a.create_label());
        a.mov(esi, table as u32)?;
        a.mov(edi, out as u32)?;
        a.mov(r8d, leaves.len() as u32)?;
        a.set_label(&mut leaf)?;
        a.xor(r9d, r9d)?;
        a.set_label(&mut subleaf)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.mov(ecx, r9d)?;
        a.cpuid()?;
        a.mov(dword_ptr(rdi), eax)?;
        a.mov(dword_ptr(rdi + 4), ebx)?;
        a.mov(dword_ptr(rdi + 8), ecx)?;
        a.mov(dword_ptr(rdi + 12), edx)?;
        a.add(rdi, 16)?;
        a.inc(r9d)?;
        a.cmp(r9d, 5)?;
        a.jb(subleaf)?;
        a.add(rsi, 4)?;
        a.dec(r8d)?;
        a.jnz(leaf)
    });
    rig.run_long();
    let inputs = CpuidInputs { apic_id: 0, osxsave: false, apic_enabled: true, xcr0: 1 };
    for (n, leaf) in leaves.iter().enumerate() {
        for subleaf in 0..5u32 {
            let at = out + 16 * (5 * n as u64 + u64::from(subleaf));
            let [a, b, c, d] = [0, 4, 8, 12].map(|o| rig.read::<u32>(at + o));
            let expected = rig.model.cpuid(*leaf, subleaf, inputs);
            assert_eq!(CpuidResult { eax: a, ebx: b, ecx: c, edx: d }, expected, "leaf {leaf:#x}.{subleaf}");
        }
    }
}

/// The backend offers what the model announces; `create_vm` refuses a model with more, naming what is missing.
pub fn features(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    assert_eq!(rig.model.features.missing_from(&accel.caps().features), [""; 0]);
    let lacking = Feature::ALL.iter().find(|f| !accel.caps().features.has(**f));
    if let Some(lacking) = lacking {
        let mut model = (*rig.model).clone();
        model.features = model.features.with(&[*lacking]);
        let spec = accel_api::VmSpec { model: Arc::new(model), ram: rig.ram.clone(), vcpus: 1 };
        let error = accel.create_vm(&spec).expect_err("a feature it lacks").to_string();
        assert!(error.contains(lacking.name()), "{error}");
    }
}

/// MSRs the model names can be read, and those the guest may write keep what is written.
pub fn named_msrs(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let writable: [(u32, u64); 18] = [
        (0xc000_0081, 0x0023_0010_1234_5678), // STAR
        (0xc000_0082, 0xffff_8000_0000_1001), // LSTAR
        (0xc000_0083, 0xffff_8000_0000_1002), // CSTAR
        (0xc000_0084, 0x4_7700),              // FMASK
        (0xc000_0100, 0x7fff_0000_1003),      // FS base
        (0xc000_0102, 0x7fff_0000_1005),      // KERNEL_GS_BASE
        (0xc000_0103, 0x1006),                // TSC_AUX
        (0x174, 0x10),                        // SYSENTER_CS
        (0x175, 0xffff_8000_0000_1007),
        (0x176, 0xffff_8000_0000_1008),
        (0x17a, 5), // MCG_STATUS
        // MISC_ENABLE: all that Intel SDM vol. 4, table 2-2, has as writable, and nothing.
        (0x1a0, 0x4_00c5_1809),
        (0x1a0, 0x1800),
        (0x277, 0x0007_0106_0007_0406), // PAT
        (0x2ff, 0xc06),                 // MTRR_DEF_TYPE
        (0x250, 0x0606_0606_0606_0606),
        (0x200, 0x8000_0006),
        (0x201, 0xff_8000_0800),
    ];
    let readable: [u32; 6] = [0x10, 0x1b, 0xfe, 0x10a, 0x1a0, 0xc000_0080];
    rig.code(|a| {
        for (n, (index, value)) in writable.iter().enumerate() {
            a.mov(ecx, *index)?;
            a.mov(eax, *value as u32)?;
            a.mov(edx, (*value >> 32) as u32)?;
            a.wrmsr()?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.rdmsr()?;
            a.shl(rdx, 32)?;
            a.or(rax, rdx)?;
            a.mov(qword_ptr(map::DATA + 8 * n as u64), rax)?;
        }
        for index in readable {
            a.mov(ecx, index)?;
            a.rdmsr()?;
        }
        // Writes that have no effect: IA32_BIOS_UPDT_TRIG finds no update, IA32_BIOS_SIGN_ID is cleared before CPUID sets it.
        a.mov(eax, map::DATA as u32)?;
        a.xor(edx, edx)?;
        for index in [0x79u32, 0x8b] {
            a.mov(ecx, index)?;
            a.wrmsr()?;
        }
        a.nop()
    });
    let end = rig.run_long();
    for (n, (index, value)) in writable.iter().enumerate() {
        assert_eq!(rig.read::<u64>(map::DATA + 8 * n as u64), *value, "MSR {index:#x}");
    }
    assert_eq!(
        (end.msrs.lstar, end.msrs.kernel_gs_base, end.msrs.pat),
        (writable[1].1, writable[5].1, writable[13].1)
    );
    assert!(rig.bus().take_log().is_empty(), "these are the CPU's, not the machine's");
}

/// An MSR that is not named goes to the machine first; if it has none, #GP(0) and no register changes. Values that an
/// MSR does not take are #GP(0) too.
pub fn other_msrs(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.bus().have_msr(0x4b56_4d00, 0x0102_0304_0506_0708);
    rig.code(|a| {
        a.mov(ecx, 0x4b56_4d00)?;
        a.rdmsr()?;
        a.mov(r8d, eax)?;
        a.mov(r9d, edx)?;
        a.inc(eax)?;
        a.wrmsr()?;
        a.mov(ecx, 0xdead)?;
        a.mov(eax, 0x11)?;
        a.mov(edx, 0x22)?;
        faulting(a, |a| a.rdmsr())?;
        faulting(a, |a| a.wrmsr())?;
        a.mov(r10d, eax)?;
        a.mov(r11d, edx)?;
        // What can only be written; not canonical; reserved EFER bits; a bad memory type; EFER.LME off while paging; reserved
        // MISC_ENABLE bits.
        a.mov(ecx, 0x79)?;
        faulting(a, |a| a.rdmsr())?;
        for (index, high, low) in [
            (0xc000_0082u32, 0x8000u32, 0u32),
            (0xc000_0080, 1, 0xd01),
            (0x277, 0, 2),
            (0xc000_0080, 0, 0xc01),
            (0x1a0, 0, 2),
            (0x1a0, 0x8000_0000, 1),
        ] {
            a.mov(ecx, index)?;
            a.mov(eax, low)?;
            a.mov(edx, high)?;
            faulting(a, |a| a.wrmsr())?;
        }
        a.nop()
    });
    let end = rig.run_long();
    let traps = rig.traps();
    assert_eq!(traps.len(), 9);
    assert!(traps.iter().all(|t| (t.vector, t.error, t.rip) == (13, 0, t.expected_rip)), "{traps:x?}");
    assert_eq!(end.gpr[8..12], [0x0506_0708, 0x0102_0304, 0x11, 0x22]);
    assert_eq!(rig.bus().msr(0x4b56_4d00), Some(0x0102_0304_0506_0709));
    let log = rig.bus().take_log();
    let expected = [
        Event::MsrRead { index: 0x4b56_4d00 },
        Event::MsrWrite { index: 0x4b56_4d00, value: 0x0102_0304_0506_0709 },
        Event::MsrRead { index: 0xdead },
        Event::MsrWrite { index: 0xdead, value: 0x22_0000_0011 },
    ];
    assert_eq!(log, expected);
}

/// SYSCALL, SYSRET, SYSENTER's MSRs aside: FS and GS bases by instruction, SWAPGS, EFER.SCE off.
pub fn system_calls(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    for page in [map::USER_CODE, map::USER_STACK - 0x1000] {
        rig.user_page(page);
    }
    rig.code_at(64, map::USER_CODE, |a| {
        a.mov(rax, 0x1234u64)?;
        a.syscall()?;
        a.inc(rax)?;
        a.syscall()
    });
    rig.code(|a| {
        let mut end = a.create_label();
        a.swapgs()?;
        a.mov(rbx, qword_ptr(0).gs())?;
        a.swapgs()?;
        a.inc(r8)?;
        a.cmp(r8, 2)?;
        a.je(end)?;
        a.sysretq()?;
        a.set_label(&mut end)?;
        a.nop()
    });
    let mut state = super::exceptions::user_state(&rig);
    state.msrs.star =
        u64::from(crate::rig::sel::USER_CODE32) << 48 | u64::from(crate::rig::sel::CODE64) << 32;
    state.msrs.lstar = map::CODE;
    state.msrs.fmask = 0x200;
    state.msrs.kernel_gs_base = cell::USER;
    state.rflags |= 0x200;
    rig.write(cell::USER, 0x5a5au64);
    let end = rig.run(&state);
    assert_eq!((end.gpr[gpr::RAX], end.gpr[gpr::RBX], end.gpr[8]), (0x1235, 0x5a5a, 2));
    assert_eq!(end.gpr[11] & 0x200, 0x200, "RFLAGS of the caller");
    assert_eq!((end.rflags & 0x200, end.segments.cs.dpl()), (0, 0));
    assert_eq!(end.msrs.kernel_gs_base, cell::USER);
}
