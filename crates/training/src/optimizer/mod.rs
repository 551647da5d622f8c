//! From gradients to changed parameters.

mod adamw;
mod adamw_8bit;
mod dynamic_map;
pub(crate) mod saved_state;
mod sgd;

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::gradients::Gradients;
use crate::parameters::{Parameter, ParameterGroup, parameters};

pub use adamw::{AdamW, AdamWConfig};
pub use adamw_8bit::{AdamW8bit, MIN_8BIT_SIZE};
pub use sgd::{Sgd, SgdConfig};

/// A rule by which parameters follow their gradients.
///
/// Values are computed in float32, whatever the parameter's type, and each result depends neither on the number of threads nor on the run.
pub trait Optimizer: Send {
    /// Changes the parameters of `groups`, each at its group's learning rate times `factor`, the learning-rate schedule's. Parameters without
    /// a gradient stay what they are, and so does their state.
    ///
    /// # Errors
    /// If the gradients belong to other groups, or a parameter has a type that cannot be trained.
    fn step(&mut self, groups: &[ParameterGroup], gradients: &Gradients, factor: f64) -> Result<()>;

    /// What the next steps depend on, by names made of those of the parameters. The tensors are the state itself, not copies of it: later
    /// steps change them, so write them before the next step.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn state(&self) -> Result<BTreeMap<String, Tensor>>;

    /// Goes on from a state that [`state`](Self::state) gave, which may be empty: a run goes on as if it had never stopped, bit for bit.
    /// `groups` are those that the next step will be called with. After an error the optimizer is what it was before.
    ///
    /// # Errors
    /// If a tensor is missing, superfluous or of another shape or dtype.
    fn load_state(&mut self, groups: &[ParameterGroup], state: HashMap<String, Tensor>) -> Result<()>;
}

/// A parameter whose turn it is, with its gradient and the hyperparameters of its group.
struct Turn<'a> {
    parameter: &'a Parameter,
    /// Float32, on the CPU, contiguous.
    gradient: Tensor,
    learning_rate: f64,
    weight_decay: f64,
}

/// Calls `step` for each parameter that has a gradient.
fn for_each_turn(
    groups: &[ParameterGroup],
    gradients: &Gradients,
    factor: f64,
    mut step: impl FnMut(Turn<'_>) -> Result<()>,
) -> Result<()> {
    let expected = parameters(groups).count();
    if gradients.len() != expected {
        return Err(Error::GradientCount { found: gradients.len(), expected });
    }
    let mut index = 0;
    for group in groups {
        for parameter in &group.parameters {
            if let Some(gradient) = gradients.get(index) {
                step(Turn {
                    parameter,
                    gradient: crate::values::to_cpu_f32(gradient)?,
                    learning_rate: group.learning_rate * factor,
                    weight_decay: group.weight_decay,
                })?;
            }
            index += 1;
        }
    }
    Ok(())
}
