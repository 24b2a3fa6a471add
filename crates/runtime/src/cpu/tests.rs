//! Parts of a batch: whichever way the steps are cut, the logits have the same bits.

use super::parts::{Load, Part};
use super::{Executor, tune};
use crate::backend::Executable;
use crate::{Options, Program, reference};
use cofilter_graph::{Conv2d, Graph, Init, Lrn, LrnRegion, Model, Pool2d, PoolKind, Shape};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Sums, concatenations within each other, groups, pairs, pooling, a vector: whatever has a layout of its own.
fn net() -> Model {
    let mut b = Graph::builder();
    let conv = |out, kernel: usize, groups| Conv2d {
        kernel: [kernel, kernel],
        padding: [kernel / 2, kernel / 2],
        groups,
        ..Conv2d::new(out, 1)
    };
    let image = b.input("data", Shape::map(3, 11, 9)).unwrap();
    let x = b.conv2d("stem", image, conv(20, 3, 1)).unwrap();
    let stem = b.relu("relu", x).unwrap();
    let x = b.conv2d("basis", stem, conv(6, 3, 1)).unwrap();
    let x = b.conv2d("combination", x, conv(20, 1, 1)).unwrap();
    let x = b.sum("sum", &[x, stem]).unwrap();
    let sum = b.relu("relu1", x).unwrap();
    let left = b.conv2d("left", sum, conv(17, 1, 1)).unwrap();
    let right = b.conv2d("right", sum, conv(18, 3, 2)).unwrap();
    let inner = b.concat("inner", &[left, right]).unwrap();
    let beside =
        b.pool2d("beside", sum, Pool2d { padding: [1, 1], ..Pool2d::torch(PoolKind::Max, 3, 1) }).unwrap();
    let all = b.concat("all", &[inner, beside, image]).unwrap();
    let lrn = Lrn { region: LrnRegion::AcrossChannels, size: 5, alpha: 1e-2, beta: 0.75, k: 1.0 };
    let x = b.lrn("norm", all, lrn).unwrap();
    let x = b.conv2d("last", x, Conv2d { stride: [2, 2], ..conv(24, 3, 1) }).unwrap();
    let x = b.flatten("flat", x).unwrap();
    let x = b.linear("fc", x, 7).unwrap();
    let x = b.softmax("softmax", x).unwrap();
    Model::init(b.finish(&[x]).unwrap(), &Init::default(), 3).unwrap()
}

/// Numbers that look drawn.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

#[test]
fn logits_do_not_depend_on_how_steps_are_cut_into_parts() {
    const BATCH: usize = 5;
    let model = net();
    let program = Program::lower(&model).unwrap();
    let mut draws = Draws(1);
    let images: Vec<f32> =
        (0..BATCH * program.input().elements()).map(|_| draws.below(2001) as f32 / 1000.0 - 1.0).collect();
    let expected = reference::run(&model, &images).unwrap();
    let mut bits: Option<Vec<u32>> = None;
    let mut arenas = Vec::new();
    for round in 0..60 {
        let options = Options { batch: BATCH, threads: 1 + round % 3, ..Options::default() };
        let units = tune::choose(&program, &options);
        let cuts: Vec<usize> = (0..200).map(|_| draws.below(1 << 20)).collect();
        let cut = |loads: &[Load], _: &BTreeMap<usize, usize>, options: &Options| {
            let mut parts = Vec::new();
            let mut start = 0;
            while start < loads.len() {
                let (len, images) = (cuts[start] % loads.len() + 1, cuts[start] / 64 % BATCH + 1);
                let images = if round < 3 { options.batch } else { images };
                let end = loads.len().min(start + len);
                parts.push(Part { steps: start..end, images });
                start = end;
            }
            parts
        };
        let executor = Arc::new(Executor::with_parts(&program, &units, &options, &cut).unwrap());
        arenas.push(executor.memory().arena_bytes);
        let outputs = program.output().shape.elements();
        let mut session = Arc::clone(&executor).session();
        for n in [BATCH, 1, 3] {
            let mut logits = vec![f32::NAN; n * outputs];
            session.run(n, &images[..n * program.input().elements()], &mut logits, None);
            let found: Vec<u32> = logits.iter().map(|logit| logit.to_bits()).collect();
            let bits = bits.get_or_insert_with(|| found.clone());
            assert_eq!(found, bits[..found.len()], "round {round}, {n} images: {:?}", executor.steps());
            for (logit, expected) in logits.iter().zip(&expected) {
                assert!((f64::from(*logit) - expected).abs() < 1e-5, "{logit} {expected}");
            }
        }
    }
    // Maps that lie within a part are smaller.
    assert!(arenas[3..].iter().any(|bytes| bytes * 2 < arenas[0]), "{arenas:?}");
}
