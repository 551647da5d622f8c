//! `diffuse generate --control`: the pictures, the ControlNets, and what a PNG says of them.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_diffusers_loaders::Repository;
use candle_diffusers_pipelines::{Control, StableDiffusionPipeline, canny, check_controlnet, load_picture};
use image::RgbImage;

use crate::arguments::GenerateArguments;
use crate::control_arguments::{ControlArgument, Edges};
use crate::models::{self, NamedModel};
use crate::parameters::Parameters;
use crate::progress::Progress;

/// What `--control` names, before a model is loaded.
pub(crate) struct Controls {
    asked: Vec<(ControlArgument, RgbImage)>,
}

/// The ControlNets of `Controls`, each once, by the names that were typed.
pub(crate) struct ControlNets {
    nets: HashMap<String, NamedModel>,
}

impl Controls {
    /// Reads the pictures.
    pub(crate) fn read(arguments: &GenerateArguments) -> Result<Self> {
        let read = |argument: ControlArgument| -> Result<(ControlArgument, RgbImage)> {
            let picture = load_picture(&argument.picture)?;
            let picture = match argument.edges {
                Edges::None => picture,
                Edges::Canny { low, high } => canny(&picture, low, high)
                    .with_context(|| format!("edges of {}", argument.picture.display()))?,
            };
            Ok((argument, picture))
        };
        Ok(Self { asked: arguments.control.read()?.into_iter().map(read).collect::<Result<_>>()? })
    }

    /// Finds the nets, and whether they are for models such as `base`.
    pub(crate) fn open(
        &self,
        arguments: &GenerateArguments,
        base: &Repository,
        progress: &Progress,
    ) -> Result<ControlNets> {
        let mut nets = HashMap::new();
        for (argument, _) in &self.asked {
            if !nets.contains_key(&argument.model) {
                let net = models::open_controlnet(&argument.model, arguments, progress)?;
                check_controlnet(base, &net.repository)?;
                nets.insert(argument.model.clone(), net);
            }
        }
        Ok(ControlNets { nets })
    }

    /// Loads each net once.
    pub(crate) fn load(
        &self,
        arguments: &GenerateArguments,
        nets: &ControlNets,
        pipeline: &StableDiffusionPipeline,
        progress: &Progress,
    ) -> Result<Vec<Control>> {
        let mut loaded = HashMap::new();
        for (name, net) in &nets.nets {
            let _shown = progress.activity(format!("loading {}", net.repository.name()));
            let model = pipeline.load_controlnet(&net.repository, arguments.variant.as_deref())?;
            loaded.insert(name, Arc::new(model));
        }
        let control = |(argument, picture): &(ControlArgument, RgbImage)| {
            let net = loaded.get(&argument.model).context("a ControlNet was not opened")?;
            let ControlArgument { scale, start, end, .. } = *argument;
            Ok(Control { net: net.clone(), pictures: vec![picture.clone()], scale, start, end })
        };
        self.asked.iter().map(control).collect()
    }

    /// What a picture's parameters say, as AUTOMATIC1111's ControlNet extension writes it.
    pub(crate) fn describe(&self, nets: &ControlNets) -> Vec<String> {
        let describe = |(argument, _): &(ControlArgument, RgbImage)| {
            let (module, thresholds) = match argument.edges {
                Edges::None => ("none", String::new()),
                Edges::Canny { low, high } => ("canny", format!(", Threshold A: {low}, Threshold B: {high}")),
            };
            let name = nets.nets.get(&argument.model).map_or("", |net| &net.name);
            let ControlArgument { scale, start, end, .. } = argument;
            format!(
                "Module: {module}, Model: {name}, Weight: {scale}{thresholds}, Guidance Start: {start}, Guidance End: {end}"
            )
        };
        self.asked.iter().map(describe).collect()
    }
}

/// Adds what [`Controls::describe`] says to a picture's parameters.
pub(crate) fn set_parameters(descriptions: &[String], guess_mode: bool, parameters: &mut Parameters) {
    for (index, description) in descriptions.iter().enumerate() {
        parameters.set(&format!("ControlNet {index}"), description);
    }
    if guess_mode {
        parameters.set("Guess mode", true);
    }
}
