//! The cases of `fixtures/ops`: results and gradients from PyTorch.

use crate::check::{assert_close, wide};
use cofilter_graph::{BatchNorm, Conv2d, Lrn, LrnRegion, Op, Pool2d, PoolKind};
use cofilter_kernels::{
    ConvShape, LrnShape, MatRef, Par, PlaneShape, PoolShape, adaptive_avg_pool, adaptive_avg_pool_backward,
    add, avg_pool, avg_pool_backward, batch_norm, batch_norm_backward, batch_norm_statistics, conv2d,
    conv2d_backward_bias, conv2d_backward_src, conv2d_backward_weight, gemm, lrn_across, lrn_across_backward,
    lrn_within, lrn_within_backward, max_pool, max_pool_backward, relu, relu_backward, softmax,
};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;

const PAR: Par = Par::Rayon;

struct Case {
    name: String,
    op: Op,
    train: bool,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Case {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = tensors.iter().map(|(name, tensor)| {
            let values =
                tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            (name.to_owned(), (tensor.shape().to_vec(), values))
        });
        Self {
            name: metadata["case"].clone(),
            op: serde_json::from_str(&metadata["op"]).unwrap(),
            train: metadata["mode"] == "train",
            tensors: tensors.collect(),
        }
    }

    fn get(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }

    fn dims(&self, name: &str) -> &[usize] {
        &self.tensors[name].0
    }

    fn zeros(&self, name: &str) -> Vec<f32> {
        vec![7.0; self.get(name).len()]
    }

    fn check(&self, name: &str, found: &[f32]) {
        // A mean of 8 rounded to single precision is off by 1e-5 of a deviation of 0.04.
        let tolerance = if self.name == "batch_norm_train_small_variance" { 3e-5 } else { 3e-6 };
        assert_close(&format!("{}: {name}", self.name), found, &wide(self.get(name)), tolerance);
    }

    fn size(&self, name: &str) -> [usize; 2] {
        self.dims(name)[2..].try_into().unwrap()
    }
}

/// Tensors by the names of the file, after a pass of the kernels.
fn run(case: &Case) {
    match &case.op {
        Op::Conv2d(op) => run_conv2d(case, op),
        Op::Linear(_) => run_linear(case),
        Op::BatchNorm(op) => run_batch_norm(case, op),
        Op::Relu => {
            let (mut dst, mut grad) = (case.zeros("expected"), case.zeros("input"));
            relu(case.get("input"), &mut dst, PAR);
            relu_backward(&dst, case.get("grad_output"), &mut grad, PAR);
            case.check("expected", &dst);
            case.check("grad.input", &grad);
        }
        Op::Pool2d(op) => run_pool2d(case, op),
        Op::AdaptiveAvgPool { output } => {
            let (mut dst, mut grad) = (case.zeros("expected"), case.zeros("input"));
            let (planes, size) = (case.dims("input")[..2].iter().product(), case.size("input"));
            adaptive_avg_pool(planes, size, *output, case.get("input"), &mut dst, PAR);
            adaptive_avg_pool_backward(planes, size, *output, case.get("grad_output"), &mut grad, PAR);
            case.check("expected", &dst);
            case.check("grad.input", &grad);
        }
        Op::Lrn(op) => run_lrn(case, op),
        Op::Add => {
            let inputs: Vec<&[f32]> = case
                .tensors
                .iter()
                .filter(|(name, _)| name.starts_with("input."))
                .map(|(_, t)| &t.1[..])
                .collect();
            let mut dst = case.zeros("expected");
            add(&inputs, false, &mut dst, PAR);
            case.check("expected", &dst);
        }
        Op::Softmax => {
            let mut dst = case.zeros("expected");
            softmax(case.dims("input")[0], case.dims("input")[1], case.get("input"), &mut dst);
            case.check("expected", &dst);
        }
        // No kernel computes these: they copy.
        Op::Dropout { .. } | Op::Concat | Op::Flatten | Op::PadChannels(_) => {}
        other => panic!("{}: no test of {}", case.name, other.kind()),
    }
}

fn run_conv2d(case: &Case, op: &Conv2d) {
    let [batch, in_channels] = case.dims("input")[..2].try_into().unwrap();
    let shape = ConvShape {
        batch,
        in_channels,
        in_size: case.size("input"),
        out_channels: op.out_channels,
        kernel: op.kernel,
        stride: op.stride,
        padding: op.padding,
        dilation: op.dilation,
        groups: op.groups,
    };
    let (src, weight, grad_dst) = (case.get("input"), case.get("weight"), case.get("grad_output"));
    let mut found = case.zeros("expected");
    conv2d(&shape, src, weight, op.bias.then(|| case.get("bias")), &mut found, PAR);
    case.check("expected", &found);
    let mut found = case.zeros("input");
    conv2d_backward_src(&shape, grad_dst, weight, &mut found, PAR);
    case.check("grad.input", &found);
    let mut found = case.zeros("weight");
    conv2d_backward_weight(&shape, src, grad_dst, &mut found, PAR);
    case.check("grad.weight", &found);
    if op.bias {
        let mut found = case.zeros("bias");
        conv2d_backward_bias(&shape, grad_dst, &mut found, PAR);
        case.check("grad.bias", &found);
    }
}

/// `[rows, cols]` of a file, or its transpose.
fn matrix<'a>(case: &'a Case, name: &str, transposed: bool) -> MatRef<'a> {
    let [rows, cols] = case.dims(name).try_into().unwrap();
    let data = case.get(name);
    if transposed {
        MatRef { data, rows: cols, cols: rows, row_stride: 1, col_stride: cols }
    } else {
        MatRef { data, rows, cols, row_stride: cols, col_stride: 1 }
    }
}

fn run_linear(case: &Case) {
    let mut found = case.zeros("expected");
    if let Some((_, bias)) = case.tensors.get("bias") {
        found.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
    } else {
        found.fill(0.0);
    }
    gemm(matrix(case, "input", false), matrix(case, "weight", true), true, &mut found, PAR);
    case.check("expected", &found);
    let mut found = case.zeros("input");
    gemm(matrix(case, "grad_output", false), matrix(case, "weight", false), false, &mut found, PAR);
    case.check("grad.input", &found);
    let mut found = case.zeros("weight");
    gemm(matrix(case, "grad_output", true), matrix(case, "input", false), false, &mut found, PAR);
    case.check("grad.weight", &found);
}

fn run_batch_norm(case: &Case, op: &BatchNorm) {
    let [batch, channels] = case.dims("input")[..2].try_into().unwrap();
    let shape = PlaneShape { batch, channels, plane: case.size("input").iter().product() };
    let (mut mean, mut var) = (case.get("running_mean").to_vec(), case.get("running_var").to_vec());
    if case.train {
        batch_norm_statistics(&shape, case.get("input"), &mut mean, &mut var, PAR);
        let count = (shape.batch * shape.plane) as f32;
        let update = |name: &str, batch: &[f32], factor: f32| -> Vec<f32> {
            let running = case.get(name).iter();
            running.zip(batch).map(|(r, b)| (1.0 - op.momentum) * r + op.momentum * factor * b).collect()
        };
        case.check("expected.running_mean", &update("running_mean", &mean, 1.0));
        case.check("expected.running_var", &update("running_var", &var, count / (count - 1.0)));
    }
    let (src, gamma, beta) = (case.get("input"), case.get("weight"), case.get("bias"));
    let mut found = case.zeros("expected");
    batch_norm(&shape, src, &mean, &var, op.eps, gamma, beta, false, &mut found, PAR);
    case.check("expected", &found);
    if case.train {
        let (mut by_src, mut by_gamma, mut by_beta) =
            (case.zeros("input"), case.zeros("weight"), case.zeros("bias"));
        batch_norm_backward(
            &shape,
            src,
            &mean,
            &var,
            op.eps,
            gamma,
            case.get("grad_output"),
            &mut by_src,
            &mut by_gamma,
            &mut by_beta,
            PAR,
        );
        case.check("grad.input", &by_src);
        case.check("grad.weight", &by_gamma);
        case.check("grad.bias", &by_beta);
    }
}

fn run_pool2d(case: &Case, op: &Pool2d) {
    let shape = PoolShape {
        planes: case.dims("input")[..2].iter().product(),
        in_size: case.size("input"),
        out_size: case.size("expected"),
        kernel: op.kernel,
        stride: op.stride,
        padding: op.padding,
    };
    let (mut dst, mut grad) = (case.zeros("expected"), case.zeros("input"));
    match op.kind {
        PoolKind::Max => {
            let mut argmax = vec![0; dst.len()];
            max_pool(&shape, case.get("input"), &mut dst, Some(&mut argmax), PAR);
            max_pool_backward(&shape, &argmax, case.get("grad_output"), &mut grad, PAR);
        }
        PoolKind::Average => {
            avg_pool(&shape, op.count_padding, case.get("input"), &mut dst, PAR);
            avg_pool_backward(&shape, op.count_padding, case.get("grad_output"), &mut grad, PAR);
        }
    }
    case.check("expected", &dst);
    case.check("grad.input", &grad);
}

fn run_lrn(case: &Case, op: &Lrn) {
    let [batch, channels] = case.dims("input")[..2].try_into().unwrap();
    let shape = LrnShape {
        batch,
        channels,
        size: case.size("input"),
        local_size: op.size,
        alpha: op.alpha,
        beta: op.beta,
        k: op.k,
    };
    let (src, grad_dst) = (case.get("input"), case.get("grad_output"));
    let (mut dst, mut grad) = (case.zeros("expected"), case.zeros("input"));
    match op.region {
        LrnRegion::AcrossChannels => {
            lrn_across(&shape, src, &mut dst, PAR);
            lrn_across_backward(&shape, src, grad_dst, &mut grad, PAR);
        }
        LrnRegion::WithinChannel => {
            lrn_within(&shape, src, &mut dst, PAR);
            lrn_within_backward(&shape, src, grad_dst, &mut grad, PAR);
        }
    }
    case.check("expected", &dst);
    case.check("grad.input", &grad);
}

#[test]
fn every_case_is_what_pytorch_found() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/ops");
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    let mut kinds = BTreeMap::<&str, usize>::new();
    for file in files {
        let case = Case::read(&file);
        run(&case);
        *kinds.entry(case.op.kind()).or_default() += 1;
    }
    let computed =
        ["adaptive_avg_pool", "add", "batch_norm", "conv2d", "linear", "lrn", "pool2d", "relu", "softmax"];
    for kind in computed {
        assert!(kinds.contains_key(kind), "no case of {kind} in {}", folder.display());
    }
}
