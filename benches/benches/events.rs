//! What leaves straight code: port I/O, device memory, exceptions, the way into and out of a backend.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

mod rig;

use criterion::{Criterion, criterion_group, criterion_main};
use iced_x86::code_asm::*;
use machine::memory_map::DEVICE_HOLE;
use rig::Rig;

/// To a bus that does nothing: the backend's share of an access.
fn accesses(c: &mut Criterion) {
    let mut port = Rig::new("interp", |_, _| Ok(()), |a, _| a.out(0x80, al));
    c.bench_function("port write", |b| b.iter_custom(|rounds| port.rounds(rounds)));
    let mut device = Rig::new(
        "interp",
        |_, _| Ok(()),
        |a, _| {
            a.mov(esi, DEVICE_HOLE as u32)?;
            a.mov(eax, dword_ptr(rsi))
        },
    );
    c.bench_function("device memory read", |b| b.iter_custom(|rounds| device.rounds(rounds)));
}

/// UD2 and a handler that steps over it: delivery through the IDT at the same privilege level, and IRETQ.
fn exceptions(c: &mut Criterion) {
    const UD: u32 = 6;
    let mut rig = Rig::new(
        "interp",
        |a, rt| {
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
        |a, _| a.ud2(),
    );
    c.bench_function("exception and IRETQ", |b| b.iter_custom(|rounds| rig.rounds(rounds)));
}

/// A kick and a new `run`.
fn entry(c: &mut Criterion) {
    let mut rig = Rig::new("interp", |_, _| Ok(()), |a, _| a.nop());
    c.bench_function("leave by a kick and enter", |b| {
        b.iter_custom(|times| (0..times).map(|_| rig.rounds(1)).sum());
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = accesses, exceptions, entry
}
criterion_main!(benches);
