//! Learning-rate schedules beside diffusers'.

use candle_diffusers_test_support::Fixture;
use candle_diffusers_training::{LrSchedule, LrScheduleOptions};
use serde_json::Value;

#[test]
fn factors_are_those_of_diffusers_at_every_step() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/lr_schedule");
    let fixture = Fixture::open(format!("{folder}/lr_schedule.safetensors"));
    let settings: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{folder}/cases.json")).unwrap()).unwrap();
    for (index, case) in settings["cases"].as_array().unwrap().iter().enumerate() {
        let count = |field: &str| case[field].as_u64().map(|count| count as usize);
        let default = LrScheduleOptions::default();
        let options = LrScheduleOptions {
            num_warmup_steps: count("num_warmup_steps").unwrap_or(default.num_warmup_steps),
            num_training_steps: count("num_training_steps").unwrap_or(default.num_training_steps),
            num_cycles: count("num_cycles").unwrap_or(default.num_cycles),
            power: case["power"].as_f64().unwrap_or(default.power),
            learning_rate: settings["learning_rate"].as_f64().unwrap(),
            step_rules: case["step_rules"].as_str().unwrap_or("").to_string(),
            ..default
        };
        let schedule = LrSchedule::new(case["name"].as_str().unwrap().parse().unwrap(), options).unwrap();
        for (step, expected) in fixture.values(&index.to_string()).into_iter().enumerate() {
            // The reference divides by zero where there are no steps to decay in.
            if !expected.is_nan() {
                let actual = schedule.factor(step);
                assert!((actual - expected).abs() <= 1e-9, "{case} step {step}: {actual} not {expected}");
            }
        }
    }
}
