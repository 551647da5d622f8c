//! The `diffuse` program: what the crates of candle-diffusers do, from the command line.

mod arguments;
mod control;
mod control_arguments;
mod convert;
mod device;
mod embedded;
mod embeddings;
mod generate;
mod grid;
mod inspect;
mod lora;
mod loras;
mod models;
mod nearest;
mod output;
mod painter;
mod parameters;
mod progress;
mod prompts;
mod scaled_file;
mod scheduler_names;
mod start;
mod strength;
mod terminal;
mod train;
mod unconditional;
mod xl_arguments;

use std::process::ExitCode;

use candle_diffusers_kernels::{PooledAllocator, compute_with_this_thread};

use arguments::Command;
use progress::Progress;

#[global_allocator]
static ALLOCATOR: PooledAllocator = PooledAllocator::new();

fn main() -> ExitCode {
    compute_with_this_thread();
    let progress = Progress::new();
    terminal::show_warnings(&progress);
    let result = train::expand(std::env::args_os().collect()).map(nearest::parse);
    let result = result.and_then(|arguments| run(&arguments.command, &progress));
    progress.clear();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<terminal::Told>() {
                terminal::note_of_own(&format!("error: {}", terminal::one_line(&error)));
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command, progress: &Progress) -> anyhow::Result<()> {
    match command {
        Command::Generate(arguments) => generate::run(arguments, progress),
        Command::Convert(arguments) => convert::run(arguments, progress),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Lora(arguments) => lora::run(arguments, progress),
        Command::Train(arguments) => train::run(arguments, progress),
    }
}
