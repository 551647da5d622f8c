//! How the tensors of a model are called in diffusers' layout and in the original one: one table for both directions.
//!
//! A model's structure (channels, blocks, depths) makes its table; each line of the functions that make it is read in either
//! direction.

mod clip;
mod controlnet;
mod unet;
mod vae;

pub use clip::{ClipText, TextLayout};
pub use controlnet::ControlNet;
pub use unet::{MidBlock, UNet};
pub use vae::Vae;

/// How the values of one tensor in the original layout become those of its counterparts in diffusers' layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The same values in the same order; the shapes may differ by axes of length one.
    Same,
    /// A matrix that is stored the other way round.
    Transposed,
    /// Equal parts along the first axis, one for each counterpart.
    Fused,
}

/// A tensor's name and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name, without the prefix of the model.
    pub name: String,
    /// The lengths of the axes, outermost first.
    pub shape: Vec<usize>,
}

/// One tensor of the original layout with what it is in diffusers' layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// In the original layout.
    pub original: Named,
    /// In diffusers' layout: one tensor, or the parts of a fused one.
    pub diffusers: Vec<Named>,
    /// How their values agree.
    pub relation: Relation,
}

/// What a model is, by its structure alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Structure {
    /// A denoising UNet with text conditioning.
    UNet(UNet),
    /// A ControlNet.
    ControlNet(ControlNet),
    /// The autoencoder between pictures and latents.
    Vae(Vae),
    /// A CLIP text encoder.
    ClipText(ClipText),
}

impl Structure {
    /// All tensors of the model, each once, by its names in both layouts.
    pub fn table(&self) -> Vec<Row> {
        let mut table = Table::default();
        match self {
            Self::UNet(unet) => unet.rows(&mut table.root()),
            Self::ControlNet(controlnet) => controlnet.rows(&mut table.root()),
            Self::Vae(vae) => vae.rows(&mut table.root()),
            Self::ClipText(clip) => clip.rows(&mut table.root()),
        }
        table.rows
    }

    /// Whether there are more layers than any model has, so that a table of them would only fill memory: names and configs can
    /// claim any number.
    pub(crate) fn is_absurd(&self) -> bool {
        const MOST_LAYERS: usize = 4096;
        let layers = match self {
            Self::UNet(unet) => unet.layers(),
            Self::ControlNet(net) => net.encoder.layers() + net.conditioning_embedding_out_channels.len(),
            Self::Vae(vae) => vae.block_out_channels.len().saturating_mul(vae.layers_per_block),
            Self::ClipText(clip) => clip.num_hidden_layers,
        };
        layers > MOST_LAYERS
    }

    /// What it is called in messages.
    pub fn label(&self) -> &'static str {
        match self {
            Self::UNet(_) => "UNet",
            Self::ControlNet(_) => "ControlNet",
            Self::Vae(_) => "VAE",
            Self::ClipText(_) => "text encoder",
        }
    }
}

/// The rows of a table while it is being made.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    fn root(&mut self) -> Scope<'_> {
        Scope { rows: &mut self.rows, diffusers: String::new(), original: String::new() }
    }
}

/// A module of a model: what is added goes below its two names.
///
/// In all methods `diffusers` and `original` are the names of the same part in the two layouts.
pub(crate) struct Scope<'t> {
    rows: &'t mut Vec<Row>,
    diffusers: String,
    original: String,
}

impl Scope<'_> {
    /// The module below this one.
    pub(crate) fn at(&mut self, diffusers: &str, original: &str) -> Scope<'_> {
        let (diffusers, original) = (self.diffusers_name(diffusers), self.original_name(original));
        Scope { rows: self.rows, diffusers, original }
    }

    /// A layer with weight and bias.
    pub(crate) fn linear(&mut self, diffusers: &str, original: &str, from: usize, to: usize) {
        self.linear_without_bias(diffusers, original, from, to);
        self.vector(&format!("{diffusers}.bias"), &format!("{original}.bias"), to);
    }

    pub(crate) fn linear_without_bias(&mut self, diffusers: &str, original: &str, from: usize, to: usize) {
        self.same(&format!("{diffusers}.weight"), &format!("{original}.weight"), &[to, from]);
    }

    /// A convolution with a square kernel, weight and bias.
    pub(crate) fn conv(&mut self, diffusers: &str, original: &str, from: usize, to: usize, kernel: usize) {
        self.same(&format!("{diffusers}.weight"), &format!("{original}.weight"), &[to, from, kernel, kernel]);
        self.vector(&format!("{diffusers}.bias"), &format!("{original}.bias"), to);
    }

    /// A linear layer in diffusers that is a convolution with a kernel of one pixel in the original.
    pub(crate) fn linear_from_conv(&mut self, diffusers: &str, original: &str, from: usize, to: usize) {
        let weight = format!("{diffusers}.weight");
        self.push(&format!("{original}.weight"), &[to, from, 1, 1], &[&weight], &[to, from], Relation::Same);
        self.vector(&format!("{diffusers}.bias"), &format!("{original}.bias"), to);
    }

    /// A normalization with weight and bias.
    pub(crate) fn norm(&mut self, diffusers: &str, original: &str, channels: usize) {
        self.vector(&format!("{diffusers}.weight"), &format!("{original}.weight"), channels);
        self.vector(&format!("{diffusers}.bias"), &format!("{original}.bias"), channels);
    }

    pub(crate) fn vector(&mut self, diffusers: &str, original: &str, length: usize) {
        self.same(diffusers, original, &[length]);
    }

    /// A tensor that is the same in both layouts.
    pub(crate) fn same(&mut self, diffusers: &str, original: &str, shape: &[usize]) {
        self.push(original, shape, &[diffusers], shape, Relation::Same);
    }

    /// A matrix, `shape` in diffusers' layout.
    pub(crate) fn transposed(&mut self, diffusers: &str, original: &str, shape: [usize; 2]) {
        self.push(original, &[shape[1], shape[0]], &[diffusers], &shape, Relation::Transposed);
    }

    /// Tensors of the shape `part` that are one in the original layout, stacked along the first axis.
    pub(crate) fn fused(&mut self, diffusers: &[&str], original: &str, part: &[usize]) {
        let mut whole = part.to_vec();
        if let Some(first) = whole.first_mut() {
            *first = first.saturating_mul(diffusers.len());
        }
        self.push(original, &whole, diffusers, part, Relation::Fused);
    }

    fn push(
        &mut self,
        original: &str,
        original_shape: &[usize],
        diffusers: &[&str],
        diffusers_shape: &[usize],
        relation: Relation,
    ) {
        let original = Named { name: self.original_name(original), shape: original_shape.to_vec() };
        let diffusers = diffusers
            .iter()
            .map(|name| Named { name: self.diffusers_name(name), shape: diffusers_shape.to_vec() })
            .collect();
        self.rows.push(Row { original, diffusers, relation });
    }

    fn diffusers_name(&self, name: &str) -> String {
        join(&self.diffusers, name)
    }

    fn original_name(&self, name: &str) -> String {
        join(&self.original, name)
    }
}

fn join(scope: &str, name: &str) -> String {
    match (scope, name) {
        ("", name) => name.to_string(),
        (scope, "") => scope.to_string(),
        (scope, name) => format!("{scope}.{name}"),
    }
}
