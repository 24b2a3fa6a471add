use crate::factor::{Factors, Scale, single};
use crate::layer::Layer;
use crate::recompose::chains;
use crate::{Error, RankRule, Result, Spectrum};
use cofilter_graph::{Array, Conv2d, Linear, Model, NodeId, Op, Params};
use serde::{Deserialize, Serialize};

/// A network whose pairs were cut to the rank that their bases have by now.
#[derive(Clone, Debug)]
pub struct Clipped {
    /// The network; nodes are those of before, in the same order.
    pub model: Model,
    /// What was given, through the same change of basis.
    pub momentum: Option<Params<Vec<f32>>>,
    /// Pairs that lost rank, in graph order.
    pub layers: Vec<ClippedLayer>,
}

/// A pair that lost rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClippedLayer {
    /// What it was before it was taken apart: the pair is `<name>_lowrank` and `<name>_linear`.
    pub name: String,
    /// Rank before, over all groups.
    pub before: usize,
    /// Rank now.
    pub rank: usize,
}

/// Rank clipping while a decomposed network is trained (paper, section 3.4): principal components of each basis
/// `B` `[M, L]` as it is now, `V` `[M, r]` the first `r` left singular vectors that a rule asks for, and
/// `B' = V^T B`, combination `C' = C V`. Biases stay, and there need not be any.
///
/// Momentum is a sum of gradients, which for `B` and `C` change to `V^T dB` and `dC V`: it goes through the same products, so
/// that an optimiser goes on where it was (the authors' program loses it).
///
/// Pairs whose basis needs its full rank stay as they are, and so does everything that is no pair.
///
/// # Errors
/// [`Error::Ratio`] and [`Error::Factor`] for numbers of the rule, [`Error::Rule`] for one that is not of a single layer,
/// [`Error::Graph`] for momentum of another network or weights that are not finite, [`Error::NoConvergence`].
pub fn clip(model: &Model, momentum: Option<&Params<Vec<f32>>>, rule: &RankRule) -> Result<Clipped> {
    rule.check()?;
    if let Some(momentum) = momentum {
        let fits = momentum.nodes() == model.params().nodes()
            && model.params().iter().all(|(id, slot, array)| {
                momentum.get(id).get(slot).is_some_and(|m| m.len() == array.data().len())
            });
        if !fits {
            return Err(cofilter_graph::Error::Graph("momentum of another network".into()).into());
        }
    }
    let mut cuts: Vec<Cut<'_>> = Vec::new();
    for (name, layers) in chains(model) {
        let [basis, combination] = &layers[..] else { continue };
        // Only what is a basis and mixtures of it.
        if basis.name.ends_with("_lowrank") {
            layers.iter().try_for_each(Layer::check_finite)?;
            cuts.extend(Cut::of(name, *basis, *combination, rule)?);
        }
    }
    cuts.sort_by_key(|cut| cut.basis.id);
    let mut tensors = model.params().map(|_, _, array| array.clone());
    let mut momenta = momentum.map(|momentum| momentum.map(|_, _, numbers| numbers.clone()));
    for cut in &cuts {
        let ([basis, combination], dims) = (cut.ids(), cut.dims());
        for ((id, dims), side) in
            [basis, combination].into_iter().zip(dims).zip([Side::Basis, Side::Combination])
        {
            let changed = cut.change(model.tensors(id)[0].data(), side);
            tensors.get_mut(id)[0] = Array::new(dims, changed);
            if let Some(momenta) = &mut momenta {
                let changed = cut.change(&momenta.get(id)[0], side);
                momenta.get_mut(id)[0] = changed;
            }
        }
    }
    let clipped = model.rewrite(|b, id, inputs| {
        let Some(cut) = cuts.iter().find(|cut| cut.basis.id == id) else {
            let op = model.graph().node(id).op().clone();
            return Ok::<_, Error>(b.add(
                model.graph().node(id).name(),
                op,
                inputs,
                tensors.get(id).to_vec(),
            )?);
        };
        let rank = cut.rank * cut.basis.groups;
        let op = match model.graph().node(id).op() {
            Op::Conv2d(conv) => Op::Conv2d(Conv2d { out_channels: rank, ..conv.clone() }),
            _ => Op::Linear(Linear { out_features: rank, bias: false }),
        };
        Ok(b.add(cut.basis.name, op, inputs, tensors.get(id).to_vec())?)
    })?;
    let layers = cuts
        .iter()
        .map(|cut| ClippedLayer {
            name: cut.name.to_owned(),
            before: cut.basis.filters,
            rank: cut.rank * cut.basis.groups,
        })
        .collect();
    Ok(Clipped { model: clipped, momentum: momenta, layers })
}

/// A pair and the change of its basis.
struct Cut<'a> {
    name: &'a str,
    basis: Layer<'a>,
    combination: Layer<'a>,
    /// Of a group.
    rank: usize,
    /// `V` `[M, r]` of each group, row-major.
    vectors: Vec<Vec<f64>>,
}

#[derive(Clone, Copy)]
enum Side {
    Basis,
    Combination,
}

impl<'a> Cut<'a> {
    /// If the basis needs less than its rank, and has no bias of its own.
    fn of(name: &'a str, basis: Layer<'a>, combination: Layer<'a>, rule: &RankRule) -> Result<Option<Self>> {
        if basis.bias.is_some() {
            return Ok(None);
        }
        let groups: Vec<Factors> = (0..basis.groups)
            .map(|g| {
                let rows = basis.group(g);
                let element = |row: usize, position: usize| f64::from(rows[row * basis.len + position]);
                Factors::new(basis.name, [basis.group_filters(), basis.len], element, true)
            })
            .collect::<Result<_>>()?;
        let ranks = groups.iter().map(|factors| {
            let spectra = (Spectrum::new(factors.squares.clone()), None);
            let rank = rule.of_group(&basis, crate::Method::Pca, &spectra);
            rank.map(|rank| rank.output).ok_or_else(|| Error::Rule {
                layer: basis.name.into(),
                method: "clip",
                rule: rule.name(),
            })
        });
        let rank = ranks.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(1);
        if rank >= basis.group_filters() {
            return Ok(None);
        }
        let vectors = groups.iter().map(|factors| factors.split(rank, Scale::Basis).combination).collect();
        Ok(Some(Self { name, basis, combination, rank, vectors }))
    }

    fn ids(&self) -> [NodeId; 2] {
        [self.basis.id, self.combination.id]
    }

    /// Extents of both weights after the cut.
    fn dims(&self) -> [Vec<usize>; 2] {
        let mut basis = self.basis.weight.dims().to_vec();
        let mut combination = self.combination.weight.dims().to_vec();
        basis[0] = self.rank * self.basis.groups;
        combination[1] = self.rank;
        [basis, combination]
    }

    /// `V^T B`, or `C V`, for numbers of that shape.
    fn change(&self, numbers: &[f32], side: Side) -> Vec<f32> {
        let (rank, middle) = (self.rank, self.basis.group_filters());
        let mut changed = Vec::new();
        for (numbers, vectors) in numbers.chunks_exact(numbers.len() / self.basis.groups).zip(&self.vectors) {
            match side {
                Side::Basis => {
                    let len = numbers.len() / middle;
                    for m in 0..rank {
                        let mut sum = vec![0.0; len];
                        for (row, numbers) in numbers.chunks_exact(len).enumerate() {
                            let factor = vectors[row * rank + m];
                            sum.iter_mut().zip(numbers).for_each(|(s, v)| *s += factor * f64::from(*v));
                        }
                        changed.extend(sum.into_iter().map(single));
                    }
                }
                Side::Combination => {
                    for row in numbers.chunks_exact(middle) {
                        let of = |m: usize| {
                            row.iter().enumerate().map(|(i, v)| f64::from(*v) * vectors[i * rank + m]).sum()
                        };
                        changed.extend((0..rank).map(|m| single(of(m))));
                    }
                }
            }
        }
        changed
    }
}
