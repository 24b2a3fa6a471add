use crate::files::{assert_says, pattern};
use cofilter_data::{Augment, Dataset, Pipeline};
use cofilter_graph::{ChannelOrder, Preprocessing, Subtract};
use std::collections::BTreeMap;

const NONE: Augment = Augment { padding: 0, mirror: false };

fn dataset(extents: [usize; 3], images: usize) -> Dataset {
    let classes = vec!["a".into(), "b".into(), "c".into()];
    let labels = (0..images).map(|i| (i * i % 3) as u32).collect();
    Dataset::new("images", extents, classes, pattern(images * extents.iter().product::<usize>()), labels)
        .unwrap()
}

/// Means that no byte equals, so that a wrong position shows.
fn means(len: usize) -> Vec<f32> {
    (0..len).map(|i| 40.3 + (i * 29 % 83) as f32).collect()
}

fn preprocessing(order: ChannelOrder, mean: Subtract, std: &[f32], crop: [usize; 2]) -> Preprocessing {
    let scale = if std.is_empty() { 1.0 } else { 1.0 / 255.0 };
    Preprocessing {
        scale,
        mean,
        std: std.to_vec(),
        channel_order: order,
        crop,
        resize: None,
        classes: vec![],
    }
}

/// What the formula gives for a crop at (`top`, `left`) of the padded image: image and mean image are padded with
/// zeros as arrays, one element at a time.
fn oracle(
    image: &[u8],
    extents: [usize; 3],
    p: &Preprocessing,
    padding: usize,
    draw: (usize, usize, bool),
) -> Vec<f32> {
    let [channels, height, width] = extents;
    let (padded_height, padded_width) = (height + 2 * padding, width + 2 * padding);
    let (top, left, mirror) = draw;
    let mut padded = vec![0u8; channels * padded_height * padded_width];
    let mut padded_mean = vec![0f32; padded.len()];
    for c in 0..channels {
        for y in 0..height {
            for x in 0..width {
                let source = if p.channel_order == ChannelOrder::Bgr { channels - 1 - c } else { c };
                let to = (c * padded_height + y + padding) * padded_width + x + padding;
                padded[to] = image[(source * height + y) * width + x];
                if let Subtract::Pixel(mean) = &p.mean
                    && mean.len() == image.len()
                {
                    padded_mean[to] = mean[(c * height + y) * width + x];
                }
            }
        }
    }
    let mut input = Vec::new();
    for c in 0..channels {
        for y in 0..p.crop[0] {
            for x in 0..p.crop[1] {
                let x = if mirror { p.crop[1] - 1 - x } else { x };
                let at = (c * padded_height + top + y) * padded_width + left + x;
                let mean = match &p.mean {
                    Subtract::Nothing => 0.0,
                    Subtract::Channel(mean) => mean[c],
                    Subtract::Pixel(mean) if mean.len() == image.len() => padded_mean[at],
                    Subtract::Pixel(mean) => mean[(c * p.crop[0] + y) * p.crop[1] + x],
                };
                input.push((f32::from(padded[at]) * p.scale - mean) / p.std.get(c).copied().unwrap_or(1.0));
            }
        }
    }
    input
}

/// Extents, crop, preprocessing: every order, every mean, with and without deviations, crop as large or smaller.
fn cases() -> Vec<([usize; 3], Preprocessing)> {
    let mut cases = Vec::new();
    for (extents, crop) in
        [([3, 4, 5], [4, 5]), ([3, 6, 7], [3, 5]), ([1, 5, 4], [2, 4]), ([1, 4, 4], [4, 4])]
    {
        let [channels, height, width] = extents;
        let image_len = channels * height * width;
        let orders =
            if channels == 1 { vec![ChannelOrder::Grey] } else { vec![ChannelOrder::Rgb, ChannelOrder::Bgr] };
        for order in orders {
            for std in [&[][..], &[0.25, 0.5, 0.3][..channels]] {
                let crop_len = channels * crop[0] * crop[1];
                for mean in [
                    Subtract::Nothing,
                    Subtract::Channel(means(channels)),
                    Subtract::Pixel(means(image_len)),
                    Subtract::Pixel(means(crop_len)),
                ] {
                    cases.push((extents, preprocessing(order, mean, std, crop)));
                }
            }
        }
    }
    cases
}

fn fill(pipeline: &Pipeline, iteration: Option<u64>, indices: &[u32]) -> (Vec<f32>, Vec<u32>) {
    let mut dst = vec![f32::NAN; indices.len() * pipeline.input_len()];
    let mut labels = vec![u32::MAX; indices.len()];
    pipeline.fill(iteration, indices, &mut dst, &mut labels).unwrap();
    (dst, labels)
}

#[test]
fn without_an_iteration_the_centre_is_taken() {
    let augment = Augment { padding: 1, mirror: true };
    for (extents, p) in cases() {
        let dataset = dataset(extents, 5);
        for augment in [NONE, augment] {
            let pipeline = Pipeline::new(&dataset, &p, &augment, 7).unwrap();
            assert_eq!(pipeline.input_extents(), [extents[0], p.crop[0], p.crop[1]]);
            let (inputs, labels) = fill(&pipeline, None, &[4, 0, 4, 2]);
            assert_eq!(labels, [1, 0, 1, 1]);
            // Rounded down, as Caffe does.
            let centre = ((extents[1] - p.crop[0]) / 2, (extents[2] - p.crop[1]) / 2, false);
            for (input, i) in inputs.chunks_exact(pipeline.input_len()).zip([4, 0, 4, 2]) {
                assert_eq!(input, oracle(dataset.image(i), extents, &p, 0, centre), "{p:?}");
            }
        }
    }
}

#[test]
fn with_an_iteration_every_crop_comes_equally_often() {
    for (extents, p) in cases() {
        let dataset = dataset(extents, 1);
        for augment in [NONE, Augment { padding: 1, mirror: false }, Augment { padding: 1, mirror: true }] {
            let pipeline = Pipeline::new(&dataset, &p, &augment, 7).unwrap();
            let rows = extents[1] + 2 * augment.padding - p.crop[0] + 1;
            let cols = extents[2] + 2 * augment.padding - p.crop[1] + 1;
            let mirrors = if augment.mirror { 2 } else { 1 };
            let candidates: Vec<_> = (0..rows * cols * mirrors)
                .map(|i| {
                    let draw = (i / mirrors / cols, i / mirrors % cols, i % mirrors == 1);
                    oracle(dataset.image(0), extents, &p, augment.padding, draw)
                })
                .collect();
            let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
            let expected = 200;
            for iteration in 0..candidates.len() as u64 {
                let (inputs, _) = fill(&pipeline, Some(iteration), &vec![0; expected]);
                for input in inputs.chunks_exact(pipeline.input_len()) {
                    let which = candidates.iter().position(|candidate| candidate == input);
                    *counts
                        .entry(which.unwrap_or_else(|| panic!("no crop of {p:?} gives this")))
                        .or_default() += 1;
                }
            }
            // Standard deviation 14; none of about 2,000 counts may be 5 of them away.
            for i in 0..candidates.len() {
                let count = counts.get(&i).copied().unwrap_or(0);
                assert!(count.abs_diff(expected) < 75, "{p:?}, {augment:?}: crop {i} came {count} times");
            }
        }
    }
}

#[test]
fn draws_depend_on_seed_iteration_and_position_alone() {
    let (extents, p) = cases().swap_remove(2);
    let dataset = dataset(extents, 6);
    let augment = Augment { padding: 2, mirror: true };
    let pipeline = |seed| Pipeline::new(&dataset, &p, &augment, seed).unwrap();
    let indices = [3, 1, 4, 1, 5, 0, 2, 1];
    let walking = pipeline(1);
    (0..8).for_each(|iteration| drop(fill(&walking, Some(iteration), &indices)));
    let (walked, _) = fill(&walking, Some(8), &indices);
    assert_eq!(fill(&pipeline(1), Some(8), &indices).0, walked);
    assert_ne!(fill(&pipeline(1), Some(7), &indices).0, walked);
    assert_ne!(fill(&pipeline(2), Some(8), &indices).0, walked);
    // What stands at a position has no influence on the others, nor has the size of the batch.
    let len = pipeline(1).input_len();
    assert_eq!(fill(&pipeline(1), Some(8), &[0, 1, 4]).0[len..], walked[len..3 * len]);
    let of_one: Vec<&[f32]> = [1, 3, 7].iter().map(|position| &walked[position * len..][..len]).collect();
    assert!(of_one[0] != of_one[1] || of_one[1] != of_one[2]);
}

/// Draws are part of what a checkpoint means and may never change with a dependency. From a ChaCha8 written in Python:
/// key `cofilter-augment`, seed and zeros, stream = iteration; three words a position: row, column, mirror.
#[test]
fn the_draws_are_pinned() {
    let (extents, p) = ([1, 4, 4], preprocessing(ChannelOrder::Grey, Subtract::Nothing, &[], [4, 4]));
    let dataset = dataset(extents, 1);
    let pipeline = Pipeline::new(&dataset, &p, &Augment { padding: 1, mirror: true }, 7).unwrap();
    let (inputs, _) = fill(&pipeline, Some(5), &[0; 4]);
    let draws = [(0, 2, true), (2, 2, true), (2, 1, false), (1, 1, false)];
    for (input, draw) in inputs.chunks_exact(16).zip(draws) {
        assert_eq!(input, oracle(dataset.image(0), extents, &p, 1, draw));
    }
}

/// Paper, 7.3: the mean image of the padded set is zero where all its images are padded, so padding becomes 0; one
/// number a plane is subtracted from padding as well.
#[test]
fn padding_is_added_before_the_mean_is_subtracted() {
    let white = Dataset::new("white", [1, 3, 3], vec!["a".into()], vec![255; 9], vec![0]).unwrap();
    for (mean, padded, inside) in [
        (Subtract::Pixel(vec![100.0; 9]), 0.0, 155.0),
        (Subtract::Channel(vec![100.0]), -100.0, 155.0),
        (Subtract::Nothing, 0.0, 255.0),
    ] {
        let p = preprocessing(ChannelOrder::Grey, mean, &[], [3, 3]);
        let pipeline = Pipeline::new(&white, &p, &Augment { padding: 2, mirror: false }, 1).unwrap();
        let (inputs, _) = fill(&pipeline, Some(0), &[0; 50]);
        assert!(inputs.iter().all(|x| *x == padded || *x == inside), "{inputs:?}");
        let share = inputs.iter().filter(|x| **x == inside).count() as f64 / inputs.len() as f64;
        // By row and column 3, 2 or 1 of 3 pixels are inside: (9 / 15)^2 on average.
        assert!((share - 0.36).abs() < 0.1, "{share}");
    }
}

#[test]
fn wrong_batches_are_refused() {
    let (extents, p) = cases().swap_remove(0);
    let pipeline = Pipeline::new(&dataset(extents, 5), &p, &NONE, 1).unwrap();
    let len = pipeline.input_len();
    let fill = |indices: &[u32], inputs: usize, labels: usize| {
        pipeline.fill(Some(0), indices, &mut vec![0.0; inputs], &mut vec![0; labels])
    };
    assert_says(fill(&[0, 1], 2 * len - 1, 2), &["`images`", "2 inputs of 60 elements", "room for 119"]);
    assert_says(fill(&[0, 1], 2 * len, 3), &["2 labels", "room for 3"]);
    assert_says(fill(&[0, 5], 2 * len, 2), &["image indices below 5", "found 5"]);
    fill(&[], 0, 0).unwrap();
}

#[test]
fn augmentation_is_plain_data() {
    let augment: Augment = serde_json::from_str(r#"{"padding": 4}"#).unwrap();
    assert_eq!(augment, Augment { padding: 4, mirror: false });
    assert_eq!(Augment::default(), NONE);
    assert_eq!(serde_json::to_string(&augment).unwrap(), r#"{"padding":4,"mirror":false}"#);
    assert!(serde_json::from_str::<Augment>(r#"{"pading": 4}"#).is_err());
}
