//! What a layer's change adds to its weight, as matrices: output channels by all that goes into each of them.

use half::{bf16, f16};
use safetensors::Dtype;

use super::truncate::{LowRank, Matrix, truncate, truncate_product};
use crate::lora::{AdaptedLayer, LokrFactor, LoraError, LoraWeights, TensorRef};
use crate::{Error, Result, Source};

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
    /// The change of `layer`, without DoRA's lengths.
    ///
    /// # Errors
    /// When its tensors cannot be read, or it is no change of a matrix.
    pub(super) fn of(layer: &AdaptedLayer, source: &dyn Source) -> Result<Self> {
        let scaling = layer.scaling();
        Ok(match &layer.weights {
            LoraWeights::Lora { down, up, mid: None } => Self {
                values: DeltaValues::Product { up: rows(source, up)? * scaling, down: rows(source, down)? },
                kernel: kernel(&down.shape),
            },
            LoraWeights::Lora { down, up, mid: Some(mid) } => {
                let (inner, values) = (rows(source, down)?, read(source, mid)?);
                Self {
                    values: DeltaValues::Product {
                        up: rows(source, up)? * scaling,
                        down: with_core(
                            &values,
                            &mid.shape,
                            &Matrix::identity(mid.shape[0], mid.shape[0]),
                            &inner,
                        ),
                    },
                    kernel: kernel(&mid.shape),
                }
            }
            LoraWeights::Loha { w1_a, w1_b, w2_a, w2_b, t1_t2 } => {
                let (t1, t2) = (t1_t2.as_ref().map(|t| &t.0), t1_t2.as_ref().map(|t| &t.1));
                let first = product(source, w1_a, w1_b, t1)?;
                let second = product(source, w2_a, w2_b, t2)?;
                let kernel = match t1 {
                    Some(t1) => kernel(&t1.shape),
                    None => kernel_by_name(&layer.name, first.ncols()),
                };
                Self { values: DeltaValues::Whole(first.component_mul(&second) * scaling), kernel }
            }
            LoraWeights::Lokr { w1, w2 } => {
                let (left, right) = (factor(source, w1)?, factor(source, w2)?);
                let kernel = factor_kernel(w2);
                let area = kernel.map_or(1, |[height, width]| height * width);
                Self { values: DeltaValues::Whole(kronecker(&left, &right, area) * scaling), kernel }
            }
            LoraWeights::Full { weight: Some(weight), .. } => Self {
                values: DeltaValues::Whole(rows(source, weight)? * scaling),
                kernel: kernel(&weight.shape),
            },
            LoraWeights::Full { weight: None, .. } => {
                return Err(Error::not_readable(source.name(), &format!("{}.weight", layer.name)));
            }
        })
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

/// LoHa's factors do not say whether their columns are those of a kernel; the layer's name does.
fn kernel_by_name(name: &str, columns: usize) -> Option<[usize; 2]> {
    match name.rsplit('.').next() {
        Some("conv_shortcut") => Some([1, 1]),
        Some(last) if last.starts_with("conv") && columns.is_multiple_of(9) => Some([3, 3]),
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

/// The Kronecker product of matrices, of which the right one has a kernel of `area` values behind each column.
fn kronecker(left: &Matrix, right: &Matrix, area: usize) -> Matrix {
    let inputs = right.ncols() / area.max(1);
    Matrix::from_fn(left.nrows() * right.nrows(), left.ncols() * right.ncols(), |row, column| {
        let (input, pixel) = (column / area, column % area);
        left[(row / right.nrows(), input / inputs)]
            * right[(row % right.nrows(), (input % inputs) * area + pixel)]
    })
}
