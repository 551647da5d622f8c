use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use candle_diffusers_convert::Checkpoint;
use serde_json::{Map, Value, json};

/// A `.safetensors` file, or the index of shards.
pub(super) fn inspect(source: &Path) -> Result<Value> {
    let checkpoint = Checkpoint::open(source)?;
    let mut report = Map::new();
    report.insert("kind".into(), kind(&checkpoint).into());
    report.extend(contents(&checkpoint));
    let mut metadata = BTreeMap::new();
    for file in checkpoint.files() {
        metadata.extend(file.metadata().clone());
    }
    report.insert("metadata".into(), json!(metadata));
    Ok(Value::Object(report))
}

/// How many tensors and numbers a checkpoint has, and of which dtypes the numbers are.
pub(super) fn contents(checkpoint: &Checkpoint) -> Map<String, Value> {
    let mut parameters = 0;
    let mut bytes = 0;
    let mut dtypes: BTreeMap<String, usize> = BTreeMap::new();
    for (_, info) in checkpoint.tensors() {
        parameters += info.elements();
        bytes += info.bytes();
        *dtypes.entry(info.dtype.to_string()).or_default() += info.elements();
    }
    let mut fields = Map::new();
    fields.insert("parameters".into(), parameters.into());
    fields.insert("bytes".into(), bytes.into());
    fields.insert("tensors".into(), checkpoint.len().into());
    fields.insert("dtypes".into(), json!(dtypes));
    fields
}

/// What a file holds, as far as the names of its tensors say: the first kind with such a name.
fn kind(checkpoint: &Checkpoint) -> &'static str {
    type Mark = fn(&str) -> bool;
    let kinds: [(&str, Mark); 6] = [
        ("lora", |name| {
            let marks = [".lora_A.", ".lora_B.", ".lora_up.", ".lora_down.", ".lora.up.", ".lora.down."];
            marks.iter().any(|mark| name.contains(mark))
        }),
        ("embedding", |name| ["emb_params", "clip_l", "clip_g"].contains(&name)),
        ("checkpoint", |name| name.starts_with("model.diffusion_model.")),
        ("unet", |name| name == "conv_in.weight" || name.starts_with("down_blocks.")),
        ("vae", |name| name.starts_with("decoder.") || name.starts_with("encoder.conv_in")),
        ("text_encoder", |name| name.ends_with("embeddings.token_embedding.weight")),
    ];
    let is_kind = |(_, mark): &&(&str, Mark)| checkpoint.tensors().any(|(_, info)| mark(&info.name));
    kinds.iter().find(is_kind).map_or("tensors", |(kind, _)| kind)
}
