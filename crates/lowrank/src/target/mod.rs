//! Ranks for a latency: what each way of having a layer costs in the runtime and what it does to the outputs, both measured,
//! and the choice of one for each layer.

mod latency;
mod sensitivity;

use crate::calibrate::Calibration;
use crate::choose::{Choice, choose};
use crate::decompose::{Selected, costs, select, with_biases};
use crate::layer::Layer;
use crate::{Error, Method, Rank, RankRule, Result, Settings, decompose};
use cofilter_graph::{Model, Shape};
use serde::{Deserialize, Serialize};

pub use latency::measured_speedup;

/// Rank at which kernels run full: they work on blocks of as many channels.
const BLOCK: usize = 16;

/// Selections that are measured to reach one speedup.
const TRIES: usize = 6;
/// How near to what was asked for a measured speedup is near enough.
const CLOSE: f64 = 0.02;

/// What a survey looks at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SurveySettings {
    /// Ways of taking a layer apart that are tried, where they have a meaning.
    pub methods: Vec<Method>,
    /// Whether fully connected layers take part.
    pub linear: bool,
    /// Whether 1x1 convolutions take part.
    pub pointwise: bool,
    /// Layers to leave alone, by name.
    pub exclude: Vec<String>,
    /// Images of a run.
    pub batch: usize,
    /// Threads of a run.
    pub threads: usize,
    /// Ranks of each layer and method that are measured; those between are interpolated.
    pub ranks: usize,
    /// Rounds in which every network is timed once, at least; small networks get more. The lower quartiles of the times are taken.
    pub rounds: usize,
}

impl Default for SurveySettings {
    fn default() -> Self {
        Self {
            methods: vec![Method::Pca, Method::Spatial, Method::Tucker],
            linear: false,
            pointwise: false,
            exclude: Vec::new(),
            batch: 1,
            threads: 1,
            ranks: 4,
            rounds: 15,
        }
    }
}

/// A network's layers, each with the ways that it can be had in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Survey {
    /// What was asked for.
    pub settings: SurveySettings,
    /// Images that the divergences are of.
    pub images: usize,
    /// Time of a run of the network as it is, in microseconds.
    pub whole_us: f64,
    /// Layers that can be taken apart, in graph order.
    pub layers: Vec<LayerSurvey>,
    /// What differences of times of layers are multiplied with, so that their sum is the difference of whole runs: 1 until a
    /// whole network was measured.
    pub correction: f64,
    /// Microseconds that whole networks were expected to gain, without correction, and gained.
    pub gains: Vec<[f64; 2]>,
}

/// The ways of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerSurvey {
    /// The layer.
    pub name: String,
    /// Its time as it is, in microseconds, inside the network.
    pub dense_us: f64,
    /// Ways, by method and rank.
    pub ways: Vec<Way>,
}

/// A layer taken apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// Into what.
    pub method: Method,
    /// At which rank.
    pub rank: Rank,
    /// Time of the new layers in microseconds, inside the network.
    pub us: f64,
    /// Mean Kullback-Leibler divergence of the network's class probabilities from what they were, in nats, with this layer
    /// alone taken apart.
    pub divergence: f64,
    /// Whether both were measured; otherwise they lie between those of neighbouring ranks.
    pub measured: bool,
}

/// A selection that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reached {
    /// What was selected; its expected time is from before the measurement.
    pub selection: Selection,
    /// How many times as fast the network ran.
    pub measured_speedup: f64,
}

/// One way for each layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// Layers that are taken apart, by name.
    pub settings: Settings,
    /// Time of a run, in microseconds, as it is to be expected.
    pub predicted_us: f64,
    /// [`Survey::whole_us`] over that.
    pub predicted_speedup: f64,
    /// Sum of the divergences.
    pub divergence: f64,
}

impl Survey {
    /// Measures every way of every layer: times in the runtime, inside whole networks in which all layers are had in some way,
    /// round after round in turns, and the effect on the outputs for these images.
    ///
    /// # Errors
    /// As [`crate::decompose_calibrated`].
    pub fn measure(model: &Model, settings: &SurveySettings, calibration: &Calibration<'_>) -> Result<Self> {
        let fail = |reason: String| Err(Error::Calibration { reason });
        if settings.ranks == 0 || settings.rounds == 0 || settings.batch == 0 {
            return fail("a survey needs at least one rank, one round and one image of a run".into());
        }
        if !(1..=1024).contains(&settings.threads) {
            return fail(format!("expected 1..=1024 threads, found {}", settings.threads));
        }
        let output = model.graph().output_shape();
        if !matches!(output, Shape::Vector(_)) {
            return fail(format!("a survey compares class scores, the network gives {output}"));
        }
        model.check_finite()?;
        let images = calibration.check(model)?;
        let biased = with_biases(model, &select(model, &settings.selection())?)?;
        let selected = select(&biased, &settings.selection())?;
        let mut layers: Vec<LayerSurvey> = selected
            .iter()
            .map(|of| LayerSurvey { name: of.layer.name.into(), dense_us: 0.0, ways: ways(of, settings) })
            .collect();
        sensitivity::measure(&biased, &selected, &mut layers, calibration)?;
        let whole_us = latency::measure(model, &mut layers, settings)?;
        for (of, layer) in selected.iter().zip(&mut layers) {
            interpolate(&of.layer, layer);
        }
        Ok(Self { settings: settings.clone(), images, whole_us, layers, correction: 1.0, gains: Vec::new() })
    }

    /// The ways that change the outputs least, of those with which the network runs this many times as fast.
    ///
    /// # Errors
    /// [`Error::Unreachable`], with the most that there is.
    pub fn select(&self, speedup: f64) -> Result<Selection> {
        let best = self.fastest();
        if !(speedup.is_finite() && speedup > 0.0) || speedup > best {
            return Err(Error::Unreachable { speedup, best });
        }
        let layers: Vec<Vec<Choice>> = self.layers.iter().map(|layer| self.choices(layer)).collect();
        // Costs are above the cheapest ones, so that none is below 0.
        let least: f64 = layers.iter().map(|of| cheapest(of)).sum();
        let raised: Vec<Vec<Choice>> = layers
            .iter()
            .map(|of| {
                let least = cheapest(of);
                of.iter().map(|choice| Choice { cost: choice.cost - least, ..*choice }).collect()
            })
            .collect();
        let budget = self.whole_us / speedup - self.whole_us - least;
        let chosen = choose(&raised, budget.max(0.0)).ok_or(Error::Unreachable { speedup, best })?;
        Ok(self.selection(&chosen))
    }

    /// Every layer in its fastest way.
    fn quickest(&self) -> Selection {
        let fastest = |layer: &LayerSurvey| {
            let choices = self.choices(layer);
            let least = cheapest(&choices);
            choices.iter().position(|choice| choice.cost == least && choice.loss.is_finite()).unwrap_or(0)
        };
        self.selection(&self.layers.iter().map(fastest).collect::<Vec<_>>())
    }

    /// How many times as fast the network can be, by what was measured.
    #[must_use]
    pub fn fastest(&self) -> f64 {
        let least: f64 = self.layers.iter().map(|layer| cheapest(&self.choices(layer))).sum();
        self.whole_us / (self.whole_us + least)
    }

    /// Corrects expected times by what a network of this choice took: of all that were measured, the factor of the expected gains
    /// that comes nearest to those found, by least squares.
    pub fn correct(&mut self, selection: &Selection, measured_speedup: f64) {
        let expected = (self.whole_us - selection.predicted_us) / self.correction;
        let found = self.whole_us - self.whole_us / measured_speedup;
        self.gains.push([expected, found]);
        let sum = |of: fn(&[f64; 2]) -> f64| self.gains.iter().map(of).sum::<f64>();
        let (both, square) =
            (sum(|[expected, found]| expected * found), sum(|[expected, _]| expected * expected));
        if square > 0.0 && both > 0.0 {
            self.correction = both / square;
        }
    }

    /// A selection with which the network was measured to run this many times as fast: selects, measures the whole network, corrects
    /// what was expected, and selects again, until both agree in two measurements or nothing new comes of it.
    ///
    /// Times depend on the layers and not on their numbers, so networks are taken apart without images here;
    /// [`crate::decompose_calibrated`] with the selection's settings comes after.
    ///
    /// # Errors
    /// [`Error::Unreachable`], with the most that there is by what was measured.
    pub fn reach(&mut self, model: &Model, speedup: f64, seconds: f64) -> Result<Reached> {
        let (settings, known_us) = (self.settings.clone(), self.whole_us);
        self.reach_by(speedup, |selected| {
            let (small, _) = decompose(model, selected)?;
            latency::speedup_when_quiet([model, &small], known_us, &settings, seconds)
        })
    }

    /// How many times as fast a network runs as the one that was surveyed, measured as [`measured_speedup`] does; while the machine is
    /// so busy that the latter takes more than 1.25 times as long as in the survey, it is measured again, up to three times.
    ///
    /// # Errors
    /// As [`measured_speedup`].
    pub fn speedup_of(&self, model: &Model, small: &Model, seconds: f64) -> Result<f64> {
        latency::speedup_when_quiet([model, small], self.whole_us, &self.settings, seconds)
    }

    /// As [`Survey::reach`], with another way to measure the network that these settings make.
    ///
    /// # Errors
    /// As [`Survey::reach`], and those of `measure`.
    pub fn reach_by(
        &mut self,
        speedup: f64,
        mut measure: impl FnMut(&Settings) -> Result<f64>,
    ) -> Result<Reached> {
        if !(speedup.is_finite() && speedup > 0.0) {
            return Err(Error::Unreachable { speedup, best: self.fastest() });
        }
        let mut tries: Vec<Reached> = Vec::new();
        // Raised where the same selection comes again, which was not fast enough.
        let mut wanted = speedup;
        for round in 0..TRIES {
            let mut selection = self.select(wanted).unwrap_or_else(|_| self.quickest());
            let known = |selection: &Selection, tries: &[Reached]| {
                tries.iter().any(|before| before.selection.settings == selection.settings)
            };
            let enough = tries.iter().any(|of| of.measured_speedup >= speedup * (1.0 - CLOSE));
            if known(&selection, &tries) || (round + 1 == TRIES && !enough) {
                // What there is at most, before anything is called out of reach.
                selection = self.quickest();
            }
            if known(&selection, &tries) {
                break;
            }
            let close = |measured: f64| (measured / speedup - 1.0).abs() <= CLOSE;
            let mut measured_speedup = measure(&selection.settings)?;
            if close(measured_speedup) {
                // Of several that are near by chance too, the first that seems to fit would be taken.
                measured_speedup = f64::sqrt(measured_speedup * measure(&selection.settings)?);
            }
            tracing::info!(
                "{speedup:.2} times as fast: expected {:.3}, measured {measured_speedup:.3}",
                selection.predicted_speedup
            );
            self.correct(&selection, measured_speedup);
            if measured_speedup < speedup {
                wanted = wanted.max(speedup * (speedup / measured_speedup).min(1.1));
            }
            tries.push(Reached { selection, measured_speedup });
            if close(measured_speedup) {
                break;
            }
        }
        // Fast enough with the least change; else the fastest.
        let enough = tries.iter().filter(|of| of.measured_speedup >= speedup * (1.0 - CLOSE));
        let gentlest =
            enough.min_by(|a, b| a.selection.divergence.total_cmp(&b.selection.divergence)).cloned();
        gentlest.ok_or_else(|| {
            let best = tries.iter().map(|of| of.measured_speedup).fold(0.0, f64::max);
            Error::Unreachable { speedup, best }
        })
    }

    /// Changes of the whole time, the layer as it is first.
    fn choices(&self, layer: &LayerSurvey) -> Vec<Choice> {
        let way = |way: &Way| Choice {
            cost: (way.us - layer.dense_us) * self.correction,
            // Rounding may leave a divergence below 0; one that is no number is never chosen.
            loss: if way.divergence.is_finite() { way.divergence.max(0.0) } else { f64::INFINITY },
        };
        std::iter::once(Choice { cost: 0.0, loss: 0.0 }).chain(layer.ways.iter().map(way)).collect()
    }

    fn selection(&self, chosen: &[usize]) -> Selection {
        let (mut change, mut divergence) = (0.0, 0.0);
        let mut settings = self.settings.selection();
        let mut ranks = Vec::new();
        for (layer, index) in self.layers.iter().zip(chosen) {
            let choice = self.choices(layer)[*index];
            change += choice.cost;
            divergence += choice.loss;
            if let Some(way) = index.checked_sub(1).map(|way| &layer.ways[way]) {
                settings.methods.insert(layer.name.clone(), way.method);
                ranks.push((layer.name.clone(), way.rank));
            }
        }
        settings.rule = RankRule::by_name(ranks);
        let predicted_us = self.whole_us + change;
        Selection { settings, predicted_us, predicted_speedup: self.whole_us / predicted_us, divergence }
    }
}

impl SurveySettings {
    /// What takes part.
    fn selection(&self) -> Settings {
        Settings {
            rule: RankRule::Full,
            linear: self.linear,
            pointwise: self.pointwise,
            exclude: self.exclude.clone(),
            ..Settings::default()
        }
    }
}

/// The least change of the whole time, of choices with numbers: the layer as it is always has.
fn cheapest(choices: &[Choice]) -> f64 {
    let known = choices.iter().filter(|choice| choice.cost.is_finite() && choice.loss.is_finite());
    known.map(|choice| choice.cost).fold(f64::INFINITY, f64::min)
}

/// Ways that are measured, with neither time nor divergence yet.
fn ways(of: &Selected<'_>, settings: &SurveySettings) -> Vec<Way> {
    let layer = &of.layer;
    let fit = settings.methods.iter().filter(|method| method.unfit(layer).is_none());
    fit.flat_map(|method| {
        let all = useful_ranks(layer, *method);
        let most = settings.ranks.min(all.len());
        // The first and the last, and as many between.
        let at = |i: usize| if most < 2 { 0 } else { i * (all.len() - 1) / (most - 1) };
        (0..most)
            .map(|i| Way {
                method: *method,
                rank: Rank::One(all[at(i)]),
                us: 0.0,
                divergence: 0.0,
                measured: true,
            })
            .collect::<Vec<_>>()
    })
    .collect()
}

/// Ranks at which the kernels run full and the layer is smaller than it is; half of full rank where there are none.
fn useful_ranks(layer: &Layer<'_>, method: Method) -> Vec<usize> {
    let full = method.full_rank(layer).output * layer.groups;
    let dense = [layer.filters * layer.len, layer.filters * layer.len * layer.positions];
    let smaller = |rank: &usize| {
        Rank::One(*rank)
            .of_group(layer, method)
            .is_ok_and(|rank| costs(layer, method, rank).iter().zip(dense).all(|(new, old)| *new < old))
    };
    // Of each group, if its ranks are blocks; of all groups together otherwise.
    let step = if full / layer.groups >= BLOCK {
        BLOCK * layer.groups
    } else {
        BLOCK.next_multiple_of(layer.groups)
    };
    let blocks: Vec<usize> = (step..full).step_by(step).filter(smaller).collect();
    if blocks.is_empty() {
        let half = (full / 2 / layer.groups * layer.groups).max(layer.groups);
        return Some(half).filter(smaller).into_iter().collect();
    }
    blocks
}

/// Adds the ranks between those that were measured.
fn interpolate(of: &Layer<'_>, layer: &mut LayerSurvey) {
    let mut all: Vec<Way> = Vec::new();
    let rank = |way: &Way| match way.rank {
        Rank::One(rank) | Rank::Two([_, rank]) => rank,
    };
    for method in Method::ALL {
        let measured: Vec<&Way> = layer.ways.iter().filter(|way| way.method == method).collect();
        for pair in measured.windows(2) {
            let ([from, to], [a, b]) = ([pair[0], pair[1]], [rank(pair[0]), rank(pair[1])]);
            let between = useful_ranks(of, method).into_iter().filter(|rank| a < *rank && *rank < b);
            all.extend(between.map(|between| {
                #[expect(clippy::cast_precision_loss, reason = "ranks")]
                let share = (between - a) as f64 / (b - a) as f64;
                // Divergences fall by orders of magnitude.
                let tiny = 1e-12;
                let log = |way: &Way| if way.divergence < tiny { tiny.ln() } else { way.divergence.ln() };
                Way {
                    method,
                    rank: Rank::One(between),
                    us: from.us + share * (to.us - from.us),
                    divergence: (log(from) + share * (log(to) - log(from))).exp(),
                    measured: false,
                }
            }));
        }
        all.extend(measured.into_iter().cloned());
    }
    all.sort_by_key(|way| (way.method, rank(way)));
    layer.ways = all;
}
