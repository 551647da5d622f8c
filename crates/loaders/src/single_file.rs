use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_diffusers_convert::{
    ComponentSource, Error as ConvertError, Kind, Model, ReadOptions, Source, open_file,
};

use crate::{Error, Result};

/// A checkpoint in one file, seen as the folder in diffusers' layout that it can be converted to.
pub(crate) struct SingleFile {
    model: Model,
    /// All files of the folder that are not weights.
    texts: BTreeMap<String, Vec<u8>>,
    /// The weights of each component by its folder.
    components: BTreeMap<&'static str, Arc<dyn Source>>,
}

impl SingleFile {
    pub(crate) fn open(path: &Path, options: &ReadOptions) -> Result<Self> {
        let source: Arc<dyn Source> = Arc::from(open_file(path)?);
        let model = Model::from_single_file(source.as_ref(), options).map_err(not_a_model)?;
        let of_pipeline = matches!(model.kind, Kind::Pipeline(..));
        let components = ComponentSource::all(&model, &source)
            .into_iter()
            .map(|(folder, component)| {
                (if of_pipeline { folder } else { "" }, Arc::new(component) as Arc<dyn Source>)
            })
            .collect();
        Ok(Self { texts: model.text_files().into_iter().collect(), model, components })
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.texts.keys().map(String::as_str)
    }

    pub(crate) fn text(&self, path: &str) -> Option<&[u8]> {
        self.texts.get(path).map(Vec::as_slice)
    }

    pub(crate) fn component(&self, folder: &str) -> Option<Arc<dyn Source>> {
        self.components.get(folder).cloned()
    }
}

impl std::fmt::Debug for SingleFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SingleFile").field("title", &self.model.title()).finish_non_exhaustive()
    }
}

/// Says of a file that is known and no model where it belongs.
fn not_a_model(error: ConvertError) -> Error {
    let ConvertError::NotConverted { file, what } = error else { return error.into() };
    let advice = if what.contains("LoRA") {
        "give the model that it belongs to as the model, and this file with it: `--model MODEL --lora FILE`"
    } else if what.contains("embedding") {
        "give the model that it belongs to as the model, and this file with it: `--model MODEL --embedding FILE`"
    } else if what.contains("diffusers' layout") {
        "give the whole pipeline's folder, in which there is a model_index.json"
    } else {
        "only checkpoints of Stable Diffusion 1, 2 and XL are read"
    };
    Error::NotAModel { file, what: what.to_string(), advice: advice.to_string() }
}

/// Fails where the single file that holds `model` is one model of a pipeline only.
pub(crate) fn check_is_pipeline(model: &Model) -> Result<()> {
    let Kind::Alone(_) = model.kind else { return Ok(()) };
    let advice = "give a checkpoint or a folder that has a UNet, a VAE and a text encoder; `diffuse convert` makes a folder of this \
                  file that can take the place of that component's in a model folder";
    Err(Error::NotAModel {
        file: model.source.clone(),
        what: format!("{} alone", model.title()),
        advice: advice.into(),
    })
}
