//! What training is for: the model in the program is taught things that it has never seen, and what it paints then is looked at.

use std::fs;
use std::path::Path;

use image::{RgbImage, imageops};

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

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

/// The walk in the README. DreamBooth by a LoRA: five pictures of a ring with a gap, in colours other than those that are painted then. Plain prompts still work.
#[test]
fn a_lora_learns_a_thing_from_five_pictures() {
    let workplace = Workplace::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ring");
    copy(Path::new(folder), &workplace.path("ring"));
    // What is to be kept, as the model paints it.
    let flags =
        ["--steps", "20", "--guidance-scale", "4", "--seed", "50", "--output", "ring/plain/plain.png"];
    workplace.succeed([&["generate", "--prompts-file", "ring/prompts.txt"][..], &flags].concat());
    let flags = [
        "train",
        "dreambooth-lora",
        "--instance_data_dir",
        "ring/things",
        "--instance_prompt",
        "a sks",
        "--with_prior_preservation",
        "--class_data_dir",
        "ring/plain",
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
    let plain = [
        ("a large red circle on a blue background", "red", "blue"),
        ("a large green star on a white background", "green", "white"),
    ];
    for (prompt, figure, background) in plain {
        for picture in paint(&workplace, prompt, &lora, 2) {
            assert!(!is_ring(&picture, colour(figure), colour(background)), "{prompt}");
            let middle = imageops::crop_imm(&picture, 28, 28, 8, 8).to_image();
            assert!(share(&middle, colour(figure), colour(background)) > 0.9, "{prompt}");
        }
    }
}
