use crate::files::{assert_says, pattern};
use cofilter_data::{Augment, Dataset, Pipeline, Result, preprocessing};
use cofilter_graph::{ChannelOrder, Preprocessing, Subtract};

fn colour(size: usize) -> Dataset {
    let classes = preprocessing::torchvision_cifar().classes;
    Dataset::new("colour", [3, size, size], classes, pattern(3 * size * size), vec![0]).unwrap()
}

fn grey() -> Dataset {
    let classes = (0..10).map(|class| class.to_string()).collect();
    Dataset::new("grey", [1, 28, 28], classes, pattern(28 * 28), vec![7]).unwrap()
}

fn build(dataset: &Dataset, preprocessing: &Preprocessing) -> Result<Pipeline> {
    Pipeline::new(dataset, preprocessing, &Augment::default(), 1)
}

fn changed(change: impl FnOnce(&mut Preprocessing)) -> Result<Pipeline> {
    let mut p = preprocessing::torchvision_cifar();
    change(&mut p);
    build(&colour(32), &p)
}

#[test]
fn fields_that_do_not_fit_are_named() {
    changed(|_| ()).unwrap();
    assert_says(
        changed(|p| p.channel_order = ChannelOrder::Grey),
        &["`colour`", "channel_order", "3 planes", "Grey"],
    );
    assert_says(changed(|p| p.scale = f32::NAN), &["scale", "finite", "NaN"]);
    assert_says(changed(|p| p.crop = [33, 32]), &["crop", "[32, 32]", "[33, 32]"]);
    assert_says(changed(|p| p.crop = [0, 32]), &["crop", "[0, 32]"]);
    assert_says(changed(|p| p.resize = Some([31, 40])), &["crop", "[31, 40]", "[32, 32]"]);
    assert_says(changed(|p| p.resize = Some([0, 40])), &["resize", "1 to 16384", "[0, 40]"]);
    assert_says(changed(|p| p.resize = Some([usize::MAX, 40])), &["resize", "1 to 16384"]);
    assert_says(changed(|p| p.std = vec![1.0]), &["std", "3 finite numbers above 0", "[1.0]"]);
    assert_says(changed(|p| p.std[1] = 0.0), &["std", "above 0"]);
    assert_says(changed(|p| p.std[1] = f32::INFINITY), &["std", "finite"]);
    assert_says(changed(|p| p.mean = Subtract::Channel(vec![0.5])), &["mean", "3 numbers", "found 1"]);
    assert_says(
        changed(|p| p.mean = Subtract::Pixel(vec![0.5; 1024])),
        &["mean", "3 planes of 32x32 (the image) or 32x32 (the crop)", "1024 numbers"],
    );
    assert_says(
        changed(|p| p.mean = Subtract::Channel(vec![0.5, 0.5, f32::NAN])),
        &["mean", "finite", "NaN at element 2"],
    );
    assert_says(changed(|p| p.classes[3] = "dog".into()), &["classes", "\"cat\"", "\"dog\""]);
    changed(|p| p.classes.clear()).unwrap();
}

#[test]
fn padding_may_not_hide_the_image() {
    let p = preprocessing::torchvision_cifar();
    let build = |padding| Pipeline::new(&colour(32), &p, &Augment { padding, mirror: true }, 1);
    build(31).unwrap();
    assert_says(build(32), &["augment.padding", "less than the crop's extents [32, 32]", "found 32"]);
    assert_says(build(usize::MAX), &["augment.padding"]);
}

/// First pixel of each plane of an input, and the byte it comes from.
fn first(pipeline: &Pipeline) -> Vec<f32> {
    let mut input = vec![0.0; pipeline.input_len()];
    pipeline.fill(None, &[0], &mut input, &mut [0]).unwrap();
    let [_, height, width] = pipeline.input_extents();
    input.iter().copied().step_by(height * width).collect()
}

#[test]
fn the_usual_ones_fit_their_data() {
    let dataset = grey();
    let p = preprocessing::lenet(dataset.classes());
    assert_eq!(first(&build(&dataset, &p).unwrap()), [f32::from(dataset.image(0)[0]) * 0.003_906_25]);
    assert_says(build(&colour(28), &p), &["channel_order"]);

    let dataset = colour(32);
    let bytes: Vec<f32> = (0..3).map(|c| f32::from(dataset.image(0)[c * 1024])).collect();
    let mean = (0..3072).map(|i| i as f32 / 20.0).collect();
    let caffe = build(&dataset, &preprocessing::caffe_cifar(mean)).unwrap();
    assert_eq!(first(&caffe), [bytes[0], bytes[1] - 51.2, bytes[2] - 102.4]);
    let torchvision = first(&build(&dataset, &preprocessing::torchvision_cifar()).unwrap());
    for ((x, byte), (mean, std)) in
        torchvision.iter().zip(&bytes).zip([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)])
    {
        assert!((x - (byte / 255.0 - mean) / std).abs() < 1e-5);
    }

    let classes = dataset.classes().to_vec();
    let flat = |size: usize| {
        let pixels = [10, 20, 30].iter().flat_map(|byte| vec![*byte; size * size]).collect();
        Dataset::new("flat", [3, size, size], classes.clone(), pixels, vec![0]).unwrap()
    };
    let googlenet = build(&flat(300), &preprocessing::caffe_googlenet(&classes)).unwrap();
    assert_eq!(googlenet.input_extents(), [3, 224, 224]);
    assert_eq!(first(&googlenet), [30.0 - 104.0, 20.0 - 117.0, 10.0 - 123.0]);
    let mean = [1.0, 2.0, 3.0].iter().flat_map(|mean| vec![*mean; 65_536]).collect();
    let alexnet = build(&flat(200), &preprocessing::caffe_alexnet(mean, &classes)).unwrap();
    assert_eq!(alexnet.input_extents(), [3, 227, 227]);
    assert_eq!(first(&alexnet), [29.0, 18.0, 7.0]);
}
