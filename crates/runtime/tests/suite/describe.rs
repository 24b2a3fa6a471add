//! What a plan says about itself.

use crate::numbers::{model, options};
use cofilter_graph::{Conv2d, Graph, Pool2d, PoolKind, Shape};
use cofilter_runtime::Plan;

#[test]
fn a_description_names_steps_costs_and_memory() {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(1, 28, 28)).unwrap();
    let x = b.conv2d("conv1", x, Conv2d::new(20, 5)).unwrap();
    let x = b.relu("relu1", x).unwrap();
    let x = b.pool2d("pool1", x, Pool2d::caffe(PoolKind::Max, 2, 2)).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("ip1", x, 10).unwrap();
    let plan = Plan::compile(&model(b.finish(&[x]).unwrap(), 1), &options(4, 2)).unwrap();
    let text = plan.describe();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2 + 4 + 1, "{text}");
    assert!(
        lines[0].contains(&format!("cpu backend ({}), batch 4, 2 thread(s)", cofilter_runtime::cpu_tier()))
    );
    for (line, words) in [
        (lines[2], vec!["layout", "copy to planes", "1x28x28"]),
        (lines[3], vec!["conv1+relu1", "conv2d 5x5", "20x24x24", "288000"]),
        (lines[4], vec!["pool1", "max pool 2x2/2", "20x12x12"]),
        (lines[5], vec!["ip1", "linear", "28800"]),
        (lines[6], vec!["4 steps", "316800 MACs"]),
    ] {
        assert!(words.iter().all(|word| line.contains(word)), "{line}: {words:?}");
    }
    // As packed: whole blocks of outputs, or the depth in the lanes.
    let steps = plan.steps();
    let bytes = [0, 4 * 20 * 26, 0, 4 * 10 * 2881];
    for (step, bytes) in steps.iter().zip(bytes) {
        assert!((bytes..=4 * bytes).contains(&step.weight_bytes), "{step:?}: at least {bytes} bytes");
        assert!(text.contains(&step.weight_bytes.to_string()));
    }
    let memory = plan.memory();
    assert_eq!(memory.weight_bytes, steps.iter().map(|step| step.weight_bytes).sum::<usize>());
    assert!(text.contains(&format!("arena {}", memory.arena_bytes)));
    assert!(memory.arena_bytes >= 4 * 4 * 20 * (24 * 24 + 12 * 12) && memory.weight_bytes >= 2000 + 115_200);
}
