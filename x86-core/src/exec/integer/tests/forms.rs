//! Operand forms: the stack, addresses, segments, locked accesses, features.

use std::sync::Arc;

use accel_api::x86::{Feature, gpr};

use crate::Fault;
use crate::alu::flag;
use crate::cpu::seg;
use crate::mode::Mode;
use crate::testing::{cpu, peek, poke, run};

#[test]
fn push_and_pop_keep_to_the_order_of_the_manual() {
    // Intel SDM vol. 2B, PUSH and POP.
    let mut c = cpu(Mode::Long);
    c.gpr[gpr::RSP] = 0x8000;
    run(&mut c, &[0x54]).unwrap(); // push rsp: the old value
    assert_eq!(c.gpr[gpr::RSP], 0x7ff8);
    assert_eq!(peek(&mut c, 0x7ff8, 8), 0x8000u64.to_le_bytes());
    run(&mut c, &[0x8f, 0x04, 0x24]).unwrap(); // pop [rsp]: the incremented address
    assert_eq!(c.gpr[gpr::RSP], 0x8000);
    assert_eq!(peek(&mut c, 0x8000, 8), 0x8000u64.to_le_bytes());
    poke(&mut c, 0x8000, &0x1234_5678u64.to_le_bytes());
    run(&mut c, &[0x5c]).unwrap(); // pop rsp: the value read
    assert_eq!(c.gpr[gpr::RSP], 0x1234_5678);
    c.gpr[gpr::RSP] = 0x8000;
    run(&mut c, &[0x6a, 0xff]).unwrap(); // push -1
    assert_eq!(peek(&mut c, 0x7ff8, 8), [0xff; 8]);
    run(&mut c, &[0x66, 0x68, 0x34, 0x12]).unwrap(); // push imm16
    assert_eq!((c.gpr[gpr::RSP], peek(&mut c, 0x7ff6, 2)), (0x7ff6, vec![0x34, 0x12]));
    run(&mut c, &[0x66, 0x41, 0x58]).unwrap(); // pop r8w
    assert_eq!((c.gpr[8], c.gpr[gpr::RSP]), (0x1234, 0x7ff8));
    run(&mut c, &[0xff, 0x34, 0x24]).unwrap(); // push [rsp]
    assert_eq!(peek(&mut c, 0x7ff0, 8), [0xff; 8]);
    c.segs[seg::FS].selector = 0xabcd;
    run(&mut c, &[0x0f, 0xa0]).unwrap(); // push fs
    assert_eq!(peek(&mut c, 0x7fe8, 8), 0xabcdu64.to_le_bytes());
}

#[test]
fn the_stack_has_its_own_width() {
    // A 16-bit stack wraps in SP and leaves the rest of ESP; operand size is another matter (SDM vol. 1, 6.2.3).
    let mut c = cpu(Mode::Protected16);
    c.gpr[gpr::RSP] = 0xabcd_0002;
    c.gpr[gpr::RAX] = 0x1122_3344;
    run(&mut c, &[0x66, 0x50]).unwrap(); // push eax
    assert_eq!(c.gpr[gpr::RSP], 0xabcd_fffe);
    assert_eq!(peek(&mut c, 0xfffe, 4), [0x44, 0x33, 0x22, 0x11]);
    let mut c = cpu(Mode::Protected32);
    c.gpr[gpr::RSP] = 0x1_0000;
    run(&mut c, &[0x66, 0x50]).unwrap(); // push ax
    assert_eq!(c.gpr[gpr::RSP], 0xfffe);
}

#[test]
fn pusha_and_popa() {
    for (mode, prefix, size) in [(Mode::Real, 0x66, 4), (Mode::Real, 0x90, 2), (Mode::Protected32, 0x90, 4)] {
        let mut c = cpu(mode);
        let code = |opcode: u8| if prefix == 0x66 { vec![0x66, opcode] } else { vec![opcode] };
        for i in 0..8 {
            c.gpr[i] = 0x1111 * (i as u64 + 1);
        }
        c.gpr[gpr::RSP] = 0x8000;
        let before = c.gpr;
        run(&mut c, &code(0x60)).unwrap();
        assert_eq!(c.gpr[gpr::RSP], 0x8000 - 8 * size);
        assert_eq!(peek(&mut c, 0x8000 - size, 2), [0x11, 0x11]);
        assert_eq!(peek(&mut c, 0x8000 - 5 * size, 2), [0x00, 0x80], "SP as it was");
        c.gpr[..8].iter_mut().enumerate().filter(|(i, _)| *i != gpr::RSP).for_each(|(_, g)| *g = 0);
        run(&mut c, &code(0x61)).unwrap();
        assert_eq!(c.gpr, before);
    }
}

#[test]
fn addresses_wrap_in_their_size() {
    let mut c = cpu(Mode::Long);
    c.gpr[gpr::RAX] = 0xffff_ffff_ffff_fff0;
    run(&mut c, &[0x67, 0x48, 0x8d, 0x48, 0x20]).unwrap(); // lea rcx, [eax+0x20]
    assert_eq!(c.gpr[gpr::RCX], 0x10);
    run(&mut c, &[0x48, 0x8d, 0x48, 0x20]).unwrap(); // lea rcx, [rax+0x20]
    assert_eq!(c.gpr[gpr::RCX], 0x10);
    run(&mut c, &[0x8d, 0x48, 0xff]).unwrap(); // lea ecx, [rax-1]
    assert_eq!(c.gpr[gpr::RCX], 0xffff_ffef);
    let mut c = cpu(Mode::Real);
    (c.gpr[gpr::RBX], c.gpr[gpr::RSI], c.gpr[gpr::RCX]) = (0xfff0, 0x20, 0xdead_0000);
    run(&mut c, &[0x8d, 0x08]).unwrap(); // lea cx, [bx+si]
    assert_eq!(c.gpr[gpr::RCX], 0xdead_0010);
    (c.gpr[gpr::RBX], c.gpr[gpr::RAX]) = (0x2000, 0xff80);
    poke(&mut c, 0x2080, &[0x77]);
    run(&mut c, &[0xd7]).unwrap(); // xlat: AL is unsigned
    assert_eq!(c.gpr[gpr::RAX], 0xff77);
}

#[test]
fn absolute_moves_and_segments() {
    let mut c = cpu(Mode::Long);
    poke(&mut c, 0x3000, &[1, 2, 3, 4, 5, 6, 7, 8]);
    run(&mut c, &[0x48, 0xa1, 0, 0x30, 0, 0, 0, 0, 0, 0]).unwrap(); // mov rax, [moffs64]
    assert_eq!(c.gpr[gpr::RAX], 0x0807_0605_0403_0201);
    c.segs[seg::GS].base = 0x3002;
    run(&mut c, &[0x65, 0x67, 0x8b, 0x04, 0x25, 1, 0, 0, 0]).unwrap(); // mov eax, gs:[1]
    assert_eq!(c.gpr[gpr::RAX], 0x0706_0504);
    run(&mut c, &[0x67, 0xa2, 0x10, 0x30, 0, 0]).unwrap(); // mov [moffs32], al
    assert_eq!(peek(&mut c, 0x3010, 2), [4, 0]);
    let mut c = cpu(Mode::Real);
    c.segs[seg::DS].base = 0x3000;
    poke(&mut c, 0x3ffe, &[0xcd, 0xab]);
    run(&mut c, &[0xa1, 0xfe, 0x0f]).unwrap(); // mov ax, [moffs16]
    assert_eq!(c.gpr[gpr::RAX], 0xabcd);
    c.segs[seg::DS].selector = 0x1357;
    c.gpr[gpr::RCX] = u64::MAX;
    run(&mut c, &[0x8c, 0xd9]).unwrap(); // mov cx, ds
    assert_eq!(c.gpr[gpr::RCX], 0xffff_ffff_ffff_1357);
    run(&mut c, &[0x66, 0x8c, 0xd9]).unwrap(); // mov ecx, ds
    assert_eq!(c.gpr[gpr::RCX], 0x1357);
    poke(&mut c, 0x3100, &[0xff; 4]);
    run(&mut c, &[0x66, 0x8c, 0x1e, 0x00, 0x01]).unwrap(); // mov [0x100], ds: always 16 bits
    assert_eq!(peek(&mut c, 0x3100, 4), [0x57, 0x13, 0xff, 0xff]);
}

#[test]
fn locked_operations_work_across_pages() {
    let mut c = cpu(Mode::Long);
    for lock in [&[][..], &[0xf0]] {
        poke(&mut c, 0x2ffe, &0xffff_fffeu32.to_le_bytes());
        c.gpr[gpr::RDI] = 0x2ffe;
        c.gpr[gpr::RCX] = 3;
        run(&mut c, &[lock, &[0x01, 0x0f]].concat()).unwrap(); // add [rdi], ecx
        assert_eq!(peek(&mut c, 0x2ffe, 4), [1, 0, 0, 0]);
        assert!(c.flags.cf());
        run(&mut c, &[lock, &[0x0f, 0xc1, 0x0f]].concat()).unwrap(); // xadd [rdi], ecx
        assert_eq!((peek(&mut c, 0x2ffe, 4), c.gpr[gpr::RCX]), (vec![4, 0, 0, 0], 1));
        run(&mut c, &[0x87, 0x0f]).unwrap(); // xchg [rdi], ecx
        assert_eq!((peek(&mut c, 0x2ffe, 4), c.gpr[gpr::RCX]), (vec![1, 0, 0, 0], 4));
        c.gpr[gpr::RAX] = 1;
        run(&mut c, &[lock, &[0x0f, 0xb1, 0x0f]].concat()).unwrap(); // cmpxchg [rdi], ecx
        assert_eq!(peek(&mut c, 0x2ffe, 4), [4, 0, 0, 0]);
        assert!(c.flags.zf());
        run(&mut c, &[lock, &[0x0f, 0xba, 0x2f, 31]].concat()).unwrap(); // bts [rdi], 31
        assert_eq!(peek(&mut c, 0x2ffe, 4), [4, 0, 0, 0x80]);
        // cmpxchg8b, whose operand need not be aligned
        c.gpr[gpr::RDI] = 0x2ffc;
        poke(&mut c, 0x2ffc, &[1, 0, 0, 0, 2, 0, 0, 0]);
        (c.gpr[gpr::RAX], c.gpr[gpr::RDX], c.gpr[gpr::RBX]) = (1, 2, 0xff);
        run(&mut c, &[lock, &[0x0f, 0xc7, 0x0f]].concat()).unwrap();
        assert!(c.flags.zf());
        assert_eq!(peek(&mut c, 0x2ffc, 8), [0xff, 0, 0, 0, 4, 0, 0, 0]);
    }
}

#[test]
fn locked_increments_of_two_processors_are_all_counted() {
    use crate::{Ea, testing::RAM_SIZE};
    let mut first = cpu(Mode::Long);
    // A second processor on the same RAM, in a VM of two: who waits to be alone is woken by the other.
    let mut second = cpu(Mode::Long);
    second.map = first.map.clone();
    second.tlb.flush_all();
    let vm = crate::shared::VmShared::new(first.vm.flags.clone(), 2);
    for (id, cpu) in (0..).zip([&mut first, &mut second]) {
        (cpu.vm, cpu.shared, cpu.id) = (vm.clone(), vm.vcpus[id as usize].clone(), id);
    }
    let at = RAM_SIZE - 8;
    const EACH: u64 = 20_000;
    let count = |c: &mut crate::Cpu| {
        // lock inc qword [rdi]; lock add on a word across two pages
        let add = [0xf0, 0x48, 0xff, 0x07];
        c.gpr[gpr::RDI] = at;
        let decoded = iced_x86::Decoder::with_ip(64, &add, 0x1000, 0).decode();
        let split = iced_x86::Decoder::with_ip(64, &[0xf0, 0x66, 0xff, 0x06], 0x1000, 0).decode();
        c.gpr[gpr::RSI] = 0x4fff;
        for _ in 0..EACH {
            crate::exec::lookup(decoded.code())(c, &decoded).unwrap();
            crate::exec::lookup(split.code())(c, &split).unwrap();
        }
    };
    struct Sendable(Box<crate::Cpu>);
    // The pointers in a `Cpu` lead to its own TLB and to RAM that outlives the scope.
    #[allow(unsafe_code)] // a vCPU is made on one thread and run on another
    // SAFETY: only one thread uses it at a time.
    unsafe impl Send for Sendable {}
    let mut other = Sendable(second);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let whole = &mut other;
            count(&mut whole.0);
        });
        count(&mut first);
    });
    assert_eq!(first.load::<u64>(Ea::data(at)), Ok(2 * EACH));
    assert_eq!(first.load::<u16>(Ea::data(0x4fff)), Ok((2 * EACH) as u16));
}

#[test]
fn features_gate_instructions() {
    let mut c = cpu(Mode::Long);
    let with = |list: &[Feature], without: &[Feature]| {
        let mut model = (*cpu(Mode::Long).model).clone();
        model.features = model.features.without(without).with(list);
        Arc::new(model)
    };
    use Feature::*;
    let gated: &[(&[u8], Feature)] = &[
        (&[0xc4, 0xe2, 0x78, 0xf2, 0xc1], Bmi1),    // andn
        (&[0xc4, 0xe2, 0x7b, 0xf6, 0xc1], Bmi2),    // mulx
        (&[0xc4, 0xe3, 0x7b, 0xf0, 0xc1, 3], Bmi2), // rorx
        (&[0x66, 0x0f, 0x38, 0xf6, 0xc1], Adx),     // adcx
        (&[0x0f, 0x38, 0xf0, 0x07], Movbe),         // movbe eax, [rdi]
        (&[0x0f, 0xc7, 0xf0], Rdrand),              // rdrand eax
        (&[0x48, 0x0f, 0xc7, 0xf8], Rdseed),        // rdseed rax
        (&[0xf3, 0x0f, 0xc7, 0xf8], Rdpid),         // rdpid rax
        (&[0xf3, 0x0f, 0xb8, 0xc1], Popcnt),        // popcnt
        (&[0xf2, 0x0f, 0x38, 0xf1, 0xc1], Sse42),   // crc32
        (&[0x48, 0x0f, 0xc7, 0x0f], Cx16),          // cmpxchg16b
    ];
    for (code, feature) in gated {
        c.gpr[gpr::RDI] = 0x2000;
        c.model = with(&[], &[*feature]);
        assert_eq!(run(&mut c, code), Err(Fault::UD), "{feature:?}");
        c.model = with(&[*feature], &[]);
        let host = !matches!(feature, Bmi1 | Bmi2 | Cx16 | Sse42) || crate::alu::bit::host_has(*feature);
        assert_eq!(run(&mut c, code).is_ok(), host, "{feature:?}");
    }
    // Without BMI1 and ABM the prefix of TZCNT and LZCNT means nothing: BSF and BSR (SDM vol. 2B, TZCNT).
    c.model = with(&[], &[Bmi1, Abm]);
    (c.gpr[gpr::RCX], c.gpr[gpr::RAX]) = (0, 0x77);
    run(&mut c, &[0xf3, 0x48, 0x0f, 0xbc, 0xc1]).unwrap();
    assert_eq!((c.gpr[gpr::RAX], c.flags.zf()), (0x77, true));
    c.gpr[gpr::RCX] = 0x100;
    run(&mut c, &[0xf3, 0x48, 0x0f, 0xbd, 0xc1]).unwrap();
    assert_eq!((c.gpr[gpr::RAX], c.flags.zf()), (8, false));
    if crate::alu::bit::host_has(Abm) {
        c.model = with(&[Abm], &[]);
        run(&mut c, &[0xf3, 0x48, 0x0f, 0xbd, 0xc1]).unwrap();
        assert_eq!(c.gpr[gpr::RAX], 55);
    }
}

#[test]
fn random_numbers_come_with_carry_and_differ() {
    let mut c = cpu(Mode::Long);
    Arc::make_mut(&mut c.model).features = c.model.features.with(&[Feature::Rdrand, Feature::Rdpid]);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..32 {
        c.set_rflags(flag::ARITH);
        run(&mut c, &[0x48, 0x0f, 0xc7, 0xf0]).unwrap();
        assert_eq!(c.flags.to_rflags(), flag::CF);
        seen.insert(c.gpr[gpr::RAX]);
    }
    assert!(seen.len() > 30);
    c.msrs.tsc_aux = 0x8765_4321;
    c.gpr[gpr::RAX] = u64::MAX;
    run(&mut c, &[0xf3, 0x0f, 0xc7, 0xf8]).unwrap();
    assert_eq!(c.gpr[gpr::RAX], 0x8765_4321);
}
