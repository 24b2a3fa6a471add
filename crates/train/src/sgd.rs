use crate::net::{Net, read, update};
use crate::sweep::PART;
use crate::{Decay, Error, ForceRule, GroupLasso, LassoUpdate, Recipe, Result};
use candle_core::Var;
use cofilter_force::{Push, Scaling, Scratch};
use cofilter_graph::{Array, Graph, NodeId, Op, Params, Role};
use cofilter_kernels::{Vectorised, vectorised};
use cofilter_sparsity::Groups;
use rayon::prelude::*;

/// Gradient descent with momentum, in Caffe's order (paper, section 1.4).
///
/// For each learnt tensor, with its own multipliers:
/// ```text
/// g = gradient * min(1, clip / ||all gradients||)
/// g = g + weight_decay * decay_mult * w            (L1: sign(w))
/// g = g + strength * w / ||w_g||                   (group lasso by subgradient)
/// g = g + strength * force_mult * G(w)             (near a target spread: what remains of it)
/// v = momentum * v + rate * lr_mult * g
/// w = w - v
/// w_g = w_g * max(0, 1 - rate * lr_mult * strength / ||w_g||)   (group lasso, proximal)
/// w = 0 where |w| < threshold
/// ```
pub(crate) struct Sgd {
    tensors: Params<Option<Rule>>,
    velocity: Params<Vec<f32>>,
    wanted: Params<bool>,
    force: Option<ForceRule>,
    /// What is left of the force's strength after rolling back.
    relief: f64,
    momentum: f32,
    weight_decay: f64,
    decay: Decay,
    clip: Option<f64>,
    threshold: f32,
    /// The force on the tensor at hand.
    pull: Vec<f32>,
    /// Subgradient of the lassos on the tensor at hand.
    penalty: Vec<f32>,
    scratch: Scratch,
}

/// What applies to one learnt tensor.
struct Rule {
    rate: f64,
    decay: f64,
    /// Multiplier of the force and number of groups.
    force: Option<(f64, usize)>,
    /// Groups and strengths.
    lasso: Vec<(Groups, f64, LassoUpdate)>,
    /// Whether small weights become 0.
    prunable: bool,
    mask: Option<Array>,
}

/// A tensor with a number that is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotFinite {
    pub(crate) node: NodeId,
    pub(crate) slot: usize,
    pub(crate) what: &'static str,
}

/// What an update did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Update {
    /// `||force|| / ||gradient of loss and decay||` over the regularised tensors.
    pub(crate) force_share: Option<f64>,
}

impl Sgd {
    /// Velocities start at 0. `recipe` was checked.
    pub(crate) fn new(recipe: &Recipe, net: &Net, masks: Option<&Params<Array>>) -> Result<Self> {
        let graph = net.graph();
        let multipliers = recipe.multipliers.resolve(graph)?;
        if let Some(masks) = masks {
            check_masks(net, masks)?;
        }
        let tensors = multipliers.map(|id, slot, m| {
            let m = m.filter(|m| m.learning_rate != 0.0)?;
            let is_weight = net.slots(id)[slot].role == Role::Weight;
            let force = recipe.force.as_ref().filter(|_| is_weight).and_then(|f| force_on(f, graph, id));
            let mask = masks.map(|masks| masks.get(id)[slot].clone());
            let prunable = is_weight && matches!(graph.node(id).op(), Op::Conv2d(_) | Op::Linear(_));
            let lasso = if prunable { lassos_on(&recipe.lasso, graph, id) } else { Vec::new() };
            Some(Rule { rate: m.learning_rate, decay: m.decay, force, lasso, prunable, mask })
        });
        Ok(Self {
            wanted: tensors.map(|_, _, rule| rule.is_some()),
            velocity: net.params().map(|_, _, var| vec![0.0; var.elem_count()]),
            tensors,
            force: recipe.force.clone(),
            relief: 1.0,
            #[expect(clippy::cast_possible_truncation, reason = "numbers are f32")]
            momentum: recipe.momentum as f32,
            weight_decay: recipe.weight_decay,
            decay: recipe.decay,
            clip: recipe.clip_gradients,
            threshold: recipe.threshold as f32,
            pull: Vec::new(),
            penalty: Vec::new(),
            scratch: Scratch::default(),
        })
    }

    /// Which tensors need a gradient.
    pub(crate) fn wanted(&self) -> &Params<bool> {
        &self.wanted
    }

    /// `v` of each tensor; zeros for statistics.
    pub(crate) fn velocity(&self) -> &Params<Vec<f32>> {
        &self.velocity
    }

    /// Continues with these velocities.
    pub(crate) fn set_velocity(&mut self, velocity: Params<Vec<f32>>) {
        self.velocity = velocity;
    }

    /// Multiplies the strength of the force with this from now on.
    pub(crate) fn relieve(&mut self, relief: f64) {
        self.relief = relief;
    }

    /// Strength of the force in an iteration, if there is one.
    pub(crate) fn strength(&self, iteration: u64) -> Option<f64> {
        self.force.as_ref().map(|force| self.relief * force.strength_at(iteration))
    }

    /// Zeroes masked weights, frozen ones too, so that they start as they stay.
    pub(crate) fn apply_masks(net: &Net, masks: &Params<Array>) -> Result<()> {
        for (id, slot, mask) in masks.iter() {
            update(&net.params().get(id)[slot], |w| apply_mask(w, mask.data()))?;
        }
        Ok(())
    }

    /// One update. A missing gradient is 0; with `measure` the share of the force is returned.
    ///
    /// Gradients are checked before anything is changed, weights after.
    pub(crate) fn update(
        &mut self,
        net: &Net,
        gradients: &mut Params<Option<Vec<f32>>>,
        iteration: u64,
        rate: f64,
        measure: bool,
    ) -> Result<Result<Update, NotFinite>> {
        if let Some(found) = self.first_bad_gradient(gradients) {
            return Ok(Err(found));
        }
        let clip = self.clip_factor(gradients);
        let strength = self.strength(iteration).unwrap_or(0.0);
        let stopped = |f: &ForceRule| cofilter_force::stopped(iteration, f.stop_iteration);
        let pulling = self.force.as_ref().filter(|f| !stopped(f));
        let (mut force_squares, mut gradient_squares) = (0.0, 0.0);
        for (id, slot, rule) in self.tensors.iter() {
            let Some(rule) = rule else { continue };
            let var = &net.params().get(id)[slot];
            let gradient =
                gradients.get_mut(id)[slot].get_or_insert_with(|| vec![0.0; var.elem_count()]).as_slice();
            let step = rate * rule.rate;
            #[expect(clippy::cast_possible_truncation, reason = "numbers are f32")]
            let (decay, rate) = ((self.weight_decay * rule.decay) as f32, step as f32);
            let mut decay = Decayed { clip, factor: decay, kind: self.decay, penalty: None };
            if rule.lasso.iter().any(|(_, _, update)| *update == LassoUpdate::Subgradient) {
                self.penalty.clear();
                self.penalty.resize(gradient.len(), 0.0);
                for (groups, strength, _) in rule.lasso_by(LassoUpdate::Subgradient) {
                    read(var, |w| groups.add_subgradient(w, *strength, &mut self.penalty))?;
                }
                decay.penalty = Some(&self.penalty);
            }
            let mut push = None;
            let felt = match (pulling, rule.force) {
                (Some(force), Some((multiplier, groups))) => {
                    Some((force, multiplier * remaining_on(force, var, groups)?, groups))
                }
                _ => None,
            };
            // The share of the force is of the gradients of all layers, those that were let go too.
            if let Some((force, multiplier, groups)) = felt.filter(|of| of.1 != 0.0 || measure) {
                pull_on(force, var, groups, &mut self.pull, &mut self.scratch)?;
                let force = force.rule(strength);
                let adaptive = force.scaling == Scaling::Adaptive;
                let squares = if measure || adaptive {
                    read(var, |w| squares_of(gradient, w, &self.pull, force.direction, &decay))?
                } else {
                    [0.0; 2]
                };
                let applied = force.push(multiplier, || squares.map(f64::sqrt))?;
                gradient_squares += squares[0];
                force_squares += applied.coefficient().powi(2) * squares[1];
                push = Some((applied, self.pull.as_slice()));
            }
            let descent = Descent {
                gradient,
                decay,
                push,
                mask: rule.mask.as_ref().map(Array::data),
                momentum: self.momentum,
                rate,
            };
            let velocity = self.velocity.get_mut(id)[slot].as_mut_slice();
            let mut finite = true;
            update(var, |w| {
                finite = descent.run(w, velocity);
                for (groups, strength, _) in rule.lasso_by(LassoUpdate::Proximal) {
                    groups.shrink(w, step * strength);
                }
                if rule.prunable && self.threshold > 0.0 {
                    w.iter_mut().filter(|w| w.abs() < self.threshold).for_each(|w| *w = 0.0);
                }
            })?;
            if !finite {
                return Ok(Err(NotFinite { node: id, slot, what: "weight" }));
            }
        }
        let share = if gradient_squares > 0.0 { (force_squares / gradient_squares).sqrt() } else { 0.0 };
        Ok(Ok(Update { force_share: (measure && self.force.is_some()).then_some(share) }))
    }

    fn first_bad_gradient(&self, gradients: &Params<Option<Vec<f32>>>) -> Option<NotFinite> {
        let mut wanted = gradients.zip(&self.tensors).filter(|(_, _, _, rule)| rule.is_some());
        wanted.find_map(|(node, slot, gradient, _)| {
            let bad = gradient.as_ref().is_some_and(|g| !finite(g));
            bad.then_some(NotFinite { node, slot, what: "gradient" })
        })
    }

    /// Caffe's `ClipGradients`; 1 where nothing is to be clipped. Sums in `f64`, tensors in order.
    fn clip_factor(&self, gradients: &Params<Option<Vec<f32>>>) -> f32 {
        let Some(clip) = self.clip else { return 1.0 };
        let wanted = gradients.zip(&self.tensors).filter(|(_, _, _, rule)| rule.is_some());
        let sum: f64 = wanted.filter_map(|(_, _, gradient, _)| gradient.as_deref()).map(squares).sum();
        #[expect(clippy::cast_possible_truncation, reason = "numbers are f32")]
        if sum.sqrt() > clip { (clip / sum.sqrt()) as f32 } else { 1.0 }
    }
}

impl Rule {
    fn lasso_by(&self, by: LassoUpdate) -> impl Iterator<Item = &(Groups, f64, LassoUpdate)> {
        self.lasso.iter().filter(move |(_, _, update)| *update == by)
    }
}

fn lassos_on(lassos: &[GroupLasso], graph: &Graph, id: NodeId) -> Vec<(Groups, f64, LassoUpdate)> {
    let of = |lasso: &GroupLasso| {
        let strength = lasso.strength * lasso.multipliers.get(graph.node(id).name())?;
        let groups = Groups::of_node(graph, id, lasso.grouping)?;
        (strength > 0.0).then_some((groups, strength, lasso.update))
    };
    lassos.iter().filter_map(of).collect()
}

fn force_on(force: &ForceRule, graph: &Graph, id: NodeId) -> Option<(f64, usize)> {
    let node = graph.node(id);
    let groups = match node.op() {
        Op::Conv2d(conv) if force.grouped => conv.groups,
        _ => 1,
    };
    force.multipliers.get(node.name()).filter(|m| **m != 0.0).map(|m| (*m, groups))
}

/// The force on the filters of a tensor, into `pull`.
fn pull_on(
    force: &ForceRule,
    var: &Var,
    groups: usize,
    pull: &mut Vec<f32>,
    scratch: &mut Scratch,
) -> Result<()> {
    pull.resize(var.elem_count(), 0.0);
    read(var, |w| cofilter_force::gradient_into(w, var.dims()[0], groups, force.force, pull, scratch))??;
    Ok(())
}

/// Part of its strength that a force has on a tensor whose spread has a target.
fn remaining_on(force: &ForceRule, var: &Var, groups: usize) -> Result<f64> {
    let Some(target) = force.target_spread else { return Ok(1.0) };
    let spread = read(var, |w| cofilter_force::spread(w, var.dims()[0], groups))??;
    Ok(cofilter_force::remaining(spread, target))
}

/// Gradient of loss and weight decay, `clip g + decay w` or `clip g + decay sign(w)`, and of lassos.
#[derive(Clone, Copy)]
struct Decayed<'a> {
    clip: f32,
    factor: f32,
    kind: Decay,
    penalty: Option<&'a [f32]>,
}

impl Decayed<'_> {
    /// Of the numbers from `at` on.
    #[inline(always)]
    fn fill(&self, at: usize, result: &mut [f32], gradient: &[f32], weight: &[f32]) {
        let sign = |w: f32| if w == 0.0 { 0.0 } else { w.signum() };
        let triples = result.iter_mut().zip(gradient).zip(weight);
        match self.kind {
            Decay::L2 => triples.for_each(|((r, g), w)| *r = self.clip * g + self.factor * w),
            Decay::L1 => triples.for_each(|((r, g), w)| *r = self.clip * g + self.factor * sign(*w)),
        }
        if let Some(penalty) = self.penalty {
            result.iter_mut().zip(&penalty[at..]).for_each(|(r, p)| *r += p);
        }
    }
}

/// Numbers of a tensor worked on at a time: all that is in between stays in the first-level cache.
const BLOCK: usize = 512;

/// One update of one tensor, in a single pass over its numbers.
struct Descent<'a> {
    gradient: &'a [f32],
    decay: Decayed<'a>,
    push: Option<(Push, &'a [f32])>,
    mask: Option<&'a [f32]>,
    momentum: f32,
    rate: f32,
}

impl Descent<'_> {
    /// `v = momentum v + rate g; w = w - v` with `g` as in [`Sgd`]; whether every weight is finite.
    fn run(&self, weight: &mut [f32], velocity: &mut [f32]) -> bool {
        let parts = weight.par_chunks_mut(PART).zip(velocity.par_chunks_mut(PART)).enumerate();
        let bad = parts.map(|(part, (weight, velocity))| {
            vectorised(DescentOf { all: self, at: part * PART, weight, velocity })
        });
        !bad.reduce(|| false, |a, b| a | b)
    }

    #[inline(always)]
    fn block(&self, at: usize, weight: &mut [f32], velocity: &mut [f32]) -> bool {
        let mut room = [0.0; BLOCK];
        let gradient = &mut room[..weight.len()];
        self.decay.fill(at, gradient, &self.gradient[at..], weight);
        if let Some((push, force)) = self.push {
            gradient.iter_mut().zip(&force[at..]).for_each(|(g, f)| *g = push.apply(*g, *f));
        }
        if let Some(mask) = self.mask {
            apply_mask(gradient, &mask[at..]);
        }
        let mut bad = false;
        for ((w, v), g) in weight.iter_mut().zip(velocity).zip(gradient) {
            *v = self.momentum * *v + self.rate * *g;
            *w -= *v;
            bad |= !w.is_finite();
        }
        bad
    }
}

/// The update of some of the numbers; whether one is not finite.
struct DescentOf<'a> {
    all: &'a Descent<'a>,
    at: usize,
    weight: &'a mut [f32],
    velocity: &'a mut [f32],
}

impl Vectorised for DescentOf<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let mut bad = false;
        let blocks = self.weight.chunks_mut(BLOCK).zip(self.velocity.chunks_mut(BLOCK)).enumerate();
        for (block, (weight, velocity)) in blocks {
            bad |= self.all.block(self.at + block * BLOCK, weight, velocity);
        }
        bad
    }
}

/// Whether a number is not finite.
struct Bad<'a>(&'a [f32]);

impl Vectorised for Bad<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        self.0.iter().fold(false, |bad, v| bad | !v.is_finite())
    }
}

/// Sums of squares of the gradient of loss and decay, and of the force where it takes part; the order depends on the
/// extents alone.
fn squares_of(
    gradient: &[f32],
    weight: &[f32],
    force: &[f32],
    direction: cofilter_force::Direction,
    decay: &Decayed<'_>,
) -> [f64; 2] {
    let parts: Vec<[f64; 2]> = (gradient.par_chunks(BLOCK).zip(weight.par_chunks(BLOCK)))
        .zip(force.par_chunks(BLOCK))
        .with_min_len(PART / BLOCK)
        .enumerate()
        .map(|(block, ((gradient, weight), force))| {
            let mut room = [0.0; BLOCK];
            let total = &mut room[..weight.len()];
            decay.fill(block * BLOCK, total, gradient, weight);
            let pairs = total.iter().zip(force);
            let force = pairs.clone().filter(|(g, f)| direction.takes_part(**f, **g));
            [squares(total), force.map(|(_, f)| f64::from(*f).powi(2)).sum()]
        })
        .collect();
    parts.iter().fold([0.0; 2], |sum, part| [sum[0] + part[0], sum[1] + part[1]])
}

/// Where the mask is 0 the value becomes +0, whatever it was.
#[inline(always)]
fn apply_mask(values: &mut [f32], mask: &[f32]) {
    values.iter_mut().zip(mask).filter(|(_, m)| **m == 0.0).for_each(|(v, _)| *v = 0.0);
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum()
}

fn finite(values: &[f32]) -> bool {
    let bad = values.par_chunks(PART).map(|part| vectorised(Bad(part)));
    !bad.reduce(|| false, |a, b| a | b)
}

fn check_masks(net: &Net, masks: &Params<Array>) -> Result<()> {
    let bad = |reason: String| Err(Error::Input(format!("masks: {reason}")));
    if masks.nodes() != net.params().nodes() {
        return bad(format!("expected {} nodes, found {}", net.params().nodes(), masks.nodes()));
    }
    for (id, node) in net.graph().iter() {
        let (vars, arrays) = (net.params().get(id), masks.get(id));
        if vars.len() != arrays.len() {
            return bad(format!(
                "node `{}`: expected {} tensors, found {}",
                node.name(),
                vars.len(),
                arrays.len()
            ));
        }
        for (slot, (var, mask)) in vars.iter().zip(arrays).enumerate() {
            let name = || net.graph().tensor_name(id, slot);
            if var.dims() != mask.dims() {
                return bad(format!("`{}`: expected dims {:?}, found {:?}", name(), var.dims(), mask.dims()));
            }
            if let Some(value) = mask.data().iter().find(|v| **v != 0.0 && **v != 1.0) {
                return bad(format!("`{}`: expected 0 or 1, found {value}", name()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
