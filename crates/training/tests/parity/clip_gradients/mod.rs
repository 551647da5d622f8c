//! Clipping by norm beside torch's.

use candle_diffusers_test_support::{Fixture, assert_close};
use candle_diffusers_training::Gradients;

use crate::group;

#[test]
fn norms_and_clipped_gradients_are_those_of_torch() {
    let fixture = Fixture::open(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/parity/clip_gradients/clip_gradients.safetensors"
    ));
    for case in ["clipped", "tight", "kept", "zero", "infinite", "nan"] {
        let before = [0, 1].map(|index| fixture.get(&format!("{case}/before/{index}")).clone());
        let groups = [group(&[("a", &before[0]), ("b", &before[1])], 0.0, 0.0)];
        let mut gradients = Gradients::new(before.map(Some).to_vec(), &groups).unwrap();
        let norm = gradients.clip(fixture.values(&format!("{case}/max_norm"))[0]).unwrap();
        let expected = fixture.values(&format!("{case}/norm"))[0];
        assert_eq!(norm.is_finite(), expected.is_finite(), "{case}");
        assert!(!norm.is_finite() || (f64::from(norm) - expected).abs() <= 1e-6 * expected, "{case}: {norm}");
        for index in 0..2 {
            let expected = format!("{case}/after/{index}");
            assert_close(&expected, gradients.get(index).unwrap(), fixture.get(&expected), 1e-6);
        }
    }
}
