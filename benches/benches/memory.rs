//! Loads that the soft TLB knows, and loads that need a page walk.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

mod rig;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use guests::bare::layout::WORK;
use iced_x86::code_asm::*;
use rig::{NOTHING, on_each};

const LOADS: u32 = 4096;

/// Loads at a stride. At a page's, four thousand pages are more than the TLB holds; they are mapped by 2 MiB pages, so
/// a walk reads three levels.
fn loads(c: &mut Criterion) {
    let mut group = c.benchmark_group("load");
    group.throughput(Throughput::Elements(u64::from(LOADS)));
    for (name, stride) in [("TLB hit", 0), ("TLB miss and walk", 4096)] {
        on_each(&mut group, name, NOTHING, &|a, _| {
            let mut top = a.create_label();
            a.mov(rsi, WORK)?;
            a.mov(ecx, LOADS)?;
            a.set_label(&mut top)?;
            a.mov(rax, qword_ptr(rsi))?;
            a.add(rsi, stride)?;
            a.dec(ecx)?;
            a.jnz(top)
        });
    }
    group.finish();
}

/// A CR3 switch to the same tables, and one load after it.
fn flushes(c: &mut Criterion) {
    let mut group = c.benchmark_group("flush");
    on_each(&mut group, "CR3 write and a load", NOTHING, &|a, _| {
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.mov(rax, qword_ptr(WORK as u32))
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = loads, flushes
}
criterion_main!(benches);
