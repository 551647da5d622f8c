//! `diffuse train`.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};

use crate::program::{Workplace, shapes};

/// Pictures of one colour with captions beside them.
pub(crate) fn pictures(workplace: &Workplace, folder: &str, count: u8) {
    let folder = workplace.path(folder);
    fs::create_dir(&folder).unwrap();
    for index in 0..count {
        let shade = Rgb([40 * index, 255 - 40 * index, 90]);
        RgbImage::from_pixel(64, 64, shade).save(folder.join(format!("{index}.png"))).unwrap();
        fs::write(folder.join(format!("{index}.txt")), format!("a shade number {index}")).unwrap();
    }
}

/// Pictures that all have this caption, or none.
pub(crate) fn captioned(workplace: &Workplace, folder: &str, count: u8, caption: Option<&str>) {
    pictures(workplace, folder, count);
    for index in 0..count {
        let file = workplace.path(folder).join(format!("{index}.txt"));
        match caption {
            Some(caption) => fs::write(file, caption).unwrap(),
            None => fs::remove_file(file).unwrap(),
        }
    }
}

const FIXED: [&str; 12] = [
    "train",
    "text-to-image-lora",
    "--train_data_dir",
    "data",
    "--train_batch_size=2",
    "--learning-rate",
    "1e-3",
    "--lr_scheduler=cosine",
    "--gradient-accumulation-steps",
    "2",
    "--lora_dropout",
    "0.1",
];

fn train<'a>(output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&FIXED[..], &["--output_dir", output], more].concat()
}

fn lora(workplace: &Workplace, output: &str) -> Vec<u8> {
    fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).unwrap()
}

#[test]
fn a_lora_is_trained_and_painted_with() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 5);
    let run = workplace.succeed(train(
        "out",
        &["--max_train_steps", "3", "--validation_prompt", "a shade", "--num-inference-steps", "2"],
    ));
    assert!(run.stderr.ends_with("wrote out/pytorch_lora_weights.safetensors\n"), "{}", run.stderr);
    let log = fs::read_to_string(workplace.path("out/log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 3);
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["loss"].as_f64().unwrap() > 0.0 && line["learning_rate"].is_f64(), "{line}");
    }
    let row = image::open(workplace.path("out/validation/000003.png")).unwrap();
    assert_eq!((row.width(), row.height()), (256, 64));
    let paint = |more: &[&str], output: &str| {
        let flags = [
            "generate",
            "a large red circle on a blue background",
            "--steps",
            "3",
            "--seed",
            "1",
            "--output",
            output,
        ];
        workplace.succeed([&flags[..], more].concat());
        fs::read(workplace.path(output)).unwrap()
    };
    let with = paint(&["--lora", "out/pytorch_lora_weights.safetensors:2"], "with.png");
    assert!(with != paint(&[], "without.png"));

    // The settings that the run ended up with make the same run again; kohya's layout has the same numbers.
    let again = [
        "train",
        "--config",
        "out/settings.toml",
        "text-to-image-lora",
        "--output_dir",
        "again",
        "--lora-format",
        "kohya",
    ];
    workplace.succeed(again);
    assert!(paint(&["--lora", "again/pytorch_lora_weights.safetensors:2"], "again.png").len() == with.len());
    let pixels = |name: &str| image::open(workplace.path(name)).unwrap().to_rgb8();
    assert!(pixels("again.png") == pixels("with.png"));
}

/// Kills the run, whatever it does, again and again until it has come to its end by itself; each time it is given a part more of time.
fn run_and_kill(workplace: &Workplace, flags: &[&str], part: Duration) {
    for parts in 1..100 {
        let mut child = workplace.command(flags).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        while start.elapsed() < part * parts {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    panic!("the run does not come to its end");
}

/// A run that is killed, about so many times, comes to the same `result` as one that is not, and the same checkpoints are left of both.
fn check_killed(flags: &[&str], kills: u32, result: &str, kept: [&str; 2]) {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 5);
    let start = Instant::now();
    workplace.succeed([flags, &["--output_dir", "whole"]].concat());
    let part = start.elapsed() / kills;
    let resumed = ["--output_dir", "killed", "--resume_from_checkpoint", "latest"];
    run_and_kill(&workplace, &[flags, &resumed].concat(), part);
    let checkpoints = |output: &str| {
        let mut names: Vec<String> = fs::read_dir(workplace.path(output))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("checkpoint"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(checkpoints("whole"), kept);
    assert_eq!(checkpoints("killed"), kept);
    let file = |output: &str| fs::read(workplace.path(output).join(result)).unwrap();
    assert!(file("killed") == file("whole"));
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_bits() {
    let steps = ["--max_train_steps", "12", "--checkpointing_steps", "2", "--checkpoints_total_limit", "2"];
    let flags = [&FIXED[..], &steps, &["--train_text_encoder"]].concat();
    check_killed(&flags, 6, "pytorch_lora_weights.safetensors", ["checkpoint-10", "checkpoint-12"]);
}

#[test]
fn a_whole_model_whose_run_is_killed_comes_to_the_same_bits() {
    let model = shapes().display().to_string();
    let flags = format!(
        "train text-to-image --pretrained_model_name_or_path {model} --train_data_dir data --train_batch_size 2 --learning_rate 1e-4 --use_ema --use_8bit_adam \
         --max_train_steps 6 --checkpointing_steps 2 --checkpoints_total_limit 2"
    );
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let result = "model/unet/diffusion_pytorch_model.safetensors";
    check_killed(&flags, 4, result, ["checkpoint-4", "checkpoint-6"]);
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_a_checkpoint() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 3);
    let mut command = workplace.command(train("out", &["--max_train_steps", "100000"]));
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let log = workplace.path("out/log.jsonl");
    let start = Instant::now();
    while fs::metadata(&log).map_or(0, |log| log.len()) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(20));
    }
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("--resume-from-checkpoint latest goes on"), "{stderr}");
    let step = fs::read_to_string(log).unwrap().lines().count();
    assert!(workplace.path(&format!("out/checkpoint-{step}/training_state.safetensors")).is_file());
}

#[test]
fn dreambooth_paints_what_its_class_lacks() {
    let workplace = Workplace::new();
    pictures(&workplace, "thing", 2);
    let flags = [
        "train",
        "dreambooth-lora",
        "--instance_data_dir",
        "thing",
        "--instance_prompt",
        "a sks",
        "--with_prior_preservation",
        "--class_data_dir",
        "class",
        "--class_prompt",
        "a circle",
        "--num_class_images",
        "3",
        "--num_inference_steps",
        "2",
        "--output_dir",
        "out",
        "--max_train_steps",
        "2",
    ];
    workplace.succeed(flags);
    assert_eq!(fs::read_dir(workplace.path("class")).unwrap().count(), 3);
    assert!(!lora(&workplace, "out").is_empty());

    // Pictures are counted as they are found to be learned from, and one that is there is not painted over.
    let class = |name: &str| workplace.path("class").join(name);
    fs::create_dir(class("more")).unwrap();
    fs::rename(class("0-seed-0.png"), class("more/0.png")).unwrap();
    fs::rename(class("1-seed-1.png"), class(".hidden.png")).unwrap();
    workplace.succeed(flags);
    assert!(class("3-seed-3.png").is_file());
    assert_eq!(fs::read_dir(class("")).unwrap().count(), 4);

    // In a folder with captions they get one too.
    fs::write(class("more/0.txt"), "a shape").unwrap();
    fs::remove_file(class("2-seed-2.png")).unwrap();
    fs::remove_file(class("3-seed-3.png")).unwrap();
    workplace.succeed(flags);
    for name in ["1-seed-1", "2-seed-2"] {
        assert!(class(name).with_extension("png").is_file(), "{name}");
        assert_eq!(fs::read_to_string(class(name).with_extension("txt")).unwrap(), "a circle");
    }
}

#[test]
fn a_whole_model_is_written_beside_its_other_files() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let model = shapes().display().to_string();
    let flags = [
        "train",
        "text-to-image",
        "--pretrained_model_name_or_path",
        &model,
        "--train_data_dir",
        "data",
        "--output_dir",
        "out",
        "--max_train_steps",
        "2",
        "--use_ema",
        "--use_8bit_adam",
        "--learning_rate",
        "1e-4",
    ];
    workplace.succeed(flags);
    let paint = |model: &str, output: &str| {
        workplace.succeed([
            "generate",
            "a red circle",
            "--model",
            model,
            "--steps",
            "3",
            "--seed",
            "1",
            "--output",
            output,
        ]);
        image::open(workplace.path(output)).unwrap().to_rgb8()
    };
    assert!(paint("out/model", "trained.png") != paint(&model, "before.png"));
}

#[test]
fn a_word_is_learned_and_a_lora_on_top_of_it() {
    let workplace = Workplace::new();
    captioned(&workplace, "data", 2, Some("a <shade>"));
    let word = [
        "--placeholder_token",
        "<shade>",
        "--initializer_token",
        "red",
        "--train_data_dir",
        "data",
        "--max_train_steps",
        "2",
    ];
    let train = |recipe: &str, output: &str, more: &[&str]| {
        workplace.succeed([&["train", recipe, "--output_dir", output][..], &word, more].concat())
    };
    train("textual-inversion", "word", &["--learning_rate", "1e-1", "--num_vectors", "2"]);
    let paint = |flags: &[&str], output: &str| {
        let fixed = ["generate", "a large <shade> circle", "--steps", "2", "--seed", "1", "--output", output];
        workplace.succeed([&fixed[..], flags].concat());
        image::open(workplace.path(output)).unwrap().to_rgb8()
    };
    let embedding = ["--embedding", "word/learned_embeds.safetensors:<shade>"];
    assert!(paint(&embedding, "with.png") != paint(&[], "without.png"));

    let pivotal = ["--max_train_steps_ti", "2", "--checkpointing_steps", "1"];
    train("pivotal-tuning", "both", &pivotal);
    let files = |output: &str| {
        [
            "inversion/learned_embeds.safetensors",
            "learned_embeds.safetensors",
            "pytorch_lora_weights.safetensors",
        ]
        .map(|name| fs::read(workplace.path(output).join(name)).unwrap())
    };
    let [inversion, word_file, _] = files("both");
    assert!(inversion == word_file, "the LoRA's steps have changed the word");
    // Both parts go on from where they were.
    fs::create_dir_all(workplace.path("again/inversion")).unwrap();
    let copy = |name: &str| {
        let to = workplace.path("again").join(name);
        fs::create_dir_all(&to).unwrap();
        let state = "training_state.safetensors";
        fs::copy(workplace.path("both").join(name).join(state), to.join(state)).unwrap();
    };
    copy("inversion/checkpoint-2");
    copy("checkpoint-1");
    train("pivotal-tuning", "again", &[&pivotal[..], &["--resume_from_checkpoint", "latest"]].concat());
    assert!(files("again") == files("both"));
}

#[test]
fn a_model_without_texts_is_trained_from_nothing_and_goes_on_as_a_folder() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 3);
    let config =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/unconditional/ddpm/unet/config.json");
    let fixed = [
        "train",
        "unconditional",
        "--train_data_dir",
        "data",
        "--train_batch_size",
        "2",
        "--center_crop",
        "--use_ema",
    ];
    let train = |flags: &[&str]| workplace.succeed([&fixed[..], flags].concat());
    let new =
        ["--model_config_name_or_path", config, "--checkpointing_steps", "1", "--scheduler", "DDIMScheduler"];
    let look = ["--validation_steps", "2", "--num_validation_images", "3"];
    let looked_at = [&new[..], &look, &["--num_inference_steps", "2"]].concat();
    train(&[&looked_at[..], &["--output_dir", "new", "--max_train_steps", "3"]].concat());
    let row = image::open(workplace.path("new/validation/000002.png")).unwrap();
    assert_eq!(row.width(), 3 * row.height());
    let paint = |model: &str, output: &str| {
        workplace.succeed(["generate", "--model", model, "--steps", "3", "--seed", "1", "--output", output]);
        image::open(workplace.path(output)).unwrap().to_rgb8()
    };
    let painted = paint("new/model", "new.png");
    let settings = fs::read_to_string(workplace.path("new/settings.toml")).unwrap();
    assert!(settings.contains("scheduler = \"DDIMScheduler\""), "{settings}");

    fs::remove_dir_all(workplace.path("new/checkpoint-3")).unwrap();
    train(
        &[&new[..], &["--output_dir", "new", "--max_train_steps", "3", "--resume_from_checkpoint", "latest"]]
            .concat(),
    );
    assert!(paint("new/model", "resumed.png") == painted);

    let further =
        ["--pretrained_model_name_or_path", "new/model", "--output_dir", "further", "--max_train_steps", "1"];
    train(&[&further[..], &["--prediction_type", "sample", "--learning_rate", "1e-2"]].concat());
    assert!(paint("further/model", "further.png") != painted);
    let both = ["--model_config_name_or_path", config, "--pretrained_model_name_or_path", "new/model"];
    for (flags, culprit) in [
        (&["--validation_prompt", "a cat"][..], "--validation-prompt"),
        (&["--scheduler", "odd"], "DDPMScheduler or DDIMScheduler"),
        (&["--prediction_type", "odd"], "odd"),
        (&["--model_config_name_or_path", "missing.json"], "missing.json"),
        (
            &["--pretrained_vae_model_name_or_path", "new/model"],
            "--pretrained-vae-model-name-or-path is for models that see pictures through a VAE",
        ),
        (&["--variant", "fp16"], "--variant is which weight files of a model are taken"),
        (&both[..], "--model-config-name-or-path is what a new model is"),
    ] {
        let run = workplace.run([&fixed[..], &["--output_dir", "bad"], flags].concat());
        assert_eq!((run.status, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
        assert!(run.stderr.contains(culprit), "{}", run.stderr);
    }
}

#[test]
fn what_cannot_be_trained_on_is_refused() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    captioned(&workplace, "bare", 1, None);
    fs::create_dir(workplace.path("empty")).unwrap();
    fs::create_dir(workplace.path("broken")).unwrap();
    fs::write(workplace.path("broken/a.png"), "no picture").unwrap();
    fs::write(workplace.path("broken/a.txt"), "a cat").unwrap();
    fs::create_dir(workplace.path("named")).unwrap();
    fs::copy(workplace.path("data/0.png"), workplace.path("named/0.png")).unwrap();
    fs::write(workplace.path("named/metadata.csv"), "file_name,text\nmissing.png,a cat\n").unwrap();
    fs::write(workplace.path("bad.toml"), "learning_rate = [1, 2]\n").unwrap();
    fs::write(workplace.path("unknown.toml"), "rank = 4\nlearning_rat = 1\n").unwrap();
    fs::write(workplace.path("off.toml"), "targets_modules = false\n").unwrap();
    let refuse = |flags: &[&str], culprits: &[&str]| {
        let arguments =
            [&["train", "text-to-image-lora", "--output_dir", "out", "--max_train_steps", "2"], flags]
                .concat();
        let run = workplace.run(&arguments);
        assert_eq!(run.status, Some(1), "{}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        for culprit in culprits {
            assert!(run.stderr.contains(culprit), "{culprit:?}: {}", run.stderr);
        }
        assert!(!workplace.path("out/pytorch_lora_weights.safetensors").exists());
    };
    refuse(&["--train_data_dir", "nowhere"], &["nowhere"]);
    refuse(&["--train_data_dir", "empty"], &["empty: is empty"]);
    refuse(&["--train_data_dir", "broken"], &["a.png"]);
    refuse(&["--train_data_dir", "named"], &["metadata.csv", "missing.png"]);
    let data = |flags: &[&'static str]| [&["--train_data_dir", "data"], flags].concat();
    refuse(&data(&["--resolution", "63"]), &["resolution", "63", "multiple of 8"]);
    refuse(&data(&["--rank", "0"]), &["rank", "0"]);
    refuse(&data(&["--lora-layers", "nothing"]), &["target_modules", "nothing"]);
    let many = "1000000000000";
    refuse(&data(&["--train_batch_size", many]), &["train_batch_size", many, "65536"]);
    refuse(&data(&["--repeats", many]), &["repeats", many]);
    refuse(
        &data(&["--max_train_steps", "9223372036854775808"]),
        &["--max-train-steps", "9223372036854775807"],
    );
    refuse(&data(&["--learning_rate", "nan"]), &["learning_rate", "NaN"]);
    refuse(&data(&["--lr_scheduler", "odd"]), &["odd", "cosine"]);
    refuse(&data(&["--resume_from_checkpoint", "checkpoint-7"]), &["checkpoint-7", "has none"]);
    refuse(&data(&["--instance_prompt", "a sks"]), &["--instance-prompt", "DreamBooth"]);
    refuse(&data(&["--placeholder_token", "<a>"]), &["--placeholder-token", "textual-inversion"]);
    assert!(!workplace.path("out").exists(), "nothing has begun");
    refuse(&data(&["--learning_rate", "1e30", "--random_flip"]), &["loss of step 2", "learning rate"]);
    // Where no step follows that would tell: neither a checkpoint nor a LoRA has such weights.
    let last = ["--learning_rate", "1e30", "--max_train_steps", "1"];
    refuse(&data(&last), &["after step 1", "a lower learning rate"]);
    assert!(!workplace.path("out/checkpoint-1").exists());
    let inversion = |flags: &[&str], culprits: &[&str]| {
        let fixed = [
            "train",
            "textual-inversion",
            "--output_dir",
            "word",
            "--train_data_dir",
            "bare",
            "--max_train_steps",
            "1",
        ];
        let run = workplace.run([&fixed[..], flags].concat());
        assert_eq!((run.status, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
        for culprit in culprits {
            assert!(run.stderr.contains(culprit), "{culprit:?}: {}", run.stderr);
        }
    };
    inversion(&["--placeholder_token", "<a>"], &["--initializer-token", "both"]);
    inversion(&["--placeholder_token", "red", "--initializer_token", "blue"], &["red"]);
    inversion(
        &["--placeholder_token", "<a>", "--initializer_token", "red circle"],
        &["initializer_token", "red circle", "2 tokens"],
    );
    inversion(
        &["--placeholder_token", "<a>", "--initializer_token", "red", "--num_vectors", "0"],
        &["num_vectors is 0"],
    );
    inversion(
        &["--placeholder_token", "<a>", "--initializer_token", "red", "--num_vectors", many],
        &["num_vectors is 1000000000000", "at most"],
    );
    refuse(&data(&["--config", "bad.toml"]), &["bad.toml", "learning_rate"]);
    refuse(&data(&["--config", "missing.toml"]), &["missing.toml"]);
    refuse(
        &data(&["--config", "unknown.toml"]),
        &["unknown.toml: learning_rat is no flag", "nearest is learning_rate"],
    );
    refuse(
        &data(&["--config", "off.toml"]),
        &["off.toml: targets_modules is no flag", "nearest is target_modules"],
    );

    workplace.succeed(train("other", &["--max_train_steps", "2"]));
    let other =
        train("other", &["--max_train_steps", "2", "--seed", "9", "--resume_from_checkpoint", "latest"]);
    let run = workplace.run(other);
    assert_eq!(run.status, Some(1));
    assert!(run.stderr.contains("seed 0; this run has seed 9"), "{}", run.stderr);
    let run = workplace.run(train("out", &["--learning-rat", "1"]));
    assert_eq!(run.status, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("--learning-rate"), "{}", run.stderr);
    assert!(Path::new(&workplace.path("data/0.png")).exists());
}
