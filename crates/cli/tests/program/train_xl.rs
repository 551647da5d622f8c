//! `diffuse train` with Stable Diffusion XL: each recipe that is for it, from the command line to a picture.

use std::fs;

use candle_core::{DType, Device, Tensor};

use crate::program::{PARITY, Workplace, make_model};
use crate::train::captioned;
use crate::train_pairs::pairs;

#[test]
fn every_recipe_for_xl_is_painted_with() {
    let workplace = Workplace::new();
    captioned(&workplace, "data", 2, Some("a <shade>"));
    let base = format!("{PARITY}/stable_diffusion_xl/base");
    let paint = |model: &str, flags: &[&str]| {
        let fixed = ["generate", "a <shade> on a white background", "--steps", "2", "--seed", "1"];
        let size = ["--width", "32", "--height", "32", "--model", model];
        workplace.succeed([&fixed[..], &size, flags].concat());
        image::open(workplace.path("out.png")).unwrap().to_rgb8()
    };
    let plain = paint(&base, &[]);
    let train = |recipe: &str, output: &str, flags: &[&str]| {
        let fixed = ["train", recipe, "--pretrained_model_name_or_path", &base, "--resolution", "32"];
        let steps = ["--max_train_steps", "2", "--checkpointing_steps", "1", "--learning_rate", "0.05"];
        let whole = [&fixed[..], &steps, &["--output_dir", output], flags].concat();
        workplace.succeed(&whole);
        // What a run that is cut off after its first step comes to.
        let state = workplace.path(output).join("checkpoint-2");
        let read = || {
            let tensors =
                candle_core::safetensors::load(state.join("training_state.safetensors"), &Device::Cpu);
            let bytes = |tensor: Tensor| format!("{:?}", tensor.flatten_all().unwrap().to_vec1::<f32>());
            let mut all: Vec<_> =
                tensors.unwrap().into_iter().filter(|(_, tensor)| tensor.dtype() == DType::F32).collect();
            all.sort_by(|(a, _), (b, _)| a.cmp(b));
            all.into_iter().map(|(name, tensor)| (name, bytes(tensor))).collect::<Vec<_>>()
        };
        let expected = read();
        fs::remove_dir_all(&state).unwrap();
        workplace.succeed([&whole[..], &["--resume_from_checkpoint", "latest"]].concat());
        assert!(!expected.is_empty() && read() == expected, "{recipe}");
    };
    let lora = |output: &str| format!("{output}/pytorch_lora_weights.safetensors");

    let data = ["--train_data_dir", "data"];
    let flips = [&data[..], &["--random_flip", "--train_text_encoder"]].concat();
    train("text-to-image-lora", "lora", &flips);
    assert!(paint(&base, &["--lora", &lora("lora")]) != plain);
    train("text-to-image-lora", "half", &[&data[..], &["--mixed_precision", "bf16"]].concat());
    assert!(paint(&base, &["--lora", &lora("half")]) != plain);

    let thing = ["--instance_data_dir", "data", "--instance_prompt", "a sks", "--lora_format", "kohya"];
    train("dreambooth-lora", "thing", &thing);
    assert!(paint(&base, &["--lora", &lora("thing")]) != plain);

    let word = ["--placeholder_token", "<shade>", "--initializer_token", "red", "--num_vectors", "2"];
    train("textual-inversion", "word", &[&data[..], &word].concat());
    assert!(paint(&base, &["--embedding", "word/learned_embeds.safetensors:<shade>"]) != plain);

    train("text-to-image", "whole", &[&data[..], &["--mixed_precision", "bf16"]].concat());
    assert!(paint("whole/model", &[]) != plain);
}

#[test]
fn a_model_that_paints_into_pictures_learns_a_thing() {
    let workplace = Workplace::new();
    pairs(&workplace, "data", "mask");
    let (base, unet) = ("stable_diffusion_xl/base", "inpainting/xl_unet");
    make_model(&workplace, "into", base, unet, "StableDiffusionXLInpaintPipeline");
    let flags = "train dreambooth-lora --pretrained_model_name_or_path into --instance_data_dir data --instance_prompt sks --resolution 32 \
        --max_train_steps 2 --checkpointing_steps 1 --learning_rate 0.05 --validation_prompt sks --num_inference_steps 2 --output_dir out";
    let flags: Vec<&str> = flags.split_whitespace().collect();
    workplace.succeed(&flags);
    assert!(workplace.path("out/validation/000002.png").is_file());
    let lora = "out/pytorch_lora_weights.safetensors";
    let written = fs::read(workplace.path(lora)).unwrap();
    fs::remove_dir_all(workplace.path("out/checkpoint-2")).unwrap();
    workplace.succeed([&flags[..], &["--resume_from_checkpoint", "latest"]].concat());
    assert!(fs::read(workplace.path(lora)).unwrap() == written);
    let paint = |flags: &[&str]| {
        let fixed = ["generate", "a sks star", "--steps", "3", "--seed", "1", "--model", "into"];
        let into = ["--init-image", "data/0.png", "--mask", "data/frames/0.png"];
        workplace.succeed([&fixed[..], &into, flags].concat());
        image::open(workplace.path("out.png")).unwrap().to_rgb8()
    };
    assert!(paint(&["--lora", &format!("{lora}:4")]) != paint(&[]));
}

#[test]
fn several_words_go_on_to_the_same_files_and_are_painted_with() {
    let workplace = Workplace::new();
    captioned(&workplace, "data", 2, Some("a <s1><s2>"));
    let base = format!("{PARITY}/stable_diffusion_xl/base");
    let train = |flags: &[&str]| {
        let fixed = [
            "train",
            "pivotal-tuning",
            "--pretrained_model_name_or_path",
            &base,
            "--resolution=32",
            "--train_data_dir=data",
            "--placeholder_tokens=<s1>|<s2>",
            "--initializer_tokens=red|<rand-0.5>",
            "--max_train_steps_ti=2",
            "--max_train_steps=2",
            "--learning_rate_ti=0.05",
            "--checkpointing_steps=1",
            "--output_dir=out",
        ];
        workplace.succeed([&fixed[..], flags].concat());
        ["inversion/<s1>", "inversion/<s2>", "<s1>", "<s2>", "pytorch_lora_weights"]
            .map(|name| fs::read(workplace.path(&format!("out/{name}.safetensors"))).unwrap())
    };
    let whole = train(&[]);
    assert!(!workplace.path("out/learned_embeds.safetensors").exists(), "it has room for one word");
    for folders in
        [&["out/inversion/checkpoint-2", "out/checkpoint-1", "out/checkpoint-2"][..], &["out/checkpoint-2"]]
    {
        folders.iter().for_each(|folder| fs::remove_dir_all(workplace.path(folder)).unwrap());
        assert!(train(&["--resume_from_checkpoint=latest"]) == whole, "{folders:?}");
    }
    let paint = |flags: &[&str]| {
        let fixed = ["generate", "a large <s1> circle and <s2>", "--steps", "2", "--seed", "1"];
        let size = ["--width", "32", "--height", "32", "--model", &base];
        workplace.succeed([&fixed[..], &size, flags].concat());
        image::open(workplace.path("out.png")).unwrap().to_rgb8()
    };
    let [first, second] = ["out/<s1>.safetensors", "out/<s2>.safetensors"].map(|file| ["--embedding", file]);
    let both = paint(&[first, second].concat());
    assert!(both != paint(&first) && both != paint(&second) && both != paint(&[]));
}
