//! The arithmetic flags wherever they can be seen.

use x86_core::testing::code::{Compiler, FLAG_FAULTS, FLAG_SETTERS, Random};

use super::*;

/// Beside [`FLAG_SETTERS`]: operands in memory at R15, operands that are gone behind them, and what leaves flags alone.
const MORE_SETTERS: [&[u8]; 10] = [
    &[0x41, 0x3a, 0x1f],             // cmp bl, [r15]
    &[0x41, 0xf6, 0x07, 0x81],       // test byte [r15], 0x81
    &[0x49, 0x03, 0x07],             // add rax, [r15]
    &[0x41, 0x2b, 0x07],             // sub eax, [r15]
    &[0x41, 0x29, 0x07],             // sub [r15], eax
    &[0x39, 0xd8, 0x89, 0xd0],       // cmp eax, ebx; mov eax, edx
    &[0x4d, 0x39, 0xda, 0x41, 0x5a], // cmp r10, r11; pop r10
    &[0x39, 0xd8, 0x9c],             // cmp eax, ebx; pushf
    &[0x41, 0xc0, 0x17, 9],          // rcl byte [r15], 9
    &[0x8c, 0xd8],                   // mov eax, ds
];

/// Beside [`FLAG_FAULTS`]: what reads flags, and a push.
const MORE_FAULTS: [&[u8]; 3] = [
    &[0x0f, 0x46, 0x07], // cmovbe eax, [rdi]
    &[0x13, 0x07],       // adc eax, [rdi]
    &[0xff, 0x37],       // push [rdi]
];

/// A handler of a fault sees the flags that stand when it comes (Intel SDM vol. 3, 6.14), although the next instruction
/// sets all of them anew: within a block, behind a direct jump, behind a return, and in the second turn of a loop.
#[test]
fn faults_show_the_flags_before_them() {
    for scene in [&SCENES[0], &SCENES[1]] {
        let mut pair = Pair::<Dispatcher>::new(scene, &config(HostCpu::detect()));
        for setter in FLAG_SETTERS.into_iter().chain(MORE_SETTERS) {
            for fault in FLAG_FAULTS.into_iter().chain(MORE_FAULTS) {
                // stc; setter; fault; add bl, bl
                let within = [&[0xf9], setter, fault, &[0x00, 0xdb]].concat();
                // stc; setter; jmp +3; nop; nop; nop; fault; add bl, bl
                let jump = [&[0xf9], setter, &[0xeb, 3, 0x90, 0x90, 0x90], fault, &[0x00, 0xdb]].concat();
                // jmp over; f: stc; setter; jc over the return; ret; over: call f; fault; add bl, bl
                let length = setter.len() as u8 + 4;
                let returning =
                    [&[0xeb, length, 0xf9], setter, &[0x72, 0, 0xc3], &[0xe8, 0xfb - length, !0, !0, !0]]
                        .concat();
                let returning = [&returning, fault, &[0x00, 0xdb]].concat();
                // top: mov rdx, [rsp]; dec r13; js to mov rdi, r14, or past it; stc; setter; fault; jmp top
                let turns = [
                    &[0x48, 0x8b, 0x14, 0x24, 0x49, 0xff, 0xcd, 0x78, 2, 0xeb, 3, 0x4c, 0x89, 0xf7, 0xf9],
                    setter,
                    fault,
                    &[0xeb],
                    &[0u8.wrapping_sub((setter.len() + fault.len() + 17) as u8)],
                ]
                .concat();
                for (shape, code) in [within, jump, returning, turns].iter().enumerate() {
                    for (seed, bad) in (0..4u64).zip([scene.data + 0x2000, 1 << 50, scene.data + 0x4000, 64])
                    {
                        let program = Program::new(0, code);
                        let adjust = |cpu: &mut Cpu| {
                            let good = if shape == 3 { scene.data + 0x100 } else { bad };
                            (cpu.gpr[gpr::RCX], cpu.gpr[gpr::RDI], cpu.gpr[14]) = (0, good, bad);
                            (cpu.gpr[gpr::RSI], cpu.gpr[13]) = (scene.data + 1, 1);
                            // At last across two pages.
                            cpu.gpr[15] = scene.data + [0x80, 0x88, 0x90, 0xfff][seed as usize];
                        };
                        let name = format!("shape {shape}, {setter:02x?}, {fault:02x?}, seed {seed}");
                        pair.check(&name, &program, 1 + seed, &adjust);
                    }
                }
            }
        }
    }
}

/// A store to the next instruction, which then reads flags that it would have set.
#[test]
fn a_store_to_the_next_instruction_keeps_the_flags() {
    for scene in &SCENES {
        // stc; mov byte [rip], 0x10; add bl, bl, which becomes adc bl, bl
        let code = [0xf9, 0xc6, 0x05, 0, 0, 0, 0, 0x10, 0x00, 0xdb];
        assert_eq!(check(scene, &code, |_| ()), Ok(()));
    }
}

/// Code with jumps forwards and backwards, calls and returns among its instructions, which ends or faults somewhere.
fn program(random: &mut Random, compiler: &Compiler) -> Program {
    let n = 3 + random.below(24);
    let (mut code, mut starts, mut jumps) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..n {
        starts.push(code.len());
        let jump: &[u8] = match random.below(24) {
            0..=4 => &[0x0f, 0x80 | random.below(16) as u8],
            5 => &[0xe9],
            6 => &[0xe8],
            // dec ecx; jnz
            7 => &[0xff, 0xc9, 0x0f, 0x85],
            // cmp ebp, ecx; jb
            8 => &[0x39, 0xcd, 0x0f, 0x82],
            9 if random.below(3) == 0 => {
                code.push(0xc3);
                continue;
            }
            _ => {
                code.extend(compiler.instruction(random));
                continue;
            }
        };
        code.extend(jump);
        code.extend([0; 4]);
        jumps.push((code.len(), starts.len() as u64 - 1));
    }
    starts.push(code.len());
    for (end, from) in jumps {
        let to = match random.below(3) {
            0 => random.below(from + 1),
            1 => from + 1 + random.below((n - from).min(4)),
            _ => from + 1 + random.below(n - from),
        };
        let distance = starts[to as usize] as i32 - end as i32;
        code[end - 4..end].copy_from_slice(&distance.to_le_bytes());
    }
    // jmp over what a store by a register that points to the code can reach: it must not hit the end.
    code.extend([&[0xe9, 200, 0, 0, 0], &[0xcc; 200][..]].concat());
    Program::new(random.below(0xf80) as usize, &code)
}

/// Blocks that lead to one another with flags that are known.
#[test]
fn flags_follow_jumps() {
    let campaign = Campaign::of(CASES);
    let small = Arc::new(Config { cache_bytes: 0, ..Config::default() });
    let counting = Arc::new(Config { counting: true, cache_bytes: 1 << 20, ..Config::default() });
    let mut compared = 0;
    for (n, scene) in SCENES.iter().enumerate() {
        let configs = [&config(HostCpu::detect()), &small, &counting, &config(HostCpu::detect())];
        let config = configs[n % 4];
        let mut random = Random((campaign.seed + n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let compiler = Compiler {
            distance: scene.data.wrapping_sub(scene.code + 0x400) as i32,
            absolute: i32::try_from(scene.data as i64).ok(),
        };
        let mut pair = None;
        for case in 0..campaign.cases {
            if case % 64 == 0 {
                pair = None;
            }
            let pair = pair.get_or_insert_with(|| Pair::<Dispatcher>::new(scene, config));
            let (program, turns) = (program(&mut random, &compiler), random.below(6));
            let (register, place) = (random.below(16) as usize, scene.data + 0x3f00 + random.below(0x200));
            let adjust = |cpu: &mut Cpu| {
                if !matches!(register, gpr::RSP | gpr::RCX) {
                    cpu.gpr[register] = place;
                }
                cpu.gpr[gpr::RCX] = 1 + turns;
            };
            let name = format!("case {case}, BLOCKS_SEED={}", campaign.seed);
            compared += u64::from(pair.check(&name, &program, random.next(), &adjust).is_some());
        }
    }
    assert!(compared > campaign.cases * 3, "{compared} of {} programs end", 6 * campaign.cases);
}
