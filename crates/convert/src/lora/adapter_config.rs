//! PEFT's `LoraConfig`, which says the alphas of the layouts that have no tensors for them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value};

use super::{LoraComponent, LoraError, LoraLayout};
use crate::{Error, Result, Source};

/// The key of diffusers' files under which the configs of all components are.
pub(super) const METADATA_KEY: &str = "lora_adapter_metadata";
/// The file that PEFT writes beside the weights.
pub(super) const CONFIG_FILE: &str = "adapter_config.json";
/// Longer ones are no configs.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// More patterns than any model has layers would only take time.
const MAX_PATTERNS: usize = 4096;
/// PEFT's own default, of alpha as of the rank.
const DEFAULT: f64 = 8.0;

/// What a config says of alphas.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    alphas: Numbers,
    ranks: Numbers,
    pub(super) rank_stabilized: bool,
}

/// A number for each layer: that of the first pattern that fits, else one for all.
#[derive(Debug)]
struct Numbers {
    patterns: Vec<(Pattern, f64)>,
    otherwise: f64,
}

/// A key of `alpha_pattern`: a regular expression for the end of a layer's name.
#[derive(Debug)]
enum Pattern {
    /// Nothing but letters, digits, underscores and dots; whether the whole name must be that.
    Plain {
        text: String,
        is_whole: bool,
    },
    Regex(Regex),
}

/// The configs of a file, for the component that each is about; for all where there is only one without a name.
#[derive(Debug, Default)]
pub(super) struct AdapterConfigs {
    for_all: Option<AdapterConfig>,
    by_component: BTreeMap<LoraComponent, AdapterConfig>,
}

impl AdapterConfigs {
    /// The configs in the file's metadata, else, for one of PEFT's, in `adapter_config.json` beside it.
    ///
    /// # Errors
    /// When one of them cannot be understood.
    pub(super) fn of(
        source: &dyn Source,
        metadata: &BTreeMap<String, String>,
        layouts: &[LoraLayout],
    ) -> Result<Self> {
        let file = source.name();
        let Some(text) = metadata.get(METADATA_KEY) else {
            let is_peft = layouts.contains(&LoraLayout::Peft);
            return if is_peft { Self::beside(source) } else { Ok(Self::default()) };
        };
        let fields = parse(file, METADATA_KEY, text.as_bytes())?;
        let mut configs = Self::default();
        for component in LoraComponent::ALL {
            let prefix = format!("{}.", component.folder());
            let own: Map<String, Value> = fields
                .iter()
                .filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?.to_string(), value.clone())))
                .collect();
            if !own.is_empty() {
                let config = AdapterConfig::new(file, METADATA_KEY, &own)?;
                configs.by_component.insert(component, config);
            }
        }
        // Written by a model for itself.
        if configs.by_component.is_empty() && (fields.contains_key("lora_alpha") || fields.contains_key("r"))
        {
            configs.for_all = Some(AdapterConfig::new(file, METADATA_KEY, &fields)?);
        }
        Ok(configs)
    }

    fn beside(source: &dyn Source) -> Result<Self> {
        let inventory = source.inventory();
        let Some(first) = inventory.names().next() else { return Ok(Self::default()) };
        let folder = source.position(first).and_then(|(path, _)| path.parent());
        let Some(path) = folder.map(|folder| folder.join(CONFIG_FILE)).filter(|path| path.is_file()) else {
            return Ok(Self::default());
        };
        Ok(Self {
            for_all: Some(AdapterConfig::new(
                source.name(),
                CONFIG_FILE,
                &read_fields(source.name(), &path)?,
            )?),
            ..Self::default()
        })
    }

    /// The config for a component.
    pub(super) fn get(&self, component: LoraComponent) -> Option<&AdapterConfig> {
        self.by_component.get(&component).or(self.for_all.as_ref())
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.for_all.is_none() && self.by_component.is_empty()
    }
}

/// The fields of the config at `path`, which is about the weights `file`.
///
/// # Errors
/// When it cannot be read or is no JSON object.
pub(super) fn read_fields(file: &str, path: &Path) -> Result<Map<String, Value>> {
    let io = |source| Error::Io { file: path.display().to_string(), source };
    if fs::metadata(path).map_err(io)?.len() > MAX_CONFIG_BYTES {
        return Err(problem(file, CONFIG_FILE, "it is longer than any config").into());
    }
    parse(file, CONFIG_FILE, &fs::read(path).map_err(io)?)
}

impl AdapterConfig {
    fn new(file: &str, place: &str, fields: &Map<String, Value>) -> Result<Self> {
        // LoHa and LoKr of PEFT call it alpha.
        let alpha = if fields.contains_key("lora_alpha") { "lora_alpha" } else { "alpha" };
        Ok(Self {
            alphas: Numbers::new((file, place), fields, alpha, "alpha_pattern")?,
            ranks: Numbers::new((file, place), fields, "r", "rank_pattern")?,
            rank_stabilized: fields.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// The alpha of the layer called `name`.
    pub(super) fn alpha_of(&self, name: &str) -> f64 {
        self.alphas.of(name)
    }

    /// The rank that the layer called `name` was given, also where it turned out to have none.
    pub(super) fn rank_of(&self, name: &str) -> f64 {
        self.ranks.of(name)
    }
}

impl Numbers {
    fn new(
        (file, place): (&str, &str),
        fields: &Map<String, Value>,
        all: &str,
        pattern: &str,
    ) -> Result<Self> {
        let number = |field: &str, value: &Value| match value.as_f64() {
            Some(number) if number.is_finite() => Ok(number),
            _ => Err(problem(file, place, &format!("{field} is {}, expected a number", short(value)))),
        };
        let otherwise = fields.get(all).map_or(Ok(DEFAULT), |value| number(all, value))?;
        let mut patterns = Vec::new();
        if let Some(Value::Object(map)) = fields.get(pattern) {
            if map.len() > MAX_PATTERNS {
                return Err(problem(file, place, &format!("{pattern} has {} keys", map.len())).into());
            }
            for (key, value) in map {
                let parsed = Pattern::new(key).ok_or_else(|| {
                    problem(file, place, &format!("{pattern} has {key:?}, which is no pattern"))
                })?;
                patterns.push((parsed, number(pattern, value)?));
            }
        }
        Ok(Self { patterns, otherwise })
    }

    /// As PEFT looks it up: by the first pattern that fits the end of the name.
    fn of(&self, name: &str) -> f64 {
        // The name in transformers 5, whose patterns have lost this prefix.
        let short = name.strip_prefix("text_model.");
        let fits = |pattern: &Pattern| pattern.fits(name) || short.is_some_and(|name| pattern.fits(name));
        self.patterns.iter().find(|(pattern, _)| fits(pattern)).map_or(self.otherwise, |(_, number)| *number)
    }
}

impl Pattern {
    fn new(key: &str) -> Option<Self> {
        let (text, is_whole) = key.strip_prefix('^').map_or((key, false), |text| (text, true));
        let text = text.replace(r"\.", ".");
        if text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.') {
            return Some(Self::Plain { text, is_whole });
        }
        Regex::new(&format!(r"^(?:(?:.*\.)?(?:{key}))$")).ok().map(Self::Regex)
    }

    fn fits(&self, name: &str) -> bool {
        match self {
            Self::Plain { text, is_whole: true } => name == text,
            Self::Plain { text, is_whole: false } => {
                name.strip_suffix(text.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Regex(regex) => regex.is_match(name),
        }
    }
}

fn parse(file: &str, place: &str, text: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(problem(file, place, "expected a JSON object").into()),
        Err(error) => Err(problem(file, place, &error.to_string()).into()),
    }
}

fn problem(file: &str, place: &str, message: &str) -> LoraError {
    LoraError::Config { file: file.to_string(), place: place.to_string(), message: message.to_string() }
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_the_ends_of_names() {
        let fields = serde_json::json!({
            "lora_alpha": 4,
            "alpha_pattern": {"^conv_in": 1, "attn1.to_q": 2, "attn[0-9]+.to_k": 3, r"encoder\.fc1": 5},
        });
        let config = AdapterConfig::new("f", "p", fields.as_object().unwrap()).unwrap();
        for (name, alpha) in [
            ("conv_in", 1.0),
            ("a.conv_in", 4.0),
            ("a.attn1.to_q", 2.0),
            ("a.xattn1.to_q", 4.0),
            ("a.attn2.to_k", 3.0),
            ("text_model.encoder.fc1", 5.0),
        ] {
            assert_eq!(config.alpha_of(name), alpha, "{name}");
        }
    }
}
