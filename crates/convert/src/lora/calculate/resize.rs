use rayon::prelude::*;

use super::ComputedLora;
use super::computed::{label, largest_rank};
use super::delta::{Delta, DeltaValues, read};
use super::truncate::LowRank;
use crate::lora::{AdaptedLayer, LoraFile, LoraWeights, TensorRef};
use crate::{Result, Source};

/// The best approximation of `lora` by products of at most `rank`; LoHa, LoKr and differences of matrices become products too.
///
/// Layers of a lower rank stay as they are: a product of a higher rank would be the same change in a larger file. Differences of
/// biases and normalizations are kept, as are DoRA's lengths, which are those of the changed weights.
///
/// # Errors
/// When it has tensors that no rule understands, or values that are no numbers.
pub fn resize_lora(lora: &LoraFile, source: &dyn Source, rank: usize) -> Result<ComputedLora> {
    lora.check_all_matched()?;
    let mut resized = ComputedLora::new(lora.source.clone(), lora.family);
    resized.keep_metadata_of(lora);
    let products: Vec<Result<Option<Resized>>> =
        lora.layers.par_iter().map(|layer| Resized::of(lora, layer, source, rank)).collect();
    let mut lower = 0;
    for (layer, product) in lora.layers.iter().zip(products) {
        let key = (layer.component, layer.name.as_str());
        if let Some(Resized { low, kernel, is_lower }) = product? {
            lower += usize::from(is_lower);
            resized.add_energy(low.energy);
            resized.add_product(key, &low.up, &low.down, kernel);
            if let Some(scale) = &layer.dora_scale {
                resized.set_dora_scale(source, scale)?;
            }
        }
        if let LoraWeights::Full { weight, bias } = &layer.weights {
            let values =
                |tensor: &TensorRef| -> Result<_> { Ok((tensor.shape.clone(), read(source, tensor)?)) };
            let vector = weight.as_ref().filter(|weight| weight.shape.len() < 2);
            let (weight, bias) = (vector.map(values).transpose()?, bias.as_ref().map(values).transpose()?);
            if weight.is_some() || bias.is_some() {
                resized.add_difference(key, weight, bias);
            }
        }
    }
    if lower > 0 {
        resized.note(format!("{lower} layers have the rank {rank} or a lower one and stay as they are"));
    }
    resized.note_kept(&format!("rank {rank}"));
    Ok(resized)
}

struct Resized {
    low: LowRank,
    kernel: Option<[usize; 2]>,
    /// Whether the rank was not higher before.
    is_lower: bool,
}

impl Resized {
    /// `None` for what is no matrix.
    fn of(lora: &LoraFile, layer: &AdaptedLayer, source: &dyn Source, rank: usize) -> Result<Option<Self>> {
        if let LoraWeights::Full { weight, .. } = &layer.weights
            && weight.as_ref().is_none_or(|weight| weight.shape.len() < 2)
        {
            return Ok(None);
        }
        let delta = Delta::of(layer, lora.family, source)?;
        let kernel = delta.kernel;
        let what = label(&lora.source, layer.component, &layer.name);
        let rank = rank.min(largest_rank(&delta));
        if let DeltaValues::Product { up, down } = &delta.values
            && up.ncols() <= rank
        {
            let low = LowRank::whole(up.clone(), down.clone(), &what)?;
            return Ok(Some(Self { low, kernel, is_lower: true }));
        }
        Ok(Some(Self { low: delta.truncate(rank, &what)?, kernel, is_lower: false }))
    }
}
