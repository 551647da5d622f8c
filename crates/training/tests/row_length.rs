//! A word whose vectors are pulled to a length after each step.

#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor, Var};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::values;
use candle_diffusers_training::{
    LrSchedule, LrScheduleName, Parameter, ParameterGroup, Sgd, SgdConfig, Trainer, TrainerOptions,
};

#[test]
fn a_step_is_taken_and_then_the_length_is_pulled() {
    let begin = Tensor::new(&[[0.305_f32, 0.405]], &Device::Cpu).unwrap();
    let var = Var::from_tensor(&begin).unwrap();
    let parameters = vec![Parameter { name: "word".to_string(), var: var.clone() }];
    let groups = vec![ParameterGroup { parameters, learning_rate: 5e-3, weight_decay: 0.0 }];
    let schedule = LrSchedule::new(LrScheduleName::Constant, Default::default()).unwrap();
    let optimizer = Box::new(Sgd::new(SgdConfig::default()).unwrap());
    let options = TrainerOptions { max_grad_norm: None, row_length: Some(0.4), ..Default::default() };
    let generator = TorchGenerator::new(0);
    let mut trainer = Trainer::new(groups, optimizer, schedule, None, options, generator).unwrap();
    // To (0.3, 0.4), whose length is 0.5, and from there half the way to 0.4.
    trainer.step(|_| Ok(var.as_tensor().sum_all()?)).unwrap();
    for (found, expected) in values(&var).into_iter().zip([0.27, 0.36]) {
        assert!((found - expected).abs() < 1e-6, "{found} and {expected}");
    }
}
