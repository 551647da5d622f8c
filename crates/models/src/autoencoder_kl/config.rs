use candle_core::DType;
use serde_json::Value;

use super::Tiling;
use crate::config::ConfigReader;
use crate::error::Result;
use crate::layers::Activation;
use crate::resnet::{ResnetConfig, TimeScaleShift};

const MODEL: &str = "AutoencoderKL";

/// Each block but the last halves the picture, so that no picture has use for more.
const MAX_BLOCKS: usize = 16;

/// The `config.json` of an autoencoder, with the fields and defaults of diffusers' `AutoencoderKL`.
///
/// `down_block_types` and `up_block_types` are read too; as only `DownEncoderBlock2D` and `UpDecoderBlock2D` are supported, they
/// say nothing more and are not kept.
#[derive(Clone, Debug, PartialEq)]
pub struct AutoencoderKLConfig {
    /// Channels of the pictures that are encoded. Default 3.
    pub in_channels: usize,
    /// Channels of the pictures that are decoded. Default 3.
    pub out_channels: usize,
    /// Channels of each block, from the picture to the latents; each block but the last halves the picture. Default one block of 64.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks in each block of the encoder; the decoder's have one more. Default 1.
    pub layers_per_block: usize,
    /// The nonlinearity of the residual blocks. Default `silu`.
    pub act_fn: Activation,
    /// Channels of the latents. Default 4.
    pub latent_channels: usize,
    /// Groups of the group normalisations. Default 32.
    pub norm_num_groups: usize,
    /// Side of the pictures it was trained on, pixels; the side of a tile in [`AutoencoderKLConfig::tiling`]. Default 32.
    pub sample_size: usize,
    /// Latents times this have unit variance: pipelines multiply after encoding and divide before decoding. Default 0.18215.
    pub scaling_factor: f64,
    /// What newer pipelines (Stable Diffusion 3 and later) subtract from latents before they scale them. Default none.
    pub shift_factor: Option<f64>,
    /// With `latents_std`, one a channel: pipelines of the SDXL family normalise latents with both.
    pub latents_mean: Option<Vec<f64>>,
    /// See `latents_mean`.
    pub latents_std: Option<Vec<f64>>,
    /// Whether float16 overflows: see [`AutoencoderKLConfig::decode_dtype`]. Default true.
    pub force_upcast: bool,
    /// Whether a 1x1 convolution follows the encoder. Default true.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder. Default true.
    pub use_post_quant_conv: bool,
    /// Whether the blocks in the middle of the encoder and the decoder have attention. Default true.
    pub mid_block_add_attention: bool,
}

impl Default for AutoencoderKLConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: Activation::Silu,
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl AutoencoderKLConfig {
    /// Reads an autoencoder's `config.json`.
    ///
    /// # Errors
    /// When a field has a wrong type or value, is not supported, or is unknown.
    pub fn from_json(config: &Value) -> Result<Self> {
        let mut reader = ConfigReader::new(MODEL, config)?;
        let default = Self::default();
        let config = Self {
            shift_factor: read_optional_number(&mut reader, "shift_factor")?,
            latents_mean: read_optional_numbers(&mut reader, "latents_mean")?,
            latents_std: read_optional_numbers(&mut reader, "latents_std")?,
            force_upcast: reader.bool("force_upcast", default.force_upcast)?,
            use_quant_conv: reader.bool("use_quant_conv", default.use_quant_conv)?,
            use_post_quant_conv: reader.bool("use_post_quant_conv", default.use_post_quant_conv)?,
            ..Self::read_shared(&mut reader, default.latent_channels)?
        };
        config.check_latents(&reader)?;
        reader.ignore_training_state();
        reader.finish()?;
        Ok(config)
    }

    /// The fields that `VQModel` has too.
    pub(crate) fn read_shared(reader: &mut ConfigReader, latent_channels: usize) -> Result<Self> {
        let default = Self::default();
        let config = Self {
            in_channels: reader.size("in_channels", default.in_channels)?,
            out_channels: reader.size("out_channels", default.out_channels)?,
            block_out_channels: reader.sizes("block_out_channels", &default.block_out_channels)?,
            layers_per_block: reader.size("layers_per_block", default.layers_per_block)?,
            act_fn: reader.choice("act_fn", "silu", ACTIVATIONS, read_activation)?,
            latent_channels: reader.size("latent_channels", latent_channels)?,
            norm_num_groups: reader.size("norm_num_groups", default.norm_num_groups)?,
            sample_size: read_sample_size(reader, default.sample_size)?,
            scaling_factor: reader.number("scaling_factor", default.scaling_factor)?,
            mid_block_add_attention: reader
                .bool("mid_block_add_attention", default.mid_block_add_attention)?,
            ..default
        };
        config.check(reader)?;
        Ok(config)
    }

    /// What one field alone does not show.
    fn check(&self, reader: &mut ConfigReader) -> Result<()> {
        let blocks = self.block_out_channels.len();
        if blocks > MAX_BLOCKS {
            return Err(reader.error("block_out_channels", format!("at most {MAX_BLOCKS} blocks")));
        }
        for (field, supported) in
            [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")]
        {
            let types = reader.strings(field, &[supported])?;
            if let Some(unsupported) = types.iter().find(|block_type| *block_type != supported) {
                let expected = format!("only \"{supported}\" ({unsupported} is not supported)");
                return Err(reader.error(field, expected));
            }
            if types.len() != blocks {
                let expected = format!("{blocks} blocks, as many as block_out_channels has");
                return Err(reader.error(field, expected));
            }
        }
        let groups = self.norm_num_groups;
        if let Some(channels) = self.block_out_channels.iter().find(|count| !count.is_multiple_of(groups)) {
            let expected = format!("a number that divides all block_out_channels, also {channels}");
            return Err(reader.error("norm_num_groups", expected));
        }
        if self.scaling_factor == 0.0 {
            return Err(reader.error("scaling_factor", "a number other than 0, as latents are divided by it"));
        }
        Ok(())
    }

    fn check_latents(&self, reader: &ConfigReader) -> Result<()> {
        for (field, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if values.as_ref().is_some_and(|values| values.len() != self.latent_channels) {
                let expected = format!("{} numbers, as many as latent_channels", self.latent_channels);
                return Err(reader.error(field, expected));
            }
        }
        Ok(())
    }

    /// How many pixels of height and width one latent stands for, 8 in Stable Diffusion: pipelines' `vae_scale_factor`.
    pub fn vae_scale_factor(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1).min(MAX_BLOCKS)
    }

    /// The tiles that diffusers' `enable_tiling` uses: `sample_size` pixels, a quarter of it overlapping.
    pub fn tiling(&self) -> Tiling {
        Tiling {
            tile_sample_min_size: self.sample_size,
            tile_latent_min_size: self.sample_size / self.vae_scale_factor(),
            tile_overlap_factor: 0.25,
        }
    }

    /// In which dtype diffusers' pipelines of the SDXL family (and the upscaler) decode when the model is loaded in `dtype`: float32
    /// where `force_upcast` is set and `dtype` is float16, in which SDXL's decoder overflows; `dtype` otherwise. Pipelines of
    /// Stable Diffusion 1 and 2 have no such rule and decode in `dtype` whatever the config says.
    ///
    /// Build the [`AutoencoderKL`](super::AutoencoderKL) from a `VarBuilder` of this dtype.
    pub fn decode_dtype(&self, dtype: DType) -> DType {
        if self.force_upcast && dtype == DType::F16 { DType::F32 } else { dtype }
    }

    /// In which dtype diffusers' pipelines of the SDXL family encode pictures when the model is loaded in `dtype`: float32 where
    /// `force_upcast` is set, whatever `dtype` is; `dtype` otherwise. Pipelines of Stable Diffusion 1 and 2 encode in `dtype`.
    pub fn encode_dtype(&self, dtype: DType) -> DType {
        if self.force_upcast { DType::F32 } else { dtype }
    }

    /// What the residual blocks have in common.
    pub(super) fn resnet_config(&self) -> ResnetConfig {
        ResnetConfig {
            temb_channels: None,
            groups: self.norm_num_groups,
            eps: NORM_EPS,
            activation: self.act_fn,
            time_scale_shift: TimeScaleShift::Add,
            skip_time_act: false,
            output_scale_factor: 1.0,
        }
    }
}

/// Fixed in diffusers' `vae.py`.
pub(super) const NORM_EPS: f64 = 1e-6;

const ACTIVATIONS: &str = "one of \"silu\", \"swish\", \"gelu\"";

/// diffusers does not mind capitals here, and has no `quick_gelu`.
fn read_activation(name: &str) -> Option<Activation> {
    Activation::from_name(&name.to_lowercase()).filter(|activation| *activation != Activation::QuickGelu)
}

/// One number, or height and width, of which diffusers uses the first.
fn read_sample_size(reader: &mut ConfigReader, default: usize) -> Result<usize> {
    match reader.value("sample_size") {
        Some(Value::Array(_)) => Ok(reader.sizes("sample_size", &[])?[0]),
        _ => reader.size("sample_size", default),
    }
}

fn read_optional_number(reader: &mut ConfigReader, field: &str) -> Result<Option<f64>> {
    match reader.value(field) {
        None => Ok(None),
        Some(_) => reader.number(field, 0.0).map(Some),
    }
}

fn read_optional_numbers(reader: &mut ConfigReader, field: &str) -> Result<Option<Vec<f64>>> {
    match reader.value(field) {
        None => Ok(None),
        Some(value) => {
            let numbers = value.as_array().and_then(|values| values.iter().map(Value::as_f64).collect());
            numbers.map(Some).ok_or_else(|| reader.error(field, "a list of numbers"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_empty_config_has_the_defaults_of_diffusers() {
        assert_eq!(AutoencoderKLConfig::from_json(&json!({})).unwrap(), AutoencoderKLConfig::default());
    }

    #[test]
    fn the_config_of_sdxl_is_read() {
        let config = json!({
            "_class_name": "AutoencoderKL", "_diffusers_version": "0.20.0.dev0", "_name_or_path": "../sdxl-vae/",
            "act_fn": "SiLU", "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
            "force_upcast": true, "in_channels": 3, "latent_channels": 4, "latents_mean": null,
            "latents_std": [1, 2.5, 3, 4], "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3,
            "sample_size": [1024, 512], "scaling_factor": 0.13025, "shift_factor": 0.5,
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
        });
        let config = AutoencoderKLConfig::from_json(&config).unwrap();
        assert_eq!(config.vae_scale_factor(), 8);
        assert_eq!(config.scaling_factor, 0.13025);
        assert_eq!(config.shift_factor, Some(0.5));
        assert_eq!(config.latents_mean, None);
        assert_eq!(config.latents_std, Some(vec![1.0, 2.5, 3.0, 4.0]));
        let tiling = config.tiling();
        assert_eq!((tiling.tile_sample_min_size, tiling.tile_latent_min_size), (1024, 128));
    }

    #[test]
    fn float16_is_upcast_where_the_config_says_so() {
        let upcast = AutoencoderKLConfig::default();
        assert_eq!(upcast.decode_dtype(DType::F16), DType::F32);
        assert_eq!(upcast.decode_dtype(DType::BF16), DType::BF16);
        assert_eq!(upcast.encode_dtype(DType::BF16), DType::F32);
        let fixed = AutoencoderKLConfig { force_upcast: false, ..upcast };
        assert_eq!(fixed.decode_dtype(DType::F16), DType::F16);
        assert_eq!(fixed.encode_dtype(DType::F16), DType::F16);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let refused = [
            (
                json!({"down_block_types": ["AttnDownEncoderBlock2D"]}),
                "(AttnDownEncoderBlock2D is not supported)",
            ),
            (json!({"up_block_types": ["AttnUpDecoderBlock2D"]}), "(AttnUpDecoderBlock2D is not supported)"),
            (json!({"block_out_channels": [32, 64]}), "`down_block_types` is missing, expected 2 blocks"),
            (json!({"block_out_channels": 64}), "`block_out_channels` is 64, expected a list"),
            (json!({"block_out_channels": []}), "`block_out_channels` is [], expected a list"),
            (json!({"block_out_channels": vec![32; 80]}), "expected at most 16 blocks"),
            (json!({"norm_num_groups": 24}), "`norm_num_groups` is 24, expected a number that divides"),
            (json!({"norm_num_groups": 0}), "`norm_num_groups` is 0, expected a whole number"),
            (json!({"layers_per_block": 1u64 << 50}), "`layers_per_block` is 1125899906842624, expected"),
            (json!({"act_fn": "quick_gelu"}), "`act_fn` is \"quick_gelu\", expected one of"),
            (json!({"act_fn": "mish"}), "`act_fn` is \"mish\", expected one of"),
            (json!({"scaling_factor": 0}), "`scaling_factor` is 0, expected a number other than 0"),
            (json!({"scaling_factor": "1"}), "`scaling_factor` is \"1\", expected a finite number"),
            (json!({"latents_mean": [0.5]}), "`latents_mean` is [0.5], expected 4 numbers"),
            (
                json!({"latents_std": ["a", 1, 2, 3]}),
                "`latents_std` is [\"a\",1,2,3], expected a list of numbers",
            ),
            (json!({"shift_factor": true}), "`shift_factor` is true, expected a finite number"),
            (json!({"force_upcast": 1}), "`force_upcast` is 1, expected true or false"),
            (json!({"sample_size": [512, "x"]}), "`sample_size` is [512,\"x\"], expected a list"),
            (json!({"spatial_norm": 3}), "`spatial_norm` is 3, expected no such field"),
            (json!(null), "(the whole file)` is null, expected an object"),
        ];
        for (config, message) in refused {
            let error = AutoencoderKLConfig::from_json(&config).unwrap_err().to_string();
            assert!(error.contains("AutoencoderKL config") && error.contains(message), "{error}");
        }
    }
}
