use crate::files::{assert_says, pattern};
use cofilter_data::Dataset;

fn classes(n: usize) -> Vec<String> {
    (0..n).map(|class| format!("class {class}")).collect()
}

fn small() -> Dataset {
    Dataset::new("small", [2, 2, 3], classes(4), pattern(60), vec![0, 3, 1, 2, 1]).unwrap()
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let new = |extents, classes, pixels: usize, labels| {
        Dataset::new("x", extents, classes, pattern(pixels), labels)
    };
    assert_says(new([2, 0, 3], classes(2), 0, vec![0]), &["`x`", "extents above 0", "[2, 0, 3]"]);
    assert_says(new([usize::MAX, 2, 3], classes(2), 0, vec![0]), &["extents above 0"]);
    assert_says(new([1, 2, 2], classes(2), 0, vec![]), &["1 to 4294967295 images", "found 0"]);
    assert_says(new([1, 2, 2], classes(2), 9, vec![0, 1]), &["2 labels times 1x2x2 bytes", "9 bytes"]);
    assert_says(new([1, 2, 2], classes(2), 8, vec![0, 2]), &["labels below 2", "2 at image 1"]);
}

#[test]
fn subsets_are_views() {
    let whole = small();
    let part = whole.subset(1..4);
    assert_eq!((part.len(), part.labels()), (3, &[3, 1, 2][..]));
    assert_eq!(part.image(2), whole.image(3));
    assert_eq!(part.pixels(), &whole.pixels()[12..48]);
    let inner = part.subset(1..2);
    assert_eq!((inner.label(0), inner.image(0)), (1, whole.image(2)));
    assert!(whole.subset(2..2).is_empty() && !part.is_empty());
}

#[test]
fn a_sample_is_spread_over_the_whole() {
    let whole = small().subset(1..5);
    let two = whole.spread(2);
    assert_eq!((two.len(), two.labels()), (2, &[3, 2][..]));
    assert_eq!(two.pixels(), [whole.image(0), whole.image(2)].concat());
    assert_eq!(whole.spread(9).sha256(), whole.sha256());
    assert!(whole.spread(0).is_empty());
    // The same images as those of a pipeline.
    let of = cofilter_graph::Preprocessing {
        scale: 1.0,
        mean: cofilter_graph::Subtract::Nothing,
        std: Vec::new(),
        channel_order: cofilter_graph::ChannelOrder::Rgb,
        crop: [2, 3],
        resize: None,
        classes: Vec::new(),
    };
    let seven = Dataset::new("seven", [3, 2, 3], classes(2), pattern(126), vec![0; 7]).unwrap();
    let pipeline = |data: &Dataset| cofilter_data::Pipeline::new(data, &of, &Default::default(), 0).unwrap();
    let mut wanted = vec![0.0; 3 * 18];
    pipeline(&seven).fill(None, &[0, 2, 4], &mut wanted, &mut [0; 3]).unwrap();
    assert_eq!(pipeline(&seven.spread(3)).all().unwrap(), wanted);
}

#[test]
#[should_panic(expected = "image 3 of 3")]
fn a_subset_does_not_show_what_lies_behind_it() {
    let _ = small().subset(1..4).image(3);
}

#[test]
#[should_panic(expected = "images 1..4 of 3")]
fn a_subset_cannot_grow() {
    let _ = small().subset(0..3).subset(1..4);
}

#[test]
fn the_hash_sees_extents_pixels_and_labels_but_no_names() {
    let base = small();
    assert_eq!(base.sha256().len(), 64);
    assert_eq!(base.sha256(), base.clone().renamed("other").sha256());
    assert_eq!(base.subset(0..5).sha256(), base.sha256());
    let labels = base.labels().to_vec();
    let same = Dataset::new("y", [2, 2, 3], classes(9), base.pixels().to_vec(), labels.clone()).unwrap();
    assert_eq!(same.sha256(), base.sha256());
    let other_extents =
        Dataset::new("y", [2, 3, 2], classes(4), base.pixels().to_vec(), labels.clone()).unwrap();
    let mut pixels = base.pixels().to_vec();
    pixels[59] ^= 1;
    let other_pixels = Dataset::new("y", [2, 2, 3], classes(4), pixels, labels).unwrap();
    let other_labels =
        Dataset::new("y", [2, 2, 3], classes(4), base.pixels().to_vec(), vec![0, 3, 1, 2, 2]).unwrap();
    for other in [other_extents, other_pixels, other_labels, base.subset(0..4)] {
        assert_ne!(other.sha256(), base.sha256());
    }
}

/// From Python: `sha256(struct.pack('<4Q', 1, 1, 2, 2) + bytes([1, 2, 3, 4]) + struct.pack('<2I', 0, 1))`.
#[test]
fn the_hash_is_the_documented_one() {
    let dataset = Dataset::new("x", [1, 1, 2], classes(2), vec![1, 2, 3, 4], vec![0, 1]).unwrap();
    assert_eq!(dataset.sha256(), "fa2d5b2134b53b2cb7252cf2281d223cf2041348c7855c4ad8d0bb9b75d8515c");
}
