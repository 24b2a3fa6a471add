//! Methods that cut off singular values of one matrix a group.

use crate::factor::{Factors, Scale, Split};
use crate::layer::Layer;
use crate::{Method, Result};

/// Unfolds the filters of a group, `[N, C, h, w]`, and decomposes them.
pub(crate) fn factors<T: Copy + Into<f64>>(
    layer: &Layer<'_>,
    weight: &[T],
    method: Method,
    vectors: bool,
) -> Result<Factors> {
    let (filters, channels) = (layer.group_filters(), layer.group_channels());
    let [rows, columns] = layer.kernel();
    let taps = rows * columns;
    let at = |n: usize, c: usize, i: usize, j: usize| -> f64 {
        weight[((n * channels + c) * rows + i) * columns + j].into()
    };
    match method {
        Method::Spatial => Factors::new(
            layer.name,
            [filters * columns, channels * rows],
            |row, column| at(row / columns, column / rows, column % rows, row % columns),
            vectors,
        ),
        Method::Channel => Factors::new(
            layer.name,
            [filters * taps, channels],
            |row, c| weight[(row / taps * channels + c) * taps + row % taps].into(),
            vectors,
        ),
        _ => Factors::of_rows(layer.name, weight, layer.len, vectors),
    }
}

/// The weights of a group's two new layers at this rank.
pub(super) fn weights(layer: &Layer<'_>, group: &Factors, method: Method, rank: usize) -> Vec<Vec<f64>> {
    let scale = match method {
        Method::Svd | Method::Spatial => Scale::Both,
        Method::Channel => Scale::Combination,
        _ => Scale::Basis,
    };
    let Split { combination, basis } = group.split(rank, scale);
    let [rows, columns] = layer.kernel();
    let combination = match method {
        // `[n, j, m]` to `[n, m, j]`, and `[n, i j, m]` to `[n, m, i j]`.
        Method::Spatial => turn(&combination, columns, rank),
        Method::Channel => turn(&combination, rows * columns, rank),
        _ => combination,
    };
    vec![basis, combination]
}

/// `[.., a, b]` to `[.., b, a]`.
pub(super) fn turn(from: &[f64], a: usize, b: usize) -> Vec<f64> {
    from.chunks_exact(a * b).flat_map(|block| (0..a * b).map(move |i| block[i % a * b + i / a])).collect()
}
