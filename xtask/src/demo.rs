//! The small model that travels with the program, trained from nothing by this project.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::full_size::build_example;
use crate::python;
use crate::workspace;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The folder to write [default: demo/shapes in cargo's target folder]
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Put the result in the place of the model that travels with the program
    #[arg(long)]
    embed: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let embedded = workspace::root().join("crates/cli/assets/shapes");
    let output = arguments.output.clone().unwrap_or_else(|| workspace::target().join("demo/shapes"));
    let program = build_example("shapes")?;
    python::run(Command::new(program).arg(&embedded).arg(&output))?;
    if !arguments.embed {
        return Ok(());
    }
    for file in EMBEDDED {
        let (from, to) = (output.join(file), embedded.join(file));
        std::fs::copy(&from, &to)?;
    }
    println!("{} is of this run now", embedded.display());
    Ok(())
}

/// What a run makes; the rest of the folder stays what it is.
const EMBEDDED: [&str; 5] = [
    "sheet.png",
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];
