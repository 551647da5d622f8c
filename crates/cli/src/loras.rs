//! `--lora FILE[:SCALE]`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_diffusers_loaders::Error;
use candle_diffusers_loaders::lora::{AdapterError, LoraModels, UnmatchedKeys};
use candle_diffusers_pipelines::StableDiffusionPipeline;

use crate::output::utf8_name;

/// A LoRA that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LoraChoice {
    path: PathBuf,
    scale: f64,
}

/// Reads the values of `--lora`, and makes sure that the files are there: before a model is loaded.
pub(crate) fn read(values: &[OsString]) -> Result<Vec<LoraChoice>> {
    values.iter().map(|value| LoraChoice::parse(value, &|path: &Path| path.exists())).collect()
}

/// Computes the LoRAs into the weights of the pipeline's models.
pub(crate) fn apply(
    pipeline: &mut StableDiffusionPipeline,
    loras: &[LoraChoice],
    unmatched: UnmatchedKeys,
) -> Result<()> {
    let models = LoraModels {
        unet: Some(&pipeline.unet),
        text_encoder: Some(&pipeline.text_encoder),
        ..Default::default()
    };
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

impl LoraChoice {
    /// `FILE` or `FILE:SCALE`. Names may have colons: what follows the last one is a scale where it is a number and the file without it
    /// is there.
    fn parse(value: &OsStr, exists: &dyn Fn(&Path) -> bool) -> Result<Self> {
        let text = utf8_name("--lora", Path::new(value))?;
        ensure!(!text.is_empty(), "--lora is empty; expected FILE or FILE:SCALE");
        if exists(Path::new(text)) {
            return Ok(Self { path: text.into(), scale: 1.0 });
        }
        let Some((file, scale)) = text.rsplit_once(':') else {
            bail!("--lora {text}: there is no such file");
        };
        let number = scale.trim().parse::<f64>();
        ensure!(
            exists(Path::new(file)),
            "--lora {text}: there is no such file{}",
            if number.is_ok() { format!(", and none called {file}") } else { String::new() }
        );
        let scale = number.ok().filter(|scale| scale.is_finite()).with_context(|| {
            format!("--lora {text}: the scale after {file} is {scale:?}, expected a number such as 0.8")
        })?;
        Ok(Self { path: file.into(), scale })
    }

    /// As web UIs write it in a prompt.
    pub(crate) fn tag(&self) -> String {
        let name = self.path.file_stem().unwrap_or_default().to_string_lossy();
        format!("<lora:{name}:{}>", self.scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `text` means where these files are there.
    fn parse(text: &str, files: &[&str]) -> Result<(String, f64), String> {
        let exists = |path: &Path| files.iter().any(|file| Path::new(file) == path);
        let choice = LoraChoice::parse(OsStr::new(text), &exists).map_err(|error| error.to_string())?;
        Ok((choice.path.display().to_string(), choice.scale))
    }

    #[test]
    fn a_scale_follows_the_last_colon() {
        let files = ["a.safetensors", "C:\\x.safetensors", "a:b", "odd:2", "odd"];
        for (text, file, scale) in [
            ("a.safetensors", "a.safetensors", 1.0),
            ("a.safetensors:0.8", "a.safetensors", 0.8),
            ("a.safetensors:-1.5e-1", "a.safetensors", -0.15),
            ("a.safetensors:0", "a.safetensors", 0.0),
            ("C:\\x.safetensors", "C:\\x.safetensors", 1.0),
            ("C:\\x.safetensors:2", "C:\\x.safetensors", 2.0),
            ("a:b", "a:b", 1.0),
            ("a:b:.5", "a:b", 0.5),
            // A file that is there is meant.
            ("odd:2", "odd:2", 1.0),
            ("odd:3", "odd", 3.0),
        ] {
            assert_eq!(parse(text, &files), Ok((file.to_string(), scale)), "{text}");
        }
    }

    #[test]
    fn what_is_neither_is_an_error_that_says_why() {
        for (text, message) in [
            ("", "--lora is empty"),
            ("b.safetensors", "b.safetensors: there is no such file"),
            ("b.safetensors:0.5", "none called b.safetensors"),
            ("C:\\b.safetensors", "C:\\b.safetensors: there is no such file"),
            ("a:much", "the scale after a is \"much\""),
            ("a:", "the scale after a is \"\""),
            ("a:nan", "expected a number"),
            ("a:1e999", "expected a number"),
        ] {
            let error = parse(text, &["a"]).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn a_tag_is_what_web_uis_write() {
        let choice = LoraChoice { path: "folder/ink.v1.safetensors".into(), scale: 0.8 };
        assert_eq!(choice.tag(), "<lora:ink.v1:0.8>");
        assert_eq!(LoraChoice { scale: 1.0, ..choice }.tag(), "<lora:ink.v1:1>");
    }
}
