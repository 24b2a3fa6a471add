use super::*;
use crate::{Multiplier, Multipliers};
use cofilter_force::{Direction, Force, Scaling};
use cofilter_graph::{Model, Shape};

/// A fully connected layer `ip` with these weights (two columns) and biases.
fn net(weight: &[f32], bias: &[f32]) -> Net {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::Vector(2)).unwrap();
    let y = b.linear("ip", x, bias.len()).unwrap();
    let arrays = vec![Array::new(vec![bias.len(), 2], weight), Array::new(vec![bias.len()], bias)];
    let model = Model::new(b.finish(&[y]).unwrap(), Params::new(vec![Vec::new(), arrays])).unwrap();
    Net::new(&model).unwrap()
}

fn recipe() -> Recipe {
    Recipe {
        learning_rate: 0.5,
        momentum: 0.5,
        weight_decay: 0.25,
        multipliers: Multipliers { biases: Multiplier::new(2.0, 0.0), ..Multipliers::default() },
        ..Recipe::default()
    }
}

fn numbers(net: &Net) -> (Vec<f32>, Vec<f32>) {
    let of = |slot: usize| {
        let id = net.graph().outputs()[0];
        net.params().get(id)[slot].flatten_all().unwrap().to_vec1().unwrap()
    };
    (of(0), of(1))
}

fn step(sgd: &mut Sgd, net: &Net, iteration: u64, weight: &[f32], bias: &[f32]) -> Result<Update, NotFinite> {
    let gradients = vec![Vec::new(), vec![Some(weight.to_vec()), Some(bias.to_vec())]];
    sgd.update(net, &mut Params::new(gradients), iteration, 0.5, true).unwrap()
}

/// Every number is a binary fraction, computed by hand from the formulas of [`Sgd`].
#[test]
fn updates_follow_the_table() {
    let net = net(&[1.0, -2.0], &[4.0]);
    let mut sgd = Sgd::new(&recipe(), &net, None).unwrap();
    // g = (0.5 + 0.25 * 1, 1 - 0.25 * 2) = (0.75, 0.5); v = 0.5 g. Bias: no decay, v = 0.5 * 2 * 2.
    step(&mut sgd, &net, 0, &[0.5, 1.0], &[2.0]).unwrap();
    assert_eq!(numbers(&net), (vec![0.625, -2.25], vec![2.0]));
    // g = (0.5 + 0.15625, 1 - 0.5625); v = 0.5 v + 0.5 g = (0.515625, 0.34375). Bias: v = 0.5 * 2 + 2.
    step(&mut sgd, &net, 1, &[0.5, 1.0], &[2.0]).unwrap();
    assert_eq!(numbers(&net), (vec![0.109375, -2.59375], vec![-1.0]));
    let id = net.graph().outputs()[0];
    assert_eq!(sgd.velocity().get(id), [vec![0.515625, 0.34375], vec![3.0]]);
}

#[test]
fn clipping_comes_before_decay() {
    let net = net(&[1.0, -2.0], &[4.0]);
    let recipe = Recipe { clip_gradients: Some(2.5), ..recipe() };
    let mut sgd = Sgd::new(&recipe, &net, None).unwrap();
    // The norm of all gradients is 5, so they are halved: g = (1.5 + 0.25, 0 - 0.5), bias 2.
    step(&mut sgd, &net, 0, &[3.0, 0.0], &[4.0]).unwrap();
    assert_eq!(numbers(&net), (vec![0.125, -1.75], vec![2.0]));
}

#[test]
fn l1_decay_is_the_sign() {
    let net = net(&[1.0, -2.0, 0.0, -0.0], &[0.0, 0.0]);
    let mut sgd = Sgd::new(&Recipe { decay: Decay::L1, ..recipe() }, &net, None).unwrap();
    step(&mut sgd, &net, 0, &[0.0; 4], &[0.0; 2]).unwrap();
    assert_eq!(numbers(&net).0, [0.875, -1.875, 0.0, 0.0]);
}

#[test]
fn a_missing_gradient_still_decays_and_a_frozen_tensor_does_not() {
    let net = net(&[1.0, -2.0], &[4.0]);
    let tensors = [("ip.bias".to_owned(), Multiplier::new(0.0, 1.0))].into();
    let multipliers = Multipliers { tensors, ..Multipliers::default() };
    let mut sgd = Sgd::new(&Recipe { multipliers, ..recipe() }, &net, None).unwrap();
    let mut gradients = Params::new(vec![Vec::new(), vec![None, None]]);
    sgd.update(&net, &mut gradients, 0, 0.5, false).unwrap().unwrap();
    assert_eq!(numbers(&net), (vec![0.875, -1.75], vec![4.0]));
}

/// Force on the filters (1, 0) and (0, 2), whose closed form is `G = ((0, -1), (-2, 0))`.
#[test]
fn force_comes_after_decay_and_before_momentum() {
    let rule = |strength| ForceRule::new(Force::L2, strength, ["ip"]);
    let start = [1.0, 0.0, 0.0, 2.0];
    let run = |force: ForceRule, iteration| {
        let net = net(&start, &[0.0, 0.0]);
        let mut sgd = Sgd::new(&Recipe { force: Some(force), ..recipe() }, &net, None).unwrap();
        let share = step(&mut sgd, &net, iteration, &[0.0; 4], &[0.0; 2]).unwrap().force_share.unwrap();
        (numbers(&net).0, share)
    };
    let close = |found: &[f32], expected: &[f32]| {
        found
            .iter()
            .zip(expected)
            .for_each(|(f, e)| assert!((f - e).abs() < 1e-6, "{found:?}, expected {expected:?}"));
    };
    // Decay alone gives g = ((0.25, 0), (0, 0.5)); w = w - 0.5 (g + 0.5 G).
    let (weight, share) = run(rule(0.5), 0);
    close(&weight, &[0.875, 0.25, 0.5, 1.75]);
    // ||0.5 G|| / ||g|| = sqrt(1.25 / 0.3125).
    assert!((share - 2.0).abs() < 1e-6, "{share}");
    let (weight, _) = run(ForceRule { multipliers: [("ip".into(), 2.0)].into(), ..rule(-0.25) }, 0);
    close(&weight, &[0.875, -0.25, -0.5, 1.75]);
    // Where there is a gradient, decay's is along the filter and the force across it: no product is below 0.
    let (weight, _) = run(ForceRule { direction: Direction::Same, ..rule(0.5) }, 0);
    close(&weight, &[0.875, 0.25, 0.5, 1.75]);
    // Adaptive: G is scaled to the norm of g, sqrt(0.3125 / 5) = 0.25.
    let (weight, share) = run(ForceRule { scaling: Scaling::Adaptive, ..rule(1.0) }, 0);
    close(&weight, &[0.875, 0.125, 0.25, 1.75]);
    assert!((share - 1.0).abs() < 1e-6, "{share}");
    // A spread of 0.5, which is the target, twice and 1.25 times the target.
    let held = |target| ForceRule { target_spread: Some(target), ..rule(0.5) };
    let (weight, share) = run(held(0.5), 0);
    close(&weight, &[0.875, 0.0, 0.0, 1.75]);
    assert_eq!(share, 0.0);
    close(&run(held(0.25), 0).0, &[0.875, 0.25, 0.5, 1.75]);
    close(&run(held(0.4), 0).0, &[0.875, 0.0625, 0.125, 1.75]);
    let adaptive = ForceRule { scaling: Scaling::Adaptive, strength: 1.0, ..held(0.4) };
    close(&run(adaptive, 0).0, &[0.875, 0.03125, 0.0625, 1.75]);
    let (weight, share) = run(ForceRule { force: Force::L1, ..held(0.5) }, 0);
    close(&weight, &[0.875, 0.0, 0.0, 1.75]);
    assert_eq!(share, 0.0);
    // A quarter of the strength of 2 after one of four iterations of warming up, all of it after four.
    let rising = ForceRule { warm_up: 4, ..rule(2.0) };
    close(&run(rising.clone(), 0).0, &[0.875, 0.25, 0.5, 1.75]);
    let strengths = [0, 1, 2, 3, 4, 9].map(|iteration| rising.strength_at(iteration));
    assert_eq!(strengths, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
    let stopping = ForceRule { stop_iteration: Some(7), ..rule(0.5) };
    close(&run(stopping.clone(), 6).0, &[0.875, 0.25, 0.5, 1.75]);
    let (weight, share) = run(stopping, 7);
    close(&weight, &[0.875, 0.0, 0.0, 1.75]);
    assert_eq!(share, 0.0);
}

#[test]
fn masked_weights_and_momenta_stay_zero() {
    let net = net(&[1.0, -2.0], &[4.0]);
    let arrays = vec![Array::new(vec![1, 2], vec![0.0, 1.0]), Array::new(vec![1], vec![1.0])];
    let masks = Params::new(vec![Vec::new(), arrays]);
    let mut sgd = Sgd::new(&recipe(), &net, Some(&masks)).unwrap();
    Sgd::apply_masks(&net, &masks).unwrap();
    assert_eq!(numbers(&net), (vec![0.0, -2.0], vec![4.0]));
    for iteration in 0..3 {
        step(&mut sgd, &net, iteration, &[0.5, 1.0], &[2.0]).unwrap();
    }
    let (weight, _) = numbers(&net);
    assert_eq!(weight[0].to_bits(), 0);
    assert!(weight[1] < -2.5);
    let id = net.graph().outputs()[0];
    assert_eq!(sgd.velocity().get(id)[0][0].to_bits(), 0);
}

#[test]
fn bad_masks_are_named() {
    let net = net(&[1.0, -2.0], &[4.0]);
    let message = |arrays: Vec<Array>| {
        let masks = Params::new(vec![Vec::new(), arrays]);
        Sgd::new(&recipe(), &net, Some(&masks)).err().unwrap().to_string()
    };
    let bias = Array::full(vec![1], 1.0);
    let wrong_dims = message(vec![Array::full(vec![2, 1], 1.0), bias.clone()]);
    assert!(wrong_dims.contains("`ip.weight`") && wrong_dims.contains("[1, 2]"), "{wrong_dims}");
    let wrong_value = message(vec![Array::full(vec![1, 2], 0.5), bias.clone()]);
    assert!(wrong_value.contains("`ip.weight`") && wrong_value.contains("0.5"), "{wrong_value}");
    assert!(message(vec![bias]).contains("`ip`"));
}

#[test]
fn a_bad_gradient_is_found_before_anything_changes() {
    let net = net(&[1.0, -2.0], &[4.0]);
    let mut sgd = Sgd::new(&recipe(), &net, None).unwrap();
    let id = net.graph().outputs()[0];
    let found = step(&mut sgd, &net, 0, &[1.0, 1.0], &[f32::NAN]).unwrap_err();
    assert_eq!(found, NotFinite { node: id, slot: 1, what: "gradient" });
    assert_eq!(numbers(&net), (vec![1.0, -2.0], vec![4.0]));
    // The velocity of the bias is the largest number after one step, infinite after two.
    step(&mut sgd, &net, 0, &[1.0, 1.0], &[f32::MAX]).unwrap();
    let found = step(&mut sgd, &net, 1, &[1.0, 1.0], &[f32::MAX]).unwrap_err();
    assert_eq!(found, NotFinite { node: id, slot: 1, what: "weight" });
}

/// Rows (3, 4) and (0.1, 0) have norms 5 and 0.1. Everything else off: w = w - 0.5 g, then the lasso.
#[test]
fn a_group_lasso_shrinks_or_joins_the_gradient() {
    let run = |update, strength, threshold| {
        let net = net(&[3.0, 4.0, 0.125, 0.0], &[0.0, 0.0]);
        let lasso = GroupLasso {
            update,
            multipliers: [("ip".to_owned(), 2.0)].into(),
            ..GroupLasso::new(cofilter_sparsity::Grouping::Filters, strength, ["ip"])
        };
        let recipe = Recipe { lasso: vec![lasso], threshold, weight_decay: 0.0, momentum: 0.0, ..recipe() };
        let mut sgd = Sgd::new(&recipe, &net, None).unwrap();
        step(&mut sgd, &net, 0, &[0.0; 4], &[0.0; 2]).unwrap();
        numbers(&net).0
    };
    let close = |found: Vec<f32>, expected: [f32; 4]| {
        found
            .iter()
            .zip(&expected)
            .for_each(|(f, e)| assert!((f - e).abs() < 1e-6, "{found:?}, expected {expected:?}"));
    };
    // Rate 0.5, strength 0.5 times 2: by 0.5 in norm, which the second row does not have.
    close(run(LassoUpdate::Proximal, 0.5, 0.0), [2.7, 3.6, 0.0, 0.0]);
    // w - 0.5 w / ||w||.
    close(run(LassoUpdate::Subgradient, 0.5, 0.0), [2.7, 3.6, -0.375, 0.0]);
    close(run(LassoUpdate::Subgradient, 0.5, 0.4), [2.7, 3.6, 0.0, 0.0]);
    close(run(LassoUpdate::Proximal, 0.0, 3.5), [0.0, 4.0, 0.0, 0.0]);
}
