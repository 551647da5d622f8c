use candle_diffusers_loaders::Repository;

/// The name of the model in messages and in a picture's parameters.
pub(crate) const NAME: &str = "shapes";

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../assets/shapes/", $path)))),*]
    };
}

/// A folder in diffusers' layout; what it can draw is said in its README.md.
static FILES: &[(&str, &[u8])] = files![
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// The small model that travels with the program.
pub(crate) fn model() -> Repository {
    Repository::embedded(NAME, FILES)
}
