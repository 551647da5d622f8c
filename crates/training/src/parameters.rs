//! What is trained: named variables in groups that have learning rates of their own.

use std::collections::HashSet;

use candle_core::{DType, Var};

use crate::error::{Error, Result};

/// A variable that is trained. Its name must not occur twice in a run: states are saved by it.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// For instance `unet.conv_in.weight`.
    pub name: String,
    /// In float32, float16 or bfloat16.
    pub var: Var,
}

/// Parameters that share a learning rate and a weight decay.
#[derive(Clone, Debug)]
pub struct ParameterGroup {
    /// The group's parameters.
    pub parameters: Vec<Parameter>,
    /// The base learning rate, which the schedule's factor multiplies.
    pub learning_rate: f64,
    /// How strongly parameters are pulled to zero.
    pub weight_decay: f64,
}

/// All parameters of `groups`, in the order in which [`Gradients`](crate::Gradients) counts them.
pub fn parameters(groups: &[ParameterGroup]) -> impl Iterator<Item = &Parameter> {
    groups.iter().flat_map(|group| &group.parameters)
}

/// Whether an optimizer can train `groups`: call it once before a run.
///
/// # Errors
/// If there is no parameter, two share a name or a variable, one has a dtype that cannot be trained, or a learning rate or weight decay is
/// negative or not finite.
pub fn check_parameters(groups: &[ParameterGroup]) -> Result<()> {
    let (mut names, mut variables) = (HashSet::new(), HashSet::new());
    for Parameter { name, var } in parameters(groups) {
        if !names.insert(name) || !variables.insert(var.id()) {
            return Err(Error::Parameters(format!("{name} is there twice")));
        }
        if !matches!(var.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::ParameterDType { name: name.clone(), found: var.dtype() });
        }
    }
    if names.is_empty() {
        return Err(Error::Parameters("there is nothing to train".to_string()));
    }
    for group in groups {
        check_not_negative("learning_rate", group.learning_rate)?;
        check_not_negative("weight_decay", group.weight_decay)?;
    }
    Ok(())
}

/// Fails for negative numbers, NaN and infinity.
pub(crate) fn check_not_negative(field: &'static str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::Field { field, found: value.to_string(), expected: "0 or more".to_string() })
}
