//! The loss that teaches Stable Diffusion pictures with captions (diffusers' `examples/text_to_image/train_text_to_image_lora.py`,
//! `train_text_to_image.py` and, with prior preservation, `examples/dreambooth`). Which of the models' weights it trains is whichever are
//! variables: a LoRA's, or the models' own.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::{DType, Tensor};
use candle_diffusers_models::{DiagonalGaussianDistribution, TextTime, UNetConditions};
use candle_diffusers_pipelines::{PromptEmbeds, StableDiffusionPipeline, TextToImage, scale_latents};
use candle_diffusers_schedulers::{NoiseSource, Scheduler, TorchGenerator, scheduler_from_other};

use crate::error::{Error, Result};
use crate::loss::{LossOptions, loss};
use crate::loss_mask::loss_mask;
use crate::loss_weights::{LossWeighting, loss_weights};
use crate::noise::{NoiseOptions, draw_noise, draw_timesteps};
use crate::targets::training_target;

/// How the loss is computed; the default is that of diffusers' scripts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DenoisingOptions {
    /// What is done to the noise.
    pub noise: NoiseOptions,
    /// How timesteps are weighed.
    pub weighting: LossWeighting,
    /// How much the pictures of the class count (DreamBooth), which are then the second half of each batch.
    pub prior_loss_weight: Option<f64>,
    /// The share of captions that are left out, so that the model also learns what guidance leads away from.
    pub caption_dropout: f64,
    /// Text encoders are trained too, so that no embedding is kept.
    pub train_text_encoder: bool,
}

/// A picture and what it shows.
#[derive(Clone, Debug)]
pub struct Example {
    /// `(3, height, width)`, from -1 to 1.
    pub pixel_values: Tensor,
    /// What the picture shows.
    pub caption: String,
    /// What Stable Diffusion XL is told: height and width of the file's picture, where the crop begins (top, left).
    pub original_size: (u32, u32),
    /// See `original_size`.
    pub crop_top_left: (u32, u32),
    /// Where the same pixels come again under the same number, what the VAE makes of them is kept.
    pub key: Option<u64>,
}

/// What computes losses.
pub struct Denoising<'a> {
    models: &'a StableDiffusionPipeline,
    scheduler: Box<dyn Scheduler>,
    options: DenoisingOptions,
    /// The embeddings of captions that have come, where they stay what they are.
    texts: RefCell<HashMap<String, PromptEmbeds>>,
    /// What the VAE makes of pictures that come again as they are, by their keys.
    distributions: RefCell<HashMap<u64, DiagonalGaussianDistribution>>,
}

impl<'a> Denoising<'a> {
    /// For these models, with DDPM's noise by their scheduler's config.
    ///
    /// # Errors
    /// When an option is out of range, or the scheduler's config is none for DDPM.
    pub fn new(models: &'a StableDiffusionPipeline, options: DenoisingOptions) -> Result<Self> {
        if !(0.0..=1.0).contains(&options.caption_dropout) {
            let (found, expected) = (options.caption_dropout.to_string(), "0 to 1".to_string());
            return Err(Error::Field { field: "caption_dropout", found, expected });
        }
        let scheduler = scheduler_from_other("DDPMScheduler", &models.scheduler().config())?;
        Ok(Self { models, scheduler, options, texts: RefCell::default(), distributions: RefCell::default() })
    }

    /// The loss of a batch. Random numbers are drawn in the scripts' order: the latents', the noise's, the timesteps', then those of captions that are left
    /// out, if any are to be.
    ///
    /// # Errors
    /// When pictures are of different sizes, or a model fails.
    pub fn loss(&self, examples: &[Example], generator: &mut TorchGenerator) -> Result<Tensor> {
        self.loss_where(examples, None, generator)
    }

    /// [`loss`](Self::loss) where `mask` is, as in cloneofsimo's `lora_pti`: `(batch, 1, height, width)` for the pictures, 1 where they count and 0 where they do not;
    /// see [`loss_mask`] for the temperature, which is usually 1.
    ///
    /// # Errors
    /// Those of [`loss`](Self::loss), and when the mask has another shape.
    pub fn masked_loss(
        &self,
        examples: &[Example],
        mask: &Tensor,
        mask_temperature: f64,
        generator: &mut TorchGenerator,
    ) -> Result<Tensor> {
        self.loss_where(examples, Some((mask, mask_temperature)), generator)
    }

    fn loss_where(
        &self,
        examples: &[Example],
        mask: Option<(&Tensor, f64)>,
        generator: &mut TorchGenerator,
    ) -> Result<Tensor> {
        let Self { models, scheduler, options, .. } = self;
        let latents = self.latents(examples, generator)?;
        let noise = draw_noise(&latents, &options.noise, generator)?;
        let timesteps = draw_timesteps(examples.len(), scheduler.num_train_timesteps(), generator)?;
        let noisy = scheduler.add_noise(&latents, &noise.added, &timesteps)?;
        let text = self.text(examples, generator)?;
        let time_ids = time_ids(examples)?.to_device(&models.device)?.to_dtype(models.dtype)?;
        let pooled = text.pooled.as_ref().map(|pooled| &pooled.prompt);
        let added = pooled.map(|text_embeds| TextTime { text_embeds, time_ids: &time_ids });
        let conditions = UNetConditions { added, ..Default::default() };
        let prediction = models.unet.forward(&noisy, &timesteps, &text.prompt, conditions)?;
        let target = training_target(scheduler.as_ref(), &latents, &noise.target, &timesteps)?;
        let weights = loss_weights(scheduler.as_ref(), &timesteps, options.weighting)?;
        let (_, _, height, width) = prediction.dims4()?;
        let mask = mask.map(|(mask, temperature)| check_mask(mask, examples, height, width, temperature));
        let mask = mask.transpose()?;
        let loss_options = LossOptions {
            weights: weights.as_ref(),
            mask: mask.as_ref(),
            prior_loss_weight: options.prior_loss_weight,
        };
        loss(&prediction.to_dtype(DType::F32)?, &target.to_dtype(DType::F32)?, &loss_options)
    }

    /// One draw from what the VAE makes of each picture.
    fn latents(&self, examples: &[Example], generator: &mut TorchGenerator) -> Result<Tensor> {
        let Self { models, distributions, .. } = self;
        let encode = |example: &Example| -> Result<DiagonalGaussianDistribution> {
            let picture = example.pixel_values.unsqueeze(0)?.to_device(&models.device)?;
            Ok(models.vae.encode(&picture.to_dtype(models.vae.dtype())?)?)
        };
        let mut drawn = Vec::with_capacity(examples.len());
        for example in examples {
            let Some(key) = example.key else {
                drawn.push(encode(example)?);
                continue;
            };
            if !distributions.borrow().contains_key(&key) {
                let distribution = encode(example)?;
                distributions.borrow_mut().insert(key, distribution);
            }
            drawn.extend(distributions.borrow().get(&key).cloned());
        }
        let Some(first) = drawn.first() else {
            let expected = "at least one picture".to_string();
            return Err(Error::Shape { what: "batch", found: vec![0], expected });
        };
        let mut shape = first.mean().dims().to_vec();
        shape[0] = drawn.len();
        let noise = generator.randn(&shape, first.mean().dtype(), first.mean().device())?;
        let sample = |(i, distribution): (usize, &DiagonalGaussianDistribution)| -> Result<Tensor> {
            Ok(distribution.sample(&noise.narrow(0, i, 1)?)?)
        };
        let samples = drawn.iter().enumerate().map(sample).collect::<Result<Vec<_>>>()?;
        let latents = Tensor::cat(&samples, 0)?;
        Ok(scale_latents(models.vae.config(), &latents)?.to_dtype(models.dtype)?)
    }

    /// The captions' embeddings.
    fn text(&self, examples: &[Example], generator: &mut TorchGenerator) -> Result<PromptEmbeds> {
        let mut captions: Vec<&str> = examples.iter().map(|example| example.caption.as_str()).collect();
        if self.options.caption_dropout > 0.0 {
            let drawn = generator.rand(&[captions.len()], DType::F32, &candle_core::Device::Cpu)?;
            for (caption, drawn) in captions.iter_mut().zip(drawn.to_vec1::<f32>()?) {
                if f64::from(drawn) < self.options.caption_dropout {
                    *caption = "";
                }
            }
        }
        let encode = |captions: &[&str]| -> Result<PromptEmbeds> {
            let prompts = captions.iter().map(|caption| caption.to_string()).collect();
            // Without guidance there are no negative prompts.
            let request = TextToImage { prompts, guidance_scale: Some(1.0), ..Default::default() };
            Ok(self.models.encode_prompt(&request)?)
        };
        if self.options.train_text_encoder {
            return encode(&captions);
        }
        let mut texts = self.texts.borrow_mut();
        for caption in &captions {
            if !texts.contains_key(*caption) {
                texts.insert(caption.to_string(), encode(&[caption])?);
            }
        }
        let embeds: Vec<&PromptEmbeds> = captions.iter().filter_map(|caption| texts.get(*caption)).collect();
        Ok(PromptEmbeds::cat(&embeds)?)
    }
}

/// The weights that the masks of the pictures give to latents of `height` by `width`.
fn check_mask(
    mask: &Tensor,
    examples: &[Example],
    height: usize,
    width: usize,
    temperature: f64,
) -> Result<Tensor> {
    if mask.dims().first() != Some(&examples.len()) {
        let expected = format!("({}, 1, height, width), one for each picture", examples.len());
        return Err(Error::Shape { what: "mask", found: mask.dims().to_vec(), expected });
    }
    loss_mask(mask, height, width, temperature)
}

/// What Stable Diffusion XL is told of the pictures, `(batch, 6)`: the sizes of the files' pictures, where the crops begin, and the sizes of the crops.
fn time_ids(examples: &[Example]) -> Result<Tensor> {
    let mut rows = Vec::new();
    for example in examples {
        let (_, height, width) = example.pixel_values.dims3()?;
        let (original, crop) = (example.original_size, example.crop_top_left);
        rows.extend(
            [original.0, original.1, crop.0, crop.1, height as u32, width as u32].map(|side| side as f32),
        );
    }
    Ok(Tensor::from_vec(rows, (examples.len(), 6), &candle_core::Device::Cpu)?)
}
