//! Times of layers on a device: our fastest kernel, the fastest routine of a library, and what the card takes at least.

use crate::floors;
use anyhow::{Context as _, Result};
use cofilter_cuda::{Choice, Device, Geometry, Libraries, Math, Tuner};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

/// A layer, how many images, and how it multiplies.
pub(crate) struct Row {
    layer: &'static str,
    geometry: Geometry,
    batch: usize,
    math: Math,
}

impl Row {
    pub(crate) fn name(&self) -> String {
        format!("{}, batch {}, {}", self.layer, self.batch, self.math.name())
    }
}

/// A convolution of square maps with square windows: channels, filters, extent, window, step, padding, groups.
fn square([channels, filters, extent, kernel, stride, padding, groups]: [usize; 7]) -> Geometry {
    let results = (extent + 2 * padding - kernel) / stride + 1;
    Geometry {
        groups,
        extents: [extent; 2],
        results: [results; 2],
        kernel: [kernel; 2],
        stride: [stride; 2],
        padding: [padding; 2],
        ..Geometry::linear(channels, filters)
    }
}

/// All rows, those of small layers first.
pub(crate) fn rows() -> Vec<Row> {
    let layers = [
        ("ResNet-20, 3x3, 16 channels", square([16, 16, 32, 3, 1, 1, 1])),
        ("ResNet-20, 3x3, 32 channels", square([32, 32, 16, 3, 1, 1, 1])),
        ("ResNet-20, 3x3, 64 channels", square([64, 64, 8, 3, 1, 1, 1])),
        ("ResNet-50, 3x3, 512 at 7x7", square([512, 512, 7, 3, 1, 1, 1])),
        ("ResNet-50, 3x3, 256 at 14x14", square([256, 256, 14, 3, 1, 1, 1])),
        ("ResNet-50, 3x3, 128 at 28x28", square([128, 128, 28, 3, 1, 1, 1])),
        ("ResNet-50, 3x3, 64 at 56x56", square([64, 64, 56, 3, 1, 1, 1])),
        ("ResNet-50, 1x1, 512 to 2048 at 7x7", square([512, 2048, 7, 1, 1, 0, 1])),
        ("ResNet-50, 1x1, 1024 to 256 at 14x14", square([1024, 256, 14, 1, 1, 0, 1])),
        ("ResNet-50, 1x1, 128 to 512 at 28x28", square([128, 512, 28, 1, 1, 0, 1])),
        ("ResNet-50, 1x1, 256 to 64 at 56x56", square([256, 64, 56, 1, 1, 0, 1])),
        ("ResNet-50, 1x1, 64 to 256 at 56x56", square([64, 256, 56, 1, 1, 0, 1])),
        ("ResNet-50, 7x7, first layer", square([3, 64, 224, 7, 2, 3, 1])),
        ("AlexNet, conv1", square([3, 96, 227, 11, 4, 0, 1])),
        ("AlexNet, conv2", square([96, 256, 27, 5, 1, 2, 2])),
        ("AlexNet, fc6", Geometry::linear(9216, 4096)),
    ];
    let mut rows = Vec::new();
    for (layer, geometry) in layers {
        for batch in [1, 32] {
            for math in [Math::F32, Math::Tf32, Math::F16] {
                rows.push(Row { layer, geometry, batch, math });
            }
        }
    }
    rows
}

/// A table under way.
pub(crate) struct Times {
    device: String,
    tuner: Tuner,
    table: File,
}

impl Times {
    /// Goes on with a table, or begins it.
    pub(crate) fn new(device: &Device, cache: &Path, table: &Path, begin: bool) -> Result<Self> {
        let tuner = Tuner::new(device, Some(cache), Libraries::Faster);
        let device = device.about().name.clone();
        let mut options = File::options();
        options.create(true).write(true).append(!begin).truncate(begin);
        let mut table = options.open(table).with_context(|| table.display().to_string())?;
        if begin {
            writeln!(
                table,
                "Microseconds on {device}, the middle one of several runs: a dense layer with bias and rectification, maps one behind the \
                 other. The floor is as in `docs/runs/cuda/floors.md`.\n\n\
                 | layer | batch | math | our kernel | us | library | us | ours over library's | floor |\n\
                 |---|---|---|---|---|---|---|---|---|"
            )?;
        }
        Ok(Self { device, tuner, table })
    }

    /// Measures, and adds a row.
    pub(crate) fn add(&mut self, row: &Row) -> Result<()> {
        let Row { layer, geometry, batch, math } = row;
        let [mut ours, theirs] = self.tuner.both(*math, geometry, *batch)?.map(|choice| {
            choice.map(|(choice, us)| match choice {
                Choice::Kernel(kernel, 1) => (kernel.name().to_owned(), us),
                Choice::Kernel(kernel, parts) => (format!("{} in {parts} parts", kernel.name()), us),
                Choice::Routine(routine) => (routine.name().to_owned(), us),
            })
        });
        if geometry.lens() == [geometry.channels, geometry.filters] && *batch < 32 {
            // What a plan takes for so few images.
            let us = self.tuner.linear(*math, geometry.channels, geometry.filters, *batch)?;
            ours = Some(("linear".to_owned(), us));
        }
        self.tuner.save();
        let ratio = ours.as_ref().zip(theirs.as_ref()).map(|((_, ours), (_, theirs))| ours / theirs);
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
        let [ours, theirs] = [ours, theirs]
            .map(|of| of.map_or_else(|| "none | ".to_owned(), |(name, us)| format!("{name} | {us:.1}")));
        let floor = floors::layer_us(&self.device, *math, geometry, *batch);
        let floor = floor.map_or_else(String::new, |us| format!("{us:.1}"));
        let line = format!("| {layer} | {batch} | {} | {ours} | {theirs} | {ratio} | {floor} |", math.name());
        println!("  {line}");
        writeln!(self.table, "{line}").context("the table of times")
    }
}
