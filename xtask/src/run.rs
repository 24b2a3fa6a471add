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
