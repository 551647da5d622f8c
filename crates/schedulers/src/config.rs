//! Reading and writing `scheduler_config.json`.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The version of diffusers whose configs are written.
const DIFFUSERS_VERSION: &str = "0.42.1";
/// Fields that diffusers keeps in a config in memory and never writes.
const NEVER_WRITTEN: [&str; 2] = ["_use_default_values", "_ignore_files"];
/// Where diffusers lists the fields that were not given.
const USE_DEFAULT_VALUES: &str = "_use_default_values";

/// Parses the text of a `scheduler_config.json`.
///
/// Python writes infinities and NaN as bare words, which JSON does not have (`"lambda_min_clipped": -Infinity`); they
/// become strings of the same letters, which the config structs read as numbers.
///
/// # Errors
/// If the text is not JSON otherwise.
pub fn config_from_json(text: &str) -> Result<Value> {
    Ok(serde_json::from_str(&quote_bare_words(text))?)
}

/// The text of a `scheduler_config.json` as diffusers writes it: sorted, indented by two, infinities as bare words.
pub fn config_to_json(config: &Value) -> String {
    let mut sorted: Vec<(&String, &Value)> = config.as_object().into_iter().flatten().collect();
    sorted
        .retain(|(name, _)| !NEVER_WRITTEN.contains(&name.as_str()) && name.as_str() != "_diffusers_version");
    let version = Value::from(DIFFUSERS_VERSION);
    let version_name = "_diffusers_version".to_string();
    sorted.push((&version_name, &version));
    sorted.sort_by_key(|(name, _)| name.as_str());
    let lines: Vec<String> =
        sorted.iter().map(|(name, value)| format!("  {name:?}: {}", json_text(value))).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

fn json_text(value: &Value) -> String {
    match value.as_str() {
        Some(word @ ("Infinity" | "-Infinity" | "NaN")) => word.to_string(),
        // Pretty printing of a single value cannot fail; its lines are those of a field.
        None | Some(_) => format!("{value:#}").replace('\n', "\n  "),
    }
}

/// Puts quotes around `Infinity`, `-Infinity` and `NaN` outside strings.
fn quote_bare_words(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(character) = rest.chars().next() {
        let word =
            ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| !in_string && rest.starts_with(word));
        if let Some(word) = word {
            quoted.extend(["\"", word, "\""]);
            rest = &rest[word.len()..];
            continue;
        }
        let escaped = in_string && character == '\\';
        let length = character.len_utf8() + rest.chars().nth(1).filter(|_| escaped).map_or(0, char::len_utf8);
        in_string ^= character == '"';
        quoted.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    quoted
}

/// A typed config and what came with it in the JSON object.
#[derive(Clone, Debug)]
pub(crate) struct ConfigRecord<C> {
    pub(crate) typed: C,
    /// Fields of other classes, private ones (`_diffusers_version`) and unknown ones.
    pub(crate) hidden: Map<String, Value>,
    /// Known fields that were not given.
    defaulted: Vec<String>,
}

/// What every config struct can do.
pub(crate) trait SchedulerConfig: Default + Serialize + DeserializeOwned {
    /// diffusers' name of the scheduler class.
    const CLASS: &'static str;
}

impl<C: SchedulerConfig> ConfigRecord<C> {
    /// A config of which every field counts as given.
    pub(crate) fn new(typed: C) -> Self {
        Self { typed, hidden: Map::new(), defaulted: Vec::new() }
    }

    /// Follows diffusers' `from_config(config, **overrides)`: fields that count as defaults in `config` are dropped, known
    /// ones are read, everything else is kept hidden.
    pub(crate) fn read(config: &Map<String, Value>, overrides: &Map<String, Value>) -> Result<Self> {
        let known = field_names::<C>()?;
        if let Some(unknown) = overrides.keys().find(|name| !known.contains(name)) {
            let expected = format!("it has no such field; it has {}", known.join(", "));
            let found = overrides[unknown].to_string();
            return Err(Error::Field { class: C::CLASS, field: unknown.clone(), found, expected });
        }
        let dropped = config.get(USE_DEFAULT_VALUES).and_then(Value::as_array);
        let is_dropped = |name: &str| {
            name == USE_DEFAULT_VALUES || dropped.is_some_and(|list| list.iter().any(|entry| entry == name))
        };
        let (mut given, mut hidden) = (overrides.clone(), Map::new());
        for (name, value) in config.iter().filter(|(name, _)| !is_dropped(name)) {
            if !known.contains(name) {
                hidden.insert(name.clone(), value.clone());
            } else if !given.contains_key(name) {
                given.insert(name.clone(), value.clone());
            }
        }
        hidden.remove("_class_name");
        for (name, value) in &given {
            let alone = Map::from_iter([(name.clone(), value.clone())]);
            if let Err(error) = serde_json::from_value::<C>(Value::Object(alone)) {
                return Err(Error::Field {
                    class: C::CLASS,
                    field: name.clone(),
                    found: value.to_string(),
                    expected: error.to_string(),
                });
            }
        }
        let defaulted = known.into_iter().filter(|name| !given.contains_key(name)).collect();
        let typed = serde_json::from_value(Value::Object(given))?;
        Ok(Self { typed, hidden, defaulted })
    }

    /// The config as diffusers' `scheduler.config` has it.
    pub(crate) fn to_value(&self) -> Value {
        let mut config = match serde_json::to_value(&self.typed) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        config.extend(self.hidden.clone());
        config.insert("_class_name".into(), C::CLASS.into());
        if !self.defaulted.is_empty() {
            config.insert(USE_DEFAULT_VALUES.into(), self.defaulted.clone().into());
        }
        Value::Object(config)
    }
}

/// The names of a config's fields.
fn field_names<C: SchedulerConfig>() -> Result<Vec<String>> {
    match serde_json::to_value(C::default())? {
        Value::Object(fields) => Ok(fields.into_iter().map(|(name, _)| name).collect()),
        _ => Ok(Vec::new()),
    }
}

/// For `#[serde(with = ...)]`: a number that may be infinite, which JSON cannot say but Python's writer does.
pub(crate) mod number_or_infinity {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        if number.is_finite() {
            serializer.serialize_f64(*number)
        } else if number.is_nan() {
            serializer.serialize_str("NaN")
        } else {
            serializer.serialize_str(if *number > 0.0 { "Infinity" } else { "-Infinity" })
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number, \"-Infinity\" or \"Infinity\" is expected")]
        enum Number {
            Finite(f64),
            Word(Word),
        }
        #[derive(Deserialize)]
        enum Word {
            #[serde(rename = "-Infinity", alias = "-inf")]
            MinusInfinity,
            #[serde(rename = "Infinity", alias = "inf")]
            Infinity,
        }
        Ok(match Number::deserialize(deserializer)? {
            Number::Finite(number) => number,
            Number::Word(Word::MinusInfinity) => f64::NEG_INFINITY,
            Number::Word(Word::Infinity) => f64::INFINITY,
        })
    }
}

/// For `#[serde(deserialize_with = ...)]`: a flag that the reference lets be null, which means false.
pub(crate) fn optional_flag<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<bool, D::Error> {
    Ok(<Option<bool> as serde::Deserialize>::deserialize(deserializer)?.unwrap_or(false))
}

/// Fails unless `value` passes; the error names the class, the field, the value and what is expected.
pub(crate) fn check_field(
    class: &'static str,
    field: &str,
    value: impl std::fmt::Display,
    allowed: bool,
    expected: &str,
) -> Result<()> {
    if allowed {
        return Ok(());
    }
    let expected = format!("expected {expected}");
    Err(Error::Field { class, field: field.into(), found: value.to_string(), expected })
}
