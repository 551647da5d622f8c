//! What models lose in half precision, beside what they lose in the reference library.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use crate::full_size::Sides;
use crate::worker::{Cost, Worker};

const MODELS: [&str; 2] = ["unet", "vae"];
const HALF: &str = "bfloat16";

/// How far results are from the same side's in float32, on average.
#[derive(Clone, Copy, Deserialize)]
struct Differences {
    /// As a part of the results' root mean square.
    relative: f64,
    /// In levels of 255.
    pixels: f64,
}

/// Runs Stable Diffusion 1.5 at full size with random weights on the same inputs in float32 and in bfloat16, here and in the reference
/// library, and prints how far bfloat16 is from float32. Fails where it is farther here.
pub(crate) fn parity(threads: usize) -> Result<()> {
    let sides = Sides::prepare(threads)?;
    let start: [(&str, &dyn Fn() -> Result<Worker>); 2] =
        [("diffusers", &|| sides.start_reference()), ("ours", &|| sides.start_ours())];
    let mut far_off = Vec::new();
    println!("mean absolute difference to the same program's float32");
    for model in MODELS {
        let output =
            |side: &str, dtype: &str| sides.outputs().join(format!("{model}.{side}.{dtype}.safetensors"));
        for (side, start) in &start {
            run(start, model, &output(side, "float32"), "float32")?;
        }
        let mut found = Vec::new();
        for (side, start) in &start {
            let (actual, expected) = (output(side, HALF), output(side, "float32"));
            run(start, model, &actual, HALF)?;
            let question = format!("mean\t{}\t{}", actual.display(), expected.display());
            found.push(sides.start_ours()?.ask::<Differences>(&question)?);
        }
        let [theirs, ours] = found[..] else { bail!("one side is missing") };
        let relative = [theirs.relative, ours.relative].map(|share| format!("{:.3} %", share * 100.0));
        print!("{model:<5} {HALF}: diffusers {}, ours {} of the root mean square", relative[0], relative[1]);
        if model == "vae" {
            print!("; diffusers {:.4}, ours {:.4} of 255", theirs.pixels, ours.pixels);
        }
        println!();
        // Not the negation of "no farther", so that a NaN fails.
        if !matches!(ours.relative.partial_cmp(&theirs.relative), Some(order) if order.is_le()) {
            far_off.push(model);
        }
    }
    ensure!(far_off.is_empty(), "farther from float32 than the reference: {}", far_off.join(", "));
    Ok(())
}

/// One run, in a process of its own: two dtypes of a model need not be in memory at a time.
fn run(start: &dyn Fn() -> Result<Worker>, model: &str, output: &Path, dtype: &str) -> Result<()> {
    let _: Cost = start()?.ask(&format!("{model}\t{}\t{dtype}", output.display()))?;
    Ok(())
}
