//! Kernels chosen by their time on the device, kept on disk.

use crate::call::{Builder, Flow, Place, Region};
use crate::device::Device;
use crate::kernel::{Kernel, Math};
use crate::pack::Geometry;
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

/// Times of kernels on one device, measured when they are first asked for.
pub struct Tuner {
    device: Device,
    cache: Option<PathBuf>,
    file: Option<PathBuf>,
    table: Table,
    changed: bool,
}

/// Microseconds by layer and by choice.
#[derive(Default, Serialize, Deserialize)]
struct Table(BTreeMap<String, BTreeMap<String, f64>>);

impl Tuner {
    /// With the times that were kept in a folder for this device and these kernels.
    #[must_use]
    pub fn new(device: &Device, cache: Option<&Path>) -> Self {
        let file = cache.map(|folder| folder.join(crate::compile::times_name(device.about())));
        let text = file.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let table = text.map_or_else(Table::default, |text| {
            serde_json::from_str(&text).unwrap_or_else(|error| {
                tracing::warn!(%error, "kept times are damaged; they are measured again");
                Table::default()
            })
        });
        Self { device: device.clone(), cache: cache.map(Path::to_owned), file, table, changed: false }
    }

    /// The fastest kernel and number of parts of a convolution, and its time in microseconds.
    ///
    /// # Errors
    /// What the device says.
    pub fn convolution(
        &mut self,
        math: Math,
        geometry: &Geometry,
        batch: usize,
    ) -> Result<Option<(Kernel, usize, f64)>> {
        let candidates = choose::candidates(self.device.about(), math, geometry, batch);
        let key = key("conv", math, geometry, 0, batch);
        let mut best: Option<(Kernel, usize, f64)> = None;
        for (kernel, splits) in candidates.into_iter().take(CANDIDATES) {
            let name = format!("{} {splits}", kernel.name());
            let timed = self.time(&key, &name, geometry, geometry.filters, batch, |builder, weight, flow| {
                builder.conv((kernel, splits), geometry, [weight, &[]], flow).map(|_| ())
            });
            let us = match timed {
                // Parts take memory, which others do without.
                Err(Error::TooLarge { .. } | Error::Memory { .. }) if splits > 1 => continue,
                timed => timed?,
            };
            if best.is_none_or(|(.., least)| us < least) {
                best = Some((kernel, splits, us));
            }
        }
        Ok(best)
    }

    /// The fastest kernel of a low-rank pair, where it is faster than the two convolutions.
    ///
    /// # Errors
    /// What the device says.
    pub fn pair(
        &mut self,
        math: Math,
        basis: &Geometry,
        outputs: usize,
        batch: usize,
    ) -> Result<Option<Kernel>> {
        let mut apart = 0.0;
        for of in [*basis, choose::combination(basis, outputs)] {
            apart += self.convolution(math, &of, batch)?.map_or(f64::INFINITY, |(.., us)| us);
        }
        let key = key("pair", math, basis, outputs, batch);
        let combination = vec![0.5; outputs * basis.filters];
        let mut best = None;
        for kernel in choose::pairs_that_fit(self.device.about(), math, basis) {
            let us = self.time(&key, kernel.name(), basis, outputs, batch, |builder, weight, flow| {
                builder.pair(kernel, basis, [weight, &combination, &[]], flow).map(|_| ())
            })?;
            if us < apart {
                (apart, best) = (us, Some(kernel));
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
        let image = geometry.channels * geometry.extents[0] * geometry.extents[1];
        let result = channels * geometry.results[0] * geometry.results[1];
        let mut builder = Builder::new(image, batch * result);
        let flow = Flow {
            src: Place { region: Region::Images, at: 0, stride: image },
            add: None,
            dst: Place { region: Region::Arena, at: 0, stride: result },
            relu: false,
        };
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
        self.table.0.entry(key.to_owned()).or_default().insert(name.to_owned(), us);
        self.changed = true;
        Ok(us)
    }
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
