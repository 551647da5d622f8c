use std::collections::HashSet;

use safetensors::Dtype;
use serde_json::Value;

use crate::config::{clip_from_config, controlnet_from_config, unet_from_config, vae_from_config};
use crate::family::{Family, ModelKind, Place, Task};
use crate::inventory::{Inventory, View};
use crate::layout::{Named, Relation, Row, Structure};
use crate::left_out::Unplaced;
use crate::tokenizer::CLIP_TOKENS;
use crate::{Error, Result};

/// How many names an error lists.
const LISTED: usize = 3;

/// What a checkpoint is, with each tensor in its place: the same whichever layout it was read from.
///
/// It holds names, shapes and configs only; [`Plan`](crate::Plan) says how its tensors come from the source's bytes.
#[derive(Debug, Clone)]
pub struct Model {
    /// The source's name, for messages.
    pub source: String,
    /// The layout of the source.
    pub layout: Layout,
    /// A pipeline, or one model alone.
    pub kind: Kind,
    /// The models, in the order of [`Family::places`].
    pub components: Vec<Component>,
    /// The content of `scheduler_config.json`; `None` for a model alone.
    pub scheduler: Option<Value>,
    /// The source's tensors that have no place, sorted by name.
    pub left_out: Vec<Unplaced>,
    /// What could not be told from the source and was assumed, and what else a user should know: one line each.
    pub notes: Vec<String>,
}

/// The two layouts of checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One file with the names of the model's first implementation.
    Original,
    /// A folder as diffusers has it.
    Diffusers,
}

/// What a checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All models of a pipeline.
    Pipeline(Family, Task),
    /// One model.
    Alone(ModelKind),
}

/// One model of a checkpoint.
#[derive(Debug, Clone)]
pub struct Component {
    /// Where it is in either layout.
    pub place: Place,
    /// What stands before its names in the source.
    pub source_prefix: String,
    /// Its structure.
    pub structure: Structure,
    /// The content of its `config.json`.
    pub config: Value,
    /// Its tensors.
    pub tensors: Vec<Placed>,
}

/// A row of a component's table with the tensors of the source that fill it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The names in both layouts.
    pub row: Row,
    /// The names in the source: one in the original layout; as many as the row has parts in diffusers'.
    pub sources: Vec<String>,
    /// The element type in the source.
    pub dtype: Dtype,
}

impl Structure {
    /// The structure that a `config.json` describes; `file` is its name in errors.
    pub(crate) fn from_config(file: &str, kind: ModelKind, config: &Value) -> Result<Self> {
        match kind {
            ModelKind::UNet => unet_from_config(file, config).map(Self::UNet),
            ModelKind::ControlNet => controlnet_from_config(file, config).map(Self::ControlNet),
            ModelKind::Vae => vae_from_config(file, config).map(Self::Vae),
            ModelKind::ClipText { layout, projection } => {
                clip_from_config(file, config, layout, projection).map(Self::ClipText)
            }
        }
    }
}

impl Component {
    /// Places the tensors of `inventory`, which are in `layout` and have `prefix` before their names.
    ///
    /// # Errors
    /// When tensors are missing, of another shape than the structure asks for, or parts of one have different element types.
    pub(crate) fn place(
        source: &str,
        inventory: &Inventory,
        layout: Layout,
        prefix: &str,
        (place, structure, config): (Place, Structure, Value),
    ) -> Result<Self> {
        let view = View { inventory, prefix };
        if structure.is_absurd() {
            return Err(Error::TooManyLayers { file: source.to_string(), component: structure.label() });
        }
        let table = structure.table();
        let total = table.len();
        let mut missing = Vec::new();
        let mut misfit = None;
        let mut tensors = Vec::with_capacity(total);
        for row in table {
            match place_row(source, view, layout, &row, &mut missing) {
                Ok(Some((sources, dtype))) => tensors.push(Placed { row, sources, dtype }),
                Ok(None) => continue,
                Err(error) => _ = misfit.get_or_insert(error),
            }
        }
        // First what is missing: shapes that do not fit may follow from it.
        if missing.is_empty() {
            if let Some(error) = misfit {
                return Err(error);
            }
            return Ok(Self { place, source_prefix: prefix.to_string(), structure, config, tensors });
        }
        Err(Error::MissingTensors {
            file: source.to_string(),
            component: structure.label(),
            count: missing.len(),
            total,
            names: missing.into_iter().take(LISTED).collect(),
        })
    }

    /// Fails where the config does not say all of the structure, so that another program would build another model from it.
    pub(crate) fn check_config(
        source: &str,
        place: Place,
        structure: &Structure,
        config: &Value,
    ) -> Result<()> {
        match Structure::from_config(source, place.model, config) {
            Ok(described) if described == *structure => Ok(()),
            _ => Err(Error::NoConfig { file: source.to_string(), component: structure.label() }),
        }
    }
}

/// The source's names for one row, and the element type; `None` where something is missing.
fn place_row(
    source: &str,
    view: View<'_>,
    layout: Layout,
    row: &Row,
    missing: &mut Vec<String>,
) -> Result<Option<(Vec<String>, Dtype)>> {
    let wanted = match layout {
        Layout::Original => std::slice::from_ref(&row.original),
        Layout::Diffusers => &row.diffusers,
    };
    let mut sources = Vec::with_capacity(wanted.len());
    let mut dtype: Option<Dtype> = None;
    for Named { name, shape } in wanted {
        let full_name = format!("{}{name}", view.prefix);
        let Some(entry) = view.get(name) else {
            missing.push(full_name);
            continue;
        };
        let stored_as = entry.stored_as.clone().unwrap_or(full_name);
        let fits = match row.relation {
            Relation::Same => without_last_ones(&entry.shape) == without_last_ones(shape),
            Relation::Transposed | Relation::Fused => entry.shape == *shape,
        };
        if !fits {
            return Err(Error::WrongShape {
                file: source.to_string(),
                tensor: stored_as,
                found: entry.shape.clone(),
                expected: shape.clone(),
            });
        }
        if let Some(other) = dtype.filter(|other| *other != entry.dtype) {
            return Err(Error::MixedDtypes {
                file: source.to_string(),
                tensor: stored_as,
                found: entry.dtype,
                expected: other,
            });
        }
        dtype = Some(entry.dtype);
        sources.push(stored_as);
    }
    Ok(dtype.filter(|_| sources.len() == wanted.len()).map(|dtype| (sources, dtype)))
}

fn without_last_ones(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().rev().take_while(|length| **length == 1).count();
    &shape[..shape.len() - ones]
}

impl Model {
    /// The component in the folder `folder` of diffusers' layout.
    pub fn component(&self, folder: &str) -> Option<&Component> {
        self.components.iter().find(|component| component.place.folder == folder)
    }

    /// The source's names of all tensors that have a place.
    pub(crate) fn placed_names(&self) -> HashSet<&str> {
        let placed = self.components.iter().flat_map(|component| &component.tensors);
        placed.flat_map(|placed| placed.sources.iter().map(String::as_str)).collect()
    }

    /// Says which text encoders do not fit the vocabulary that all tokenizers are given.
    pub(crate) fn note_vocabulary(&mut self) {
        for component in &self.components {
            if let Structure::ClipText(clip) = &component.structure
                && clip.vocab_size != CLIP_TOKENS
            {
                self.notes.push(format!(
                    "the {} has {} token ids, and the tokenizer that goes with a single file is CLIP's, with {CLIP_TOKENS}",
                    component.place.folder, clip.vocab_size
                ));
            }
        }
    }

    /// What it is, in a few words.
    pub fn title(&self) -> String {
        match self.kind {
            Kind::Pipeline(family, Task::TextToImage) => family.name().to_string(),
            Kind::Pipeline(family, Task::Inpainting) => format!("{}, inpainting", family.name()),
            Kind::Pipeline(family, Task::InstructPix2Pix) => format!("{}, InstructPix2Pix", family.name()),
            Kind::Alone(ModelKind::UNet) => "a UNet".to_string(),
            Kind::Alone(ModelKind::ControlNet) => "a ControlNet".to_string(),
            Kind::Alone(ModelKind::Vae) => "a VAE".to_string(),
            Kind::Alone(ModelKind::ClipText { .. }) => "a text encoder".to_string(),
        }
    }

    /// The class of the pipeline in diffusers; `None` for a model alone.
    pub fn pipeline_class(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Pipeline(family, task) => Some(family.pipeline(task)),
            Kind::Alone(_) => None,
        }
    }
}
