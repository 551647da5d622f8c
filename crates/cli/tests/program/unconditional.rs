//! Pictures without a prompt, from a model that needs none.

use std::path::Path;

use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_pipelines::{Schedule, Unconditional, UnconditionalPipeline, seeded_generators};

use crate::program::{Run, Workplace, shapes};

fn model(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/tests/parity/unconditional");
    folder.join(name).display().to_string()
}

fn pixels(workplace: &Workplace, name: &str) -> image::RgbImage {
    image::open(workplace.path(name)).unwrap().to_rgb8()
}

#[test]
fn pictures_are_those_of_the_library() {
    let workplace = Workplace::new();
    let flags = ["--steps", "3", "--seed", "4", "--num-images", "2"];
    let run = workplace.succeed([&["generate", "--model", &model("ddpm")][..], &flags].concat());
    assert_eq!(run.stderr, "wrote out-0.png\nwrote out-1.png\n");
    let repository = Repository::folder(model("ddpm")).unwrap();
    let mut pipeline = UnconditionalPipeline::load(&repository, &LoadOptions::default()).unwrap();
    let request = Unconditional { batch_size: 2, schedule: Some(Schedule::Steps(3)), ..Default::default() };
    let go_on =
        &mut |_: candle_diffusers_pipelines::UnconditionalStepEnd| Ok(std::ops::ControlFlow::Continue(()));
    let pictures = pipeline.generate(&request, &mut seeded_generators(4, 2), go_on).unwrap();
    for (index, picture) in pictures.iter().enumerate() {
        assert_eq!(pixels(&workplace, &format!("out-{index}.png")), *picture, "{index}");
    }
    let Run { stdout, .. } = workplace.succeed(["inspect", "out-1.png"]);
    for setting in ["DDPM", "16x16"] {
        assert!(stdout.contains(setting), "{stdout}");
    }
}

#[test]
fn a_scheduler_a_size_and_a_class_can_be_chosen() {
    let workplace = Workplace::new();
    let flags = ["--scheduler", "ddim", "--steps", "2", "--seed", "1", "--width", "24", "--height", "8"];
    workplace.succeed([&["generate", "--model", &model("ldm")][..], &flags].concat());
    assert_eq!(pixels(&workplace, "out.png").dimensions(), (24, 8));
    let class = |label: &str, output: &str| {
        let flags = ["--class-label", label, "--output", output, "--steps", "2", "--seed", "1"];
        workplace.succeed([&["generate", "--model", &model("classes")][..], &flags].concat());
        pixels(&workplace, output)
    };
    assert_ne!(class("0", "zero.png"), class("4", "four.png"));
    let flags = ["--steps", "2", "--seed", "1", "--output", "a.png"];
    workplace.refuse(
        [&["generate", "--model", &model("classes")][..], &flags].concat(),
        &["class_labels are missing"],
    );
    workplace.refuse(
        [&["generate", "--model", &model("classes"), "--class-label", "5"][..], &flags].concat(),
        &["class_labels: contain 5", "5 classes", "0 to 4"],
    );
    let flags = ["--steps", "2", "--width", "9", "--output", "a.png"];
    workplace.refuse(
        [&["generate", "--model", &model("ddpm")][..], &flags].concat(),
        &["width: is 9, expected a multiple"],
    );
}

#[test]
fn what_is_for_a_text_is_refused() {
    for flags in [
        &["a prompt"][..],
        &["--negative-prompt", "blurry"],
        &["--guidance-scale", "3"],
        &["--clip-skip", "1"],
        &["--guidance-rescale", "0.5"],
        &["--original-size", "8x8"],
        &["--aesthetic-score", "3"],
    ] {
        let flag = if flags.len() == 1 { "a prompt" } else { flags[0] };
        let model = model("ddpm");
        let arguments = [&["generate", "--model", &model][..], flags].concat();
        Workplace::new().refuse(arguments, &[flag, "ddpm paints without one"]);
    }
}

#[test]
fn a_model_that_needs_a_prompt_says_so() {
    let workplace = Workplace::new();
    let model = shapes().display().to_string();
    for (flags, expected) in [
        (&[][..], "shapes paints from a text: a PROMPT"),
        (&["a star", "--class-label", "1"][..], "--class-label is for models that paint a class"),
    ] {
        let run = workplace.run([&["generate", "--model", &model][..], flags].concat());
        assert_eq!(run.status, Some(2), "{}", run.stderr);
        assert!(run.stderr.contains(expected), "{}", run.stderr);
    }
    assert!(workplace.names().is_empty());
}
