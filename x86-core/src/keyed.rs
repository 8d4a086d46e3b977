//! Maps from small keys, such as places of code, for executors.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A map whose keys hash by multiplications: of our own making, so nobody chooses them to collide.
pub type Keyed<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// A set of such keys.
pub type KeyedSet<K> = HashSet<K, BuildHasherDefault<KeyHasher>>;

/// Hashes the words of a key, the same in every run.
#[derive(Clone, Copy, Default, Debug)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}
