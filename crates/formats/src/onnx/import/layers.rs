//! Layers with tensors, and arithmetic with constants.

use super::{Call, Importer, Pads, Response, Value};
use crate::draft::{Reason, Value as Drafted};
use crate::onnx::attributes::Attributes;
use crate::onnx::tensor::Constant;
use cofilter_graph::{Array, BatchNorm, Conv2d, Linear, Lrn, LrnRegion, Op, Shape};

/// Numbers from here on count as no bound.
const UNBOUNDED: f32 = f32::MAX;

impl Importer<'_> {
    pub(super) fn conv(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let known = ["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];
        let attributes = Attributes::of(call.node, &known)?;
        call.at_most(3)?;
        let (x, before) = match call.any(0)? {
            Value::Padded { of, pads } => (*of, *pads),
            _ => (call.value(0)?, [0; 4]),
        };
        let Shape::Map { channels, height, width } = self.draft.shape(x) else {
            return Err(format!("reads a vector {}", self.draft.shape(x)));
        };
        let weight = call.constant(1)?;
        let [filters, depth, kernel_h, kernel_w] = weight.dims[..] else {
            return Err(format!("weight {:?}, expected four extents", weight.dims));
        };
        if weight.dims.contains(&0) {
            return Err(format!("weight {:?} has an extent of 0", weight.dims));
        }
        let kernel = [kernel_h, kernel_w];
        if attributes.lengths::<2>("kernel_shape", 0)? != kernel && attributes.has("kernel_shape") {
            return Err(format!(
                "kernel_shape {:?} and weight {:?}",
                attributes.ints("kernel_shape"),
                weight.dims
            ));
        }
        let stride = attributes.lengths("strides", 1)?;
        let dilation = attributes.lengths("dilations", 1)?;
        let groups = usize::try_from(attributes.int("group", 1)).map_err(|_| "a negative group")?;
        if depth.checked_mul(groups) != Some(channels) {
            return Err(format!(
                "weight {:?} in {groups} groups does not fit {channels} channels",
                weight.dims
            ));
        }
        let extents = padded([height, width], before)?;
        let own = pads(&attributes, extents, kernel, stride, dilation)?;
        let mut all = [0; 4];
        for (sum, (a, b)) in all.iter_mut().zip(before.iter().zip(&own)) {
            *sum = a.checked_add(*b).ok_or("pads are too large")?;
        }
        let mut weight = Array::new(weight.dims.clone(), weight.as_floats()?.clone());
        let padding = self.even(&mut weight, all, dilation)?;
        let kernel = [weight.dims()[2], weight.dims()[3]];
        let bias = call.optional(2)?;
        let conv =
            Conv2d { out_channels: filters, kernel, stride, padding, dilation, groups, bias: bias.is_some() };
        let mut tensors = vec![weight];
        tensors.extend(bias.map(array).transpose()?);
        Ok(Value::Node(self.draft.add(call.name(), Op::Conv2d(conv), &[x], tensors)?))
    }

    pub(super) fn gemm(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let attributes = Attributes::of(call.node, &["alpha", "beta", "transA", "transB"])?;
        call.at_most(3)?;
        attributes.expect_int("transA", 0)?;
        let x = call.value(0)?;
        let weight =
            self.matrix(call.constant(1)?, attributes.int("transB", 0) == 0, attributes.float("alpha", 1.0))?;
        let features = weight.dims()[0];
        let beta = attributes.float("beta", 1.0);
        let bias = call.optional(2)?.map(|bias| self.spread(bias, Shape::Vector(features))).transpose()?;
        let mut tensors = vec![weight];
        tensors.extend(bias.map(|bias| bias.iter().map(|b| b * beta).collect::<Vec<_>>()).map(vector));
        let op = Op::Linear(Linear { out_features: features, bias: tensors.len() > 1 });
        Ok(Value::Node(self.draft.add(call.name(), op, &[x], tensors)?))
    }

    pub(super) fn matmul(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        Attributes::of(call.node, &[])?;
        call.at_most(2)?;
        let x = call.value(0)?;
        let weight = self.matrix(call.constant(1)?, true, 1.0)?;
        let op = Op::Linear(Linear { out_features: weight.dims()[0], bias: false });
        Ok(Value::Node(self.draft.add(call.name(), op, &[x], vec![weight])?))
    }

    pub(super) fn batch_norm(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let known = ["epsilon", "momentum", "spatial", "training_mode"];
        let attributes = Attributes::of(call.node, &known)?;
        attributes.expect_int("spatial", 1)?;
        attributes.expect_int("training_mode", 0)?;
        call.at_most(5)?;
        let x = call.value(0)?;
        let mut tensors = Vec::with_capacity(4);
        for at in 1..=4 {
            tensors.push(array(call.constant(at)?)?);
        }
        let eps = attributes.float("epsilon", 1e-5);
        // Theirs is the share of the old statistics.
        let momentum = 1.0 - attributes.float("momentum", 0.9);
        if let Shape::Map { .. } = self.draft.shape(x) {
            let op = Op::BatchNorm(BatchNorm { eps, momentum });
            return Ok(Value::Node(self.draft.add(call.name(), op, &[x], tensors)?));
        }
        let features = self.draft.shape(x).channels();
        if tensors.iter().any(|tensor| tensor.data().len() != features) {
            return Err(format!("expected {features} numbers in each tensor"));
        }
        let of = |slot: usize, at: usize| f64::from(tensors[slot].data()[at]);
        let factor = |at: usize| of(0, at) / (of(3, at) + f64::from(eps)).sqrt();
        #[expect(clippy::cast_possible_truncation, reason = "computed in f64, stored in f32")]
        let (scale, shift): (Vec<f32>, Vec<f32>) =
            (0..features).map(|at| (factor(at) as f32, (of(1, at) - of(2, at) * factor(at)) as f32)).unzip();
        self.affine(call, 0, x, &scale, &shift)
    }

    pub(super) fn lrn(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let attributes = Attributes::of(call.node, &["alpha", "beta", "bias", "size"])?;
        let lrn = Lrn {
            region: LrnRegion::AcrossChannels,
            size: usize::try_from(attributes.int("size", 0)).map_err(|_| "a negative size")?,
            alpha: attributes.float("alpha", 1e-4),
            beta: attributes.float("beta", 0.75),
            k: attributes.float("bias", 1.0),
        };
        Ok(Value::Node(self.draft.add(call.name(), Op::Lrn(lrn), &[call.value(0)?], Vec::new())?))
    }

    pub(super) fn relu(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        Attributes::of(call.node, &[])?;
        Ok(Value::Node(self.draft.add(call.name(), Op::Relu, &[call.value(0)?], Vec::new())?))
    }

    /// `Clip` from 0 up.
    pub(super) fn clip(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let attributes = Attributes::of(call.node, &["min", "max"])?;
        let bound = |name: &str, at: usize, default: f32| match call.optional(at)? {
            Some(bound) => bound.scalar(),
            None => Ok(attributes.float(name, default)),
        };
        let (min, max) = (bound("min", 1, -UNBOUNDED)?, bound("max", 2, UNBOUNDED)?);
        if min != 0.0 || max < UNBOUNDED {
            return Err(format!("clips to {min}..{max}, only 0 and no upper bound are supported"));
        }
        Ok(Value::Node(self.draft.add(call.name(), Op::Relu, &[call.value(0)?], Vec::new())?))
    }

    pub(super) fn dropout(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let attributes = Attributes::of(call.node, &["ratio", "seed", "is_test"])?;
        let p = match call.optional(1)? {
            Some(ratio) => ratio.scalar()?,
            None => attributes.float("ratio", 0.5),
        };
        if call.optional(2)?.map(Constant::known_ints).transpose()?.is_some_and(|mode| mode != [0]) {
            return Err("is in training mode".into());
        }
        Ok(Value::Node(self.draft.add(call.name(), Op::Dropout { p }, &[call.value(0)?], Vec::new())?))
    }

    pub(super) fn softmax(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let attributes = Attributes::of(call.node, &["axis"])?;
        let x = call.value(0)?;
        let rank = self.draft.shape(x).dims().len() + 1;
        let default = if self.folder.opset < 13 { 1 } else { -1 };
        if crate::onnx::fold::axis(attributes.int("axis", default), rank)? != 1 || rank != 2 {
            return Err(format!("is not over the features of a vector: {}", self.draft.shape(x)));
        }
        Ok(Value::Node(self.draft.add(call.name(), Op::Softmax, &[x], Vec::new())?))
    }

    pub(super) fn cast(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let to = Attributes::of(call.node, &["to", "saturate"])?.int("to", 0);
        if to != i64::from(crate::onnx::proto::kind::FLOAT) {
            return Err(format!("casts to type {to}"));
        }
        Ok(Value::Node(call.value(0)?))
    }

    /// Sums of values; scaling and shifting by channel; parts of a response normalisation.
    pub(super) fn arithmetic(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        Attributes::of(call.node, &[])?;
        let op = call.node.op_type.as_str();
        let two = call.operands.len() == 2;
        if !two && op != "Sum" {
            return Err(format!("{} inputs, expected 2", call.operands.len()));
        }
        match (call.any(0)?, call.operands.get(1).and_then(Option::as_ref)) {
            (Value::Node(a), Some(Value::Node(b))) if op == "Mul" && a == b => {
                return Ok(Value::Response(Response { of: *a, size: None, alpha: 1.0, k: None, beta: None }));
            }
            (Value::Node(a), Some(Value::Response(response))) if op == "Div" && *a == response.of => {
                return self.response(call, response);
            }
            (Value::Response(response), Some(Value::Constant(constant))) => {
                return response.then(op, constant.scalar()?).map(Value::Response);
            }
            (Value::Node(x), Some(Value::Constant(constant))) if two => {
                return self.with_constant(call, 0, *x, constant);
            }
            (Value::Constant(constant), Some(Value::Node(x))) if two => {
                return self.with_constant(call, 1, *x, constant);
            }
            (Value::Overhung { of, pool, factors }, Some(Value::Constant(constant))) if op == "Mul" => {
                let given = constant.as_floats()?;
                let same = given.len() == factors.len()
                    && given.iter().zip(factors).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
                if same {
                    let op = Op::Pool2d(pool.clone());
                    return Ok(Value::Node(self.draft.add(call.name(), op, &[*of], Vec::new())?));
                }
            }
            _ => {}
        }
        if op != "Add" && op != "Sum" {
            return Err("is of two values of the network, only sums are supported".into());
        }
        if op == "Sum" && call.operands.len() == 1 {
            return call.any(0).cloned();
        }
        let values: Vec<Drafted> =
            (0..call.operands.len()).map(|at| call.value(at)).collect::<Result<_, _>>()?;
        Ok(Value::Node(self.draft.add(call.name(), Op::Add, &values, Vec::new())?))
    }

    /// `x` and a constant, where `x` is the operand at `at`.
    fn with_constant(
        &mut self,
        call: &Call<'_>,
        at: usize,
        x: Drafted,
        constant: &Constant,
    ) -> Result<Value, Reason> {
        let numbers = self.spread(constant, self.draft.shape(x))?;
        let constantly = |value: f32| vec![value; numbers.len()];
        let negated = || numbers.iter().map(|number| -number).collect();
        let (scale, shift) = match (call.node.op_type.as_str(), at) {
            ("Add" | "Sum", _) => (constantly(1.0), numbers),
            ("Sub", 0) => (constantly(1.0), negated()),
            ("Sub", _) => (constantly(-1.0), numbers),
            ("Mul", _) => (numbers.clone(), constantly(0.0)),
            ("Div", 0) => (numbers.iter().map(|number| number.recip()).collect(), constantly(0.0)),
            ("Pow", 0) if numbers.iter().all(|number| *number == 2.0) => {
                return Ok(Value::Response(Response { of: x, size: None, alpha: 1.0, k: None, beta: None }));
            }
            (op, _) => return Err(format!("{op} with this constant is not supported")),
        };
        self.affine(call, at, x, &scale, &shift)
    }

    fn affine(
        &mut self,
        call: &Call<'_>,
        at: usize,
        x: Drafted,
        scale: &[f32],
        shift: &[f32],
    ) -> Result<Value, Reason> {
        // A layer is changed only if this name is the one way to it, which it is not if an `Identity` passes it on.
        let name = call.node.inputs[at].as_str();
        let sole = self.sole(name) && self.layers.contains(name);
        if sole && scale.iter().any(|factor| *factor != 1.0) {
            self.folder.take(&[self.draft.weights(x)])?;
        }
        self.draft.affine(call.name(), x, sole, scale, shift).map(Value::Node)
    }

    /// A constant by channel: of one number, or with as many as there are channels on the axis of channels.
    fn spread(&mut self, constant: &Constant, shape: Shape) -> Result<Vec<f32>, Reason> {
        let numbers = constant.as_floats()?;
        let channels = shape.channels();
        self.folder.take(&[channels])?;
        if let [one] = numbers[..] {
            return Ok(vec![one; channels]);
        }
        let rank = shape.dims().len();
        let dims = &constant.dims;
        let at = dims.len().checked_sub(rank);
        let elsewhere = |at: usize| dims.iter().enumerate().all(|(axis, dim)| axis == at || *dim == 1);
        match at.filter(|at| *at <= 1 && dims[*at] == channels && elsewhere(*at)) {
            Some(_) => Ok(numbers.to_vec()),
            None => Err(format!("a constant {dims:?} does not go by the {channels} channels of {shape}")),
        }
    }

    /// Equal padding on opposite sides. Where they differ, filters get taps of zero on the side with less, which reads as many more zeros.
    fn even(
        &mut self,
        weight: &mut Array,
        [top, left, bottom, right]: Pads,
        dilation: [usize; 2],
    ) -> Result<[usize; 2], Reason> {
        let mut before = [0; 2];
        let mut after = [0; 2];
        for (at, (first, last)) in [(top, bottom), (left, right)].into_iter().enumerate() {
            let missing = first.abs_diff(last);
            if missing == 0 {
                continue;
            }
            let taps = missing.checked_div(dilation[at]).unwrap_or(0);
            if taps * dilation[at] != missing || taps > weight.dims()[2 + at] {
                return Err(format!("pads {:?} differ too much between sides", [top, left, bottom, right]));
            }
            if first < last { before[at] = taps } else { after[at] = taps }
        }
        let [filters, depth, height, width] = weight.dims()[..] else {
            return Err("weight without four extents".into());
        };
        if before != [0; 2] || after != [0; 2] {
            let [rows, columns] = [height + before[0] + after[0], width + before[1] + after[1]];
            self.folder.take(&[filters, depth, rows, columns])?;
            let mut widened = vec![0.0; filters * depth * rows * columns];
            for (kernel, wide) in
                weight.data().chunks_exact(height * width).zip(widened.chunks_exact_mut(rows * columns))
            {
                for (row, from) in kernel.chunks_exact(width).enumerate() {
                    wide[(row + before[0]) * columns + before[1]..][..width].copy_from_slice(from);
                }
            }
            *weight = Array::new(vec![filters, depth, rows, columns], widened);
        }
        Ok([top.max(bottom), left.max(right)])
    }

    /// A weight `[out, in]`, scaled; `across` if the constant has the inputs first.
    fn matrix(&mut self, constant: &Constant, across: bool, scale: f32) -> Result<Array, Reason> {
        let [rows, columns] = constant.dims[..] else {
            return Err(format!("weight {:?}, expected two extents", constant.dims));
        };
        if rows == 0 || columns == 0 {
            return Err(format!("weight {:?} has an extent of 0", constant.dims));
        }
        let numbers = constant.as_floats()?;
        if !across && scale == 1.0 {
            return Ok(Array::new(vec![rows, columns], numbers.clone()));
        }
        self.folder.take(&[rows, columns])?;
        let (outputs, inputs) = if across { (columns, rows) } else { (rows, columns) };
        let at = |output: usize, input: usize| {
            if across { input * columns + output } else { output * columns + input }
        };
        let all = (0..outputs).flat_map(|output| (0..inputs).map(move |input| (output, input)));
        Ok(Array::new(vec![outputs, inputs], all.map(|(o, i)| numbers[at(o, i)] * scale).collect::<Vec<_>>()))
    }

    fn response(&mut self, call: &Call<'_>, response: &Response) -> Result<Value, Reason> {
        let (Some(size), Some(beta)) = (response.size, response.beta) else {
            return Err("divides by a part of a response normalisation".into());
        };
        let lrn = Lrn {
            region: LrnRegion::WithinChannel,
            size,
            alpha: response.alpha,
            beta,
            k: response.k.unwrap_or(0.0),
        };
        Ok(Value::Node(self.draft.add(call.name(), Op::Lrn(lrn), &[response.of], Vec::new())?))
    }
}

impl Response {
    /// The next step: times alpha, plus k, to the power of beta.
    fn then(self, op: &str, number: f32) -> Result<Self, Reason> {
        match op {
            "Mul" if self.k.is_none() && self.beta.is_none() => {
                Ok(Self { alpha: self.alpha * number, ..self })
            }
            "Add" if self.k.is_none() && self.beta.is_none() => Ok(Self { k: Some(number), ..self }),
            "Pow" if self.size.is_some() && self.beta.is_none() => Ok(Self { beta: Some(number), ..self }),
            _ => Err("is no step of a response normalisation".into()),
        }
    }
}

/// The extents of a map with zeros around it.
pub(super) fn padded(
    [height, width]: [usize; 2],
    [top, left, bottom, right]: Pads,
) -> Result<[usize; 2], Reason> {
    let sum = |extent: usize, before: usize, after: usize| extent.checked_add(before)?.checked_add(after);
    let sums = sum(height, top, bottom).zip(sum(width, left, right));
    sums.map(Into::into).ok_or_else(|| "pads are too large".into())
}

/// Zeros that a window op asks for: `pads`, or what `auto_pad` says.
pub(super) fn pads(
    attributes: &Attributes<'_>,
    extents: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
) -> Result<Pads, Reason> {
    match attributes.text("auto_pad").unwrap_or("NOTSET") {
        "NOTSET" => attributes.lengths("pads", 0),
        "VALID" => Ok([0; 4]),
        mode @ ("SAME_UPPER" | "SAME_LOWER") => {
            let mut pads = [0; 4];
            for at in 0..2 {
                if stride[at] == 0 || kernel[at] == 0 {
                    return Err(format!("strides {stride:?}, kernel {kernel:?}"));
                }
                let count = extents[at].div_ceil(stride[at]);
                let reach = (kernel[at] - 1).checked_mul(dilation[at]).ok_or("dilations are too large")?;
                let total = ((count - 1) * stride[at])
                    .saturating_add(reach)
                    .saturating_add(1)
                    .saturating_sub(extents[at]);
                let less = total / 2;
                (pads[at], pads[at + 2]) =
                    if mode == "SAME_UPPER" { (less, total - less) } else { (total - less, less) };
            }
            Ok(pads)
        }
        other => Err(format!("auto_pad {other}")),
    }
}

fn array(constant: &Constant) -> Result<Array, Reason> {
    Ok(Array::new(constant.dims.clone(), constant.as_floats()?.clone()))
}

fn vector(numbers: Vec<f32>) -> Array {
    Array::new(vec![numbers.len()], numbers)
}
