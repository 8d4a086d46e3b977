//! What makes two outcomes different.

use iced_x86::{Instruction, Mnemonic, RflagsBits};

use super::case::{Case, CodeSize, End, Outcome, Raised, State, WINDOW};

/// One thing that differs.
#[derive(Clone, PartialEq, Debug)]
pub struct Difference {
    /// What: a register, a flag, memory.
    pub what: String,
    /// On the host.
    pub native: String,
    /// In the software CPU.
    pub soft: String,
}

/// CF, PF, AF, ZF, SF, DF, OF, NT, AC, ID. RF depends on what interrupts; IF, IOPL and the others user code cannot
/// change.
const FLAGS: u64 = 0x24_4cd5;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// What the manual defines and the two do not agree on.
pub fn differences(ins: &Instruction, case: &Case, native: &Outcome, soft: &Outcome) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut add = |what: &str, native: String, soft: String| {
        found.push(Difference { what: what.to_string(), native, soft });
    };
    let ends = (visible(&native.end), visible(&soft.end));
    if ends.0 != ends.1 {
        add("end", end(&ends.0), end(&ends.1));
    }
    let hex = |value: u64| format!("{value:#x}");
    let (n, s) = (&native.state, &soft.state);
    if n.rip != s.rip {
        add("rip", hex(n.rip), hex(s.rip));
    }
    // The upper halves of registers, and R8 to R15, are nobody's business outside 64-bit mode.
    let long = case.state.size() == CodeSize::Bits64 && n.size() == CodeSize::Bits64;
    let (count, mask) = if long { (16, u64::MAX) } else { (8, 0xffff_ffff) };
    for (name, (&a, &b)) in NAMES.iter().zip(n.gpr.iter().zip(&s.gpr)).take(count) {
        if (a ^ b) & mask != 0 {
            add(name, hex(a & mask), hex(b & mask));
        }
    }
    // The kernel's way back to a program makes null selectors 0, whatever their RPL.
    let null = |selector: u16| if selector & !3 == 0 { 0 } else { selector };
    for (name, (&a, &b)) in SEGMENTS.iter().zip(n.selectors.iter().zip(&s.selectors)) {
        if null(a) != null(b) {
            add(name, hex(a.into()), hex(b.into()));
        }
    }
    let done = native.end == End::Done;
    let undefined = if done { undefined_flags(ins) } else { 0 };
    let mask = FLAGS & !undefined;
    if (n.rflags ^ s.rflags) & mask != 0 {
        add("rflags", flags(n.rflags & mask), flags(s.rflags & mask));
    }
    let codes = if done { undefined_codes(ins) } else { 0 };
    let status = |fsw: u16| hex(u64::from(fsw & !codes));
    for (what, a, b) in [
        ("fcw", hex(n.fpu.fcw.into()), hex(s.fpu.fcw.into())),
        ("fsw", status(n.fpu.fsw), status(s.fpu.fsw)),
        ("ftw", hex(n.fpu.ftw.into()), hex(s.fpu.ftw.into())),
        ("mxcsr", hex(n.fpu.mxcsr.into()), hex(s.fpu.mxcsr.into())),
    ] {
        if a != b {
            add(what, a, b);
        }
    }
    for (i, (a, b)) in n.fpu.st.iter().zip(&s.fpu.st).enumerate() {
        if a != b {
            add(&format!("st{i}"), extended(a), extended(b));
        }
    }
    for (i, (a, b)) in n.fpu.ymm.iter().zip(&s.fpu.ymm).enumerate() {
        if a != b {
            add(&format!("ymm{i}"), vector(a), vector(b));
        }
    }
    if native.memory != soft.memory {
        let differ = |&i: &usize| native.memory[i] != soft.memory[i] && !ignored(ins, case, i);
        let all: Vec<usize> = (0..native.memory.len().min(soft.memory.len())).filter(differ).collect();
        if let (Some(&first), Some(&last)) = (all.first(), all.last()) {
            let end = (last + 1).min(first + 16);
            let name = format!("[{:#x}]{}", WINDOW + first as u64, if end > last { "" } else { ".." });
            add(
                &name,
                format!("{:02x?}", &native.memory[first..end]),
                format!("{:02x?}", &soft.memory[first..end]),
            );
        }
    }
    found
}

/// Linux shows user code no difference between absent and present pages of the kernel's half: their page faults all
/// have P set.
fn visible(end: &End) -> End {
    const TASK_END: u64 = (1 << 47) - 4096;
    match end {
        End::Fault(raised) if raised.vector == 14 && raised.address >= TASK_END => {
            End::Fault(Raised { error: raised.error | 1, ..*raised })
        }
        other => other.clone(),
    }
}

/// Whether flags that the manual leaves undefined differ after the instruction.
pub fn undefined_differ(ins: &Instruction, native: &Outcome, soft: &Outcome) -> bool {
    native.end == End::Done
        && soft.end == End::Done
        && ((native.state.rflags ^ soft.state.rflags) & undefined_flags(ins) != 0
            || (native.state.fpu.fsw ^ soft.state.fpu.fsw) & undefined_codes(ins) != 0)
}

fn undefined_flags(ins: &Instruction) -> u64 {
    let bits = ins.rflags_undefined();
    const PLACES: [(u32, u64); 6] = [
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 1 << 2),
        (RflagsBits::AF, 1 << 4),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::OF, 1 << 11),
    ];
    PLACES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, flag)| flag).sum()
}

fn undefined_codes(ins: &Instruction) -> u16 {
    let bits = ins.rflags_undefined();
    const PLACES: [(u32, u16); 4] = [
        (RflagsBits::C0, 1 << 8),
        (RflagsBits::C1, 1 << 9),
        (RflagsBits::C2, 1 << 10),
        (RflagsBits::C3, 1 << 14),
    ];
    PLACES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, flag)| flag).sum()
}

/// Bytes of state images that hold the last instruction's opcode and addresses, which processors keep differently
/// (Intel SDM vol. 1, 8.1.8), bytes that the manual reserves, and MXCSR_MASK, which tells of features.
fn ignored(ins: &Instruction, case: &Case, offset: usize) -> bool {
    const FXSAVE: &[(u64, u64)] = &[(5, 24), (28, 32), (416, 512)];
    let ranges = match (ins.mnemonic(), ins.memory_size().size()) {
        (Mnemonic::Fxsave | Mnemonic::Fxsave64, _) => FXSAVE,
        (Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64, _) => FXSAVE,
        (Mnemonic::Xsavec | Mnemonic::Xsavec64, _) => FXSAVE,
        (Mnemonic::Fnstenv | Mnemonic::Fnsave, 14 | 94) => &[(6, 14)],
        (Mnemonic::Fnstenv | Mnemonic::Fnsave, _) => &[(12, 28)],
        _ => return false,
    };
    let gpr = |register| super::generate::value(&case.state, register);
    let base = ins.virtual_address(0, 0, |r, _, _| Some(gpr(r))).unwrap_or(0);
    let at = (WINDOW + offset as u64).wrapping_sub(base);
    ranges.iter().any(|&(from, to)| (from..to).contains(&at))
}

fn end(end: &End) -> String {
    const NAMES: [&str; 20] = [
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS", "#GP",
        "#PF", "15", "#MF", "#AC", "#MC", "#XM",
    ];
    match end {
        End::Done => "done".into(),
        End::Hang => "does not end".into(),
        End::Panic(text) => format!("panic: {text}"),
        End::Fault(raised) => {
            let name = NAMES.get(usize::from(raised.vector)).copied().unwrap_or("?");
            match raised.vector {
                14 => format!("#PF({:#x}) at {:#x}", raised.error, raised.address),
                8 | 10..=13 | 17 => format!("{name}({:#x})", raised.error),
                _ => name.into(),
            }
        }
    }
}

/// RFLAGS by name.
pub fn flags(value: u64) -> String {
    const NAMES: [(u64, &str); 10] = [
        (1, "CF"),
        (1 << 2, "PF"),
        (1 << 4, "AF"),
        (1 << 6, "ZF"),
        (1 << 7, "SF"),
        (1 << 10, "DF"),
        (1 << 11, "OF"),
        (1 << 14, "NT"),
        (1 << 18, "AC"),
        (1 << 21, "ID"),
    ];
    let set: Vec<_> = NAMES.iter().filter(|(bit, _)| value & bit != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "none".into() } else { set.join("+") }
}

fn extended(value: &[u8; 10]) -> String {
    let hex: String = value.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    format!("{}:{}", &hex[..4], &hex[4..])
}

fn vector([a, b, c, d]: &[u64; 4]) -> String {
    if *c == 0 && *d == 0 {
        format!("{b:016x}_{a:016x}")
    } else {
        format!("{d:016x}_{c:016x}_{b:016x}_{a:016x}")
    }
}

/// The inputs of `case` that are not zero or initial, one a line.
pub fn inputs(case: &Case) -> Vec<String> {
    let mut lines = Vec::new();
    let state = &case.state;
    for (name, value) in NAMES.iter().zip(state.gpr) {
        if value != 0 {
            lines.push(format!("{name} = {value:#x}"));
        }
    }
    let usual = State::new().selectors;
    for (name, (&value, usual)) in SEGMENTS.iter().zip(state.selectors.iter().zip(usual)) {
        if value != usual {
            lines.push(format!("{name} = {value:#x}"));
        }
    }
    if state.rflags & FLAGS != 0 {
        lines.push(format!("rflags = {}", flags(state.rflags & FLAGS)));
    }
    let initial = accel_api::x86::FpuState::reset();
    for (name, value, usual) in [
        ("fcw", u32::from(state.fpu.fcw), u32::from(initial.fcw)),
        ("fsw", state.fpu.fsw.into(), 0),
        ("ftw", state.fpu.ftw.into(), 0),
        ("mxcsr", state.fpu.mxcsr, initial.mxcsr),
    ] {
        if value != usual {
            lines.push(format!("{name} = {value:#x}"));
        }
    }
    for (i, value) in state.fpu.st.iter().enumerate().filter(|(_, value)| **value != [0; 10]) {
        lines.push(format!("st{i} = {}", extended(value)));
    }
    for (i, value) in state.fpu.ymm.iter().enumerate().filter(|(_, value)| **value != [0; 4]) {
        lines.push(format!("ymm{i} = {}", vector(value)));
    }
    for (i, chunk) in
        case.memory.chunks(16).enumerate().filter(|(_, chunk)| chunk.iter().any(|&byte| byte != 0))
    {
        if lines.len() > 40 {
            lines.push("...".into());
            break;
        }
        lines.push(format!("[{:#x}] = {chunk:02x?}", WINDOW + 16 * i as u64));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::case::WINDOW_SIZE;
    use super::*;
    use iced_x86::Decoder;

    fn what(bytes: &[u8], change: impl FnOnce(&mut Outcome)) -> Vec<String> {
        let ins = Decoder::new(64, bytes, 0).decode();
        let memory = vec![0; WINDOW_SIZE];
        let case = Case { bytes: bytes.to_vec(), state: State::new(), memory: memory.clone() };
        let native = Outcome { end: End::Done, state: State::new(), memory };
        let mut soft = native.clone();
        change(&mut soft);
        differences(&ins, &case, &native, &soft).into_iter().map(|d| d.what).collect()
    }

    #[test]
    fn every_kind_of_state_is_looked_at() {
        const NOP: &[u8] = &[0x90];
        assert!(what(NOP, |_| {}).is_empty());
        assert_eq!(what(NOP, |o| o.state.gpr[15] = 1), ["r15"]);
        assert_eq!(what(NOP, |o| o.state.rflags |= 1 << 10), ["rflags"]);
        assert_eq!(what(NOP, |o| o.state.rip += 1), ["rip"]);
        assert_eq!(what(NOP, |o| o.state.selectors[5] = 0x2b), ["gs"]);
        assert!(what(NOP, |o| o.state.selectors[5] = 3).is_empty());
        assert_eq!(what(NOP, |o| o.state.fpu.mxcsr |= 1), ["mxcsr"]);
        assert_eq!(what(NOP, |o| o.state.fpu.st[7][9] = 1), ["st7"]);
        assert_eq!(what(NOP, |o| o.state.fpu.ymm[3][3] = 1), ["ymm3"]);
        assert_eq!(what(NOP, |o| o.memory[0x1fff] = 1), ["[0x20001fff]"]);
        let fault = End::Fault(Raised { vector: 6, error: 0, address: 0 });
        assert_eq!(what(NOP, |o| o.end = fault), ["end"]);
    }

    #[test]
    fn undefined_flags_are_not() {
        let and_leaves_af_undefined = &[0x21, 0xc0];
        assert!(what(and_leaves_af_undefined, |o| o.state.rflags |= 1 << 4).is_empty());
        assert_eq!(what(and_leaves_af_undefined, |o| o.state.rflags |= 1), ["rflags"]);
    }
}
