//! Tests of the integer instructions.
//!
//! `native.rs` runs the very bytes of random instructions on the host and here, and compares registers, all six flags
//! and memory. The other files hold what a user program on the host cannot do: faults, other modes, segments, pages,
//! interruption.

mod faults;
mod forms;
mod legacy;
mod native;
mod strings;

use iced_x86::{Code, EncodingKind};

use crate::exec;

#[test]
fn every_encoding_of_the_families_is_defined() {
    let families = [
        "Add",
        "Adc",
        "Sub",
        "Sbb",
        "Cmp",
        "And",
        "Or",
        "Xor",
        "Test",
        "Inc",
        "Dec",
        "Neg",
        "Not",
        "Shl",
        "Sal",
        "Shr",
        "Sar",
        "Rol",
        "Ror",
        "Rcl",
        "Rcr",
        "Shld",
        "Shrd",
        "Mul",
        "Imul",
        "Div",
        "Idiv",
        "Bt",
        "Bts",
        "Btr",
        "Btc",
        "Bsf",
        "Bsr",
        "Tzcnt",
        "Lzcnt",
        "Popcnt",
        "Crc32",
        "Xadd",
        "Cmpxchg",
        "Cmpxchg8b",
        "Cmpxchg16b",
        "Xchg",
        "Bswap",
        "Movzx",
        "Movsx",
        "Movsxd",
        "Movbe",
        "Movnti",
        "Lea",
        "Xlatb",
        "Push",
        "Pusha",
        "Pushad",
        "Popa",
        "Popad",
        "Cbw",
        "Cwde",
        "Cdqe",
        "Cwd",
        "Cdq",
        "Cqo",
        "Movsb",
        "Movsw",
        "Movsq",
        "Cmpsb",
        "Cmpsw",
        "Cmpsq",
        "Scasb",
        "Scasw",
        "Scasd",
        "Scasq",
        "Lodsb",
        "Lodsw",
        "Lodsd",
        "Lodsq",
        "Stosb",
        "Stosw",
        "Stosd",
        "Stosq",
        "Aaa",
        "Aas",
        "Aad",
        "Aam",
        "Daa",
        "Das",
        "Salc",
        "Bound",
        "Rdrand",
        "Rdseed",
        "Rdpid",
        "Adcx",
        "Adox",
    ];
    let bmi = [
        "Andn", "Bextr", "Blsi", "Blsmsk", "Blsr", "Bzhi", "Pdep", "Pext", "Shlx", "Shrx", "Sarx", "Rorx",
        "Mulx",
    ];
    let mut seen = 0;
    for code in Code::values() {
        let name = format!("{:?}", code.mnemonic());
        let encoding = code.op_code().encoding();
        let ours = families.contains(&name.as_str()) && encoding == EncodingKind::Legacy
            || bmi.contains(&name.as_str()) && encoding == EncodingKind::VEX
            || name.starts_with("Cmov")
            || name.starts_with("Set") && format!("{code:?}").ends_with("_rm8");
        // Encodings that only the first 486s decoded.
        if ours && !format!("{code:?}").starts_with("Cmpxchg486") {
            seen += 1;
            assert!(exec::is_defined(code), "{code:?}");
        }
    }
    assert!(seen > 500, "{seen}");
}
