use std::path::Path;

use anyhow::Result;
use candle_diffusers_convert::Source;
use candle_diffusers_loaders::{Repository, find_weights};
use serde_json::{Map, Value};

use super::{family, tensor_file};

/// A folder of one model: a config and weights.
pub(super) fn inspect(source: &Path) -> Result<Value> {
    let repository = Repository::folder(source)?;
    let config: Value = repository.read_json("config.json")?;
    let mut report = Map::new();
    report.insert("kind".into(), "component".into());
    let class_name = config.get("_class_name").or_else(|| config.get("architectures")?.get(0));
    report.insert("class_name".into(), class_name.cloned().unwrap_or_default());
    if matches!(class_name.and_then(Value::as_str), Some("UNet2DConditionModel" | "ControlNetModel")) {
        report.insert("family".into(), family::family(&config).into());
    }
    report.extend(weights(&repository, "")?);
    Ok(Value::Object(report))
}

/// What the weights in `folder` are; nothing where there are none to be seen.
pub(super) fn weights(repository: &Repository, folder: &str) -> Result<Map<String, Value>> {
    let variants = [None, Some("fp16"), Some("bf16")];
    let found = variants.iter().find_map(|variant| {
        let path = find_weights(repository, folder, *variant).ok()?;
        Some((*variant, path))
    });
    let Some((variant, path)) = found else { return Ok(Map::new()) };
    let mut fields = Map::new();
    let file = path.rsplit_once('/').map_or(path.as_str(), |(_, file)| file);
    fields.insert("file".into(), file.into());
    if let Some(variant) = variant {
        fields.insert("variant".into(), variant.into());
    }
    fields.extend(tensor_file::contents(&repository.open_checkpoint(&path)?.inventory()));
    Ok(fields)
}
