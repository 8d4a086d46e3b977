//! Accesses of loops, which keep their translations.

use accel_api::x86::gpr;
use iced_x86::code_asm::*;
use testkit::snippet::{Asm, assemble};
use x86_core::soft::Executor as _;
use x86_core::testing::blocks::{Pair, Program, SCENES, Scene};
use x86_core::{Cpu, vector};

use super::{check, config};
use crate::dispatch::Dispatcher;
use crate::host::HostCpu;

/// A loop whose accesses take and leave flags: `top: body; lea rbx, [rbx + stride]; dec ecx; jnz top`.
fn looping(stride: i32, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Vec<u8> {
    assemble(64, 0, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        body(a)?;
        a.lea(rbx, ptr(rbx + stride))?;
        a.dec(ecx)?;
        a.jnz(top)
    })
}

const TURNS: u64 = 20;

fn at(scene: &Scene, offset: u64) -> impl Fn(&mut Cpu) {
    let to = scene.data.wrapping_add(offset);
    move |cpu| {
        for register in [gpr::RBX, 10, 11, gpr::RSI] {
            cpu.gpr[register] = to;
        }
        (cpu.gpr[gpr::RCX], cpu.gpr[gpr::RDI]) = (TURNS, 3);
    }
}

/// Forms of addresses, R10 and R11 in them, and as operands; flags that live across the access.
#[test]
fn forms() {
    type Body = fn(&mut CodeAssembler) -> Asm;
    let bodies: [Body; 12] = [
        |a| a.add(rax, qword_ptr(rbx)),
        |a| a.adc(rdx, qword_ptr(rbx + rdi * 8 + 16)),
        |a| a.mov(qword_ptr(rbx + rdi * 2), rdx),
        |a| a.adc(byte_ptr(rsi + rdi), al),
        |a| a.mov(qword_ptr(r11 + rdi * 8), rax),
        |a| a.mov(rax, qword_ptr(r10 + rdi * 8)),
        |a| a.sbb(r10d, dword_ptr(rbx + 8)),
        |a| a.mov(r11w, word_ptr(rbx + rdi)),
        |a| a.xadd(qword_ptr(rbx), r11),
        |a| a.mov(eax, dword_ptr(64).fs()),
        |a| a.movzx(r10d, byte_ptr(rbx + rdi)),
        |a| a.mov(eax, dword_ptr(rdi * 8 + 64).fs()),
    ];
    let old = HostCpu { bmi2: false, ..HostCpu::detect() };
    for scene in &SCENES {
        for (n, body) in bodies.iter().enumerate() {
            let code = looping(8, |a| {
                a.cmp(rdx, rax)?;
                body(a)?;
                a.setb(dl)?;
                a.adc(rdx, 5)
            });
            assert_eq!(check(scene, &code, at(scene, 0x100)), Ok(()), "{n}");
            let mut pair = Pair::<Dispatcher>::new(scene, &config(old));
            let end = pair.check("old", &Program::new(0, &code), 1, &at(scene, 0x100));
            assert_eq!(end, Some(Ok(())), "{n}");
        }
    }
}

/// From page to page, across their ends, to a page that cannot be written, to addresses that are not canonical.
#[test]
fn misses() {
    let read = |stride| looping(stride, |a| a.adc(rax, qword_ptr(rbx)));
    let write = |stride| looping(stride, |a| a.adc(qword_ptr(rbx), rax));
    for scene in &SCENES {
        for (stride, offset) in [(0x100, 0), (0x200, 7), (1, 0xff0), (3, 0x1ff0), (-0x200, 0x2f00)] {
            assert_eq!(check(scene, &read(stride), at(scene, offset)), Ok(()), "{stride:#x}");
        }
        for (stride, offset) in [(0x100, 0x3), (1, 0xff0)] {
            assert_eq!(check(scene, &write(stride), at(scene, offset)), Ok(()), "{stride:#x}");
        }
        let not_writable = check(scene, &write(8), at(scene, 0x1fc0));
        assert_eq!(not_writable.map_err(|fault| fault.vector()), Err(vector::PF));
        // Among them the page that stands for none.
        for page in [1u64 << 48, (1 << 48) + 0xff8, 1 << 47, u64::MAX << 47, 1 << 63] {
            let to = page.wrapping_sub(scene.data);
            for code in [read(8), write(8)] {
                let end = check(scene, &code, at(scene, to));
                assert!(end.is_err(), "{page:#x}");
            }
        }
    }
}

/// Counters of a loop that is run some hundred times.
fn counters(scene: &Scene, stride: i32, offset: u64) -> (u64, u64) {
    let mut pair = Pair::<Dispatcher>::new(scene, &config(HostCpu::detect()));
    let program = Program::new(0, &looping(stride, |a| a.adc(rax, qword_ptr(rbx))));
    for _ in 0..200 {
        assert_eq!(pair.check("by hand", &program, 1, &at(scene, offset)), Some(Ok(())));
    }
    let counter = |name: &str| {
        pair.executor().counters().iter().find(|(other, _)| *other == name).expect("a counter").1
    };
    (counter("inline_tlb_refills"), counter("tlb_misses"))
}

/// An access that stays in its page is filled once; one that changes pages, each time, but never by Rust.
#[test]
fn entries_are_filled_by_host_code() {
    let (stays, wanders) = (counters(&SCENES[0], 8, 0), counters(&SCENES[0], 0x180, 0));
    assert_eq!(stays.0, 0, "{stays:?}");
    assert!(wanders.0 > 500 && wanders.1 < 900, "{wanders:?}");
}
