//! How far a force is to draw filters together, before anything is trained.

use crate::{Recipe, Result};
use cofilter_force::{Direction, Force, Scaling};
use cofilter_graph::{Graph, Op};
use std::collections::BTreeMap;

impl Recipe {
    /// The contraction of every layer that feels the force: were there nothing but the L2-norm force, small angles between a filter and
    /// the mean of its layer's would shrink by the factor `exp(-contraction)`. As
    ///
    /// ```text
    /// G_i = -||W_i|| (s - (s w_i^T) w_i),  s = sum_j w_j
    /// ```
    ///
    /// (paper, section 2.4) turns a filter by `N sin(angle)` where all are near their mean, and momentum repeats every step
    /// `1 / (1 - momentum)` times, it is
    ///
    /// ```text
    /// contraction = N / (1 - momentum) * sum over iterations of strength * rate
    /// ```
    ///
    /// with the `N` filters that act on each other, and the layer's multipliers of strength and rate. What the data resists is left out,
    /// and so is less force after a rollback or near a [`crate::ForceRule::target_spread`], and what the weight decay forgets, which is
    /// little while `weight_decay / (1 - momentum)` times the sum of all rates is.
    ///
    /// Unlike a strength it carries over from one layer, network and schedule to another. Empty without a force, and where that depends
    /// on the gradient ([`Scaling::Adaptive`], [`Direction::Same`]) or is another than the L2 norm's.
    ///
    /// # Errors
    /// [`Error::Recipe`](crate::Error::Recipe) for a node that is not there or has no filters.
    #[expect(clippy::cast_precision_loss, reason = "filters are far fewer than 2^52")]
    pub fn contractions(&self, graph: &Graph) -> Result<BTreeMap<String, f64>> {
        self.check(graph)?;
        let Some(rule) = &self.force else { return Ok(BTreeMap::new()) };
        if (rule.force, rule.scaling, rule.direction) != (Force::L2, Scaling::Fixed, Direction::All) {
            return Ok(BTreeMap::new());
        }
        let factors = self.multipliers.resolve(graph)?;
        let turned: f64 = (0..self.iterations).map(|i| rule.strength_at(i) * self.rate(i)).sum();
        let turned = turned / (1.0 - self.momentum);
        let of_node = |(id, node): (_, &cofilter_graph::Node)| {
            let strength = rule.multipliers.get(node.name())?;
            let groups = match node.op() {
                Op::Conv2d(conv) if rule.grouped => conv.groups,
                _ => 1,
            };
            let filters = (graph.slots(id).first()?.dims[0] / groups) as f64;
            let rate = factors.get(id).first()?.map_or(0.0, |of| of.learning_rate);
            Some((node.name().to_owned(), filters * turned * strength * rate))
        };
        Ok(graph.iter().filter_map(of_node).collect())
    }
}

#[cfg(test)]
mod tests {
    use crate::{Device, ForceRule, Multiplier, Multipliers, Recipe, Schedule, Trainer};
    use cofilter_force::{Direction, Force, Scaling};
    use cofilter_graph::{Array, Conv2d, Graph, Init, Model, Shape};

    const FILTERS: usize = 6;
    const LEN: usize = 18;

    /// A network whose filters are near each other, but not equally long.
    fn model() -> Model {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::map(2, 6, 6)).unwrap();
        let x = b.conv2d("conv", x, Conv2d::new(FILTERS, 3)).unwrap();
        let x = b.flatten("flat", x).unwrap();
        let x = b.linear("scores", x, 3).unwrap();
        let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 3).unwrap();
        let conv = model.graph().find("conv").unwrap();
        let own = model.params().get(conv)[0].clone();
        let filter = |(i, row): (usize, &[f32])| {
            let len = 1.0 + 0.3 * i as f32;
            row.iter().enumerate().map(move |(k, w)| len * ((k as f32).sin() + 0.05 * w)).collect::<Vec<_>>()
        };
        let rows: Vec<f32> = own.data().chunks_exact(LEN).enumerate().flat_map(filter).collect();
        let mut params = model.params().clone();
        params.get_mut(conv)[0] = Array::new(own.dims().to_vec(), rows);
        model.with_params(params).unwrap()
    }

    /// The angle of each filter to the mean direction.
    fn angles(model: &Model) -> Vec<f64> {
        let conv = model.graph().find("conv").unwrap();
        let unit = |row: &[f32]| -> Vec<f64> {
            let len = row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
            row.iter().map(|w| f64::from(*w) / len).collect()
        };
        let filters: Vec<Vec<f64>> = model.params().get(conv)[0].data().chunks_exact(LEN).map(unit).collect();
        let sum: Vec<f64> = (0..LEN).map(|k| filters.iter().map(|f| f[k]).sum()).collect();
        let len = sum.iter().map(|s| s * s).sum::<f64>().sqrt();
        let cosine = |f: &Vec<f64>| f.iter().zip(&sum).map(|(a, b)| a * b / len).sum::<f64>();
        filters.iter().map(|f| (1.0 - cosine(f).powi(2)).sqrt().asin()).collect()
    }

    /// Without data (images of zeros) and without weight decay nothing acts on the convolution but the force.
    #[test]
    fn angles_shrink_by_it_where_nothing_resists() {
        let model = model();
        let mut force = ForceRule::new(Force::L2, 0.05, ["conv"]);
        force.warm_up = 100;
        force.multipliers.insert("conv".into(), 0.5);
        let mut multipliers = Multipliers::default();
        multipliers.tensors.insert("conv.weight".into(), Multiplier::new(2.0, 1.0));
        let recipe = Recipe {
            iterations: 1000,
            batch: 1,
            learning_rate: 1e-3,
            schedule: Schedule::MultiStep { at: vec![700], gamma: 0.1 },
            weight_decay: 0.0,
            force: Some(force),
            multipliers,
            ..Recipe::default()
        };
        let contraction = recipe.contractions(model.graph()).unwrap()["conv"];
        // 6 / (1 - 0.9) * 0.05 * 0.5 * 2e-3 * (50.5 + 600 + 0.1 * 300)
        assert!((contraction - 2.0415).abs() < 1e-9, "{contraction}");
        let mut trainer = Trainer::new(&model, &recipe, None, Device::Cpu).unwrap();
        for _ in 0..recipe.iterations {
            trainer.step(vec![0.0; 72], &[1], false).unwrap();
        }
        let trained = trainer.net().to_model().unwrap();
        for (before, after) in angles(&model).into_iter().zip(angles(&trained)) {
            let found = (before / after).ln();
            assert!((found - contraction).abs() < 0.03 * contraction, "{found}, expected {contraction}");
        }
    }

    #[test]
    fn filters_stay_at_the_target_however_long_they_are_pulled() {
        let model = model();
        let spread = |model: &Model| {
            let conv = model.graph().find("conv").unwrap();
            cofilter_force::spread(model.params().get(conv)[0].data(), FILTERS, 1).unwrap()
        };
        let before = spread(&model);
        let target = before / 4.0;
        let force = ForceRule { target_spread: Some(target), ..ForceRule::new(Force::L2, 0.05, ["conv"]) };
        let recipe = Recipe {
            iterations: 3000,
            batch: 1,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            force: Some(force),
            ..Recipe::default()
        };
        let mut trainer = Trainer::new(&model, &recipe, None, Device::Cpu).unwrap();
        let mut spreads = Vec::new();
        for _ in 0..recipe.iterations {
            trainer.step(vec![0.0; 72], &[1], false).unwrap();
            spreads.push(spread(&trainer.net().to_model().unwrap()));
        }
        // Momentum may carry them a little further.
        assert!(spreads.iter().all(|s| *s > 0.98 * target), "target {target}, {spreads:?}");
        assert!(spreads[2999] < 1.02 * target, "target {target}, at the end {}", spreads[2999]);
    }

    /// Two groups whose filters are near each other, at right angles to those of the other group.
    #[test]
    fn a_target_is_of_each_group_where_the_force_is() {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::map(4, 6, 6)).unwrap();
        let x = b.conv2d("conv", x, Conv2d { groups: 2, ..Conv2d::new(4, 1) }).unwrap();
        let x = b.flatten("flat", x).unwrap();
        let x = b.linear("scores", x, 3).unwrap();
        let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 3).unwrap();
        let conv = model.graph().find("conv").unwrap();
        let start = [1.0_f32, 0.2, 1.0, -0.2, 0.2, 1.0, -0.2, 1.0];
        let mut params = model.params().clone();
        params.get_mut(conv)[0] = Array::new(vec![4, 2, 1, 1], start.to_vec());
        let model = model.with_params(params).unwrap();
        let after = |grouped| {
            let rule = ForceRule::new(Force::L2, 0.1, ["conv"]);
            let force = Some(ForceRule { target_spread: Some(0.05), grouped, ..rule });
            let recipe = Recipe { batch: 1, weight_decay: 0.0, force, ..Recipe::default() };
            let mut trainer = Trainer::new(&model, &recipe, None, Device::Cpu).unwrap();
            trainer.step(vec![0.0; 144], &[1], false).unwrap();
            trainer.net().to_model().unwrap().params().get(conv)[0].data().to_vec()
        };
        assert_eq!(after(true), start, "a spread of 0.04 in each group");
        assert_ne!(after(false), start, "a spread of 0.5 of all");
    }

    #[test]
    fn a_target_must_be_one_that_can_be_reached() {
        let model = model();
        let refused = |strength, target| {
            let mut force = ForceRule::new(Force::L2, 1e-3, ["conv"]);
            force.target_spread = Some(target);
            force.multipliers.insert("conv".into(), 1e3 * strength);
            let recipe = Recipe { force: Some(force), ..Recipe::default() };
            recipe.check(model.graph()).unwrap_err().to_string()
        };
        for target in [0.0, 1.0, -0.1, f64::NAN, f64::INFINITY] {
            assert!(refused(1e-3, target).contains(&format!("found {target}")), "{}", refused(1e-3, target));
        }
        assert!(refused(-1e-3, 0.1).contains("attracts"));
    }

    #[test]
    fn only_filters_that_act_on_each_other_count() {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::map(4, 6, 6)).unwrap();
        let x = b.conv2d("grouped", x, Conv2d { groups: 2, ..Conv2d::new(8, 3) }).unwrap();
        let x = b.flatten("flat", x).unwrap();
        let x = b.linear("scores", x, 3).unwrap();
        let graph = b.finish(&[x]).unwrap();
        let of = |grouped| {
            let force = ForceRule { grouped, ..ForceRule::new(Force::L2, -1e-3, ["grouped", "scores"]) };
            let recipe =
                Recipe { iterations: 10, learning_rate: 0.02, force: Some(force), ..Recipe::default() };
            recipe.contractions(&graph).unwrap().into_values().collect::<Vec<_>>()
        };
        // Filters / (1 - 0.9) * -1e-3 * 10 * 0.02
        for (grouped, expected) in [(false, [-0.016, -0.006]), (true, [-0.008, -0.006])] {
            let found = of(grouped);
            assert!(
                found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12) && found.len() == 2,
                "{found:?}"
            );
        }
    }

    #[test]
    fn there_is_none_where_the_gradient_decides() {
        let model = model();
        let fixed = ForceRule::new(Force::L2, 1e-3, ["conv"]);
        let with = |force| Recipe { force, ..Recipe::default() };
        let count = |force| with(Some(force)).contractions(model.graph()).unwrap().len();
        assert!(with(None).contractions(model.graph()).unwrap().is_empty());
        assert_eq!(count(fixed.clone()), 1);
        assert_eq!(count(ForceRule { force: Force::L1, ..fixed.clone() }), 0);
        assert_eq!(count(ForceRule { scaling: Scaling::Adaptive, ..fixed.clone() }), 0);
        assert_eq!(count(ForceRule { direction: Direction::Same, ..fixed.clone() }), 0);
        let strange = with(Some(ForceRule::new(Force::L2, 1e-3, ["conv7"])));
        assert!(strange.contractions(model.graph()).unwrap_err().to_string().contains("conv7"));
    }
}
