//! From the start of a program to the first step of a picture.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{BenchArguments, Contender, Peer, Row, START, python};
use crate::full_size::{build_example, half_size_folder};
use crate::measure::measure;
use crate::worker::Cost;

/// Each program is started anew each time, and once before, so that the model is in the page cache. What counts is the time until it ends, which
/// it does as soon as all is ready.
pub(super) fn time(dtype: &'static str, peers: &[Peer], arguments: &BenchArguments) -> Result<Row> {
    let folder = half_size_folder(&python(peers)?)?;
    let mut ours = Command::new(build_example("start")?);
    ours.arg(&folder).arg(dtype).env("RAYON_NUM_THREADS", arguments.threads.to_string());
    let mut programs = vec![(contender("ours"), ours)];
    for peer in peers.iter().filter(|peer| peer.name == "diffusers") {
        let command = peer.command("start", dtype, Some(Path::new(&folder)), arguments);
        programs.push((contender(peer.name), command));
    }
    for round in 0..=arguments.repetitions {
        for (contender, command) in &mut programs {
            let measured = measure(command)?;
            if round > 0 {
                contender.costs.push(Cost { seconds: measured.seconds, peak_bytes: measured.peak });
            }
        }
    }
    let contenders: Vec<Contender> = programs.into_iter().map(|(contender, _)| contender).collect();
    Row::new(START, dtype, &contenders)
}

fn contender(name: &'static str) -> Contender {
    Contender { name, worker: None, costs: Vec::new() }
}
