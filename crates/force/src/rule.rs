use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::{Error, Force, Result, gradient_grouped};

/// Which elements of the force take part (`force_direction` in the authors' code).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// All of them.
    #[default]
    All,
    /// Those that do not oppose the gradient of loss and weight decay: where the product of force and
    /// gradient is negative the force is zero.
    Same,
}

/// How the coefficient of the force is found (`force_decay_type` in the authors' code).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// `strength * multiplier`.
    #[default]
    Fixed,
    /// `strength * multiplier * ||g|| / ||G||` with the gradient `g` of loss and weight decay and the force
    /// `G` (after [`Direction::Same`]) of the whole tensor; 0 where `||G|| < 1e-8`.
    Adaptive,
}

/// Force norm under which [`Scaling::Adaptive`] gives up.
const NO_FORCE: f64 = 1e-8;

/// The force part of a training recipe (Wen et al. 2017; options of the authors' solver).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Dependence on distance.
    pub force: Force,
    /// The paper's lambda_s; negative repels. It does not carry over between widths: a filter's force sums
    /// over all the others.
    pub strength: f64,
    /// Which elements take part.
    #[serde(default)]
    pub direction: Direction,
    /// Fixed, or relative to the gradient.
    #[serde(default)]
    pub scaling: Scaling,
}

impl Direction {
    /// Whether an element of the force takes part where the gradient of loss and weight decay is `gradient`.
    #[inline(always)]
    #[must_use]
    pub fn takes_part(self, force: f32, gradient: f32) -> bool {
        match self {
            Direction::All => true,
            Direction::Same => {
                let opposed = force * gradient < 0.0;
                !opposed
            }
        }
    }
}

/// The last step of a [`Rule`], for those who have gradient and force in slices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Push {
    coefficient: f64,
    direction: Direction,
}

impl Push {
    /// What the force is multiplied by.
    #[must_use]
    pub fn coefficient(self) -> f64 {
        self.coefficient
    }

    /// `gradient + coefficient * force`, in single precision, where the element takes part.
    #[inline(always)]
    #[must_use]
    pub fn apply(self, gradient: f32, force: f32) -> f32 {
        let force = if self.direction.takes_part(force, gradient) { force } else { 0.0 };
        gradient + force * self.coefficient as f32
    }
}

impl Rule {
    /// How the gradient of a layer with this multiplier is pushed. `norms` is asked by [`Scaling::Adaptive`] alone, for
    /// `||g||` and `||G||` of the whole tensor, the latter over the elements that take part.
    ///
    /// # Errors
    /// A coefficient that is not finite.
    pub fn push(&self, multiplier: f64, norms: impl FnOnce() -> [f64; 2]) -> Result<Push> {
        let mut coefficient = self.strength * multiplier;
        if !coefficient.is_finite() {
            return Err(Error::Coefficient { strength: self.strength, multiplier });
        }
        if self.scaling == Scaling::Adaptive {
            let [gradient, force] = norms();
            coefficient *= if force < NO_FORCE { 0.0 } else { gradient / force };
        }
        Ok(Push { coefficient, direction: self.direction })
    }

    /// `gradient + coefficient * G`, same shape and type as `gradient`, for a weight `[N, ..]` whose filters
    /// all act on each other (the authors' code, also for grouped convolutions).
    ///
    /// `gradient` holds the clipped gradient of the loss plus the weight decay; momentum comes after.
    /// `multiplier` is the layer's own; where it or the strength is 0 the gradient is returned as it is.
    ///
    /// # Errors
    /// See [`Rule::apply_grouped`].
    pub fn apply(&self, weight: &Tensor, gradient: &Tensor, multiplier: f64) -> Result<Tensor> {
        self.apply_grouped(weight, gradient, 1, multiplier)
    }

    /// [`Rule::apply`] with forces inside each of `groups` equal blocks of filters only; norms of
    /// [`Scaling::Adaptive`] are those of the whole tensor.
    ///
    /// # Errors
    /// A coefficient that is not finite, a gradient of another shape or type, or a weight that
    /// [`gradient_grouped`] refuses.
    pub fn apply_grouped(
        &self,
        weight: &Tensor,
        gradient: &Tensor,
        groups: usize,
        multiplier: f64,
    ) -> Result<Tensor> {
        let coefficient = self.strength * multiplier;
        if !coefficient.is_finite() {
            return Err(Error::Coefficient { strength: self.strength, multiplier });
        }
        if weight.shape() != gradient.shape() {
            return Err(Error::GradientShape {
                expected: weight.shape().clone(),
                found: gradient.shape().clone(),
            });
        }
        if weight.dtype() != gradient.dtype() {
            return Err(Error::DType { weight: weight.dtype(), gradient: gradient.dtype() });
        }
        if coefficient == 0.0 {
            return Ok(gradient.clone());
        }
        let gradient = gradient.detach();
        let mut force = gradient_grouped(weight, groups, self.force)?;
        if self.direction == Direction::Same {
            let opposed = (&force * &gradient)?.lt(0.0)?;
            force = opposed.where_cond(&force.zeros_like()?, &force)?;
        }
        let push = match self.scaling {
            Scaling::Fixed => (force * coefficient)?,
            Scaling::Adaptive => {
                let (gradient_norm, force_norm) = (norm(&gradient)?, norm(&force)?);
                let ratio = (gradient_norm / &force_norm)?;
                let ratio = force_norm.lt(NO_FORCE)?.where_cond(&ratio.zeros_like()?, &ratio)?;
                force.broadcast_mul(&(ratio * coefficient)?.to_dtype(force.dtype())?)?
            }
        };
        Ok((gradient + push)?)
    }
}

/// Euclidean norm of a whole tensor: a scalar in `f64`, which neither overflows nor loses digits for an `f32`
/// gradient.
fn norm(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.sqrt()?)
}

/// Whether the force is over: from iteration `stop_iteration` on, for good; never where there is none
/// (`force_iter` in the authors' code, tested at the start of an iteration, which counts from 0).
pub const fn stopped(iteration: u64, stop_iteration: Option<u64>) -> bool {
    match stop_iteration {
        Some(stop) => iteration >= stop,
        None => false,
    }
}
