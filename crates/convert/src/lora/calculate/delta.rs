//! What a layer's change adds to its weight, as matrices: output channels by all that goes into each of them.

use half::{bf16, f16};
use safetensors::Dtype;

use super::truncate::{LowRank, Matrix, truncate, truncate_product};
use crate::lora::{AdaptedLayer, LokrFactor, LoraComponent, LoraError, LoraWeights, TensorRef};
use crate::write::{f8_e4m3_to_f32, f8_e5m2_to_f32};
use crate::{Error, Family, Result, Source};

/// A change of one weight, with all factors but the user's own in it.
#[derive(Debug, Clone)]
pub(super) struct Delta {
    pub(super) values: DeltaValues,
    /// Height and width of a convolution's kernel; `None` for a linear layer.
    pub(super) kernel: Option<[usize; 2]>,
}

#[derive(Debug, Clone)]
pub(super) enum DeltaValues {
    /// `up @ down`, `(out, rank)` and `(rank, in * height * width)`.
    Product { up: Matrix, down: Matrix },
    /// `(out, in * height * width)`.
    Whole(Matrix),
}

impl Delta {
    /// The change of `layer` of a model of `family`, without DoRA's lengths.
    ///
    /// # Errors
    /// When its tensors cannot be read, or it is no change of a matrix.
    pub(super) fn of(layer: &AdaptedLayer, family: Option<Family>, source: &dyn Source) -> Result<Self> {
        let scaling = layer.scaling();
        let (values, said) = match &layer.weights {
            LoraWeights::Lora { down, up, mid: None } => {
                let (up, inner) = (rows(source, up)? * scaling, rows(source, down)?);
                (DeltaValues::Product { up, down: inner }, kernel(&down.shape))
            }
            LoraWeights::Lora { down, up, mid: Some(mid) } => {
                let (up, inner, core) =
                    (rows(source, up)? * scaling, rows(source, down)?, read(source, mid)?);
                let outer = Matrix::identity(mid.shape[0], mid.shape[0]);
                let down = with_core(&core, &mid.shape, &outer, &inner);
                (DeltaValues::Product { up, down }, kernel(&mid.shape))
            }
            LoraWeights::Loha { w1_a, w1_b, w2_a, w2_b, t1_t2 } => {
                let (t1, t2) = t1_t2.as_ref().map(|(t1, t2)| (t1, t2)).unzip();
                let first = product(source, w1_a, w1_b, t1)?;
                let second = product(source, w2_a, w2_b, t2)?;
                let said = t1.and_then(|t1| kernel(&t1.shape));
                (DeltaValues::Whole(first.component_mul(&second) * scaling), said)
            }
            LoraWeights::Lokr { w1, w2 } => {
                // A kernel's values are behind the inputs of the right factor, and so behind those of the product.
                let whole = factor(source, w1)?.kronecker(&factor(source, w2)?);
                (DeltaValues::Whole(whole * scaling), factor_kernel(w2))
            }
            LoraWeights::Full { weight: Some(weight), .. } => {
                (DeltaValues::Whole(rows(source, weight)? * scaling), kernel(&weight.shape))
            }
            LoraWeights::Full { weight: None, .. } => {
                return Err(Error::not_readable(source.name(), &format!("{}.weight", layer.name)));
            }
        };
        let columns = match &values {
            DeltaValues::Product { down, .. } => down.ncols(),
            DeltaValues::Whole(matrix) => matrix.ncols(),
        };
        Ok(Self { values, kernel: kernel_of_layer(layer, said, columns, family) })
    }

    /// The best product of at most `rank`.
    ///
    /// # Errors
    /// When there are values that are no numbers; `what` names the layer.
    pub(super) fn truncate(&self, rank: usize, what: &str) -> Result<LowRank> {
        match &self.values {
            DeltaValues::Product { up, down } => truncate_product(up, down, rank, what),
            DeltaValues::Whole(matrix) => truncate(matrix, rank, what),
        }
    }

    /// Rows and columns of the change.
    pub(super) fn shape(&self) -> (usize, usize) {
        match &self.values {
            DeltaValues::Product { up, down } => (up.nrows(), down.ncols()),
            DeltaValues::Whole(matrix) => matrix.shape(),
        }
    }
}

/// The values of a tensor of floating-point numbers.
pub(super) fn read(source: &dyn Source, tensor: &TensorRef) -> Result<Vec<f64>> {
    let bytes = source.bytes(&tensor.name)?;
    let values: Vec<f64> = match tensor.dtype {
        Dtype::F64 => words(&bytes).map(f64::from_le_bytes).collect(),
        Dtype::F32 => words(&bytes).map(|word| f32::from_le_bytes(word).into()).collect(),
        Dtype::F16 => words(&bytes).map(|word| f16::from_le_bytes(word).into()).collect(),
        Dtype::BF16 => words(&bytes).map(|word| bf16::from_le_bytes(word).into()).collect(),
        Dtype::F8_E4M3 => bytes.iter().map(|byte| f8_e4m3_to_f32(*byte).into()).collect(),
        Dtype::F8_E5M2 => bytes.iter().map(|byte| f8_e5m2_to_f32(*byte).into()).collect(),
        dtype => {
            return Err(LoraError::Dtype {
                file: source.name().to_string(),
                tensor: tensor.name.clone(),
                dtype,
            }
            .into());
        }
    };
    if values.len() != tensor.shape.iter().product::<usize>() {
        return Err(Error::not_readable(source.name(), &tensor.name));
    }
    source.release(&tensor.name);
    Ok(values)
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// A tensor as a matrix: its first axis by all others.
pub(super) fn rows(source: &dyn Source, tensor: &TensorRef) -> Result<Matrix> {
    let values = read(source, tensor)?;
    let rows = tensor.shape.first().copied().unwrap_or(1);
    Ok(Matrix::from_row_slice(rows, values.len() / rows.max(1), &values))
}

/// Height and width, of weights that have them.
fn kernel(shape: &[usize]) -> Option<[usize; 2]> {
    match shape {
        [_, _, height, width] => Some([*height, *width]),
        _ => None,
    }
}

/// The kernel that a layer's weight has, where its change says `said` and has so many `columns`.
///
/// The factors of LoHa and LoKr may have a kernel's values among their columns, and a convolution of one pixel may be written as a matrix, or a
/// linear layer as such a convolution. Programs take a LoRA only in the form of the layer, and that the layer's name tells; of the
/// projections around transformer blocks, convolutions in Stable Diffusion 1 and linear layers since, the family.
fn kernel_of_layer(
    layer: &AdaptedLayer,
    said: Option<[usize; 2]>,
    columns: usize,
    family: Option<Family>,
) -> Option<[usize; 2]> {
    const PIXEL: [usize; 2] = [1, 1];
    if said.is_some_and(|kernel| kernel != PIXEL) {
        return said;
    }
    let last = layer.name.rsplit('.').next().unwrap_or_default();
    match (layer.component, last, family) {
        (LoraComponent::UNet, "conv_shortcut", _) => Some(PIXEL),
        (LoraComponent::UNet, "proj_in" | "proj_out", Some(Family::StableDiffusion1)) => Some(PIXEL),
        (LoraComponent::UNet, "proj_in" | "proj_out", None) => said,
        (LoraComponent::UNet, name, _) if name.starts_with("conv") => {
            if said.is_none() && columns.is_multiple_of(9) { Some([3, 3]) } else { said }
        }
        _ => None,
    }
}

/// `a @ b`, or with a core what [`LoraWeights::Loha`] says.
fn product(source: &dyn Source, a: &TensorRef, b: &TensorRef, core: Option<&TensorRef>) -> Result<Matrix> {
    let (left, right) = (rows(source, a)?, rows(source, b)?);
    match core {
        None => Ok(left * right),
        Some(core) => Ok(with_core(&read(source, core)?, &core.shape, &left.transpose(), &right)),
    }
}

/// `sum over i, j of outer[p, i] core[i, j, k, l] inner[j, r]` as the matrix of p by (r, k, l).
fn with_core(core: &[f64], shape: &[usize], outer: &Matrix, inner: &Matrix) -> Matrix {
    let [first, second, height, width] = [0, 1, 2, 3].map(|axis| shape.get(axis).copied().unwrap_or(1));
    let (area, columns) = (height * width, inner.ncols());
    let mut result = Matrix::zeros(outer.nrows(), columns * area);
    for pixel in 0..area {
        let slice = Matrix::from_fn(first, second, |i, j| core[(i * second + j) * area + pixel]);
        let at_pixel = outer * slice * inner;
        for (column, values) in at_pixel.column_iter().enumerate() {
            result.set_column(column * area + pixel, &values);
        }
    }
    result
}

fn factor(source: &dyn Source, factor: &LokrFactor) -> Result<Matrix> {
    match factor {
        LokrFactor::Whole(tensor) => rows(source, tensor),
        LokrFactor::Product { a, b, t } => product(source, a, b, t.as_ref()),
    }
}

fn factor_kernel(factor: &LokrFactor) -> Option<[usize; 2]> {
    match factor {
        LokrFactor::Whole(tensor) | LokrFactor::Product { t: Some(tensor), .. } => kernel(&tensor.shape),
        LokrFactor::Product { b, t: None, .. } => kernel(&b.shape),
    }
}
