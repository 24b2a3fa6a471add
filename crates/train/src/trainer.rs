use crate::cuda::OnCuda;
use crate::device::{Device, Scorer};
use crate::distillation::{Distillation, Teacher};
use crate::evaluate::{Score, evaluate_net};
use crate::net::{Mode, Net, read};
use crate::sgd::{NotFinite, Sgd};
use crate::sweep::{Sweep, Trace, logits};
use crate::{Error, Recipe, Result};
use cofilter_data::Dataset;
use cofilter_graph::{Array, Model, NodeId, Params, Preprocessing, Role, Shape};
use std::time::Instant;

/// A network in training, one iteration at a time. [`crate::fit`] is the loop around it.
pub struct Trainer {
    net: Net,
    sgd: Sgd,
    device: Device,
    sweep: Sweep,
    /// On a GPU, once the first batch is there.
    on_cuda: Option<OnCuda>,
    /// For evaluations, once there was one.
    scorer: Option<Scorer>,
    recipe: Recipe,
    heads: Vec<NodeId>,
    head_weights: Vec<f64>,
    iteration: u64,
    teacher: Option<Teacher>,
}

/// What one iteration did.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The iteration, counted from 0.
    pub iteration: u64,
    /// Weighted sum of the heads' losses, before the update.
    pub loss: f64,
    /// Mean cross entropy of each head; of the main one with that of the teacher, if there is one.
    pub losses: Vec<f64>,
    /// Images of the batch whose label the main head ranked first, before the update.
    pub correct: usize,
    /// Rate of the update.
    pub learning_rate: f64,
    /// Norm of the force relative to that of the gradient of loss and decay, over the regularised tensors.
    pub force_share: Option<f64>,
    /// Strength of the force in this iteration.
    pub force_strength: Option<f64>,
    /// Time of the forward pass, the backward pass and the update, in seconds.
    pub seconds: [f64; 3],
}

impl Trainer {
    /// Copies a model, masked if there are masks (0 or 1 for each number).
    ///
    /// # Errors
    /// [`Error::Recipe`], [`Error::Input`] for masks of another network or heads without class scores,
    /// [`Error::Tensor`]. A GPU is opened by the first iteration.
    pub fn new(
        model: &Model,
        recipe: &Recipe,
        masks: Option<&Params<Array>>,
        device: Device,
    ) -> Result<Self> {
        recipe.check(model.graph())?;
        let net = Net::new(model)?;
        for id in net.graph().outputs() {
            let node = net.graph().node(*id);
            if !matches!(node.shape(), Shape::Vector(_)) {
                return Err(Error::Input(format!(
                    "output `{}`: expected a vector of class scores, found {}",
                    node.name(),
                    node.shape()
                )));
            }
        }
        let sgd = Sgd::new(recipe, &net, masks)?;
        if let Some(masks) = masks {
            Sgd::apply_masks(&net, masks)?;
        }
        let heads: Vec<NodeId> = net.graph().outputs().iter().map(|o| logits(&net, *o)).collect();
        let head_weights = recipe.head_weights(heads.len());
        let (recipe, sweep) = (recipe.clone(), Sweep::new(recipe.tolerance));
        Ok(Self {
            net,
            sgd,
            device,
            sweep,
            on_cuda: None,
            scorer: None,
            recipe,
            heads,
            head_weights,
            iteration: 0,
            teacher: None,
        })
    }

    /// With the network that the recipe's distillation learns from; without distillation it is not looked at.
    ///
    /// # Errors
    /// [`Error::Recipe`] if the recipe has a distillation and there is no teacher,
    /// [`Error::Input`] for a teacher with other inputs or classes.
    pub fn with_teacher(mut self, teacher: Option<&Model>) -> Result<Self> {
        self.teacher = match (self.recipe.distillation, teacher) {
            (None, _) => None,
            (Some(_), None) => return Err(Error::Recipe("distillation: there is no teacher".into())),
            (Some(_), Some(model)) => {
                Some(Teacher::new(model, &self.net, self.device, self.recipe.tolerance)?)
            }
        };
        Ok(self)
    }

    /// The network as it is now.
    #[must_use]
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Iterations done.
    #[must_use]
    pub fn iteration(&self) -> u64 {
        self.iteration
    }

    /// Momentum of each tensor; zeros for statistics.
    #[must_use]
    pub fn momentum(&self) -> &Params<Vec<f32>> {
        self.sgd.velocity()
    }

    /// Continues a run after `iteration` iterations with these momenta; the network must hold its numbers of then.
    pub(crate) fn resume(&mut self, iteration: u64, momentum: Params<Vec<f32>>) {
        self.iteration = iteration;
        self.sgd.set_velocity(momentum);
    }

    /// Multiplies the strength of the force with this from now on.
    pub(crate) fn relieve(&mut self, relief: f64) {
        self.sgd.relieve(relief);
    }

    /// Classes of the main head.
    pub(crate) fn classes(&self) -> usize {
        self.net.graph().node(self.heads[0]).shape().elements()
    }

    /// A buffer of `len` numbers to fill with images, one of earlier iterations if there is one. Contents are arbitrary.
    pub fn buffer(&mut self, len: usize) -> Vec<f32> {
        self.sweep.pool().take(len)
    }

    /// One iteration on `images` `[N, C, H, W]` and their labels. `measure` asks for the share of the force.
    ///
    /// # Errors
    /// [`Error::Input`] where images and labels do not fit, [`Error::Diverged`] with the first node that is not finite (on a GPU, of
    /// weights and heads), after which the network may be partly updated; [`Error::Cuda`].
    pub fn step(&mut self, images: Vec<f32>, labels: &[u32], measure: bool) -> Result<Step> {
        self.check_batch(&images, labels)?;
        if self.recipe.distillation.is_some() && self.teacher.is_none() {
            return Err(Error::Recipe("distillation: there is no teacher".into()));
        }
        let rate = self.recipe.rate(self.iteration);
        let pass = match self.device {
            Device::Cpu => self.sweep(images, labels)?,
            Device::Cuda(device) => self.cuda(device, images, labels)?,
        };
        let Pass { losses, correct, mut gradients, seconds: [forward, backward] } = pass;
        let loss = losses.iter().zip(&self.head_weights).map(|(l, w)| l * w).sum();
        let start = Instant::now();
        let update = self.sgd.update(&self.net, &mut gradients, self.iteration, rate, measure)?;
        let update = update.map_err(|found| self.diverged(&found, loss))?;
        self.check_statistics(loss)?;
        // Those of a GPU are no buffers of the pool, and nobody would take them from it again.
        let recycled = if self.device == Device::Cpu { self.net.graph().nodes().len() } else { 0 };
        for (id, _) in self.net.graph().iter().take(recycled) {
            let spent = gradients.get_mut(id).iter_mut().filter_map(Option::take);
            spent.for_each(|gradient| self.sweep.pool().give(gradient));
        }
        let step = Step {
            iteration: self.iteration,
            loss,
            losses,
            correct,
            learning_rate: rate,
            force_share: update.force_share,
            force_strength: self.sgd.strength(self.iteration),
            seconds: [forward, backward, start.elapsed().as_secs_f64()],
        };
        self.iteration += 1;
        Ok(step)
    }

    /// On a GPU, once there was an iteration: what its kernels take, by name, in microseconds.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn kernel_times(&self) -> Result<Vec<(&'static str, f64)>> {
        self.on_cuda.as_ref().map_or_else(|| Ok(Vec::new()), OnCuda::times)
    }

    fn check_batch(&self, images: &[f32], labels: &[u32]) -> Result<()> {
        let len = self.net.graph().input_shape().elements();
        if labels.is_empty() || images.len() != labels.len() * len {
            return Err(Error::Input(format!(
                "batch: expected {len} numbers for each of {} images, found {}",
                labels.len(),
                images.len()
            )));
        }
        for head in &self.heads {
            let node = self.net.graph().node(*head);
            let classes = node.shape().elements();
            if let Some(label) = labels.iter().find(|l| **l as usize >= classes) {
                return Err(Error::Input(format!(
                    "label {label}, but `{}` has {classes} classes",
                    node.name()
                )));
            }
        }
        Ok(())
    }

    fn mode(&self) -> Mode {
        Mode::Train { seed: self.recipe.seed, iteration: self.iteration }
    }

    /// Scores the network on a data set.
    pub(crate) fn evaluate(&mut self, dataset: &Dataset, preprocessing: &Preprocessing) -> Result<Score> {
        let new = || Scorer::new(self.device, self.recipe.tolerance);
        let scorer = self.scorer.get_or_insert_with(new);
        evaluate_net(&self.net, scorer, dataset, preprocessing, self.recipe.batch)
    }

    fn teacher_scores(&mut self, images: &[f32], count: usize) -> Result<Option<(Distillation, Vec<f32>)>> {
        Ok(match (self.recipe.distillation, &mut self.teacher) {
            (Some(of), Some(teacher)) => Some((of, teacher.scores(images.to_vec(), count)?)),
            _ => None,
        })
    }

    fn sweep(&mut self, images: Vec<f32>, labels: &[u32]) -> Result<Pass> {
        let start = Instant::now();
        let wanted = self.teacher_scores(&images, labels.len())?;
        let trace = self.sweep.forward(&self.net, images, self.mode(), &self.heads, true)?;
        let mut lost = Lost::default();
        for (head, weight) in self.heads.iter().zip(&self.head_weights) {
            let Some(value) = trace.value(*head) else { continue };
            let grad = self.sweep.pool().take(value.data().len());
            lost.head((value.data(), value.dims[1]), labels, *weight, (wanted.as_ref(), grad));
        }
        let Lost { losses, correct, seeds } = lost;
        let forward = start.elapsed().as_secs_f64();
        if losses.iter().any(|l| !l.is_finite()) {
            return Err(self.first_bad_value(&trace, &losses)?);
        }
        let start = Instant::now();
        let seeds = self.heads.iter().copied().zip(seeds).collect();
        let gradients = self.sweep.backward(&self.net, trace, seeds, self.sgd.wanted())?;
        Ok(Pass { losses, correct, gradients, seconds: [forward, start.elapsed().as_secs_f64()] })
    }

    /// The same on a GPU.
    fn cuda(&mut self, device: usize, images: Vec<f32>, labels: &[u32]) -> Result<Pass> {
        let start = Instant::now();
        let wanted = self.teacher_scores(&images, labels.len())?;
        let (count, mode) = (labels.len(), self.mode());
        let fits = self.on_cuda.take().filter(|on| on.batch() == count);
        let on = match fits {
            Some(fits) => fits,
            None => OnCuda::new(&self.net, &self.heads, self.sgd.wanted(), (device, count, true))?,
        };
        let on = self.on_cuda.insert(on);
        on.forward(&self.net, &images, mode)?;
        self.sweep.pool().give(images);
        let mut lost = Lost::default();
        for (n, (head, weight)) in self.heads.iter().zip(&self.head_weights).enumerate() {
            let classes = self.net.graph().node(*head).shape().elements();
            let grad = vec![0.0; count * classes];
            lost.head((on.head(n), classes), labels, *weight, (wanted.as_ref(), grad));
        }
        let Lost { losses, correct, seeds } = lost;
        let forward = start.elapsed().as_secs_f64();
        if let Some(head) = losses.iter().position(|l| !l.is_finite()) {
            let loss = losses.iter().zip(&self.head_weights).map(|(l, w)| l * w).sum();
            if let Some(found) = self.first_bad_weight(None)? {
                return Err(self.diverged(&found, loss));
            }
            let node = self.net.graph().node(self.heads[head]).name().to_owned();
            return Err(Error::Diverged { iteration: self.iteration, what: "output".into(), node, loss });
        }
        let start = Instant::now();
        let gradients = on.backward(&seeds)?;
        Ok(Pass { losses, correct, gradients, seconds: [forward, start.elapsed().as_secs_f64()] })
    }

    /// The first node, in graph order, with a weight or an output that is not finite. A normalisation that is not stored is not
    /// looked at: what reads it is named.
    fn first_bad_value(&self, trace: &Trace, losses: &[f64]) -> Result<Error> {
        let loss = losses.iter().zip(&self.head_weights).map(|(l, w)| l * w).sum();
        for (id, node) in self.net.graph().iter() {
            if let Some(found) = self.first_bad_weight(Some(id))? {
                return Ok(self.diverged(&found, loss));
            }
            if trace.value(id).is_some_and(|v| v.data().iter().any(|x| !x.is_finite())) {
                let node = node.name().to_owned();
                return Ok(Error::Diverged { iteration: self.iteration, what: "output".into(), node, loss });
            }
        }
        let node = self.net.graph().node(self.heads[0]).name().to_owned();
        Ok(Error::Diverged { iteration: self.iteration, what: "loss".into(), node, loss })
    }

    /// The first weight that is not finite, of a node or of all.
    fn first_bad_weight(&self, of: Option<NodeId>) -> Result<Option<NotFinite>> {
        for (node, slot, var) in self.net.params().iter().filter(|(id, ..)| of.is_none_or(|of| of == *id)) {
            if !read(var, |w| w.iter().all(|v| v.is_finite()))? {
                return Ok(Some(NotFinite { node, slot, what: "weight" }));
            }
        }
        Ok(None)
    }

    /// Running statistics are no part of the update, and an infinite variance makes values 0, not infinite.
    fn check_statistics(&self, loss: f64) -> Result<()> {
        for (node, slot, var) in self.net.params().iter() {
            let is_statistic = self.net.slots(node)[slot].role == Role::Statistic;
            if is_statistic && !read(var, |s| s.iter().all(|v| v.is_finite()))? {
                return Err(self.diverged(&NotFinite { node, slot, what: "statistic" }, loss));
            }
        }
        Ok(())
    }

    fn diverged(&self, found: &NotFinite, loss: f64) -> Error {
        let NotFinite { node, slot, what } = *found;
        let slot = self.net.slots(node)[slot].name;
        Error::Diverged {
            iteration: self.iteration,
            what: if what == slot { what.into() } else { format!("{what} ({slot})") },
            node: self.net.graph().node(node).name().into(),
            loss,
        }
    }
}

// It may move to another thread, wherever it computes.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Trainer>();
};

struct Pass {
    losses: Vec<f64>,
    correct: usize,
    gradients: Params<Option<Vec<f32>>>,
    seconds: [f64; 2],
}

/// Losses of the heads so far, the hits of the first, and their gradients.
#[derive(Default)]
struct Lost {
    losses: Vec<f64>,
    correct: usize,
    seeds: Vec<Vec<f32>>,
}

impl Lost {
    /// Adds the mean cross entropy of a head's rows, mixed with that of the teacher in the first, times `weight` in the gradient.
    fn head(
        &mut self,
        (scores, classes): (&[f32], usize),
        labels: &[u32],
        weight: f64,
        (wanted, mut grad): (Option<&(Distillation, Vec<f32>)>, Vec<f32>),
    ) {
        let mut loss =
            cofilter_kernels::softmax_cross_entropy(labels.len(), classes, scores, labels, Some(&mut grad));
        if weight != 1.0 {
            #[expect(clippy::cast_possible_truncation, reason = "a factor, applied in f32")]
            grad.iter_mut().for_each(|g| *g *= weight as f32);
        }
        if self.losses.is_empty() {
            self.correct = count_correct(scores, classes, labels);
            if let Some((of, wanted)) = wanted {
                of.mix(classes, [scores, wanted], weight, (&mut loss, &mut grad));
            }
        }
        self.losses.push(loss);
        self.seeds.push(grad);
    }
}

/// Rows whose label has the highest score, the first of equal ones.
fn count_correct(scores: &[f32], classes: usize, labels: &[u32]) -> usize {
    let mut tally = cofilter_data::Tally::default();
    scores.chunks_exact(classes).zip(labels).for_each(|(row, label)| tally.add(row, *label as usize));
    tally.first
}

#[cfg(test)]
mod tests;
