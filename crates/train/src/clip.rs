use crate::{Error, Result};
use cofilter_graph::Graph;
use cofilter_lowrank::RankRule;
use serde::{Deserialize, Serialize};

/// Rank clipping of a decomposed network while it is trained (paper, section 3.4): every few iterations each pair `<name>_lowrank`,
/// `<name>_linear` loses the ranks that its basis does not need by now, see [`cofilter_lowrank::clip`].
///
/// Weights, momentum, learning rate and iteration go on as they are. Nothing is clipped after the last iteration, so that what was
/// cut is trained again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// Iterations between two.
    pub every: u64,
    /// Last iteration that may be followed by one; `None`: to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// Which rank of its basis a pair keeps; a rule that looks at one layer alone.
    #[serde(default = "usual")]
    pub rule: RankRule,
}

/// As in the authors' program.
fn usual() -> RankRule {
    RankRule::Energy(0.99)
}

impl Clip {
    /// Whether it is due after so many iterations.
    pub(crate) fn is_due(&self, done: u64) -> bool {
        done.is_multiple_of(self.every) && self.until.is_none_or(|until| done <= until)
    }

    pub(crate) fn check(&self, graph: &Graph) -> Result<()> {
        if self.every == 0 {
            return Err(Error::Recipe("clip: expected 1 or more iterations between two, found 0".into()));
        }
        self.rule.check().map_err(|error| Error::Recipe(format!("clip: {error}")))?;
        if matches!(self.rule, RankRule::Budget(_) | RankRule::Ranks(_)) {
            return Err(Error::Recipe(
                "clip: expected a rule that looks at one layer alone, found a budget or ranks by name".into(),
            ));
        }
        if !graph.nodes().iter().any(|node| node.name().ends_with("_lowrank")) {
            return Err(Error::Recipe(
                "clip: the network has no pairs `<name>_lowrank`, `<name>_linear`".into(),
            ));
        }
        Ok(())
    }
}
