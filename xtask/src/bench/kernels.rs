//! Single operations at the sizes that occur in Stable Diffusion.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::{BenchArguments, Contender, Peer, Row, ours};
use crate::worker::Cost;
use crate::workspace;

/// How often one is timed at each turn: it takes little.
const TIMES: u32 = 3;

#[derive(Deserialize)]
struct Peak {
    operations_per_second: Option<f64>,
}

#[derive(Deserialize)]
struct Work {
    operations: f64,
}

/// Times those that are wanted, each in turn with PyTorch's where there is a peer; `add` is given their rows.
pub(super) fn time(
    dtype: &'static str,
    peers: &[Peer],
    arguments: &BenchArguments,
    add: &mut impl FnMut(Row) -> Result<()>,
) -> Result<()> {
    let file = workspace::root().join("xtask/bench/kernels.json");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let kernels: BTreeMap<String, Value> = serde_json::from_str(&text)?;
    let wanted: Vec<(String, &String)> = kernels
        .keys()
        .map(|kernel| (format!("kernels/{kernel}"), kernel))
        .filter(|(name, _)| arguments.wants(name, dtype))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut contenders = vec![ours("bench_kernels", &file, &[dtype], arguments)?];
    for peer in peers.iter().filter(|peer| peer.name == "diffusers") {
        contenders.push(peer.start("kernels", dtype, None, arguments)?);
    }
    for (name, kernel) in wanted {
        let Peak { operations_per_second } = ask(&mut contenders[0], "peak")?;
        // The first answer of ours says how much work it is.
        let Work { operations } = ask(&mut contenders[0], kernel)?;
        for contender in &mut contenders {
            contender.costs.clear();
        }
        for _ in 0..arguments.repetitions {
            for contender in &mut contenders {
                contender.rest();
                // Not timed, so that its threads are awake and its own numbers in the caches, as within a model.
                let Cost { .. } = ask(contender, kernel)?;
                (0..TIMES).try_for_each(|_| contender.ask(kernel))?;
            }
        }
        let mut row = Row::new(&name, dtype, &contenders)?;
        if operations > 0.0 {
            let rate = operations / row.ours_s;
            (row.tflops, row.share_of_peak) =
                (Some(rate / 1e12), operations_per_second.map(|peak| rate / peak));
        }
        add(row)?;
    }
    Ok(())
}

fn ask<T: serde::de::DeserializeOwned>(contender: &mut Contender, question: &str) -> Result<T> {
    contender.worker.as_mut().context("it answers no questions")?.ask(question)
}
