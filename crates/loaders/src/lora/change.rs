use candle_core::{DType, Device, Tensor};
use candle_diffusers_convert::{AdaptedLayer, LokrFactor, LoraWeights, Source, TensorRef, has_non_finite};
use candle_diffusers_models::layers::{Layer, Operation};

use super::low_rank::Branch;
use super::products::{Channels, factors_to_lengths, kronecker, matrix, tucker};
use crate::state_dict::candle_dtype;
use crate::{Error, Result};

/// How a LoRA changes one layer: the tensors of an [`AdaptedLayer`], in the file's dtype on the layer's device.
#[derive(Debug)]
pub(super) struct Change {
    weights: Weights,
    /// Before the user's own strength: alpha / rank.
    scaling: f64,
    /// DoRA's lengths.
    magnitude: Option<(Tensor, Channels)>,
}

/// The tensors of a [`LoraWeights`].
#[derive(Debug)]
enum Weights {
    Product { down: Tensor, up: Tensor, mid: Option<Tensor> },
    Hadamard([Factor; 2]),
    Kronecker([Factor; 2]),
    Difference { weight: Option<Tensor>, bias: Option<Tensor> },
}

/// A factor of LoHa or LoKr.
#[derive(Debug)]
enum Factor {
    Whole(Tensor),
    /// `left @ right`.
    Product {
        left: Tensor,
        right: Tensor,
    },
    /// Tucker's form, with `left` `(rank, out)`.
    Core {
        core: Tensor,
        left: Tensor,
        right: Tensor,
    },
}

impl Change {
    /// Reads the tensors of `adapted`, which must fit ([`misfit`]).
    ///
    /// Tensors with values that are no finite numbers are added to `not_finite`.
    ///
    /// # Errors
    /// When a tensor cannot be read or has an element type that cannot be computed with.
    pub(super) fn read(
        source: &dyn Source,
        adapted: &AdaptedLayer,
        layer: &Layer,
        not_finite: &mut Vec<String>,
    ) -> Result<Self> {
        let device = layer.device();
        let mut read = |tensor: &TensorRef| read_tensor(source, tensor, &device, not_finite);
        let weights = match &adapted.weights {
            LoraWeights::Lora { down, up, mid } => Weights::Product {
                down: read(down)?,
                up: read(up)?,
                mid: mid.as_ref().map(&mut read).transpose()?,
            },
            LoraWeights::Loha { w1_a, w1_b, w2_a, w2_b, t1_t2 } => {
                let mut factor = |a: &TensorRef, b: &TensorRef, core: Option<&TensorRef>| -> Result<Factor> {
                    Ok(Factor::of(read(a)?, read(b)?, core.map(&mut read).transpose()?))
                };
                let (t1, t2) = t1_t2.as_ref().map(|(t1, t2)| (t1, t2)).unzip();
                Weights::Hadamard([factor(w1_a, w1_b, t1)?, factor(w2_a, w2_b, t2)?])
            }
            LoraWeights::Lokr { w1, w2 } => {
                let mut factor = |factor: &LokrFactor| -> Result<Factor> {
                    match factor {
                        LokrFactor::Whole(whole) => Ok(Factor::Whole(read(whole)?)),
                        LokrFactor::Product { a, b, t } => {
                            Ok(Factor::of(read(a)?, read(b)?, t.as_ref().map(&mut read).transpose()?))
                        }
                    }
                };
                Weights::Kronecker([factor(w1)?, factor(w2)?])
            }
            LoraWeights::Full { weight, bias } => Weights::Difference {
                weight: weight.as_ref().map(&mut read).transpose()?,
                bias: bias.as_ref().map(&mut read).transpose()?,
            },
        };
        let channels = if is_per_input(adapted, layer) { Channels::Input } else { Channels::Output };
        let magnitude = adapted.dora_scale.as_ref().map(read).transpose()?.map(|scale| (scale, channels));
        Ok(Self { weights, scaling: adapted.scaling(), magnitude })
    }

    /// The change as a branch beside `layer`, with the factor that the file scales it by, where it is a plain product.
    pub(super) fn branch(&self, layer: &Layer) -> candle_core::Result<Option<(Branch, f64)>> {
        let (Weights::Product { down, up, mid }, None) = (&self.weights, &self.magnitude) else {
            return Ok(None);
        };
        let branch = match (layer.operation(), mid) {
            (Operation::Linear, None) => Branch { down: matrix(down)?, mid: None, up: matrix(up)? },
            (Operation::Linear, Some(mid)) => {
                let up = matrix(&up.to_dtype(DType::F32)?)?.matmul(&matrix(&mid.to_dtype(DType::F32)?)?)?;
                Branch { down: matrix(down)?, mid: None, up }
            }
            (Operation::Conv2d(_), None) => {
                let (_, input, height, width) = layer.shape().dims4()?;
                let (rank, out) = (down.dim(0)?, up.dim(0)?);
                let down = down.reshape((rank, input, height, width))?;
                Branch { down, mid: None, up: up.reshape((out, rank, 1, 1))? }
            }
            (Operation::Conv2d(_), Some(mid)) => {
                Branch { down: down.clone(), mid: Some(mid.clone()), up: up.clone() }
            }
        };
        Ok(Some((branch, self.scaling)))
    }

    /// Whether it is a DoRA, which works on what the changes before it made.
    pub(super) fn has_magnitude(&self) -> bool {
        self.magnitude.is_some()
    }

    /// Changes a weight at this strength; `None` where only the bias changes. `original` is the layer's own weight and `current` what
    /// the changes before this one made of it, both float32.
    pub(super) fn change_weight(
        &self,
        original: &Tensor,
        current: &Tensor,
        strength: f64,
    ) -> candle_core::Result<Option<Tensor>> {
        let product = match &self.weights {
            Weights::Product { down, up, mid: None } => {
                matrix(&float(up)?)?.matmul(&matrix(&float(down)?)?)?
            }
            Weights::Product { down, up, mid: Some(mid) } => {
                tucker(&float(mid)?, &float(up)?, &float(down)?)?
            }
            Weights::Hadamard([first, second]) => matrix(&first.value()?)?.mul(&matrix(&second.value()?)?)?,
            Weights::Kronecker([left, right]) => kronecker(&left.value()?, &right.value()?)?,
            Weights::Difference { weight: Some(weight), .. } => float(weight)?,
            Weights::Difference { weight: None, .. } => return Ok(None),
        };
        let delta = (product.reshape(original.shape())? * (strength * self.scaling))?;
        let changed = (current + &delta)?;
        match &self.magnitude {
            None => Ok(Some(changed)),
            Some((magnitude, channels)) => {
                let factors = factors_to_lengths(&(original + delta)?, &float(magnitude)?, *channels)?;
                Ok(Some(changed.broadcast_mul(&factors)?))
            }
        }
    }

    /// What is added to a layer's bias at this strength, `(out)` of float32.
    pub(super) fn bias_delta(&self, strength: f64) -> candle_core::Result<Option<Tensor>> {
        match &self.weights {
            Weights::Difference { bias: Some(bias), .. } => {
                Ok(Some((float(bias)?.flatten_all()? * strength)?))
            }
            _ => Ok(None),
        }
    }
}

impl Factor {
    /// A product, in Tucker's form where there is a core.
    fn of(left: Tensor, right: Tensor, core: Option<Tensor>) -> Self {
        match core {
            None => Self::Product { left, right },
            Some(core) => Self::Core { core, left, right },
        }
    }

    /// In float32.
    fn value(&self) -> candle_core::Result<Tensor> {
        match self {
            Self::Whole(whole) => float(whole),
            Self::Product { left, right } => float(left)?.matmul(&matrix(&float(right)?)?),
            Self::Core { core, left, right } => {
                tucker(&float(core)?, &float(left)?.t()?.contiguous()?, &float(right)?)
            }
        }
    }
}

fn float(tensor: &Tensor) -> candle_core::Result<Tensor> {
    tensor.to_dtype(DType::F32)
}

/// The shape of the change that cannot be added to `layer`, with one of its tensors; `None` where it fits.
///
/// A linear layer and a convolution of one pixel are the same, and a kernel may be written as one axis with the inputs.
pub(super) fn misfit(adapted: &AdaptedLayer, layer: &Layer) -> Option<(Vec<usize>, String)> {
    let shape = layer.shape();
    let expected = shape.dims();
    let (tensor, found) = delta_shape(&adapted.weights);
    if let Some(found) = found.filter(|found| !fits(found, expected)) {
        return Some((found, tensor.to_string()));
    }
    if let LoraWeights::Full { bias: Some(bias), .. } = &adapted.weights
        && bias.shape.iter().product::<usize>() != expected[0]
    {
        return Some((bias.shape.clone(), bias.name.clone()));
    }
    let scale = adapted.dora_scale.as_ref()?;
    let channels = if is_per_input(adapted, layer) { expected[1] } else { expected[0] };
    let count: usize = scale.shape.iter().product();
    (count != channels).then(|| (scale.shape.clone(), scale.name.clone()))
}

fn is_per_input(adapted: &AdaptedLayer, layer: &Layer) -> bool {
    let inputs = layer.shape().dims()[1];
    let scale = adapted.dora_scale.as_ref();
    adapted.dora_is_per_input() && scale.is_some_and(|scale| scale.shape.iter().product::<usize>() == inputs)
}

fn fits(found: &[usize], expected: &[usize]) -> bool {
    fn without_last_ones(shape: &[usize]) -> &[usize] {
        let ones = shape.iter().skip(2).rev().take_while(|length| **length == 1).count();
        &shape[..shape.len() - ones]
    }
    let is_flat = matches!(found, [out, rest] if *out == expected[0] && *rest == expected[1..].iter().product::<usize>());
    is_flat || without_last_ones(found) == without_last_ones(expected)
}

/// The shape that the change of a weight has, where there is one, and the name of a tensor of it.
fn delta_shape(weights: &LoraWeights) -> (&str, Option<Vec<usize>>) {
    /// `(left's axis, right's axis, kernel)`.
    fn joined(left: (&TensorRef, usize), right: (&TensorRef, usize), kernel: &[usize]) -> Vec<usize> {
        let axis = |(tensor, axis): (&TensorRef, usize)| tensor.shape.get(axis).copied().unwrap_or_default();
        [&[axis(left), axis(right)], kernel].concat()
    }
    let kernel = |tensor: &TensorRef| tensor.shape.get(2..).unwrap_or_default().to_vec();
    match weights {
        LoraWeights::Lora { down, up, mid } => {
            let kernel = kernel(mid.as_ref().unwrap_or(down));
            (&down.name, Some(joined((up, 0), (down, 1), &kernel)))
        }
        LoraWeights::Loha { w1_a, w1_b, t1_t2: None, .. } => {
            (&w1_a.name, Some(joined((w1_a, 0), (w1_b, 1), &[])))
        }
        LoraWeights::Loha { w1_a, w1_b, t1_t2: Some((t1, _)), .. } => {
            (&w1_a.name, Some(joined((w1_a, 1), (w1_b, 1), &kernel(t1))))
        }
        LoraWeights::Lokr { w1, w2 } => {
            let shape = |factor: &LokrFactor| match factor {
                LokrFactor::Whole(whole) => whole.shape.clone(),
                LokrFactor::Product { a, b, t: None } => joined((a, 0), (b, 1), &kernel(b)),
                LokrFactor::Product { a, b, t: Some(t) } => joined((a, 1), (b, 1), &kernel(t)),
            };
            let (left, mut product) = (shape(w1), shape(w2));
            // A left factor with a kernel of its own would be none of a layer's.
            for (axis, length) in product.iter_mut().take(2).enumerate() {
                *length = length.saturating_mul(left.get(axis).copied().unwrap_or_default());
            }
            let (LokrFactor::Whole(tensor) | LokrFactor::Product { b: tensor, .. }) = w2;
            (&tensor.name, Some(product))
        }
        LoraWeights::Full { weight, bias } => {
            let name = weight.as_ref().or(bias.as_ref()).map_or("", |tensor| &tensor.name);
            (name, weight.as_ref().map(|weight| weight.shape.clone()))
        }
    }
}

/// The name of a tensor that is there whatever the change is.
pub(super) fn first_tensor(weights: &LoraWeights) -> &str {
    delta_shape(weights).0
}

fn read_tensor(
    source: &dyn Source,
    tensor: &TensorRef,
    device: &Device,
    not_finite: &mut Vec<String>,
) -> Result<Tensor> {
    let file = source.name();
    let Some(dtype) = candle_dtype(tensor.dtype) else {
        return Err(Error::UnsupportedDtype {
            file: file.to_string(),
            tensor: tensor.name.clone(),
            dtype: tensor.dtype,
        });
    };
    let bytes = source.bytes(&tensor.name)?;
    if has_non_finite(&bytes, tensor.dtype) {
        not_finite.push(tensor.name.clone());
    }
    let read = Tensor::from_raw_buffer(&bytes, dtype, &tensor.shape, device);
    drop(bytes);
    source.release(&tensor.name);
    read.map_err(|error| Error::Tensor {
        file: file.to_string(),
        tensor: tensor.name.clone(),
        dtype,
        source: Box::new(error),
    })
}
