//! Gradient of a convolution of blocked maps with respect to its input.
//!
//! `grad_src[c, i, j]` is the sum over outputs of the gradients of those that read the pixel times the weights that they read it
//! with. The pixels `i = stride q + phase` are read through the same taps, for every `q`: so each phase is a convolution of stride
//! 1 of the gradient with some of the filters' taps, in reverse, inputs and outputs exchanged, that writes every `stride`-th
//! pixel. Without a stride there is one.
#![expect(unsafe_code, reason = "jobs write into one shared map")]

use super::pack::Source;
use super::{Conv, Window};
use crate::blocked::memory::Memory;
use crate::blocked::sequence::Stage as _;
use crate::blocked::{BLOCK, PackedMemory, Place, Step, View, WinogradTile};
use crate::par::{Par, for_each_job};
use crate::tier::{self, Tier};

/// The gradient of a convolution with respect to its input, for maps laid out in a given way and some filters.
#[derive(Debug)]
pub struct InputGradient {
    way: Way,
    grad: View,
    src: View,
    images: usize,
    macs: u64,
}

#[derive(Debug)]
enum Way {
    /// Phase by phase.
    Direct(Vec<Phase>),
    /// All pixels, by Winograd's method.
    Winograd(Step),
}

/// The pixels of a phase.
#[derive(Debug)]
struct Phase {
    pixels: View,
    /// Zero where nothing reads them.
    conv: Option<Conv>,
}

/// What reads the pixels of a phase along one dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Taps {
    /// Pixels.
    size: usize,
    /// Taps, those that read the farthest output last.
    taps: Vec<usize>,
    /// From the output that the first one reads to pixel `q`, and from one to the next.
    padding: isize,
    dilation: usize,
}

impl Taps {
    /// Taps of phase `phase` along dimension `d` of an input of `size` pixels.
    fn new(window: &Window, d: usize, phase: usize, size: usize) -> Self {
        let (stride, dilation, padding) = (window.stride[d], window.dilation[d], window.padding[d]);
        let taps: Vec<usize> = (0..window.kernel[d])
            .rev()
            .filter(|tap| (phase + padding).abs_diff(tap * dilation).is_multiple_of(stride))
            .collect();
        // Pixel `stride q + phase` is read by output `q + reach` through a tap.
        let reach = |tap: usize| ((phase + padding) as isize - (tap * dilation) as isize) / stride as isize;
        let between = match taps[..] {
            [first, second, ..] => (reach(second) - reach(first)).unsigned_abs(),
            _ => 1,
        };
        Self {
            size: size.saturating_sub(phase).div_ceil(stride),
            padding: taps.first().map_or(0, |tap| -reach(*tap)),
            dilation: between,
            taps,
        }
    }

    /// Zeros that are read before the first output, and after the last of `outputs`.
    fn border(&self, outputs: usize) -> usize {
        if self.taps.is_empty() || self.size == 0 {
            return 0;
        }
        let last = (self.size - 1 + (self.taps.len() - 1) * self.dilation) as isize - self.padding;
        self.padding.max(last + 1 - outputs as isize).max(0).unsigned_abs()
    }
}

impl InputGradient {
    /// Rows and columns of zeros that the gradient of the result must have around it.
    pub fn border(window: &Window, src: [usize; 2], dst: [usize; 2]) -> [usize; 2] {
        std::array::from_fn(|d| {
            let phases = 0..window.stride[d].min(src[d]);
            phases.map(|phase| Taps::new(window, d, phase, src[d]).border(dst[d])).max().unwrap_or(0)
        })
    }

    /// For filters `weight` `[outputs, inputs / groups, kernel_h, kernel_w]` whose results have gradients like `grad`, and a
    /// gradient of the input like `src`, both blocked, and up to `images` images; by Winograd's method if there is a `tile`.
    ///
    /// `par`, how it will run, and `images` only guide how the work is cut; the result does not depend on them.
    /// Filters are packed in memory that may have held others before.
    ///
    /// # Panics
    /// If an extent or a length does not fit, the border of `grad` is narrower than [`border`](Self::border), or that of `src`
    /// narrower than the padding; or if there is a tile that does not [fit](WinogradTile::fits_gradient).
    #[expect(clippy::too_many_arguments, reason = "what a gradient is made of")]
    pub fn new(
        window: Window,
        weight: &[f32],
        grad: &View,
        src: &View,
        tile: Option<WinogradTile>,
        images: usize,
        par: Par,
        memory: &mut PackedMemory,
    ) -> Self {
        Self::on(tier::active(), window, weight, grad, src, tile, images, par, memory)
    }

    /// Gives back the memory of its packed filters.
    pub fn into_memory(self, memory: &mut PackedMemory) {
        match self.way {
            Way::Direct(phases) => phases
                .into_iter()
                .filter_map(|phase| phase.conv)
                .for_each(|conv| memory.give(Box::new(conv).into_lines())),
            Way::Winograd(step) => step.into_memory(memory),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "those of `new` and the tier")]
    fn on(
        tier: &'static Tier,
        window: Window,
        weight: &[f32],
        grad: &View,
        src: &View,
        tile: Option<WinogradTile>,
        images: usize,
        par: Par,
        memory: &mut PackedMemory,
    ) -> Self {
        let threads = if par == Par::Serial { 1 } else { rayon::current_num_threads() };
        let grad = View { place: Place::Images, ..grad.clone() };
        let src = View { place: Place::Arena, ..src.clone() };
        super::check_extents(&window, &src, &View { place: Place::Arena, ..grad.clone() });
        assert!(src.pixel_stride == BLOCK && src.phases == 1, "input gradient: not blocked: {src:?}");
        let border = Self::border(&window, src.size, grad.size);
        assert!(
            grad.border[0] >= border[0] && grad.border[1] >= border[1],
            "input gradient: border {:?}, needs {border:?}",
            grad.border
        );
        let (inputs, outputs) = (src.channels(), grad.channels());
        let [kernel_h, kernel_w] = window.kernel;
        let (group_in, group_out) = (inputs / window.groups, outputs / window.groups);
        assert_eq!(
            weight.len(),
            outputs * group_in * kernel_h * kernel_w,
            "input gradient: length of weight"
        );
        let macs = (weight.len() * grad.size[0] * grad.size[1]) as u64;
        if let Some(tile) = tile {
            let fits = tile.fits_gradient(&window, &src, &grad);
            assert!(fits, "input gradient: {tile:?} for {window:?}");
            let lines = memory.take();
            let step =
                Step::winograd_gradient(tier, tile, window, weight, &grad, &src, images, threads, par, lines);
            return Self { way: Way::Winograd(step), grad, src, images, macs };
        }
        let [stride_h, stride_w] = window.stride;
        let mut phases = Vec::new();
        let (rows, columns) = (stride_h.min(src.size[0]), stride_w.min(src.size[1]));
        for (py, px) in (0..rows).flat_map(|py| (0..columns).map(move |px| (py, px))) {
            let [y, x] = [(0, py), (1, px)].map(|(d, phase)| Taps::new(&window, d, phase, src.size[d]));
            if y.size == 0 || x.size == 0 {
                continue;
            }
            let strided = window.stride != [1, 1];
            let pixels = View {
                offset: src.at(0, 0, py as isize, px as isize),
                row_stride: src.row_stride * stride_h,
                pixel_stride: src.pixel_stride * stride_w,
                size: [y.size, x.size],
                // Where phases interleave, the border is nobody's.
                border: if strided { [0, 0] } else { src.border },
                ..src.clone()
            };
            if y.taps.is_empty() || x.taps.is_empty() {
                phases.push(Phase { pixels, conv: None });
                continue;
            }
            // Where the first tap reads beyond pixel `q`, the map begins there.
            let ahead = [y.padding, x.padding].map(|padding| padding.min(0).unsigned_abs());
            let from = View {
                offset: grad.at(0, 0, ahead[0] as isize, ahead[1] as isize),
                size: [grad.size[0] - ahead[0].min(grad.size[0]), grad.size[1] - ahead[1].min(grad.size[1])],
                ..grad.clone()
            };
            let window = Window {
                kernel: [y.taps.len(), x.taps.len()],
                stride: [1, 1],
                padding: [y.padding, x.padding].map(|padding| padding.max(0).unsigned_abs()),
                dilation: [y.dilation, x.dilation],
                groups: window.groups,
            };
            super::check_extents(&window, &from, &pixels);
            let taps: Vec<usize> =
                y.taps.iter().flat_map(|r| x.taps.iter().map(move |s| r * kernel_w + s)).collect();
            let filter = kernel_h * kernel_w;
            let source = Source {
                weight,
                bias: None,
                strides: [filter, group_in * filter],
                group: group_out * group_in * filter,
                taps: &taps,
            };
            let (from, to, _) = super::flatten(&window, &from, &pixels, None);
            let conv = Conv::of(tier, window, &source, false, from, None, to, memory.take());
            phases.push(Phase { pixels, conv: Some(conv.scheduled(images, threads)) });
        }
        Self { way: Way::Direct(phases), grad, src, images, macs }
    }

    /// Numbers of scratch memory for each thread, and [`Step::SCRATCH_MORE`] in all.
    pub fn scratch_len(&self) -> usize {
        match &self.way {
            Way::Direct(_) => 0,
            Way::Winograd(step) => step.scratch_len(),
        }
    }

    /// Overwrites the gradient of the input of `images` images, zeros in its border included. As many threads take part as
    /// `scratch` is long enough for, if any is needed.
    ///
    /// # Panics
    /// If a slice is shorter than its view, or there are more images than it was made for, or not enough scratch memory for one
    /// thread.
    pub fn run(&self, images: usize, grad: &[f32], src: &mut [f32], scratch: &mut [f32], par: Par) {
        assert!(images <= self.images, "input gradient: {images} images of {}", self.images);
        for (name, view, found) in [("gradient", &self.grad, grad.len()), ("input", &self.src, src.len())] {
            let inside = view.inside(images, found);
            assert!(inside, "input gradient: {name} of {images} images in {found} numbers: {view:?}");
        }
        let memory = Memory { images: grad.as_ptr(), arena: src.as_mut_ptr(), ..Memory::default() };
        let threads = par.threads(self.macs * images as u64);
        let phases = match &self.way {
            Way::Direct(phases) => phases,
            // SAFETY: the views are inside the slices, which are different ones.
            Way::Winograd(step) => return unsafe { step.run_jobs(images, &memory, scratch, threads) },
        };
        for Phase { pixels, conv } in phases {
            match conv {
                Some(conv) => for_each_job(threads, conv.jobs(images), &mut [], 0, |job, _| {
                    // SAFETY: the views are inside the slices, which are different ones, and every job runs once.
                    unsafe { conv.run(job, images, &memory, std::ptr::null_mut()) };
                }),
                None => for_each_job(threads, images, &mut [], 0, |image, _| {
                    // SAFETY: as above; jobs differ in images.
                    unsafe { zero(pixels, image, &memory) };
                }),
            }
        }
        if self.src.border != [0, 0] && phases.first().is_none_or(|phase| phase.pixels.border == [0, 0]) {
            let blocks = 0..self.src.blocks();
            for_each_job(threads, images, &mut [], 0, |image, _| {
                // SAFETY: as above.
                unsafe { memory.clear_border(&self.src, image, blocks.clone(), 0..self.src.size[0]) };
            });
        }
    }
}

/// Zeroes the pixels of an image.
///
/// # Safety
/// The view is inside the memory, and nothing else touches this image.
unsafe fn zero(pixels: &View, image: usize, memory: &Memory) {
    for block in 0..pixels.blocks() {
        for y in 0..pixels.size[0] {
            for x in 0..pixels.size[1] {
                let pixel = memory.at_mut(pixels, image, block, y as isize, x as isize);
                // SAFETY: handed on from the caller.
                unsafe { std::ptr::write_bytes(pixel, 0, BLOCK) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocked::testing::{check_zeros, noise, pack, unpack};
    use crate::tier::available;
    use crate::{ConvShape, conv2d_backward_src};

    /// The formula, in double precision: every product goes where its number came from.
    fn oracle(shape: &ConvShape, grad: &[f32], weight: &[f32]) -> Vec<f64> {
        let (group_in, group_out) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
        let [height, width] = shape.out_size();
        let [rows, columns] = shape.in_size;
        let mut src = vec![0.0; shape.src_len()];
        let mut at = 0;
        for n in 0..shape.batch {
            for o in 0..shape.out_channels {
                for y in 0..height {
                    for x in 0..width {
                        for c in 0..group_in {
                            for r in 0..shape.kernel[0] {
                                for s in 0..shape.kernel[1] {
                                    let i = y * shape.stride[0] + r * shape.dilation[0];
                                    let j = x * shape.stride[1] + s * shape.dilation[1];
                                    let (Some(i), Some(j)) =
                                        (i.checked_sub(shape.padding[0]), j.checked_sub(shape.padding[1]))
                                    else {
                                        continue;
                                    };
                                    if i < rows && j < columns {
                                        let channel = n * shape.in_channels + o / group_out * group_in + c;
                                        let w =
                                            ((o * group_in + c) * shape.kernel[0] + r) * shape.kernel[1] + s;
                                        src[(channel * rows + i) * columns + j] +=
                                            f64::from(grad[at]) * f64::from(weight[w]);
                                    }
                                }
                            }
                        }
                        at += 1;
                    }
                }
            }
        }
        src
    }

    fn check_case(window: Window, inputs: &[usize], outputs: &[usize], size: [usize; 2]) {
        let images = 3;
        let Window { kernel, stride, padding, dilation, groups } = window;
        let shape = ConvShape {
            batch: images,
            in_channels: inputs.iter().sum(),
            in_size: size,
            out_channels: outputs.iter().sum(),
            kernel,
            stride,
            padding,
            dilation,
            groups,
        };
        let out = shape.out_size();
        let border = InputGradient::border(&window, size, out);
        let grad = View::blocked(32, outputs, out, border);
        let src = View::blocked(16, inputs, size, [padding[0].max(1), padding[1]]);
        let g = noise(shape.dst_len(), 1);
        let weight = noise(shape.weight_len(), 2);
        let mut grad_memory = vec![f32::NAN; grad.extent(images).end];
        pack(&grad, images, &g, &mut grad_memory);
        let expected = oracle(&shape, &g, &weight);
        let depth = (shape.out_channels / groups * kernel[0] * kernel[1]) as f64;
        for tier in available() {
            let tiles = WinogradTile::ALL.into_iter().filter(|t| t.fits_gradient(&window, &src, &grad));
            for tile in std::iter::once(None).chain(tiles.map(Some)) {
                let run = |par: Par| {
                    // In memory that held the filters of another layer.
                    let mut used = PackedMemory::default();
                    let other = View::blocked(0, &[16], [2, 2], [0, 0]);
                    let one = window_of_one();
                    InputGradient::on(tier, one, &[f32::NAN; 256], &other, &other, None, 1, par, &mut used)
                        .into_memory(&mut used);
                    let gradient = InputGradient::on(
                        tier,
                        window,
                        &weight,
                        &grad,
                        &src,
                        tile,
                        images + 2,
                        par,
                        &mut used,
                    );

                    let mut memory = vec![f32::NAN; src.extent(images).end];
                    memory[..src.extent(images).start].fill(0.0);
                    let mut scratch = vec![f32::NAN; 7 * gradient.scratch_len() + Step::SCRATCH_MORE];
                    gradient.run(images, &grad_memory, &mut memory, &mut scratch, par);
                    memory
                };
                let memory = run(Par::Serial);
                check_zeros(&src, images, &memory);
                let bound = tile.map_or(1e-6, |tile| f64::from(tile.error_bound(kernel[0])));
                for (found, expected) in unpack(&src, images, &memory).iter().zip(&expected) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(
                        error <= bound * depth.max(4.0),
                        "{tier:?} {tile:?} {window:?}: {found}, expected {expected}"
                    );
                }
                for threads in [2, 3, 7] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    assert_eq!(pool.install(|| run(Par::Rayon)), memory);
                }
            }
        }
        let mut second = vec![0.0; shape.src_len()];
        conv2d_backward_src(&shape, &g, &weight, &mut second, Par::Serial);
        for (found, expected) in second.iter().zip(&expected) {
            assert!(
                (f64::from(*found) - expected).abs() <= 1e-5 * depth.sqrt().max(4.0),
                "{found} {expected}"
            );
        }
    }

    fn window_of_one() -> Window {
        window([1, 1], [1, 1], [0, 0], 1)
    }

    fn window(kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2], groups: usize) -> Window {
        Window { kernel, stride, padding, dilation: [1, 1], groups }
    }

    #[test]
    fn every_kind_of_convolution_equals_the_formula() {
        let three = window([3, 3], [1, 1], [1, 1], 1);
        check_case(three, &[16], &[16], [9, 9]);
        check_case(three, &[32], &[64], [8, 7]);
        check_case(three, &[5], &[20], [7, 7]);
        check_case(window([3, 3], [1, 1], [0, 0], 1), &[20, 3], &[53], [7, 9]);
        check_case(window([3, 3], [2, 2], [1, 1], 1), &[16], &[32], [8, 8]);
        check_case(window([3, 3], [2, 2], [1, 1], 1), &[7], &[33], [13, 14]);
        check_case(window([1, 1], [2, 2], [0, 0], 1), &[16], &[32], [8, 9]);
        check_case(window([1, 1], [1, 1], [0, 0], 1), &[40], &[80], [7, 7]);
        check_case(window([5, 5], [1, 1], [2, 2], 2), &[48, 48], &[53, 53], [7, 9]);
        check_case(window([5, 5], [1, 1], [2, 2], 2), &[96], &[106], [6, 4]);
        check_case(window([5, 5], [2, 3], [2, 2], 1), &[6], &[16], [11, 12]);
        check_case(window([11, 11], [4, 4], [2, 2], 1), &[3], &[24], [35, 31]);
        check_case(window([2, 2], [3, 3], [1, 0], 1), &[4], &[5], [11, 9]);
        check_case(window([1, 3], [2, 1], [0, 1], 4), &[8], &[12], [6, 6]);
        check_case(window([2, 2], [1, 1], [2, 2], 1), &[4], &[5], [6, 6]);
        // More rows of results than of the input, which a point sees; a filter as large as the map; more phases than pixels.
        check_case(window([1, 1], [1, 2], [1, 0], 1), &[16], &[16], [12, 32]);
        check_case(window([1, 1], [1, 1], [1, 1], 1), &[16], &[16], [16, 16]);
        check_case(window([6, 6], [1, 1], [0, 0], 1), &[5], &[20], [6, 6]);
        check_case(window([3, 3], [9, 200], [1, 1], 1), &[5], &[20], [6, 6]);
        check_case(Window { dilation: [2, 3], ..window([3, 2], [1, 1], [2, 3], 1) }, &[10], &[17], [9, 9]);
        check_case(Window { dilation: [2, 3], ..window([3, 3], [2, 2], [2, 3], 1) }, &[10], &[17], [9, 10]);
        check_case(Window { dilation: [2, 2], ..window([3, 3], [2, 2], [2, 2], 1) }, &[4], &[16], [9, 10]);
    }

    #[test]
    fn convolutions_that_winograd_fits_equal_the_formula() {
        let three = |padding: [usize; 2], groups| window([3, 3], [1, 1], padding, groups);
        check_case(three([1, 1], 1), &[64], &[32], [16, 13]);
        check_case(three([0, 2], 1), &[7], &[40], [5, 9]);
        check_case(three([1, 1], 2), &[32, 32], &[48, 48], [8, 8]);
        check_case(three([1, 1], 1), &[33], &[21], [2, 2]);
        let five = |padding: [usize; 2], groups| window([5, 5], [1, 1], padding, groups);
        check_case(five([2, 2], 1), &[32], &[48], [16, 13]);
        check_case(five([0, 0], 1), &[20], &[50], [12, 12]);
        check_case(five([4, 1], 2), &[16, 16], &[32, 32], [5, 7]);
    }

    #[test]
    fn gradients_without_room_for_zeros_are_refused() {
        let window = window([3, 3], [1, 1], [1, 1], 1);
        let view = |border| View::blocked(0, &[16], [4, 4], border);
        let make = |border| {
            std::panic::catch_unwind(|| {
                InputGradient::new(
                    window,
                    &[0.0; 16 * 16 * 9],
                    &view(border),
                    &view([1, 1]),
                    None,
                    1,
                    Par::Serial,
                    &mut PackedMemory::default(),
                )
            })
        };
        assert!(make([1, 1]).is_ok());
        assert!(make([1, 0]).is_err() && make([0, 1]).is_err());
    }
}
