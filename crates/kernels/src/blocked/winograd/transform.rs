//! The matrices of Lavin & Gray 2016 for `F(2x2, 3x3)` and `F(4x4, 3x3)` (interpolation points 0, 1, -1, infinity; and 2, -2), written
//! as sums.

use crate::blocked::lanes::Lanes;

/// `G g G^T` of a filter, in double precision: `N x N` numbers.
pub(super) fn filter<const N: usize>(filter: &[f32; 9]) -> [[f32; N]; N] {
    let g: [[f64; 3]; 3] = std::array::from_fn(|r| std::array::from_fn(|s| f64::from(filter[3 * r + s])));
    // Columns, then rows.
    let half: [[f64; N]; 3] = std::array::from_fn(|s| line::<N>([g[0][s], g[1][s], g[2][s]]));
    std::array::from_fn(|r| line::<N>([half[0][r], half[1][r], half[2][r]]).map(|value| value as f32))
}

/// `G g` of a line of a filter.
fn line<const N: usize>(g: [f64; 3]) -> [f64; N] {
    let [even, odd] = [g[0] + g[2], g[1]];
    let four = [g[0], (even + odd) / 2.0, (even - odd) / 2.0, g[2]];
    let quarter = g[0] / 4.0 + g[2];
    let six = [
        g[0] / 4.0,
        -(even + odd) / 6.0,
        -(even - odd) / 6.0,
        (quarter + odd / 2.0) / 6.0,
        (quarter - odd / 2.0) / 6.0,
        g[2],
    ];
    std::array::from_fn(|i| if N == 4 { four[i] } else { six[i] })
}

/// `B^T d` of a line of an input tile.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it.
#[inline(always)]
pub(super) unsafe fn input<L: Lanes, const N: usize>(d: [L::Vector; N]) -> [L::Vector; N] {
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

/// `A^T m` of a line of products; the last two numbers mean nothing.
///
/// # Safety
/// The machine has `L` and the caller is compiled for it.
#[inline(always)]
pub(super) unsafe fn output<L: Lanes, const N: usize>(m: [L::Vector; N]) -> [L::Vector; N] {
    let mut out = m;
    // SAFETY: promised by the caller.
    unsafe {
        let (sum, difference) = (L::add(m[1], m[2]), L::sub(m[1], m[2]));
        if N == 4 {
            out[0] = L::add(m[0], sum);
            out[1] = L::sub(difference, m[3]);
        } else {
            let (far_sum, far_difference) = (L::add(m[3], m[4]), L::sub(m[3], m[4]));
            out[0] = L::add(L::add(m[0], sum), far_sum);
            out[1] = L::mul_add(far_difference, L::splat(2.0), difference);
            out[2] = L::mul_add(far_sum, L::splat(4.0), sum);
            out[3] = L::add(L::mul_add(far_difference, L::splat(8.0), difference), m[5]);
        }
    }
    out
}
