use candle_core::{DType, Tensor};

use crate::error::{Error, Result};

/// What an encoder says about a picture's latents: independent normal distributions, one a value.
#[derive(Clone, Debug)]
pub struct DiagonalGaussianDistribution {
    mean: Tensor,
    logvar: Tensor,
}

impl DiagonalGaussianDistribution {
    /// `parameters` is `(batch, 2 * channels, height, width)`: means, then logarithms of variances, which are clamped to -30..20.
    ///
    /// # Errors
    /// When the channels are not an even number.
    pub fn new(parameters: &Tensor) -> Result<Self> {
        let channels = match parameters.dims() {
            [_, channels, _, _] if channels.is_multiple_of(2) => channels / 2,
            dims => {
                let problem = format!("is {dims:?}, expected (batch, 2 * channels, height, width)");
                return Err(input_error("parameters", problem));
            }
        };
        let mean = parameters.narrow(1, 0, channels)?.contiguous()?;
        let logvar = parameters.narrow(1, channels, channels)?.clamp(-30.0, 20.0)?;
        Ok(Self { mean, logvar })
    }

    /// One draw, `mean + std * noise`. `noise` comes from the caller's generator, standard normal, in the shape of
    /// [`DiagonalGaussianDistribution::mean`]: where pictures have a generator each, draw for each and stack. It is converted to the
    /// mean's dtype and device.
    ///
    /// # Errors
    /// When the noise has another shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        if noise.dims() != self.mean.dims() {
            let problem = format!("is {:?}, expected {:?}", noise.dims(), self.mean.dims());
            return Err(input_error("noise", problem));
        }
        let noise = noise.to_device(self.mean.device())?.to_dtype(self.mean.dtype())?;
        Ok((&self.mean + self.std()?.mul(&noise)?)?)
    }

    /// The same in another dtype.
    ///
    /// # Errors
    /// Those of the device.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Ok(Self { mean: self.mean.to_dtype(dtype)?, logvar: self.logvar.to_dtype(dtype)? })
    }

    /// That of one picture, as a batch of one.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn get(&self, index: usize) -> Result<Self> {
        let one = |tensor: &Tensor| tensor.narrow(0, index, 1)?.force_contiguous();
        Ok(Self { mean: one(&self.mean)?, logvar: one(&self.logvar)? })
    }

    /// The most likely latents, which are the means: `(batch, channels, height, width)`.
    pub fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// `(batch, channels, height, width)`.
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// Natural logarithms of the variances, within -30..20: `(batch, channels, height, width)`.
    pub fn logvar(&self) -> &Tensor {
        &self.logvar
    }

    /// Standard deviations: `(batch, channels, height, width)`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn std(&self) -> Result<Tensor> {
        Ok((&self.logvar * 0.5)?.exp()?)
    }

    /// Variances: `(batch, channels, height, width)`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn var(&self) -> Result<Tensor> {
        Ok(self.logvar.exp()?)
    }

    /// The Kullback-Leibler divergence from the standard normal distribution, nats, a sum over each picture: `(batch)`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn kl(&self) -> Result<Tensor> {
        let terms = (((self.mean.sqr()? + self.var()?)? - 1.0)? - &self.logvar)?;
        Ok((terms.flatten_from(1)?.sum(1)? * 0.5)?)
    }
}

fn input_error(input: &'static str, problem: String) -> Error {
    Error::Input { model: "DiagonalGaussianDistribution", input, problem }
}
