//! Each op three ways: the layer over kernels in `f32`, the composition in `f64`, and central differences of the latter.

use super::{Arg, Layer, Saved, compose, layer, tape};
use crate::Mode;
use candle_core::{DType, Device, Tensor, Var};
use cofilter_graph::{
    BatchNorm, Conv2d, Graph, Linear, Lrn, LrnRegion, Node, Op, PadChannels, Pool2d, PoolKind, Rounding,
    Shape,
};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const TRAIN: Mode = Mode::Train { seed: 5, iteration: 3 };

/// One op with the extents of all its operands, inputs first.
struct Case {
    name: String,
    node: Node,
    mode: Mode,
    dims: Vec<Vec<usize>>,
    inputs: usize,
    /// Operands that are learnt or given, that is, differentiated; the rest are statistics.
    differentiable: usize,
}

fn case(name: &str, op: Op, shapes: &[Shape], batch: usize) -> Case {
    case_in(name, op, shapes, batch, TRAIN)
}

fn case_in(name: &str, op: Op, shapes: &[Shape], batch: usize, mode: Mode) -> Case {
    // A graph has one input; other operands come from nodes that only give the right shape.
    let mut b = Graph::builder();
    let x = b.input("x", shapes[0]).unwrap();
    let mut operands = vec![x];
    for (i, shape) in shapes.iter().enumerate().skip(1) {
        let name = format!("x{i}");
        operands.push(match (shape, shapes[0]) {
            (same, first) if *same == first => b.relu(&name, x).unwrap(),
            (Shape::Map { channels, .. }, _) => b.conv2d(&name, x, Conv2d::new(*channels, 1)).unwrap(),
            (Shape::Vector(len), _) => b.linear(&name, x, *len).unwrap(),
        });
    }
    let node = b.add("node", op.clone(), &operands).unwrap();
    let graph = b.finish(&[node]).unwrap();
    let slots = op.slots(shapes);
    let mut dims: Vec<Vec<usize>> =
        shapes.iter().map(|s| std::iter::once(batch).chain(s.dims()).collect()).collect();
    dims.extend(slots.iter().map(|s| s.dims.clone()));
    let statistics = slots.iter().filter(|s| s.role == cofilter_graph::Role::Statistic).count();
    let differentiable = dims.len() - statistics;
    Case {
        name: name.into(),
        node: graph.node(node).clone(),
        mode,
        dims,
        inputs: shapes.len(),
        differentiable,
    }
}

fn pool(
    kind: PoolKind,
    rounding: Rounding,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
) -> Op {
    Op::Pool2d(Pool2d { kind, kernel, stride, padding, rounding, count_padding: false })
}

fn cases() -> Vec<Case> {
    let map = Shape::map;
    let conv = |c: Conv2d| Op::Conv2d(c);
    let plain = Conv2d::new(4, 3);
    let wide = Conv2d { kernel: [3, 1], stride: [2, 1], padding: [1, 2], dilation: [1, 2], ..plain.clone() };
    let mut cases = vec![
        case("conv", conv(plain.clone()), &[map(3, 5, 6)], 2),
        case(
            "conv padded",
            conv(Conv2d { padding: [1; 2], bias: false, ..plain.clone() }),
            &[map(3, 5, 6)],
            2,
        ),
        case(
            "conv strided",
            conv(Conv2d { stride: [2; 2], padding: [1; 2], ..plain.clone() }),
            &[map(3, 6, 7)],
            2,
        ),
        case(
            "conv grouped",
            conv(Conv2d { groups: 2, padding: [1; 2], ..plain.clone() }),
            &[map(4, 4, 5)],
            2,
        ),
        case("conv by channel", conv(Conv2d { groups: 4, ..plain.clone() }), &[map(4, 4, 5)], 1),
        case("conv dilated", conv(Conv2d { dilation: [2; 2], ..plain.clone() }), &[map(2, 6, 5)], 1),
        case("conv 3x1", conv(Conv2d { dilation: [1, 1], ..wide.clone() }), &[map(2, 5, 4)], 2),
        case(
            "conv 1x3",
            conv(Conv2d { kernel: [1, 3], padding: [0, 1], ..plain.clone() }),
            &[map(2, 4, 5)],
            2,
        ),
        case("conv 1x1", conv(Conv2d::new(5, 1)), &[map(3, 3, 4)], 2),
        case("conv mixed", conv(wide), &[map(2, 6, 5)], 2),
        case("linear", Op::Linear(Linear { out_features: 4, bias: true }), &[Shape::Vector(6)], 3),
        case("linear plain", Op::Linear(Linear { out_features: 1, bias: false }), &[Shape::Vector(6)], 3),
        case("batch norm", Op::BatchNorm(BatchNorm::default()), &[map(3, 4, 3)], 4),
        case_in("batch norm eval", Op::BatchNorm(BatchNorm::default()), &[map(3, 4, 3)], 2, Mode::Eval),
        case("relu", Op::Relu, &[map(3, 4, 5)], 2),
        case("relu vector", Op::Relu, &[Shape::Vector(7)], 2),
        case("global average", Op::AdaptiveAvgPool { output: [1, 1] }, &[map(3, 4, 5)], 2),
        case("adaptive average", Op::AdaptiveAvgPool { output: [3, 2] }, &[map(2, 7, 5)], 2),
        case("adaptive upwards", Op::AdaptiveAvgPool { output: [5, 4] }, &[map(2, 3, 3)], 1),
        case("dropout", Op::Dropout { p: 0.4 }, &[map(3, 4, 5)], 2),
        case("add", Op::Add, &[map(2, 3, 4); 2], 2),
        case("add three", Op::Add, &[map(2, 3, 4); 3], 2),
        case("concat", Op::Concat, &[map(2, 3, 4), map(1, 3, 4), map(4, 3, 4)], 2),
        case("concat vectors", Op::Concat, &[Shape::Vector(3), Shape::Vector(2)], 2),
        case("softmax", Op::Softmax, &[Shape::Vector(5)], 3),
        case("pad channels", Op::PadChannels(PadChannels { before: 1, after: 2 }), &[map(2, 3, 4)], 2),
    ];
    for (region, size) in
        [(LrnRegion::AcrossChannels, 5), (LrnRegion::WithinChannel, 3), (LrnRegion::WithinChannel, 1)]
    {
        let lrn = Op::Lrn(Lrn { region, size, alpha: 0.7, beta: 0.75, k: 1.3 });
        cases.push(case(&format!("lrn {region:?} {size}"), lrn, &[map(6, 4, 5)], 2));
    }
    for kind in [PoolKind::Max, PoolKind::Average] {
        for rounding in [Rounding::Floor, Rounding::Ceil] {
            let shapes = [
                ([2, 2], [2, 2], [0, 0], map(2, 4, 6)),
                ([3, 3], [2, 2], [0, 0], map(2, 6, 7)),
                ([3, 3], [2, 2], [1, 1], map(2, 6, 7)),
                ([3, 3], [1, 1], [1, 1], map(2, 4, 5)),
                ([3, 2], [2, 3], [1, 0], map(2, 5, 7)),
                ([2, 2], [3, 3], [0, 0], map(1, 6, 7)),
            ];
            for (kernel, stride, padding, shape) in shapes {
                let name = format!("{kind:?} pool {rounding:?} {kernel:?} {stride:?} {padding:?}");
                let op = pool(kind, rounding, kernel, stride, padding);
                cases.push(case(&name, op.clone(), &[shape], 2));
                if let Op::Pool2d(p) = op
                    && kind == PoolKind::Average
                {
                    let op = Op::Pool2d(Pool2d { count_padding: true, ..p });
                    cases.push(case(&format!("{name} padding counted"), op, &[shape], 2));
                }
            }
        }
    }
    cases
}

/// Numbers in +-1; nothing close to 0, where ReLU has no derivative. Variances are positive.
fn numbers(rng: &mut ChaCha8Rng, len: usize, positive: bool) -> Vec<f64> {
    let draw = |rng: &mut ChaCha8Rng| {
        let size = 0.05 + 0.95 * rng.random::<f64>();
        if !positive && rng.random::<bool>() { -size } else { size }
    };
    (0..len).map(|_| draw(rng)).collect()
}

fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|v| *v as f32).collect()
}

impl Case {
    fn operands(&self) -> Vec<Vec<f64>> {
        let seed = self.name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let last = self.dims.len() - 1;
        // Through f32, so that both precisions see the same numbers.
        let draw = |(i, dims): (usize, &Vec<usize>)| {
            let positive = i == last && self.differentiable < self.dims.len();
            to_f32(&numbers(&mut rng, dims.iter().product(), positive)).into_iter().map(f64::from).collect()
        };
        self.dims.iter().enumerate().map(draw).collect()
    }

    fn compose(&self, operands: &[Tensor]) -> Tensor {
        let all: Vec<&Tensor> = operands.iter().collect();
        compose::compose(&self.node, &all[..self.inputs], &all[self.inputs..], self.mode).unwrap()
    }

    fn tensors(&self, operands: &[Vec<f64>]) -> Vec<Tensor> {
        let tensor = |(data, dims): (&Vec<f64>, &Vec<usize>)| {
            Tensor::from_slice(data, dims.as_slice(), &Device::Cpu).unwrap()
        };
        operands.iter().zip(&self.dims).map(tensor).collect()
    }

    fn layer(&self, operands: &[Vec<f64>]) -> Box<dyn Layer> {
        let running =
            (self.differentiable < self.dims.len() && self.mode == Mode::Eval).then(|| super::Statistics {
                mean: to_f32(&operands[self.dims.len() - 2]),
                var: to_f32(&operands[self.dims.len() - 1]),
            });
        layer(&self.node, self.mode, running).unwrap().unwrap()
    }
}

fn close(name: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}: length");
    let scale = expected.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*f) - e).abs();
        assert!(error <= tolerance * scale, "{name}[{i}]: {f}, expected {e} (largest {scale})");
    }
}

/// A layer on slices: its value and the gradients of all differentiable operands.
fn run(layer: &dyn Layer, args: &[(Vec<f32>, &[usize])], grad_dst: &[f32]) -> (Vec<f32>, Vec<Vec<f32>>) {
    let args: Vec<Arg<'_>> = args.iter().map(|(data, dims)| Arg { data, dims }).collect();
    let dims = layer.dst_dims(&args.iter().map(|a| a.dims).collect::<Vec<_>>());
    let mut dst = vec![f32::NAN; dims.iter().product()];
    let mut saved = Saved::Nothing;
    layer.forward(&args, &mut dst, &mut saved, true);
    let mut grads: Vec<Vec<f32>> = args.iter().map(|a| vec![f32::NAN; a.data.len()]).collect();
    let mut places: Vec<Option<&mut [f32]>> = grads.iter_mut().map(|g| Some(g.as_mut_slice())).collect();
    layer.backward(&args, &dst, &saved, grad_dst, &mut places);
    (dst, grads)
}

#[test]
fn layers_agree_with_compositions_and_finite_differences() {
    for case in cases() {
        let operands = case.operands();
        let tensors = case.tensors(&operands);
        let expected = case.compose(&tensors);
        let value: Vec<f64> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let weights = numbers(&mut ChaCha8Rng::seed_from_u64(11), value.len(), false);
        let weights: Vec<f64> = to_f32(&weights).into_iter().map(f64::from).collect();

        let layer = case.layer(&operands);
        let args: Vec<(Vec<f32>, &[usize])> = operands[..case.differentiable]
            .iter()
            .zip(&case.dims)
            .map(|(data, dims)| (to_f32(data), dims.as_slice()))
            .collect();
        let dims =
            layer.dst_dims(&case.dims[..case.differentiable].iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(dims, expected.dims(), "{}: dims", case.name);
        let (dst, grads) = run(&*layer, &args, &to_f32(&weights));
        close(&format!("{}: value", case.name), &dst, &value, 2e-6);

        let vars: Vec<Var> = tensors.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let value = case.compose(&vars.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>());
        let weighted =
            (value * Tensor::from_slice(&weights, expected.dims(), &Device::Cpu).unwrap()).unwrap();
        let composed = weighted.sum_all().unwrap().backward().unwrap();

        for operand in 0..case.differentiable {
            let name = format!("{}: gradient {operand}", case.name);
            let numeric = differences(&case, &operands, operand, &weights);
            close(&name, &grads[operand], &numeric, 2e-5);
            let composed =
                composed.get(&vars[operand]).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            close(&format!("{name} of the composition"), &to_f32(&composed), &numeric, 1e-6);
        }
    }
}

/// Central differences of `sum_i weights_i y_i` in `f64`.
fn differences(case: &Case, operands: &[Vec<f64>], operand: usize, weights: &[f64]) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut moved = operands.to_vec();
    let objective = |moved: &[Vec<f64>]| -> f64 {
        let y: Vec<f64> = case.compose(&case.tensors(moved)).flatten_all().unwrap().to_vec1().unwrap();
        y.iter().zip(weights).map(|(y, w)| y * w).sum()
    };
    let mut gradient = Vec::with_capacity(operands[operand].len());
    for i in 0..operands[operand].len() {
        let x = operands[operand][i];
        moved[operand][i] = x + STEP;
        let above = objective(&moved);
        moved[operand][i] = x - STEP;
        let below = objective(&moved);
        moved[operand][i] = x;
        gradient.push((above - below) / (2.0 * STEP));
    }
    gradient
}

/// The compositions, in `f32`.
#[test]
fn compositions_work_in_f32() {
    for case in cases() {
        let operands = case.operands();
        let double = case.compose(&case.tensors(&operands));
        let single: Vec<Tensor> =
            case.tensors(&operands).iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect();
        let single = case.compose(&single);
        assert_eq!(single.dtype(), DType::F32, "{}", case.name);
        let double: Vec<f64> = double.flatten_all().unwrap().to_vec1().unwrap();
        close(&case.name, &single.flatten_all().unwrap().to_vec1().unwrap(), &double, 2e-6);
    }
}

#[test]
fn relu_has_no_gradient_at_zero() {
    let node = case("relu", Op::Relu, &[Shape::Vector(4)], 1).node;
    let layer = layer(&node, TRAIN, None).unwrap().unwrap();
    let (y, grads) = run(&*layer, &[(vec![-1.0, 0.0, -0.0, 2.0], &[1, 4])], &[1.0; 4]);
    assert_eq!(y, [0.0, 0.0, 0.0, 2.0]);
    assert_eq!(grads[0], [0.0, 0.0, 0.0, 1.0]);
    let x = Var::from_slice(&[-1f32, 0.0, -0.0, 2.0], (1, 4), &Device::Cpu).unwrap();
    let y = compose::compose(&node, &[&x], &[], TRAIN).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get(&x).unwrap().to_vec2::<f32>().unwrap(), [[0.0, 0.0, 0.0, 1.0]]);
}

/// Of equal values in a window the first in row order is taken, and it alone has a gradient.
#[test]
fn max_pooling_takes_the_first_of_equals() {
    let op = pool(PoolKind::Max, Rounding::Floor, [2, 2], [2, 2], [0, 0]);
    let node = case("pool", op, &[Shape::map(1, 2, 4)], 1).node;
    let layer = layer(&node, TRAIN, None).unwrap().unwrap();
    let x = vec![3.0, 3.0, 1.0, 0.0, 3.0, 3.0, 0.0, 1.0];
    let expected = [5.0, 0.0, 7.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let (y, grads) = run(&*layer, &[(x.clone(), &[1, 1, 2, 4])], &[5.0, 7.0]);
    assert_eq!(y, [3.0, 1.0]);
    assert_eq!(grads[0], expected);
    let x = Var::from_vec(x, (1, 1, 2, 4), &Device::Cpu).unwrap();
    let y = compose::compose(&node, &[&x], &[], TRAIN).unwrap();
    let weighted = (y * Tensor::new(&[[[[5f32, 7.0]]]], &Device::Cpu).unwrap()).unwrap();
    let grads = weighted.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
}

#[test]
fn cross_entropy_and_its_gradient_follow_the_formula() {
    let (rows, classes) = (4, 5);
    let labels = [0u32, 4, 2, 2];
    let x = numbers(&mut ChaCha8Rng::seed_from_u64(2), rows * classes, false);
    let x: Vec<f64> = x.iter().map(|v| f64::from((v * 8.0) as f32)).collect();
    let mean_loss = |x: &[f64]| -> f64 {
        let row = |(row, label): (&[f64], &u32)| {
            row.iter().map(|v| v.exp()).sum::<f64>().ln() - row[*label as usize]
        };
        x.chunks(classes).zip(&labels).map(row).sum::<f64>() / rows as f64
    };
    let mut numeric = Vec::new();
    for i in 0..x.len() {
        let mut moved = x.clone();
        moved[i] += 1e-5;
        let above = mean_loss(&moved);
        moved[i] -= 2e-5;
        numeric.push((above - mean_loss(&moved)) / 2e-5);
    }
    let mut gradient = vec![0.0; x.len()];
    let loss =
        cofilter_kernels::softmax_cross_entropy(rows, classes, &to_f32(&x), &labels, Some(&mut gradient));
    assert!((loss - mean_loss(&x)).abs() < 1e-6, "{loss}");
    close("gradient", &gradient, &numeric, 1e-5);

    let x = Var::from_vec(x.clone(), (rows, classes), &Device::Cpu).unwrap();
    let loss = compose::cross_entropy(&x, &compose::labels(&labels, &Device::Cpu).unwrap()).unwrap();
    let gradient = loss.backward().unwrap().get(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    close("composition", &to_f32(&gradient), &numeric, 1e-6);
    assert!(
        (loss.to_scalar::<f64>().unwrap() - mean_loss(&x.flatten_all().unwrap().to_vec1().unwrap())).abs()
            < 1e-12
    );
}

#[test]
fn dropout_depends_on_seed_iteration_and_name_alone() {
    let zeros = |seed, iteration, node: &str, p| {
        super::dropout::RandomZeros { p, seed, iteration, node: node.into() }.factors(10_000)
    };
    let one = zeros(1, 2, "a", 0.3);
    assert_eq!(one, zeros(1, 2, "a", 0.3));
    assert!(one != zeros(2, 2, "a", 0.3) && one != zeros(1, 3, "a", 0.3) && one != zeros(1, 2, "b", 0.3));
    let dropped = one.iter().filter(|f| **f == 0.0).count();
    // Three standard deviations of a binomial around 3000.
    assert!((dropped as f64 - 3000.0).abs() < 3.0 * (10_000.0f64 * 0.3 * 0.7).sqrt(), "{dropped}");
    assert!(one.iter().all(|f| *f == 0.0 || (f - 1.0 / 0.7).abs() < 1e-6));
}

/// A layer on candle's tape gives the bits it gives on slices, and no gradient to what is not differentiated.
#[test]
fn the_tape_runs_the_same_layers() {
    let mut run_cases = 0;
    for case in cases().iter().filter(|c| c.differentiable <= 3) {
        let operands = case.operands();
        let args: Vec<(Vec<f32>, &[usize])> = operands[..case.differentiable]
            .iter()
            .zip(&case.dims)
            .map(|(data, dims)| (to_f32(data), dims.as_slice()))
            .collect();
        let vars: Vec<Var> =
            args.iter().map(|(data, dims)| Var::from_slice(data, *dims, &Device::Cpu).unwrap()).collect();
        let layer = case.layer(&operands);
        let len = layer.dst_dims(&args.iter().map(|a| a.1).collect::<Vec<_>>()).iter().product();
        let (dst, expected) = run(&*layer, &args, &vec![1.0; len]);
        let mut tensors: Vec<&Tensor> = vars.iter().map(Var::as_tensor).collect();
        let constant = vars[0].as_detached_tensor();
        for frozen in [false, true] {
            if frozen {
                tensors[0] = &constant;
            }
            let (value, saved) = tape::apply(case.layer(&operands), &tensors).unwrap();
            assert_eq!(value.flatten_all().unwrap().to_vec1::<f32>().unwrap(), dst, "{}", case.name);
            assert!(saved.get().is_some());
            let grads = value.sum_all().unwrap().backward().unwrap();
            for (i, var) in vars.iter().enumerate() {
                match grads.get(var) {
                    Some(g) => assert_eq!(g.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected[i]),
                    None => assert!(i == 0 && frozen, "{}: no gradient {i}", case.name),
                }
            }
            assert!(!frozen || grads.get(&vars[0]).is_none());
        }
        run_cases += 1;
    }
    assert!(run_cases > 40);
}

#[test]
fn saved_values_are_only_kept_when_asked_for() {
    let op = pool(PoolKind::Max, Rounding::Floor, [2, 2], [2, 2], [0, 0]);
    let node = case("pool", op, &[Shape::map(1, 2, 2)], 1).node;
    let layer = layer(&node, Mode::Eval, None).unwrap().unwrap();
    let mut dst = [0.0];
    let x = Arg { data: &[1.0, 4.0, 2.0, 3.0], dims: &[1, 1, 2, 2] };
    let mut saved = Saved::Nothing;
    layer.forward(&[x], &mut dst, &mut saved, false);
    assert!(matches!(&saved, Saved::Argmax(places) if places.is_empty()));
    assert_eq!(dst, [4.0]);
    // What an earlier pass left is overwritten.
    for before in [Saved::Nothing, Saved::Argmax(vec![7; 9]), Saved::Factors(vec![0.5])] {
        saved = before;
        layer.forward(&[x], &mut dst, &mut saved, true);
        assert!(matches!(&saved, Saved::Argmax(places) if *places == [1]));
    }
}
