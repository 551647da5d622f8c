mod component;
mod family;
mod picture;
mod pipeline;
mod tensor_file;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::arguments::InspectArguments;
use crate::output::utf8_name;
use crate::terminal;

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// What a reader looks for first.
const FIRST_FIELDS: [&str; 4] = ["kind", "class_name", "prompt", "negative_prompt"];

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
    let ending = source.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    match ending.as_str() {
        "safetensors" | "json" => tensor_file::inspect(source),
        "ckpt" | "pt" | "pth" | "bin" => bail!("{name}: pickled checkpoints cannot be read yet"),
        _ => bail!("{name}: not a folder, a .safetensors file or a PNG"),
    }
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
    let (parts, mut plain): (Vec<_>, Vec<_>) = fields.iter().partition(|(_, value)| value.is_object());
    let place = |key: &str| FIRST_FIELDS.iter().position(|first| *first == key).unwrap_or(FIRST_FIELDS.len());
    plain.sort_by_key(|(key, _)| place(key));
    for (key, value) in plain {
        let value = scalar(value);
        if !value.is_empty() {
            text.push_str(&format!("{indent}{}: {value}\n", key.replace('_', " ")));
        }
    }
    for (key, value) in parts {
        if value.as_object().is_some_and(|fields| !fields.is_empty()) {
            text.push_str(&format!("{indent}{}:\n", key.replace('_', " ")));
            write_fields(text, value, depth + 1);
        }
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
}
