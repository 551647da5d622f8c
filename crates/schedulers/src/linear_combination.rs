//! The tensor work of a step: weighted sums in one pass over memory.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Shape, Tensor, WithDType,
};

use crate::error::{Error, Result};

/// Σ coefficient · tensor, divided and clamped, in one pass on the CPU.
///
/// Float64 is computed in float64, everything else in float32 and rounded once at the end: never less exact than the
/// reference, which rounds half precision after each operation.
#[derive(Clone, Debug)]
pub(crate) struct LinearCombination {
    /// For each tensor one coefficient, or one for each picture of the batch.
    coefficients: Vec<Vec<f64>>,
    divisor: f64,
    limit: Option<f64>,
}

impl LinearCombination {
    /// One coefficient for each tensor.
    pub(crate) fn new(coefficients: &[f64]) -> Self {
        Self::with_batch(coefficients.iter().map(|&coefficient| vec![coefficient]).collect())
    }

    /// For each tensor one coefficient, or as many as the first dimension is long.
    pub(crate) fn with_batch(coefficients: Vec<Vec<f64>>) -> Self {
        Self { coefficients, divisor: 1.0, limit: None }
    }

    /// Divides the sum, as the reference divides: by zero it gives infinity.
    pub(crate) fn divided_by(self, divisor: f64) -> Self {
        Self { divisor, ..self }
    }

    /// Clamps the result to [-limit, limit].
    pub(crate) fn clamped(self, limit: Option<f64>) -> Self {
        Self { limit, ..self }
    }

    /// Applies it to as many tensors of one shape as there are coefficients; the result has dtype `dtype`.
    pub(crate) fn apply(self, tensors: &[&Tensor], dtype: DType) -> Result<Tensor> {
        let compute = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        if let Some((first, others)) = tensors.split_first() {
            others.iter().try_for_each(|other| check_like_sample("a tensor of the step", other, first))?;
        }
        let tensors = tensors.iter().map(|tensor| Ok(tensor.to_dtype(compute)?.contiguous()?));
        let tensors = tensors.collect::<Result<Vec<Tensor>>>()?;
        let on_cpu = tensors.iter().all(|tensor| tensor.device().is_cpu());
        let sum = match tensors.as_slice() {
            [a] if on_cpu => a.apply_op1(self)?,
            [a, b] if on_cpu => a.apply_op2(b, self)?,
            [a, b, c] if on_cpu => a.apply_op3(b, c, self)?,
            [_, _, _, ..] if on_cpu => self.apply_in_parts(&tensors)?,
            all => self.apply_by_operations(all)?,
        };
        Ok(sum.to_dtype(dtype)?)
    }

    /// The same for more tensors than an operation takes: the sum of the first three, then that and the others.
    fn apply_in_parts(self, tensors: &[Tensor]) -> Result<Tensor> {
        let (first, rest) = tensors.split_at(3);
        let (first_coefficients, rest_coefficients) = self.coefficients.split_at(3);
        let first_sum = Self::with_batch(first_coefficients.to_vec());
        let first_sum = first_sum.apply(&first.iter().collect::<Vec<_>>(), first[0].dtype())?;
        let mut coefficients = vec![vec![1.0]];
        coefficients.extend_from_slice(rest_coefficients);
        let all: Vec<&Tensor> = std::iter::once(&first_sum).chain(rest).collect();
        Self { coefficients, ..self }.apply(&all, first_sum.dtype())
    }

    /// The same by candle's operations, for other devices.
    fn apply_by_operations(&self, tensors: &[Tensor]) -> candle_core::Result<Tensor> {
        let mut sum: Option<Tensor> = None;
        for (tensor, coefficients) in tensors.iter().zip(&self.coefficients) {
            let term = scaled(tensor, coefficients)?;
            sum = Some(match sum {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        let Some(mut sum) = sum else { candle_core::bail!("a linear combination of no tensors") };
        if self.divisor != 1.0 {
            sum = (sum / self.divisor)?;
        }
        match self.limit {
            Some(limit) => sum.clamp(-limit, limit),
            None => Ok(sum),
        }
    }

    fn forward<const N: usize>(
        &self,
        storages: [&CpuStorage; N],
        layouts: [&Layout; N],
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let shape = layouts[0].shape().clone();
        let storage = match storages[0] {
            CpuStorage::F64(_) => CpuStorage::F64(self.combine(slices::<f64, N>(storages, layouts)?, &shape)),
            CpuStorage::F32(_) => CpuStorage::F32(self.combine(slices::<f32, N>(storages, layouts)?, &shape)),
            _ => candle_core::bail!("a linear combination works in f32 or f64"),
        };
        Ok((storage, shape))
    }

    fn combine<T: Real, const N: usize>(&self, tensors: [&[T]; N], shape: &Shape) -> Vec<T> {
        let length = tensors[0].len();
        let rows = self.coefficients.iter().map(Vec::len).max().unwrap_or(1);
        // A batch of coefficients means that the first dimension of the shape is that long (see `with_batch`).
        let row_length = if rows > 1 { length / shape.dims()[0].max(1) } else { length };
        let divisor = T::from_f64(self.divisor);
        let limit = self.limit.map(T::from_f64);
        let mut values = Vec::with_capacity(length);
        for row in 0..if row_length == 0 { 0 } else { rows } {
            let coefficient = |tensor: usize| {
                let of_tensor = &self.coefficients[tensor];
                T::from_f64(of_tensor[row % of_tensor.len()])
            };
            let coefficients: [T; N] = std::array::from_fn(coefficient);
            let tensors = tensors.map(|tensor| &tensor[row * row_length..(row + 1) * row_length]);
            let value = |index: usize| {
                let term = |tensor: usize| coefficients[tensor] * tensors[tensor][index];
                let value = (1..N).fold(term(0), |sum, tensor| sum + term(tensor)) / divisor;
                limit.map_or(value, |limit| value.limited(limit))
            };
            values.extend((0..row_length).map(value));
        }
        values
    }

    /// The gradient with respect to one of the tensors.
    fn gradient(
        &self,
        tensor: usize,
        result: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        let coefficients: Vec<f64> = self.coefficients[tensor].iter().map(|c| c / self.divisor).collect();
        let gradient = scaled(gradient, &coefficients)?;
        Ok(Some(match self.limit {
            Some(limit) => (&gradient * result.abs()?.lt(limit)?.to_dtype(gradient.dtype())?)?,
            None => gradient,
        }))
    }
}

/// A tensor times one coefficient, or times one for each picture.
fn scaled(tensor: &Tensor, coefficients: &[f64]) -> candle_core::Result<Tensor> {
    if let [coefficient] = coefficients {
        return tensor.affine(*coefficient, 0.0);
    }
    let mut shape = vec![1; tensor.rank()];
    if let Some(batch) = shape.first_mut() {
        *batch = coefficients.len();
    }
    // Not every device has float64, which the coefficients are in.
    let coefficients = Tensor::new(coefficients, &Device::Cpu)?.to_dtype(tensor.dtype())?.reshape(shape)?;
    tensor.broadcast_mul(&coefficients.to_device(tensor.device())?)
}

fn slices<'a, T: WithDType, const N: usize>(
    storages: [&'a CpuStorage; N],
    layouts: [&Layout; N],
) -> candle_core::Result<[&'a [T]; N]> {
    let mut slices: [&[T]; N] = [&[]; N];
    for ((slice, storage), layout) in slices.iter_mut().zip(storages).zip(layouts) {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a linear combination needs contiguous tensors");
        };
        *slice = &storage.as_slice::<T>()?[start..end];
    }
    Ok(slices)
}

/// The two types that sums are computed in.
trait Real: WithDType {
    /// Clamped to [-limit, limit]; NaN stays NaN.
    fn limited(self, limit: Self) -> Self;
}

impl Real for f32 {
    fn limited(self, limit: Self) -> Self {
        self.clamp(-limit, limit)
    }
}

impl Real for f64 {
    fn limited(self, limit: Self) -> Self {
        self.clamp(-limit, limit)
    }
}

const NAME: &str = "linear_combination";

impl CustomOp1 for LinearCombination {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward([storage], [layout])
    }

    fn bwd(&self, _: &Tensor, result: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        self.gradient(0, result, gradient)
    }
}

impl CustomOp2 for LinearCombination {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward([s1, s2], [l1, l2])
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.gradient(0, result, gradient)?, self.gradient(1, result, gradient)?))
    }
}

impl CustomOp3 for LinearCombination {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward([s1, s2, s3], [l1, l2, l3])
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        result: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = [0, 1, 2].map(|tensor| self.gradient(tensor, result, gradient));
        Ok((a?, b?, c?))
    }
}

/// The dtype that torch gives an operation on two tensors of these floating-point types.
pub(crate) fn promoted(a: DType, b: DType) -> DType {
    match (a, b) {
        (a, b) if a == b => a,
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        _ => DType::F32,
    }
}

/// Fails unless `tensor` is shaped as `sample` and of a floating-point type.
pub(crate) fn check_like_sample(what: &'static str, tensor: &Tensor, sample: &Tensor) -> Result<()> {
    for (what, tensor) in [(what, tensor), ("sample", sample)] {
        if !matches!(tensor.dtype(), DType::F64 | DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::DType { what, found: tensor.dtype() });
        }
    }
    if tensor.dims() == sample.dims() {
        return Ok(());
    }
    let expected = format!("expected the sample's, {:?}", sample.dims());
    Err(Error::Shape { what, found: tensor.dims().to_vec(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(count: usize) -> Vec<Tensor> {
        let values = |tensor: usize| (0..24).map(move |index| ((index * 7 + tensor * 5) % 11) as f32 - 5.0);
        let tensor =
            |tensor| Tensor::from_iter(values(tensor), &Device::Cpu).unwrap().reshape((2, 3, 4)).unwrap();
        (0..count).map(tensor).collect()
    }

    #[test]
    fn one_pass_gives_what_operations_give() {
        for count in 1..=6 {
            for batch in [1, 2] {
                for limit in [None, Some(1.5)] {
                    let coefficient = |index: usize| 0.3 * index as f64 - 0.5;
                    let of_tensor =
                        |tensor: usize| (0..batch).map(|row| coefficient(tensor + 2 * row)).collect();
                    let coefficients = (0..count).map(of_tensor).collect();
                    let combination =
                        LinearCombination::with_batch(coefficients).divided_by(1.7).clamped(limit);
                    let tensors = tensors(count);
                    let expected = combination.apply_by_operations(&tensors).unwrap();
                    let actual = combination.apply(&tensors.iter().collect::<Vec<_>>(), DType::F32).unwrap();
                    let difference = (actual - expected).unwrap().abs().unwrap().max_all().unwrap();
                    assert!(difference.to_scalar::<f32>().unwrap() < 1e-5, "{count} {batch} {limit:?}");
                }
            }
        }
    }

    #[test]
    fn tensors_of_other_shapes_are_an_error() {
        let [a, b] = [tensors(1).remove(0), tensors(1).remove(0).narrow(0, 0, 1).unwrap()];
        assert!(LinearCombination::new(&[1.0, 1.0]).apply(&[&a, &b], DType::F32).is_err());
    }
}
