//! Gradients from candle's backward pass, added up and scaled.

#![allow(clippy::unwrap_used, clippy::panic)]

use candle_core::{DType, Var};
use candle_diffusers_test_support::{assert_close, numbers, values};
use candle_diffusers_training::{Gradients, Optimizer, Parameter, ParameterGroup, Sgd, SgdConfig};

fn groups() -> [ParameterGroup; 1] {
    let parameter = |name: &str, seed, dtype| Parameter {
        name: name.to_string(),
        var: Var::from_tensor(&numbers(&[4, 3], seed).to_dtype(dtype).unwrap()).unwrap(),
    };
    let parameters = vec![
        parameter("a", 1, DType::F32),
        parameter("b", 2, DType::BF16),
        parameter("unused", 3, DType::F32),
    ];
    [ParameterGroup { parameters, learning_rate: 0.5, weight_decay: 0.0 }]
}

fn collect(groups: &[ParameterGroup], seed: u64) -> Gradients {
    let [a, b] = [0, 1].map(|index| groups[0].parameters[index].var.to_dtype(DType::F32).unwrap());
    let loss = ((a + b).unwrap() * numbers(&[4, 3], seed)).unwrap().sum_all().unwrap();
    Gradients::collect(loss.backward().unwrap(), groups).unwrap()
}

#[test]
fn two_batches_add_up_and_parameters_without_gradient_stay() {
    let groups = groups();
    let mut gradients = collect(&groups, 10);
    gradients.add(collect(&groups, 11)).unwrap();
    gradients.scale(0.5).unwrap();
    let expected = ((numbers(&[4, 3], 10) + numbers(&[4, 3], 11)).unwrap() * 0.5).unwrap();
    assert_close("a", gradients.get(0).unwrap(), &expected, 1e-6);
    assert_close("b", gradients.get(1).unwrap(), &expected, 1e-2);
    assert_eq!(gradients.get(1).unwrap().dtype(), DType::F32);
    assert!(gradients.get(2).is_none() && gradients.get(3).is_none());

    let unused = values(&groups[0].parameters[2].var);
    Sgd::new(SgdConfig::default()).unwrap().step(&groups, &gradients, 1.0).unwrap();
    assert_eq!(values(&groups[0].parameters[2].var), unused);
    let expected = (numbers(&[4, 3], 1) - (expected * 0.5).unwrap()).unwrap();
    assert_close("a after a step", &groups[0].parameters[0].var, &expected, 1e-6);
}

#[test]
fn gradients_of_other_parameters_are_refused() {
    let groups = groups();
    let gradients = collect(&groups, 10);
    let fewer = [ParameterGroup { parameters: groups[0].parameters[..2].to_vec(), ..groups[0].clone() }];
    let mut optimizer = Sgd::new(SgdConfig::default()).unwrap();
    let error = optimizer.step(&fewer, &gradients, 1.0).unwrap_err().to_string();
    assert_eq!(error, "there are 3 gradients for 2 parameters; collect them for the same groups");
    assert!(collect(&fewer, 10).add(gradients).is_err());
    let error = Gradients::new(vec![Some(numbers(&[4], 1)), None, None], &groups).unwrap_err().to_string();
    assert_eq!(error, "the gradient of a has shape [4]; expected [4, 3], the parameter's");
}
