//! Building a scheduler from another's config carries over the fields that the reference carries over.

use std::collections::BTreeMap;

use candle_diffusers_schedulers::{
    config_from_json, config_to_json, scheduler_from_config, scheduler_from_other, scheduler_with_overrides,
};
use serde_json::{Map, Value, json};

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/from_config/from_config.json");
    config_from_json(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Fields by name, with numbers as float64 (Python tells 1 from 1.0) and defaults as a sorted list.
fn comparable(config: &Value) -> BTreeMap<String, Value> {
    let plain = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::Number(number) => json!(number.as_f64()),
            Value::Array(entries) if name == "_use_default_values" => {
                let mut names: Vec<&str> = entries.iter().map(|entry| entry.as_str().unwrap()).collect();
                names.sort_unstable();
                json!(names)
            }
            other => other.clone(),
        };
        (name.clone(), value)
    };
    config.as_object().unwrap().iter().map(plain).collect()
}

/// Fails unless `target`, made from `source`, has the config that the reference's has; the config that it has.
#[track_caller]
fn check_conversion(source: &Value, target: &str, expected: &Value) -> Value {
    let made =
        scheduler_from_other(target, source).unwrap_or_else(|error| panic!("{source} to {target}: {error}"));
    assert_eq!(comparable(&made.config()), comparable(expected), "{source} to {target}");
    made.config()
}

#[test]
fn every_pair_is_converted_as_the_reference_does() {
    let fixture = fixture();
    let sources = fixture["sources"].as_array().unwrap();
    let mut conversions = 0;
    for entry in sources {
        let source = &entry["source"];
        for (target, expected) in entry["made"].as_object().unwrap() {
            let made = check_conversion(source, target, expected);
            conversions += 1;
            if let Some(expected) = entry["back"].get(target) {
                check_conversion(&made, source["_class_name"].as_str().unwrap(), expected);
                conversions += 1;
            }
        }
    }
    assert!(conversions > 200, "{conversions}");
}

#[test]
fn configs_are_written_as_the_reference_writes_them() {
    for written in fixture()["written"].as_array().unwrap() {
        let mut config = written["fields"].clone();
        config["_class_name"] = written["class"].clone();
        let scheduler = scheduler_from_config(&config).unwrap();
        let text = config_to_json(&scheduler.config());
        assert_eq!(text, written["text"].as_str().unwrap());
        // What was written reads back to the same fields, now all of them given.
        let again = scheduler_from_config(&config_from_json(&text).unwrap()).unwrap();
        assert_eq!(config_to_json(&again.config()), text);
    }
}

#[test]
fn overrides_count_more_than_defaults_and_fields() {
    let source =
        scheduler_from_other("EulerDiscreteScheduler", &json!({"beta_schedule": "scaled_linear"})).unwrap();
    let overrides = json!({"use_karras_sigmas": true, "beta_schedule": "linear"});
    let overrides: &Map<String, Value> = overrides.as_object().unwrap();
    let made = scheduler_with_overrides("DPMSolverMultistepScheduler", &source.config(), overrides).unwrap();
    assert_eq!(made.config()["use_karras_sigmas"], json!(true));
    assert_eq!(made.config()["beta_schedule"], json!("linear"));
    let overrides = json!({"karras": true});
    let error = scheduler_with_overrides("DDIMScheduler", &source.config(), overrides.as_object().unwrap());
    let error = error.err().unwrap().to_string();
    assert!(error.contains("karras") && error.contains("beta_schedule"), "{error}");
}
