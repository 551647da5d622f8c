//! Gradients of one step: collected, added up, measured and clipped.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use candle_diffusers_models::gradient_checkpointing::backward;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::parameters::{ParameterGroup, parameters};
use crate::values::{PIECE, read, to_cpu_f32};

/// The gradients of a list of groups in float32, in the order of [`parameters`]; none where a parameter took no part in the loss.
#[derive(Clone, Debug)]
pub struct Gradients(Vec<Option<Tensor>>);

impl Gradients {
    /// The gradients of a loss, also where models compute with gradient checkpointing.
    ///
    /// # Errors
    /// When they cannot be computed.
    pub fn of(loss: &Tensor, groups: &[ParameterGroup]) -> Result<Self> {
        Self::collect(backward(loss)?, groups)
    }

    /// Takes the gradients of `groups` out of what `loss.backward()` gave, and drops the rest.
    ///
    /// # Errors
    /// If a gradient does not have its parameter's shape.
    pub fn collect(mut store: GradStore, groups: &[ParameterGroup]) -> Result<Self> {
        let taken: Vec<_> = parameters(groups).map(|parameter| store.remove(&parameter.var)).collect();
        drop(store);
        Self::new(taken, groups)
    }

    /// Gradients that were computed in another way: one for each of [`parameters`], of any floating-point type.
    ///
    /// # Errors
    /// If their number or a shape is not that of the parameters.
    pub fn new(gradients: Vec<Option<Tensor>>, groups: &[ParameterGroup]) -> Result<Self> {
        let expected = parameters(groups).count();
        if gradients.len() != expected {
            return Err(Error::GradientCount { found: gradients.len(), expected });
        }
        let mut checked = Vec::with_capacity(expected);
        for (gradient, parameter) in gradients.into_iter().zip(parameters(groups)) {
            let Some(gradient) = gradient else {
                checked.push(None);
                continue;
            };
            if gradient.dims() != parameter.var.dims() {
                return Err(Error::GradientShape {
                    name: parameter.name.clone(),
                    found: gradient.dims().to_vec(),
                    expected: parameter.var.dims().to_vec(),
                });
            }
            checked.push(Some(in_float32(gradient)?));
        }
        Ok(Self(checked))
    }

    /// Those of parameters that have taken no part in anything.
    pub(crate) fn none(groups: &[ParameterGroup]) -> Self {
        Self(parameters(groups).map(|_| None).collect())
    }

    /// Adds a part of the gradient of the parameter at `index`, which has its shape.
    pub(crate) fn add_one(&mut self, index: usize, gradient: Tensor) -> Result<()> {
        let found = self.len();
        let Some(sum) = self.0.get_mut(index) else {
            return Err(Error::GradientCount { found, expected: index + 1 });
        };
        let gradient = in_float32(gradient)?;
        *sum = Some(match sum.take() {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        });
        Ok(())
    }

    /// The gradient of the parameter at `index`, which then has none here.
    pub(crate) fn take(&mut self, index: usize) -> Option<Tensor> {
        self.0.get_mut(index)?.take()
    }

    /// How many parameters there are, with a gradient or without.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The gradient of the parameter at `index`.
    pub fn get(&self, index: usize) -> Option<&Tensor> {
        self.0.get(index)?.as_ref()
    }

    /// Adds those of another batch, for gradient accumulation.
    ///
    /// # Errors
    /// If they are gradients of other parameters.
    pub fn add(&mut self, other: Self) -> Result<()> {
        if other.len() != self.len() {
            return Err(Error::GradientCount { found: other.len(), expected: self.len() });
        }
        for (sum, gradient) in self.0.iter_mut().zip(other.0) {
            *sum = match (sum.take(), gradient) {
                (Some(sum), Some(gradient)) => Some((sum + gradient)?),
                (sum, gradient) => sum.or(gradient),
            };
        }
        Ok(())
    }

    /// Multiplies all by `factor`, rounded to float32.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for gradient in self.0.iter_mut().flatten() {
            *gradient = (&*gradient * f64::from(factor as f32))?;
        }
        Ok(())
    }

    /// The Euclidean norm of all together; NaN or infinite where a gradient is.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn norm(&self) -> Result<f32> {
        let mut sum = 0.0;
        for gradient in self.0.iter().flatten() {
            sum += read(&to_cpu_f32(gradient)?, |values| Ok(sum_of_squares(values)))?;
        }
        Ok(sum.sqrt() as f32)
    }

    /// Scales all so that their norm is at most `max_norm`, as `torch.nn.utils.clip_grad_norm_`, and gives the norm that they had. Where that
    /// is not finite, the gradients are of no use any more: stop, or leave the step out.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn clip(&mut self, max_norm: f64) -> Result<f32> {
        let norm = self.norm()?;
        let factor = (max_norm as f32 / (norm + 1e-6)).min(1.0);
        // At 1 the product changes nothing. A NaN is passed on, as torch does; f32::min would drop it.
        if norm.is_nan() {
            self.scale(f64::NAN)?;
        } else if factor < 1.0 {
            self.scale(f64::from(factor))?;
        }
        Ok(norm)
    }
}

fn in_float32(gradient: Tensor) -> candle_core::Result<Tensor> {
    gradient.detach().to_dtype(DType::F32)?.contiguous()
}

/// In float64 over pieces of a fixed size, added in their order: the same bits whatever the number of threads.
fn sum_of_squares(values: &[f32]) -> f64 {
    let sums: Vec<f64> = values.par_chunks(PIECE).map(sum_of_squares_of_piece).collect();
    sums.iter().sum()
}

fn sum_of_squares_of_piece(piece: &[f32]) -> f64 {
    // Several sums that the processor can keep in one vector.
    let mut sums = [0.0; 8];
    let (rows, rest) = piece.as_chunks::<8>();
    for row in rows.iter().map(|row| row.as_slice()).chain([rest]) {
        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value) * f64::from(value));
    }
    sums.iter().sum()
}
