//! Converts a checkpoint in one file to a diffusers folder, or such a folder to one file.
//!
//! `cargo run --release -p candle-diffusers-convert --example convert -- SOURCE DESTINATION [f16|bf16|f32]`

use std::path::Path;
use std::process::ExitCode;

use candle_diffusers_convert::{ConvertOptions, Dtype, WriteOptions, convert};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (Some(source), Some(destination)) = (words.first(), words.get(1)) else {
        eprintln!("usage: convert SOURCE DESTINATION [f16|bf16|f32]");
        return ExitCode::from(2);
    };
    let dtype = match words.get(2).map(String::as_str) {
        Some("f16") => Some(Dtype::F16),
        Some("bf16") => Some(Dtype::BF16),
        Some("f32") => Some(Dtype::F32),
        _ => None,
    };
    let options = ConvertOptions {
        write: WriteOptions { dtype, ..WriteOptions::default() },
        ..ConvertOptions::default()
    };
    match convert(Path::new(source), Path::new(destination), &options, &|_| {}) {
        Ok(report) => {
            report.lines().iter().for_each(|line| eprintln!("{line}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
