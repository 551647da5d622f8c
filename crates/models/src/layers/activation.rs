use candle_core::Tensor;
use candle_diffusers_kernels as kernels;

use crate::error::Result;

/// A nonlinearity, by the names that configs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu` or `swish`.
    Silu,
    /// `gelu`, the exact one.
    Gelu,
    /// `quick_gelu`, OpenAI CLIP's.
    QuickGelu,
}

impl Activation {
    /// The names that [`Activation::from_name`] knows, for error messages.
    pub const NAMES: &'static str = "one of \"silu\", \"swish\", \"gelu\", \"quick_gelu\"";

    /// The activation called `name` in a config.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu" => Some(Self::Gelu),
            "quick_gelu" => Some(Self::QuickGelu),
            _ => None,
        }
    }

    /// Any shape, same shape out.
    ///
    /// # Errors
    /// Those of the device.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(self.kernel().forward(x)?)
    }

    pub(super) fn kernel(self) -> kernels::Activation {
        match self {
            Self::Silu => kernels::Activation::Silu,
            Self::Gelu => kernels::Activation::Gelu,
            Self::QuickGelu => kernels::Activation::QuickGelu,
        }
    }
}
