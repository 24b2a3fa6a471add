//! `cofilter-repro`: runs an experiment of the paper, or tells what data lies in a folder.

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use cofilter_repro::bench::Bench;
use cofilter_repro::options::{Experiment, Options, root};
use cofilter_repro::report::Report;
use cofilter_repro::{cifar, decompose, lenet, sparsity, speed};
use comfy_table::{Table, presets};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The experiments of "Coordinating Filters for Faster Deep Neural Networks", beside our own figures
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run an experiment and write its report
    #[command(
        display_name = "cargo xtask reproduce",
        override_usage = "cargo xtask reproduce [EXPERIMENT] [OPTIONS]"
    )]
    Reproduce(Options),
    /// Measure speed: of layers, of networks, against other engines
    #[command(display_name = "cargo xtask bench", subcommand)]
    Bench(Bench),
    /// Write `docs/results.md` from the reports under `docs/runs`
    Results,
    /// Tell what data sets lie in a folder, and check them
    Data {
        /// The folder [default: ../shared/data]
        folder: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .init();
    let result = match Cli::parse().command {
        Command::Reproduce(options) => run(&options),
        Command::Bench(bench) => cofilter_repro::bench::run(&bench),
        Command::Results => cofilter_repro::results::write(&root().join("docs")),
        Command::Data { folder } => data(&folder.unwrap_or_else(|| root().join("../shared/data"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, without those that the text before already holds.
fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.contains(&cause) {
        true => text,
        false if text.is_empty() => cause,
        false => format!("{text}: {cause}"),
    })
}

fn run(options: &Options) -> Result<()> {
    options.check()?;
    let stop = Arc::clone(&options.stop);
    // The first signal ends the current iteration and writes a checkpoint; the second one ends the process.
    ctrlc::set_handler(move || {
        if stop.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })?;
    rayon::ThreadPoolBuilder::new().num_threads(options.thread_count()).build_global()?;
    let folder = options.folder();
    let report = match options.experiment {
        Experiment::Convnet | Experiment::Resnet20 => cifar::run(options)?,
        Experiment::Decompose => decompose::run(options)?,
        Experiment::Lenet => lenet::run(options)?,
        Experiment::Sparsity => sparsity::run(options)?,
        Experiment::Speed => speed::run(options)?,
    };
    print_report(&report);
    if options.keep {
        let docs = root().join("docs");
        report.write(&docs.join("runs").join(folder.file_name().context("--keep: --out has no name")?))?;
        cofilter_repro::results::write(&docs)?;
    }
    println!("\nreport: {}", folder.join("report.html").display());
    Ok(())
}

fn print_report(report: &Report) {
    println!("{}\n", report.summary);
    for table in [report.arms_table(), report.claims_table()]
        .iter()
        .chain(&report.tables)
        .filter(|t| !t.rows.is_empty())
    {
        let mut shown = Table::new();
        shown.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(&table.columns);
        for row in &table.rows {
            shown.add_row(row);
        }
        println!("{}\n{shown}\n", table.title);
    }
}

/// Opens every folder below (or the folder itself) that holds a data set.
fn data(folder: &std::path::Path) -> Result<()> {
    anyhow::ensure!(folder.is_dir(), "{}: no such folder", folder.display());
    let mut folders = vec![folder.to_owned()];
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    let mut found = 0;
    for candidate in &folders {
        match cofilter_data::open(candidate) {
            Ok(split) => {
                found += 1;
                let [c, h, w] = split.train.extents();
                println!(
                    "{}: {}, {} training and {} test images {c}x{h}x{w}, {} classes, SHA-256 {}",
                    candidate.display(),
                    split.train.name(),
                    split.train.len(),
                    split.test.len(),
                    split.train.classes().len(),
                    split.train.sha256()
                );
            }
            Err(error) => println!("{}: nothing usable: {error}", candidate.display()),
        }
    }
    anyhow::ensure!(found > 0, "{}: no data set found", folder.display());
    Ok(())
}
