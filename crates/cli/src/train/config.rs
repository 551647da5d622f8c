//! Flags in a TOML file.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::error::ErrorKind;
use clap::{Arg, Args, Command};
use toml::Value;

use super::TrainArguments;
use super::arguments::SEVERAL;
use crate::nearest;

/// The flags in a file of `name = value`, as they would stand on the command line.
///
/// # Errors
/// When the file cannot be read, has a name that is no flag, or a value that the flag does not take.
pub(crate) fn read(file: &Path) -> Result<Vec<OsString>> {
    let name = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("--config {name}"))?;
    let table: toml::Table = text.parse().with_context(|| format!("--config {name}"))?;
    let command = TrainArguments::augment_args(Command::new("train"));
    let known = nearest::shown_flags(&command, None);
    let mut alone = command.clone().mut_args(|argument| argument.required(false));
    let mut flags = Vec::new();
    for (key, value) in table {
        let flag = key.replace('_', "-");
        ensure!(flag != "config", "--config {name}: config is for the command line alone; leave it out");
        let Some(argument) = find(&command, &flag) else {
            bail!(
                "--config {name}: {key} is no flag of diffuse train; the nearest is {}",
                nearest::nearest(&key, &known).unwrap_or_default().replace('-', "_")
            );
        };
        let said = said(argument, &flag, &value).filter(|said| is_taken(&mut alone, said));
        let Some(said) = said else {
            bail!("--config {name}: {key} is {value}, expected {}", expected(argument));
        };
        flags.extend(said);
    }
    Ok(flags)
}

/// The flag of this name, or of this other name.
fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|argument| {
        argument.get_long() == Some(name) || argument.get_all_aliases().unwrap_or_default().contains(&name)
    })
}

/// What the command line would have for a value; nothing where that is of a type that the flag does not take.
fn said(argument: &Arg, flag: &str, value: &Value) -> Option<Vec<OsString>> {
    let takes_value = argument.get_action().takes_values();
    let with = |text: &dyn Display| OsString::from(format!("--{flag}={text}"));
    Some(match value {
        Value::Boolean(true) if !takes_value => vec![format!("--{flag}").into()],
        Value::Boolean(false) if !takes_value => Vec::new(),
        _ if !takes_value => return None,
        Value::Boolean(is_true) => {
            // Some flags have these words among others.
            let values = argument.get_possible_values();
            values.iter().find(|value| value.matches(&is_true.to_string(), false))?;
            vec![with(is_true)]
        }
        Value::String(text) => vec![with(text)],
        Value::Integer(number) => vec![with(number)],
        Value::Float(number) => vec![with(number)],
        Value::Array(values) => {
            let texts = values.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?;
            // Each of these is a text or file of its own, in which there may be commas.
            match SEVERAL.contains(&format!("--{flag}").as_str()) {
                true => texts.iter().map(|text| with(text)).collect(),
                false => vec![with(&texts.join(","))],
            }
        }
        Value::Datetime(_) | Value::Table(_) => return None,
    })
}

/// Whether a flag takes the value that is said.
fn is_taken(alone: &mut Command, said: &[OsString]) -> bool {
    let line = [OsString::from("train")].into_iter().chain(said.iter().cloned());
    match alone.try_get_matches_from_mut(line) {
        Ok(_) => true,
        // What else the flag needs may be on the command line. Values are looked at before that.
        Err(error) => error.kind() == ErrorKind::MissingRequiredArgument,
    }
}

/// What a flag takes.
fn expected(argument: &Arg) -> String {
    if !argument.get_action().takes_values() {
        return "true or false".to_string();
    }
    let values = argument.get_possible_values();
    let names: Vec<String> = values
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| value.get_name().to_string())
        .collect();
    if !names.is_empty() {
        return format!("one of {}", names.join(", "));
    }
    let kind = argument.get_value_names().and_then(|names| names.first()).map(|name| name.as_str());
    match kind {
        Some("N" | "PIXELS") => "a whole number of 0 or more",
        Some("X") => "a number",
        _ => "a text",
    }
    .to_string()
}
