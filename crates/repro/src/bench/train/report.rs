//! What the training bench found, for people and machines.

use super::super::{Options, median, publish, written_by};
use crate::machine::{Machine, commit};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What one of the other engines did.
#[derive(Clone, Debug, Default)]
pub(super) struct Engine {
    pub(super) ms: Vec<f64>,
    pub(super) losses: Vec<f64>,
    pub(super) peak_bytes: u64,
}

/// One network at a number of threads.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Cell {
    pub(super) net: String,
    pub(super) batch: usize,
    pub(super) threads: usize,
    pub(super) iterations: usize,
    pub(super) cofilter_images_per_s: f64,
    /// In its best layout.
    pub(super) pytorch_images_per_s: f64,
    pub(super) pytorch_layout: String,
    /// Of an iteration: data, forward, backward, update.
    pub(super) shares: [f64; 4],
    /// The larger one of the forces' shares of an iteration.
    pub(super) force_share: f64,
    pub(super) force: BTreeMap<String, f64>,
    /// Relative to the first loss.
    pub(super) max_loss_difference: f64,
    /// Between PyTorch's two layouts: what rounding alone comes to.
    pub(super) pytorch_loss_difference: f64,
    /// Of every iteration, by engine.
    pub(super) losses: BTreeMap<String, Vec<f64>>,
    /// Most memory of our process while both trained, images included.
    pub(super) peak_bytes: Option<u64>,
    pub(super) pytorch_peak_bytes: u64,
}

impl Cell {
    pub(super) fn new(
        net: &str,
        batch: usize,
        threads: usize,
        ms: &[f64],
        parts: &[Vec<f64>; 4],
        engines: &BTreeMap<String, Engine>,
    ) -> Self {
        let speed = |ms: &[f64]| batch as f64 / median(ms) * 1e3;
        let best = engines.iter().max_by(|a, b| speed(&a.1.ms).total_cmp(&speed(&b.1.ms)));
        let (layout, engine) = best.map(|(name, engine)| (name.clone(), engine.clone())).unwrap_or_default();
        Self {
            net: net.to_owned(),
            batch,
            threads,
            cofilter_images_per_s: speed(ms),
            pytorch_images_per_s: speed(&engine.ms),
            pytorch_layout: layout,
            pytorch_peak_bytes: engine.peak_bytes,
            shares: [0, 1, 2, 3].map(|part: usize| median(&parts[part]) / median(ms)),
            ..Self::default()
        }
    }

    /// Our first and last loss; whether they fell by so much more than engines may differ that agreement says something.
    fn losses(&self) -> (f64, f64, bool) {
        let ours = self.losses.get("cofilter");
        let [first, last] = [ours.and_then(|l| l.first()), ours.and_then(|l| l.last())]
            .map(|loss| loss.copied().unwrap_or(f64::NAN));
        let lowest = ours.into_iter().flatten().copied().fold(f64::INFINITY, f64::min);
        (first, last, lowest < 0.95 * first)
    }

    fn ratio(&self) -> f64 {
        self.cofilter_images_per_s / self.pytorch_images_per_s
    }
}

/// A cell in a line, for the terminal.
pub(super) fn line(cell: &Cell) -> String {
    format!(
        "{} batch {} threads {}: {:.0} images/s, {} {:.0}: {:.2} x; losses differ by {:.0e} (PyTorch's by {:.0e}); force {:.1} %",
        cell.net,
        cell.batch,
        cell.threads,
        cell.cofilter_images_per_s,
        cell.pytorch_layout,
        cell.pytorch_images_per_s,
        cell.ratio(),
        cell.max_loss_difference,
        cell.pytorch_loss_difference,
        100.0 * cell.force_share
    )
}

/// All cells and where they were measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    machine: Machine,
    commit: String,
    cells: Vec<Cell>,
}

impl Report {
    pub(super) fn new(cells: Vec<Cell>) -> Self {
        let threads = cells.iter().map(|cell| cell.threads).max().unwrap_or(1);
        Self { machine: Machine::here(threads, cofilter_runtime::cpu_tier()), commit: commit(), cells }
    }

    fn markdown(&self) -> String {
        let mut text = format!("# Speed of training\n\n{}\n\n{}.\n\n", written_by(), self.machine);
        text += "Images a second by the median iteration (data, forward, backward, update), ours and PyTorch's (eager, in its faster \
                 layout, fused SGD, images laid out beforehand) in turns in one run, in single precision, from the same weights, with \
                 the same images, order and recipe (SGD with momentum 0.9 and decay 5e-4, no dropout). `losses` are our first and last \
                 one; the largest difference of an engine's from ours in an iteration is relative to the first, and so is that between \
                 PyTorch's two layouts, which is what rounding alone comes to; both say little where losses hardly fell. `force` is how \
                 much longer an update takes with the L1 and with the L2 force, relative to the iteration. Memory is the most that each \
                 process held (none where the system does not tell), images included, Python included; ours is one process, so it has \
                 what the allocator kept of the cells above it, where PyTorch's begins anew.\n\n";
        text += "| network | batch | threads | cofilter | PyTorch | layout | ratio | data | forward | backward | update | \
                 force l1 | force l2 | iterations | losses | differ by | PyTorch's by | MiB | PyTorch MiB |\n";
        text += "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";
        for cell in &self.cells {
            let force = |name: &str| cell.force.get(name).map_or(f64::NAN, |share| 100.0 * share);
            let (first, last, fell) = cell.losses();
            let weak = if fell { "" } else { " (weak: they hardly fell)" };
            let mib = |bytes: u64| bytes / (1 << 20);
            let [data, forward, backward, update] = cell.shares.map(|share| 100.0 * share);
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.0} | {:.0} | {} | {:.2} | {data:.1} % | {forward:.1} % | {backward:.1} % | {update:.1} % | \
                 {:.1} % | {:.1} % | {} | {:.3} → {:.3} | {:.0e}{weak} | {:.0e} | {} | {} |",
                cell.net,
                cell.batch,
                cell.threads,
                cell.cofilter_images_per_s,
                cell.pytorch_images_per_s,
                cell.pytorch_layout,
                cell.ratio(),
                force("l1"),
                force("l2"),
                cell.iterations,
                first,
                last,
                cell.max_loss_difference,
                cell.pytorch_loss_difference,
                cell.peak_bytes.map_or("–".into(), |bytes| mib(bytes).to_string()),
                mib(cell.pytorch_peak_bytes)
            );
        }
        text
    }

    pub(super) fn write(&self, options: &Options) -> Result<()> {
        publish(options, "runs/speed/training.md", &self.markdown(), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_names_the_faster_layout() {
        let engine = |ms: f64| Engine { ms: vec![ms; 3], ..Engine::default() };
        let engines = [("a".to_owned(), engine(20.0)), ("b".to_owned(), engine(10.0))].into();
        let parts = [vec![1.0], vec![1.0], vec![2.0], vec![1.0]];
        let cell = Cell::new("net", 50, 1, &[4.0, 5.0, 6.0], &parts, &engines);
        assert_eq!((cell.pytorch_layout.as_str(), cell.pytorch_images_per_s), ("b", 5000.0));
        assert_eq!((cell.cofilter_images_per_s, cell.ratio()), (10_000.0, 2.0));
        assert_eq!(cell.shares, [0.2, 0.2, 0.4, 0.2]);
        assert!(line(&cell).contains("2.00 x"));
        let with = |losses: &[f64]| Cell {
            losses: [("cofilter".to_owned(), losses.to_vec())].into(),
            ..cell.clone()
        };
        assert_eq!(with(&[2.0, 1.0, 1.5]).losses(), (2.0, 1.5, true));
        assert!(!with(&[2.0, 1.95]).losses().2 && !cell.losses().2);
    }
}
