//! Models, whole pictures and kernels beside the same in other programs.

mod kernels;
mod start;
mod table;
mod train;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::full_size::{build_example, half_size_folder};
use crate::python::Python;
use crate::statistics::median;
use crate::worker::{Cost, Worker};
use crate::workspace;
use table::Table;

/// What is timed: names of `xtask/bench/models.json`, and what is of a whole pipeline.
const NAMES: [&str; 11] = [
    "sd15_unet_step",
    "sd15_lora_train_step",
    "sd15_vae_decode",
    "sd15_vae_encode",
    "sd15_text_encoder",
    PICTURE,
    START,
    "sdxl_unet_step",
    "sdxl_vae_decode",
    "sdxl_text_encoder_2",
    EMBEDDED,
];
/// From a prompt to pixels of 512x512 in 4 steps; without loading.
const PICTURE: &str = "sd15_picture";
/// From the start of the program to the first step of a picture, of a folder in float16.
const START: &str = "sd15_start";
/// The whole program with the small model inside: one picture in 20 steps.
const EMBEDDED: &str = "embedded_picture";
const DTYPES: [&str; 2] = ["f32", "bf16"];
/// In float32 the models of SDXL of two programs do not fit into 24 GB at once; in bfloat16 those of three do not, so that peers come one after the other.
const TOO_LARGE: [(&str, &str); 1] = [("sdxl_unet_step", "f32")];
const ONE_PEER_AT_A_TIME: &str = "sdxl_unet_step";
/// Before each turn. The threads of PyTorch's OpenMP look for more work for some 5 ms when they have none, on the cores that the next program is to have. Not for long: after
/// 50 ms without work virtual machines gave all programs half of their speed for a while.
const REST: Duration = Duration::from_millis(10);
/// OpenVINO does not train.
const TRAINING: &str = "_train_step";

#[derive(Args)]
pub(crate) struct BenchArguments {
    /// A Python that has torch and diffusers, and openvino or not; without one only this project is timed
    #[arg(long, value_name = "PYTHON")]
    against: Option<PathBuf>,
    /// Only what has this in its name: sd15_unet_step, sd15_lora_train_step, sd15_vae_decode, sd15_vae_encode, sd15_text_encoder, sd15_picture, sd15_start,
    /// sdxl_unet_step, sdxl_vae_decode, sdxl_text_encoder_2, embedded_picture, kernels, kernels/linear_8192_320_320
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Only this type: f32 or bf16
    #[arg(long, value_name = "TYPE", value_parser = DTYPES)]
    dtype: Option<String>,
    /// Write the table as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each is timed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Threads of each program
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// A line of the table.
#[derive(Serialize)]
struct Row {
    name: String,
    dtype: &'static str,
    ours_s: f64,
    /// Medians by the peer's name.
    peers: serde_json::Map<String, serde_json::Value>,
    /// Ours to the fastest peer.
    ratio: Option<f64>,
    peak_rss_mb: u64,
    /// The peers' peaks by their names.
    peers_peak_rss_mb: serde_json::Map<String, serde_json::Value>,
    /// Of products: how many operations a second, in 10^12, and what part that is of the most that the processor can do in the level's
    /// registers.
    #[serde(skip_serializing_if = "Option::is_none")]
    tflops: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_peak: Option<f64>,
}

/// One program that is timed.
struct Contender {
    name: &'static str,
    /// None of a program that is started anew each time.
    worker: Option<Worker>,
    costs: Vec<Cost>,
}

/// Times this project and the peers in turn, in one run.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<()> {
    let peers = match &arguments.against {
        Some(python) => peers(python)?,
        None => Vec::new(),
    };
    let (mut rows, mut table) = (Vec::new(), Table::new(&peers));
    // After each row, so that what ends a run does not take the rows before with it.
    let mut add = |row: Row| {
        table.print(&row);
        rows.push(row);
        write_json(arguments, &rows)
    };
    for name in NAMES {
        for dtype in DTYPES {
            let is_too_large = !peers.is_empty() && TOO_LARGE.contains(&(name, dtype));
            if !arguments.wants(name, dtype) {
                continue;
            }
            if is_too_large {
                eprintln!(
                    "{name} in {dtype} is left out: the models of all programs do not fit into memory at once"
                );
                continue;
            }
            let row = match name {
                START => start::time(dtype, &peers, arguments),
                EMBEDDED => start::time_embedded(dtype, arguments),
                _ => time(name, dtype, &peers, arguments),
            };
            add(row.with_context(|| format!("{name} in {dtype}"))?)?;
        }
    }
    for dtype in DTYPES {
        kernels::time(dtype, &peers, arguments, &mut add)
            .with_context(|| format!("the kernels in {dtype}"))?;
    }
    ensure!(!rows.is_empty(), "nothing was timed of {:?}", arguments.only.as_deref().unwrap_or_default());
    Ok(())
}

/// The table as JSON, where it is asked for.
fn write_json(arguments: &BenchArguments, rows: &[Row]) -> Result<()> {
    let Some(path) = &arguments.json else { return Ok(()) };
    fs::write(path, serde_json::to_string_pretty(rows)? + "\n").with_context(|| path.display().to_string())
}

/// Times whole steps of training.
pub(crate) fn bench_training(arguments: &BenchArguments) -> Result<()> {
    train::bench(arguments)
}

impl BenchArguments {
    fn wants(&self, name: &str, dtype: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name.contains(only))
            && self.dtype.as_deref().is_none_or(|only| only == dtype)
    }
}

/// A program to be compared with, and the Python that runs it.
struct Peer {
    name: &'static str,
    python: Python,
}

/// The peers that a Python has.
fn peers(python: &Path) -> Result<Vec<Peer>> {
    let has = |module: &str| -> Result<bool> {
        let status = Command::new(python)
            .args([
                "-c",
                &format!(
                    "import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
                ),
            ])
            .status()
            .with_context(|| format!("could not run {}", python.display()))?;
        Ok(status.success())
    };
    if !has("torch")? || !has("diffusers")? {
        bail!("{} has no torch and diffusers", python.display());
    }
    let mut peers = vec![Peer { name: "diffusers", python: Python::at(python) }];
    if has("openvino")? {
        peers.push(Peer { name: "openvino", python: Python::at(python) });
    }
    Ok(peers)
}

fn time(name: &'static str, dtype: &'static str, peers: &[Peer], arguments: &BenchArguments) -> Result<Row> {
    let models = workspace::root().join("xtask/bench/models.json");
    let picture = match name {
        PICTURE => Some(half_size_folder(&python(peers)?)?),
        _ => None,
    };
    let what = if picture.is_some() { "picture" } else { name };
    let folder = picture.as_ref();
    let is_left_out = name.ends_with(TRAINING) || picture.is_some();
    let peers: Vec<&Peer> = peers.iter().filter(|peer| peer.name != "openvino" || !is_left_out).collect();
    let at_a_time = if name == ONE_PEER_AT_A_TIME { 1 } else { peers.len().max(1) };
    // A peer may need more memory to begin than to run: it begins before ours does.
    let begin = |peers: &[&Peer]| -> Result<Vec<Contender>> {
        let peers = peers.iter().map(|peer| peer.start(what, dtype, folder.map(PathBuf::as_path), arguments));
        peers.collect()
    };
    let mut groups = peers.rchunks(at_a_time);
    let mut others = begin(groups.next().unwrap_or_default())?;
    let mut contenders = vec![ours("bench", folder.unwrap_or(&models), &[what, dtype], arguments)?];
    loop {
        for _ in 0..arguments.repetitions {
            for contender in contenders.iter_mut().take(1).chain(&mut others) {
                contender.rest();
                contender.ask("run")?;
            }
        }
        others.iter_mut().for_each(|contender| contender.worker = None);
        contenders.append(&mut others);
        match groups.next() {
            Some(group) => others = begin(group)?,
            None => return Row::new(name, dtype, &contenders),
        }
    }
}

/// Starts an example of this project.
fn ours(example: &str, file: &Path, rest: &[&str], arguments: &BenchArguments) -> Result<Contender> {
    let mut command = Command::new(build_example(example)?);
    command.arg(file).args(rest).env("RAYON_NUM_THREADS", arguments.threads.to_string());
    Contender::start("ours", &mut command)
}

/// A Python that can make the folder of a pipeline.
fn python(peers: &[Peer]) -> Result<Python> {
    match peers {
        [peer, ..] => Ok(peer.python.clone()),
        [] => Python::find_or_install(),
    }
}

impl Peer {
    fn command(&self, what: &str, dtype: &str, folder: Option<&Path>, arguments: &BenchArguments) -> Command {
        let threads = arguments.threads.to_string();
        let mut command = self.python.script(&workspace::root().join("xtask/python/bench.py"));
        command.args([self.name, what, dtype, &threads]).args(folder).env("OMP_NUM_THREADS", &threads);
        command
    }

    fn start(
        &self,
        what: &str,
        dtype: &str,
        folder: Option<&Path>,
        arguments: &BenchArguments,
    ) -> Result<Contender> {
        Contender::start(self.name, &mut self.command(what, dtype, folder, arguments))
    }
}

impl Row {
    /// Of ours, which is the first, and the others.
    fn new(name: &str, dtype: &'static str, contenders: &[Contender]) -> Result<Self> {
        let peak = |contender: &Contender| {
            contender.costs.iter().map(|cost| cost.peak_bytes).max().unwrap_or(0) / 1_000_000
        };
        let [ours, others @ ..] = contenders else { bail!("nobody was timed") };
        let fastest = others.iter().map(Contender::median).reduce(f64::min);
        Ok(Self {
            name: name.to_string(),
            dtype,
            ours_s: ours.median(),
            peers: others.iter().map(|peer| (peer.name.to_string(), peer.median().into())).collect(),
            ratio: fastest.map(|fastest| ours.median() / fastest),
            peak_rss_mb: peak(ours),
            peers_peak_rss_mb: others.iter().map(|peer| (peer.name.to_string(), peak(peer).into())).collect(),
            tflops: None,
            share_of_peak: None,
        })
    }
}

impl Contender {
    fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        #[derive(Deserialize)]
        struct Ready {
            ready: bool,
        }
        let mut worker = Worker::start(name, command)?;
        let Ready { ready } = worker.answer("start")?;
        ensure!(ready, "{name} is not ready");
        Ok(Self { name, worker: Some(worker), costs: Vec::new() })
    }

    /// Has it wait until the others' threads sleep.
    fn rest(&self) {
        thread::sleep(REST);
    }

    /// Lets it work once.
    fn ask(&mut self, what: &str) -> Result<()> {
        let Some(worker) = &mut self.worker else { bail!("{} answers no questions", self.name) };
        self.costs.push(worker.ask(what)?);
        Ok(())
    }

    fn median(&self) -> f64 {
        median(self.costs.iter().map(|cost| cost.seconds))
    }
}
