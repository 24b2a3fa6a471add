//! Shape inference of every op, and everything it refuses.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use cofilter_graph::{
    BatchNorm, Conv2d, Error, Linear, Lrn, LrnRegion, Op, PadChannels, Pool2d, PoolKind, Rounding, Shape,
};

fn map(channels: usize, height: usize, width: usize) -> Shape {
    Shape::map(channels, height, width)
}

fn conv() -> Conv2d {
    Conv2d::new(8, 3)
}

fn pool(kernel: usize, stride: usize) -> Pool2d {
    Pool2d::torch(PoolKind::Max, kernel, stride)
}

fn lrn() -> Lrn {
    Lrn { region: LrnRegion::AcrossChannels, size: 5, alpha: 1e-4, beta: 0.75, k: 1.0 }
}

fn linear(out_features: usize) -> Op {
    Op::Linear(Linear { out_features, bias: true })
}

#[test]
fn results_have_the_extents_of_the_formula() {
    let x = map(4, 10, 7);
    let cases = [
        (Op::Input { shape: x }, vec![], x),
        (Op::Conv2d(conv()), vec![x], map(8, 8, 5)),
        (Op::Conv2d(Conv2d { padding: [1, 2], stride: [2, 3], ..conv() }), vec![x], map(8, 5, 3)),
        (Op::Conv2d(Conv2d { dilation: [4, 3], ..conv() }), vec![x], map(8, 2, 1)),
        (Op::Conv2d(Conv2d { kernel: [10, 1], groups: 4, ..conv() }), vec![x], map(8, 1, 7)),
        (Op::Conv2d(Conv2d { stride: [100, 100], ..conv() }), vec![x], map(8, 1, 1)),
        (linear(3), vec![Shape::Vector(9)], Shape::Vector(3)),
        (Op::BatchNorm(BatchNorm::default()), vec![x], x),
        (Op::Relu, vec![x], x),
        (Op::Relu, vec![Shape::Vector(2)], Shape::Vector(2)),
        (Op::Pool2d(pool(2, 2)), vec![x], map(4, 5, 3)),
        (Op::Pool2d(Pool2d { rounding: Rounding::Ceil, ..pool(2, 2) }), vec![x], map(4, 5, 4)),
        (Op::Pool2d(Pool2d { kernel: [10, 7], ..pool(2, 1) }), vec![x], map(4, 1, 1)),
        (Op::AdaptiveAvgPool { output: [1, 1] }, vec![x], map(4, 1, 1)),
        (Op::AdaptiveAvgPool { output: [20, 3] }, vec![x], map(4, 20, 3)),
        (Op::Lrn(lrn()), vec![x], x),
        (Op::Lrn(Lrn { region: LrnRegion::WithinChannel, ..lrn() }), vec![x], x),
        (Op::Dropout { p: 0.0 }, vec![x], x),
        (Op::Dropout { p: 0.999 }, vec![Shape::Vector(3)], Shape::Vector(3)),
        (Op::Add, vec![x, x, x], x),
        (Op::Add, vec![Shape::Vector(3); 2], Shape::Vector(3)),
        (Op::Concat, vec![x, map(1, 10, 7), map(2, 10, 7)], map(7, 10, 7)),
        (Op::Concat, vec![Shape::Vector(3), Shape::Vector(4)], Shape::Vector(7)),
        (Op::Flatten, vec![x], Shape::Vector(280)),
        (Op::Flatten, vec![Shape::Vector(5)], Shape::Vector(5)),
        (Op::Softmax, vec![Shape::Vector(5)], Shape::Vector(5)),
        (Op::PadChannels(PadChannels { before: 3, after: 0 }), vec![x], map(7, 10, 7)),
        (Op::PadChannels(PadChannels { before: 0, after: 0 }), vec![x], x),
    ];
    for (op, inputs, expected) in cases {
        assert_eq!(op.infer("n", &inputs).unwrap(), expected, "{op:?} of {inputs:?}");
    }
}

/// Refused, and the message names the node and holds this text.
fn assert_refused(op: &Op, inputs: &[Shape], part: &str) {
    let e = op.infer("the/node", inputs).unwrap_err();
    assert!(matches!(&e, Error::Node { node, .. } if node == "the/node"), "{op:?} of {inputs:?}: {e}");
    assert!(e.to_string().contains(part), "{op:?} of {inputs:?}: `{e}` does not say `{part}`");
}

#[test]
fn a_wrong_number_of_inputs_is_refused() {
    let x = map(4, 10, 7);
    let v = Shape::Vector(4);
    let unary = [
        (Op::Conv2d(conv()), x),
        (linear(2), v),
        (Op::BatchNorm(BatchNorm::default()), x),
        (Op::Relu, x),
        (Op::Pool2d(pool(2, 2)), x),
        (Op::AdaptiveAvgPool { output: [1, 1] }, x),
        (Op::Lrn(lrn()), x),
        (Op::Dropout { p: 0.5 }, x),
        (Op::Flatten, x),
        (Op::Softmax, v),
        (Op::PadChannels(PadChannels { before: 1, after: 1 }), x),
    ];
    for (op, shape) in unary {
        op.infer("n", &[shape]).unwrap();
        assert_refused(&op, &[], "takes 1 inputs, found 0");
        assert_refused(&op, &[shape, shape], "takes 1 inputs, found 2");
    }
    assert_refused(&Op::Input { shape: x }, &[x], "input takes 0 inputs, found 1");
    for op in [Op::Add, Op::Concat] {
        assert_refused(&op, &[], "2 or more inputs, found 0");
        assert_refused(&op, &[x], "2 or more inputs, found 1");
    }
}

#[test]
fn inputs_of_the_wrong_kind_are_refused() {
    let x = map(4, 10, 7);
    let v = Shape::Vector(4);
    assert_refused(&Op::Conv2d(conv()), &[v], "takes a map");
    assert_refused(&linear(2), &[x], "takes a vector, found a map 4x10x7");
    assert_refused(&Op::BatchNorm(BatchNorm::default()), &[v], "takes a map");
    assert_refused(&Op::Pool2d(pool(2, 2)), &[v], "takes a map");
    assert_refused(&Op::AdaptiveAvgPool { output: [1, 1] }, &[v], "adaptive_avg_pool takes a map");
    assert_refused(&Op::Lrn(lrn()), &[v], "takes a map");
    assert_refused(&Op::Softmax, &[x], "takes a vector");
    assert_refused(&Op::PadChannels(PadChannels { before: 1, after: 1 }), &[v], "takes a map");
    assert_refused(&Op::Add, &[x, map(4, 10, 8)], "4x10x7 and 4x10x8");
    assert_refused(&Op::Add, &[x, x, v], "equal shapes");
    assert_refused(&Op::Concat, &[x, map(4, 9, 7)], "input 1 is 4x9x7");
    assert_refused(&Op::Concat, &[x, x, v], "input 2 is 4");
    // A vector is not a 1x1 map.
    assert_refused(&Op::Concat, &[v, map(4, 1, 1)], "input 1");
    assert_refused(&Op::Add, &[v, map(4, 1, 1)], "equal shapes");
}

#[test]
fn convolutions_that_do_not_fit_are_refused() {
    let x = map(4, 10, 7);
    let refused = |conv: Conv2d, part: &str| assert_refused(&Op::Conv2d(conv), &[x], part);
    refused(Conv2d { out_channels: 0, ..conv() }, "out_channels 0");
    refused(Conv2d { groups: 0, ..conv() }, "groups 0");
    refused(Conv2d { groups: 3, ..conv() }, "not multiples of 3 groups");
    refused(Conv2d { out_channels: 6, groups: 4, ..conv() }, "not multiples of 4 groups");
    for axis in 0..2 {
        let at = |one: usize, value: usize| {
            let mut both = [one; 2];
            both[axis] = value;
            both
        };
        refused(Conv2d { kernel: at(3, 0), ..conv() }, "kernel 0");
        refused(Conv2d { stride: at(1, 0), ..conv() }, "stride 0");
        refused(Conv2d { dilation: at(1, 0), ..conv() }, "dilation 0");
        refused(Conv2d { kernel: at(3, 11), ..conv() }, "kernel of 11");
        refused(Conv2d { kernel: at(3, usize::MAX), ..conv() }, "does not fit");
        refused(Conv2d { dilation: at(1, usize::MAX), ..conv() }, "does not fit");
        refused(Conv2d { padding: at(0, usize::MAX), ..conv() }, "does not fit");
        refused(Conv2d { padding: at(0, usize::MAX / 2 - 10), ..conv() }, "too large");
    }
    // One more than the padded extent.
    refused(Conv2d { kernel: [3, 8], ..conv() }, "kernel of 8");
    assert!(Op::Conv2d(Conv2d { kernel: [3, 7], ..conv() }).infer("n", &[x]).is_ok());
}

#[test]
fn attributes_out_of_range_are_refused() {
    let x = map(4, 10, 7);
    assert_refused(&linear(0), &[Shape::Vector(4)], "out_features is 0");
    for (eps, momentum) in [
        (0.0, 0.1),
        (-1e-5, 0.1),
        (f32::NAN, 0.1),
        (f32::INFINITY, 0.1),
        (1e-5, -0.1),
        (1e-5, 1.1),
        (1e-5, f32::NAN),
    ] {
        assert_refused(&Op::BatchNorm(BatchNorm { eps, momentum }), &[x], "eps");
    }
    for p in [1.0, -0.1, f32::NAN, f32::INFINITY] {
        assert_refused(&Op::Dropout { p }, &[x], "not in [0, 1)");
    }
    for bad in [
        Lrn { size: 0, ..lrn() },
        Lrn { size: 4, ..lrn() },
        Lrn { alpha: f32::NAN, ..lrn() },
        Lrn { beta: f32::INFINITY, ..lrn() },
        Lrn { k: 0.0, ..lrn() },
        Lrn { k: f32::NAN, ..lrn() },
    ] {
        assert_refused(&Op::Lrn(bad), &[x], "lrn takes");
    }
    for output in [[0, 1], [1, 0]] {
        assert_refused(&Op::AdaptiveAvgPool { output }, &[x], "cannot pool");
    }
    let refused = |p: Pool2d, part: &str| assert_refused(&Op::Pool2d(p), &[x], part);
    for rounding in [Rounding::Floor, Rounding::Ceil] {
        refused(Pool2d { kernel: [0, 2], rounding, ..pool(2, 2) }, "kernel 0");
        refused(Pool2d { stride: [2, 0], rounding, ..pool(2, 2) }, "stride 0");
        refused(Pool2d { padding: [2, 0], rounding, ..pool(2, 2) }, "padding 2 below the kernel");
        refused(Pool2d { kernel: [2, 20], rounding, ..pool(2, 2) }, "a window of 20 does not fit 7");
    }
}

#[test]
fn extents_of_zero_and_overflow_are_refused() {
    let half = 1usize << (usize::BITS / 2);
    let input = |shape| Op::Input { shape };
    for shape in [
        Shape::Vector(0),
        map(0, 1, 1),
        map(1, 0, 1),
        map(1, 1, 0),
        Shape::Vector(usize::MAX),
        Shape::Vector(isize::MAX as usize / 4 + 1),
        map(half, half, 1),
        map(half, half, half),
    ] {
        assert_refused(&input(shape), &[], "too large");
    }
    let largest = Shape::Vector(isize::MAX as usize / 4);
    assert!(input(largest).infer("n", &[]).is_ok());

    assert_refused(&Op::Concat, &[largest, largest], "too large");
    assert_refused(&Op::Concat, &[Shape::Vector(usize::MAX / 2 + 1); 2], "too many channels");
    let pad = |before, after| Op::PadChannels(PadChannels { before, after });
    assert_refused(&pad(usize::MAX, 1), &[map(1, 1, 1)], "too many channels");
    assert_refused(&pad(0, isize::MAX as usize), &[map(1, 1, 1)], "too large");
    assert_refused(&Op::AdaptiveAvgPool { output: [half, half] }, &[map(1, 1, 1)], "too large");

    // Results that would fit, of weights that would not.
    assert_refused(&linear(half), &[Shape::Vector(half)], "weight");
    assert_refused(&Op::Conv2d(Conv2d::new(half, 1)), &[map(half, 1, 1)], "weight");
    // Weights that fit, of operations that cannot be counted.
    assert_refused(&Op::Conv2d(Conv2d::new(1 << 20, 1)), &[map(1 << 20, 1 << 12, 1 << 11)], "weight");
}

/// Starts of windows, written down as the definition says.
fn windows(extent: usize, p: &Pool2d) -> usize {
    let (kernel, stride, padding) = (p.kernel[0], p.stride[0], p.padding[0]);
    let padded = extent + 2 * padding;
    let starts = (0..).map(|i| i * stride);
    match p.rounding {
        // All windows that fit.
        Rounding::Floor => starts.take_while(|start| start + kernel <= padded).count(),
        // As many more as it takes to reach the end, unless the last begins behind the map; when even the first does not
        // fit, it counts if it sticks out by less than a step.
        Rounding::Ceil if kernel >= padded + stride => 0,
        Rounding::Ceil => {
            let reaching = starts.take_while(|start| *start == 0 || start - stride + kernel < padded).count();
            reaching - usize::from((reaching - 1) * stride >= extent + padding)
        }
    }
}

#[test]
fn rounding_agrees_with_the_definition() {
    let mut ceil_differs = 0;
    for extent in 1..=20 {
        for kernel in 1..=8 {
            for stride in 1..=9 {
                for padding in 0..kernel {
                    let mut counts = [0; 2];
                    for (i, rounding) in [Rounding::Floor, Rounding::Ceil].into_iter().enumerate() {
                        let p = Pool2d { padding: [padding; 2], rounding, ..pool(kernel, stride) };
                        let expected = windows(extent, &p);
                        counts[i] = expected;
                        match Op::Pool2d(p.clone()).infer("n", &[map(1, extent, extent)]) {
                            Ok(shape) => assert_eq!(shape, map(1, expected, expected), "{extent} {p:?}"),
                            Err(e) => assert_eq!(expected, 0, "{extent} {p:?}: {e}"),
                        }
                    }
                    ceil_differs += usize::from(counts[0] != counts[1]);
                }
            }
        }
    }
    assert!(ceil_differs > 500, "only {ceil_differs} cases tell the two apart");
}

#[test]
fn every_window_rounded_up_holds_an_element() {
    for extent in 1..=12usize {
        for (kernel, stride, padding) in [(3, 2, 0), (3, 2, 1), (2, 3, 1), (5, 3, 0), (3, 1, 1), (2, 5, 0)] {
            let p = Pool2d { padding: [padding; 2], rounding: Rounding::Ceil, ..pool(kernel, stride) };
            let Ok(shape) = Op::Pool2d(p).infer("n", &[map(1, extent, extent)]) else { continue };
            for i in 0..shape.spatial()[0] {
                let (start, end) = (i * stride, i * stride + kernel);
                assert!(
                    start < extent + padding && end > padding,
                    "{extent} {kernel}/{stride} p{padding}: window {i}"
                );
            }
        }
    }
}

#[test]
fn slots_have_the_dims_of_pytorch() {
    let dims = |op: &Op, input: Shape| -> Vec<(&'static str, Vec<usize>)> {
        op.slots(&[input]).into_iter().map(|s| (s.name, s.dims)).collect()
    };
    let grouped = Op::Conv2d(Conv2d { groups: 2, kernel: [3, 5], ..conv() });
    assert_eq!(dims(&grouped, map(4, 9, 9)), [("weight", vec![8, 2, 3, 5]), ("bias", vec![8])]);
    let bare = Op::Conv2d(Conv2d { bias: false, ..conv() });
    assert_eq!(dims(&bare, map(4, 9, 9)), [("weight", vec![8, 4, 3, 3])]);
    assert_eq!(dims(&linear(3), Shape::Vector(7)), [("weight", vec![3, 7]), ("bias", vec![3])]);
    let names = ["weight", "bias", "running_mean", "running_var"];
    let bn = Op::BatchNorm(BatchNorm::default());
    assert_eq!(dims(&bn, map(4, 9, 9)), names.map(|n| (n, vec![4])));
    for op in [Op::Relu, Op::Flatten, Op::Pool2d(pool(2, 2)), Op::Lrn(lrn()), Op::Dropout { p: 0.5 }] {
        assert!(op.slots(&[map(4, 9, 9)]).is_empty(), "{op:?}");
    }
}

#[test]
fn windows_beyond_what_can_be_counted_are_refused() {
    let huge = 1 << 40;
    let conv = Conv2d { stride: [huge; 2], padding: [huge; 2], ..Conv2d::new(1, 1) };
    let pool =
        Pool2d { rounding: Rounding::Ceil, ..Pool2d::caffe(cofilter_graph::PoolKind::Max, 1 << 62, 1 << 62) };
    for op in [Op::Conv2d(conv), Op::Pool2d(pool)] {
        let text = op.infer("the/node", &[Shape::map(1, 8, 8)]).unwrap_err().to_string();
        assert!(
            text.contains("the/node") && (text.contains("too many") || text.contains("too large")),
            "{text}"
        );
    }
}
