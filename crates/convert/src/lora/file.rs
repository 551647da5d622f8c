use std::collections::BTreeMap;
use std::path::Path;

use super::adapter_config::{AdapterConfig, AdapterConfigs, CONFIG_FILE};
use super::assemble::Parts;
use super::component_folders::ComponentFolders;
use super::family::{family_of, other_model};
use super::names::{Names, Origin, PEFT_PREFIX, Spelling};
use super::part::Part;
use super::scalar::read_scalar;
use super::{AdaptedLayer, LoraComponent, LoraError, LoraLayout, LoraWeights, TensorRef, cloneofsimo};
use crate::{Error, Family, Inventory, Result, Source, Structure, UNet, open_file};

/// A LoRA file of any layout: the layers that it changes, by the names that they have in diffusers.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFile {
    /// The file's name, for messages.
    pub source: String,
    /// Whose names its tensors have.
    pub layout: LoraLayout,
    /// The models that it is for, as far as its layers and metadata tell.
    pub family: Option<Family>,
    /// The UNet that it was read for ([`LoraFile::read_for`]), where that is known: by its build the original layout numbers blocks.
    pub unet: Option<UNet>,
    /// The changed layers, sorted by component and name. A layer may come twice: changed by a product and by a difference of its bias.
    pub layers: Vec<AdaptedLayer>,
    /// The names of tensors that no rule understands. Whoever uses the file decides whether that is an error.
    pub unmatched: Vec<String>,
    /// The names of tensors that are textual inversion embeddings, which some trainers put in the same file.
    pub embeddings: Vec<String>,
    /// The text that the file carries beside its tensors.
    pub metadata: BTreeMap<String, String>,
    /// What was assumed or should be known: one line each.
    pub notes: Vec<String>,
}

/// Weights of a PEFT or diffusers folder, in the order in which they are looked for.
const WEIGHT_FILES: [&str; 4] = [
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
];

impl LoraFile {
    /// Opens the LoRA at `path`, a file or a folder that PEFT or diffusers wrote, with the source of its tensors.
    ///
    /// # Errors
    /// When it cannot be opened, and as [`LoraFile::read`].
    pub fn open(path: &Path) -> Result<(Self, Box<dyn Source>)> {
        let source = Self::open_source(path)?;
        Ok((Self::read(source.as_ref())?, source))
    }

    /// Opens the tensors of the LoRA at `path`, a file or a folder that PEFT or diffusers wrote.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_source(path: &Path) -> Result<Box<dyn Source>> {
        if !path.is_dir() {
            return open_file(path);
        }
        if let Some(file) = WEIGHT_FILES.iter().map(|name| path.join(name)).find(|path| path.is_file()) {
            return open_file(&file);
        }
        match ComponentFolders::open(path, &WEIGHT_FILES)? {
            Some(folders) => Ok(Box::new(folders)),
            None => Err(Error::Folder {
                folder: path.display().to_string(),
                message: format!("it has no LoRA: none of {}", WEIGHT_FILES.join(", ")),
            }),
        }
    }

    /// Whether `folder` holds a LoRA that PEFT or diffusers wrote, for one model or for each in a folder of its own.
    pub fn is_folder(folder: &Path) -> bool {
        let own = std::iter::once("").chain(LoraComponent::ALL.map(LoraComponent::folder));
        own.flat_map(|own| WEIGHT_FILES.map(|name| folder.join(own).join(name))).any(|path| path.is_file())
    }

    /// Whether these tensors are those of a LoRA in any of the layouts.
    pub fn looks_like_one(inventory: &Inventory) -> bool {
        // What has these is a checkpoint, in which a tool has left pieces of a LoRA.
        const OF_CHECKPOINTS: [&str; 2] =
            ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"];
        if OF_CHECKPOINTS.iter().any(|name| inventory.get(name).is_some()) {
            return false;
        }
        let is_distinctive = |name: &str| Part::split(name).is_some_and(|(_, part)| part.is_distinctive());
        let is_difference = |name: &str| {
            ["lora_", "lycoris_"].iter().any(|prefix| name.starts_with(prefix)) && Part::split(name).is_some()
        };
        inventory.names().any(|name| is_distinctive(name) || is_difference(name))
            || cloneofsimo::looks_like_one(inventory)
    }

    /// Reads the names and shapes of `source`, and the few numbers that are alphas.
    ///
    /// For a PEFT file, `adapter_config.json` beside it is read as well.
    ///
    /// # Errors
    /// When it is no LoRA or one for models that are not known, half of a pair of tensors is missing, ranks disagree, or a shape, an
    /// element type or an alpha is impossible.
    pub fn read(source: &dyn Source) -> Result<Self> {
        Self::read_for(source, &[])
    }

    /// As [`LoraFile::read`], for models of these structures: a UNet, and text encoders in their order. They are needed for models
    /// that are built otherwise than the published ones, where a file has the original layout's block names or none at all.
    ///
    /// # Errors
    /// As [`LoraFile::read`].
    pub fn read_for(source: &dyn Source, structures: &[Structure]) -> Result<Self> {
        let mut file = Self::read_by(source, structures)?;
        file.unet = structures.iter().find_map(|structure| match structure {
            Structure::UNet(unet) if !structure.is_absurd() => Some(unet.clone()),
            _ => None,
        });
        Ok(file)
    }

    fn read_by(source: &dyn Source, structures: &[Structure]) -> Result<Self> {
        let inventory = source.inventory();
        if cloneofsimo::looks_like_one(&inventory) {
            return cloneofsimo::read(source, &inventory, structures);
        }
        let mut reader = Reader::new(source, Names::of(structures));
        for name in inventory.names() {
            if let Some(entry) = inventory.get(name) {
                let tensor =
                    TensorRef { name: name.to_string(), shape: entry.shape.clone(), dtype: entry.dtype };
                reader.add(tensor)?;
            }
        }
        reader.finish(&inventory)
    }
}

/// What has been read so far.
struct Reader<'s> {
    source: &'s dyn Source,
    names: Names,
    layers: BTreeMap<(LoraComponent, String), Parts>,
    unmatched: Vec<String>,
    embeddings: Vec<String>,
    /// How many tensors tell of each layout.
    layouts: BTreeMap<LoraLayout, usize>,
}

impl<'s> Reader<'s> {
    fn new(source: &'s dyn Source, names: Names) -> Self {
        let (layers, layouts) = (BTreeMap::new(), BTreeMap::new());
        Self { source, names, layers, unmatched: Vec::new(), embeddings: Vec::new(), layouts }
    }

    fn add(&mut self, tensor: TensorRef) -> Result<()> {
        if tensor.name.starts_with("bundle_emb.") {
            self.embeddings.push(tensor.name);
            return Ok(());
        }
        let found = Part::split(&tensor.name).and_then(|(stem, part)| Some((self.names.find(stem)?, part)));
        let Some(((layer, origin), part)) = found else {
            self.unmatched.push(tensor.name);
            return Ok(());
        };
        let layout = layout_of(origin, layer.spelling, &tensor.name);
        *self.layouts.entry(layout).or_default() += 1;
        let name = layer.name.clone();
        let parts = self.layers.entry((layer.component, layer.name)).or_default();
        parts.add(part, tensor).map_err(|(first, second)| {
            LoraError::Twice { file: self.source.name().to_string(), first, second, layer: name }.into()
        })
    }

    fn finish(mut self, inventory: &Inventory) -> Result<LoraFile> {
        let file = self.source.name().to_string();
        let metadata = self.source.metadata();
        self.check_known()?;
        let layouts: Vec<LoraLayout> =
            self.layouts.keys().copied().filter(|layout| layout.has_config()).collect();
        let configs = match layouts[..] {
            [] => AdapterConfigs::default(),
            _ => AdapterConfigs::of(self.source, &metadata, &layouts)?,
        };
        let mut layers = Vec::with_capacity(self.layers.len());
        for ((component, name), mut parts) in self.layers {
            let config = configs.get(component);
            let alpha = match (parts.alpha(), config) {
                (Some(tensor), _) => Some(read_scalar(self.source, tensor)?),
                (None, Some(config)) => Some(config.alpha_of(&name)),
                (None, None) => None,
            };
            let layer = AdaptedLayer {
                component,
                name,
                weights: LoraWeights::Full { weight: None, bias: None },
                alpha,
                rank_stabilized: config.is_some_and(|config| config.rank_stabilized),
                dora_scale: None,
            };
            let changes = parts.assemble(&file, &layer)?;
            if let Some(config) = config {
                check_has_rank(&file, config, &changes)?;
            }
            layers.extend(changes);
            self.unmatched.extend(parts.left());
        }
        if layers.is_empty() {
            let names = inventory.names().take(3).map(str::to_string).collect();
            return Err(LoraError::NotALora { file, count: inventory.len(), names }.into());
        }
        self.unmatched.sort_unstable();
        // The most of a file decides; whoever mixes layouts has most often mixed spellings of blocks, and those count as original.
        let layout = match self.layouts.contains_key(&LoraLayout::KohyaOriginal) {
            true => LoraLayout::KohyaOriginal,
            false => self
                .layouts
                .iter()
                .max_by_key(|(_, count)| **count)
                .map_or(LoraLayout::Kohya, |(layout, _)| *layout),
        };
        let mut notes = Vec::new();
        if layout == LoraLayout::Peft && configs.is_empty() {
            notes
                .push(format!("there is no {CONFIG_FILE} beside {file}: each alpha is taken to be the rank"));
        }
        let family = family_of(&layers, &metadata);
        let (unmatched, embeddings) = (self.unmatched, self.embeddings);
        Ok(LoraFile {
            source: file,
            layout,
            family,
            unet: None,
            layers,
            unmatched,
            embeddings,
            metadata,
            notes,
        })
    }

    /// Fails where what is not known tells of another model.
    fn check_known(&self) -> Result<()> {
        let other = self.unmatched.iter().find_map(|name| Some((name, other_model(name)?)));
        let Some((name, what)) = other else { return Ok(()) };
        let (file, tensor) = (self.source.name().to_string(), name.clone());
        Err(LoraError::OtherModel { file, what, tensor }.into())
    }
}

/// Fails for two whole factors of a LoKr that PEFT scales by an alpha and a rank which is nowhere in their shapes.
fn check_has_rank(file: &str, config: &AdapterConfig, layers: &[AdaptedLayer]) -> Result<()> {
    let is_scaled = |layer: &&AdaptedLayer| {
        matches!(layer.weights, LoraWeights::Lokr { .. })
            && layer.rank().is_none()
            && config.alpha_of(&layer.name) != config.rank_of(&layer.name)
    };
    let Some(layer) = layers.iter().find(is_scaled) else { return Ok(()) };
    let message = format!(
        "the factors of {} have no rank, but are scaled by {} / {}; only equal numbers are read",
        layer.name,
        config.alpha_of(&layer.name),
        config.rank_of(&layer.name)
    );
    Err(LoraError::Config { file: file.to_string(), place: CONFIG_FILE.to_string(), message }.into())
}

fn layout_of(origin: Origin, spelling: Spelling, name: &str) -> LoraLayout {
    match origin {
        Origin::Kohya if spelling == Spelling::Original => LoraLayout::KohyaOriginal,
        Origin::Kohya => LoraLayout::Kohya,
        Origin::Peft => LoraLayout::Peft,
        Origin::Dotted if name.contains(PEFT_PREFIX) => LoraLayout::Peft,
        Origin::Dotted if [".lora_A.", ".lora_B."].iter().any(|mark| name.contains(mark)) => {
            LoraLayout::Diffusers
        }
        Origin::Dotted if name.contains(".lora_magnitude_vector") => LoraLayout::Diffusers,
        Origin::Dotted => LoraLayout::DiffusersOld,
    }
}
