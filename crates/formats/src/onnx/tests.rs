//! Files that lie about lengths, in ways that random damage seldom hits.

use super::from_bytes;
use super::proto::{
    Attribute, Described, Extent, ExtentValue, Extents, Graph, Kind, Model, Node, OperatorSet, Tensor,
    TensorKind, kind,
};
use prost::Message as _;
use std::path::Path;

fn node(op: &str, inputs: &[&str], output: &str) -> Node {
    Node {
        inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
        outputs: vec![output.into()],
        op_type: op.into(),
        ..Node::default()
    }
}

fn tensor(name: &str, dims: &[i64], floats: &[f32]) -> Tensor {
    Tensor {
        name: name.into(),
        dims: dims.to_vec(),
        kind: kind::FLOAT,
        floats: floats.to_vec(),
        ..Tensor::default()
    }
}

fn described(name: &str, dims: &[i64]) -> Described {
    let dims = dims.iter().map(|dim| Extent { value: Some(ExtentValue::Fixed(*dim)) }).collect();
    let tensor = TensorKind { element: kind::FLOAT, shape: Some(Extents { dims }) };
    Described { name: name.into(), kind: Some(Kind { tensor: Some(tensor) }) }
}

/// What is said of a graph from `x` to `y`.
fn problem(input: &[i64], nodes: Vec<Node>, initializers: Vec<Tensor>) -> String {
    let graph = Graph {
        nodes,
        initializers,
        inputs: vec![described("x", input)],
        outputs: vec![described("y", &[])],
        ..Graph::default()
    };
    let opsets = vec![OperatorSet { domain: String::new(), version: 17 }];
    let file = Model { ir_version: 8, graph: Some(graph), opsets, ..Model::default() };
    from_bytes(file.encode_to_vec(), Path::new("lies.onnx"), None).expect_err("a file that lies").to_string()
}

#[test]
fn extents_of_nothing_do_not_hide_large_ones() {
    let far = 1 << 40;
    for dims in [&[0, far, far][..], &[far, 0, far], &[0, 1 << 62, 4]] {
        let error = problem(&[1, 4], vec![node("Relu", &["x"], "y")], vec![tensor("w", dims, &[])]);
        assert!(error.contains("`w`") && error.contains("too large"), "{error}");
    }
    let deep = [1; 17];
    let error = problem(&[1, 4], vec![node("Relu", &["x"], "y")], vec![tensor("w", &deep, &[1.0])]);
    assert!(error.contains("17 extents"), "{error}");
}

#[test]
fn weights_without_numbers_are_refused() {
    for dims in [[0, 1 << 50], [1 << 50, 0]] {
        let error = problem(&[1, 4], vec![node("MatMul", &["x", "w"], "y")], vec![tensor("w", &dims, &[])]);
        assert!(error.contains("extent of 0"), "{error}");
    }
    let pads = Attribute { name: "pads".into(), ints: vec![0, 0, 0, 1], ..Attribute::default() };
    let conv = Node { attributes: vec![pads], ..node("Conv", &["x", "w"], "y") };
    let error = problem(&[1, 3, 8, 8], vec![conv], vec![tensor("w", &[1, 3, 0, 3], &[])]);
    assert!(error.contains("extent of 0"), "{error}");
}

#[test]
fn a_small_file_asks_for_no_large_memory() {
    let add = vec![node("Add", &["x", "w"], "y")];
    let error = problem(&[1, 1 << 40, 1, 1], add, vec![tensor("w", &[1], &[1.0])]);
    assert!(error.contains("not supported"), "{error}");
    // One weight, turned again and again.
    let names: Vec<String> = (0..4000).map(|at| format!("v{at}")).collect();
    let mut nodes = vec![node("MatMul", &["x", "w"], &names[0])];
    nodes.extend(names.windows(2).map(|pair| node("MatMul", &[&pair[0], "w"], &pair[1])));
    nodes.push(node("Relu", &[names.last().map_or("", String::as_str)], "y"));
    let error = problem(&[1, 64], nodes, vec![tensor("w", &[64, 64], &[0.5; 4096])]);
    assert!(error.contains("more than such a file could mean"), "{error}");
}

/// One weight, scaled for each of many layers.
#[test]
fn scaled_copies_of_a_weight_are_counted() {
    let names: Vec<String> = (0..600).map(|at| format!("v{at}")).collect();
    let mut nodes = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let transposed = Attribute { name: "transB".into(), int: Some(1), ..Attribute::default() };
        let x = if at == 0 { "x" } else { names[at - 1].as_str() };
        let product = format!("p{at}");
        nodes.push(Node { attributes: vec![transposed], ..node("Gemm", &[x, "w"], &product) });
        nodes.push(node("Mul", &[&product, "s"], name));
    }
    nodes.push(node("Relu", &["v599"], "y"));
    let tensors = vec![tensor("w", &[64, 64], &[0.5; 4096]), tensor("s", &[], &[2.0])];
    let error = problem(&[1, 64], nodes, tensors);
    assert!(error.contains("more than such a file could mean"), "{error}");
}
