//! Filters coordinated by force on CIFAR-10, as published: ConvNet and ResNet-20 (paper, sections 6.1 and 6.2).
//!
//! A trained network is trained further without force (the control), with L1-norm and with L2-norm force of the largest strength that
//! it bears, and with repulsion; control and L2 arm are decomposed to the same ranks and fine-tuned; everything is evaluated
//! and timed in the runtime.

mod ahead;
mod budget;
mod claims;
mod figures;
mod search;
mod subject;

use crate::machine::{self, Machine};
use crate::options::Options;
use crate::pipeline::{Pipeline, Trained};
use crate::report::{Arm, Data, Percentiles, Report};
use crate::stage::{Key, Store};
use crate::statistics::{interval, mean, median};
use crate::timing;
use anyhow::{Context as _, Result, bail, ensure};
use cofilter_data::Split;
use cofilter_force::Force;
use cofilter_graph::Model;
use cofilter_lowrank as lowrank;
use std::collections::BTreeMap;
use std::time::Duration;
use subject::Subject;

/// Share of the squared singular values that a rank keeps.
const ENERGY: f64 = 0.95;
/// Strength of the repulsion over that of the L2-norm force.
const REPULSION: f64 = -0.1;
/// Images of a run whose latency is measured.
const BATCHES: [usize; 3] = [1, 32, 128];
/// The arms at full rank.
const DENSE: [&str; 5] = ["baseline", "control", "force-l1", "force-l2", "repulsion"];
/// The arms that are decomposed to the same ranks.
const STARTS: [&str; 2] = ["control", "force-l2"];
/// The control at its own ranks.
const OWN: &str = "control-own-ranks";

/// Arm, seed, force with its strength.
type Forced = (&'static str, u64, Option<(Force, f64)>);

/// One strength of one force, trained from the first seed's baseline.
struct Tried {
    force: &'static str,
    strength: f64,
    /// Nothing where it diverged however far it was rolled back.
    trained: Option<Trained>,
}

/// Strength of the force at the end of a training.
fn last_strength(trained: &Trained) -> Option<f64> {
    trained.curve.last().and_then(|point| point.force_strength)
}

/// What all stages gave.
struct Results {
    seeds: Vec<u64>,
    /// Networks by arm, one a seed.
    arms: BTreeMap<String, Vec<Trained>>,
    /// Ranks at 95 % energy by dense arm, for each seed, in the order of the layers.
    ranks: BTreeMap<String, Vec<Vec<usize>>>,
    full_ranks: Vec<usize>,
    /// The ranks that the decomposed arms have.
    common_ranks: Vec<usize>,
    /// Everything that the searches tried.
    tried: Vec<Tried>,
    /// Strength that was chosen of each force, and whether its loss was within the limit.
    chosen: BTreeMap<&'static str, (f64, bool)>,
}

impl Results {
    fn top1(&self, arm: &str) -> Vec<f64> {
        self.arms[arm].iter().map(|t| t.top1).collect()
    }

    /// Mean over some layers of rank over full rank, for each seed.
    fn rank_ratios(&self, arm: &str, layers: std::ops::Range<usize>) -> Vec<f64> {
        let ratio = |ranks: &Vec<usize>| rank_ratio(&ranks[layers.clone()], &self.full_ranks[layers.clone()]);
        self.ranks[arm].iter().map(ratio).collect()
    }

    /// Top-1 of an arm above that of another, for each seed.
    fn gains(&self, arm: &str, over: &str) -> Vec<f64> {
        self.top1(arm).iter().zip(self.top1(over)).map(|(a, b)| a - b).collect()
    }
}

/// Mean over layers of rank over full rank.
fn rank_ratio(ranks: &[usize], full: &[usize]) -> f64 {
    crate::figures::rank_ratio(ranks.iter().copied().zip(full.iter().copied()))
}

/// The experiment of one network.
struct Study<'a> {
    pipeline: Pipeline<'a>,
    subject: Subject,
    /// Largest loss of the search, in points.
    max_drop: f64,
    /// Strengths that a search may try.
    tries: usize,
}

/// ResNet-20 as it was trained by others.
///
/// # Errors
/// If its file is missing or another network's.
pub(crate) fn trained_resnet20(options: &Options) -> Result<Model> {
    Subject::resnet20(false)?.model(options, options.seed)
}

/// Runs the experiment and writes its report.
///
/// # Errors
/// Data or weights that are missing or of the wrong form, a stopped training, what the system says.
pub fn run(options: &Options) -> Result<Report> {
    let mut subject = Subject::new(options)?;
    let split = open_data(options)?;
    let preprocessing = subject.preprocessing(&split.train);
    let store = Store::open(&options.folder().join("stages"), options.fresh)?;
    let network = subject.network();
    let pipeline = Pipeline { options, network, data: &split, preprocessing: &preprocessing, store: &store };
    let tries = options.tries.unwrap_or(match &options.strengths {
        Some(strengths) if options.only_l2 => strengths.len(),
        Some(_) => 1,
        None if options.quick => 2,
        None => 6,
    });
    let scale = budget::scale(&pipeline, &subject, tries)?;
    subject.scale = scale.of_published;
    subject.tuning = options.tuning;
    let max_drop = options.max_drop.unwrap_or(subject.max_drop);
    let study = Study { pipeline, subject, max_drop, tries };
    let results = study.train_all()?;
    let arms = study.arms(&results)?;
    let report = Report {
        experiment: study.subject.name.into(),
        summary: study.summary(&results),
        commit: machine::commit(),
        command: options.command(),
        seeds: results.seeds.clone(),
        machine: Machine::here(options.thread_count(), cofilter_runtime::cpu_tier()),
        data: Some(Data::of(&split)),
        claims: claims::all(&study, &results, &arms)?,
        figures: figures::all(&study, &results, &arms)?,
        tables: figures::tables(&study, &results, &arms)?,
        arms,
        notes: study.notes(&results, &scale),
    };
    report.write(&options.folder())?;
    Ok(report)
}

fn open_data(options: &Options) -> Result<Split> {
    let Some(folder) = &options.data else {
        bail!(
            "{}: say with --data where CIFAR-10 lies (the six binary files, or folders `train` and `test` of images)",
            options.experiment.name()
        )
    };
    let mut split = cofilter_data::open(folder)?;
    ensure!(
        split.train.extents() == [3, 32, 32] && split.train.classes().len() == 10,
        "{}: {} takes 3x32x32 images of 10 classes, found {:?} of {}",
        folder.display(),
        options.experiment.name(),
        split.train.extents(),
        split.train.classes().len()
    );
    ensure!(
        options.from_scratch || split.train.classes() == cofilter_data::CIFAR10_CLASSES,
        "{}: the trained weights know the classes {}, in this order, found {}; --from-scratch trains a network for these",
        folder.display(),
        cofilter_data::CIFAR10_CLASSES.join(", "),
        split.train.classes().join(", ")
    );
    if options.quick {
        split.train = split.train.spread(1_000);
        split.test = split.test.spread(100);
    }
    Ok(split)
}

impl Study<'_> {
    fn train_all(&self) -> Result<Results> {
        let seeds = self.pipeline.options.seed_list();
        let mut results = Results {
            seeds: seeds.clone(),
            arms: BTreeMap::new(),
            ranks: BTreeMap::new(),
            full_ranks: Vec::new(),
            common_ranks: Vec::new(),
            tried: Vec::new(),
            chosen: BTreeMap::new(),
        };
        if self.subject.has_no_weights() {
            self.ahead(&seeds, |seed| self.baseline(*seed).map(drop))?;
        }
        self.train_ahead(&self.certain(&seeds))?;
        let mut chosen = Vec::new();
        for seed in &seeds {
            let baseline = self.baseline(*seed)?;
            let control = self.continued("control", *seed, &baseline.model, None)?;
            if results.chosen.is_empty() {
                self.search(&mut results, *seed, &baseline.model, control.top1)?;
                chosen = self.chosen(&results);
                self.train_ahead(&chosen)?;
            }
            let mut put = |arm: &str, trained| results.arms.entry(arm.into()).or_default().push(trained);
            for (arm, _, force) in chosen.iter().filter(|(_, of, _)| of == seed) {
                put(arm, self.continued(arm, *seed, &baseline.model, *force)?);
            }
            put("control", control);
            put("baseline", baseline);
        }
        for arm in self.dense() {
            let ranks =
                results.arms[arm].iter().map(|of| self.ranks(&of.model)).collect::<Result<Vec<_>>>()?;
            results.ranks.insert(arm.into(), ranks);
        }
        let baseline = &results.arms["baseline"][0].model;
        results.full_ranks = self.spectra(baseline)?.iter().map(lowrank::Spectrum::full_rank).collect();
        results.common_ranks = self.median_ranks(&results, "force-l2")?;
        self.decompose_all(&mut results)?;
        Ok(results)
    }

    /// The forces that are studied.
    fn forces(&self) -> &'static [(&'static str, Force)] {
        let both = &[("force-l1", Force::L1), ("force-l2", Force::L2)];
        if self.pipeline.options.only_l2 { &both[1..] } else { both }
    }

    /// Strengths of a force that are tried in any case: all, or the one where a search begins.
    fn strengths(&self, force: usize) -> Vec<f64> {
        let options = self.pipeline.options;
        match options.strengths.as_deref() {
            Some(all) if options.only_l2 => all.to_vec(),
            Some(each) => vec![each[force]],
            None => vec![self.subject.first_strengths()[force]],
        }
    }

    /// The arms at full rank.
    fn dense(&self) -> Vec<&'static str> {
        let studied =
            |arm: &&str| !self.pipeline.options.only_l2 || !matches!(*arm, "force-l1" | "repulsion");
        DENSE.into_iter().filter(studied).collect()
    }

    /// The network that all arms of a seed begin with.
    fn baseline(&self, seed: u64) -> Result<Trained> {
        let start = self.subject.model(self.pipeline.options, seed)?;
        if self.subject.has_no_weights() {
            return self.pipeline.fit("baseline", &start, &self.subject.baseline(seed), None);
        }
        self.pipeline.finish("baseline", start, Vec::new())
    }

    fn continued(
        &self,
        arm: &str,
        seed: u64,
        baseline: &Model,
        force: Option<(Force, f64)>,
    ) -> Result<Trained> {
        let trained = self.pipeline.fit(arm, baseline, &self.subject.continued(seed, force), None)?;
        let ratio = {
            let spectra = self.spectra(&trained.model)?;
            let full: Vec<usize> = spectra.iter().map(lowrank::Spectrum::full_rank).collect();
            rank_ratio(&ranks_of(&spectra), &full)
        };
        let strength = force.map_or(String::new(), |(_, strength)| format!(", strength {strength:.3e}"));
        eprintln!("{arm}, seed {seed}{strength}: {:.2} %, rank ratio {ratio:.3}", trained.top1);
        Ok(trained)
    }

    /// The largest strength of each force whose loss against the control is within the limit. One that has to be rolled back is beyond.
    fn search(&self, results: &mut Results, seed: u64, baseline: &Model, control: f64) -> Result<()> {
        let options = self.pipeline.options;
        for (i, (name, force)) in self.forces().iter().enumerate() {
            let (name, force) = (*name, *force);
            let mut tried = Vec::new();
            let loss = |strength| {
                let trained = match self.continued(name, seed, baseline, Some((force, strength))) {
                    Ok(trained) => Some(trained),
                    Err(error) if diverged(&error) => {
                        eprintln!("{name}, seed {seed}, strength {strength:.3e}: {error:#}");
                        None
                    }
                    Err(error) => return Err(error),
                };
                let held = trained.as_ref().filter(|of| last_strength(of) == Some(strength));
                let drop = held.map_or(f64::INFINITY, |of| control - of.top1);
                tried.push(Tried { force: name, strength, trained });
                Ok(drop)
            };
            let strengths = self.strengths(i);
            let largest = match options.only_l2 {
                true => search::largest_of(&strengths, self.max_drop, loss)?,
                false => search::largest(strengths[0], self.max_drop, self.tries, loss)?,
            };
            let trained = tried.iter().filter(|of| of.trained.is_some()).map(|of| of.strength);
            let least = trained.fold(f64::INFINITY, f64::min);
            let strength = largest.unwrap_or(least);
            ensure!(
                strength.is_finite(),
                "{name}: every strength that was tried diverged; others are tried with --tries or --strengths"
            );
            results.chosen.insert(name, (strength, largest.is_some()));
            results.tried.extend(tried);
        }
        Ok(())
    }

    fn spectra(&self, model: &Model) -> Result<Vec<lowrank::Spectrum>> {
        self.subject.layers.iter().map(|layer| Ok(lowrank::spectrum(model, layer)?)).collect()
    }

    fn ranks(&self, model: &Model) -> Result<Vec<usize>> {
        Ok(ranks_of(&self.spectra(model)?))
    }

    /// The median over the seeds of the rank of each layer of a dense arm.
    fn median_ranks(&self, results: &Results, arm: &str) -> Result<Vec<usize>> {
        let layer = |i| {
            let ranks: Vec<usize> = results.ranks[arm].iter().map(|ranks| ranks[i]).collect();
            median(&ranks).context("no seed")
        };
        (0..self.subject.layers.len()).map(layer).collect()
    }

    /// These ranks; layers whose pair would cost as much as they do stay dense.
    fn to_ranks(&self, ranks: &[usize]) -> Result<lowrank::Settings> {
        let layers = self.subject.layers.iter().zip(ranks);
        let mut by_name = Vec::new();
        for (layer, rank) in layers {
            if self.subject.is_cheaper(layer, *rank)? {
                by_name.push((layer.clone(), *rank));
            }
        }
        let rule = lowrank::RankRule::by_name(by_name);
        Ok(lowrank::Settings { rule, ..lowrank::Settings::default() })
    }

    /// The control at its own ranks, and both starts at the same ones, the latter fine-tuned.
    fn decompose_all(&self, results: &mut Results) -> Result<()> {
        let common = self.to_ranks(&results.common_ranks)?;
        let own = self.to_ranks(&self.median_ranks(results, "control")?)?;
        let seeds = results.seeds.clone();
        let both = |start: &str, i: usize| -> Result<[Trained; 2]> {
            let parent = &results.arms[start][i];
            let (small, _) =
                self.pipeline.decompose(&format!("{start}-lowrank"), parent, seeds[i], &common)?;
            let recipe = self.subject.tuning(seeds[i], &small.model);
            let tuned = self.pipeline.fit(&format!("{start}-tuned"), &small.model, &recipe, None)?;
            Ok([small, tuned])
        };
        let jobs: Vec<(&str, usize)> =
            STARTS.iter().flat_map(|start| (0..seeds.len()).map(move |i| (*start, i))).collect();
        self.ahead(&jobs, |(start, i)| both(start, *i).map(drop))?;
        let mut all = Vec::new();
        for (i, seed) in seeds.iter().copied().enumerate() {
            let mut made = Vec::new();
            for start in STARTS {
                let [small, tuned] = both(start, i)?;
                eprintln!("{start}, seed {seed}: low rank {:.2} %, tuned {:.2} %", small.top1, tuned.top1);
                made.extend([(format!("{start}-lowrank"), small), (format!("{start}-tuned"), tuned)]);
            }
            let (small, _) = self.pipeline.decompose(OWN, &results.arms["control"][i], seed, &own)?;
            made.push((OWN.to_owned(), small));
            all.extend(made);
        }
        for (arm, trained) in all {
            results.arms.entry(arm).or_default().push(trained);
        }
        Ok(())
    }

    /// The arms of the report, in the order of the pipeline.
    fn arms(&self, results: &Results) -> Result<Vec<Arm>> {
        let small =
            ["control-own-ranks", "control-lowrank", "force-l2-lowrank", "control-tuned", "force-l2-tuned"];
        let dense = self.dense();
        let names: Vec<&str> = dense.iter().copied().chain(small).collect();
        let mut latencies: BTreeMap<usize, Vec<Percentiles>> = BTreeMap::new();
        for batch in BATCHES {
            latencies.insert(batch, self.latencies(&names, results, batch, 0)?);
        }
        let full_ranks: BTreeMap<String, usize> =
            self.subject.layers.iter().cloned().zip(results.full_ranks.iter().copied()).collect();
        let arm = |(i, name): (usize, &&str)| -> Result<Arm> {
            let runs = &results.arms[*name];
            let top1_by_seed = results.top1(name);
            let cost = runs[0].model.cost();
            let mut ranks = match *name {
                OWN => self.median_ranks(results, "control")?,
                name if dense.contains(&name) => self.median_ranks(results, name)?,
                _ => results.common_ranks.clone(),
            };
            if !dense.contains(name) {
                for (i, layer) in self.subject.layers.iter().enumerate() {
                    // Dense, as it was.
                    if !self.subject.is_cheaper(layer, ranks[i])? {
                        ranks[i] = results.full_ranks[i];
                    }
                }
            }
            Ok(Arm {
                name: (*name).into(),
                parent: parent(name),
                top1: Some(mean(&top1_by_seed)),
                // Trained weights are the same network for all seeds.
                top1_interval: interval(&top1_by_seed)
                    .filter(|_| *name != "baseline" || self.subject.has_no_weights()),
                top1_by_seed,
                ranks: self.subject.layers.iter().cloned().zip(ranks).collect(),
                full_ranks: full_ranks.clone(),
                params: cost.params(),
                macs: cost.macs(),
                density: 1.0,
                latency_us: latencies.iter().map(|(batch, l)| (*batch, l[i])).collect(),
            })
        };
        names.iter().enumerate().map(arm).collect()
    }

    /// Of the networks of a seed, all in one interleaved run.
    fn latencies(
        &self,
        names: &[&str],
        results: &Results,
        batch: usize,
        seed: usize,
    ) -> Result<Vec<Percentiles>> {
        let options = self.pipeline.options;
        options.check_stop()?;
        let time = Duration::from_secs_f64(if options.quick { 0.1 } else { 10.0 });
        let models: Vec<(&str, &Model)> = names.iter().map(|n| (*n, &results.arms[*n][seed].model)).collect();
        let hashes: Vec<&str> = names.iter().map(|n| results.arms[*n][seed].hash.as_str()).collect();
        let threads = options.thread_count();
        let here = Machine::here(threads, cofilter_runtime::cpu_tier());
        // Measured anew by every other build of the program.
        let key = Key::new("latency", &hashes, &(batch, here, time.as_millis(), machine::commit()));
        self.pipeline.store.value(&key, || timing::latencies(&models, batch, threads, time))
    }

    /// Times as fast as the control, of the control at its own ranks and of the decomposed force arm, for each seed.
    fn speedups(&self, results: &Results, batch: usize) -> Result<[Vec<f64>; 2]> {
        let mut both = [Vec::new(), Vec::new()];
        for seed in 0..results.seeds.len() {
            let times = self.latencies(&["control", OWN, "force-l2-tuned"], results, batch, seed)?;
            both.iter_mut().zip(&times[1..]).for_each(|(of, small)| of.push(times[0].p50 / small.p50));
        }
        Ok(both)
    }

    /// Whether the strengths are the outcome of a search, on the test set.
    fn searched(&self) -> bool {
        self.tries > 1
    }

    fn summary(&self, results: &Results) -> String {
        let job = self.subject.continued(0, Some((Force::L2, 0.0)));
        let only_l2 = self.pipeline.options.only_l2;
        let forced = job.force.as_ref().map_or(0, |force| force.multipliers.len());
        format!(
            "{} on {}, from {}: {} iterations of batch {} without force (control), with {} on {} layers{}{}; \
             control and L2 arm decomposed to the ranks of the L2 arm at {:.0} % energy and fine-tuned for {} iterations. {} seed(s).",
            self.subject.title,
            self.pipeline.data.train.name(),
            if self.subject.has_no_weights() { "a baseline trained here" } else { "trained weights" },
            job.iterations,
            job.batch,
            if only_l2 { "L2-norm force" } else { "L1-norm and L2-norm force" },
            forced,
            self.subject.manner(),
            if only_l2 { "" } else { " and with repulsion" },
            100.0 * ENERGY,
            self.subject.tuning_iterations(),
            results.seeds.len(),
        )
    }

    fn notes(&self, results: &Results, scale: &budget::Scale) -> Vec<String> {
        let mut notes = vec![scale.note(&self.subject)];
        notes.extend(self.subject.deviations());
        for (name, (strength, within)) in &results.chosen {
            let limit = format!("whose loss against the control is at most {} points", self.max_drop);
            notes.push(match within {
                _ if !self.searched() => format!("{name}: strength {strength:.3e}, the only one that was tried."),
                true => format!(
                    "{name}: strength {strength:.3e}, the largest of those tried {limit} on the test set and that had not to be \
                     rolled back, first seed."
                ),
                false => format!(
                    "{name}: strength {strength:.3e}, the least of those tried: there was none {limit} on the test set, first seed."
                ),
            });
        }
        if self.searched() {
            notes.push(
                "The strengths are chosen by the first seed's accuracy on the same test set, so that seed is left out of \
                 `accuracy-price` where there are others."
                    .into(),
            );
        }
        notes.push(
            "The strengths of the paper are unknown. Forces rise over a twentieth of the iterations, and are rolled back where a network \
             diverges."
                .into(),
        );
        if !self.pipeline.options.only_l2 {
            let endless = match self.pipeline.options.target_spread {
                Some(_) => ", to the end",
                None => "",
            };
            notes.push(format!("Repulsion: the L2-norm force with {REPULSION} times its strength{endless}."));
        }
        notes.push(format!(
            "The same start, the same number of iterations and the same \
             order of images for all arms of a seed; seeds differ in {}.",
            self.subject.what_seeds_vary()
        ));
        notes.push(
            "Accuracy is in percent of the whole test set, through the deployment runtime. Parameters, operations and latencies of the \
             arms are those of the first seed's networks; latencies are interleaved, those of a speedup seed by seed. Layers whose \
             pair would have as many operations as they have stay dense, in all decompositions."
                .into(),
        );
        if self.pipeline.options.quick {
            notes.push("--quick: the path is whole, the figures mean nothing.".into());
        }
        notes.extend(self.pipeline.store.foreign());
        notes
    }
}

/// Whether a training failed because a number was not finite or the network forgot what it knew.
fn diverged(error: &anyhow::Error) -> bool {
    use cofilter_train::Error;
    matches!(error.downcast_ref(), Some(Error::Diverged { .. } | Error::Forgotten { .. }))
}

fn ranks_of(spectra: &[lowrank::Spectrum]) -> Vec<usize> {
    spectra.iter().map(|spectrum| spectrum.rank_at_energy(ENERGY)).collect()
}

fn parent(name: &str) -> Option<String> {
    match name.rsplit_once('-') {
        _ if name == "baseline" => None,
        _ if name == OWN => Some("control".into()),
        Some((dense, "lowrank")) => Some(dense.into()),
        Some((dense, "tuned")) => Some(format!("{dense}-lowrank")),
        _ => Some("baseline".into()),
    }
}
