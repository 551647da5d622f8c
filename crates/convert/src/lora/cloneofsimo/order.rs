use std::collections::HashMap;

use crate::lora::known_models::unets;
use crate::lora::{LoraComponent, LoraError, TensorRef};
use crate::{MidBlock, Result, Structure, UNet};

/// The factors of one change.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) up: TensorRef,
    pub(super) down: TensorRef,
}

impl Pair {
    pub(super) fn new(file: &str, up: TensorRef, down: TensorRef) -> Result<Self> {
        for (tensor, expected) in
            [(&up, "(out, rank) or (out, rank, 1, 1)"), (&down, "(rank, in) or (rank, in, height, width)")]
        {
            if ![2, 4].contains(&tensor.shape.len()) || tensor.shape.contains(&0) {
                return Err(LoraError::shape(file, tensor, expected).into());
            }
            if !is_float(tensor) {
                let (file, tensor, dtype) = (file.to_string(), tensor.name.clone(), tensor.dtype);
                return Err(LoraError::Dtype { file, tensor, dtype }.into());
            }
        }
        if up.shape.len() != down.shape.len() || up.shape[2..].iter().any(|length| *length != 1) {
            return Err(
                LoraError::shape(file, &up, format!("(out, rank, ...) beside {:?}", down.shape)).into()
            );
        }
        if up.shape[1] != down.shape[0] {
            return Err(LoraError::Ranks {
                file: file.to_string(),
                first: down.name,
                first_shape: down.shape,
                second: up.name,
                second_shape: up.shape,
            }
            .into());
        }
        Ok(Self { up, down })
    }

    /// The shape of the weight that it changes.
    fn weight(&self) -> Vec<usize> {
        let (up, down) = (&self.up.shape, &self.down.shape);
        [&up[..1], &down[1..]].concat()
    }
}

fn is_float(tensor: &TensorRef) -> bool {
    use safetensors::Dtype::{BF16, F16, F32, F64};
    matches!(tensor.dtype, F64 | F32 | F16 | BF16)
}

/// The layers that the pairs change, in their order: of the given structures, else of the known models.
///
/// # Errors
/// When they fit none.
pub(super) fn names(
    file: &str,
    component: Option<LoraComponent>,
    pairs: &[Pair],
    structures: &[Structure],
) -> Result<(LoraComponent, Vec<String>)> {
    if component != Some(LoraComponent::UNet)
        && let Some(names) = text_encoder(pairs)
    {
        return Ok((component.unwrap_or(LoraComponent::TextEncoder), names));
    }
    let mut nearest: Option<(usize, String)> = None;
    if component.is_none_or(|component| component == LoraComponent::UNet) {
        let given: Vec<UNet> = structures
            .iter()
            .filter_map(|structure| match structure {
                Structure::UNet(unet) if !structure.is_absurd() => Some(unet.clone()),
                _ => None,
            })
            .collect();
        let candidates = if given.is_empty() { unets().to_vec() } else { given };
        for unet in &candidates {
            let shapes = shapes(unet);
            for (has_resnets, is_feed_forward_first) in
                [(false, true), (false, false), (true, true), (true, false)]
            {
                let order = unet_order(unet, &shapes, has_resnets, is_feed_forward_first);
                match compare(pairs, &order, &shapes) {
                    Ok(()) => return Ok((LoraComponent::UNet, order)),
                    Err((place, message)) if nearest.as_ref().is_none_or(|(best, _)| place > *best) => {
                        nearest = Some((place, message));
                    }
                    Err(_) => {}
                }
            }
        }
    }
    Err(LoraError::NoSuchOrder {
        file: file.to_string(),
        count: pairs.len(),
        component: component.map_or("model", LoraComponent::folder),
        message: nearest.map_or_else(
            || "a text encoder has four of the same width in each layer".to_string(),
            |(_, message)| message,
        ),
    }
    .into())
}

/// CLIPAttention's layers: k, v, q and out, in this order, all of one width.
fn text_encoder(pairs: &[Pair]) -> Option<Vec<String>> {
    let width = *pairs.first()?.weight().first()?;
    let is_square = |pair: &Pair| pair.weight() == [width, width];
    if !pairs.len().is_multiple_of(4) || !pairs.iter().all(is_square) {
        return None;
    }
    let layer = |index: usize| {
        let projection = ["k_proj", "v_proj", "q_proj", "out_proj"][index % 4];
        format!("text_model.encoder.layers.{}.self_attn.{projection}", index / 4)
    };
    Some((0..pairs.len()).map(layer).collect())
}

/// The shapes of a UNet's weights by the names of their layers.
fn shapes(unet: &UNet) -> HashMap<String, Vec<usize>> {
    let table = Structure::UNet(unet.clone()).table();
    let named = table.into_iter().flat_map(|row| row.diffusers);
    named.filter_map(|named| Some((named.name.strip_suffix(".weight")?.to_string(), named.shape))).collect()
}

/// `_find_modules` with CrossAttention (Attention) and GEGLU, and in the extended form ResnetBlock2D: in the order in which diffusers
/// registers modules, which puts the middle last, attentions before residual blocks, and before its version 0.15 the feed-forward
/// between the attentions.
fn unet_order(
    unet: &UNet,
    shapes: &HashMap<String, Vec<usize>>,
    has_resnets: bool,
    is_feed_forward_first: bool,
) -> Vec<String> {
    let mut order = Vec::new();
    let levels = |blocks: &[Vec<Option<usize>>], name: &str| -> Vec<(String, Vec<Option<usize>>, usize)> {
        blocks
            .iter()
            .enumerate()
            .map(|(i, depths)| (format!("{name}.{i}"), depths.clone(), depths.len()))
            .collect()
    };
    let mut blocks = levels(&unet.down, "down_blocks");
    blocks.extend(levels(&unet.up, "up_blocks"));
    match unet.mid {
        None => {}
        Some(MidBlock::Plain) => blocks.push(("mid_block".to_string(), Vec::new(), 1)),
        Some(MidBlock::CrossAttention(depth)) => blocks.push(("mid_block".to_string(), vec![Some(depth)], 2)),
    }
    for (block, depths, resnets) in blocks {
        for (index, depth) in depths.into_iter().enumerate() {
            for layer in 0..depth.unwrap_or_default() {
                let name = format!("{block}.attentions.{index}.transformer_blocks.{layer}");
                let parts =
                    if is_feed_forward_first { ["attn1", "ff", "attn2"] } else { ["attn1", "attn2", "ff"] };
                for part in parts {
                    if part == "ff" {
                        order.push(format!("{name}.ff.net.0.proj"));
                        continue;
                    }
                    order
                        .extend(["to_q", "to_k", "to_v", "to_out.0"].map(|to| format!("{name}.{part}.{to}")));
                }
            }
        }
        if has_resnets {
            for index in 0..resnets {
                let parts = ["conv1", "time_emb_proj", "conv2", "conv_shortcut"];
                let names = parts.map(|part| format!("{block}.resnets.{index}.{part}"));
                order.extend(names.into_iter().filter(|name| shapes.contains_key(name)));
            }
        }
    }
    order
}

/// Fails at the first pair that does not fit, with its place.
fn compare(
    pairs: &[Pair],
    order: &[String],
    shapes: &HashMap<String, Vec<usize>>,
) -> std::result::Result<(), (usize, String)> {
    for (place, (pair, name)) in pairs.iter().zip(order).enumerate() {
        let expected = shapes.get(name).cloned().unwrap_or_default();
        if pair.weight() != expected {
            let (found, tensor) = (pair.weight(), &pair.up.name);
            return Err((
                place,
                format!("{tensor} and its other half change a weight of {found:?}, {name} has {expected:?}"),
            ));
        }
    }
    let (found, expected) = (pairs.len(), order.len());
    if found == expected {
        return Ok(());
    }
    Err((found.min(expected), format!("the nearest has {expected} layers")))
}
