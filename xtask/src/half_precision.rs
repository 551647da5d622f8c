//! What models lose in half precision, beside what they lose in the reference library.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use crate::full_size::{ParityArguments, Sides};
use crate::worker::{Cost, Worker};

const HALF: &str = "bfloat16";

/// What is computed in both dtypes: its name in the protocol, the ending of what is written, and what stands between its path and the dtype.
struct Work {
    question: &'static str,
    ending: &'static str,
    arguments: String,
    is_picture: bool,
}

/// How far results are from the same side's in float32, on average.
#[derive(Clone, Copy, Deserialize)]
struct Differences {
    /// As a part of the results' root mean square.
    relative: f64,
    /// In levels of 255.
    pixels: f64,
}

/// Runs Stable Diffusion 1.5 at full size with random weights on the same inputs in float32 and in bfloat16, here and in the reference
/// library, and prints how far bfloat16 is from float32: of a UNet's output as a part of its size, of a decoded picture and of a whole one after
/// a few steps in pixels too. Fails where it is farther here.
pub(crate) fn parity(arguments: &ParityArguments) -> Result<()> {
    let sides = Sides::prepare(arguments.threads)?;
    let start: [(&str, &dyn Fn() -> Result<Worker>); 2] =
        [("diffusers", &|| sides.start_reference()), ("ours", &|| sides.start_ours())];
    let mut works = vec![Work::model("unet", false), Work::model("vae", true)];
    if arguments.steps > 0 {
        works.push(Work::picture(arguments.steps));
    }
    let mut far_off = Vec::new();
    println!("mean absolute difference to the same program's float32");
    for work in &works {
        let name = work.question;
        let output =
            |side: &str, dtype: &str| sides.outputs().join(format!("{name}.{side}.{dtype}.{}", work.ending));
        for (side, start) in &start {
            run(start, work, &output(side, "float32"), "float32")?;
        }
        let mut found = Vec::new();
        for (side, start) in &start {
            let (actual, expected) = (output(side, HALF), output(side, "float32"));
            run(start, work, &actual, HALF)?;
            let question = format!("mean\t{}\t{}", actual.display(), expected.display());
            found.push(sides.start_ours()?.ask::<Differences>(&question)?);
        }
        let [theirs, ours] = found[..] else { bail!("one side is missing") };
        let relative = [theirs.relative, ours.relative].map(|share| format!("{:.3} %", share * 100.0));
        print!("{name:<8}{HALF}: diffusers {}, ours {} of the root mean square", relative[0], relative[1]);
        if work.is_picture {
            print!("; diffusers {:.4}, ours {:.4} of 255", theirs.pixels, ours.pixels);
        }
        println!();
        let is_near = ours.relative <= theirs.relative && (!work.is_picture || ours.pixels <= theirs.pixels);
        // As a NaN is not.
        if !is_near {
            far_off.push(name);
        }
    }
    ensure!(far_off.is_empty(), "farther from float32 than the reference: {}", far_off.join(", "));
    Ok(())
}

impl Work {
    fn model(question: &'static str, is_picture: bool) -> Self {
        Self { question, ending: "safetensors", arguments: String::new(), is_picture }
    }

    fn picture(steps: usize) -> Self {
        Self { question: "picture", ending: "png", arguments: format!("\t{steps}"), is_picture: true }
    }
}

/// One run, in a process of its own: two dtypes of a model need not be in memory at a time.
fn run(start: &dyn Fn() -> Result<Worker>, work: &Work, output: &Path, dtype: &str) -> Result<()> {
    let Work { question, arguments, .. } = work;
    let _: Cost = start()?.ask(&format!("{question}\t{}{arguments}\t{dtype}", output.display()))?;
    Ok(())
}
