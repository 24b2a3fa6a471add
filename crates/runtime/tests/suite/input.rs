//! Bad input: clear errors, never a panic, nothing written.

use crate::numbers::{images, model, options, relative_error, run};
use cofilter_graph::{Array, BatchNorm, Conv2d, Filler, Graph, Init, Model, Pool2d, PoolKind, Shape};
use cofilter_runtime::{BackendKind, CostTable, Error, Options, Plan, Storage, Team, reference};
use std::sync::Arc;

fn net() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 5, 5)).unwrap();
    let x = b.conv2d("conv", x, Conv2d::new(4, 3)).unwrap();
    let x = b.batch_norm("bn", x, BatchNorm::default()).unwrap();
    let x = b.relu("relu", x).unwrap();
    let x = b.pool2d("pool", x, Pool2d::caffe(PoolKind::Max, 2, 2)).unwrap();
    let x = b.relu("relu2", x).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 3).unwrap();
    model(b.finish(&[x]).unwrap(), 2)
}

fn compile_error(options: &Options) -> String {
    Plan::compile(&net(), options).unwrap_err().to_string()
}

/// Two fully connected layers, the weights of the second one large.
fn large_weights() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(1, 2, 2)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("ip1", x, 4).unwrap();
    let x = b.relu("relu", x).unwrap();
    let x = b.linear("ip2", x, 2).unwrap();
    let graph = b.finish(&[x]).unwrap();
    let tensors = [("ip2.weight".to_owned(), Filler::Constant(7e4))].into();
    Model::init(graph, &Init { tensors, ..Init::default() }, 1).unwrap()
}

#[test]
fn weights_that_half_precision_cannot_hold_are_refused_by_name() {
    let compile = |linear_weights| {
        Plan::compile(&large_weights(), &Options { linear_weights, ..Options::default() }).map(|_| ())
    };
    let message = compile(Storage::F16).unwrap_err().to_string();
    assert_eq!(message, "option `linear_weights`: `ip2` has a weight of 7e4, which f16 cannot hold");
    assert!(compile(Storage::Bf16).is_ok() && compile(Storage::F32).is_ok());
}

/// Two factors of these weights.
fn factors(value: f32) -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(1, 2, 2)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("ip1", x, 4).unwrap();
    let x = b.linear("ip2", x, 4).unwrap();
    let init = Init { weight: Filler::Constant(value), ..Init::default() };
    Model::init(b.finish(&[x]).unwrap(), &init, 1).unwrap()
}

#[test]
fn factors_whose_product_cannot_be_held_are_not_multiplied() {
    for (value, linear_weights) in [(300.0, Storage::F16), (1e19, Storage::Bf16), (1e19, Storage::F32)] {
        let options = Options { linear_weights, ..Options::default() };
        let plan = Plan::compile(&factors(value), &options).unwrap();
        assert!(!plan.describe().contains("factors multiplied"), "{}", plan.describe());
        let mut logits = [0.0; 4];
        plan.session().run(&[1.0 / value; 4], &mut logits).unwrap();
        assert!(logits.iter().all(|v| (v / (16.0 * value) - 1.0).abs() < 1e-2), "{logits:?}");
    }
    let plan = Plan::compile(&factors(3.0), &Options::default()).unwrap();
    assert!(plan.describe().contains("factors multiplied"), "{}", plan.describe());
}

#[test]
fn what_cannot_be_compiled_cannot_be_measured() {
    let measure = |model: &Model, options: &Options| {
        CostTable::new().measure(model, options, 1).map_err(|error| error.to_string())
    };
    let options = Options { linear_weights: Storage::F16, ..Options::default() };
    assert!(measure(&large_weights(), &options).unwrap_err().contains("`ip2` has a weight of 7e4"));
    assert!(measure(&net(), &self::options(usize::MAX, 1)).unwrap_err().starts_with("option `batch`"));
}

#[test]
fn extents_that_make_no_map_are_refused() {
    let wide = |stride: usize, padding: usize| {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::map(3, 8, 8))?;
        let x =
            b.conv2d("conv", x, Conv2d { stride: [1, stride], padding: [padding; 2], ..Conv2d::new(4, 1) })?;
        Ok::<_, cofilter_graph::Error>(model(b.finish(&[x])?, 1))
    };
    assert!(wide(1 << 61, 0).unwrap_err().to_string().contains("stride"));
    // One column of windows: the image is not sorted into more phases than it has columns.
    let model = wide(1 << 16, 0).unwrap();
    let plan = Plan::compile(&model, &Options::default()).unwrap();
    assert!(plan.memory().arena_bytes < 1 << 20, "{}", plan.describe());
    let images = images(192, 1);
    let expected = reference::run(&model, &images).unwrap();
    assert!(relative_error(&run(&model, &options(1, 1), &images), &expected) < 1e-5);
    // A border of 2^16 pixels around 8x8, in 2^30 images.
    let message =
        Plan::compile(&wide(1 << 16, 1 << 16).unwrap(), &options(1 << 30, 1)).unwrap_err().to_string();
    assert!(message.contains("option `batch`") && message.contains("memory"), "{message}");
}

#[test]
fn vectors_of_other_segments_are_added() {
    // Two groups of 53 channels lie in blocks of their own; the other operand is a map seen as a vector.
    let mut b = Graph::builder();
    let data = b.input("data", Shape::map(2, 53, 1)).unwrap();
    let x = b.conv2d("conv", data, Conv2d { groups: 2, ..Conv2d::new(106, 1) }).unwrap();
    let x = b.global_avg_pool("pool", x).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let y = b.relu("relu", data).unwrap();
    let y = b.flatten("other", y).unwrap();
    let x = b.sum("add", &[x, y]).unwrap();
    let model = model(b.finish(&[x]).unwrap(), 3);
    let images = images(2 * 106, 1);
    let expected = reference::run(&model, &images).unwrap();
    assert!(relative_error(&run(&model, &options(2, 2), &images), &expected) < 1e-5);
}

#[test]
fn senseless_options_are_refused() {
    assert_eq!(compile_error(&options(0, 1)), "option `batch`: expected at least 1 image, found 0");
    assert_eq!(compile_error(&options(1, 0)), "option `threads`: expected 1..=1024, found 0");
    assert_eq!(compile_error(&options(1, 1025)), "option `threads`: expected 1..=1024, found 1025");
    for batch in [usize::MAX, usize::MAX / 64] {
        let message = compile_error(&options(batch, 1));
        assert!(message.starts_with(&format!("option `batch`: {batch} images")), "{message}");
    }
    // 2^40 images: addressable, but more than any machine's address space.
    for cache in [0, Options::default().cache] {
        let message = compile_error(&Options { cache, ..options(1 << 40, 1) });
        assert!(message.starts_with("option `batch`: a session would need "), "{message}");
    }
    let team = Arc::new(Team::new(2).unwrap());
    let message = compile_error(&Options { team: Some(team), ..options(1, 3) });
    assert_eq!(message, "option `team`: expected 3 threads as in `threads`, found 2");
    let message = compile_error(&Options { tolerance: f32::NAN, ..options(1, 1) });
    assert_eq!(message, "option `tolerance`: expected 0 or more, found NaN");
    let message = compile_error(&Options { max_memory: Some(1000), ..options(1, 1) });
    assert!(message.contains("`max_memory` allows 1000") && message.contains("the plan needs"), "{message}");
}

#[test]
fn slices_of_another_length_are_refused_and_nothing_is_written() {
    for backend in [BackendKind::Cpu, BackendKind::Reference] {
        let plan = Plan::compile(&net(), &Options { backend, ..options(2, 1) }).unwrap();
        let mut session = plan.session();
        for (len, room, message) in [
            (0, 3, "images: expected n * 50 values for n in 1..=2 images, found 0"),
            (49, 3, "images: expected n * 50 values for n in 1..=2 images, found 49"),
            (51, 3, "images: expected n * 50 values for n in 1..=2 images, found 51"),
            (150, 9, "images: expected n * 50 values for n in 1..=2 images, found 150"),
            (50, 0, "logits: expected 3 values for 1 images, found 0"),
            (50, 6, "logits: expected 3 values for 1 images, found 6"),
            (100, 3, "logits: expected 6 values for 2 images, found 3"),
        ] {
            let mut logits = vec![7.0; room];
            let error = session.run(&images(len, 1), &mut logits).unwrap_err();
            assert_eq!(error.to_string(), message);
            assert!(logits.iter().all(|v| *v == 7.0));
        }
        assert!(matches!(session.profile(&images(51, 1)), Err(Error::Images { found: 51, .. })));
        session.run(&images(50, 1), &mut [0.0; 3]).unwrap();
    }
    assert!(matches!(reference::run(&net(), &[]), Err(Error::Images { found: 0, .. })));
    assert!(matches!(reference::run(&net(), &[0.0; 51]), Err(Error::Images { found: 51, .. })));
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    let base = net();
    for (name, value) in [("conv.weight", f32::NAN), ("fc.bias", f32::INFINITY)] {
        let graph = base.graph();
        let params = base.params().map(|id, slot, array| {
            let mut data = array.data().to_vec();
            if graph.tensor_name(id, slot) == name {
                data[2] = value;
            }
            Array::new(array.dims().to_vec(), data)
        });
        let error =
            Plan::compile(&base.with_params(params).unwrap(), &options(1, 1)).unwrap_err().to_string();
        assert_eq!(error, format!("tensor `{name}`: element 2 is {value}, expected a finite number"));
    }
}

#[test]
fn a_batch_normalisation_that_cannot_be_folded_is_refused() {
    let error = |replaced: &[(&str, f32)]| {
        let base = net();
        let graph = base.graph();
        let params = base.params().map(|id, slot, array| {
            let name = graph.tensor_name(id, slot);
            match replaced.iter().find(|(replaced, _)| *replaced == name) {
                Some((_, value)) => Array::full(array.dims().to_vec(), *value),
                None => array.clone(),
            }
        });
        Plan::compile(&base.with_params(params).unwrap(), &options(1, 1)).unwrap_err().to_string()
    };
    let below = error(&[("bn.running_var", -1.0)]);
    assert_eq!(below, "tensor `bn.running_var`: element 0 is -1, expected a variance from 0 up");
    let overflow = error(&[("bn.running_var", 0.0), ("conv.weight", 3e38)]);
    assert_eq!(overflow, "tensor `conv.weight`: element 0 is inf, expected a finite number");
}

#[test]
fn nan_goes_through_to_its_own_image() {
    for backend in [BackendKind::Cpu, BackendKind::Reference] {
        for threads in [1, 2] {
            let plan = Plan::compile(&net(), &Options { backend, ..options(3, threads) }).unwrap();
            let mut session = plan.session();
            let mut images = images(150, 4);
            let mut clean = [0.0; 9];
            session.run(&images, &mut clean).unwrap();
            // The middle of the second image: every window of the network sees it.
            images[50 + 12] = f32::NAN;
            let mut logits = [0.0; 9];
            session.run(&images, &mut logits).unwrap();
            assert!(logits[3..6].iter().all(|v| v.is_nan()), "{backend:?}: {logits:?}");
            assert_eq!((&logits[..3], &logits[6..]), (&clean[..3], &clean[6..]), "{backend:?}");
            // Nothing of it stays in the memory of the session.
            images[50 + 12] = 0.5;
            session.run(&images, &mut logits).unwrap();
            assert!(logits.iter().all(|v| v.is_finite()));
        }
    }
}
