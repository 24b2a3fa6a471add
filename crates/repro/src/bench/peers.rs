//! Other engines, each in a process of its own that is stopped while it is not its turn.

use anyhow::{Context as _, Result, bail, ensure};
use cofilter_train::Recipe;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Versions of the engines.
const REQUIREMENTS: &str = include_str!("../../peers/requirements.txt");
/// Of those that run on CUDA.
const REQUIREMENTS_CUDA: &str = include_str!("../../peers/requirements-cuda.txt");
const WORKER: &str = include_str!("../../peers/worker.py");

/// The engines, by the name that tables give them.
pub(super) const ENGINES: [&str; 4] = ["onnxruntime", "openvino", "torch", "torch-channels-last"];

/// Engines on a CUDA device.
pub(super) const CUDA_ENGINES: [&str; 3] = ["onnxruntime-cuda", "torch-cuda", "torch-cuda-tf32"];

/// Python and the worker's text in a folder of ours; sets up the environment if it is not there.
pub(super) fn set_up(venv: Option<&Path>) -> Result<Kit> {
    environment("target/peers", REQUIREMENTS, venv)
}

/// The same for the engines on CUDA.
pub(super) fn set_up_cuda(venv: Option<&Path>) -> Result<Kit> {
    environment("target/peers-cuda", REQUIREMENTS_CUDA, venv)
}

fn environment(folder: &str, wanted: &str, venv: Option<&Path>) -> Result<Kit> {
    let folder = crate::options::root().join(folder);
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let script = folder.join("worker.py");
    std::fs::write(&script, WORKER).with_context(|| script.display().to_string())?;
    let requirements = folder.join("requirements.txt");
    std::fs::write(&requirements, wanted)?;
    if let Some(venv) = venv {
        let python = venv.join("bin/python");
        ensure!(python.exists(), "--venv {}: no bin/python there", venv.display());
        return Ok(Kit { python, script });
    }
    let venv = folder.join("venv");
    let python = venv.join("bin/python");
    let digest: String = Sha256::digest(wanted).iter().map(|b| format!("{b:02x}")).collect();
    let marker = folder.join("installed");
    if std::fs::read_to_string(&marker).ok().as_deref() != Some(digest.as_str()) {
        eprintln!("setting up the engines in {} (some minutes, once)", venv.display());
        execute(Command::new("python3").args(["-m", "venv"]).arg(&venv), "python3 -m venv")?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&requirements);
        execute(&mut pip, "pip install (needs the network)")?;
        std::fs::write(&marker, digest)?;
    }
    Ok(Kit { python, script })
}

pub(super) fn execute(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {what}"))?;
    ensure!(status.success(), "{what}: {status}");
    Ok(())
}

/// What a worker is started from.
pub(super) struct Kit {
    pub(super) python: PathBuf,
    script: PathBuf,
}

/// What an engine trains.
#[derive(Clone, Copy)]
pub(super) struct Training<'a> {
    pub(super) model: &'a Path,
    /// `[batches, batch, C, H, W]`.
    pub(super) images: &'a Path,
    /// `[batches, batch]`, 32 bits each.
    pub(super) labels: &'a Path,
    pub(super) batch: usize,
    /// Of which rate, momentum and decay count.
    pub(super) recipe: &'a Recipe,
}

/// An engine with a number of threads.
pub(super) struct Worker {
    pub(super) name: String,
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    pub(super) fn start(kit: &Kit, engine: &str, threads: usize) -> Result<Self> {
        let mut command = Command::new(&kit.python);
        command.arg(&kit.script).args([engine, &threads.to_string()]);
        Self::spawn(command, engine)
    }

    fn spawn(mut command: Command, name: &str) -> Result<Self> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.with_context(|| format!("cannot start {name}"))?;
        let commands = child.stdin.take().context("a worker without input")?;
        let answers = BufReader::new(child.stdout.take().context("a worker without output")?);
        Ok(Self { name: name.to_owned(), child, commands, answers })
    }

    /// Compiles a network and runs it once on the images of a file.
    pub(super) fn load(
        &mut self,
        model: &Path,
        images: &Path,
        batch: usize,
        logits: &Path,
    ) -> Result<Vec<f32>> {
        self.ask(&json!({"load": model, "images": images, "batch": batch, "logits": logits}))?;
        let bytes = std::fs::read(logits).with_context(|| logits.display().to_string())?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// Writes a network as ONNX, for one image.
    pub(super) fn write_onnx(&mut self, model: &Path, onnx: &Path) -> Result<()> {
        self.ask(&json!({"write": onnx, "from": model})).map(|_| ())
    }

    /// Milliseconds of some runs, after one that does not count if the engine is to settle.
    pub(super) fn time(&mut self, runs: usize, settle: bool) -> Result<Vec<f64>> {
        let answer = self.ask(&json!({"time": runs, "settle": settle}))?;
        let times =
            answer["ms"].as_array().with_context(|| format!("{}: no times in {answer}", self.name))?;
        Ok(times.iter().filter_map(Value::as_f64).collect())
    }

    /// Begins to train a network on the batches of a file.
    pub(super) fn train(&mut self, training: &Training<'_>) -> Result<()> {
        let Training { model, images, labels, batch, recipe } = *training;
        self.ask(&json!({
            "train": model,
            "images": images,
            "labels": labels,
            "batch": batch,
            "rate": recipe.learning_rate,
            "momentum": recipe.momentum,
            "decay": recipe.weight_decay,
        }))
        .map(|_| ())
    }

    /// The next iterations: milliseconds and loss of each, and the most bytes that the process held.
    pub(super) fn steps(&mut self, count: usize) -> Result<(Vec<f64>, Vec<f64>, u64)> {
        let answer = self.ask(&json!({ "steps": count }))?;
        let list = |key: &str| -> Result<Vec<f64>> {
            let list = answer[key].as_array().filter(|list| list.len() == count);
            let list = list.with_context(|| format!("{}: no {key} in {answer}", self.name))?;
            // What is not finite has no form in JSON.
            Ok(list.iter().map(|value| value.as_f64().unwrap_or(f64::NAN)).collect())
        };
        Ok((
            list("ms")?,
            list("losses")?,
            answer["peak_bytes"].as_u64().with_context(|| format!("{}: no peak in {answer}", self.name))?,
        ))
    }

    /// Seconds for two factors of each layer, and the rank of each group, at a rank or at a share of the energy.
    pub(super) fn decompose(
        &mut self,
        model: &Path,
        layers: &[(String, usize)],
        rule: Result<usize, f64>,
        double: bool,
    ) -> Result<(f64, Vec<usize>)> {
        let (rank, energy) = (rule.ok(), rule.err());
        let command =
            json!({"decompose": model, "layers": layers, "rank": rank, "energy": energy, "double": double});
        let answer = self.ask(&command)?;
        let seconds = answer["seconds"].as_f64();
        let ranks: Option<Vec<usize>> = serde_json::from_value(answer["ranks"].clone()).ok();
        seconds.zip(ranks).with_context(|| format!("{}: no seconds and ranks in {answer}", self.name))
    }

    fn ask(&mut self, command: &Value) -> Result<Value> {
        self.signal("CONT")?;
        writeln!(self.commands, "{command}").with_context(|| format!("{} has ended", self.name))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: Value =
            serde_json::from_str(&line).with_context(|| format!("{}: answered `{line}`", self.name))?;
        // Threads that spin after a run must not disturb the others.
        self.signal("STOP")?;
        match answer["error"].as_str() {
            Some(error) => bail!("{}: {error}", self.name),
            None => Ok(answer),
        }
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let id = self.child.id().to_string();
        execute(Command::new("kill").args(["-s", signal, &id]), "kill")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Nothing to be done about a process that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Worker {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Worker::spawn(command, "engine").unwrap()
    }

    #[test]
    fn a_worker_answers_line_by_line() {
        let mut worker = shell(r#"while read line; do echo '{"ms": [1.5, 2.5]}'; done"#);
        assert_eq!(worker.time(2, true).unwrap(), [1.5, 2.5]);
        assert_eq!(worker.time(2, true).unwrap(), [1.5, 2.5]);
    }

    #[test]
    fn errors_and_silence_name_the_engine() {
        let mut worker = shell(r#"read line; echo '{"error": "no such op"}'"#);
        assert_eq!(worker.time(1, true).unwrap_err().to_string(), "engine: no such op");
        let mut worker = shell("read line; exit 3");
        assert!(worker.time(1, true).unwrap_err().to_string().contains("engine"));
        let mut worker = shell(r#"read line; echo '{"ms": 3}'; read line"#);
        assert!(worker.time(1, true).unwrap_err().to_string().contains("no times"));
    }
}
