//! The loss that teaches Stable Diffusion pictures with captions (diffusers' `examples/text_to_image/train_text_to_image_lora.py`,
//! `train_text_to_image.py` and, with prior preservation, `examples/dreambooth`). Which of the models' weights it trains is whichever are
//! variables: a LoRA's, or the models' own.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use candle_diffusers_models::{DiagonalGaussianDistribution, TextTime, UNetConditions};
use candle_diffusers_pipelines::{
    PooledPromptEmbeds, PromptEmbeds, StableDiffusionPipeline, TextToImage, scale_latents,
};
use candle_diffusers_schedulers::{Scheduler, TorchGenerator, scheduler_from_other};

use super::Encoded;
use super::area_mask::area_weights;
use super::inpainting::{masked_picture, random_masks};
use crate::dataset::Area;
use crate::error::{Error, Result};
use crate::loss::{LossOptions, loss};
use crate::loss_mask::loss_mask_of_share;
use crate::loss_weights::{LossWeighting, loss_weights};
use crate::noise::{NoiseOptions, draw_noise, draw_timesteps, drawn_timesteps};
use crate::processes::RandomSource;
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
    /// What has been made of captions that come again, and of pictures with a [key](Example::key): for all that is computed with these options and clones of them.
    pub encoded: Arc<Encoded>,
    /// The first of the other pictures of each example is a mask, by which its loss is weighed at this temperature: see [`masked_loss`](Denoising::masked_loss).
    /// As in cloneofsimo's lora what is black, which becomes 0.5, counts less than what is white, which becomes 1.5: a ninth as much at a temperature of 1, less at a higher one.
    pub mask_temperature: Option<f64>,
    /// What the draw from what the VAE makes of each picture follows from, with its [key](Example::key), so that it is the same each time (`cached_latents` of cloneofsimo's
    /// lora); where nothing is said, each time is another draw.
    pub latents_seed: Option<u64>,
    /// The share of timesteps, from the first, that are drawn from; all where nothing is said. cloneofsimo's `lora_pti` has 0.8 for a LoRA (its `t_mutliplier`).
    pub t_multiplier: Option<f64>,
    /// Less memory for more time: see [`gradient_checkpointing`](candle_diffusers_models::gradient_checkpointing). This is the UNet's and a ControlNet's; text encoders have
    /// [`TextEncoders::set_gradient_checkpointing`](candle_diffusers_pipelines::TextEncoders::set_gradient_checkpointing).
    pub gradient_checkpointing: bool,
}

/// How many numbers of pictures the VAE is given at once: those of one picture of 512 by 512, so that several need no more memory than one.
const ENCODED_TOGETHER: usize = 3 * 512 * 512;

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
    /// More pictures that belong to it, `(3, height, width)`, from 0 to 1: its mask, what a ControlNet sees, or what an edit began with.
    pub others: Vec<Tensor>,
    /// Where the whole picture is, if it is smaller than `pixel_values` or its edges are not to count: Custom Diffusion learns from what is within alone.
    pub area: Option<Area>,
}

/// What computes losses.
pub struct Denoising<'a> {
    models: &'a StableDiffusionPipeline,
    scheduler: Box<dyn Scheduler>,
    options: DenoisingOptions,
    /// Below which timesteps are drawn.
    timesteps: usize,
    /// The UNet was made to paint into pictures: it sees a mask and the rest of the picture besides.
    paints_into: bool,
}

impl<'a> Denoising<'a> {
    /// For these models, with DDPM's noise by their scheduler's config. A UNet that paints into pictures (9 channels) is shown each with a part left out at random.
    ///
    /// # Errors
    /// When an option is out of range, the scheduler's config is none for DDPM, or the UNet is for something else.
    pub fn new(models: &'a StableDiffusionPipeline, options: DenoisingOptions) -> Result<Self> {
        let (found, latents) = (models.unet.config().in_channels, models.vae.config().latent_channels);
        let paints_into = found == 2 * latents + 1;
        if found != latents && !paints_into {
            let expected = format!("{latents}, to paint, or {}, to paint into pictures", 2 * latents + 1);
            return Err(channels_error(found, expected));
        }
        Ok(Self { paints_into, ..Self::for_any_unet(models, options)? })
    }

    /// For a recipe that shows the UNet more than latents by itself.
    pub(super) fn for_any_unet(
        models: &'a StableDiffusionPipeline,
        options: DenoisingOptions,
    ) -> Result<Self> {
        if !(0.0..=1.0).contains(&options.caption_dropout) {
            let (found, expected) = (options.caption_dropout.to_string(), "0 to 1".to_string());
            return Err(Error::Field { field: "caption_dropout", found, expected });
        }
        let scheduler = scheduler_from_other("DDPMScheduler", &models.scheduler().config())?;
        let timesteps = drawn_timesteps(scheduler.num_train_timesteps(), options.t_multiplier)?;
        Ok(Self { models, scheduler, options, timesteps, paints_into: false })
    }

    /// Makes of pictures with a [key](Example::key) and of captions what [`loss`](Self::loss) keeps of them, before they come.
    ///
    /// # Errors
    /// When a model fails, or what was made cannot be written.
    pub fn encode_ahead(&self, examples: &[Example]) -> Result<()> {
        self.encode_kept(examples)?;
        if self.options.train_text_encoder || examples.is_empty() {
            return Ok(());
        }
        let mut captions: Vec<&str> = examples.iter().map(|example| example.caption.as_str()).collect();
        if self.options.caption_dropout > 0.0 {
            captions.push("");
        }
        self.embeds(&captions)?;
        Ok(())
    }

    /// The loss of a batch. Random numbers are drawn in the scripts' order: those of masks and the latents', of masked pictures where there are such, the noise's, the
    /// timesteps', then those of captions that are left out, if any are to be.
    ///
    /// # Errors
    /// When pictures are of different sizes, or a model fails.
    pub fn loss(&self, examples: &[Example], generator: &mut dyn RandomSource) -> Result<Tensor> {
        let Some(temperature) = self.options.mask_temperature else {
            return self.loss_where(examples, None, generator);
        };
        let mask = masks(examples, self.options.prior_loss_weight.is_some())?;
        self.loss_where(examples, Some((&mask, temperature)), generator)
    }

    /// [`loss`](Self::loss) where `mask` is, as in cloneofsimo's `lora_pti`: `(batch, 1, height, width)` for the pictures, 0 where they do not count and the more the more they do;
    /// see [`loss_mask`](crate::loss_mask) for the temperature, which is usually 1.
    ///
    /// # Errors
    /// Those of [`loss`](Self::loss), and when the mask has another shape.
    pub fn masked_loss(
        &self,
        examples: &[Example],
        mask: &Tensor,
        mask_temperature: f64,
        generator: &mut dyn RandomSource,
    ) -> Result<Tensor> {
        self.loss_where(examples, Some((mask, mask_temperature)), generator)
    }

    fn loss_where(
        &self,
        examples: &[Example],
        mask: Option<(&Tensor, f64)>,
        generator: &mut dyn RandomSource,
    ) -> Result<Tensor> {
        let (prediction, noised) = self.predict(examples, generator)?;
        let mask =
            mask.map(|(mask, temperature)| self.mask_weights(&prediction, mask, temperature, generator));
        self.compare(&prediction, &noised, mask.transpose()?.as_ref())
    }

    /// What the UNet predicts of a batch, and what was done to the batch. Random numbers are drawn in the order of [`loss`](Self::loss).
    pub(super) fn predict(
        &self,
        examples: &[Example],
        generator: &mut dyn RandomSource,
    ) -> Result<(Tensor, Noised)> {
        let masks = self.paints_into.then(|| random_masks(examples, generator)).transpose()?;
        let latents = self.latents(examples, generator)?;
        let seen = masks.map(|masks| self.seen_besides(examples, &masks, generator)).transpose()?;
        let noised = self.add_noise(latents, generator)?;
        let told = self.told(examples, generator)?;
        let input = match seen {
            Some(seen) => Tensor::cat(&[&noised.noisy, &seen], 1)?,
            None => noised.noisy.clone(),
        };
        let unet = &self.models.unet;
        let prediction = unet.forward(&input, &noised.timesteps, &told.text.prompt, told.conditions())?;
        Ok((prediction, noised))
    }

    /// How much each place of what was predicted counts by the masks that come with the pictures, `(batch, 1, height, width)` of latents; none where none come.
    pub(super) fn own_mask_weights(
        &self,
        prediction: &Tensor,
        examples: &[Example],
        generator: &mut dyn RandomSource,
    ) -> Result<Option<Tensor>> {
        let Some(temperature) = self.options.mask_temperature else { return Ok(None) };
        let mask = masks(examples, self.options.prior_loss_weight.is_some())?;
        self.mask_weights(prediction, &mask, temperature, generator).map(Some)
    }

    /// How much each place of what was predicted counts.
    fn mask_weights(
        &self,
        prediction: &Tensor,
        mask: &Tensor,
        temperature: f64,
        generator: &mut dyn RandomSource,
    ) -> Result<Tensor> {
        let (pictures, _, height, width) = prediction.dims4()?;
        check_mask(mask, pictures, self.options.prior_loss_weight.is_some())?;
        loss_mask_of_share(mask, height, width, temperature, |own| generator.largest(own))
    }

    /// What a UNet sees that paints into pictures: the masks as small as latents, and latents of what the masks leave.
    fn seen_besides(
        &self,
        examples: &[Example],
        masks: &Tensor,
        generator: &mut dyn RandomSource,
    ) -> Result<Tensor> {
        let mut distributions = Vec::with_capacity(examples.len());
        for (index, example) in examples.iter().enumerate() {
            let left = masked_picture(&example.pixel_values, &masks.get(index)?)?;
            distributions.push(self.distribution(None, &left)?);
        }
        let latents = self.draw(&distributions, generator)?;
        let (_, _, height, width) = latents.dims4()?;
        let masks = masks.upsample_nearest2d(height, width)?.to_device(latents.device())?;
        Ok(Tensor::cat(&[&masks.to_dtype(latents.dtype())?, &latents], 1)?)
    }

    /// Gives latents noise, each of a timestep of its own.
    pub(super) fn add_noise(&self, latents: Tensor, generator: &mut dyn RandomSource) -> Result<Noised> {
        let Self { scheduler, options, .. } = self;
        let noise = draw_noise(&latents, &options.noise, generator)?;
        let timesteps = draw_timesteps(latents.dims()[0], self.timesteps, generator)?;
        let noisy = scheduler.add_noise(&latents, &noise.added, &timesteps)?;
        Ok(Noised { latents, noise: noise.target, timesteps, noisy })
    }

    /// What the models are told of the pictures.
    pub(super) fn told(&self, examples: &[Example], generator: &mut dyn RandomSource) -> Result<Told> {
        let text = self.text(examples, generator)?;
        let time_ids = time_ids(examples)?.to_device(&self.models.device)?.to_dtype(self.models.dtype)?;
        Ok(Told { text, time_ids, gradient_checkpointing: self.options.gradient_checkpointing })
    }

    /// The loss of what was predicted for latents with noise, where `mask` says how much each place counts.
    pub(super) fn compare(
        &self,
        prediction: &Tensor,
        noised: &Noised,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let weights = self.weights(noised)?;
        self.weighed_loss(prediction, noised, weights.as_ref(), mask)
    }

    /// The same where of each picture but those of the class only the latents count at which `areas` is 1; it is 0 elsewhere. `areas` and `mask`, where there is one, are
    /// `(batch, 1, height, width)` of latents, and only of pictures that are not of the class.
    pub(super) fn compare_areas(
        &self,
        prediction: &Tensor,
        noised: &Noised,
        areas: &Tensor,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mask = match mask {
            Some(mask) => (mask.to_device(areas.device())? * areas)?,
            None => areas.clone(),
        };
        let areas = area_weights(areas)?;
        let weights = match self.weights(noised)? {
            Some(weights) => (weights.narrow(0, 0, areas.dims1()?)? * areas)?,
            None => areas,
        };
        self.weighed_loss(prediction, noised, Some(&weights), Some(&mask))
    }

    /// How much the timestep of each picture counts; none where all count the same.
    fn weights(&self, noised: &Noised) -> Result<Option<Tensor>> {
        loss_weights(self.scheduler.as_ref(), &noised.timesteps, self.options.weighting)
    }

    fn weighed_loss(
        &self,
        prediction: &Tensor,
        noised: &Noised,
        weights: Option<&Tensor>,
        mask: Option<&Tensor>,
    ) -> Result<Tensor> {
        let Noised { latents, noise, timesteps, .. } = noised;
        let target = training_target(self.scheduler.as_ref(), latents, noise, timesteps)?;
        let options = LossOptions { weights, mask, prior_loss_weight: self.options.prior_loss_weight };
        loss(&prediction.to_dtype(DType::F32)?, &target.to_dtype(DType::F32)?, &options)
    }

    /// One draw from what the VAE makes of each picture.
    pub(super) fn latents(&self, examples: &[Example], generator: &mut dyn RandomSource) -> Result<Tensor> {
        self.encode_kept(examples)?;
        let distribution = |example: &Example| self.distribution(example.key, &example.pixel_values);
        let distributions = examples.iter().map(distribution).collect::<Result<Vec<_>>>()?;
        match self.options.latents_seed {
            Some(seed) => self.draw_alike(examples, &distributions, seed),
            None => self.draw(&distributions, generator),
        }
    }

    /// One draw from each, which follows from the seed and the picture alone.
    fn draw_alike(
        &self,
        examples: &[Example],
        distributions: &[DiagonalGaussianDistribution],
        seed: u64,
    ) -> Result<Tensor> {
        let draw = |(example, distribution): (&Example, &DiagonalGaussianDistribution)| {
            let Some(key) = example.key else {
                let expected = "a number for each picture, under which it comes again".to_string();
                return Err(Error::Field { field: "key", found: "missing".to_string(), expected });
            };
            let seed = seed ^ key.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.draw(std::slice::from_ref(distribution), &mut TorchGenerator::new(seed))
        };
        let latents = examples.iter().zip(distributions).map(draw).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&latents, 0)?)
    }

    /// What the VAE makes of a picture from -1 to 1; where that comes again, of its first time.
    pub(super) fn distribution(
        &self,
        key: Option<u64>,
        pixel_values: &Tensor,
    ) -> Result<DiagonalGaussianDistribution> {
        if let Some(kept) = self.options.encoded.picture(key, pixel_values)? {
            return Ok(kept);
        }
        let distribution = self.encode(&[pixel_values])?;
        self.options.encoded.keep_picture(key, pixel_values, &distribution)?;
        Ok(distribution)
    }

    /// One draw from each, scaled as the UNet sees latents.
    pub(super) fn draw(
        &self,
        distributions: &[DiagonalGaussianDistribution],
        generator: &mut dyn RandomSource,
    ) -> Result<Tensor> {
        let Some(first) = distributions.first() else {
            let expected = "at least one picture".to_string();
            return Err(Error::Shape { what: "batch", found: vec![0], expected });
        };
        let mut shape = first.mean().dims().to_vec();
        shape[0] = distributions.len();
        let noise = generator.randn(&shape, first.mean().dtype(), first.mean().device())?;
        let sample = |(i, distribution): (usize, &DiagonalGaussianDistribution)| -> Result<Tensor> {
            Ok(distribution.sample(&noise.narrow(0, i, 1)?)?)
        };
        let samples = distributions.iter().enumerate().map(sample).collect::<Result<Vec<_>>>()?;
        let latents = Tensor::cat(&samples, 0)?;
        Ok(scale_latents(self.models.vae.config(), &latents)?.to_dtype(self.models.dtype)?)
    }

    /// What the VAE makes of pictures of one size.
    fn encode(&self, pictures: &[&Tensor]) -> Result<DiagonalGaussianDistribution> {
        self.options.encoded.check_vae()?;
        let (vae, device) = (&self.models.vae, &self.models.device);
        let pictures = Tensor::stack(pictures, 0)?.to_device(device)?;
        Ok(vae.encode(&pictures.to_dtype(vae.dtype())?)?)
    }

    /// Encodes the pictures that come again and are not known yet; small ones together.
    fn encode_kept(&self, examples: &[Example]) -> Result<()> {
        let encoded = &self.options.encoded;
        let mut unknown: Vec<(u64, &Tensor)> = Vec::new();
        for example in examples {
            let Some(key) = example.key else { continue };
            let is_new = unknown.iter().all(|(other, _)| *other != key);
            if is_new && encoded.picture(Some(key), &example.pixel_values)?.is_none() {
                unknown.push((key, &example.pixel_values));
            }
        }
        while let Some((_, first)) = unknown.first() {
            let together = (ENCODED_TOGETHER / first.elem_count().max(1)).max(1);
            let same =
                unknown.iter().take(together).take_while(|(_, picture)| picture.dims() == first.dims());
            let pictures: Vec<&Tensor> = same.map(|(_, picture)| *picture).collect();
            let made = self.encode(&pictures)?;
            for (i, (key, picture)) in unknown.drain(..pictures.len()).enumerate() {
                encoded.keep_picture(Some(key), picture, &made.get(i)?)?;
            }
        }
        Ok(())
    }

    /// The captions' embeddings.
    fn text(&self, examples: &[Example], generator: &mut dyn RandomSource) -> Result<PromptEmbeds> {
        let mut captions: Vec<&str> = examples.iter().map(|example| example.caption.as_str()).collect();
        if self.options.caption_dropout > 0.0 {
            let drawn = generator.rand(&[captions.len()], DType::F32, &candle_core::Device::Cpu)?;
            for (caption, drawn) in captions.iter_mut().zip(drawn.to_vec1::<f32>()?) {
                if f64::from(drawn) < self.options.caption_dropout {
                    *caption = "";
                }
            }
        }
        self.embeds(&captions)
    }

    /// The embeddings of texts.
    pub(super) fn embeds(&self, captions: &[&str]) -> Result<PromptEmbeds> {
        let encode = |captions: &[&str]| -> Result<PromptEmbeds> {
            let prompts = captions.iter().map(|caption| caption.to_string()).collect();
            // Without guidance there are no negative prompts.
            let request = TextToImage { prompts, guidance_scale: Some(1.0), ..Default::default() };
            Ok(self.models.encode_prompt(&request)?)
        };
        if self.options.train_text_encoder {
            return encode(captions);
        }
        let known = |caption: &&str| match self.options.encoded.text(caption)? {
            Some(known) => Ok(known),
            None => {
                self.options.encoded.check_text_encoders()?;
                let made = detached(encode(&[caption])?);
                self.options.encoded.keep_text(caption, &made)?;
                Ok(made)
            }
        };
        let embeds = captions.iter().map(known).collect::<Result<Vec<_>>>()?;
        let embeds: Vec<&PromptEmbeds> = embeds.iter().collect();
        Ok(PromptEmbeds::cat(&embeds)?)
    }
}

/// Embeddings by themselves: what is kept holds nothing of the text encoder, and no gradient is sought there, for a word that was learned before is a variable still.
fn detached(embeds: PromptEmbeds) -> PromptEmbeds {
    let detach = |tensor: Option<Tensor>| tensor.map(|tensor| tensor.detach());
    let pooled = |pooled: PooledPromptEmbeds| PooledPromptEmbeds {
        prompt: pooled.prompt.detach(),
        negative: detach(pooled.negative),
    };
    PromptEmbeds {
        prompt: embeds.prompt.detach(),
        negative: detach(embeds.negative),
        pooled: embeds.pooled.map(pooled),
    }
}

/// Latents with noise, and what is to be found in them.
pub(super) struct Noised {
    latents: Tensor,
    noise: Tensor,
    pub(super) timesteps: Vec<f64>,
    /// `(batch, channels, height, width)`.
    pub(super) noisy: Tensor,
}

pub(super) fn channels_error(found: usize, expected: String) -> Error {
    Error::Field { field: "in_channels of the UNet", found: found.to_string(), expected }
}

/// What models are told of a batch.
pub(super) struct Told {
    pub(super) text: PromptEmbeds,
    time_ids: Tensor,
    gradient_checkpointing: bool,
}

impl Told {
    pub(super) fn conditions(&self) -> UNetConditions<'_> {
        let pooled = self.text.pooled.as_ref().map(|pooled| &pooled.prompt);
        let added = pooled.map(|text_embeds| TextTime { text_embeds, time_ids: &self.time_ids });
        let gradient_checkpointing = self.gradient_checkpointing;
        UNetConditions { added, gradient_checkpointing, ..Default::default() }
    }
}

/// The pictures at `place` among the others of each example: `(batch, 3, height, width)`, from 0 to 1.
pub(super) fn other_pictures(examples: &[Example], place: usize) -> Result<Tensor> {
    let pictures: Vec<&Tensor> = examples.iter().filter_map(|example| example.others.get(place)).collect();
    if pictures.len() != examples.len() || pictures.is_empty() {
        let expected = format!("{}, one for each example", examples.len());
        return Err(Error::Field { field: "others", found: pictures.len().to_string(), expected });
    }
    Ok(Tensor::stack(&pictures, 0)?)
}

/// What cloneofsimo's `lora_diffusion/dataset.py` makes of black in the picture of a mask; of white it makes 1 more.
const BLACK_OF_MASKS: f64 = 0.5;

/// The masks of the pictures, `(batch, 1, height, width)`, of whose pictures all channels are the same; those of the class have none.
fn masks(examples: &[Example], has_class: bool) -> Result<Tensor> {
    let own = if has_class { examples.len() / 2 } else { examples.len() };
    let pictures = other_pictures(&examples[..own], 0)?.narrow(1, 0, 1)?.contiguous()?;
    Ok((pictures + BLACK_OF_MASKS)?)
}

/// Whether there is a mask for each picture; those of the class, the second half, need none.
fn check_mask(mask: &Tensor, pictures: usize, has_class: bool) -> Result<()> {
    let masks = mask.dims().first().copied().unwrap_or(0);
    if masks == pictures || (has_class && masks * 2 == pictures) {
        return Ok(());
    }
    let expected = format!("({pictures}, 1, height, width), one for each picture");
    Err(Error::Shape { what: "mask", found: mask.dims().to_vec(), expected })
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
