//! The benchmark guests' algorithms once more, in Rust. The assembly is in `asm/micro`.

const LCG_MUL: u64 = 6_364_136_223_846_793_005;
const LCG_ADD: u64 = 1_442_695_040_888_963_407;

/// Next output of the generator that the guests share (Knuth's MMIX).
fn lcg(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(LCG_MUL).wrapping_add(LCG_ADD);
    *state
}

pub(super) fn about(name: &str) -> &'static str {
    match name {
        "int" => "integer arithmetic with branches that depend on data",
        "calls" => "recursive calls (naive Fibonacci numbers)",
        "indirect" => "indirect calls through a table of eight",
        "memory" => "pointer chase with stores over 1 MiB",
        "sse" => "packed double 32 x 32 matrix product",
        "sha" => "SHA-256 compression",
        "syscall" => "SYSCALL and SYSRET from CPL 3",
        "pagefault" => "page faults on first touch",
        "string" => "REP MOVS, STOS and CMPS",
        "smc" => "self-modifying code",
        "avx2" => "32-bit integers in vectors of eight",
        "codegen" => "new functions, each generated and called",
        "walk" => "page walks of changed translations (INVLPG)",
        "cr3" => "switches between two address spaces",
        "cr3-global" => "the same with global pages",
        "port" => "OUT and IN of a device register",
        "mmio" => "two stores and a load of device registers",
        "interrupt" => "interrupts to oneself, with EOI",
        "halt" => "HLT with an interrupt pending",
        "timer" => "HLT until the local APIC's timer (20 us at 1 GHz)",
        _ => "",
    }
}

pub(super) fn checksum(name: &str, n: u64) -> u64 {
    match name {
        "int" => int(n),
        "calls" => calls(n),
        "indirect" => indirect(n),
        "memory" => memory(n),
        "sse" => sse(n),
        "sha" => sha(n),
        "syscall" => syscall(n),
        "pagefault" => pagefault(n),
        "string" => string(n),
        "smc" => smc(n),
        "avx2" => avx2(n),
        "codegen" => codegen(n),
        "walk" => walk(n),
        "cr3" | "cr3-global" => cr3(n),
        "port" | "mmio" => registers(n),
        "interrupt" | "halt" | "timer" => vectors(n),
        _ => 0,
    }
}

fn int(n: u64) -> u64 {
    let (mut state, mut sum, mut hits) = (1, 0u64, 0u64);
    for _ in 0..n {
        let value = lcg(&mut state) >> 33;
        sum = if value & 1 == 0 { sum.rotate_left(7) ^ value } else { sum.wrapping_add(value) };
        if value & 6 == 0 {
            sum = sum.wrapping_sub(hits);
            hits += 1;
        }
    }
    sum
}

fn calls(n: u64) -> u64 {
    // Fibonacci numbers of 18 to 21.
    const FIB: [u64; 4] = [2584, 4181, 6765, 10946];
    (1..=n).rev().fold(0u64, |sum, i| sum.wrapping_mul(31).wrapping_add(FIB[(i & 3) as usize]))
}

fn indirect(n: u64) -> u64 {
    let (mut state, mut sum) = (1, 0u64);
    for _ in 0..n {
        let value = lcg(&mut state);
        sum = match value >> 61 {
            0 => sum.wrapping_add(value),
            1 => sum ^ value,
            2 => sum.rotate_left(5),
            3 => sum.wrapping_sub(value),
            4 => !sum,
            5 => sum.wrapping_mul(3),
            6 => sum.swap_bytes(),
            _ => sum.wrapping_add(1),
        };
    }
    sum
}

fn memory(n: u64) -> u64 {
    const NODES: u64 = 16384;
    let mut values: Vec<u64> = (0..NODES).collect();
    let (mut node, mut sum) = (0u64, 0u64);
    for i in (1..=n).rev() {
        node = (5 * node + 4099) % NODES;
        let value = &mut values[node as usize];
        *value = value.wrapping_add(i);
        sum = sum.rotate_left(1) ^ *value;
    }
    sum
}

fn sse(n: u64) -> u64 {
    // Integers: all sums stay below 2^53, where doubles are exact.
    let mut a: Vec<u64> = (0..1024).map(|e| (3 * (e >> 5) + 7 * (e & 31)) % 11).collect();
    let b: Vec<u64> = (0..1024).map(|e| (5 * (e >> 5) + (e & 31)) % 13).collect();
    let mut sum = 0u64;
    for r in (1..=n).rev() {
        a[0] += 1;
        let (i, j) = ((r & 1023) as usize >> 5, (r & 31) as usize);
        let element: u64 = (0..32).map(|k| a[i * 32 + k] * b[k * 32 + j]).sum();
        sum = sum.wrapping_mul(31).wrapping_add(element);
    }
    sum
}

fn sha(n: u64) -> u64 {
    // FIPS 180-4, 5.3.3.
    let mut state: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];
    let block: [u8; 64] = std::array::from_fn(|i| i as u8);
    for _ in 0..n {
        sha2::compress256(&mut state, &[block.into()]);
    }
    let pair = |i: usize| u64::from(state[2 * i]) | u64::from(state[2 * i + 1]) << 32;
    (1..4).fold(pair(0), |sum, i| sum.rotate_left(13) ^ pair(i))
}

fn syscall(n: u64) -> u64 {
    (1..=n).fold(0u64, |sum, count| sum.rotate_left(3) ^ count.wrapping_mul(n - count + 1))
}

fn pagefault(n: u64) -> u64 {
    let mut pool = [0u64; 256];
    let (mut sum, mut page) = (0u64, 0u64);
    for i in (1..=n).rev() {
        let write = i & 1 == 1;
        // Error code of the fault: P = 0, W/R (Intel SDM vol. 3, 5.7).
        sum = sum.rotate_left(1) ^ page ^ if write { 2 } else { 0 };
        let shown = &mut pool[(page * 7 % 256) as usize];
        if write {
            *shown = i;
        } else {
            sum = sum.wrapping_add(*shown);
        }
        page = (page + 1) & 1023;
    }
    sum
}

fn string(n: u64) -> u64 {
    let mut state = 1;
    let source: Vec<u8> = (0..1024).flat_map(|_| lcg(&mut state).to_le_bytes()).collect();
    let mut copy = vec![0u8; 0x2000];
    let mut fill = vec![0u8; 0x2000];
    let word =
        |bytes: &[u8], at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
    let mut sum = 0u64;
    for i in (1..=n).rev() {
        let (from, to) = ((i & 63) as usize, (i & 7) as usize);
        copy[to..to + 4096].copy_from_slice(&source[from..from + 4096]);
        for chunk in fill[..4096].chunks_exact_mut(8) {
            chunk.copy_from_slice(&i.to_le_bytes());
        }
        for k in 0..64 {
            copy[520 + k] = copy[512 + k];
        }
        fill[768..1024].copy_from_slice(&source[3840..4096]);
        let same = (0..128).take_while(|k| source[8 + k] == copy[8 + k]).count() as u64;
        // The byte that differs is counted too (Intel SDM vol. 2, REP).
        let left = if same == 128 { 0 } else { 127 - same };
        let at = (i as usize * 8) & 0xff8;
        sum = sum.rotate_left(5) ^ word(&copy, at);
        sum = sum.wrapping_add(word(&fill, at)).wrapping_add(left);
    }
    sum
}

fn smc(n: u64) -> u64 {
    (1..=n).rev().fold(0u64, |sum, i| {
        let immediate = (i as u32).wrapping_mul(0x0100_0193);
        sum.rotate_left(5) ^ u64::from(immediate)
    })
}

fn avx2(n: u64) -> u64 {
    let mut state = 1;
    let mut numbers: Vec<u32> = (0..512)
        .flat_map(|_| {
            let word = lcg(&mut state);
            [word as u32, (word >> 32) as u32]
        })
        .collect();
    let mut sum = 0u64;
    for i in (1..=n).rev() {
        for vector in numbers.as_chunks_mut::<8>().0 {
            for (element, shift) in vector.iter_mut().zip(9..) {
                let value = element.wrapping_mul(0x0100_0193).wrapping_add(i as u32);
                *element = value ^ value >> shift;
            }
            vector.rotate_right(1);
        }
        let at = 2 * (i & 511) as usize;
        sum = sum.rotate_left(5) ^ (u64::from(numbers[at]) | u64::from(numbers[at + 1]) << 32);
    }
    sum
}

fn codegen(n: u64) -> u64 {
    let mut state = 1;
    let mut sum = 0u64;
    for _ in 0..n {
        let function: [u64; 6] = std::array::from_fn(|_| lcg(&mut state));
        let value = (0..4).fold(state, |value, _| function.iter().fold(value, apply));
        sum = sum.rotate_left(5) ^ value;
    }
    sum
}

/// The generated instruction that the generator's `output` stands for.
fn apply(value: u64, output: &u64) -> u64 {
    let constant = i64::from((output >> 24) as i32) as u64;
    let count = (constant & 63) as u32;
    match output >> 61 {
        0 => value.wrapping_add(constant),
        1 => value ^ constant,
        2 => value.wrapping_sub(constant),
        3 => value.wrapping_mul(constant | 1),
        4 => value.rotate_left(count),
        5 => value.rotate_right(count),
        6 => !value,
        _ => value.swap_bytes(),
    }
}

fn walk(n: u64) -> u64 {
    let mut state = 1;
    let words: [u64; 256] = std::array::from_fn(|_| lcg(&mut state));
    let mut shown: Vec<u8> = (0..4096u32).map(|page| (page * 7) as u8).collect();
    let (mut page, mut sum) = (0, 0u64);
    for _ in 0..n {
        page = (5 * page + 4099) % shown.len();
        shown[page] = shown[page].wrapping_add(1);
        sum = sum.rotate_left(1) ^ words[usize::from(shown[page])];
    }
    sum
}

fn cr3(n: u64) -> u64 {
    // Where the pages are, which is what they first hold.
    let mut spaces: [[u64; 8]; 2] = std::array::from_fn(|space| {
        std::array::from_fn(|page| (0x41_0000 + 0x1000 * (8 * space + page) as u64) >> 5)
    });
    let mut sum = 0u64;
    for (i, count) in (1..=n).rev().zip(1..) {
        let pages = &mut spaces[(i & 1) as usize];
        let page = |load: u64| ((i + 3 * load) >> 1) as usize % 8;
        for load in 0..4 {
            sum = sum.rotate_left(1) ^ pages[page(load)];
        }
        pages[page(3)] = pages[page(3)].wrapping_add(i);
        sum = sum.wrapping_add(count);
    }
    sum
}

/// What was written to a register of a byte is read back.
fn registers(n: u64) -> u64 {
    (1..=n).rev().fold(0u64, |sum, i| sum.rotate_left(3) ^ (i & 0xff))
}

/// Eight vectors in turn.
fn vectors(n: u64) -> u64 {
    (1..=n).rev().fold(0u64, |sum, i| sum.rotate_left(5) ^ (0x40 + (i & 7)))
}
