//! What CPUID tells: vendor, brand, features.

use crate::bare::Runtime;
use crate::bare::layout::WORK;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Twelve bytes of vendor and 48 of brand, each with its terminating zero.
const VENDOR: u64 = WORK;
const BRAND: u64 = WORK + 0x40;
/// Feature words in the order of [`FEATURES`]' first field.
const WORDS: u64 = WORK + 0x80;

/// Which word, which bit, name (Intel SDM vol. 2, CPUID): 0 leaf 1 EDX, 1 leaf 1 ECX, 2 leaf 7 EBX,
/// 3 leaf 80000001H EDX, 4 leaf 80000001H ECX.
const FEATURES: &[(u8, u8, &str)] = &[
    (0, 0, "fpu"),
    (0, 4, "tsc"),
    (0, 8, "cx8"),
    (0, 9, "apic"),
    (0, 15, "cmov"),
    (0, 25, "sse"),
    (0, 26, "sse2"),
    (1, 0, "sse3"),
    (1, 9, "ssse3"),
    (1, 13, "cx16"),
    (1, 19, "sse4.1"),
    (1, 20, "sse4.2"),
    (1, 21, "x2apic"),
    (1, 23, "popcnt"),
    (1, 24, "tsc-deadline"),
    (1, 25, "aes"),
    (1, 28, "avx"),
    (1, 31, "hypervisor"),
    (2, 3, "bmi1"),
    (2, 5, "avx2"),
    (2, 7, "smep"),
    (2, 8, "bmi2"),
    (2, 9, "erms"),
    (2, 20, "smap"),
    (3, 11, "syscall"),
    (3, 20, "nx"),
    (3, 26, "1g-pages"),
    (3, 27, "rdtscp"),
    (3, 29, "lm"),
    (4, 0, "lahf"),
];

pub(super) fn emit(a: &mut CodeAssembler, rt: &mut Runtime) -> Result<(), IcedError> {
    // EBP: highest basic leaf, R12D: highest extended leaf.
    a.xor(eax, eax)?;
    a.cpuid()?;
    a.mov(ebp, eax)?;
    for (n, register) in [ebx, edx, ecx].into_iter().enumerate() {
        a.mov(dword_ptr(VENDOR + 4 * n as u64), register)?;
    }
    a.mov(eax, 0x8000_0000u32)?;
    a.cpuid()?;
    a.mov(r12d, eax)?;

    rt.print(a, "  vendor     ")?;
    a.mov(rdi, VENDOR)?;
    a.call(rt.puts)?;
    rt.print(a, "\n  processor  ")?;
    brand(a, rt)?;
    rt.print(a, "\n  features  ")?;
    features(a, rt)?;
    rt.print(a, "\n")
}

/// Leaves 80000002H to 80000004H, without the spaces that pad some brands on the left.
fn brand(a: &mut CodeAssembler, rt: &mut Runtime) -> Result<(), IcedError> {
    let [mut skip, mut print, mut absent] = std::array::from_fn(|_| a.create_label());
    a.cmp(r12d, 0x8000_0004u32 as i32)?;
    a.jb(absent)?;
    for leaf in 0..3u64 {
        a.mov(eax, 0x8000_0002 + leaf as u32)?;
        a.cpuid()?;
        for (n, register) in [eax, ebx, ecx, edx].into_iter().enumerate() {
            a.mov(dword_ptr(BRAND + leaf * 16 + 4 * n as u64), register)?;
        }
    }
    a.set_label(&mut absent)?;
    a.mov(rdi, BRAND - 1)?;
    a.set_label(&mut skip)?;
    a.inc(rdi)?;
    a.cmp(byte_ptr(rdi), 32)?;
    a.je(skip)?;
    a.set_label(&mut print)?;
    a.call(rt.puts)
}

fn features(a: &mut CodeAssembler, rt: &mut Runtime) -> Result<(), IcedError> {
    let [mut no_seven, mut no_extended, mut entry, mut skip, mut table, mut end] =
        std::array::from_fn(|_| a.create_label());
    a.mov(eax, 1)?;
    a.cpuid()?;
    a.mov(dword_ptr(WORDS), edx)?;
    a.mov(dword_ptr(WORDS + 4), ecx)?;
    a.cmp(ebp, 7)?;
    a.jb(no_seven)?;
    a.mov(eax, 7)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.mov(dword_ptr(WORDS + 8), ebx)?;
    a.set_label(&mut no_seven)?;
    a.cmp(r12d, 0x8000_0001u32 as i32)?;
    a.jb(no_extended)?;
    a.mov(eax, 0x8000_0001u32)?;
    a.cpuid()?;
    a.mov(dword_ptr(WORDS + 12), edx)?;
    a.mov(dword_ptr(WORDS + 16), ecx)?;
    a.set_label(&mut no_extended)?;

    // An entry: word, bit, length of the name with its zero, name. RBX walks, R13 is the end.
    a.lea(rbx, ptr(table))?;
    a.lea(r13, ptr(end))?;
    a.set_label(&mut entry)?;
    a.movzx(eax, byte_ptr(rbx))?;
    a.mov(eax, dword_ptr(rax * 4 + WORDS as i32))?;
    a.movzx(ecx, byte_ptr(rbx + 1))?;
    a.bt(eax, ecx)?;
    a.jnc(skip)?;
    a.mov(edi, 32)?;
    a.call(rt.putc)?;
    a.lea(rdi, ptr(rbx + 3))?;
    a.call(rt.puts)?;
    a.set_label(&mut skip)?;
    a.movzx(eax, byte_ptr(rbx + 2))?;
    a.lea(rbx, ptr(rbx + rax + 3))?;
    a.cmp(rbx, r13)?;
    a.jb(entry)?;
    a.jmp(end)?;

    let mut bytes = Vec::new();
    for (word, bit, name) in FEATURES {
        bytes.extend([*word, *bit, name.len() as u8 + 1]);
        bytes.extend(name.as_bytes());
        bytes.push(0);
    }
    a.set_label(&mut table)?;
    a.db(&bytes)?;
    a.set_label(&mut end)
}
