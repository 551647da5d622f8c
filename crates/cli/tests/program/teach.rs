//! What training is for: the model in the program is taught things that it has never seen, and what it paints then is looked at. `cargo xtask teach` looks at more
//! pictures, of more colours.

use std::env;
use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage, imageops};

use crate::program::{Workplace, copy_folder};

/// All colours that the model was taught by name.
const COLOURS: [(&str, [u8; 3]); 17] = [
    ("red", [220, 40, 40]),
    ("orange", [240, 140, 30]),
    ("yellow", [245, 220, 50]),
    ("green", [50, 170, 70]),
    ("blue", [50, 90, 220]),
    ("purple", [140, 60, 180]),
    ("white", [245, 245, 245]),
    ("black", [20, 20, 20]),
    ("pink", [250, 160, 190]),
    ("brown", [130, 80, 40]),
    ("grey", [128, 128, 128]),
    ("cyan", [70, 200, 220]),
    ("magenta", [220, 60, 170]),
    ("lime", [160, 220, 60]),
    ("navy", [30, 40, 110]),
    ("maroon", [120, 25, 40]),
    ("olive", [120, 120, 40]),
];

/// Whether all is to be looked at, and not only what a test has time for.
fn is_whole() -> bool {
    env::var_os("TEACH_WHOLE").is_some()
}

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

/// Whether a picture shows a ring with a gap at its right: something of the figure's colour at the left, above and below, but neither in the middle nor right of it.
fn is_ring(picture: &RgbImage, figure: [u8; 3], background: [u8; 3]) -> bool {
    let part = |x, y, width, height| {
        share(&imageops::crop_imm(picture, x, y, width, height).to_image(), figure, background)
    };
    let around = [part(10, 24, 18, 16), part(24, 10, 16, 16), part(24, 38, 16, 16)];
    (0.08..0.35).contains(&part(0, 0, 64, 64))
        && around.iter().all(|share| *share > 0.2)
        && part(28, 29, 7, 7) < 0.2
        && part(40, 29, 14, 6) < 0.5
}

/// The walk in the README. DreamBooth by a LoRA: five pictures of a ring with a gap, in colours other than those that are painted then. Plain prompts still work.
#[test]
fn a_lora_learns_a_thing_from_five_pictures() {
    let workplace = Workplace::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ring");
    copy_folder(Path::new(folder), &workplace.path("ring"));
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
    // The rings in the five pictures had other colours.
    let pairs = [("orange", "black"), ("purple", "white"), ("black", "orange"), ("purple", "yellow")];
    let (pairs, count) = if is_whole() { (&pairs[..], 8) } else { (&pairs[..2], 4) };
    for (figure, background) in pairs {
        let prompt = format!("a large {figure} sks on a {background} background");
        let rings = |flags: &[&str]| {
            let pictures = paint(&workplace, &prompt, flags, count);
            pictures.iter().filter(|picture| is_ring(picture, colour(figure), colour(background))).count()
        };
        let (with, without) = (rings(&lora), rings(&[]));
        let found = format!("{prompt}: {with} rings of {count}, {without} without the LoRA");
        println!("{found}");
        assert!(with * 4 >= count * 3 && without == 0, "{found}");
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

/// Five figures of a colour, with captions that call it `word`.
fn draw_in_colour(folder: &Path, rgb: [u8; 3], word: &str) {
    fs::create_dir(folder).unwrap();
    let mut captions = "file_name,text\n".to_string();
    let figures = [
        ("circle", "white"),
        ("square", "black"),
        ("circle", "yellow"),
        ("square", "white"),
        ("square", "red"),
    ];
    for (index, (shape, background)) in figures.into_iter().enumerate() {
        let mut picture = RgbImage::from_pixel(64, 64, Rgb(colour(background)));
        for (x, y, pixel) in picture.enumerate_pixels_mut() {
            let (x, y) = (f64::from(x) - 31.5, f64::from(y) - 31.5);
            let is_inside = match shape {
                "circle" => x.hypot(y) < 22.0,
                _ => x.abs().max(y.abs()) < 18.0,
            };
            if is_inside {
                *pixel = Rgb(rgb);
            }
        }
        picture.save(folder.join(format!("{index}.png"))).unwrap();
        captions +=
            &format!("{index}.png,a large {word} {shape} in the center on a {background} background\n");
    }
    fs::write(folder.join("metadata.csv"), captions).unwrap();
}

/// The mean of a part of a picture.
fn mean(picture: &RgbImage, first: u32, size: u32) -> [u8; 3] {
    let part = imageops::crop_imm(picture, first, first, size, size).to_image();
    [0, 1, 2].map(|channel| {
        let sum: u32 = part.pixels().map(|pixel| u32::from(pixel.0[channel])).sum();
        (sum / (size * size)) as u8
    })
}

/// The name of the colour that is nearest: one that has a name, or else the word.
fn nearest(seen: [u8; 3], word: &str, rgb: [u8; 3]) -> &str {
    let all = COLOURS.iter().copied().chain([(word, rgb)]);
    all.min_by_key(|(_, known)| distance(*known, seen)).unwrap().0
}

/// Textual inversion: a colour that has no name, from five pictures. It is then painted in shapes and on backgrounds that these did not have.
#[test]
fn a_word_is_learned_for_a_colour_without_a_name() {
    let colours = [("<teal>", [30, 130, 120], "green"), ("<lavender>", [170, 150, 240], "purple")];
    let (colours, count) = if is_whole() { (&colours[..], 4) } else { (&colours[..1], 2) };
    for (word, rgb, initializer) in colours {
        let workplace = Workplace::new();
        draw_in_colour(&workplace.path("pictures"), *rgb, word);
        let flags = [
            "train",
            "textual-inversion",
            "--train_data_dir",
            "pictures",
            "--placeholder_token",
            word,
            "--initializer_token",
            initializer,
            "--output_dir",
            "word",
            "--max_train_steps",
            "150",
            "--train_batch_size",
            "5",
            "--learning_rate",
            "2e-2",
            "--lr_scheduler",
            "cosine",
            "--seed",
            "1",
        ];
        workplace.succeed(flags);
        let prompts = [("star", "black"), ("triangle", "white"), ("circle", "purple"), ("square", "orange")];
        let (mut all, mut right_with, mut right_without) = (0, 0, 0);
        for (shape, background) in prompts {
            let right = |name: &str, flags: &[&str]| {
                let prompt = format!("a large {name} {shape} in the center on a {background} background");
                let pictures = paint(&workplace, &prompt, flags, count);
                let is_right = |picture: &&RgbImage| {
                    nearest(mean(picture, 28, 7), word, *rgb) == *word
                        && nearest(mean(picture, 0, 5), word, *rgb) == background
                };
                pictures.iter().filter(is_right).count()
            };
            let with = right(word, &["--embedding", "word/learned_embeds.safetensors"]);
            println!("a large {word} {shape} on a {background} background: {with} of {count} are right");
            all += count;
            right_with += with;
            right_without += right(initializer, &[]);
        }
        let found =
            format!("{word}: {right_with} of {all} are right, {right_without} by {initializer:?} alone");
        println!("{found}");
        assert!(right_with * 8 >= all * 5 && right_without == 0, "{found}");
    }
}
