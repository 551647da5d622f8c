//! Lists what a safetensors file, or an index of shards, holds.
//!
//! `cargo run -p candle-diffusers-convert --example list -- model.safetensors`

use std::process::ExitCode;

use candle_diffusers_convert::{Checkpoint, Error};

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: list FILE.safetensors | FILE.safetensors.index.json");
        return ExitCode::from(2);
    };
    match Checkpoint::open(&path) {
        Ok(checkpoint) => {
            list(&checkpoint);
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn list(checkpoint: &Checkpoint) {
    let mut elements = 0;
    for (_, tensor) in checkpoint.tensors() {
        println!("{:<80} {:>6} {:?}", tensor.name, tensor.dtype.to_string(), tensor.shape);
        elements += tensor.elements();
    }
    for file in checkpoint.files() {
        for (key, value) in file.metadata() {
            println!("{}: {key} = {value}", file.source());
        }
    }
    println!("{} tensors, {elements} numbers", checkpoint.len());
}

fn fail(error: &Error) -> ExitCode {
    eprintln!("{error}");
    ExitCode::FAILURE
}
