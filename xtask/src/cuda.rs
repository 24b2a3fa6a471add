//! `cuda-check`: the CUDA backend without a GPU.

use crate::run::{cargo, root, run};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const REQUIREMENTS: &str = "crates/cuda-check/requirements.txt";
const TABLE: &str = "docs/runs/cuda/kernels.md";
const FLOORS: &str = "docs/runs/cuda/floors.md";
const STANDINS: &str = "crates/cuda/standin";

/// Kernels and host code on stand-ins for the driver and the compiler, then machine code by the real compiler. `json` gets what was
/// found; `write` writes the tables of what kernels take, and of floors, anew.
pub(crate) fn check(json: Option<&str>, write: bool) -> Result<()> {
    let folder = root().join("target/cuda");
    let found = json.map_or_else(|| Ok(folder.join("found.json")), std::path::absolute)?;
    let standins = standins(&folder.join("standin"))?;
    run(part(&standins).args(["standin".as_ref(), found.as_os_str()]))?;
    run(part(&standins).arg("floors").arg(root().join(FLOORS)).args(write.then_some("--write")))?;
    match compiler(&folder.join("nvrtc"))? {
        Some(libraries) => {
            let mut cubins = part(&libraries);
            cubins.args(["cubins".as_ref(), found.as_os_str()]).arg(root().join(TABLE));
            run(cubins.args(write.then_some("--write")))?;
        }
        None => println!("skipped: machine code, as the packages of {REQUIREMENTS} cannot be had from PyPI"),
    }
    let text = std::fs::read_to_string(&found).with_context(|| found.display().to_string())?;
    println!("{text}");
    ensure!(text.contains(r#""failed":[]"#), "see above what failed");
    Ok(())
}

/// The program that checks, with a folder of libraries that stand where those of CUDA would.
fn part(libraries: &Path) -> Command {
    let mut command = cargo(&["run", "--quiet", "--package", "cofilter-cuda-check", "--"]);
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let paths = std::iter::once(libraries.to_owned()).chain(std::env::split_paths(&others));
    // An empty path would be the current folder.
    let paths = std::env::join_paths(paths.filter(|path| !path.as_os_str().is_empty())).unwrap_or_default();
    command.env("LD_LIBRARY_PATH", paths);
    command
}

/// Lets a program find NVRTC from PyPI behind what the system has.
pub(crate) fn add_compiler(program: &mut Command) -> Result<()> {
    if let Some(libraries) = compiler(&root().join("target/cuda/nvrtc"))? {
        let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let paths =
            std::env::split_paths(&others).filter(|path| !path.as_os_str().is_empty()).chain([libraries]);
        program.env("LD_LIBRARY_PATH", std::env::join_paths(paths)?);
    }
    Ok(())
}

/// Builds the stand-ins.
fn standins(folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let sources = root().join(STANDINS);
    let flags = if cfg!(target_arch = "x86_64") { "-march=native" } else { "" };
    for (source, library) in [("driver.cpp", "libcuda.so.1"), ("nvrtc.cpp", "libnvrtc.so.13")] {
        let mut build = Command::new(&compiler);
        build.args(["-std=c++17", "-O1", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror"]);
        build.arg(format!("-DSTANDIN=\"{}\"", sources.display())).arg(format!("-DSTANDIN_FLAGS=\"{flags}\""));
        build.arg(sources.join(source)).arg("-o").arg(folder.join(library)).arg("-ldl");
        run(&mut build).context("the stand-ins need a C++ compiler (CXX, or c++)")?;
    }
    Ok(folder.to_owned())
}

/// The folder of NVRTC's libraries, from PyPI, kept; `None` if they cannot be had.
fn compiler(folder: &Path) -> Result<Option<PathBuf>> {
    let wanted =
        std::fs::read_to_string(root().join(REQUIREMENTS)).with_context(|| REQUIREMENTS.to_owned())?;
    let libraries = folder.join("nvidia/cu13/lib");
    let installed = folder.join("installed.txt");
    if std::fs::read_to_string(&installed).ok().as_deref() != Some(&wanted) {
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--upgrade",
        ]);
        pip.arg("--target").arg(folder).args(["-r", REQUIREMENTS]);
        if run(pip.current_dir(root())).is_err() {
            return Ok(None);
        }
        std::fs::write(&installed, wanted)?;
    }
    ensure!(libraries.is_dir(), "{}: the package has no such folder", libraries.display());
    Ok(Some(libraries))
}

/// Says a version, and writes empty files where nvcc would write code.
const NVCC: &str = r#"#!/bin/sh
case "$*" in *--version*) echo "Cuda compilation tools, release 13.0, V13.0.48"; exit 0;; esac
while [ $# -gt 0 ]; do
  case "$1" in
    -o|--output-file) : > "$2"; shift;;
    --output-directory) folder=$2; shift;;
    *.cu) source=$1;;
  esac
  shift
done
[ -z "$folder" ] || [ -z "$source" ] || : > "$folder/$(basename "$source" .cu).ptx"
"#;

/// Type-checks training and experiments with candle's `cuda`, whose kernels are not compiled: a stand-in takes the place of nvcc.
pub(crate) fn check_training() -> Result<()> {
    let folder = root().join("target/cuda/nvcc");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let nvcc = folder.join("nvcc");
    std::fs::write(&nvcc, NVCC).with_context(|| nvcc.display().to_string())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&nvcc, std::fs::Permissions::from_mode(0o755))?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(folder.clone()).chain(std::env::split_paths(&path)))?;
    let target = root().join("target/cuda/check");
    let mut check =
        cargo(&["check", "--quiet", "--package", "cofilter-train", "--package", "cofilter-repro"]);
    check.args(["--features", "cofilter-train/cuda,cofilter-repro/cuda"]);
    check.env("PATH", path).env("NVCC", &nvcc).env("CUDA_HOME", &folder).env("CARGO_TARGET_DIR", target);
    // The architecture, which nobody can ask a device for, and the newest toolkit that cudarc and the stand-in agree on.
    run(check.env("CUDA_COMPUTE_CAP", "80").env("CUDARC_CUDA_VERSION", "13000"))
}
