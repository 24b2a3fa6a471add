//! (a) Every kernel against loops in `f64`, over ragged shapes, in both orders of the lanes.

use crate::numbers::Numbers;
use crate::reference::{self, Bound, Case};
use crate::standin::Standin;
use anyhow::{Context as _, Result, bail, ensure};
use cofilter_cuda::{
    Builder, Device, Elementwise, Flow, Geometry, Kernel, Math, Place, Region, Routine, Sequence, Window,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What computes a case.
#[derive(Clone, Copy)]
pub(crate) enum By {
    /// A kernel of ours.
    Kernel(Kernel),
    /// A library, for convolutions.
    Routine(Routine),
}

/// Cases by kernel.
pub(crate) type Counts = BTreeMap<&'static str, usize>;

/// Runs all cases, in both orders.
pub(crate) fn check(standin: &Standin) -> Result<Counts> {
    let device = Device::open(0)?;
    let mut counts = Counts::new();
    let _kept = keep_module(&device, None)?;
    for backwards in [0, 1] {
        standin.set("backwards", backwards)?;
        for (kernel, case) in cases() {
            case.check(&device, By::Kernel(kernel))
                .with_context(|| format!("{}: {case:?}", kernel.name()))?;
            *counts.entry(kernel.name()).or_default() += 1;
        }
    }
    standin.set("backwards", 0)?;
    let left_out: Vec<&str> =
        Kernel::all().map(Kernel::name).filter(|name| !counts.contains_key(name)).collect();
    // `conv_sum` runs in the cases with parts, and every kind of the others has cases of its own.
    ensure!(left_out == ["conv_sum"], "kernels without a case: {left_out:?}");
    Ok(counts)
}

/// Lines of a text, from 1, where threads wait for those of their block.
pub(crate) fn barriers(text: &str) -> Result<Vec<i64>> {
    const WAIT: &str = "__syncthreads()";
    let lines: Vec<i64> =
        (1..).zip(text.lines()).filter(|(_, line)| line.contains(WAIT)).map(|(at, _)| at).collect();
    ensure!(
        lines.len() == text.matches(WAIT).count(),
        "barriers that share a line cannot be deleted one by one"
    );
    Ok(lines)
}

/// Deletes one barrier after the other, and counts those whose absence a case shows.
pub(crate) fn mutants(standin: &Standin, about: &mut dyn FnMut(String)) -> Result<[usize; 2]> {
    let device = Device::open(0)?;
    let _kept = keep_module(&device, None)?;
    let lines = barriers(&cofilter_cuda::compile::text(cofilter_cuda::Set::Run))?;
    let mut caught = 0;
    for line in &lines {
        standin.set("deleted", *line)?;
        match caught_by(standin, &device)? {
            Some(case) => {
                caught += 1;
                about(format!("barrier in line {line} of all kernels: caught by {case}"));
            }
            None => about(format!("barrier in line {line} of all kernels: NOT caught")),
        }
    }
    standin.set("deleted", 0)?;
    Ok([lines.len(), caught])
}

/// The first case that shows a fault, if there is one.
fn caught_by(standin: &Standin, device: &Device) -> Result<Option<String>> {
    let mut found = None;
    'orders: for (backwards, order) in [(0, "forwards"), (1, "backwards")] {
        standin.set("backwards", backwards)?;
        for (kernel, case) in cases() {
            if case.check(device, By::Kernel(kernel)).is_err() {
                found = Some(format!("{} {order}", kernel.name()));
                break 'orders;
            }
        }
    }
    standin.set("repair", 0)?;
    standin.set("backwards", 0)?;
    Ok(found)
}

/// One module for all cases, however short each lives, from a folder where it may be kept.
pub(crate) fn keep_module(device: &Device, cache: Option<&Path>) -> Result<Arc<Sequence>> {
    let (kernel, case) = cases().into_iter().next().context("no case")?;
    Ok(case.sequence(device, By::Kernel(kernel), cache)?.0)
}

fn named(name: &str) -> Kernel {
    Kernel::all().find(|kernel| kernel.name() == name).expect("a kernel of this name")
}

fn geometry(channels: usize, filters: usize, extents: [usize; 2], kernel: [usize; 2]) -> Geometry {
    Geometry {
        channels,
        filters,
        groups: 1,
        extents,
        results: extents,
        kernel,
        stride: [1; 2],
        padding: kernel.map(|k| k / 2),
        dilation: [1; 2],
    }
}

/// With the extents of the result that follow from the rest.
fn completed(of: Geometry) -> Geometry {
    let result = |axis: usize| {
        (of.extents[axis] + 2 * of.padding[axis] - of.dilation[axis] * (of.kernel[axis] - 1) - 1)
            / of.stride[axis]
            + 1
    };
    Geometry { results: [result(0), result(1)], ..of }
}

/// Shapes that do not fill tiles, and what comes with them: images, parts, whether weights are zero.
pub(crate) fn convolutions() -> Vec<(Geometry, usize, usize, f64)> {
    let mut list = vec![
        (geometry(3, 5, [7, 9], [3, 3]), 1, 1, 0.0),
        (Geometry { stride: [2; 2], ..geometry(8, 33, [13, 5], [3, 3]) }, 3, 1, 0.0),
        (Geometry { groups: 2, ..geometry(6, 10, [5, 6], [5, 1]) }, 2, 1, 0.0),
        (Geometry { dilation: [2, 3], padding: [2, 3], ..geometry(4, 17, [9, 11], [3, 3]) }, 1, 1, 0.0),
        (Geometry { stride: [4; 2], padding: [0; 2], ..geometry(3, 20, [35, 31], [11, 11]) }, 1, 1, 0.0),
        (geometry(40, 16, [5, 5], [3, 3]), 1, 4, 0.0),
        (Geometry { groups: 3, ..geometry(24, 9, [4, 3], [3, 3]) }, 5, 2, 0.0),
        (geometry(16, 70, [6, 6], [3, 3]), 2, 1, 0.8),
        (geometry(16, 70, [6, 6], [3, 3]), 2, 3, 0.97),
        (Geometry { padding: [2; 2], ..geometry(2, 3, [1, 1], [5, 5]) }, 1, 1, 0.0),
        (Geometry { stride: [2, 1], padding: [0; 2], ..geometry(20, 12, [8, 7], [1, 1]) }, 2, 1, 0.0),
        (geometry(150, 140, [12, 12], [1, 1]), 1, 1, 0.0),
    ];
    let mut numbers = Numbers::new(7);
    for _ in 0..8 {
        let groups = 1 + numbers.below(2);
        let kernel = [1 + numbers.below(4), 1 + numbers.below(4)];
        let of = Geometry {
            channels: groups * (1 + numbers.below(20)),
            filters: groups * (1 + numbers.below(40)),
            groups,
            extents: kernel.map(|k| k + numbers.below(12)),
            kernel,
            stride: [1 + numbers.below(3), 1 + numbers.below(2)],
            padding: kernel.map(|k| numbers.below(k)),
            ..geometry(1, 1, [1; 2], [1; 2])
        };
        list.push((of, 1 + numbers.below(4), 1 + numbers.below(3), 0.3 * numbers.below(3) as f64));
    }
    list.into_iter().map(|(of, images, parts, zeros)| (completed(of), images, parts, zeros)).collect()
}

/// Maps of one element for every window.
pub(crate) fn pointwise() -> Vec<(Geometry, usize, usize, f64)> {
    vec![
        (geometry(19, 70, [7, 7], [1, 1]), 2, 1, 0.0),
        (geometry(64, 16, [3, 5], [1, 1]), 1, 3, 0.0),
        (Geometry { groups: 2, ..geometry(10, 34, [9, 4], [1, 1]) }, 3, 1, 0.0),
        (geometry(40, 40, [6, 6], [1, 1]), 1, 1, 0.9),
        (Geometry::linear(100, 37), 5, 1, 0.0),
        (Geometry::linear(33, 130), 131, 2, 0.0),
    ]
}

/// All cases of all kernels.
pub(crate) fn cases() -> Vec<(Kernel, Case)> {
    let mut list = Vec::new();
    for math in Math::ALL {
        for (is_pointwise, shapes) in [(false, convolutions()), (true, pointwise())] {
            for kernel in Kernel::convolutions(math, is_pointwise) {
                let with = |(geometry, images, splits, zeros): (Geometry, usize, usize, f64)| {
                    (kernel, Case::Conv { math, geometry, images, splits, zeros, second: None })
                };
                list.extend(shapes.clone().into_iter().map(with));
            }
        }
    }
    for kernel in Kernel::pairs() {
        for (rank, outputs, zeros) in [(5, 9, 0.0), (64, 64, 0.0), (70, 100, 0.5), (130, 33, 0.0)] {
            let shapes = [
                (geometry(7, rank, [6, 7], [3, 3]), 3),
                (Geometry { stride: [2, 1], ..geometry(12, rank, [9, 5], [1, 3]) }, 1),
            ];
            for (geometry, images) in shapes {
                let geometry = completed(geometry);
                let math = Math::F32;
                list.push((
                    kernel,
                    Case::Conv { math, geometry, images, splits: 1, zeros, second: Some(outputs) },
                ));
            }
        }
    }
    for (name, math) in [("linear_f32", Math::F32), ("linear_f16", Math::F16), ("linear_bf16", Math::Bf16)] {
        for (inputs, outputs, images) in [(1, 1, 1), (33, 5, 3), (100, 37, 9), (257, 8, 17), (64, 4, 8)] {
            list.push((named(name), Case::Linear { math, inputs, outputs, images }));
        }
    }
    let window = |kernel, stride, padding, results| Window { kernel, stride, padding, results };
    let maps = [
        ("map_copy", [3, 4, 5], Elementwise::Copy { before: 0, channels: 3 }),
        ("map_copy", [3, 4, 5], Elementwise::Copy { before: 2, channels: 9 }),
        ("map_pool", [5, 7, 9], Elementwise::MaxPool(window([3; 2], [2; 2], [1; 2], [4, 5]))),
        ("map_pool", [2, 6, 6], Elementwise::MaxPool(window([2; 2], [2; 2], [0; 2], [3, 3]))),
        // The last window reaches beyond the padded map.
        (
            "map_pool",
            [3, 8, 7],
            Elementwise::MeanPool { window: window([3; 2], [2; 2], [1; 2], [5, 4]), count_padding: true },
        ),
        (
            "map_pool",
            [3, 8, 7],
            Elementwise::MeanPool { window: window([3, 2], [2, 1], [1, 0], [5, 6]), count_padding: false },
        ),
        ("map_adaptive", [4, 7, 5], Elementwise::Adaptive { results: [1, 1] }),
        ("map_adaptive", [2, 7, 5], Elementwise::Adaptive { results: [3, 4] }),
        ("map_lrn", [7, 3, 4], Elementwise::Lrn { within: false, size: 5, weight: 0.2, beta: 0.75, k: 1.0 }),
        ("map_lrn", [3, 6, 5], Elementwise::Lrn { within: true, size: 3, weight: 0.1, beta: 0.6, k: 2.0 }),
        ("map_lrn", [3, 6, 5], Elementwise::Lrn { within: true, size: 3, weight: 0.1, beta: 0.5, k: 2.0 }),
        ("softmax", [10, 1, 1], Elementwise::Softmax),
        ("softmax", [1000, 1, 1], Elementwise::Softmax),
    ];
    for (name, shape, of) in maps {
        list.extend([1, 3].map(|images| (named(name), Case::Map { shape, of, images })));
    }
    list.extend([1, 4].map(|images| (named("map_normalise"), Case::Normalise { shape: [5, 3, 4], images })));
    list
}

impl Case {
    fn images(&self) -> usize {
        match self {
            Self::Conv { images, .. }
            | Self::Linear { images, .. }
            | Self::Map { images, .. }
            | Self::Normalise { images, .. } => *images,
        }
    }

    /// The calls of this case: source, summand and result lie apart, with gaps between the images.
    fn build(&self, by: By) -> Result<(Builder, Layout)> {
        let layout = self.layout(if matches!(by, By::Kernel(_)) { 5 } else { ALIGNED });
        let Layout { src, .. } = layout;
        let mut builder = Builder::new(layout.image(), layout.arena());
        let flow = Flow {
            src: Place { region: Region::Images, at: 0, stride: layout.image() },
            add: layout.with_add.then(|| Place { region: Region::Images, at: src, stride: layout.image() }),
            dst: layout.result(),
            relu: self.rectified(),
        };
        let tensors = self.tensors();
        let [first, bias, second] = &tensors;
        match (self, by) {
            (Self::Conv { geometry, splits, second: None, .. }, By::Kernel(kernel)) => {
                builder.conv((kernel, *splits), geometry, [first, bias], &flow)?;
            }
            (Self::Conv { geometry, .. }, By::Routine(routine)) => {
                builder.routine(routine, geometry, [first, bias], &flow)?;
            }
            (Self::Conv { geometry, second: Some(_), .. }, By::Kernel(kernel)) => {
                builder.pair(kernel, geometry, [first, second, bias], &flow)?;
            }
            (Self::Linear { math, inputs, .. }, _) => {
                builder.linear(*math, *inputs, [first, bias], &flow)?;
            }
            (Self::Map { shape, of, .. }, _) => {
                builder.map(*shape, *of, &flow)?;
            }
            (Self::Normalise { shape, .. }, _) => {
                builder.normalise(*shape, first, &flow)?;
            }
        }
        Ok((builder, layout))
    }

    fn layout(&self, at: usize) -> Layout {
        let [src, dst] = self.lens();
        Layout { src, dst, with_add: self.takes_summand(), images: self.images(), at }
    }

    /// Where it reads and writes if a library computes it.
    pub(crate) fn places(&self) -> [Place; 2] {
        let layout = self.layout(ALIGNED);
        [Place { region: Region::Images, at: 0, stride: layout.image() }, layout.result()]
    }

    fn sequence(&self, device: &Device, by: By, cache: Option<&Path>) -> Result<(Arc<Sequence>, Layout)> {
        let (builder, layout) = self.build(by)?;
        let sequence = Sequence::new(device, builder, layout.result(), self.images(), cache)?;
        Ok((Arc::new(sequence), layout))
    }

    /// Runs it and compares; twice, as the graph of the first run is there in the second.
    pub(crate) fn check(&self, device: &Device, by: By) -> Result<()> {
        let (sequence, layout) = self.sequence(device, by, None)?;
        let mut session = sequence.session()?;
        for round in 0..2 {
            let sources = Numbers::new(100 + round).list(layout.image() * layout.images);
            let mut results = vec![f32::NAN; layout.result().stride * layout.images];
            session.run(layout.images, &sources, &mut results, None)?;
            for image in 0..layout.images {
                let source = &sources[image * layout.image()..][..layout.image()];
                let (src, add) = source.split_at(layout.src);
                let expected = reference::evaluate(self, src, layout.with_add.then_some(add));
                let found = &results[image * layout.result().stride..][..layout.dst];
                compare(found, &expected).with_context(|| format!("image {image}, run {round}"))?;
            }
        }
        Ok(())
    }
}

/// How a case lies in memory.
struct Layout {
    src: usize,
    dst: usize,
    with_add: bool,
    images: usize,
    /// First element of the first result.
    at: usize,
}

/// First element of the first result of a library, which asks for multiples of 16 bytes.
const ALIGNED: usize = 8;

impl Layout {
    /// A source and a summand are an image.
    fn image(&self) -> usize {
        self.src + if self.with_add { self.dst } else { 0 }
    }

    fn result(&self) -> Place {
        // Results of two images lie three elements apart.
        Place { region: Region::Arena, at: self.at, stride: self.dst + 3 }
    }

    fn arena(&self) -> usize {
        self.result().at + self.images * self.result().stride
    }
}

fn compare(found: &[f32], expected: &[Bound]) -> Result<()> {
    ensure!(found.len() == expected.len(), "{} elements for {}", found.len(), expected.len());
    for (i, (found, Bound { value, error })) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(*found) - value).abs();
        if off.is_nan() || off > *error {
            bail!("element {i}: found {found}, expected {value} within {error:.1e}");
        }
    }
    Ok(())
}
