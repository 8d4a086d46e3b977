//! Ports and memory-mapped registers: each access reaches the bus once, in order, with its size.

use std::sync::Arc;

use accel_api::x86::gpr;
use accel_api::{Accelerator, IoSize};
use iced_x86::code_asm::*;

use crate::fake_bus::{Event, pattern};
use crate::rig::{Rig, map};
use crate::snippet::faulting;

use Event::{MmioRead, MmioWrite, PioRead, PioWrite};
use IoSize::{Byte, Dword, Qword, Word};

/// The accesses of the log as (write, address, size, value).
fn mmio(log: &[Event]) -> Vec<(bool, u64, usize, u64)> {
    let one = |e: &Event| match *e {
        MmioRead { gpa, size } => (false, gpa, size.bytes(), 0),
        MmioWrite { gpa, size, value } => (true, gpa, size.bytes(), value),
        other => panic!("{other:x?} is no MMIO"),
    };
    log.iter().map(one).collect()
}

/// Joins consecutive pieces of an access, which a backend may split as it likes: (write, address, bytes).
fn joined(log: &[Event]) -> Vec<(bool, u64, Vec<u8>)> {
    let mut out: Vec<(bool, u64, Vec<u8>)> = Vec::new();
    for (write, gpa, size, value) in mmio(log) {
        let bytes = &value.to_le_bytes()[..size];
        match out.last_mut() {
            Some((w, at, have)) if *w == write && *at + have.len() as u64 == gpa => have.extend(bytes),
            _ => out.push((write, gpa, bytes.to_vec())),
        }
    }
    out
}

/// IN and OUT in all sizes, by immediate and by DX; IN EAX clears the upper half of RAX, smaller ones do not.
pub fn ports(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.bus().answer_pio(0x71, 0xa5);
    rig.bus().answer_pio(0x1234, 0xbeef);
    rig.bus().answer_pio(0xcfc, 0x8765_4321);
    rig.code(|a| {
        a.mov(rax, 0x1111_1111_1111_1111u64)?;
        a.out(0x70u32, al)?;
        a.in_(al, 0x71)?;
        a.mov(r8, rax)?;
        a.mov(edx, 0x1234)?;
        a.in_(ax, dx)?;
        a.mov(r9, rax)?;
        a.mov(edx, 0xcfc)?;
        a.in_(eax, dx)?;
        a.mov(r10, rax)?;
        a.out(dx, ax)?;
        a.mov(edx, 0xffff)?;
        a.out(dx, eax)
    });
    let end = rig.run_long();
    assert_eq!(end.gpr[8..11], [0x1111_1111_1111_11a5, 0x1111_1111_1111_beef, 0x8765_4321]);
    assert_eq!(
        rig.bus().take_log(),
        [
            PioWrite { port: 0x70, size: Byte, value: 0x11 },
            PioRead { port: 0x71, size: Byte },
            PioRead { port: 0x1234, size: Word },
            PioRead { port: 0xcfc, size: Dword },
            PioWrite { port: 0xcfc, size: Word, value: 0x4321 },
            PioWrite { port: 0xffff, size: Dword, value: 0x8765_4321 },
        ]
    );
}

/// INS and OUTS, with and without REP, both directions (Intel SDM vol. 2, INS, OUTS).
pub fn string_ports(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    for n in 0..4 {
        rig.bus().answer_pio(0x1f0, 0x100 + n);
    }
    rig.bytes(map::DATA + 0xffe, b"hello");
    rig.write(map::DATA + 0x100, [0x1122_3344u32, 0x5566_7788].map(u64::from)[1] << 32 | 0x1122_3344);
    rig.code(|a| {
        a.mov(esi, (map::DATA + 0xffe) as u32)?;
        a.mov(edx, 0x3f8)?;
        a.mov(ecx, 5)?;
        a.rep().outsb()?;
        a.mov(r8, rsi)?;
        a.mov(edx, 0x1f0)?;
        a.mov(edi, (map::DATA + 0x2ffd) as u32)?;
        a.mov(ecx, 3)?;
        a.rep().insw()?;
        a.insw()?;
        a.mov(r9, rdi)?;
        a.std()?;
        a.mov(esi, (map::DATA + 0x104) as u32)?;
        a.mov(ecx, 2)?;
        a.rep().outsd()?;
        a.cld()
    });
    let end = rig.run_long();
    assert_eq!((end.gpr[8], end.gpr[9], end.gpr[gpr::RCX]), (map::DATA + 0x1003, map::DATA + 0x3005, 0));
    assert_eq!(rig.read::<u64>(map::DATA + 0x2ffd), 0x0103_0102_0101_0100);
    let mut expected: Vec<_> =
        b"hello".iter().map(|b| PioWrite { port: 0x3f8, size: Byte, value: (*b).into() }).collect();
    expected.extend([PioRead { port: 0x1f0, size: Word }; 4]);
    expected.extend([0x5566_7788, 0x1122_3344].map(|value| PioWrite { port: 0x1f0, size: Dword, value }));
    assert_eq!(rig.bus().take_log(), expected);
}

/// A REP INS whose destination faults stops there: registers say how far it came, and it goes on after the fault is
/// mended. No port access is lost or doubled.
pub fn string_port_fault(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.map_page(map::DATA + 0x1000, 0);
    rig.code(|a| {
        a.mov(edx, 0x80)?;
        a.mov(edi, (map::DATA + 0xffc) as u32)?;
        a.mov(ecx, 8)?;
        faulting(a, |a| a.rep().insb())?;
        a.mov(r8, rcx)?;
        a.mov(r9, rdi)?;
        a.mov(rax, (map::DATA + 0x1000) | 3)?;
        a.mov(qword_ptr(map::PT + ((map::DATA + 0x1000) >> 12) * 8), rax)?;
        a.rep().insb()
    });
    let end = rig.run_long();
    assert_eq!((end.gpr[8], end.gpr[9], end.gpr[gpr::RCX]), (4, map::DATA + 0x1000, 0));
    let trap = rig.traps()[0];
    assert_eq!((trap.vector, trap.error, trap.cr2, trap.rip), (14, 2, map::DATA + 0x1000, trap.expected_rip));
    let log = rig.bus().take_log();
    assert!(log.iter().all(|e| *e == PioRead { port: 0x80, size: Byte }), "{log:x?}");
    assert!(log.len() == 8 || log.len() > 8 && !accel.caps().exact, "{} reads", log.len());
}

/// Ring 3 may use a port only if IOPL or the TSS's bitmap allow it (Intel SDM vol. 1, 19.5).
pub fn port_permissions(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.user_page(map::USER_CODE);
    rig.user_page(map::USER_STACK - 0x1000);
    // Bitmap at TSS + 0x68 for ports below 0x100: all denied but 0x80 to 0x83 and 0xf4.
    let mut bitmap = [0xffu8; 33];
    bitmap[0x10] = 0xf0;
    bitmap[0x1e] = 0xef;
    rig.bytes(map::TSS + 0x68, &bitmap);
    rig.code_at(64, map::USER_CODE, |a| {
        a.out(0x80u32, eax)?; // four allowed ports
        a.out(0x83u32, al)?;
        a.out(0x83u32, ax)?; // 0x84 is denied
        crate::snippet::exit(a)
    });
    let mut state = rig.long_mode(0);
    state.rip = map::USER_CODE;
    state.gpr[gpr::RSP] = map::USER_STACK;
    state.segments.cs = accel_api::x86::Segment::flat(crate::rig::sel::USER_CODE64, 0xa0fb);
    state.segments.ss = accel_api::x86::Segment::flat(crate::rig::sel::USER_DATA, 0xc0f3);
    state.segments.tr.limit = 0x68 + 32;
    rig.write(crate::rig::cell::RESUME, map::USER_CODE + 7);
    let end = rig.run(&state);
    let traps = rig.traps();
    assert_eq!(traps.len(), 1);
    assert_eq!((traps[0].vector, traps[0].error, traps[0].rip), (13, 0, map::USER_CODE + 4));
    assert_eq!(end.segments.cs.selector, crate::rig::sel::USER_CODE64);
    let log = rig.bus().take_log();
    assert_eq!(log.len(), 2, "{log:x?}");
}

/// MMIO loads and stores in all sizes, also unaligned: one access each.
pub fn mmio_sizes(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let at = map::MMIO + 0x100;
    rig.bus().answer_mmio(at, 0xffff_ffff_ffff_ffff); // wider than the load: cut
    rig.code(|a| {
        a.mov(ebx, at as u32)?;
        a.mov(rax, -1i64)?;
        a.mov(al, byte_ptr(rbx))?;
        a.movsx(rcx, word_ptr(rbx + 2))?;
        a.mov(edx, dword_ptr(rbx + 4))?;
        a.mov(rsi, qword_ptr(rbx + 8))?;
        a.mov(byte_ptr(rbx + 0x20), 0x12)?;
        a.mov(word_ptr(rbx + 0x22), 0x3456)?;
        a.mov(dword_ptr(rbx + 0x24), edx)?;
        a.mov(qword_ptr(rbx + 0x28), rsi)?;
        a.mov(r8d, dword_ptr(rbx + 0x33))
    });
    let end = rig.run_long();
    assert_eq!(end.gpr[gpr::RAX], u64::MAX);
    assert_eq!(end.gpr[gpr::RCX], pattern(at + 2, 2) as i16 as u64);
    assert_eq!((end.gpr[gpr::RDX], end.gpr[gpr::RSI]), (pattern(at + 4, 4), pattern(at + 8, 8)));
    assert_eq!(end.gpr[8], pattern(at + 0x33, 4));
    let log = rig.bus().take_log();
    assert_eq!(
        log[..8],
        [
            MmioRead { gpa: at, size: Byte },
            MmioRead { gpa: at + 2, size: Word },
            MmioRead { gpa: at + 4, size: Dword },
            MmioRead { gpa: at + 8, size: Qword },
            MmioWrite { gpa: at + 0x20, size: Byte, value: 0x12 },
            MmioWrite { gpa: at + 0x22, size: Word, value: 0x3456 },
            MmioWrite { gpa: at + 0x24, size: Dword, value: pattern(at + 4, 4) },
            MmioWrite { gpa: at + 0x28, size: Qword, value: pattern(at + 8, 8) },
        ]
    );
    assert_eq!(joined(&log[8..]), [(false, at + 0x33, vec![0; 4])], "unaligned: possibly in pieces");
}

/// Read-modify-write on a register reads once and writes once; string moves and pushes reach it too.
pub fn mmio_instructions(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let at = map::MMIO;
    rig.bus().answer_mmio(at, 0x0f);
    rig.bus().answer_mmio(at + 8, 5);
    rig.bus().answer_mmio(at + 16, 7);
    rig.write(map::DATA, 0x1122_3344_5566_7788u64);
    rig.code(|a| {
        a.mov(ebx, at as u32)?;
        a.or(dword_ptr(rbx), 0xf0)?;
        a.mov(eax, 3)?;
        a.lock().xadd(dword_ptr(rbx + 8), eax)?;
        a.mov(r8d, eax)?;
        a.mov(eax, 7)?;
        a.mov(ecx, 9)?;
        a.cmpxchg(dword_ptr(rbx + 16), ecx)?;
        a.sete(r9b)?;
        a.mov(esi, map::DATA as u32)?;
        a.lea(rdi, ptr(rbx + 0x20))?;
        a.mov(ecx, 2)?;
        a.rep().movsd()?;
        a.lea(rsi, ptr(rbx + 0x40))?;
        a.mov(edi, (map::DATA + 8) as u32)?;
        a.movsq()?;
        a.push(qword_ptr(rbx + 0x48))?;
        a.pop(qword_ptr(rbx + 0x50))
    });
    let end = rig.run_long();
    assert_eq!((end.gpr[8], end.gpr[9] & 1), (5, 1));
    assert_eq!(rig.read::<u64>(map::DATA + 8), pattern(at + 0x40, 8));
    assert_eq!(
        rig.bus().take_log(),
        [
            MmioRead { gpa: at, size: Dword },
            MmioWrite { gpa: at, size: Dword, value: 0xff },
            MmioRead { gpa: at + 8, size: Dword },
            MmioWrite { gpa: at + 8, size: Dword, value: 8 },
            MmioRead { gpa: at + 16, size: Dword },
            MmioWrite { gpa: at + 16, size: Dword, value: 9 },
            MmioWrite { gpa: at + 0x20, size: Dword, value: 0x5566_7788 },
            MmioWrite { gpa: at + 0x24, size: Dword, value: 0x1122_3344 },
            MmioRead { gpa: at + 0x40, size: Qword },
            MmioRead { gpa: at + 0x48, size: Qword },
            MmioWrite { gpa: at + 0x50, size: Qword, value: pattern(at + 0x48, 8) },
        ]
    );
}

/// An access that straddles two device pages, or RAM and a device, reaches both parts with the right bytes; 16-byte SSE
/// accesses come in pieces of at most 8.
pub fn mmio_pieces(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    let edge = map::MMIO + 0x1000;
    let ram_end = map::RAM_END; // no RAM behind it
    rig.bytes(ram_end - 4, &[0xa1, 0xa2, 0xa3, 0xa4]);
    rig.code(|a| {
        a.mov(ebx, edge as u32)?;
        a.mov(rax, qword_ptr(rbx - 3))?;
        a.mov(rcx, 0x8877_6655_4433_2211u64)?;
        a.mov(qword_ptr(rbx - 2), rcx)?;
        a.mov(rdx, qword_ptr(ram_end - 4))?;
        a.mov(qword_ptr(ram_end - 4), rcx)?;
        a.movups(xmm0, xmmword_ptr(rbx + 0x10))?;
        a.movaps(xmmword_ptr(rbx + 0x40), xmm0)
    });
    let end = rig.run_long();
    assert_eq!(end.gpr[gpr::RAX], pattern(edge - 3, 8));
    assert_eq!(end.gpr[gpr::RDX], pattern(ram_end, 4) << 32 | 0xa4a3_a2a1);
    assert_eq!(rig.read::<u32>(ram_end - 4), 0x4433_2211);
    assert_eq!(end.fpu.ymm[0][..2], [pattern(edge + 0x10, 8), pattern(edge + 0x18, 8)]);
    let sse: Vec<u8> = (0x10..0x20).map(|n| crate::fake_bus::pattern_byte(edge + n)).collect();
    assert_eq!(
        joined(&rig.bus().take_log()),
        [
            (false, edge - 3, vec![0; 8]),
            (true, edge - 2, vec![0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]),
            (false, ram_end, vec![0; 4]),
            (true, ram_end, vec![0x55, 0x66, 0x77, 0x88]),
            (false, edge + 0x10, vec![0; 16]),
            (true, edge + 0x40, sse),
        ]
    );
}

/// A read-only slot reads as RAM and executes; stores go to the bus and change nothing.
pub fn read_only_slot(accel: &Arc<dyn Accelerator>) {
    let rig = Rig::new(accel);
    rig.write(map::ROM + 0x10, 0x0011_2233_4455_6677u64);
    rig.code_at(64, map::ROM + 0x100, |a| {
        a.mov(r8d, 0x600d)?;
        a.ret()
    });
    rig.code(|a| {
        a.mov(ebx, map::ROM as u32)?;
        a.mov(rax, qword_ptr(rbx + 0x10))?;
        a.mov(dword_ptr(rbx + 0x10), 0x99)?;
        a.add(byte_ptr(rbx + 0x11), 1)?;
        a.mov(rcx, qword_ptr(rbx + 0x10))?;
        a.lea(rdx, ptr(rbx + 0x100))?;
        a.call(rdx)
    });
    let end = rig.run_long();
    let value = 0x0011_2233_4455_6677;
    assert_eq!((end.gpr[gpr::RAX], end.gpr[gpr::RCX], end.gpr[8]), (value, value, 0x600d));
    assert_eq!(rig.read::<u64>(map::ROM + 0x10), value);
    assert_eq!(
        rig.bus().take_log(),
        [
            MmioWrite { gpa: map::ROM + 0x10, size: Dword, value: 0x99 },
            MmioWrite { gpa: map::ROM + 0x11, size: Byte, value: 0x67 },
        ]
    );
}
