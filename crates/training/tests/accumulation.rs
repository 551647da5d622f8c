//! Steps of several batches.

#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Var};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::values;
use candle_diffusers_training::{
    LrSchedule, LrScheduleName, Parameter, ParameterGroup, Sgd, SgdConfig, Trainer, TrainerOptions,
};

#[test]
fn batches_of_a_short_step_count_as_much_as_those_of_a_whole_one() {
    let var = Var::zeros(3, DType::F32, &Device::Cpu).unwrap();
    let parameters = vec![Parameter { name: "weight".to_string(), var: var.clone() }];
    let groups = vec![ParameterGroup { parameters, learning_rate: 1.0, weight_decay: 0.0 }];
    let schedule = LrSchedule::new(LrScheduleName::Constant, Default::default()).unwrap();
    let optimizer = Box::new(Sgd::new(SgdConfig::default()).unwrap());
    let options =
        TrainerOptions { gradient_accumulation_steps: 4, max_grad_norm: None, ..Default::default() };
    let generator = TorchGenerator::new(0);
    let mut trainer = Trainer::new(groups, optimizer, schedule, None, options, generator).unwrap();
    trainer.step(|_| Ok(var.sum_all()?)).unwrap();
    assert_eq!(values(&var), [-1.0; 3]);
    let report = trainer.step_of(1, |_| Ok(var.sum_all()?)).unwrap();
    assert_eq!(values(&var), [-1.25; 3]);
    assert_eq!(report.loss, -3.0, "the mean of the batches that there were");
    for batches in [0, 5] {
        let error = trainer.step_of(batches, |_| Ok(var.sum_all()?)).unwrap_err().to_string();
        assert_eq!(error, format!("batches of a step is {batches}; expected 1 to 4"));
    }
}
