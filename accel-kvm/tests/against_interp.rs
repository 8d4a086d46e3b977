//! The same guest on KVM and on the interpreter: at the same points of its program both save the same state.
//!
//! Runs where KVM has hardware behind it, which is also in `cargo xtask kvm-lab`.

mod common;

use std::sync::{Arc, OnceLock};

use accel_api::x86::{CpuModel, CpuState, Feature};
use accel_api::{AccelError, Accelerator, Exit, GuestRam, Kick, VcpuConfig, VmSpec};
use common::hardware_kvm;
use iced_x86::code_asm::*;
use testkit::fake_bus::FakeBus;
use testkit::rig::{Rig, cell, map, sel};
use testkit::snippet::Asm;

/// Port whose OUT is a point of comparison.
const POINT: u32 = 0xe0;

fn point(a: &mut CodeAssembler) -> Asm {
    a.out(POINT, al)
}

fn wrmsr(a: &mut CodeAssembler, index: u32, value: u64) -> Asm {
    a.mov(ecx, index)?;
    a.mov(eax, value as u32)?;
    a.mov(edx, (value >> 32) as u32)?;
    a.wrmsr()
}

/// General registers and flags, vector and x87 registers.
fn computing(a: &mut CodeAssembler) -> Asm {
    a.mov(rax, 0x8877_6655_4433_2211u64)?;
    a.mov(rbx, 0x0f0f_0f0f_0f0f_0f0fu64)?;
    a.add(rbx, rax)?;
    a.adc(r8, rbx)?;
    a.imul_3(r9, rax, 77)?;
    a.std()?;
    point(a)?;
    a.cld()?;
    a.movq(xmm3, rax)?;
    a.punpcklqdq(xmm3, xmm3)?;
    a.cvtsi2sd(xmm4, rbx)?;
    a.sqrtsd(xmm5, xmm4)?;
    a.mov(dword_ptr(map::DATA), 0x3fa0)?;
    a.ldmxcsr(dword_ptr(map::DATA))?;
    point(a)?;
    a.fninit()?;
    a.fldpi()?;
    a.fld1()?;
    a.fdiv_2(st1, st0)?;
    a.mov(word_ptr(map::DATA), 0x027f)?;
    a.fldcw(word_ptr(map::DATA))?;
    point(a)
}

/// Segments, descriptor tables, control and debug registers.
fn system(a: &mut CodeAssembler) -> Asm {
    a.xor(eax, eax)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(eax, u32::from(sel::USER_DATA))?;
    a.mov(fs, eax)?;
    wrmsr(a, 0xc000_0100, 0x7fff_1234_5000)?; // FS base
    point(a)?;
    a.mov(eax, u32::from(sel::DATA))?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(rax, 0x1_2345_6789u64)?;
    a.mov(cr2, rax)?;
    a.mov(rax, cr4)?;
    a.or(rax, 1 << 7)?; // PGE
    a.mov(cr4, rax)?;
    a.mov(dr1, rbx)?;
    a.mov(eax, 0x0400)?;
    a.mov(dr7, rax)?;
    point(a)?;
    a.mov(word_ptr(map::DATA), 0x7ff)?;
    a.mov(qword_ptr(map::DATA + 2), map::IDT as i32)?;
    a.lidt(ptr(map::DATA))?;
    a.clts()?;
    point(a)
}

/// MSRs of all kinds: the processor's, held ones, the TSC's adjustment; IA32_SPEC_CTRL where there is one.
fn msrs(a: &mut CodeAssembler, spec_ctrl: bool) -> Asm {
    for (index, value) in [
        (0xc000_0081u32, 0x0023_0010_0000_0000u64),
        (0xc000_0082, 0xffff_8000_0000_1000),
        (0xc000_0084, 0x4_7700),
        (0xc000_0102, 0x7fff_0000_2000),
        (0xc000_0103, 5),
        (0x174, 8),
        (0x277, 0x0007_0106_0007_0406),
        (0x2ff, 0xc06),
        (0x1a0, 1),
    ] {
        wrmsr(a, index, value)?;
    }
    if spec_ctrl {
        wrmsr(a, 0x48, 1)?;
    }
    point(a)
}

/// The local APIC: priorities, requests, an interrupt in service, an NMI on its way.
fn interrupts(a: &mut CodeAssembler) -> Asm {
    a.mov(ebx, map::APIC as u32)?;
    a.mov(dword_ptr(rbx + 0x80), 0x20)?;
    a.mov(dword_ptr(rbx + 0x350), 0x1_0041)?;
    a.mov(dword_ptr(rbx + 0xd0), 0x0200_0000)?;
    // To itself: one below the priority, one above, the latter delivered and in service.
    a.mov(dword_ptr(rbx + 0x310), 0)?;
    a.mov(dword_ptr(rbx + 0x300), 0x4_0025)?;
    point(a)?;
    a.sti()?;
    a.mov(dword_ptr(rbx + 0x300), 0x4_0052)?;
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.cmp(dword_ptr(cell::COUNT), 1)?;
    a.jb(wait)?;
    a.cli()?;
    point(a)?;
    a.mov(dword_ptr(rbx + 0xb0), 0)?; // EOI
    a.mov(dword_ptr(rbx + 0x80), 0)?;
    point(a)
}

/// The states at each point; `spec_ctrl` tells whether IA32_SPEC_CTRL is written.
fn states(accel: &Arc<dyn Accelerator>, spec_ctrl: bool) -> Vec<CpuState> {
    let rig = Rig::new(accel);
    let kick: Arc<OnceLock<Arc<dyn Kick>>> = Arc::default();
    let kicked = kick.clone();
    rig.bus().on_out(POINT as u16, move |_| kicked.get().expect("bound").kick());
    rig.code(|a| {
        computing(a)?;
        system(a)?;
        msrs(a, spec_ctrl)?;
        interrupts(a)?;
        a.ud2()
    });
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    kick.set(runner.vcpu.kicker()).expect("set once");
    let mut states = Vec::new();
    while states.len() < 10 {
        assert_eq!(runner.step(), Exit::Kicked);
        let mut state = runner.save();
        if testkit::processor::is_emulated() {
            // QEMU's processor does not keep the x87 pointers.
            (state.fpu.fip, state.fpu.fdp, state.fpu.fop) = (0, 0, 0);
        }
        // A kick may be spurious; points are where OUT ends.
        if states.last().is_none_or(|last: &CpuState| last.rip != state.rip) {
            states.push(state);
        }
    }
    states
}

#[test]
fn states_are_the_same_at_the_same_points() {
    let Some(kvm) = hardware_kvm("states on KVM and on the interpreter") else { return };
    let interp = accel_interp::create().expect("the interpreter runs everywhere");
    // The processor's own on KVM, which not every processor has.
    let spec_ctrl = kvm.caps().features.has(Feature::SpecCtrl);
    let (on_kvm, on_interp) = (states(&kvm, spec_ctrl), states(&interp, spec_ctrl));
    for (n, (left, right)) in on_kvm.iter().zip(&on_interp).enumerate() {
        let differences: Vec<_> = left.diff(right).iter().map(ToString::to_string).collect();
        assert!(differences.is_empty(), "point {n}, KVM != interpreter: {differences:#?}");
    }
}

/// XCR0 and the upper halves of YMM registers, which the suite's model does not have.
#[test]
fn avx_state_survives() {
    let Some(kvm) = hardware_kvm("AVX state on KVM") else { return };
    let mut model = CpuModel::named("x86-64-v3", 1, testkit::rig::tsc_khz()).expect("a known model");
    model.fit(kvm.caps());
    let ram = Arc::new(GuestRam::new(&[(0, 0x1000)]).expect("RAM"));
    let vm = kvm.create_vm(&VmSpec { model: Arc::new(model), ram, vcpus: 1 }).expect("create_vm");
    let mut vcpu = vm.bind_vcpu(&VcpuConfig { id: 0 }, Arc::new(FakeBus::default())).expect("bind_vcpu");
    let mut state = CpuState::reset(0);
    state.control.cr4 |= 1 << 18; // OSXSAVE
    state.control.xcr0 = 7;
    state.fpu.ymm =
        std::array::from_fn(|n| std::array::from_fn(|lane| 0x1_0000 * n as u64 + lane as u64 + 1));
    state.fpu.xstate_bv = 7;
    vcpu.load(&state).expect("load");
    let mut saved = vcpu.save().expect("save");
    (saved.tsc_offset, state.tsc_offset) = (0, 0);
    state.normalise();
    saved.normalise();
    let differences: Vec<_> = state.diff(&saved).iter().map(ToString::to_string).collect();
    assert!(differences.is_empty(), "{differences:#?}");
    // Bits that the model does not have are the state's fault, not the host's.
    state.control.xcr0 = 0xe7;
    assert!(matches!(vcpu.load(&state), Err(AccelError::InvalidState(_))));
}
