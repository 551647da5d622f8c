//! What developers of this repository run: `cargo xtask <chore>`.

mod fixtures;
mod full_size;
mod python;
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
    /// Compare with the reference library on models too large to keep
    Parity(full_size::ParityArguments),
    /// Time this project and the reference library in turn, and print medians and their ratio
    Bench(full_size::BenchArguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Fixtures { filter, list: true } => fixtures::list(filter.as_deref()),
        Chore::Fixtures { filter, list: false } => fixtures::make(filter.as_deref()),
        Chore::Parity(arguments) => full_size::parity(&arguments),
        Chore::Bench(arguments) => full_size::bench(&arguments),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
