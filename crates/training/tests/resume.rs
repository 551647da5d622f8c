//! A run that stopped and goes on from its state gives the bits of one that never stopped; states of other runs are refused.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_test_support::{numbers, values};
use candle_diffusers_training::{
    AdamW, AdamW8bit, AdamWConfig, EmaConfig, EmaModel, Gradients, Optimizer, Parameter, ParameterGroup, Sgd,
    SgdConfig, check_parameters, parameters,
};

fn optimizers() -> Vec<(&'static str, Box<dyn Optimizer>)> {
    vec![
        ("adamw", Box::new(AdamW::new(AdamWConfig::default()).unwrap())),
        ("adamw_8bit", Box::new(AdamW8bit::new(AdamWConfig::default()).unwrap())),
        ("sgd", Box::new(Sgd::new(SgdConfig { momentum: 0.9, nesterov: true }).unwrap())),
        ("sgd without momentum", Box::new(Sgd::new(SgdConfig::default()).unwrap())),
    ]
}

fn groups() -> [ParameterGroup; 2] {
    let parameter = |name: &str, shape: &[usize], dtype| Parameter {
        name: name.to_string(),
        var: Var::from_tensor(&numbers(shape, 7).to_dtype(dtype).unwrap()).unwrap(),
    };
    let group = |parameters| ParameterGroup { parameters, learning_rate: 1e-2, weight_decay: 0.1 };
    [
        group(vec![parameter("a", &[70, 100], DType::F32), parameter("b", &[3], DType::F32)]),
        group(vec![parameter("c", &[5000], DType::BF16), parameter("d", &[20, 300], DType::F16)]),
    ]
}

fn gradients(groups: &[ParameterGroup], step: u64) -> Gradients {
    let gradient = |(index, parameter): (usize, &Parameter)| {
        (step != 1 || index != 1).then(|| numbers(parameter.var.dims(), step * 10 + index as u64))
    };
    Gradients::new(parameters(groups).enumerate().map(gradient).collect(), groups).unwrap()
}

/// A state as it comes back from a file.
fn written(state: std::collections::BTreeMap<String, Tensor>) -> HashMap<String, Tensor> {
    let path = tempfile::NamedTempFile::new().unwrap();
    candle_core::safetensors::save(&state.into_iter().collect::<HashMap<_, _>>(), path.path()).unwrap();
    candle_core::safetensors::load(path.path(), &Device::Cpu).unwrap()
}

#[test]
fn a_resumed_run_gives_the_same_bits() {
    for ((name, mut whole), ((_, mut first), (_, mut second))) in
        optimizers().into_iter().zip(optimizers().into_iter().zip(optimizers()))
    {
        let (never_stopped, stopped) = (groups(), groups());
        let mut whole_ema = EmaModel::new(&never_stopped, EmaConfig::default()).unwrap();
        let mut first_ema = EmaModel::new(&stopped, EmaConfig::default()).unwrap();
        for step in 0..6 {
            whole.step(&never_stopped, &gradients(&never_stopped, step), 0.5).unwrap();
            whole_ema.step(&never_stopped).unwrap();
        }
        for step in 0..3 {
            first.step(&stopped, &gradients(&stopped, step), 0.5).unwrap();
            first_ema.step(&stopped).unwrap();
        }
        let mut second_ema = EmaModel::new(&groups(), EmaConfig::default()).unwrap();
        second.load_state(&stopped, written(first.state().unwrap())).unwrap();
        second_ema.load_state(written(first_ema.state().unwrap())).unwrap();
        for step in 3..6 {
            second.step(&stopped, &gradients(&stopped, step), 0.5).unwrap();
            second_ema.step(&stopped).unwrap();
        }
        for (expected, actual) in parameters(&never_stopped).zip(parameters(&stopped)) {
            assert_eq!(values(&expected.var), values(&actual.var), "{name}: {}", actual.name);
        }
        for ((parameter, expected), (_, actual)) in whole_ema.averages().zip(second_ema.averages()) {
            assert_eq!(values(expected), values(actual), "{name}: average of {parameter}");
        }
    }
}

#[test]
fn states_of_other_runs_are_refused_and_change_nothing() {
    let groups = groups();
    for (name, mut optimizer) in optimizers().into_iter().take(3) {
        optimizer.step(&groups, &gradients(&groups, 0), 1.0).unwrap();
        let state: HashMap<String, Tensor> = optimizer.state().unwrap().into_iter().collect();
        let tensor =
            state.keys().find(|tensor| tensor.starts_with("a.") && !tensor.ends_with("step")).unwrap();
        let mut other_shape = state.clone();
        other_shape.insert(tensor.clone(), Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap());
        let mut more = state.clone();
        more.insert("z.exp_avg".to_string(), state[tensor].clone());
        for (wrong, expected) in [(other_shape, tensor.as_str()), (more, "z.exp_avg")] {
            let error = optimizer.load_state(&groups, wrong).unwrap_err().to_string();
            assert!(error.starts_with(&format!("saved state: {expected} is")), "{name}: {error}");
            assert_eq!(optimizer.state().unwrap().len(), state.len());
        }
    }
    let mut optimizer = AdamW::new(AdamWConfig::default()).unwrap();
    let step = HashMap::from([("a.step".to_string(), Tensor::new(1i64, &Device::Cpu).unwrap())]);
    let error = optimizer.load_state(&groups, step).unwrap_err().to_string();
    assert_eq!(
        error,
        "saved state: a.exp_avg is missing; expected F32 of shape [70, 100]; it belongs to another run"
    );
    let negative =
        HashMap::from([("optimization_step".to_string(), Tensor::new(-1i64, &Device::Cpu).unwrap())]);
    assert!(EmaModel::new(&groups, EmaConfig::default()).unwrap().load_state(negative).is_err());
}

#[test]
fn wrong_settings_and_parameters_are_refused() {
    for beta in [-0.1, 1.0, f64::NAN] {
        assert!(AdamW::new(AdamWConfig { beta1: beta, ..Default::default() }).is_err());
        assert!(AdamW8bit::new(AdamWConfig { beta2: beta, ..Default::default() }).is_err());
        assert!(
            EmaModel::new(&groups(), EmaConfig { decay: beta - 0.5, ..Default::default() }).is_err()
                || beta == 1.0
        );
    }
    assert!(AdamW::new(AdamWConfig { epsilon: -1.0, ..Default::default() }).is_err());
    assert!(Sgd::new(SgdConfig { momentum: 0.0, nesterov: true }).is_err());
    assert!(Sgd::new(SgdConfig { momentum: -0.5, nesterov: false }).is_err());

    assert!(check_parameters(&groups()).is_ok());
    assert!(check_parameters(&[]).is_err());
    let twice = [groups()[0].clone(), groups()[0].clone()];
    assert_eq!(check_parameters(&twice).unwrap_err().to_string(), "parameters: a is there twice");
    let mut rate = groups();
    rate[1].learning_rate = f64::NAN;
    assert_eq!(check_parameters(&rate).unwrap_err().to_string(), "learning_rate is NaN; expected 0 or more");
    let mut whole_numbers = groups();
    whole_numbers[0].parameters[0].var = Var::zeros(3, DType::U32, &Device::Cpu).unwrap();
    let error = check_parameters(&whole_numbers).unwrap_err().to_string();
    assert_eq!(error, "parameter a has dtype U32; expected one of f32, f16, bf16");
}
