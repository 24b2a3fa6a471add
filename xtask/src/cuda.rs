//! `cuda-check`: the CUDA backend without a GPU, and on one where there is one.

use crate::run::{cargo, find_libraries, root, run};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const REQUIREMENTS: &str = "crates/cuda-check/requirements.txt";
const TABLE: &str = "docs/runs/cuda/kernels.md";
const FLOORS: &str = "docs/runs/cuda/floors.md";
const STANDINS: &str = "crates/cuda/standin";
/// Most seconds on a device.
const DEVICE_SECONDS: &str = "900";

/// Kernels and host code on stand-ins for the driver, the compiler and the libraries, then machine code by the real compiler, then all of
/// it on a device, if there is one. `json` gets what was found; `write` writes the tables of what kernels take, and of floors, anew.
pub(crate) fn check(json: Option<&str>, write: bool) -> Result<()> {
    let folder = root().join("target/cuda");
    let found = json.map_or_else(|| Ok(folder.join("found.json")), std::path::absolute)?;
    let standins = standins(&folder.join("standin"))?;
    let [driver, libraries] = &standins;
    let mut standin = part(&[driver, libraries]);
    // Training keeps its kernels there: those of a stand-in are for nobody else, and not for another stand-in.
    let cache = folder.join("standin/cache");
    if cache.exists() {
        std::fs::remove_dir_all(&cache).with_context(|| cache.display().to_string())?;
    }
    standin.env("XDG_CACHE_HOME", cache);
    run(standin.args(["standin".as_ref(), found.as_os_str()]))?;
    run(part(&[driver]).args(["alone".as_ref(), found.as_os_str()]))?;
    run(part(&[driver]).arg("floors").arg(root().join(FLOORS)).args(write.then_some("--write")))?;
    match compiler(&folder.join("nvrtc"))? {
        Some(libraries) => {
            let mut cubins = part(&[&libraries]);
            cubins.args(["cubins".as_ref(), found.as_os_str()]).arg(root().join(TABLE));
            run(cubins.args(write.then_some("--write")))?;
        }
        None => println!("skipped: machine code, as the packages of {REQUIREMENTS} cannot be had from PyPI"),
    }
    on_device(&folder, &found)?;
    let text = std::fs::read_to_string(&found).with_context(|| found.display().to_string())?;
    println!("{text}");
    ensure!(text.contains(r#""failed":[]"#), "see above what failed");
    Ok(())
}

/// What there is on a device of this machine, with the machine's own driver and libraries, and NVRTC from PyPI if it has none.
fn on_device(folder: &Path, found: &Path) -> Result<()> {
    let mut device = part(&[]);
    device.args(["device".as_ref(), found.as_os_str()]).arg(folder.join("times.md")).arg(DEVICE_SECONDS);
    add_compiler(&mut device)?;
    run(&mut device)
}

/// The program that checks, with folders of libraries that stand where those of CUDA would.
fn part(libraries: &[&PathBuf]) -> Command {
    let mut command = cargo(&["run", "--quiet", "--package", "cofilter-cuda-check", "--"]);
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let paths = libraries.iter().map(|folder| (*folder).clone()).chain(std::env::split_paths(&others));
    // An empty path would be the current folder.
    let paths = std::env::join_paths(paths.filter(|path| !path.as_os_str().is_empty())).unwrap_or_default();
    command.env("LD_LIBRARY_PATH", paths);
    command
}

/// Lets a program find NVRTC from PyPI behind what the system has.
pub(crate) fn add_compiler(program: &mut Command) -> Result<()> {
    match compiler(&root().join("target/cuda/nvrtc"))? {
        Some(libraries) => find_libraries(program, [libraries]),
        None => Ok(()),
    }
}

/// Builds the stand-ins: a folder with those of the driver and NVRTC, one with those of cuDNN and cuBLASLt.
fn standins(folder: &Path) -> Result<[PathBuf; 2]> {
    let folders = [folder.to_owned(), folder.join("libraries")];
    std::fs::create_dir_all(&folders[1]).with_context(|| folders[1].display().to_string())?;
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let sources = root().join(STANDINS);
    let flags = if cfg!(target_arch = "x86_64") { "-march=native" } else { "" };
    for (source, folder, library) in [
        ("driver.cpp", 0, "libcuda.so.1"),
        ("nvrtc.cpp", 0, "libnvrtc.so.13"),
        ("cudnn.cpp", 1, "libcudnn.so.9"),
        ("cublaslt.cpp", 1, "libcublasLt.so.13"),
    ] {
        let mut build = Command::new(&compiler);
        build.args(["-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror"]);
        build.arg(format!("-DSTANDIN=\"{}\"", sources.display())).arg(format!("-DSTANDIN_FLAGS=\"{flags}\""));
        build.arg(sources.join(source)).arg("-o").arg(folders[folder].join(library)).arg("-ldl");
        run(&mut build).context("the stand-ins need a C++ compiler (CXX, or c++)")?;
    }
    Ok(folders)
}

/// The folder of NVRTC's libraries, from PyPI, kept; `None` if they cannot be had.
fn compiler(folder: &Path) -> Result<Option<PathBuf>> {
    if !install(REQUIREMENTS, folder)? {
        return Ok(None);
    }
    let libraries = folder.join("nvidia/cu13/lib");
    ensure!(libraries.is_dir(), "{}: the package has no such folder", libraries.display());
    Ok(Some(libraries))
}

/// Unpacks packages from PyPI into a folder, unless they are there; false if they cannot be had.
pub(crate) fn install(requirements: &str, folder: &Path) -> Result<bool> {
    let wanted =
        std::fs::read_to_string(root().join(requirements)).with_context(|| requirements.to_owned())?;
    let installed = folder.join("installed.txt");
    if std::fs::read_to_string(&installed).ok().as_deref() == Some(&wanted) {
        return Ok(true);
    }
    // What lies there is of another list, or will soon be.
    if installed.exists() {
        std::fs::remove_file(&installed).with_context(|| installed.display().to_string())?;
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade"]);
    pip.arg("--target").arg(folder).args(["-r", requirements]);
    if run(pip.current_dir(root())).is_err() {
        return Ok(false);
    }
    std::fs::write(&installed, wanted).with_context(|| installed.display().to_string())?;
    Ok(true)
}
