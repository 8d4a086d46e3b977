//! Handlers against x86-core's functions: the same random code, run as blocks and one instruction at a time.

use iced_x86::{Decoder, FlowControl, Mnemonic};
use x86_core::soft::Executor;
use x86_core::testing::{self, peek, poke};
use x86_core::{Cpu, Fault, Mode, TLB_ENTRIES, exec};

use crate::engine::Engine;

struct XorShift(u64);

impl XorShift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

const CODE: u64 = 0x1000;
const DATA: u64 = 0x8000;
const DATA_LEN: usize = 0x4000;

/// One instruction that falls through, or a conditional jump over `gap` bytes.
fn instruction(random: &mut XorShift) -> Vec<u8> {
    loop {
        let mut bytes = [0u8; 15];
        bytes[..8].copy_from_slice(&random.next().to_le_bytes());
        bytes[8..].copy_from_slice(&random.next().to_le_bytes()[..7]);
        // Random bytes seldom make the forms compilers use: steer towards them.
        match random.below(6) {
            // VEX, on one of the three maps that there are.
            4 => bytes[0] = 0xc5,
            5 => {
                bytes[1] = bytes[1] & 0xe0 | (1 + bytes[3] % 3);
                bytes[0] = 0xc4;
            }
            0 => {
                bytes[1] = bytes[0];
                bytes[0] = 0x40 | (bytes[2] & 0xf);
            }
            1 => {
                bytes[1] = 0x80 | bytes[1] & 0x7f;
                bytes[0] &= 0x3b;
            }
            2 => bytes[0] = 0x0f,
            _ => {}
        }
        let ins = Decoder::new(64, &bytes, x86_core::DECODER_OPTIONS).decode();
        let outside = matches!(
            ins.mnemonic(),
            // What differs from run to run, or leaves the mode the test is in.
            Mnemonic::Rdtsc
                | Mnemonic::Rdtscp
                | Mnemonic::Rdrand
                | Mnemonic::Rdseed
                | Mnemonic::Hlt
                | Mnemonic::Wrmsr
        ) || ins.is_privileged()
            || (0..ins.op_count()).any(|n| {
                let r = ins.op_register(n);
                r.is_segment_register() || r.is_cr() || r.is_dr()
            });
        if !ins.is_invalid()
            && ins.flow_control() == FlowControl::Next
            && !outside
            && exec::is_defined(ins.code())
        {
            return bytes[..ins.len()].to_vec();
        }
    }
}

fn prepare(seed: u64, code: &[u8]) -> Box<Cpu> {
    let mut cpu = testing::cpu(Mode::Long);
    testing::give_host_features(&mut cpu);
    let mut random = XorShift(seed);
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

/// Runs one instruction at a time up to `end`; `None` if that is too far, as for a repeated instruction of 2^60 turns.
fn by_steps(cpu: &mut Cpu, end: u64) -> Option<Result<(), Fault>> {
    for _ in 0..50 {
        if cpu.rip == end {
            return Some(Ok(()));
        }
        if let Err(fault) = testing::step(cpu) {
            return Some(Err(fault));
        }
    }
    None
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
    let cases: u64 = std::env::var("INTERP_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let seed: u64 = std::env::var("INTERP_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0x5eed);
    let mut random = XorShift(seed | 1);
    let mut faults = 0;
    for case in 0..cases {
        let mut code = Vec::new();
        let n = 1 + random.below(6);
        let mut jumps = Vec::new();
        for _ in 0..n {
            if random.below(4) == 0 {
                jumps.push(code.len() + 1);
                code.extend([0x70 | random.below(16) as u8, 0]);
            }
            code.extend(instruction(&mut random));
        }
        for at in jumps {
            code[at] = (code.len() - at - 1) as u8;
        }
        let end = CODE + code.len() as u64;
        code.extend([0xeb, 0xfe]);
        let state = random.next();
        let mut expected = prepare(state, &code);
        let mut actual = prepare(state, &code);
        x86_core::exec::sse::mxcsr::enter(&mut expected);
        let want = by_steps(&mut expected, end);
        x86_core::exec::sse::mxcsr::leave(&mut expected);
        let Some(want) = want else { continue };
        let mut engine = Engine::new(&mut actual, &()).unwrap();
        x86_core::exec::sse::mxcsr::enter(&mut actual);
        let got = by_blocks(&mut actual, &mut engine, end);
        x86_core::exec::sse::mxcsr::leave(&mut actual);

        let text = || {
            let mut text = format!("case {case}, INTERP_SEED={seed}: {code:02x?}\n");
            for ins in Decoder::with_ip(64, &code, CODE, x86_core::DECODER_OPTIONS).iter() {
                text += &format!("  {:#x}: {ins:?}\n", ins.ip());
            }
            text
        };
        assert_eq!(got, want, "{}", text());
        if want.is_err() {
            // Flags that are set again before they are read may be stale at a fault.
            faults += 1;
            actual.flags = expected.flags;
        }
        assert_eq!(
            (actual.gpr, actual.rip, actual.rflags()),
            (expected.gpr, expected.rip, expected.rflags()),
            "{}",
            text()
        );
        assert_eq!(actual.vector.0, expected.vector.0, "{}", text());
        assert_eq!(actual.fpu.mxcsr, expected.fpu.mxcsr, "{}", text());
        let memory = |cpu: &mut Cpu| peek(cpu, DATA, DATA_LEN);
        assert!(memory(&mut actual) == memory(&mut expected), "memory differs: {}", text());
    }
    assert!(faults < cases / 2, "{faults} of {cases} cases fault: the test has lost its teeth");
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
