//! The ids that a model's tokenizer gives a prompt, and what did not fit.
//!
//! `cargo run -p candle-diffusers-loaders --example tokens -- FOLDER "a photo of a cat"`

use std::process::ExitCode;

use candle_diffusers_loaders::{ClipTokenizer, Error, Repository};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, prompt] = arguments.as_slice() else {
        eprintln!("usage: tokens FOLDER PROMPT");
        return ExitCode::from(2);
    };
    match print_tokens(folder, prompt) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn print_tokens(folder: &str, prompt: &str) -> Result<(), Error> {
    let tokenizer = ClipTokenizer::load(&Repository::folder(folder)?, "tokenizer")?;
    let encoded = tokenizer.encode(prompt)?;
    println!("{:?}", encoded.ids);
    if let Some(removed) = encoded.removed {
        println!("did not fit: {removed}");
    }
    Ok(())
}
