//! Networks drawn at random: whatever is merged, placed and reused, the oracle's result comes out.

use crate::numbers::{self, Draws, images, model, options, relative_error, same_bits};
use cofilter_graph::{
    BatchNorm, Conv2d, Graph, GraphBuilder, Lrn, LrnRegion, NodeId, Pool2d, PoolKind, Rounding, Shape,
};
use cofilter_runtime::{Plan, reference};

/// A network of `len` nodes, each on values drawn among the last few, so that some are read often and late.
fn draw(seed: u64, len: usize) -> Graph {
    let mut draws = Draws::new(seed);
    let mut b = Graph::builder();
    let size = [5 + draws.below(5), 5 + draws.below(5)];
    let input = b.input("data", Shape::map(1 + draws.below(4), size[0], size[1])).unwrap();
    let mut maps = vec![input];
    for i in 0..len {
        let recent = maps.len().min(4);
        let x = maps[maps.len() - 1 - draws.below(recent)];
        let name = format!("n{i}");
        maps.push(node(&mut b, &mut draws, &name, x, &maps));
    }
    let last = *maps.last().unwrap();
    let x = b.flatten("flat", last).unwrap();
    let x = if draws.one_in(2) { b.relu("flat_relu", x).unwrap() } else { x };
    let x = b.linear("fc", x, 7).unwrap();
    let x = if draws.one_in(2) { b.relu("fc_relu", x).unwrap() } else { x };
    let x = if draws.one_in(3) { b.softmax("prob", x).unwrap() } else { x };
    let auxiliary = maps[maps.len() / 2];
    if draws.one_in(3) { b.finish(&[x, auxiliary]).unwrap() } else { b.finish(&[x]).unwrap() }
}

fn node(b: &mut GraphBuilder, draws: &mut Draws, name: &str, x: NodeId, maps: &[NodeId]) -> NodeId {
    let shape = b.shape(x);
    let like = |b: &GraphBuilder, m: &&NodeId| b.shape(**m).spatial() == shape.spatial();
    let same = |b: &GraphBuilder, m: &&NodeId| b.shape(**m) == shape;
    let added = match draws.below(12) {
        0..=2 => b.conv2d(name, x, conv(draws, shape)),
        3 | 4 => b.relu(name, x),
        5 => b.batch_norm(name, x, BatchNorm::default()),
        6 => b.pool2d(name, x, pool(draws)),
        7 => {
            let region = if draws.one_in(2) { LrnRegion::AcrossChannels } else { LrnRegion::WithinChannel };
            b.lrn(name, x, Lrn { region, size: 3, alpha: 0.5, beta: 0.75, k: 1.5 })
        }
        8 => {
            let conv = Conv2d { padding: [1, 1], ..Conv2d::new(shape.channels(), 3) };
            let c = b.conv2d(&format!("{name}_conv"), x, conv).unwrap();
            b.sum(name, &[c, x])
        }
        9 => {
            let others: Vec<NodeId> = maps.iter().filter(|m| same(b, m)).copied().take(3).collect();
            // The same value twice where there is no other.
            b.sum(name, &[vec![x], others].concat())
        }
        10 => {
            let others: Vec<NodeId> = maps.iter().rev().filter(|m| like(b, m)).copied().take(2).collect();
            b.concat(name, &[others, vec![x]].concat())
        }
        _ if draws.one_in(2) => b.pad_channels(name, x, draws.below(2), 1),
        _ => b.dropout(name, x, 0.5),
    };
    // A kernel or window may not fit any more; then the value is only rectified.
    added.unwrap_or_else(|_| b.relu(name, x).unwrap())
}

fn conv(draws: &mut Draws, shape: Shape) -> Conv2d {
    let groups = if shape.channels().is_multiple_of(2) && draws.one_in(2) { 2 } else { 1 };
    // Half of them keep the extents, so that sums find partners.
    let conv = if draws.one_in(2) {
        Conv2d { padding: [1, 1], ..Conv2d::new(shape.channels(), 3) }
    } else {
        Conv2d {
            kernel: [1 + draws.below(3), 1 + draws.below(3)],
            stride: [1 + draws.below(2), 1 + draws.below(2)],
            padding: [draws.below(2), draws.below(2)],
            dilation: [1, 1 + draws.below(2)],
            ..Conv2d::new(2 * (1 + draws.below(4)), 1)
        }
    };
    Conv2d { groups, out_channels: conv.out_channels.next_multiple_of(groups), bias: draws.one_in(2), ..conv }
}

fn pool(draws: &mut Draws) -> Pool2d {
    let kind = if draws.one_in(2) { PoolKind::Max } else { PoolKind::Average };
    let kernel = 2 + draws.below(2);
    Pool2d {
        padding: [draws.below(2), draws.below(2)],
        rounding: if draws.one_in(2) { Rounding::Ceil } else { Rounding::Floor },
        count_padding: draws.one_in(2),
        ..Pool2d::torch(kind, kernel, 1 + draws.below(2))
    }
}

#[test]
fn drawn_networks_equal_the_oracle_for_every_batch() {
    let mut merged = [0; 2];
    for seed in 0..300 {
        let graph = draw(seed, 4 + seed as usize % 16);
        let model = model(graph, seed);
        let image_len = model.graph().input_shape().elements();
        let images = images(3 * image_len, seed + 1);
        let expected = reference::run(&model, &images).unwrap();
        if expected.iter().all(|v| *v == 0.0) {
            continue;
        }
        let plan = Plan::compile(&model, &options(3, 1)).unwrap();
        for step in plan.program().steps() {
            merged[0] += usize::from(step.add.is_some());
            merged[1] += usize::from(step.relu);
        }
        let mut session = plan.session();
        // Smaller batches after larger ones: what the arena still holds must not matter.
        for n in [3, 1, 2] {
            let mut logits = vec![f32::NAN; n * plan.output_len()];
            session.run(&images[..n * image_len], &mut logits).unwrap();
            let error = relative_error(&logits, &expected[..logits.len()]);
            assert!(error < 1e-4, "seed {seed}, {n} images: error {error:e}\n{}", plan.describe());
        }
    }
    assert!(merged.iter().all(|count| *count > 20), "too few merged sums and relus: {merged:?}");
}

#[test]
fn drawn_networks_give_the_same_bits_for_every_number_of_threads() {
    for seed in 0..40 {
        let model = model(draw(seed, 12), seed);
        let images = images(5 * model.graph().input_shape().elements(), seed);
        let alone = numbers::run(&model, &options(5, 1), &images);
        for threads in [2, 3, 7] {
            let together = numbers::run(&model, &options(5, threads), &images);
            assert!(same_bits(&alone, &together), "seed {seed}, {threads} threads");
        }
    }
}
