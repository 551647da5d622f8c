//! The weights of a diffusers folder as one source: the tensors of a component have its folder before their names.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::path::Path;

use crate::inventory::Inventory;
use crate::{Checkpoint, Error, PickledFile, Result, Source};

/// The weights of the components of a diffusers folder.
///
/// A tensor's name is that of its component's folder, a slash, and its own: `unet/conv_in.weight`.
pub struct FolderSource {
    name: String,
    components: Vec<(String, Box<dyn Source + Send>)>,
}

impl FolderSource {
    /// Opens the weights in each of the folders `components` of `folder` (`""` where that is a component itself), of the variant
    /// if one is given, else the plain ones, else of the only variant there is.
    ///
    /// # Errors
    /// When a component has no weights or they cannot be read.
    pub fn open(folder: &Path, components: &[&str], variant: Option<&str>) -> Result<Self> {
        let open = |component: &&str| {
            let prefix = if component.is_empty() { String::new() } else { format!("{component}/") };
            Ok((prefix, open_weights(&folder.join(component), variant)?))
        };
        let components = components.iter().map(open).collect::<Result<_>>()?;
        Ok(Self { name: folder.display().to_string(), components })
    }

    fn find<'a>(&self, tensor: &'a str) -> Option<(&(dyn Source + Send), &'a str)> {
        let (prefix, source) =
            self.components.iter().find(|(prefix, _)| tensor.starts_with(prefix.as_str()))?;
        Some((source.as_ref(), &tensor[prefix.len()..]))
    }
}

impl Source for FolderSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn inventory(&self) -> Inventory {
        let mut all = Vec::new();
        for (prefix, source) in &self.components {
            let inventory = source.inventory();
            let entry = |name: &str| Some((format!("{prefix}{name}"), inventory.get(name)?.clone()));
            all.extend(inventory.names().filter_map(entry));
        }
        all.into_iter().collect()
    }

    fn bytes(&self, tensor: &str) -> Result<Cow<'_, [u8]>> {
        let (source, name) = self.find(tensor).ok_or_else(|| Error::not_readable(&self.name, tensor))?;
        source.bytes(name)
    }

    fn position(&self, tensor: &str) -> Option<(&Path, Range<u64>)> {
        let (source, name) = self.find(tensor)?;
        source.position(name)
    }

    fn release(&self, tensor: &str) {
        if let Some((source, name)) = self.find(tensor) {
            source.release(name);
        }
    }
}

fn open_weights(folder: &Path, variant: Option<&str>) -> Result<Box<dyn Source + Send>> {
    let names = file_names(folder);
    let name = choose(&names, variant).ok_or_else(|| Error::Folder {
        folder: folder.display().to_string(),
        message: match variant {
            Some(variant) => format!("it has no weights of the variant {variant}, and no plain ones"),
            None => "it has no weights (model.safetensors or diffusion_pytorch_model.safetensors), or several variants of \
                     them of which one must be named"
                .to_string(),
        },
    })?;
    let path = folder.join(&name);
    if name.ends_with(".bin") {
        return Ok(Box::new(PickledFile::open(path)?));
    }
    Ok(Box::new(Checkpoint::open(path)?))
}

fn file_names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// The weights among the files of a component: of the variant, else the plain ones, else those of the only variant.
fn choose(names: &[String], variant: Option<&str>) -> Option<String> {
    let find = |variant: &str| candidates(variant).into_iter().find(|name| names.contains(name));
    let of_variant = variant.and_then(|variant| find(&format!(".{variant}")));
    of_variant.or_else(|| find("")).or_else(|| {
        let mut variants: Vec<&str> = names.iter().filter_map(|name| variant_of(name)).collect();
        variants.dedup();
        match variants[..] {
            [only] if variant.is_none() => find(&format!(".{only}")),
            _ => None,
        }
    })
}

/// The names that weights may have, `variant` beginning with a dot: as diffusers and transformers look for them, pickles last.
fn candidates(variant: &str) -> Vec<String> {
    let mut names = Vec::new();
    for stem in ["diffusion_pytorch_model", "model"] {
        names.push(format!("{stem}.safetensors.index{variant}.json"));
        names.push(format!("{stem}.safetensors{variant}.index.json"));
        names.push(format!("{stem}{variant}.safetensors"));
    }
    names.extend(["diffusion_pytorch_model", "pytorch_model"].map(|stem| format!("{stem}{variant}.bin")));
    names
}

/// The variant in the name of a weight file: `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`.
fn variant_of(name: &str) -> Option<&str> {
    let stem = Path::new(name).extension().and_then(OsStr::to_str).filter(|ending| *ending == "safetensors");
    let stem = stem.and(name.strip_suffix(".safetensors"))?;
    let rest = ["diffusion_pytorch_model.", "model."].iter().find_map(|known| stem.strip_prefix(known))?;
    Some(rest.split("-0").next().unwrap_or(rest))
}
