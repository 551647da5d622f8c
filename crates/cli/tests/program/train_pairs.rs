//! `diffuse train` where each picture comes with another one, and with models that paint into pictures; what was taught then paints.

use std::fs;

use image::{Rgb, RgbImage};
use serde_json::Value;

use crate::program::{PARITY, Workplace, make_model};

const SD1: &str = "text_to_image/sd1";

/// Pictures with frames, and the frames alone, which the metadata name as `column`.
pub(crate) fn pairs(workplace: &Workplace, folder: &str, column: &str) {
    let folder = workplace.path(folder);
    fs::create_dir_all(folder.join("frames")).unwrap();
    let mut metadata = String::new();
    for index in 0..3_u8 {
        let is_frame = |x: u32, y: u32| x.min(y) < 8 || x.max(y) > 28;
        let shade = Rgb([60 * index, 240 - 60 * index, 90]);
        let both = RgbImage::from_fn(40, 32, |x, y| if is_frame(x, y) { Rgb([250, 240, 20]) } else { shade });
        let frame = RgbImage::from_fn(40, 32, |x, y| Rgb([if is_frame(x, y) { 255 } else { 0 }; 3]));
        both.save(folder.join(format!("{index}.png"))).unwrap();
        frame.save(folder.join(format!("frames/{index}.png"))).unwrap();
        metadata += &format!(
            "{{\"file_name\": \"{index}.png\", \"{column}\": \"frames/{index}.png\", \"text\": \"shade {index}\"}}\n"
        );
    }
    fs::write(folder.join("metadata.jsonl"), metadata).unwrap();
}

pub(crate) fn sd1() -> String {
    format!("{PARITY}/{SD1}")
}

fn paint(workplace: &Workplace, flags: &[&str]) -> RgbImage {
    let fixed = ["generate", "a star", "--steps", "3", "--seed", "1"];
    workplace.succeed([&fixed[..], flags].concat());
    image::open(workplace.path("out.png")).unwrap().to_rgb8()
}

/// Goes on from the checkpoint before the last, to the same bits.
fn check_resume(workplace: &Workplace, flags: &[&str], output: &str, result: &str) {
    let result = workplace.path(output).join(result);
    let whole = fs::read(&result).unwrap();
    fs::remove_file(&result).unwrap();
    fs::remove_dir_all(workplace.path(output).join("checkpoint-3")).unwrap();
    let run = workplace.succeed([flags, &["--resume_from_checkpoint", "latest"]].concat());
    assert!(run.stderr.contains("going on from") && run.stderr.contains("checkpoint-2"), "{}", run.stderr);
    assert!(fs::read(&result).unwrap() == whole);
}

#[test]
fn a_controlnet_is_trained_and_steers() {
    let workplace = Workplace::new();
    pairs(&workplace, "data", "conditioning_image");
    let model = sd1();
    let fixed = format!(
        "train controlnet --pretrained_model_name_or_path {model} --train_data_dir data --max_train_steps 3 --checkpointing_steps 1 \
         --train_batch_size 2 --gradient_accumulation_steps 2 --learning_rate 3e-2 --proportion_empty_prompts 0.3"
    );
    let fixed: Vec<&str> = fixed.split_whitespace().collect();
    let look = ["--validation_prompt", "star", "--validation_image", "data/frames/0.png"];
    let first = [&fixed[..], &look, &["--num_inference_steps", "2", "--output_dir", "out"]].concat();
    let run = workplace.succeed(&first);
    assert!(run.stderr.ends_with("wrote out/controlnet\n"), "{}", run.stderr);
    assert!(workplace.path("out/validation/000003.png").is_file());
    let weights = "controlnet/diffusion_pytorch_model.safetensors";
    check_resume(&workplace, &first, "out", weights);
    // Without anything to look at, encoders are freed, and nothing else is different.
    let run = workplace.succeed([&fixed[..], &["--output_dir", "freed"]].concat());
    assert!(run.stderr.contains("the text encoders are not kept"), "{}", run.stderr);
    let file = |output: &str| fs::read(workplace.path(output).join(weights)).unwrap();
    assert!(file("freed") == file("out"));
    let plain = ["--model", &model, "--width", "40", "--height", "32"];
    let steer = |net: &str| {
        let control = format!("{net}:data/frames/0.png");
        paint(&workplace, &[&plain[..], &["--control", &control]].concat())
    };
    let steered = steer("out/controlnet");
    assert!(steered != paint(&workplace, &plain));
    let more = ["--controlnet_model_name_or_path", "out/controlnet", "--mixed_precision", "bf16"];
    workplace.succeed([&fixed[..], &more, &["--output_dir", "further"]].concat());
    assert!(steer("further/controlnet") != steered);
    let (xl_model, xl) = (format!("{PARITY}/stable_diffusion_xl/base"), format!("{PARITY}/control_net/xl"));
    let flags = format!(
        "train controlnet --pretrained_model_name_or_path {xl_model} --train_data_dir data --resolution 32 --max_train_steps 1 --output_dir xl"
    );
    workplace.succeed(flags.split_whitespace());
    let control = "xl/controlnet:data/frames/0.png";
    paint(&workplace, &["--model", &xl_model, "--width", "40", "--height", "32", "--control", control]);

    let refuse = |flags: &[&str], culprits: &[&str]| {
        let data = ["train", "controlnet", "--train_data_dir", "data", "--output_dir", "bad"];
        workplace.refuse([&data[..], &["--max_train_steps", "1"], flags].concat(), culprits);
    };
    let plain = ["--pretrained_model_name_or_path", &model];
    let and = |flags: &[&'static str]| [&plain[..], flags].concat();
    refuse(&and(&["--conditioning_image_column", "edges"]), &["metadata.jsonl line 1", "no column edges"]);
    refuse(&and(&["--image_column", "picture"]), &["metadata.jsonl line 1", "no column picture"]);
    refuse(&and(&["--caption_column", "words"]), &["metadata.jsonl line 1", "no column words"]);
    refuse(&and(&["--validation_prompt", "a star"]), &["--validation-image", "both"]);
    refuse(&and(&["--conditioning_dropout_prob", "0.1"]), &["--conditioning-dropout-prob"]);
    refuse(&and(&["--proportion_empty_prompts", "2"]), &["--proportion-empty-prompts is 2"]);
    let begun = |net| [&plain[..], &["--controlnet_model_name_or_path", net]].concat();
    refuse(&begun(&xl), &["control_net/xl", "Stable Diffusion XL"]);
    refuse(&begun(&model), &["sd1", "whole model"]);
    make_model(&workplace, "into", SD1, "inpainting/sd1_unet", "StableDiffusionInpaintPipeline");
    refuse(&["--pretrained_model_name_or_path", "into"], &["into was made to paint into pictures"]);
    fs::remove_file(workplace.path("data/frames/1.png")).unwrap();
    refuse(&plain, &["metadata.jsonl", "not there", "frames/1.png"]);
}

#[test]
fn a_model_learns_to_edit_pictures() {
    let workplace = Workplace::new();
    pairs(&workplace, "data", "before");
    let model = sd1();
    let fixed = "train instruct-pix2pix --train_data_dir data --original_image_column before --edited_image_column image \
        --edit_prompt_column text --max_train_steps 3 --checkpointing_steps 1 --train_batch_size 2 --center_crop --learning_rate 1e-3 \
        --conditioning_dropout_prob 0.2 --use_ema";
    let look = "--validation_image data/0.png --validation_prompt star --num_inference_steps 2";
    let train = |model, output| {
        let more = ["--pretrained_model_name_or_path", model, "--output_dir", output];
        fixed.split_whitespace().chain(look.split_whitespace()).chain(more).collect::<Vec<&str>>()
    };
    let flags = train(&model, "out");
    workplace.succeed(&flags);
    let weights = "model/unet/diffusion_pytorch_model.safetensors";
    check_resume(&workplace, &flags, "out", weights);
    assert!(workplace.path("out/validation/000003.png").is_file());
    // Without anything to look at, encoders are freed, and nothing else is different.
    let more = ["--pretrained_model_name_or_path", &model, "--output_dir", "freed"];
    let run = workplace.succeed(fixed.split_whitespace().chain(more));
    assert!(run.stderr.contains("the text encoders are not kept"), "{}", run.stderr);
    let file = |output: &str| fs::read(workplace.path(output).join(weights)).unwrap();
    assert!(file("freed") == file("out"));
    let index: Value =
        serde_json::from_slice(&fs::read(workplace.path("out/model/model_index.json")).unwrap()).unwrap();
    assert_eq!(index["_class_name"], "StableDiffusionInstructPix2PixPipeline");
    let edit = |model: &str| paint(&workplace, &["--model", model, "--init-image", "data/0.png"]);
    let edited = edit("out/model");
    // One that edits already goes on.
    let further = train("out/model", "further").into_iter();
    workplace
        .succeed(further.map(|flag| if flag == "--validation_image" { "--val_image_url" } else { flag }));
    assert!(workplace.path("further/validation/000003.png").is_file());
    assert!(edit("further/model") != edited);

    let refuse = |flags: &[&str], culprits: &[&str]| {
        let data = ["train", "instruct-pix2pix", "--train_data_dir", "data", "--output_dir", "bad"];
        workplace.refuse([&data[..], &["--max_train_steps", "1"], flags].concat(), culprits);
    };
    refuse(&[], &["--pretrained-model-name-or-path"]);
    refuse(&["--pretrained_model_name_or_path", &model], &["metadata.jsonl line 1", "no column"]);
    let xl = format!("{PARITY}/stable_diffusion_xl/base");
    refuse(&["--pretrained_model_name_or_path", &xl], &["stable_diffusion_xl/base", "Stable Diffusion XL"]);
    let lora = ["train", "text-to-image-lora", "--train_data_dir", "data", "--output_dir", "bad"];
    let refused = [&lora[..], &["--pretrained_model_name_or_path", "out/model"]].concat();
    workplace.refuse(refused, &["out/model was made to edit pictures by instructions"]);
    let shares = ["--pretrained_model_name_or_path", &model, "--conditioning_dropout_prob", "0.4"];
    refuse(&shares, &["--conditioning-dropout-prob is 0.4"]);
    let url = "https://hf.co/pictures/mountain.png";
    let look =
        ["--pretrained_model_name_or_path", &model, "--validation_prompt", "a", "--val_image_url", url];
    refuse(&look, &[url, "pictures are not fetched"]);
}

#[test]
fn a_model_that_paints_into_pictures_learns_a_thing() {
    let workplace = Workplace::new();
    pairs(&workplace, "data", "mask");
    make_model(&workplace, "into", SD1, "inpainting/sd1_unet", "StableDiffusionInpaintPipeline");
    let flags = "train dreambooth-lora --pretrained_model_name_or_path into --instance_data_dir data --instance_prompt sks \
        --with_prior_preservation --class_data_dir class --class_prompt star --num_class_images 2 --num_inference_steps 2 \
        --max_train_steps 3 --checkpointing_steps 1 --learning_rate 1e-2 --validation_prompt sks --output_dir out";
    let flags: Vec<&str> = flags.split_whitespace().collect();
    workplace.succeed(&flags);
    assert_eq!(fs::read_dir(workplace.path("class")).unwrap().count(), 2);
    assert!(workplace.path("out/validation/000003.png").is_file());
    let lora = "pytorch_lora_weights.safetensors";
    check_resume(&workplace, &flags, "out", lora);
    let into = ["--model", "into", "--init-image", "data/0.png", "--mask", "data/frames/0.png"];
    let with = [&into[..], &["--lora", "out/pytorch_lora_weights.safetensors:4"]].concat();
    assert!(paint(&workplace, &with) != paint(&workplace, &into));
    let captioned = "train text-to-image-lora --pretrained_model_name_or_path into --train_data_dir data --max_train_steps 1 --output_dir text";
    workplace.succeed(captioned.split_whitespace());
}
