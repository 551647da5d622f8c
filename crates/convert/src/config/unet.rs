use serde_json::{Value, json};

use super::fields::Depth;
use super::{DIFFUSERS_VERSION, Fields, heads_of_width};
use crate::family::Heads;
use crate::inventory::MAX_PARTS;
use crate::layout::{MidBlock, UNet};
use crate::{Error, Result};

/// What the config of a UNet or ControlNet says beyond its structure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) heads: Heads,
    pub(crate) sample_size: usize,
    pub(crate) upcast_attention: bool,
    /// Width of the embedding of each number of `add_time_ids`.
    pub(crate) addition_time_embed_dim: Option<usize>,
}

/// The `config.json` of a `UNet2DConditionModel`.
pub(crate) fn unet_to_config(unet: &UNet, settings: Settings) -> Value {
    let mut config = encoder_to_config(unet, settings);
    let types = |blocks: &[Vec<Option<usize>>], direction: &str| -> Vec<String> {
        blocks.iter().map(|block| block_type(block, direction)).collect()
    };
    config["_class_name"] = json!("UNet2DConditionModel");
    config["sample_size"] = json!(settings.sample_size);
    config["out_channels"] = json!(unet.out_channels);
    config["up_block_types"] = json!(types(&unet.up, "Up"));
    let mirrored: Vec<Option<usize>> =
        unet.down.iter().rev().map(|block| block.iter().flatten().max().copied()).collect();
    let as_mirrored = unet.up.iter().zip(&mirrored).all(|(block, depth)| {
        block.iter().all(|layer| layer.is_none()) || block.iter().all(|layer| layer == depth)
    });
    let is_even = unet.down.iter().all(|block| block.windows(2).all(|pair| pair[0] == pair[1]));
    let reverse: Vec<Value> = unet.up.iter().map(|block| depth_to_json(block, true)).collect();
    config["reverse_transformer_layers_per_block"] =
        if as_mirrored && is_even { Value::Null } else { json!(reverse) };
    config
}

/// The fields that a UNet and a ControlNet share.
pub(super) fn encoder_to_config(unet: &UNet, settings: Settings) -> Value {
    let heads: Value = match settings.heads {
        Heads::Count(count) => json!(count),
        Heads::Width(width) => {
            let heads = |channels: &usize| heads_of_width(*channels, width).0;
            unet.block_out_channels.iter().map(heads).collect()
        }
    };
    let types: Vec<String> = unet.down.iter().map(|block| block_type(block, "Down")).collect();
    let layers: Vec<usize> = unet.down.iter().map(Vec::len).collect();
    json!({
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        "addition_embed_type": unet.addition_embed_dim.map(|_| "text_time"),
        "addition_time_embed_dim": unet.addition_embed_dim.and(settings.addition_time_embed_dim),
        "attention_head_dim": heads,
        "block_out_channels": unet.block_out_channels,
        "class_embed_type": null,
        "cross_attention_dim": unet.cross_attention_dim,
        "down_block_types": types,
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": unet.in_channels,
        "layers_per_block": one_if_all_equal(&layers),
        "mid_block_scale_factor": 1,
        "mid_block_type": match unet.mid {
            Some(MidBlock::CrossAttention(_)) => json!("UNetMidBlock2DCrossAttn"),
            Some(MidBlock::Plain) => json!("UNetMidBlock2D"),
            None => Value::Null,
        },
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "projection_class_embeddings_input_dim": unet.addition_embed_dim,
        "transformer_layers_per_block": depths_to_json(unet),
        "upcast_attention": settings.upcast_attention,
        "use_linear_projection": unet.use_linear_projection,
        "time_embedding_dim":
            (unet.time_embed_dim != unet.block_out_channels[0].saturating_mul(4)).then_some(unet.time_embed_dim),
    })
}

/// The structure that a `config.json` describes; `file` is its name in errors.
pub(crate) fn unet_from_config(file: &str, config: &Value) -> Result<UNet> {
    let fields = Fields::new(file, config)?;
    let mut unet = encoder_from_config(&fields)?;
    unet.out_channels = fields.size("out_channels", 4)?;
    let levels = unet.block_out_channels.len();
    let default = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"];
    let crosses = block_types(&fields, "up_block_types", "Up", &default, levels)?;
    let field = "reverse_transformer_layers_per_block";
    let mirrored = || {
        let depths = fields.depths("transformer_layers_per_block", levels);
        depths.map(|depths| depths.map(|depths| depths.into_iter().rev().collect()))
    };
    let depths = match fields.depths(field, levels)? {
        Some(depths) => Some(depths),
        None => mirrored()?,
    };
    let depths: Vec<Depth> = depths.unwrap_or_else(|| vec![Depth::All(1); levels]);
    let layers: Vec<usize> = unet.down.iter().rev().map(|block| block.len() + 1).collect();
    unet.up = blocks(&fields, field, &crosses, &layers, &depths)?;
    Ok(unet)
}

pub(super) fn encoder_from_config(fields: &Fields<'_>) -> Result<UNet> {
    let block_out_channels = fields.sizes("block_out_channels", &[320, 640, 1280, 1280])?;
    let levels = block_out_channels.len();
    let default = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"];
    let crosses = block_types(fields, "down_block_types", "Down", &default, levels)?;
    let layers = fields.sizes_per_block("layers_per_block", 2, levels)?;
    if layers.iter().any(|layers| *layers >= MAX_PARTS) {
        return Err(fields.error("layers_per_block", "at most a few"));
    }
    let field = "transformer_layers_per_block";
    let depths = fields.depths(field, levels)?.unwrap_or_else(|| vec![Depth::All(1); levels]);
    let down = blocks(fields, field, &crosses, &layers, &depths)?;
    let mid_depth = match depths.last() {
        Some(Depth::All(depth)) => *depth,
        Some(Depth::Each(depths)) => depths.first().copied().unwrap_or(1),
        None => 1,
    };
    let mid = match fields.text("mid_block_type", "UNetMidBlock2DCrossAttn")? {
        _ if fields.is_null("mid_block_type") => None,
        "UNetMidBlock2DCrossAttn" => Some(MidBlock::CrossAttention(mid_depth)),
        "UNetMidBlock2D" => Some(MidBlock::Plain),
        _ => return Err(fields.error("mid_block_type", "UNetMidBlock2DCrossAttn, UNetMidBlock2D or null")),
    };
    let widths = fields.sizes_per_block("cross_attention_dim", 1280, levels)?;
    if widths.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(fields.error("cross_attention_dim", "the same width for all blocks"));
    }
    let has_text_time = match fields.text("addition_embed_type", "")? {
        "" => false,
        "text_time" => true,
        _ => return Err(fields.error("addition_embed_type", "text_time or null")),
    };
    let addition = fields.optional_size("projection_class_embeddings_input_dim")?;
    if has_text_time && addition.is_none() {
        return Err(fields.error("projection_class_embeddings_input_dim", "a size"));
    }
    Ok(UNet {
        in_channels: fields.size("in_channels", 4)?,
        out_channels: 0,
        time_embed_dim: fields.size(
            "time_embedding_dim",
            block_out_channels.first().map_or(0, |first| first.saturating_mul(4)),
        )?,
        block_out_channels,
        down,
        mid,
        up: Vec::new(),
        cross_attention_dim: widths.first().copied().unwrap_or_default(),
        use_linear_projection: fields.bool("use_linear_projection", false)?,
        addition_embed_dim: addition.filter(|_| has_text_time),
    })
}

/// Which of the blocks have transformers.
fn block_types(
    fields: &Fields<'_>,
    field: &str,
    direction: &str,
    default: &[&'static str],
    levels: usize,
) -> Result<Vec<bool>> {
    let (plain, cross) = (format!("{direction}Block2D"), format!("CrossAttn{direction}Block2D"));
    let names = fields.texts(field, default)?;
    let known = names.len() == levels && names.iter().all(|name| *name == plain || *name == cross);
    if !known {
        return Err(fields.error(field, &format!("a list of {levels}, each {cross} or {plain}")));
    }
    Ok(names.iter().map(|name| *name == cross).collect())
}

fn blocks(
    fields: &Fields<'_>,
    field: &str,
    crosses: &[bool],
    layers: &[usize],
    depths: &[Depth],
) -> Result<Vec<Vec<Option<usize>>>> {
    let too_deep =
        || -> Error { fields.error(field, "for each block a depth, or one for each of its layers") };
    let block = |((cross, layers), depth): ((&bool, &usize), &Depth)| match depth {
        _ if !cross => Ok(vec![None; *layers]),
        Depth::All(depth) if *depth < MAX_PARTS => Ok(vec![Some(*depth); *layers]),
        Depth::Each(depths) if depths.len() == *layers && depths.iter().all(|depth| *depth < MAX_PARTS) => {
            Ok(depths.iter().copied().map(Some).collect())
        }
        _ => Err(too_deep()),
    };
    crosses.iter().zip(layers).zip(depths).map(block).collect()
}

fn block_type(block: &[Option<usize>], direction: &str) -> String {
    let cross = if block.iter().any(Option::is_some) { "CrossAttn" } else { "" };
    format!("{cross}{direction}Block2D")
}

/// `transformer_layers_per_block`. The last number is also the depth of the middle, for which there is no field.
fn depths_to_json(unet: &UNet) -> Value {
    let mut depths: Vec<Value> = unet.down.iter().map(|block| depth_to_json(block, false)).collect();
    let last_is_plain = unet.down.last().is_some_and(|block| block.iter().all(Option::is_none));
    if let (Some(last), Some(MidBlock::CrossAttention(depth)), true) =
        (depths.last_mut(), unet.mid, last_is_plain)
    {
        *last = json!(depth);
    }
    match depths.first() {
        Some(first) if first.is_number() && depths.iter().all(|depth| depth == first) => first.clone(),
        _ => json!(depths),
    }
}

fn depth_to_json(block: &[Option<usize>], always_list: bool) -> Value {
    let depths: Vec<usize> = block.iter().map(|depth| depth.unwrap_or(1)).collect();
    if always_list { json!(depths) } else { one_if_all_equal(&depths) }
}

fn one_if_all_equal(sizes: &[usize]) -> Value {
    match sizes {
        [first, rest @ ..] if rest.iter().all(|size| size == first) => json!(first),
        sizes => json!(sizes),
    }
}
