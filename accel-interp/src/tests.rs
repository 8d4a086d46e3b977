//! Handlers against x86-core's functions: the same random code, run as blocks and one instruction at a time.

use x86_core::soft::Executor;
use x86_core::testing::blocks::{Campaign, SCENES};
use x86_core::testing::code::{FLAG_FAULTS, FLAG_SETTERS, Random};
use x86_core::testing::{self, peek, poke};
use x86_core::{Cpu, Fault, Mode, TLB_ENTRIES};

use crate::engine::Engine;

const CODE: u64 = 0x1000;
const DATA: u64 = 0x8000;
const DATA_LEN: usize = 0x4000;

fn prepare(seed: u64, code: &[u8]) -> Box<Cpu> {
    let mut cpu = testing::cpu(Mode::Long);
    testing::give_host_features(&mut cpu);
    let mut random = Random(seed);
    poke(&mut cpu, CODE, code);
    let data: Vec<u8> = (0..DATA_LEN).map(|_| random.next() as u8).collect();
    poke(&mut cpu, DATA, &data);
    for register in cpu.gpr.iter_mut() {
        *register = match random.below(4) {
            0 => random.next(),
            1 => random.below(5).wrapping_sub(2),
            _ => DATA + 0x1000 + random.below(0x2000),
        };
    }
    cpu.gpr[4] = DATA + 0x2000 + 8 * random.below(64);
    cpu.set_rflags(random.next() & x86_core::alu::flag::ARITH);
    for register in cpu.vector.0.iter_mut() {
        *register = [random.next(), random.next(), random.next(), random.next()];
    }
    cpu.rip = CODE;
    cpu
}

/// Runs as blocks up to `end`, where an endless loop lies.
fn by_blocks(cpu: &mut Cpu, engine: &mut Engine, end: u64) -> Result<(), Fault> {
    for _ in 0..1000 {
        for stale in std::mem::take(&mut cpu.stale_code) {
            engine.code_stale(stale);
        }
        cpu.leave = false;
        cpu.budget = 1;
        engine.execute(cpu)?;
        if cpu.rip == end {
            return Ok(());
        }
    }
    panic!("still at {:#x}", cpu.rip);
}

#[test]
fn blocks_do_what_single_steps_do() {
    for scene in &SCENES {
        Campaign::of(800).run::<Engine>(scene, &());
    }
}

#[test]
fn a_store_into_the_running_block_takes_effect_at_once() {
    // mov byte [rip + 1], 0x2a; mov al, 0; jmp $   -- the first instruction rewrites the constant of the second.
    let code = [0xc6, 0x05, 0x01, 0, 0, 0, 0x2a, 0xb0, 0x00, 0xeb, 0xfe];
    let mut cpu = prepare(1, &code);
    let mut engine = Engine::new(&mut cpu, &()).unwrap();
    by_blocks(&mut cpu, &mut engine, CODE + 9).unwrap();
    assert_eq!(cpu.gpr[0] as u8, 0x2a);
}

#[test]
fn a_call_ends_whose_two_pages_share_a_place_in_the_tlb() {
    // call [rbx]; at its target: jmp $
    let mut cpu = prepare(1, &[0xff, 0x13]);
    poke(&mut cpu, 0x2000, &[0xeb, 0xfe]);
    // The first 2 MiB, and again as far from there as the TLB repeats (Intel SDM vol. 3, 4.5).
    const TABLES: u64 = 0x20000;
    let repeat = (TLB_ENTRIES as u64) << 12;
    for (at, value) in [
        (TABLES, TABLES + 0x1003),
        (TABLES + 0x1000, TABLES + 0x2003),
        (TABLES + 0x2000, 0x83),
        (TABLES + 0x2000 + (repeat >> 21) * 8, 0x83),
    ] {
        poke(&mut cpu, at, &u64::to_le_bytes(value));
    }
    cpu.cr3 = TABLES;
    cpu.cr0 |= 1 << 31;
    cpu.update_mode();
    poke(&mut cpu, 0x8100, &0x2000u64.to_le_bytes());
    cpu.gpr[3] = 0x8100;
    cpu.gpr[4] = repeat + 0x8800;
    let mut engine = Engine::new(&mut cpu, &()).unwrap();
    by_blocks(&mut cpu, &mut engine, 0x2000).unwrap();
    assert_eq!(cpu.gpr[4], repeat + 0x87f8);
    assert_eq!(peek(&mut cpu, 0x87f8, 8), (CODE + 2).to_le_bytes());
}

#[test]
fn a_block_that_was_overwritten_is_decoded_anew() {
    let mut cpu = prepare(1, &[0xb0, 1, 0xeb, 0xfe]);
    let mut engine = Engine::new(&mut cpu, &()).unwrap();
    by_blocks(&mut cpu, &mut engine, CODE + 2).unwrap();
    assert_eq!(cpu.gpr[0] as u8, 1);
    poke(&mut cpu, CODE + 1, &[2]);
    cpu.rip = CODE;
    by_blocks(&mut cpu, &mut engine, CODE + 2).unwrap();
    assert_eq!(cpu.gpr[0] as u8, 2);
}

#[test]
fn the_store_of_blocks_is_bounded() {
    let mut cpu = prepare(1, &[]);
    let mut engine = Engine::new(&mut cpu, &()).unwrap();
    // A page of one-byte instructions, entered at every offset, over and over.
    poke(&mut cpu, 0x2000, &[0x98; 0xff0]);
    poke(&mut cpu, 0x2ff0, &[0xeb, 0xfe]);
    for _ in 0..8 {
        for offset in 0..0xff0 {
            cpu.rip = 0x2000 + offset;
            by_blocks(&mut cpu, &mut engine, 0x2ff0).unwrap();
        }
        engine.code_stale(x86_core::StaleCode::page(2));
    }
    let counters = engine.counters();
    let flushes = counters.iter().find(|(name, _)| *name == "cache_flushes").unwrap().1;
    assert!(flushes > 0, "{counters:?}");
}

/// A handler of a fault sees the flags that stand when it comes (Intel SDM vol. 3, 6.14): of each way to set them, in front of
/// each kind of fault, with an instruction behind it that sets all of them anew. The addresses in RDI and RSI are not canonical
/// and not aligned.
#[test]
fn faults_show_the_flags_before_them() {
    // What cannot be decoded has no block that it could be in.
    let undecodable: &[u8] = &[0xf0, 0x90]; // lock nop
    for (n, setter) in FLAG_SETTERS.iter().enumerate() {
        for fault in FLAG_FAULTS.into_iter().chain([undecodable]) {
            // stc; setter; fault; add bl, bl
            let code = [&[0xf9], *setter, fault, &[0x00, 0xdb]].concat();
            for seed in 1..8 {
                let start = |seed| {
                    let mut cpu = prepare(seed, &code);
                    cpu.gpr[1] = 0;
                    (cpu.gpr[7], cpu.gpr[6]) = (1 << 50, DATA + 1);
                    cpu
                };
                let (mut expected, mut cpu) = (start(seed), start(seed));
                let want = (0..3).try_for_each(|_| testing::step(&mut expected));
                let mut engine = Engine::new(&mut cpu, &()).unwrap();
                // What cannot be decoded is not in the block.
                let got = (0..2).try_for_each(|_| {
                    (cpu.leave, cpu.budget) = (false, 1);
                    engine.execute(&mut cpu)
                });
                assert_eq!((got, cpu.rip), (want, expected.rip), "{n}: {code:02x?}");
                assert_eq!(cpu.rflags(), expected.rflags(), "{n}: {code:02x?}, seed {seed}");
            }
        }
    }
}
