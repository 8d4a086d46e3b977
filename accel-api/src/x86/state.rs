//! The whole state of a vCPU, in plain structs that no backend owns.
//!
//! Backends destructure these exhaustively (no `..`), so that a new field does not compile until every backend carries
//! it. [`CpuState::normalise`] gives the canonical form: two states are the same CPU exactly when their canonical
//! forms are equal.

use serde::{Deserialize, Serialize};

use crate::x86::LapicState;

/// Indices into [`CpuState::gpr`], in encoding order.
#[allow(missing_docs)] // the registers' own names
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// State of one vCPU.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Address of the next instruction.
    pub rip: u64,
    /// Flags; bit 1 is always set.
    pub rflags: u64,
    /// Segment registers with their hidden parts.
    pub segments: Segments,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// Control registers.
    pub control: ControlRegs,
    /// Debug registers.
    pub debug: DebugRegs,
    /// x87, MMX, SSE and AVX registers.
    pub fpu: FpuState,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// What is about to happen to the CPU.
    pub events: Events,
    /// Running, halted, waiting to be started.
    pub mp: MpState,
    /// Local APIC.
    pub lapic: LapicState,
    /// Guest TSC less the host's time ([`crate::host_time`]), modulo 2^64. Every backend has the same time, so a switch copies
    /// it.
    pub tsc_offset: u64,
}

/// One segment register (Intel SDM vol. 3, 3.4.3), hidden part included.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Segment {
    /// Visible part.
    pub selector: u16,
    /// Linear address of byte 0.
    pub base: u64,
    /// Last valid offset in bytes (already multiplied out when G is set).
    pub limit: u32,
    /// Access rights laid out as in the descriptor's second doubleword, bits 8 to 23: type 0..3, S 4, DPL 5..6, P 7,
    /// AVL 12, L 13, D/B 14, G 15.
    pub attributes: u16,
    /// Loaded with a null selector: any use faults.
    pub unusable: bool,
}

impl Segment {
    /// Attribute bit L: 64-bit code.
    pub const LONG: u16 = 1 << 13;
    /// Attribute bit D/B: 32-bit default size.
    pub const DB: u16 = 1 << 14;
    /// Attribute bit G: limit in pages.
    pub const GRANULARITY: u16 = 1 << 15;
    /// Attribute bit P.
    pub const PRESENT: u16 = 1 << 7;
    /// Attribute bit S: code or data, not a system segment.
    pub const CODE_OR_DATA: u16 = 1 << 4;

    /// A real-mode style segment at `selector * 16`, 64 KiB, writable data.
    pub const fn real(selector: u16) -> Self {
        Self { selector, base: (selector as u64) << 4, limit: 0xffff, attributes: 0x93, unusable: false }
    }

    /// A flat 4 GiB segment with the given attributes.
    pub const fn flat(selector: u16, attributes: u16) -> Self {
        Self { selector, base: 0, limit: 0xffff_ffff, attributes, unusable: false }
    }

    /// Descriptor privilege level, 0 to 3.
    pub const fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }

    /// Descriptor type, bits 8 to 11 of the second doubleword.
    pub const fn kind(&self) -> u8 {
        (self.attributes & 15) as u8
    }
}

/// The segment registers.
#[allow(missing_docs)] // the registers' own names
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Segments {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Last valid byte.
    pub limit: u16,
}

/// Control registers. CR8 is the local APIC's TPR; EFER is with the MSRs.
#[allow(missing_docs)] // the registers' own names
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ControlRegs {
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub xcr0: u64,
    /// The four page-directory-pointer-table entries of PAE paging, which are registers (Intel SDM vol. 3, 4.4.1). `None`: they
    /// are read from the table that CR3 points at when the state is loaded; or there is no PAE paging.
    pub pdptrs: Option<[u64; 4]>,
}

impl ControlRegs {
    /// Whether these, with IA32_EFER `efer`, mean PAE paging.
    pub const fn pae_paging(&self, efer: u64) -> bool {
        const PG: u64 = 1 << 31;
        const PAE: u64 = 1 << 5;
        const LMA: u64 = 1 << 10;
        self.cr0 & PG != 0 && self.cr4 & PAE != 0 && efer & LMA == 0
    }
}

/// Debug registers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DebugRegs {
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
}

/// x87, MMX, SSE and AVX state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FpuState {
    /// Control word.
    pub fcw: u16,
    /// Status word, TOP included.
    pub fsw: u16,
    /// Abridged tag word: bit i set when physical register i is not empty (Intel SDM vol. 1, 10.5.1.1).
    pub ftw: u8,
    /// Last opcode, 11 bits.
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last data pointer.
    pub fdp: u64,
    /// ST0 to ST7 (stack order) as 80-bit values, little endian.
    pub st: [[u8; 10]; 8],
    /// MXCSR.
    pub mxcsr: u32,
    /// YMM0 to YMM15; the low halves are XMM.
    pub ymm: [Ymm; 16],
    /// State components not in their initial configuration (Intel SDM vol. 1, 13.6), bits 0 to 2.
    pub xstate_bv: u64,
}

/// One YMM register as four 64-bit lanes, lowest first.
pub type Ymm = [u64; 4];

/// Model-specific registers that are part of a vCPU.
#[allow(missing_docs)] // the MSRs' own names (Intel SDM vol. 4)
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Msrs {
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u32,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub spec_ctrl: u64,
    pub tsc_adjust: u64,
    pub mcg_status: u64,
    pub debugctl: u64,
    pub hwcr: u64,
    pub syscfg: u64,
    pub mtrr: Mtrrs,
}

/// Memory type range registers (Intel SDM vol. 3, 12.11). Memory types have no effect on the guest here; the registers
/// hold what is written to them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mtrrs {
    /// IA32_MTRR_DEF_TYPE.
    pub def_type: u64,
    /// FIX64K_00000, FIX16K_80000, FIX16K_A0000, FIX4K_C0000 to FIX4K_F8000.
    pub fixed: [u64; 11],
    /// PHYSBASEn, PHYSMASKn.
    pub variable: [[u64; 2]; 8],
}

/// What is about to happen to the CPU before its next instruction.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Events {
    /// An event accepted (an interrupt is out of the APIC) and not yet delivered through the IDT.
    pub injected: Option<InjectedEvent>,
    /// Interrupts wait for the instruction after this one: STI or MOV SS came just before (Intel SDM vol. 3, 6.8).
    pub interrupt_shadow: bool,
    /// It was MOV SS or POP SS, so that debug exceptions wait, too (6.8.3).
    pub debug_shadow: bool,
    /// Causes of a debug exception that waits, as bits of DR6: B0 to B3, BD, BS, BT.
    pub debug_pending: u64,
    /// How many NMIs wait: at most one while they are masked ([`Self::nmi_limit`]).
    pub nmi_pending: u8,
    /// NMIs are blocked until IRET (Intel SDM vol. 3, 6.7.1).
    pub nmi_masked: bool,
}

impl Events {
    /// Bits of DR6 that are causes of debug exceptions.
    pub const DEBUG_CAUSES: u64 = 0xe00f;

    /// How many NMIs can wait. A processor remembers one; a second that comes before the first is taken would, there,
    /// have come while the first's handler ran. So KVM counts, too.
    pub const fn nmi_limit(masked: bool) -> u8 {
        if masked { 1 } else { 2 }
    }
}

/// An event on its way through the IDT.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InjectedEvent {
    /// IDT index.
    pub vector: u8,
    /// How it came about.
    pub kind: EventKind,
    /// Error code to push, if the vector has one.
    pub error_code: Option<u32>,
}

/// Kinds of events, which differ in privilege checks and in what they set (Intel SDM vol. 3, 25.8.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EventKind {
    /// From the local APIC or the 8259.
    ExternalInterrupt,
    /// Vector 2 from outside.
    Nmi,
    /// A fault, trap or abort.
    Exception,
    /// INT n, INT3, INTO: carries the instruction's length, which RIP has not passed yet.
    Software {
        /// Bytes of the instruction.
        length: u8,
    },
}

/// Multiprocessor state (Intel SDM vol. 3, 9.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MpState {
    /// Executes instructions.
    Running,
    /// HLT, until an interrupt.
    Halted,
    /// After INIT, until SIPI.
    WaitForSipi,
    /// Shut down by a triple fault.
    Shutdown,
}

impl FpuState {
    /// State after FNINIT and with MXCSR at reset (Intel SDM vol. 3, table 10-1).
    pub const fn reset() -> Self {
        Self {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            st: [[0; 10]; 8],
            mxcsr: 0x1f80,
            ymm: [[0; 4]; 16],
            xstate_bv: 0,
        }
    }
}

impl CpuState {
    /// The architectural reset state (Intel SDM vol. 3, table 10-1) of vCPU `id`.
    pub fn reset(id: u32) -> Self {
        let mut gpr = [0; 16];
        // Family, model, stepping, as the SDM says of RDX; firmware ignores it, CPUID is what counts.
        gpr[gpr::RDX] = 0x600;
        let data = Segment::real(0);
        let cs = Segment { selector: 0xf000, base: 0xffff_0000, attributes: 0x9b, ..data };
        Self {
            gpr,
            rip: 0xfff0,
            rflags: 2,
            segments: Segments {
                es: data,
                cs,
                ss: data,
                ds: data,
                fs: data,
                gs: data,
                ldtr: Segment { attributes: 0x82, ..data },
                tr: Segment { attributes: 0x8b, ..data },
            },
            gdtr: DescriptorTable { base: 0, limit: 0xffff },
            idtr: DescriptorTable { base: 0, limit: 0xffff },
            control: ControlRegs { cr0: 0x6000_0010, cr2: 0, cr3: 0, cr4: 0, xcr0: 1, pdptrs: None },
            debug: DebugRegs { dr: [0; 4], dr6: 0xffff_0ff0, dr7: 0x400 },
            fpu: FpuState::reset(),
            msrs: Msrs {
                efer: 0,
                star: 0,
                lstar: 0,
                cstar: 0,
                fmask: 0,
                kernel_gs_base: 0,
                tsc_aux: 0,
                sysenter_cs: 0,
                sysenter_esp: 0,
                sysenter_eip: 0,
                pat: 0x0007_0406_0007_0406,
                misc_enable: 0x1801, // fast strings, no BTS, no PEBS
                spec_ctrl: 0,
                tsc_adjust: 0,
                mcg_status: 0,
                debugctl: 0,
                hwcr: 0,
                syscfg: 0,
                mtrr: Mtrrs { def_type: 0, fixed: [0; 11], variable: [[0; 2]; 8] },
            },
            events: Events::default(),
            mp: if id == 0 { MpState::Running } else { MpState::WaitForSipi },
            lapic: LapicState::reset(id, id == 0),
            tsc_offset: 0,
        }
    }

    /// The canonical form: bits without meaning get one value, so that equal CPUs compare equal.
    pub fn normalise(&mut self) {
        self.rflags = self.rflags & 0x003f_7fd5 | 2;
        let s = &mut self.segments;
        // The DPL of a null SS is the CPL (Intel SDM vol. 3, 26.4.1).
        let cpl = s.ss.attributes & 0x60;
        for seg in [&mut s.es, &mut s.cs, &mut s.ss, &mut s.ds, &mut s.fs, &mut s.gs, &mut s.ldtr, &mut s.tr]
        {
            if seg.unusable {
                // Only the base of an unusable FS or GS can still be seen (in 64-bit mode).
                *seg =
                    Segment { selector: seg.selector, base: seg.base, unusable: true, ..Segment::default() };
            }
        }
        for seg in [&mut s.es, &mut s.ss, &mut s.ds, &mut s.ldtr] {
            if seg.unusable {
                seg.base = 0;
            }
        }
        if s.ss.unusable {
            s.ss.attributes = cpl;
        }
        self.debug.dr6 = self.debug.dr6 & 0xe00f | 0xffff_0ff0;
        self.debug.dr7 = self.debug.dr7 & 0xffff_2bff | 0x400;
        self.fpu.normalise();
        self.lapic.normalise();
        if !self.control.pae_paging(self.msrs.efer) {
            self.control.pdptrs = None;
        }
        let events = &mut self.events;
        events.debug_shadow &= events.interrupt_shadow;
        events.debug_pending &= Events::DEBUG_CAUSES;
        events.nmi_pending = events.nmi_pending.min(Events::nmi_limit(events.nmi_masked));
    }

    /// The fields in which two states differ, as paths with both values in hexadecimal; empty when they are equal.
    pub fn diff(&self, other: &Self) -> Vec<Difference> {
        let mut out = Vec::new();
        if self != other {
            let value = |s| serde_json::to_value(s).unwrap_or_default();
            collect(&mut out, String::new(), &value(self), &value(other));
        }
        out
    }
}

impl FpuState {
    fn normalise(&mut self) {
        const X87: u64 = 1;
        const SSE: u64 = 2;
        const AVX: u64 = 4;
        self.fop &= 0x7ff;
        let init = Self::reset();
        let in_use = |used: bool, bit: u64| if used { bit } else { 0 };
        let Self { fcw, fsw, ftw, fop, fip, fdp, st, mxcsr: _, ymm, xstate_bv } = self;
        let x87 = (*fcw, *fsw, *ftw, *fop, *fip, *fdp)
            != (init.fcw, init.fsw, init.ftw, init.fop, init.fip, init.fdp)
            || *st != init.st;
        let sse = ymm.iter().any(|r| r[0] | r[1] != 0);
        let avx = ymm.iter().any(|r| r[2] | r[3] != 0);
        // Whether a component in its initial configuration is reported as in use is up to the processor
        // (Intel SDM vol. 1, 13.6); its contents are what counts.
        *xstate_bv = in_use(x87, X87) | in_use(sse, SSE) | in_use(avx, AVX);
    }
}

/// One field in which two states differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Path, for example `segments.cs.base`.
    pub path: String,
    /// Value in the first state.
    pub left: String,
    /// Value in the second state.
    pub right: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} != {}", self.path, self.left, self.right)
    }
}

fn collect(out: &mut Vec<Difference>, path: String, left: &serde_json::Value, right: &serde_json::Value) {
    use serde_json::Value::{Array, Object};
    match (left, right) {
        (Object(l), Object(r)) if l.keys().eq(r.keys()) => {
            for (key, value) in l {
                let dot = if path.is_empty() { "" } else { "." };
                collect(out, format!("{path}{dot}{key}"), value, &r[key]);
            }
        }
        (Array(l), Array(r)) if l.len() == r.len() => {
            for (i, (l, r)) in l.iter().zip(r).enumerate() {
                collect(out, format!("{path}[{i}]"), l, r);
            }
        }
        _ if left == right => {}
        _ => {
            let text =
                |v: &serde_json::Value| v.as_u64().map_or_else(|| v.to_string(), |n| format!("{n:#x}"));
            out.push(Difference { path, left: text(left), right: text(right) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diff_names_the_field() {
        let a = CpuState::reset(0);
        let mut b = a.clone();
        assert!(a.diff(&b).is_empty());
        b.segments.cs.base = 0x10;
        b.fpu.ymm[3][1] = u64::MAX;
        let paths: Vec<_> = a.diff(&b).into_iter().map(|d| d.to_string()).collect();
        assert_eq!(paths.len(), 2, "{paths:?}");
        assert!(paths[1].starts_with("segments.cs.base: 0xffff0000 != 0x10"), "{paths:?}");
        assert!(paths[0].starts_with("fpu.ymm[3][1]: "), "{paths:?}");
    }

    #[test]
    fn normalise_is_idempotent_and_hides_only_meaningless_bits() {
        let mut a = CpuState::reset(1);
        a.rflags = 0x202 | 1 << 15;
        a.segments.ds = Segment { selector: 0, base: 5, limit: 9, attributes: 0x93, unusable: true };
        a.segments.fs = Segment { selector: 0, base: 0x7000, limit: 9, attributes: 0x93, unusable: true };
        a.normalise();
        let once = a.clone();
        a.normalise();
        assert_eq!(a, once);
        assert_eq!((a.segments.ds.base, a.segments.fs.base, a.rflags), (0, 0x7000, 0x202));
    }

    #[test]
    fn state_survives_serialisation() {
        let mut a = CpuState::reset(0);
        a.fpu.ymm[15] = [u64::MAX, 1, 2, 3];
        let text = serde_json::to_string(&a).unwrap();
        assert_eq!(serde_json::from_str::<CpuState>(&text).unwrap(), a);
    }
}
