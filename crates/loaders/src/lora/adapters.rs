use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use candle_diffusers_convert::{LoraComponent, LoraFile, Source};
use candle_diffusers_models::layers::Layer;
use rayon::prelude::*;

use super::AdapterError;
use super::change::Change;
use super::low_rank::LowRank;
use super::matching::{LoraModels, UnmatchedKeys};
use crate::Result;

/// The LoRAs that are loaded for the models of one pipeline: which are active and how much, whether they are fused, and what the models
/// were before.
///
/// What the models compute is always their original weights with the active adapters; [`fuse`](Self::fuse) only chooses how. Taking
/// adapters off gives back the original tensors, bit for bit. Layers are found when a LoRA is loaded and kept as handles: models that
/// are shared see every change, and clones of them made before see none. One `LoraAdapters` should look after a model; where it is
/// dropped, the model stays as it is.
#[derive(Debug, Default)]
pub struct LoraAdapters {
    adapters: Vec<Adapter>,
    /// Every layer that any of them changes.
    layers: Vec<ChangedLayer>,
    mode: Mode,
}

/// What is known of a loaded LoRA.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterInfo {
    /// The name that it was loaded under.
    pub name: String,
    /// The file.
    pub source: String,
    /// Its weight where it is active.
    pub strength: Option<f64>,
    /// The models that it changes, each with how many of its layers.
    pub components: Vec<(LoraComponent, usize)>,
}

#[derive(Debug)]
struct Adapter {
    info: AdapterInfo,
    /// Its place among the active ones.
    order: usize,
    /// Each with the index of its layer.
    changes: Vec<(usize, Change)>,
}

/// How active adapters take effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    /// As branches beside the layers, where they can be.
    #[default]
    Beside,
    /// In the weights.
    Fused,
}

/// A layer, and what it was where it is otherwise now.
#[derive(Debug)]
struct ChangedLayer {
    /// After its component's name.
    name: String,
    layer: Layer,
    weight: Option<Tensor>,
    bias: Option<Option<Tensor>>,
    has_branches: bool,
}

impl LoraAdapters {
    /// Nothing loaded.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the LoRA at `path`, a file of any layout or a folder that PEFT or diffusers wrote, for these models, as `name`. It has no
    /// effect until [`set_adapters`](Self::set_adapters) names it.
    ///
    /// # Errors
    /// When the name is taken; when the file cannot be read, is no LoRA, or is one for other models; when keys of it match no layer and
    /// `unmatched` does not allow that. Nothing is loaded then.
    pub fn load(
        &mut self,
        models: &LoraModels,
        name: &str,
        path: impl AsRef<Path>,
        unmatched: UnmatchedKeys,
    ) -> Result<()> {
        let source = LoraFile::open_source(path.as_ref())?;
        self.load_source(models, name, source.as_ref(), unmatched)
    }

    /// As [`load`](Self::load), from tensors that are open already.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_source(
        &mut self,
        models: &LoraModels,
        name: &str,
        source: &dyn Source,
        unmatched: UnmatchedKeys,
    ) -> Result<()> {
        if self.position(name).is_ok() {
            return Err(AdapterError::NameTaken { name: name.to_string() }.into());
        }
        let matched = models.read(source, unmatched)?;
        let is_known = |layer: &Layer| self.layers.iter().any(|known| known.layer.is_same(layer));
        if let Some(other) = matched.iter().find(|one| one.layer.adapter().is_some() && !is_known(&one.layer))
        {
            return Err(AdapterError::AdaptedElsewhere { layer: other.name.clone() }.into());
        }
        let mut components: Vec<(LoraComponent, usize)> = Vec::new();
        let mut changes = Vec::with_capacity(matched.len());
        for one in matched {
            match components.iter_mut().find(|(component, _)| *component == one.component) {
                Some((_, count)) => *count += 1,
                None => components.push((one.component, 1)),
            }
            changes.push((self.index_of(one.name, one.layer), one.change));
        }
        let (name, source) = (name.to_string(), source.name().to_string());
        let info = AdapterInfo { name, source, strength: None, components };
        self.adapters.push(Adapter { info, order: 0, changes });
        Ok(())
    }

    /// Makes these LoRAs active, each with its weight, and all others inactive. A weight of 1 is the file's own strength; it may be
    /// negative. No names at all switch every LoRA off. The order matters for DoRAs only (see the [module](super)).
    ///
    /// # Errors
    /// When nothing is loaded under a name, a name comes twice, or a weight is not finite: then nothing changes. When the device fails:
    /// then no LoRA is active.
    pub fn set_adapters(&mut self, adapters: &[(impl AsRef<str>, f64)]) -> Result<()> {
        let mut active = vec![None; self.adapters.len()];
        for (order, (name, strength)) in adapters.iter().enumerate() {
            let name = name.as_ref();
            let place = &mut active[self.position(name)?];
            if !strength.is_finite() {
                return Err(AdapterError::Strength { name: name.to_string(), strength: *strength }.into());
            }
            if place.replace((order, *strength)).is_some() {
                return Err(AdapterError::NamedTwice { name: name.to_string() }.into());
            }
        }
        for (adapter, place) in self.adapters.iter_mut().zip(active) {
            adapter.info.strength = place.map(|(_, strength)| strength);
            adapter.order = place.map_or(0, |(order, _)| order);
        }
        self.apply()
    }

    /// Computes the active LoRAs into the weights, so that they cost nothing from now on. The originals are kept, which takes the memory
    /// of every changed weight once more. What is set later is fused as well.
    ///
    /// # Errors
    /// When the device fails: then no LoRA is active.
    pub fn fuse(&mut self) -> Result<()> {
        self.mode = Mode::Fused;
        self.apply()
    }

    /// The opposite of [`fuse`](Self::fuse): the original weights, with the active LoRAs beside them.
    ///
    /// # Errors
    /// When the device fails: then no LoRA is active.
    pub fn unfuse(&mut self) -> Result<()> {
        self.mode = Mode::Beside;
        self.apply()
    }

    /// Whether LoRAs are computed into the weights.
    pub fn is_fused(&self) -> bool {
        self.mode == Mode::Fused
    }

    /// Computes the active LoRAs into the weights for good and forgets all that are loaded and what the weights were: for programs that
    /// use them to their end, and for models that shall be saved so.
    ///
    /// # Errors
    /// When the device fails. Some layers may have been changed then, and cannot be changed back.
    pub fn fuse_permanently(&mut self) -> Result<()> {
        let adapters = std::mem::take(&mut self.adapters);
        let changes = active_changes(&adapters, self.layers.len());
        let mut layers = std::mem::take(&mut self.layers).into_iter();
        self.mode = Mode::Beside;
        for changes in changes.chunks(AT_ONCE) {
            // What these layers were is forgotten before the next ones change.
            set_all(&mut layers.by_ref().take(AT_ONCE).collect::<Vec<_>>(), Mode::Fused, changes)?;
        }
        Ok(())
    }

    /// Takes one LoRA off and forgets it; the others stay as they are.
    ///
    /// # Errors
    /// When nothing is loaded under the name. When the device fails: then no LoRA is active.
    pub fn unload(&mut self, name: &str) -> Result<()> {
        let removed = self.adapters.remove(self.position(name)?);
        if removed.info.strength.is_some() { self.apply() } else { Ok(()) }
    }

    /// Takes all LoRAs off and forgets them: the models are what they were, bit for bit.
    pub fn unload_all(&mut self) {
        self.adapters.clear();
        self.restore_all();
        self.layers.clear();
        self.mode = Mode::Beside;
    }

    /// What is loaded, in the order in which it was.
    pub fn list(&self) -> impl Iterator<Item = &AdapterInfo> {
        self.adapters.iter().map(|adapter| &adapter.info)
    }

    fn position(&self, name: &str) -> Result<usize> {
        self.list().position(|info| info.name == name).ok_or_else(|| {
            let loaded = self.list().map(|info| info.name.clone()).collect();
            AdapterError::UnknownName { name: name.to_string(), loaded }.into()
        })
    }

    /// The index of `layer`, which is added where it is new.
    fn index_of(&mut self, name: String, layer: Layer) -> usize {
        if let Some(index) = self.layers.iter().position(|known| known.layer.is_same(&layer)) {
            return index;
        }
        self.layers.push(ChangedLayer { name, layer, weight: None, bias: None, has_branches: false });
        self.layers.len() - 1
    }

    /// Makes all layers what the active adapters want, or, where that fails, what they were.
    fn apply(&mut self) -> Result<()> {
        let changes = active_changes(&self.adapters, self.layers.len());
        let mode = self.mode;
        let mut parts = self.layers.chunks_mut(AT_ONCE).zip(changes.chunks(AT_ONCE));
        let Err(error) = parts.try_for_each(|(layers, changes)| set_all(layers, mode, changes)) else {
            return Ok(());
        };
        self.restore_all();
        self.adapters.iter_mut().for_each(|adapter| adapter.info.strength = None);
        Err(error)
    }

    fn restore_all(&mut self) {
        self.layers.iter_mut().for_each(ChangedLayer::restore);
    }
}

/// So many layers are changed at the same time: each takes some copies of its weight in float32.
const AT_ONCE: usize = 8;

/// Gives each layer its changes.
fn set_all(layers: &mut [ChangedLayer], mode: Mode, changes: &[Vec<(f64, &Change)>]) -> Result<()> {
    let layers = layers.par_iter_mut().zip(changes).with_max_len(1);
    layers
        .try_for_each(|(layer, changes)| Ok(layer.set(mode, changes).map_err(|error| layer.error(error))?))
}

/// For each of so many layers the changes of the active adapters in their order, with their strengths.
fn active_changes(adapters: &[Adapter], layers: usize) -> Vec<Vec<(f64, &Change)>> {
    let mut by_layer: Vec<Vec<(f64, &Change)>> = vec![Vec::new(); layers];
    let mut in_order: Vec<&Adapter> = adapters.iter().collect();
    in_order.sort_by_key(|adapter| adapter.order);
    for adapter in in_order {
        let Some(strength) = adapter.info.strength else { continue };
        for (index, change) in &adapter.changes {
            by_layer[*index].push((strength, change));
        }
    }
    by_layer
}

impl ChangedLayer {
    /// The original layer with these changes, whatever it is now.
    fn set(
        &mut self,
        mode: Mode,
        changes: &[(f64, &Change)],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        // A DoRA scales what the changes before it made, which must then be in the weight too.
        let is_branched = mode == Mode::Beside && !changes.iter().any(|(_, change)| change.has_magnitude());
        let mut branches = Vec::new();
        let mut in_weights = Vec::new();
        for (strength, change) in changes {
            match if is_branched { change.branch(&self.layer)? } else { None } {
                Some((branch, scaling)) => branches.push((branch, scaling * strength)),
                None => in_weights.push((*strength, *change)),
            }
        }
        self.set_weights(&in_weights)?;
        if branches.is_empty() {
            self.remove_branches();
        } else {
            self.layer.set_adapter(Some(Arc::new(LowRank::new(&self.layer, &branches)?)));
            self.has_branches = true;
        }
        Ok(())
    }

    fn set_weights(
        &mut self,
        changes: &[(f64, &Change)],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if changes.is_empty() {
            self.restore_weight();
            self.restore_bias();
            return Ok(());
        }
        let original = self.weight.clone().unwrap_or_else(|| self.layer.weight());
        let (dtype, original) = (original.dtype(), original.to_dtype(DType::F32)?);
        let (mut weight, mut bias): (Option<Tensor>, Option<Tensor>) = (None, None);
        for (strength, change) in changes {
            let current = weight.as_ref().unwrap_or(&original);
            weight = change.change_weight(&original, current, *strength)?.or(weight);
            bias = match (bias, change.bias_delta(*strength)?) {
                (Some(sum), Some(delta)) => Some((sum + delta)?),
                (sum, delta) => sum.or(delta),
            };
        }
        match weight {
            Some(weight) => self.replace_weight(weight.to_dtype(dtype)?)?,
            None => self.restore_weight(),
        }
        match bias {
            Some(delta) => {
                let original = self.bias.clone().unwrap_or_else(|| self.layer.bias());
                let changed = match original {
                    Some(original) => (original.to_dtype(DType::F32)? + delta)?,
                    None => delta,
                };
                self.replace_bias(changed.to_dtype(dtype)?)?;
            }
            None => self.restore_bias(),
        }
        Ok(())
    }

    fn replace_weight(&mut self, weight: Tensor) -> candle_diffusers_models::Result<()> {
        let old = self.layer.replace_weight(weight)?;
        self.weight.get_or_insert(old);
        Ok(())
    }

    fn replace_bias(&mut self, bias: Tensor) -> candle_diffusers_models::Result<()> {
        let old = self.layer.replace_bias(Some(bias))?;
        self.bias.get_or_insert(old);
        Ok(())
    }

    fn restore(&mut self) {
        self.remove_branches();
        self.restore_weight();
        self.restore_bias();
    }

    // What a layer had before always fits, so that giving it back cannot fail.

    fn restore_weight(&mut self) {
        if let Some(weight) = self.weight.take() {
            self.layer.replace_weight(weight).ok();
        }
    }

    fn restore_bias(&mut self) {
        if let Some(bias) = self.bias.take() {
            self.layer.replace_bias(bias).ok();
        }
    }

    fn remove_branches(&mut self) {
        if std::mem::take(&mut self.has_branches) {
            self.layer.set_adapter(None);
        }
    }

    fn error(&self, source: Box<dyn std::error::Error + Send + Sync>) -> AdapterError {
        AdapterError::Compute { layer: self.name.clone(), source }
    }
}
