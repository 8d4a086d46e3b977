//! What leaves straight code: port I/O, device memory, exceptions, the way into and out of a backend.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

mod rig;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use iced_x86::code_asm::*;
use machine::memory_map::DEVICE_HOLE;
use rig::{NOTHING, for_each_rig, on_each};

/// To a bus that does nothing: the backend's share of an access.
fn accesses(c: &mut Criterion) {
    let mut group = c.benchmark_group("exit");
    on_each(&mut group, "port write", NOTHING, &|a, _| a.out(0x80, al));
    on_each(&mut group, "port read", NOTHING, &|a, _| a.in_(al, 0x80));
    on_each(&mut group, "device memory write", NOTHING, &|a, _| {
        a.mov(esi, DEVICE_HOLE as u32)?;
        a.mov(dword_ptr(rsi), eax)
    });
    on_each(&mut group, "device memory read", NOTHING, &|a, _| {
        a.mov(esi, DEVICE_HOLE as u32)?;
        a.mov(eax, dword_ptr(rsi))
    });
    on_each(&mut group, "CPUID", NOTHING, &|a, _| {
        a.xor(eax, eax)?;
        a.cpuid()
    });
    group.finish();
}

/// UD2 and a handler that steps over it: delivery through the IDT at the same privilege level, and IRETQ.
fn exceptions(c: &mut Criterion) {
    const UD: u32 = 6;
    let mut group = c.benchmark_group("event");
    on_each(
        &mut group,
        "exception and IRETQ",
        &|a, rt| {
            let (mut over, mut handler) = (a.create_label(), a.create_label());
            a.mov(edi, UD)?;
            a.lea(rsi, ptr(handler))?;
            a.call(rt.set_gate)?;
            a.jmp(over)?;
            a.set_label(&mut handler)?;
            a.add(qword_ptr(rsp), 2)?;
            a.iretq()?;
            a.set_label(&mut over)?;
            a.nop()
        },
        &|a, _| a.ud2(),
    );
    group.finish();
}

/// A kick and a new `run`.
fn entry(c: &mut Criterion) {
    const NAME: &str = "leave by a kick and enter";
    let mut group = c.benchmark_group("entry");
    for_each_rig(NAME, NOTHING, &|a, _| a.nop(), |backend, mut rig| {
        group.bench_function(BenchmarkId::new(NAME, backend), |b| {
            b.iter_custom(|times| (0..times).map(|_| rig.rounds(1)).sum());
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = accesses, exceptions, entry
}
criterion_main!(benches);
