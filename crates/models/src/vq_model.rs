//! The autoencoder whose latents are rows of a table (Esser et al., 2021), as diffusers' `models/autoencoders/vq_model.py` has it: that of
//! unconditional latent diffusion.

use candle_core::{D, DType, Tensor};
use candle_nn::VarBuilder;
use serde_json::{Value, json};

use crate::autoencoder_kl::{AutoencoderKLConfig, Decoder, Encoder};
use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::layers::{Conv2d, Embedding, LayerList, Layers};

const MODEL: &str = "VQModel";

/// The `config.json` of a [`VQModel`]; fields mean what they do in diffusers.
#[derive(Clone, Debug, PartialEq)]
pub struct VQModelConfig {
    /// What it shares with `AutoencoderKL`: channels, blocks, sizes and `scaling_factor`.
    pub autoencoder: AutoencoderKLConfig,
    /// Rows of the table. Default 256.
    pub num_vq_embeddings: usize,
    /// Width of a row. Default `latent_channels`.
    pub vq_embed_dim: usize,
}

impl VQModelConfig {
    /// Reads the content of a `config.json`.
    ///
    /// # Errors
    /// When a field has a wrong type or value, is not supported, or is unknown.
    pub fn from_json(config: &Value) -> Result<Self> {
        let mut reader = ConfigReader::new(MODEL, config)?;
        reader.only("_class_name", json!(MODEL))?;
        reader.only("norm_type", json!("group"))?;
        reader.unsupported(&["lookup_from_codebook"])?;
        let autoencoder = AutoencoderKLConfig::read_shared(&mut reader, 3)?;
        let config = Self {
            num_vq_embeddings: reader.size("num_vq_embeddings", 256)?,
            vq_embed_dim: reader.optional_size("vq_embed_dim")?.unwrap_or(autoencoder.latent_channels),
            autoencoder,
        };
        // Of pipelines alone that have other models.
        reader.ignore("force_upcast");
        reader.ignore_training_state();
        reader.finish()?;
        Ok(config)
    }
}

/// An autoencoder with a table of latents, `VQModel` in diffusers.
///
/// Pictures are `(batch, channels, height, width)` with values from -1 to 1; latents are as the model has them, before `scaling_factor`. Inputs
/// are converted to the model's dtype, in which the results are.
#[derive(Clone, Debug)]
pub struct VQModel {
    encoder: Encoder,
    quant_conv: Conv2d,
    codebook: Embedding,
    post_quant_conv: Conv2d,
    decoder: Decoder,
    config: VQModelConfig,
    dtype: DType,
}

impl VQModel {
    /// In the dtype of `vb`.
    ///
    /// # Errors
    /// When a tensor is missing or wrongly shaped.
    pub fn new(config: &VQModelConfig, vb: VarBuilder) -> Result<Self> {
        let VQModelConfig { autoencoder, num_vq_embeddings, vq_embed_dim } = config;
        let latents = autoencoder.latent_channels;
        Ok(Self {
            encoder: Encoder::with_out_channels(autoencoder, latents, vb.pp("encoder"))?,
            quant_conv: Conv2d::same_size(latents, *vq_embed_dim, 1, vb.pp("quant_conv"))?,
            codebook: Embedding::new(*num_vq_embeddings, *vq_embed_dim, vb.pp("quantize.embedding"))?,
            post_quant_conv: Conv2d::same_size(*vq_embed_dim, latents, 1, vb.pp("post_quant_conv"))?,
            decoder: Decoder::new(autoencoder, vb.pp("decoder"))?,
            config: config.clone(),
            dtype: vb.dtype(),
        })
    }

    /// What it was built from.
    pub fn config(&self) -> &VQModelConfig {
        &self.config
    }

    /// `x` is `(batch, in_channels, height, width)`; the latents, which are not rows of the table yet, are
    /// `(batch, vq_embed_dim, height / factor, width / factor)`.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let least = self.config.autoencoder.vae_scale_factor();
        check_shape("x", x, self.config.autoencoder.in_channels, least)?;
        self.quant_conv.forward(&self.encoder.forward(&x.to_dtype(self.dtype)?)?)
    }

    /// `latents` is `(batch, vq_embed_dim, height, width)`, already divided by `scaling_factor`; each is replaced by the nearest row of the table.
    /// The result is `(batch, out_channels, height * factor, width * factor)`, about -1 to 1 and not clamped.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        check_shape("latents", latents, self.config.vq_embed_dim, 1)?;
        let quantized = self.quantize(&latents.to_dtype(self.dtype)?)?;
        self.decoder.forward(&self.post_quant_conv.forward(&quantized)?)
    }

    /// The nearest row of the table for each latent.
    fn quantize(&self, latents: &Tensor) -> Result<Tensor> {
        let pixels = latents.permute((0, 2, 3, 1))?.contiguous()?;
        let rows = self.codebook.weight().to_dtype(DType::F32)?;
        let flat = pixels.flatten_to(2)?.to_dtype(DType::F32)?;
        // |z - e|^2 less |z|^2, which all rows of the table have in common.
        let lengths = rows.sqr()?.sum(D::Minus1)?;
        let distances = (flat.matmul(&rows.t()?)? * -2.0)?.broadcast_add(&lengths)?;
        let nearest = self.codebook.forward(&distances.argmin(D::Minus1)?)?.reshape(pixels.shape())?;
        // In the order in which the reference rounds.
        let quantized = (&pixels + (nearest - &pixels)?)?;
        Ok(quantized.permute((0, 3, 1, 2))?.contiguous()?)
    }
}

impl Layers for VQModel {
    fn list_layers(&self, list: &mut LayerList) {
        list.add("encoder", &self.encoder);
        list.add("quant_conv", &self.quant_conv);
        list.add("post_quant_conv", &self.post_quant_conv);
        list.add("decoder", &self.decoder);
    }
}

fn check_shape(input: &'static str, x: &Tensor, channels: usize, least_side: usize) -> Result<()> {
    match *x.dims() {
        [batch, found, height, width]
            if batch > 0 && found == channels && height >= least_side && width >= least_side =>
        {
            Ok(())
        }
        ref dims => {
            let problem = format!(
                "is {dims:?}, expected (batch, {channels}, height, width) with sides of at least {least_side}"
            );
            Err(Error::Input { model: MODEL, input, problem })
        }
    }
}
