//! At full rank the pair computes what the layer did.

use crate::oracle::{Numbers, evaluate, one_conv, one_linear, relative, tensor};
use cofilter_graph::{Conv2d, Shape};
use cofilter_lowrank::{Method, RankRule, Settings, decompose};

fn full(method: Method) -> Settings {
    Settings { method, rule: RankRule::Full, linear: true, pointwise: true, ..Settings::default() }
}

pub(crate) fn cases() -> Vec<(&'static str, Shape, Conv2d, bool)> {
    let plain = Conv2d::new(12, 3);
    let map = Shape::map(6, 9, 8);
    vec![
        ("plain", map, plain.clone(), true),
        ("no bias", map, plain.clone(), false),
        ("padded", map, Conv2d { padding: [1, 2], ..plain.clone() }, true),
        ("strided", map, Conv2d { stride: [2, 3], padding: [1, 1], ..plain.clone() }, true),
        ("dilated", map, Conv2d { dilation: [2, 1], padding: [2, 0], ..plain.clone() }, true),
        ("rectangular", map, Conv2d { kernel: [1, 4], padding: [0, 3], ..plain.clone() }, true),
        ("grouped", map, Conv2d { groups: 3, padding: [1, 1], ..plain.clone() }, true),
        ("grouped, strided", map, Conv2d { groups: 2, stride: [2, 2], ..plain.clone() }, false),
        ("depthwise", map, Conv2d { groups: 6, out_channels: 6, ..plain.clone() }, true),
        ("depthwise, two each", map, Conv2d { groups: 6, ..plain.clone() }, true),
        ("more filters than weights", Shape::map(1, 6, 6), Conv2d { kernel: [2, 2], ..plain.clone() }, true),
        ("pointwise", map, Conv2d { kernel: [1, 1], ..plain }, true),
    ]
}

#[test]
fn full_rank_is_the_identity_for_convolutions() {
    let with_full_rank = Method::ALL.into_iter().filter(|method| *method != Method::Cp);
    for method in with_full_rank {
        for (i, (name, input, conv, bias)) in cases().into_iter().enumerate() {
            let mut numbers = Numbers::new(i as u64 + 1);
            let [h, w] = conv.kernel;
            let weight = numbers.array(&[conv.out_channels, input.channels() / conv.groups, h, w]);
            let bias = bias.then(|| numbers.array(&[conv.out_channels]));
            let dense = one_conv(input, &conv, weight, bias.clone());
            let (new, report) = decompose(&dense, &full(method)).unwrap();
            assert_eq!(report.layers[0].rank, report.layers[0].full_rank);
            let image: Vec<f64> = (0..input.elements()).map(|_| numbers.next()).collect();
            let error = relative(evaluate(&dense, &image), evaluate(&new, &image));
            assert!(error < 1e-6, "{name}, {method:?}: {error}");
            // The bias moves to the last of the new layers; the others have none.
            let nodes: Vec<_> = new.graph().iter().skip(1).collect();
            assert!(nodes.len() >= 2, "{name}, {method:?}");
            for (id, node) in &nodes[..nodes.len() - 1] {
                assert_eq!(new.tensors(*id).len(), 1, "{name}, {method:?}: {}", node.name());
            }
            assert_eq!(new.tensors(nodes[nodes.len() - 1].0).get(1), bias.as_ref());
        }
    }
}

#[test]
fn full_rank_is_the_identity_for_fully_connected_layers() {
    for (rows, cols) in [(7, 20), (20, 7), (5, 5), (1, 9), (9, 1)] {
        for method in [Method::Pca, Method::Svd] {
            let mut numbers = Numbers::new((rows * 100 + cols) as u64);
            let dense = one_linear(numbers.array(&[rows, cols]), Some(numbers.array(&[rows])));
            let (pair, _) = decompose(&dense, &full(method)).unwrap();
            let image: Vec<f64> = (0..cols).map(|_| numbers.next()).collect();
            let error = relative(evaluate(&dense, &image), evaluate(&pair, &image));
            assert!(error < 1e-6, "{rows}x{cols}, {method:?}: {error}");
            assert_eq!(tensor(&pair, "fc_lowrank", 0).dims(), [rows.min(cols), cols]);
            assert_eq!(tensor(&pair, "fc_linear", 0).dims(), [rows, rows.min(cols)]);
        }
    }
}

#[test]
fn random_shapes() {
    let mut numbers = Numbers::new(77);
    for _ in 0..40 {
        let groups = 1 + numbers.below(3);
        let channels = groups * (1 + numbers.below(4));
        let input = Shape::map(channels, 5 + numbers.below(4), 5 + numbers.below(4));
        let conv = Conv2d {
            out_channels: groups * (1 + numbers.below(9)),
            kernel: [1 + numbers.below(3), 1 + numbers.below(3)],
            stride: [1 + numbers.below(2), 1 + numbers.below(3)],
            padding: [numbers.below(3), numbers.below(3)],
            dilation: [1 + numbers.below(2), 1 + numbers.below(2)],
            groups,
            bias: true,
        };
        let [h, w] = conv.kernel;
        let weight = numbers.array(&[conv.out_channels, channels / groups, h, w]);
        let bias = numbers.array(&[conv.out_channels]);
        let dense = one_conv(input, &conv, weight, Some(bias));
        let (pair, _) = decompose(&dense, &full(Method::Pca)).unwrap();
        let image: Vec<f64> = (0..input.elements()).map(|_| numbers.next()).collect();
        let error = relative(evaluate(&dense, &image), evaluate(&pair, &image));
        assert!(error < 1e-6, "{conv:?} on {input}: {error}");
    }
}
