//! Packing: columns of the right matrix of a product, gathered into a narrow panel that the tiles read in
//! order.
#![expect(unsafe_code, reason = "copies whole vectors through pointers")]

use crate::simd::Simd;

/// Neighbouring columns of a panel that are neighbours in the source too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Columns {
    /// First column in the panel.
    pub(crate) start: usize,
    /// Number of columns.
    pub(crate) len: usize,
    /// Position of the first column in the source.
    pub(crate) src: usize,
}

/// Writes a panel of `S::VECTORS * S::LANES` columns: column `start + i` of row `k` is
/// `src[offsets[k] + columns.src + i]`. The groups of columns follow each other from column 0 on; further
/// columns hold arbitrary numbers.
///
/// # Safety
/// The machine has `S` and the caller is compiled for it.
///
/// # Panics
/// If `dst` is too short, or a column lies outside the panel or `src`.
#[inline(always)]
pub(crate) unsafe fn gather<S: Simd>(src: &[f32], offsets: &[usize], columns: &[Columns], dst: &mut [f32]) {
    const { assert!(S::VECTORS <= 3) };
    let width = S::VECTORS * S::LANES;
    assert!(dst.len() >= offsets.len() * width, "panel: {} numbers of room", dst.len());
    let farthest = offsets.iter().copied().max().unwrap_or(0);
    let mut filled = 0;
    for group in columns {
        assert!(
            group.len > 0 && group.start == filled && filled + group.len <= width,
            "panel: column outside"
        );
        filled += group.len;
        let vectors = group.len.div_ceil(S::LANES);
        if farthest + group.src + vectors * S::LANES > src.len() {
            for (offset, dst) in offsets.iter().zip(dst.chunks_exact_mut(width)) {
                let from = offset + group.src;
                dst[group.start..filled].copy_from_slice(&src[from..from + group.len]);
            }
            continue;
        }
        // Whole vectors are written where they fit the row: what they write beyond the group is overwritten
        // by the next one.
        let last = if group.start + vectors * S::LANES <= width {
            S::LANES
        } else {
            group.len - (vectors - 1) * S::LANES
        };
        // SAFETY: `vectors` vectors from `group.src` on are inside `src` at every offset, and those of which
        // `last` numbers are written inside a row of `dst`; both were checked above.
        unsafe {
            let (src, dst) = (src.as_ptr().add(group.src), dst.as_mut_ptr().add(group.start));
            match vectors {
                1 => gather_vectors::<S, 1>(src, offsets, dst, last),
                2 => gather_vectors::<S, 2>(src, offsets, dst, last),
                _ => gather_vectors::<S, 3>(src, offsets, dst, last),
            }
        }
    }
}

/// Copies `VECTORS` vectors for each offset to the next row of a panel, of the last one only `last` numbers.
///
/// # Safety
/// As [`gather`]; all the numbers named are inside their slices.
#[inline(always)]
unsafe fn gather_vectors<S: Simd, const VECTORS: usize>(
    src: *const f32,
    offsets: &[usize],
    dst: *mut f32,
    last: usize,
) {
    for (k, &offset) in offsets.iter().enumerate() {
        // SAFETY: promised by the caller.
        unsafe {
            let (src, dst) = (src.add(offset), dst.add(k * S::VECTORS * S::LANES));
            let mut vectors = [S::splat(0.0); VECTORS];
            for (v, vector) in vectors.iter_mut().enumerate() {
                *vector = S::load(src.add(v * S::LANES));
            }
            for (v, vector) in vectors.into_iter().enumerate() {
                let dst = dst.add(v * S::LANES);
                if v + 1 < VECTORS || last == S::LANES {
                    S::store(dst, vector);
                } else {
                    S::store_first(dst, last, vector);
                }
            }
        }
    }
}

/// Writes a panel from rows that run along the depth: `dst[k * dst_step + column] = src[column * src_step +
/// k]` for `k < depth` and `column < columns`. Of the other columns, up to the next whole vector, copies of
/// the last one are written.
///
/// # Safety
/// The machine has `S` and the caller is compiled for it.
///
/// # Panics
/// If `src` or `dst` is too short, or `dst_step` is less than the columns rounded up to whole vectors.
#[inline(always)]
pub(crate) unsafe fn transpose<S: Simd>(
    src: &[f32],
    src_step: usize,
    columns: usize,
    depth: usize,
    dst: &mut [f32],
    dst_step: usize,
) {
    if columns == 0 || depth == 0 {
        return;
    }
    assert!(src.len() >= (columns - 1) * src_step + depth, "transposed panel: {} numbers", src.len());
    assert!(dst_step >= columns.next_multiple_of(S::LANES), "transposed panel: rows of {dst_step}");
    assert!(dst.len() >= (depth - 1) * dst_step + columns.next_multiple_of(S::LANES), "panel: {}", dst.len());
    if depth < S::LANES {
        for k in 0..depth {
            for column in 0..columns {
                dst[k * dst_step + column] = src[column * src_step + k];
            }
        }
        return;
    }
    for column in (0..columns).step_by(S::LANES) {
        let last = (columns - column - 1).min(S::LANES - 1);
        let mut k = 0;
        while k < depth {
            // The last block overlaps the one before it.
            let start = k.min(depth - S::LANES);
            // SAFETY: rows `column ..= column + last` of `src` hold `start + LANES <= depth` numbers, and the
            // rows `start .. start + LANES` of `dst` hold whole vectors up to `column + LANES`; asserted
            // above.
            unsafe {
                let (src, dst) = (src.as_ptr(), dst.as_mut_ptr());
                S::transpose(
                    src.add(column * src_step + start),
                    src_step,
                    last,
                    dst.add(start * dst_step + column),
                    dst_step,
                );
            }
            k += S::LANES;
        }
    }
}

/// Rows of products and the places they are added to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread<'a> {
    pub(crate) rows: usize,
    /// Distance between rows of products.
    pub(crate) src_row: usize,
    /// Distance between the places of two rows.
    pub(crate) dst_row: usize,
    /// Distance between the places of two columns of a group.
    pub(crate) dst_col: usize,
    /// Columns of the products; `src` of a group is a position in the destination.
    pub(crate) columns: &'a [Columns],
}

/// Adds products to the places that their columns came from: `dst[row * dst_row + columns.src + i * dst_col]
/// += src[row * src_row + columns.start + i]`.
///
/// # Safety
/// The machine has `S` and the caller is compiled for it.
///
/// # Panics
/// If a column lies outside `src` or `dst`.
#[inline(always)]
pub(crate) unsafe fn spread<S: Simd>(spread: &Spread<'_>, src: &[f32], dst: &mut [f32]) {
    let Spread { rows, src_row, dst_row, dst_col, columns } = *spread;
    // Rows inside groups: a store to one group and a load from the next, which lies close, would wait for
    // each other.
    for group in columns {
        for row in 0..rows {
            let src = &src[row * src_row + group.start..][..group.len];
            let dst = &mut dst[row * dst_row + group.src..];
            if dst_col != 1 {
                for (dst, src) in dst.iter_mut().step_by(dst_col).zip(src) {
                    *dst += src;
                }
                continue;
            }
            let dst = &mut dst[..group.len];
            for at in (0..group.len).step_by(S::LANES) {
                let count = (group.len - at).min(S::LANES);
                // SAFETY: both slices have `at + count` numbers.
                unsafe {
                    let (src, dst) = (src.as_ptr().add(at), dst.as_mut_ptr().add(at));
                    S::store_first(dst, count, S::add(S::load_first(dst, count), S::load_first(src, count)));
                }
            }
        }
    }
}

/// Takes every `step`-th number: `dst[i] = src[i * step]`.
///
/// # Safety
/// The machine has `S` and the caller is compiled for it.
///
/// # Panics
/// If `src` is too short.
#[inline(always)]
pub(crate) unsafe fn take<S: Simd>(src: &[f32], step: usize, dst: &mut [f32]) {
    let len = dst.len();
    if len == 0 {
        return;
    }
    assert!((len - 1) * step < src.len(), "take: {len} numbers, every {step}th of {}", src.len());
    // Whole vectors by the instruction set; `2 * LANES * vectors` numbers are read where the step is 2.
    let whole = match step {
        1 => len,
        2 => src.len().min(2 * len) / (2 * S::LANES) * S::LANES,
        _ => 0,
    };
    for at in (0..whole).step_by(S::LANES) {
        // SAFETY: `at + LANES <= whole <= len` where the vector is whole; else only the numbers up to `len`
        // are touched. With step 2, `2 (at + LANES) <= 2 whole <= src.len()`.
        unsafe {
            let (src, dst) = (src.as_ptr().add(at * step), dst.as_mut_ptr().add(at));
            if step == 2 {
                S::store(dst, S::load_even(src));
            } else if len - at >= S::LANES {
                S::store(dst, S::load(src));
            } else {
                S::store_first(dst, len - at, S::load_first(src, len - at));
            }
        }
    }
    for i in whole..len {
        dst[i] = src[i * step];
    }
}
