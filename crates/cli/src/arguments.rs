use std::ffi::OsString;
use std::path::PathBuf;

use candle_diffusers_convert::{Dtype, EmbeddingFormat, Heads, LoraFormat, PredictionType, ReadOptions};
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::control_arguments::ControlArguments;
use crate::device::DeviceChoice;
use crate::lora::LoraArguments;
use crate::scheduler_names;
use crate::start::Margins;
use crate::train::TrainArguments;
use crate::xl_arguments::XlArguments;

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
    Convert(ConvertArguments),
    Inspect(InspectArguments),
    Lora(LoraArguments),
    Train(Box<TrainArguments>),
}

/// What flags of `diffuse generate` are for: its help page is grouped by it.
const SAY: &str = "Say what to paint";
const MODEL: &str = "Choose a model and add to it";
const PICTURE: &str = "Paint from a picture";
const PART: &str = "Paint a part of a picture anew, or more around it";
const STEPS: &str = "Say how to get there";
const OUTPUT: &str = "Say what comes out";
const COMPUTE: &str = "Say where and how to compute";

/// Paint pictures from a text
///
/// The same model, prompt, settings and seed give the picture that the Python library diffusers paints. A PNG carries its
/// parameters in a `parameters` text chunk, in the form that web UIs read; `diffuse inspect out.png` shows them.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("text").args(["prompt_words", "prompt", "prompts_file"]))]
pub(crate) struct GenerateArguments {
    /// What to paint; models that paint without a text (DDPM, DDIM, unconditional latent diffusion) need none
    #[arg(value_name = "PROMPT", required_unless_present_any = ["prompt", "prompts_file", "model"])]
    pub(crate) prompt_words: Option<String>,
    /// What to paint, as a flag
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = SAY)]
    pub(crate) prompt: Option<String>,
    /// Take the prompts from a file, one a line; empty lines are left out
    #[arg(long, value_name = "FILE", help_heading = SAY)]
    pub(crate) prompts_file: Option<PathBuf>,
    /// What the picture should not show
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = SAY)]
    pub(crate) negative_prompt: Option<String>,
    /// How closely the prompt is followed; 1 or less turns guidance off [default: 7.5, or 5 for Stable Diffusion XL]
    #[arg(long, value_name = "X", allow_hyphen_values = true, help_heading = SAY)]
    pub(crate) guidance_scale: Option<f64>,
    /// How far overexposure by guidance is undone, 0 to 1
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true, help_heading = SAY)]
    pub(crate) guidance_rescale: f64,
    /// How many of the text encoder's last layers are left out
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = SAY)]
    pub(crate) clip_skip: Option<usize>,
    /// Which of its classes a model paints that knows classes by their numbers
    #[arg(long, value_name = "N", help_heading = SAY)]
    pub(crate) class_label: Option<u32>,
    /// A folder in diffusers' layout, a single-file checkpoint (.safetensors, .ckpt), or the id of a model on the hub [default: a
    /// small model that travels with the program]
    #[arg(long, value_name = "PATH_OR_ID", help_heading = MODEL)]
    pub(crate) model: Option<OsString>,
    #[command(flatten, next_help_heading = MODEL)]
    pub(crate) single_file: SingleFileArguments,
    /// Take the weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME", help_heading = MODEL)]
    pub(crate) variant: Option<String>,
    /// A LoRA of any layout (also LoCon, LoHa, LoKr, DoRA), with its strength where that is not 1; may be repeated
    #[arg(long, value_name = "FILE[:SCALE]", help_heading = MODEL)]
    pub(crate) lora: Vec<OsString>,
    /// Leave out parts of a LoRA that match no layer of the model
    #[arg(long, requires = "lora", help_heading = MODEL)]
    pub(crate) allow_unmatched: bool,
    /// A textual inversion embedding, for the prompt to use by its token; may be repeated [default token: what the file says,
    /// else its name]
    #[arg(long = "embedding", value_name = "FILE[:TOKEN]", help_heading = MODEL)]
    pub(crate) embeddings: Vec<OsString>,
    /// Do not check pictures with the model's safety checker, nor load or fetch it
    #[arg(long, help_heading = MODEL)]
    pub(crate) no_safety_checker: bool,
    /// Paint from this picture (PNG, JPEG or WebP) instead of from noise alone; without --width and --height the result has its size
    #[arg(long, value_name = "FILE", help_heading = PICTURE)]
    pub(crate) init_image: Option<PathBuf>,
    /// How far the result may be from --init-image: 0 is the picture itself, at 1 little of it is left [default: 0.8; with --mask 1,
    /// or 0.9999 for Stable Diffusion XL]
    #[arg(long, value_name = "X", requires = "init_image", allow_hyphen_values = true, help_heading = PICTURE)]
    pub(crate) strength: Option<f64>,
    /// With a model that edits pictures by instructions (InstructPix2Pix; the prompt says what to change): how closely --init-image is
    /// followed; less than 1 turns guidance off [default: 1.5]
    #[arg(long, value_name = "X", requires = "init_image", allow_hyphen_values = true, help_heading = PICTURE)]
    pub(crate) image_guidance_scale: Option<f64>,
    /// Paint only a part of --init-image anew (inpainting): what is white in this picture, which has the same size
    #[arg(long, value_name = "FILE", requires = "init_image", help_heading = PART)]
    pub(crate) mask: Option<PathBuf>,
    /// Give the mask soft edges, so many pixels wide: there the result passes into --init-image
    #[arg(
        long,
        value_name = "PIXELS",
        default_value_t = 0.0,
        requires = "init_image",
        allow_hyphen_values = true, help_heading = PART)]
    pub(crate) mask_blur: f32,
    /// Paint the mask's part in the model's full size, with so many pixels around it, and put it back
    #[arg(long, value_name = "PIXELS", requires = "init_image", allow_negative_numbers = true, help_heading = PART)]
    pub(crate) padding_mask_crop: Option<u32>,
    /// Make --init-image larger, by pixels at its left, top, right and bottom, and paint what is new
    #[arg(long, value_name = "L,T,R,B", requires = "init_image", allow_hyphen_values = true, help_heading = PART)]
    pub(crate) outpaint: Option<Margins>,
    /// With --mask or --outpaint: what is black in the mask comes back exactly (the default)
    #[arg(long, overrides_with = "no_keep_unmasked", help_heading = PART)]
    pub(crate) keep_unmasked: bool,
    /// With --mask or --outpaint: the whole picture comes from the model, which changes it a little everywhere
    #[arg(long, help_heading = PART)]
    pub(crate) no_keep_unmasked: bool,
    #[command(flatten)]
    pub(crate) control: ControlArguments,
    #[command(flatten)]
    pub(crate) xl: XlArguments,
    /// Denoising steps [default: 50, or 1000 for models of DDPM]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = STEPS)]
    pub(crate) steps: Option<usize>,
    /// The sampler, with the model's own noise schedule [default: the model's]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(scheduler_names::names()), help_heading = STEPS)]
    pub(crate) scheduler: Option<String>,
    /// DDIM's eta: 0 adds no noise on the way, 1 as much as DDPM; other schedulers ignore it
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true, help_heading = STEPS)]
    pub(crate) eta: f64,
    /// Picture i is drawn with the seed N+i [default: a random one, which is printed]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = STEPS)]
    pub(crate) seed: Option<u64>,
    /// Width in pixels [default: the model's own]
    #[arg(long, value_name = "W", allow_negative_numbers = true, help_heading = OUTPUT)]
    pub(crate) width: Option<usize>,
    /// Height in pixels [default: the model's own]
    #[arg(long, value_name = "H", allow_negative_numbers = true, help_heading = OUTPUT)]
    pub(crate) height: Option<usize>,
    /// Pictures of each prompt
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, help_heading = OUTPUT)]
    pub(crate) num_images: usize,
    /// The picture to write: .png, .jpg or .webp. Several get their index before the ending: out-0.png, out-1.png.
    /// A file that is there is replaced
    #[arg(long, short, value_name = "FILE", default_value = "out.png", help_heading = OUTPUT)]
    pub(crate) output: PathBuf,
    /// Write all pictures as one, side by side: those of a prompt in a row
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) grid: bool,
    /// In what precision to compute; auto is the fastest that the device runs well
    #[arg(long, value_enum, default_value_t = DtypeChoice::Auto, help_heading = COMPUTE)]
    pub(crate) dtype: DtypeChoice,
    /// Where to compute: cpu, cuda, cuda:N or metal [default: the accelerator that the program was built for, else cpu]
    #[arg(long, value_name = "DEVICE", help_heading = COMPUTE)]
    pub(crate) device: Option<DeviceChoice>,
}

impl GenerateArguments {
    pub(crate) fn has_prompt(&self) -> bool {
        self.prompt_words.is_some() || self.prompt.is_some() || self.prompts_file.is_some()
    }

    /// Whether only a part of a picture is painted.
    pub(crate) fn is_inpainting(&self) -> bool {
        self.mask.is_some() || self.outpaint.is_some()
    }

    /// Denoising steps of models that paint from a text.
    pub(crate) fn text_steps(&self) -> usize {
        self.steps.unwrap_or(50)
    }
}

/// Convert checkpoints between one file and a folder in diffusers' layout, and LoRA files between layouts
///
/// What SOURCE is, is found out from its tensors; what tensors cannot tell is taken from the known families and printed. Nothing
/// is fetched. DESTINATION appears whole or not at all.
#[derive(Debug, Args)]
pub(crate) struct ConvertArguments {
    /// A .safetensors, .ckpt, .pt or .bin checkpoint, a folder in diffusers' layout, or a LoRA file of any layout
    pub(crate) source: PathBuf,
    /// A folder, or a .safetensors file in the original single-file layout; for a LoRA a .safetensors file
    pub(crate) destination: PathBuf,
    /// The element type of the weights
    #[arg(long, value_name = "TYPE", default_value = "keep")]
    pub(crate) dtype: ConvertDtype,
    #[command(flatten)]
    pub(crate) single_file: SingleFileArguments,
    /// The scheduler, by the names of `generate`, with the model's own noise schedule [default: as the family usually has]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(scheduler_names::names()))]
    pub(crate) scheduler: Option<String>,
    /// File names carry this variant, such as fp16; a source folder is read by it
    #[arg(long, value_name = "NAME")]
    pub(crate) variant: Option<String>,
    /// Split larger weights, with an index: 5GB, 500MB, 2GiB, or a number of bytes
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size)]
    pub(crate) max_shard_size: u64,
    /// The layout of a LoRA: kohya's, which nearly every program reads, diffusers', or PEFT's, where DESTINATION may be a folder
    /// [default: kohya]
    #[arg(long, value_name = "LAYOUT")]
    pub(crate) lora_format: Option<LoraFormatChoice>,
    /// The layout of a textual inversion embedding; those of Stable Diffusion XL have clip_l and clip_g in both
    /// [default: diffusers]
    #[arg(long, value_name = "LAYOUT")]
    pub(crate) embedding_format: Option<EmbeddingFormatChoice>,
    /// Replace DESTINATION where it exists
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Wait until all is on the disk before DESTINATION appears, so that a loss of power leaves it whole or absent as well
    #[arg(long)]
    pub(crate) sync: bool,
}

/// How a checkpoint in one file is understood.
#[derive(Debug, Args)]
pub(crate) struct SingleFileArguments {
    /// What a checkpoint in one file predicts [default: found out, else as the family usually does]
    #[arg(long, value_name = "KIND")]
    pub(crate) prediction_type: Option<PredictionChoice>,
    /// Attention heads at every level of its UNet or ControlNet [default: as the family usually has]
    #[arg(long, value_name = "N", conflicts_with = "attention_head_dim")]
    pub(crate) attention_heads: Option<usize>,
    /// Width of the attention heads of its UNet or ControlNet, so that wider levels have more of them
    #[arg(long, value_name = "N")]
    pub(crate) attention_head_dim: Option<usize>,
    /// Take the averaged (EMA) weights where a checkpoint in one file has both
    #[arg(long)]
    pub(crate) use_ema: bool,
    /// Leave out tensors that stand among a model's own and have no place in it
    #[arg(long)]
    pub(crate) allow_unknown: bool,
}

impl SingleFileArguments {
    pub(crate) fn read_options(&self) -> ReadOptions {
        let heads = self.attention_heads.map(Heads::Count);
        ReadOptions {
            use_ema: self.use_ema,
            prediction_type: self.prediction_type.map(Into::into),
            heads: heads.or(self.attention_head_dim.map(Heads::Width)),
            allow_unknown: self.allow_unknown,
        }
    }

    /// The first of the flags that is given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--prediction-type", self.prediction_type.is_some()),
            ("--attention-heads", self.attention_heads.is_some()),
            ("--attention-head-dim", self.attention_head_dim.is_some()),
            ("--use-ema", self.use_ema),
            ("--allow-unknown", self.allow_unknown),
        ];
        flags.iter().find(|(_, is_given)| *is_given).map(|(flag, _)| *flag)
    }
}

/// Say what a file or folder is
///
/// A model folder in diffusers' layout, a checkpoint or other file of tensors (.safetensors, .ckpt, .pt, .bin), or a PNG with its
/// parameters. Of tensors only names, shapes and metadata are read, so that a file of any size answers at once.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConvertDtype {
    F32,
    Bf16,
    F16,
    Keep,
}

impl ConvertDtype {
    /// The element type; `None` for that of the source.
    pub(crate) fn dtype(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::Bf16 => Some(Dtype::BF16),
            Self::F16 => Some(Dtype::F16),
            Self::Keep => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PredictionChoice {
    #[value(name = "epsilon")]
    Epsilon,
    #[value(name = "v_prediction")]
    VPrediction,
}

impl From<PredictionChoice> for PredictionType {
    fn from(choice: PredictionChoice) -> Self {
        match choice {
            PredictionChoice::Epsilon => Self::Epsilon,
            PredictionChoice::VPrediction => Self::VPrediction,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoraFormatChoice {
    Kohya,
    Peft,
    Diffusers,
}

impl From<LoraFormatChoice> for LoraFormat {
    fn from(choice: LoraFormatChoice) -> Self {
        match choice {
            LoraFormatChoice::Kohya => Self::Kohya,
            LoraFormatChoice::Peft => Self::Peft,
            LoraFormatChoice::Diffusers => Self::Diffusers,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EmbeddingFormatChoice {
    /// A tensor called as the token
    Diffusers,
    /// One tensor emb_params
    #[value(name = "webui")]
    WebUi,
}

impl From<EmbeddingFormatChoice> for EmbeddingFormat {
    fn from(choice: EmbeddingFormatChoice) -> Self {
        match choice {
            EmbeddingFormatChoice::Diffusers => Self::Diffusers,
            EmbeddingFormatChoice::WebUi => Self::WebUi,
        }
    }
}

/// A number of bytes, with or without a unit.
fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 7] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let unit = UNITS.iter().find(|(name, _)| text.to_lowercase().ends_with(&name.to_lowercase()));
    let (number, factor) =
        unit.map_or((text, 1), |(name, factor)| (&text[..text.len() - name.len()], *factor));
    let bytes = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "expected a size such as 5GB, 500MB or 2GiB".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("5GB", 5_000_000_000), ("2GiB", 2 << 30), ("500 mb", 500_000_000), ("12", 12), ("7B", 7)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "-1GB", "0", "1.5GB", "99999999999999GB", "5 bananas", "\u{e9}"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
