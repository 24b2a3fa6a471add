//! Attributes of a node, asked for by name.

use super::proto::{Attribute, Node, Tensor};
use crate::draft::Reason;

/// The attributes of a node, of which only those in a list may be there: what an importer does not know could change the result.
pub(super) struct Attributes<'a>(&'a Node);

impl<'a> Attributes<'a> {
    /// # Errors
    /// For an attribute that is not `known`.
    pub(super) fn of(node: &'a Node, known: &[&str]) -> Result<Self, Reason> {
        match node.attributes.iter().find(|attribute| !known.contains(&attribute.name.as_str())) {
            Some(unknown) => Err(format!("attribute `{}` is not supported", unknown.name)),
            None => Ok(Self(node)),
        }
    }

    fn get(&self, name: &str) -> Option<&'a Attribute> {
        self.0.attributes.iter().find(|attribute| attribute.name == name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.get(name).map_or(default, |attribute| attribute.int.unwrap_or(0))
    }

    pub(super) fn float(&self, name: &str, default: f32) -> f32 {
        self.get(name).map_or(default, |attribute| attribute.float.unwrap_or(0.0))
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name)
            .map(|attribute| std::str::from_utf8(attribute.string.as_deref().unwrap_or(&[])).unwrap_or("?"))
    }

    pub(super) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.get(name).map(|attribute| attribute.ints.as_slice())
    }

    pub(super) fn floats(&self, name: &str) -> Option<&'a [f32]> {
        self.get(name).map(|attribute| attribute.floats.as_slice())
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&'a Tensor> {
        self.get(name).and_then(|attribute| attribute.tensor.as_ref())
    }

    /// `N` lengths, each `default` if the attribute is not there.
    ///
    /// # Errors
    /// For another number of them, and for negative ones.
    pub(super) fn lengths<const N: usize>(&self, name: &str, default: usize) -> Result<[usize; N], Reason> {
        let Some(ints) = self.ints(name) else { return Ok([default; N]) };
        let lengths: Option<Vec<usize>> = ints.iter().map(|int| usize::try_from(*int).ok()).collect();
        lengths
            .and_then(|lengths| lengths.try_into().ok())
            .ok_or_else(|| format!("{name} {ints:?}, expected {N} numbers from 0 up"))
    }

    /// # Errors
    /// If the attribute is there with another value.
    pub(super) fn expect_int(&self, name: &str, value: i64) -> Result<(), Reason> {
        match self.int(name, value) {
            found if found == value => Ok(()),
            found => Err(format!("{name} is {found}, only {value} is supported")),
        }
    }
}
