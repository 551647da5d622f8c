//! What developers of this repository run: `cargo xtask <chore>`.

mod bench;
mod conversion;
mod demo;
mod fixtures;
mod full_size;
mod half_precision;
mod measure;
mod python;
mod statistics;
mod teach;
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
    /// Open converted folders of every family, and what was trained, in the reference library and paint with them; with --full, compare models too large to
    /// keep instead; with --half, what these lose in bfloat16
    Parity(full_size::ParityArguments),
    /// Train the small model that travels with the program from nothing, and say what it paints of what it is told
    Demo(demo::Arguments),
    /// Teach the small model a thing by DreamBooth and colours by textual inversion, which it has never seen, and count the pictures that show them
    Teach,
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
    /// Whole steps of training Stable Diffusion 1.5 at 512x512, from the files of the pictures on, beside diffusers (4 GB of disk)
    Train(bench::BenchArguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Fixtures { filter, list: true } => fixtures::list(filter.as_deref()),
        Chore::Fixtures { filter, list: false } => fixtures::make(filter.as_deref()),
        Chore::Parity(arguments) if arguments.full => full_size::parity(&arguments),
        Chore::Parity(arguments) if arguments.half => half_precision::parity(&arguments),
        Chore::Parity(_) => conversion::parity(),
        Chore::Demo(arguments) => demo::run(&arguments),
        Chore::Teach => teach::run(),
        Chore::Bench { what: Some(Benched::Convert(arguments)), .. } => conversion::bench(&arguments),
        Chore::Bench { what: Some(Benched::Train(arguments)), .. } => bench::bench_training(&arguments),
        Chore::Bench { what: None, models } => bench::bench(&models),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
