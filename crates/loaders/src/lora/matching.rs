use std::collections::HashMap;
use std::fmt;

use candle_diffusers_convert::{AdaptedLayer, Family, LoraComponent, LoraFile, Source};
use candle_diffusers_models::layers::{Layer, Layers};

use super::AdapterError;
use super::change::{Change, first_tensor, misfit};
use super::structure::unet_structure;
use crate::Result;

/// How many names an error or a warning lists.
const LISTED: usize = 5;

/// The models of a pipeline that a LoRA may change; `None` for those that it has not.
#[derive(Clone, Copy, Default)]
pub struct LoraModels<'a> {
    /// `unet`.
    pub unet: Option<&'a dyn Layers>,
    /// `text_encoder`: CLIP's.
    pub text_encoder: Option<&'a dyn Layers>,
    /// `text_encoder_2`: OpenCLIP's, of SDXL.
    pub text_encoder_2: Option<&'a dyn Layers>,
}

impl fmt::Debug for LoraModels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let present = LoraComponent::ALL.into_iter().filter(|component| self.get(*component).is_some());
        f.debug_list().entries(present.map(LoraComponent::folder)).finish()
    }
}

/// What is done with keys of a LoRA file that match no layer of the models.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnmatchedKeys {
    /// They are an error.
    #[default]
    Refuse,
    /// They are left out, with a warning.
    Skip,
}

/// A change with the layer that it is for.
pub(super) struct Matched {
    pub(super) component: LoraComponent,
    /// After the component's name.
    pub(super) name: String,
    pub(super) layer: Layer,
    pub(super) change: Change,
}

impl<'a> LoraModels<'a> {
    fn get(&self, component: LoraComponent) -> Option<&'a dyn Layers> {
        match component {
            LoraComponent::UNet => self.unet,
            LoraComponent::TextEncoder => self.text_encoder,
            LoraComponent::TextEncoder2 => self.text_encoder_2,
        }
    }

    /// Reads the changes that `source` holds for these models.
    pub(super) fn read(&self, source: &dyn Source, unmatched: UnmatchedKeys) -> Result<Vec<Matched>> {
        let unet = self.unet.map(|unet| unet.layers()).unwrap_or_default();
        // A file for a model of another build may make no sense by this one's block names: then it is read as one for a published
        // model, so that it can be said which.
        let file = LoraFile::read_for(source, &[unet_structure(&unet)])
            .or_else(|error| LoraFile::read(source).map_err(|_| error))?;
        let model = family_of(&unet);
        let mut layers: HashMap<(LoraComponent, String), Layer> = HashMap::new();
        for component in LoraComponent::ALL {
            let listed = self.get(component).map(|model| model.layers()).unwrap_or_default();
            layers.extend(listed.into_iter().map(|(name, layer)| ((component, name), layer)));
        }
        let places = Places::of(&file, layers);
        places.check(&file, model, unmatched)?;
        for note in &file.notes {
            tracing::warn!("{note}");
        }
        if !file.embeddings.is_empty() {
            tracing::warn!(
                "{} has textual inversion embeddings as well, which are not loaded: {}",
                file.source,
                listed(&file.embeddings).join(", ")
            );
        }
        let mut not_finite = Vec::new();
        let read = |(adapted, layer): (&AdaptedLayer, Layer)| {
            let change = Change::read(source, adapted, &layer, &mut not_finite)?;
            Ok(Matched { component: adapted.component, name: full_name(adapted), layer, change })
        };
        let matched = places.found.into_iter().map(read).collect::<Result<_>>()?;
        if !not_finite.is_empty() {
            tracing::warn!(
                "{}: values that are not finite numbers, in {} tensor(s): {}",
                file.source,
                not_finite.len(),
                listed(&not_finite).join(", ")
            );
        }
        Ok(matched)
    }
}

/// Where the layers of a file are in the models.
struct Places<'f> {
    found: Vec<(&'f AdaptedLayer, Layer)>,
    /// Not in the models.
    missing: Vec<&'f AdaptedLayer>,
    /// In the models, with another shape: that of the change, a tensor of it, and that of the weight.
    misfits: Vec<(&'f AdaptedLayer, Vec<usize>, String, Vec<usize>)>,
}

impl<'f> Places<'f> {
    fn of(file: &'f LoraFile, layers: HashMap<(LoraComponent, String), Layer>) -> Self {
        let mut places = Self { found: Vec::new(), missing: Vec::new(), misfits: Vec::new() };
        for adapted in &file.layers {
            match layers.get(&(adapted.component, adapted.name.clone())) {
                None => places.missing.push(adapted),
                Some(layer) => match misfit(adapted, layer) {
                    None => places.found.push((adapted, layer.clone())),
                    Some((found, tensor)) => {
                        let expected = layer.shape().dims().to_vec();
                        places.misfits.push((adapted, found, tensor, expected));
                    }
                },
            }
        }
        places
    }

    fn check(&self, file: &LoraFile, model: Option<Family>, unmatched: UnmatchedKeys) -> Result<()> {
        let (source, total) = (file.source.clone(), file.layers.len());
        let looks_like = file.family.map(Family::name);
        let wrong = self.misfits.len() + self.missing.len();
        let names = self.misfits.iter().map(|(_, _, tensor, _)| tensor.clone());
        let names: Vec<String> = names.chain(self.missing.iter().map(|layer| name(layer))).collect();
        if let (Some(theirs), Some(ours)) = (file.family, model)
            && theirs != ours
            && (!self.misfits.is_empty() || wrong == total)
        {
            let (looks_like, model) = (theirs.name(), ours.name());
            let names = listed(&names);
            return Err(AdapterError::OtherFamily {
                file: source,
                looks_like,
                model,
                count: wrong,
                total,
                names,
            }
            .into());
        }
        if let Some((adapted, found, tensor, expected)) = self.misfits.first() {
            return Err(AdapterError::WrongShape {
                file: source,
                tensor: tensor.clone(),
                found: found.clone(),
                layer: full_name(adapted),
                expected: expected.clone(),
                count: self.misfits.len(),
                total,
                looks_like,
            }
            .into());
        }
        let keys: Vec<String> = names.into_iter().chain(file.unmatched.iter().cloned()).collect();
        let (count, names) = (keys.len(), listed(&keys));
        match unmatched {
            _ if self.found.is_empty() => {
                Err(AdapterError::NothingMatches { file: source, count, names, looks_like }.into())
            }
            _ if keys.is_empty() => Ok(()),
            UnmatchedKeys::Refuse => {
                Err(AdapterError::Unmatched { file: source, count, names, looks_like }.into())
            }
            UnmatchedKeys::Skip => {
                let dots = if count > names.len() { ", ..." } else { "" };
                tracing::warn!(
                    "{source}: {count} keys match no layer of the model and are left out: {}{dots}",
                    names.join(", ")
                );
                Ok(())
            }
        }
    }
}

fn name(adapted: &AdaptedLayer) -> String {
    first_tensor(&adapted.weights).to_string()
}

fn full_name(adapted: &AdaptedLayer) -> String {
    format!("{}.{}", adapted.component.folder(), adapted.name)
}

fn listed(names: &[String]) -> Vec<String> {
    names.iter().take(LISTED).cloned().collect()
}

/// The family of the UNet with these layers, by the width of the text that it looks at.
fn family_of(unet: &[(String, Layer)]) -> Option<Family> {
    let (_, layer) = unet.iter().find(|(name, _)| name.ends_with("attn2.to_k"))?;
    match layer.shape().dims()[1] {
        768 => Some(Family::StableDiffusion1),
        1024 => Some(Family::StableDiffusion2),
        1280 => Some(Family::StableDiffusionXlRefiner),
        2048 => Some(Family::StableDiffusionXl),
        _ => None,
    }
}
