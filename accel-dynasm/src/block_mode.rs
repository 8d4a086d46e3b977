//! The state of a vCPU that a block is translated for (QEMU's flags of a translation block).

use x86_core::bits::CR4_TSD;
use x86_core::{Cpu, TlbMode};

/// Privilege, vector state and other bits that code depends on; a part of a block's key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct BlockMode(u16);

const VECTORS: u16 = 1 << 2;
const SSE_READY: u16 = 1 << 3;
const AVX_READY: u16 = 1 << 4;
const UNMASKED: u16 = 1 << 5;
const TSC_DISABLED: u16 = 1 << 7;
const UNGROUPED: u16 = 1 << 6;

impl BlockMode {
    /// As `cpu` is, with the guest's vector registers in the host's or not.
    pub(crate) fn of(cpu: &Cpu, vectors: bool) -> Self {
        let on = |condition: bool, bit: u16| if condition { bit } else { 0 };
        Self(
            cpu.tlb_mode() as u16
                | on(vectors, VECTORS)
                | on(cpu.sse_ready, SSE_READY)
                | on(cpu.avx_ready, AVX_READY)
                | on(cpu.sse_unmasked, UNMASKED)
                | on(cpu.cr4 & CR4_TSD != 0, TSC_DISABLED),
        )
    }

    /// The kernel's, without any vector register.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self(0)
    }

    /// Code that accesses data by `tlb`, with or without vector registers, which are ready to be used.
    #[cfg(test)]
    pub(crate) fn for_test(tlb: TlbMode, vectors: bool) -> Self {
        Self(tlb as u16 | if vectors { VECTORS | SSE_READY | AVX_READY } else { 0 })
    }

    /// Whether code of this mode may go on as `cpu` is now.
    pub(crate) fn holds(self, cpu: &Cpu) -> bool {
        Self::of(cpu, self.vectors()).0 == self.0 & !UNGROUPED
    }

    /// The same, for the form of a block in which each memory access has a check of its own.
    pub(crate) fn ungrouped(self) -> Self {
        Self(self.0 | UNGROUPED)
    }

    /// The same, for the form in which groups of accesses share a check.
    pub(crate) fn grouped(self) -> Self {
        Self(self.0 & !UNGROUPED)
    }

    pub(crate) fn is_ungrouped(self) -> bool {
        self.0 & UNGROUPED != 0
    }

    /// The guest's vector registers are in the host's.
    pub(crate) fn vectors(self) -> bool {
        self.0 & VECTORS != 0
    }

    pub(crate) fn sse_ready(self) -> bool {
        self.0 & SSE_READY != 0
    }

    pub(crate) fn avx_ready(self) -> bool {
        self.0 & AVX_READY != 0
    }

    /// Some floating-point exception is unmasked.
    pub(crate) fn unmasked(self) -> bool {
        self.0 & UNMASKED != 0
    }

    /// User code may not read the time-stamp counter.
    pub(crate) fn tsc_disabled(self) -> bool {
        self.0 & TSC_DISABLED != 0
    }

    /// Which table of the soft TLB data accesses go through.
    pub(crate) fn tlb(self) -> usize {
        (self.0 & 3) as usize
    }

    /// User code, which is translated so that it works wherever its page is mapped.
    pub(crate) fn user(self) -> bool {
        self.tlb() == TlbMode::User as usize
    }

    /// The class of the code, which selects its jump cache.
    pub(crate) fn class(self) -> usize {
        Self::class_of(self.tlb(), self.vectors())
    }

    /// The class of code that accesses data through table `tlb`.
    pub(crate) fn class_of(tlb: usize, vectors: bool) -> usize {
        tlb + 3 * usize::from(vectors)
    }

    /// Whether code of a class has the guest's vector registers in the host's.
    pub(crate) fn class_has_vectors(class: usize) -> bool {
        class >= 3
    }

    /// Whether a class is one of user code.
    pub(crate) fn is_user_class(class: usize) -> bool {
        class % 3 == TlbMode::User as usize
    }

    /// The bits in which code of the same class can differ.
    pub(crate) fn within_class(self) -> u16 {
        self.0 & (SSE_READY | AVX_READY | UNMASKED | TSC_DISABLED)
    }

    pub(crate) fn bits(self) -> u16 {
        self.0
    }
}
