use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};

use crate::arguments::DtypeChoice;

/// What `--device` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceChoice {
    Cpu,
    Cuda(usize),
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            None if text == "metal" => Ok(Self::Metal),
            Some(("cuda", index)) => {
                index.parse().map(Self::Cuda).map_err(|_| format!("{index:?} is not the number of a device"))
            }
            _ => Err("expected cpu, cuda, cuda:N or metal".to_string()),
        }
    }
}

/// The device that was asked for, or the accelerator that the program was built for, or the CPU.
pub(crate) fn open(choice: Option<DeviceChoice>) -> Result<Device> {
    let built_for = if cfg!(feature = "cuda") {
        DeviceChoice::Cuda(0)
    } else if cfg!(feature = "metal") {
        DeviceChoice::Metal
    } else {
        DeviceChoice::Cpu
    };
    match choice.unwrap_or(built_for) {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(index) => {
            ensure!(
                cfg!(feature = "cuda"),
                "--device cuda: this program was built without CUDA; build it with --features cuda"
            );
            Device::new_cuda(index).with_context(|| format!("--device cuda:{index}"))
        }
        DeviceChoice::Metal => {
            ensure!(
                cfg!(feature = "metal"),
                "--device metal: this program was built without Metal; build it with --features metal"
            );
            Device::new_metal(0).context("--device metal")
        }
    }
}

/// The dtype that was asked for; `auto` is half precision on accelerators, and float32 on the CPU, where half precision is
/// slower.
pub(crate) fn dtype(choice: DtypeChoice, device: &Device) -> DType {
    match choice {
        DtypeChoice::F32 => DType::F32,
        DtypeChoice::Bf16 => DType::BF16,
        DtypeChoice::F16 => DType::F16,
        DtypeChoice::Auto if device.is_cpu() => DType::F32,
        DtypeChoice::Auto => DType::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_in_torch() {
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "metal:1"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
    }
}
