use super::*;
use cofilter_graph::{BatchNorm, Conv2d, Graph, Init, Pool2d, PoolKind};

/// Values with one and two readers, shared values (flatten), a dropout, two heads.
fn model() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 9, 8)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d { padding: [1, 1], ..Conv2d::new(4, 3) }).unwrap();
    let x = b.batch_norm("bn1", x, BatchNorm::default()).unwrap();
    let x = b.relu("relu1", x).unwrap();
    let y = b.conv2d("conv2", x, Conv2d { padding: [1, 1], bias: false, ..Conv2d::new(4, 3) }).unwrap();
    let x = b.sum("sum", &[x, y]).unwrap();
    let z = b.conv2d("conv3", x, Conv2d::new(3, 1)).unwrap();
    let x = b.concat("both", &[x, z]).unwrap();
    let x = b.pool2d("pool", x, Pool2d::caffe(PoolKind::Max, 3, 2)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let side = b.linear("side", x, 5).unwrap();
    let x = b.dropout("drop", x, 0.3).unwrap();
    let main = b.linear("main", x, 5).unwrap();
    Model::init(b.finish(&[main, side]).unwrap(), &Init::default(), 4).unwrap()
}

/// Our backward pass and candle's.
#[test]
fn sweep_and_tape_agree() {
    let images: Vec<f32> = (0..3 * 144u16).map(|i| f32::from(i * 37 % 101) / 50.0 - 1.0).collect();
    let labels = [4, 0, 2];
    let trainer = || Trainer::new(&model(), &Recipe::default(), None, &Device::Cpu).unwrap();
    let (mut one, mut other) = (trainer(), trainer());
    let (swept, taped) = (one.sweep(images.clone(), &labels).unwrap(), other.tape(images, &labels).unwrap());
    assert_eq!(swept.correct, taped.correct);
    for (a, b) in swept.losses.iter().zip(&taped.losses) {
        assert!((a - b).abs() < 1e-6, "{a}, expected {b}");
    }
    let mut compared = 0;
    for (id, slot, swept, taped) in swept.gradients.zip(&taped.gradients) {
        let name = one.net.graph().tensor_name(id, slot);
        assert_eq!(swept.is_some(), taped.is_some(), "{name}");
        if let (Some(gradient), Some(taped)) = (swept, taped) {
            let largest = taped.iter().fold(0.0, |m: f32, g| m.max(g.abs()));
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * largest + 1e-6;
            assert!(gradient.iter().zip(taped).all(close), "{name}: {gradient:?}, expected {taped:?}");
            assert!(gradient.iter().any(|g| *g != 0.0) || name == "conv1.bias", "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 2 + 2 + 1 + 2 + 2 + 2);
    // Nothing is learnt yet, but running statistics are.
    let (one, other) = (one.net.to_model().unwrap(), other.net.to_model().unwrap());
    for (id, slot, one, other) in one.params().zip(other.params()) {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
        assert!(one.data().iter().zip(other.data()).all(close), "{id:?} {slot}: {one:?}, expected {other:?}");
    }
}

/// Buffers that were used before change nothing.
#[test]
fn a_pass_does_not_depend_on_what_was_before() {
    let images = |scale: f32| (0..2 * 144u16).map(|i| f32::from(i * 37 % 101) * scale).collect::<Vec<f32>>();
    let trainer = || Trainer::new(&model(), &Recipe::default(), None, &Device::Cpu).unwrap();
    let (mut used, mut fresh) = (trainer(), trainer());
    let first = used.sweep(images(0.1), &[1, 2]).unwrap();
    for (_, _, gradient) in first.gradients.iter() {
        gradient.iter().for_each(|g| used.sweep.pool().give(g.clone()));
    }
    let (again, once) =
        (used.sweep(images(0.01), &[3, 4]).unwrap(), fresh.sweep(images(0.01), &[3, 4]).unwrap());
    assert_eq!((again.losses, again.correct), (once.losses, once.correct));
    assert!(again.gradients == once.gradients && again.gradients != first.gradients);
}
