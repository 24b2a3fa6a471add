use cofilter_data::{Augment, Dataset, Pipeline};
use cofilter_graph::{ChannelOrder, Preprocessing, Subtract};

fn resized(dataset: &Dataset, size: [usize; 2]) -> Vec<f32> {
    let p = Preprocessing {
        scale: 1.0,
        mean: Subtract::Nothing,
        std: vec![],
        channel_order: if dataset.extents()[0] == 1 { ChannelOrder::Grey } else { ChannelOrder::Rgb },
        crop: size,
        resize: Some(size),
        classes: vec![],
    };
    let pipeline = Pipeline::new(dataset, &p, &Augment::default(), 1).unwrap();
    let mut input = vec![0.0; pipeline.input_len()];
    pipeline.fill(None, &[0], &mut input, &mut [0]).unwrap();
    input
}

/// Triangle kernel of the width of `max(1, from / to)` source pixels on either side, one direction after the other,
/// with f64 in between.
fn oracle(plane: &[u8], [height, width]: [usize; 2], [to_height, to_width]: [usize; 2]) -> Vec<f64> {
    let weights = |from: usize, to: usize, at: usize| -> Vec<f64> {
        let ratio = from as f64 / to as f64;
        let centre = (at as f64 + 0.5) * ratio;
        let reach = ratio.max(1.0);
        let raw: Vec<f64> =
            (0..from).map(|i| (1.0 - ((i as f64 + 0.5 - centre) / reach).abs()).max(0.0)).collect();
        let sum: f64 = raw.iter().sum();
        raw.iter().map(|weight| weight / sum).collect()
    };
    let mut out = Vec::new();
    for y in 0..to_height {
        let rows = weights(height, to_height, y);
        for x in 0..to_width {
            let cols = weights(width, to_width, x);
            let row = |r: usize| (0..width).map(|c| cols[c] * f64::from(plane[r * width + c])).sum::<f64>();
            out.push((0..height).map(|r| rows[r] * row(r)).sum());
        }
    }
    out
}

#[test]
fn resizing_is_bilinear_in_each_plane() {
    for (extents, size) in
        [([1, 4, 6], [8, 6]), ([3, 9, 6], [3, 4]), ([1, 7, 7], [5, 11]), ([3, 5, 5], [1, 1])]
    {
        let [channels, height, width] = extents;
        let pixels: Vec<u8> = (0..channels * height * width).map(|i| (i * i * 7 % 251) as u8).collect();
        let dataset = Dataset::new("x", extents, vec!["a".into()], pixels.clone(), vec![0]).unwrap();
        let found = resized(&dataset, size);
        let expected =
            pixels.chunks_exact(height * width).flat_map(|plane| oracle(plane, [height, width], size));
        assert_eq!(found.len(), channels * size[0] * size[1]);
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (f64::from(*found) - expected).abs() <= 0.51,
                "{extents:?} to {size:?}: {found} {expected}"
            );
        }
    }
}

#[test]
fn the_same_size_changes_nothing() {
    let pixels: Vec<u8> = (0..30).map(|i| i * 8).collect();
    let dataset = Dataset::new("x", [1, 5, 6], vec!["a".into()], pixels.clone(), vec![0]).unwrap();
    assert!(resized(&dataset, [5, 6]).into_iter().eq(pixels.into_iter().map(f32::from)));
}
