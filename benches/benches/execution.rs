//! Rates of decoding, or translating, and of executing.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

mod rig;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::code_asm::*;
use rig::{NOTHING, on_each};

/// Sixteen register instructions and the loop's two: nearly nothing but going from one to the next.
fn dispatch(c: &mut Criterion) {
    let mut group = c.benchmark_group("dispatch");
    group.throughput(Throughput::Elements(18));
    on_each(&mut group, "alu loop", NOTHING, &|a, _| {
        for _ in 0..4 {
            a.add(rax, rbx)?;
            a.xor(rbx, rcx)?;
            a.lea(rcx, ptr(rax + rdx * 2 + 5))?;
            a.shr(rdx, 3)?;
        }
        Ok(())
    });
    drop(group);

    let mut group = c.benchmark_group("blocks");
    group.throughput(Throughput::Elements(8));
    on_each(&mut group, "linked jumps", NOTHING, &|a, _| {
        for _ in 0..8 {
            let mut next = a.create_label();
            a.jmp(next)?;
            a.int3()?;
            a.set_label(&mut next)?;
            a.nop()?;
        }
        Ok(())
    });
    on_each(&mut group, "calls and returns", NOTHING, &|a, _| {
        let (mut over, mut callee) = (a.create_label(), a.create_label());
        for _ in 0..4 {
            a.call(callee)?;
        }
        a.jmp(over)?;
        a.set_label(&mut callee)?;
        a.ret()?;
        a.set_label(&mut over)?;
        a.nop()
    });
    group.finish();
}

/// A store into a page of code makes a software backend decode, or translate, it again at its next execution. The
/// difference of the two is the price of that. On KVM, where there is nothing to decode, it is that of the store.
fn decode(c: &mut Criterion) {
    const INSTRUCTIONS: u32 = 900;
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(u64::from(INSTRUCTIONS)));
    for (name, stale) in [("decoded before", false), ("decoded every time", true)] {
        on_each(&mut group, name, NOTHING, &|a, _| {
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
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = dispatch, decode
}
criterion_main!(benches);
