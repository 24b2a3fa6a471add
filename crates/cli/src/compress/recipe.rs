//! What is to be done, from a file or from the command alone.

use super::Args;
use crate::convert::Target;
use crate::decompose::IMAGES;
use crate::finetune;
use crate::source::About;
use anyhow::{Context as _, Result, bail, ensure};
use cofilter_data::Augment;
use cofilter_lowrank::target::SurveySettings;
use cofilter_lowrank::{RankRule, Settings};
use cofilter_sparsity::Pruning;
use cofilter_train::Schedule;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What is wanted, where there is no recipe.
#[derive(clap::Args)]
pub(super) struct Wish {
    /// Make the network run this many times as fast on this machine, then train it further
    #[arg(long, value_name = "TIMES")]
    target_speedup: Option<f64>,
    /// Most points of top-1 accuracy that may be lost; where more are, smaller speedups are tried, to tell what is reachable
    #[arg(long, value_name = "POINTS", requires = "target_speedup")]
    pub(super) max_drop: Option<f64>,
    /// Images of a run
    #[arg(long, default_value_t = 1, requires = "target_speedup")]
    batch: usize,
    /// Times that the training images are seen again
    #[arg(long, default_value_t = 5.0, requires = "target_speedup")]
    epochs: f64,
    /// Learning rate of the first of them
    #[arg(long, default_value_t = 0.01, requires = "target_speedup")]
    learning_rate: f64,
}

impl Wish {
    /// A part of the way from 1 to the speedup that is wanted.
    pub(super) fn part(&self, share: f64) -> f64 {
        1.0 + share * (self.target_speedup.unwrap_or(1.0) - 1.0)
    }
}

/// What a recipe says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recipe {
    /// The network to begin with.
    pub(super) model: Option<PathBuf>,
    /// What its file does not say.
    #[serde(default)]
    pub(super) about: About,
    /// Folder of the data set.
    pub(super) data: Option<PathBuf>,
    /// Files to write: `.safetensors`, `.onnx`.
    #[serde(default)]
    pub(super) out: Vec<PathBuf>,
    pub(super) stages: Vec<Stage>,
    #[serde(default)]
    pub(super) bench: Bench,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub(super) enum Stage {
    /// By the weights alone.
    Decompose(Settings),
    /// With the least error of outputs.
    DecomposeCalibrated(Calibrated),
    /// So that the network runs as fast as is wanted.
    Target(Speedup),
    /// New statistics of batch normalisations, after a decomposition by the weights alone.
    BatchNorm(Images),
    /// The smallest weights become zero; a `finetune` after it keeps them there with `freeze`.
    Prune(Pruning),
    /// Takes out what is all zero.
    Compact,
    Finetune(Box<cofilter_train::Recipe>),
    /// A little smaller, trained further, and again. Stands for as many pairs of stages.
    Staged(Box<Staged>),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Images {
    /// Training images that are looked at.
    #[serde(default = "usual_images")]
    pub(super) images: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Staged {
    /// How ranks are chosen, one rule a time.
    rules: Vec<RankRule>,
    /// What `decompose` has, but for the rule.
    #[serde(default)]
    settings: Settings,
    /// Training images that are looked at; 0: by the weights alone.
    #[serde(default = "usual_images")]
    images: usize,
    /// Training images for new statistics of batch normalisations after each; 0: none. By outputs they are what they should be.
    #[serde(default)]
    batch_norm: usize,
    /// How the network is trained after each.
    finetune: cofilter_train::Recipe,
}

impl Staged {
    fn stages(&self) -> impl Iterator<Item = Stage> {
        self.rules.iter().flat_map(|rule| {
            let settings = Settings { rule: rule.clone(), ..self.settings.clone() };
            let decompose = match self.images {
                0 => Stage::Decompose(settings),
                images => Stage::DecomposeCalibrated(Calibrated { settings, images }),
            };
            let restate =
                (self.batch_norm > 0).then_some(Stage::BatchNorm(Images { images: self.batch_norm }));
            let finetune = Stage::Finetune(Box::new(self.finetune.clone()));
            std::iter::once(decompose).chain(restate).chain([finetune])
        })
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Calibrated {
    /// What `decompose` has.
    pub(super) settings: Settings,
    /// Training images that are looked at.
    pub(super) images: usize,
}

impl Default for Calibrated {
    fn default() -> Self {
        Self { settings: Settings::default(), images: IMAGES }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Speedup {
    /// How many times as fast.
    pub(super) speedup: f64,
    /// Training images that are looked at.
    #[serde(default = "usual_images")]
    pub(super) images: usize,
    /// Which ways are tried, and for which batch and threads.
    #[serde(default)]
    pub(super) survey: SurveySettings,
}

fn usual_images() -> usize {
    IMAGES
}

impl Stage {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Decompose(_) => "decompose",
            Self::DecomposeCalibrated(_) => "decompose_calibrated",
            Self::Target(_) => "target",
            Self::BatchNorm(_) => "batch_norm",
            Self::Prune(_) => "prune",
            Self::Compact => "compact",
            Self::Finetune(_) => "finetune",
            Self::Staged(_) => "staged",
        }
    }

    pub(super) fn decomposes(&self) -> bool {
        matches!(self, Self::Decompose(_) | Self::DecomposeCalibrated(_) | Self::Target(_) | Self::Staged(_))
    }

    /// Whether it learns from the network that the recipe begins with.
    pub(super) fn learns_from_teacher(&self) -> bool {
        matches!(self, Self::Finetune(recipe) if recipe.distillation.is_some())
    }

    /// Whether ranks fall while it trains.
    pub(super) fn clips(&self) -> bool {
        matches!(self, Self::Finetune(recipe) if recipe.clip.is_some())
    }

    /// How it chooses ranks.
    fn rule(&self) -> Option<&RankRule> {
        match self {
            Self::Decompose(settings) => Some(&settings.rule),
            Self::DecomposeCalibrated(of) => Some(&of.settings.rule),
            Self::Finetune(recipe) => recipe.clip.as_ref().map(|clip| &clip.rule),
            Self::Target(_) | Self::BatchNorm(_) | Self::Prune(_) | Self::Compact | Self::Staged(_) => None,
        }
    }

    /// Whether it looks at images.
    pub(super) fn needs_data(&self) -> bool {
        !matches!(self, Self::Decompose(_) | Self::Prune(_) | Self::Compact)
    }
}

/// How latency is measured.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Bench {
    pub(super) batch: usize,
    pub(super) seconds: f64,
}

impl Default for Bench {
    fn default() -> Self {
        Self { batch: 1, seconds: 3.0 }
    }
}

impl Recipe {
    pub(super) fn read(args: &Args) -> Result<Self> {
        let path = &args.recipe;
        if let Some(speedup) = args.wish.target_speedup {
            return Self::wished(args, speedup).with_context(|| path.display().to_string());
        }
        ensure!(
            path.extension().is_some_and(|extension| extension == "toml"),
            "{}: expected a recipe (.toml), or `--target-speedup` for a network",
            path.display()
        );
        ensure!(
            args.about == About::default(),
            "what is said of images is said in the recipe, under [about]"
        );
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut recipe: Self =
            toml::from_str(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        for stage in &recipe.stages {
            let Stage::Staged(of) = stage else { continue };
            ensure!(!of.rules.is_empty(), "{}: staged: expected `rules`, one or more", path.display());
            ensure!(
                of.settings.rule == Settings::default().rule,
                "{}: staged: `rules` say how ranks are chosen, not `settings.rule`",
                path.display()
            );
        }
        recipe.stages = recipe
            .stages
            .into_iter()
            .flat_map(|stage| match stage {
                Stage::Staged(of) => of.stages().collect(),
                other => vec![other],
            })
            .collect();
        let folder = path.parent().unwrap_or(Path::new("."));
        let of = |file: &mut PathBuf| *file = folder.join(&*file);
        let About { weights, mean, .. } = &mut recipe.about;
        let files = weights.iter_mut().chain(mean).chain(&mut recipe.model).chain(&mut recipe.data);
        files.chain(&mut recipe.out).for_each(of);
        // What the command says comes before what the recipe says.
        recipe.model = args.model.clone().or(recipe.model);
        recipe.data = args.data.clone().or(recipe.data);
        if !args.out.is_empty() {
            recipe.out.clone_from(&args.out);
        }
        recipe.check().with_context(|| path.display().to_string())?;
        Ok(recipe)
    }

    /// For a speedup of a network: decomposed by what was measured, and trained further.
    fn wished(args: &Args, speedup: f64) -> Result<Self> {
        let Wish { batch, epochs, learning_rate, max_drop, .. } = &args.wish;
        ensure!(args.model.is_none(), "--model: the network is given already");
        let data = args.data.clone().context("`--target-speedup` needs `--data`")?;
        ensure!(speedup.is_finite() && speedup > 1.0, "--target-speedup {speedup}: expected above 1");
        ensure!(max_drop.is_none_or(f64::is_finite), "--max-drop: expected points");
        ensure!(epochs.is_finite() && *epochs >= 0.0, "--epochs {epochs}: expected 0 or more");
        let split = cofilter_data::open(&data)?;
        let [planes, height, _] = split.train.extents();
        // Digits read wrong in a mirror; large images lose little by a shift of four.
        let augment = match planes {
            1 => Augment::default(),
            _ => Augment { padding: if height <= 64 { 4 } else { 0 }, mirror: true },
        };
        let train = cofilter_train::Recipe {
            batch: 128.min(split.train.len()),
            learning_rate: *learning_rate,
            schedule: Schedule::Cosine,
            weight_decay: 1e-4,
            augment,
            ..cofilter_train::Recipe::default()
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a count of updates"
        )]
        let iterations = (epochs * split.train.len() as f64 / train.batch as f64).round() as u64;
        let survey = SurveySettings { batch: *batch, threads: args.threads, ..SurveySettings::default() };
        let mut stages = vec![Stage::Target(Speedup { speedup, images: IMAGES, survey })];
        if iterations > 0 {
            stages.push(Stage::Finetune(Box::new(cofilter_train::Recipe { iterations, ..train })));
        }
        let recipe = Self {
            model: Some(args.recipe.clone()),
            about: args.about.clone(),
            data: Some(data),
            out: args.out.clone(),
            stages,
            bench: Bench { batch: *batch, ..Bench::default() },
        };
        recipe.check()?;
        Ok(recipe)
    }

    /// The same for another speedup.
    pub(super) fn with_speedup(&self, speedup: f64) -> Self {
        let mut recipe = self.clone();
        for stage in &mut recipe.stages {
            if let Stage::Target(of) = stage {
                of.speedup = speedup;
            }
        }
        recipe
    }

    /// Refuses before anything is done what would fail or make no sense later.
    fn check(&self) -> Result<()> {
        ensure!(
            !self.stages.is_empty(),
            "no stages: expected [[stages]] with `stage` one of decompose, decompose_calibrated, target, batch_norm, prune, compact, \
             finetune, staged"
        );
        ensure!(self.model.is_some(), "no network: expected `model`, or `--model`");
        let seconds = self.bench.seconds;
        ensure!(seconds.is_finite() && seconds > 0.0, "bench: seconds {seconds}, expected above 0");
        ensure!(self.bench.batch > 0, "bench: a batch of 0 images");
        ensure!(!self.out.is_empty(), "no file to write: expected `out`, or `--out`");
        for file in &self.out {
            Target::of(file, false)?;
            finetune::writable(file)?;
        }
        if let Some(at) = self.stages.iter().position(Stage::needs_data) {
            ensure!(self.data.is_some(), "stage {}, {}: needs `data`", at + 1, self.stages[at].name());
        }
        for (at, stage) in self.stages.iter().enumerate() {
            if let Some(rule) = stage.rule() {
                rule.check().with_context(|| format!("stage {}, {}", at + 1, stage.name()))?;
            }
            let images = match stage {
                Stage::DecomposeCalibrated(of) => of.images,
                Stage::Target(of) => of.images,
                Stage::BatchNorm(of) => of.images,
                _ => 1,
            };
            ensure!(images > 0, "stage {}, {}: expected at least 1 image, found 0", at + 1, stage.name());
            if let Stage::Prune(pruning) = stage {
                pruning.check().with_context(|| format!("stage {}, prune", at + 1))?;
            }
            if let Stage::Target(Speedup { speedup, survey, .. }) = stage {
                ensure!(
                    speedup.is_finite() && *speedup > 1.0,
                    "stage {}, target: speedup {speedup}, expected above 1",
                    at + 1
                );
                if survey.batch != self.bench.batch {
                    tracing::warn!(
                        "stage {} is for runs of {} image(s), the report measures runs of {}",
                        at + 1,
                        survey.batch,
                        self.bench.batch
                    );
                }
            }
        }
        for (at, pair) in self.stages.windows(2).enumerate() {
            if let [Stage::Prune(_), Stage::Finetune(recipe)] = pair
                && recipe.freeze.is_none()
            {
                tracing::warn!(
                    "stage {}: without `freeze` all zeros of stage {} learn again",
                    at + 2,
                    at + 1
                );
            }
            ensure!(
                !matches!(pair[1], Stage::BatchNorm(_)) || matches!(pair[0], Stage::Decompose(_)),
                "stage {}, batch_norm: expected right after `decompose`, found after `{}`{}",
                at + 2,
                pair[0].name(),
                match pair[0].decomposes() {
                    true => ", which keeps the means of all outputs itself",
                    false => "",
                }
            );
        }
        ensure!(
            !matches!(self.stages[0], Stage::BatchNorm(_)),
            "stage 1, batch_norm: expected right after `decompose`, found as the first stage"
        );
        let two = self.stages.windows(2).position(|pair| pair.iter().all(Stage::decomposes));
        if let Some(at) = two {
            bail!(
                "stage {}: decomposes again what stage {} has just decomposed, which has no effect",
                at + 2,
                at + 1
            );
        }
        if self.stages.last().is_some_and(Stage::decomposes) {
            tracing::warn!("the last stage decomposes: fine-tuning after it would recover accuracy");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(recipe: &Recipe) -> Vec<&'static str> {
        recipe.stages.iter().map(Stage::name).collect()
    }

    #[test]
    fn a_staged_stage_stands_for_a_pair_a_rule_with_new_statistics_if_asked_for() {
        let text = "stage = 'staged'\nrules = ['full', { energy = 0.5 }]\nfinetune = {}\n";
        let stages = |more: &str| {
            let Ok(Stage::Staged(of)) = toml::from_str::<Stage>(&format!("{text}{more}")) else {
                panic!("{more}")
            };
            of.stages().map(|stage| stage.name()).collect::<Vec<_>>()
        };
        let pair = ["decompose_calibrated", "finetune"];
        assert_eq!(stages(""), [pair, pair].concat());
        let three = ["decompose", "batch_norm", "finetune"];
        assert_eq!(stages("images = 0\nbatch_norm = 64"), [three, three].concat());
    }

    /// Those that come with the repository.
    #[test]
    fn shipped_recipes_are_understood() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recipes");
        let mut found = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let recipe: Recipe =
                toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(!names(&recipe).is_empty());
            found += 1;
        }
        assert!(found >= 2, "{found} recipes");
    }
}
