//! A set of interrupt vectors: the shape of IRR, ISR and TMR (Intel SDM vol. 3, 11.8.4).

use serde::{Deserialize, Serialize};

/// A set of the 256 interrupt vectors, one bit each, vector 0 in bit 0 of word 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorSet(pub(super) [u64; 4]);

impl VectorSet {
    /// The set without members.
    pub const EMPTY: Self = Self([0; 4]);

    /// The word and the bit in it that stand for `vector`.
    pub(super) const fn place(vector: u8) -> (usize, u64) {
        ((vector >> 6) as usize, 1 << (vector & 63))
    }

    /// True if `vector` is a member.
    pub const fn contains(&self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        self.0[word] & bit != 0
    }

    /// Adds `vector`.
    pub const fn insert(&mut self, vector: u8) {
        let (word, bit) = Self::place(vector);
        self.0[word] |= bit;
    }

    /// Removes `vector`.
    pub const fn remove(&mut self, vector: u8) {
        let (word, bit) = Self::place(vector);
        self.0[word] &= !bit;
    }

    /// Adds or removes `vector`.
    pub const fn set(&mut self, vector: u8, member: bool) {
        if member { self.insert(vector) } else { self.remove(vector) }
    }

    /// The member with the highest number, which is the one with the highest priority.
    pub const fn highest(&self) -> Option<u8> {
        let mut word = 4;
        while word > 0 {
            word -= 1;
            if self.0[word] != 0 {
                return Some((word * 64 + 63) as u8 - self.0[word].leading_zeros() as u8);
            }
        }
        None
    }

    /// True if there is no member.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// Vectors `32 * (index & 7)` and the 31 after it, as a register of the local APIC shows them.
    pub const fn register(&self, index: u8) -> u32 {
        let index = index & 7;
        (self.0[(index >> 1) as usize] >> (32 * (index & 1) as u32)) as u32
    }

    /// The set whose eight registers, lowest vectors first, are `registers`.
    pub fn from_registers(registers: [u32; 8]) -> Self {
        let mut words = [0; 4];
        for (index, register) in registers.into_iter().enumerate() {
            words[index >> 1] |= u64::from(register) << (32 * (index & 1));
        }
        Self(words)
    }
}
