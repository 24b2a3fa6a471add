//! Ops that move elements or compute shapes.

use super::{Call, Importer, Value};
use crate::draft::Reason;
use crate::onnx::attributes::Attributes;
use crate::onnx::fold::{axis, flatten_axis, part_of_shape, slices};
use crate::onnx::proto::Node;
use crate::onnx::tensor::{Beside, Constant, Data};
use cofilter_graph::{Op, PadChannels, Pool2d, PoolKind, Shape};

/// The tensor of a `Constant`.
pub(super) fn constant(node: &Node, beside: &mut Beside<'_>) -> Result<Constant, Reason> {
    let known = ["value", "value_float", "value_floats", "value_int", "value_ints"];
    let attributes = Attributes::of(node, &known)?;
    if let Some(tensor) = attributes.tensor("value") {
        return Constant::read(tensor, beside);
    }
    if attributes.has("value_float") {
        return Ok(Constant::floats(Vec::new(), vec![attributes.float("value_float", 0.0)]));
    }
    if let Some(floats) = attributes.floats("value_floats") {
        return Ok(Constant::floats(vec![floats.len()], floats.to_vec()));
    }
    if attributes.has("value_int") {
        return Ok(Constant {
            dims: Vec::new(),
            data: Data::Ints([Some(attributes.int("value_int", 0))].into()),
        });
    }
    match attributes.ints("value_ints") {
        Some(ints) => Ok(Constant::ints(ints.iter().map(|int| Some(*int)).collect())),
        None => Err("has no value".into()),
    }
}

impl Importer<'_> {
    pub(super) fn concat(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let attributes = Attributes::of(call.node, &["axis"])?;
        let values: Vec<_> = (0..call.operands.len()).map(|at| call.value(at)).collect::<Result<_, _>>()?;
        let first = values.first().ok_or("no inputs")?;
        let rank = self.draft.shape(*first).dims().len() + 1;
        if axis(attributes.int("axis", 1), rank)? != 1 {
            return Err(format!("is along axis {}, only channels are supported", attributes.int("axis", 1)));
        }
        if let [one] = values[..] {
            return Ok(Value::Node(one));
        }
        Ok(Value::Node(self.draft.add(call.name(), Op::Concat, &values, Vec::new())?))
    }

    pub(super) fn flatten(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let x = call.value(0)?;
        let rank = self.draft.shape(x).dims().len() + 1;
        match flatten_axis(call.node, rank)? {
            1 => self.vector(call),
            other => Err(format!("axis {other}, only 1 is supported")),
        }
    }

    /// A map as a vector; a vector as it is.
    fn vector(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let x = call.value(0)?;
        match self.draft.shape(x) {
            Shape::Vector(_) => Ok(Value::Node(x)),
            Shape::Map { .. } => {
                Ok(Value::Node(self.draft.add(call.name(), Op::Flatten, &[x], Vec::new())?))
            }
        }
    }

    pub(super) fn reshape(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let attributes = Attributes::of(call.node, &["allowzero", "shape"])?;
        let x = call.value(0)?;
        let wanted: Vec<Option<i64>> = match (call.optional(1)?, attributes.ints("shape")) {
            (Some(shape), _) => shape.as_ints()?.to_vec(),
            (None, Some(shape)) => shape.iter().map(|extent| Some(*extent)).collect(),
            (None, None) => return Err("has no shape".into()),
        };
        let shape = self.draft.shape(x);
        let fail = || format!("{shape} to {wanted:?}: only reshapes of each image to a vector are supported");
        let zero_copies = attributes.int("allowzero", 0) == 0;
        let (images, rest) = wanted.split_first().ok_or_else(fail)?;
        let (images, open) = match images {
            None => (true, false),
            Some(0) => (zero_copies, false),
            Some(-1) => (true, true),
            Some(count) => (self.batch == Some(*count), false),
        };
        let dims = shape.dims();
        let mut known = 1_usize;
        let mut extents = Vec::with_capacity(rest.len());
        let mut opened = open;
        for (at, extent) in rest.iter().enumerate() {
            let extent = match extent.ok_or_else(fail)? {
                0 if zero_copies => *dims.get(at).ok_or_else(fail)?,
                -1 if !opened => {
                    opened = true;
                    0
                }
                extent => usize::try_from(extent).ok().filter(|extent| *extent > 0).ok_or_else(fail)?,
            };
            known = known.checked_mul(extent.max(1)).ok_or_else(fail)?;
            extents.push(extent);
        }
        let elements = shape.elements();
        let missing = elements / known.max(1);
        extents.iter_mut().filter(|extent| **extent == 0).for_each(|extent| *extent = missing);
        if !images
            || extents.iter().try_fold(1_usize, |len, extent| len.checked_mul(*extent)) != Some(elements)
        {
            return Err(fail());
        }
        match extents[..] {
            [_] => self.vector(call),
            _ if extents == dims => Ok(Value::Node(x)),
            _ => Err(fail()),
        }
    }

    /// Removes rows and columns where there is one of each.
    pub(super) fn squeeze(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let x = call.value(0)?;
        let shape = self.draft.shape(x);
        let rank = shape.dims().len() + 1;
        let axes = self.folder.axes(call.node, &call.constants())?;
        let axes = axes.ok_or("would drop the axis of a single image too: give its axes")?;
        let mut places: Vec<usize> = axes.iter().map(|at| axis(*at, rank)).collect::<Result<_, _>>()?;
        places.sort_unstable();
        if places != [2, 3] || shape.spatial() != [1, 1] {
            return Err(format!(
                "drops axes {axes:?} of {shape}, only rows and columns of a 1x1 map are supported"
            ));
        }
        self.vector(call)
    }

    pub(super) fn transpose(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let attributes = Attributes::of(call.node, &["perm"])?;
        let x = call.value(0)?;
        let order = attributes.ints("perm").unwrap_or_default();
        if !order.is_empty() && order.iter().zip(0..).all(|(axis, at)| *axis == at) {
            return Ok(Value::Node(x));
        }
        Err(format!(
            "reorders axes to {order:?}: only networks whose maps have the channels first are supported"
        ))
    }

    /// Zeros around a map, for the op that reads it, or as channels.
    pub(super) fn pad(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let attributes = Attributes::of(call.node, &["mode", "pads", "value", "paddings"])?;
        let mode = attributes.text("mode").unwrap_or("constant");
        if mode != "constant" {
            return Err(format!("mode {mode}, only zeros are supported"));
        }
        let value = call.optional(2)?.map_or(Ok(attributes.float("value", 0.0)), Constant::scalar)?;
        if value != 0.0 {
            return Err(format!("pads with {value}, only zeros are supported"));
        }
        let x = call.value(0)?;
        let rank = self.draft.shape(x).dims().len() + 1;
        let given = match call.optional(1)? {
            Some(pads) => pads.known_ints()?,
            None => attributes.ints("pads").unwrap_or_default().to_vec(),
        };
        let mut pads = vec![0; 2 * rank];
        let places: Vec<usize> = match call.optional(3)? {
            Some(axes) => axes.known_ints()?.iter().map(|at| axis(*at, rank)).collect::<Result<_, _>>()?,
            None => (0..rank).collect(),
        };
        if given.len() != 2 * places.len() {
            return Err(format!("{} pads of {} axes", given.len(), places.len()));
        }
        for (at, place) in places.iter().enumerate() {
            for (side, count) in [(0, given[at]), (rank, given[at + places.len()])] {
                pads[place + side] = usize::try_from(count).map_err(|_| format!("pads {given:?} crop"))?;
            }
        }
        if pads.iter().all(|count| *count == 0) {
            return Ok(Value::Node(x));
        }
        match pads[..] {
            [0, 0, top, left, 0, 0, bottom, right] => {
                Ok(Value::Padded { of: x, pads: [top, left, bottom, right] })
            }
            [0, before, 0, 0, 0, after, 0, 0] => {
                let op = Op::PadChannels(PadChannels { before, after });
                Ok(Value::Node(self.draft.add(call.name(), op, &[x], Vec::new())?))
            }
            _ => Err(format!("pads {given:?}: only channels, or rows and columns, are supported")),
        }
    }

    /// Every few rows and columns of a map, or all of it.
    pub(super) fn slice(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let x = call.value(0)?;
        // Nothing may be taken of the images, however many there are.
        let dims: Vec<usize> = std::iter::once(i32::MAX as usize).chain(self.draft.shape(x).dims()).collect();
        let ranges = slices(call.node, &call.constants(), &dims, self.folder.opset)?;
        let all = |at: usize| ranges[at].start == 0 && ranges[at].step == 1 && ranges[at].count == dims[at];
        if (0..dims.len()).all(all) {
            return Ok(Value::Node(x));
        }
        let step = |at: usize| -> Option<usize> {
            let step = usize::try_from(ranges.get(at)?.step).ok().filter(|step| *step > 0)?;
            (ranges[at].start == 0 && ranges[at].count == dims[at].div_ceil(step)).then_some(step)
        };
        let stride = (all(0) && all(1)).then(|| step(2).zip(step(3))).flatten();
        let Some((rows, columns)) = stride else {
            return Err("only every few rows and columns, from the first one on, can be taken".into());
        };
        let stride = [rows, columns];
        let pool = Pool2d { stride, ..Pool2d::torch(PoolKind::Max, 1, 1) };
        Ok(Value::Node(self.draft.add(call.name(), Op::Pool2d(pool), &[x], Vec::new())?))
    }

    pub(super) fn shape(&mut self, call: &Call<'_>) -> Result<Value, Reason> {
        let dims = self.draft.shape(call.value(0)?).dims();
        let known = dims.iter().map(|dim| i64::try_from(*dim).ok());
        part_of_shape(call.node, std::iter::once(None).chain(known).collect()).map(Value::Constant)
    }
}
