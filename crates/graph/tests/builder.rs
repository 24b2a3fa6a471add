//! What the builder accepts, what a finished graph answers, and what both refuse.

#![expect(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use cofilter_graph::{Conv2d, Error, Filler, Graph, GraphBuilder, Init, Model, NodeId, Op, Shape};

fn start() -> (GraphBuilder, NodeId) {
    let mut b = Graph::builder();
    let x = b.input("data", Shape::map(3, 8, 8)).unwrap();
    (b, x)
}

#[test]
fn names_are_unique_and_of_usable_characters() {
    let (mut b, x) = start();
    for name in ["conv1", "inception_3a/3x3_reduce", "layer1.0.conv1", "a-b", "0", "A"] {
        b.relu(name, x).unwrap();
    }
    for name in ["", " ", "a b", "a\n", "a\"", "café", "a:b", "data", "conv1", "a\\b", "a\0"] {
        let e = b.relu(name, x).unwrap_err();
        assert!(matches!(&e, Error::Name(n) if n == name), "{name:?}: {e}");
    }
    // Names are told apart by case.
    b.relu("a", x).unwrap();
}

#[test]
fn a_refused_node_leaves_no_trace() {
    let (mut b, x) = start();
    let len = b.len();
    assert!(b.conv2d("conv1", x, Conv2d::new(0, 3)).is_err());
    assert_eq!(b.len(), len);
    // Its name is free.
    let y = b.conv2d("conv1", x, Conv2d::new(4, 3)).unwrap();
    assert_eq!(b.shape(y), Shape::map(4, 6, 6));
}

#[test]
fn the_input_is_the_first_node_and_the_only_one() {
    let (mut b, _) = start();
    let e = b.input("again", Shape::Vector(3)).unwrap_err();
    assert!(e.to_string().contains("`again`") && e.to_string().contains("one input"), "{e}");
    let mut b = Graph::builder();
    let e = b.add("relu", Op::Relu, &[]).unwrap_err();
    assert!(e.to_string().contains("first node"), "{e}");
    assert!(b.is_empty());
}

#[test]
fn finish_demands_input_and_distinct_outputs() {
    let message = |r: Result<Graph, Error>| r.unwrap_err().to_string();
    assert!(message(Graph::builder().finish(&[])).contains("no input"));
    let (b, x) = start();
    assert!(message(b.clone().finish(&[])).contains("no output"));
    assert!(message(b.clone().finish(&[x, x])).contains("twice"));
    let mut longer = b.clone();
    let y = longer.relu("relu", x).unwrap();
    assert!(message(b.clone().finish(&[y])).contains("output 1 of 1"));
    // A network that gives its input.
    assert_eq!(b.finish(&[x]).unwrap().output_shape(), Shape::map(3, 8, 8));
}

#[test]
fn a_graph_answers_for_its_nodes() {
    let (mut b, x) = start();
    let c = b.conv2d("conv1", x, Conv2d { groups: 3, ..Conv2d::new(6, 3) }).unwrap();
    let r = b.relu("relu1", c).unwrap();
    let s = b.sum("sum", &[c, r, c]).unwrap();
    let f = b.flatten("flatten", s).unwrap();
    let y = b.linear("ip1", f, 10).unwrap();
    let g = b.finish(&[y, r]).unwrap();

    assert_eq!(g.input(), x);
    assert_eq!(g.outputs(), [y, r]);
    assert_eq!((g.input_shape(), g.output_shape()), (Shape::map(3, 8, 8), Shape::Vector(10)));
    assert_eq!(g.find("sum").unwrap(), s);
    assert_eq!(g.node(s).inputs(), [c, r, c]);
    assert_eq!(g.input_shapes(y), [Shape::Vector(216)]);
    assert_eq!(g.tensor_name(c, 1), "conv1.bias");
    let consumers = g.consumers();
    // Twice, as it reads it twice.
    assert_eq!(consumers[c.index()], [r, s, s]);
    assert!(consumers[y.index()].is_empty());
    let e = g.find("conv2").unwrap_err();
    assert!(e.to_string().contains("`conv2`") && e.to_string().contains("relu1"), "{e}");

    let cost = g.cost();
    assert_eq!((cost.nodes()[c.index()].params, cost.nodes()[c.index()].macs), (6 * 9 + 6, 6 * 9 * 36));
    assert_eq!((cost.nodes()[y.index()].params, cost.nodes()[y.index()].macs), (2160 + 10, 2160));
    assert_eq!(cost.params(), 60 + 2170);
    assert_eq!(cost.macs(), 1944 + 2160);
}

#[test]
fn batch_normalisation_counts_what_is_learnt() {
    let (mut b, x) = start();
    let y = b.batch_norm("bn", x, cofilter_graph::BatchNorm::default()).unwrap();
    let g = b.finish(&[y]).unwrap();
    assert_eq!(g.cost().params(), 6, "factor and offset of three channels, no statistics");
}

#[test]
fn drawing_is_repeatable_and_refuses_names_it_does_not_know() {
    let graph = || {
        let (mut b, x) = start();
        let x = b.conv2d("conv1", x, Conv2d::new(4, 3)).unwrap();
        let x = b.batch_norm("bn1", x, cofilter_graph::BatchNorm::default()).unwrap();
        b.finish(&[x]).unwrap()
    };
    let mut init = Init::default();
    init.tensors.insert("bn1.weight".into(), Filler::Constant(3.0));
    let m = Model::init(graph(), &init, 1).unwrap();
    assert_eq!(m, Model::init(graph(), &init, 1).unwrap());
    assert_ne!(m, Model::init(graph(), &init, 2).unwrap());
    let bn = m.tensors(m.graph().find("bn1").unwrap());
    let values: Vec<f32> = bn.iter().map(|a| a.data()[2]).collect();
    assert_eq!(values, [3.0, 0.0, 0.0, 1.0], "factor by exception, offset, mean, variance");

    for unknown in ["bn1.gamma", "conv2.weight", "conv1", ""] {
        let mut init = Init::default();
        init.tensors.insert(unknown.into(), Filler::Xavier);
        let e = Model::init(graph(), &init, 1).unwrap_err();
        assert!(e.to_string().contains(&format!("`{unknown}`")), "{e}");
    }
}
