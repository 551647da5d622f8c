//! Classifier-free guidance: away from the negative prompt, towards the prompt.

use candle_core::{D, DType, Device, Tensor};

use crate::error::{Result, argument};

/// Classifier-free guidance (Ho and Salimans, 2022): `uncond + guidance_scale * (text - uncond)`.
///
/// `model_output` is `(2 * batch, ...)`, first the predictions for the negative prompts, then those for the prompts; the result is
/// `(batch, ...)`. With `guidance_rescale` above 0 the result's spread is brought back towards the prompts' (equation 3.4 of Lin et al.,
/// 2023, <https://arxiv.org/abs/2305.08891>).
///
/// # Errors
/// When the batch is odd.
pub fn classifier_free_guidance(
    model_output: &Tensor,
    guidance_scale: f64,
    guidance_rescale: f64,
) -> Result<Tensor> {
    let both = model_output.dim(0)?;
    if !both.is_multiple_of(2) {
        let problem = format!("is {:?}, expected (2 * batch, ...)", model_output.dims());
        return argument("model_output", problem);
    }
    let batch = both / 2;
    let uncond = model_output.narrow(0, 0, batch)?;
    let text = model_output.narrow(0, batch, batch)?;
    let guided = (&uncond + ((&text - &uncond)? * guidance_scale)?)?;
    if guidance_rescale > 0.0 {
        return rescale_noise_cfg(&guided, &text, guidance_rescale);
    }
    Ok(guided)
}

/// The guidance of InstructPix2Pix (equation 3 of Brooks et al., 2022, <https://arxiv.org/abs/2211.09800>):
/// `uncond + guidance_scale * (text - image) + image_guidance_scale * (image - uncond)`.
///
/// `model_output` is `(3 * batch, ...)`: the predictions for prompt and picture, for negative prompt and picture, and for the negative prompt alone; the
/// result is `(batch, ...)`. `guidance_rescale` is that of [`classifier_free_guidance`].
///
/// # Errors
/// When the batch is no multiple of 3.
pub fn instruct_pix2pix_guidance(
    model_output: &Tensor,
    guidance_scale: f64,
    image_guidance_scale: f64,
    guidance_rescale: f64,
) -> Result<Tensor> {
    let all = model_output.dim(0)?;
    if !all.is_multiple_of(3) {
        let problem = format!("is {:?}, expected (3 * batch, ...)", model_output.dims());
        return argument("model_output", problem);
    }
    let third = |index: usize| model_output.narrow(0, index * (all / 3), all / 3);
    let (text, image, uncond) = (third(0)?, third(1)?, third(2)?);
    let by_text = ((&text - &image)? * guidance_scale)?;
    let by_image = ((&image - &uncond)? * image_guidance_scale)?;
    let guided = ((uncond + by_text)? + by_image)?;
    if guidance_rescale > 0.0 {
        return rescale_noise_cfg(&guided, &text, guidance_rescale);
    }
    Ok(guided)
}

/// Mixes `guided` with itself scaled to the standard deviation of `text`, picture by picture.
fn rescale_noise_cfg(guided: &Tensor, text: &Tensor, guidance_rescale: f64) -> Result<Tensor> {
    let ratio = (standard_deviation(text)? / standard_deviation(guided)?)?;
    let rescaled = guided.broadcast_mul(&ratio)?;
    Ok(((rescaled * guidance_rescale)? + (guided * (1.0 - guidance_rescale))?)?)
}

/// The sample standard deviation of each batch item, `(batch, 1, 1, 1)`.
fn standard_deviation(x: &Tensor) -> Result<Tensor> {
    let flat = x.flatten_from(1)?;
    let count = flat.dim(1)?;
    let centered = flat.broadcast_sub(&flat.mean_keepdim(1)?)?;
    let variance = (centered.sqr()?.sum_keepdim(1)? / (count as f64 - 1.0))?;
    Ok(variance.sqrt()?.unsqueeze(D::Minus1)?.unsqueeze(D::Minus1)?)
}

/// The guidance scale as an embedding, for models that were distilled to take it as an input (`time_cond_proj_dim`).
///
/// `(batch, embedding_dim)` in `dtype`; the formula is VDM's (<https://github.com/google-research/vdm>, `model_vdm.py`), with
/// the scale times 1000. `w` is the guidance scale less 1.
///
/// # Errors
/// Those of the device.
pub fn guidance_scale_embedding(
    w: f64,
    batch: usize,
    embedding_dim: usize,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let half = embedding_dim / 2;
    let step = (10000f64.ln() / (half as f64 - 1.0)) as f32;
    let scaled = w as f32 * 1000.0;
    let angles: Vec<f32> = (0..half).map(|i| scaled * (i as f32 * -step).exp()).collect();
    let mut row: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
    row.extend(angles.iter().map(|angle| angle.cos()));
    row.resize(embedding_dim, 0.0);
    Ok(Tensor::from_vec(row, (1, embedding_dim), device)?.repeat((batch, 1))?.to_dtype(dtype)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_cannot_be_split_is_an_error() {
        let model_output = Tensor::zeros((3, 4, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let error = classifier_free_guidance(&model_output, 7.5, 0.0).unwrap_err().to_string();
        assert!(error.contains("model_output: is [3, 4, 2, 2], expected (2 * batch"), "{error}");
        let model_output = Tensor::zeros((4, 4, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let error = instruct_pix2pix_guidance(&model_output, 7.5, 1.5, 0.0).unwrap_err().to_string();
        assert!(error.contains("model_output: is [4, 4, 2, 2], expected (3 * batch"), "{error}");
    }
}
