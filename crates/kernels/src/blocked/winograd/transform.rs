//! The matrices of Lavin & Gray 2016 for `F(2x2, 3x3)` (interpolation points 0, 1, -1, infinity), `F(4x4, 3x3)` (2 and -2 beside
//! those), and `F(2x2, 5x5)` with the same points, written as sums: `N` numbers of the input, filters of `K` taps.

use crate::blocked::lanes::Lanes;

/// `G g` of a line of a filter.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it.
#[inline(always)]
pub(in crate::blocked) unsafe fn filter<L: Lanes, const N: usize, const K: usize>(
    g: [L::Vector; K],
) -> [L::Vector; N] {
    // SAFETY: promised by the caller.
    unsafe {
        let mut out = [g[0]; N];
        out[N - 1] = g[K - 1];
        let (mut even, mut odd) = (L::add(g[0], g[2]), g[1]);
        if N == 4 {
            let half = L::splat(0.5);
            out[1] = L::mul(L::add(even, odd), half);
            out[2] = L::mul(L::sub(even, odd), half);
            return out;
        }
        let (mut far_even, mut far_odd) = (L::mul_add(g[2], L::splat(4.0), g[0]), L::add(g[1], g[1]));
        if K == 5 {
            // Without a constant index: there are no such taps if `K` is 3.
            let [fourth, fifth] = [g[K - 2], g[K - 1]];
            (even, odd) = (L::add(even, fifth), L::add(odd, fourth));
            far_even = L::mul_add(fifth, L::splat(16.0), far_even);
            far_odd = L::mul_add(fourth, L::splat(8.0), far_odd);
        }
        let (minus_sixth, part) = (L::splat(-1.0 / 6.0), L::splat(1.0 / 24.0));
        out[0] = L::mul(g[0], L::splat(0.25));
        out[1] = L::mul(L::add(even, odd), minus_sixth);
        out[2] = L::mul(L::sub(even, odd), minus_sixth);
        out[3] = L::mul(L::add(far_even, far_odd), part);
        out[4] = L::mul(L::sub(far_even, far_odd), part);
        out
    }
}

/// `B^T d` of a line of an input tile.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it.
#[inline(always)]
pub(in crate::blocked) unsafe fn input<L: Lanes, const N: usize>(d: [L::Vector; N]) -> [L::Vector; N] {
    let mut out = d;
    // SAFETY: promised by the caller.
    unsafe {
        if N == 4 {
            out[0] = L::sub(d[0], d[2]);
            out[1] = L::add(d[1], d[2]);
            out[2] = L::sub(d[2], d[1]);
            out[3] = L::sub(d[1], d[3]);
        } else {
            let (minus_four, two, minus_five, four) =
                (L::splat(-4.0), L::splat(2.0), L::splat(-5.0), L::splat(4.0));
            let even = L::mul_add(d[2], minus_four, d[4]);
            let odd = L::mul_add(d[1], minus_four, d[3]);
            out[1] = L::add(even, odd);
            out[2] = L::sub(even, odd);
            let even = L::sub(d[4], d[2]);
            let odd = L::mul(L::sub(d[3], d[1]), two);
            out[3] = L::add(even, odd);
            out[4] = L::sub(even, odd);
            out[0] = L::mul_add(d[0], four, L::mul_add(d[2], minus_five, d[4]));
            out[5] = L::mul_add(d[1], four, L::mul_add(d[3], minus_five, d[5]));
        }
    }
    out
}

/// `A^T m` of a line of products; the last `K - 1` numbers mean nothing.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it.
#[inline(always)]
pub(in crate::blocked) unsafe fn output<L: Lanes, const N: usize, const K: usize>(
    m: [L::Vector; N],
) -> [L::Vector; N] {
    let mut out = m;
    // SAFETY: promised by the caller.
    unsafe {
        let (sum, difference) = (L::add(m[1], m[2]), L::sub(m[1], m[2]));
        if N == 4 {
            out[0] = L::add(m[0], sum);
            out[1] = L::sub(difference, m[3]);
            return out;
        }
        let (far_sum, far_difference) = (L::add(m[3], m[4]), L::sub(m[3], m[4]));
        out[0] = L::add(L::add(m[0], sum), far_sum);
        out[1] = L::mul_add(far_difference, L::splat(2.0), difference);
        if K == 5 {
            out[1] = L::add(out[1], m[5]);
        } else {
            out[2] = L::mul_add(far_sum, L::splat(4.0), sum);
            out[3] = L::add(L::mul_add(far_difference, L::splat(8.0), difference), m[5]);
        }
    }
    out
}

/// `A y` of a line of gradients of the result, the transpose of [`output`]; the last `K - 1` of the given numbers mean nothing.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it.
#[inline(always)]
pub(in crate::blocked) unsafe fn spread<L: Lanes, const N: usize, const K: usize>(
    y: [L::Vector; N],
) -> [L::Vector; N] {
    let mut out = y;
    // SAFETY: promised by the caller.
    unsafe {
        if N == 4 {
            out[1] = L::add(y[0], y[1]);
            out[2] = L::sub(y[0], y[1]);
            out[3] = L::sub(L::splat(0.0), y[1]);
            return out;
        }
        let (mut even, mut odd) = (y[0], y[1]);
        let (mut far_even, mut far_odd) = (y[0], L::add(y[1], y[1]));
        out[5] = y[1];
        if K == 3 {
            (even, odd) = (L::add(even, y[2]), L::add(odd, y[3]));
            far_even = L::mul_add(y[2], L::splat(4.0), far_even);
            far_odd = L::mul_add(y[3], L::splat(8.0), far_odd);
            out[5] = y[3];
        }
        out[1] = L::add(even, odd);
        out[2] = L::sub(even, odd);
        out[3] = L::add(far_even, far_odd);
        out[4] = L::sub(far_even, far_odd);
    }
    out
}

/// `G^T m` of a line of products, the transpose of [`filter`]: that of the gradient of a filter.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it.
#[inline(always)]
pub(in crate::blocked) unsafe fn filter_gradient<L: Lanes, const N: usize, const K: usize>(
    m: [L::Vector; N],
) -> [L::Vector; K] {
    // SAFETY: promised by the caller.
    unsafe {
        let mut out = [m[0]; K];
        let (sum, difference) = (L::add(m[1], m[2]), L::sub(m[1], m[2]));
        if N == 4 {
            let half = L::splat(0.5);
            out[0] = L::mul_add(sum, half, m[0]);
            out[1] = L::mul(difference, half);
            out[2] = L::mul_add(sum, half, m[3]);
            return out;
        }
        let (far_sum, far_difference) = (L::add(m[3], m[4]), L::sub(m[3], m[4]));
        let minus_sixth = L::splat(-1.0 / 6.0);
        let (near_sum, near_difference) = (L::mul(sum, minus_sixth), L::mul(difference, minus_sixth));
        out[0] = L::mul_add(m[0], L::splat(0.25), L::mul_add(far_sum, L::splat(1.0 / 24.0), near_sum));
        out[1] = L::mul_add(far_difference, L::splat(1.0 / 12.0), near_difference);
        out[2] = L::mul_add(far_sum, L::splat(1.0 / 6.0), near_sum);
        if K == 5 {
            out[K - 2] = L::mul_add(far_difference, L::splat(1.0 / 3.0), near_difference);
            out[K - 1] = L::mul_add(far_sum, L::splat(2.0 / 3.0), near_sum);
        }
        out[K - 1] = L::add(out[K - 1], m[5]);
        out
    }
}
