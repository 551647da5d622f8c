use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Deserialize;

use crate::python::{self, Python};
use crate::worker::{Cost, Worker};
use crate::workspace;

/// How far one UNet forward or one VAE decode may be from the reference's, relative to the largest value.
const MODEL_BOUND: f64 = 1e-3;
/// How far a pixel of a whole picture may be from the reference's, of 255.
const PIXEL_BOUND: f64 = 2.0;

#[derive(Args)]
pub(crate) struct ParityArguments {
    /// Stable Diffusion 1.5 at full size with random weights (4 GB, made once): one UNet forward, one VAE decode, one picture
    #[arg(long)]
    pub(crate) full: bool,
    /// The same in bfloat16: how far each side's results are from its own in float32
    #[arg(long, conflicts_with = "full")]
    pub(crate) half: bool,
    /// Threads of each side
    #[arg(long, default_value_t = 2)]
    pub(crate) threads: usize,
    /// Denoising steps of the picture; 0 leaves it out
    #[arg(long, default_value_t = 2)]
    pub(crate) steps: usize,
}

/// What both sides are asked for: its name in the protocol and the ending of what is written.
struct Work {
    question: &'static str,
    ending: &'static str,
    arguments: String,
    bound: f64,
    unit: &'static str,
}

/// Both sides with their costs, and how far apart their results are.
struct Comparison {
    reference: Cost,
    ours: Cost,
    difference: f64,
}

/// Compares one run of each model, and a whole picture, with the reference library's.
pub(crate) fn parity(arguments: &ParityArguments) -> Result<()> {
    let sides = Sides::prepare(arguments.threads)?;
    let mut works = vec![Work::model("unet"), Work::model("vae")];
    if arguments.steps > 0 {
        works.push(Work::picture(arguments.steps));
    }
    let mut far_off = Vec::new();
    for work in &works {
        let comparison = sides.compare(work)?;
        comparison.print_each(work);
        println!("  difference   {:.2e}{} (at most {})", comparison.difference, work.unit, work.bound);
        // Not the negation of "within", so that a NaN fails.
        if !matches!(comparison.difference.partial_cmp(&work.bound), Some(order) if order.is_le()) {
            far_off.push(work.question);
        }
    }
    ensure!(far_off.is_empty(), "too far from the reference: {}", far_off.join(", "));
    Ok(())
}

impl Work {
    fn model(question: &'static str) -> Self {
        let unit = " of the largest value";
        Self { question, ending: "safetensors", arguments: String::new(), bound: MODEL_BOUND, unit }
    }

    fn picture(steps: usize) -> Self {
        let (arguments, unit) = (format!("\t{steps}"), " of 255");
        Self { question: "picture", ending: "png", arguments, bound: PIXEL_BOUND, unit }
    }
}

/// The two programs and the model folder that they share.
pub(crate) struct Sides {
    python: Python,
    ours: PathBuf,
    folder: PathBuf,
    threads: usize,
}

impl Sides {
    pub(crate) fn prepare(threads: usize) -> Result<Self> {
        let python = Python::find_or_install()?;
        let folder = full_size_folder(&python)?;
        Ok(Self { ours: build_example("full_size")?, python, folder, threads })
    }

    /// The folder for what both sides write.
    pub(crate) fn outputs(&self) -> &Path {
        self.folder.parent().unwrap_or(&self.folder)
    }

    fn reference_command(&self) -> Command {
        let mut command = reference_script(&self.python);
        command.env("OMP_NUM_THREADS", self.threads.to_string());
        command
    }

    pub(crate) fn start_reference(&self) -> Result<Worker> {
        let mut command = self.reference_command();
        command.arg("serve").arg(&self.folder).arg(self.threads.to_string());
        Worker::start("the reference", &mut command)
    }

    pub(crate) fn start_ours(&self) -> Result<Worker> {
        let mut command = Command::new(&self.ours);
        command.arg(&self.folder).env("RAYON_NUM_THREADS", self.threads.to_string());
        Worker::start("this project", &mut command)
    }

    /// Asks both sides in turn, each in a process of its own that has done nothing else.
    fn compare(&self, work: &Work) -> Result<Comparison> {
        let (mut reference, mut ours) = (self.start_reference()?, self.start_ours()?);

        let output = |side: &str| self.outputs().join(format!("{}.{side}.{}", work.question, work.ending));
        let (expected, actual) = (output("reference"), output("ours"));
        let question = |path: &Path| format!("{}\t{}{}", work.question, path.display(), work.arguments);
        let (reference, our) = (reference.ask(&question(&expected))?, ours.ask(&question(&actual))?);
        #[derive(Deserialize)]
        struct Answer {
            difference: f64,
        }
        let question = format!("compare\t{}\t{}", actual.display(), expected.display());
        let Answer { difference } = ours.ask(&question)?;
        Ok(Comparison { reference, ours: our, difference })
    }
}

impl Comparison {
    fn print_each(&self, work: &Work) {
        println!("{}", work.question);
        for (side, cost) in [("diffusers", &self.reference), ("ours", &self.ours)] {
            println!("  {side:<12} {:.2} s, peak {:.2} GB", cost.seconds, cost.peak_bytes as f64 / 1e9);
        }
    }
}

/// A Stable Diffusion 1.5 of full size with random weights in float32, made where it is not there yet.
pub(crate) fn full_size_folder(python: &Python) -> Result<PathBuf> {
    let folder = workspace::target().join("full-size/stable-diffusion-1.5");
    if !folder.exists() {
        fs::create_dir_all(folder.parent().unwrap_or(&folder))?;
        eprintln!("making {} (4 GB, once)", folder.display());
        python::run(reference_script(python).arg("make").arg(&folder))?;
    }
    Ok(folder)
}

/// The same in float16, as most models are shared.
pub(crate) fn half_size_folder(python: &Python) -> Result<PathBuf> {
    let full = full_size_folder(python)?;
    let folder = full.with_file_name("stable-diffusion-1.5-fp16");
    if !folder.exists() {
        eprintln!("making {} (2 GB, once)", folder.display());
        python::run(reference_script(python).arg("halve").arg(&full).arg(&folder))?;
    }
    Ok(folder)
}

fn reference_script(python: &Python) -> Command {
    python.script(&workspace::root().join("xtask/python/full_size.py"))
}

/// Builds an example, optimised, and says where it is.
pub(crate) fn build_example(example: &str) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    // With the features of the whole workspace, as tests are built: else the dependencies would be built once more.
    command.args(["build", "--release", "--workspace", "--example", example]);
    python::run(command.current_dir(workspace::root()))?;
    let name = format!("{example}{}", std::env::consts::EXE_SUFFIX);
    let program = workspace::target().join("release/examples").join(name);
    if !program.exists() {
        bail!("cargo did not write {}", program.display());
    }
    program.canonicalize().with_context(|| program.display().to_string())
}
