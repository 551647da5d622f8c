//! AdamW beside torch's.

use candle_diffusers_test_support::{Fixture, assert_close};
use candle_diffusers_training::{AdamW, AdamWConfig, Gradients, Optimizer, parameters};
use serde_json::Value;

use crate::group;

#[test]
fn parameters_are_those_of_torch_after_each_step() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/adamw");
    let fixture = Fixture::open(format!("{folder}/adamw.safetensors"));
    let settings: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{folder}/cases.json")).unwrap()).unwrap();
    for (case, options) in settings["cases"].as_object().unwrap() {
        let groups = ["a", "b"].map(|letter| {
            let rates = &options["groups"][usize::from(letter == "b")];
            let starts = [0, 1].map(|index| format!("{letter}{index}"));
            let starts: Vec<_> =
                starts.iter().map(|name| (name.as_str(), fixture.get(&format!("start/{name}")))).collect();
            group(&starts, rates[0].as_f64().unwrap(), rates[1].as_f64().unwrap())
        });
        let number = |value: &Value| value.as_f64().unwrap();
        let config = AdamWConfig {
            beta1: number(&options["betas"][0]),
            beta2: number(&options["betas"][1]),
            epsilon: number(&options["eps"]),
        };
        let mut optimizer = AdamW::new(config).unwrap();
        for (step, factor) in options["factors"].as_array().unwrap().iter().enumerate() {
            let gradient = |name: &str| {
                let skipped = settings["skipped"] == serde_json::json!([step, name]);
                (!skipped).then(|| fixture.get(&format!("gradient/{step}/{name}")).clone())
            };
            let gradients = parameters(&groups).map(|parameter| gradient(&parameter.name)).collect();
            let gradients = Gradients::new(gradients, &groups).unwrap();
            optimizer.step(&groups, &gradients, number(factor)).unwrap();
            for parameter in parameters(&groups) {
                let expected = format!("{case}/{step}/{}", parameter.name);
                assert_close(&expected, &parameter.var, fixture.get(&expected), 1e-6);
            }
        }
    }
}
