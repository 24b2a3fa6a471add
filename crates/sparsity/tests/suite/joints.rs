//! Values that meet: sums, concatenations, padded channels, groups.

use crate::build::{assert_same_outputs, drawn, edit, extents, kill_filters, kill_inputs};
use cofilter_graph::{Conv2d, Graph, Model, Op, Shape};
use cofilter_sparsity::compact;

/// Two convolutions of the input, joined by a sum, read by `head`.
fn sum() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 6, 6)).unwrap();
    let l = b.conv2d("left", x, Conv2d::new(5, 3)).unwrap();
    let r = b.conv2d("right", x, Conv2d::new(5, 3)).unwrap();
    let s = b.sum("sum", &[l, r]).unwrap();
    let s = b.relu("relu", s).unwrap();
    let y = b.conv2d("head", s, Conv2d { padding: [1, 1], ..Conv2d::new(3, 3) }).unwrap();
    drawn(b.finish(&[y]).unwrap(), 7)
}

#[test]
fn a_sum_drops_what_all_sides_drop() {
    let model = kill_filters(&kill_filters(&sum(), "left", &[0, 1, 2]), "right", &[1, 2, 4]);
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("sum", &model, &small);
    assert_eq!(
        (extents(&small, "left"), extents(&small, "right"), extents(&small, "head")),
        ([3, 2], [3, 2], [3, 3])
    );
}

#[test]
fn a_sum_nobody_reads_drops_both_sides() {
    let model = kill_inputs(&sum(), "head", &[3]);
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("sum", &model, &small);
    assert_eq!(
        (extents(&small, "left"), extents(&small, "right"), extents(&small, "head")),
        ([4, 2], [4, 2], [3, 4])
    );
}

#[test]
fn a_residual_block_keeps_what_the_shortcut_needs() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 6, 6)).unwrap();
    let stem = b.conv2d("stem", x, Conv2d::new(5, 3)).unwrap();
    let a = b.conv2d("a", stem, Conv2d { padding: [1, 1], ..Conv2d::new(4, 3) }).unwrap();
    let a = b.relu("relu", a).unwrap();
    let a = b.conv2d("b", a, Conv2d { padding: [1, 1], ..Conv2d::new(5, 3) }).unwrap();
    let s = b.sum("sum", &[stem, a]).unwrap();
    let y = b.conv2d("head", s, Conv2d::new(3, 3)).unwrap();
    let model = drawn(b.finish(&[y]).unwrap(), 8);
    // Branch and stem are zero at 0: gone. Only the branch at 1: stays. The stem alone at 2: stays.
    let model = kill_filters(&kill_filters(&model, "stem", &[0, 2]), "b", &[0, 1]);
    let model = kill_filters(&model, "a", &[3]);
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("residual", &model, &small);
    assert_eq!(
        (extents(&small, "stem"), extents(&small, "a"), extents(&small, "b")),
        ([4, 2], [3, 4], [4, 3])
    );
}

#[test]
fn a_concatenation_carries_each_part() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 6, 6)).unwrap();
    let p = b.conv2d("p", x, Conv2d::new(3, 3)).unwrap();
    let q = b.conv2d("q", x, Conv2d::new(4, 3)).unwrap();
    let c = b.concat("cat", &[p, q, p]).unwrap();
    let f = b.flatten("flat", c).unwrap();
    let y = b.linear("fc", f, 3).unwrap();
    let model = drawn(b.finish(&[y]).unwrap(), 9);
    let model = kill_filters(&kill_filters(&model, "p", &[2]), "q", &[0, 3]);
    // Channel 0 of p is read at its second place only: stays.
    let model = crate::build::edit(&model, "fc.weight", |i, v| if i[1] < 16 { 0.0 } else { v });
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("concat", &model, &small);
    assert_eq!(
        (extents(&small, "p"), extents(&small, "q"), extents(&small, "fc")),
        ([2, 2], [2, 2], [3, 6 * 16])
    );
}

#[test]
fn padded_channels_shrink_with_the_other_side() {
    // Option-A shortcut: 1 + 3 + 2 channels meet 6.
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 6, 6)).unwrap();
    let stem = b.conv2d("stem", x, Conv2d::new(3, 3)).unwrap();
    let pad = b.pad_channels("pad", stem, 1, 2).unwrap();
    let main = b.conv2d("main", stem, Conv2d { padding: [1, 1], ..Conv2d::new(6, 3) }).unwrap();
    let s = b.sum("sum", &[pad, main]).unwrap();
    let y = b.conv2d("head", s, Conv2d::new(3, 3)).unwrap();
    let model = drawn(b.finish(&[y]).unwrap(), 10);
    // 0 and 5: zero on both sides. 2: nobody reads it, but main reads channel 1 of the stem; so main drops it only
    // if the stem does, which is one class.
    let model = kill_filters(&model, "main", &[0, 5]);
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("pad", &model, &small);
    assert_eq!(
        (extents(&small, "stem"), extents(&small, "main"), extents(&small, "head")),
        ([3, 2], [4, 3], [3, 4])
    );
    let Op::PadChannels(pad) = small.graph().node(small.graph().find("pad").unwrap()).op() else { panic!() };
    assert_eq!((pad.before, pad.after), (0, 1));

    let model = kill_inputs(&kill_inputs(&model, "head", &[2]), "main", &[1]);
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("pad", &model, &small);
    assert_eq!(
        (extents(&small, "stem"), extents(&small, "main"), extents(&small, "head")),
        ([2, 2], [3, 2], [3, 3])
    );
}

/// stem (8) -> grouped (8, 2 groups) -> head (3).
fn grouped() -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 7, 7)).unwrap();
    let x = b.conv2d("stem", x, Conv2d::new(8, 3)).unwrap();
    let x = b.relu("relu1", x).unwrap();
    let x = b.conv2d("grouped", x, Conv2d { padding: [1, 1], groups: 2, ..Conv2d::new(8, 3) }).unwrap();
    let x = b.relu("relu2", x).unwrap();
    let x = b.conv2d("head", x, Conv2d::new(3, 3)).unwrap();
    drawn(b.finish(&[x]).unwrap(), 11)
}

#[test]
fn groups_shrink_together() {
    // Two and one zero inputs: one goes from each group. One and two zero filters: likewise.
    let model = kill_filters(&kill_filters(&grouped(), "stem", &[0, 3, 5]), "grouped", &[2, 4, 7]);
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("groups", &model, &small);
    assert_eq!(
        (extents(&small, "stem"), extents(&small, "grouped"), extents(&small, "head")),
        ([6, 2], [6, 3], [3, 6])
    );
}

#[test]
fn a_full_group_holds_the_others() {
    // Two zero inputs of the first group, none of the second; one zero filter of the second, none of the first.
    let model = kill_filters(&kill_filters(&grouped(), "stem", &[0, 2]), "grouped", &[5]);
    let (small, removals) = compact(&model).unwrap();
    assert!(removals.is_empty() && small == model);
}

#[test]
fn a_dead_group_keeps_as_many_as_the_others() {
    let model = kill_filters(&grouped(), "stem", &[0, 1, 2, 3, 6, 7]);
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("dead group", &model, &small);
    assert_eq!((extents(&small, "stem"), extents(&small, "grouped")), ([4, 2], [8, 2]));
}

#[test]
fn a_depthwise_convolution_stays() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 7, 7)).unwrap();
    let x = b.conv2d("stem", x, Conv2d::new(4, 3)).unwrap();
    let x = b.conv2d("depthwise", x, Conv2d { groups: 4, ..Conv2d::new(4, 3) }).unwrap();
    let x = b.conv2d("head", x, Conv2d::new(3, 1)).unwrap();
    let model =
        kill_filters(&kill_filters(&drawn(b.finish(&[x]).unwrap(), 12), "stem", &[1]), "depthwise", &[1]);
    let (small, _) = compact(&model).unwrap();
    assert_eq!(small, model);
}

/// A block with batch normalisation whose last convolution is zero leaves what the normalisation adds.
#[test]
fn a_residual_block_of_zeros_goes_with_all_its_layers() {
    let block = |with_norm: bool| {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::map(2, 6, 6)).unwrap();
        let stem = b.conv2d("stem", x, Conv2d { padding: [1, 1], ..Conv2d::new(5, 3) }).unwrap();
        let stem = b.relu("relu0", stem).unwrap();
        let conv = |bias| Conv2d { padding: [1, 1], bias, ..Conv2d::new(5, 3) };
        let a = b.conv2d("a", stem, conv(true)).unwrap();
        let a = b.relu("relu", a).unwrap();
        let mut a = b.conv2d("b", a, conv(!with_norm)).unwrap();
        if with_norm {
            a = b.batch_norm("bn", a, Default::default()).unwrap();
        }
        let s = b.sum("sum", &[a, stem]).unwrap();
        let s = b.relu("relu2", s).unwrap();
        let y = b.conv2d("head", s, Conv2d::new(3, 3)).unwrap();
        drawn(b.finish(&[y]).unwrap(), 8)
    };
    let plain = kill_filters(&block(false), "b", &[0, 1, 2, 3, 4]);
    let (small, removals) = compact(&plain).unwrap();
    assert_same_outputs("a block of zeros", &plain, &small);
    let names: Vec<&str> = small.graph().nodes().iter().map(|node| node.name()).collect();
    assert_eq!(names, ["data", "stem", "relu0", "relu2", "head"]);
    let gone: Vec<(&str, usize, usize)> =
        removals.iter().map(|r| (r.layer.as_str(), r.filters.len(), r.params_after)).collect();
    assert_eq!(gone, [("a", 5, 0), ("b", 5, 0)]);

    let normed =
        edit(&kill_filters(&block(true), "b", &[0, 1, 2, 3, 4]), "bn.bias", |i, _| 0.1 * i[0] as f32);
    let (small, removals) = compact(&normed).unwrap();
    assert_same_outputs("a block of constants", &normed, &small);
    let left = small.graph().find("sum").unwrap();
    assert!(matches!(small.graph().node(left).op(), Op::BatchNorm(_)) && removals.len() == 2);
    assert_eq!(compact(&small).unwrap(), (small, vec![]), "one call reaches the fixed point");
}

#[test]
fn a_sum_that_is_an_output_or_has_no_other_side_stays() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(2, 6, 6)).unwrap();
    let l = b.conv2d("left", x, Conv2d::new(5, 3)).unwrap();
    let r = b.conv2d("right", x, Conv2d::new(5, 3)).unwrap();
    let s = b.sum("sum", &[l, r]).unwrap();
    let model = kill_filters(&drawn(b.finish(&[s]).unwrap(), 7), "left", &[0, 1, 2, 3, 4]);
    let (small, _) = compact(&model).unwrap();
    assert_same_outputs("an output", &model, &small);
    assert!(small.graph().find("sum").is_ok());
}

/// Depth of a real network: the second convolution of every second block is zero.
#[test]
fn a_resnet_without_some_of_its_blocks_has_the_same_outputs() {
    for name in ["resnet20", "resnet20_projection"] {
        let network = cofilter_zoo::Network::by_name(name, &cofilter_zoo::Config::default()).unwrap();
        let mut model = network.model(5).unwrap();
        let blocks: Vec<String> = network
            .force_layers
            .iter()
            .filter(|layer| layer.ends_with("conv2"))
            .step_by(2)
            .cloned()
            .collect();
        for layer in &blocks {
            let all: Vec<usize> = (0..extents(&model, layer)[0]).collect();
            model = kill_filters(&model, layer, &all);
        }
        let (small, removals) = compact(&model).unwrap();
        assert_same_outputs(name, &model, &small);
        for layer in &blocks {
            assert!(small.graph().find(layer).is_err(), "{name}: {layer} is left");
            assert!(removals.iter().any(|r| r.layer == *layer && r.params_after == 0), "{name}: {layer}");
        }
        assert!(small.cost().macs() * 3 < model.cost().macs() * 2, "{name}");
    }
}
