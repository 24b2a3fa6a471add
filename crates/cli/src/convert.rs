//! `cofilter convert`.

use crate::output::Output;
use crate::source::Source;
use crate::verify::{Limits, Verdict};
use anyhow::{Context as _, Result, bail};
use cofilter_formats::{StateDict, onnx};
use cofilter_graph::{Artifact, Model, write_atomically};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// The file to write: .onnx, or .safetensors, which PyTorch can read too
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Write the tensors alone under PyTorch's names, the layers of decomposed ones as `<layer>.0` and `<layer>.1`
    #[arg(long)]
    state_dict: bool,
    /// Do not compare what was written with the source
    #[arg(long)]
    no_verify: bool,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Serialize)]
struct Report {
    out: PathBuf,
    bytes: usize,
    written: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<Verdict>,
}

impl Args {
    pub(crate) fn run(&self) -> Result<Output> {
        let target = Target::of(&self.out, self.state_dict)?;
        let artifact = self.source.open()?;
        let limits = (!self.no_verify).then_some(&self.limits);
        let (bytes, verified) = target.write(&artifact, &artifact.model, &self.out, limits)?;
        let met = verified.as_ref().is_none_or(|verdict| verdict.met);
        let report = Report { out: self.out.clone(), bytes, written: met, verified };
        let mut text = format!("{}: {bytes} bytes\n", self.out.display());
        if let Some(verdict) = &report.verified {
            text += &verdict.to_string();
        }
        if !met {
            text = format!("{}: not written\n{text}", self.out.display());
        }
        Ok(Output::new(text, &report)?.with_met(met))
    }
}

/// A format to write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Artifact,
    StateDict,
    Onnx,
}

impl Target {
    /// What the name of a file asks for.
    ///
    /// # Errors
    /// For formats that are not written.
    pub(crate) fn of(path: &Path, state_dict: bool) -> Result<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        Ok(match (extension, state_dict) {
            ("safetensors", false) => Self::Artifact,
            ("safetensors", true) => Self::StateDict,
            ("onnx", false) => Self::Onnx,
            ("onnx", true) => bail!("--state-dict: is for .safetensors, {} is none", path.display()),
            _ => bail!("{}: expected a name that ends in .onnx or .safetensors", path.display()),
        })
    }

    /// Writes a network if it is still the same as `source` when it is read back, and gives the bytes.
    ///
    /// # Errors
    /// If the format has no form for the network, or the file cannot be written.
    pub(crate) fn write(
        self,
        artifact: &Artifact,
        source: &Model,
        path: &Path,
        limits: Option<&Limits>,
    ) -> Result<(usize, Option<Verdict>)> {
        artifact.model.check_finite()?;
        let fail = |reason: String| anyhow::anyhow!("{}: {reason}", path.display());
        let bytes = match self {
            Self::Artifact => artifact.to_bytes(),
            Self::StateDict => StateDict::of(&artifact.model).to_bytes().map_err(fail)?,
            Self::Onnx => onnx::to_bytes(artifact).map_err(fail)?,
        };
        let verdict = limits.map(|limits| -> Result<Verdict> {
            let back = match self {
                Self::Artifact => Artifact::from_bytes(&bytes)?.model,
                Self::StateDict => {
                    let name = artifact.provenance.network.as_deref().unwrap_or("network");
                    StateDict::from_bytes(bytes.clone(), path)?
                        .into_model(name, artifact.model.graph().clone())?
                }
                Self::Onnx => onnx::from_bytes(bytes.clone(), path, None)?.model,
            };
            limits.verify(source, &back)
        });
        let verdict = verdict.transpose().with_context(|| format!("{}: reading back", path.display()))?;
        if verdict.as_ref().is_none_or(|verdict| verdict.met) {
            write_atomically(path, &bytes)?;
        }
        Ok((bytes.len(), verdict))
    }
}
