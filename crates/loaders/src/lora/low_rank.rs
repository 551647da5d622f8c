use candle_core::{DType, Tensor};
use candle_diffusers_models::Result;
use candle_diffusers_models::layers::{Layer, LayerAdapter, Operation};

/// A change of low rank beside a layer: `output + up(mid(down(input)))`, without the delta's full size ever in memory.
#[derive(Debug)]
pub(super) struct LowRank {
    branches: Vec<Branch>,
}

/// One product. For linear layers `(rank, in)`, `(rank, rank)` and `(out, rank)`; for convolutions `(rank, in, height, width)` and
/// `(out, rank, 1, 1)`, or with `mid` `(rank, in, 1, 1)`, `(rank, rank, height, width)` and `(out, rank, 1, 1)`.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    pub(super) down: Tensor,
    pub(super) mid: Option<Tensor>,
    pub(super) up: Tensor,
}

impl LowRank {
    /// The branches with their strengths, in the dtype of `layer`. Those without `mid` are joined to one.
    pub(super) fn new(layer: &Layer, branches: &[(Branch, f64)]) -> candle_core::Result<Self> {
        let dtype = layer.dtype();
        let mut with_mid = Vec::new();
        let (mut downs, mut ups) = (Vec::new(), Vec::new());
        for (Branch { down, mid, up }, strength) in branches {
            // Scaled before it is rounded.
            let up = (up.to_dtype(DType::F32)? * *strength)?.to_dtype(dtype)?;
            let down = down.to_dtype(dtype)?;
            match mid {
                Some(mid) => with_mid.push(Branch { down, mid: Some(mid.to_dtype(dtype)?), up }),
                None => {
                    downs.push(down);
                    ups.push(up);
                }
            }
        }
        if !downs.is_empty() {
            with_mid.push(Branch { down: Tensor::cat(&downs, 0)?, mid: None, up: Tensor::cat(&ups, 1)? });
        }
        Ok(Self { branches: with_mid })
    }
}

impl LayerAdapter for LowRank {
    fn forward(&self, layer: &Layer, input: &Tensor, mut output: Tensor) -> Result<Tensor> {
        for branch in &self.branches {
            output = (output + branch.forward(layer.operation(), input)?)?;
        }
        Ok(output)
    }
}

impl Branch {
    fn forward(&self, operation: Operation, input: &Tensor) -> Result<Tensor> {
        let low = match &self.mid {
            None => operation.forward(input, &self.down, None)?,
            Some(mid) => {
                let low = operation.pointwise().forward(input, &self.down, None)?;
                operation.forward(&low, mid, None)?
            }
        };
        operation.pointwise().forward(&low, &self.up, None)
    }
}
