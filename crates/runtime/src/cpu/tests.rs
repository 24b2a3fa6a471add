//! Parts of a batch: whichever way the steps are cut, the logits have the same bits.

use super::form::{Algorithm, Form, Unit};
use super::parts::{Load, Part, Size};
use super::{Executor, tune};
use crate::backend::Executable;
use crate::{Options, Plan, Program, reference};
use cofilter_graph::{Array, Conv2d, Graph, Init, Lrn, LrnRegion, Model, Op, Pool2d, PoolKind, Shape};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Sums, concatenations within each other, groups, pairs, pooling, a vector, zeros: whatever has a layout of its own.
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
    let dense = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 3).unwrap();
    let params = dense.params().map(|id, slot, array| {
        let pruned = slot == 0 && dense.graph().node(id).name() == "fc";
        let kept =
            |(at, w): (usize, &f32)| if pruned && ((at * 2_654_435_761) >> 16) % 3 > 0 { 0.0 } else { *w };
        Array::new(array.dims().to_vec(), array.data().iter().enumerate().map(kept).collect::<Vec<f32>>())
    });
    dense.with_params(params).unwrap()
}

/// Most images of a run: so many that a pruned layer computes them side by side, and fewer one by one.
const BATCH: usize = 8;

/// Logits of some images of a fixed batch, in bits, and bytes of the arena, with steps cut into parts so long for so many images,
/// again and again.
fn run(cuts: &[(usize, usize)], threads: usize, n: usize) -> (Vec<u32>, usize) {
    let model = net();
    let program = Program::lower(&model).unwrap();
    let options = Options { batch: BATCH, threads, ..Options::default() };
    let cut = |loads: &[Load], _: &BTreeMap<usize, Size>, _: &Options| {
        let mut parts: Vec<Part> = Vec::new();
        for (steps, images) in cuts.iter().cycle() {
            let start = parts.last().map_or(0, |part| part.steps.end);
            if start == loads.len() {
                break;
            }
            parts.push(Part { steps: start..loads.len().min(start + steps), images: *images });
        }
        parts
    };
    let mut units = tune::choose(&program, &options);
    for (unit, form) in &mut units {
        if let Unit::One(index) = unit
            && matches!(program.steps()[*index].op, Op::Linear(_))
        {
            *form = Form::One(Algorithm::Sparse);
        }
    }
    let executor = Arc::new(Executor::with_parts(&program, &units, &options, &cut).unwrap());
    let arena_bytes = executor.memory().arena_bytes;
    let images: Vec<f32> =
        (0..n * program.input().elements()).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    let mut session = executor.session();
    let mut logits = vec![f32::NAN; BATCH * program.output().shape.elements()];
    // What another run leaves in the arena must not matter.
    session.run(BATCH, &vec![f32::NAN; BATCH * program.input().elements()], &mut logits, None).unwrap();
    logits.truncate(n * program.output().shape.elements());
    session.run(n, &images, &mut logits, None).unwrap();
    for (logit, expected) in logits.iter().zip(reference::run(&model, &images).unwrap()) {
        assert!((f64::from(*logit) - expected).abs() < 1e-5, "{logit} {expected}");
    }
    (logits.iter().map(|logit| logit.to_bits()).collect(), arena_bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn logits_do_not_depend_on_how_steps_are_cut_into_parts(
        cuts in prop::collection::vec((1usize..20, 1..=BATCH), 1..6),
        threads in prop::sample::select(vec![1usize, 2, 3, 7]),
        n in 1..=BATCH,
    ) {
        let whole = run(&[(usize::MAX / 2, BATCH)], 1, n);
        prop_assert_eq!(run(&cuts, threads, n).0, whole.0);
    }
}

#[test]
fn maps_within_a_part_hold_its_images_only() {
    let [whole, single] = [BATCH, 1].map(|images| run(&[(usize::MAX / 2, images)], 1, BATCH).1);
    assert!(single * 3 < whole, "{single} {whole}");
}

/// Convolutions on maps of 147 KB an image.
fn large_maps() -> Model {
    let mut b = Graph::builder();
    let conv = |out| Conv2d { padding: [1, 1], ..Conv2d::new(out, 3) };
    let mut x = b.input("data", Shape::map(3, 48, 48)).unwrap();
    for name in ["a", "b", "c", "d"] {
        x = b.conv2d(name, x, conv(16)).unwrap();
        x = b.relu(&format!("relu_{name}"), x).unwrap();
    }
    let x = b.conv2d("e", x, Conv2d { stride: [4, 4], ..conv(2) }).unwrap();
    Model::init(b.finish(&[x]).unwrap(), &Init::default(), 3).unwrap()
}

#[test]
fn large_maps_are_cut_into_parts_and_nothing_else_changes() {
    let model = large_maps();
    let run = |cache: usize, threads: usize| {
        let options = Options { batch: 8, threads, cache, ..Options::default() };
        let plan = Plan::compile(&model, &options).unwrap();
        let images: Vec<f32> =
            (0..8 * plan.input_len()).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        let mut logits = vec![f32::NAN; 8 * plan.output_len()];
        let mut session = plan.session();
        session.run(&images, &mut logits).unwrap();
        let profile = session.profile(&images).unwrap();
        assert!(profile.steps.iter().all(|step| step.time_us > 0.0), "{profile:?}");
        let sum: f64 = profile.steps.iter().map(|step| step.time_us).sum();
        assert!(sum <= profile.total_us, "{sum} of {profile:?}");
        let few = plan.steps().iter().filter(|step| step.images < 8).count();
        (few, plan.memory().peak_bytes(), logits)
    };
    for threads in [1, 2] {
        let (few, bytes, logits) = run(1_000_000, threads);
        let (none, whole_bytes, whole) = run(0, threads);
        assert!(few >= 3 && none == 0, "{few} steps take a few images, {none} without a cache");
        assert!(bytes < whole_bytes, "{bytes} bytes in parts, {whole_bytes} without");
        assert_eq!(logits, whole);
    }
}

#[test]
fn memory_that_is_enough_step_by_step_is_enough() {
    // Two products with too few pixels for a few images, and between them a part: its first and last map are there at once for
    // the whole batch, and the one between for an image.
    let mut b = Graph::builder();
    let lrn = Lrn { region: LrnRegion::AcrossChannels, size: 5, alpha: 1e-2, beta: 0.75, k: 1.0 };
    let x = b.input("data", Shape::map(64, 4, 4)).unwrap();
    let x = b.conv2d("first", x, Conv2d::new(1024, 1)).unwrap();
    let x = b.lrn("lrn", x, lrn.clone()).unwrap();
    let x = b.lrn("lrn2", x, lrn).unwrap();
    let x = b.conv2d("last", x, Conv2d::new(1024, 1)).unwrap();
    let model = Model::init(b.finish(&[x]).unwrap(), &Init::default(), 3).unwrap();
    let options = Options { batch: 8, cache: 400_000, ..Options::default() };
    let needs = |cache: usize| {
        Plan::compile(&model, &Options { cache, ..options.clone() }).unwrap().memory().peak_bytes()
    };
    let least = needs(0);
    assert!(least < needs(options.cache), "{least} bytes step by step, {} in parts", needs(options.cache));
    let allowed =
        |bytes: usize| Plan::compile(&model, &Options { max_memory: Some(bytes), ..options.clone() });
    assert_eq!(allowed(least).unwrap().memory().peak_bytes(), least);
    assert!(allowed(least - 1).is_err());
}
