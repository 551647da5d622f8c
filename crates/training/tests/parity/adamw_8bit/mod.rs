//! AdamW with 8-bit states beside bitsandbytes'.

use candle_core::Tensor;
use candle_diffusers_test_support::{Fixture, assert_close, values};
use candle_diffusers_training::{AdamW8bit, AdamWConfig, Gradients, Optimizer, parameters};

use crate::group;

#[test]
fn parameters_and_states_are_those_of_bitsandbytes_after_each_step() {
    let fixture =
        Fixture::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/adamw_8bit/adamw_8bit.safetensors"));
    let starts = ["large", "small"].map(|name| (name, fixture.get(&format!("start/{name}"))));
    let groups = [group(&starts, 1e-3, 0.05)];
    let mut optimizer = AdamW8bit::new(AdamWConfig::default()).unwrap();
    for step in 0..3 {
        let gradients =
            ["large", "small"].map(|name| Some(fixture.get(&format!("gradient/{step}/{name}")).clone()));
        let gradients = Gradients::new(gradients.to_vec(), &groups).unwrap();
        optimizer.step(&groups, &gradients, 1.0).unwrap();
        for parameter in parameters(&groups) {
            let expected = format!("after/{step}/{}", parameter.name);
            assert_close(&expected, &parameter.var, fixture.get(&expected), 1e-6);
        }
        let state = optimizer.state().unwrap();
        for name in ["large.exp_avg", "large.exp_avg_sq"] {
            let expected = |name: &str| fixture.get(&format!("state/{step}/{name}"));
            assert_codes(name, &state[name], expected(name));
            let scales = format!("{name}.absmax");
            assert_close(&scales, &state[&scales], expected(&scales), 1e-6);
        }
    }
}

/// All codes agree but for a few on the line between two numbers, which are next to each other.
fn assert_codes(name: &str, actual: &Tensor, expected: &Tensor) {
    let (actual, expected) = (values(actual), values(expected));
    let differences: Vec<f64> = actual.iter().zip(&expected).map(|(a, e)| (a - e).abs()).collect();
    let others = differences.iter().filter(|difference| **difference > 0.0).count();
    assert_eq!(actual.len(), expected.len());
    assert!(differences.iter().all(|difference| *difference <= 1.0), "{name}: codes are far off");
    assert!(others * 1000 <= actual.len(), "{name}: {others} of {} codes differ", actual.len());
}
