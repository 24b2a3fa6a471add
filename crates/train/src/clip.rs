use crate::{Error, Result};
use cofilter_graph::{Graph, NodeId};
use cofilter_lowrank::RankRule;
use serde::{Deserialize, Serialize};

/// Rank clipping of a decomposed network while it is trained (paper, section 3.4): every few iterations each pair `<name>_lowrank`,
/// `<name>_linear` loses the ranks that its basis does not need by now, see [`cofilter_lowrank::clip`].
///
/// A rule looks at the basis as it is by then, of which only what was kept before is left.
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

    pub(crate) fn check(&self, graph: &Graph, iterations: u64) -> Result<()> {
        let bad = |reason: &str| Err(Error::Recipe(format!("clip: {reason}")));
        if self.every == 0 {
            return bad("expected 1 or more iterations between two, found 0");
        }
        if self.every >= iterations {
            return bad(&format!("every {} of {iterations} iterations is never", self.every));
        }
        self.rule.check().map_err(|error| Error::Recipe(format!("clip: {error}")))?;
        match self.rule {
            RankRule::Budget(_) | RankRule::Ranks(_) => {
                return bad("expected a rule that looks at one layer alone, found a budget or ranks by name");
            }
            RankRule::Ratio(_) => return bad("a ratio of what is left would fall each time, to rank 1"),
            _ => {}
        }
        let is_pair = |nodes: &[NodeId]| match nodes {
            [basis, _] => graph.node(*basis).name().ends_with("_lowrank") && graph.slots(*basis).len() == 1,
            _ => false,
        };
        if !graph.decomposed().iter().any(|(_, nodes)| is_pair(nodes)) {
            return bad("the network has no pairs `<name>_lowrank` (without bias), `<name>_linear`");
        }
        Ok(())
    }
}
