use serde::{Deserialize, Serialize};

/// How the pull between two filters depends on the distance `d` of their directions: `d^(1 - p)`.
///
/// The paper's experiments use [`Force::L2`] and [`Force::L1`]; the other two exist in the authors' code
/// only, and there only on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Force {
    /// `p = 0`: the pull is `d`; gradient of half the sum of squared distances ("Degradation" in the authors'
    /// code).
    L2,
    /// `p = 1`: the same pull at every distance; gradient of the sum of distances ("Constant").
    L1,
    /// `p = 2`: the pull is `1 / d` ("Linear").
    Linear,
    /// `p = 3`: the pull is `1 / d^2` ("Gravity").
    Gravity,
}

impl Force {
    /// Every force, by rising exponent.
    pub const ALL: [Force; 4] = [Force::L2, Force::L1, Force::Linear, Force::Gravity];

    /// The exponent `p` of the distance in `(w_i - w_j) / d_ij^p`.
    pub const fn exponent(self) -> i32 {
        match self {
            Force::L2 => 0,
            Force::L1 => 1,
            Force::Linear => 2,
            Force::Gravity => 3,
        }
    }
}
