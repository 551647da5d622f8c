//! `diffuse generate --lora FILE[:SCALE]`.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Result, ensure};
use candle_diffusers_loaders::Error;
use candle_diffusers_loaders::lora::{AdapterError, UnmatchedKeys};
use candle_diffusers_pipelines::StableDiffusionPipeline;

use crate::output::utf8_name;
use crate::scaled_file::ScaledFile;

/// Reads the values of `--lora`, and makes sure that the files are there: before a model is loaded.
pub(crate) fn read(values: &[OsString]) -> Result<Vec<ScaledFile>> {
    for value in values {
        utf8_name("--lora", Path::new(value))?;
    }
    let loras = ScaledFile::parse_all(values)?;
    for lora in &loras {
        ensure!(lora.path.exists(), "--lora {}: there is no such file", lora.path.display());
    }
    Ok(loras)
}

/// Computes the LoRAs into the weights of the pipeline's models.
pub(crate) fn apply(
    pipeline: &mut StableDiffusionPipeline,
    loras: &[ScaledFile],
    unmatched: UnmatchedKeys,
) -> Result<()> {
    let models = pipeline.text_encoders.lora_models(&pipeline.unet);
    // One file may be given more than once.
    let names: Vec<String> = (0..loras.len()).map(|index| index.to_string()).collect();
    for (lora, name) in loras.iter().zip(&names) {
        pipeline.loras.load(&models, name, &lora.path, unmatched).map_err(with_advice)?;
    }
    let scales: Vec<(&str, f64)> =
        names.iter().zip(loras).map(|(name, lora)| (name.as_str(), lora.scale)).collect();
    pipeline.loras.set_adapters(&scales)?;
    Ok(pipeline.loras.fuse_permanently()?)
}

fn with_advice(error: Error) -> anyhow::Error {
    match &error {
        Error::Adapter(adapter) if matches!(**adapter, AdapterError::Unmatched { .. }) => {
            anyhow::anyhow!("{error}; --allow-unmatched leaves them out")
        }
        _ => error.into(),
    }
}

/// As web UIs write a LoRA in a prompt.
pub(crate) fn tag(lora: &ScaledFile) -> String {
    let name = lora.path.file_stem().unwrap_or_default().to_string_lossy();
    format!("<lora:{name}:{}>", lora.scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_what_web_uis_write() {
        let lora = ScaledFile { path: "folder/ink.v1.safetensors".into(), scale: 0.8 };
        assert_eq!(tag(&lora), "<lora:ink.v1:0.8>");
        assert_eq!(tag(&ScaledFile { scale: 1.0, ..lora }), "<lora:ink.v1:1>");
    }
}
