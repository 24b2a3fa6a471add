//! One row of a map against one row of windows. The window shapes that networks use go through all windows at once, in
//! loops that compile to vector code; every other shape, and windows that stick out of the map, go one by one.

use super::PoolShape;
use std::ops::Range;

/// Columns of the windows of a [`PoolShape`]: the same for every row.
pub(super) struct Row<'a> {
    shape: &'a PoolShape,
    form: Form,
    /// Windows done all at once.
    inside: Range<usize>,
    /// First column of the first of them.
    start: usize,
}

#[derive(Clone, Copy)]
enum Form {
    /// Two columns, two apart.
    TwoByTwo,
    /// Three columns, two apart.
    ThreeByTwo,
    /// Three columns, one apart.
    ThreeByOne,
    Other,
}

impl<'a> Row<'a> {
    pub(super) fn new(shape: &'a PoolShape) -> Self {
        let form = match (shape.kernel[1], shape.stride[1]) {
            (2, 2) => Form::TwoByTwo,
            (3, 2) => Form::ThreeByTwo,
            (3, 1) => Form::ThreeByOne,
            _ => Form::Other,
        };
        let inside = if matches!(form, Form::Other) { 0..0 } else { shape.inside() };
        let start = if inside.is_empty() { 0 } else { inside.start * shape.stride[1] - shape.padding[1] };
        Self { shape, form, inside, start }
    }

    /// The windows done one by one, each with its columns.
    fn others(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        (0..self.inside.start)
            .chain(self.inside.end..self.shape.out_size[1])
            .map(|o| (o, self.shape.window(1, o)))
    }

    /// `dst[o] = combine(.. combine(combine(dst[o], x0), x1) ..)` over the columns of window `o`.
    #[inline(always)]
    pub(super) fn fold(&self, src: &[f32], dst: &mut [f32], combine: impl Fn(f32, f32) -> f32) {
        for (o, columns) in self.others() {
            dst[o] = src[columns].iter().fold(dst[o], |value, &x| combine(value, x));
        }
        let (dst, src) = (&mut dst[self.inside.clone()], &src[self.start..]);
        match self.form {
            Form::TwoByTwo => {
                for (d, [a, b]) in dst.iter_mut().zip(src.as_chunks().0) {
                    *d = combine(combine(*d, *a), *b);
                }
            }
            Form::ThreeByTwo if !dst.is_empty() => {
                for ((d, [a, b]), [_, c]) in dst.iter_mut().zip(src.as_chunks().0).zip(src[1..].as_chunks().0)
                {
                    *d = combine(combine(combine(*d, *a), *b), *c);
                }
            }
            Form::ThreeByOne if !dst.is_empty() => {
                for (((d, a), b), c) in dst.iter_mut().zip(src).zip(&src[1..]).zip(&src[2..]) {
                    *d = combine(combine(combine(*d, *a), *b), *c);
                }
            }
            _ => {}
        }
    }

    /// `at[o]` = `base` plus the first column of window `o` whose element `x` is `hit(x, dst[o])`; unchanged if none is.
    #[inline(always)]
    pub(super) fn find(
        &self,
        src: &[f32],
        dst: &[f32],
        at: &mut [u32],
        base: u32,
        hit: impl Fn(f32, f32) -> bool,
    ) {
        for (o, columns) in self.others() {
            if let Some(column) = columns.clone().find(|&i| hit(src[i], dst[o])) {
                at[o] = base + column as u32;
            }
        }
        let (dst, src, at) = (&dst[self.inside.clone()], &src[self.start..], &mut at[self.inside.clone()]);
        let base = base + self.start as u32;
        let choose = |wins: bool, yes: u32, no: u32| if wins { yes } else { no };
        let found = (0..at.len() as u32).zip(at.iter_mut().zip(dst));
        match self.form {
            Form::TwoByTwo => {
                for ((i, (at, &d)), &[a, b]) in found.zip(src.as_chunks().0) {
                    let column = base + 2 * i;
                    *at = choose(hit(b, d), column + 1, *at);
                    *at = choose(hit(a, d), column, *at);
                }
            }
            Form::ThreeByTwo if !dst.is_empty() => {
                for (((i, (at, &d)), &[a, b]), &[_, c]) in
                    found.zip(src.as_chunks().0).zip(src[1..].as_chunks().0)
                {
                    let column = base + 2 * i;
                    *at = choose(hit(c, d), column + 2, *at);
                    *at = choose(hit(b, d), column + 1, *at);
                    *at = choose(hit(a, d), column, *at);
                }
            }
            Form::ThreeByOne if !dst.is_empty() => {
                for ((((i, (at, &d)), &a), &b), &c) in found.zip(src).zip(&src[1..]).zip(&src[2..]) {
                    let column = base + i;
                    *at = choose(hit(c, d), column + 2, *at);
                    *at = choose(hit(b, d), column + 1, *at);
                    *at = choose(hit(a, d), column, *at);
                }
            }
            _ => {}
        }
    }

    /// Adds `share[o]` to every column of window `o`.
    pub(super) fn spread(&self, share: &[f32], dst: &mut [f32]) {
        for (o, columns) in self.others() {
            dst[columns].iter_mut().for_each(|d| *d += share[o]);
        }
        let (share, dst) = (&share[self.inside.clone()], &mut dst[self.start..]);
        if matches!(self.form, Form::ThreeByOne) {
            for first in 0..if share.is_empty() { 0 } else { 3 } {
                dst[first..].iter_mut().zip(share).for_each(|(d, s)| *d += s);
            }
            return;
        }
        for ([a, b], s) in dst.as_chunks_mut().0.iter_mut().zip(share) {
            *a += s;
            *b += s;
        }
        if matches!(self.form, Form::ThreeByTwo) && !share.is_empty() {
            for ([_, c], s) in dst[1..].as_chunks_mut().0.iter_mut().zip(share) {
                *c += s;
            }
        }
    }
}
