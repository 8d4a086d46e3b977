//! A vCPU's state for people to read, when a guest ends where it should not.

use std::fmt;

use accel_api::VcpuId;
use accel_api::x86::{CpuState, Segment};

/// A vCPU's state and why it was written down.
#[derive(Clone, PartialEq, Debug)]
pub struct CpuDump {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// What happened to it.
    pub reason: String,
    /// Its state then, unless the backend could not give it any more.
    pub state: Option<CpuState>,
}

impl fmt::Display for CpuDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "vCPU {}: {}", self.vcpu, self.reason)?;
        match &self.state {
            Some(state) => write_state(f, state),
            None => writeln!(f, "  (no state)"),
        }
    }
}

fn write_state(f: &mut fmt::Formatter<'_>, s: &CpuState) -> fmt::Result {
    const NAMES: [&str; 16] = [
        "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12", "R13",
        "R14", "R15",
    ];
    for (names, values) in NAMES.chunks(4).zip(s.gpr.chunks(4)) {
        for (name, value) in names.iter().zip(values) {
            write!(f, "  {name}={value:016x}")?;
        }
        writeln!(f)?;
    }
    writeln!(f, "  RIP={:016x}  RFLAGS={:08x}  {:?}", s.rip, s.rflags, s.mp)?;
    let g = &s.segments;
    let all = [
        ("CS", &g.cs),
        ("DS", &g.ds),
        ("ES", &g.es),
        ("SS", &g.ss),
        ("FS", &g.fs),
        ("GS", &g.gs),
        ("LDTR", &g.ldtr),
        ("TR", &g.tr),
    ];
    for (name, segment) in all {
        let Segment { selector, base, limit, attributes, unusable } = segment;
        let note = if *unusable { " unusable" } else { "" };
        writeln!(
            f,
            "  {name:4} {selector:04x} base={base:016x} limit={limit:08x} attr={attributes:04x}{note}"
        )?;
    }
    writeln!(f, "  GDTR base={:016x} limit={:04x}", s.gdtr.base, s.gdtr.limit)?;
    writeln!(f, "  IDTR base={:016x} limit={:04x}", s.idtr.base, s.idtr.limit)?;
    let c = &s.control;
    writeln!(f, "  CR0={:08x}  CR2={:016x}  CR3={:016x}  CR4={:08x}", c.cr0, c.cr2, c.cr3, c.cr4)?;
    writeln!(f, "  EFER={:x}  DR6={:08x}  DR7={:08x}", s.msrs.efer, s.debug.dr6, s.debug.dr7)?;
    if let Some(event) = s.events.injected {
        writeln!(f, "  event on its way: {event:?}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_shows_what_one_looks_for_first() {
        let mut state = CpuState::reset(0);
        state.gpr[15] = 0xdead_beef;
        state.control.cr2 = 0x1234;
        let text = CpuDump { vcpu: 3, reason: "triple fault".into(), state: Some(state) }.to_string();
        for expected in ["vCPU 3: triple fault", "R15=00000000deadbeef", "CR2=0000000000001234", "CS   f000"]
        {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
        assert!(CpuDump { vcpu: 0, reason: "x".into(), state: None }.to_string().contains("no state"));
    }
}
