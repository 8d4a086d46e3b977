//! MSRs that hold what software writes to them, within the architecture's rules, and have no other effect. They are the
//! same on every backend because they are here: backends ask [`Msrs::read_held`] and [`Msrs::write_held`] before they
//! look at MSRs of their own.

use crate::GpFault;
use crate::x86::{CpuFeatures, CpuModel, Feature::*, Msrs, Mtrrs, PHYS_BITS, Vendor};

/// Indices (Intel SDM vol. 4, table 2-2; AMD APM vol. 2, appendix A).
mod index {
    pub(super) const PLATFORM_ID: u32 = 0x17;
    pub(super) const FEATURE_CONTROL: u32 = 0x3a;
    pub(super) const SPEC_CTRL: u32 = 0x48;
    pub(super) const PRED_CMD: u32 = 0x49;
    pub(super) const BIOS_UPDT_TRIG: u32 = 0x79;
    pub(super) const BIOS_SIGN_ID: u32 = 0x8b;
    pub(super) const ARCH_CAPABILITIES: u32 = 0x10a;
    pub(super) const MCG_CAP: u32 = 0x179;
    pub(super) const MCG_STATUS: u32 = 0x17a;
    pub(super) const MISC_ENABLE: u32 = 0x1a0;
    pub(super) const DEBUGCTL: u32 = 0x1d9;
    pub(super) const XSS: u32 = 0xda0;
    pub(super) const SYSCFG: u32 = 0xc001_0010;
    pub(super) const HWCR: u32 = 0xc001_0015;
    pub(super) const NB_CFG: u32 = 0xc001_001f;
    pub(super) const INT_PENDING: u32 = 0xc001_0055;
    pub(super) const DE_CFG: u32 = 0xc001_1029;
}

/// A microcode revision, 0 of which would tell that none was loaded: in bits 63:32, where Intel's CPUID leaves it.
const MICROCODE: u64 = 1 << 32;
/// The same in bits 31:0, where AMD's processors have it.
const PATCH_LEVEL: u64 = 1;
/// IA32_FEATURE_CONTROL: locked, with nothing enabled.
const FEATURES_LOCKED: u64 = 1;
/// IA32_MISC_ENABLE bits that software may set (Intel SDM vol. 4, table 2-2; bit 38 tables 2-20 on): fast strings, thermal
/// control, EIST, MWAIT, limit of CPUID, xTPR, no NX, no turbo. They are held, and CPUID goes on as the model has it.
const MISC_ENABLE_BITS: u64 = 1 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34 | 1 << 38;
/// Those that can only be read, so that what is written does not matter: performance monitoring, and that there is no BTS
/// and no PEBS.
const MISC_ENABLE_FIXED: u64 = 1 << 7 | 1 << 11 | 1 << 12;

/// HWCR.TscFreqSel: the TSC counts at the rate of P-state 0.
const HWCR_TSC_RATE: u64 = 1 << 24;
/// HWCR bits that software may set: TLB cache, INVD, flush filter, IGNNE, 32-bit wrap, machine-check status, boost.
const HWCR_BITS: u64 = 1 << 3 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 17 | 1 << 18 | HWCR_TSC_RATE | 1 << 25;
/// SYSCFG bits that software may set: which memory MTRRs call DRAM.
const SYSCFG_BITS: u64 = 0x1f << 18;
/// NB_CFG: PCI configuration beyond 256 bytes by the port 0xcf8, which there is not, so that the bit stays 0.
const NB_CFG_EXTENDED: u64 = 1 << 46;
/// DE_CFG: LFENCE waits for all instructions before it, which cannot be turned off.
const DE_CFG_LFENCE: u64 = 1 << 1;

/// Bits of IA32_SPEC_CTRL, and what announces each (Intel SDM vol. 4, table 2-2; AMD APM vol. 2, 3.2.9). Whoever has one of
/// the first two takes both.
const SPEC_CTRL_BITS: [(u64, CpuFeatures); 7] = [
    (3, CpuFeatures::of(&[SpecCtrl, Stibp, AmdIbrs, AmdStibp])), // IBRS, STIBP
    (1 << 2, CpuFeatures::of(&[Ssbd, AmdSsbd])),
    (3 << 3, CpuFeatures::of(&[IpredCtrl])),
    (3 << 5, CpuFeatures::of(&[RrsbaCtrl])),
    (1 << 7, CpuFeatures::of(&[Psfd, AmdPsfd])),
    (1 << 8, CpuFeatures::of(&[DdpdU])),
    (1 << 10, CpuFeatures::of(&[BhiCtrl])),
];

/// Bits of IA32_PRED_CMD, and what announces each: IBPB, SBPB.
const PRED_CMD_BITS: [(u64, CpuFeatures); 2] =
    [(1, CpuFeatures::of(&[SpecCtrl, AmdIbpb])), (1 << 7, CpuFeatures::of(&[Sbpb]))];

impl CpuModel {
    /// Bits that IA32_SPEC_CTRL takes; 0 if there is no such MSR.
    pub fn spec_ctrl_bits(&self) -> u64 {
        self.announced_bits(&SPEC_CTRL_BITS)
    }

    /// Bits that IA32_PRED_CMD takes; 0 if there is no such MSR.
    pub fn pred_cmd_bits(&self) -> u64 {
        self.announced_bits(&PRED_CMD_BITS)
    }

    fn announced_bits(&self, table: &[(u64, CpuFeatures)]) -> u64 {
        let there = |of: &CpuFeatures| self.features.intersection(of) != CpuFeatures::EMPTY;
        table.iter().filter(|(_, of)| there(of)).fold(0, |all, (bits, _)| all | bits)
    }
}

/// `value` if it has no bits outside `mask`; of a register without bits there is none.
fn only(value: u64, mask: u64) -> Result<u64, GpFault> {
    if value & !mask == 0 && mask != 0 { Ok(value) } else { Err(GpFault) }
}

impl Msrs {
    /// RDMSR of MSR `index`; `None` if it is not one of these.
    pub fn read_held(&self, model: &CpuModel, index: u32) -> Option<Result<u64, GpFault>> {
        use index::*;
        let given = |there, value| if there { Ok(value) } else { Err(GpFault) };
        let announced = |feature, value| given(model.features.has(feature), value);
        let amd = model.vendor() == Vendor::Amd;
        Some(match index {
            PLATFORM_ID | MCG_CAP => Ok(0),
            FEATURE_CONTROL => Ok(FEATURES_LOCKED),
            SPEC_CTRL => given(model.spec_ctrl_bits() != 0, self.spec_ctrl),
            // Write-only.
            PRED_CMD | BIOS_UPDT_TRIG => Err(GpFault),
            BIOS_SIGN_ID => Ok(if amd { PATCH_LEVEL } else { MICROCODE }),
            ARCH_CAPABILITIES => announced(ArchCapabilities, model.arch_capabilities),
            MCG_STATUS => Ok(self.mcg_status),
            MISC_ENABLE => Ok(self.misc_enable),
            DEBUGCTL => Ok(self.debugctl),
            XSS => announced(Xsaves, 0),
            SYSCFG => given(amd, self.syscfg),
            HWCR => given(amd, self.hwcr | HWCR_TSC_RATE),
            // Nothing of the chipset's waits for C1E, which there is not.
            NB_CFG | INT_PENDING => given(amd, 0),
            DE_CFG => given(amd, DE_CFG_LFENCE),
            _ => Ok(self.mtrr.read(index)?),
        })
    }

    /// WRMSR of `value` to MSR `index`; `None` if it is not one of these. After an error nothing has changed.
    pub fn write_held(&mut self, model: &CpuModel, index: u32, value: u64) -> Option<Result<(), GpFault>> {
        use index::*;
        let given = |there, mask| if there { only(value, mask) } else { Err(GpFault) };
        let amd = model.vendor() == Vendor::Amd;
        Some(match index {
            SPEC_CTRL => only(value, model.spec_ctrl_bits()).map(|value| self.spec_ctrl = value),
            PRED_CMD => only(value, model.pred_cmd_bits()).map(drop),
            // A microcode update that is none: software writes 0 before it reads the revision by CPUID. Nothing that may be
            // brought is one for this processor.
            BIOS_SIGN_ID | BIOS_UPDT_TRIG => Ok(()),
            MCG_STATUS => only(value, 7).map(|value| self.mcg_status = value),
            MISC_ENABLE => only(value & !MISC_ENABLE_FIXED, MISC_ENABLE_BITS)
                .map(|value| self.misc_enable = value | self.misc_enable & MISC_ENABLE_FIXED),
            DEBUGCTL => only(value, 3).map(|value| self.debugctl = value),
            // There are no supervisor state components.
            XSS if value == 0 && model.features.has(Xsaves) => Ok(()),
            XSS => Err(GpFault),
            SYSCFG => given(amd, SYSCFG_BITS).map(|value| self.syscfg = value),
            HWCR => given(amd, HWCR_BITS).map(|value| self.hwcr = value),
            NB_CFG => given(amd, NB_CFG_EXTENDED).map(drop),
            DE_CFG => given(amd, DE_CFG_LFENCE).map(drop),
            PLATFORM_ID | FEATURE_CONTROL | ARCH_CAPABILITIES | MCG_CAP | INT_PENDING => Err(GpFault),
            _ => return self.mtrr.write(index, value),
        })
    }
}

/// IA32_MTRRCAP: 8 variable ranges, fixed ranges, write combining (Intel SDM vol. 3, 12.11.1).
const MTRR_CAP: u64 = 8 | 1 << 8 | 1 << 10;
/// Address bits that exist.
const ADDRESS: u64 = ((1 << PHYS_BITS) - 1) & !0xfff;

enum MtrrRegister {
    Cap,
    DefaultType,
    Fixed(usize),
    Base(usize),
    Mask(usize),
}

fn mtrr_register(index: u32) -> Option<MtrrRegister> {
    use MtrrRegister::*;
    Some(match index {
        0xfe => Cap,
        0x2ff => DefaultType,
        0x250 => Fixed(0),
        0x258..=0x259 => Fixed((index - 0x258) as usize + 1),
        0x268..=0x26f => Fixed((index - 0x268) as usize + 3),
        0x200..=0x20f => {
            let number = ((index - 0x200) / 2) as usize;
            if index & 1 == 0 { Base(number) } else { Mask(number) }
        }
        _ => return None,
    })
}

/// Memory types that an MTRR takes (Intel SDM vol. 3, table 12-8).
const fn valid_type(memory_type: u8) -> bool {
    matches!(memory_type, 0 | 1 | 4 | 5 | 6)
}

impl Mtrrs {
    fn read(&self, index: u32) -> Option<u64> {
        use MtrrRegister::*;
        Some(match mtrr_register(index)? {
            Cap => MTRR_CAP,
            DefaultType => self.def_type,
            Fixed(i) => self.fixed[i],
            Base(i) => self.variable[i][0],
            Mask(i) => self.variable[i][1],
        })
    }

    fn write(&mut self, index: u32, value: u64) -> Option<Result<(), GpFault>> {
        use MtrrRegister::*;
        const ENABLES: u64 = 3 << 10;
        const VALID: u64 = 1 << 11;
        let typed = |mask: u64| value & !(mask | 0xff) == 0 && valid_type(value as u8);
        let (place, ok) = match mtrr_register(index)? {
            Cap => return Some(Err(GpFault)),
            DefaultType => (&mut self.def_type, typed(ENABLES)),
            Fixed(i) => (&mut self.fixed[i], value.to_le_bytes().into_iter().all(valid_type)),
            Base(i) => (&mut self.variable[i][0], typed(ADDRESS)),
            Mask(i) => (&mut self.variable[i][1], value & !(ADDRESS | VALID) == 0),
        };
        if ok {
            *place = value;
        }
        Some(if ok { Ok(()) } else { Err(GpFault) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::{CpuState, Feature, HostProcessor, Signature};

    #[test]
    fn registers_keep_what_they_take_and_refuse_the_rest() {
        let model = CpuModel::named("x86-64-v2", 1, 1_000_000).unwrap();
        let mut msrs = CpuState::reset(0).msrs;
        for (index, good, bad) in [
            (0x48, 1, 1 << 63),
            (0x17a, 4, 8),
            (0x1a0, 0x44_00c5_1809, 1 << 1),
            (0x1a0, 0x1800, 1 << 35),
            (0x1d9, 2, 4),
            (0x2ff, 0xc06, 0xc02),
            (0x250, 0x0606_0606_0606_0606, 0x0706_0606_0606_0606),
            (0x26f, 1, 2),
            (0x20e, 0x8000_0006, 1 << 40),
            (0x20f, 0xff_8000_0800, 0xff_8000_0801),
        ] {
            assert_eq!(msrs.write_held(&model, index, good), Some(Ok(())), "{index:#x}");
            assert_eq!(msrs.write_held(&model, index, bad), Some(Err(GpFault)), "{index:#x}");
            assert_eq!(msrs.read_held(&model, index), Some(Ok(good)), "{index:#x}");
        }
    }

    #[test]
    fn what_has_no_effect_is_no_fault() {
        let model = CpuModel::named("x86-64-v2", 1, 1_000_000).unwrap();
        let mut msrs = CpuState::reset(0).msrs;
        // Fast strings; neither BTS nor PEBS.
        assert_eq!(msrs.read_held(&model, 0x1a0), Some(Ok(0x1801)));
        for (written, read) in [(0, 0x1800), (0x81, 0x1801), (0x4_0040_0881, 0x4_0040_1801)] {
            assert_eq!(msrs.write_held(&model, 0x1a0, written), Some(Ok(())), "{written:#x}");
            assert_eq!(msrs.read_held(&model, 0x1a0), Some(Ok(read)), "{written:#x}");
        }
        let revision = msrs.read_held(&model, 0x8b);
        for index in [0x79, 0x8b] {
            assert_eq!(msrs.write_held(&model, index, 0x1000), Some(Ok(())), "{index:#x}");
        }
        assert_eq!(
            (msrs.read_held(&model, 0x8b), msrs.read_held(&model, 0x79)),
            (revision, Some(Err(GpFault)))
        );
    }

    #[test]
    fn read_only_unannounced_and_unknown_registers() {
        let mut model = CpuModel::named("x86-64-v2", 1, 1_000_000).unwrap();
        let mut msrs = CpuState::reset(0).msrs;
        for index in [0x17, 0x3a, 0x10a, 0x179, 0xfe] {
            assert!(msrs.read_held(&model, index).unwrap().is_ok(), "{index:#x}");
            assert_eq!(msrs.write_held(&model, index, 0), Some(Err(GpFault)), "{index:#x}");
        }
        model.features = model.features.minus(&crate::x86::SPECULATION_FEATURES);
        for index in [0x48, 0x49, 0x10a] {
            assert_eq!(msrs.read_held(&model, index), Some(Err(GpFault)), "{index:#x}");
        }
        assert_eq!(msrs.write_held(&model, 0x49, 1), Some(Err(GpFault)));
        assert_eq!(msrs.read_held(&model, 0xda0), Some(Err(GpFault)));
        model.features = model.features.with(&[Feature::Xsaves]);
        assert_eq!(msrs.read_held(&model, 0xda0), Some(Ok(0)));
        assert_eq!(msrs.write_held(&model, 0xda0, 0), Some(Ok(())));
        assert_eq!(msrs.write_held(&model, 0xda0, 1 << 8), Some(Err(GpFault)));
        for index in [0x10, 0x210, 0x251, 0xc000_0080] {
            assert_eq!(
                (msrs.read_held(&model, index), msrs.write_held(&model, index, 0)),
                (None, None),
                "{index:#x}"
            );
        }
    }

    #[test]
    fn controls_of_speculation_take_the_bits_that_are_announced() {
        let mut model = CpuModel::named("x86-64-v2", 1, 1_000_000).unwrap();
        let mut msrs = CpuState::reset(0).msrs;
        for (features, spec, pred) in [
            (&[SpecCtrl][..], 3, 1),
            (&[Ssbd], 4, 0),
            (&[AmdIbpb], 0, 1),
            (&[AmdStibp, AmdSsbd, AmdPsfd, AmdIbpb, Sbpb], 0x87, 0x81),
            (&[SpecCtrl, Stibp, Ssbd, Psfd, IpredCtrl, RrsbaCtrl, DdpdU, BhiCtrl], 0x5ff, 1),
            (&[], 0, 0),
        ] {
            model.features = CpuFeatures::of(features);
            assert_eq!((model.spec_ctrl_bits(), model.pred_cmd_bits()), (spec, pred), "{features:?}");
            for bit in 0..64 {
                let writes = |bits: u64| if bits >> bit & 1 != 0 { Ok(()) } else { Err(GpFault) };
                assert_eq!(msrs.write_held(&model, 0x48, 1 << bit), Some(writes(spec)), "{features:?} {bit}");
                assert_eq!(msrs.write_held(&model, 0x49, 1 << bit), Some(writes(pred)), "{features:?} {bit}");
            }
            assert_eq!(msrs.read_held(&model, 0x48).unwrap().is_ok(), spec != 0, "{features:?}");
            assert_eq!(msrs.read_held(&model, 0x49), Some(Err(GpFault)));
        }
    }

    /// Linux reads and writes most of them without expecting a fault, and takes LFENCE for serialising only if DE_CFG says so.
    #[test]
    fn registers_of_amds_processors() {
        let signature = Signature { vendor: Vendor::Amd, family: 0x17, model: 0x31, stepping: 0 };
        let host = HostProcessor { signature, features: CpuFeatures::of(Feature::ALL) };
        let amd = CpuModel::on(&host, "host", 1, 1_000_000).unwrap();
        let intel = CpuModel::named("x86-64-v2", 1, 1_000_000).unwrap();
        let mut msrs = CpuState::reset(0).msrs;
        for (index, value) in [(0xc001_0010, 0), (0xc001_0015, 1 << 24), (0xc001_001f, 0), (0xc001_1029, 2)] {
            assert_eq!(msrs.read_held(&amd, index), Some(Ok(value)), "{index:#x}");
            assert_eq!(msrs.write_held(&amd, index, value), Some(Ok(())), "{index:#x}");
            assert_eq!(msrs.write_held(&amd, index, 1 << 60), Some(Err(GpFault)), "{index:#x}");
            assert_eq!(msrs.read_held(&intel, index), Some(Err(GpFault)), "{index:#x}");
            assert_eq!(msrs.write_held(&intel, index, value), Some(Err(GpFault)), "{index:#x}");
        }
        for (index, written, read) in [
            (0xc001_0010, 1 << 19, 1 << 19),
            (0xc001_0015, 1 << 6, 1 << 24 | 1 << 6),
            (0xc001_001f, 1 << 46, 0),
        ] {
            assert_eq!(msrs.write_held(&amd, index, written), Some(Ok(())), "{index:#x}");
            assert_eq!(msrs.read_held(&amd, index), Some(Ok(read)), "{index:#x}");
        }
        for (model, read) in [(&amd, Ok(0)), (&intel, Err(GpFault))] {
            assert_eq!(msrs.read_held(model, 0xc001_0055), Some(read));
            assert_eq!(msrs.write_held(model, 0xc001_0055, 0), Some(Err(GpFault)));
        }
        assert_eq!(msrs.read_held(&amd, 0x10a), Some(Err(GpFault)), "there is no IA32_ARCH_CAPABILITIES");
    }
}
