//! Every network of the zoo, at small inputs: shapes, the law of `Net`, and one training iteration on both ways.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use candle_core::{DType, Device, Tensor};
use cofilter_graph::{Model, Op, Shape};
use cofilter_train::{Mode, Net, Recipe, Trainer};
use cofilter_zoo::{Config, NAMES, Network};

const TRAIN: Mode = Mode::Train { seed: 3, iteration: 0 };

/// The network with few classes at the smallest customary input.
fn small(name: &str) -> Model {
    let input = match name {
        "lenet" => Shape::map(1, 28, 28),
        "convnet" => Shape::map(3, 32, 32),
        "bvlc_alexnet" | "bvlc_alexnet_split" => Shape::map(3, 67, 67),
        "alexnet" => Shape::map(3, 63, 63),
        // The auxiliary heads pool a 5x5 window of the 14x14 map of a 224x224 image.
        "bvlc_googlenet" => Shape::map(3, 112, 112),
        "googlenet" | "resnet18" | "resnet34" | "resnet50" => Shape::map(3, 64, 64),
        _ => Shape::map(3, 16, 16),
    };
    let config = Config { classes: Some(7), input: Some(input), ..Config::default() };
    Network::by_name(name, &config).unwrap().model(1).unwrap()
}

fn images(model: &Model, count: usize) -> Tensor {
    let shape = model.graph().input_shape();
    let len = count * shape.elements();
    let data: Vec<f32> = (0..len).map(|i| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * 2.0).collect();
    let dims: Vec<usize> = std::iter::once(count).chain(shape.dims()).collect();
    Tensor::from_vec(data, dims, &Device::Cpu).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn nets_give_their_model_back_and_the_shapes_of_the_graph() {
    for name in NAMES {
        let model = small(name);
        let net = Net::new(&model).unwrap();
        assert!(net.to_model().unwrap() == model, "{name}");
        let values = net.forward(&images(&model, 2), Mode::Eval).unwrap();
        assert_eq!(values.len(), model.graph().outputs().len(), "{name}");
        for value in &values {
            assert_eq!(value.dims(), [2, 7], "{name}");
            assert!(numbers(value).iter().all(|v| v.is_finite()), "{name}");
        }
        let first = numbers(&values[0]);
        assert!(first.iter().any(|v| *v != first[0]), "{name}: all scores are {}", first[0]);
        assert!(net.to_model().unwrap() == model, "{name}: evaluation changed it");
    }
}

/// One step of the trainer, whose backward pass is ours, against candle's tape.
#[test]
fn training_steps_are_those_of_the_tape() {
    for name in ["lenet", "convnet", "resnet20", "resnet20_projection", "bvlc_alexnet_split"] {
        compare_with_the_tape(name, 2, 0.0, [1e-6, 1e-4]);
    }
    // Enough to be computed in pieces, with normalisations where they are read. In other batches rounding decides a ReLU one way
    // here and the other way there.
    for name in ["resnet20", "resnet20_projection"] {
        compare_with_the_tape(name, 25, 0.0, [1e-6, 1e-4]);
    }
    // With plain sums on both sides, rounding decides a maximum of this batch one way here and the other way there.
    compare_with_the_tape("bvlc_googlenet", 2, 1e-4, [1e-6, 1e-4]);
}

/// The bound that is stated for Winograd's method is of the largest result of one convolution; errors of some twenty add up.
#[test]
fn training_steps_with_winograd_are_those_of_the_tape_within_its_error() {
    for name in ["convnet", "resnet20", "resnet20_projection"] {
        for images in [2, 25] {
            compare_with_the_tape(name, images, 1e-4, [3e-5, 4e-4]);
        }
    }
}

/// Running statistics and gradients, relative to the largest of a layer, are `within` so much.
fn compare_with_the_tape(name: &str, count: u32, tolerance: f32, within: [f32; 2]) {
    let model = small(name);
    let labels: Vec<u32> = (0..count).map(|i| (4 * i + 1) % 7).collect();
    let recipe = Recipe {
        learning_rate: 1.0,
        momentum: 0.0,
        weight_decay: 0.0,
        seed: 3,
        tolerance,
        ..Recipe::default()
    };
    let mut trainer = Trainer::new(&model, &recipe, None, cofilter_train::Device::Cpu).unwrap();
    let batch = images(&model, labels.len());
    let step = trainer.step(numbers(&batch), &labels, false).unwrap();

    let net = Net::new(&model).unwrap();
    let heads = net.forward(&batch, TRAIN).unwrap();
    let mut total = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap();
    for (head, logits) in heads.iter().enumerate() {
        let targets = Tensor::new(&labels[..], &Device::Cpu).unwrap();
        let loss = candle_nn::loss::cross_entropy(logits, &targets).unwrap();
        assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - step.losses[head]).abs() < 1e-5, "{name}");
        let weight = if head == 0 { 1.0 } else { 0.3 };
        total = (total + (loss * weight).unwrap()).unwrap();
    }
    let grads = total.backward().unwrap();
    for (id, slot, before, after) in model.params().zip(trainer.net().params()) {
        let tensor = model.graph().tensor_name(id, slot);
        let after = numbers(after);
        let var = &net.params().get(id)[slot];
        match grads.get(var) {
            // Running statistics: the forward pass changed both nets alike.
            None => {
                let pairs = after.iter().zip(numbers(var));
                let far = pairs.map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f32::max);
                assert!(far < within[0], "{name} {tensor}: {far:e} apart");
            }
            Some(gradient) => {
                let gradient = numbers(gradient);
                // A bias before a batch normalisation has a gradient of 0, but for rounding.
                let largest = gradient.iter().fold(1e-2f32, |m, g| m.max(g.abs()));
                for ((w, b), g) in after.iter().zip(before.data()).zip(&gradient) {
                    let tolerance = within[1] * largest + 1e-6 * b.abs();
                    assert!((b - w - g).abs() <= tolerance, "{name} {tensor}: {} for {g}", b - w);
                }
                assert!(gradient.iter().any(|g| *g != 0.0), "{name} {tensor}");
            }
        }
    }
}

/// Layers large enough to be shared out between threads.
#[test]
fn the_number_of_threads_does_not_matter() {
    for (name, batch) in [("lenet", 48u32), ("convnet", 12), ("resnet20", 24), ("bvlc_alexnet", 5)] {
        let model = small(name);
        let labels: Vec<u32> = (0..batch).map(|i| i % 7).collect();
        let batch = numbers(&images(&model, batch as usize));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut trainer =
                    Trainer::new(&model, &Recipe::default(), None, cofilter_train::Device::Cpu).unwrap();
                let steps = (0..2).map(|_| trainer.step(batch.clone(), &labels, true).unwrap());
                let losses: Vec<f64> = steps.map(|s| s.loss).collect();
                (losses, trainer.net().to_model().unwrap())
            })
        };
        let one = run(1);
        assert_ne!(one.1, model, "{name}");
        assert!(run(2) == one && run(3) == one, "{name}");
    }
}

/// A softmax at the end changes what comes out, not what is learnt.
#[test]
fn a_softmax_at_the_end_is_not_differentiated() {
    let config = |softmax| Config { softmax, ..Config::default() };
    let step = |softmax| {
        let model = Network::by_name("lenet", &config(softmax)).unwrap().model(2).unwrap();
        let mut trainer =
            Trainer::new(&model, &Recipe::default(), None, cofilter_train::Device::Cpu).unwrap();
        let step = trainer.step(numbers(&images(&model, 3)), &[1, 2, 3], false).unwrap();
        (step.loss, trainer.net().to_model().unwrap())
    };
    let ((loss, plain), (with_loss, with)) = (step(false), step(true));
    assert_eq!(loss, with_loss);
    let ip1 = |model: &Model| model.tensors(model.graph().find("ip1").unwrap()).to_vec();
    assert_eq!(ip1(&plain), ip1(&with));
    assert!(with.graph().nodes().iter().any(|n| matches!(n.op(), Op::Softmax)));
}

#[test]
fn wrong_images_are_refused() {
    let model = small("lenet");
    let net = Net::new(&model).unwrap();
    let wrong = Tensor::zeros((2, 3, 28, 28), DType::F32, &Device::Cpu).unwrap();
    let message = net.forward(&wrong, Mode::Eval).unwrap_err().to_string();
    assert!(message.contains("1x28x28") && message.contains("[2, 3, 28, 28]"), "{message}");
    let doubles = Tensor::zeros((2, 1, 28, 28), DType::F64, &Device::Cpu).unwrap();
    assert!(net.forward(&doubles, Mode::Eval).is_err());
    let mut trainer = Trainer::new(&model, &Recipe::default(), None, cofilter_train::Device::Cpu).unwrap();
    assert!(trainer.step(vec![0.0; 784], &[1, 2], false).is_err());
    let message = trainer.step(vec![0.0; 784], &[7], false).unwrap_err().to_string();
    assert!(message.contains("label 7") && message.contains("7 classes"), "{message}");
}
