use super::{Calibration, Stream};
use crate::Result;
use crate::layer::Layer;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

/// Windows of a product.
const ROWS: usize = 512;
/// Columns of a task.
const COLUMNS: usize = 48;

/// First and second moments of the windows that the filters of one group see: `x` in the original network, `x'` now.
#[derive(Debug)]
pub(crate) struct Moments {
    /// Mean of `x`, `[L]`.
    pub(crate) mean: Vec<f64>,
    /// Mean of `x'`.
    pub(crate) mean_now: Vec<f64>,
    /// Covariance of `x'`, `[L, L]`.
    pub(crate) own: Mat<f64>,
    /// Covariance of `x` and `x'`; `None` where both are the same.
    pub(crate) cross: Option<Mat<f64>>,
    /// Windows that were looked at.
    pub(crate) samples: f64,
    /// Sum over the filters of the variance of their outputs in the original network.
    pub(crate) variance: f64,
}

impl Moments {
    /// Of each group, for the values that the layer reads in the original network and, where it reads others, now.
    pub(crate) fn of(
        layer: &Layer<'_>,
        mut original: Stream<'_, '_>,
        mut now: Option<Stream<'_, '_>>,
        calibration: &Calibration<'_>,
    ) -> Result<Vec<Self>> {
        let mut groups: Vec<Sums> =
            (0..layer.groups).map(|g| Sums::new(layer, g, now.is_some(), calibration.windows)).collect();
        let image = layer.channels * layer.extents.iter().product::<usize>();
        while let Some((first, maps)) = original.next()? {
            let maps_now = match &mut now {
                Some(now) => now.next()?.map(|(_, maps)| maps),
                None => None,
            };
            for i in 0..maps.len() / image {
                let map = &maps[i * image..][..image];
                let map_now = maps_now.map(|maps| &maps[i * image..][..image]);
                groups.iter_mut().for_each(|sums| sums.look(first + i, map, map_now));
            }
        }
        // So that what was computed is kept.
        if let Some(now) = &mut now {
            now.next()?;
        }
        Ok(groups.into_iter().map(Sums::finish).collect())
    }

    /// Covariance of `x` and `x'`.
    pub(crate) fn cross(&self) -> MatRef<'_, f64> {
        self.cross.as_ref().unwrap_or(&self.own).as_ref()
    }

    /// What is added to the variance of each input.
    #[expect(clippy::cast_precision_loss, reason = "weights of a filter")]
    pub(crate) fn ridge(&self, share: f64) -> f64 {
        let len = self.own.nrows();
        let trace: f64 = (0..len).map(|i| self.own[(i, i)]).sum();
        // An input that is always the same leaves the weights as they are: its variance is rounding.
        let squares: f64 = self.mean_now.iter().map(|mean| mean * mean).sum();
        ((share * trace).max(1e-12 * squares) / len as f64).max(f64::MIN_POSITIVE.sqrt())
    }
}

/// Moments under way.
struct Sums {
    windows: Windows,
    /// Filters of the group, `[L, N]`.
    weight: Mat<f64>,
    /// Windows of a product that are there, of the original network and now.
    x: Mat<f64>,
    x_now: Option<Mat<f64>>,
    rows: usize,
    mean: Vec<f64>,
    mean_now: Vec<f64>,
    /// `sum x' x'^T`, on and below the diagonal.
    own: Mat<f64>,
    /// `sum x x'^T`.
    cross: Option<Mat<f64>>,
    /// Sum and sum of squares of each filter's output.
    outputs: Vec<[f64; 2]>,
    samples: f64,
}

impl Sums {
    fn new(layer: &Layer<'_>, group: usize, two: bool, most: usize) -> Self {
        let len = layer.len;
        let windows = Windows::of(layer, group, most);
        let weight = layer.group(group);
        let weight = Mat::from_fn(len, layer.group_filters(), |i, n| f64::from(weight[n * len + i]));
        let per_image = windows.chosen(0).len();
        // Whole images.
        let rows = ROWS.div_ceil(per_image) * per_image;
        Self {
            windows,
            weight,
            x: Mat::zeros(rows, len),
            x_now: two.then(|| Mat::zeros(rows, len)),
            rows: 0,
            mean: vec![0.0; len],
            mean_now: vec![0.0; len],
            own: Mat::zeros(len, len),
            cross: two.then(|| Mat::zeros(len, len)),
            outputs: vec![[0.0, 0.0]; layer.group_filters()],
            samples: 0.0,
        }
    }

    /// Takes the windows of an image.
    fn look(&mut self, image: usize, map: &[f32], map_now: Option<&[f32]>) {
        let chosen = self.windows.chosen(image);
        self.windows.copy(map, &chosen, &mut self.x, self.rows);
        if let (Some(x_now), Some(map_now)) = (&mut self.x_now, map_now) {
            self.windows.copy(map_now, &chosen, x_now, self.rows);
        }
        self.rows += chosen.len();
        if self.rows == self.x.nrows() {
            self.flush();
        }
    }

    /// Adds the products of what is there.
    fn flush(&mut self) {
        let x = std::mem::replace(&mut self.x, Mat::new());
        let x_now = self.x_now.take();
        let weight = std::mem::replace(&mut self.weight, Mat::new());
        let rows = std::mem::take(&mut self.rows);
        if rows > 0 {
            let now = x_now.as_ref().map(|x| x.subrows(0, rows));
            self.add(x.subrows(0, rows), now, weight.as_ref());
        }
        (self.x, self.x_now, self.weight) = (x, x_now, weight);
    }

    fn add(&mut self, x: MatRef<'_, f64>, now: Option<MatRef<'_, f64>>, weight: MatRef<'_, f64>) {
        let x_now = now.unwrap_or(x);
        let add_sums = |to: &mut [f64], x: MatRef<'_, f64>| {
            to.iter_mut().enumerate().for_each(|(i, sum)| *sum += x.col(i).iter().sum::<f64>());
        };
        add_sums(&mut self.mean, x);
        add_sums(&mut self.mean_now, x_now);
        // Blocks of columns side by side, each in one thread: the same sums for any number of them.
        let len = x.ncols();
        let of_columns = |to: &mut Mat<f64>, left: MatRef<'_, f64>, lower: bool| {
            to.par_col_chunks_mut(COLUMNS).enumerate().for_each(|(block, to)| {
                let first = block * COLUMNS;
                let columns = x_now.subcols(first, to.ncols());
                let from = if lower { first } else { 0 };
                let rows = left.subcols(from, len - from);
                let to = to.subrows_mut(from, len - from);
                matmul(to, Accum::Add, rows.transpose(), columns, 1.0, Par::Seq);
            });
        };
        of_columns(&mut self.own, x_now, true);
        if let Some(cross) = &mut self.cross {
            of_columns(cross, x, false);
        }
        let mut y = Mat::zeros(x.nrows(), weight.ncols());
        matmul(y.as_mut(), Accum::Replace, x, weight, 1.0, Par::Seq);
        for (n, [sum, squares]) in self.outputs.iter_mut().enumerate() {
            for value in y.col(n).iter() {
                *sum += value;
                *squares += value * value;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of windows")]
        {
            self.samples += x.nrows() as f64;
        }
    }

    fn finish(mut self) -> Moments {
        self.flush();
        let n = self.samples;
        self.mean.iter_mut().chain(&mut self.mean_now).for_each(|sum| *sum /= n);
        let len = self.mean.len();
        for j in 0..len {
            for i in j..len {
                let value = self.own[(i, j)] / n - self.mean_now[i] * self.mean_now[j];
                self.own[(i, j)] = value;
                self.own[(j, i)] = value;
            }
            if let Some(cross) = &mut self.cross {
                for i in 0..len {
                    cross[(i, j)] = cross[(i, j)] / n - self.mean[i] * self.mean_now[j];
                }
            }
        }
        let variance =
            self.outputs.iter().map(|[sum, squares]| (squares / n - (sum / n).powi(2)).max(0.0)).sum();
        Moments {
            samples: n,
            mean: self.mean,
            mean_now: self.mean_now,
            own: self.own,
            cross: self.cross,
            variance,
        }
    }
}

/// Places where the filters of a group are applied.
struct Windows {
    channels: [usize; 2],
    extents: [usize; 2],
    result: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    most: usize,
}

impl Windows {
    fn of(layer: &Layer<'_>, group: usize, most: usize) -> Self {
        let conv = layer.as_conv();
        let size = layer.group_channels();
        Self {
            channels: [group * size, size],
            extents: layer.extents,
            result: crate::chain::extents_after(&conv, layer.extents),
            kernel: conv.kernel,
            stride: conv.stride,
            padding: conv.padding,
            dilation: conv.dilation,
            most,
        }
    }

    /// Windows of one image: all, or as many as are asked for, spread over the map, others for each image.
    fn chosen(&self, image: usize) -> Vec<usize> {
        let all = self.result[0] * self.result[1];
        if all <= self.most {
            return (0..all).collect();
        }
        // One in each of equal stretches.
        let mut state = (image as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
        (0..self.most)
            .map(|i| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let (from, to) = (i * all / self.most, (i + 1) * all / self.most);
                let place = ((state >> 11) % (to - from) as u64) as usize;
                from + place
            })
            .collect()
    }

    /// Copies windows of an image into rows of `to`.
    fn copy(&self, map: &[f32], chosen: &[usize], to: &mut Mat<f64>, first_row: usize) {
        // What lies outside of the map is zero.
        to.subrows_mut(first_row, chosen.len()).fill(0.0);
        let [height, width] = self.extents;
        let [rows, columns] = self.kernel;
        let [first_channel, channels] = self.channels;
        for (row, &window) in chosen.iter().enumerate() {
            let [y, x] = [window / self.result[1], window % self.result[1]];
            for i in 0..rows {
                let Some(from_row) = (y * self.stride[0] + i * self.dilation[0])
                    .checked_sub(self.padding[0])
                    .filter(|r| *r < height)
                else {
                    continue;
                };
                for j in 0..columns {
                    let Some(from_column) = (x * self.stride[1] + j * self.dilation[1])
                        .checked_sub(self.padding[1])
                        .filter(|c| *c < width)
                    else {
                        continue;
                    };
                    for c in 0..channels {
                        let value = map[((first_channel + c) * height + from_row) * width + from_column];
                        to[(first_row + row, (c * rows + i) * columns + j)] = f64::from(value);
                    }
                }
            }
        }
    }
}
