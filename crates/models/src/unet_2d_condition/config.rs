//! The config of a [`UNet2DConditionModel`](super::UNet2DConditionModel).

use serde_json::{Value, json};

use crate::class_embedding::ClassEmbedType;
use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::layers::Activation;
use crate::resnet::TimeScaleShift;

/// The kernel has three pixels: with more padding there would be results that no pixel has a part in, and memory without bound.
const MAX_DOWNSAMPLE_PADDING: usize = 2;

/// A block of the UNet: residual blocks, with or without a transformer after each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockType {
    /// `CrossAttnDownBlock2D`, `CrossAttnUpBlock2D`, `UNetMidBlock2DCrossAttn`.
    CrossAttention,
    /// `DownBlock2D`, `UpBlock2D`, `UNetMidBlock2D`.
    Plain,
}

/// What SDXL feeds besides the prompt (`addition_embed_type` `text_time`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextTimeEmbed {
    /// `addition_time_embed_dim`: width of the sinusoidal embedding of each of the `time_ids`.
    pub time_embed_dim: usize,
    /// `projection_class_embeddings_input_dim`: pooled text and all embedded `time_ids` together.
    pub input_dim: usize,
}

/// `config.json` of a `UNet2DConditionModel`; fields are named and mean what they do in diffusers.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct UNet2DConditionConfig {
    /// Latent height and width that the model was trained for.
    pub sample_size: Option<(usize, usize)>,
    pub in_channels: usize,
    pub out_channels: usize,
    pub center_input_sample: bool,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
    pub down_block_types: Vec<BlockType>,
    /// `None`: there is no middle block.
    pub mid_block_type: Option<BlockType>,
    pub up_block_types: Vec<BlockType>,
    /// One a block.
    pub only_cross_attention: Vec<bool>,
    pub block_out_channels: Vec<usize>,
    /// One a block.
    pub layers_per_block: Vec<usize>,
    pub downsample_padding: usize,
    pub mid_block_scale_factor: f64,
    pub act_fn: Activation,
    pub norm_num_groups: usize,
    pub norm_eps: f64,
    /// One a block.
    pub cross_attention_dim: Vec<usize>,
    /// One a block; 0 leaves the projections in and out, as small ControlNets have it.
    pub transformer_layers_per_block: Vec<usize>,
    /// One a block. Named `attention_head_dim` in the file, where it has always meant the number of heads
    /// ([issue 2011](https://github.com/huggingface/diffusers/issues/2011) of diffusers).
    pub num_attention_heads: Vec<usize>,
    pub use_linear_projection: bool,
    pub class_embed_type: Option<ClassEmbedType>,
    pub addition_embed_type: Option<TextTimeEmbed>,
    /// Scores are computed in float32 even where the model is half precision. Here they always are.
    pub upcast_attention: bool,
    pub resnet_time_scale_shift: TimeScaleShift,
    pub time_embedding_dim: Option<usize>,
    pub time_embedding_act_fn: Option<Activation>,
    pub timestep_post_act: Option<Activation>,
    pub time_cond_proj_dim: Option<usize>,
    pub conv_in_kernel: usize,
    pub conv_out_kernel: usize,
    pub class_embeddings_concat: bool,
}

impl UNet2DConditionConfig {
    /// Reads the content of a `config.json`.
    ///
    /// # Errors
    /// When a field has a value that is not supported, or a field is set that is not known.
    pub fn from_json(config: &Value) -> Result<Self> {
        let mut reader = ConfigReader::new("UNet2DConditionModel", config)?;
        let reader = &mut reader;
        reader.only("_class_name", json!("UNet2DConditionModel"))?;
        let config =
            Self::read(reader, |reader, blocks| read_blocks(reader, "up_block_types", "Up", blocks))?;
        reader.only("attention_type", json!("default"))?;
        reader.only("time_embedding_type", json!("positional"))?;
        reader.only("dropout", json!(0.0))?;
        reader.only("resnet_out_scale_factor", json!(1.0))?;
        reader.unsupported(&[
            "dual_cross_attention",
            "reverse_transformer_layers_per_block",
            "resnet_skip_time_act",
            "mid_block_only_cross_attention",
            "cross_attention_norm",
        ])?;
        reader.finish()?;
        Ok(config)
    }

    /// The fields that a ControlNet's config has too, but for the blocks on the way up, which `up_block_types` gives by their number.
    pub(crate) fn read(
        reader: &mut ConfigReader,
        up_block_types: impl FnOnce(&mut ConfigReader, usize) -> Result<Vec<BlockType>>,
    ) -> Result<Self> {
        let block_out_channels = reader.sizes("block_out_channels", &[320, 640, 1280, 1280])?;
        let blocks = block_out_channels.len();
        let config = Self {
            sample_size: reader.sides("sample_size")?,
            in_channels: reader.size("in_channels", 4)?,
            out_channels: reader.size("out_channels", 4)?,
            center_input_sample: reader.bool("center_input_sample", false)?,
            flip_sin_to_cos: reader.bool("flip_sin_to_cos", true)?,
            freq_shift: reader.number("freq_shift", 0.0)?,
            down_block_types: read_blocks(reader, "down_block_types", "Down", blocks)?,
            mid_block_type: read_mid_block(reader)?,
            up_block_types: up_block_types(reader, blocks)?,
            only_cross_attention: reader.bools_per_block("only_cross_attention", false, blocks)?,
            layers_per_block: reader.sizes_per_block("layers_per_block", 2, blocks)?,
            downsample_padding: reader.count("downsample_padding", 1)?,
            mid_block_scale_factor: reader.number("mid_block_scale_factor", 1.0)?,
            act_fn: reader.choice("act_fn", "silu", Activation::NAMES, Activation::from_name)?,
            norm_num_groups: reader.size("norm_num_groups", 32)?,
            norm_eps: reader.number("norm_eps", 1e-5)?,
            cross_attention_dim: reader.sizes_per_block("cross_attention_dim", 1280, blocks)?,
            transformer_layers_per_block: reader.counts_per_block(
                "transformer_layers_per_block",
                1,
                blocks,
            )?,
            num_attention_heads: reader.sizes_per_block("attention_head_dim", 8, blocks)?,
            use_linear_projection: reader.bool("use_linear_projection", false)?,
            class_embed_type: read_class_embed_type(reader)?,
            addition_embed_type: read_addition_embed_type(reader)?,
            upcast_attention: reader.bool("upcast_attention", false)?,
            resnet_time_scale_shift: TimeScaleShift::read(reader)?,
            time_embedding_dim: reader.optional_size("time_embedding_dim")?,
            time_embedding_act_fn: read_optional_activation(reader, "time_embedding_act_fn")?,
            timestep_post_act: read_optional_activation(reader, "timestep_post_act")?,
            time_cond_proj_dim: reader.optional_size("time_cond_proj_dim")?,
            conv_in_kernel: read_kernel(reader, "conv_in_kernel")?,
            conv_out_kernel: read_kernel(reader, "conv_out_kernel")?,
            class_embeddings_concat: reader.bool("class_embeddings_concat", false)?,
            block_out_channels,
        };
        config.check(reader)?;
        reader.unsupported(&["num_attention_heads", "encoder_hid_dim", "encoder_hid_dim_type"])?;
        // Used by `addition_embed_type` "text" alone, which is refused above.
        reader.ignore("addition_embed_type_num_heads");
        reader.ignore_training_state();
        Ok(config)
    }

    /// What no field shows alone.
    fn check(&self, reader: &ConfigReader) -> Result<()> {
        for (channels, heads) in self.block_out_channels.iter().zip(&self.num_attention_heads) {
            if heads > channels {
                let expected = format!("no more heads than the block has channels, {channels}");
                return Err(reader.error("attention_head_dim", expected));
            }
        }
        if self.downsample_padding > MAX_DOWNSAMPLE_PADDING {
            let expected = format!("a whole number from 0 to {MAX_DOWNSAMPLE_PADDING}");
            return Err(reader.error("downsample_padding", expected));
        }
        if self.class_embeddings_concat && self.class_embed_type.is_none() {
            return Err(reader.error("class_embeddings_concat", "false, since there are no class embeddings"));
        }
        Ok(())
    }

    /// Fails where lists are not one entry a block, or a count that is divided by is 0: the fields are public.
    pub(super) fn check_lists(&self, model: &'static str) -> Result<()> {
        let fail = |input, problem| Err(Error::Input { model, input, problem });
        let blocks = self.block_out_channels.len();
        if blocks == 0 {
            return fail(
                "block_out_channels",
                "is empty, expected the channels of at least one block".into(),
            );
        }
        for (field, count) in [
            ("down_block_types", self.down_block_types.len()),
            ("up_block_types", self.up_block_types.len()),
            ("only_cross_attention", self.only_cross_attention.len()),
            ("layers_per_block", self.layers_per_block.len()),
            ("cross_attention_dim", self.cross_attention_dim.len()),
            ("transformer_layers_per_block", self.transformer_layers_per_block.len()),
            ("num_attention_heads", self.num_attention_heads.len()),
        ] {
            if count != blocks {
                return fail(
                    field,
                    format!("has {count} entries, expected {blocks}, as block_out_channels has"),
                );
            }
        }
        if self.num_attention_heads.contains(&0) {
            return fail("num_attention_heads", "has a 0, expected 1 or more".into());
        }
        for (field, kernel) in
            [("conv_in_kernel", self.conv_in_kernel), ("conv_out_kernel", self.conv_out_kernel)]
        {
            if kernel % 2 == 0 {
                return fail(field, format!("is {kernel}, expected an odd number"));
            }
        }
        Ok(())
    }

    /// Width of the time embedding.
    pub fn time_embed_dim(&self) -> usize {
        self.time_embedding_dim.unwrap_or(self.block_out_channels.first().map_or(0, |channels| channels * 4))
    }
}

fn read_blocks(
    reader: &mut ConfigReader,
    field: &str,
    direction: &str,
    count: usize,
) -> Result<Vec<BlockType>> {
    let (cross, plain) = (format!("CrossAttn{direction}Block2D"), format!("{direction}Block2D"));
    let default: Vec<&str> = match direction {
        "Down" => vec![&cross, &cross, &cross, &plain],
        _ => vec![&plain, &cross, &cross, &cross],
    };
    let names = reader.strings(field, &default)?;
    if names.len() != count {
        return Err(reader.error(field, format!("a list of {count}, as many as `block_out_channels` has")));
    }
    let parse = |name: &String| match name {
        name if *name == cross => Ok(BlockType::CrossAttention),
        name if *name == plain => Ok(BlockType::Plain),
        name => Err(reader
            .error(field, format!("a list of \"{cross}\" and \"{plain}\" (\"{name}\" is not supported)"))),
    };
    names.iter().map(parse).collect()
}

fn read_mid_block(reader: &mut ConfigReader) -> Result<Option<BlockType>> {
    if reader.is_null("mid_block_type") {
        return Ok(None);
    }
    let known = "\"UNetMidBlock2DCrossAttn\", \"UNetMidBlock2D\" or null";
    let parse = |name: &str| match name {
        "UNetMidBlock2DCrossAttn" => Some(BlockType::CrossAttention),
        "UNetMidBlock2D" => Some(BlockType::Plain),
        _ => None,
    };
    reader.choice("mid_block_type", "UNetMidBlock2DCrossAttn", known, parse).map(Some)
}

fn read_optional_activation(reader: &mut ConfigReader, field: &str) -> Result<Option<Activation>> {
    match reader.optional_string(field)? {
        None => Ok(None),
        Some(name) => match Activation::from_name(name) {
            Some(activation) => Ok(Some(activation)),
            None => Err(reader.error(field, Activation::NAMES)),
        },
    }
}

fn read_kernel(reader: &mut ConfigReader, field: &str) -> Result<usize> {
    match reader.size(field, 3)? {
        kernel if kernel % 2 == 1 && kernel < 64 => Ok(kernel),
        _ => Err(reader.error(field, "an odd number below 64")),
    }
}

fn read_class_embed_type(reader: &mut ConfigReader) -> Result<Option<ClassEmbedType>> {
    let table = reader.optional_size("num_class_embeds")?;
    let kind = reader.optional_string("class_embed_type")?;
    let input_dim = reader.optional_size("projection_class_embeddings_input_dim")?;
    match (kind, input_dim) {
        (None, _) => Ok(table.map(ClassEmbedType::Table)),
        (Some("timestep"), _) => Ok(Some(ClassEmbedType::Timestep)),
        (Some("identity"), _) => Ok(Some(ClassEmbedType::Identity)),
        (Some("projection"), Some(dim)) => Ok(Some(ClassEmbedType::Projection(dim))),
        (Some("simple_projection"), Some(dim)) => Ok(Some(ClassEmbedType::SimpleProjection(dim))),
        (Some("projection" | "simple_projection"), None) => Err(reader
            .error("projection_class_embeddings_input_dim", "a size, since `class_embed_type` projects")),
        (Some(_), _) => {
            let expected = "null, \"timestep\", \"identity\", \"projection\" or \"simple_projection\"";
            Err(reader.error("class_embed_type", expected))
        }
    }
}

fn read_addition_embed_type(reader: &mut ConfigReader) -> Result<Option<TextTimeEmbed>> {
    let time_embed_dim = reader.optional_size("addition_time_embed_dim")?;
    let input_dim = reader.optional_size("projection_class_embeddings_input_dim")?;
    match reader.optional_string("addition_embed_type")? {
        None => Ok(None),
        Some("text_time") => {
            let size = "a size, since `addition_embed_type` is \"text_time\"";
            let time_embed_dim =
                time_embed_dim.ok_or_else(|| reader.error("addition_time_embed_dim", size))?;
            let input_dim =
                input_dim.ok_or_else(|| reader.error("projection_class_embeddings_input_dim", size))?;
            Ok(Some(TextTimeEmbed { time_embed_dim, input_dim }))
        }
        Some(_) => Err(reader.error("addition_embed_type", "null or \"text_time\"")),
    }
}
