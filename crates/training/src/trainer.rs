//! The steps of a run, whatever the recipe: losses to gradients to changed parameters, and where the run is.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use candle_core::{DType, Device, Tensor};
use candle_diffusers_schedulers::TorchGenerator;

use crate::backward_pass::{BackwardPass, whole_pass};
use crate::checkpoint::{Checkpoint, SETTING};
use crate::dataset::Position;
use crate::ema::EmaModel;
use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::lr_schedule::LrSchedule;
use crate::optimizer::Optimizer;
use crate::parameters::{ParameterGroup, check_not_negative, check_parameters, parameters};
use crate::processes::{
    BatchShare, OneProcess, Processes, RandomSource, ShareOfRandom, SourceOfStep, SumOverProcesses, mean_loss,
};
use crate::row_length::pull_rows;
use crate::values::{digest, read, to_cpu_f32, unusable};

/// What a step is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainerOptions {
    /// How many batches' gradients a step is made of.
    pub gradient_accumulation_steps: usize,
    /// What the norm of all gradients is clipped to.
    pub max_grad_norm: Option<f64>,
    /// What the length of each row of the parameters is pulled to after a step, by 100 times the learning rate: 0.4 for a word, by cloneofsimo's `clip_ti_decay`.
    pub row_length: Option<f64>,
}

impl Default for TrainerOptions {
    /// As diffusers' scripts.
    fn default() -> Self {
        Self { gradient_accumulation_steps: 1, max_grad_norm: Some(1.0), row_length: None }
    }
}

/// What a step has done.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Counted from 1.
    pub step: u64,
    /// The mean of its batches' losses, before the step.
    pub loss: f64,
    /// Of each group of parameters.
    pub learning_rates: Vec<f64>,
    /// Of all gradients, before they were clipped; none where they are not.
    pub grad_norm: Option<f32>,
}

/// Trains parameters by losses that a recipe computes.
pub struct Trainer {
    /// What is trained.
    pub groups: Vec<ParameterGroup>,
    optimizer: Box<dyn Optimizer>,
    schedule: LrSchedule,
    /// The average of the parameters, where one is kept.
    pub ema: Option<EmaModel>,
    options: TrainerOptions,
    /// What everything random comes from but the data's order.
    pub generator: TorchGenerator,
    processes: Rc<dyn Processes>,
    share: BatchShare,
    sums: SumOverProcesses,
    step: u64,
}

impl Trainer {
    /// A run at its beginning.
    ///
    /// # Errors
    /// When the groups cannot be trained ([`check_parameters`]) or an option is out of range.
    pub fn new(
        groups: Vec<ParameterGroup>,
        optimizer: Box<dyn Optimizer>,
        schedule: LrSchedule,
        ema: Option<EmaModel>,
        options: TrainerOptions,
        generator: TorchGenerator,
    ) -> Result<Self> {
        check_parameters(&groups)?;
        if options.gradient_accumulation_steps == 0 {
            let (field, expected) = ("gradient_accumulation_steps", "1 or more".to_string());
            return Err(Error::Field { field, found: "0".to_string(), expected });
        }
        if let Some(norm) = options.max_grad_norm.filter(|norm| !(norm.is_finite() && *norm > 0.0)) {
            let (found, expected) = (norm.to_string(), "more than 0".to_string());
            return Err(Error::Field { field: "max_grad_norm", found, expected });
        }
        if let Some(length) = options.row_length {
            check_not_negative("row_length", length)?;
        }
        let (processes, share, sums) = (Rc::new(OneProcess), BatchShare::default(), Default::default());
        Ok(Self { groups, optimizer, schedule, ema, options, generator, processes, share, sums, step: 0 })
    }

    /// Makes this a run of several processes, which all have the same parameters and generator; the batches of each are its share of whole ones, whose kinds
    /// of pictures are `parts`: 2 with prior preservation, else 1.
    pub fn share_batches(&mut self, processes: Rc<dyn Processes>, parts: usize) {
        self.share = BatchShare { process: processes.rank(), processes: processes.size(), parts };
        self.processes = processes;
        self.sums = SumOverProcesses::default();
    }

    /// Which part of the whole batches this process sees.
    pub fn batch_share(&self) -> BatchShare {
        self.share
    }

    /// Steps that have been taken.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Takes a step of as many batches as the options say; `loss` is asked once for each of them. Several processes take it together, by the mean of their gradients.
    ///
    /// # Errors
    /// When `loss` fails, or a loss or the gradients are no number: the parameters are then those before the step. When another process has failed.
    pub fn step(&mut self, loss: impl FnMut(&mut dyn RandomSource) -> Result<Tensor>) -> Result<StepReport> {
        self.step_of(self.options.gradient_accumulation_steps, loss)
    }

    /// [`step`](Self::step) of fewer batches, as accelerate takes one where an epoch ends: each counts as much as in a whole step.
    ///
    /// # Errors
    /// Those of [`step`](Self::step), and when there are none, or more than a whole step has.
    pub fn step_of(
        &mut self,
        batches: usize,
        mut loss: impl FnMut(&mut dyn RandomSource) -> Result<Tensor>,
    ) -> Result<StepReport> {
        let whole = self.options.gradient_accumulation_steps;
        if !(1..=whole).contains(&batches) {
            let (found, expected) = (batches.to_string(), format!("1 to {whole}"));
            return Err(Error::Field { field: "batches of a step", found, expected });
        }
        // What the gradients of all processes are to sum up to is their mean.
        let parts = whole as f64 * self.processes.size() as f64;
        let (mut sum, mut loss_sum, mut mean) = (None::<Gradients>, 0.0, f64::NAN);
        for batch in 1..=batches {
            let pass = BackwardPass::prepare(&self.groups)?;
            let random = ShareOfRandom { generator: &mut self.generator, share: self.share };
            let loss = loss(&mut SourceOfStep { random, processes: self.processes.as_ref() })?;
            let value = loss.to_dtype(DType::F32)?.to_scalar::<f32>()?;
            self.check_finite(value)?;
            loss_sum += f64::from(value);
            let (loss, earlier) = ((loss / parts)?, sum.take());
            let is_last = batch == batches;
            if is_last {
                mean = mean_loss(self.processes.as_ref(), loss_sum / batches as f64, &self.groups)?;
            }
            sum = Some(if is_last && self.processes.size() > 1 {
                self.sums.of(self.processes.as_ref(), pass, loss, earlier, &self.groups)?
            } else {
                let gradients = whole_pass(pass, loss, &self.groups)?;
                match earlier {
                    Some(mut sum) => {
                        sum.add(gradients)?;
                        sum
                    }
                    None => gradients,
                }
            });
        }
        let Some(mut gradients) = sum else { unreachable!("at least one batch, as was checked") };
        let grad_norm = self.options.max_grad_norm.map(|norm| gradients.clip(norm)).transpose()?;
        if let Some(norm) = grad_norm {
            self.check_finite(norm)?;
        }
        let factor = self.schedule.factor(self.step as usize);
        self.optimizer.step(&self.groups, &gradients, factor)?;
        if let Some(length) = self.options.row_length {
            for group in &self.groups {
                let rate = group.learning_rate * factor;
                group.parameters.iter().try_for_each(|parameter| pull_rows(&parameter.var, length, rate))?;
            }
        }
        self.step += 1;
        if let Some(ema) = &mut self.ema {
            ema.step(&self.groups)?;
        }
        let learning_rates = self.groups.iter().map(|group| group.learning_rate * factor).collect();
        Ok(StepReport { step: self.step, loss: mean, learning_rates, grad_norm })
    }

    fn check_finite(&self, loss: f32) -> Result<()> {
        if loss.is_finite() {
            return Ok(());
        }
        Err(Error::LossNotFinite { step: self.step + 1, loss })
    }

    /// Whether the parameters can be computed with. They are all read for it, so that it is for those that are to be kept.
    ///
    /// # Errors
    /// When one is no number, or so large that its square is none in float32.
    pub fn check_usable(&self) -> Result<()> {
        for parameter in parameters(&self.groups) {
            let found = read(&to_cpu_f32(&parameter.var)?, |values| Ok(unusable(values)))?;
            if let Some(value) = found {
                let (step, parameter) = (self.step, parameter.name.clone());
                return Err(Error::UnusableParameter { step, parameter, value });
            }
        }
        Ok(())
    }

    /// A number of the step, the parameters and the generator: where it is the same in all processes, they take the same steps.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn digest(&self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        (self.step, self.generator.state()).hash(&mut hasher);
        for parameter in parameters(&self.groups) {
            parameter.name.hash(&mut hasher);
            let digest = read(&to_cpu_f32(&parameter.var)?, |values| Ok(digest(values)))?;
            digest.hash(&mut hasher);
        }
        Ok(hasher.finish())
    }

    /// Where the run is, with the place of its next batch and the settings that it must be gone on with.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn checkpoint(&self, position: Position, settings: BTreeMap<String, String>) -> Result<Checkpoint> {
        let mut tensors = HashMap::new();
        for parameter in parameters(&self.groups) {
            let tensor = parameter.var.as_detached_tensor().to_device(&Device::Cpu)?;
            tensors.insert(format!("{PARAMETERS}{}", parameter.name), tensor);
        }
        let mut add = |prefix: &str, state: BTreeMap<String, Tensor>| {
            tensors.extend(state.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
        };
        add(OPTIMIZER, self.optimizer.state()?);
        if let Some(ema) = &self.ema {
            add(EMA, ema.state()?);
        }
        tensors.insert(GENERATOR.to_string(), Tensor::new(self.generator.state(), &Device::Cpu)?);
        let mut fields: BTreeMap<String, String> =
            settings.into_iter().map(|(name, value)| (format!("{SETTING}{name}"), value)).collect();
        for (name, value) in [("step", self.step), ("epoch", position.epoch), ("batch", position.batch)] {
            fields.insert(name.to_string(), value.to_string());
        }
        Ok(Checkpoint { tensors, fields })
    }

    /// Goes on from a checkpoint, and gives the place of the next batch: the run is then, bit for bit, one that has never stopped. After an error it is of no
    /// use.
    ///
    /// # Errors
    /// When the checkpoint is of other parameters, or was made with other settings.
    pub fn resume(
        &mut self,
        name: &str,
        checkpoint: Checkpoint,
        settings: &BTreeMap<String, String>,
    ) -> Result<Position> {
        checkpoint.check_settings(name, settings)?;
        let Checkpoint { mut tensors, fields } = checkpoint;
        let number = |field: &str| {
            let value = fields.get(field).and_then(|value| value.parse::<u64>().ok());
            value.ok_or_else(|| state_error(field, fields.get(field).cloned(), "a number"))
        };
        let (step, position) =
            (number("step")?, Position { epoch: number("epoch")?, batch: number("batch")? });
        for parameter in parameters(&self.groups) {
            let key = format!("{PARAMETERS}{}", parameter.name);
            let Some(value) = tensors.remove(&key) else {
                return Err(state_error(&key, None, "a tensor"));
            };
            if value.dims() != parameter.var.dims() || value.dtype() != parameter.var.dtype() {
                let found = format!("{:?} of {:?}", value.dims(), value.dtype());
                let expected = format!("{:?} of {:?}", parameter.var.dims(), parameter.var.dtype());
                return Err(state_error(&key, Some(found), &expected));
            }
            parameter.var.set(&value.to_device(parameter.var.device())?)?;
        }
        let Some(generator) = tensors.remove(GENERATOR) else {
            return Err(state_error(GENERATOR, None, "a tensor"));
        };
        self.generator = TorchGenerator::from_state(&generator.to_vec1::<u8>()?)?;
        let mut part = |prefix: &str| -> HashMap<String, Tensor> {
            let names: Vec<String> =
                tensors.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
            let take = |name: String| Some((name[prefix.len()..].to_string(), tensors.remove(&name)?));
            names.into_iter().filter_map(take).collect()
        };
        self.optimizer.load_state(&self.groups, part(OPTIMIZER))?;
        let averages = part(EMA);
        if let Some(ema) = &mut self.ema {
            ema.load_state(averages)?;
        }
        self.step = step;
        self.sums = SumOverProcesses::default();
        Ok(position)
    }
}

const PARAMETERS: &str = "parameters.";
const OPTIMIZER: &str = "optimizer.";
const EMA: &str = "ema.";
const GENERATOR: &str = "generator";

fn state_error(tensor: &str, found: Option<String>, expected: &str) -> Error {
    let found = found.unwrap_or_else(|| "missing".to_string());
    Error::State { tensor: tensor.to_string(), found, expected: expected.to_string() }
}
