//! Nodes whose operands are all known before the network runs.

use super::attributes::Attributes;
use super::proto::{Node, kind};
use super::tensor::{Beside, Constant, Data, MOST_DIMS, elements};
use crate::draft::Reason;

/// Operands of a node; `None` where one is left out.
pub(super) type Operands<'a> = [Option<&'a Constant>];

/// Elements that a computed tensor may always have.
const ALWAYS: usize = 1 << 20;

/// Computes constants of constants, no more than the file could well mean.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) opset: i64,
    /// Elements that may still be computed.
    pub(super) room: usize,
}

impl Folder {
    /// For a file of this many bytes.
    pub(super) fn new(opset: i64, bytes: usize) -> Self {
        Self { opset, room: bytes.saturating_add(ALWAYS) }
    }

    /// The result of a node of constants.
    ///
    /// # Errors
    /// For ops that are not folded, and operands that do not fit.
    pub(super) fn apply(&mut self, node: &Node, operands: &Operands<'_>) -> Result<Constant, Reason> {
        let first = || operand(operands, 0);
        match node.op_type.as_str() {
            "Identity" => first().cloned(),
            "Cast" => self.cast(&Attributes::of(node, &["to", "saturate"])?, first()?),
            "Reshape" => {
                let attributes = Attributes::of(node, &["allowzero"])?;
                reshape(first()?, operand(operands, 1)?.as_ints()?, attributes.int("allowzero", 0) == 0)
            }
            "Flatten" => {
                let x = first()?;
                let axis = flatten_axis(node, x.dims.len())?;
                let rows = x.dims[..axis].iter().product::<usize>();
                let columns = x.dims[axis..].iter().product();
                Ok(Constant { dims: vec![rows, columns], data: x.data.clone() })
            }
            "Unsqueeze" => unsqueeze(first()?, &self.axes(node, operands)?.ok_or("no axes")?),
            "Squeeze" => squeeze(first()?, self.axes(node, operands)?.as_deref()),
            "Transpose" => self.transpose(&Attributes::of(node, &["perm"])?, first()?),
            "Concat" => self.concat(&Attributes::of(node, &["axis"])?, operands),
            "Gather" => self.gather(&Attributes::of(node, &["axis"])?, first()?, operand(operands, 1)?),
            "Slice" => {
                let x = first()?;
                let ranges = slices(node, operands, &x.dims, self.opset)?;
                self.slice(x, &ranges)
            }
            "ConstantOfShape" => self.filled(node, first()?),
            "Shape" => {
                let dims = first()?.dims.iter().map(|dim| i64::try_from(*dim).ok()).collect();
                part_of_shape(node, dims)
            }
            "Add" | "Sub" | "Mul" | "Div" | "Pow" => self.binary(node, first()?, operand(operands, 1)?),
            "Neg" => self.unary(first()?, |x| -x),
            "Sqrt" => self.unary(first()?, f32::sqrt),
            "Reciprocal" => self.unary(first()?, f32::recip),
            other => Err(format!("{other} of constants is not supported")),
        }
    }

    /// Takes from what may still be computed.
    ///
    /// # Errors
    /// If no honest file of such a length needs so much.
    pub(super) fn take(&mut self, dims: &[usize]) -> Result<usize, Reason> {
        let len = elements(dims)?;
        let left = self.room.checked_sub(len);
        self.room =
            left.ok_or_else(|| format!("computes {dims:?} numbers, more than such a file could mean"))?;
        Ok(len)
    }

    /// A tensor whose elements are those of another one; `from` gives the index of an element in it.
    fn picked(
        &mut self,
        x: &Constant,
        dims: Vec<usize>,
        from: impl Fn(&[usize]) -> usize,
    ) -> Result<Constant, Reason> {
        let len = self.take(&dims)?;
        let mut index = vec![0; dims.len()];
        let mut indices = Vec::with_capacity(len);
        for _ in 0..len {
            indices.push(from(&index));
            for (place, extent) in index.iter_mut().zip(&dims).rev() {
                *place += 1;
                if *place < *extent {
                    break;
                }
                *place = 0;
            }
        }
        let data = match &x.data {
            Data::Floats(floats) => Data::Floats(indices.iter().map(|index| floats[*index]).collect()),
            Data::Ints(ints) => Data::Ints(indices.iter().map(|index| ints[*index]).collect()),
        };
        Ok(Constant { dims, data })
    }

    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "what a cast is")]
    fn cast(&mut self, attributes: &Attributes<'_>, x: &Constant) -> Result<Constant, Reason> {
        let to = attributes.int("to", 0);
        let floats = [kind::FLOAT, kind::DOUBLE].map(i64::from).contains(&to);
        let ints = [kind::INT64, kind::INT32].map(i64::from).contains(&to);
        let data = match &x.data {
            Data::Floats(_) if floats => return Ok(x.clone()),
            Data::Ints(_) if ints => return Ok(x.clone()),
            Data::Ints(_) if floats => {
                self.take(&x.dims)?;
                Data::Floats(x.known_ints()?.iter().map(|int| *int as f32).collect())
            }
            Data::Floats(numbers) if ints => {
                self.take(&x.dims)?;
                Data::Ints(numbers.iter().map(|number| Some(*number as i64)).collect())
            }
            _ => return Err(format!("a cast to type {to} is not supported")),
        };
        Ok(Constant { dims: x.dims.clone(), data })
    }

    fn transpose(&mut self, attributes: &Attributes<'_>, x: &Constant) -> Result<Constant, Reason> {
        let rank = x.dims.len();
        let order: Vec<usize> = match attributes.ints("perm") {
            None => (0..rank).rev().collect(),
            Some(order) => order.iter().map(|at| axis(*at, rank)).collect::<Result<_, _>>()?,
        };
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if sorted != (0..rank).collect::<Vec<_>>() {
            return Err(format!("perm {order:?} of {rank} axes"));
        }
        let strides = strides(&x.dims);
        let dims = order.iter().map(|at| x.dims[*at]).collect();
        self.picked(x, dims, |index| index.iter().zip(&order).map(|(i, at)| i * strides[*at]).sum())
    }

    fn concat(&mut self, attributes: &Attributes<'_>, operands: &Operands<'_>) -> Result<Constant, Reason> {
        let parts: Option<Vec<&Constant>> = operands.iter().copied().collect();
        let parts = parts.filter(|parts| !parts.is_empty()).ok_or("an operand is missing")?;
        let rank = parts[0].dims.len();
        let at = axis(attributes.int("axis", 0), rank)?;
        let around = |part: &Constant| -> Option<Vec<usize>> {
            let mut dims = part.dims.clone();
            *dims.get_mut(at)? = 0;
            Some(dims)
        };
        if parts.iter().any(|part| around(part) != around(parts[0])) {
            return Err("concatenates tensors of other extents".into());
        }
        let mut dims = parts[0].dims.clone();
        let whole = parts.iter().try_fold(0_usize, |sum, part| sum.checked_add(part.dims[at]));
        dims[at] = whole.ok_or("too many elements")?;
        // An extent of 0 leaves nothing to copy, however many rows of it there are.
        let outer = if self.take(&dims)? == 0 { 0 } else { dims[..at].iter().product() };
        let chunk = |part: &Constant| part.dims[at..].iter().product::<usize>();
        if parts.iter().all(|part| matches!(part.data, Data::Ints(_))) {
            let mut all = Vec::new();
            for row in 0..outer {
                for part in &parts {
                    all.extend(&part.as_ints()?[row * chunk(part)..][..chunk(part)]);
                }
            }
            return Ok(Constant { dims, data: Data::Ints(all.into()) });
        }
        let mut all = Vec::new();
        for row in 0..outer {
            for part in &parts {
                all.extend(&part.as_floats()?[row * chunk(part)..][..chunk(part)]);
            }
        }
        Ok(Constant::floats(dims, all))
    }

    fn gather(
        &mut self,
        attributes: &Attributes<'_>,
        x: &Constant,
        at: &Constant,
    ) -> Result<Constant, Reason> {
        let along = axis(attributes.int("axis", 0), x.dims.len())?;
        let extent = x.dims[along];
        let indices: Vec<usize> =
            at.known_ints()?.iter().map(|index| axis(*index, extent)).collect::<Result<_, _>>()?;
        let rank = at.dims.len();
        if x.dims.len() + at.dims.len() > MOST_DIMS {
            return Err(format!("{:?} of {:?}: too many extents", at.dims, x.dims));
        }
        let dims: Vec<usize> =
            x.dims[..along].iter().chain(&at.dims).chain(&x.dims[along + 1..]).copied().collect();
        let (strides, inner) = (strides(&x.dims), strides(&at.dims));
        self.picked(x, dims, |index| {
            let (before, rest) = index.split_at(along);
            let (middle, after) = rest.split_at(rank);
            let chosen: usize = middle.iter().zip(&inner).map(|(i, stride)| i * stride).sum();
            let outside = before.iter().zip(&strides).chain(after.iter().zip(&strides[along + 1..]));
            outside.map(|(i, stride)| i * stride).sum::<usize>() + indices[chosen] * strides[along]
        })
    }

    fn slice(&mut self, x: &Constant, ranges: &[Range]) -> Result<Constant, Reason> {
        let strides = strides(&x.dims);
        let dims = ranges.iter().map(|range| range.count).collect();
        self.picked(x, dims, |index| {
            let places = index.iter().zip(ranges).map(|(i, range)| range.place(*i));
            places.zip(&strides).map(|(place, stride)| place * stride).sum()
        })
    }

    fn filled(&mut self, node: &Node, shape: &Constant) -> Result<Constant, Reason> {
        let attributes = Attributes::of(node, &["value"])?;
        let dims: Option<Vec<usize>> =
            shape.known_ints()?.iter().map(|dim| usize::try_from(*dim).ok()).collect();
        let dims = dims.ok_or("a negative extent")?;
        let len = self.take(&dims)?;
        let value = attributes
            .tensor("value")
            .map(|tensor| Constant::read(tensor, &mut Beside::new(None)))
            .transpose()?;
        let data = match value.map(|value| value.data) {
            None => Data::Floats(vec![0.0; len].into()),
            Some(Data::Floats(floats)) if floats.len() == 1 => Data::Floats(vec![floats[0]; len].into()),
            Some(Data::Ints(ints)) if ints.len() == 1 => Data::Ints(vec![ints[0]; len].into()),
            Some(other) => return Err(format!("a value of {} numbers", other.len())),
        };
        Ok(Constant { dims, data })
    }

    fn unary(&mut self, x: &Constant, f: impl Fn(f32) -> f32) -> Result<Constant, Reason> {
        self.take(&x.dims)?;
        let floats: Vec<f32> = x.as_floats()?.iter().map(|number| f(*number)).collect();
        Ok(Constant::floats(x.dims.clone(), floats))
    }

    fn binary(&mut self, node: &Node, a: &Constant, b: &Constant) -> Result<Constant, Reason> {
        Attributes::of(node, &[])?;
        let dims = broadcast(&a.dims, &b.dims)?;
        let index_of = |of: &Constant| {
            let skipped = dims.len() - of.dims.len();
            let steps: Vec<usize> = strides(&of.dims)
                .iter()
                .zip(&of.dims)
                .map(|(s, dim)| if *dim == 1 { 0 } else { *s })
                .collect();
            move |index: &[usize]| {
                index[skipped..].iter().zip(&steps).map(|(i, step)| i * step).sum::<usize>()
            }
        };
        let left = self.picked(a, dims.clone(), index_of(a))?;
        let right = self.picked(b, dims.clone(), index_of(b))?;
        let data = match (&left.data, &right.data) {
            (Data::Floats(a), Data::Floats(b)) => {
                let of = |a: f32, b: f32| match node.op_type.as_str() {
                    "Add" => a + b,
                    "Sub" => a - b,
                    "Mul" => a * b,
                    "Div" => a / b,
                    _ => a.powf(b),
                };
                Data::Floats(a.iter().zip(&**b).map(|(a, b)| of(*a, *b)).collect())
            }
            (Data::Ints(a), Data::Ints(b)) => {
                let of = |a: i64, b: i64| match node.op_type.as_str() {
                    "Add" => a.checked_add(b),
                    "Sub" => a.checked_sub(b),
                    "Mul" => a.checked_mul(b),
                    "Div" => a.checked_div(b),
                    _ => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
                };
                let mut all = Vec::with_capacity(a.len());
                for pair in a.iter().zip(&**b) {
                    all.push(match pair {
                        (Some(a), Some(b)) => {
                            Some(of(*a, *b).ok_or_else(|| format!("{} of {a} and {b}", node.op_type))?)
                        }
                        _ => None,
                    });
                }
                Data::Ints(all.into())
            }
            _ => return Err("operands of two types".into()),
        };
        Ok(Constant { dims, data })
    }

    /// The axes of an op that had them as an attribute before opset 13.
    pub(super) fn axes(&self, node: &Node, operands: &Operands<'_>) -> Result<Option<Vec<i64>>, Reason> {
        let attributes = Attributes::of(node, &["axes"])?;
        match (attributes.ints("axes"), operands.get(1).copied().flatten()) {
            (Some(axes), None) => Ok(Some(axes.to_vec())),
            (None, Some(axes)) => axes.known_ints().map(Some),
            (None, None) => Ok(None),
            _ => Err("axes twice".into()),
        }
    }
}

/// The operand at a place.
pub(super) fn operand<'a>(operands: &Operands<'a>, at: usize) -> Result<&'a Constant, Reason> {
    operands.get(at).copied().flatten().ok_or_else(|| format!("input {at} is missing"))
}

/// An axis or index counted from the end if it is negative.
pub(super) fn axis(at: i64, rank: usize) -> Result<usize, Reason> {
    let from_start = if at < 0 { at.checked_add_unsigned(rank as u64) } else { Some(at) };
    let found = from_start.and_then(|at| usize::try_from(at).ok()).filter(|at| *at < rank);
    found.ok_or_else(|| format!("{at} is outside {rank}"))
}

/// The first axis of the columns that `Flatten` makes, `rank` if there is none.
pub(super) fn flatten_axis(node: &Node, rank: usize) -> Result<usize, Reason> {
    let at = Attributes::of(node, &["axis"])?.int("axis", 1);
    axis(at, if at < 0 { rank } else { rank + 1 })
}

fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for at in (1..dims.len()).rev() {
        strides[at - 1] = strides[at] * dims[at];
    }
    strides
}

fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, Reason> {
    let rank = a.len().max(b.len());
    let extent = |dims: &[usize], at: usize| (at + dims.len()).checked_sub(rank).map_or(1, |at| dims[at]);
    let both = (0..rank).map(|at| match (extent(a, at), extent(b, at)) {
        (a, b) if a == b || b == 1 => Ok(a),
        (1, b) => Ok(b),
        _ => Err(format!("{a:?} and {b:?} do not fit")),
    });
    both.collect()
}

fn reshape(x: &Constant, shape: &[Option<i64>], zero_copies: bool) -> Result<Constant, Reason> {
    let mut dims = Vec::with_capacity(shape.len());
    let mut open = None;
    for (at, extent) in shape.iter().enumerate() {
        dims.push(match extent.ok_or("depends on the number of images")? {
            0 if zero_copies => *x.dims.get(at).ok_or("copies an extent that is not there")?,
            -1 if open.is_none() => {
                open = Some(at);
                1
            }
            extent => usize::try_from(extent).map_err(|_| format!("shape {shape:?}"))?,
        });
    }
    if dims.len() > MOST_DIMS {
        return Err(format!("{} extents, at most {MOST_DIMS} are supported", dims.len()));
    }
    let known = elements(&dims)?;
    if let Some(at) = open {
        dims[at] = x.data.len().checked_div(known).unwrap_or(0);
    }
    if elements(&dims)? != x.data.len() {
        return Err(format!("{:?} does not fit {dims:?}", x.dims));
    }
    Ok(Constant { dims, data: x.data.clone() })
}

fn unsqueeze(x: &Constant, axes: &[i64]) -> Result<Constant, Reason> {
    let rank = x.dims.len() + axes.len();
    let mut places: Vec<usize> = axes.iter().map(|at| axis(*at, rank)).collect::<Result<_, _>>()?;
    places.sort_unstable();
    if rank > MOST_DIMS || places.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(format!("axes {axes:?}"));
    }
    let mut dims = x.dims.clone();
    for place in places {
        if place > dims.len() {
            return Err(format!("axes {axes:?}"));
        }
        dims.insert(place, 1);
    }
    Ok(Constant { dims, data: x.data.clone() })
}

fn squeeze(x: &Constant, axes: Option<&[i64]>) -> Result<Constant, Reason> {
    let rank = x.dims.len();
    let places: Vec<usize> = match axes {
        None => (0..rank).filter(|at| x.dims[*at] == 1).collect(),
        Some(axes) => axes.iter().map(|at| axis(*at, rank)).collect::<Result<_, _>>()?,
    };
    if let Some(at) = places.iter().find(|at| x.dims[**at] != 1) {
        return Err(format!("axis {at} has extent {}", x.dims[*at]));
    }
    let kept = x.dims.iter().enumerate().filter(|(at, _)| !places.contains(at));
    Ok(Constant { dims: kept.map(|(_, dim)| *dim).collect(), data: x.data.clone() })
}

/// What `Shape` gives for these extents.
pub(super) fn part_of_shape(node: &Node, dims: Vec<Option<i64>>) -> Result<Constant, Reason> {
    let attributes = Attributes::of(node, &["start", "end"])?;
    let rank = i64::try_from(dims.len()).map_err(|_| "too many axes")?;
    let clip = |at: i64| if at < 0 { at.saturating_add(rank) } else { at }.clamp(0, rank);
    let (start, end) = (clip(attributes.int("start", 0)), clip(attributes.int("end", rank)));
    let places = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    let (start, end) = places.ok_or("a part of a shape")?;
    Ok(Constant::ints(dims[start.min(end)..end].to_vec()))
}

/// What a slice takes of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: usize,
    /// Elements from one to the next, backwards if negative.
    pub(super) step: isize,
    pub(super) count: usize,
}

impl Range {
    /// `start..end` by `step` of an axis, ends before the first one counted from the last.
    fn of(start: i64, end: i64, step: i64, extent: usize) -> Result<Self, Reason> {
        let steps = || format!("steps of {step} along {extent}");
        let len = i64::try_from(extent).map_err(|_| steps())?;
        let from_start = |at: i64| if at < 0 { at.saturating_add(len) } else { at };
        let (start, end) = (from_start(start), from_start(end));
        let (start, distance) = match step {
            0 => return Err(steps()),
            1.. => {
                let start = start.clamp(0, len);
                (start, end.clamp(0, len) - start)
            }
            _ => {
                let start = start.clamp(-1, len - 1);
                (start, start - end.clamp(-1, len - 1))
            }
        };
        let count = u64::try_from(distance).unwrap_or(0).div_ceil(step.unsigned_abs());
        let parts = (usize::try_from(start.max(0)), isize::try_from(step), usize::try_from(count));
        match parts {
            (Ok(start), Ok(step), Ok(count)) => Ok(Self { start, step, count }),
            _ => Err(steps()),
        }
    }

    /// The place of an element that is taken.
    fn place(&self, at: usize) -> usize {
        self.start.wrapping_add_signed(self.step.wrapping_mul(at.cast_signed()))
    }
}

/// What a `Slice` takes of each axis of a tensor of these extents.
pub(super) fn slices(
    node: &Node,
    operands: &Operands<'_>,
    dims: &[usize],
    opset: i64,
) -> Result<Vec<Range>, Reason> {
    let [starts, ends, axes, steps] = if opset < 10 {
        let attributes = Attributes::of(node, &["starts", "ends", "axes"])?;
        ["starts", "ends", "axes", "steps"].map(|name| attributes.ints(name).map(<[i64]>::to_vec))
    } else {
        Attributes::of(node, &[])?;
        let mut given = [None, None, None, None];
        for (at, given) in given.iter_mut().enumerate() {
            *given = operands.get(at + 1).copied().flatten().map(Constant::known_ints).transpose()?;
        }
        given
    };
    let (starts, ends) = starts.zip(ends).ok_or("no starts or no ends")?;
    let count = starts.len();
    let axes = match axes {
        Some(axes) => axes.iter().map(|at| axis(*at, dims.len())).collect::<Result<Vec<_>, _>>()?,
        None => (0..count).collect(),
    };
    let steps = steps.unwrap_or_else(|| vec![1; count]);
    if ends.len() != count
        || axes.len() != count
        || steps.len() != count
        || axes.iter().any(|at| *at >= dims.len())
    {
        return Err(format!(
            "{count} starts, {} ends, {} axes, {} steps",
            ends.len(),
            axes.len(),
            steps.len()
        ));
    }
    let mut ranges: Vec<Range> = dims.iter().map(|dim| Range { start: 0, step: 1, count: *dim }).collect();
    for (at, place) in axes.into_iter().enumerate() {
        ranges[place] = Range::of(starts[at], ends[at], steps[at], dims[place])?;
    }
    Ok(ranges)
}
