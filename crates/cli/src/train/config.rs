//! Flags in a TOML file.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Command};

use super::TrainArguments;
use super::arguments::SEVERAL;
use crate::nearest;

/// The flags in a file of `name = value`, as they would stand on the command line.
///
/// # Errors
/// When the file cannot be read, has a name that is no flag, or a value of another type than flags have.
pub(crate) fn read(file: &Path) -> Result<Vec<OsString>> {
    let name = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("--config {name}"))?;
    let table: toml::Table = text.parse().with_context(|| format!("--config {name}"))?;
    let command = TrainArguments::augment_args(Command::new("train"));
    let (known, shown) = (nearest::flags(&command), nearest::shown_flags(&command, None));
    let mut flags = Vec::new();
    for (key, value) in table {
        let hyphens = key.replace('_', "-");
        ensure!(
            known.contains(&hyphens.as_str()),
            "--config {name}: {key} is no flag of diffuse train{}",
            nearest::nearest(&key, &shown)
                .map_or(String::new(), |flag| format!("; the nearest is {}", flag.replace('-', "_")))
        );
        let flag = format!("--{hyphens}");
        let value = match value {
            toml::Value::Boolean(true) => {
                flags.push(flag.into());
                continue;
            }
            toml::Value::Boolean(false) => continue,
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            // Each of these is a text or file of its own, in which there may be commas.
            toml::Value::Array(values)
                if SEVERAL.contains(&flag.as_str()) && values.iter().all(toml::Value::is_str) =>
            {
                let texts = values.iter().filter_map(toml::Value::as_str);
                flags.extend(texts.map(|text| OsString::from(format!("{flag}={text}"))));
                continue;
            }
            toml::Value::Array(values) if values.iter().all(toml::Value::is_str) => {
                values.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(",")
            }
            other => {
                bail!(
                    "--config {name}: {key} is of the type {}, expected a text, a number or true",
                    other.type_str()
                )
            }
        };
        flags.push(format!("{flag}={value}").into());
    }
    Ok(flags)
}
