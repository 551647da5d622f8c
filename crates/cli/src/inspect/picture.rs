use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::output::PARAMETERS_KEYWORD;
use crate::parameters::Parameters;

/// A PNG: its size and the texts that it carries.
pub(super) fn inspect(source: &Path) -> Result<Value> {
    let name = || source.display().to_string();
    let file = File::open(source).with_context(name)?;
    let mut reader = png::Decoder::new(BufReader::new(file)).read_info().with_context(name)?;
    // Texts may come after the pixels.
    reader.finish().with_context(name)?;
    let info = reader.info();
    let mut texts = BTreeMap::new();
    for chunk in &info.uncompressed_latin1_text {
        texts.insert(chunk.keyword.clone(), chunk.text.clone());
    }
    for chunk in &info.compressed_latin1_text {
        texts.insert(chunk.keyword.clone(), chunk.get_text().with_context(name)?);
    }
    for chunk in &info.utf8_text {
        texts.insert(chunk.keyword.clone(), chunk.get_text().with_context(name)?);
    }
    let parameters = texts.remove(PARAMETERS_KEYWORD);
    Ok(json!({
        "kind": "picture",
        "width": info.width,
        "height": info.height,
        "parameters": parameters.as_deref().map(as_json),
        "metadata": texts,
    }))
}

fn as_json(text: &str) -> Value {
    let Parameters { prompt, negative_prompt, settings } = Parameters::parse(text);
    let mut fields = Map::new();
    fields.insert("prompt".into(), prompt.into());
    fields.insert("negative_prompt".into(), negative_prompt.into());
    fields.extend(settings.into_iter().map(|(key, value)| (key, value.into())));
    Value::Object(fields)
}
