//! Tucker-2: both channel sides of the weight tensor.

use super::matrix::factors;
use crate::factor::{Factors, Scale};
use crate::layer::Layer;
use crate::{Method, Result, Spectrum};

/// The iteration ends when the core's squared norm grows by less than this share, or after [`ROUNDS`].
const GAIN: f64 = 1e-9;
const ROUNDS: usize = 50;

/// One group's tensor `[N, C, h w]` and the decompositions of its two unfoldings (higher-order SVD).
#[derive(Debug)]
pub(crate) struct Tucker {
    tensor: Tensor,
    output: Factors,
    input: Factors,
}

impl Tucker {
    pub(crate) fn new(layer: &Layer<'_>, weight: Vec<f64>, vectors: bool) -> Result<Self> {
        Ok(Self {
            output: factors(layer, &weight, Method::Pca, vectors)?,
            input: factors(layer, &weight, Method::Channel, vectors)?,
            tensor: Tensor {
                filters: layer.group_filters(),
                channels: layer.group_channels(),
                taps: layer.len / layer.group_channels(),
                data: weight,
            },
        })
    }

    /// Of the output side and of the input side.
    pub(crate) fn spectra(&self) -> (Spectrum, Option<Spectrum>) {
        (Spectrum::new(self.output.squares.clone()), Some(Spectrum::new(self.input.squares.clone())))
    }

    /// Reduction `[input, C]`, core `[output, input, taps]`, expansion `[N, output]`: the two outer ones are orthonormal, so that
    /// what the core lacks of the squared norm is the squared error.
    pub(super) fn weights(&self, layer: &str, [input, output]: [usize; 2]) -> Result<Vec<Vec<f64>>> {
        let mut reduce = self.input.split(input, Scale::Combination).basis;
        let mut expand = self.output.split(output, Scale::Basis).combination;
        let mut kept = 0.0;
        for round in 0..=ROUNDS {
            let inside = self.tensor.reduce(&reduce, input);
            let core = inside.expand_transposed(&expand, output);
            let now: f64 = core.data.iter().map(|v| v * v).sum();
            if round == ROUNDS || now - kept <= GAIN * now {
                return Ok(vec![reduce, core.data, expand]);
            }
            kept = now;
            // Each side is the best for the other one.
            let len = inside.channels * inside.taps;
            let element = |row: usize, position: usize| inside.data[row * len + position];
            expand = Factors::new(layer, [inside.filters, len], element, true)?
                .split(output, Scale::Basis)
                .combination;
            let outside = self.tensor.expand_transposed(&expand, output);
            let element = |row: usize, c: usize| {
                outside.data[(row / outside.taps * outside.channels + c) * outside.taps + row % outside.taps]
            };
            reduce = Factors::new(layer, [outside.filters * outside.taps, outside.channels], element, true)?
                .split(input, Scale::Combination)
                .basis;
        }
        unreachable!("the last round returns")
    }
}

/// `[filters, channels, taps]`.
#[derive(Debug)]
struct Tensor {
    filters: usize,
    channels: usize,
    taps: usize,
    data: Vec<f64>,
}

impl Tensor {
    /// `[filters, rank, taps]` by `[rank, channels]`.
    fn reduce(&self, by: &[f64], rank: usize) -> Self {
        let mut data = vec![0.0; self.filters * rank * self.taps];
        let blocks =
            data.chunks_exact_mut(rank * self.taps).zip(self.data.chunks_exact(self.channels * self.taps));
        for (to, from) in blocks {
            for (to, factors) in to.chunks_exact_mut(self.taps).zip(by.chunks_exact(self.channels)) {
                for (from, factor) in from.chunks_exact(self.taps).zip(factors) {
                    to.iter_mut().zip(from).for_each(|(t, f)| *t += factor * f);
                }
            }
        }
        Self { channels: rank, data, ..*self }
    }

    /// `[rank, channels, taps]` by the transpose of `[filters, rank]`.
    fn expand_transposed(&self, by: &[f64], rank: usize) -> Self {
        let len = self.channels * self.taps;
        let mut data = vec![0.0; rank * len];
        for (from, factors) in self.data.chunks_exact(len).zip(by.chunks_exact(rank)) {
            for (to, factor) in data.chunks_exact_mut(len).zip(factors) {
                to.iter_mut().zip(from).for_each(|(t, f)| *t += factor * f);
            }
        }
        Self { filters: rank, data, ..*self }
    }
}
