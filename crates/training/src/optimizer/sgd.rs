//! Stochastic gradient descent as `torch.optim.SGD`.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Tensor};

use super::saved_state::SavedState;
use super::{Optimizer, Turn, for_each_turn};
use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::parameters::{ParameterGroup, check_not_negative, parameters};
use crate::values::{PIECE, change, change_parameter, read};

/// Settings of [`Sgd`]; weight decay is the group's, and is added to the gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SgdConfig {
    /// How much of the last step goes on.
    pub momentum: f64,
    /// Look ahead along the momentum (Nesterov).
    pub nesterov: bool,
}

/// Stochastic gradient descent.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    /// Float32 on the CPU; empty without momentum.
    momentum_buffers: BTreeMap<String, Tensor>,
}

impl Sgd {
    /// # Errors
    /// If the momentum is negative, or missing where `nesterov` needs it.
    pub fn new(config: SgdConfig) -> Result<Self> {
        check_not_negative("momentum", config.momentum)?;
        if config.nesterov && config.momentum == 0.0 {
            let expected = "more than 0 with nesterov".to_string();
            return Err(Error::Field { field: "momentum", found: "0".to_string(), expected });
        }
        Ok(Self { config, momentum_buffers: BTreeMap::new() })
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, groups: &[ParameterGroup], gradients: &Gradients, factor: f64) -> Result<()> {
        for_each_turn(groups, gradients, factor, |turn| {
            if self.config.momentum == 0.0 {
                return step_without_momentum(&turn);
            }
            let name = &turn.parameter.name;
            let momentum = self.config.momentum as f32;
            if !self.momentum_buffers.contains_key(name) {
                self.momentum_buffers.insert(name.clone(), turn.gradient.zeros_like()?);
            }
            match self.momentum_buffers.get(name) {
                Some(buffer) => step_with_momentum(&turn, buffer, momentum, self.config.nesterov),
                None => Ok(()),
            }
        })
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        Ok(self.momentum_buffers.iter().map(|(name, buffer)| (buffer_name(name), buffer.clone())).collect())
    }

    fn load_state(&mut self, groups: &[ParameterGroup], state: HashMap<String, Tensor>) -> Result<()> {
        let mut saved = SavedState::new(state);
        let mut buffers = BTreeMap::new();
        for parameter in parameters(groups) {
            let name = buffer_name(&parameter.name);
            if self.config.momentum != 0.0 && saved.contains(&name) {
                let buffer = saved.take(&name, parameter.var.dims(), DType::F32)?;
                buffers.insert(parameter.name.clone(), buffer);
            }
        }
        saved.finish()?;
        self.momentum_buffers = buffers;
        Ok(())
    }
}

fn buffer_name(parameter: &str) -> String {
    format!("{parameter}.momentum_buffer")
}

fn step_without_momentum(turn: &Turn<'_>) -> Result<()> {
    let (decay, step_size) = (turn.weight_decay as f32, -turn.learning_rate as f32);
    read(&turn.gradient, |gradient| {
        let parts = gradient.chunks(PIECE).collect();
        change_parameter(&turn.parameter.var, parts, |values, gradient: &[f32]| {
            for (value, &gradient) in values.iter_mut().zip(gradient) {
                *value += step_size * (gradient + decay * *value);
            }
        })
    })
}

fn step_with_momentum(turn: &Turn<'_>, buffer: &Tensor, momentum: f32, nesterov: bool) -> Result<()> {
    let (decay, step_size) = (turn.weight_decay as f32, -turn.learning_rate as f32);
    read(&turn.gradient, |gradient| {
        change(buffer, |buffer: &mut [f32]| {
            let parts = gradient.chunks(PIECE).zip(buffer.chunks_mut(PIECE)).collect();
            change_parameter(&turn.parameter.var, parts, |values, (gradient, buffer)| {
                for ((value, &gradient), buffer) in values.iter_mut().zip(gradient).zip(buffer) {
                    let gradient = gradient + decay * *value;
                    *buffer = *buffer * momentum + gradient;
                    let direction = if nesterov { gradient + momentum * *buffer } else { *buffer };
                    *value += step_size * direction;
                }
            })
        })
    })
}
