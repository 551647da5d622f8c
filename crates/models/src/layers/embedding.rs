use candle_core::Tensor;
use candle_nn::VarBuilder;

use crate::error::Result;

/// A table of vectors, with the state-dict key `weight` `(count, features)`.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// # Errors
    /// When the weight is missing or wrongly shaped.
    pub fn new(count: usize, features: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get((count, features), "weight")? })
    }

    /// Rows by index: `ids` of any shape and an integer dtype to `(..., features)`.
    ///
    /// # Errors
    /// When an index is not in the table.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.weight.dim(1)?);
        Ok(self.weight.index_select(&ids.flatten_all()?.contiguous()?, 0)?.reshape(shape)?)
    }

    /// The table, `(count, features)`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// How wide a vector is.
    pub fn features(&self) -> usize {
        self.weight.dims()[1]
    }

    /// How many vectors there are.
    pub fn count(&self) -> usize {
        self.weight.dims()[0]
    }
}
