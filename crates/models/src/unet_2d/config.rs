//! The config of a [`UNet2DModel`](super::UNet2DModel).

use serde_json::{Value, json};

use super::MODEL;
use crate::class_embedding::ClassEmbedType;
use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::layers::Activation;
use crate::resnet::TimeScaleShift;

/// The kernel has three pixels: with more padding there would be results that no pixel has a part in, and memory without bound.
const MAX_DOWNSAMPLE_PADDING: usize = 2;
/// Each block but the last halves the picture, so that no picture has use for more.
const MAX_BLOCKS: usize = 16;

/// A block of the UNet: residual blocks, and what comes with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockType2D {
    /// `DownBlock2D`, `UpBlock2D`.
    Plain,
    /// `AttnDownBlock2D`, `AttnUpBlock2D`: after each residual block all pixels look at each other.
    Attention,
    /// `ResnetDownsampleBlock2D`, `ResnetUpsampleBlock2D`: halved or doubled by a residual block.
    Resnet,
}

/// How a block with attention halves or doubles the picture: `downsample_type` and `upsample_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleType {
    /// By a convolution.
    Conv,
    /// By a residual block.
    Resnet,
}

/// What timesteps become before the two linear layers: `time_embedding_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeEmbeddingType {
    /// Sines and cosines of fixed frequencies.
    Positional,
    /// Sines and cosines of the timestep's logarithm, in random frequencies that are part of the model; its result is divided by the timestep.
    Fourier,
    /// A table with a row for each of this many timesteps.
    Learned(usize),
}

/// `config.json` of a `UNet2DModel`; fields are named and mean what they do in diffusers.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct UNet2DConfig {
    /// Height and width that the model was trained for.
    pub sample_size: Option<(usize, usize)>,
    pub in_channels: usize,
    pub out_channels: usize,
    pub center_input_sample: bool,
    pub time_embedding_type: TimeEmbeddingType,
    pub time_embedding_dim: Option<usize>,
    pub freq_shift: f64,
    pub flip_sin_to_cos: bool,
    pub down_block_types: Vec<BlockType2D>,
    /// Whether there is a middle block (`mid_block_type`).
    pub has_mid_block: bool,
    pub up_block_types: Vec<BlockType2D>,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub mid_block_scale_factor: f64,
    pub downsample_padding: usize,
    pub downsample_type: SampleType,
    pub upsample_type: SampleType,
    pub act_fn: Activation,
    /// `None`: one head as wide as the block.
    pub attention_head_dim: Option<usize>,
    pub norm_num_groups: usize,
    pub attn_norm_num_groups: Option<usize>,
    pub norm_eps: f64,
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Whether the middle block has attention.
    pub add_attention: bool,
    /// A table, timesteps, or vectors as they are.
    pub class_embed_type: Option<ClassEmbedType>,
}

impl UNet2DConfig {
    /// Reads the content of a `config.json`.
    ///
    /// # Errors
    /// When a field has a value that is not supported, or a field is set that is not known.
    pub fn from_json(config: &Value) -> Result<Self> {
        let mut reader = ConfigReader::new(MODEL, config)?;
        let reader = &mut reader;
        reader.only("_class_name", json!(MODEL))?;
        let config = Self::read(reader)?;
        // Only training drops anything.
        reader.ignore("dropout");
        reader.ignore_training_state();
        reader.finish()?;
        Ok(config)
    }

    fn read(reader: &mut ConfigReader) -> Result<Self> {
        let block_out_channels = reader.sizes("block_out_channels", &[224, 448, 672, 896])?;
        let blocks = block_out_channels.len();
        if blocks > MAX_BLOCKS {
            return Err(reader.error("block_out_channels", format!("at most {MAX_BLOCKS} blocks")));
        }
        let config = Self {
            sample_size: reader.sides("sample_size")?,
            in_channels: reader.size("in_channels", 3)?,
            out_channels: reader.size("out_channels", 3)?,
            center_input_sample: reader.bool("center_input_sample", false)?,
            time_embedding_type: read_time_embedding_type(reader)?,
            time_embedding_dim: reader.optional_size("time_embedding_dim")?,
            freq_shift: reader.number("freq_shift", 0.0)?,
            flip_sin_to_cos: reader.bool("flip_sin_to_cos", true)?,
            down_block_types: read_blocks(reader, "down_block_types", "Down", blocks)?,
            has_mid_block: read_mid_block(reader)?,
            up_block_types: read_blocks(reader, "up_block_types", "Up", blocks)?,
            layers_per_block: reader.size("layers_per_block", 2)?,
            mid_block_scale_factor: reader.number("mid_block_scale_factor", 1.0)?,
            downsample_padding: reader.count("downsample_padding", 1)?,
            downsample_type: read_sample_type(reader, "downsample_type")?,
            upsample_type: read_sample_type(reader, "upsample_type")?,
            act_fn: reader.choice("act_fn", "silu", Activation::NAMES, Activation::from_name)?,
            attention_head_dim: match reader.is_null("attention_head_dim") {
                true => None,
                false => Some(reader.size("attention_head_dim", 8)?),
            },
            norm_num_groups: reader.size("norm_num_groups", 32)?,
            attn_norm_num_groups: reader.optional_size("attn_norm_num_groups")?,
            norm_eps: reader.number("norm_eps", 1e-5)?,
            resnet_time_scale_shift: TimeScaleShift::read(reader)?,
            add_attention: reader.bool("add_attention", true)?,
            class_embed_type: read_class_embed_type(reader)?,
            block_out_channels,
        };
        config.check(reader)?;
        Ok(config)
    }

    /// What no field shows alone.
    fn check(&self, reader: &ConfigReader) -> Result<()> {
        if self.downsample_padding > MAX_DOWNSAMPLE_PADDING {
            let expected = format!("a whole number from 0 to {MAX_DOWNSAMPLE_PADDING}");
            return Err(reader.error("downsample_padding", expected));
        }
        if self.mid_block_scale_factor == 0.0 {
            return Err(reader.error("mid_block_scale_factor", "a number other than 0"));
        }
        match self.too_narrow() {
            Some(channels) => {
                let expected = format!("no more than the channels of a block with attention, {channels}");
                Err(reader.error("attention_head_dim", expected))
            }
            None => Ok(()),
        }
    }

    /// The channels of a block with attention that has not one head's width.
    fn too_narrow(&self) -> Option<usize> {
        let last = self.block_out_channels.len().saturating_sub(1);
        let has_attention = |i: usize| {
            let is_attention =
                |types: &[BlockType2D], i: usize| types.get(i) == Some(&BlockType2D::Attention);
            is_attention(&self.down_block_types, i)
                || is_attention(&self.up_block_types, last - i)
                || (i == last && self.has_mid_block && self.add_attention)
        };
        let width = self.attention_head_dim?;
        let mut blocks = self.block_out_channels.iter().enumerate();
        blocks.find(|(i, channels)| has_attention(*i) && width > **channels).map(|(_, channels)| *channels)
    }

    /// Fails where lists are not one entry a block, or a count that is divided by is 0: the fields are public.
    pub(super) fn check_fields(&self) -> Result<()> {
        let fail = |input, problem: String| Err(Error::Input { model: MODEL, input, problem });
        let blocks = self.block_out_channels.len();
        if blocks == 0 || blocks > MAX_BLOCKS {
            return fail("block_out_channels", format!("are {blocks}, expected 1 to {MAX_BLOCKS} blocks"));
        }
        for (field, count) in
            [("down_block_types", self.down_block_types.len()), ("up_block_types", self.up_block_types.len())]
        {
            if count != blocks {
                return fail(
                    field,
                    format!("has {count} entries, expected {blocks}, as block_out_channels has"),
                );
            }
        }
        if self.layers_per_block == 0 {
            return fail("layers_per_block", "is 0".into());
        }
        if self.attention_head_dim == Some(0) {
            return fail("attention_head_dim", "is 0, expected 1 or more".into());
        }
        match self.too_narrow() {
            Some(channels) => {
                fail("attention_head_dim", format!("is more than a block's {channels} channels"))
            }
            None => Ok(()),
        }
    }

    /// Width of the time embedding.
    pub fn time_embed_dim(&self) -> usize {
        self.time_embedding_dim.unwrap_or(self.block_out_channels.first().map_or(0, |channels| channels * 4))
    }

    /// A picture's sides must be multiples of this, so that what is halved on the way down is whole again on the way up.
    pub fn side_multiple(&self) -> usize {
        1 << self.block_out_channels.len().saturating_sub(1).min(MAX_BLOCKS)
    }
}

fn read_time_embedding_type(reader: &mut ConfigReader) -> Result<TimeEmbeddingType> {
    let rows = reader.optional_size("num_train_timesteps")?;
    match (reader.optional_string("time_embedding_type")?.unwrap_or("positional"), rows) {
        ("positional", _) => Ok(TimeEmbeddingType::Positional),
        ("fourier", _) => Ok(TimeEmbeddingType::Fourier),
        ("learned", Some(rows)) => Ok(TimeEmbeddingType::Learned(rows)),
        ("learned", None) => {
            Err(reader.error("num_train_timesteps", "a size, since `time_embedding_type` is \"learned\""))
        }
        _ => Err(reader.error("time_embedding_type", "\"positional\", \"fourier\" or \"learned\"")),
    }
}

fn read_blocks(
    reader: &mut ConfigReader,
    field: &str,
    direction: &str,
    count: usize,
) -> Result<Vec<BlockType2D>> {
    let names = [
        (format!("{direction}Block2D"), BlockType2D::Plain),
        (format!("Attn{direction}Block2D"), BlockType2D::Attention),
        (format!("Resnet{direction}sampleBlock2D"), BlockType2D::Resnet),
    ];
    let [(plain, _), (attention, _), (resnet, _)] = &names;
    let default: [&str; 4] = match direction {
        "Down" => [plain, attention, attention, attention],
        _ => [attention, attention, attention, plain],
    };
    let found = reader.strings(field, &default)?;
    if found.len() != count {
        return Err(reader.error(field, format!("a list of {count}, as many as `block_out_channels` has")));
    }
    let parse = |found: &String| {
        // As old files write it.
        let name = found.strip_prefix("UNetRes").unwrap_or(found);
        let known = names.iter().find(|(known, _)| known == name);
        known.map(|(_, block)| *block).ok_or_else(|| {
            let expected = format!("a list of \"{plain}\", \"{attention}\" and \"{resnet}\"");
            reader.error(field, format!("{expected} (\"{found}\" is not supported)"))
        })
    };
    found.iter().map(parse).collect()
}

fn read_mid_block(reader: &mut ConfigReader) -> Result<bool> {
    if reader.is_null("mid_block_type") {
        return Ok(false);
    }
    // The reference makes the same block whatever the name is.
    reader.optional_string("mid_block_type")?;
    Ok(true)
}

fn read_sample_type(reader: &mut ConfigReader, field: &str) -> Result<SampleType> {
    reader.choice(field, "conv", "\"conv\" or \"resnet\"", |word| match word {
        "conv" => Some(SampleType::Conv),
        "resnet" => Some(SampleType::Resnet),
        _ => None,
    })
}

fn read_class_embed_type(reader: &mut ConfigReader) -> Result<Option<ClassEmbedType>> {
    let table = reader.optional_size("num_class_embeds")?;
    match reader.optional_string("class_embed_type")? {
        None => Ok(table.map(ClassEmbedType::Table)),
        Some("timestep") => Ok(Some(ClassEmbedType::Timestep)),
        Some("identity") => Ok(Some(ClassEmbedType::Identity)),
        Some(_) => Err(reader.error("class_embed_type", "null, \"timestep\" or \"identity\"")),
    }
}
