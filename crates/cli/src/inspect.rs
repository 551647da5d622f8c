mod checkpoint;
mod component;
mod embedding;
mod family;
mod lora;
mod metadata;
mod picture;
mod pipeline;
mod tensor_file;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_diffusers_convert::{EmbeddingFile, LoraFile, Source, open_file};
use serde_json::Value;

use crate::arguments::InspectArguments;
use crate::output::utf8_name;
use crate::terminal;

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// What a reader looks for first.
const FIRST_FIELDS: [&str; 6] = ["kind", "title", "problem", "class_name", "prompt", "negative_prompt"];

/// How many characters of a text in a file's metadata are shown; all of it is in the JSON.
const SHOWN_OF_METADATA: usize = 200;

/// `diffuse inspect`.
pub(crate) fn run(arguments: &InspectArguments) -> Result<()> {
    let report = inspect(&arguments.source)?;
    if arguments.json {
        terminal::print(&serde_json::to_string_pretty(&report)?)
    } else {
        terminal::print(&as_text(&report))
    }
}

/// What `source` is, as a JSON object whose `kind` says what else is in it.
fn inspect(source: &Path) -> Result<Value> {
    let name = utf8_name("SOURCE", source)?;
    let metadata = fs::metadata(source).with_context(|| format!("{name:?}"))?;
    if metadata.is_dir() {
        let is_model = ["model_index.json", "config.json"].iter().any(|file| source.join(file).exists());
        if !is_model && LoraFile::is_folder(source) {
            return lora::inspect_folder(source);
        }
        if let Some(file) = EmbeddingFile::in_folder(source).filter(|_| !is_model) {
            return inspect_tensors(open_file(&file)?.as_ref());
        }
        return if source.join("config.json").exists() && !source.join("model_index.json").exists() {
            component::inspect(source)
        } else {
            pipeline::inspect(source)
        };
    }
    let mut start = Vec::new();
    let file = File::open(source).with_context(|| name.to_string())?;
    file.take(PNG_SIGNATURE.len() as u64).read_to_end(&mut start).with_context(|| name.to_string())?;
    if start == PNG_SIGNATURE {
        return picture::inspect(source);
    }
    match open_file(source) {
        Ok(opened) => inspect_tensors(opened.as_ref()),
        Err(_) if !has_known_ending(source) => bail!("{name}: not a folder, a file of tensors or a PNG"),
        Err(error) => Err(error.into()),
    }
}

/// What a file of tensors is, by what its tensors are called: whoever knows them says it, the particular before the general.
fn inspect_tensors(source: &dyn Source) -> Result<Value> {
    let inventory = source.inventory();
    let known = lora::inspect(source, &inventory)
        .or_else(|| embedding::inspect(source, &inventory))
        .or_else(|| checkpoint::inspect(source, &inventory));
    Ok(known.unwrap_or_else(|| tensor_file::inspect(source, &inventory)))
}

/// Whether a file by its name should be one of tensors, so that what is wrong with it is of interest.
fn has_known_ending(source: &Path) -> bool {
    let ending = source.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ["safetensors", "json", "ckpt", "pt", "pth", "bin"].contains(&ending.as_str())
}

/// An object as lines of `key: value`: what it is, then its plain fields, then what is made of parts, indented.
fn as_text(report: &Value) -> String {
    let mut text = String::new();
    write_fields(&mut text, report, 0);
    text.trim_end().to_string()
}

fn write_fields(text: &mut String, value: &Value, depth: usize) {
    let Value::Object(fields) = value else { return };
    let indent = "  ".repeat(depth);
    let (parts, mut plain): (Vec<_>, Vec<_>) =
        fields.iter().partition(|(_, value)| value.is_object() || is_list_of_lines(value));
    let place = |key: &str| FIRST_FIELDS.iter().position(|first| *first == key).unwrap_or(FIRST_FIELDS.len());
    plain.sort_by_key(|(key, _)| place(key));
    for (key, value) in plain {
        let value = scalar(value);
        if !value.is_empty() {
            text.push_str(&format!("{indent}{}: {value}\n", key.replace('_', " ")));
        }
    }
    for (key, value) in parts {
        let mut lines = String::new();
        match value {
            Value::Array(items) => {
                items.iter().for_each(|line| lines.push_str(&format!("{indent}  {}\n", scalar(line))));
            }
            _ if key == "metadata" => write_metadata(&mut lines, value, depth + 1),
            _ => write_fields(&mut lines, value, depth + 1),
        }
        if !lines.is_empty() {
            text.push_str(&format!("{indent}{}:\n{lines}", key.replace('_', " ")));
        }
    }
}

/// Whether it is a list of sentences, which do not fit on one line.
fn is_list_of_lines(value: &Value) -> bool {
    let is_sentence = |item: &Value| item.as_str().is_some_and(|text| text.contains(' '));
    value.as_array().is_some_and(|items| items.iter().any(is_sentence))
}

/// Texts by their own keys, each on one line and its beginning only: training tools write whole data sets there.
fn write_metadata(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    for (key, value) in value.as_object().into_iter().flatten() {
        let value = scalar(value).replace('\n', " ");
        let shown: String = value.chars().take(SHOWN_OF_METADATA).collect();
        let rest = value.chars().count() - shown.chars().count();
        let more = if rest > 0 { format!("... ({rest} more characters)") } else { String::new() };
        text.push_str(&format!("{indent}{}: {shown}{more}\n", scalar(&key.as_str().into())));
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        // What would control the terminal is replaced; a prompt may have several lines.
        Value::String(word) => word.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}"),
        Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(", "),
        Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), grouped),
        other => other.to_string(),
    }
}

/// 859520964 as 859,520,964.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (859520964, "859,520,964")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn text_is_indented_and_leaves_out_what_is_not_known() {
        let report = serde_json::json!({"kind": "x", "family": null, "unet": {"class_name": "U", "dtypes": {"F16": 5}}});
        assert_eq!(as_text(&report), "kind: x\nunet:\n  class name: U\n  dtypes:\n    F16: 5");
    }

    #[test]
    fn sentences_are_lines_and_long_metadata_is_cut() {
        let report = serde_json::json!({
            "notes": ["one thing", "another"], "ranks": ["4", "8"], "metadata": {"a_b": "x".repeat(250), "c": "1\n2"},
        });
        let expected = format!(
            "ranks: 4, 8\nmetadata:\n  a_b: {}... (50 more characters)\n  c: 1 2\nnotes:\n  one thing\n  another",
            "x".repeat(200)
        );
        assert_eq!(as_text(&report), expected);
    }
}
