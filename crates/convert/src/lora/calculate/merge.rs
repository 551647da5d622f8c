use std::collections::BTreeMap;

use rayon::prelude::*;

use super::ComputedLora;
use super::computed::{label, largest_rank};
use super::delta::{Delta, DeltaValues, read};
use super::truncate::{LowRank, Matrix};
use crate::lora::{AdaptedLayer, LoraComponent, LoraError, LoraFile, LoraWeights, TensorRef};
use crate::{Error, Family, Result, Source};

/// A LoRA with the factor that its changes are multiplied by.
#[derive(Clone, Copy)]
pub struct WeightedLora<'a> {
    /// The layers.
    pub lora: &'a LoraFile,
    /// Their tensors.
    pub source: &'a dyn Source,
    /// The factor.
    pub scale: f64,
}

/// The changes of one layer, each with the number of the LoRA that it is from.
type Changes<'a> = Vec<(WeightedLora<'a>, &'a AdaptedLayer)>;

/// One LoRA that changes each layer by the sum of what `loras` change it by, each multiplied by its scale.
///
/// Without a `rank` nothing is lost: products are put side by side, so that ranks add up (to at most that of the weight), and
/// differences are added. With one, each sum becomes the best product of at most that rank.
///
/// # Errors
/// When a LoRA has tensors that no rule understands, or lengths of DoRA, which mean something with the base model's weights only; when they are
/// for different models; when a change is no product (LoHa, LoKr) and no `rank` is given; or when there are values that are no numbers.
pub fn merge_loras(loras: &[WeightedLora<'_>], rank: Option<usize>) -> Result<ComputedLora> {
    check(loras)?;
    let mut by_layer: BTreeMap<(LoraComponent, &str), Changes<'_>> = BTreeMap::new();
    for one in loras {
        for layer in &one.lora.layers {
            by_layer.entry((layer.component, &layer.name)).or_default().push((*one, layer));
        }
    }
    let names: Vec<&str> = loras.iter().map(|one| one.lora.source.as_str()).collect();
    let family = loras.iter().find_map(|one| one.lora.family);
    let mut merged = ComputedLora::new(names.join(" + "), family);
    let layers: Vec<((LoraComponent, &str), Changes<'_>)> = by_layer.into_iter().collect();
    let sums: Vec<Result<Sum>> =
        layers.par_iter().map(|(key, changes)| Sum::of(*key, changes, family, rank)).collect();
    for ((key, _), sum) in layers.iter().zip(sums) {
        let sum = sum?;
        if let Some((product, kernel)) = sum.product {
            merged.add_energy(product.energy);
            merged.add_product(*key, &product.up, &product.down, kernel);
        }
        if sum.weight.is_some() || sum.bias.is_some() {
            merged.add_difference(*key, sum.weight, sum.bias);
        }
    }
    if let Some(rank) = rank {
        merged.note_kept(&format!("rank {rank}"));
    }
    Ok(merged)
}

fn check(loras: &[WeightedLora<'_>]) -> Result<()> {
    let mut families: Option<(&LoraFile, Family)> = None;
    for WeightedLora { lora, .. } in loras {
        lora.check_all_matched()?;
        if let Some(layer) = lora.layers.iter().find(|layer| layer.dora_scale.is_some()) {
            let what = label(&lora.source, layer.component, &layer.name);
            return Err(LoraError::DoraWithoutModel { what }.into());
        }
        match (families, lora.family) {
            (Some((first, first_family)), Some(family)) if family != first_family => {
                return Err(LoraError::DifferentFamilies {
                    first: first.source.clone(),
                    first_family: first_family.name(),
                    second: lora.source.clone(),
                    second_family: family.name(),
                }
                .into());
            }
            (None, Some(family)) => families = Some((lora, family)),
            _ => {}
        }
    }
    Ok(())
}

/// The sum of a layer's changes.
#[derive(Default)]
struct Sum {
    product: Option<(LowRank, Option<[usize; 2]>)>,
    weight: Option<(Vec<usize>, Vec<f64>)>,
    bias: Option<(Vec<usize>, Vec<f64>)>,
}

impl Sum {
    fn of(
        (component, name): (LoraComponent, &str),
        changes: &Changes<'_>,
        family: Option<Family>,
        rank: Option<usize>,
    ) -> Result<Self> {
        let mut sum = Self::default();
        let mut deltas = Vec::new();
        for (one, layer) in changes {
            let what = || label(&one.lora.source, component, name);
            if let LoraWeights::Full { weight, bias } = &layer.weights {
                // A matrix becomes a product where a rank is asked for; a normalization's weight never does.
                let is_matrix = weight.as_ref().is_some_and(|weight| weight.shape.len() > 1);
                if !is_matrix || rank.is_none() {
                    add(&mut sum.weight, *one, weight.as_ref(), &what)?;
                }
                add(&mut sum.bias, *one, bias.as_ref(), &what)?;
                if !is_matrix || rank.is_none() {
                    continue;
                }
            }
            let delta = Delta::of(layer, one.lora.family.or(family), one.source)?;
            if rank.is_none() && matches!(delta.values, DeltaValues::Whole(_)) {
                return Err(LoraError::NeedsRank { what: what() }.into());
            }
            deltas.push((one.scale, delta, what()));
        }
        sum.product = add_deltas(deltas, rank)?;
        Ok(sum)
    }
}

/// Adds the values of a tensor to a sum.
fn add(
    sum: &mut Option<(Vec<usize>, Vec<f64>)>,
    one: WeightedLora<'_>,
    tensor: Option<&TensorRef>,
    what: &dyn Fn() -> String,
) -> Result<()> {
    let Some(tensor) = tensor else { return Ok(()) };
    let values = read(one.source, tensor)?;
    let (shape, total) = sum.get_or_insert_with(|| (tensor.shape.clone(), vec![0.0; values.len()]));
    if total.len() != values.len() {
        return Err(misfit(what(), &tensor.shape, shape));
    }
    total.iter_mut().zip(values).for_each(|(total, value)| *total += one.scale * value);
    Ok(())
}

/// The sum of several changes of one weight: exactly, or as a product of at most `rank`.
fn add_deltas(
    deltas: Vec<(f64, Delta, String)>,
    rank: Option<usize>,
) -> Result<Option<(LowRank, Option<[usize; 2]>)>> {
    let Some((_, first, first_what)) = deltas.first() else { return Ok(None) };
    let (shape, what) = (first.shape(), first_what.clone());
    let kernel = deltas.iter().find_map(|(_, delta, _)| delta.kernel);
    for (_, delta, what) in &deltas {
        if delta.shape() != shape {
            let dims = |(rows, columns): (usize, usize)| vec![rows, columns];
            return Err(misfit(what.clone(), &dims(delta.shape()), &dims(shape)));
        }
        if let (Some(one), Some(other)) = (delta.kernel, kernel)
            && one != other
        {
            return Err(misfit(what.clone(), &one, &other));
        }
    }
    let largest = largest_rank(first);
    let inner = |delta: &Delta| match &delta.values {
        DeltaValues::Product { up, .. } => Some(up.ncols()),
        DeltaValues::Whole(_) => None,
    };
    let summed: Option<usize> = deltas.iter().map(|(_, delta, _)| inner(delta)).sum();
    let Some(inner) = summed else {
        let mut whole = Matrix::zeros(shape.0, shape.1);
        for (scale, delta, _) in deltas {
            whole += scale
                * match delta.values {
                    DeltaValues::Product { up, down } => up * down,
                    DeltaValues::Whole(matrix) => matrix,
                };
        }
        let low = Delta { values: DeltaValues::Whole(whole), kernel }
            .truncate(rank.unwrap_or(largest).min(largest), &what)?;
        return Ok(Some((low, kernel)));
    };
    let (mut up, mut down) = (Matrix::zeros(shape.0, inner), Matrix::zeros(inner, shape.1));
    let mut done = 0;
    for (scale, delta, _) in deltas {
        if let DeltaValues::Product { up: one_up, down: one_down } = delta.values {
            let width = one_up.ncols();
            up.columns_mut(done, width).copy_from(&(one_up * scale));
            down.rows_mut(done, width).copy_from(&one_down);
            done += width;
        }
    }
    // No product needs a higher rank than the whole matrix has.
    let rank = rank.unwrap_or(inner).min(largest);
    let low = match rank < inner {
        true => Delta { values: DeltaValues::Product { up, down }, kernel }.truncate(rank, &what)?,
        false => LowRank::whole(up, down, &what)?,
    };
    Ok(Some((low, kernel)))
}

fn misfit(what: String, found: &[usize], expected: &[usize]) -> Error {
    LoraError::OtherShape { what, found: found.to_vec(), expected: expected.to_vec() }.into()
}
