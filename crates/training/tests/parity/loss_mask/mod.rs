//! The masked loss and its gradient beside cloneofsimo's lora.

use candle_core::{Tensor, Var};
use candle_diffusers_test_support::{Fixture, assert_close};
use candle_diffusers_training::{LossOptions, loss, loss_mask};
use serde_json::Value;

/// Fails unless the difference is at most a millionth of the largest expected value, however small that is.
fn check(what: &str, actual: &Tensor, expected: &Tensor) {
    let largest = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let [actual, expected] = [actual, expected].map(|tensor| (tensor / f64::from(largest)).unwrap());
    assert_close(what, &actual, &expected, 1e-6);
}

#[test]
fn loss_and_gradient_are_those_of_the_original() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/loss_mask");
    let fixture = Fixture::open(format!("{folder}/loss_mask.safetensors"));
    let settings: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{folder}/cases.json")).unwrap()).unwrap();
    let prediction = Var::from_tensor(fixture.get("prediction")).unwrap();
    let (_, _, height, width) = prediction.dims4().unwrap();
    for (index, temperature) in settings["temperatures"].as_array().unwrap().iter().enumerate() {
        let temperature = temperature.as_f64().unwrap();
        let expected = |name: &str| fixture.get(&format!("{index}/{name}"));
        let what = |name: &str| format!("{name} at temperature {temperature}");
        let weights = loss_mask(fixture.get("masks"), height, width, temperature).unwrap();
        check(&what("weights"), &weights, expected("weights"));
        let options = LossOptions { mask: Some(&weights), ..Default::default() };
        let loss = loss(&prediction, fixture.get("target"), &options).unwrap();
        check(&what("loss"), &loss, expected("loss"));
        let gradients = loss.backward().unwrap();
        check(&what("gradient"), gradients.get(&prediction).unwrap(), expected("gradient"));
    }
}
