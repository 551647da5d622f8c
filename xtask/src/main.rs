//! What developers of this repository run: `cargo xtask <chore>`.

mod bench;
mod conversion;
mod fixtures;
mod full_size;
mod half_precision;
mod measure;
mod python;
mod statistics;
mod worker;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of those who develop candle-diffusers", version)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Ask the reference library for the numbers that parity tests expect: run every export.py and say which files changed
    Fixtures {
        /// Only scripts whose path contains this
        filter: Option<String>,
        /// Name the scripts and stop
        #[arg(long)]
        list: bool,
    },
    /// Open converted folders of every family in the reference library and paint with them; with --full, compare models too large to
    /// keep instead; with --half, what these lose in bfloat16
    Parity(full_size::ParityArguments),
    /// Time models with random weights at real sizes, in turn with diffusers and OpenVINO, and print medians and ratios
    #[command(args_conflicts_with_subcommands = true)]
    Bench {
        #[command(subcommand)]
        what: Option<Benched>,
        #[command(flatten)]
        models: bench::BenchArguments,
    },
}

#[derive(Subcommand)]
enum Benched {
    /// Conversion of a 2 GB checkpoint to a folder and back, beside cp and the reference (needs 15 GB of disk)
    Convert(conversion::BenchArguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Fixtures { filter, list: true } => fixtures::list(filter.as_deref()),
        Chore::Fixtures { filter, list: false } => fixtures::make(filter.as_deref()),
        Chore::Parity(arguments) if arguments.full => full_size::parity(&arguments),
        Chore::Parity(arguments) if arguments.half => half_precision::parity(arguments.threads),
        Chore::Parity(_) => conversion::parity(),
        Chore::Bench { what: Some(Benched::Convert(arguments)), .. } => conversion::bench(&arguments),
        Chore::Bench { what: None, models } => bench::bench(&models),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
