use crate::Dataset;

/// Mean image `[channels, height, width]`, in bytes (0 to 255): what Caffe's `compute_image_mean` gives. The sums are
/// exact integers. NaN for an empty subset.
#[must_use]
pub fn mean_image(dataset: &Dataset) -> Vec<f32> {
    let mut sums = vec![0u64; dataset.image_len()];
    for image in dataset.pixels().chunks_exact(dataset.image_len()) {
        for (sum, byte) in sums.iter_mut().zip(image) {
            *sum += u64::from(*byte);
        }
    }
    let images = dataset.len() as f64;
    sums.into_iter().map(|sum| (sum as f64 / images) as f32).collect()
}

/// Mean and standard deviation (of the whole, divided by the count) of each colour plane, of `byte / 255`: what a
/// torchvision preprocessing takes. NaN for an empty subset.
#[must_use]
pub fn channel_statistics(dataset: &Dataset) -> (Vec<f32>, Vec<f32>) {
    let [channels, height, width] = dataset.extents();
    let mut sums = vec![(0u64, 0u64); channels];
    for image in dataset.pixels().chunks_exact(dataset.image_len()) {
        for ((sum, squares), plane) in sums.iter_mut().zip(image.chunks_exact(height * width)) {
            *sum += plane.iter().map(|&byte| u64::from(byte)).sum::<u64>();
            *squares += plane.iter().map(|&byte| u64::from(byte) * u64::from(byte)).sum::<u64>();
        }
    }
    let count = dataset.len() * height * width;
    let moments = sums.into_iter().map(|(sum, squares)| {
        // The difference in integers: both terms are close for a flat plane.
        let spread = u128::from(squares) * count as u128 - u128::from(sum) * u128::from(sum);
        let unit = 255.0 * count as f64;
        ((sum as f64 / unit) as f32, ((spread as f64).sqrt() / unit) as f32)
    });
    moments.unzip()
}
