//! The node list of every network, as kept in `tests/node_lists/`.
//!
//! After an intended change, run with `COFILTER_BLESS=1` and look at the difference.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use cofilter_graph::{Graph, Op};
use cofilter_zoo::{Config, NAMES, by_name};
use std::fmt::Write as _;

/// One line a node: name, kind and attributes, inputs, shape.
fn listing(graph: &Graph) -> String {
    let mut text = String::new();
    for node in graph.nodes() {
        let inputs: Vec<&str> = node.inputs().iter().map(|i| graph.node(*i).name()).collect();
        writeln!(text, "{} = {}({}) {}", node.name(), attributes(node.op()), inputs.join(", "), node.shape())
            .unwrap();
    }
    let outputs: Vec<&str> = graph.outputs().iter().map(|o| graph.node(*o).name()).collect();
    writeln!(text, "outputs {}", outputs.join(", ")).unwrap();
    text
}

/// Kind and what of the attributes is unusual.
fn attributes(op: &Op) -> String {
    match op {
        Op::Conv2d(c) => {
            let mut text = format!(
                "conv {}@{}x{} s{} p{}",
                c.out_channels, c.kernel[0], c.kernel[1], c.stride[0], c.padding[0]
            );
            if c.groups > 1 {
                write!(text, " g{}", c.groups).unwrap();
            }
            if !c.bias {
                text.push_str(" no bias");
            }
            assert_eq!((c.stride[0], c.padding[0], c.dilation), (c.stride[1], c.padding[1], [1, 1]));
            text
        }
        Op::Pool2d(p) => {
            format!("{:?} {}/{} p{} {:?}", p.kind, p.kernel[0], p.stride[0], p.padding[0], p.rounding)
        }
        Op::AdaptiveAvgPool { output } => format!("adaptive average {}x{}", output[0], output[1]),
        Op::BatchNorm(bn) => format!("batch norm eps {:e} momentum {}", bn.eps, bn.momentum),
        Op::Lrn(l) => format!("lrn {:?} n{} alpha {:e} beta {} k {}", l.region, l.size, l.alpha, l.beta, l.k),
        Op::Dropout { p } => format!("dropout {p}"),
        Op::PadChannels(p) => format!("pad channels {}+{}", p.before, p.after),
        other => other.kind().to_owned(),
    }
}

#[test]
fn node_lists_are_those_that_were_reviewed() {
    let folder = format!("{}/tests/node_lists", env!("CARGO_MANIFEST_DIR"));
    for name in NAMES {
        let found = listing(&by_name(name, &Config::default()).unwrap());
        let path = format!("{folder}/{name}.txt");
        if std::env::var_os("COFILTER_BLESS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &found).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let different = kept.lines().zip(found.lines()).find(|(a, b)| a != b);
        assert!(kept == found, "{name}: kept and found differ first at {different:?}");
    }
}
