//! Starting other programs.

use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// Folder of the workspace, as cargo tells it at run time: two checkouts may share one build folder, and then the one that
/// was compiled in could be the other's.
pub(crate) fn root() -> PathBuf {
    let told = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).filter(|f| f.ends_with("xtask"));
    let mut folder = told.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    folder.pop();
    folder
}

/// `cargo ARGS` in the workspace, with the cargo that started us.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Runs a command and fails if it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let text = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot start {text}"))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => bail!("exit code {code} from {text}"),
        None => bail!("{text} was ended by a signal"),
    }
}

/// What a command prints, if it succeeds.
pub(crate) fn output(program: &str, args: &[&str]) -> Option<Vec<u8>> {
    let out = Command::new(program).args(args).current_dir(root()).output().ok()?;
    out.status.success().then_some(out.stdout)
}

/// First line of what a command prints, if it succeeds.
pub(crate) fn line(program: &str, args: &[&str]) -> Option<String> {
    let text = String::from_utf8(output(program, args)?).ok()?;
    Some(text.lines().next().unwrap_or_default().to_owned())
}

/// Whether a program is there and tells its version.
pub(crate) fn starts(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Lets a program find shared libraries in these folders, behind those that it finds already.
pub(crate) fn find_libraries(
    program: &mut Command,
    folders: impl IntoIterator<Item = PathBuf>,
) -> Result<()> {
    let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    // An empty path would be the current folder.
    let others = std::env::split_paths(&others).filter(|path| !path.as_os_str().is_empty());
    program.env("LD_LIBRARY_PATH", std::env::join_paths(others.chain(folders))?);
    Ok(())
}
