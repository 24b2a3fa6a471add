//! (c) Machine code of every kernel from the real compiler: what each takes of a multiprocessor, and that it takes no more than it did.

use anyhow::{Context as _, Result, bail, ensure};
use cofilter_cuda::{Kernel, Set, compile};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// What a kernel takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Use {
    /// Registers of a thread.
    registers: u32,
    /// Bytes that do not fit into them, stored and loaded.
    spilled: u32,
    /// Bytes of shared memory that are fixed; the rest is told at the launch.
    shared: u32,
}

/// The kernels by architecture, counted; a table that was committed is compared, or written if `write`.
pub(crate) fn check(
    table: &Path,
    write: bool,
    about: &mut dyn FnMut(String),
) -> Result<BTreeMap<String, usize>> {
    let known = compile::architectures()?;
    let newest = known.iter().copied().max().context("the compiler knows no architecture")?;
    let mut archs = vec![80, 90, newest];
    archs.dedup();
    let mut counts = BTreeMap::new();
    let mut found: BTreeMap<(String, u32), Use> = BTreeMap::new();
    for arch in archs {
        ensure!(known.contains(&arch), "the compiler knows no sm_{arch}, only {known:?}");
        let mut all = 0;
        // What both have is the same in both.
        for set in [Set::Learn, Set::Run] {
            let compiled = compile::compile(&compile::text(set), arch)?;
            ensure!(compiled.binary.starts_with(b"\x7fELF"), "sm_{arch}: no machine code");
            let uses = uses(&compiled.log);
            for kernel in Kernel::of(set) {
                let of = uses
                    .get(kernel.name())
                    .with_context(|| format!("sm_{arch}: nothing about {}", kernel.name()))?;
                all += usize::from(found.insert((kernel.name().to_owned(), arch), *of).is_none());
            }
            about(format!("sm_{arch}: {} kernels, {} bytes", uses.len(), compiled.binary.len()));
        }
        counts.insert(format!("sm_{arch}"), all);
    }
    let text = text(&found);
    if write {
        std::fs::write(table, text).with_context(|| table.display().to_string())?;
        return Ok(counts);
    }
    let committed = std::fs::read_to_string(table).with_context(|| table.display().to_string())?;
    let mut worse = Vec::new();
    for line in committed.lines().skip(2) {
        let cells: Vec<&str> = line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect();
        let [kernel, arch, numbers @ ..] = cells.as_slice() else { continue };
        let numbers: Vec<u32> = numbers.iter().filter_map(|n| n.parse().ok()).collect();
        let (Ok(arch), [registers, spilled, shared, _]) =
            (arch.trim_start_matches("sm_").parse(), numbers.as_slice())
        else {
            bail!("{}: not a row of the table: {line}", table.display());
        };
        // A kernel that is gone is no fault.
        let Some(now) = found.remove(&((*kernel).to_owned(), arch)) else { continue };
        if now.registers > *registers || now.spilled > *spilled || now.shared > *shared {
            worse.push(format!(
                "{kernel} for sm_{arch}: {now:?}, the table has {registers}, {spilled}, {shared}"
            ));
        }
    }
    ensure!(worse.is_empty(), "kernels take more than {} says:\n{}", table.display(), worse.join("\n"));
    let new: Vec<String> = found.keys().map(|(kernel, arch)| format!("{kernel} for sm_{arch}")).collect();
    ensure!(new.is_empty(), "{} says nothing of {}; --write writes it", table.display(), new.join(", "));
    Ok(counts)
}

fn text(found: &BTreeMap<(String, u32), Use>) -> String {
    let mut text =
        "| kernel | architecture | registers | bytes spilled | bytes of fixed shared memory | threads |\n"
            .to_owned();
    text.push_str("|---|---|---|---|---|---|\n");
    for ((kernel, arch), Use { registers, spilled, shared }) in found {
        let threads = Kernel::of(Set::Learn)
            .chain(Kernel::all())
            .find(|of| of.name() == kernel)
            .map_or(0, Kernel::threads);
        let _ = writeln!(text, "| {kernel} | sm_{arch} | {registers} | {spilled} | {shared} | {threads} |");
    }
    text
}

/// What `ptxas -v` says of each kernel.
fn uses(log: &str) -> BTreeMap<String, Use> {
    let mut uses: BTreeMap<String, Use> = BTreeMap::new();
    let mut kernel = String::new();
    let number =
        |text: &str| text.split_whitespace().next().and_then(|word| word.parse::<u32>().ok()).unwrap_or(0);
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or_default().to_owned();
        } else if line.contains("spill stores") {
            let spilled =
                line.split(',').filter(|part| part.contains("spill")).map(|part| number(part.trim())).sum();
            uses.entry(kernel.clone()).or_default().spilled = spilled;
        } else if let Some((_, rest)) = line.split_once("Used ") {
            let of = uses.entry(kernel.clone()).or_default();
            of.registers = number(rest);
            of.shared = rest
                .split(',')
                .find(|part| part.contains("bytes smem"))
                .map_or(0, |part| number(part.trim()));
        }
    }
    uses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_words_are_read() {
        let log = "ptxas info    : Compiling entry function 'softmax' for 'sm_80'\nptxas info    : Function properties for softmax\n\
                   ptxas         .     0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
                   ptxas info    : Used 32 registers, used 1 barriers, 16 bytes smem, 472 bytes cmem[0]";
        assert_eq!(uses(log)["softmax"], Use { registers: 32, spilled: 12, shared: 16 });
    }
}
