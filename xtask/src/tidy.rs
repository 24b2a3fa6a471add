//! What no compiler checks: budgets, hashes, names that documents promise.

use crate::fixtures;
use crate::run::root;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

const MAX_LINES: usize = 600;
const MAX_WIDTH: usize = 140;

/// Runs every check and reports all that fails.
pub(crate) fn tidy() -> Result<()> {
    let mut faults = Vec::new();
    let mut files = Vec::new();
    for folder in ["crates", "xtask"] {
        rust_files(&root().join(folder), &mut files)?;
    }
    files.sort();
    for path in &files {
        check_source(
            path,
            &fs::read_to_string(path).with_context(|| path.display().to_string())?,
            &mut faults,
        );
    }
    check_invariants(&mut faults)?;
    check_documents(&files, &mut faults)?;
    if let Err(error) = fixtures::check() {
        faults.push(format!("{error:#}"));
    }
    if faults.is_empty() { Ok(()) } else { bail!("{} faults\n{}", faults.len(), faults.join("\n")) }
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

fn check_source(path: &Path, text: &str, faults: &mut Vec<String>) {
    let name = path.strip_prefix(root()).unwrap_or(path).display();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        faults.push(format!("{name}: {lines} lines, the budget is {MAX_LINES}"));
    }
    for (n, line) in text.lines().enumerate() {
        if line.chars().count() > MAX_WIDTH {
            faults.push(format!(
                "{name}:{}: {} columns, the budget is {MAX_WIDTH}",
                n + 1,
                line.chars().count()
            ));
        }
        for word in ["#[allow(", "#![allow("] {
            // `expect` fails when its reason is gone; `allow` stays forever.
            if line.contains(word) && !line.contains("contains(word)") && !line.contains("for word") {
                faults.push(format!("{name}:{}: use #[expect(.., reason = \"..\")] instead of allow", n + 1));
            }
        }
    }
}

/// The crate graph of docs/architecture.md: who may not depend on whom.
fn check_invariants(faults: &mut Vec<String>) -> Result<()> {
    let forbidden: [(&str, &[&str]); 13] = [
        ("graph", &["candle", "cofilter-", "faer", "rayon"]),
        ("kernels", &["candle", "cofilter-", "faer"]),
        ("cuda", &["candle", "cofilter-", "faer", "rayon"]),
        ("zoo", &["candle", "faer", "rayon", "cofilter-kernels", "cofilter-train"]),
        ("data", &["candle", "faer", "cofilter-kernels", "cofilter-train"]),
        ("report", &["candle", "cofilter-", "faer", "rayon"]),
        ("force", &["cofilter-graph", "cofilter-data", "cofilter-train", "cofilter-runtime", "faer"]),
        ("cli", &["candle", "faer"]),
        ("formats", &["candle", "faer", "cofilter-train"]),
        ("lowrank", &["candle", "cofilter-train"]),
        ("sparsity", &["candle", "cofilter-train"]),
        ("runtime", &["candle", "cofilter-train", "cofilter-data", "cofilter-force", "faer"]),
        ("train", &["faer", "cofilter-runtime"]),
    ];
    for (folder, words) in forbidden {
        let path = root().join("crates").join(folder).join("Cargo.toml");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let normal = text.split("[dev-dependencies]").next().unwrap_or_default();
        let dependencies = normal.split_once("[dependencies]").map_or("", |(_, d)| d);
        for word in words {
            if dependencies.lines().any(|l| l.trim_start().starts_with(word)) {
                faults.push(format!("crates/{folder}/Cargo.toml: may not depend on {word}*"));
            }
        }
    }
    Ok(())
}

/// Every test or function that docs/paper.md promises must exist, and every op must have its section in docs/ops.md.
fn check_documents(files: &[PathBuf], faults: &mut Vec<String>) -> Result<()> {
    let sources: String = files.iter().filter_map(|p| fs::read_to_string(p).ok()).collect();
    let read = |name: &str| {
        fs::read_to_string(root().join("docs").join(name)).with_context(|| format!("docs/{name}"))
    };
    for word in code_words(&read("paper.md")?) {
        let last = word.rsplit("::").next().unwrap_or(&word).trim_end_matches("()");
        let is_name = !last.is_empty() && last.chars().all(is_word);
        let declared = ["fn", "struct", "enum", "const", "trait", "type"].iter().any(|k| {
            let item = format!("{k} {last}");
            sources.match_indices(&item).any(|(at, _)| !sources[at + item.len()..].starts_with(is_word))
        });
        // A variant of an enum has no keyword.
        let variant = last.starts_with(char::is_uppercase) && sources.contains(last);
        if is_name && word.contains("::") && !declared && !variant {
            faults.push(format!("docs/paper.md promises `{word}`, which is in no source"));
        }
    }
    let ops = read("ops.md")?.to_lowercase();
    let op_source = fs::read_to_string(root().join("crates/graph/src/op.rs"))?;
    let kinds = op_source
        .split("pub fn kind")
        .nth(1)
        .unwrap_or_default()
        .split("\n    }\n")
        .next()
        .unwrap_or_default();
    for kind in kinds.split('"').skip(1).step_by(2) {
        if !ops.contains(kind) {
            faults.push(format!("docs/ops.md has no section for `{kind}`"));
        }
    }
    Ok(())
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Words between backticks.
fn code_words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).map(str::to_owned)
}
