//! The exponential moving average of parameters, as diffusers' `EMAModel`.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::optimizer::saved_state::{SavedState, count};
use crate::parameters::{Parameter, ParameterGroup, check_not_negative, parameters};
use crate::values::{PIECE, change, read, to_cpu_f32};

/// Settings of [`EmaModel`]; the default is diffusers'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmaConfig {
    /// The most of the average that one step keeps.
    pub decay: f64,
    /// The least.
    pub min_decay: f64,
    /// Steps before the average begins; until then it is the parameters themselves.
    pub update_after_step: u64,
    /// Let the decay rise as 1 - (1 + step / inv_gamma)^-power, and not as (1 + step) / (10 + step).
    pub use_ema_warmup: bool,
    /// See `use_ema_warmup`.
    pub inv_gamma: f64,
    /// See `use_ema_warmup`: 2/3 reaches 0.999 at 31,600 steps, 3/4 at 10,000.
    pub power: f64,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self {
            decay: 0.9999,
            min_decay: 0.0,
            update_after_step: 0,
            use_ema_warmup: false,
            inv_gamma: 1.0,
            power: 2.0 / 3.0,
        }
    }
}

/// A moving average of parameters, in float32 on the CPU.
#[derive(Debug)]
pub struct EmaModel {
    config: EmaConfig,
    optimization_step: u64,
    averages: Vec<(String, Tensor)>,
    stored: Option<Vec<Tensor>>,
}

impl EmaModel {
    /// Starts with the parameters as they are.
    ///
    /// # Errors
    /// If a setting is out of range or a tensor operation fails.
    pub fn new(groups: &[ParameterGroup], config: EmaConfig) -> Result<Self> {
        for (field, value) in [("ema_decay", config.decay), ("min_decay", config.min_decay)] {
            if !(0.0..=1.0).contains(&value) {
                let expected = "between 0 and 1".to_string();
                return Err(Error::Field { field, found: value.to_string(), expected });
            }
        }
        check_not_negative("power", config.power)?;
        if !(config.inv_gamma.is_finite() && config.inv_gamma > 0.0) {
            let (field, found) = ("inv_gamma", config.inv_gamma.to_string());
            return Err(Error::Field { field, found, expected: "more than 0".to_string() });
        }
        let average = |parameter: &Parameter| {
            let values = to_cpu_f32(&parameter.var.as_detached_tensor())?.force_contiguous()?;
            Ok((parameter.name.clone(), values))
        };
        let averages = parameters(groups).map(average).collect::<Result<_>>()?;
        Ok(Self { config, optimization_step: 0, averages, stored: None })
    }

    /// The decay of the step `optimization_step`, counted from 1.
    pub fn decay_at(&self, optimization_step: u64) -> f64 {
        let step = optimization_step.saturating_sub(self.config.update_after_step.saturating_add(1)) as f64;
        if step <= 0.0 {
            return 0.0;
        }
        let rising = if self.config.use_ema_warmup {
            1.0 - (1.0 + step / self.config.inv_gamma).powf(-self.config.power)
        } else {
            (1.0 + step) / (10.0 + step)
        };
        rising.min(self.config.decay).max(self.config.min_decay)
    }

    /// Takes the parameters after an optimizer's step into the average.
    ///
    /// # Errors
    /// If `groups` are not those that it was made with.
    pub fn step(&mut self, groups: &[ParameterGroup]) -> Result<()> {
        self.check(groups)?;
        self.optimization_step += 1;
        let taken = (1.0 - self.decay_at(self.optimization_step)) as f32;
        for ((_, average), parameter) in self.averages.iter().zip(parameters(groups)) {
            let copy = to_cpu_f32(&parameter.var)?;
            read(&copy, |values| {
                change(average, |average: &mut [f32]| {
                    let pieces = average.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE));
                    pieces.for_each(|(average, values)| {
                        average.iter_mut().zip(values).for_each(|(average, value)| {
                            *average -= taken * (*average - value);
                        });
                    });
                    Ok(())
                })
            })?;
        }
        Ok(())
    }

    /// Gives the parameters the values of the average.
    ///
    /// # Errors
    /// If `groups` are not those that it was made with.
    pub fn copy_to(&self, groups: &[ParameterGroup]) -> Result<()> {
        self.check(groups)?;
        let averages: Vec<&Tensor> = self.averages.iter().map(|(_, average)| average).collect();
        set(groups, &averages)
    }

    /// Remembers the parameters until [`restore`](Self::restore): before [`copy_to`](Self::copy_to), to try or write the average.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn store(&mut self, groups: &[ParameterGroup]) -> Result<()> {
        self.check(groups)?;
        let copies = parameters(groups).map(|parameter| Ok(parameter.var.as_detached_tensor().copy()?));
        self.stored = Some(copies.collect::<Result<_>>()?);
        Ok(())
    }

    /// Gives the parameters back what [`store`](Self::store) remembered, and forgets it.
    ///
    /// # Errors
    /// If nothing is stored, or a tensor operation fails.
    pub fn restore(&mut self, groups: &[ParameterGroup]) -> Result<()> {
        self.check(groups)?;
        let stored = self.stored.take().ok_or(Error::NothingStored)?;
        set(groups, &stored.iter().collect::<Vec<_>>())
    }

    /// The averages by the names of their parameters: they are the state itself, and later steps change them.
    pub fn averages(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.averages.iter().map(|(name, average)| (name.as_str(), average))
    }

    /// What the next steps depend on. The averages are the state itself, which later steps change.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let averages = self.averages.iter().map(|(name, average)| (shadow_name(name), average.clone()));
        let mut state: BTreeMap<String, Tensor> = averages.collect();
        state.insert("optimization_step".to_string(), count(self.optimization_step)?);
        Ok(state)
    }

    /// Goes on from what [`state`](Self::state) gave. After an error it is what it was before.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous or of another shape or dtype.
    pub fn load_state(&mut self, state: HashMap<String, Tensor>) -> Result<()> {
        let mut saved = SavedState::new(state);
        let optimization_step = saved.take_count("optimization_step")?;
        let mut averages = Vec::with_capacity(self.averages.len());
        for (name, average) in &self.averages {
            averages.push((name.clone(), saved.take(&shadow_name(name), average.dims(), DType::F32)?));
        }
        saved.finish()?;
        (self.optimization_step, self.averages) = (optimization_step, averages);
        Ok(())
    }

    fn check(&self, groups: &[ParameterGroup]) -> Result<()> {
        let same = |((name, average), parameter): (&(String, Tensor), &Parameter)| {
            *name == parameter.name && average.dims() == parameter.var.dims()
        };
        if parameters(groups).count() == self.averages.len()
            && self.averages.iter().zip(parameters(groups)).all(same)
        {
            return Ok(());
        }
        Err(Error::Parameters("they are not those that the moving average was made of".to_string()))
    }
}

fn shadow_name(parameter: &str) -> String {
    format!("shadow.{parameter}")
}

fn set(groups: &[ParameterGroup], tensors: &[&Tensor]) -> Result<()> {
    for (parameter, tensor) in parameters(groups).zip(tensors) {
        parameter.var.set(&tensor.to_dtype(parameter.var.dtype())?.to_device(parameter.var.device())?)?;
    }
    Ok(())
}
