use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::{AutoencoderKLConfig, Decoder, DiagonalGaussianDistribution, Encoder, Tiling};
use crate::error::{Error, Result};
use crate::layers::{Conv2d, LayerList, Layers};

/// How the pictures of a batch go through an [`AutoencoderKL`]; the results are the same to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BatchSlicing {
    /// All at once.
    #[default]
    Whole,
    /// One after the other, which takes the memory of one: diffusers' `enable_slicing`.
    OneByOne,
}

/// The autoencoder of latent diffusion, `AutoencoderKL` in diffusers.
///
/// Pictures are `(batch, channels, height, width)` with values from -1 to 1; latents are as the model has them, before
/// `scaling_factor`. Inputs are converted to the model's dtype, in which the results are: a pipeline in float16 can have its
/// autoencoder in float32 (see [`AutoencoderKLConfig::decode_dtype`]).
#[derive(Clone, Debug)]
pub struct AutoencoderKL {
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    config: AutoencoderKLConfig,
    slicing: BatchSlicing,
    tiling: Option<Tiling>,
    dtype: DType,
}

impl AutoencoderKL {
    /// In the dtype of `vb`.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(config: &AutoencoderKLConfig, vb: VarBuilder) -> Result<Self> {
        let pointwise = |used: bool, channels: usize, name: &str| -> Result<Option<Conv2d>> {
            if used {
                return Ok(Some(Conv2d::same_size(channels, channels, 1, vb.pp(name))?));
            }
            Ok(None)
        };
        let latent_channels = config.latent_channels;
        Ok(Self {
            encoder: Encoder::new(config, vb.pp("encoder"))?,
            quant_conv: pointwise(config.use_quant_conv, 2 * latent_channels, "quant_conv")?,
            post_quant_conv: pointwise(config.use_post_quant_conv, latent_channels, "post_quant_conv")?,
            decoder: Decoder::new(config, vb.pp("decoder"))?,
            config: config.clone(),
            slicing: BatchSlicing::default(),
            tiling: None,
            dtype: vb.dtype(),
        })
    }

    /// What it was built from.
    pub fn config(&self) -> &AutoencoderKLConfig {
        &self.config
    }

    /// The dtype of the weights and of all results.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// A copy that computes in another dtype, as diffusers' `vae.to(dtype)`, without what adapts its layers.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        let mut list = LayerList::default();
        self.list_layers(&mut list);
        let tensors = list.into_tensors();
        let device = tensors.values().next().map_or(Device::Cpu, |tensor| tensor.device().clone());
        let copy = Self::new(&self.config, VarBuilder::from_tensors(tensors, dtype, &device))?;
        Ok(Self { slicing: self.slicing, tiling: self.tiling, ..copy })
    }

    /// All at once unless set.
    pub fn set_slicing(&mut self, slicing: BatchSlicing) {
        self.slicing = slicing;
    }

    /// `None`, as long as nothing is set, is in one piece; `Some(vae.config().tiling())` is diffusers' `enable_tiling`.
    ///
    /// # Errors
    /// When the tiles are too small for their overlap, or the overlap is not from 0 to below 1.
    pub fn set_tiling(&mut self, tiling: Option<Tiling>) -> Result<()> {
        if let Some(tiling) = &tiling {
            tiling.check()?;
        }
        self.tiling = tiling;
        Ok(())
    }

    /// `x` is `(batch, in_channels, height, width)`, -1 to 1; the distribution is over
    /// `(batch, latent_channels, height / factor, width / factor)`, rounded down at each of the encoder's halvings. Multiply what you
    /// draw from it by `scaling_factor` before you give it to a diffusion model.
    ///
    /// # Errors
    /// When `x` has another rank or other channels, or a side is shorter than one latent.
    pub fn encode(&self, x: &Tensor) -> Result<DiagonalGaussianDistribution> {
        self.check_sample(x)?;
        let moments = self.in_slices(x, |x| match self.tiling {
            Some(tiling) if longer_side(x) > tiling.tile_sample_min_size => {
                let (tile_in, tile_out) = (tiling.tile_sample_min_size, tiling.tile_latent_min_size);
                tiling.run(x, tile_in, tile_out, |tile| self.encode_tile(tile))
            }
            _ => self.encode_tile(x),
        })?;
        DiagonalGaussianDistribution::new(&moments)
    }

    /// `latents` is `(batch, latent_channels, height, width)`, already divided by `scaling_factor`; the result is
    /// `(batch, out_channels, height * factor, width * factor)`, about -1 to 1 and not clamped.
    ///
    /// # Errors
    /// When `latents` has another rank or other channels, or no pixels.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        check_shape("latents", latents, self.config.latent_channels, 1)?;
        self.in_slices(latents, |latents| match self.tiling {
            Some(tiling) if longer_side(latents) > tiling.tile_latent_min_size => {
                let (tile_in, tile_out) = (tiling.tile_latent_min_size, tiling.tile_sample_min_size);
                tiling.run(latents, tile_in, tile_out, |tile| self.decode_tile(tile))
            }
            _ => self.decode_tile(latents),
        })
    }

    fn in_slices(&self, x: &Tensor, run: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let x = x.to_dtype(self.dtype)?;
        match (self.slicing, x.dim(0)?) {
            (BatchSlicing::OneByOne, batch) if batch > 1 => {
                let slices =
                    (0..batch).map(|item| run(&x.narrow(0, item, 1)?)).collect::<Result<Vec<_>>>()?;
                Ok(Tensor::cat(&slices, 0)?)
            }
            _ => run(&x),
        }
    }

    fn encode_tile(&self, x: &Tensor) -> Result<Tensor> {
        // Tiles at the right and the bottom are smaller than the others.
        self.check_sample(x)?;
        let moments = self.encoder.forward(x)?;
        match &self.quant_conv {
            Some(quant_conv) => quant_conv.forward(&moments),
            None => Ok(moments),
        }
    }

    fn decode_tile(&self, latents: &Tensor) -> Result<Tensor> {
        match &self.post_quant_conv {
            Some(post_quant_conv) => self.decoder.forward(&post_quant_conv.forward(latents)?),
            None => self.decoder.forward(latents),
        }
    }

    fn check_sample(&self, x: &Tensor) -> Result<()> {
        check_shape("x", x, self.config.in_channels, self.config.vae_scale_factor())
    }
}

impl Layers for AutoencoderKL {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("encoder", &self.encoder);
        list.add("quant_conv", &self.quant_conv);
        list.add("post_quant_conv", &self.post_quant_conv);
        list.add("decoder", &self.decoder);
    }
}

fn longer_side(x: &Tensor) -> usize {
    x.dims().iter().skip(2).copied().max().unwrap_or(0)
}

fn check_shape(input: &'static str, x: &Tensor, channels: usize, least_side: usize) -> Result<()> {
    match *x.dims() {
        [batch, found, height, width]
            if batch > 0 && found == channels && height >= least_side && width >= least_side =>
        {
            Ok(())
        }
        _ => {
            let problem = format!(
                "is {:?}, expected (batch, {channels}, height, width) with sides of at least {least_side}",
                x.dims()
            );
            Err(Error::Input { model: "AutoencoderKL", input, problem })
        }
    }
}

pub(super) fn no_blocks() -> Error {
    let problem = "is empty, expected the channels of at least one block".into();
    Error::Input { model: "AutoencoderKL", input: "block_out_channels", problem }
}
