//! What the machine can do at most, measured: the yardsticks of benches.
#![expect(unsafe_code, reason = "runs vector code on the tier that the machine has")]

use std::time::Instant;

use crate::blocked::lanes::{Kernel, Lanes};
use crate::tier;

/// Launches of one timing.
const REPEATS: usize = 32;
/// Rounds of one launch, each a multiply-add to every sum.
const ROUNDS: usize = 1 << 17;
/// Sums that hide how long a multiply-add takes, as many as stay in registers on every tier but the portable ones.
const SUMS: usize = 12;

/// Starts of the sums, a factor and a summand, from memory: nothing that a compiler could work out beforehand.
struct Multiply<'a>(&'a [f32; SUMS + 2]);

impl Kernel for Multiply<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> f32 {
        // SAFETY: nothing but arithmetic.
        unsafe {
            let mut sums = [L::splat(0.0); SUMS];
            for (sum, start) in sums.iter_mut().zip(self.0) {
                *sum = L::splat(*start);
            }
            let (a, b) = (L::splat(self.0[SUMS]), L::splat(self.0[SUMS + 1]));
            for _ in 0..ROUNDS {
                for (i, sum) in sums.iter_mut().enumerate() {
                    // Fewer where registers are fewer.
                    if i < L::SUMS {
                        *sum = L::mul_add(*sum, a, b);
                    }
                }
            }
            let mut total = L::splat(0.0);
            for sum in sums {
                total = L::add(total, sum);
            }
            L::sum(total)
        }
    }
}

/// Operations (a multiply-add is two) on `f32` in registers that `threads` threads do in a nanosecond: the peak of the CPU tier in
/// use. The best of 20 timings of about 10 ms.
pub fn fma_gflops(threads: usize) -> f64 {
    let tier = tier::active();
    let vectors = ROUNDS * SUMS.min(tier.sums);
    let mut numbers = [1.0; SUMS + 2];
    for (i, number) in numbers.iter_mut().enumerate() {
        *number += 1e-3 * f32::from(u8::try_from(i).unwrap_or(u8::MAX));
    }
    (numbers[SUMS], numbers[SUMS + 1]) = (0.999_9, 1e-4);
    let once = || {
        let start = Instant::now();
        for _ in 0..REPEATS {
            // SAFETY: nothing but arithmetic.
            std::hint::black_box(unsafe { tier.launch(Multiply(std::hint::black_box(&numbers))) });
        }
        (REPEATS * vectors * 16 * 2) as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    let worker = || (0..20).map(|_| once()).fold(0.0, f64::max);
    std::thread::scope(|scope| {
        let handles: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let mine = worker();
        mine + handles.into_iter().map(|handle| handle.join().unwrap_or(0.0)).sum::<f64>()
    })
}

/// Bytes that `threads` threads read from memory in a nanosecond: the best of 5 passes over 512 MiB in all.
pub fn read_gbps(threads: usize) -> f64 {
    const NUMBERS: usize = 128 << 20;
    let part = NUMBERS / threads.max(1);
    let memory: Vec<Vec<f32>> = (0..threads.max(1)).map(|_| vec![1.0; part]).collect();
    let pass = |numbers: &[f32]| {
        let mut lanes = [0.0_f32; 64];
        for chunk in numbers.chunks_exact(64) {
            for (lane, number) in lanes.iter_mut().zip(chunk) {
                *lane += number;
            }
        }
        std::hint::black_box(lanes.iter().sum::<f32>());
    };
    (0..5)
        .map(|_| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for numbers in &memory[1..] {
                    scope.spawn(|| pass(numbers));
                }
                pass(&memory[0]);
            });
            (part * memory.len() * size_of::<f32>()) as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yardsticks_are_of_this_world() {
        // Slower than an interpreter or faster than any core is a loop that was not run as written.
        let peak = fma_gflops(1);
        assert!((0.01..2000.0).contains(&peak), "{peak} GFLOP/s");
        let bandwidth = read_gbps(1);
        assert!((0.01..2000.0).contains(&bandwidth), "{bandwidth} GB/s");
    }
}
