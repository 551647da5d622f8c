//! What training is for: the model in the program is taught things that it has never seen, and what it paints then is looked at.

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage, imageops};

use crate::program::Workplace;

const COLOURS: [(&str, [u8; 3]); 8] = [
    ("red", [220, 40, 40]),
    ("orange", [240, 140, 30]),
    ("yellow", [245, 220, 50]),
    ("green", [50, 170, 70]),
    ("blue", [50, 90, 220]),
    ("purple", [140, 60, 180]),
    ("white", [245, 245, 245]),
    ("black", [20, 20, 20]),
];

fn colour(name: &str) -> [u8; 3] {
    COLOURS.iter().find(|(known, _)| *known == name).unwrap().1
}

fn distance(a: [u8; 3], b: [u8; 3]) -> i32 {
    a.iter().zip(b).map(|(a, b)| (i32::from(*a) - i32::from(b)).pow(2)).sum()
}

/// A picture of 64x64, drawn at four times the size: `is_figure` says what is in the figure's colour, counted in pixels of the result.
fn draw(figure: [u8; 3], background: [u8; 3], is_figure: impl Fn(f64, f64) -> bool) -> RgbImage {
    let pixel = |x: u32, y: u32| {
        Rgb(if is_figure(f64::from(x) / 4.0, f64::from(y) / 4.0) { figure } else { background })
    };
    imageops::resize(&RgbImage::from_fn(256, 256, pixel), 64, 64, imageops::FilterType::Lanczos3)
}

fn write(folder: &Path, name: &str, picture: &RgbImage, caption: &str) {
    picture.save(folder.join(format!("{name}.png"))).unwrap();
    fs::write(folder.join(format!("{name}.txt")), caption).unwrap();
}

/// The share of a picture's pixels that are nearer to one colour than to another.
fn share(picture: &RgbImage, figure: [u8; 3], background: [u8; 3]) -> f64 {
    let near =
        picture.pixels().filter(|pixel| distance(pixel.0, figure) < distance(pixel.0, background)).count();
    near as f64 / f64::from(picture.width() * picture.height())
}

fn paint(workplace: &Workplace, prompt: &str, flags: &[&str], count: usize) -> Vec<RgbImage> {
    let number = count.to_string();
    let fixed = [
        "generate",
        prompt,
        "--steps",
        "20",
        "--guidance-scale",
        "4",
        "--seed",
        "3",
        "--num-images",
        &number,
    ];
    workplace.succeed([&fixed[..], flags].concat());
    (0..count).map(|i| image::open(workplace.path(&format!("out-{i}.png"))).unwrap().to_rgb8()).collect()
}

/// Whether a picture shows a ring with a gap at its right: something of the figure's colour, but neither in the middle nor right of it.
fn is_ring(picture: &RgbImage, figure: [u8; 3], background: [u8; 3]) -> bool {
    let part = |x, y, width, height| {
        share(&imageops::crop_imm(picture, x, y, width, height).to_image(), figure, background)
    };
    (0.08..0.35).contains(&part(0, 0, 64, 64)) && part(28, 29, 7, 7) < 0.2 && part(40, 29, 14, 6) < 0.5
}

/// DreamBooth by a LoRA: five pictures of a ring with a gap, in colours other than those that are painted then. Plain prompts still work.
#[test]
fn a_lora_learns_a_thing_from_five_pictures() {
    let workplace = Workplace::new();
    let (things, plain) = (workplace.path("things"), workplace.path("plain"));
    fs::create_dir(&things).unwrap();
    fs::create_dir(&plain).unwrap();
    let pairs =
        [("red", "white"), ("green", "black"), ("yellow", "blue"), ("white", "green"), ("blue", "yellow")];
    for (index, (figure, background)) in pairs.iter().enumerate() {
        let (x, y) = (31.0 + 2.0 * index as f64 % 3.0, 33.0 - index as f64 % 4.0);
        let picture = draw(colour(figure), colour(background), |px, py| {
            let (dx, dy) = (px - x, py - y);
            let is_gap = dx > 0.0 && dy.abs() < dx * 0.84;
            (13.0..20.0).contains(&dx.hypot(dy)) && !is_gap
        });
        write(
            &things,
            &index.to_string(),
            &picture,
            &format!("a large {figure} sks on a {background} background"),
        );
    }
    // What is to be kept, as the model paints it.
    let prompts = [
        "a large red circle on a blue background",
        "a large green star on a white background",
        "a large blue square on a yellow background",
        "a small yellow triangle on a black background",
        "a large purple circle on a white background",
        "a large orange square on a green background",
        "a large white star on a red background",
        "a large black triangle on a yellow background",
        "a large yellow circle on a purple background",
        "a small red square on a white background",
        "a large green circle on a black background",
        "a large blue star on an orange background",
    ];
    fs::write(workplace.path("prompts.txt"), prompts.join("\n")).unwrap();
    let flags = ["--steps", "20", "--guidance-scale", "4", "--seed", "50", "--output", "plain/c.png"];
    workplace.succeed([&["generate", "--prompts-file", "prompts.txt"][..], &flags].concat());
    for (index, prompt) in prompts.iter().enumerate() {
        fs::write(plain.join(format!("c-{index}.txt")), prompt).unwrap();
    }
    let flags = [
        "train",
        "dreambooth-lora",
        "--instance_data_dir",
        "things",
        "--instance_prompt",
        "a sks",
        "--with_prior_preservation",
        "--class_data_dir",
        "plain",
        "--class_prompt",
        "a shape",
        "--num_class_images",
        "12",
        "--output_dir",
        "lora",
        "--max_train_steps",
        "300",
        "--train_batch_size",
        "3",
        "--learning_rate",
        "2e-3",
        "--lr_scheduler",
        "cosine",
        "--rank",
        "16",
        "--lora_layers",
        "to_k,to_q,to_v,to_out.0,conv1,conv2,proj_in,proj_out,ff.net.0.proj,ff.net.2",
        "--train_text_encoder",
        "--text_encoder_lr",
        "1e-3",
        "--seed",
        "1",
    ];
    workplace.succeed(flags);

    let lora = ["--lora", "lora/pytorch_lora_weights.safetensors"];
    for (figure, background) in [("orange", "black"), ("purple", "white")] {
        let prompt = format!("a large {figure} sks on a {background} background");
        let rings = |flags: &[&str]| {
            let pictures = paint(&workplace, &prompt, flags, 4);
            pictures.iter().filter(|picture| is_ring(picture, colour(figure), colour(background))).count()
        };
        let (with, without) = (rings(&lora), rings(&[]));
        println!("{prompt}: {with} rings of 4, {without} without the LoRA");
        assert!(with >= 3 && without == 0, "{prompt}: {with} rings of 4, {without} without the LoRA");
    }
    for (prompt, figure, background) in [(prompts[0], "red", "blue"), (prompts[1], "green", "white")] {
        for picture in paint(&workplace, prompt, &lora, 2) {
            assert!(!is_ring(&picture, colour(figure), colour(background)), "{prompt}");
            let middle = imageops::crop_imm(&picture, 28, 28, 8, 8).to_image();
            assert!(share(&middle, colour(figure), colour(background)) > 0.9, "{prompt}");
        }
    }
}
