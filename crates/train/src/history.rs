use crate::{Error, Result, Score};
use cofilter_lowrank::{ClippedLayer, Spectrum};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// One line of `history.jsonl`: an iteration that was recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Iterations done, this one included.
    pub iteration: u64,
    /// Rate of the update.
    pub learning_rate: f64,
    /// Weighted sum of the heads' losses on the batch, before the update.
    pub loss: f64,
    /// Mean cross entropy of each head, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<f64>,
    /// Share of the batch that the main head classified rightly, before the update.
    pub top1: f64,
    /// Norm of the force relative to that of the gradient of loss and decay, over the regularised tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_share: Option<f64>,
    /// Strength of the force in the update, after warming up and rolling back; a layer near its target spread feels less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_strength: Option<f64>,
    /// Evaluation on the test set, after the update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Score>,
    /// Share of the weights of convolutions and fully connected layers that are not 0 after the update, where the recipe makes some 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub density: Option<f64>,
    /// Pairs that lost rank after the update, and before the evaluation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clipped: Vec<ClippedLayer>,
    /// Spectra of the layers that the recipe names, after the update.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub spectra: BTreeMap<String, Spectrum>,
    /// What depends on the machine; everything else is a function of recipe, data and starting model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<Clock>,
}

/// Times of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clock {
    /// Training images a second since the last record, evaluations not counted.
    pub images_per_s: f64,
    /// Seconds since the start or the last resumption.
    pub seconds: f64,
}

/// Recorded iterations, in memory and, with a folder, in its `history.jsonl`.
#[derive(Debug)]
pub(crate) struct History {
    records: Vec<Record>,
    file: Option<(PathBuf, File)>,
}

impl History {
    /// A history that starts with the first `keep` records of the folder's file; what comes after them is dropped.
    pub(crate) fn open(folder: Option<&Path>, keep: usize) -> Result<Self> {
        let Some(folder) = folder else { return Ok(Self { records: Vec::new(), file: None }) };
        let path = folder.join("history.jsonl");
        let io = |source| Error::Io { path: path.clone(), source };
        let text = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(io(e)),
        };
        let lines: Vec<&str> = text.split_inclusive('\n').take(keep).collect();
        let parsed = lines.iter().map(|line| serde_json::from_str(line));
        let records: Vec<Record> = parsed.collect::<Result<_, _>>().unwrap_or_default();
        if records.len() != keep {
            return Err(Error::Checkpoint {
                path,
                reason: format!(
                    "the checkpoint beside it is of a run with {keep} records, found {}",
                    lines.len()
                ),
            });
        }
        cofilter_graph::write_atomically(&path, lines.concat().as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(io)?;
        Ok(Self { records, file: Some((path, file)) })
    }

    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    pub(crate) fn into_records(self) -> Vec<Record> {
        self.records
    }

    pub(crate) fn push(&mut self, record: Record) -> Result<()> {
        if let Some((path, file)) = &mut self.file {
            let io = |source| Error::Io { path: path.clone(), source };
            let mut line = serde_json::to_string(&record).map_err(|e| io(e.into()))?;
            line.push('\n');
            file.write_all(line.as_bytes()).map_err(io)?;
        }
        self.records.push(record);
        Ok(())
    }

    /// Forgets all but the first `keep` records.
    pub(crate) fn truncate(&mut self, keep: usize) -> Result<()> {
        let folder = self.file.as_ref().and_then(|(path, _)| path.parent()).map(Path::to_owned);
        match folder {
            Some(folder) => *self = Self::open(Some(&folder), keep)?,
            None => self.records.truncate(keep),
        }
        Ok(())
    }

    /// To the disk, so that a checkpoint never counts records that are not there.
    pub(crate) fn sync(&self) -> Result<()> {
        match &self.file {
            Some((path, file)) => file.sync_all().map_err(|source| Error::Io { path: path.clone(), source }),
            None => Ok(()),
        }
    }
}
