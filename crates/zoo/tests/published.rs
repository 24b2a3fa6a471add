//! Parameter counts and operations equal the published ones.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use cofilter_graph::{Graph, Op};
use cofilter_zoo::{Config, by_name};

fn graph(name: &str) -> Graph {
    by_name(name, &Config::default()).unwrap()
}

/// The networks without auxiliary heads.
fn lean(name: &str) -> Graph {
    by_name(name, &Config { auxiliary: false, ..Config::default() }).unwrap()
}

fn macs(graph: &Graph, name: &str) -> usize {
    graph.cost().nodes()[graph.find(name).unwrap().index()].macs
}

#[test]
fn parameters_are_the_published_ones() {
    let published = [
        ("lenet", 431_080),
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("bvlc_alexnet", 60_965_224),
        ("alexnet", 61_100_840),
        ("googlenet", 13_004_888),
    ];
    for (name, params) in published {
        assert_eq!(graph(name).cost().params(), params, "{name}");
    }
    assert_eq!(lean("googlenet").cost().params(), 6_624_904);
}

#[test]
fn parameters_without_a_published_count_follow_from_the_definition() {
    let conv = |n: usize, c: usize, k: usize| n * c * k * k;
    let convnet = conv(32, 3, 5) + 32 + conv(32, 32, 5) + 32 + conv(64, 32, 5) + 64 + 1024 * 10 + 10;
    assert_eq!(graph("convnet").cost().params(), convnet);

    for (depth, n) in [(20, 3), (32, 5), (44, 7), (56, 9), (110, 18)] {
        let block = |from: usize, to: usize| conv(to, from, 3) + conv(to, to, 3) + 4 * to;
        let stage = |from: usize, to: usize| block(from, to) + (n - 1) * block(to, to);
        let body = conv(16, 3, 3) + 32 + stage(16, 16) + stage(16, 32) + stage(32, 64) + 64 * 10 + 10;
        assert_eq!(graph(&format!("resnet{depth}")).cost().params(), body, "{depth}");
        let projected = body + 16 + conv(32, 16, 1) + conv(64, 32, 1);
        assert_eq!(graph(&format!("resnet{depth}_projection")).cost().params(), projected, "{depth}");
    }

    // Both towers of conv1 and conv3 see the whole input, the others only their own half, as with groups.
    assert_eq!(graph("bvlc_alexnet_split").cost().params(), 60_965_224);
}

/// Filters of each module in the order 1x1, 3x3 reduction, 3x3, 5x5 reduction, 5x5, projection.
const GOOGLENET: [[usize; 6]; 9] = [
    [64, 96, 128, 16, 32, 32],
    [128, 128, 192, 32, 96, 64],
    [192, 96, 208, 16, 48, 64],
    [160, 112, 224, 24, 64, 64],
    [128, 128, 256, 24, 64, 64],
    [112, 144, 288, 32, 64, 64],
    [256, 160, 320, 32, 128, 128],
    [256, 160, 320, 32, 128, 128],
    [384, 192, 384, 48, 128, 128],
];

#[test]
fn bvlc_googlenet_follows_from_the_table_of_its_filters() {
    let conv = |n: usize, c: usize, k: usize| n * (c * k * k + 1);
    let area = |module: usize| [28usize, 28, 14, 14, 14, 14, 14, 7, 7][module].pow(2);
    let mut params = conv(64, 3, 7) + conv(64, 64, 1) + conv(192, 64, 3);
    let mut macs = 64 * 3 * 49 * 112 * 112 + (64 * 64 + 192 * 64 * 9) * 56 * 56;
    let mut heads = 0;
    let mut c = 192;
    for (module, [c1, r3, c3, r5, c5, proj]) in GOOGLENET.into_iter().enumerate() {
        params += conv(c1, c, 1)
            + conv(r3, c, 1)
            + conv(c3, r3, 3)
            + conv(r5, c, 1)
            + conv(c5, r5, 5)
            + conv(proj, c, 1);
        macs += (c1 * c + r3 * c + c3 * r3 * 9 + r5 * c + c5 * r5 * 25 + proj * c) * area(module);
        c = c1 + c3 + c5 + proj;
        if module == 2 || module == 5 {
            // 4x4 after the average pooling.
            heads += conv(128, c, 1) + conv(1024, 128 * 16, 1) + conv(1000, 1024, 1);
        }
    }
    assert_eq!(c, 1024);
    params += conv(1000, 1024, 1);
    macs += 1000 * 1024;
    assert_eq!(lean("bvlc_googlenet").cost().params(), params);
    assert_eq!(lean("bvlc_googlenet").cost().macs(), macs);
    assert_eq!(graph("bvlc_googlenet").cost().params(), params + heads);
    // The figures that are commonly quoted for the Caffe model.
    assert_eq!((params, params + heads), (6_998_552, 13_378_280));
}

#[test]
fn operations_of_alexnet_are_those_of_the_paper() {
    let g = graph("bvlc_alexnet");
    let millions = [105.4, 223.9, 149.5, 112.1, 74.8];
    let mut total = 0;
    for (layer, expected) in (1..=5).zip(millions) {
        let found = macs(&g, &format!("conv{layer}"));
        assert_eq!((found as f64 / 1e5).round() / 10.0, expected, "conv{layer}: {found}");
        total += found;
    }
    assert_eq!((total as f64 / 1e5).round() / 10.0, 665.8);

    // Two towers multiply as often as two groups; conv1 and conv3 are not grouped and cost the same too.
    let split = graph("bvlc_alexnet_split");
    for layer in 1..=5 {
        let halves: usize = (0..2).map(|group| macs(&split, &format!("conv{layer}_group{group}"))).sum();
        assert_eq!(halves, macs(&g, &format!("conv{layer}")), "conv{layer}");
    }
}

#[test]
fn operations_of_resnets() {
    for name in ["resnet20", "resnet20_projection"] {
        let g = graph(name);
        let three_by_three: usize = g
            .iter()
            .filter(|(_, node)| matches!(node.op(), Op::Conv2d(c) if c.kernel == [3, 3]))
            .map(|(id, _)| g.cost().nodes()[id.index()].macs)
            .sum();
        assert_eq!((three_by_three as f64 / 1e4).round() / 100.0, 40.55, "{name}");
    }
    // GFLOPs of torchvision's table of models, which counts a multiply-accumulate as one.
    for (name, published) in [("resnet18", 1.81), ("resnet34", 3.66), ("resnet50", 4.09), ("alexnet", 0.71)] {
        let giga = graph(name).cost().macs() as f64 / 1e9;
        assert_eq!((giga * 100.0).round() / 100.0, published, "{name}: {giga}");
    }
    assert_eq!((lean("googlenet").cost().macs() as f64 / 1e7).round() / 100.0, 1.50);
}
