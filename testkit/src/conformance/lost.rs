//! Guest RAM that the host cannot give when it is needed: the VM's vCPU fails, its process and other VMs go on.

use std::fs::File;
use std::sync::Arc;

use accel_api::Accelerator;
use accel_api::x86::gpr;
use iced_x86::code_asm::*;

use crate::fake_bus::Event;
use crate::rig::{Rig, map};
use crate::snippet::{Asm, stay};

/// Takes all pages but those of low RAM away, as a host does that has none left.
fn starve(rig: &Rig) {
    let file = File::from(rig.ram.fd().try_clone_to_owned().expect("a descriptor"));
    file.set_len(map::RAM_END).expect("set_len");
}

/// The guest's first access to such a page is its last.
fn fails(accel: &Arc<dyn Accelerator>, what: &str, body: impl Fn(&mut CodeAssembler) -> Asm) {
    let rig = Rig::new(accel);
    rig.code(|a| {
        a.mov(rbx, map::HIGH)?;
        body(a)?;
        // Not reached in time; to be interrupted all the same.
        stay(a)
    });
    starve(&rig);
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    let error = runner.vcpu.run().expect_err(what).to_string();
    assert!(error.contains("guest RAM"), "{what}: {error}");
    if accel.caps().exact {
        assert_eq!(rig.ram.loss().map(|gpa| gpa & !0xfff), Some(map::HIGH), "{what}");
    }
    assert!(runner.vcpu.run().is_err(), "{what}: for good");
}

/// Loads, stores and all else that reaches RAM.
pub fn accesses(accel: &Arc<dyn Accelerator>) {
    let bystander = Rig::new(accel);
    bystander.code(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 100)?;
        a.mov(rbx, map::HIGH)?;
        a.set_label(&mut top)?;
        a.inc(qword_ptr(rbx))?;
        a.dec(ecx)?;
        a.jnz(top)
    });
    fails(accel, "load", |a| a.mov(rax, qword_ptr(rbx)));
    fails(accel, "store", |a| a.mov(qword_ptr(rbx), rax));
    fails(accel, "vector load", |a| a.movups(xmm0, xmmword_ptr(rbx + 1)));
    fails(accel, "across pages", |a| a.mov(qword_ptr(rbx + 0xffc), rax));
    fails(accel, "locked", |a| a.lock().xadd(dword_ptr(rbx), eax));
    fails(accel, "string", |a| {
        a.mov(rdi, rbx)?;
        a.mov(ecx, 0x400)?;
        a.rep().stosq()
    });
    fails(accel, "stack", |a| {
        a.lea(rsp, ptr(rbx + 8))?;
        a.push(rax)
    });
    fails(accel, "code", |a| a.jmp(rbx));
    fails(accel, "page tables", |a| a.mov(cr3, rbx));
    bystander.run_long();
    assert_eq!(bystander.read::<u64>(map::HIGH), 100);
}

/// A device reads and writes RAM on the vCPU's thread.
pub fn by_a_device(accel: &Arc<dyn Accelerator>) {
    let rig = Arc::new(Rig::new(accel));
    let weak = Arc::downgrade(&rig);
    rig.bus().on_event(move |event| {
        if matches!(event, Event::PioWrite { .. }) {
            weak.upgrade().expect("alive").write(map::HIGH + 8, 5u64);
        }
    });
    rig.code(|a| {
        a.mov(ecx, 1)?;
        a.out(0xe0u32, al)?;
        stay(a)
    });
    starve(&rig);
    let mut runner = rig.vcpu(0, &rig.long_mode(0));
    let error = runner.vcpu.run().expect_err("the device's access").to_string();
    assert!(error.contains("guest RAM at 0x100000008"), "{error}");
    assert_eq!(runner.save().gpr[gpr::RCX], 1);
}
