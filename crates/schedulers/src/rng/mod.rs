//! Randomness as torch's CPU generator gives it.
//!
//! The same seed gives the same numbers as `torch.Generator().manual_seed(seed)`: uniform numbers and integers bit for bit,
//! normal ones within 1e-6. Sources: torch 2.15 `ATen/core/MT19937RNGEngine.h`, `ATen/core/DistributionsHelper.h`,
//! `ATen/native/cpu/DistributionTemplates.h`.

mod box_muller;
mod mt19937;
mod saved_state;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use box_muller::BLOCK;
use mt19937::Mt19937;

/// Where a stochastic step takes its noise from.
pub trait NoiseSource {
    /// A tensor of standard normal numbers, as diffusers' `randn_tensor` makes it with a CPU generator: drawn on the CPU in
    /// `dtype` itself (torch's draws for half precision are not those for float32 rounded), then moved to `device`.
    fn randn(&mut self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor>;

    /// [`randn`](Self::randn) from the first generators only, where there is one for each picture: as many as the shape's first dimension says.
    ///
    /// # Errors
    /// Those of [`randn`](Self::randn), and when there are fewer generators.
    fn randn_of_first(&mut self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        self.randn(shape, dtype, device)
    }

    /// How many generators there are, one for each picture; none where one draws for all pictures, however many they are.
    fn generators(&self) -> Option<usize> {
        None
    }
}

/// torch's CPU generator.
///
/// ```
/// use candle_core::{DType, Device};
/// use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};
///
/// // torch.randn(2, generator=torch.Generator().manual_seed(0)) is tensor([ 1.5410, -0.2934])
/// let noise = TorchGenerator::new(0).randn(&[2], DType::F32, &Device::Cpu)?.to_vec1::<f32>()?;
/// assert!((noise[0] - 1.5410).abs() < 1e-4 && (noise[1] + 0.2934).abs() < 1e-4);
/// # Ok::<(), candle_diffusers_schedulers::Error>(())
/// ```
#[derive(Clone)]
pub struct TorchGenerator {
    engine: Mt19937,
    seed: u64,
    /// The second number of the last pair that the scalar transform made, kept for the next draw.
    cached_normal: Option<f64>,
}

impl std::fmt::Debug for TorchGenerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TorchGenerator").field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl TorchGenerator {
    /// A generator as `torch.Generator().manual_seed(seed)` makes it. Only the low 32 bits of the seed matter, as in torch.
    pub fn new(seed: u64) -> Self {
        Self { engine: Mt19937::new(seed), seed, cached_normal: None }
    }

    /// The seed that it was made with.
    pub fn initial_seed(&self) -> u64 {
        self.seed
    }

    /// Uniform numbers in [0, 1), as `torch.rand(shape, dtype=dtype, generator=...)`.
    ///
    /// # Errors
    /// If `dtype` is not a floating-point type of 16 to 64 bits, or the shape has too many elements.
    pub fn rand(&mut self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let count = element_count(shape)?;
        let tensor = match dtype {
            DType::F64 => {
                let values: Vec<f64> = (0..count).map(|_| self.uniform_f64()).collect();
                Tensor::from_vec(values, shape, &Device::Cpu)?
            }
            DType::F32 => {
                let values: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
                Tensor::from_vec(values, shape, &Device::Cpu)?
            }
            DType::F16 | DType::BF16 => {
                let values: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
                let rounded = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?;
                // What rounds up to one becomes zero, so that the interval stays half open.
                let below_one = rounded.lt(1.0)?.to_dtype(dtype)?;
                (rounded * below_one)?
            }
            found => return Err(Error::DType { what: "rand", found }),
        };
        Ok(tensor.to_device(device)?)
    }

    /// Integers in [low, high) as int64, as `torch.randint(low, high, shape, generator=...)`.
    ///
    /// # Errors
    /// If `low >= high`, or the shape has too many elements.
    pub fn randint(&mut self, low: i64, high: i64, shape: &[usize], device: &Device) -> Result<Tensor> {
        if low >= high {
            let expected = format!("less than high, which is {high}");
            return Err(Error::Argument { argument: "low", found: low.to_string(), expected });
        }
        let range = high.wrapping_sub(low) as u64;
        let count = element_count(shape)?;
        let values: Vec<i64> = (0..count).map(|_| low.wrapping_add(self.below(range) as i64)).collect();
        Ok(Tensor::from_vec(values, shape, device)?)
    }

    /// The integers 0 to `n` - 1 in random order as int64, as `torch.randperm(n, generator=...)`.
    ///
    /// # Errors
    /// If `n` is too large for a tensor.
    pub fn randperm(&mut self, n: usize, device: &Device) -> Result<Tensor> {
        let count = element_count(&[n])?;
        let mut values: Vec<i64> = (0..count as i64).collect();
        if count < (u32::MAX / 20) as usize {
            for index in 0..count.saturating_sub(1) {
                let other = index + self.engine.next_u32() as usize % (count - index);
                values.swap(index, other);
            }
        } else {
            for index in 0..count {
                let other = (self.engine.next_u64() % (index as u64 + 1)) as usize;
                values.swap(index, other);
            }
        }
        Ok(Tensor::from_vec(values, count, device)?)
    }

    /// A uniform integer below `range`: 32 bits are drawn for small ranges, 64 from 2^28 on.
    fn below(&mut self, range: u64) -> u64 {
        if range >= 1 << 28 {
            self.engine.next_u64() % range
        } else {
            u64::from(self.engine.next_u32()) % range
        }
    }

    /// 24 uniform bits as a number in [0, 1).
    fn uniform_f32(&mut self) -> f32 {
        (self.engine.next_u32() & 0x00ff_ffff) as f32 * 2f32.powi(-24)
    }

    /// 53 uniform bits as a number in [0, 1).
    fn uniform_f64(&mut self) -> f64 {
        (self.engine.next_u64() & 0x001f_ffff_ffff_ffff) as f64 * 2f64.powi(-53)
    }

    /// One normal number by the scalar transform, which torch uses below 16 values.
    fn normal_f64(&mut self) -> f64 {
        if let Some(cached) = self.cached_normal.take() {
            return cached;
        }
        let angle = self.uniform_f64();
        let distance = self.uniform_f64();
        let radius = (-2.0 * (-distance).ln_1p()).sqrt();
        let theta = 2.0 * std::f64::consts::PI * angle;
        self.cached_normal = Some(radius * theta.sin());
        radius * theta.cos()
    }

    /// Normal numbers by the block transform of float32: all uniform numbers are drawn first, and where the count is no
    /// multiple of 16, the last 16 are drawn again.
    fn normal_blocks_f32(&mut self, count: usize) -> Vec<f32> {
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
        for block in values.as_chunks_mut::<BLOCK>().0 {
            box_muller::transform_f32(block);
        }
        if !count.is_multiple_of(BLOCK)
            && let Some(tail) = values.last_chunk_mut::<BLOCK>()
        {
            *tail = std::array::from_fn(|_| self.uniform_f32());
            box_muller::transform_f32(tail);
        }
        values
    }

    /// As [`Self::normal_blocks_f32`] for float64.
    fn normal_blocks_f64(&mut self, count: usize) -> Vec<f64> {
        let mut values: Vec<f64> = (0..count).map(|_| self.uniform_f64()).collect();
        for block in values.as_chunks_mut::<BLOCK>().0 {
            box_muller::transform_f64(block);
        }
        if !count.is_multiple_of(BLOCK)
            && let Some(tail) = values.last_chunk_mut::<BLOCK>()
        {
            *tail = std::array::from_fn(|_| self.uniform_f64());
            box_muller::transform_f64(tail);
        }
        values
    }

    /// The block transform for half precision, before rounding: it draws only what whole blocks need, then the last 16.
    fn normal_blocks_half(&mut self, count: usize) -> Vec<f32> {
        let mut values = vec![0f32; count];
        for block in values.as_chunks_mut::<BLOCK>().0 {
            *block = std::array::from_fn(|_| self.uniform_f32());
            box_muller::transform_f32(block);
        }
        if !count.is_multiple_of(BLOCK)
            && let Some(tail) = values.last_chunk_mut::<BLOCK>()
        {
            *tail = std::array::from_fn(|_| self.uniform_f32());
            box_muller::transform_f32(tail);
        }
        values
    }
}

impl NoiseSource for TorchGenerator {
    /// # Errors
    /// If `dtype` is not a floating-point type of 16 to 64 bits, or the shape has too many elements.
    fn randn(&mut self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        if !matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::DType { what: "randn", found: dtype });
        }
        let count = element_count(shape)?;
        let tensor = if count < BLOCK {
            let values: Vec<f64> = (0..count).map(|_| self.normal_f64()).collect();
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
            // Half precision goes by way of float32, as torch's conversion from double does.
            if dtype == DType::F64 { tensor } else { tensor.to_dtype(DType::F32)? }
        } else {
            match dtype {
                DType::F64 => Tensor::from_vec(self.normal_blocks_f64(count), shape, &Device::Cpu)?,
                DType::F32 => Tensor::from_vec(self.normal_blocks_f32(count), shape, &Device::Cpu)?,
                _ => Tensor::from_vec(self.normal_blocks_half(count), shape, &Device::Cpu)?,
            }
        };
        Ok(tensor.to_dtype(dtype)?.to_device(device)?)
    }
}

/// One generator for each picture of a batch, as diffusers takes a list of generators: picture `i` is drawn from generator
/// `i`, so that it does not depend on what else is in the batch. A list of one is that generator for the whole batch.
impl NoiseSource for Vec<TorchGenerator> {
    /// # Errors
    /// If the first dimension of `shape` is not the number of generators (and there is not exactly one), and as
    /// [`TorchGenerator`]'s.
    fn randn(&mut self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        match shape.first() {
            Some(&batch) if batch != self.len() && self.len() != 1 => {
                let expected = format!(
                    "a first dimension of {}, the number of generators, or just one generator",
                    self.len()
                );
                Err(Error::Shape { what: "noise", found: shape.to_vec(), expected })
            }
            _ => self.randn_of_first(shape, dtype, device),
        }
    }

    fn randn_of_first(&mut self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        if let [generator] = self.as_mut_slice() {
            return generator.randn(shape, dtype, device);
        }
        match shape.first() {
            Some(&batch) if batch <= self.len() && batch > 0 => {}
            _ => {
                let expected = format!("a first dimension of 1 to {}, the number of generators", self.len());
                return Err(Error::Shape { what: "noise", found: shape.to_vec(), expected });
            }
        }
        let mut one = shape.to_vec();
        let batch = std::mem::replace(&mut one[0], 1);
        let noise = self.iter_mut().take(batch).map(|generator| generator.randn(&one, dtype, &Device::Cpu));
        let noise = noise.collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&noise, 0)?.to_device(device)?)
    }

    fn generators(&self) -> Option<usize> {
        (self.len() != 1).then_some(self.len())
    }
}

/// More elements than this are refused: 2^31 numbers are 8 GiB of float32.
const MAX_ELEMENTS: usize = 1 << 31;

fn element_count(shape: &[usize]) -> Result<usize> {
    let count = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    count.filter(|&count| count <= MAX_ELEMENTS).ok_or_else(|| Error::Shape {
        what: "random tensor",
        found: shape.to_vec(),
        expected: format!("at most {MAX_ELEMENTS} elements"),
    })
}
