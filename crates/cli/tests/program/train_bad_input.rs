//! What `diffuse train` cannot go on with: one clear line, and what was there before stays good.

use std::fs;
use std::path::Path;

use image::{Rgb, RgbImage};

use crate::program::{PARITY, Workplace, copy_folder, shapes};
use crate::train::{captioned, pictures};

const LORA: [&str; 4] = ["train", "text-to-image-lora", "--train_data_dir", "data"];

#[track_caller]
fn refuse(workplace: &Workplace, arguments: &[&str], culprits: &[&str]) {
    let run = workplace.run(arguments);
    assert_eq!((run.status, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
    for culprit in culprits {
        assert!(run.stderr.contains(culprit), "{culprit:?}: {}", run.stderr);
    }
}

/// A limit on the size of files stands for a disk that is full.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_earlier_checkpoint_good() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 3);
    let train = |output: &'static str, steps: &'static str| {
        let flags =
            ["--checkpointing_steps", "2", "--resume_from_checkpoint", "latest", "--max_train_steps", steps];
        [&LORA[..], &["--output_dir", output], &flags].concat()
    };
    workplace.succeed(train("whole", "4"));
    workplace.succeed(train("out", "2"));
    let names = || {
        let entries = fs::read_dir(workplace.path("out")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let before = names();
    // The shell hands down that the signal is ignored, so that writing fails as it does on a full disk.
    let program = workplace.command(train("out", "4"));
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""]).arg(program.get_program());
    shell.args(program.get_args()).current_dir(workplace.path("."));
    let run = crate::program::finish(&mut shell);
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    let error = run.stderr.lines().last().unwrap();
    assert!(error.starts_with("error: ") && error.contains("training_state.safetensors"), "{}", run.stderr);
    assert_eq!(names(), before, "something half-written is left");
    workplace.succeed(train("out", "4"));
    let lora =
        |output: &str| fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).unwrap();
    assert!(lora("out") == lora("whole"));
}

#[test]
fn a_model_of_another_family_is_named() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let family = |name: &str| format!("{}/../pipelines/tests/parity/{name}", env!("CARGO_MANIFEST_DIR"));
    let ddpm = family("unconditional/ddpm");
    let flags = ["--output_dir", "out", "--pretrained_model_name_or_path", &ddpm];
    refuse(&workplace, &[&LORA[..], &flags].concat(), &["DDPMPipeline", "Stable Diffusion"]);
    let stable_diffusion = shapes().display().to_string();
    let flags = ["--output_dir", "out", "--pretrained_model_name_or_path", &stable_diffusion];
    let unconditional = ["train", "unconditional", "--train_data_dir", "data"];
    refuse(&workplace, &[&unconditional[..], &flags].concat(), &["UNet2DConditionModel", "without a text"]);
    assert!(!workplace.path("out").exists());
}

#[test]
fn a_model_that_a_recipe_cannot_teach_is_told_before_anything_is_written() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let family = |name: &str| format!("{PARITY}/{name}");
    let refuse = |recipe: &str, flags: &[&str], culprits: &[&str]| {
        let fixed = ["train", recipe, "--output_dir", "out", "--max_train_steps", "1"];
        workplace.refuse([&fixed[..], flags].concat(), culprits);
    };
    let refiner = family("stable_diffusion_xl/refiner");
    let flags = ["--pretrained_model_name_or_path", &refiner, "--resolution", "32"];
    let data = ["--train_data_dir", "data"];
    let thing = ["--instance_data_dir", "data", "--instance_prompt", "a sks"];
    for (recipe, pictures) in [("text-to-image-lora", &data[..]), ("dreambooth-lora", &thing)] {
        refuse(recipe, &[&flags[..], pictures].concat(), &["refiner", "give the base"]);
    }
    let (grey, classes) = (family("unconditional/grey"), family("unconditional/classes"));
    for (model, culprits) in [
        (&grey, &["grey/unet/config.json: in_channels is 1", "expected 3"][..]),
        (&classes, &["classes/unet/config.json: num_class_embeds", "without classes"]),
    ] {
        let flags = [&data[..], &["--pretrained_model_name_or_path", model]].concat();
        refuse("unconditional", &flags, culprits);
    }
    let config = format!("{grey}/unet/config.json");
    let flags = [&data[..], &["--model_config_name_or_path", &config]].concat();
    refuse("unconditional", &flags, &["--model-config-name-or-path", "in_channels is 1"]);
    let flags = [&data[..], &["--resolution", "40"]].concat();
    refuse("unconditional", &flags, &["--resolution", "40x40", "multiples of 32", "6 blocks"]);
}

#[test]
fn columns_that_are_not_there_are_named() {
    let workplace = Workplace::new();
    fs::create_dir(workplace.path("data")).unwrap();
    RgbImage::new(64, 64).save(workplace.path("data/0.png")).unwrap();
    fs::write(workplace.path("data/metadata.csv"), "file_name,prompt\n0.png,a cat\n").unwrap();
    let out = ["--output_dir", "out", "--max_train_steps", "1"];
    refuse(&workplace, &[&LORA[..], &out].concat(), &["metadata.csv", "no column text", "file_name, prompt"]);
    let masks = ["--caption_column", "prompt", "--mask_column", "alpha"];
    refuse(&workplace, &[&LORA[..], &out, &masks].concat(), &["metadata.csv", "no column alpha"]);
    workplace.succeed([&LORA[..], &out, &["--caption_column", "prompt"]].concat());

    // What a prompt or templates could take the place of is not passed over either.
    let model = shapes().display().to_string();
    let thing = |folder: &'static str| ["--instance_data_dir", folder, "--instance_prompt", "a sks"];
    let word = |folder: &'static str| {
        ["--train_data_dir", folder, "--placeholder_token", "<shade>", "--initializer_token", "red"]
    };
    let captions = ["--caption_column", "promt"];
    let recipes = |folder: &'static str| {
        [
            ("dreambooth-lora", thing(folder).to_vec()),
            ("dreambooth", thing(folder).to_vec()),
            ("custom-diffusion", thing(folder).to_vec()),
            ("textual-inversion", word(folder).to_vec()),
            ("pivotal-tuning", word(folder).to_vec()),
        ]
    };
    let refuse_of = |recipe: &str, flags: &[&str], culprit: &str| {
        let fixed = ["train", recipe, "--pretrained_model_name_or_path", &model];
        refuse(&workplace, &[&fixed[..], flags, &out].concat(), &[culprit]);
    };
    for (recipe, flags) in recipes("data") {
        let culprit = "metadata.csv line 2: has no column promt; the columns are file_name, prompt";
        refuse_of(recipe, &[&flags[..], &captions].concat(), culprit);
    }
    let image = ["--image_column", "bogus"];
    let culprit = "metadata.csv line 2: has no column bogus; the columns are file_name, prompt";
    refuse_of("dreambooth-lora", &[&thing("data")[..], &image].concat(), culprit);
    let unconditional = |folder: &'static str, culprit: &str| {
        let flags = ["train", "unconditional", "--train_data_dir", folder, "--image_column", "bogus"];
        refuse(&workplace, &[&flags[..], &out].concat(), &[culprit]);
    };
    unconditional("data", culprit);

    fs::create_dir(workplace.path("bare")).unwrap();
    fs::copy(workplace.path("data/0.png"), workplace.path("bare/0.png")).unwrap();
    fs::write(workplace.path("bare/0.txt"), "a <shade>").unwrap();
    let culprit = "bare has no metadata.csv or metadata.jsonl with promt; write one, with a row for each picture, or leave --caption-column out";
    for (recipe, flags) in recipes("bare") {
        refuse_of(recipe, &[&flags[..], &captions].concat(), culprit);
    }
    refuse_of("text-to-image-lora", &[&["--train_data_dir", "bare"][..], &captions].concat(), culprit);
    unconditional("bare", "bare has no metadata.csv or metadata.jsonl with bogus");
}

#[test]
fn a_broken_jpeg_in_the_middle_is_named_or_left_out() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 3);
    let broken = workplace.path("data/broken.jpg");
    RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 31) as u8, (y * 17) as u8, 9])).save(&broken).unwrap();
    let bytes = fs::read(&broken).unwrap();
    fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
    fs::write(workplace.path("data/broken.txt"), "half a picture").unwrap();
    let flags = ["--output_dir", "out", "--max_train_steps", "4", "--center_crop"];
    let run = workplace.run([&LORA[..], &flags].concat());
    assert_eq!(run.status, Some(1), "{}", run.stderr);
    // Before the VAE is freed, as all are encoded ahead.
    let encoded = "all pictures are encoded";
    assert!(run.stderr.contains("broken.jpg") && !run.stderr.contains(encoded), "{}", run.stderr);
    assert!(!workplace.path("out/pytorch_lora_weights.safetensors").exists());
    let run = workplace.succeed([&LORA[..], &flags, &["--skip-broken"]].concat());
    assert!(run.stderr.contains("warning") && run.stderr.contains("broken.jpg"), "{}", run.stderr);
    assert!(run.stderr.contains(encoded), "{}", run.stderr);
}

#[test]
fn other_settings_are_all_named() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let out = ["--output_dir", "out", "--max_train_steps", "1"];
    workplace.succeed([&LORA[..], &out].concat());
    let other = ["--resume_from_checkpoint", "latest", "--rank", "8", "--use_rslora", "--snr_gamma", "5"];
    let run = workplace.run([&LORA[..], &out, &other].concat());
    assert_eq!(run.status, Some(1));
    assert!(
        run.stderr.contains(
            "rank 4, snr_gamma nothing, use_rslora false; this run has rank 8, snr_gamma 5.0, use_rslora true"
        ),
        "{}",
        run.stderr
    );
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let out = ["--output_dir", "out", "--max_train_steps", "1"];
    for (flags, culprits) in [
        (&["--use_8bit_adam", "--optimizer", "sgd"][..], &["--use-8bit-adam", "--optimizer"][..]),
        (&["--momentum", "0.5"], &["--momentum", "sgd"]),
        (&["--lr_scheduler", "piecewise_constant"], &["--lr-step-rules"]),
        (&["--lr_step_rules", "1"], &["piecewise_constant"]),
        (&["--lr_scheduler", "piecewise_constant", "--lr_step_rules", "1:x"], &["lr_step_rules", "1:x"]),
        (&["--lora_layers", "to_k, to_x"], &["--lora-layers", "to_x", "such as"]),
        (&["--lora_layers", " ,"], &["target_modules", "such as"]),
        (&["--target_modules", "to_("], &["target_modules", "to_("]),
        (&["--target_modules", "nothing"], &["target_modules", "nothing", "such as"]),
        (&["--prediction_type", "flow"], &["--prediction-type", "flow", "v_prediction"]),
        (&["--aspect_ratio_buckets", "64x64"], &["--aspect-ratio-buckets", "64x64"]),
        (&["--aspect_ratio_buckets", "64,63"], &["aspect_ratio_buckets", "63x64"]),
        (&["--mask_temperature", "2"], &["--mask-column"]),
        (&["--validation_epochs", "0"], &["--validation-epochs is 0"]),
        (&["--modifier_token", "<a>"], &["--modifier-token", "custom-diffusion"]),
        (&["--freeze_model", "crossattn"], &["--freeze-model", "custom-diffusion"]),
        (&["--noaug"], &["--noaug", "custom-diffusion"]),
        (&["--ddpm_num_steps", "10"], &["--ddpm-num-steps", "is for unconditional"]),
        (&["--use_template", "style"], &["--use-template", "pivotal-tuning"]),
        (&["--clip_ti_decay"], &["--clip-ti-decay", "pivotal-tuning"]),
        (&["--placeholder_tokens", "<a>|<b>"], &["--placeholder-tokens", "pivotal-tuning"]),
        (&["--t_mutliplier", "0.8"], &["--t-multiplier", "pivotal-tuning"]),
        (&["--weight_decay_lora", "0.1"], &["--weight-decay-lora", "pivotal-tuning"]),
        (&["--continue_inversion"], &["--continue-inversion", "pivotal-tuning"]),
        (&["--cached_latents"], &["--cached-latents", "pivotal-tuning"]),
        (&["--color_jitter"], &["--color-jitter", "pivotal-tuning"]),
        (&["--perform_inversion"], &["--perform-inversion", "pivotal-tuning"]),
        (&["--learning_rate_ti", "1"], &["--learning-rate-ti", "pivotal-tuning", "--learning-rate"]),
        (&["--num_vectors", "2"], &["--num-vectors", "textual-inversion"]),
        (&["--edit_prompt_column", "text"], &["--edit-prompt-column", "instruct-pix2pix"]),
        (&["--max_train_samples", "0"], &["max_train_samples", "0"]),
        (&["--dataset_name", "owner/pictures"], &["--dataset-name", "--train-data-dir"]),
        (&["--dataset_config_name", "small"], &["--dataset-config-name", "--train-data-dir"]),
        (&["--tokenizer_name", "owner/tokenizer"], &["--tokenizer-name", "folder"]),
        (&["--non_ema_revision", "main"], &["--non-ema-revision", "--revision"]),
        (&["--class_labels_conditioning", "timesteps"], &["--class-labels-conditioning", "DeepFloyd IF"]),
        (&["--tokenizer_max_length", "77"], &["--tokenizer-max-length", "DeepFloyd IF"]),
        (&["--text_encoder_use_attention_mask"], &["--text-encoder-use-attention-mask", "DeepFloyd IF"]),
        (
            &["--use_face_segmentation_condition"],
            &["--use-face-segmentation-condition", "--use-mask-captioned-data"],
        ),
        (&["--timestep_bias_strategy", "later"], &["--timestep-bias-strategy: ", "--snr-gamma"]),
        (&["--timestep_bias_portion", "0.25"], &["--timestep-bias-portion: ", "--snr-gamma"]),
        (&["--do_edm_style_training"], &["--do-edm-style-training: ", "EDM"]),
        (&["--dream_training"], &["--dream-training: ", "DREAM"]),
        (&["--dream_detail_preservation", "1"], &["--dream-detail-preservation: ", "DREAM"]),
        (&["--prodigy_beta3", "0.9"], &["--prodigy-beta3: ", "--optimizer"]),
        (&["--prodigy_decouple", "True"], &["--prodigy-decouple: ", "--optimizer"]),
        (&["--debug_loss"], &["--debug-loss: ", "log.jsonl"]),
        (&["--preserve_input_precision"], &["--preserve-input-precision: ", "8 bits"]),
        (&["--crops_coords_top_left_h", "0"], &["--crops-coords-top-left-h: ", "was cut"]),
        (&["--use_extended_lora"], &["--use-extended-lora: ", "--lora-layers"]),
        (&["--log_wandb"], &["--log-wandb: ", "tensorboard"]),
        (
            &["--pretrained_model_name_or_path", "owner/model", "--revision", "fp16"],
            &["owner/model@fp16", "HF_HUB_OFFLINE"],
        ),
        (&["--pretrained_vae_model_name_or_path", "data"], &["data", "config.json"]),
    ] {
        refuse(&workplace, &[&LORA[..], &out, flags].concat(), culprits);
    }
    let none = ["--output_dir", "out", "--num_train_epochs", "0"];
    refuse(&workplace, &[&LORA[..], &none].concat(), &["--num-train-epochs is 0"]);
    let run = workplace.run([&LORA[..], &out, &["--seed", "-1"]].concat());
    assert_eq!(run.status, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("invalid value '-1' for '--seed"), "{}", run.stderr);
    let model = shapes().display().to_string();
    let whole =
        ["train", "text-to-image", "--train_data_dir", "data", "--pretrained_model_name_or_path", &model];
    for flag in [&["--use_dora"][..], &["--use_rslora"], &["--rank", "8"], &["--lora_layers", "to_k"]] {
        refuse(&workplace, &[&whole[..], &out, flag].concat(), &["is for LoRAs"]);
    }
    let thing = ["train", "dreambooth-lora", "--instance_data_dir", "data", "--instance_prompt", "a sks"];
    for flag in ["--prior_loss_weight", "--num_class_images"] {
        refuse(&workplace, &[&thing[..], &out, &[flag, "2"]].concat(), &["--with-prior-preservation"]);
    }
}

/// A thing and its class, of which pictures are painted.
const CLASS: [&str; 17] = [
    "--instance_data_dir",
    "data",
    "--instance_prompt",
    "a sks",
    "--with_prior_preservation",
    "--class_data_dir",
    "class",
    "--class_prompt",
    "a circle",
    "--num_class_images",
    "2",
    "--num_inference_steps",
    "2",
    "--max_train_steps",
    "1",
    "--output_dir",
    "out",
];

#[test]
fn what_cannot_be_trained_is_told_before_pictures_of_its_class_are_painted() {
    let workplace = Workplace::new();
    captioned(&workplace, "data", 1, None);
    fs::create_dir(workplace.path("class")).unwrap();
    for (recipe, flags, culprits) in [
        ("dreambooth-lora", &["--rank", "0"][..], &["rank is 0"][..]),
        ("dreambooth-lora", &["--target_modules", "to_("], &["target_modules", "to_("]),
        ("dreambooth-lora", &["--target_modules", "nothing"], &["target_modules", "nothing", "such as"]),
        (
            "custom-diffusion",
            &["--modifier_token", "red", "--instance_prompt", "a red"],
            &["--modifier-token is \"red\""],
        ),
        (
            "custom-diffusion",
            &["--modifier_token", "<a/b>", "--instance_prompt", "an <a/b>"],
            &["--modifier-token is \"<a/b>\"", "file"],
        ),
        ("custom-diffusion", &["--modifier_token", "<a>+<a>"], &["--modifier-token has <a> twice"]),
        ("custom-diffusion", &["--learning_rate", "NaN"], &["learning_rate is NaN"]),
        ("dreambooth-lora", &["--learning_rate", "NaN"], &["learning_rate is NaN"]),
        ("dreambooth-lora", &["--max_train_steps", "0"], &["--max-train-steps is 0"]),
        ("dreambooth-lora", &["--input_perturbation", "-0.1"], &["--input-perturbation is -0.1"]),
        ("dreambooth-lora", &["--prior_loss_weight", "-1"], &["--prior-loss-weight is -1"]),
        ("dreambooth-lora", &["--snr_gamma", "-1"], &["--snr-gamma is -1"]),
        ("dreambooth-lora", &["--learning_rate", "-1"], &["learning_rate is -1"]),
        ("dreambooth-lora", &["--resolution", "100000"], &["--resolution is 100000", "8192"]),
        ("dreambooth-lora", &["--gradient_accumulation_steps", "0"], &["gradient_accumulation_steps is 0"]),
        ("dreambooth-lora", &["--max_grad_norm", "nan"], &["max_grad_norm is NaN"]),
        ("dreambooth-lora", &["--adam_beta1", "1"], &["adam_beta1 is 1"]),
        ("dreambooth-lora", &["--snr_gamma", "0"], &["--snr-gamma is 0"]),
        ("dreambooth-lora", &["--noise_offset", "nan"], &["--noise-offset is NaN"]),
        ("dreambooth-lora", &["--prior_loss_weight", "inf"], &["--prior-loss-weight is inf"]),
        ("dreambooth-lora", &["--resume_from_checkpoint", "checkpoint-7"], &["checkpoint-7", "has none"]),
        ("custom-diffusion", &["--resume_from_checkpoint", "checkpoint-7"], &["checkpoint-7", "has none"]),
        (
            "dreambooth-lora",
            &["--encoder_cache_dir", "data/0.png"],
            &["--encoder-cache-dir data/0.png cannot be written to"],
        ),
        (
            "custom-diffusion",
            &["--output_dir", "data/0.png/out"],
            &["--output-dir data/0.png/out cannot be written to"],
        ),
    ] {
        refuse(&workplace, &[&["train", recipe][..], &CLASS, flags].concat(), culprits);
        assert_eq!(fs::read_dir(workplace.path("class")).unwrap().count(), 0, "{recipe} {flags:?}");
    }
    let model = format!("{PARITY}/stable_diffusion_xl/base");
    let xl = ["--pretrained_model_name_or_path", &model, "--resolution", "32", "--train_text_encoder"];
    refuse(
        &workplace,
        &[&["train", "dreambooth"][..], &CLASS, &xl].concat(),
        &["--train-text-encoder", "XL"],
    );
    assert_eq!(fs::read_dir(workplace.path("class")).unwrap().count(), 0);
}

#[test]
fn what_is_wrong_with_pictures_of_the_class_is_told_before_others_are_painted() {
    let workplace = Workplace::new();
    captioned(&workplace, "data", 1, None);
    let class = [&["train", "dreambooth-lora"][..], &CLASS, &["--num_class_images", "3"]].concat();
    let refuse_as_it_is = |culprits: &[&str]| {
        let files = || fs::read_dir(workplace.path("class")).unwrap().count();
        let before = files();
        refuse(&workplace, &class, culprits);
        assert_eq!(files(), before);
    };
    pictures(&workplace, "class", 2);
    fs::remove_file(workplace.path("class/1.txt")).unwrap();
    refuse_as_it_is(&["class: ", "no captions in text files for 1.png"]);
    fs::write(workplace.path("class/0.png"), "no picture").unwrap();
    fs::remove_file(workplace.path("class/0.txt")).unwrap();
    refuse_as_it_is(&["class: ", "class/0.png: is no PNG"]);
    fs::remove_file(workplace.path("class/0.png")).unwrap();
    let row = "{\"file_name\": \"1.png\", \"text\": \"a shade\"}\n";
    fs::write(workplace.path("class/metadata.jsonl"), row).unwrap();
    refuse_as_it_is(&[
        "class: has 1 of 3 pictures",
        "not be in its metadata",
        "a smaller --num-class-images",
    ]);
    workplace.succeed([&class[..], &["--num_class_images", "1"]].concat());
}

#[test]
fn settings_that_a_run_cannot_go_on_with_are_told_before_pictures_of_its_class_are_painted() {
    let workplace = Workplace::new();
    captioned(&workplace, "data", 1, None);
    let train = [&["train", "dreambooth-lora"][..], &CLASS].concat();
    workplace.succeed(&train);
    fs::remove_dir_all(workplace.path("class")).unwrap();
    let resume = [&train[..], &["--resume_from_checkpoint", "latest"]].concat();
    let culprit = "checkpoint-1 was made with rank 4, use_rslora false; this run has rank 8, use_rslora true";
    refuse(&workplace, &[&resume[..], &["--rank", "8", "--use_rslora"]].concat(), &[culprit]);
    assert!(!workplace.path("class").exists());
    // The same seed paints the same pictures, which are compared when they are there.
    let run = workplace.succeed(&resume);
    assert!(run.stderr.contains("going on from"), "{}", run.stderr);
    fs::remove_file(workplace.path("class").join("0-seed-0.png")).unwrap();
    fs::copy(workplace.path("data/0.png"), workplace.path("class/another.png")).unwrap();
    refuse(&workplace, &resume, &["checkpoint-1 was made with ", "pictures 1 ("]);
}

/// A link to nothing stands for a place where no folder can be made: nothing is in the way until it is.
#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_made_is_told_before_pictures_of_the_class_are_painted() {
    let workplace = Workplace::new();
    captioned(&workplace, "data", 1, None);
    std::os::unix::fs::symlink("nowhere/else", workplace.path("link")).unwrap();
    for (flag, told) in [("--output_dir", "--output-dir"), ("--encoder_cache_dir", "--encoder-cache-dir")] {
        let flags = [&["train", "dreambooth-lora"][..], &CLASS, &[flag, "link"]].concat();
        let told = format!("{told} link cannot be written to");
        refuse(&workplace, &flags, &[told.as_str()]);
        assert!(!workplace.path("class").exists(), "{flag}");
    }
    let link = workplace.path("link").display().to_string();
    let logging = ["--report_to", "tensorboard", "--logging_dir", &link];
    let told = format!("--logging-dir {link} cannot be written to");
    refuse(&workplace, &[&["train", "dreambooth-lora"][..], &CLASS, &logging].concat(), &[told.as_str()]);
    assert!(!workplace.path("class").exists());
}

#[test]
fn a_model_without_texts_is_looked_for_and_its_folder_tried_as_for_other_recipes() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let fixed = ["train", "unconditional", "--train_data_dir", "data", "--max_train_steps", "1"];
    let model = format!("{PARITY}/unconditional/ddpm");
    let with = |model: &str, output: &str| {
        let flags = ["--pretrained_model_name_or_path", model, "--output_dir", output];
        [&fixed[..], &flags].concat().into_iter().map(String::from).collect::<Vec<_>>()
    };
    let refuse = |model: &str, output: &str, culprits: &[&str]| {
        let run = workplace.run(with(model, output));
        assert_eq!((run.status, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
        for culprit in culprits {
            assert!(run.stderr.contains(culprit), "{culprit:?}: {}", run.stderr);
        }
    };
    refuse(&model, "data/0.png/out", &["--output-dir data/0.png/out cannot be written to"]);
    refuse("google/ddpm-none", "out", &["google/ddpm-none", "HF_HUB_OFFLINE"]);
    // The oldest ones of the hub have the UNet at their top.
    copy_folder(&Path::new(&model).join("unet"), &workplace.path("old"));
    workplace.succeed(with("old", "out"));
    assert!(workplace.path("out/model/unet/config.json").is_file());
}

#[test]
fn nothing_is_written_among_the_pictures() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let among = |output: &str| format!("--output-dir {output} is a folder of pictures");
    let steps = ["--max_train_steps", "1", "--output_dir", "./data/"];
    refuse(&workplace, &[&LORA[..], &steps].concat(), &[among("./data/").as_str()]);
    let unconditional = ["train", "unconditional", "--train_data_dir", "data"];
    refuse(&workplace, &[&unconditional[..], &steps].concat(), &[among("./data/").as_str()]);
    let class = [&["train", "dreambooth-lora"][..], &CLASS, &["--output_dir", "class"]].concat();
    refuse(&workplace, &class, &[among("class").as_str()]);
    assert_eq!(workplace.names(), ["data"]);
}

#[test]
fn values_of_a_settings_file_are_told_with_its_name() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let train = |flags: &[&'static str]| {
        ["train", "text-to-image-lora", "--output_dir", "out", "--max_train_steps", "1"]
            .into_iter()
            .chain(flags.iter().copied())
            .collect::<Vec<_>>()
    };
    let number = "expected a whole number of 0 or more";
    for (line, told) in [
        ("rank = false", &["rank is false", number][..]),
        ("rank = true", &["rank is true", number]),
        ("rank = \"four\"", &["rank is \"four\"", number]),
        ("rank = 4.5", &["rank is 4.5", number]),
        ("lora_rank = [4]", &["lora_rank is [4]", number]),
        ("seed = -1", &["seed is -1", number]),
        ("max_train_samples = false", &["max_train_samples is false", number]),
        ("lora_alpha = \"high\"", &["lora_alpha is \"high\"", "expected a number"]),
        ("validation_prompt = false", &["validation_prompt is false", "expected a text"]),
        ("use_ema = 1", &["use_ema is 1", "expected true or false"]),
        ("use_ema = \"true\"", &["use_ema is \"true\"", "expected true or false"]),
        ("mixed_precision = \"f8\"", &["mixed_precision is \"f8\"", "expected one of no, bf16"]),
        ("mixed_precision = false", &["mixed_precision is false", "expected one of no, bf16"]),
        ("config = \"missing.toml\"", &["config is for the command line alone"]),
    ] {
        fs::write(workplace.path("flags.toml"), format!("train_data_dir = \"data\"\n{line}\n")).unwrap();
        let culprits = [&["error: --config flags.toml: "][..], told].concat();
        refuse(&workplace, &train(&["--config", "flags.toml"]), &culprits);
    }
    // What a flag needs may stand on the command line, and of two files the last counts.
    let text =
        "text_encoder_lr = 1e-3\nuse_ema = false\ninit_lora_weights = true\nperform_inversion = false\n";
    fs::write(workplace.path("flags.toml"), text).unwrap();
    let given = ["--train_text_encoder", "--train_data_dir", "data"];
    let files = ["--config", "missing.toml", "--config", "flags.toml"];
    refuse(&workplace, &train(&[&given[..], &files].concat()), &["--perform-inversion false"]);
    fs::write(workplace.path("flags.toml"), text.replace("perform_inversion = false\n", "")).unwrap();
    workplace.succeed(train(&[&given[..], &files].concat()));
    let settings = fs::read_to_string(workplace.path("out/settings.toml")).unwrap();
    for line in ["text_encoder_lr = 0.001", "init_lora_weights = \"true\""] {
        assert!(settings.contains(line), "{line}: {settings}");
    }
    workplace.succeed(train(&["--config", "out/settings.toml"]));
}
