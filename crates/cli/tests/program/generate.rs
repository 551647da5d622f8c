//! `diffuse generate` where all is well.

use std::fs;
use std::ops::ControlFlow;

use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{Schedule, StableDiffusionPipeline, TextToImage, seeded_generators};
use image::RgbImage;
use serde_json::{Value, json};

use crate::program::{Run, Workplace, finish, shapes};

const PROMPT: &str = "a large red circle on a blue background";

fn pixels(workplace: &Workplace, name: &str) -> RgbImage {
    image::open(workplace.path(name)).unwrap().to_rgb8()
}

fn parameters(workplace: &Workplace, name: &str) -> Value {
    let Run { stdout, .. } = workplace.succeed(["inspect", name, "--json"]);
    serde_json::from_str::<Value>(&stdout).unwrap()["parameters"].take()
}

#[test]
fn a_picture_carries_what_it_was_made_with() {
    let workplace = Workplace::new();
    let flags =
        ["--steps", "3", "--seed", "42", "--scheduler", "dpmpp-2m-karras", "--negative-prompt", "grün, 緑"];
    let run = workplace.succeed([&["generate", PROMPT][..], &flags].concat());
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", "wrote out.png\n"));
    assert_eq!(workplace.names(), ["out.png"]);
    assert_eq!(pixels(&workplace, "out.png").dimensions(), (64, 64));
    let expected = json!({
        "prompt": PROMPT, "negative_prompt": "grün, 緑", "Steps": "3", "Sampler": "DPM++ 2M", "Schedule type": "Karras",
        "CFG scale": "7.5", "Seed": "42", "Size": "64x64", "Model": "shapes", "Version": "diffuse 0.1.0",
    });
    assert_eq!(parameters(&workplace, "out.png"), expected);
}

#[test]
fn the_parameters_chunk_is_the_text_that_web_uis_read() {
    let workplace = Workplace::new();
    let flags = ["--steps", "2", "--seed", "7", "--negative-prompt", "a square", "--clip-skip", "1"];
    workplace.succeed([&["generate", PROMPT][..], &flags].concat());
    let file = std::io::BufReader::new(fs::File::open(workplace.path("out.png")).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let chunks = &reader.info().uncompressed_latin1_text;
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0].keyword, "parameters");
    insta::assert_snapshot!(chunks[0].text, @r"
    a large red circle on a blue background
    Negative prompt: a square
    Steps: 2, Sampler: DDIM, CFG scale: 7.5, Seed: 7, Size: 64x64, Model: shapes, Clip skip: 2, Version: diffuse 0.1.0
    ");
}

#[test]
fn a_random_seed_is_printed_and_gives_the_same_picture_again() {
    let workplace = Workplace::new();
    let run = workplace.succeed(["generate", PROMPT, "--steps", "2", "--output", "random.png"]);
    let seed = run.stderr.lines().find_map(|line| line.strip_prefix("seed: ")).unwrap().to_string();
    workplace.succeed(["generate", PROMPT, "--steps", "2", "--output", "again.png", "--seed", &seed]);
    assert_eq!(pixels(&workplace, "random.png"), pixels(&workplace, "again.png"));
}

#[test]
fn a_grid_shows_the_pictures_that_would_be_written_one_by_one() {
    let workplace = Workplace::new();
    fs::write(workplace.path("prompts.txt"), format!("{PROMPT}\na small star on a red background")).unwrap();
    let flags =
        ["generate", "--prompts-file", "prompts.txt", "--steps", "2", "--seed", "5", "--num-images", "3"];
    workplace.succeed([&flags[..], &["--output", "single.png"]].concat());
    let run = workplace.succeed([&flags[..], &["--output", "grid.png", "--grid"]].concat());
    assert_eq!(run.stderr, "wrote grid.png\n");
    let grid = pixels(&workplace, "grid.png");
    assert_eq!(grid.dimensions(), (3 * 64, 2 * 64));
    for index in 0..6 {
        let (x, y) = (index % 3 * 64, index / 3 * 64);
        let cell = image::imageops::crop_imm(&grid, x, y, 64, 64).to_image();
        assert_eq!(cell, pixels(&workplace, &format!("single-{index}.png")), "{index}");
    }
    assert_eq!(parameters(&workplace, "grid.png"), parameters(&workplace, "single-0.png"));
}

#[test]
fn several_pictures_are_numbered_and_seeded_one_by_one() {
    let workplace = Workplace::new();
    fs::write(
        workplace.path("prompts.txt"),
        format!("\u{feff}{PROMPT}\r\n\n  \na small star on a red background"),
    )
    .unwrap();
    let flags = ["--steps", "2", "--seed", "5", "--num-images", "2", "--output", "out.v1.png"];
    workplace.succeed([&["generate", "--prompts-file", "prompts.txt"][..], &flags].concat());
    let names = ["out.v1-0.png", "out.v1-1.png", "out.v1-2.png", "out.v1-3.png", "prompts.txt"];
    assert_eq!(workplace.names(), names);
    for (index, prompt) in [PROMPT, PROMPT, "a small star on a red background"].iter().enumerate() {
        let (seed, output) = ((5 + index).to_string(), format!("single-{index}.png"));
        workplace.succeed(["generate", prompt, "--steps", "2", "--seed", &seed, "--output", &output]);
        assert_eq!(pixels(&workplace, names[index]), pixels(&workplace, &output), "picture {index}");
        assert_eq!(parameters(&workplace, names[index])["Seed"], json!(seed));
    }
}

#[test]
fn the_same_bits_come_from_any_number_of_threads_and_any_batch() {
    let workplace = Workplace::new();
    for threads in ["1", "2", "5"] {
        let output = format!("threads-{threads}.png");
        let arguments = ["generate", PROMPT, "--steps", "4", "--seed", "9", "--output", &output];
        let run = finish(workplace.command(arguments).env("RAYON_NUM_THREADS", threads));
        assert_eq!(run.status, Some(0), "{}", run.stderr);
    }
    let single = pixels(&workplace, "threads-1.png");
    assert_eq!(single, pixels(&workplace, "threads-2.png"));
    assert_eq!(single, pixels(&workplace, "threads-5.png"));

    let repository = Repository::folder(shapes()).unwrap();
    let mut pipeline = StableDiffusionPipeline::load(&repository, &LoadOptions::default()).unwrap();
    let request = TextToImage {
        prompts: vec!["a black star on a white background".into(), PROMPT.into()],
        schedule: Schedule::Steps(4),
        ..Default::default()
    };
    let mut noise = seeded_generators(8, 2);
    let batch = pipeline.generate(&request, &mut noise, &mut |_| Ok(ControlFlow::Continue(()))).unwrap();
    assert!(batch.images[1] == single, "a picture of a batch differs from the same picture alone");
}

#[test]
fn the_model_in_the_program_is_the_folder() {
    let workplace = Workplace::new();
    let flags = ["--steps", "2", "--seed", "1"];
    workplace.succeed([&["generate", PROMPT, "--output", "a.png"][..], &flags].concat());
    let model = shapes().display().to_string();
    workplace.succeed(
        [&["generate", "--prompt", PROMPT, "--output", "b.png", "--model", &model][..], &flags].concat(),
    );
    assert_eq!(fs::read(workplace.path("a.png")).unwrap(), fs::read(workplace.path("b.png")).unwrap());
}

#[test]
fn what_was_there_is_replaced_and_other_formats_are_written() {
    let workplace = Workplace::new();
    for name in ["out.jpg", "out.webp", "out.PNG"] {
        fs::write(workplace.path(name), "old").unwrap();
        workplace
            .succeed(["generate", PROMPT, "--steps", "1", "--width", "32", "--height", "48", "-o", name]);
        assert_eq!(pixels(&workplace, name).dimensions(), (32, 48), "{name}");
    }
    assert_eq!(workplace.names(), ["out.PNG", "out.jpg", "out.webp"]);
}

#[test]
fn what_is_cut_off_a_long_prompt_is_said() {
    let workplace = Workplace::new();
    let prompt = format!("{PROMPT} {}", "circle ".repeat(40));
    let run = workplace.succeed(["generate", &prompt, "--steps", "1", "--num-images", "2"]);
    let warnings: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(warnings.len(), 1, "said once for all pictures of a prompt: {}", run.stderr);
    assert!(warnings[0].contains("24 tokens") && warnings[0].contains("circle circle"), "{}", warnings[0]);
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let workplace = Workplace::new();
    let mut command = workplace.command(["generate", PROMPT, "--steps", "500"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut notes = BufReader::new(child.stderr.take().unwrap()).lines();
    // The first step has been done.
    assert!(notes.next().unwrap().unwrap().starts_with("seed: "));
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(workplace.names(), [""; 0]);
}

#[test]
fn the_processor_can_be_named() {
    let workplace = Workplace::new();
    let paint = |flags: &[&str]| {
        workplace.succeed([&["generate", PROMPT, "--steps", "2", "--seed", "1"], flags].concat());
        pixels(&workplace, "out.png")
    };
    if cfg!(not(any(feature = "cuda", feature = "metal"))) {
        assert!(paint(&["--device", "cpu"]) == paint(&[]));
    }
}

#[test]
fn an_empty_prompt_and_no_guidance_are_fine() {
    let workplace = Workplace::new();
    workplace.succeed(["generate", "", "--steps", "1", "--guidance-scale", "-3"]);
    assert_eq!(workplace.names(), ["out.png"]);
}
