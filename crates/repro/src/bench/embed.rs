//! A deployment from nothing: a stripped binary that depends on the runtime alone, beside ONNX Runtime in Python.

use super::cell::{TOLERANCE, difference};
use super::peers::{Kit, Worker, execute, set_up};
use super::subject::{Subject, images, subjects};
use super::{Options, folder, median, publish, written_by};
use crate::machine::Machine;
use anyhow::{Context as _, Result, ensure};
use cofilter_graph::Artifact;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const MAIN: &str = include_str!("../../../runtime/examples/embed.rs");
const COLD: &str = include_str!("../../peers/cold.py");
/// Processes of each kind, of which the median counts.
const RUNS: usize = 7;

/// Medians over processes.
#[derive(Clone, Copy, Debug, Default)]
struct Cold {
    /// From the start of the process to its first line.
    start_ms: f64,
    /// Reading and compiling the network.
    load_ms: f64,
    first_ms: f64,
    second_ms: f64,
    peak_mib: f64,
}

/// Builds the binary, runs both, writes a table.
pub(super) fn run(options: &Options) -> Result<()> {
    let kit = set_up(options.venv.as_deref())?;
    let binary = build()?;
    let script = folder()?.join("cold.py");
    std::fs::write(&script, COLD)?;
    let library = library_bytes(&kit)?;
    let size = std::fs::metadata(&binary)?.len();
    let threads = options.thread_counts().into_iter().max().unwrap_or(1);
    let nothing = medians(&mut [(python(&kit, &script, Path::new("-"), threads)?, Vec::new())])?[0];
    let mut text = format!(
        "# A deployment from nothing\n\n{}\n\n{}.\n\n\
         A stripped binary whose only dependency is `cofilter-runtime` (release, link-time optimisation) and ONNX Runtime in \
         Python, each started {RUNS} times in turn; medians, batch 1, {threads} thread(s); both results were compared. `start` ends \
         where the program is ready to open a network (for ONNX Runtime after its import), `load` where it is ready to run. \
         Plans of the first line choose their forms by estimate: nothing is measured at start-up.\n\n\
         Size: binary {:.2} MiB; the shared libraries of ONNX Runtime {:.1} MiB, without Python. The interpreter with NumPy alone \
         takes {:.0} ms to start and {:.0} MiB, which are part of the figures of ONNX Runtime.\n\n\
         | network | engine | start ms | load ms | first ms | second ms | peak MiB | model file MiB |\n|---|---|---|---|---|---|---|---|\n",
        written_by(),
        Machine::here(threads, cofilter_runtime::cpu_tier()),
        mib(size),
        mib(library),
        nothing.start_ms,
        nothing.peak_mib
    );
    let mut writer = Worker::start(&kit, "onnxruntime", threads)?;
    for subject in subjects(options)? {
        let rows = measure(&subject, &binary, &kit, &script, &mut writer, threads)
            .with_context(|| format!("{} {}", subject.name, subject.form))?;
        for (engine, cold, bytes) in rows {
            let Cold { start_ms, load_ms, first_ms, second_ms, peak_mib } = cold;
            let _ = writeln!(
                text,
                "| {} {} | {engine} | {start_ms:.1} | {load_ms:.1} | {first_ms:.2} | {second_ms:.2} | {peak_mib:.0} | {:.1} |",
                subject.name,
                subject.form,
                mib(bytes)
            );
        }
    }
    println!("{text}");
    // This bench refuses `--json`.
    publish(options, "runs/speed/embed.md", &text, &())
}

#[expect(clippy::cast_precision_loss, reason = "sizes of files")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The binary, built as a package of its own with the dependencies of this workspace.
fn build() -> Result<PathBuf> {
    let package = folder()?.join("embed");
    std::fs::create_dir_all(package.join("src"))?;
    let root = crate::options::root();
    let manifest = format!(
        "[package]\nname = \"embed\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n\
         cofilter-runtime = {{ path = {:?} }}\n\n[profile.release]\nlto = true\ncodegen-units = 1\nstrip = true\n\
         panic = \"abort\"\n\n[workspace]\n",
        root.join("crates/runtime")
    );
    std::fs::write(package.join("Cargo.toml"), manifest)?;
    std::fs::write(package.join("src/main.rs"), MAIN)?;
    std::fs::copy(root.join("Cargo.lock"), package.join("Cargo.lock"))?;
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo.args(["build", "--release", "--quiet"]).current_dir(&package).env_remove("CARGO_TARGET_DIR");
    execute(&mut cargo, "cargo build of the embedded runtime")?;
    Ok(package.join("target/release/embed"))
}

/// Bytes of the shared libraries of the installed package.
fn library_bytes(kit: &Kit) -> Result<u64> {
    let program = "import onnxruntime, pathlib; \
                   print(sum(f.stat().st_size for f in (pathlib.Path(onnxruntime.__file__).parent / 'capi').glob('*.so*')))";
    let output = Command::new(&kit.python).args(["-c", program]).output()?;
    ensure!(output.status.success(), "python: {}", String::from_utf8_lossy(&output.stderr));
    let bytes = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    ensure!(bytes > 0, "no shared library in the package of ONNX Runtime");
    Ok(bytes)
}

/// The command for ONNX Runtime without its paths of images and logits.
fn python(kit: &Kit, script: &Path, model: &Path, threads: usize) -> Result<Vec<PathBuf>> {
    let folder = folder()?;
    let (images, logits) = (folder.join("cold-images.f32"), folder.join("cold-onnxruntime.f32"));
    Ok(vec![
        kit.python.clone(),
        script.into(),
        model.into(),
        images,
        logits,
        "1".into(),
        threads.to_string().into(),
    ])
}

type Row = (&'static str, Cold, u64);

fn measure(
    subject: &Subject,
    binary: &Path,
    kit: &Kit,
    script: &Path,
    writer: &mut Worker,
    threads: usize,
) -> Result<[Row; 2]> {
    let folder = folder()?;
    let (model, onnx) = (folder.join("cold.safetensors"), folder.join("cold.onnx"));
    Artifact::new(subject.model.clone()).save(&model)?;
    writer.write_onnx(&model, &onnx)?;
    let input = images(subject.model.graph().input_shape().elements());
    let pixels = folder.join("cold-images.f32");
    std::fs::write(&pixels, input.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())?;
    let ours_logits = folder.join("cold-cofilter.f32");
    let ours = vec![
        binary.into(),
        model.clone(),
        pixels,
        ours_logits.clone(),
        "1".into(),
        threads.to_string().into(),
    ];
    let theirs = python(kit, script, &onnx, threads)?;
    let theirs_logits = theirs[4].clone();
    // What an earlier run left must not be taken for a result.
    for old in [&ours_logits, &theirs_logits] {
        if old.exists() {
            std::fs::remove_file(old)?;
        }
    }
    let colds = medians(&mut [(ours, Vec::new()), (theirs, Vec::new())])?;
    let read = |path: &Path| -> Result<Vec<f32>> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    let error = difference(&read(&ours_logits)?, &read(&theirs_logits)?)?;
    ensure!(error <= TOLERANCE, "the results differ by {error:e}");
    let bytes = |path: &Path| std::fs::metadata(path).map(|data| data.len());
    Ok([("cofilter", colds[0], bytes(&model)?), ("onnxruntime", colds[1], bytes(&onnx)?)])
}

/// Starts the commands in turn.
fn medians(commands: &mut [(Vec<PathBuf>, Vec<Cold>)]) -> Result<Vec<Cold>> {
    for _ in 0..RUNS {
        for (command, colds) in &mut *commands {
            colds.push(once(command)?);
        }
    }
    let median = |colds: &[Cold], f: fn(&Cold) -> f64| median(&colds.iter().map(f).collect::<Vec<f64>>());
    let summary = |(_, colds): &(Vec<PathBuf>, Vec<Cold>)| Cold {
        start_ms: median(colds, |c| c.start_ms),
        load_ms: median(colds, |c| c.load_ms),
        first_ms: median(colds, |c| c.first_ms),
        second_ms: median(colds, |c| c.second_ms),
        peak_mib: median(colds, |c| c.peak_mib),
    };
    Ok(commands.iter().map(summary).collect())
}

fn once(command: &[PathBuf]) -> Result<Cold> {
    let start = Instant::now();
    let mut child = Command::new(&command[0]).args(&command[1..]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("a process without output")?);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let start_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut rest = String::new();
    lines.read_to_string(&mut rest)?;
    let status = child.wait()?;
    ensure!(status.success() && line.trim() == "started", "{}: {status}, `{line}`", command[0].display());
    let answer: Value = serde_json::from_str(&rest).with_context(|| format!("answered `{rest}`"))?;
    let number = |key: &str| answer[key].as_f64().unwrap_or(f64::NAN);
    Ok(Cold {
        start_ms,
        load_ms: number("load_ms"),
        first_ms: number("first_ms"),
        second_ms: number("second_ms"),
        peak_mib: number("peak_kib") / 1024.0,
    })
}
