//! Every network of the zoo against the oracle, at sizes that the oracle does in seconds.

use crate::numbers::{images, model, options, relative_error, run, same_bits};
use cofilter_graph::Shape;
use cofilter_runtime::{Plan, reference};
use cofilter_zoo::{Config, NAMES, by_name};

/// Name and extent of the square input; 0 is as published.
const SMALL: &[(&str, usize)] = &[("lenet", 0), ("convnet", 0)];
const CIFAR: &[(&str, usize)] = &[
    ("resnet20", 0),
    ("resnet20_projection", 0),
    ("resnet32", 16),
    ("resnet32_projection", 16),
    ("resnet44", 16),
    ("resnet44_projection", 16),
    ("resnet56", 16),
    ("resnet56_projection", 16),
    ("resnet110", 16),
    ("resnet110_projection", 16),
];
const RESNETS: &[(&str, usize)] = &[("resnet18", 64), ("resnet34", 64), ("resnet50", 64)];
const ALEXNETS: &[(&str, usize)] = &[("bvlc_alexnet", 99), ("bvlc_alexnet_split", 99), ("alexnet", 95)];
const GOOGLENETS: &[(&str, usize)] = &[("bvlc_googlenet", 64), ("googlenet", 64)];

/// The first image equals the oracle's; three images at once equal the three alone, and with more threads.
fn check(networks: &[(&str, usize)]) {
    for &(name, extent) in networks {
        let input = (extent > 0).then(|| Shape::map(3, extent, extent));
        let model = model(by_name(name, &Config { input, ..Config::default() }).unwrap(), 17);
        let image_len = model.graph().input_shape().elements();
        let images = images(3 * image_len, 5);

        let plan = Plan::compile(&model, &options(3, 1)).unwrap();
        let mut session = plan.session();
        let mut logits = |images: &[f32]| {
            let mut logits = vec![f32::NAN; images.len() / image_len * plan.output_len()];
            session.run(images, &mut logits).unwrap();
            logits
        };
        let together = logits(&images);
        let alone: Vec<f32> = images.chunks(image_len).flat_map(&mut logits).collect();
        assert!(same_bits(&alone, &together), "{name}: one by one");
        for threads in [2, 3, 7] {
            let shared = run(&model, &options(3, threads), &images);
            assert!(same_bits(&shared, &together), "{name}: {threads} threads");
        }

        let expected = reference::run(&model, &images[..image_len]).unwrap();
        let error = relative_error(&together[..plan.output_len()], &expected);
        println!("{name}: relative error {error:.1e}");
        assert!(error < 1e-4, "{name}: relative error {error:e}");
    }
}

#[test]
fn small_networks_equal_the_oracle() {
    check(SMALL);
}

#[test]
fn cifar_resnets_equal_the_oracle() {
    check(CIFAR);
}

#[test]
fn resnets_equal_the_oracle() {
    check(RESNETS);
}

#[test]
fn alexnets_equal_the_oracle() {
    check(ALEXNETS);
}

#[test]
fn googlenets_equal_the_oracle() {
    check(GOOGLENETS);
}

#[test]
fn no_network_is_left_out() {
    let checked: Vec<&str> =
        [SMALL, CIFAR, RESNETS, ALEXNETS, GOOGLENETS].concat().iter().map(|n| n.0).collect();
    assert!(NAMES.iter().all(|name| checked.contains(name)), "of {NAMES:?} only {checked:?}");
}

/// Nothing but convolutions, poolings and what cannot be merged is left as a step.
#[test]
fn residual_networks_are_convolutions_and_little_else() {
    for (name, convolutions, others) in [
        // 19 convolutions; the images into planes, average pool and classifier; a subsampling and a padding at each of two shortcuts.
        ("resnet20", 19, 3 + 4),
        // A projection at each of two shortcuts.
        ("resnet20_projection", 21, 3),
        // A maximum pool too; three projections.
        ("resnet18", 20, 4),
        ("resnet50", 53, 4),
    ] {
        let model = model(by_name(name, &Config::default()).unwrap(), 1);
        let plan = Plan::compile(&model, &options(1, 1)).unwrap();
        let steps = plan.steps();
        let found = steps.iter().filter(|s| s.algorithm.starts_with("conv2d")).count();
        assert_eq!((found, steps.len() - found), (convolutions, others), "{name}\n{}", plan.describe());
        assert_eq!(steps.iter().map(|s| s.macs).sum::<usize>(), model.cost().macs());
    }
}
