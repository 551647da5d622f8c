//! Programs from their start on: to the first step of a picture, or to a picture's file.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{BenchArguments, Contender, EMBEDDED, Peer, Row, START, python};
use crate::conversion::build_program;
use crate::full_size::{build_example, half_size_folder};
use crate::measure::measure;
use crate::worker::Cost;
use crate::workspace;

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
    Row::new(START, dtype, &run_in_turn(programs, arguments)?)
}

/// `diffuse generate` with the small model inside, from its start to its end.
pub(super) fn time_embedded(dtype: &'static str, arguments: &BenchArguments) -> Result<Row> {
    let picture = workspace::target().join("embedded_picture.png");
    let mut ours = Command::new(build_program()?);
    ours.args(["generate", "a red circle", "--steps", "20", "--dtype", dtype, "--output"]);
    ours.arg(picture).env("RAYON_NUM_THREADS", arguments.threads.to_string());
    Row::new(EMBEDDED, dtype, &run_in_turn(vec![(contender("ours"), ours)], arguments)?)
}

fn run_in_turn(
    mut programs: Vec<(Contender, Command)>,
    arguments: &BenchArguments,
) -> Result<Vec<Contender>> {
    for round in 0..=arguments.repetitions {
        for (contender, command) in &mut programs {
            let measured = measure(command)?;
            if round > 0 {
                contender.costs.push(Cost { seconds: measured.seconds, peak_bytes: measured.peak });
            }
        }
    }
    Ok(programs.into_iter().map(|(contender, _)| contender).collect())
}

fn contender(name: &'static str) -> Contender {
    Contender { name, worker: None, costs: Vec::new() }
}
