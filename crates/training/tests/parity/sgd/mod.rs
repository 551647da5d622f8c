//! SGD beside torch's.

use candle_diffusers_test_support::{Fixture, assert_close};
use candle_diffusers_training::{Gradients, Optimizer, Sgd, SgdConfig};
use serde_json::Value;

use crate::group;

#[test]
fn parameters_are_those_of_torch_after_each_step() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/sgd");
    let fixture = Fixture::open(format!("{folder}/sgd.safetensors"));
    let cases: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{folder}/cases.json")).unwrap()).unwrap();
    for (case, options) in cases.as_object().unwrap() {
        let number = |field: &str| options[field].as_f64().unwrap();
        let groups =
            [group(&[("weight", fixture.get("start"))], number("learning_rate"), number("weight_decay"))];
        let nesterov = options["nesterov"].as_bool().unwrap();
        let mut optimizer = Sgd::new(SgdConfig { momentum: number("momentum"), nesterov }).unwrap();
        for step in 0..5 {
            let gradient = fixture.get(&format!("gradient/{step}")).clone();
            let gradients = Gradients::new(vec![Some(gradient)], &groups).unwrap();
            optimizer.step(&groups, &gradients, 1.0).unwrap();
            let expected = format!("{case}/{step}");
            assert_close(&expected, &groups[0].parameters[0].var, fixture.get(&expected), 1e-6);
        }
    }
}
