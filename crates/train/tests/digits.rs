//! A short training on the bundled digits.

use cofilter_data::{digits, preprocessing};
use cofilter_train::{Device, Fit, Multipliers, Outcome, Progress, Recipe, Schedule, evaluate, fit};
use cofilter_zoo::{Config, Network};
use std::path::Path;

#[test]
fn lenet_learns_digits() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/digits");
    let split = digits(&folder).unwrap();
    let test = split.test.subset(0..500);
    let model = Network::by_name("lenet", &Config::default()).unwrap().model(1).unwrap();
    let lenet = preprocessing::lenet(split.train.classes());
    let untrained = evaluate(&model, &test, &lenet, 100, Device::Cpu).unwrap();
    assert!(untrained.top1 < 0.4, "{untrained:?}");
    let recipe = Recipe {
        iterations: 200,
        seed: 1,
        learning_rate: 0.01,
        schedule: Schedule::Inv { gamma: 1e-4, power: 0.75 },
        multipliers: Multipliers::caffe(1.0),
        evaluate_every: 200,
        ..Recipe::default()
    };
    let outcome = fit(
        &model,
        &Fit {
            recipe: &recipe,
            train: &split.train,
            test: Some(&test),
            preprocessing: &lenet,
            device: Device::Cpu,
            folder: None,
            stop: None,
            masks: None,
            teacher: None,
            progress: Progress::Silent,
        },
    );
    let Outcome::Finished(trained) = outcome.unwrap() else { panic!("stopped") };
    let score = trained.score().unwrap();
    println!("{score:?}");
    assert!(score.top1 > 0.85 && score.top5 > 0.98 && score.loss < 0.6, "{score:?}");
    assert_eq!(score.images, 500);
}
