//! Files of cloneofsimo/lora (lora_diffusion/lora.py): weights by their place in a list, without names.
//!
//! `save_lora_weight` pickles `[up, down, up, down, ...]`; `save_safeloras` names them `unet:0:up`. Either is in the order in which
//! `_find_modules` meets the modules, which follows from the structure of the model (`order`).

mod order;

use std::collections::BTreeMap;

use super::family::family_of;
use super::{AdaptedLayer, LoraComponent, LoraError, LoraFile, LoraLayout, LoraWeights, TensorRef};
use crate::{Inventory, Result, Source, Structure};
use order::Pair;

/// What the metadata says of a tensor that is an embedding.
pub(super) const EMBED: &str = "<embed>";

/// A tensor's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// `None` in lists that do not say.
    component: Option<LoraComponent>,
    index: usize,
    is_down: bool,
}

/// Whether the tensors are numbered, or a list of pairs.
pub(super) fn looks_like_one(inventory: &Inventory) -> bool {
    inventory.names().any(|name| numbered(name).is_some()) || is_list(inventory)
}

/// Reads the file; `structures` are those of the models, where they are known.
///
/// # Errors
/// When the pairs are not whole, or fit no model.
pub(super) fn read(source: &dyn Source, inventory: &Inventory, structures: &[Structure]) -> Result<LoraFile> {
    let file = source.name();
    let metadata = source.metadata();
    let layout = match is_list(inventory) {
        true => LoraLayout::CloneofsimoList,
        false => LoraLayout::CloneofsimoNumbered,
    };
    let place = match layout {
        LoraLayout::CloneofsimoList => listed,
        _ => numbered,
    };
    let (mut unmatched, mut embeddings) = (Vec::new(), Vec::new());
    let mut places: BTreeMap<Option<LoraComponent>, BTreeMap<Place, TensorRef>> = BTreeMap::new();
    for name in inventory.names() {
        let Some(entry) = inventory.get(name) else { continue };
        let tensor = TensorRef { name: name.to_string(), shape: entry.shape.clone(), dtype: entry.dtype };
        match place(name) {
            Some(place) => _ = places.entry(place.component).or_default().insert(place, tensor),
            None if metadata.get(name).is_some_and(|text| text == EMBED) => embeddings.push(tensor.name),
            None => unmatched.push(tensor.name),
        }
    }
    let mut layers = Vec::new();
    for (component, tensors) in places {
        let pairs = pairs(file, tensors)?;
        let (component, names) = order::names(file, component, &pairs, structures)?;
        let adapted = |(name, pair): (String, Pair)| AdaptedLayer {
            component,
            name,
            weights: LoraWeights::Lora { down: pair.down, up: pair.up, mid: None },
            alpha: None,
            rank_stabilized: false,
            dora_scale: None,
        };
        layers.extend(names.into_iter().zip(pairs).map(adapted));
    }
    layers.sort_by(|a, b| (a.component, &a.name).cmp(&(b.component, &b.name)));
    Ok(LoraFile {
        source: file.to_string(),
        layout,
        family: family_of(&layers, &metadata),
        unet: None,
        layers,
        unmatched,
        embeddings,
        metadata,
        notes: Vec::new(),
    })
}

/// `unet:12:down`.
fn numbered(name: &str) -> Option<Place> {
    let mut words = name.split(':');
    let component = match words.next()? {
        "unet" => LoraComponent::UNet,
        "text_encoder" => LoraComponent::TextEncoder,
        "text_encoder_2" => LoraComponent::TextEncoder2,
        _ => return None,
    };
    let index = words.next()?.parse().ok()?;
    let is_down = match words.next()? {
        "down" => true,
        "up" => false,
        _ => return None,
    };
    words.next().is_none().then_some(Place { component: Some(component), index, is_down })
}

/// `25`, the number in a list.
fn listed(name: &str) -> Option<Place> {
    let number: usize = name.parse().ok()?;
    Some(Place { component: None, index: number / 2, is_down: number % 2 == 1 })
}

/// Whether all tensors are numbers in a list, and each two of them the factors of a product.
fn is_list(inventory: &Inventory) -> bool {
    let count = inventory.len();
    let shape = |number: usize| inventory.get(&number.to_string()).map(|entry| &entry.shape);
    let is_product = |pair: usize| match (shape(2 * pair), shape(2 * pair + 1)) {
        (Some(up), Some(down)) => {
            up.len() == down.len() && [2, 4].contains(&up.len()) && up.get(1) == down.first()
        }
        _ => false,
    };
    count > 0 && count.is_multiple_of(2) && (0..count / 2).all(is_product)
}

/// The pairs in their order.
fn pairs(file: &str, tensors: BTreeMap<Place, TensorRef>) -> Result<Vec<Pair>> {
    let mut pairs = Vec::with_capacity(tensors.len() / 2);
    let mut tensors = tensors.into_iter();
    while let Some((place, up)) = tensors.next() {
        let half = |found: &TensorRef, index: usize, is_down: bool| {
            let folder = place.component.map_or("", LoraComponent::folder);
            let direction = if is_down { "down" } else { "up" };
            LoraError::HalfPair {
                file: file.to_string(),
                tensor: found.name.clone(),
                missing: format!("{folder}:{index}:{direction}"),
            }
        };
        if place.is_down || place.index != pairs.len() {
            // The list begins at zero and leaves nothing out.
            return Err(half(&up, pairs.len(), false).into());
        }
        match tensors.next() {
            Some((other, down)) if other.is_down && other.index == place.index => {
                pairs.push(Pair::new(file, up, down)?);
            }
            _ => return Err(half(&up, place.index, true).into()),
        }
    }
    Ok(pairs)
}
