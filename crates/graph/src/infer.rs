use crate::op::{Conv2d, Op, Pool2d, Rounding};
use crate::{Error, Result, Shape};

/// Most values that a convolution may reach over, padding included: four terabytes, far inside what can be counted.
const MAX_REACH: u128 = 1 << 40;
/// Largest extent and stride of a pooling window.
const MAX_WINDOW: usize = 1 << 16;

/// Why a shape cannot be inferred.
type Reason = String;

impl Op {
    /// Shape of the result for inputs of these shapes.
    ///
    /// # Errors
    /// [`Error::Node`] with `node` as name where attributes and inputs do not fit.
    pub fn infer(&self, node: &str, inputs: &[Shape]) -> Result<Shape> {
        self.result(inputs).map_err(|reason| Error::node(node, reason))
    }

    fn result(&self, inputs: &[Shape]) -> Result<Shape, Reason> {
        let wanted = match self {
            Self::Input { .. } => 0..=0,
            Self::Add | Self::Concat => 2..=usize::MAX,
            _ => 1..=1,
        };
        if !wanted.contains(&inputs.len()) {
            return Err(format!("{} takes {} inputs, found {}", self.kind(), arity(&wanted), inputs.len()));
        }
        let shape = match self {
            Self::Input { shape } => *shape,
            Self::Add => equal(inputs)?,
            Self::Concat => concat(inputs)?,
            _ => self.of_one(inputs[0])?,
        };
        self.check_size(inputs, shape)?;
        if let (Self::Conv2d(conv), Some(input)) = (self, inputs.first()) {
            conv.check_reach(*input)?;
        }
        Ok(shape)
    }

    /// The ops of one operand.
    fn of_one(&self, x: Shape) -> Result<Shape, Reason> {
        let map = || match x {
            Shape::Map { channels, height, width } => Ok([channels, height, width]),
            Shape::Vector(_) => Err(format!("{} takes a map, found a vector {x}", self.kind())),
        };
        let vector = || match x {
            Shape::Vector(_) => Ok(()),
            Shape::Map { .. } => Err(format!("{} takes a vector, found a map {x}", self.kind())),
        };
        match self {
            Self::Conv2d(c) => c.result(map()?),
            Self::Pool2d(p) => p.result(map()?),
            Self::Linear(l) => {
                vector()?;
                check(l.out_features > 0, || "out_features is 0".into())?;
                Ok(Shape::Vector(l.out_features))
            }
            Self::BatchNorm(bn) => {
                map()?;
                check(positive(bn.eps) && (0.0..=1.0).contains(&bn.momentum), || {
                    format!("eps {} must be above 0, momentum {} in 0..=1", bn.eps, bn.momentum)
                })?;
                Ok(x)
            }
            Self::AdaptiveAvgPool { output } => {
                let [channels, ..] = map()?;
                check(output[0] > 0 && output[1] > 0, || format!("cannot pool {x} to {output:?}"))?;
                Ok(Shape::map(channels, output[0], output[1]))
            }
            Self::Lrn(l) => {
                map()?;
                let numbers = l.alpha.is_finite() && l.alpha >= 0.0 && l.beta.is_finite() && positive(l.k);
                check(l.size % 2 == 1 && l.size <= usize::from(u16::MAX) && numbers, || {
                    format!(
                        "lrn takes an odd size below 65536, finite numbers, alpha from 0 and k above 0: {l:?}"
                    )
                })?;
                Ok(x)
            }
            Self::Dropout { p } => {
                check((0.0..1.0).contains(p), || format!("dropout probability {p} is not in [0, 1)"))?;
                Ok(x)
            }
            Self::Flatten => {
                x.checked_elements().map(Shape::Vector).ok_or_else(|| format!("cannot flatten {x}"))
            }
            Self::Softmax => vector().map(|()| x),
            Self::PadChannels(p) => {
                let [channels, height, width] = map()?;
                let channels = channels.checked_add(p.before).and_then(|c| c.checked_add(p.after));
                let channels = channels.ok_or_else(|| format!("too many channels: {p:?}"))?;
                Ok(Shape::map(channels, height, width))
            }
            Self::Relu | Self::Input { .. } | Self::Add | Self::Concat => Ok(x),
        }
    }

    /// Refuses results, tensors and numbers of operations that cannot be counted.
    fn check_size(&self, inputs: &[Shape], shape: Shape) -> Result<(), Reason> {
        check(shape.checked_elements().is_some(), || {
            format!("the result {shape} has an extent of 0 or is too large")
        })?;
        for slot in self.slots(inputs) {
            // Operations are at most weights times positions of the result.
            let [height, width] = shape.spatial();
            let mut factors = slot.dims.iter().chain([&height, &width]);
            let operations = factors.try_fold(1usize, |n, factor| n.checked_mul(*factor));
            check(operations.is_some_and(|n| n <= isize::MAX as usize / 4), || {
                format!("{} {:?} is too large", slot.name, slot.dims)
            })?;
        }
        Ok(())
    }
}

fn check(holds: bool, reason: impl FnOnce() -> Reason) -> Result<(), Reason> {
    if holds { Ok(()) } else { Err(reason()) }
}

fn positive(v: f32) -> bool {
    v.is_finite() && v > 0.0
}

fn arity(range: &std::ops::RangeInclusive<usize>) -> String {
    match (*range.start(), *range.end()) {
        (a, b) if a == b => a.to_string(),
        (a, _) => format!("{a} or more"),
    }
}

fn equal(inputs: &[Shape]) -> Result<Shape, Reason> {
    match inputs.iter().find(|s| **s != inputs[0]) {
        None => Ok(inputs[0]),
        Some(other) => Err(format!("add takes equal shapes, found {} and {other}", inputs[0])),
    }
}

fn concat(inputs: &[Shape]) -> Result<Shape, Reason> {
    let mut channels = 0usize;
    for (i, s) in inputs.iter().enumerate() {
        let same = matches!(
            (s, inputs[0]),
            (Shape::Map { .. }, Shape::Map { .. }) | (Shape::Vector(_), Shape::Vector(_))
        );
        check(same && s.spatial() == inputs[0].spatial(), || {
            format!("concat: input {i} is {s}, the first is {}", inputs[0])
        })?;
        channels = channels.checked_add(s.channels()).ok_or("concat: too many channels")?;
    }
    Ok(match inputs[0] {
        Shape::Map { height, width, .. } => Shape::map(channels, height, width),
        Shape::Vector(_) => Shape::Vector(channels),
    })
}

impl Conv2d {
    fn result(&self, [channels, height, width]: [usize; 3]) -> Result<Shape, Reason> {
        if self.out_channels == 0 || self.groups == 0 {
            return Err(format!(
                "out_channels {} and groups {} must be above 0",
                self.out_channels, self.groups
            ));
        }
        if !channels.is_multiple_of(self.groups) || !self.out_channels.is_multiple_of(self.groups) {
            return Err(format!(
                "{channels} input and {} output channels are not multiples of {} groups",
                self.out_channels, self.groups
            ));
        }
        let mut out = [0; 2];
        for (axis, extent) in [height, width].into_iter().enumerate() {
            let (k, s, p, d) =
                (self.kernel[axis], self.stride[axis], self.padding[axis], self.dilation[axis]);
            if k == 0 || s == 0 || d == 0 {
                return Err(format!("kernel {k}, stride {s} and dilation {d} must be above 0"));
            }
            let reach = (k - 1).checked_mul(d).and_then(|r| r.checked_add(1));
            let padded = p.checked_mul(2).and_then(|p| p.checked_add(extent));
            out[axis] = match (reach, padded) {
                (Some(reach), Some(padded)) if padded >= reach => (padded - reach) / s + 1,
                _ => {
                    return Err(format!(
                        "a kernel of {k} (dilation {d}) does not fit {extent} with padding {p}"
                    ));
                }
            };
        }
        Ok(Shape::map(self.out_channels, out[0], out[1]))
    }
}

impl Conv2d {
    /// Refuses windows so large that their positions cannot be counted.
    fn check_reach(&self, input: Shape) -> Result<(), Reason> {
        let channels = self.out_channels.max(input.channels()) as u128;
        let reach = |axis: usize| {
            let taps = self.kernel[axis] as u128 * self.dilation[axis] as u128;
            taps + input.spatial()[axis] as u128 + 2 * self.padding[axis] as u128
        };
        check(self.stride.iter().all(|stride| *stride <= MAX_WINDOW), || {
            format!("stride {:?} is too large", self.stride)
        })?;
        check(channels.saturating_mul(reach(0).saturating_mul(reach(1))) <= MAX_REACH, || {
            format!(
                "kernel {:?}, dilation {:?} and padding {:?} are too large",
                self.kernel, self.dilation, self.padding
            )
        })
    }
}

impl Pool2d {
    fn result(&self, [channels, height, width]: [usize; 3]) -> Result<Shape, Reason> {
        let mut out = [0; 2];
        for (axis, extent) in [height, width].into_iter().enumerate() {
            let (k, s, p) = (self.kernel[axis], self.stride[axis], self.padding[axis]);
            check(k <= MAX_WINDOW && s <= MAX_WINDOW, || {
                format!("a window of {k} with stride {s} is too large")
            })?;
            if k == 0 || s == 0 || p >= k {
                return Err(format!(
                    "kernel {k} and stride {s} must be above 0, padding {p} below the kernel"
                ));
            }
            let padded = extent.saturating_add(p.saturating_mul(2));
            // Rounded up, a window may stick out by less than one step; the count would be 0 or less beyond that.
            let missing = k.saturating_sub(padded);
            let spare = if self.rounding == Rounding::Ceil { s - 1 } else { 0 };
            if missing > spare {
                return Err(format!("a window of {k} does not fit {extent} with padding {p}"));
            }
            let room = padded.saturating_sub(k);
            out[axis] = match self.rounding {
                Rounding::Floor => room / s + 1,
                Rounding::Ceil => {
                    let n = room.div_ceil(s) + 1;
                    n - usize::from((n - 1).saturating_mul(s) >= extent.saturating_add(p))
                }
            };
        }
        Ok(Shape::map(channels, out[0], out[1]))
    }
}
