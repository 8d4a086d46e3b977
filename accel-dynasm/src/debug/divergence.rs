//! The report on a block that did not do what its instructions do.

use std::fmt::Write as _;

use x86_core::Registers;

use super::lockstep::Difference;

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// Registers before and after the block, and bytes that differ.
pub(crate) fn describe(difference: &Difference) -> String {
    let mut report = registers(difference);
    for wrong in &difference.bytes {
        // A String takes all that is written.
        let _ = writeln!(
            report,
            "! RAM offset {:#x}, stored by instruction {}: interpreted {}, translated {}",
            wrong.place,
            wrong.step + 1,
            hex(&wrong.expected),
            hex(&wrong.found),
        );
    }
    report
}

/// Both register files, with a mark at registers that differ.
fn registers(difference: &Difference) -> String {
    let Difference { before, expected, found, executed, .. } = difference;
    let mut text = format!(
        "   {:<15} {:>34} {:>34} {:>34}\n",
        format!("{executed} instructions"),
        "before",
        "interpreted",
        "translated"
    );
    let mut row = |name: &str, value: &dyn Fn(&Registers) -> String, always: bool| {
        let values = [before, expected, found].map(|r| value(r));
        let mark = if values[1] == values[2] { ' ' } else { '!' };
        if always || mark == '!' {
            let _ =
                writeln!(text, " {mark} {name:<15} {:>34} {:>34} {:>34}", values[0], values[1], values[2]);
        }
    };
    row("rip", &|r| format!("{:#018x}", r.rip), true);
    for (n, name) in GPR.iter().enumerate() {
        row(name, &|r| format!("{:#018x}", r.gpr[n]), true);
    }
    row("rflags", &|r| format!("{:#x}", r.rflags), true);
    for (n, name) in SEGMENTS.iter().enumerate() {
        let selector = |r: &Registers| format!("{:#x} base {:#x}", r.segs[n].selector, r.segs[n].base);
        row(name, &selector, false);
        row(
            &format!("{name} rights"),
            &|r| format!("{:#x} {:#x}", r.segs[n].attributes, r.segs[n].limit),
            false,
        );
    }
    for n in 0..16 {
        row(&format!("xmm{n}"), &|r| format!("{:#034x}", wide(&r.vector.0[n], 0)), false);
        row(&format!("ymm{n} high"), &|r| format!("{:#034x}", wide(&r.vector.0[n], 16)), false);
    }
    row("mxcsr", &|r| format!("{:#x}", r.fpu.mxcsr), false);
    row("fpu control", &|r| format!("{:#x} {:#x} {:#x}", r.fpu.fcw, r.fpu.fsw, r.fpu.ftw), false);
    row("fpu pointers", &|r| format!("{:#x} {:#x} {:#x}", r.fpu.fop, r.fpu.fip, r.fpu.fdp), false);
    for n in 0..8 {
        row(
            &format!("fpu r{n}"),
            &|r| format!("{:#x} {:#x}", r.fpu.r[n].exponent, r.fpu.r[n].mantissa),
            false,
        );
    }
    row("kernel gs base", &|r| format!("{:#x}", r.kernel_gs_base), false);
    row("shadow", &|r| r.shadow.to_string(), false);
    row("nmi masked", &|r| r.nmi_masked.to_string(), false);
    text
}

/// 16 bytes of a vector register from byte `from` on.
fn wide(value: &accel_api::x86::Ymm, from: usize) -> u128 {
    u128::from(value[from / 8]) | u128::from(value[from / 8 + 1]) << 64
}

fn hex(bytes: &[u8]) -> String {
    const MOST: usize = 32;
    let mut text: String = bytes.iter().take(MOST).map(|b| format!("{b:02x}")).collect();
    if bytes.len() > MOST {
        text.push('…');
    }
    text
}
