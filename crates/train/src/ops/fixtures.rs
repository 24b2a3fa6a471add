//! Every case of `fixtures/ops` (results and gradients from PyTorch) through layers, compositions and [`Net`].

use super::{Arg, Saved, Statistics, compose, layer};
use crate::{Mode, Net};
use candle_core::{Device, Tensor, Var};
use cofilter_graph::{Array, Conv2d, Graph, Model, Node, Op, Params, Role, Shape};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::PathBuf;

struct Case {
    name: String,
    op: Op,
    mode: Mode,
    tensors: BTreeMap<String, Array>,
}

/// All cases.
fn cases() -> Vec<Case> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/ops");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    assert!(paths.len() > 50, "{} cases", paths.len());
    paths.iter().map(|path| load(path)).collect()
}

fn load(path: &std::path::Path) -> Case {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let array = |name: &str| {
        let view = file.tensor(name).unwrap();
        let data: Vec<f32> =
            view.data().chunks_exact(4).map(|w| f32::from_le_bytes(w.try_into().unwrap())).collect();
        (name.to_owned(), Array::new(view.shape().to_vec(), data))
    };
    let mode = match metadata["mode"].as_str() {
        "train" => Mode::Train { seed: 0, iteration: 0 },
        _ => Mode::Eval,
    };
    let op = serde_json::from_str(&metadata["op"]).unwrap();
    let tensors = file.names().into_iter().map(array).collect();
    Case { name: metadata["case"].clone(), op, mode, tensors }
}

fn shape(array: &Array) -> Shape {
    match array.dims()[1..] {
        [c, h, w] => Shape::map(c, h, w),
        [len] => Shape::Vector(len),
        _ => panic!("{:?}", array.dims()),
    }
}

impl Case {
    fn inputs(&self) -> Vec<(String, &Array)> {
        match self.tensors.get("input") {
            Some(only) => vec![("input".into(), only)],
            None => (0..)
                .map(|i| format!("input.{i}"))
                .map_while(|name| self.tensors.get(&name).map(|a| (name, a)))
                .collect(),
        }
    }

    fn slots(&self) -> Vec<(&'static str, Role, &Array)> {
        let shapes: Vec<Shape> = self.inputs().iter().map(|(_, a)| shape(a)).collect();
        self.op.slots(&shapes).into_iter().map(|s| (s.name, s.role, &self.tensors[s.name])).collect()
    }

    /// The op on inputs of these shapes; all but the first come from nodes that only give the right shape.
    fn graph(&self) -> (Graph, Node) {
        let inputs = self.inputs();
        let mut b = Graph::builder();
        let x = b.input("x", shape(inputs[0].1)).unwrap();
        let mut ids = vec![x];
        for (name, array) in &inputs[1..] {
            let other = match shape(array) {
                same if same == shape(inputs[0].1) => b.relu(name, x),
                Shape::Map { channels, .. } => b.conv2d(name, x, Conv2d::new(channels, 1)),
                Shape::Vector(len) => b.linear(name, x, len),
            };
            ids.push(other.unwrap());
        }
        let id = b.add("node", self.op.clone(), &ids).unwrap();
        let graph = b.finish(&[id]).unwrap();
        let node = graph.node(id).clone();
        (graph, node)
    }

    fn close(&self, what: &str, found: &[f32], expected: &str) {
        let expected = self.tensors[expected].data();
        assert_eq!(found.len(), expected.len(), "{} {what}", self.name);
        let scale = expected.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            assert!((f - e).abs() <= 2e-5 * scale, "{} {what}[{i}]: {f}, expected {e}", self.name);
        }
    }
}

#[test]
fn layers_match_pytorch() {
    for case in cases() {
        let (_, node) = case.graph();
        let slots = case.slots();
        let statistics: Vec<&Array> = slots.iter().filter(|s| s.1 == Role::Statistic).map(|s| s.2).collect();
        let running = (case.mode == Mode::Eval && !statistics.is_empty())
            .then(|| Statistics { mean: statistics[0].data().to_vec(), var: statistics[1].data().to_vec() });
        let Some(layer) = layer(&node, case.mode, running).unwrap() else {
            assert!(matches!(case.op, Op::Flatten | Op::Dropout { .. }), "{}", case.name);
            continue;
        };
        let learnt = slots.iter().filter(|s| s.1 != Role::Statistic).map(|s| (s.0.to_owned(), s.2));
        let operands: Vec<(String, &Array)> = case.inputs().into_iter().chain(learnt).collect();
        let args: Vec<Arg<'_>> =
            operands.iter().map(|(_, a)| Arg { data: a.data(), dims: a.dims() }).collect();
        let dims = layer.dst_dims(&args.iter().map(|a| a.dims).collect::<Vec<_>>());
        assert_eq!(dims, case.tensors["expected"].dims(), "{}", case.name);
        let mut dst = vec![f32::NAN; dims.iter().product()];
        let mut saved = Saved::Nothing;
        layer.forward(&args, &mut dst, &mut saved, true);
        case.close("value", &dst, "expected");
        let mut grads: Vec<Vec<f32>> = args.iter().map(|a| vec![f32::NAN; a.data.len()]).collect();
        let mut places: Vec<Option<&mut [f32]>> = grads.iter_mut().map(|g| Some(g.as_mut_slice())).collect();
        layer.backward(&args, &dst, &saved, case.tensors["grad_output"].data(), &mut places);
        for ((name, _), grad) in operands.iter().zip(&grads) {
            case.close(&format!("gradient of {name}"), grad, &format!("grad.{name}"));
        }
    }
}

/// The formulation of other devices, in `f32`, with candle's gradients.
#[test]
fn compositions_match_pytorch() {
    for case in cases() {
        let (_, node) = case.graph();
        let var = |a: &Array| Var::from_slice(a.data(), a.dims(), &Device::Cpu).unwrap();
        let inputs: Vec<(String, Var)> = case.inputs().into_iter().map(|(n, a)| (n, var(a))).collect();
        let slots: Vec<(String, Role, Var)> =
            case.slots().into_iter().map(|(n, role, a)| (n.to_owned(), role, var(a))).collect();
        let x: Vec<&Tensor> = inputs.iter().map(|(_, v)| v.as_tensor()).collect();
        let params: Vec<&Tensor> = slots.iter().map(|(_, _, v)| v.as_tensor()).collect();
        let value = compose::compose(&node, &x, &params, case.mode).unwrap();
        case.close("value", &value.flatten_all().unwrap().to_vec1().unwrap(), "expected");
        let weights = &case.tensors["grad_output"];
        let weights = Tensor::from_slice(weights.data(), weights.dims(), &Device::Cpu).unwrap();
        let grads = (value * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let learnt = slots.iter().filter(|s| s.1 != Role::Statistic).map(|(n, _, v)| (n, v));
        for (name, var) in inputs.iter().map(|(n, v)| (n, v)).chain(learnt) {
            let grad = grads.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            case.close(&format!("gradient of {name}"), &grad, &format!("grad.{name}"));
        }
    }
}

/// Ops of one input as a network: value, gradient of the images, running statistics.
#[test]
fn networks_of_one_node_match_pytorch() {
    for case in cases().iter().filter(|c| c.inputs().len() == 1) {
        let (graph, _) = case.graph();
        let arrays = case.slots().into_iter().map(|(_, _, a)| a.clone()).collect();
        let model = Model::new(graph, Params::new(vec![Vec::new(), arrays])).unwrap();
        let net = Net::new(&model).unwrap();
        let input = &case.tensors["input"];
        let images = Var::from_slice(input.data(), input.dims(), &Device::Cpu).unwrap();
        let value = net.forward(&images, case.mode).unwrap().remove(0);
        assert_eq!(value.dims(), case.tensors["expected"].dims());
        case.close("value", &value.flatten_all().unwrap().to_vec1().unwrap(), "expected");
        let weights = &case.tensors["grad_output"];
        let weights = Tensor::from_slice(weights.data(), weights.dims(), &Device::Cpu).unwrap();
        let grads = (value * weights).unwrap().sum_all().unwrap().backward().unwrap();
        case.close(
            "gradient",
            &grads.get(&images).unwrap().flatten_all().unwrap().to_vec1().unwrap(),
            "grad.input",
        );
        let id = net.graph().outputs()[0];
        for (slot, (name, role, before)) in case.slots().into_iter().enumerate() {
            let now: Vec<f32> = net.params().get(id)[slot].flatten_all().unwrap().to_vec1().unwrap();
            match case.tensors.contains_key(&format!("expected.{name}")) {
                true => case.close(name, &now, &format!("expected.{name}")),
                false => assert_eq!(now, before.data(), "{} {name} {role:?}", case.name),
            }
        }
    }
}
