//! Whole steps of training, from the files of the pictures to the changed weights.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::table::Table;
use super::{BenchArguments, Contender, Peer, Row, peers, python, write_json};
use crate::full_size::{build_example, full_size_folder};
use crate::python;
use crate::workspace;

/// What is timed: its name, what is trained, the dtype, whether blocks are computed again for the gradients, and whether PyTorch can do it in 24 GB.
const CASES: [(&str, &str, &str, &str, bool); 4] = [
    ("lora", "lora", "f32", "keep", true),
    ("lora", "lora", "bf16", "keep", true),
    ("lora_checkpointing", "lora", "bf16", "recompute", true),
    // PyTorch has no AdamW of 8 bits for processors; its states alone would be 7 GB.
    ("whole_unet_checkpointing", "whole", "bf16", "recompute", false),
];

/// Times this project and PyTorch in turn, in one run.
pub(super) fn bench(arguments: &BenchArguments) -> Result<()> {
    let peers: Vec<Peer> = match &arguments.against {
        Some(python) => peers(python)?.into_iter().filter(|peer| peer.name == "diffusers").collect(),
        None => Vec::new(),
    };
    let example = build_example("bench_train")?;
    let folder = full_size_folder(&python(&peers)?)?;
    let pictures = workspace::target().join("full-size/training-pictures");
    python::run(Command::new(&example).arg("make").arg(&pictures))?;
    let (mut rows, mut table) = (Vec::new(), Table::new(&peers));
    for (name, trained, dtype, memory, has_peer) in CASES {
        if !arguments.wants(name, dtype) {
            continue;
        }
        let threads = arguments.threads.to_string();
        let mut ours = Command::new(&example);
        ours.env("RAYON_NUM_THREADS", &threads);
        let words = [trained, dtype, memory];
        let mut contenders =
            vec![Contender::start("ours", with_words(&mut ours, &folder, &pictures, &words))?];
        for peer in peers.iter().filter(|_| has_peer) {
            let mut command = peer.python.script(&workspace::root().join("xtask/python/bench_train.py"));
            command.env("OMP_NUM_THREADS", &threads);
            let words = [trained, dtype, memory, &threads];
            contenders
                .push(Contender::start(peer.name, with_words(&mut command, &folder, &pictures, &words))?);
        }
        for _ in 0..arguments.repetitions {
            for contender in &mut contenders {
                contender.rest();
                contender.ask("step")?;
            }
        }
        let row = Row::new(name, dtype, &contenders)?;
        table.print(&row);
        rows.push(row);
    }
    ensure!(!rows.is_empty(), "nothing has {:?} in its name", arguments.only.as_deref().unwrap_or_default());
    write_json(arguments, &rows)
}

fn with_words<'a>(
    command: &'a mut Command,
    folder: &Path,
    pictures: &Path,
    words: &[&str],
) -> &'a mut Command {
    command.arg(folder).arg(pictures).args(words)
}
