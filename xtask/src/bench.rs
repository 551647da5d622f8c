//! Models beside the same models in other programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::full_size::build_example;
use crate::python::Python;
use crate::statistics::median;
use crate::worker::{Cost, Worker};
use crate::workspace;

/// What is timed: names of `xtask/bench/models.json`.
const NAMES: [&str; 6] = [
    "sd15_unet_step",
    "sd15_lora_train_step",
    "sd15_vae_decode",
    "sd15_vae_encode",
    "sd15_text_encoder",
    "sdxl_unet_step",
];
const DTYPES: [&str; 2] = ["f32", "bf16"];
/// In float32 the models of SDXL of three programs do not fit into 24 GB at once; OpenVINO needs as much again to convert one.
const TOO_LARGE: [(&str, &str); 1] = [("sdxl_unet_step", "f32")];
const TOO_LARGE_FOR_OPENVINO: &str = "sdxl_unet_step";
/// OpenVINO does not train.
const TRAINING: &str = "_train_step";

#[derive(Args)]
pub(crate) struct BenchArguments {
    /// A Python that has torch and diffusers, and openvino or not; without one only this project is timed
    #[arg(long, value_name = "PYTHON")]
    against: Option<PathBuf>,
    /// Only what has this in its name: sd15_unet_step, sd15_lora_train_step, sd15_vae_decode, sd15_vae_encode, sd15_text_encoder, sdxl_unet_step
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
    name: &'static str,
    dtype: &'static str,
    ours_s: f64,
    /// Medians by the peer's name.
    peers: serde_json::Map<String, serde_json::Value>,
    /// Ours to the fastest peer.
    ratio: Option<f64>,
    peak_rss_mb: u64,
    /// The peers' peaks by their names.
    peers_peak_rss_mb: serde_json::Map<String, serde_json::Value>,
}

/// One program that is timed.
struct Contender {
    name: &'static str,
    worker: Worker,
    costs: Vec<Cost>,
}

/// Times this project and the peers in turn, in one run.
pub(crate) fn bench(arguments: &BenchArguments) -> Result<()> {
    let ours = build_example("bench")?;
    let peers = match &arguments.against {
        Some(python) => peers(python)?,
        None => Vec::new(),
    };
    let mut rows = Vec::new();
    for name in NAMES {
        for dtype in DTYPES {
            let is_wanted = arguments.only.as_deref().is_none_or(|only| name.contains(only))
                && arguments.dtype.as_deref().is_none_or(|only| only == dtype);
            if !is_wanted || (!peers.is_empty() && TOO_LARGE.contains(&(name, dtype))) {
                continue;
            }
            let row =
                time(name, dtype, &ours, &peers, arguments).with_context(|| format!("{name} in {dtype}"))?;
            if rows.is_empty() {
                print_head(&peers);
            }
            row.print(&peers);
            rows.push(row);
        }
    }
    ensure!(!rows.is_empty(), "nothing has {:?} in its name", arguments.only.as_deref().unwrap_or_default());
    if let Some(path) = &arguments.json {
        fs::write(path, serde_json::to_string_pretty(&rows)? + "\n")
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
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

fn time(
    name: &'static str,
    dtype: &'static str,
    ours: &Path,
    peers: &[Peer],
    arguments: &BenchArguments,
) -> Result<Row> {
    let threads = arguments.threads.to_string();
    let models = workspace::root().join("xtask/bench/models.json");
    let mut command = Command::new(ours);
    command.arg(models).args([name, dtype]).env("RAYON_NUM_THREADS", &threads);
    let mut contenders = vec![Contender::start("ours", &mut command)?];
    let is_left_out = name == TOO_LARGE_FOR_OPENVINO || name.ends_with(TRAINING);
    for peer in peers.iter().filter(|peer| peer.name != "openvino" || !is_left_out) {
        let mut command = peer.python.script(&workspace::root().join("xtask/python/bench.py"));
        command.args([peer.name, name, dtype, &threads]).env("OMP_NUM_THREADS", &threads);
        contenders.push(Contender::start(peer.name, &mut command)?);
    }
    for _ in 0..arguments.repetitions {
        for contender in &mut contenders {
            contender.costs.push(contender.worker.ask("run")?);
        }
    }
    let peak = |contender: &Contender| {
        contender.costs.iter().map(|cost| cost.peak_bytes).max().unwrap_or(0) / 1_000_000
    };
    let [ours, others @ ..] = &contenders[..] else { bail!("nobody was timed") };
    let fastest = others.iter().map(Contender::median).reduce(f64::min);
    Ok(Row {
        name,
        dtype,
        ours_s: ours.median(),
        peers: others.iter().map(|peer| (peer.name.to_string(), peer.median().into())).collect(),
        ratio: fastest.map(|fastest| ours.median() / fastest),
        peak_rss_mb: peak(ours),
        peers_peak_rss_mb: others.iter().map(|peer| (peer.name.to_string(), peak(peer).into())).collect(),
    })
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
        Ok(Self { name, worker, costs: Vec::new() })
    }

    fn median(&self) -> f64 {
        median(self.costs.iter().map(|cost| cost.seconds))
    }
}

fn print_head(peers: &[Peer]) {
    print!("{:<20}{:>6}{:>10}{:>10}", "medians, seconds", "", "ours", "ours MB");
    for peer in peers {
        print!("{:>12}{:>14}", peer.name, format!("{} MB", peer.name));
    }
    println!("{:>8}", "ratio");
}

impl Row {
    fn print(&self, peers: &[Peer]) {
        print!("{:<20}{:>6}{:>10.3}{:>10}", self.name, self.dtype, self.ours_s, self.peak_rss_mb);
        for peer in peers {
            let seconds = self.peers.get(peer.name).and_then(serde_json::Value::as_f64);
            let peak = self.peers_peak_rss_mb.get(peer.name).and_then(serde_json::Value::as_u64);
            let text = |number: Option<String>| number.unwrap_or_else(|| "-".to_string());
            print!(
                "{:>12}{:>14}",
                text(seconds.map(|seconds| format!("{seconds:.3}"))),
                text(peak.map(|peak| peak.to_string()))
            );
        }
        println!("{:>8}", self.ratio.map_or("-".to_string(), |ratio| format!("{ratio:.2}")));
    }
}
