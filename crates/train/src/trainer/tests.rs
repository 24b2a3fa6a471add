use super::*;
use crate::ops::compose;
use candle_core::{DType, Device::Cpu, Tensor};
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

/// Losses of the heads and gradients of an iteration, by candle's tape.
fn taped(of: &Trainer, images: Vec<f32>, labels: &[u32]) -> (Vec<f64>, Params<Option<Vec<f32>>>) {
    let dims: Vec<usize> = std::iter::once(labels.len()).chain(of.net.graph().input_shape().dims()).collect();
    let images = Tensor::from_vec(images, dims, &Cpu).unwrap();
    let heads = of.net.forward_to(&images, of.mode(), &of.heads).unwrap();
    let labels = compose::labels(labels, &Cpu).unwrap();
    let losses: Vec<Tensor> =
        heads.iter().map(|head| compose::cross_entropy(head, &labels).unwrap()).collect();
    let mut total = Tensor::zeros((), DType::F32, &Cpu).unwrap();
    for (loss, weight) in losses.iter().zip(&of.head_weights) {
        total = (total + (loss * *weight).unwrap()).unwrap();
    }
    let grads = total.backward().unwrap();
    let gradients = of.net.params().map(|id, slot, var| {
        let gradient = grads.get(var).filter(|_| of.sgd.wanted().get(id)[slot]);
        gradient.map(|g| g.flatten_all().unwrap().to_vec1().unwrap())
    });
    (losses.iter().map(|loss| f64::from(loss.to_scalar::<f32>().unwrap())).collect(), gradients)
}

/// Passes over batches of these sizes, one after the other, ours and candle's; how many tensors have a gradient other than 0.
fn compare(model: &Model, recipe: &Recipe, batches: &[usize]) -> usize {
    let len = model.graph().input_shape().elements();
    let trainer = || Trainer::new(model, recipe, None, Device::Cpu).unwrap();
    let (mut one, other) = (trainer(), trainer());
    let mut moving = 0;
    for (round, batch) in batches.iter().enumerate() {
        let number = |i: usize| ((i + 7 * round) * 37 % 101) as f32 / 50.0 - 1.0;
        let images: Vec<f32> = (0..batch * len).map(number).collect();
        let labels: Vec<u32> = (0..*batch).map(|i| [4, 0, 2][i % 3]).collect();
        let swept = one.sweep(images.clone(), &labels).unwrap();
        let (losses, gradients) = taped(&other, images, &labels);
        for (a, b) in swept.losses.iter().zip(&losses) {
            assert!((a - b).abs() < 1e-5, "{a}, expected {b}");
        }
        moving = 0;
        for (id, slot, swept, taped) in swept.gradients.zip(&gradients) {
            let name = one.net.graph().tensor_name(id, slot);
            assert_eq!(swept.is_some(), taped.is_some(), "{name}");
            if let (Some(gradient), Some(taped)) = (swept, taped) {
                let largest = taped.iter().fold(0.0, |m: f32, g| m.max(g.abs()));
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-5 * largest + 2e-6;
                let alike = gradient.len() == taped.len() && gradient.iter().zip(taped).all(close);
                assert!(alike, "{batch} images, {name}: {gradient:?}, expected {taped:?}");
                moving += usize::from(largest > 1e-5);
            }
        }
    }
    // Nothing is learnt, but running statistics are.
    let (one, other) = (one.net.to_model().unwrap(), other.net.to_model().unwrap());
    for (id, slot, one, other) in one.params().zip(other.params()) {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
        assert!(one.data().iter().zip(other.data()).all(close), "{id:?} {slot}: {one:?}, expected {other:?}");
    }
    moving
}

#[test]
fn sweep_and_tape_agree() {
    // All tensors but the bias before the batch normalisation.
    assert_eq!(compare(&model(), &Recipe::default(), &[3, 9, 1, 20]), 1 + 2 + 1 + 2 + 2 + 2);
}

/// What the networks of the zoo do not have.
#[test]
fn sweep_and_tape_agree_on_odd_graphs() {
    type Odd = fn(&mut cofilter_graph::GraphBuilder, NodeId) -> NodeId;
    let conv =
        |out: usize, kernel: usize| Conv2d { padding: [kernel / 2, kernel / 2], ..Conv2d::new(out, kernel) };
    let odd: [(&str, Odd); 9] = [
        ("a point that is padded and strided", |b, x| {
            let x = b.conv2d("a", x, Conv2d::new(17, 1)).unwrap();
            let x = b.relu("ra", x).unwrap();
            b.conv2d("b", x, Conv2d { stride: [1, 2], padding: [1, 0], ..Conv2d::new(16, 1) }).unwrap()
        }),
        ("a filter as large as the map", |b, x| {
            let x = b.conv2d("a", x, Conv2d::new(5, 3)).unwrap();
            let x = b.conv2d("b", x, Conv2d::new(20, 6)).unwrap();
            let x = b.relu("rb", x).unwrap();
            b.conv2d("c", x, Conv2d { kernel: [5, 1], ..Conv2d::new(20, 1) }).unwrap()
        }),
        ("normalisation and pooling of the image", |b, x| {
            let y = b.batch_norm("bn", x, BatchNorm::default()).unwrap();
            let z = b
                .pool2d("pool", x, Pool2d { padding: [1, 1], ..Pool2d::torch(PoolKind::Max, 3, 1) })
                .unwrap();
            let y = b.sum("sum", &[y, z, x]).unwrap();
            b.conv2d("conv", y, Conv2d::new(4, 3)).unwrap()
        }),
        ("a value added to itself, and read by others", |b, x| {
            let x = b.conv2d("a", x, Conv2d::new(8, 3)).unwrap();
            let y = b.sum("twice", &[x, x]).unwrap();
            let z = b.relu("r", x).unwrap();
            let y = b.sum("sum", &[y, z, x]).unwrap();
            let y = b.relu("r2", y).unwrap();
            b.conv2d("b", y, Conv2d::new(4, 3)).unwrap()
        }),
        ("dropout, concatenation and LRN of maps", |b, x| {
            let x = b.conv2d("a", x, Conv2d::new(20, 3)).unwrap();
            let y = b.dropout("drop", x, 0.4).unwrap();
            let x = b.concat("both", &[x, y]).unwrap();
            let lrn = cofilter_graph::LrnRegion::AcrossChannels;
            let lrn = cofilter_graph::Lrn { region: lrn, size: 5, alpha: 0.1, beta: 0.75, k: 1.0 };
            let x = b.lrn("lrn", x, lrn).unwrap();
            b.conv2d("b", x, Conv2d::new(6, 3)).unwrap()
        }),
        ("normalisations without ReLU and without end", |b, x| {
            let x = b.conv2d("a", x, Conv2d { bias: false, ..Conv2d::new(18, 3) }).unwrap();
            let x = b.batch_norm("bna", x, BatchNorm::default()).unwrap();
            let x = b.conv2d("b", x, Conv2d { bias: false, ..Conv2d::new(16, 3) }).unwrap();
            let x = b.batch_norm("bnb", x, BatchNorm::default()).unwrap();
            b.batch_norm("bnc", x, BatchNorm::default()).unwrap()
        }),
        ("means", |b, x| {
            let x = b.conv2d("a", x, Conv2d::new(5, 3)).unwrap();
            let x = b.pool2d("pool", x, Pool2d::caffe(PoolKind::Average, 3, 2)).unwrap();
            let x = b.conv2d("b", x, Conv2d::new(24, 1)).unwrap();
            b.global_avg_pool("mean", x).unwrap()
        }),
        ("strides, groups and dilation", |b, x| {
            let x = b.conv2d("a", x, Conv2d { padding: [1, 2], ..Conv2d::new(24, 3) }).unwrap();
            let x = b.conv2d("b", x, Conv2d { stride: [2, 3], groups: 2, ..Conv2d::new(36, 3) }).unwrap();
            let x = b.relu("rb", x).unwrap();
            b.conv2d("c", x, Conv2d { dilation: [2, 1], padding: [2, 1], ..Conv2d::new(8, 3) }).unwrap()
        }),
        ("padding far beyond the map", |b, x| {
            let x = b.conv2d("a", x, Conv2d::new(3, 3)).unwrap();
            b.conv2d("b", x, Conv2d { stride: [20, 20], padding: [15, 15], ..Conv2d::new(4, 21) }).unwrap()
        }),
    ];
    for (name, build) in odd {
        println!("{name}");
        let mut b = Graph::builder();
        let x = b.input("data", Shape::map(3, 12, 9)).unwrap();
        let x = build(&mut b, x);
        let x = b.flatten("flat", x).unwrap();
        let x = b.linear("fc", x, 5).unwrap();
        let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 4).unwrap();
        assert!(compare(&model, &Recipe::default(), &[3, 17, 1]) >= 3, "{name}");
    }
    // Frozen tensors on either side of a normalisation.
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 12, 9)).unwrap();
    let x = b.conv2d("first", x, conv(16, 3)).unwrap();
    let x = b.batch_norm("bn", x, BatchNorm::default()).unwrap();
    let x = b.relu("relu", x).unwrap();
    let x = b.conv2d("second", x, conv(16, 3)).unwrap();
    let x = b.batch_norm("bn2", x, BatchNorm::default()).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 5).unwrap();
    let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 4).unwrap();
    for frozen in [&["first"][..], &["bn"], &["first", "bn"], &["second", "bn2"], &["first", "bn", "second"]]
    {
        let mut tensors = std::collections::BTreeMap::new();
        for name in frozen {
            for slot in ["weight", "bias"] {
                tensors.insert(format!("{name}.{slot}"), crate::Multiplier::new(0.0, 0.0));
            }
        }
        let multipliers = crate::Multipliers { tensors, ..crate::Multipliers::default() };
        compare(&model, &Recipe { multipliers, ..Recipe::default() }, &[4, 9]);
    }
}

/// Buffers that were used before change nothing.
#[test]
fn a_pass_does_not_depend_on_what_was_before() {
    let images = |scale: f32| (0..2 * 144u16).map(|i| f32::from(i * 37 % 101) * scale).collect::<Vec<f32>>();
    let trainer = || Trainer::new(&model(), &Recipe::default(), None, Device::Cpu).unwrap();
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

#[test]
fn without_a_gpu_the_first_iteration_says_so() {
    let mut trainer = Trainer::new(&model(), &Recipe::default(), None, Device::Cuda(99)).unwrap();
    let images = vec![0.5; model().graph().input_shape().elements()];
    let error = trainer.step(images, &[1], false).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Cuda(_)), "{text}");
    assert!(text.contains("the CUDA driver") || text.contains("CUDA device 99"), "{text}");
}
