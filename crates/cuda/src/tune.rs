//! Kernels and libraries chosen by their time on the device, kept on disk.

use crate::call::{Builder, Flow, Place, Region};
use crate::device::Device;
use crate::kernel::{Kernel, Math};
use crate::libraries::{Opened, Routine};
use crate::pack::{self, Geometry};
use crate::sequence::Sequence;
use crate::{Error, Result, choose};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Candidates of a convolution that are timed: those that are expected to be fastest.
const CANDIDATES: usize = 6;
/// Runs of each; the middle one counts.
const RUNS: usize = 7;
/// A library takes no more than this part of the time of our kernels where it is chosen: less is within what times vary.
const GAIN: f64 = 0.97;
/// Share of its columns from which a layer counts as dense. Our kernels leave out the others; libraries do not, and times are those of
/// dense layers.
const DENSE: f64 = 0.7;

/// When cuDNN or cuBLASLt compute a convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Libraries {
    /// Where the layer is dense, and it takes less time than with our kernels.
    #[default]
    Faster,
    /// Wherever one of them can, the fastest of their routines. For tests.
    Always,
    /// Never: they are not even looked for.
    Never,
}

/// What computes a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A kernel of ours, and the number of parts of its columns.
    Kernel(Kernel, usize),
    /// A library.
    Routine(Routine),
}

/// A convolution as it is to be computed.
struct Layer<'a> {
    math: Math,
    geometry: &'a Geometry,
    batch: usize,
    /// Of source and result.
    places: [Place; 2],
    /// None for a dense one.
    weight: &'a [f32],
}

/// Times of kernels and libraries on one device, measured when they are first asked for.
pub struct Tuner {
    device: Device,
    cache: Option<PathBuf>,
    file: Option<PathBuf>,
    table: Table,
    changed: bool,
    libraries: Libraries,
    opened: Option<Opened>,
}

/// Microseconds by layer and by choice.
#[derive(Default, Serialize, Deserialize)]
struct Table(BTreeMap<String, BTreeMap<String, f64>>);

impl Tuner {
    /// With the times that were kept in a folder for this device and these kernels. A library that cannot be used is told by a warning,
    /// and is no choice.
    #[must_use]
    pub fn new(device: &Device, cache: Option<&Path>, libraries: Libraries) -> Self {
        let file = cache.map(|folder| folder.join(crate::compile::times_name(device.about())));
        let text = file.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let table = text.map_or_else(Table::default, |text| {
            serde_json::from_str(&text).unwrap_or_else(|error| {
                tracing::warn!(%error, "kept times are damaged; they are measured again");
                Table::default()
            })
        });
        let opened = (libraries != Libraries::Never).then(|| Opened::new(device));
        let (device, cache) = (device.clone(), cache.map(Path::to_owned));
        Self { device, cache, file, table, changed: false, libraries, opened }
    }

    /// What computes a convolution with `weight` fastest between the places of `flow`, with a bias and a rectification.
    ///
    /// # Errors
    /// What the device says. What a library says while it is timed is told by a warning, and it is no choice then.
    pub fn convolution(
        &mut self,
        math: Math,
        geometry: &Geometry,
        batch: usize,
        weight: &[f32],
        flow: &Flow,
    ) -> Result<Option<Choice>> {
        let layer = Layer { math, geometry, batch, places: [flow.src, flow.dst], weight };
        Ok(self.fastest(&layer)?.map(|(choice, _)| choice))
    }

    /// The fastest kernel of a low-rank pair, where it is faster than the two convolutions.
    ///
    /// # Errors
    /// As [`Tuner::convolution`].
    pub fn pair(
        &mut self,
        math: Math,
        basis: &Geometry,
        outputs: usize,
        batch: usize,
    ) -> Result<Option<Kernel>> {
        let mut apart = 0.0;
        for geometry in &[*basis, choose::combination(basis, outputs)] {
            let layer = Layer { math, geometry, batch, places: places(geometry.lens()), weight: &[] };
            apart += self.fastest(&layer)?.map_or(f64::INFINITY, |(_, us)| us);
        }
        let key = key("low-rank", math, basis, outputs, batch);
        let (combination, bias) = (vec![0.5; outputs * basis.filters], vec![0.5; outputs]);
        let mut best = None;
        for kernel in choose::pairs_that_fit(self.device.about(), math, basis) {
            let us = self.time(&key, kernel.name(), basis, outputs, batch, |builder, weight, flow| {
                builder.pair(kernel, basis, [weight, &combination, &bias], flow).map(|_| ())
            })?;
            if us < apart {
                (apart, best) = (us, Some(kernel));
            }
        }
        Ok(best)
    }

    /// The fastest kernel of ours and the fastest routine of a library, each with its time in microseconds, for a dense convolution with a
    /// bias and a rectification, of maps that lie one behind the other.
    ///
    /// # Errors
    /// As [`Tuner::convolution`].
    pub fn both(
        &mut self,
        math: Math,
        geometry: &Geometry,
        batch: usize,
    ) -> Result<[Option<(Choice, f64)>; 2]> {
        let layer = Layer { math, geometry, batch, places: places(geometry.lens()), weight: &[] };
        let ours = self.kernel(&layer)?.map(|(kernel, splits, us)| (Choice::Kernel(kernel, splits), us));
        let theirs = self.routine(&layer)?.map(|(routine, us)| (Choice::Routine(routine), us));
        Ok([ours, theirs])
    }

    /// Microseconds of a fully connected layer by the kernel for few images, with a bias and a rectification.
    ///
    /// # Errors
    /// As [`Tuner::convolution`].
    pub fn linear(&mut self, math: Math, inputs: usize, outputs: usize, batch: usize) -> Result<f64> {
        let (geometry, bias) = (Geometry::linear(inputs, outputs), vec![0.5; outputs]);
        let key = key("linear", math, &geometry, 0, batch);
        self.time(&key, "linear", &geometry, outputs, batch, |builder, weight, flow| {
            builder.linear(math, inputs, [weight, &bias], flow).map(|_| ())
        })
    }

    /// The choice for a convolution and its time in microseconds.
    fn fastest(&mut self, layer: &Layer<'_>) -> Result<Option<(Choice, f64)>> {
        if self.libraries == Libraries::Always
            && let Some((routine, us)) = self.routine(layer)?
        {
            return Ok(Some((Choice::Routine(routine), us)));
        }
        let ours = self.kernel(layer)?;
        let tile = ours.map_or(1, |(kernel, ..)| kernel.tile()[0]);
        let dense = layer.weight.is_empty() || pack::density(tile, layer.geometry, layer.weight) >= DENSE;
        let most = ours.map_or(f64::MAX, |(.., us)| GAIN * us);
        let theirs = if self.libraries == Libraries::Faster && dense { self.routine(layer)? } else { None };
        let theirs = theirs.filter(|(_, us)| *us < most).map(|(routine, us)| (Choice::Routine(routine), us));
        Ok(theirs.or(ours.map(|(kernel, splits, us)| (Choice::Kernel(kernel, splits), us))))
    }

    /// The fastest kernel of ours, its number of parts, and its time.
    fn kernel(&mut self, layer: &Layer<'_>) -> Result<Option<(Kernel, usize, f64)>> {
        let Layer { math, geometry, batch, .. } = *layer;
        let candidates = choose::candidates(self.device.about(), math, geometry, batch);
        let (key, bias) = (key("convolution", math, geometry, 0, batch), vec![0.5; geometry.filters]);
        let (mut best, mut too_large): (Option<(Kernel, usize, f64)>, _) = (None, None);
        for (kernel, splits) in candidates.into_iter().take(CANDIDATES) {
            let name = format!("{} {splits}", kernel.name());
            let timed = self.time(&key, &name, geometry, geometry.filters, batch, |builder, weight, flow| {
                builder.conv((kernel, splits), geometry, [weight, &bias], flow).map(|_| ())
            });
            let us = match timed {
                // Parts take memory, which others do without.
                Err(error @ (Error::TooLarge { .. } | Error::Memory { .. })) if splits > 1 => {
                    too_large = Some(error);
                    continue;
                }
                timed => timed?,
            };
            if best.is_none_or(|(.., least)| us < least) {
                best = Some((kernel, splits, us));
            }
        }
        match (best, too_large) {
            (None, Some(error)) => Err(error),
            (best, _) => Ok(best),
        }
    }

    /// The fastest routine of a library, and its time.
    fn routine(&mut self, layer: &Layer<'_>) -> Result<Option<(Routine, f64)>> {
        let Layer { math, geometry, batch, places, .. } = *layer;
        let Some(opened) = &self.opened else { return Ok(None) };
        let routines = opened.routines(math, geometry, places, batch);
        let (key, bias) = (key("convolution", math, geometry, 0, batch), vec![0.5; geometry.filters]);
        let mut best: Option<(Routine, f64)> = None;
        for routine in routines {
            let name = routine.name_and_version();
            let timed = self.time(&key, &name, geometry, geometry.filters, batch, |builder, weight, flow| {
                builder.routine(routine, geometry, [weight, &bias], flow).map(|_| ())
            });
            let us = match timed {
                Err(error @ (Error::LibraryCall { .. } | Error::Memory { .. })) => {
                    tracing::warn!(%error, routine = name, "is not used");
                    continue;
                }
                timed => timed?,
            };
            if us < best.map_or(f64::MAX, |(_, least)| least) {
                best = Some((routine, us));
            }
        }
        Ok(best)
    }

    /// Keeps what was measured. A failure is told and does no harm.
    pub fn save(&mut self) {
        let Some(file) = self.file.as_ref().filter(|_| self.changed) else { return };
        let written = serde_json::to_string(&self.table)
            .map_err(std::io::Error::other)
            .and_then(|text| crate::compile::write_whole(file, text.as_bytes()));
        if let Err(error) = written {
            tracing::warn!(%error, path = %file.display(), "times are not kept");
        }
        self.changed = false;
    }

    /// Microseconds of one call, as it was measured before or is now.
    fn time(
        &mut self,
        key: &str,
        name: &str,
        geometry: &Geometry,
        channels: usize,
        batch: usize,
        build: impl FnOnce(&mut Builder, &[f32], &Flow) -> Result<()>,
    ) -> Result<f64> {
        if let Some(us) = self.table.0.get(key).and_then(|of| of.get(name)) {
            return Ok(*us);
        }
        let image = geometry.lens()[0];
        let result = channels * geometry.area();
        let mut builder = Builder::new(image, batch * result);
        let [src, dst] = places([image, result]);
        let flow = Flow { src, add: None, dst, relu: true };
        let weight = vec![0.5; geometry.filters * geometry.columns()];
        build(&mut builder, &weight, &flow)?;
        let cache = self.cache.as_deref();
        let sequence = Arc::new(Sequence::new(&self.device, builder, flow.dst, batch, cache)?);
        let mut session = sequence.session()?;
        let (images, mut logits) = (vec![0.5; batch * image], vec![0.0; batch * result]);
        let mut times = [0.0; RUNS];
        for time in &mut times {
            // The first run, which brings the code, is seldom the middle one.
            session.run(batch, &images, &mut logits, Some(std::slice::from_mut(time)))?;
        }
        times.sort_by(f64::total_cmp);
        let us = times[RUNS / 2];
        self.keep(key, name, us);
        Ok(us)
    }

    fn keep(&mut self, key: &str, name: &str, us: f64) {
        self.table.0.entry(key.to_owned()).or_default().insert(name.to_owned(), us);
        self.changed = true;
    }
}

/// Where a layer that is timed reads and writes: images lie one behind the other.
fn places([image, result]: [usize; 2]) -> [Place; 2] {
    [
        Place { region: Region::Images, at: 0, stride: image },
        Place { region: Region::Arena, at: 0, stride: result },
    ]
}

/// Everything that the time of a layer depends on.
fn key(what: &str, math: Math, of: &Geometry, outputs: usize, batch: usize) -> String {
    let pair = |[a, b]: [usize; 2]| format!("{a}x{b}");
    let [extents, kernel, stride, padding, dilation] =
        [of.extents, of.kernel, of.stride, of.padding, of.dilation].map(pair);
    format!(
        "{what} {} {}>{}>{outputs} g{} {extents} k{kernel} s{stride} p{padding} d{dilation} n{batch}",
        math.name(),
        of.channels,
        of.filters,
        of.groups
    )
}
