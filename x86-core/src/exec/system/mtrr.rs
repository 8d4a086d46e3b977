//! Memory type range registers (Intel SDM vol. 3, 12.11): they hold what is written and have no effect.

use accel_api::{Mtrrs, PHYS_BITS};

use crate::{Exec, Fault};

/// IA32_MTRRCAP: 8 variable ranges, fixed ranges, write combining.
const CAP: u64 = 8 | 1 << 8 | 1 << 10;
/// Address bits that exist.
const ADDRESS: u64 = ((1 << PHYS_BITS) - 1) & !0xfff;

enum Register {
    Cap,
    DefaultType,
    Fixed(usize),
    Base(usize),
    Mask(usize),
}

fn register(index: u32) -> Option<Register> {
    Some(match index {
        0xfe => Register::Cap,
        0x2ff => Register::DefaultType,
        0x250 => Register::Fixed(0),
        0x258..=0x259 => Register::Fixed((index - 0x258) as usize + 1),
        0x268..=0x26f => Register::Fixed((index - 0x268) as usize + 3),
        0x200..=0x20f => {
            let number = ((index - 0x200) / 2) as usize;
            if index & 1 == 0 { Register::Base(number) } else { Register::Mask(number) }
        }
        _ => return None,
    })
}

/// The value of MSR `index`; `None` if it is not one of these.
pub(super) fn read(mtrr: &Mtrrs, index: u32) -> Option<u64> {
    Some(match register(index)? {
        Register::Cap => CAP,
        Register::DefaultType => mtrr.def_type,
        Register::Fixed(i) => mtrr.fixed[i],
        Register::Base(i) => mtrr.variable[i][0],
        Register::Mask(i) => mtrr.variable[i][1],
    })
}

/// Memory types that an MTRR takes (12.11, table 12-8).
const fn valid_type(memory_type: u8) -> bool {
    matches!(memory_type, 0 | 1 | 4 | 5 | 6)
}

/// Writes MSR `index`; `None` if it is not one of these.
pub(super) fn write(mtrr: &mut Mtrrs, index: u32, value: u64) -> Option<Exec> {
    const ENABLES: u64 = 3 << 10;
    const VALID: u64 = 1 << 11;
    let (place, ok) = match register(index)? {
        Register::Cap => return Some(Err(Fault::GP0)),
        Register::DefaultType => {
            (&mut mtrr.def_type, value & !(ENABLES | 0xff) == 0 && valid_type(value as u8))
        }
        Register::Fixed(i) => (&mut mtrr.fixed[i], value.to_le_bytes().into_iter().all(valid_type)),
        Register::Base(i) => {
            (&mut mtrr.variable[i][0], value & !(ADDRESS | 0xff) == 0 && valid_type(value as u8))
        }
        Register::Mask(i) => (&mut mtrr.variable[i][1], value & !(ADDRESS | VALID) == 0),
    };
    if !ok {
        return Some(Err(Fault::GP0));
    }
    *place = value;
    Some(Ok(()))
}
