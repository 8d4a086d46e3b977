//! Translated code against single steps of x86-core.

use std::sync::Arc;
use std::time::Duration;

use accel_api::x86::{CpuFeatures, gpr};
use x86_core::shared::request;
use x86_core::soft::Executor as _;
use x86_core::testing::blocks::{Campaign, Pair, Program, SCENES, Scene};
use x86_core::{Cpu, Fault};

use crate::config::Config;
use crate::dispatch::Dispatcher;
use crate::host::HostCpu;
use crate::store::regions::REGIONS;

fn config(host: HostCpu) -> Arc<Config> {
    Arc::new(Config { host, cache_bytes: 1 << 20, ..Config::default() })
}

/// Programs a scene.
const CASES: u64 = 1000;

#[test]
fn blocks_do_what_single_steps_do() {
    for scene in &SCENES {
        Campaign::of(CASES).run::<Dispatcher>(scene, &config(HostCpu::detect()));
    }
}

#[test]
fn an_old_host_gets_other_code_of_the_same_effect() {
    let host = HostCpu { bmi2: false, avx: false, features: CpuFeatures::default() };
    for scene in &SCENES {
        Campaign::of(CASES / 2).run::<Dispatcher>(scene, &config(host));
    }
}

#[test]
fn instructions_are_counted_at_no_cost_to_their_effect() {
    let config = Arc::new(Config { counting: true, cache_bytes: 1 << 20, ..Config::default() });
    for scene in &SCENES {
        Campaign::of(CASES / 2).run::<Dispatcher>(scene, &config);
    }
}

/// Jumps that wait to be chained when a region is emptied must not be chained in the code that comes next.
#[test]
fn a_small_cache_is_emptied_again_and_again() {
    let config = Arc::new(Config { cache_bytes: 0, ..Config::default() });
    for scene in &SCENES {
        Campaign::of(CASES / 2).run::<Dispatcher>(scene, &config);
    }
}

/// Runs `code` in a scene, at the start of a page, by steps and as a block.
fn check(scene: &Scene, code: &[u8], adjust: impl Fn(&mut Cpu)) -> Result<(), Fault> {
    check_at(scene, 0, code, adjust)
}

fn check_at(scene: &Scene, start: usize, code: &[u8], adjust: impl Fn(&mut Cpu)) -> Result<(), Fault> {
    let program = Program::new(start, code);
    let mut pair = Pair::<Dispatcher>::new(scene, &config(HostCpu::detect()));
    pair.check("by hand", &program, 1, &adjust).expect("an end")
}

fn pointing(register: usize, to: u64) -> impl Fn(&mut Cpu) {
    move |cpu| cpu.gpr[register] = to
}

/// An instruction of 15 bytes grows when its operand is led to the host's memory.
#[test]
fn prefixes_leave_no_room() {
    for scene in &SCENES {
        for prefixes in 1..=13 {
            // mov ax, [rbx]; mov [rbx], al
            let mut code = vec![0x66; prefixes];
            code.extend([0x8b, 0x03]);
            code.extend(vec![0x66; prefixes]);
            code.extend([0x88, 0x03]);
            assert_eq!(check(scene, &code, pointing(gpr::RBX, scene.data + 8)), Ok(()));
        }
    }
}

/// REX means nothing unless the opcode follows it.
#[test]
fn a_prefix_behind_rex() {
    for scene in &SCENES {
        // add ax, [rbx+8] with REX.W before the operand size; mov eax, [r8] with another REX before the one that
        // counts; lock inc word [rbx]
        let code = [0x48, 0x66, 0x03, 0x43, 0x08, 0x4c, 0x41, 0x8b, 0x00, 0x4c, 0x66, 0xf0, 0xff, 0x03];
        let result = check(scene, &code, |cpu| {
            (cpu.gpr[gpr::RBX], cpu.gpr[8]) = (scene.data + 8, scene.data + 16);
        });
        assert_eq!(result, Ok(()));
    }
}

/// On a processor without BMI1 TZCNT is BSF, which leaves its destination alone where it finds no bit.
#[test]
fn without_bmi1() {
    for scene in &SCENES {
        // tzcnt eax, ecx; the same behind another prefix; tzcnt rdx, [rbx]
        let code = [0xf3, 0x0f, 0xbc, 0xc1, 0x2e, 0xf3, 0x0f, 0xbc, 0xf1, 0xf3, 0x48, 0x0f, 0xbc, 0x13];
        for value in [0, 8] {
            let result = check(scene, &code, |cpu| {
                let mut model = accel_api::x86::CpuModel::clone(&cpu.model);
                model.features = model.features.without(&[accel_api::x86::Feature::Bmi1]);
                cpu.model = Arc::new(model);
                (cpu.gpr[gpr::RBX], cpu.gpr[gpr::RCX]) = (scene.data + 8, value);
            });
            assert_eq!(result, Ok(()));
        }
    }
}

/// Loops in which R10 and R11 stay in the host's registers from turn to turn, with and without accesses that need them.
#[test]
fn turns_of_a_block() {
    for scene in &SCENES {
        // top: add r10,rcx; lea r11,[r10+r11*2]; dec ecx; jne top; mov [rbx],r11
        let registers = [0x49, 0x01, 0xca, 0x4f, 0x8d, 0x1c, 0x5a, 0xff, 0xc9, 0x75, 0xf5, 0x4c, 0x89, 0x1b];
        // top: add r10,[rbx+rcx*8]; mov [rbx],r10; xchg r11,r10; dec ecx; jne top
        let memory = [0x4c, 0x03, 0x14, 0xcb, 0x4c, 0x89, 0x13, 0x4d, 0x87, 0xd3, 0xff, 0xc9, 0x75, 0xf2];
        for code in [&registers, &memory] {
            let result = check(scene, code, |cpu| {
                (cpu.gpr[gpr::RBX], cpu.gpr[gpr::RCX]) = (scene.data + 8, 4);
            });
            assert_eq!(result, Ok(()));
        }
    }
}

/// MOV of the accumulator and an address has no register field that REX.R could extend.
#[test]
fn an_address_without_modrm() {
    for scene in &SCENES {
        for opcode in 0xa0..=0xa3u8 {
            for rex in 0x40..=0x4f {
                let mut code = vec![rex, opcode];
                code.extend((scene.data + 0x123).to_le_bytes());
                assert_eq!(check(scene, &code, |_| ()), Ok(()));
            }
        }
    }
}

/// The farthest that an instruction can reach is farther from the start of its page.
#[test]
fn far_from_the_page() {
    for scene in &SCENES {
        for distance in [i32::MAX, i32::MAX - 0x80, i32::MIN, i32::MIN + 0x80, 0x1000, -0x1000] {
            for start in [0usize, 0xf00] {
                let with = |code: &[u8]| [code, &distance.to_le_bytes()].concat();
                for code in [
                    with(&[0xe9]),                   // jmp
                    with(&[0xe8]),                   // call
                    with(&[0x0f, 0x84]),             // jz
                    with(&[0x0f, 0x85]),             // jnz
                    with(&[0x48, 0x8d, 0x05]),       // lea rax, [rip + n]
                    with(&[0x8d, 0x05]),             // lea eax, [rip + n]
                    with(&[0x67, 0x48, 0x8d, 0x05]), // lea rax, [eip + n]
                    with(&[0x66, 0x8d, 0x05]),       // lea ax, [rip + n]
                    with(&[0x4c, 0x8d, 0x15]),       // lea r10, [rip + n]
                    with(&[0x48, 0x8b, 0x05]),       // mov rax, [rip + n]
                    with(&[0xff, 0x25]),             // jmp [rip + n]
                ] {
                    let _ = check_at(scene, start, &code, |_| ());
                }
            }
        }
    }
}

/// Code may run up to the end of the addresses that there are: the fault is that of what would come next.
#[test]
fn up_to_the_end_of_the_lower_half() {
    let scene = Scene { name: "last page", cpl: 3, code: 0x7fff_ffff_e000, ..SCENES[5] };
    let supervisor = Scene { cpl: 0, ..scene };
    for scene in [scene, supervisor] {
        for code in [
            &[0x48, 0xff, 0xc0][..], // inc rax
            &[0xff, 0x03],           // inc dword [rbx]
            &[0x53],                 // push rbx
            &[0x70, 0],              // jo, jno: behind the end
            &[0x71, 0],
            &[0xeb, 0],          // jmp
            &[0xe8, 0, 0, 0, 0], // call
            &[0xff, 0xd3],       // call rbx, which is not the end
            &[0x0f, 0xa2],       // cpuid: by x86-core
        ] {
            let _ = check_at(&scene, 0x2000 - code.len(), code, pointing(gpr::RBX, scene.data + 8));
        }
    }
}

/// CALL is not here: what it stores below the stack stays.
#[test]
fn to_where_no_address_is() {
    for scene in &SCENES {
        for target in [1 << 47, 1 << 63, u64::MAX >> 1, 0xffff_7fff_ffff_ffff] {
            for code in [
                &[0x53, 0xc3][..],                     // push rbx; ret
                &[0x53, 0xc2, 8, 0],                   // push rbx; ret 8
                &[0xff, 0xe3],                         // jmp rbx
                &[0x53, 0xff, 0x24, 0x24],             // push rbx; jmp [rsp]
                &[0x49, 0x89, 0xdb, 0x41, 0xff, 0xe3], // mov r11, rbx; jmp r11
            ] {
                let end = check(scene, code, pointing(gpr::RBX, target));
                assert!(end.is_err(), "{code:02x?} {target:#x}");
            }
        }
    }
}

/// An exception that is unmasked is the guest's from the next instruction on.
#[test]
fn unmasked_in_the_middle_of_a_block() {
    for scene in &SCENES {
        // xorps xmm0, xmm0; mov dword [rbx], 1d80h; ldmxcsr [rbx]; divps xmm1, xmm0 (division by zero, or 0 / 0)
        let code = [0x0f, 0x57, 0xc0, 0xc7, 0x03, 0, 0x1d, 0, 0, 0x0f, 0xae, 0x13, 0x0f, 0x5e, 0xc8];
        let end = check(scene, &code, |cpu| {
            cpu.gpr[gpr::RBX] = scene.data + 8;
            cpu.vector.0[1] = [0x3f80_0000_3f80_0000, 0x3f80_0000_3f80_0000, 0, 0];
        });
        assert!(end.is_err(), "{}", scene.name);
    }
}

/// Of each form that division has, by zero and with too large a result; and what lies behind it is not reached.
#[test]
fn divisions_fault() {
    for scene in &SCENES {
        for code in [
            &[0x48, 0xf7, 0xf3][..],      // div rbx
            &[0xf6, 0xfb],                // idiv bl
            &[0x49, 0xf7, 0xf2],          // div r10
            &[0x41, 0xf6, 0xf3],          // div r11b
            &[0x48, 0xf7, 0x7c, 0x24, 8], // idiv qword [rsp + 8]
            &[0xf7, 0x75, 4],             // div dword [rbp + 4]
            &[0xf6, 0xf4],                // div ah
        ] {
            for (dividend, divisor) in [(1, 0), (u64::MAX, 1), (1 << 63, u64::MAX)] {
                let code = [&[0x49, 0xff, 0xc3][..], code, &[0x48, 0xff, 0xc1]].concat(); // inc r11; ...; inc rcx
                let end = check(scene, &code, |cpu| {
                    cpu.gpr = [divisor; 16];
                    (cpu.gpr[gpr::RAX], cpu.gpr[gpr::RDX]) = (dividend, dividend);
                    (cpu.gpr[gpr::RSP], cpu.gpr[gpr::RBP]) = (scene.data, scene.data);
                    cpu.gpr[11] = divisor.wrapping_sub(1);
                });
                let _ = end;
            }
        }
    }
}

/// Where the host's exception is the guest's, vector registers are those of the block; a block that uses none leaves
/// them as they are, whatever the host has in its own.
#[test]
fn vector_registers_survive_faults() {
    let old = HostCpu { avx: false, features: CpuFeatures::default(), ..HostCpu::detect() };
    for (host, scene) in
        [HostCpu::detect(), old].into_iter().flat_map(|host| SCENES.map(|scene| (host, scene)))
    {
        for code in [
            &[0x66, 0x0f, 0xd4, 0xc1, 0x48, 0xf7, 0xf1][..], // paddq xmm0, xmm1; div rcx
            &[0xc5, 0xfd, 0xd4, 0xc1, 0x48, 0xf7, 0xf1],     // vpaddq ymm0, ymm0, ymm1; div rcx
            &[0x66, 0x0f, 0xd4, 0xc1, 0x66, 0x0f, 0x6f, 0x53, 1], // paddq xmm0, xmm1; movdqa xmm2, [rbx + 1]
            &[0x48, 0xff, 0xc0, 0x48, 0xf7, 0xf1],           // inc rax; div rcx
        ] {
            let mut pair = Pair::<Dispatcher>::new(&scene, &config(host));
            let end = pair.check("by hand", &Program::new(0, code), 1, &|cpu| {
                (cpu.gpr[gpr::RCX], cpu.gpr[gpr::RBX]) = (0, scene.data);
                for (n, register) in cpu.vector.0.iter_mut().enumerate() {
                    *register = std::array::from_fn(|word| 0x1_0000_0001 * (1 + n + 16 * word) as u64);
                }
            });
            assert!(matches!(end, Some(Err(_))), "{code:02x?}");
            assert!(counter(&pair, "host_faults") > 0 || counter(&pair, "helper_calls") > 0, "{code:02x?}");
        }
    }
}

/// Lets `code` loop from `start` on until a request comes, a while later.
fn loops_until_asked(scene: &Scene, start: usize, code: &[u8]) {
    loops_until_asked_with(scene, start, code, pointing(gpr::RBX, scene.data + 8));
}

#[expect(clippy::print_stderr, reason = "what an abort leaves behind")]
fn loops_until_asked_with(scene: &Scene, start: usize, code: &[u8], adjust: impl Fn(&mut Cpu)) {
    let mut pair = Pair::<Dispatcher>::new(scene, &config(HostCpu::detect()));
    let shared = pair.home().shared.clone();
    let (sender, ended) = std::sync::mpsc::channel();
    std::thread::scope(|s| {
        s.spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            shared.post(request::KICK);
            if ended.recv_timeout(Duration::from_secs(10)).is_err() {
                // Nothing else ends it.
                eprintln!("{}: {code:02x?} at {start:#x} does not end when asked", scene.name);
                std::process::abort();
            }
        });
        pair.run_until_asked(&Program::new(start, code), &adjust);
        sender.send(()).expect("the other thread waits");
    });
}

/// Loops of all kinds look for requests.
#[test]
fn loops_end_when_asked() {
    for scene in &SCENES {
        for (start, code) in [
            (0, &[0xeb, 0xfe][..]),                   // jmp $
            (0, &[0xe9, 0xfb, 0xff, 0xff, 0xff]),     // the same, longer
            (0xffd, &[0xe9, 0xfb, 0xff, 0xff, 0xff]), // across pages
            (0xfff, &[0xeb, 0xfe]),
            (0xfff, &[0x90, 0xeb, 0xfd]),                     // from page to page
            (0, &[0x31, 0xc9, 0xe3, 0xfc]),                   // xor ecx, ecx; jrcxz
            (0, &[0xb9, 2, 0, 0, 0, 0xe2, 0xf9]),             // mov ecx, 2; loop, over both
            (0, &[0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xff, 0xe0]), // lea rax, [next]; jmp rax
            // lea rax, [next]; push rax; ret
            (0, &[0x48, 0x8d, 0x05, 0, 0, 0, 0, 0x50, 0xc3]),
            // mov rsp, rbx; push rax; call $ - 4
            (0, &[0x48, 0x89, 0xdc, 0x50, 0x58, 0xe8, 0xf6, 0xff, 0xff, 0xff]),
            (0, &[0x39, 0xc0, 0x74, 0xfc]),       // cmp eax, eax; jz
            (0, &[0xf9, 0x72, 0xfd]),             // stc; jc
            (0, &[0x73, 0, 0xf9, 0x72, 0xfb]),    // jnc next; stc; jc
            (0, &[0x0f, 0xa2, 0xeb, 0xfc]),       // cpuid; jmp
            (0, &[0xff, 0x03, 0xeb, 0xfc]),       // inc dword [rbx]; jmp
            (0, &[0xc5, 0xf8, 0x77, 0xeb, 0xfb]), // vzeroupper; jmp
        ] {
            loops_until_asked(scene, start, code);
        }
    }
}

/// A jump is taken for the first time when the cache is full: what it leads to is translated after the oldest region
/// has gone, and the jump may have been there.
#[test]
fn the_jump_that_fills_the_cache() {
    let scene = &SCENES[0];
    let config = Arc::new(Config { cache_bytes: 0, ..Config::default() });
    let mut evictions = 0;
    for blocks in 60..190i32 {
        // start: jz far; cmp [rsp], eax; jmp next, over and over; cmp eax, eax; jmp start; far: jmp next
        let mut code = vec![0x0f, 0x84];
        code.extend((5 * blocks + 2 + 5).to_le_bytes());
        code.extend([0x39, 0x04, 0x24, 0xeb, 0].repeat(blocks as usize));
        code.extend([0x39, 0xc0, 0xe9]);
        code.extend((-(6 + 5 * blocks + 2 + 5)).to_le_bytes());
        code.extend([0xeb, 0]);
        let mut pair = Pair::<Dispatcher>::new(scene, &config);
        let end = pair.check("by hand", &Program::new(0, &code), 1, &|cpu| cpu.flags = Default::default());
        assert_eq!(end, Some(Ok(())));
        pair.executor().store().check_chains();
        evictions += counter(&pair, "regions_evicted");
    }
    assert!(evictions > 100, "{evictions}");
}

fn counter(pair: &Pair<Dispatcher>, name: &str) -> u64 {
    pair.executor().counters().iter().find(|(other, _)| *other == name).expect("a counter").1
}

/// A host may refuse the locked access across two lines that a translated instruction makes: then x86-core has to find
/// the guest's instruction.
#[test]
fn locked_instructions_are_found_when_refused() {
    let code: [(&[u8], bool); 5] = [
        (&[0xf0, 0xff, 0x03], true),       // lock inc dword [rbx]
        (&[0x87, 0x03], true),             // xchg [rbx], eax
        (&[0xf0, 0x0f, 0xb1, 0x0b], true), // lock cmpxchg [rbx], ecx
        (&[0x87, 0xc1], false),            // xchg ecx, eax
        (&[0xff, 0x03], false),            // inc dword [rbx]
    ];
    for (code, locked) in code {
        let scene = &SCENES[0];
        let mut pair = Pair::<Dispatcher>::new(scene, &config(HostCpu::detect()));
        let end = pair.check("by hand", &Program::new(0, code), 1, &pointing(gpr::RBX, scene.data));
        assert_eq!(end, Some(Ok(())));
        let blocks = &pair.executor().store().blocks.list;
        let mut found =
            (0..REGIONS).flat_map(|region| blocks.of(region)).map(|block| !block.faults.is_empty());
        assert_eq!(found.any(|known| known), locked, "{code:02x?}");
    }
}

/// What a dropped block jumped to is dropped after it: the jump that lay at its entry is not what lies there now.
#[test]
fn a_block_that_begins_with_a_jump_is_dropped_before_its_target() {
    const FUNCTION: usize = 64;
    for scene in &SCENES {
        for jump in [&[0xeb, 0][..], &[0x74, 0, 0xeb, 0], &[0x0f, 0x84, 0, 0, 0, 0, 0xeb, 0]] {
            // lea rbx, [function]; twice: cmp eax, eax; call rbx; mov byte [function], ret; then jmp to the end
            let mut code = vec![0x48, 0x8d, 0x1d, FUNCTION as u8 - 7, 0, 0, 0];
            for _ in 0..2 {
                code.extend([0x39, 0xc0, 0xff, 0xd3, 0xc6, 0x03, 0xc3]);
            }
            code.extend([0xeb, (FUNCTION + jump.len() + 3 - code.len() - 2) as u8]);
            code.resize(FUNCTION, 0xcc);
            // function: jump next; next: inc ecx; ret
            code.extend(jump);
            code.extend([0xff, 0xc1, 0xc3]);
            assert_eq!(check_at(scene, 0x400, &code, |_| ()), Ok(()), "{jump:02x?}");
        }
    }
}

/// Two functions that share an entry of the jump table, called in turn: neither is looked up each time.
#[test]
fn functions_with_one_entry() {
    let scene = &SCENES[0];
    assert_eq!((scene.code ^ scene.again) as u16, 0, "they share it");
    // mov edx, 20; top: call rbx; call rsi; dec edx; jnz top; jmp end; function: adc ecx, 1; ret
    let code =
        [0xba, 20, 0, 0, 0, 0xff, 0xd3, 0xff, 0xd6, 0xff, 0xca, 0x75, 0xf8, 0xeb, 4, 0x83, 0xd1, 1, 0xc3];
    let mut pair = Pair::<Dispatcher>::new(scene, &config(HostCpu::detect()));
    let end = pair.check("by hand", &Program::new(0, &code), 1, &|cpu| {
        (cpu.gpr[gpr::RBX], cpu.gpr[gpr::RSI]) = (scene.code + 15, scene.again + 15);
    });
    assert_eq!(end, Some(Ok(())));
    let misses = counter(&pair, "jump_cache_misses");
    assert!((3..12).contains(&misses), "{misses}");
}

/// Blocks that were overwritten take memory no longer than their code does.
#[test]
fn what_is_known_of_blocks_is_bounded() {
    let scene = &SCENES[1];
    let mut pair = Pair::<Dispatcher>::new(scene, &Arc::new(Config { cache_bytes: 0, ..Config::default() }));
    let mut most = 0;
    for turn in 0..4000u32 {
        // mov eax, n; jz next; jmp next: other code in the same place, when it has been there for long enough to be
        // translated though it is self-modifying
        let code = [&[0xb8][..], &(turn / 5).to_le_bytes(), &[0x74, 0, 0xeb, 0]].concat();
        let end = pair.check("by hand", &Program::new(0, &code), 1, &|_| ());
        assert_eq!(end, Some(Ok(())));
        pair.executor().store().check_chains();
        let known =
            (0..REGIONS).map(|region| pair.executor().store().blocks.list.of(region).len()).sum::<usize>();
        most = most.max(known);
        assert!(counter(&pair, "blocks") <= known as u64);
    }
    let (translated, evicted) = (counter(&pair, "blocks_translated"), counter(&pair, "blocks_evicted"));
    assert!(translated > 1000 && most < 300, "{translated} translated, {most} known at a time");
    assert!(translated - evicted <= most as u64);
}

mod flags;
mod golden;
mod inline_tlb;
mod string;
mod transfer;
