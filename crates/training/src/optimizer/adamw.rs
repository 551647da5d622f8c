//! AdamW (Loshchilov and Hutter, <https://arxiv.org/abs/1711.05101>) in the arithmetic of `torch.optim.AdamW`.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};

use super::saved_state::{SavedState, count, load_each};
use super::{Optimizer, Turn, for_each_turn};
use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::parameters::{ParameterGroup, check_not_negative};
use crate::values::{PIECE, change, change_parameter, read};

/// Settings of AdamW; the default is that of torch and of diffusers' scripts. Weight decay is the group's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// The decay of the mean of gradients (`adam_beta1`).
    pub beta1: f64,
    /// The decay of the mean of squared gradients (`adam_beta2`).
    pub beta2: f64,
    /// Added to the denominator (`adam_epsilon`).
    pub epsilon: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

impl AdamWConfig {
    pub(super) fn check(&self) -> Result<()> {
        for (field, beta) in [("adam_beta1", self.beta1), ("adam_beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                let expected = "at least 0 and less than 1".to_string();
                return Err(Error::Field { field, found: beta.to_string(), expected });
            }
        }
        check_not_negative("adam_epsilon", self.epsilon)
    }
}

/// AdamW with its means in float32.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    moments: BTreeMap<String, Moments>,
}

/// The state of one parameter.
#[derive(Debug)]
pub(super) struct Moments {
    pub(super) step: u64,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl AdamW {
    /// # Errors
    /// If a setting is out of range.
    pub fn new(config: AdamWConfig) -> Result<Self> {
        config.check()?;
        Ok(Self { config, moments: BTreeMap::new() })
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, groups: &[ParameterGroup], gradients: &Gradients, factor: f64) -> Result<()> {
        for_each_turn(groups, gradients, factor, |turn| {
            let name = &turn.parameter.name;
            if !self.moments.contains_key(name) {
                self.moments.insert(name.clone(), Moments::zeros(turn.parameter.var.dims())?);
            }
            match self.moments.get_mut(name) {
                Some(moments) => moments.step(&turn, &self.config),
                None => Ok(()),
            }
        })
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, moments) in &self.moments {
            moments.save(name, &mut state)?;
        }
        Ok(state)
    }

    fn load_state(&mut self, groups: &[ParameterGroup], state: HashMap<String, Tensor>) -> Result<()> {
        self.moments = load_each(groups, state, Moments::load)?;
        Ok(())
    }
}

impl Moments {
    pub(super) fn zeros(shape: &[usize]) -> Result<Self> {
        let zeros = || Tensor::zeros(shape, DType::F32, &Device::Cpu);
        Ok(Self { step: 0, exp_avg: zeros()?, exp_avg_sq: zeros()? })
    }

    pub(super) fn save(&self, name: &str, state: &mut BTreeMap<String, Tensor>) -> Result<()> {
        state.insert(format!("{name}.step"), count(self.step)?);
        state.insert(format!("{name}.exp_avg"), self.exp_avg.clone());
        state.insert(format!("{name}.exp_avg_sq"), self.exp_avg_sq.clone());
        Ok(())
    }

    pub(super) fn load(name: &str, shape: &[usize], saved: &mut SavedState) -> Result<Self> {
        Ok(Self {
            step: saved.take_count(&format!("{name}.step"))?,
            exp_avg: saved.take(&format!("{name}.exp_avg"), shape, DType::F32)?,
            exp_avg_sq: saved.take(&format!("{name}.exp_avg_sq"), shape, DType::F32)?,
        })
    }

    pub(super) fn step(&mut self, turn: &Turn<'_>, config: &AdamWConfig) -> Result<()> {
        self.step += 1;
        let rule = AdamRule::new(config, turn, self.step);
        read(&turn.gradient, |gradient| {
            change(&self.exp_avg, |exp_avg: &mut [f32]| {
                change(&self.exp_avg_sq, |exp_avg_sq: &mut [f32]| {
                    let moments = exp_avg.chunks_mut(PIECE).zip(exp_avg_sq.chunks_mut(PIECE));
                    let parts = gradient.chunks(PIECE).zip(moments).collect();
                    change_parameter(
                        &turn.parameter.var,
                        parts,
                        |values, (gradient, (exp_avg, exp_avg_sq))| {
                            rule.apply(values, gradient, exp_avg, exp_avg_sq);
                        },
                    )
                })
            })
        })
    }
}

/// One step of Adam with decoupled weight decay, as torch's `_single_tensor_adam` computes it: scalars in float64, then rounded.
pub(super) struct AdamRule {
    kept: f32,
    beta1_left: f32,
    beta2: f32,
    beta2_left: f32,
    root_of_correction: f32,
    epsilon: f32,
    step_size: f32,
}

impl AdamRule {
    pub(super) fn new(config: &AdamWConfig, turn: &Turn<'_>, step: u64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            kept: (1.0 - turn.learning_rate * turn.weight_decay) as f32,
            beta1_left: (1.0 - config.beta1) as f32,
            beta2: config.beta2 as f32,
            beta2_left: (1.0 - config.beta2) as f32,
            root_of_correction: correction(config.beta2).sqrt() as f32,
            epsilon: config.epsilon as f32,
            step_size: (-turn.learning_rate / correction(config.beta1)) as f32,
        }
    }

    pub(super) fn apply(
        &self,
        values: &mut [f32],
        gradient: &[f32],
        exp_avg: &mut [f32],
        exp_avg_sq: &mut [f32],
    ) {
        let moments = exp_avg.iter_mut().zip(exp_avg_sq);
        for ((value, &gradient), (mean, square)) in values.iter_mut().zip(gradient).zip(moments) {
            *mean += self.beta1_left * (gradient - *mean);
            *square = *square * self.beta2 + self.beta2_left * gradient * gradient;
            let denominator = square.sqrt() / self.root_of_correction + self.epsilon;
            *value = *value * self.kept + self.step_size * *mean / denominator;
        }
    }
}
