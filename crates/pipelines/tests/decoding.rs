//! Latents that become too large for half precision on their way to a picture, and pictures on their way to latents.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use candle_diffusers_loaders::{LoadOptions, Repository, load_vae};
use candle_diffusers_models::AutoencoderKL;
use candle_diffusers_models::layers::Layers;
use candle_diffusers_pipelines::{decode_latents, encode_pictures};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};
use candle_diffusers_test_support::{relative_difference, values};

/// The first layers whose input is normalised: their numbers are as large as their weights make them.
const LAYERS: [&str; 2] = ["decoder.mid_block.resnets.0.conv1", "encoder.mid_block.resnets.0.conv1"];

fn vae(dtype: DType) -> AutoencoderKL {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/text_to_image/sd1");
    let options = LoadOptions { dtype, ..Default::default() };
    load_vae(&Repository::folder(folder).unwrap(), "vae", &options).unwrap()
}

/// A VAE whose numbers are beyond float16, while its weights are within.
fn overflowing_vae(dtype: DType) -> AutoencoderKL {
    let vae = vae(dtype);
    for (_, layer) in vae.layers().into_iter().filter(|(name, _)| LAYERS.contains(&name.as_str())) {
        let weight = layer.weight().to_dtype(DType::F32).unwrap();
        let greatest =
            values(&weight).into_iter().fold(0.0, |greatest: f64, value| greatest.max(value.abs()));
        let large = (weight * (6e4 / greatest)).unwrap();
        layer.replace_weight(large.to_dtype(dtype).unwrap()).unwrap();
    }
    vae
}

fn latents() -> Tensor {
    // The same each time: whether they become too large depends on them.
    TorchGenerator::new(0).randn(&[2, 4, 8, 8], DType::F32, &Device::Cpu).unwrap()
}

/// The mean of what is drawn.
struct NoNoise;

impl NoiseSource for NoNoise {
    fn randn(
        &mut self,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> candle_diffusers_schedulers::Result<Tensor> {
        Ok(Tensor::zeros(shape, dtype, device)?)
    }
}

fn is_finite(x: &Tensor) -> bool {
    values(x).into_iter().all(f64::is_finite)
}

/// What `work` gives, and what is logged meanwhile.
fn with_warnings<T>(work: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let result = tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    (result, text)
}

#[test]
fn weights_that_overflow_float16_are_used_in_float32() {
    let (half, single) = (overflowing_vae(DType::F16), overflowing_vae(DType::F32));
    let latents = latents();
    let scaled = (&latents / half.config().scaling_factor).unwrap();
    assert!(!is_finite(&half.decode(&scaled).unwrap()));

    let (pictures, log) =
        with_warnings(|| decode_latents(&half, &latents.to_dtype(DType::F16).unwrap()).unwrap());
    assert_eq!((pictures.dtype(), pictures.dims()), (DType::F16, &[2, 3, 32, 32][..]));
    assert!(relative_difference(&pictures, &decode_latents(&single, &latents).unwrap()) < 1e-2);
    for picture in ["picture 1", "picture 2"] {
        let expected = format!("decoded in f16, {picture} has values that are infinite or not numbers");
        assert!(log.contains(&expected), "{log}");
    }
}

#[test]
fn a_picture_that_overflows_float16_is_encoded_in_float32() {
    let (half, single) = (overflowing_vae(DType::F16), overflowing_vae(DType::F32));
    let picture = TorchGenerator::new(1).randn(&[1, 3, 32, 32], DType::F32, &Device::Cpu).unwrap();
    let in_half = picture.to_dtype(DType::F16).unwrap();
    assert!(!is_finite(half.encode(&in_half).unwrap().mean()));

    let encode =
        |vae: &AutoencoderKL, picture: &Tensor| encode_pictures(vae, picture, 1, &mut NoNoise).unwrap();
    let (latents, log) = with_warnings(|| encode(&half, &in_half));
    assert_eq!(latents.dtype(), DType::F16);
    assert!(log.contains("encoded in f16, picture 1 has values"), "{log}");
    let expected = encode(&single, &picture);
    assert!(is_finite(&latents) && relative_difference(&latents, &expected) < 1e-2);
}

#[test]
fn what_fits_is_decoded_once() {
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let (vae, latents) = (vae(dtype), latents().to_dtype(dtype).unwrap());
        let plain = vae.decode(&(&latents / vae.config().scaling_factor).unwrap()).unwrap();
        let (pictures, log) = with_warnings(|| decode_latents(&vae, &latents).unwrap());
        assert_eq!(values(&pictures), values(&plain));
        assert_eq!(log, "");
    }
    // bfloat16 has float32's exponents.
    let (pictures, log) =
        with_warnings(|| decode_latents(&overflowing_vae(DType::BF16), &latents()).unwrap());
    assert!(is_finite(&pictures) && log.is_empty(), "{log}");
}

#[test]
fn only_the_picture_that_overflows_is_repeated() {
    let (vae, latents) = (vae(DType::F16), latents());
    let large = (latents.narrow(0, 1, 1).unwrap() * 3000.0).unwrap();
    let latents = Tensor::cat(&[&latents.narrow(0, 0, 1).unwrap(), &large], 0).unwrap();
    let latents = latents.to_dtype(DType::F16).unwrap();
    let (pictures, log) = with_warnings(|| decode_latents(&vae, &latents).unwrap());
    let first = decode_latents(&vae, &latents.narrow(0, 0, 1).unwrap()).unwrap();
    assert_eq!(values(&pictures.narrow(0, 0, 1).unwrap()), values(&first));
    assert!(is_finite(&pictures));
    assert!(log.contains("picture 2") && !log.contains("picture 1"), "{log}");
}

#[test]
fn latents_that_are_no_numbers_stay_so() {
    let latents = (latents() * f64::NAN).unwrap().to_dtype(DType::F16).unwrap();
    let (pictures, log) = with_warnings(|| decode_latents(&vae(DType::F16), &latents).unwrap());
    assert!(!is_finite(&pictures));
    assert!(log.contains("the latents of picture 1, in f16, are infinite or not numbers"), "{log}");
    assert!(!log.contains("decoded"), "{log}");
}

#[test]
fn another_dtype_has_the_same_weights() {
    let half = vae(DType::F16);
    let single = half.to_dtype(DType::F32).unwrap();
    let of = |vae: &AutoencoderKL| -> Vec<(String, Vec<f64>)> {
        vae.layers().into_iter().map(|(name, layer)| (name, values(&layer.weight()))).collect()
    };
    assert_eq!((single.dtype(), single.config()), (DType::F32, half.config()));
    assert!(of(&single) == of(&half));
}
