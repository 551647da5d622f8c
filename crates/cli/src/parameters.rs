//! The text in which web UIs keep a picture's settings (AUTOMATIC1111's `infotext_utils.py`): the prompt, a line that starts with
//! `Negative prompt:`, and a last line of `Key: value` pairs.

use std::fmt::{self, Display};

const NEGATIVE_PROMPT: &str = "Negative prompt:";

/// A last line of fewer pairs belongs to the prompt, as the web UI reads it.
const FEWEST_SETTINGS: usize = 3;

/// What a picture was made with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) prompt: String,
    pub(crate) negative_prompt: String,
    /// Keys and values, in order.
    pub(crate) settings: Vec<(String, String)>,
}

impl Parameters {
    pub(crate) fn set(&mut self, key: &str, value: impl Display) {
        self.settings.push((key.to_string(), value.to_string()));
    }

    pub(crate) fn parse(text: &str) -> Self {
        let mut lines: Vec<&str> = text.trim().lines().collect();
        let mut parameters = Self::default();
        if let Some(settings) = lines.last().and_then(|line| parse_settings(line)) {
            parameters.settings = settings;
            lines.pop();
        }
        let negative = lines.iter().position(|line| line.trim_start().starts_with(NEGATIVE_PROMPT));
        let (prompt, negative) = lines.split_at(negative.unwrap_or(lines.len()));
        parameters.prompt = prompt.join("\n").trim().to_string();
        let negative = negative.join("\n");
        let negative = negative.trim();
        parameters.negative_prompt =
            negative.strip_prefix(NEGATIVE_PROMPT).unwrap_or(negative).trim().to_string();
        parameters
    }
}

impl Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.prompt)?;
        if !self.negative_prompt.is_empty() {
            writeln!(f, "{NEGATIVE_PROMPT} {}", self.negative_prompt)?;
        }
        for (index, (key, value)) in self.settings.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{key}: {}", quoted_if_needed(value))?;
        }
        Ok(())
    }
}

/// A value that holds what separates values is written as a JSON string.
fn quoted_if_needed(value: &str) -> String {
    if value.contains([',', ':', '\n', '"']) {
        serde_json::Value::from(value).to_string()
    } else {
        value.to_string()
    }
}

/// The pairs of a line such as `Steps: 20, Model: "a, b"`, or nothing where it is no such line.
fn parse_settings(line: &str) -> Option<Vec<(String, String)>> {
    let mut settings = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_once(':')?;
        let after = after.trim_start();
        let (value, after) = if after.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
            let value = values.next()?.ok()?;
            (value, after.get(values.byte_offset()..)?)
        } else {
            let end = after.find(',').unwrap_or(after.len());
            (after.get(..end)?.trim().to_string(), after.get(end..)?)
        };
        settings.push((key.trim().to_string(), value));
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    (settings.len() >= FEWEST_SETTINGS).then_some(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Parameters {
        let mut parameters = Parameters {
            prompt: "a castle: \"grand\",\nby the sea".to_string(),
            negative_prompt: "blurry, ugly\nsad".to_string(),
            settings: Vec::new(),
        };
        parameters.set("Steps", 20);
        parameters.set("Sampler", "DPM++ 2M");
        parameters.set("CFG scale", 7.5);
        parameters.set("Model", "a, \"b\": c");
        parameters.set("Size", "512x768");
        parameters
    }

    #[test]
    fn the_text_is_what_web_uis_write() {
        let mut parameters = example();
        parameters.settings.remove(3);
        let expected = "a castle: \"grand\",\nby the sea\nNegative prompt: blurry, ugly\nsad\n\
                        Steps: 20, Sampler: DPM++ 2M, CFG scale: 7.5, Size: 512x768";
        assert_eq!(parameters.to_string(), expected);
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(Parameters::parse(&example().to_string()), example());
        let plain = Parameters { prompt: "only a prompt".into(), ..Default::default() };
        assert_eq!(Parameters::parse(&plain.to_string()), plain);
    }

    #[test]
    fn a_last_line_that_is_no_list_of_settings_belongs_to_the_prompt() {
        for text in ["a", "portrait: a man", "a: b, c: d", "", ":::", "a: \"b, c: d, e: f", "\n\n"] {
            assert_eq!(Parameters::parse(text).prompt, text.trim());
        }
    }
}
