use crate::{Graph, NodeId};

/// What the layers that stand for one layer are called after its name, by the way that it was taken apart: across filters, across
/// space, across channels, both sides (Tucker-2), each term alone (canonical polyadic). A longer list before those that
/// are parts of it.
const SUFFIXES: [&[&str]; 5] = [
    &["_reduce", "_v", "_h", "_expand"],
    &["_reduce", "_core", "_expand"],
    &["_lowrank", "_linear"],
    &["_v", "_h"],
    &["_reduce", "_core"],
];

impl Graph {
    /// Layers that stand for one, by their names: the name of what they were, and the nodes from first to last. Each reads the one
    /// before it, which nobody else reads and which is no output.
    #[must_use]
    pub fn decomposed(&self) -> Vec<(&str, Vec<NodeId>)> {
        let consumers = self.consumers();
        let mut taken = vec![false; self.nodes().len()];
        let mut found = Vec::new();
        for suffixes in SUFFIXES {
            for (last, _) in self.iter() {
                let Some((name, nodes)) = self.walk(suffixes, last) else { continue };
                let inner = &nodes[..nodes.len() - 1];
                let alone = |id: &NodeId| consumers[id.index()].len() == 1 && !self.outputs().contains(id);
                if inner.iter().all(alone) && !nodes.iter().any(|id| taken[id.index()]) {
                    nodes.iter().for_each(|id| taken[id.index()] = true);
                    found.push((name, nodes));
                }
            }
        }
        found
    }

    /// The nodes with these suffixes on one name, of which this is the last.
    fn walk(&self, suffixes: &[&str], last: NodeId) -> Option<(&str, Vec<NodeId>)> {
        let base = |id: NodeId, suffix: &str| {
            self.node(id).name().strip_suffix(suffix).filter(|base| !base.is_empty())
        };
        let name = base(last, suffixes.last()?)?;
        let mut nodes = vec![last];
        for suffix in suffixes.iter().rev().skip(1) {
            let before = *self.node(nodes[nodes.len() - 1]).inputs().first()?;
            if base(before, suffix)? != name {
                return None;
            }
            nodes.push(before);
        }
        nodes.reverse();
        Some((name, nodes))
    }
}

/// The name of the layer that a node of this name may be a part of: every name that is left without a suffix.
#[must_use]
pub fn decomposed_names(node: &str) -> Vec<&str> {
    let mut names: Vec<&str> =
        SUFFIXES.iter().copied().flatten().filter_map(|suffix| node.strip_suffix(suffix)).collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use crate::{Conv2d, Graph, Shape};

    fn names(layers: &[(&str, usize)]) -> Vec<(String, Vec<String>)> {
        let mut b = Graph::builder();
        let mut ids = vec![b.input("data", Shape::map(2, 5, 5)).unwrap()];
        for (name, from) in layers {
            ids.push(b.conv2d(name, ids[*from], Conv2d::new(2, 1)).unwrap());
        }
        let graph = b.finish(&[ids[ids.len() - 1]]).unwrap();
        let of = |(name, nodes): (&str, Vec<crate::NodeId>)| {
            (name.to_owned(), nodes.iter().map(|id| graph.node(*id).name().to_owned()).collect())
        };
        graph.decomposed().into_iter().map(of).collect()
    }

    #[test]
    fn chains_are_found_by_name_and_wiring() {
        let owned = |name: &str, nodes: &[&str]| {
            (name.to_owned(), nodes.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(names(&[("a_lowrank", 0), ("a_linear", 1)]), [owned("a", &["a_lowrank", "a_linear"])]);
        // The longest that fits.
        let tucker = names(&[("a_reduce", 0), ("a_core", 1), ("a_expand", 2)]);
        assert_eq!(tucker, [owned("a", &["a_reduce", "a_core", "a_expand"])]);
        let cp = names(&[("a_reduce", 0), ("a_v", 1), ("a_h", 2), ("a_expand", 3)]);
        assert_eq!(cp, [owned("a", &["a_reduce", "a_v", "a_h", "a_expand"])]);
        // Of two layers, in another order, read twice, or without a name.
        assert!(names(&[("a_lowrank", 0), ("b_linear", 1)]).is_empty());
        assert!(names(&[("a_linear", 0), ("a_lowrank", 1)]).is_empty());
        assert!(names(&[("a_lowrank", 0), ("a_linear", 1), ("other", 1)]).is_empty());
        assert!(names(&[("_lowrank", 0), ("_linear", 1)]).is_empty());
    }
}
