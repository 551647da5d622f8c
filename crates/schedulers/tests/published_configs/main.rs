//! The `scheduler_config.json`s of published models, as their repositories have them: without fields that came later, and with
//! some of other schedulers.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use candle_diffusers_schedulers::{PredictionType, config_from_json, scheduler_class_names};
use candle_diffusers_schedulers::{scheduler_from_config, scheduler_from_other};
use serde_json::Value;

fn published() -> Vec<(String, Value)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/published_configs/scheduler.json");
    let Value::Object(entries) = config_from_json(&std::fs::read_to_string(path).unwrap()).unwrap() else {
        return Vec::new();
    };
    entries.into_iter().collect()
}

#[test]
fn all_are_read_and_no_field_is_lost() {
    let published = published();
    assert_eq!(published.len(), 8);
    for (repository, given) in published {
        let scheduler = scheduler_from_config(&given).unwrap();
        let config = scheduler.config();
        for (field, value) in given.as_object().unwrap() {
            assert_eq!(&config[field], value, "{repository}: {field}");
        }
        let is_v = repository == "stabilityai/stable-diffusion-2-1";
        let prediction_type = if is_v { PredictionType::VPrediction } else { PredictionType::Epsilon };
        assert_eq!(scheduler.prediction_type(), prediction_type, "{repository}");
        assert_eq!(scheduler.num_train_timesteps(), 1000, "{repository}");
        // Said by some, and the default of the others.
        assert_eq!(config["timestep_spacing"], "leading", "{repository}");
    }
}

#[test]
fn every_scheduler_can_be_made_of_each() {
    for (repository, given) in published() {
        let config = scheduler_from_config(&given).unwrap().config();
        for class_name in scheduler_class_names() {
            let mut scheduler = scheduler_from_other(class_name, &config).unwrap();
            scheduler.set_timesteps(20).unwrap();
            assert!(scheduler.timesteps().len() >= 20, "{repository} as {class_name}");
        }
    }
}
