//! Output shapes, names, and what each network says about itself.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use cofilter_graph::{Filler, Graph, Op, Shape};
use cofilter_zoo::{Config, Error, NAMES, Network, Shortcut, by_name, cifar_resnet};

fn graph(name: &str) -> Graph {
    by_name(name, &Config::default()).unwrap()
}

fn assert_shapes(name: &str, stages: &[(&str, [usize; 3])]) {
    let g = graph(name);
    for (node, [c, h, w]) in stages {
        let found = g.node(g.find(node).unwrap()).shape();
        assert_eq!(found, Shape::map(*c, *h, *w), "{name}: {node}");
    }
}

#[test]
fn caffe_networks_have_the_extents_of_caffe() {
    assert_shapes(
        "lenet",
        &[("conv1", [20, 24, 24]), ("pool1", [20, 12, 12]), ("conv2", [50, 8, 8]), ("pool2", [50, 4, 4])],
    );
    assert_shapes(
        "convnet",
        &[
            ("conv1", [32, 32, 32]),
            ("pool1", [32, 16, 16]),
            ("norm1", [32, 16, 16]),
            ("pool2", [32, 8, 8]),
            ("conv3", [64, 8, 8]),
            ("pool3", [64, 4, 4]),
        ],
    );
    assert_shapes(
        "bvlc_alexnet",
        &[
            ("conv1", [96, 55, 55]),
            ("pool1", [96, 27, 27]),
            ("conv2", [256, 27, 27]),
            ("pool2", [256, 13, 13]),
            ("conv3", [384, 13, 13]),
            ("conv4", [384, 13, 13]),
            ("conv5", [256, 13, 13]),
            ("pool5", [256, 6, 6]),
        ],
    );
    assert_shapes(
        "bvlc_alexnet_split",
        &[
            ("pool1_group0", [48, 27, 27]),
            ("pool2_group1", [128, 13, 13]),
            ("concat2", [256, 13, 13]),
            ("conv3_group0", [192, 13, 13]),
            ("conv5_group1", [128, 13, 13]),
            ("concat5", [256, 6, 6]),
        ],
    );
}

#[test]
fn googlenets_have_the_extents_of_the_original() {
    assert_shapes(
        "bvlc_googlenet",
        &[
            ("conv1/7x7_s2", [64, 112, 112]),
            ("pool1/3x3_s2", [64, 56, 56]),
            ("conv2/norm2", [192, 56, 56]),
            ("pool2/3x3_s2", [192, 28, 28]),
            ("inception_3a/output", [256, 28, 28]),
            ("inception_3b/output", [480, 28, 28]),
            ("pool3/3x3_s2", [480, 14, 14]),
            ("inception_4a/output", [512, 14, 14]),
            ("loss1/ave_pool", [512, 4, 4]),
            ("inception_4d/output", [528, 14, 14]),
            ("loss2/conv", [128, 4, 4]),
            ("inception_4e/output", [832, 14, 14]),
            ("pool4/3x3_s2", [832, 7, 7]),
            ("inception_5b/output", [1024, 7, 7]),
            ("pool5/7x7_s1", [1024, 1, 1]),
        ],
    );
    assert_shapes(
        "googlenet",
        &[
            ("conv1.conv", [64, 112, 112]),
            ("maxpool1", [64, 56, 56]),
            ("maxpool2", [192, 28, 28]),
            ("inception3a", [256, 28, 28]),
            ("maxpool3", [480, 14, 14]),
            ("aux1.conv.relu", [128, 4, 4]),
            ("inception4e", [832, 14, 14]),
            ("maxpool4", [832, 7, 7]),
            ("inception5b", [1024, 7, 7]),
            ("avgpool", [1024, 1, 1]),
        ],
    );
}

#[test]
fn resnets_have_the_extents_of_the_original() {
    let cifar = |stages: [&'static str; 3]| {
        [[16, 32, 32], [32, 16, 16], [64, 8, 8]]
            .map(|s| s)
            .into_iter()
            .zip(stages)
            .map(|(s, n)| (n, s))
            .collect::<Vec<_>>()
    };
    assert_shapes("resnet20", &cifar(["layer1.2", "layer2.2", "layer3.2"]));
    assert_shapes("resnet110", &cifar(["layer1.17", "layer2.17", "layer3.17"]));
    assert_shapes("resnet20_projection", &cifar(["res_grp1_3", "res_grp2_3", "res_grp3_3"]));
    assert_shapes(
        "resnet34",
        &[
            ("conv1", [64, 112, 112]),
            ("maxpool", [64, 56, 56]),
            ("layer1.2", [64, 56, 56]),
            ("layer4.2", [512, 7, 7]),
        ],
    );
    assert_shapes(
        "resnet50",
        &[
            ("layer1.0.conv1", [64, 56, 56]),
            ("layer1.2", [256, 56, 56]),
            // The stride is in the 3x3 convolution.
            ("layer2.0.conv1", [128, 56, 56]),
            ("layer2.0.conv2", [128, 28, 28]),
            ("layer3.5", [1024, 14, 14]),
            ("layer4.2", [2048, 7, 7]),
        ],
    );
    assert_shapes(
        "alexnet",
        &[
            ("features.0", [64, 55, 55]),
            ("features.2", [64, 27, 27]),
            ("features.5", [192, 13, 13]),
            ("features.12", [256, 6, 6]),
            ("avgpool", [256, 6, 6]),
        ],
    );
}

#[test]
fn the_option_a_shortcut_is_every_second_pixel_between_zero_channels() {
    let g = graph("resnet20");
    for (block, channels) in [("layer2.0", 8), ("layer3.0", 16)] {
        let pad = g.node(g.find(&format!("{block}.shortcut")).unwrap());
        let Op::PadChannels(p) = pad.op() else { panic!("{pad:?}") };
        assert_eq!((p.before, p.after), (channels, channels));
        let Op::Pool2d(pool) = g.node(pad.inputs()[0]).op() else { panic!("no pooling before {pad:?}") };
        assert_eq!((pool.kernel, pool.stride, pool.padding), ([1, 1], [2, 2], [0, 0]));
    }
    assert!(
        g.nodes().iter().all(|n| !matches!(n.op(), Op::Conv2d(c) if c.bias)),
        "no convolution has a bias"
    );
    // Odd extents: both paths give the half rounded up.
    let odd = Config { input: Some(Shape::map(3, 33, 37)), ..Config::default() };
    let g = cifar_resnet(20, Shortcut::PadChannels, &odd).unwrap();
    assert_eq!(g.node(g.find("layer3.2").unwrap()).shape(), Shape::map(64, 9, 10));
}

#[test]
fn every_network_has_the_agreed_form() {
    for name in NAMES {
        let g = graph(name);
        let input = g.node(g.input()).name();
        let caffe =
            name.starts_with("bvlc") || name.ends_with("projection") || ["lenet", "convnet"].contains(name);
        assert_eq!(input, if caffe { "data" } else { "input" }, "{name}");
        let last = g.nodes().last().unwrap();
        assert_eq!(last.name(), g.node(g.outputs()[0]).name(), "{name}: the last node is the main output");
        assert!(matches!(last.op(), Op::Linear(_)), "{name}: scores");
        assert_eq!(g.outputs().len(), if name.contains("googlenet") { 3 } else { 1 }, "{name}");

        let config = Config { classes: Some(7), softmax: true, ..Config::default() };
        let g = by_name(name, &config).unwrap();
        let (last, scores) = (g.nodes().last().unwrap(), g.nodes().iter().rev().nth(1).unwrap());
        assert_eq!((last.name(), last.op()), ("prob", &Op::Softmax), "{name}");
        assert_eq!(scores.shape(), Shape::Vector(7), "{name}");
        assert!(g.outputs().iter().all(|o| g.node(*o).shape() == Shape::Vector(7)), "{name}");
        assert_eq!(g.output_shape(), Shape::Vector(7), "{name}");
    }
}

#[test]
fn configurations_that_cannot_be_built_are_refused_by_name() {
    for name in NAMES {
        let refused = |config: Config, part: &str| {
            let message = by_name(name, &config).unwrap_err().to_string();
            assert!(message.contains(part), "{name}: {message}");
        };
        refused(Config { classes: Some(0), ..Config::default() }, "out_features");
        refused(Config { input: Some(Shape::Vector(10)), ..Config::default() }, "takes a map");
        refused(Config { input: Some(Shape::map(3, 0, 32)), ..Config::default() }, "0");
    }
    let tiny =
        |channels, extent| Config { input: Some(Shape::map(channels, extent, extent)), ..Config::default() };
    for (name, config, node) in [
        ("lenet", tiny(1, 8), "conv2"),
        ("convnet", tiny(3, 7), "pool3"),
        ("bvlc_alexnet", tiny(3, 10), "conv1"),
        ("bvlc_alexnet", tiny(3, 38), "pool5"),
        ("lenet", tiny(1, 12), "conv2"),
        ("alexnet", tiny(3, 30), "features.5"),
        ("alexnet", tiny(3, 62), "features.12"),
        ("bvlc_googlenet", tiny(3, 46), "loss1/ave_pool"),
    ] {
        let message = by_name(name, &config).unwrap_err().to_string();
        assert!(message.contains(node), "{name}: {message}");
    }
    for (name, config) in [
        ("lenet", tiny(1, 13)),
        ("convnet", tiny(3, 8)),
        ("bvlc_alexnet", tiny(3, 39)),
        ("alexnet", tiny(3, 63)),
        ("bvlc_googlenet", tiny(3, 47)),
        ("googlenet", tiny(3, 16)),
    ] {
        by_name(name, &config).unwrap();
    }
    for depth in [0, 2, 7, 8 + 1, 21, 1000] {
        let e = cifar_resnet(depth, Shortcut::PadChannels, &Config::default()).unwrap_err();
        assert!(matches!(e, Error::Depth(d) if d == depth), "{depth}: {e}");
    }
    for unknown in ["", "resnet", "resnet26", "resnet20_", "LeNet", "_projection", "lenet_projection"] {
        let e = by_name(unknown, &Config::default()).unwrap_err();
        assert!(matches!(&e, Error::UnknownNetwork { .. }), "{unknown}: {e}");
        assert!(e.to_string().contains("googlenet"), "{e}");
    }
}

#[test]
fn force_and_exclusion_name_the_layers_of_the_paper() {
    let network = |name: &str| Network::by_name(name, &Config::default()).unwrap();
    assert_eq!(network("lenet").force_layers, ["conv1", "conv2"]);
    assert_eq!(network("convnet").force_layers, ["conv1", "conv2", "conv3"]);
    assert_eq!(network("bvlc_alexnet").force_layers, ["conv1", "conv2", "conv3", "conv4", "conv5"]);
    assert_eq!(network("bvlc_alexnet_split").force_layers.len(), 10);
    assert_eq!(network("bvlc_googlenet").force_layers.len(), 59);
    for (name, blocks) in [("resnet20", 3), ("resnet20_projection", 3), ("resnet110", 18)] {
        let force = network(name).force_layers;
        assert_eq!(force.len(), 6 * blocks, "{name}");
        assert!(!force.contains(&"conv1".to_owned()), "{name}");
    }
    assert_eq!(
        network("resnet56_projection").exclude,
        ["res_grp2_1_downsampling", "res_grp3_1_downsampling"]
    );
    assert!(network("resnet20").exclude.is_empty());
    assert_eq!(network("resnet18").force_layers.len(), 16);
    assert_eq!(network("resnet50").force_layers.len(), 48);
    assert_eq!(network("resnet50").exclude.len(), 4);
    for name in NAMES {
        let n = network(name);
        for layer in n.force_layers.iter().chain(&n.exclude) {
            let op = n.graph.node(n.graph.find(layer).unwrap()).op();
            assert!(matches!(op, Op::Conv2d(_)), "{name}: {layer}");
        }
        assert!(n.exclude.iter().all(|layer| !n.force_layers.contains(layer)), "{name}");
    }
}

fn deviation(model: &cofilter_graph::Model, tensor: (&str, usize)) -> f64 {
    let data = model.tensors(model.graph().find(tensor.0).unwrap())[tensor.1].data();
    (data.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / data.len() as f64).sqrt()
}

#[test]
fn fillers_are_those_of_the_original() {
    let small = |name: &str, extent: usize| {
        let input = Some(Shape::map(3, extent, extent));
        let config = Config { input, classes: Some(200), ..Config::default() };
        Network::by_name(name, &config).unwrap().model(5).unwrap()
    };
    let near = |found: f64, expected: f64, what: &str| {
        assert!((found / expected - 1.0).abs() < 0.04, "{what}: {found}, expected {expected}");
    };
    let alexnet = small("bvlc_alexnet_split", 67);
    near(deviation(&alexnet, ("conv1_group0", 0)), 0.01, "conv1");
    near(deviation(&alexnet, ("fc6", 0)), 0.005, "fc6");
    near(deviation(&alexnet, ("fc8", 0)), 0.01, "fc8");
    for (layer, bias) in
        [("conv1_group1", 0.0), ("conv2_group0", 0.1), ("conv3_group0", 0.0), ("fc7", 0.1), ("fc8", 0.0)]
    {
        let found = alexnet.tensors(alexnet.graph().find(layer).unwrap())[1].data();
        assert!(found.iter().all(|v| *v == bias), "{layer}");
    }

    let convnet = small("convnet", 32);
    near(deviation(&convnet, ("conv1", 0)), 1e-4, "convnet conv1");
    near(deviation(&convnet, ("conv2", 0)), 0.01, "convnet conv2");

    let lenet = small("lenet", 28);
    near(deviation(&lenet, ("ip1", 0)), (1.0f64 / 800.0).sqrt(), "xavier has variance 1 / fan-in");

    // The quirk of the authors' generator: factors of batch normalisation with random sign.
    let authors = small("resnet110_projection", 32);
    let factors: Vec<f32> = authors
        .graph()
        .iter()
        .filter(|(_, n)| matches!(n.op(), Op::BatchNorm(_)))
        .flat_map(|(id, _)| authors.tensors(id)[0].data().to_vec())
        .collect();
    let squares: f64 = factors.iter().map(|v| f64::from(*v).powi(2)).sum();
    near((squares / factors.len() as f64).sqrt(), 2.0f64.sqrt(), "factors");
    let negative = factors.iter().filter(|v| **v < 0.0).count() as f64 / factors.len() as f64;
    assert!((negative - 0.5).abs() < 0.05, "{negative} of the factors are negative");

    let plain = small("resnet20", 32);
    let bn = plain.tensors(plain.graph().find("bn1").unwrap());
    assert!(bn[0].data().iter().all(|v| *v == 1.0) && bn[1].data().iter().all(|v| *v == 0.0));
    near(deviation(&plain, ("layer3.2.conv2", 0)), (2.0f64 / 576.0).sqrt(), "msra");

    let resnet = small("resnet18", 64);
    near(deviation(&resnet, ("layer2.0.conv1", 0)), (2.0f64 / (128.0 * 9.0)).sqrt(), "fan-out, not fan-in");
    near(deviation(&resnet, ("fc", 0)), (1.0f64 / (3.0 * 512.0)).sqrt(), "PyTorch's default");

    let googlenet = Network::by_name("bvlc_googlenet", &Config::default()).unwrap();
    assert_eq!(googlenet.init.bias, Filler::Constant(0.2));
    assert_eq!(googlenet.init.tensors["loss1/classifier.bias"], Filler::Constant(0.0));
    assert_eq!(googlenet.init.tensors.len(), 3);
    let torch = Network::by_name("googlenet", &Config::default()).unwrap();
    assert_eq!(torch.init.tensors["inception4c.branch3.1.conv.weight"], Filler::Gaussian(0.01));
}

#[test]
fn normalisation_constants_are_those_of_the_original() {
    let constants = |name: &str| {
        let g = graph(name);
        let mut found: Vec<(f32, f32)> = Vec::new();
        for node in g.nodes() {
            if let Op::BatchNorm(bn) = node.op()
                && !found.contains(&(bn.eps, bn.momentum))
            {
                found.push((bn.eps, bn.momentum));
            }
        }
        found
    };
    assert_eq!(constants("resnet20"), [(1e-5, 0.1)]);
    assert_eq!(constants("resnet20_projection"), [(1e-5, 0.001)]);
    assert_eq!(constants("resnet50"), [(1e-5, 0.1)]);
    assert_eq!(constants("googlenet"), [(1e-3, 0.1)]);
}
