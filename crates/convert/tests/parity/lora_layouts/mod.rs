//! LoRA files of every layout: the layers found and what they add to the weights, beside what the reference libraries make of them.

// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used)]

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_diffusers_convert::{
    Checkpoint, Dtype, Entry, Error, Family, Inventory, LoraComponent, LoraFile, LoraLayout, MidBlock,
    Result, Source, Structure, UNet,
};
use flate2::read::GzDecoder;

pub(crate) mod delta;
mod written;

pub(crate) fn folder() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/lora_layouts")).to_path_buf()
}

/// What the reference gets from `file`: component and layer to the change times the vector 1, 1/2, 1/3 ...
fn expected(file: &str) -> BTreeMap<(String, String), Vec<f32>> {
    let deltas = Checkpoint::open(folder().join("deltas.safetensors")).unwrap();
    let mut expected = BTreeMap::new();
    for (tensors, info) in deltas.tensors() {
        let words: Vec<&str> = info.name.split('|').collect();
        if words[0] == file {
            let bytes = tensors.bytes(&info.name).unwrap();
            let values = bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()));
            expected.insert((words[1].to_string(), words[2].to_string()), values.collect());
        }
    }
    assert!(!expected.is_empty(), "{file}");
    expected
}

/// Fails unless the layers of `lora` and their changes are those that the reference gets from `file`.
#[track_caller]
pub(crate) fn check_deltas(lora: &LoraFile, source: &dyn Source, file: &str) {
    let expected = expected(file);
    let found: BTreeSet<_> =
        lora.layers.iter().map(|layer| (layer.component.folder().to_string(), layer.name.clone())).collect();
    assert_eq!(found, expected.keys().cloned().collect(), "{file}");
    for layer in &lora.layers {
        let values = delta::times_vector(layer, source);
        let wanted = &expected[&(layer.component.folder().to_string(), layer.name.clone())];
        let scale = wanted.iter().fold(0.0_f64, |most, value| most.max(f64::from(value.abs())));
        assert_eq!(values.len(), wanted.len(), "{file}: {}", layer.name);
        for (value, wanted) in values.iter().zip(wanted) {
            let difference = (value - f64::from(*wanted)).abs();
            assert!(difference <= 1e-5 * scale, "{file}: {}: {value} and {wanted}", layer.name);
        }
    }
}

#[track_caller]
fn check(file: &str, layout: LoraLayout, structures: &[Structure]) -> LoraFile {
    let source = LoraFile::open_source(&folder().join(file)).unwrap();
    assert!(LoraFile::looks_like_one(&source.inventory()), "{file}");
    let lora = LoraFile::read_for(source.as_ref(), structures).unwrap();
    assert_eq!(lora.layout, layout, "{file}");
    assert_eq!(lora.unmatched, Vec::<String>::new(), "{file}");
    check_deltas(&lora, source.as_ref(), file);
    lora
}

/// The UNet that export.py calls SD.
fn small_unet() -> Structure {
    Structure::UNet(UNet {
        in_channels: 4,
        out_channels: 4,
        block_out_channels: vec![8, 16],
        down: vec![vec![Some(1); 2], vec![None; 2]],
        mid: Some(MidBlock::CrossAttention(1)),
        up: vec![vec![None; 3], vec![Some(1); 3]],
        cross_attention_dim: 12,
        use_linear_projection: false,
        time_embed_dim: 32,
        addition_embed_dim: None,
    })
}

macro_rules! files {
    ($($name:ident: $file:literal $layout:ident;)*) => {
        $(#[test]
        fn $name() {
            check($file, LoraLayout::$layout, &[]);
        })*
    };
}

files! {
    diffusers: "diffusers.safetensors" Diffusers;
    diffusers_without_metadata: "diffusers_plain.safetensors" Diffusers;
    diffusers_of_one_model: "unet_adapter.safetensors" Diffusers;
    diffusers_with_dora: "diffusers_dora.safetensors" Diffusers;
    kohya: "kohya.safetensors" Kohya;
    kohya_by_the_reference: "kohya_converted.safetensors" Kohya;
    peft: "peft/adapter_model.safetensors" Peft;
    peft_loha: "peft_loha/adapter_model.safetensors" Peft;
    peft_lokr: "peft_lokr/adapter_model.safetensors" Peft;
    diffusers_old: "diffusers_old.safetensors" DiffusersOld;
    diffusers_oldest: "diffusers_oldest.bin" DiffusersOld;
    attention_processors_alone: "attn_procs.bin" DiffusersOld;
}

#[test]
fn diffusers_with_rank_stabilized_alphas() {
    let lora = check("diffusers_xl.safetensors", LoraLayout::Diffusers, &[]);
    let is_stabilized = |component| {
        lora.layers.iter().filter(|layer| layer.component == component).all(|layer| layer.rank_stabilized)
    };
    assert!(is_stabilized(LoraComponent::UNet) && !is_stabilized(LoraComponent::TextEncoder2));
    assert_eq!(lora.family, Some(Family::StableDiffusionXl));
}

#[test]
fn kohya_with_original_block_names() {
    let lora = check("kohya_original_xl.safetensors", LoraLayout::KohyaOriginal, &[]);
    assert_eq!(lora.family, Some(Family::StableDiffusionXl));
    assert!(lora.layers.iter().all(|layer| layer.alpha.is_some()));
}

#[test]
fn dora_has_a_length_for_each_output() {
    let lora = check("diffusers_dora.safetensors", LoraLayout::Diffusers, &[]);
    for layer in &lora.layers {
        let scale = layer.dora_scale.as_ref().unwrap();
        assert!(scale.shape.len() == 1 && !layer.dora_is_per_input(), "{scale:?}");
    }
}

#[test]
fn a_folder_that_peft_wrote() {
    let (lora, source) = LoraFile::open(&folder().join("peft")).unwrap();
    check_deltas(&lora, source.as_ref(), "peft/adapter_model.safetensors");
    assert_eq!(lora.notes, Vec::<String>::new());
}

#[test]
fn cloneofsimo_numbered() {
    let lora = check("cloneofsimo.safetensors", LoraLayout::CloneofsimoNumbered, &[small_unet()]);
    assert_eq!(lora.embeddings, ["<s1>"]);
}

#[test]
fn cloneofsimo_list() {
    check("cloneofsimo.pt", LoraLayout::CloneofsimoList, &[small_unet()]);
}

/// A file of which only names and shapes are known.
struct Names {
    tensors: BTreeMap<String, Vec<usize>>,
    metadata: BTreeMap<String, String>,
}

impl Source for Names {
    fn name(&self) -> &str {
        "lora.safetensors"
    }

    fn inventory(&self) -> Inventory {
        let entry =
            |(name, shape): (&String, &Vec<usize>)| (name.clone(), Entry::new(shape.clone(), Dtype::F16));
        self.tensors.iter().map(entry).collect()
    }

    fn bytes(&self, tensor: &str) -> Result<Cow<'_, [u8]>> {
        Err(Error::Unreadable { file: self.name().to_string(), tensor: tensor.to_string() })
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.clone()
    }
}

fn lines(file: &str) -> Vec<String> {
    let mut text = String::new();
    let file = std::fs::File::open(folder().join(file)).unwrap();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text.lines().map(str::to_string).collect()
}

/// Every layer of a real model, as trainers call it, is found by its name in diffusers.
#[track_caller]
fn check_names(file: &str, layout: LoraLayout) {
    let lines = lines(file);
    let mut names = Names { tensors: BTreeMap::new(), metadata: BTreeMap::new() };
    let mut expected = BTreeMap::new();
    for (index, line) in lines.iter().enumerate() {
        let words: Vec<&str> = line.split(' ').collect();
        // Ranks of their own, so that layers cannot be taken for each other.
        names.tensors.insert(format!("{}.lora_down.weight", words[0]), vec![index + 1, 8]);
        names.tensors.insert(format!("{}.lora_up.weight", words[0]), vec![8, index + 1]);
        expected.insert((words[1].to_string(), words[2].to_string()), index + 1);
    }
    let lora = LoraFile::read(&names).unwrap();
    assert_eq!(lora.layout, layout);
    assert_eq!(lora.unmatched, Vec::<String>::new());
    let found: BTreeMap<_, _> = lora
        .layers
        .iter()
        .map(|layer| ((layer.component.folder().to_string(), layer.name.clone()), layer.rank().unwrap()))
        .collect();
    assert_eq!(found, expected, "{file}");
    assert_eq!(found.len(), lines.len());
}

#[test]
fn names_of_stable_diffusion_1() {
    check_names("names_sd15.txt.gz", LoraLayout::Kohya);
    check_names("names_sd15_original.txt.gz", LoraLayout::KohyaOriginal);
}

#[test]
fn names_of_stable_diffusion_xl() {
    check_names("names_sdxl.txt.gz", LoraLayout::Kohya);
    check_names("names_sdxl_original.txt.gz", LoraLayout::KohyaOriginal);
}

#[test]
fn a_published_file_of_cloneofsimo() {
    let mut names = Names { tensors: BTreeMap::new(), metadata: BTreeMap::new() };
    for line in lines("cloneofsimo_sd15.txt.gz") {
        match line.strip_prefix("metadata ").and_then(|line| line.split_once(' ')) {
            Some((key, value)) => _ = names.metadata.insert(key.to_string(), value.to_string()),
            None => {
                let (name, shape) = line.split_once(' ').unwrap();
                let shape = shape.split(',').map(|length| length.parse().unwrap()).collect();
                names.tensors.insert(name.to_string(), shape);
            }
        }
    }
    let lora = LoraFile::read(&names).unwrap();
    assert_eq!((lora.layers.len(), lora.family), (192, Some(Family::StableDiffusion1)));
    assert!(lora.layers.iter().all(|layer| layer.rank() == Some(4)));
    // The same as a list without names, of which the UNet's part alone.
    let listed = names.tensors.iter().filter_map(|(name, shape)| {
        let words: Vec<&str> = name.split(':').collect();
        let number = 2 * words[1].parse::<usize>().unwrap() + usize::from(words[2] == "down");
        (words[0] == "unet").then(|| (number.to_string(), shape.clone()))
    });
    let listed = Names { tensors: listed.collect(), metadata: BTreeMap::new() };
    let list = LoraFile::read(&listed).unwrap();
    let names_of = |lora: &LoraFile| -> Vec<String> {
        let unet = lora.layers.iter().filter(|layer| layer.component == LoraComponent::UNet);
        unet.map(|layer| layer.name.clone()).collect()
    };
    assert_eq!((list.layout, names_of(&list)), (LoraLayout::CloneofsimoList, names_of(&lora)));
}
