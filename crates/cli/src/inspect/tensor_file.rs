use std::collections::BTreeMap;

use candle_diffusers_convert::{Dtype, Inventory, Source};
use serde_json::{Map, Value, json};

use super::metadata::metadata;

/// A file of tensors of which no more is known than their names say.
pub(super) fn inspect(source: &dyn Source, inventory: &Inventory) -> Value {
    let mut report = Map::new();
    report.insert("kind".into(), kind(inventory).into());
    report.extend(contents(inventory));
    report.insert("metadata".into(), metadata(source));
    Value::Object(report)
}

/// How many tensors and numbers there are, and of which dtypes the numbers are.
pub(super) fn contents(inventory: &Inventory) -> Map<String, Value> {
    let entries = inventory.names().filter_map(|name| inventory.get(name));
    count(entries.map(|entry| (entry.shape.as_slice(), entry.dtype)))
}

/// As [`contents`], of tensors of these shapes and dtypes.
pub(super) fn count<'a>(tensors: impl Iterator<Item = (&'a [usize], Dtype)>) -> Map<String, Value> {
    let (mut count, mut bytes) = (0_usize, 0_u64);
    let mut dtypes: BTreeMap<String, u64> = BTreeMap::new();
    for (shape, dtype) in tensors {
        let numbers = shape.iter().fold(1_u64, |product, length| product.saturating_mul(*length as u64));
        count += 1;
        bytes = bytes.saturating_add(numbers.saturating_mul(dtype.bitsize() as u64).div_ceil(8));
        let of_dtype = dtypes.entry(dtype.to_string()).or_default();
        *of_dtype = of_dtype.saturating_add(numbers);
    }
    let parameters = dtypes.values().fold(0_u64, |sum, numbers| sum.saturating_add(*numbers));
    let mut fields = Map::new();
    fields.insert("parameters".into(), parameters.into());
    fields.insert("bytes".into(), bytes.into());
    fields.insert("tensors".into(), count.into());
    fields.insert("dtypes".into(), json!(dtypes));
    fields
}

/// What a file holds, as far as the names of its tensors say: the first kind with such a name.
pub(super) fn kind(inventory: &Inventory) -> &'static str {
    type Mark = fn(&str) -> bool;
    let kinds: [(&str, Mark); 7] = [
        ("lora", |name| {
            let marks = [".lora_A.", ".lora_B.", ".lora_up.", ".lora_down.", ".lora.up.", ".lora.down."];
            marks.iter().any(|mark| name.contains(mark))
        }),
        ("embedding", |name| {
            ["emb_params", "clip_l", "clip_g"].contains(&name) || name.starts_with("string_to_param")
        }),
        ("checkpoint", |name| name.starts_with("model.diffusion_model.")),
        ("controlnet", |name| {
            name.contains("controlnet_cond_embedding.") || name.contains("input_hint_block.")
        }),
        ("unet", |name| name == "conv_in.weight" || name.starts_with("down_blocks.")),
        ("vae", |name| name.starts_with("decoder.") || name.starts_with("encoder.conv_in")),
        ("text_encoder", |name| name.ends_with("embeddings.token_embedding.weight")),
    ];
    let is_kind = |(_, mark): &&(&str, Mark)| inventory.names().any(mark);
    kinds.iter().find(is_kind).map_or("tensors", |(kind, _)| kind)
}
