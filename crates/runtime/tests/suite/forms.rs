//! The ways of computing a layer: all of them agree with the oracle, and a table of costs decides.

use crate::numbers::{images, model, options, relative_error, run, same_bits};
use cofilter_graph::{Array, Conv2d, Graph, Model, Shape};
use cofilter_runtime::{CostTable, Options, Plan, Storage, reference};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Plain, low-rank, separable, grouped low-rank and depthwise convolutions.
fn net() -> Model {
    let mut b = Graph::builder();
    let conv = |out, kernel: [usize; 2], groups| Conv2d {
        kernel,
        padding: [kernel[0] / 2, kernel[1] / 2],
        groups,
        ..Conv2d::new(out, 1)
    };
    let x = b.input("data", Shape::map(3, 14, 13)).unwrap();
    let x = b.conv2d("stem", x, conv(24, [3, 3], 1)).unwrap();
    let x = b.relu("relu", x).unwrap();
    let x = b.conv2d("plain", x, conv(36, [3, 3], 1)).unwrap();
    let x = b.relu("relu1", x).unwrap();
    let x = b.conv2d("basis", x, conv(7, [3, 3], 1)).unwrap();
    let x = b.conv2d("combination", x, conv(36, [1, 1], 1)).unwrap();
    let x = b.relu("relu2", x).unwrap();
    let y = b.conv2d("grouped_basis", x, conv(20, [3, 3], 2)).unwrap();
    let y = b.conv2d("grouped_combination", y, conv(36, [1, 1], 2)).unwrap();
    let x = b.sum("add", &[y, x]).unwrap();
    let x = b.conv2d("vertical", x, Conv2d { bias: false, ..conv(10, [5, 1], 1) }).unwrap();
    let x = b.conv2d("horizontal", x, conv(32, [1, 5], 1)).unwrap();
    let x = b.relu("relu3", x).unwrap();
    let x = b.conv2d("depthwise", x, conv(32, [3, 3], 32)).unwrap();
    model(b.finish(&[x]).unwrap(), 5)
}

/// A table by which every layer of the network takes the `pick`-th of its forms.
fn table(all: &CostTable, pick: usize) -> (CostTable, usize) {
    let mut most = 0;
    let mut table = all.clone();
    for forms in table.layers.values_mut() {
        most = most.max(forms.len());
        let wanted = pick % forms.len();
        for (i, us) in forms.values_mut().enumerate() {
            *us = if i == wanted { 1.0 } else { 2.0 };
        }
    }
    (table, most)
}

/// Runs a network in every form of its layers, holds all to the oracle, and gives what the plans say of themselves.
fn every_form(model: &Model, batch: usize) -> (CostTable, String) {
    let options = Options { tolerance: 1e-3, ..options(batch, 2) };
    let mut costs = CostTable::new();
    costs.measure(model, &options, 1).unwrap();
    let images = images(batch * model.graph().input_shape().elements(), 3);
    let expected = reference::run(model, &images).unwrap();
    let mut descriptions = std::collections::BTreeSet::new();
    for pick in 0..table(&costs, 0).1 {
        let options = Options { costs: Some(Arc::new(table(&costs, pick).0)), ..options.clone() };
        let found = run(model, &options, &images);
        let error = relative_error(&found, &expected);
        assert!(error < 2e-5, "form {pick}: {error:e}");
        for threads in [1, 3, 7] {
            let plan = Plan::compile(model, &Options { threads, ..options.clone() }).unwrap();
            descriptions.insert(plan.describe());
        }
        let plan = Plan::compile(model, &options).unwrap();
        descriptions.insert(plan.describe());
    }
    (costs, descriptions.into_iter().collect())
}

#[test]
fn every_form_of_every_layer_equals_the_oracle() {
    let (costs, all) = every_form(&net(), 3);
    // Three Winograd-fit layers, three pairs (one of them a Winograd-fit one in groups).
    let forms: BTreeMap<&str, usize> = costs.layers.iter().map(|(k, v)| (k.as_str(), v.len())).collect();
    assert!(forms.values().any(|n| *n == 3) && forms.values().any(|n| *n >= 6), "{forms:?}");
    for word in ["winograd 2x2", "winograd 4x4", "together", "factors multiplied", "depthwise"] {
        assert!(all.contains(word), "no plan used {word}:\n{all}");
    }
    assert!(!all.contains("sparse") && !all.contains(" of weights"), "nothing is zero:\n{all}");
}

/// The network with weights of zero wherever `zero` says so, of a layer's node and a place in its weight.
fn with_zeros(model: &Model, zero: impl Fn(&str, usize) -> bool) -> Model {
    let params = model.params().map(|id, slot, array| {
        let data = array.data().iter().enumerate();
        let kept = |(at, w): (usize, &f32)| {
            if slot == 0 && zero(model.graph().node(id).name(), at) { 0.0 } else { *w }
        };
        Array::new(array.dims().to_vec(), data.map(kept).collect::<Vec<f32>>())
    });
    model.with_params(params).unwrap()
}

#[test]
fn every_form_of_a_pruned_layer_equals_the_oracle() {
    // Two thirds of the weights, in no order.
    let pruned = with_zeros(&net(), |_, at| ((at * 2_654_435_761) >> 16) % 3 != 0);
    for batch in [1, 3] {
        let (costs, all) = every_form(&pruned, batch);
        for word in ["sparse", "direct + sparse", "winograd 4x4 + sparse"] {
            let times = |forms: &BTreeMap<String, f64>| forms.contains_key(word);
            assert!(costs.layers.values().any(times), "{word}: {costs:?}");
        }
        assert!(all.contains("conv2d 3x3, sparse, 33 % of weights"), "{all}");
        assert!(all.contains("conv2d 1x1, sparse, "), "{all}");
        assert!(all.contains("conv2d 3x3, 2 groups, sparse, 33 % of weights"), "{all}");
    }
    // All of them, and whole columns.
    for zero in [|_: &str, _| true, |name: &str, at| name == "plain" && at % 9 < 6] {
        every_form(&with_zeros(&net(), zero), 2);
    }
}

/// What an estimate takes for a layer with so many of its weights: the kernels' times on two threads were the other way round beyond these.
#[test]
fn estimates_leave_zeros_out_where_that_is_faster() {
    let layer = |inputs: usize, outputs: usize, left: usize| {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::Vector(inputs)).unwrap();
        let x = b.linear("layer", x, outputs).unwrap();
        with_zeros(&model(b.finish(&[x]).unwrap(), 1), |_, at| ((at * 2_654_435_761) >> 16) % 100 >= left)
    };
    for (inputs, outputs, left, batch, sparse) in [
        (800, 500, 5, 1, true),
        (800, 500, 50, 1, false),
        (800, 500, 50, 7, false),
        (800, 500, 5, 32, true),
        (800, 500, 50, 32, false),
        (2048, 1024, 10, 1, true),
        (2048, 1024, 65, 1, false),
        (500, 10, 10, 64, false),
    ] {
        let plan = Plan::compile(&layer(inputs, outputs, left), &options(batch, 2)).unwrap();
        let found = plan.describe().contains("sparse");
        assert_eq!(found, sparse, "{inputs} > {outputs}, {left} %, batch {batch}");
    }
    // Too deep for the numbers of its features.
    let plan = Plan::compile(&layer(65_536, 2, 5), &options(1, 1)).unwrap();
    assert!(!plan.describe().contains("sparse"));
}

/// Behind a map with a border, behind another layer, as factors.
#[test]
fn every_form_of_a_pruned_fully_connected_layer_equals_the_oracle() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 7, 5)).unwrap();
    let x = b.conv2d("conv", x, Conv2d { padding: [1, 1], ..Conv2d::new(20, 3) }).unwrap();
    let y = b.conv2d("again", x, Conv2d { padding: [1, 1], ..Conv2d::new(20, 3) }).unwrap();
    let x = b.sum("add", &[x, y]).unwrap();
    let x = b.flatten("flatten", x).unwrap();
    let x = b.linear("wide", x, 70).unwrap();
    let x = b.relu("relu", x).unwrap();
    let x = b.linear("basis", x, 33).unwrap();
    let x = b.linear("combination", x, 50).unwrap();
    let x = b.relu("relu2", x).unwrap();
    let x = b.linear("last", x, 10).unwrap();
    let dense = model(b.finish(&[x]).unwrap(), 7);
    let pruned = with_zeros(&dense, |_, at| ((at * 2_654_435_761) >> 16) % 5 != 0);
    for batch in [1, 2, 3, 16, 35] {
        let (costs, all) = every_form(&pruned, batch);
        for word in ["sparse", "direct + sparse", "sparse + direct", "sparse + sparse"] {
            let linear = |(layer, forms): (&String, &BTreeMap<String, f64>)| {
                layer.starts_with("linear") && forms.contains_key(word)
            };
            assert!(costs.layers.iter().any(linear), "{word}: {costs:?}");
        }
        assert!(all.contains("linear, sparse, 20 % of weights"), "{all}");
    }
    // Weights of two bytes are for the dense form.
    let images = images(3 * pruned.graph().input_shape().elements(), 9);
    let half = Options { linear_weights: Storage::F16, ..options(3, 2) };
    let expected = reference::run(&pruned, &images).unwrap();
    assert!(relative_error(&run(&pruned, &half, &images), &expected) < 1e-3);
    let (costs, _) = every_form(&dense, 2);
    assert!(!costs.layers.values().any(|forms| forms.contains_key("sparse")), "nothing is zero: {costs:?}");
    every_form(&with_zeros(&dense, |_, _| true), 2);
}

#[test]
fn a_table_tells_layers_of_other_densities_apart() {
    let pruned = |of: usize| with_zeros(&net(), |_, at| ((at * 2_654_435_761) >> 16) % of != 0);
    let options = options(1, 1);
    let mut costs = CostTable::new();
    let mut counts = vec![];
    for model in [net(), pruned(3), pruned(4), pruned(3)] {
        costs.measure(&model, &options, 1).unwrap();
        counts.push(costs.layers.len());
    }
    assert!(counts[0] < counts[1] && counts[1] < counts[2] && counts[2] == counts[3], "{counts:?}");
    // Each layer takes the fastest of its forms.
    let model = pruned(3);
    let options = Options { costs: Some(Arc::new(costs)), ..options };
    let choices = CostTable::choices(&model, &options).unwrap();
    assert!(
        choices.iter().any(|c| c.nodes == "plain+relu1" && c.layer.contains("density 33%")),
        "{choices:?}"
    );
    for choice in &choices {
        assert!(choice.times_us.values().all(|us| *us >= choice.times_us[&choice.form]), "{choice:?}");
    }
    assert_eq!(CostTable::choices(&model, &Options { costs: None, ..options }).unwrap(), []);
}

#[test]
fn pairs_are_multiplied_where_one_convolution_is_the_same() {
    let conv = |out: usize, kernel, stride, padding, groups, bias| Conv2d {
        kernel,
        stride,
        padding,
        groups,
        bias,
        ..Conv2d::new(out, 1)
    };
    let dilated = |conv: Conv2d, dilation| Conv2d { dilation, ..conv };
    let column = |bias| conv(12, [5, 1], [2, 1], [2, 0], 2, bias);
    let cases = [
        // A vertical and a horizontal filter, strided, dilated, in groups.
        (column(false), conv(20, [1, 3], [1, 2], [0, 1], 2, true), 2),
        (conv(9, [3, 1], [1, 1], [1, 0], 1, false), conv(20, [1, 3], [1, 1], [0, 1], 1, true), 4),
        (
            dilated(conv(9, [3, 1], [1, 1], [2, 0], 1, false), [2, 1]),
            conv(20, [1, 2], [1, 1], [0, 0], 1, true),
            2,
        ),
        // A bias in between may be read by every tap, but not where there are zeros beside the map.
        (column(true), conv(20, [1, 3], [1, 2], [0, 0], 2, false), 2),
        (column(true), conv(20, [1, 3], [1, 2], [0, 1], 2, true), 1),
        // Groups of the one are groups of the other one, or parts of them.
        (conv(12, [3, 3], [1, 1], [1, 1], 4, true), conv(24, [1, 1], [1, 1], [0, 0], 2, true), 2),
        (conv(12, [3, 3], [2, 1], [1, 1], 2, true), conv(24, [1, 1], [1, 1], [0, 0], 4, true), 2),
        (conv(12, [3, 3], [1, 1], [1, 1], 3, true), conv(24, [1, 1], [1, 1], [0, 0], 1, true), 4),
        (conv(12, [3, 3], [1, 1], [1, 1], 3, true), conv(24, [1, 1], [1, 1], [0, 0], 2, true), 1),
        // Channel by channel both: so is the one.
        (conv(12, [3, 1], [1, 1], [1, 0], 12, false), conv(12, [1, 3], [1, 1], [0, 1], 12, true), 2),
        // More than eight times the work of both.
        (conv(1, [9, 1], [1, 1], [4, 0], 1, false), conv(20, [1, 9], [1, 1], [0, 4], 1, true), 1),
        // Both look sideways.
        (conv(9, [1, 3], [1, 1], [0, 1], 1, false), conv(20, [1, 3], [1, 1], [0, 1], 1, true), 1),
    ];
    // Behind another layer, on planar images, on blocked ones.
    let sources = [(true, 12), (false, 12), (false, 24)];
    for ((stem, channels), (first, second, ways)) in
        cases.into_iter().flat_map(|case| sources.map(|source| (source, case.clone())))
    {
        let mut b = Graph::builder();
        let x = b.input("data", Shape::map(channels, 11, 13)).unwrap();
        let x =
            if stem { b.conv2d("stem", x, conv(12, [1, 1], [1, 1], [0, 0], 1, true)).unwrap() } else { x };
        let x = if stem { b.relu("relu0", x).unwrap() } else { x };
        let what = format!("stem {stem}, {channels} channels, {first:?}, {second:?}");
        let y = b.conv2d("first", x, first).unwrap();
        let y = b.conv2d("second", y, second).unwrap();
        let y = b.relu("relu", y).unwrap();
        let model = model(b.finish(&[y]).unwrap(), 9);
        let options = Options { tolerance: 1e-3, ..options(2, 2) };
        let mut costs = CostTable::new();
        costs.measure(&model, &options, 1).unwrap();
        let images = images(2 * model.graph().input_shape().elements(), 4);
        let expected = reference::run(&model, &images).unwrap();
        let mut multiplied = 0;
        for pick in 0..table(&costs, 0).1 {
            let options = Options { costs: Some(Arc::new(table(&costs, pick).0)), ..options.clone() };
            let error = relative_error(&run(&model, &options, &images), &expected);
            assert!(error < 2e-5, "{what}, form {pick}: {error:e}");
            let text = Plan::compile(&model, &options).unwrap().describe();
            multiplied += usize::from(text.contains("factors multiplied"));
        }
        // Winograd's method does not read images.
        let ways = if stem || ways == 1 { ways } else { 2 };
        assert_eq!(multiplied, ways - 1, "{what}: {:?}", costs.layers);
    }
}

#[test]
fn a_table_without_a_form_gets_it() {
    let model = net();
    let options = Options { tolerance: 1e-3, ..options(1, 1) };
    let mut costs = CostTable::new();
    costs.measure(&model, &options, 1).unwrap();
    let mut old = costs.clone();
    for forms in old.layers.values_mut() {
        forms.retain(|form, _| !form.contains("multiplied"));
    }
    assert_ne!(old.layers, costs.layers);
    old.measure(&model, &options, 1).unwrap();
    let names = |table: &CostTable| -> Vec<(String, Vec<String>)> {
        table.layers.iter().map(|(layer, forms)| (layer.clone(), forms.keys().cloned().collect())).collect()
    };
    assert_eq!(names(&old), names(&costs));
}

#[test]
fn without_tolerance_there_is_no_winograd() {
    let model = net();
    let options = Options { tolerance: 0.0, ..options(1, 1) };
    let mut costs = CostTable::new();
    costs.measure(&model, &options, 1).unwrap();
    assert!(costs.layers.values().flat_map(BTreeMap::keys).all(|form| !form.contains("winograd")));
    assert!(!Plan::compile(&model, &options).unwrap().describe().contains("winograd"));
}

#[test]
fn estimated_plans_give_the_same_bits_for_every_number_of_threads() {
    let model = net();
    let images = images(2 * model.graph().input_shape().elements(), 8);
    let alone = run(&model, &options(2, 1), &images);
    for threads in [2, 3, 7] {
        assert!(same_bits(&alone, &run(&model, &options(2, threads), &images)), "{threads} threads");
    }
}

#[test]
fn a_table_survives_its_file_and_others_are_refused() {
    let folder = std::env::temp_dir().join(format!("cofilter-costs-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("costs.json");
    let mut costs = CostTable::new();
    costs.measure(&net(), &options(1, 1), 1).unwrap();
    costs.save(&path).unwrap();
    assert_eq!(CostTable::load(&path).unwrap(), costs);
    // What is known is not measured again.
    let before = costs.clone();
    costs.measure(&net(), &options(1, 1), 1).unwrap();
    assert_eq!(costs, before);
    let other = CostTable { tier: "abacus".into(), ..costs.clone() };
    other.save(&path).unwrap();
    let message = CostTable::load(&path).unwrap_err().to_string();
    assert!(message.contains("costs.json") && message.contains("found `abacus`"), "{message}");
    std::fs::write(&path, "{").unwrap();
    assert!(CostTable::load(&path).unwrap_err().to_string().contains("costs.json"));
    assert!(CostTable::load(&folder.join("missing")).unwrap_err().to_string().contains("missing"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_depthwise_convolution_stays_one() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 8, 8)).unwrap();
    let x = b.conv2d("stem", x, Conv2d::new(32, 1)).unwrap();
    let x = b.relu("relu", x).unwrap();
    let x = b.conv2d("depthwise", x, Conv2d { groups: 32, padding: [1, 1], ..Conv2d::new(32, 3) }).unwrap();
    let x = b.conv2d("pointwise", x, Conv2d::new(16, 1)).unwrap();
    let model = model(b.finish(&[x]).unwrap(), 3);
    let mut costs = CostTable::new();
    costs.measure(&model, &options(1, 2), 1).unwrap();
    for pick in 0..table(&costs, 0).1 {
        let options = Options { costs: Some(Arc::new(table(&costs, pick).0)), ..options(1, 2) };
        let text = Plan::compile(&model, &options).unwrap().describe();
        assert!(text.contains("depthwise") && !text.contains("together"), "{text}");
    }
    let text = Plan::compile(&model, &options(1, 2)).unwrap().describe();
    assert!(text.contains(", depthwise"), "{text}");
}

/// Two fully connected factors before a convolution's result, of this rank.
fn factored(rank: usize) -> Model {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 8, 8)).unwrap();
    let x = b.conv2d("conv", x, Conv2d { padding: [1, 1], ..Conv2d::new(20, 3) }).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("basis", x, rank).unwrap();
    let x = b.linear("combination", x, 96).unwrap();
    let x = b.relu("relu", x).unwrap();
    let x = b.linear("classes", x, 10).unwrap();
    model(b.finish(&[x]).unwrap(), 7)
}

#[test]
fn fully_connected_factors_are_multiplied_only_where_that_may_pay() {
    for (rank, forms) in [(8, 1), (90, 2)] {
        let model = factored(rank);
        let images = images(3 * model.graph().input_shape().elements(), 3);
        let expected = reference::run(&model, &images).unwrap();
        let mut costs = CostTable::new();
        costs.measure(&model, &options(3, 2), 1).unwrap();
        let known = costs.layers.iter().find(|(layer, _)| layer.contains(&format!("-> {rank}")));
        assert_eq!(known.map_or(1, |(_, forms)| forms.len()), forms, "{:?}", costs.layers);
        for pick in 0..forms {
            let options = Options { costs: Some(Arc::new(table(&costs, pick).0)), ..options(3, 2) };
            let plan = Plan::compile(&model, &options).unwrap();
            let multiplied = plan.describe().contains("factors multiplied");
            assert_eq!(multiplied, forms == 2 && pick == 1, "{}", plan.describe());
            let error = relative_error(&run(&model, &options, &images), &expected);
            assert!(error < 2e-5, "rank {rank}, form {pick}: {error:e}");
        }
    }
}

#[test]
fn kept_in_half_of_the_bytes_weights_change_the_result_a_little() {
    let model = factored(24);
    let images = images(3 * model.graph().input_shape().elements(), 3);
    let expected = reference::run(&model, &images).unwrap();
    let bytes = |linear_weights| {
        let plan = Plan::compile(&model, &Options { linear_weights, ..options(3, 1) }).unwrap();
        plan.steps().iter().filter(|s| s.algorithm.contains("linear")).map(|s| s.weight_bytes).sum::<usize>()
    };
    let full = bytes(Storage::F32);
    for (storage, word, bound) in [(Storage::Bf16, "linear, bf16", 2e-2), (Storage::F16, "linear, f16", 2e-3)]
    {
        let options = Options { linear_weights: storage, ..options(3, 2) };
        let error = relative_error(&run(&model, &options, &images), &expected);
        assert!((1e-6..bound).contains(&error), "{storage:?}: {error:e}");
        assert!(Plan::compile(&model, &options).unwrap().describe().contains(word));
        assert!(bytes(storage) < full * 6 / 10, "{storage:?}: {} of {full} bytes", bytes(storage));
    }
}
