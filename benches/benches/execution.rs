//! Rates of decoding and of executing.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

mod rig;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::code_asm::*;
use rig::Rig;

/// Sixteen register instructions and the loop's two: nearly nothing but going from one to the next.
fn dispatch(c: &mut Criterion) {
    let mut group = c.benchmark_group("dispatch");
    group.throughput(Throughput::Elements(18));
    let mut alu = Rig::new(
        "interp",
        |_, _| Ok(()),
        |a, _| {
            for _ in 0..4 {
                a.add(rax, rbx)?;
                a.xor(rbx, rcx)?;
                a.lea(rcx, ptr(rax + rdx * 2 + 5))?;
                a.shr(rdx, 3)?;
            }
            Ok(())
        },
    );
    group.bench_function("alu loop", |b| b.iter_custom(|rounds| alu.rounds(rounds)));
    drop(group);

    let mut group = c.benchmark_group("blocks");
    group.throughput(Throughput::Elements(8));
    let mut jumps = Rig::new(
        "interp",
        |_, _| Ok(()),
        |a, _| {
            for _ in 0..8 {
                let mut next = a.create_label();
                a.jmp(next)?;
                a.int3()?;
                a.set_label(&mut next)?;
                a.nop()?;
            }
            Ok(())
        },
    );
    group.bench_function("linked jumps", |b| b.iter_custom(|rounds| jumps.rounds(rounds)));
    let mut calls = Rig::new(
        "interp",
        |_, _| Ok(()),
        |a, _| {
            let (mut over, mut callee) = (a.create_label(), a.create_label());
            for _ in 0..4 {
                a.call(callee)?;
            }
            a.jmp(over)?;
            a.set_label(&mut callee)?;
            a.ret()?;
            a.set_label(&mut over)?;
            a.nop()
        },
    );
    group.bench_function("calls and returns", |b| b.iter_custom(|rounds| calls.rounds(rounds)));
    group.finish();
}

/// A store into a page of code makes its next execution decode it again. The difference of the two is the price of
/// dropping and decoding.
fn decode(c: &mut Criterion) {
    const INSTRUCTIONS: u32 = 900;
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(u64::from(INSTRUCTIONS)));
    for (name, stale) in [("decoded before", false), ("decoded every time", true)] {
        let mut rig = Rig::new(
            "interp",
            |_, _| Ok(()),
            |a, _| {
                let (mut over, mut code) = (a.create_label(), a.create_label());
                if stale {
                    // What is there already.
                    a.mov(al, byte_ptr(code))?;
                    a.mov(byte_ptr(code), al)?;
                }
                a.call(code)?;
                a.jmp(over)?;
                // A page of its own: the loop around it stays decoded. Less than a page of 4-byte forms follows.
                a.db(&[0xcc; 4096])?;
                a.set_label(&mut code)?;
                for n in 0..INSTRUCTIONS / 6 {
                    a.add(rax, rbx)?;
                    a.mov(ecx, dword_ptr(rsp + (n % 8) * 4))?;
                    a.imul_2(rdx, rcx)?;
                    a.movzx(esi, cl)?;
                    a.cmp(rax, rdx)?;
                    a.cmovb(rdi, rax)?;
                }
                a.ret()?;
                a.db(&[0xcc; 4096])?;
                a.set_label(&mut over)?;
                a.nop()
            },
        );
        group.bench_function(name, |b| b.iter_custom(|rounds| rig.rounds(rounds)));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = dispatch, decode
}
criterion_main!(benches);
