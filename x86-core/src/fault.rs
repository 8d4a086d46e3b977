//! What an instruction can end in other than success.

/// Exception vectors (Intel SDM vol. 3, table 6-1).
#[allow(missing_docs)] // the manual's mnemonics
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// An exception on its way to the guest, in one register: vector, and error code where the vector has one. The address
/// of a page fault is in [`crate::Cpu::fault_address`]. Or, as [`Self::AGAIN`], none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fault(u64);

/// Result of everything that executes guest code.
pub type Exec<T = ()> = Result<T, Fault>;

const HAS_ERROR: u64 = 1 << 8;
const RESUMES: u64 = 1 << 9;
const BEGINS_AGAIN: u64 = 1 << 10;

impl Fault {
    /// #DE.
    pub const DE: Self = Self::plain(vector::DE);
    /// #UD.
    pub const UD: Self = Self::plain(vector::UD);
    /// #NM.
    pub const NM: Self = Self::plain(vector::NM);
    /// #MF.
    pub const MF: Self = Self::plain(vector::MF);
    /// #XM.
    pub const XM: Self = Self::plain(vector::XM);
    /// #BR.
    pub const BR: Self = Self::plain(vector::BR);
    /// #DB as a code breakpoint or a trap: RF in the flags it pushes is what it was (Intel SDM vol. 3, 6.8.3).
    pub const DB: Self = Self::plain(vector::DB);
    /// #DB of an access to debug registers under DR7.GD: RF is set in the flags it pushes.
    pub const GENERAL_DETECT: Self = Self(vector::DB as u64 | RESUMES);
    /// #GP(0).
    pub const GP0: Self = Self::with_code(vector::GP, 0);
    /// #SS(0).
    pub const SS0: Self = Self::with_code(vector::SS, 0);
    /// #AC(0).
    pub const AC0: Self = Self::with_code(vector::AC, 0);

    /// No exception: an instruction that was given up for a kick, before it has changed anything, and is executed when the
    /// vCPU runs again.
    pub const AGAIN: Self = Self(BEGINS_AGAIN);

    /// An exception without error code.
    pub const fn plain(vector: u8) -> Self {
        Self(vector as u64)
    }

    /// An exception with error code.
    pub const fn with_code(vector: u8, code: u32) -> Self {
        Self(vector as u64 | HAS_ERROR | (code as u64) << 32)
    }

    /// #GP with a selector's index as error code.
    pub const fn gp(selector: u16) -> Self {
        Self::with_code(vector::GP, (selector & 0xfffc) as u32)
    }

    /// #NP with a selector's index as error code.
    pub const fn np(selector: u16) -> Self {
        Self::with_code(vector::NP, (selector & 0xfffc) as u32)
    }

    /// #SS with a selector's index as error code.
    pub const fn ss(selector: u16) -> Self {
        Self::with_code(vector::SS, (selector & 0xfffc) as u32)
    }

    /// #TS with a selector's index as error code.
    pub const fn ts(selector: u16) -> Self {
        Self::with_code(vector::TS, (selector & 0xfffc) as u32)
    }

    /// IDT index.
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Error code to push.
    pub const fn error_code(self) -> Option<u32> {
        if self.0 & HAS_ERROR != 0 { Some((self.0 >> 32) as u32) } else { None }
    }
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.error_code() {
            None if *self == Self::AGAIN => f.write_str("Fault::AGAIN"),
            Some(code) => write!(f, "Fault({}, {code:#x})", self.vector()),
            None => write!(f, "Fault({})", self.vector()),
        }
    }
}
