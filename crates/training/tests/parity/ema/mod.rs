//! The moving average beside diffusers' EMAModel.

use candle_core::Tensor;
use candle_diffusers_test_support::{Fixture, assert_close};
use candle_diffusers_training::{EmaConfig, EmaModel, parameters};
use serde_json::Value;

use crate::group;

#[test]
fn averages_are_those_of_diffusers_after_each_step() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/ema");
    let fixture = Fixture::open(format!("{folder}/ema.safetensors"));
    let cases: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{folder}/cases.json")).unwrap()).unwrap();
    for (case, options) in cases.as_object().unwrap() {
        let number = |field: &str, default: f64| options[field].as_f64().unwrap_or(default);
        let default = EmaConfig::default();
        let config = EmaConfig {
            decay: number("decay", default.decay),
            min_decay: number("min_decay", default.min_decay),
            update_after_step: options["update_after_step"].as_u64().unwrap_or(default.update_after_step),
            use_ema_warmup: options["use_ema_warmup"].as_bool().unwrap_or(default.use_ema_warmup),
            inv_gamma: number("inv_gamma", default.inv_gamma),
            power: number("power", default.power),
        };
        let groups =
            [group(&["a", "b"].map(|name| (name, fixture.get(&format!("parameter/0/{name}")))), 0.0, 0.0)];
        let mut ema = EmaModel::new(&groups, config).unwrap();
        let decays = fixture.values(&format!("{case}/decay"));
        for (step, decay) in (1..).zip(decays) {
            for parameter in parameters(&groups) {
                parameter.var.set(fixture.get(&format!("parameter/{step}/{}", parameter.name))).unwrap();
            }
            ema.step(&groups).unwrap();
            assert!((ema.decay_at(step) - decay).abs() < 1e-12, "{case} {step}");
            for (name, average) in ema.averages() {
                let expected = format!("{case}/{step}/{name}");
                assert_close(&expected, average, fixture.get(&expected), 1e-6);
            }
        }
        for (step, decay) in
            [100, 5000, 200_000].into_iter().zip(fixture.values(&format!("{case}/late_decay")))
        {
            assert!((ema.decay_at(step) - decay).abs() < 1e-12, "{case} {step}");
        }
        let averages: Vec<Tensor> = ema.averages().map(|(_, average)| average.copy().unwrap()).collect();
        let before: Vec<Tensor> =
            parameters(&groups).map(|parameter| parameter.var.copy().unwrap()).collect();
        ema.store(&groups).unwrap();
        ema.copy_to(&groups).unwrap();
        for (parameter, average) in parameters(&groups).zip(&averages) {
            assert_close("copied", &parameter.var, average, 0.0);
        }
        ema.restore(&groups).unwrap();
        for (parameter, before) in parameters(&groups).zip(&before) {
            assert_close("restored", &parameter.var, before, 0.0);
        }
        assert!(ema.restore(&groups).is_err(), "nothing is stored any more");
    }
}
