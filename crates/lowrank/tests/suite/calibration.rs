//! Decompositions that see images.

use crate::identity::cases;
use crate::oracle::{Numbers, evaluate, one_conv, relative, tensor};
use cofilter_graph::{BatchNorm, Conv2d, Graph, Init, Model, Op, Shape};
use cofilter_lowrank::{
    Budget, Calibration, Error, Limit, Method, Quantity, RankRule, Settings, decompose, decompose_calibrated,
    reestimate_batch_norm,
};
use cofilter_runtime::{BackendKind, Options, Plan};

/// Images whose neighbouring values are alike, and whose channels differ in size and mean.
fn images(shape: Shape, count: usize, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers::new(seed);
    let Shape::Map { channels, height, width } = shape else { panic!("a map") };
    let mut all = Vec::new();
    for _ in 0..count {
        for c in 0..channels {
            let mut last = numbers.next();
            for _ in 0..height * width {
                last = 0.7 * last + 0.5 * numbers.next();
                all.push((last * (1.0 + c as f64) + 0.3 * c as f64) as f32);
            }
        }
    }
    all
}

/// Outputs of a network for each image.
fn outputs(model: &Model, images: &[f32]) -> Vec<Vec<f64>> {
    let len = model.graph().input_shape().elements();
    images
        .chunks_exact(len)
        .map(|image| evaluate(model, &image.iter().map(|v| f64::from(*v)).collect::<Vec<_>>()))
        .collect()
}

/// Root of the mean squared difference, relative to the standard deviation of each channel of `wanted`.
fn measured(wanted: &[Vec<f64>], found: &[Vec<f64>], channels: usize) -> f64 {
    let places = wanted[0].len() / channels;
    let (mut lost, mut whole) = (0.0, 0.0);
    for channel in 0..channels {
        let of = |all: &[Vec<f64>]| -> Vec<f64> {
            all.iter().flat_map(|one| one[channel * places..(channel + 1) * places].to_vec()).collect()
        };
        let (a, b) = (of(wanted), of(found));
        let mean = a.iter().sum::<f64>() / a.len() as f64;
        lost += a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
        whole += a.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    }
    (lost / whole).sqrt()
}

fn all_windows(images: &[f32]) -> Calibration<'_> {
    Calibration { windows: 1 << 20, ridge: 1e-9, ..Calibration::new(images) }
}

fn with(method: Method, rule: RankRule) -> Settings {
    Settings { method, rule, pointwise: true, linear: true, grow: true, ..Settings::default() }
}

#[test]
fn the_reported_error_is_that_of_the_outputs_and_less_than_without_images() {
    for method in [Method::Pca, Method::Svd, Method::Spatial, Method::Channel, Method::Tucker] {
        for (i, (name, input, conv, bias)) in cases().into_iter().enumerate() {
            let mut numbers = Numbers::new(300 + i as u64);
            let [h, w] = conv.kernel;
            let weight = numbers.array(&[conv.out_channels, input.channels() / conv.groups, h, w]);
            let bias = bias.then(|| numbers.array(&[conv.out_channels]));
            let dense = one_conv(input, &conv, weight, bias);
            let images = images(input, 40, i as u64);
            let settings = with(method, RankRule::Ratio(0.5));
            let (small, report) = decompose_calibrated(&dense, &settings, &all_windows(&images)).unwrap();
            let wanted = outputs(&dense, &images);
            let found = measured(&wanted, &outputs(&small, &images), conv.out_channels);
            let told = report.layers[0].output_error.unwrap();
            assert!((found - told).abs() < 1e-4 * (1.0 + told), "{name}, {method:?}: {found}, told {told}");
            let (plain, blind) = decompose(&dense, &settings).unwrap();
            assert_eq!(blind.layers[0].output_error, None);
            assert_eq!(blind.ranks(), report.ranks());
            let without = measured(&wanted, &outputs(&plain, &images), conv.out_channels);
            assert!(found <= without + 1e-6, "{name}, {method:?}: {found}, without images {without}");
        }
    }
}

#[test]
fn no_factors_of_that_rank_near_it_are_better() {
    let mut numbers = Numbers::new(17);
    let (input, conv) = (Shape::map(3, 7, 7), Conv2d { padding: [1, 1], ..Conv2d::new(8, 3) });
    let dense = one_conv(input, &conv, numbers.array(&[8, 3, 3, 3]), Some(numbers.array(&[8])));
    let images = images(input, 60, 5);
    let wanted = outputs(&dense, &images);
    let settings = with(Method::Pca, RankRule::by_name([("conv", 3)]));
    let (small, _) = decompose_calibrated(&dense, &settings, &all_windows(&images)).unwrap();
    let best = measured(&wanted, &outputs(&small, &images), 8);
    for trial in 0..60 {
        let mut params = small.params().clone();
        for name in ["conv_lowrank", "conv_linear"] {
            let id = small.graph().find(name).unwrap();
            for array in params.get_mut(id) {
                let size = 0.01 * f64::from(1 + trial % 5);
                let data: Vec<f32> =
                    array.data().iter().map(|v| v + (size * numbers.next()) as f32).collect();
                *array = cofilter_graph::Array::new(array.dims().to_vec(), data);
            }
        }
        let other = small.with_params(params).unwrap();
        assert!(measured(&wanted, &outputs(&other, &images), 8) > best, "trial {trial}");
    }
}

#[test]
fn full_rank_is_the_identity() {
    for method in [Method::Pca, Method::Svd, Method::Kmeans, Method::Spatial, Method::Channel, Method::Tucker]
    {
        for (i, (name, input, conv, bias)) in cases().into_iter().enumerate() {
            let mut numbers = Numbers::new(500 + i as u64);
            let [h, w] = conv.kernel;
            let weight = numbers.array(&[conv.out_channels, input.channels() / conv.groups, h, w]);
            let bias = bias.then(|| numbers.array(&[conv.out_channels]));
            let dense = one_conv(input, &conv, weight, bias);
            let images = images(input, 30, i as u64);
            let calibration = Calibration { windows: 1 << 20, ..Calibration::new(&images) };
            let (small, _) =
                decompose_calibrated(&dense, &with(method, RankRule::Full), &calibration).unwrap();
            // More filters than weights: the rank is that of the weights, and the inputs see no difference.
            let error = relative(
                outputs(&dense, &images).into_iter().flatten(),
                outputs(&small, &images).into_iter().flatten(),
            );
            assert!(error < 2e-5, "{name}, {method:?}: {error}");
        }
    }
}

/// Three convolutions with batch normalisation, one of them around a shortcut.
fn network() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 12, 12)).unwrap();
    let conv = |channels| Conv2d { padding: [1, 1], bias: false, ..Conv2d::new(channels, 3) };
    let x = b.conv2d("conv1", x, conv(12)).unwrap();
    let x = b.add("bn1", Op::BatchNorm(BatchNorm::default()), &[x]).unwrap();
    let x = b.relu("relu1", x).unwrap();
    let y = b.conv2d("conv2", x, conv(12)).unwrap();
    let y = b.add("bn2", Op::BatchNorm(BatchNorm::default()), &[y]).unwrap();
    let x = b.add("sum", Op::Add, &[x, y]).unwrap();
    let x = b.relu("relu2", x).unwrap();
    let x = b.conv2d("conv3", x, conv(16)).unwrap();
    let x = b.relu("relu3", x).unwrap();
    let x = b.global_avg_pool("pool", x).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 5).unwrap();
    let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 6).unwrap();
    reestimate_batch_norm(&model, None, &Calibration::new(&images(Shape::map(3, 12, 12), 50, 8))).unwrap()
}

/// By the runtime's reference.
fn logits(model: &Model, images: &[f32]) -> Vec<f64> {
    let options = Options { backend: BackendKind::Reference, ..Options::default() };
    let plan = Plan::compile(model, &options).unwrap();
    let mut session = plan.session();
    images
        .chunks_exact(plan.input_len())
        .flat_map(|image| {
            let mut row = vec![0.0; plan.output_len()];
            session.run(image, &mut row).unwrap();
            row.into_iter().map(f64::from)
        })
        .collect()
}

#[test]
fn batch_normalisations_get_the_statistics_of_what_they_read() {
    let images = images(Shape::map(3, 12, 12), 50, 8);
    let model = network();
    for (bn, conv) in [("bn1", "conv1"), ("bn2", "conv2")] {
        let graph = model.graph();
        let part = model.part(graph.input(), graph.find(conv).unwrap()).unwrap();
        let read = logits(&part, &images);
        for channel in 0..12 {
            let own: Vec<f64> =
                read.chunks_exact(144).skip(channel).step_by(12).flat_map(<[f64]>::to_vec).collect();
            let mean = own.iter().sum::<f64>() / own.len() as f64;
            let variance = own.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (own.len() - 1) as f64;
            let [told_mean, told_variance] =
                [2, 3].map(|slot| f64::from(tensor(&model, bn, slot).data()[channel]));
            assert!((told_mean - mean).abs() < 1e-4 * (1.0 + mean.abs()), "{bn}: {told_mean}, {mean}");
            assert!((told_variance / variance - 1.0).abs() < 1e-4, "{bn}: {told_variance}, {variance}");
        }
    }
    let untouched = model.tensors(model.graph().find("conv2").unwrap());
    assert_eq!(untouched.len(), 1);
}

#[test]
fn layers_make_up_for_the_errors_before_them() {
    let images = images(Shape::map(3, 12, 12), 80, 21);
    let model = network();
    let wanted = logits(&model, &images);
    let settings = with(Method::Pca, RankRule::Ratio(0.4));
    let error = |model: &Model| relative(wanted.iter().copied(), logits(model, &images));
    let of = |asymmetric| {
        let calibration = Calibration { windows: 1 << 20, asymmetric, ..Calibration::new(&images) };
        error(&decompose_calibrated(&model, &settings, &calibration).unwrap().0)
    };
    let (asymmetric, symmetric) = (of(true), of(false));
    let plain = error(&decompose(&model, &settings).unwrap().0);
    assert!(asymmetric < symmetric && symmetric < plain, "{asymmetric}, {symmetric}, {plain}");
}

#[test]
fn means_go_to_batch_normalisations_where_a_layer_has_no_bias() {
    let images = images(Shape::map(3, 12, 12), 40, 3);
    let model = network();
    let settings = with(Method::Pca, RankRule::Ratio(0.5));
    let (small, report) = decompose_calibrated(&model, &settings, &Calibration::new(&images)).unwrap();
    for name in ["conv1", "conv2"] {
        let last = small.graph().find(&format!("{name}_linear")).unwrap();
        assert_eq!(small.tensors(last).len(), 1, "{name}");
    }
    assert_ne!(tensor(&small, "bn2", 2), tensor(&model, "bn2", 2));
    assert_eq!(tensor(&small, "bn2", 3), tensor(&model, "bn2", 3));
    // No batch normalisation behind it: it gets a bias.
    assert_eq!(small.tensors(small.graph().find("conv3_linear").unwrap()).len(), 2);
    assert_eq!(report.params_after, small.cost().params());
    // What stays dense stays as it was.
    let exclude = vec!["conv3".to_owned(), "fc".to_owned()];
    let (some, _) =
        decompose_calibrated(&model, &Settings { exclude, ..settings }, &Calibration::new(&images)).unwrap();
    let conv3 = some.graph().find("conv3").unwrap();
    assert_eq!(some.tensors(conv3), model.tensors(model.graph().find("conv3").unwrap()));
}

#[test]
fn threads_do_not_change_a_bit() {
    let images = images(Shape::map(3, 12, 12), 33, 4);
    for method in [Method::Pca, Method::Spatial] {
        let of = |threads| {
            let calibration = Calibration { threads, windows: 20, ..Calibration::new(&images) };
            let settings = with(method, RankRule::Ratio(0.5));
            let (small, report) = decompose_calibrated(&network(), &settings, &calibration).unwrap();
            (reestimate_batch_norm(&small, Some(&network()), &calibration).unwrap(), report)
        };
        assert!(of(1) == of(2) && of(1) == of(3), "{method:?}");
    }
}

#[test]
fn images_that_make_no_sense_are_refused() {
    let good = images(Shape::map(3, 12, 12), 2, 1);
    let mut nan = good.clone();
    nan[500] = f32::NAN;
    let wrong = [
        Calibration::new(&[]),
        Calibration::new(&good[1..]),
        Calibration::new(&nan),
        Calibration { threads: 0, ..Calibration::new(&good) },
        Calibration { windows: 0, ..Calibration::new(&good) },
        Calibration { ridge: 0.0, ..Calibration::new(&good) },
        Calibration { ridge: f64::NAN, ..Calibration::new(&good) },
    ];
    for calibration in wrong {
        let error = decompose_calibrated(&network(), &Settings::default(), &calibration).unwrap_err();
        assert!(matches!(error, Error::Calibration { .. }), "{error}");
        assert!(matches!(
            reestimate_batch_norm(&network(), None, &calibration),
            Err(Error::Calibration { .. })
        ));
    }
    // A single image will do.
    let one = Calibration::new(&good[..432]);
    assert!(decompose_calibrated(&network(), &Settings::default(), &one).unwrap().0.check_finite().is_ok());
}

/// What the network costs at these ranks is a budget in which these ranks fit, biases that come and go included.
#[test]
fn a_budget_counts_the_biases_that_stay() {
    let images = images(Shape::map(3, 12, 12), 40, 3);
    let model = network();
    let calibration = Calibration::new(&images);
    for layer in ["conv1", "conv3"] {
        let exclude: Vec<String> =
            ["conv1", "conv2", "conv3", "fc"].into_iter().filter(|n| *n != layer).map(String::from).collect();
        let ranks = Settings { rule: RankRule::by_name([(layer, 2)]), ..Settings::default() };
        let (small, _) = decompose_calibrated(&model, &ranks, &calibration).unwrap();
        let params = small.cost().params();
        let within = |count: usize| {
            let at_most = Limit::Count(count);
            let rule = RankRule::Budget(Budget { of: Quantity::Params, at_most });
            let settings = Settings { rule, exclude: exclude.clone(), ..Settings::default() };
            decompose_calibrated(&model, &settings, &calibration).unwrap()
        };
        for (count, rank) in [(params, 2), (params - 1, 1)] {
            let (found, report) = within(count);
            assert_eq!(report.layers[0].rank, rank, "{layer}, {count}");
            assert!(found.cost().params() <= count);
        }
        // As it is it fits: nothing is taken apart, and no bias is counted.
        assert!(within(model.cost().params()).1.layers.is_empty(), "{layer}");
    }
}
