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
