//! Loads every model of a pipeline and says how long each took and how much memory was needed.
//!
//! `cargo run --release -p candle-diffusers-loaders --example load -- FOLDER_OR_ID [VARIANT]`

use std::process::ExitCode;
use std::time::Instant;

use candle_diffusers_loaders::{
    Download, Error, LoadOptions, ModelIndex, Repository, load_text_encoder,
    load_text_encoder_with_projection, load_unet, load_vae,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        eprintln!("usage: load FOLDER_OR_ID [VARIANT]");
        return ExitCode::from(2);
    };
    match load(&name, arguments.next()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn load(name: &str, variant: Option<String>) -> Result<(), Error> {
    let mut progress = |download: Download<'_>| {
        if download.received == download.size {
            eprintln!(
                "{} of {}: {} ({} bytes)",
                download.number, download.files, download.file, download.size
            );
        }
    };
    let repository = Repository::open(name, variant.as_deref(), &mut progress)?;
    let index = ModelIndex::load(&repository)?;
    let options = LoadOptions { variant, ..LoadOptions::default() };
    for (component, class) in &index.components {
        let start = Instant::now();
        match class.class_name.as_str() {
            "UNet2DConditionModel" => drop(load_unet(&repository, component, &options)?),
            "AutoencoderKL" => drop(load_vae(&repository, component, &options)?),
            "CLIPTextModel" => drop(load_text_encoder(&repository, component, &options)?),
            "CLIPTextModelWithProjection" => {
                drop(load_text_encoder_with_projection(&repository, component, &options)?);
            }
            _ => continue,
        }
        println!("{component}: {} in {:.2} s", class.class_name, start.elapsed().as_secs_f64());
    }
    if let Some(peak) = peak_memory() {
        println!("peak memory: {peak}");
    }
    Ok(())
}

/// The most memory that the process has held, where the system says it.
fn peak_memory() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(|value| value.trim().to_string())
}
