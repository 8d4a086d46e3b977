//! Floating point: scalar doubles, and packed ones.
#![allow(unsafe_code)] // SSE2 intrinsics with loads and stores through pointers

use std::arch::x86_64::{
    __m128d, _mm_add_pd, _mm_loadu_pd, _mm_mul_pd, _mm_set1_pd, _mm_setzero_pd, _mm_storeu_pd,
};
use std::hint::black_box;
use suite_runner::{Unit, lcg};

#[derive(Clone, Copy)]
struct Body {
    at: [f64; 3],
    speed: [f64; 3],
    mass: f64,
}

/// Five bodies attract each other: square roots, divisions, multiplications of scalar doubles. IEEE 754 says every
/// bit of the result.
pub(crate) fn nbody() -> Unit {
    let mut state = 7;
    // Between -1 and 1, exact.
    let mut random = move || (lcg(&mut state) >> 40) as f64 / f64::from(1 << 23) - 1.0;
    let start: [Body; 5] = std::array::from_fn(|n| Body {
        at: std::array::from_fn(|_| random() * 10.0),
        speed: std::array::from_fn(|_| random()),
        mass: if n == 0 { 40.0 } else { 1.5 + random() },
    });
    Box::new(move || {
        let mut bodies = black_box(start);
        for _ in 0..1000 {
            step(&mut bodies, 0.001);
        }
        bodies.iter().flat_map(|b| b.at).fold(0, |sum: u64, x| sum.rotate_left(9) ^ x.to_bits())
    })
}

fn step(bodies: &mut [Body; 5], dt: f64) {
    for i in 0..5 {
        for j in i + 1..5 {
            let d: [f64; 3] = std::array::from_fn(|k| bodies[i].at[k] - bodies[j].at[k]);
            let square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
            let pull = dt / (square * square.sqrt());
            let (mi, mj) = (bodies[i].mass * pull, bodies[j].mass * pull);
            for (k, d) in d.into_iter().enumerate() {
                bodies[i].speed[k] -= d * mj;
                bodies[j].speed[k] += d * mi;
            }
        }
    }
    for body in bodies {
        for k in 0..3 {
            body.at[k] += dt * body.speed[k];
        }
    }
}

/// Side of the matrices.
pub(crate) const N: usize = 48;

/// [`fold`] of the product of [`factors`].
pub(crate) const PRODUCT: u64 = 0x2c23_67f3_c292_c193;

/// Two matrices of small integers, so that the sums are exact in any order.
pub(crate) fn factors() -> (Vec<f64>, Vec<f64>) {
    let a = (0..N * N).map(|e| ((3 * (e / N) + 7 * (e % N)) % 11) as f64).collect();
    let b = (0..N * N).map(|e| ((5 * (e / N) + e % N) % 13) as f64).collect();
    (a, b)
}

/// All elements of a matrix in one number.
pub(crate) fn fold(c: &[f64]) -> u64 {
    c.iter().fold(0, |sum: u64, x| sum.wrapping_mul(31).wrapping_add(*x as u64))
}

/// The product of two matrices, two columns at a time.
pub(crate) fn matrix() -> Unit {
    let (a, b) = factors();
    let mut c = vec![0.0; N * N];
    Box::new(move || {
        multiply(black_box(&a), black_box(&b), &mut c);
        fold(&c)
    })
}

fn multiply(a: &[f64], b: &[f64], c: &mut [f64]) {
    assert!(a.len() == N * N && b.len() == N * N && c.len() == N * N);
    for i in 0..N {
        for j in (0..N).step_by(4) {
            // SAFETY: SSE2 is part of x86-64. Rows have N elements and j + 4 <= N, since 4 divides N, so all
            // accesses lie in the slices, whose lengths were checked.
            unsafe {
                let mut sums: [__m128d; 2] = [_mm_setzero_pd(); 2];
                for k in 0..N {
                    let factor = _mm_set1_pd(a[i * N + k]);
                    let row = b.as_ptr().add(k * N + j);
                    sums[0] = _mm_add_pd(sums[0], _mm_mul_pd(factor, _mm_loadu_pd(row)));
                    sums[1] = _mm_add_pd(sums[1], _mm_mul_pd(factor, _mm_loadu_pd(row.add(2))));
                }
                let out = c.as_mut_ptr().add(i * N + j);
                _mm_storeu_pd(out, sums[0]);
                _mm_storeu_pd(out.add(2), sums[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_that_of_the_definition() {
        let a: Vec<f64> = (0..N * N).map(|e| (e % 7) as f64).collect();
        let b: Vec<f64> = (0..N * N).map(|e| (e % 5) as f64).collect();
        let mut c = vec![0.0; N * N];
        multiply(&a, &b, &mut c);
        for (i, j) in [(0, 0), (3, 47), (47, 2), (20, 21)] {
            let element: f64 = (0..N).map(|k| a[i * N + k] * b[k * N + j]).sum();
            assert_eq!(c[i * N + j], element);
        }
    }
}
