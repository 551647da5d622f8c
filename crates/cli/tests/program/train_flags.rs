//! Flags of `diffuse train`: each does what it says.

use std::collections::BTreeMap;
use std::fs;

use candle_core::{Device, Tensor};
use image::{Luma, Rgb, RgbImage};
use serde_json::Value;

use crate::program::{Workplace, shapes};
use crate::train::{captioned, pictures};

/// Trains a LoRA on `data` for a few steps; gives what it has in its file.
fn lora(workplace: &Workplace, output: &str, flags: &[&str]) -> BTreeMap<String, Tensor> {
    let fixed =
        ["train", "text-to-image-lora", "--train_data_dir", "data", "--center_crop", "--output_dir", output];
    workplace.succeed([&fixed[..], flags].concat());
    let file = workplace.path(output).join("pytorch_lora_weights.safetensors");
    candle_core::safetensors::load(file, &Device::Cpu).unwrap().into_iter().collect()
}

fn log(workplace: &Workplace, output: &str) -> Vec<Value> {
    let text = fs::read_to_string(workplace.path(output).join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn largest(tensors: &BTreeMap<String, Tensor>, end: &str) -> f32 {
    let largest =
        |tensor: &Tensor| tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
    tensors
        .iter()
        .filter(|(name, _)| name.ends_with(end))
        .map(|(_, tensor)| largest(tensor))
        .fold(0.0, f32::max)
}

fn values(tensors: &BTreeMap<String, Tensor>) -> Vec<Vec<f32>> {
    tensors.values().map(|tensor| tensor.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

#[test]
fn loras_are_as_peft_has_them() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    // The first step of AdamW moves each weight by the learning rate; the first matrices stay.
    let step = ["--max_train_steps", "1", "--learning_rate", "1e-3", "--adam_weight_decay", "0"];
    let plain = lora(&workplace, "plain", &step);
    assert!((largest(&plain, "lora_B.weight") - 1e-3).abs() < 1e-5);
    let stabilized = lora(&workplace, "stabilized", &[&step[..], &["--use_rslora"]].concat());
    // alpha 4 over the root of rank 4.
    assert!((largest(&stabilized, "lora_B.weight") - 2e-3).abs() < 1e-5);

    let chosen =
        lora(&workplace, "chosen", &[&step[..], &["--target_modules", r".*attn2\.to_[kv]"]].concat());
    assert!(!chosen.is_empty() && chosen.len() < plain.len());
    for name in chosen.keys() {
        assert!(name.contains(".attn2.to_k.") || name.contains(".attn2.to_v."), "{name}");
    }

    let named =
        lora(&workplace, "named", &[&step[..], &["--lora_layers", "attn2.to_k, attn2.to_v,"]].concat());
    assert!(named.keys().eq(chosen.keys()));

    let still = ["--max_train_steps", "1", "--learning_rate", "0"];
    let beyond = |how: &str| {
        let lora = lora(&workplace, how, &[&still[..], &["--init_lora_weights", how]].concat());
        // Evenly distributed ones keep to one over the root of the inputs.
        lora.iter().filter(|(name, _)| name.ends_with("lora_A.weight")).any(|(_, down)| {
            let bound = (down.dims()[1] as f32).powf(-0.5);
            down.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > bound
        })
    };
    assert!(beyond("gaussian") && !beyond("true"));
    let evenly =
        |how: &str| values(&lora(&workplace, how, &[&still[..], &["--init_lora_weights", how]].concat()));
    assert!(evenly("kaiming") == evenly("true") && evenly("default") == evenly("true"));
}

#[test]
fn a_dora_paints_what_it_painted_while_it_was_trained() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let layers = "to_k,to_q,to_v,to_out.0,conv1,proj_in";
    let flags = [
        "--use_dora",
        "--lora_layers",
        layers,
        "--lora_alpha",
        "6",
        "--max_train_steps",
        "3",
        "--learning_rate",
        "1e-2",
        "--train_text_encoder",
        "--validation_prompt",
        "a large red circle",
        "--num_validation_images",
        "1",
        "--num_inference_steps",
        "3",
    ];
    let trained = lora(&workplace, "out", &flags);
    let parts = [".lora_A.", ".lora_B.", ".lora_magnitude_vector"];
    let counts = parts.map(|part| trained.keys().filter(|name| name.contains(part)).count());
    assert!(counts[0] > 0 && counts == [counts[0]; 3], "{counts:?}");
    let shown = image::open(workplace.path("out/validation/000003.png")).unwrap().to_rgb8();
    let paint = |flags: &[&str]| {
        let fixed = ["generate", "a large red circle", "--steps", "3", "--seed", "0"];
        workplace.succeed([&fixed[..], flags].concat());
        image::open(workplace.path("out.png")).unwrap().to_rgb8()
    };
    let farthest = |picture: &RgbImage| {
        picture.as_raw().iter().zip(shown.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    };
    let file = "out/pytorch_lora_weights.safetensors";
    assert!(farthest(&paint(&[])) > 30);
    assert!(farthest(&paint(&["--lora", file])) <= 2);
    workplace.succeed(["convert", file, "kohya.safetensors", "--lora-format", "kohya"]);
    assert!(farthest(&paint(&["--lora", "kohya.safetensors"])) <= 2);
}

#[test]
fn optimizers_and_learning_rates_are_those_asked_for() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let sgd = ["--max_train_steps", "2", "--learning_rate", "1e-2", "--optimizer", "SGD"];
    let plain = lora(&workplace, "plain", &sgd);
    // Gradients are clipped to a norm of 1, and SGD takes them as they are.
    let moved = largest(&plain, "lora_B.weight");
    assert!(moved > 0.0 && moved < 1e-2, "{moved}");
    let momentum = lora(&workplace, "momentum", &[&sgd[..], &["--momentum", "0.9"]].concat());
    assert!(values(&momentum) != values(&plain));

    let rules =
        ["--lr_scheduler", "piecewise", "--lr_step_rules", "1:2,0.5:3,0.1", "--learning_rate", "1e-3"];
    lora(&workplace, "rules", &[&rules[..], &["--max_train_steps", "4"]].concat());
    let rates: Vec<f64> =
        log(&workplace, "rules").iter().map(|line| line["learning_rate"].as_f64().unwrap()).collect();
    assert_eq!(rates, [1e-3, 1e-3, 5e-4, 1e-4]);
}

#[test]
fn an_optimizer_with_states_of_8_bits_has_two_names() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    // States of fewer than 4096 values are float32.
    let steps = ["--max_train_steps", "3", "--learning_rate", "1e-2", "--rank", "128"];
    let train = |output: &str, flags: &[&str]| {
        values(&lora(&workplace, output, &[&steps[..], &["--lora_layers", "to_k"], flags].concat()))
    };
    let small = train("small", &["--optimizer", "AdamW8bit"]);
    assert!(small == train("flag", &["--use_8bit_adam"]));
    assert!(small != train("plain", &[]));
}

#[test]
fn gradients_are_clipped_where_that_is_not_turned_off() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let steps = ["--max_train_steps", "1", "--learning_rate", "1", "--optimizer", "sgd"];
    let train = |output: &str, norm: &str| {
        let flags = [&steps[..], &["--max_grad_norm", norm]].concat();
        (values(&lora(&workplace, output, &flags)), log(&workplace, output)[0]["grad_norm"].clone())
    };
    let (off, norm) = train("off", "0");
    assert!(norm.is_null(), "{norm}");
    assert!(off == train("high", "1e9").0);
    assert!(off != train("low", "1e-6").0);
}

#[test]
fn a_model_is_painted_with_by_the_noise_that_it_was_taught() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let model = shapes().display().to_string();
    let train = |output: &str, flags: &[&str]| {
        let fixed = [
            "train",
            "text-to-image",
            "--pretrained_model_name_or_path",
            &model,
            "--train_data_dir",
            "data",
            "--output_dir",
            output,
            "--max_train_steps",
            "1",
            "--learning_rate",
            "0",
            "--center_crop",
        ];
        workplace.succeed([&fixed[..], flags].concat());
        log(&workplace, output)[0]["loss"].as_f64().unwrap()
    };
    let (plain, velocity) = (train("plain", &[]), train("velocity", &["--prediction_type", "v_prediction"]));
    let zero = train("zero", &["--prediction_type", "v_prediction", "--zero_terminal_snr"]);
    assert!(plain != velocity && velocity != zero && plain != zero, "{plain}, {velocity}, {zero}");
    let config = |output: &str| -> Value {
        let file = workplace.path(output).join("model/scheduler/scheduler_config.json");
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    };
    assert_eq!(config("velocity")["prediction_type"], "v_prediction");
    assert_eq!(config("zero")["rescale_betas_zero_snr"], true);
    let paint = |output: &str| {
        let folder = format!("{output}/model");
        workplace.succeed(["generate", "a red circle", "--model", &folder, "--steps", "2", "--seed", "1"]);
        image::open(workplace.path("out.png")).unwrap().to_rgb8()
    };
    assert!(paint("plain") != paint("velocity"));
    assert!(paint("zero") != paint("velocity"));
}

#[test]
fn masks_weigh_the_loss() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    fs::create_dir(workplace.path("named")).unwrap();
    for index in 0..2 {
        let mask = image::GrayImage::from_fn(64, 64, |x, _| Luma([if x < 40 { 0 } else { 255 }]));
        mask.save(workplace.path(&format!("data/{index}.mask.png"))).unwrap();
        mask.save(workplace.path(&format!("named/m{index}.png"))).unwrap();
        fs::copy(workplace.path(&format!("data/{index}.png")), workplace.path(&format!("named/{index}.png")))
            .unwrap();
    }
    let rows = "file_name,text,mask\n0.png,a shade number 0,m0.png\n1.png,a shade number 1,m1.png\n";
    fs::write(workplace.path("named/metadata.csv"), rows).unwrap();
    let steps = ["--max_train_steps", "2", "--learning_rate", "1e-2", "--train_batch_size", "2"];
    let train = |output: &str, flags: &[&str]| lora(&workplace, output, &[&steps[..], flags].concat());
    let beside = train("beside", &["--use_mask_captioned_data"]);
    // A temperature of zero makes all count alike; the masks themselves are no pictures to learn.
    let even = train("even", &["--use_mask_captioned_data", "--mask_temperature", "0"]);
    fs::remove_file(workplace.path("data/0.mask.png")).unwrap();
    fs::remove_file(workplace.path("data/1.mask.png")).unwrap();
    let none = train("none", &[]);
    assert!(values(&even) == values(&none));
    assert!(values(&beside) != values(&none));
    let named = [&steps[..], &["--train_data_dir", "named", "--mask_column", "mask"]].concat();
    assert!(values(&lora(&workplace, "column", &named)) == values(&beside));
    let run = workplace.run([
        "train",
        "text-to-image-lora",
        "--train_data_dir",
        "data",
        "--output_dir",
        "o",
        "--use_mask_captioned_data",
    ]);
    assert_eq!((run.status, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
    assert!(run.stderr.contains("lacks masks: 0.mask.png, 1.mask.png"), "{}", run.stderr);
}

#[test]
fn buckets_keep_the_shape_of_pictures() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let wide = RgbImage::from_fn(160, 80, |x, y| Rgb([(x / 2) as u8, y as u8, 90]));
    wide.save(workplace.path("data/wide.png")).unwrap();
    fs::write(workplace.path("data/wide.txt"), "a wide shade").unwrap();
    let steps = ["--max_train_steps", "2", "--learning_rate", "1e-2", "--resolution", "64", "--seed", "1"];
    let train =
        |output: &str, flags: &[&str]| values(&lora(&workplace, output, &[&steps[..], flags].concat()));
    let square = train("square", &[]);
    let made = train("made", &["--use_aspect_ratio_buckets"]);
    let listed = train("listed", &["--aspect_ratio_buckets", "64,64;40,80"]);
    assert!(square != made && square != listed && made != listed);
    // Heights and widths, of which these are the sizes that are made too.
    assert!(train("same", &["--aspect_ratio_buckets", "64,64;40,88"]) == made);
    let kohya =
        ["--enable_bucket", "--min_bucket_reso", "40", "--max_bucket_reso", "80", "--bucket_reso_steps", "8"];
    assert!(train("kohya", &kohya) != made);
}

#[test]
fn learning_rates_are_scaled_by_the_pictures_of_a_step() {
    let workplace = Workplace::new();
    captioned(&workplace, "data", 4, Some("a <shade>"));
    let config =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/unconditional/ddpm/unet/config.json");
    let word = ["--placeholder_token", "<shade>", "--initializer_token", "red"];
    let runs: [(&str, &[&str], &str); 3] = [
        ("textual-inversion", &word, "learned_embeds.safetensors"),
        ("text-to-image-lora", &[], "pytorch_lora_weights.safetensors"),
        (
            "unconditional",
            &["--model_config_name_or_path", config],
            "model/unet/diffusion_pytorch_model.safetensors",
        ),
    ];
    for (recipe, flags, file) in runs {
        let run = |output: &str, more: &[&str]| {
            let fixed = ["train", recipe, "--train_data_dir", "data", "--max_train_steps", "2"];
            let batch = ["--train_batch_size", "2", "--gradient_accumulation_steps", "2"];
            workplace.succeed([&fixed[..], &batch, &["--output_dir", output], flags, more].concat());
            fs::read(workplace.path(output).join(file)).unwrap()
        };
        let scaled = run("scaled", &["--learning_rate", "0.0005", "--scale_lr"]);
        assert!(scaled == run("plain", &["--learning_rate", "0.002"]), "{recipe}");
        let decayed = run("decayed", &["--learning_rate", "0.002", "--adam_weight_decay", "0.5"]);
        assert!(scaled != decayed, "{recipe}");
    }
}

#[test]
fn a_rate_of_the_text_encoders_own_is_scaled_in_pivotal_tuning_alone() {
    let workplace = Workplace::new();
    captioned(&workplace, "data", 4, Some("a <shade>"));
    let word = ["--placeholder_token", "<shade>", "--initializer_token", "red", "--max_train_steps_ti", "1"];
    let runs: [(&str, &[&str], &str); 2] =
        [("text-to-image-lora", &[], "0.002"), ("pivotal-tuning", &word, "0.008")];
    for (recipe, flags, meant) in runs {
        let run = |output: &str, rates: [&str; 3], more: &[&str]| {
            let fixed = ["train", recipe, "--train_data_dir", "data", "--output_dir", output];
            let steps = ["--max_train_steps", "2", "--train_batch_size", "2", "--train_text_encoder"];
            let batch = ["--gradient_accumulation_steps", "2"];
            let [all, text, first] = rates;
            let mut rates = vec!["--learning_rate", all, "--text_encoder_lr", text];
            if recipe == "pivotal-tuning" {
                rates.extend(["--learning_rate_ti", first]);
            }
            workplace.succeed([&fixed[..], &steps, &batch, &rates[..], flags, more].concat());
            fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).unwrap()
        };
        let scaled = run("scaled", ["0.0005", "0.002", "0.0005"], &["--scale_lr"]);
        assert!(scaled == run("plain", ["0.002", meant, "0.002"], &[]), "{recipe}");
        let other = if meant == "0.002" { "0.008" } else { "0.002" };
        assert!(scaled != run("other", ["0.002", other, "0.002"], &[]), "{recipe}");
    }
}

#[test]
fn a_mask_needs_no_captions_beside_it() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    for index in 0..2 {
        fs::remove_file(workplace.path(&format!("data/{index}.txt"))).unwrap();
        let mask = workplace.path(&format!("data/mask-{index}.png"));
        image::GrayImage::from_pixel(64, 64, Luma([255])).save(mask).unwrap();
    }
    let rows = "file_name,mask\n0.png,mask-0.png\n1.png,mask-1.png\n";
    fs::write(workplace.path("data/metadata.csv"), rows).unwrap();
    let run = workplace.succeed([
        "train",
        "dreambooth-lora",
        "--instance_data_dir",
        "data",
        "--instance_prompt",
        "a sks",
        "--mask_column",
        "mask",
        "--output_dir",
        "out",
        "--max_train_steps",
        "1",
    ]);
    assert!(run.stderr.contains("wrote out/pytorch_lora_weights.safetensors"), "{}", run.stderr);
}

#[test]
fn flags_of_guides_that_change_nothing_say_so() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let fixed = [
        "train",
        "text-to-image-lora",
        "--train_data_dir",
        "data",
        "--output_dir",
        "out",
        "--num_epochs",
        "1",
    ];
    let flags =
        ["--enable_xformers_memory_efficient_attention", "--dataloader_num_workers=4", "--push_to_hub"];
    let stderr = workplace.succeed([&fixed[..], &flags].concat()).stderr;
    assert!(stderr.contains("--enable-xformers-memory-efficient-attention changes nothing"), "{stderr}");
    assert!(stderr.contains("--dataloader-num-workers changes nothing"), "{stderr}");
    assert!(stderr.contains("--push-to-hub changes nothing"), "{stderr}");
    let others = "--cache_dir cache --save_as_full_pipeline --only_save_embeds --skip_save_text_encoder --no_safe_serialization \
        --overwrite_output_dir --validation_scheduler DDPMScheduler --device cuda:0 --train_inpainting";
    let others: Vec<&str> = others.split_whitespace().collect();
    let elsewhere = ["--output_dir", "elsewhere"];
    let stderr = workplace.succeed([&fixed[..], &elsewhere, &others[..]].concat()).stderr;
    for flag in others.iter().filter(|flag| flag.starts_with("--")) {
        let line = format!("{} changes nothing: ", flag.replace('_', "-"));
        assert!(stderr.contains(&line), "{line}: {stderr}");
    }
    assert_eq!(log(&workplace, "out").len(), 1);
    let run = workplace.run([&fixed[..], &["--mixed_precision", "fp16"]].concat());
    assert_eq!(run.status, Some(1));
    assert!(run.stderr.contains("fp16") && run.stderr.contains("give bf16"), "{}", run.stderr);
    for service in ["wandb", "comet_ml", "all"] {
        let run = workplace.run([&fixed[..], &["--report_to", service]].concat());
        assert_eq!(run.status, Some(1), "{}", run.stderr);
        assert!(
            run.stderr.contains("--report-to") && run.stderr.contains("give tensorboard"),
            "{}",
            run.stderr
        );
    }
}

#[test]
fn no_more_pictures_are_learned_from_than_asked_for() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 5);
    let steps = |output: &str, flags: &[&str]| {
        lora(&workplace, output, &[&["--num_train_epochs", "1"], flags].concat());
        log(&workplace, output).len()
    };
    assert_eq!(steps("all", &[]), 5);
    assert_eq!(steps("some", &["--max_train_samples", "2"]), 2);
    assert_eq!(steps("more", &["--max_train_samples", "9"]), 5);
}

#[test]
fn pictures_that_metadata_does_not_name_are_told_once() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 3);
    let row = "{\"file_name\": \"0.png\", \"text\": \"a shade\"}\n";
    fs::write(workplace.path("data/metadata.jsonl"), row).unwrap();
    pictures(&workplace, "thing", 1);
    let concept = r#"{"instance_data_dir": "thing", "instance_prompt": "sks", "class_data_dir": "data", "class_prompt": "shade"}"#;
    fs::write(workplace.path("concepts.json"), format!("[{concept}, {concept}]")).unwrap();
    for flags in [
        "text-to-image-lora --train_data_dir data --output_dir captioned",
        "custom-diffusion --concepts_list concepts.json --with_prior_preservation --num_class_images 1 --output_dir things",
    ] {
        let flags = ["train", "--max_train_steps", "1"].into_iter().chain(flags.split_whitespace());
        let told = workplace.succeed(flags).stderr;
        let line = "2 pictures of data are not in its metadata and are left out\n";
        assert_eq!(told.matches(line).count(), 1, "{told}");
    }
}

#[test]
fn pictures_are_seen_through_the_vae_that_was_given() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let (own, other) = (shapes().join("vae"), workplace.path("other"));
    fs::create_dir(&other).unwrap();
    fs::copy(own.join("config.json"), other.join("config.json")).unwrap();
    let weights = "diffusion_pytorch_model.safetensors";
    let mut tensors = candle_core::safetensors::load(own.join(weights), &Device::Cpu).unwrap();
    let first = tensors.get_mut("encoder.conv_in.weight").unwrap();
    *first = (&*first * 0.5).unwrap();
    candle_core::safetensors::save(&tensors, other.join(weights)).unwrap();

    let step = ["--max_train_steps", "1", "--learning_rate", "1e-3"];
    let through = |output: &str, vae: &str| {
        let vae = ["--pretrained_vae_model_name_or_path", vae];
        values(&lora(&workplace, output, &[&step[..], &vae].concat()))
    };
    let plain = values(&lora(&workplace, "plain", &step));
    assert!(through("own", own.to_str().unwrap()) == plain);
    assert!(through("whole", shapes().to_str().unwrap()) == plain);
    let changed = through("changed", "other");
    assert!(changed != plain);
    workplace.succeed(["convert", "other", "other.safetensors"]);
    assert!(through("file", "other.safetensors") == changed);

    // A whole model is written with it.
    let model = shapes().display().to_string();
    let flags =
        ["--train_data_dir", "data", "--output_dir", "out", "--pretrained_model_name_or_path", &model];
    let vae = ["--pretrained_vae_model_name_or_path", "other"];
    workplace.succeed([&["train", "text-to-image"][..], &flags, &step, &vae].concat());
    let written = candle_core::safetensors::load(workplace.path("out/model/vae").join(weights), &Device::Cpu);
    let written = written.unwrap()["encoder.conv_in.weight"].clone();
    let given = tensors["encoder.conv_in.weight"].to_dtype(written.dtype()).unwrap();
    assert_eq!(
        written.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
        given.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    );
}

#[test]
fn a_whole_model_learns_a_thing_and_keeps_its_class() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let model = shapes().display().to_string();
    let train = |output: &str, flags: &[&str]| {
        let fixed = [
            "train",
            "dreambooth",
            "--pretrained_model_name_or_path",
            &model,
            "--instance_data_dir",
            "data",
            "--instance_prompt",
            "a sks",
            "--with_prior_preservation",
            "--class_data_dir",
            "class",
            "--class_prompt",
            "a shade",
            "--num_class_images",
            "2",
            "--num_inference_steps",
            "2",
            "--train_text_encoder",
            "--use_8bit_adam",
            "--gradient_checkpointing",
            "--checkpointing_steps",
            "1",
            "--output_dir",
            output,
        ];
        workplace.succeed([&fixed[..], flags].concat());
        let file = |name: &str| fs::read(workplace.path(output).join("model").join(name)).unwrap();
        [file("unet/diffusion_pytorch_model.safetensors"), file("text_encoder/model.safetensors")]
    };
    let whole = train("whole", &["--max_train_steps", "2"]);
    train("resumed", &["--max_train_steps", "1"]);
    let resume = ["--max_train_steps", "2", "--resume_from_checkpoint", "latest"];
    assert!(train("resumed", &resume) == whole);
    let rates: Vec<f64> =
        log(&workplace, "whole").iter().map(|line| line["learning_rate"].as_f64().unwrap()).collect();
    assert_eq!(rates, [5e-6; 2], "diffusers' script has this where nothing is said");
    let class = fs::read_dir(workplace.path("class")).unwrap().count();
    assert_eq!(class, 2);
    workplace.succeed(["generate", "a sks", "--model", "whole/model", "--steps", "2"]);
}

#[test]
fn pictures_are_cut_at_random_or_in_the_middle() {
    let workplace = Workplace::new();
    fs::create_dir(workplace.path("data")).unwrap();
    RgbImage::from_fn(96, 64, |x, y| Rgb([x as u8, y as u8, 90])).save(workplace.path("data/0.png")).unwrap();
    fs::write(workplace.path("data/0.txt"), "a shade").unwrap();
    let train = |recipe: &'static str, output: &'static str, flags: &[&'static str]| {
        let fixed = ["train", recipe, "--train_data_dir", "data", "--max_train_steps", "2", "--output_dir"];
        [&fixed[..], &[output], flags].concat()
    };
    let lora = |output: &'static str, flags: &[&'static str]| {
        workplace.succeed(train("text-to-image-lora", output, flags));
        fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).unwrap()
    };
    let plain = lora("plain", &[]);
    assert!(lora("random", &["--random_crop"]) == plain);
    assert!(lora("middle", &["--center_crop"]) != plain);
    let both = workplace.run(train("text-to-image-lora", "both", &["--random_crop", "--center_crop"]));
    assert_eq!(both.status, Some(2), "{}", both.stderr);
    for told in ["--random-crop", "cannot be used with", "--center-crop"] {
        assert!(both.stderr.contains(told), "{}", both.stderr);
    }
    let always = workplace.run(train("controlnet", "always", &["--random_crop"]));
    assert_eq!(always.status, Some(1), "{}", always.stderr);
    assert!(always.stderr.contains("--random-crop: controlnet cuts the middle out"), "{}", always.stderr);
}

#[test]
fn what_is_said_of_a_class_that_is_not_kept_changes_nothing() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let train = |output: &'static str, flags: &[&'static str]| {
        let thing = ["--instance_data_dir", "data", "--instance_prompt", "a sks", "--max_train_steps", "2"];
        let fixed = ["train", "dreambooth-lora", "--output_dir", output];
        let run = workplace.succeed([&fixed[..], &thing, flags].concat());
        (run.stderr, fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).unwrap())
    };
    let (told, weights) = train("with", &["--class_data_dir", "class", "--class_prompt", "a shade"]);
    for flag in ["--class-data-dir", "--class-prompt"] {
        let line = format!("{flag} changes nothing without --with-prior-preservation");
        assert!(told.contains(&line), "{told}");
    }
    assert!(weights == train("plain", &[]).1);
    assert!(!workplace.path("class").exists());
}

#[test]
fn captions_that_go_before_a_prompt_are_told() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    pictures(&workplace, "class", 1);
    let flags = "train dreambooth-lora --instance_data_dir data --instance_prompt sks --with_prior_preservation --class_data_dir class \
        --class_prompt shade --num_class_images 1 --max_train_steps 1 --output_dir out";
    let train = || workplace.succeed(flags.split_whitespace()).stderr;
    let told = train();
    for (folder, flag) in [("data", "--instance-prompt"), ("class", "--class-prompt")] {
        let line = format!("captions of {folder} are used instead of {flag}");
        assert_eq!(told.lines().filter(|told| *told == line).count(), 1, "{told}");
        fs::remove_file(workplace.path(folder).join("0.txt")).unwrap();
    }
    let told = train();
    assert!(!told.contains("instead of"), "{told}");
}

#[test]
fn names_of_other_trainers_say_the_same() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let steps = ["--max_train_steps", "2", "--learning_rate", "1e-3"];
    let train = |output: &str, flags: &str| {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        values(&lora(&workplace, output, &[&steps[..], &flags[..]].concat()))
    };
    let plain = train("plain", "");
    for (index, (theirs, ours)) in [
        ("--lora_rank 2 --lora_dropout_p 0.5", "--rank 2 --lora_dropout 0.5"),
        ("--network_dim 2 --network_alpha 1", "--rank 2 --lora_alpha 1"),
        ("--max_train_steps_tuning 3", "--max_train_steps 3"),
        ("--offset_noise", "--noise_offset 0.1"),
        ("--offset_noise --noise_offset 0.2", "--noise_offset 0.2"),
        ("--unet_lr 1e-2", "--learning_rate 1e-2"),
        (
            "--train_text_encoder --learning_rate_unet 1e-2",
            "--train_text_encoder --learning_rate 1e-2 --text_encoder_lr 1e-3",
        ),
        (
            "--train_text_encoder --learning_rate_text 1e-2",
            "--train_text_encoder --learning_rate 1e-3 --text_encoder_lr 1e-2",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let weights = train(&format!("theirs-{index}"), theirs);
        assert!(weights == train(&format!("ours-{index}"), ours), "{theirs}");
        assert!(weights != plain, "{theirs}");
    }
    let word = ["train", "textual-inversion", "--train_data_dir", "data", "--output_dir", "word"];
    let tokens = ["--placeholder_token", "<shade>", "--initializer_token", "red", "--unet_lr", "1e-3"];
    let run = workplace.run([&word[..], &tokens].concat());
    assert_eq!((run.status, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
    assert!(run.stderr.contains("--learning-rate-unet is for recipes that teach a UNet"), "{}", run.stderr);
}

#[test]
fn a_text_encoder_has_a_weight_decay_of_its_own() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let step = ["--max_train_steps", "1", "--learning_rate", "1e-2", "--train_text_encoder"];
    let plain = lora(&workplace, "plain", &step);
    let decayed =
        lora(&workplace, "decayed", &[&step[..], &["--adam_weight_decay_text_encoder", "0.5"]].concat());
    let of_text = |name: &str| name.starts_with("text_encoder.");
    assert!(plain.keys().any(|name| of_text(name)) && plain.keys().any(|name| !of_text(name)));
    let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (name, tensor) in &plain {
        // The second matrices begin as zeros, which no decay changes.
        let is_same = !of_text(name) || name.ends_with("lora_B.weight");
        assert_eq!(numbers(tensor) == numbers(&decayed[name]), is_same, "{name}");
    }
}

#[test]
fn a_lora_is_written_in_kohyas_layout_too() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let flags = ["--max_train_steps", "2", "--learning_rate", "1e-3", "--output_kohya_format"];
    lora(&workplace, "out", &flags);
    let (first, second) =
        ("out/pytorch_lora_weights.safetensors", "out/pytorch_lora_weights_kohya.safetensors");
    workplace.succeed(["convert", first, "kohya.safetensors", "--lora-format", "kohya"]);
    let read = |file: &str| -> BTreeMap<String, Tensor> {
        candle_core::safetensors::load(workplace.path(file), &Device::Cpu).unwrap().into_iter().collect()
    };
    let (written, converted) = (read(second), read("kohya.safetensors"));
    assert!(written.keys().all(|name| name.starts_with("lora_")));
    assert!(written.keys().eq(converted.keys()));
    assert!(!read(first).keys().any(|name| written.contains_key(name)));
}

#[test]
fn flags_that_need_another_one_say_so() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let told = |output: &str, flags: &[&str]| {
        let fixed = ["train", "text-to-image-lora", "--train_data_dir", "data", "--max_train_steps", "1"];
        workplace.succeed([&fixed[..], &["--output_dir", output], flags].concat()).stderr
    };
    let schedule = ["--lr_warmup_steps", "1", "--lr_num_cycles", "2", "--lr_power", "2"];
    let sgd = ["--optimizer", "sgd", "--adam_beta1", "0.8", "--adam_beta2", "0.9", "--adam_epsilon", "1e-6"];
    let looks = ["--validation_steps", "1", "--validation_epochs", "1", "--num_validation_images", "2"];
    let stderr = told("out", &[&schedule[..], &sgd, &looks, &["--logging_dir", "events"]].concat());
    for (flag, needed) in [
        ("--lr-warmup-steps", "constant_with_warmup"),
        ("--lr-num-cycles", "cosine_with_restarts"),
        ("--lr-power", "polynomial"),
        ("--adam-beta1", "--momentum"),
        ("--adam-beta2", "--momentum"),
        ("--adam-epsilon", "--momentum"),
        ("--validation-steps", "--validation-prompt"),
        ("--validation-epochs", "--validation-prompt"),
        ("--num-validation-images", "--validation-prompt"),
        ("--logging-dir", "--report-to tensorboard"),
    ] {
        let begin = format!("{flag} changes nothing: ");
        let line = stderr.lines().find(|line| line.starts_with(&begin));
        assert!(line.is_some_and(|line| line.contains(needed)), "{flag}: {stderr}");
    }
    // A run's settings have all flags.
    told("plain", &[]);
    let stderr = told("again", &["--config", "plain/settings.toml"]);
    assert!(!stderr.contains("changes nothing"), "{stderr}");
}
