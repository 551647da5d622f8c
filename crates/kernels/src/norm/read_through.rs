use candle_core::{Result, Tensor};

use super::cpu::GroupNorm;
use super::normalize::Normalize;
use super::{add_group_norm_silu, check_group_norm, check_vectors, group_norm_silu, is_on_cpu};
use crate::Level;
use crate::activation::Silu;
use crate::elementwise::floats;

/// [`group_norm_silu`], or [`add_group_norm_silu`], for a convolution that applies it to its input as it reads it
/// ([`PackedWeight::conv2d_normed`](crate::PackedWeight::conv2d_normed)).
#[derive(Clone, Copy, Debug)]
pub struct GroupNormSilu<'a> {
    /// `(batch, channels)`, to add before.
    pub vectors: Option<&'a Tensor>,
    /// How many groups the channels are in.
    pub groups: usize,
    /// `(channels)`.
    pub weight: &'a Tensor,
    /// `(channels)`.
    pub bias: &'a Tensor,
    /// Added to the variance.
    pub eps: f64,
}

impl GroupNormSilu<'_> {
    /// The norm of `x`, as a tensor.
    ///
    /// # Errors
    /// Those of [`group_norm_silu`] and [`add_group_norm_silu`].
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let Self { vectors, groups, weight, bias, eps } = *self;
        match vectors {
            Some(vectors) => add_group_norm_silu(x, vectors, groups, weight, bias, eps),
            None => group_norm_silu(x, groups, weight, bias, eps),
        }
    }

    /// Whether a gradient would have to go through it.
    pub(crate) fn tracks(&self) -> bool {
        let tracks = |tensor: &Tensor| tensor.track_op();
        self.vectors.is_some_and(tracks) || tracks(self.weight) || tracks(self.bias)
    }

    /// What it does with each channel of each picture of `x`; `None` where this crate's code does not compute it.
    ///
    /// # Errors
    /// Those of [`apply`](Self::apply).
    pub(crate) fn channels(&self, x: &Tensor) -> Result<Option<Vec<Normalize<Silu>>>> {
        let Self { vectors, groups, weight, bias, eps } = *self;
        let operation = if vectors.is_some() { "add_group_norm_silu" } else { "group_norm_silu" };
        check_group_norm(operation, x, groups, weight, bias)?;
        if let Some(vectors) = vectors {
            check_vectors(operation, x, vectors)?;
        }
        let added = vectors.filter(|vectors| vectors.device().is_cpu()).map(floats).transpose()?;
        if !is_on_cpu(x, weight, bias) || added.is_some() != vectors.is_some() {
            return Ok(None);
        }
        let norm = GroupNorm { x, added, groups, weight: floats(weight)?, bias: floats(bias)?, eps };
        norm.channels(Level::current()?, Silu).map(Some)
    }
}
