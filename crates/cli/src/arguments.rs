use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::device::DeviceChoice;
use crate::scheduler_names;

/// Paint with diffusion models.
///
/// Exit status: 0 done; 1 it could not be done, one line on standard error says why; 2 the command line was wrong.
#[derive(Debug, Parser)]
#[command(name = "diffuse", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Generate(Box<GenerateArguments>),
    Inspect(InspectArguments),
}

/// Paint pictures from a text
///
/// The same model, prompt, settings and seed give the picture that the Python library diffusers paints. A PNG carries its
/// parameters in a `parameters` text chunk, in the form that web UIs read; `diffuse inspect out.png` shows them.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("text").required(true).args(["prompt_words", "prompt", "prompts_file"]))]
pub(crate) struct GenerateArguments {
    /// What to paint
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt_words: Option<String>,
    /// What to paint, as a flag
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: Option<String>,
    /// Take the prompts from a file, one a line; empty lines are left out
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts_file: Option<PathBuf>,
    /// A folder in diffusers' layout, or the id of a model on the hub [default: a small model that travels with the program]
    #[arg(long, value_name = "PATH_OR_ID")]
    pub(crate) model: Option<OsString>,
    /// Take the weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME")]
    pub(crate) variant: Option<String>,
    /// What the picture should not show
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) negative_prompt: Option<String>,
    /// Denoising steps
    #[arg(long, value_name = "N", default_value_t = 50, allow_negative_numbers = true)]
    pub(crate) steps: usize,
    /// How closely the prompt is followed; 1 or less turns guidance off
    #[arg(long, value_name = "X", default_value_t = 7.5, allow_hyphen_values = true)]
    pub(crate) guidance_scale: f64,
    /// How far overexposure by guidance is undone, 0 to 1
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true)]
    pub(crate) guidance_rescale: f64,
    /// DDIM's eta: 0 adds no noise on the way, 1 as much as DDPM; other schedulers ignore it
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true)]
    pub(crate) eta: f64,
    /// Picture i is drawn with the seed N+i [default: a random one, which is printed]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) seed: Option<u64>,
    /// Width in pixels [default: the model's own]
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    pub(crate) width: Option<usize>,
    /// Height in pixels [default: the model's own]
    #[arg(long, value_name = "H", allow_negative_numbers = true)]
    pub(crate) height: Option<usize>,
    /// Pictures of each prompt
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) num_images: usize,
    /// The sampler, with the model's own noise schedule [default: the model's]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(scheduler_names::names()))]
    pub(crate) scheduler: Option<String>,
    /// How many of the text encoder's last layers are left out
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) clip_skip: Option<usize>,
    /// In what precision to compute; auto is the fastest that the device runs well
    #[arg(long, value_enum, default_value_t = DtypeChoice::Auto)]
    pub(crate) dtype: DtypeChoice,
    /// Where to compute: cpu, cuda, cuda:N or metal [default: the accelerator that the program was built for, else cpu]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<DeviceChoice>,
    /// The picture to write: .png, .jpg or .webp. Several get their index before the ending: out-0.png, out-1.png.
    /// A file that is there is replaced
    #[arg(long, short, value_name = "FILE", default_value = "out.png")]
    pub(crate) output: PathBuf,
}

/// Say what a file or folder is
///
/// A model folder in diffusers' layout, a .safetensors file, or a PNG with its parameters.
#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// The file or folder
    pub(crate) source: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeChoice {
    F32,
    Bf16,
    F16,
    Auto,
}
