//! InstructPix2Pix (Brooks et al., 2022, <https://arxiv.org/abs/2211.09800>; diffusers' `examples/instruct_pix2pix/train_instruct_pix2pix.py`): a model that paints
//! learns to edit pictures by instructions. Its UNet sees the picture to edit besides.

use std::cell::RefCell;

use candle_core::{DType, Device, Shape, Tensor};
use candle_diffusers_loaders::{LoadOptions, Repository, load_component};
use candle_diffusers_models::{
    AutoencoderKLConfig, DiagonalGaussianDistribution, UNet2DConditionConfig, UNet2DConditionModel,
};
use candle_diffusers_pipelines::{StableDiffusionPipeline, normalize};
use candle_diffusers_schedulers::TorchGenerator;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use serde_json::Value;

use super::denoising::{channels_error, other_pictures};
use super::{Denoising, DenoisingOptions, Example};
use crate::error::{Error, Result};
use crate::processes::{BatchShare, RandomSource, ShareOfRandom};
use crate::whole_models::{WholeModel, as_variables};

/// The UNet of a repository, to be trained to edit: one that sees latents alone gets as many channels again for the picture's, with zeros for weights; one that edits
/// already is taken as it is. With its config, as it is then.
///
/// The script gives the first convolution a random bias, which the model then has to unlearn; here it stays what it was.
///
/// # Errors
/// When it cannot be loaded, or is for something else.
pub fn trainable_edit_unet(
    repository: &Repository,
    options: &LoadOptions,
) -> Result<(WholeModel<UNet2DConditionModel>, Value)> {
    let vae = AutoencoderKLConfig::from_json(&repository.read_json("vae/config.json")?)?;
    let mut config: Value = repository.read_json("unet/config.json")?;
    let (found, latents) = (UNet2DConditionConfig::from_json(&config)?.in_channels, vae.latent_channels);
    if found != latents && found != 2 * latents {
        return Err(channels_error(found, format!("{latents}, to learn to edit, or {}", 2 * latents)));
    }
    config["in_channels"] = (2 * latents).into();
    let whole = load_component(repository, "unet", options, |_, unet| {
        let (dtype, device) = (unet.dtype(), unet.device().clone());
        let weights = Widened { unet, channels: found };
        let weights = VarBuilder::from_backend(Box::new(weights), dtype, device);
        as_variables("unet", weights, options, |weights| {
            Ok::<_, Error>(UNet2DConditionModel::new(&UNet2DConditionConfig::from_json(&config)?, weights)?)
        })
    })?;
    Ok((whole, config))
}

/// How the loss is computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstructPix2PixOptions {
    /// What is as in all recipes.
    pub denoising: DenoisingOptions,
    /// Of this share of all pictures the instruction is left out, of as many the picture, and of as many both (0.05 is usual), so that guidance has something to lead
    /// away from.
    pub conditioning_dropout_prob: Option<f64>,
    /// What is left out follows from it, by random numbers of its own.
    pub seed: u64,
    /// Which part of whole batches comes here; by default all.
    pub share: BatchShare,
}

/// What computes losses.
pub struct InstructPix2PixDenoising<'a> {
    denoising: Denoising<'a>,
    models: &'a StableDiffusionPipeline,
    conditioning_dropout_prob: Option<f64>,
    dropout: RefCell<TorchGenerator>,
    share: BatchShare,
}

impl<'a> InstructPix2PixDenoising<'a> {
    /// For models whose UNet is one to edit with ([`trainable_edit_unet`]), in a run that has seen `seen` pictures already, in
    /// whole batches.
    ///
    /// # Errors
    /// When an option is out of range, or the UNet is another.
    pub fn new(
        models: &'a StableDiffusionPipeline,
        options: InstructPix2PixOptions,
        seen: usize,
    ) -> Result<Self> {
        let InstructPix2PixOptions { denoising, conditioning_dropout_prob, seed, share } = options;
        let (found, expected) = (models.unet.config().in_channels, 2 * models.vae.config().latent_channels);
        if found != expected {
            return Err(channels_error(found, expected.to_string()));
        }
        if let Some(share) = conditioning_dropout_prob
            && !(0.0..=1.0 / 3.0).contains(&share)
        {
            let (found, expected) = (share.to_string(), "0 to a third".to_string());
            return Err(Error::Field { field: "conditioning_dropout_prob", found, expected });
        }
        let mut dropout = TorchGenerator::new(seed);
        if seen > 0 {
            draw(&mut dropout, seen)?;
        }
        let denoising = Denoising::for_any_unet(models, denoising)?;
        Ok(Self { denoising, models, conditioning_dropout_prob, dropout: RefCell::new(dropout), share })
    }

    /// Makes of pictures with a [key](Example::key), of those that they begin with and of captions what [`loss`](Self::loss) keeps of them, before they come.
    ///
    /// # Errors
    /// When a model fails, what was made cannot be written, or an example has no picture to begin with.
    pub fn encode_ahead(&self, examples: &[Example]) -> Result<()> {
        self.denoising.encode_ahead(examples)?;
        for example in examples {
            let original = normalize(&other_pictures(std::slice::from_ref(example), 0)?)?;
            self.original(example, &original.get(0)?)?;
        }
        if self.conditioning_dropout_prob.is_some() {
            self.denoising.embeds(&[""])?;
        }
        Ok(())
    }

    /// What the VAE makes of the picture that an example begins with.
    fn original(&self, example: &Example, original: &Tensor) -> Result<DiagonalGaussianDistribution> {
        self.denoising.distribution(example.key.map(|key| key | ORIGINAL), original)
    }

    /// The loss of a batch: captions are instructions, the pictures what they lead to, and the first of each example's `others` what they begin with.
    ///
    /// # Errors
    /// Those of [`Denoising::loss`], and when an example has no picture to begin with, or one of another size.
    pub fn loss(&self, examples: &[Example], generator: &mut dyn RandomSource) -> Result<Tensor> {
        let Self { denoising, models, .. } = self;
        let originals = normalize(&other_pictures(examples, 0)?)?;
        let latents = denoising.latents(examples, generator)?;
        let noised = denoising.add_noise(latents, generator)?;
        let mut examples = examples.to_vec();
        let mut seen = Vec::with_capacity(examples.len());
        for (index, example) in examples.iter().enumerate() {
            // Not scaled, as the pipelines give them too.
            seen.push(self.original(example, &originals.get(index)?)?.mode().clone());
        }
        if let Some(share) = self.conditioning_dropout_prob {
            let generator = &mut *self.dropout.borrow_mut();
            let drawn = draw(&mut ShareOfRandom { generator, share: self.share }, examples.len())?;
            for ((example, seen), drawn) in examples.iter_mut().zip(&mut seen).zip(drawn) {
                if drawn < (2.0 * share) as f32 {
                    example.caption.clear();
                }
                if drawn >= share as f32 && drawn < (3.0 * share) as f32 {
                    *seen = seen.zeros_like()?;
                }
            }
        }
        let told = denoising.told(&examples, generator)?;
        let seen = Tensor::cat(&seen, 0)?.to_dtype(models.dtype)?;
        let input = Tensor::cat(&[&noised.noisy, &seen], 1)?;
        let prediction =
            models.unet.forward(&input, &noised.timesteps, &told.text.prompt, told.conditions())?;
        denoising.compare(&prediction, &noised, None)
    }
}

/// Marks the numbers of pictures that edits begin with.
const ORIGINAL: u64 = 1 << 63;

fn draw(generator: &mut dyn RandomSource, count: usize) -> Result<Vec<f32>> {
    Ok(generator.rand(&[count], DType::F32, &Device::Cpu)?.to_vec1()?)
}

/// A UNet's weights, the first convolution's with zeros for what they lack.
struct Widened {
    unet: VarBuilder<'static>,
    /// That the first convolution has.
    channels: usize,
}

impl SimpleBackend for Widened {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        hints: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let dims = shape.dims();
        if name != "conv_in.weight" || dims.len() != 4 || dims[1] <= self.channels {
            return self.unet.get_with_hints_dtype(shape, name, hints, dtype);
        }
        let own = (dims[0], self.channels, dims[2], dims[3]);
        let own = self.unet.get_with_hints_dtype(own, name, hints, dtype)?;
        let new = Tensor::zeros((dims[0], dims[1] - self.channels, dims[2], dims[3]), dtype, device)?;
        Tensor::cat(&[&own, &new], 1)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> candle_core::Result<Tensor> {
        self.unet.get_unchecked_dtype(name, dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.unet.contains_tensor(name)
    }
}
