//! Integer work of the kinds that embedded benchmarks mix: a linked list, a matrix of integers, a state machine over
//! text, and a CRC that folds the results of the others, so none can be left out.

use std::hint::black_box;
use suite_runner::{Unit, lcg};

pub(crate) fn mix() -> Unit {
    let mut state = 3;
    let list = List::new(&mut state);
    let (a, b) = (random_matrix(&mut state), random_matrix(&mut state));
    let text = text(&mut state);
    Box::new(move || {
        let mut crc = 0xffff;
        let mut list = black_box(&list).clone();
        for wanted in 0..24u16 {
            crc = crc16(crc, list.find(wanted * 11).into());
            list.reverse();
        }
        list.sort();
        crc = list.fold(crc);
        crc = multiply(black_box(&a), black_box(&b)).iter().fold(crc, |crc, x| crc16(crc, *x));
        for pass in 0..4 {
            crc = scan(black_box(&text), pass).iter().fold(crc, |crc, x| crc16(crc, *x));
        }
        u64::from(crc)
    })
}

/// CRC-16 with the reflected polynomial 0xa001, bit by bit, of four bytes.
fn crc16(mut crc: u16, word: u32) -> u16 {
    for byte in word.to_le_bytes() {
        crc ^= u16::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 };
        }
    }
    crc
}

const NONE: u16 = u16::MAX;

/// A singly linked list whose links are indices: `(next, value)`.
#[derive(Clone)]
struct List {
    nodes: Vec<(u16, u16)>,
    head: u16,
}

impl List {
    fn new(state: &mut u64) -> Self {
        // A stride that is prime to the length scatters neighbours.
        let mut nodes = vec![(NONE, 0); 256];
        for place in 0..255usize {
            nodes[place * 37 % 256].0 = ((place + 1) * 37 % 256) as u16;
        }
        nodes.iter_mut().for_each(|node| node.1 = (lcg(state) >> 56) as u16);
        Self { nodes, head: 0 }
    }

    fn find(&self, value: u16) -> u16 {
        let (mut at, mut steps) = (self.head, 0);
        while at != NONE && self.nodes[at as usize].1 != value {
            at = self.nodes[at as usize].0;
            steps += 1;
        }
        steps
    }

    fn reverse(&mut self) {
        let (mut at, mut before) = (self.head, NONE);
        while at != NONE {
            let next = std::mem::replace(&mut self.nodes[at as usize].0, before);
            (before, at) = (at, next);
        }
        self.head = before;
    }

    /// Merge sort from the bottom up: runs of 1, 2, 4, ...
    fn sort(&mut self) {
        let mut run = 1;
        loop {
            let (mut merges, mut rest, mut tail) = (0, self.head, NONE);
            self.head = NONE;
            while rest != NONE {
                merges += 1;
                let (mut left, mut right, mut size) = (rest, rest, 0);
                while size < run && right != NONE {
                    right = self.nodes[right as usize].0;
                    size += 1;
                }
                let (mut left_size, mut right_size) = (size, run);
                while left_size > 0 || (right_size > 0 && right != NONE) {
                    let take_left = left_size > 0
                        && (right_size == 0
                            || right == NONE
                            || self.nodes[left as usize].1 <= self.nodes[right as usize].1);
                    let (taken, size) =
                        if take_left { (&mut left, &mut left_size) } else { (&mut right, &mut right_size) };
                    *size -= 1;
                    let node = *taken;
                    *taken = self.nodes[node as usize].0;
                    if tail == NONE {
                        self.head = node;
                    } else {
                        self.nodes[tail as usize].0 = node;
                    }
                    tail = node;
                }
                rest = right;
            }
            self.nodes[tail as usize].0 = NONE;
            if merges <= 1 {
                return;
            }
            run *= 2;
        }
    }

    fn fold(&self, mut crc: u16) -> u16 {
        let mut at = self.head;
        while at != NONE {
            let (next, value) = self.nodes[at as usize];
            crc = crc16(crc, u32::from(value) << 16 | u32::from(at));
            at = next;
        }
        crc
    }
}

const SIDE: usize = 12;
type Matrix = [[i16; SIDE]; SIDE];

fn random_matrix(state: &mut u64) -> Matrix {
    std::array::from_fn(|_| std::array::from_fn(|_| (lcg(state) >> 52) as i16 - 2048))
}

fn multiply(a: &Matrix, b: &Matrix) -> Vec<u32> {
    let mut out = Vec::with_capacity(SIDE * SIDE);
    for row in a {
        for j in 0..SIDE {
            let sum: i32 = row.iter().zip(b).map(|(x, other)| i32::from(*x) * i32::from(other[j])).sum();
            out.push((sum >> 2) as u32);
        }
    }
    out
}

fn text(state: &mut u64) -> Vec<u8> {
    const WORDS: [&[u8]; 8] =
        [b"5012", b"-874", b"35.54400", b"0x1f", b"+7.e-3", b"T0.3e-1F", b".5e", b"--2"];
    let mut out = Vec::new();
    while out.len() < 1000 {
        out.extend(WORDS[(lcg(state) >> 61) as usize]);
        out.push(b',');
    }
    out
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Start,
    Sign,
    Int,
    Point,
    Fraction,
    Exponent,
    Power,
    Bad,
}

/// Classifies the numbers of a text by a state machine: how many ended in which state, and the transitions.
fn scan(text: &[u8], salt: u8) -> [u32; 9] {
    let mut counts = [0u32; 9];
    let mut state = State::Start;
    for &byte in text {
        let before = state;
        state = match (state, byte) {
            (_, b',') => {
                counts[state as usize] += 1;
                State::Start
            }
            (State::Start, b'+' | b'-') => State::Sign,
            (State::Start | State::Sign | State::Int, b'0'..=b'9') => State::Int,
            (State::Start | State::Sign, b'.') => State::Point,
            (State::Int, b'.') | (State::Point | State::Fraction, b'0'..=b'9') => State::Fraction,
            (State::Int | State::Fraction, b'e' | b'E') => State::Exponent,
            (State::Exponent, b'+' | b'-' | b'0'..=b'9') | (State::Power, b'0'..=b'9') => State::Power,
            _ => State::Bad,
        };
        if state != before {
            counts[8] = counts[8].wrapping_mul(3) ^ u32::from(byte ^ salt);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_reversed() {
        let mut list = List::new(&mut 9);
        let values = |list: &List| {
            let (mut at, mut out) = (list.head, Vec::new());
            while at != NONE {
                out.push(list.nodes[at as usize].1);
                at = list.nodes[at as usize].0;
            }
            out
        };
        let mut expected = values(&list);
        list.reverse();
        expected.reverse();
        assert_eq!(values(&list), expected);
        list.sort();
        expected.sort_unstable();
        assert_eq!(values(&list), expected);
        assert_eq!(expected.len(), 256);
    }

    /// The check value of CRC-16/ARC is for "123456789"; for four bytes, computed by hand from the definition.
    #[test]
    fn crc_of_one_bit() {
        assert_eq!(crc16(0, 0), 0);
        // A single one bit in the last byte is shifted out eight times: the table entry 1 << 7 of the byte.
        assert_eq!(crc16(0, 0x8000_0000), 0xa001);
    }

    #[test]
    fn numbers_are_classified() {
        let counts = scan(b"12,-3.5,4e-2,x,.5,+,", 0);
        assert_eq!(counts[State::Int as usize], 1);
        assert_eq!(counts[State::Fraction as usize], 2);
        assert_eq!(counts[State::Power as usize], 1);
        assert_eq!(counts[State::Bad as usize], 1);
        assert_eq!(counts[State::Sign as usize], 1);
    }
}
