//! Tests against the programs that networks come from and go to.

use crate::run::{cargo, root, run};
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use std::process::Command;

const REQUIREMENTS: &str = "crates/formats/tests/interop/requirements.txt";

/// Runs the tests with a Python that has the other programs; sets one up in `target/interop` if none is given.
pub(crate) fn interop(python: Option<&str>) -> Result<()> {
    let python = match python {
        Some(python) => std::path::absolute(python)?,
        None => match set_up()? {
            Some(python) => python,
            None => {
                println!("skipped: the packages of {REQUIREMENTS} cannot be had from PyPI");
                return Ok(());
            }
        },
    };
    let mut tests =
        cargo(&["test", "--release", "-p", "cofilter-formats", "--test", "interop", "--", "--nocapture"]);
    run(tests.env("COFILTER_PYTHON", python))
}

/// The Python of an environment with the versions that are asked for, which it keeps; `None` if they cannot be installed.
fn set_up() -> Result<Option<PathBuf>> {
    let folder = root().join("target/interop");
    let wanted =
        std::fs::read_to_string(root().join(REQUIREMENTS)).with_context(|| REQUIREMENTS.to_owned())?;
    let (venv, installed) = (folder.join("venv"), folder.join("installed.txt"));
    let python = venv.join("bin/python");
    if std::fs::read_to_string(&installed).ok().as_deref() != Some(&wanted) {
        eprintln!("setting up Python packages in {} (some minutes, once; needs the network)", venv.display());
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]);
        if run(pip.current_dir(root())).is_err() {
            return Ok(None);
        }
        std::fs::write(&installed, wanted)?;
    }
    Ok(Some(python))
}
