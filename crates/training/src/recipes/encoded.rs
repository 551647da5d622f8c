//! What the VAE makes of pictures and the text encoders of captions, kept for when they come again: in memory, or in a folder for other runs too.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor};
use candle_diffusers_loaders::ClipTokenizer;
use candle_diffusers_models::layers::Layers;
use candle_diffusers_models::{ClipTextModel, DiagonalGaussianDistribution};
use candle_diffusers_pipelines::{
    PooledPromptEmbeds, PromptEmbeds, StableDiffusionPipeline, TextEncoders, TextToImage,
};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};
use sha2::{Digest, Sha256};

use crate::checkpoint::save_tensors;
use crate::error::{Error, Result};

/// What has been made; the default keeps it in memory. It belongs to the models and pictures that it was first used with.
#[derive(Debug, Default)]
pub struct Encoded {
    pictures: Mutex<HashMap<u64, DiagonalGaussianDistribution>>,
    texts: Mutex<HashMap<String, PromptEmbeds>>,
    folder: Option<Folder>,
    has_all_pictures: AtomicBool,
    has_all_texts: AtomicBool,
}

/// Only the very same is equal.
impl PartialEq for Encoded {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

/// Where what was made of pictures and texts is on the disk. Its names follow from what it was made of, and by which models, so that nothing that has changed is taken for
/// what it was: of a picture from its pixels as they are cut, of models from what they make of something that is always the same, and of words that were added to them from
/// their vectors.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    vae: Vec<u8>,
    text_encoders: Vec<u8>,
    device: Device,
}

/// The side of the picture that a VAE is known by.
const PROBE: usize = 64;
/// The text that text encoders are known by.
const PROBE_TEXT: &str = "an old photograph of 2 horses!";

impl Encoded {
    /// Kept in a folder, which is made if it is missing, and not in memory.
    ///
    /// # Errors
    /// When the folder cannot be made, or a model fails.
    pub fn in_folder(path: impl Into<PathBuf>, models: &StableDiffusionPipeline) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path)
            .map_err(|error| Error::File { file: path.display().to_string(), problem: error.to_string() })?;
        let shape = [1, models.vae.config().in_channels, PROBE, PROBE];
        let picture = TorchGenerator::new(0).randn(&shape, models.vae.dtype(), &models.device)?;
        let vae = digest(&[models.vae.encode(&picture)?.mean()])?;
        let request = TextToImage {
            prompts: vec![PROBE_TEXT.to_string()],
            guidance_scale: Some(1.0),
            ..Default::default()
        };
        let embeds = models.encode_prompt(&request)?;
        let pooled = embeds.pooled.as_ref().map(|pooled| &pooled.prompt);
        let parts: Vec<&Tensor> = [&embeds.prompt].into_iter().chain(pooled).collect();
        let mut text_encoders = digest(&parts)?;
        text_encoders.extend(added_words(models)?);
        let folder = Folder { path, vae, text_encoders, device: models.device.clone() };
        Ok(Self { folder: Some(folder), ..Default::default() })
    }

    /// Frees the weights of the VAE, which nothing may need any more: a picture that is not known yet is an error from now on. The model's norms stay.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn free_vae(&self, models: &StableDiffusionPipeline) -> Result<()> {
        self.has_all_pictures.store(true, Ordering::SeqCst);
        free(&models.vae)
    }

    /// Frees the weights of the VAE and of the text encoders, which nothing may need any more: what is not known yet is an error from now on. The models' norms and tables
    /// of tokens stay.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn free_encoders(&self, models: &StableDiffusionPipeline) -> Result<()> {
        self.free_vae(models)?;
        self.has_all_texts.store(true, Ordering::SeqCst);
        let encoders = models.text_encoders.lora_models(&models.unet);
        [encoders.text_encoder, encoders.text_encoder_2].into_iter().flatten().try_for_each(free)
    }

    /// Fails where the VAE has been freed.
    pub(super) fn check_vae(&self) -> Result<()> {
        check_not_freed(&self.has_all_pictures, "a picture")
    }

    /// Fails where the text encoders have been freed.
    pub(super) fn check_text_encoders(&self) -> Result<()> {
        check_not_freed(&self.has_all_texts, "a caption")
    }

    /// What the VAE makes of a picture that comes again, if it is known.
    ///
    /// # Errors
    /// When a file in the folder is damaged.
    pub(super) fn picture(
        &self,
        key: Option<u64>,
        pixel_values: &Tensor,
    ) -> Result<Option<DiagonalGaussianDistribution>> {
        let Some(key) = key else { return Ok(None) };
        let Some(folder) = &self.folder else { return Ok(lock(&self.pictures).get(&key).cloned()) };
        let Some(mut tensors) = folder.read(&folder.picture(pixel_values)?)? else { return Ok(None) };
        let parameters = tensors.remove("parameters");
        Ok(parameters.map(|parameters| DiagonalGaussianDistribution::new(&parameters)).transpose()?)
    }

    /// Keeps what the VAE makes of a picture, if it comes again.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn keep_picture(
        &self,
        key: Option<u64>,
        pixel_values: &Tensor,
        made: &DiagonalGaussianDistribution,
    ) -> Result<()> {
        let Some(key) = key else { return Ok(()) };
        let Some(folder) = &self.folder else {
            lock(&self.pictures).insert(key, made.clone());
            return Ok(());
        };
        let parameters = Tensor::cat(&[made.mean(), made.logvar()], 1)?;
        folder.write(&folder.picture(pixel_values)?, [("parameters".to_string(), parameters)].into())
    }

    /// What the text encoders make of a caption, if it is known.
    ///
    /// # Errors
    /// When a file in the folder is damaged.
    pub(super) fn text(&self, caption: &str) -> Result<Option<PromptEmbeds>> {
        if let Some(known) = lock(&self.texts).get(caption) {
            return Ok(Some(known.clone()));
        }
        let Some(folder) = &self.folder else { return Ok(None) };
        let Some(mut tensors) = folder.read(&folder.text(caption))? else { return Ok(None) };
        let pooled = tensors.remove("pooled").map(|prompt| PooledPromptEmbeds { prompt, negative: None });
        let embeds = tensors.remove("prompt").map(|prompt| PromptEmbeds { prompt, negative: None, pooled });
        Ok(embeds.inspect(|embeds| self.remember(caption, embeds)))
    }

    /// Keeps what the text encoders make of a caption.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn keep_text(&self, caption: &str, made: &PromptEmbeds) -> Result<()> {
        self.remember(caption, made);
        let Some(folder) = &self.folder else { return Ok(()) };
        let mut tensors = BTreeMap::from([("prompt".to_string(), made.prompt.clone())]);
        tensors.extend(made.pooled.as_ref().map(|pooled| ("pooled".to_string(), pooled.prompt.clone())));
        folder.write(&folder.text(caption), tensors)
    }

    /// Captions are often the same for many pictures.
    fn remember(&self, caption: &str, made: &PromptEmbeds) {
        lock(&self.texts).insert(caption.to_string(), made.clone());
    }
}

impl Folder {
    fn picture(&self, pixel_values: &Tensor) -> Result<PathBuf> {
        let mut digest = Sha256::new();
        digest.update(&self.vae);
        digest.update(self::digest(&[pixel_values])?);
        Ok(self.path.join(format!("picture-{}.safetensors", hexadecimal(&digest.finalize()))))
    }

    fn text(&self, caption: &str) -> PathBuf {
        let mut digest = Sha256::new();
        digest.update(&self.text_encoders);
        digest.update(caption);
        self.path.join(format!("text-{}.safetensors", hexadecimal(&digest.finalize())))
    }

    fn read(&self, path: &Path) -> Result<Option<HashMap<String, Tensor>>> {
        if !path.is_file() {
            return Ok(None);
        }
        let tensors = candle_core::safetensors::load(path, &self.device).map_err(|error| Error::File {
            file: path.display().to_string(),
            problem: format!("is damaged ({error}); remove it"),
        })?;
        Ok(Some(tensors))
    }

    fn write(&self, path: &Path, tensors: BTreeMap<String, Tensor>) -> Result<()> {
        let on_cpu = |(name, tensor): (String, Tensor)| Ok((name, tensor.to_device(&Device::Cpu)?));
        let tensors = tensors.into_iter().map(on_cpu).collect::<Result<BTreeMap<_, _>>>()?;
        save_tensors(path, &tensors, [("format".to_string(), "pt".to_string())])
    }
}

/// Leaves nothing of a model's weights.
fn free(model: &dyn Layers) -> Result<()> {
    for (_, layer) in model.layers() {
        // All of it is one number in memory.
        let nothing = Tensor::zeros((), layer.dtype(), &layer.device())?;
        layer.replace_weight(nothing.broadcast_as(layer.shape())?)?;
    }
    Ok(())
}

fn check_not_freed(is_freed: &AtomicBool, what: &str) -> Result<()> {
    if !is_freed.load(Ordering::SeqCst) {
        return Ok(());
    }
    let (field, expected) = ("encoded", "everything that comes, before the encoders are freed".to_string());
    Err(Error::Field { field, found: format!("without {what}"), expected })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of shapes, dtypes and values.
fn digest(tensors: &[&Tensor]) -> Result<Vec<u8>> {
    let mut digest = Sha256::new();
    for tensor in tensors {
        digest.update(format!("{:?} {:?}", tensor.dtype(), tensor.dims()));
        let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        values.iter().for_each(|value| digest.update(value.to_le_bytes()));
    }
    Ok(digest.finalize().to_vec())
}

/// What the words are known by that were added to the models, none of which is in the text that text encoders are known by; nothing where there are none.
fn added_words(models: &StableDiffusionPipeline) -> Result<Vec<u8>> {
    let encoders: Vec<(&ClipTokenizer, &ClipTextModel)> = match &models.text_encoders {
        TextEncoders::Clip(clip) => vec![(&clip.tokenizer, &clip.text_encoder)],
        TextEncoders::Xl(encoders) => {
            let first = encoders.first.iter().map(|clip| (&clip.tokenizer, &clip.text_encoder));
            let second = &encoders.second;
            first.chain([(&second.tokenizer, second.text_encoder.text_model())]).collect()
        }
    };
    let mut known_by = Vec::new();
    for (tokenizer, text_encoder) in encoders {
        let words = tokenizer.loaded_tokens();
        if words.is_empty() {
            continue;
        }
        let ids: Vec<u32> = words.iter().filter_map(|word| tokenizer.token_to_id(word)).collect();
        known_by.extend(Sha256::digest(format!("{words:?}")));
        known_by.extend(digest(&[&text_encoder.token_embeddings(&ids)?])?);
    }
    Ok(known_by)
}

fn hexadecimal(bytes: &[u8]) -> String {
    // Half of it is more than enough to tell all pictures apart.
    bytes[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}
