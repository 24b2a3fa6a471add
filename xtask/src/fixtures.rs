//! Hashes of the files in `fixtures/` that scripts made.

use crate::run::root;
use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const SUMS: &str = "fixtures/SHA256SUMS";
/// Data, as opposed to scripts and prose.
const DATA: [&str; 9] =
    ["safetensors", "gz", "json", "pth", "onnx", "caffemodel", "h5", "binaryproto", "prototxt"];

/// Compares the files with the list.
pub(crate) fn check() -> Result<()> {
    let text = fs::read_to_string(root().join(SUMS)).with_context(|| SUMS.to_owned())?;
    let listed: BTreeMap<String, String> = text
        .lines()
        .filter_map(|l| l.split_once("  "))
        .map(|(hash, path)| (path.into(), hash.into()))
        .collect();
    let found = sums()?;
    for (path, hash) in &found {
        match listed.get(path) {
            None => bail!("{path} is not in {SUMS}: `cargo xtask fixtures --write`"),
            Some(old) if old != hash => bail!("{path} changed: expected SHA-256 {old}, found {hash}"),
            Some(_) => {}
        }
    }
    match listed.keys().find(|path| !found.contains_key(*path)) {
        Some(path) => bail!("{path} is in {SUMS} and not on the disk"),
        None => Ok(()),
    }
}

/// Writes the list anew.
pub(crate) fn write() -> Result<()> {
    let text: String = sums()?.iter().map(|(path, hash)| format!("{hash}  {path}\n")).collect();
    fs::write(root().join(SUMS), text).with_context(|| SUMS.to_owned())
}

fn sums() -> Result<BTreeMap<String, String>> {
    let mut sums = BTreeMap::new();
    walk(&root().join("fixtures"), &mut |path| {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let hash = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        let name = path.strip_prefix(root()).unwrap_or(path).display().to_string();
        sums.insert(name, hash);
        Ok(())
    })?;
    Ok(sums)
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, visit)?;
        } else if path.extension().is_some_and(|e| DATA.iter().any(|d| e == *d)) {
            visit(&path)?;
        }
    }
    Ok(())
}
