//! MSRs that hold what software writes to them, within the architecture's rules, and have no other effect. They are the
//! same on every backend because they are here: backends ask [`Msrs::read_held`] and [`Msrs::write_held`] before they
//! look at MSRs of their own.

use crate::{CpuModel, Feature, GpFault, Msrs, Mtrrs, PHYS_BITS};

/// Indices (Intel SDM vol. 4, table 2-2).
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
}

/// A microcode revision in bits 63:32, as CPUID leaves it; 0 would tell that none was loaded.
const MICROCODE: u64 = 1 << 32;
/// IA32_FEATURE_CONTROL: locked, with nothing enabled.
const FEATURES_LOCKED: u64 = 1;
/// IA32_MISC_ENABLE bits that software may set (Intel SDM vol. 4, table 2-2; bit 38 tables 2-20 on): fast strings, thermal
/// control, EIST, MWAIT, limit of CPUID, xTPR, no NX, no turbo. They are held, and CPUID goes on as the model has it.
const MISC_ENABLE_BITS: u64 = 1 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34 | 1 << 38;
/// Those that can only be read, so that what is written does not matter: performance monitoring, and that there is no BTS
/// and no PEBS.
const MISC_ENABLE_FIXED: u64 = 1 << 7 | 1 << 11 | 1 << 12;

/// `value` if it has no bits outside `mask`.
fn only(value: u64, mask: u64) -> Result<u64, GpFault> {
    if value & !mask == 0 { Ok(value) } else { Err(GpFault) }
}

impl Msrs {
    /// RDMSR of MSR `index`; `None` if it is not one of these.
    pub fn read_held(&self, model: &CpuModel, index: u32) -> Option<Result<u64, GpFault>> {
        use index::*;
        let announced = |feature, value| if model.features.has(feature) { Ok(value) } else { Err(GpFault) };
        Some(match index {
            PLATFORM_ID | MCG_CAP => Ok(0),
            FEATURE_CONTROL => Ok(FEATURES_LOCKED),
            SPEC_CTRL => announced(Feature::SpecCtrl, self.spec_ctrl),
            // Write-only.
            PRED_CMD | BIOS_UPDT_TRIG => Err(GpFault),
            BIOS_SIGN_ID => Ok(MICROCODE),
            ARCH_CAPABILITIES => announced(Feature::ArchCapabilities, model.arch_capabilities()),
            MCG_STATUS => Ok(self.mcg_status),
            MISC_ENABLE => Ok(self.misc_enable),
            DEBUGCTL => Ok(self.debugctl),
            XSS => announced(Feature::Xsaves, 0),
            _ => Ok(self.mtrr.read(index)?),
        })
    }

    /// WRMSR of `value` to MSR `index`; `None` if it is not one of these. After an error nothing has changed.
    pub fn write_held(&mut self, model: &CpuModel, index: u32, value: u64) -> Option<Result<(), GpFault>> {
        use index::*;
        let announced =
            |feature, mask| if model.features.has(feature) { only(value, mask) } else { Err(GpFault) };
        let ssbd = if model.features.has(Feature::Ssbd) { 4 } else { 0 };
        Some(match index {
            SPEC_CTRL => announced(Feature::SpecCtrl, 3 | ssbd).map(|value| self.spec_ctrl = value),
            PRED_CMD => announced(Feature::SpecCtrl, 1).map(drop),
            // A microcode update that is none: software writes 0 before it reads the revision by CPUID. Nothing that may be
            // brought is one for this processor.
            BIOS_SIGN_ID | BIOS_UPDT_TRIG => Ok(()),
            MCG_STATUS => only(value, 7).map(|value| self.mcg_status = value),
            MISC_ENABLE => only(value & !MISC_ENABLE_FIXED, MISC_ENABLE_BITS)
                .map(|value| self.misc_enable = value | self.misc_enable & MISC_ENABLE_FIXED),
            DEBUGCTL => only(value, 3).map(|value| self.debugctl = value),
            // There are no supervisor state components.
            XSS => announced(Feature::Xsaves, 0).map(drop),
            PLATFORM_ID | FEATURE_CONTROL | ARCH_CAPABILITIES | MCG_CAP => Err(GpFault),
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
    use crate::CpuState;

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
        model.features = model.features.without(&[Feature::SpecCtrl, Feature::ArchCapabilities]);
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
}
