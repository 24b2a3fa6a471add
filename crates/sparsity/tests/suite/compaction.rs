//! What is taken out, counted by hand.

use crate::build::{assert_same_outputs, drawn, edit, extents, kill_filters, kill_inputs};
use cofilter_graph::{BatchNorm, Conv2d, Graph, Model, Op, Pool2d, PoolKind, Shape};
use cofilter_sparsity::{Error, compact};

/// conv1 (6) -> relu -> pool -> conv2 (5) -> flatten -> fc (4).
fn chain() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 9, 9)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d { padding: [1, 1], ..Conv2d::new(6, 3) }).unwrap();
    let x = b.relu("relu1", x).unwrap();
    let x = b.pool2d("pool1", x, Pool2d::caffe(PoolKind::Max, 3, 2)).unwrap();
    let x = b.dropout("drop", x, 0.5).unwrap();
    let x = b.conv2d("conv2", x, Conv2d { padding: [1, 1], ..Conv2d::new(5, 3) }).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 4).unwrap();
    drawn(b.finish(&[x]).unwrap(), 1)
}

#[test]
fn a_dense_network_stays_itself() {
    let model = chain();
    let (same, removals) = compact(&model).unwrap();
    assert_eq!(same, model);
    assert!(removals.is_empty());
}

#[test]
fn filters_of_zeros_go_with_what_reads_them() {
    let model = kill_filters(&kill_filters(&chain(), "conv1", &[1, 4]), "conv2", &[0]);
    let (small, removals) = compact(&model).unwrap();
    assert_same_outputs("chain", &model, &small);
    assert_eq!(
        (extents(&small, "conv1"), extents(&small, "conv2"), extents(&small, "fc")),
        ([4, 2], [4, 4], [4, 64])
    );
    let [conv1, conv2, fc] = removals.as_slice() else { panic!("{removals:?}") };
    assert_eq!(
        (conv1.layer.as_str(), conv1.filters.as_slice(), conv1.inputs.as_slice()),
        ("conv1", &[1, 4][..], &[][..])
    );
    assert_eq!((conv1.filters_before, conv1.inputs_before, conv1.params_before), (6, 2, 6 * 18 + 6));
    assert_eq!(conv1.params_after, 4 * 18 + 4);
    assert_eq!((conv2.filters.as_slice(), conv2.inputs.as_slice()), (&[0][..], &[1, 4][..]));
    assert_eq!((fc.inputs_before, fc.inputs.clone()), (80, (0..16).collect::<Vec<_>>()));
    let difference = |r: &cofilter_sparsity::Removal| r.params_before - r.params_after;
    assert_eq!(removals.iter().map(difference).sum::<usize>(), model.cost().params() - small.cost().params());
}

#[test]
fn a_filter_nobody_reads_goes() {
    // Column 2 of conv2 is zero; then fc ignores channel 3 of conv2 altogether.
    let model = kill_inputs(&chain(), "conv2", &[2]);
    let model = edit(&model, "fc.weight", |i, v| if i[1] / 16 == 3 { 0.0 } else { v });
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("unread", &model, &small);
    assert_eq!(
        (extents(&small, "conv1"), extents(&small, "conv2"), extents(&small, "fc")),
        ([5, 2], [4, 5], [4, 64])
    );
}

#[test]
fn removal_runs_backwards_to_the_fixed_point() {
    // Only filter 0 of conv2 reads channels 3..6 of conv1, and nobody reads filter 0.
    let model = edit(&chain(), "conv2.weight", |i, v| if i[0] != 0 && i[1] >= 3 { 0.0 } else { v });
    let model = edit(&model, "fc.weight", |i, v| if i[1] < 16 { 0.0 } else { v });
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("backwards", &model, &small);
    assert_eq!((extents(&small, "conv1"), extents(&small, "conv2")), ([3, 2], [4, 3]));
    let (again, removals) = compact(&small).unwrap();
    assert!(removals.is_empty() && again == small);
}

#[test]
fn removal_runs_forwards_to_the_fixed_point() {
    // conv1 channel 0 is zero; conv2 filter 2 reads nothing else and has no bias, so it is zero too.
    let model = kill_filters(&chain(), "conv1", &[0]);
    let model = edit(&model, "conv2.weight", |i, v| if i[0] == 2 && i[1] != 0 { 0.0 } else { v });
    let model = edit(&model, "conv2.bias", |i, v| if i[0] == 2 { 0.0 } else { v });
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("forwards", &model, &small);
    assert_eq!(
        (extents(&small, "conv1"), extents(&small, "conv2"), extents(&small, "fc")),
        ([5, 2], [4, 5], [4, 64])
    );
}

#[test]
fn one_channel_always_stays() {
    let all: Vec<usize> = (0..6).collect();
    let model = kill_filters(&chain(), "conv1", &all);
    let (small, removals) = compact(&model).unwrap();
    assert_eq!(extents(&small, "conv1"), [1, 2]);
    assert!(!removals.is_empty());
    // The outputs do not depend on the image any more; they are what they were.
    let images = crate::build::images(&model, 3, 1);
    let run = |m: &Model| cofilter_runtime::reference::run(m, &images).unwrap();
    for (a, b) in run(&model).iter().zip(run(&small)) {
        assert!((a - b).abs() < 1e-6 && a.abs() > 1e-3);
    }
    let nobody = kill_inputs(&chain(), "conv2", &all);
    let (small, _) = compact(&nobody).unwrap();
    assert_eq!((extents(&small, "conv1"), extents(&small, "conv2")[1]), ([1, 2], 1));
}

#[test]
fn outputs_and_inputs_keep_their_channels() {
    let model = kill_filters(&chain(), "fc", &[1, 2]);
    let model = kill_inputs(&model, "conv1", &[0]);
    let (small, removals) = compact(&model).unwrap();
    assert!(removals.is_empty() && small == model);
}

#[test]
fn a_value_with_two_readers_needs_the_consent_of_both() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 6, 6)).unwrap();
    let stem = b.conv2d("stem", x, Conv2d::new(6, 3)).unwrap();
    let left = b.conv2d("left", stem, Conv2d::new(3, 1)).unwrap();
    let right = b.conv2d("right", stem, Conv2d::new(3, 1)).unwrap();
    let y = b.sum("sum", &[left, right]).unwrap();
    let model = drawn(b.finish(&[y]).unwrap(), 2);
    let model = kill_inputs(&kill_inputs(&model, "left", &[0, 1, 2]), "right", &[2, 3]);
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("two readers", &model, &small);
    assert_eq!(
        (extents(&small, "stem"), extents(&small, "left"), extents(&small, "right")),
        ([5, 2], [3, 5], [3, 5])
    );
}

#[test]
fn an_auxiliary_output_reads_too() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 6, 6)).unwrap();
    let a = b.conv2d("a", x, Conv2d::new(4, 3)).unwrap();
    let r = b.relu("r", a).unwrap();
    let y = b.conv2d("y", r, Conv2d::new(3, 1)).unwrap();
    let graph = b.finish(&[y, r]).unwrap();
    let model = kill_inputs(&drawn(graph, 2), "y", &[1, 2]);
    assert_eq!(compact(&model).unwrap().0, model);
}

#[test]
fn batch_normalisation_goes_along_where_it_gives_zero() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 6, 6)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d { bias: false, ..Conv2d::new(6, 3) }).unwrap();
    let x = b.batch_norm("bn", x, BatchNorm::default()).unwrap();
    let x = b.relu("relu", x).unwrap();
    let x = b.conv2d("conv2", x, Conv2d { padding: [1, 1], ..Conv2d::new(3, 3) }).unwrap();
    let mut model = drawn(b.finish(&[x]).unwrap(), 3);
    for (slot, at) in [("weight", 0.7), ("bias", 0.3), ("running_mean", -0.2), ("running_var", 1.5)] {
        model = edit(&model, &format!("bn.{slot}"), |i, _| at + 0.1 * i[0] as f32);
    }
    let set = |model: &Model, slot: &str, channel: usize, value: f32| {
        edit(model, &format!("bn.{slot}"), |i, v| if i[0] == channel { value } else { v })
    };
    // 0: filter zero, but mean and shift make a positive constant, and conv2 is padded: stays.
    // 1: filter zero, mean and shift zero. 2: scale and shift zero. 3: filter zero, constant negative, cut by ReLU.
    model = kill_filters(&model, "conv1", &[0, 1, 3]);
    model = set(&set(&model, "bias", 1, 0.0), "running_mean", 1, 0.0);
    model = set(&set(&model, "bias", 2, 0.0), "weight", 2, 0.0);
    model = set(&set(&model, "bias", 3, -1.0), "running_mean", 3, 0.0);
    let (small, removals) = compact(&model).unwrap();
    assert_same_outputs("batch norm", &model, &small);
    assert_eq!((extents(&small, "conv1"), extents(&small, "conv2")), ([3, 2], [3, 3]));
    assert_eq!(removals[0].filters, [1, 2, 3]);
    let bn = small.tensors(small.graph().find("bn").unwrap());
    assert!(bn.iter().all(|a| a.dims() == [3]));
    assert_eq!(bn[3].data(), [1.5, 1.9, 2.0]);
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let model = edit(&chain(), "conv2.weight", |i, v| if i == [1, 2, 0, 1] { f32::NAN } else { v });
    let error = compact(&model).unwrap_err();
    assert!(
        matches!(&error, Error::Graph(cofilter_graph::Error::NotFinite { tensor, .. }) if tensor == "conv2.weight")
    );
}

#[test]
fn other_ops_are_carried_over() {
    let model = kill_filters(&chain(), "conv1", &[5]);
    let (small, _) = compact(&model).unwrap();
    let ops = |m: &Model| {
        m.graph().nodes().iter().map(|n| (n.name().to_owned(), n.op().kind())).collect::<Vec<_>>()
    };
    assert_eq!(ops(&model), ops(&small));
    let pool = small.graph().node(small.graph().find("pool1").unwrap());
    assert_eq!(pool.op(), &Op::Pool2d(Pool2d::caffe(PoolKind::Max, 3, 2)));
}
