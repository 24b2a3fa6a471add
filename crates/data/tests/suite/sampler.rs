use cofilter_data::Sampler;

fn epochs(len: usize, batch: usize, seed: u64, images: usize) -> Vec<u32> {
    let sampler = Sampler::new(len, batch, seed);
    let mut seen = Vec::new();
    for iteration in 0.. {
        if seen.len() >= images {
            break;
        }
        let indices = sampler.indices(iteration);
        assert_eq!(indices.len(), batch);
        seen.extend(indices);
    }
    seen.truncate(images);
    seen
}

#[test]
fn every_epoch_is_a_permutation_of_its_own() {
    for (len, batch) in [(10, 3), (10, 10), (7, 20), (1, 4), (100, 1), (1000, 64)] {
        let seen = epochs(len, batch, 5, 4 * len);
        let mut orders: Vec<&[u32]> = seen.chunks(len).collect();
        for order in &orders {
            let mut sorted = order.to_vec();
            sorted.sort_unstable();
            assert!(
                sorted.iter().copied().eq(0..len as u32),
                "{len} images in batches of {batch}: {order:?}"
            );
        }
        if len >= 10 {
            orders.sort_unstable();
            orders.dedup();
            assert_eq!(orders.len(), 4, "epochs are ordered alike");
            assert!(!seen[..len].is_sorted());
        }
    }
}

#[test]
fn batch_size_does_not_change_the_order() {
    let by_one = epochs(50, 1, 9, 150);
    for batch in [7, 50, 64, 150] {
        assert_eq!(epochs(50, batch, 9, 150), by_one);
    }
}

#[test]
fn seeds_differ_and_repeat() {
    assert_eq!(epochs(100, 8, 1, 300), epochs(100, 8, 1, 300));
    assert_ne!(epochs(100, 8, 1, 300), epochs(100, 8, 2, 300));
}

#[test]
fn an_iteration_needs_no_history() {
    let walked = Sampler::new(23, 6, 3);
    let batches: Vec<_> = (0..40).map(|iteration| walked.indices(iteration)).collect();
    for iteration in (0..40).rev().chain([17, 3, 17, 38]) {
        assert_eq!(Sampler::new(23, 6, 3).indices(iteration), batches[iteration as usize]);
        assert_eq!(walked.indices(iteration), batches[iteration as usize]);
    }
    assert_eq!(walked.indices(u64::MAX).len(), 6);
}

/// Every image comes first about equally often: 4,000 epochs of 8 images, 500 each, standard deviation 21.
#[test]
fn the_first_place_is_uniform() {
    let seen = epochs(8, 8, 11, 32_000);
    for image in 0..8 {
        let count = seen.chunks(8).filter(|order| order[0] == image).count();
        assert!((400..600).contains(&count), "image {image} came first {count} times");
    }
}

/// The order is part of what a checkpoint means and may never change with a dependency. From a ChaCha8 written in
/// Python: key `cofilter-sampler`, seed and zeros, stream = epoch; Fisher and Yates from the last place down.
#[test]
fn the_order_is_pinned() {
    let expected = [9, 8, 6, 3, 5, 2, 7, 4, 0, 1, 3, 7, 2, 8, 6, 5, 4, 9, 0, 1];
    assert_eq!(epochs(10, 10, 1, 20), expected);
}

#[test]
fn an_empty_batch_is_empty() {
    assert!(Sampler::new(5, 0, 1).indices(3).is_empty());
}
