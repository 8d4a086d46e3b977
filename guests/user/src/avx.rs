//! The product of [`crate::float`] in vectors of four doubles, where the processor has AVX2.
#![allow(unsafe_code)] // AVX intrinsics with loads and stores through pointers

use crate::float::{N, factors, fold};
use std::arch::x86_64::{
    __m256d, _mm256_add_pd, _mm256_loadu_pd, _mm256_mul_pd, _mm256_set1_pd, _mm256_setzero_pd,
    _mm256_storeu_pd,
};
use std::hint::black_box;
use suite_runner::{Unavailable, Unit};

pub(crate) fn matrix() -> Result<Unit, Unavailable> {
    // Asks CPUID, and XCR0 whether the system saves the registers.
    if !std::arch::is_x86_feature_detected!("avx2") {
        return Err(Unavailable("the processor has no AVX2".to_owned()));
    }
    let (a, b) = factors();
    let mut c = vec![0.0; N * N];
    Ok(Box::new(move || {
        // SAFETY: AVX2 was found above.
        unsafe { multiply(black_box(&a), black_box(&b), &mut c) };
        fold(&c)
    }))
}

#[target_feature(enable = "avx2")]
fn multiply(a: &[f64], b: &[f64], c: &mut [f64]) {
    assert!(a.len() == N * N && b.len() == N * N && c.len() == N * N);
    for i in 0..N {
        for j in (0..N).step_by(8) {
            let mut sums: [__m256d; 2] = [_mm256_setzero_pd(); 2];
            for k in 0..N {
                let factor = _mm256_set1_pd(a[i * N + k]);
                // SAFETY: rows have N elements and j + 8 <= N, since 8 divides N, so both loads lie in `b`, whose
                // length was checked.
                let row = unsafe {
                    let row = b.as_ptr().add(k * N + j);
                    [_mm256_loadu_pd(row), _mm256_loadu_pd(row.add(4))]
                };
                for (sum, column) in sums.iter_mut().zip(row) {
                    *sum = _mm256_add_pd(*sum, _mm256_mul_pd(factor, column));
                }
            }
            // SAFETY: likewise for `c`.
            unsafe {
                let out = c.as_mut_ptr().add(i * N + j);
                _mm256_storeu_pd(out, sums[0]);
                _mm256_storeu_pd(out.add(4), sums[1]);
            }
        }
    }
}
