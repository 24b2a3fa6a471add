//! Poolings.

use super::layers::{padded, pads};
use super::{Call, Importer, Response, Value};
use crate::draft::{Reason, Value as Drafted};
use crate::onnx::attributes::Attributes;
use crate::onnx::clipped;
use crate::onnx::fold::axis;
use cofilter_graph::{Op, Pool2d, PoolKind, Rounding, Shape};

impl Importer<'_> {
    pub(super) fn pool(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let max = call.node.op_type == "MaxPool";
        let known: &[&str] = if max {
            &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"]
        } else {
            &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"]
        };
        let attributes = Attributes::of(call.node, known)?;
        call.at_most(1)?;
        attributes.expect_int("storage_order", 0)?;
        if attributes.lengths::<2>("dilations", 1)? != [1; 2] {
            return Err(format!("dilations {:?} are not supported", attributes.ints("dilations")));
        }
        let kernel: [usize; 2] = attributes.lengths("kernel_shape", 0)?;
        let stride = attributes.lengths("strides", 1)?;
        let counted = attributes.int("count_include_pad", 0) != 0;
        if let Value::Response(response) = call.any(0)? {
            return response.mean(&attributes, kernel, stride, counted && !max);
        }
        let (x, before) = match call.any(0)? {
            Value::Padded { of, pads } => (*of, *pads),
            _ => (call.value(0)?, [0; 4]),
        };
        let Shape::Map { height, width, .. } = self.draft.shape(x) else {
            return Err(format!("reads a vector {}", self.draft.shape(x)));
        };
        let mut all: [usize; 4] =
            pads(&attributes, padded([height, width], before)?, kernel, stride, [1; 2])?;
        if before != [0; 4] {
            // Zeros count in an average that counts padding; a maximum that is not below 0 anyway does not see them.
            let unseen = if max { *self.draft.op(x) == Op::Relu } else { counted || all == [0; 4] };
            if !unseen {
                return Err(
                    "the zeros of a `Pad` before it would count otherwise than its own padding".into()
                );
            }
            for (sum, more) in all.iter_mut().zip(before) {
                *sum = sum.checked_add(more).ok_or("pads are too large")?;
            }
        }
        let counted = !max && (counted || before != [0; 4]);
        let ceil = attributes.int("ceil_mode", 0) != 0;
        if ceil && before != [0; 4] {
            return Err("rounds up over the zeros of a `Pad` before it, which is not supported".into());
        }
        let kind = if max { PoolKind::Max } else { PoolKind::Average };
        self.windows(call, x, &Windows { kind, kernel, stride, pads: all, ceil, counted })
    }

    /// Pooling with its own padding on each side.
    fn windows(&mut self, call: &Call<'_>, x: Drafted, windows: &Windows) -> Result<Value, Reason> {
        let Windows { kind, kernel, stride, pads: [top, left, bottom, right], ceil, counted } = *windows;
        let shape = self.draft.shape(x);
        let pool = |rounding: Rounding| Pool2d {
            kind,
            kernel,
            stride,
            padding: [top, left],
            rounding,
            count_padding: counted,
        };
        let own = if ceil { Rounding::Ceil } else { Rounding::Floor };
        if top == bottom && left == right {
            return Ok(Value::Node(self.draft.add(call.name(), Op::Pool2d(pool(own)), &[x], Vec::new())?));
        }
        // More or less padding behind than in front changes the number of windows, and what an average counts.
        let count = |at: usize, before: usize, after: usize| -> Option<usize> {
            let padded = shape.spatial()[at].checked_add(before)?.checked_add(after)?;
            let room = padded.checked_sub(kernel[at])?;
            if ceil { None } else { Some(room.checked_div(stride[at])? + 1) }
        };
        let wanted = count(0, top, bottom).zip(count(1, left, right)).map(<[usize; 2]>::from);
        let found = [Rounding::Floor, Rounding::Ceil].into_iter().find(|rounding| {
            let result = Op::Pool2d(pool(*rounding)).infer("", &[shape]);
            result.is_ok_and(|result| Some(result.spatial()) == wanted)
        });
        let Some(rounding) = found else {
            return Err(format!("pads {:?} differ between sides", windows.pads));
        };
        let pool = pool(rounding);
        if kind == PoolKind::Average && counted {
            self.folder.take(&wanted.unwrap_or_default())?;
            let factors = clipped(&pool, shape);
            if factors.iter().any(|factor| *factor != 1.0) {
                return Ok(Value::Overhung { of: x, pool, factors });
            }
        }
        Ok(Value::Node(self.draft.add(call.name(), Op::Pool2d(pool), &[x], Vec::new())?))
    }

    pub(super) fn global_pool(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        Attributes::of(call.node, &[])?;
        let x = call.value(0)?;
        let op = if call.node.op_type == "GlobalAveragePool" {
            Op::AdaptiveAvgPool { output: [1, 1] }
        } else {
            Op::Pool2d(Pool2d { kernel: self.draft.shape(x).spatial(), ..Pool2d::torch(PoolKind::Max, 1, 1) })
        };
        Ok(Value::Node(self.draft.add(call.name(), op, &[x], Vec::new())?))
    }

    /// The mean over rows and columns.
    pub(super) fn reduce_mean(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let known = ["axes", "keepdims", "noop_with_empty_axes"];
        let attributes = Attributes::of(call.node, &known)?;
        let x = call.value(0)?;
        let axes = match call.optional(1)? {
            Some(axes) => axes.known_ints()?,
            None => attributes.ints("axes").unwrap_or_default().to_vec(),
        };
        let mut places: Vec<usize> = axes.iter().map(|at| axis(*at, 4)).collect::<Result<_, _>>()?;
        places.sort_unstable();
        if places != [2, 3] {
            return Err(format!("is over axes {axes:?}, only rows and columns are supported"));
        }
        let op = Op::AdaptiveAvgPool { output: [1, 1] };
        let mean = self.draft.add(call.name(), op, &[x], Vec::new())?;
        if attributes.int("keepdims", 1) != 0 {
            return Ok(Value::Node(mean));
        }
        Ok(Value::Node(self.draft.add(
            &format!("{}.flatten", call.name()),
            Op::Flatten,
            &[mean],
            Vec::new(),
        )?))
    }
}

/// What a pooling asks for.
#[derive(Clone, Copy, Debug)]
struct Windows {
    kind: PoolKind,
    kernel: [usize; 2],
    stride: [usize; 2],
    pads: [usize; 4],
    ceil: bool,
    /// Whether averages count padding.
    counted: bool,
}

impl Response {
    /// The mean of squares over windows around each element, of which all elements count.
    fn mean(
        self,
        attributes: &Attributes<'_>,
        kernel: [usize; 2],
        stride: [usize; 2],
        counted: bool,
    ) -> Result<Value, Reason> {
        let [size, width] = kernel;
        let around = [size / 2; 4];
        let fits = size % 2 == 1 && width == size && stride == [1; 2] && (counted || size == 1);
        if !fits || attributes.lengths("pads", 0)? != around || self.size.is_some() || self.k.is_some() {
            return Err("pools squares, but not as a response normalisation".into());
        }
        Ok(Value::Response(Self { size: Some(size), ..self }))
    }
}
