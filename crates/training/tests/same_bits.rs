//! The number of threads changes no bit.

#![allow(clippy::unwrap_used, clippy::panic)]

use candle_core::{DType, Device, Tensor, Var};
use candle_diffusers_test_support::{assert_threads_change_no_bit, numbers};
use candle_diffusers_training::{
    AdamW, AdamW8bit, AdamWConfig, EmaConfig, EmaModel, Gradients, Optimizer, Parameter, ParameterGroup, Sgd,
    SgdConfig,
};

/// Several pieces of work for several threads, the last of them not full.
const SHAPE: [usize; 2] = [311, 307];

#[test]
fn threads_change_no_bit() {
    let results = (0..6).map(|index| {
        let (optimizer, dtype): (Box<dyn Optimizer>, DType) = match index {
            0 => (Box::new(AdamW::new(AdamWConfig::default()).unwrap()), DType::F32),
            1 => (Box::new(AdamW::new(AdamWConfig::default()).unwrap()), DType::BF16),
            2 => (Box::new(AdamW8bit::new(AdamWConfig::default()).unwrap()), DType::F32),
            3 => (Box::new(AdamW8bit::new(AdamWConfig::default()).unwrap()), DType::F16),
            4 => (Box::new(Sgd::new(SgdConfig { momentum: 0.9, nesterov: true }).unwrap()), DType::F32),
            _ => (Box::new(Sgd::new(SgdConfig::default()).unwrap()), DType::F32),
        };
        (format!("{index}"), after_three_steps(optimizer, dtype))
    });
    assert_threads_change_no_bit("threads_change_no_bit", &[2, 3, 7], results);
}

/// The parameter, its average and the gradient's norm, in one row.
fn after_three_steps(mut optimizer: Box<dyn Optimizer>, dtype: DType) -> Tensor {
    let var = Var::from_tensor(&numbers(&SHAPE, 1).to_dtype(dtype).unwrap()).unwrap();
    let parameters = vec![Parameter { name: "weight".to_string(), var: var.clone() }];
    let groups = [ParameterGroup { parameters, learning_rate: 1e-2, weight_decay: 0.1 }];
    let mut ema = EmaModel::new(&groups, EmaConfig::default()).unwrap();
    let mut norm = 0.0;
    for step in 0..3 {
        let mut gradients = Gradients::new(vec![Some(numbers(&SHAPE, 2 + step))], &groups).unwrap();
        norm = gradients.clip(0.5).unwrap();
        optimizer.step(&groups, &gradients, 1.0).unwrap();
        ema.step(&groups).unwrap();
    }
    let flat = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    let (_, average) = ema.averages().next().unwrap();
    Tensor::cat(&[flat(&var), flat(average), Tensor::new(&[norm], &Device::Cpu).unwrap()], 0).unwrap()
}
