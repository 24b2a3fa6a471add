//! Training with candle's `cuda`: type-checked with a stand-in for nvcc, or built with the one from PyPI.

use crate::cuda::install;
use crate::run::{cargo, find_libraries, output, root, run, starts};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const REQUIREMENTS: &str = "xtask/nvcc.txt";
/// The version of the toolkit of [`REQUIREMENTS`], as cudarc writes it.
const VERSION: &str = "13000";
/// Whose kernels are compiled where no device tells it.
const CAPABILITY: &str = "80";

/// Says a version, and writes empty files where nvcc would write code.
const STANDIN: &str = r#"#!/bin/sh
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
pub(crate) fn check() -> Result<()> {
    let folder = root().join("target/cuda/nvcc");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let nvcc = folder.join("nvcc");
    fs::write(&nvcc, STANDIN).with_context(|| nvcc.display().to_string())?;
    make_executable(&nvcc)?;
    let mut check =
        cargo(&["check", "--quiet", "--package", "cofilter-train", "--package", "cofilter-repro"]);
    check.args(["--features", "cofilter-train/cuda,cofilter-repro/cuda"]);
    with_nvcc(&mut check, &nvcc, &folder)?;
    run(check.env("CUDA_COMPUTE_CAP", CAPABILITY).env("CARGO_TARGET_DIR", root().join("target/cuda/check")))
}

/// Builds the experiments with candle's `cuda`, kernels included, and starts them: on a device where there is one, else up to the error
/// that there is none.
pub(crate) fn build() -> Result<()> {
    let toolkit = Toolkit::install()?.context("the packages of xtask/nvcc.txt cannot be had from PyPI")?;
    let target = root().join("target/cuda/train");
    let mut build =
        cargo(&["build", "--quiet", "--release", "--package", "cofilter-repro", "--features", "cuda"]);
    toolkit.lend(&mut build)?;
    let has_device = output("nvidia-smi", &["-L"]).is_some();
    if !has_device {
        build.env("CUDA_COMPUTE_CAP", CAPABILITY);
    }
    run(build.env("CARGO_TARGET_DIR", &target))?;
    let mut program = Command::new(target.join("release/cofilter-repro"));
    program.args(["reproduce", "lenet", "--quick", "--fresh", "--device", "cuda", "--out"]);
    program.arg(root().join("target/cuda/lenet")).env("COFILTER_ROOT", root()).current_dir(root());
    let mut libraries = vec![toolkit.libraries()];
    if has_device {
        find_libraries(&mut program, libraries)?;
        return run(&mut program);
    }
    println!("no device: the program is started with a library that says so in its place");
    libraries.push(toolkit.stubs());
    find_libraries(&mut program, libraries.clone())?;
    let told = program.output().with_context(|| format!("cannot start {program:?}"))?;
    let text = String::from_utf8_lossy(&told.stderr);
    println!("{}", text.trim_end());
    ensure!(
        told.status.code() == Some(1) && text.contains("NO_DEVICE"),
        "expected exit code 1 and an error that there is no device, found {}",
        told.status
    );
    // The same program trains on the processor.
    let mut program = Command::new(target.join("release/cofilter-repro"));
    program.args(["reproduce", "lenet", "--quick", "--fresh", "--out"]).arg(root().join("target/cuda/lenet"));
    find_libraries(&mut program, libraries)?;
    run(program.env("COFILTER_ROOT", root()).current_dir(root()))
}

/// Lets a build with candle's `cuda`, and what it starts, find a toolkit from PyPI where the system has no nvcc.
pub(crate) fn add_toolkit(program: &mut Command) -> Result<()> {
    let named = ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"];
    let named = named.iter().any(|name| std::env::var_os(name).is_some());
    // Where the builds look by themselves.
    let usual = ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda"];
    let usual = usual.iter().any(|folder| Path::new(folder).join("bin/nvcc").is_file());
    if named || usual || starts("nvcc") {
        return Ok(());
    }
    let Some(toolkit) = Toolkit::install()? else {
        println!("there is no nvcc, and the packages of {REQUIREMENTS} cannot be had from PyPI");
        return Ok(());
    };
    toolkit.lend(program)?;
    find_libraries(program, [toolkit.libraries()])
}

/// A folder laid out as CUDA's.
struct Toolkit(PathBuf);

impl Toolkit {
    /// From PyPI, kept; `None` if it cannot be had.
    fn install() -> Result<Option<Self>> {
        let folder = root().join("target/cuda/toolkit");
        if !install(REQUIREMENTS, &folder)? {
            return Ok(None);
        }
        let toolkit = Self(folder.join("nvidia/cu13"));
        toolkit.complete().context("the toolkit from PyPI")?;
        Ok(Some(toolkit))
    }

    fn libraries(&self) -> PathBuf {
        self.0.join("lib")
    }

    fn stubs(&self) -> PathBuf {
        self.0.join("lib/stubs")
    }

    /// What the packages lack: rights to execute, names without a version for the linker, and a driver to link against.
    fn complete(&self) -> Result<()> {
        for folder in ["bin", "nvvm/bin"] {
            for program in files(&self.0.join(folder))? {
                make_executable(&program)?;
            }
        }
        for library in files(&self.libraries())? {
            let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some((stem, _)) = name.split_once(".so.") {
                link(&name, &self.libraries().join(format!("{stem}.so")))?;
            }
        }
        // The build of cudarc looks here only if the folder exists by then.
        let stubs = self.stubs();
        fs::create_dir_all(&stubs).with_context(|| stubs.display().to_string())?;
        let [source, library] = ["cuda.c", "libcuda.so.1"].map(|name| stubs.join(name));
        fs::write(&source, stub(&bindings()?)).with_context(|| source.display().to_string())?;
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        let mut build = Command::new(compiler);
        build
            .args(["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"])
            .arg(&source)
            .arg("-o")
            .arg(&library);
        run(&mut build).context("a C compiler is needed (CC, or cc)")?;
        link("libcuda.so.1", &stubs.join("libcuda.so"))
    }

    /// To a build.
    fn lend(&self, build: &mut Command) -> Result<()> {
        with_nvcc(build, &self.0.join("bin/nvcc"), &self.0)
    }
}

/// Sets what the builds of candle's kernels and of cudarc ask for.
fn with_nvcc(build: &mut Command, nvcc: &Path, home: &Path) -> Result<()> {
    let folder = nvcc.parent().context("nvcc has a folder")?.to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(folder).chain(std::env::split_paths(&path)))?;
    build.env("PATH", path).env("NVCC", nvcc).env("CUDA_HOME", home).env("CUDARC_CUDA_VERSION", VERSION);
    Ok(())
}

/// A driver that has every function and no device.
fn stub(bindings: &str) -> String {
    let names: BTreeSet<&str> = bindings
        .split("fn ")
        .skip(1)
        .filter_map(|rest| rest.split_once('(').map(|(name, _)| name))
        .filter(|name| name.starts_with("cu") && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .collect();
    // CUDA_ERROR_NO_DEVICE.
    names.iter().map(|name| format!("int {name}(void) {{ return 100; }}\n")).collect()
}

/// The functions of the driver that cudarc knows, as its source declares them.
fn bindings() -> Result<String> {
    let metadata = ["metadata", "--format-version", "1", "--features", "cofilter-train/cuda"];
    let found = cargo(&metadata).output().context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&found.stdout);
    let manifest =
        text.split('"').find(|part| part.ends_with("Cargo.toml") && part.contains("cudarc-")).with_context(
            || format!("cargo metadata names no cudarc: {}", String::from_utf8_lossy(&found.stderr)),
        )?;
    let source = Path::new(manifest).with_file_name("src/driver/sys/mod.rs");
    fs::read_to_string(&source).with_context(|| source.display().to_string())
}

/// What lies in a folder and is no link.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(unix)]
fn link(to: &str, path: &Path) -> Result<()> {
    // One that is there may lead to a file of another version.
    if path.symlink_metadata().is_ok() {
        fs::remove_file(path).with_context(|| path.display().to_string())?;
    }
    std::os::unix::fs::symlink(to, path).with_context(|| path.display().to_string())
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| path.display().to_string())
}

#[cfg(not(unix))]
fn link(_: &str, path: &Path) -> Result<()> {
    anyhow::bail!("{}: these packages are laid out for Linux", path.display())
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_stub_has_each_function_once() {
        let bindings = "pub unsafe fn cuInit(Flags: u32) {\n fn cuInit(Flags: u32);\n fn cuMemAlloc_v2(a: u8);\n fn other(x: u8);";
        let expected = "int cuInit(void) { return 100; }\nint cuMemAlloc_v2(void) { return 100; }\n";
        assert_eq!(super::stub(bindings), expected);
    }
}
