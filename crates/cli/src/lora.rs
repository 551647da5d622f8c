use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;
use candle_diffusers_convert::{
    ComputedLora, ExtractOptions, LoraFile, LoraFormat, Source, WeightedLora, WriteOptions, extract_lora,
    merge_loras, resize_lora,
};
use clap::{Args, Subcommand};

use crate::arguments::{ConvertDtype, LoraFormatChoice, SingleFileArguments};
use crate::progress::Progress;
use crate::scaled_file::ScaledFile;
use crate::terminal;

/// Make LoRA files of others: merge, extract, resize
#[derive(Debug, Args)]
pub(crate) struct LoraArguments {
    #[command(subcommand)]
    command: LoraCommand,
}

#[derive(Debug, Subcommand)]
enum LoraCommand {
    Merge(MergeArguments),
    Extract(ExtractArguments),
    Resize(ResizeArguments),
}

/// Merge several LoRAs into one
///
/// It changes a model as they do together, each as strongly as its scale says. Without --rank nothing is lost, and ranks add up.
#[derive(Debug, Args)]
struct MergeArguments {
    /// The LoRAs, each with a scale (1 where there is none): style.safetensors:0.7
    #[arg(required = true, value_name = "FILE[:SCALE]")]
    files: Vec<OsString>,
    /// The .safetensors file to write (a folder for --lora-format peft)
    destination: PathBuf,
    /// Approximate each layer's sum by one of this rank
    #[arg(long, value_name = "N", value_parser = parse_rank)]
    rank: Option<usize>,
    #[command(flatten)]
    output: OutputArguments,
}

/// Extract a LoRA from the difference of two models
///
/// Each model is a checkpoint in one file or a folder in diffusers' layout; they may be of different layouts.
#[derive(Debug, Args)]
struct ExtractArguments {
    /// The model that the LoRA will be used with
    base: PathBuf,
    /// The model that it should become
    tuned: PathBuf,
    /// The .safetensors file to write (a folder for --lora-format peft)
    destination: PathBuf,
    /// The rank of its layers
    #[arg(long, value_name = "N", value_parser = parse_rank)]
    rank: usize,
    /// The rank of convolutions with kernels larger than one pixel [default: --rank]
    #[arg(long, value_name = "N", value_parser = parse_rank)]
    conv_rank: Option<usize>,
    #[command(flatten)]
    single_file: SingleFileArguments,
    #[command(flatten)]
    output: OutputArguments,
}

/// Bring a LoRA to another rank
///
/// Layers of a lower rank stay as they are. LoHa, LoKr and full differences become plain LoRA layers.
#[derive(Debug, Args)]
struct ResizeArguments {
    /// The LoRA
    source: PathBuf,
    /// The .safetensors file to write (a folder for --lora-format peft)
    destination: PathBuf,
    /// The rank of its layers
    #[arg(long, value_name = "N", value_parser = parse_rank)]
    rank: usize,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Debug, Args)]
struct OutputArguments {
    /// The layout: kohya's, which nearly every program reads, diffusers' or PEFT's
    #[arg(long, value_name = "LAYOUT", default_value = "kohya")]
    lora_format: LoraFormatChoice,
    /// The element type of the weights; keep is single precision, in which they are computed
    #[arg(long, value_name = "TYPE", default_value = "keep")]
    dtype: ConvertDtype,
    /// Replace DESTINATION where it exists
    #[arg(long)]
    overwrite: bool,
}

impl OutputArguments {
    fn write_options(&self) -> WriteOptions {
        WriteOptions { dtype: self.dtype.dtype(), overwrite: self.overwrite, ..WriteOptions::default() }
    }
}

fn parse_rank(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|rank| *rank > 0).ok_or_else(|| "expected a number from 1".to_string())
}

/// `diffuse lora`.
pub(crate) fn run(arguments: &LoraArguments, progress: &Progress) -> Result<()> {
    let (destination, output) = match &arguments.command {
        LoraCommand::Merge(arguments) => (&arguments.destination, &arguments.output),
        LoraCommand::Extract(arguments) => (&arguments.destination, &arguments.output),
        LoraCommand::Resize(arguments) => (&arguments.destination, &arguments.output),
    };
    // Before minutes of work.
    LoraFormat::from(output.lora_format).check_destination(destination, &output.write_options())?;
    let computed = compute(&arguments.command, progress)?;
    write(&computed, destination, output, progress)
}

fn compute(command: &LoraCommand, progress: &Progress) -> Result<ComputedLora> {
    match command {
        LoraCommand::Merge(arguments) => {
            let files = ScaledFile::parse_all(&arguments.files)?;
            let opened =
                files.iter().map(|file| LoraFile::open(&file.path)).collect::<Result<Vec<_>, _>>()?;
            opened.iter().for_each(|(lora, _)| note_all(lora));
            let loras: Vec<WeightedLora<'_>> =
                files.iter().zip(&opened).map(|(file, opened)| weighted(file, opened)).collect();
            let _shown = progress.activity("merging");
            Ok(merge_loras(&loras, arguments.rank)?)
        }
        LoraCommand::Extract(arguments) => {
            let options = ExtractOptions {
                rank: arguments.rank,
                conv_rank: arguments.conv_rank.unwrap_or(arguments.rank),
                read: arguments.single_file.read_options(),
            };
            let _shown = progress.activity("extracting");
            Ok(extract_lora(&arguments.base, &arguments.tuned, &options)?)
        }
        LoraCommand::Resize(arguments) => {
            let (lora, source) = LoraFile::open(&arguments.source)?;
            note_all(&lora);
            let _shown = progress.activity("resizing");
            Ok(resize_lora(&lora, source.as_ref(), arguments.rank)?)
        }
    }
}

fn weighted<'a>(file: &ScaledFile, (lora, source): &'a (LoraFile, Box<dyn Source>)) -> WeightedLora<'a> {
    WeightedLora { lora, source: source.as_ref(), scale: file.scale }
}

/// Says what was assumed of a file.
fn note_all(lora: &LoraFile) {
    lora.notes.iter().for_each(|line| terminal::note(line));
}

fn write(
    lora: &ComputedLora,
    destination: &Path,
    output: &OutputArguments,
    progress: &Progress,
) -> Result<()> {
    let shown = progress.bytes("writing");
    let format: LoraFormat = output.lora_format.into();
    let report = lora.write(destination, format, &output.write_options(), &|written| {
        shown.set_bytes(written.done, written.total)
    })?;
    drop(shown);
    report.lines().iter().for_each(|line| terminal::note(line));
    terminal::note(&format!("wrote {}", destination.display()));
    Ok(())
}
