use crate::files::pattern;
use cofilter_data::{Dataset, channel_statistics, mean_image};

/// Two passes in f64, straight from the definitions.
fn oracle(dataset: &Dataset) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let [channels, height, width] = dataset.extents();
    let images: Vec<_> = (0..dataset.len()).map(|i| dataset.image(i)).collect();
    let of_images =
        |i: usize| images.iter().map(|image| f64::from(image[i])).sum::<f64>() / images.len() as f64;
    let mean_image = (0..channels * height * width).map(of_images).collect();
    let plane = |c: usize| {
        let bytes = images.iter().flat_map(move |image| &image[c * height * width..(c + 1) * height * width]);
        bytes.map(|byte| f64::from(*byte) / 255.0).collect::<Vec<_>>()
    };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let means: Vec<f64> = (0..channels).map(|c| mean(&plane(c))).collect();
    let std = |c: usize| mean(&plane(c).iter().map(|x| (x - means[c]).powi(2)).collect::<Vec<_>>()).sqrt();
    let stds = (0..channels).map(std).collect();
    (mean_image, means, stds)
}

fn assert_close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (f64::from(*found) - expected).abs() <= 1e-6 * expected.abs().max(1e-3),
            "{found} {expected}"
        );
    }
}

#[test]
fn statistics_are_those_of_the_definitions() {
    for (extents, images) in [([1, 2, 3], 7), ([3, 5, 4], 11), ([3, 1, 1], 1), ([2, 8, 8], 40)] {
        let len = extents.iter().product::<usize>() * images;
        let dataset = Dataset::new("x", extents, vec!["a".into()], pattern(len), vec![0; images]).unwrap();
        let (image, mean, std) = oracle(&dataset);
        assert_close(&mean_image(&dataset), &image);
        assert_close(&channel_statistics(&dataset).0, &mean);
        assert_close(&channel_statistics(&dataset).1, &std);
    }
}

#[test]
fn a_flat_plane_has_no_deviation() {
    let dataset = Dataset::new("x", [1, 50, 50], vec!["a".into()], vec![201; 7500], vec![0; 3]).unwrap();
    assert_eq!(channel_statistics(&dataset), (vec![201.0 / 255.0], vec![0.0]));
    assert_eq!(mean_image(&dataset), vec![201.0; 2500]);
}
