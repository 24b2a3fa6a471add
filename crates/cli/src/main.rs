//! `cofilter`: makes trained convolutional networks smaller and faster, and takes them where they run.
//!
//! Results go to stdout, as text or JSON; everything else to stderr.

mod bench;
mod compress;
mod convert;
mod decompose;
mod device;
mod evaluate;
mod finetune;
mod inspect;
mod output;
mod prune;
mod rank;
mod rank_report;
mod run;
mod source;
mod verify;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use output::Output;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// What a command found is not what was asked for: another network, too large an error.
const NOT_MET: u8 = 3;
/// What shells give for SIGINT.
const STOPPED: u8 = 130;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failure: a file that cannot be read, an unsupported network, ...
  2  wrong usage
  3  done, but a limit that was asked for is not met (`verify` and what verifies)
  130  stopped by a signal";

/// Make trained convolutional networks smaller and faster
#[derive(Parser)]
#[command(name = "cofilter", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How results are written to stdout
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Tell what is in a checkpoint: layers, shapes, costs, ranks
    Inspect(inspect::Args),
    /// Write a network in another format, and compare both
    Convert(convert::Args),
    /// Compare two networks on the same inputs
    Verify(verify::Args),
    /// Tell the ranks of all layers
    Rank(rank::Args),
    /// Replace layers by pairs of lower rank
    Decompose(decompose::Args),
    /// Set the smallest weights to zero, and take out what is all zero
    Prune(prune::Args),
    /// Train a network further
    Finetune(finetune::Args),
    /// Measure the accuracy of a network on a data set
    Evaluate(evaluate::Args),
    /// Classify images, or run a network on tensors
    Run(run::Args),
    /// Measure the latency of networks, in turns
    Bench(bench::Args),
    /// Decompose, train and export as a recipe says
    Compress(compress::Args),
    /// Write completions for a shell to stdout
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder
    Man {
        /// The folder
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .with_env_filter(filter)
        .init();
    let cli = Cli::parse();
    let printed = execute(&cli.command).and_then(|output| {
        let met = output.as_ref().is_none_or(Output::met);
        if let Some(output) = output {
            output.print(cli.format == Format::Json).context("stdout")?;
        }
        Ok(met)
    });
    match printed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NOT_MET),
        Err(error) => {
            eprintln!("error: {}", chain(&error));
            if error.is::<finetune::Stopped>() { ExitCode::from(STOPPED) } else { ExitCode::FAILURE }
        }
    }
}

fn execute(command: &Command) -> Result<Option<Output>> {
    match command {
        Command::Inspect(args) => args.run(),
        Command::Convert(args) => args.run(),
        Command::Verify(args) => args.run(),
        Command::Rank(args) => args.run(),
        Command::Decompose(args) => args.run(),
        Command::Prune(args) => args.run(),
        Command::Finetune(args) => args.run(),
        Command::Evaluate(args) => args.run(),
        Command::Run(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::Compress(args) => args.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "cofilter", &mut script);
            output::print(String::from_utf8_lossy(&script).trim_end()).context("stdout")?;
            return Ok(None);
        }
        Command::Man { folder } => {
            std::fs::create_dir_all(folder)?;
            clap_mangen::generate_to(Cli::command(), folder)?;
            return Ok(None);
        }
    }
    .map(Some)
}

/// The error and its causes, without those that the text before already holds.
fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.contains(&cause) {
        true => text,
        false if text.is_empty() => cause,
        false => format!("{text}: {cause}"),
    })
}
