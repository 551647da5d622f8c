//! Checkpoints of `diffuse train`, and what a run that goes on leaves.

use std::fs;

use candle_diffusers_training::{Checkpoint, Checkpoints};
use serde_json::Value;

use crate::program::{Workplace, copy_folder, shapes};
use crate::train::{captioned, pictures};

const LORA: [&str; 6] =
    ["train", "text-to-image-lora", "--train_data_dir", "data", "--checkpointing_steps", "1"];

fn checkpoints(workplace: &Workplace, output: &str) -> Vec<String> {
    let entries = fs::read_dir(workplace.path(output)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("checkpoint-")).collect();
    names.sort();
    names
}

#[test]
fn the_last_good_checkpoint_is_named() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let run = |output: &str, flags: &[&str]| {
        let run =
            workplace.run([&LORA[..], &["--output_dir", output, "--max_train_steps", "9"], flags].concat());
        assert_eq!(run.status, Some(1), "{}", run.stderr);
        run.stderr
    };
    // The fourth step ruins the weights: the fifth's loss tells, and the fourth's checkpoint holds them.
    let rates = |rules| ["--lr_scheduler", "piecewise_constant", "--lr_step_rules", rules];
    let stderr = run("late", &rates("1:3,1e21:8,1"));
    assert!(stderr.contains("loss of step 5"), "{stderr}");
    assert!(stderr.contains("the last good checkpoint is late/checkpoint-3"), "{stderr}");
    // So much that it is seen before the checkpoint is written.
    let stderr = run("far", &rates("1:3,1e34:8,1"));
    assert!(stderr.contains("after step 4"), "{stderr}");
    assert!(stderr.contains("the last good checkpoint is far/checkpoint-3"), "{stderr}");
    assert_eq!(checkpoints(&workplace, "far"), ["checkpoint-1", "checkpoint-2", "checkpoint-3"]);
    // Nothing was good here.
    let stderr = run("at-once", &["--learning_rate", "1e30"]);
    assert!(stderr.contains("after step 1") && !stderr.contains("last good"), "{stderr}");
}

#[test]
fn a_new_run_keeps_its_own_checkpoints_where_an_earlier_one_has_left_some() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let run = |steps: &str| {
        let flags = ["--output_dir", "out", "--max_train_steps", steps, "--checkpoints_total_limit", "2"];
        workplace.succeed([&LORA[..], &flags].concat());
        checkpoints(&workplace, "out")
    };
    assert_eq!(run("5"), ["checkpoint-4", "checkpoint-5"]);
    assert_eq!(run("2"), ["checkpoint-1", "checkpoint-2"]);
}

#[test]
fn a_new_run_tells_of_the_checkpoints_of_an_earlier_one() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let run = |flags: &[&str]| {
        workplace.succeed([&LORA[..], &["--output_dir", "out", "--max_train_steps"], flags].concat()).stderr
    };
    let told = "out has checkpoints of an earlier run, checkpoint-1, checkpoint-2; --resume-from-checkpoint latest takes";
    assert!(!run(&["2"]).contains("an earlier run"));
    let stderr = run(&["1"]);
    assert!(stderr.contains(told), "{stderr}");
    for flags in [&["3", "--resume_from_checkpoint", "latest"][..], &["1", "--checkpoints_total_limit", "1"]]
    {
        let stderr = run(flags);
        assert!(!stderr.contains("an earlier run"), "{stderr}");
    }
}

#[test]
fn a_run_that_has_no_step_left_says_so() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let run = |flags: &[&str]| {
        workplace.succeed([&LORA[..], &["--output_dir", "out", "--max_train_steps"], flags].concat()).stderr
    };
    run(&["2"]);
    for (steps, is_told) in [("1", true), ("2", true), ("3", false)] {
        let stderr = run(&[steps, "--resume_from_checkpoint", "latest"]);
        let told = format!("checkpoint-2 is already at step 2, and the run ends at step {steps}");
        assert_eq!(stderr.contains(&told), is_told, "{stderr}");
    }
}

#[test]
fn a_run_that_was_killed_leaves_no_trace_when_it_goes_on() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let flags = ["--output_dir", "out", "--lr_scheduler", "constant"];
    let run = |more: &[&str]| workplace.succeed([&LORA[..], &flags, more].concat());
    run(&["--max_train_steps", "2"]);
    // As if it had gone on after its last checkpoint, and been killed in the middle of a line.
    let path = workplace.path("out/log.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let third = text.lines().last().unwrap().replace("\"step\":2", "\"step\":3");
    fs::write(&path, format!("{text}{third}\n{}", &third[..20])).unwrap();
    // And of a file and a folder that were not whole yet.
    fs::write(workplace.path("out/.checkpoint-file"), "half").unwrap();
    fs::create_dir(workplace.path("out/.checkpoint-folder")).unwrap();
    run(&["--max_train_steps", "4", "--resume_from_checkpoint", "latest"]);
    for name in [".checkpoint-file", ".checkpoint-folder"] {
        assert!(!workplace.path("out").join(name).exists(), "{name}");
    }
    let steps: Vec<u64> = fs::read_to_string(&path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [1, 2, 3, 4]);
}

#[test]
fn a_checkpoint_of_either_stage_of_pivotal_tuning_can_be_named() {
    let workplace = Workplace::new();
    captioned(&workplace, "data", 2, Some("a <shade>"));
    let run = |output: &str, flags: &[&str]| {
        let fixed = [
            "train",
            "pivotal-tuning",
            "--train_data_dir",
            "data",
            "--placeholder_token",
            "<shade>",
            "--initializer_token",
            "red",
            "--checkpointing_steps",
            "1",
            "--max_train_steps_ti",
            "2",
            "--max_train_steps",
            "3",
            "--output_dir",
            output,
        ];
        workplace.succeed([&fixed[..], flags].concat());
        ["learned_embeds.safetensors", "pytorch_lora_weights.safetensors"]
            .map(|name| fs::read(workplace.path(output).join(name)).unwrap())
    };
    let whole = run("whole", &[]);
    copy_folder(&workplace.path("whole"), &workplace.path("lora"));
    assert!(run("lora", &["--resume_from_checkpoint", "checkpoint-2"]) == whole);
    copy_folder(&workplace.path("whole"), &workplace.path("word"));
    for step in 1..=3 {
        fs::remove_dir_all(workplace.path(&format!("word/checkpoint-{step}"))).unwrap();
    }
    assert!(run("word", &["--resume_from_checkpoint", "checkpoint-1"]) == whole);
    // By its path too, which says of which stage it is where both have one of its name.
    for (output, checkpoint) in [("path", "path/checkpoint-1"), ("inner", "inner/inversion/checkpoint-1")] {
        copy_folder(&workplace.path("whole"), &workplace.path(output));
        assert!(run(output, &["--resume_from_checkpoint", checkpoint]) == whole, "{checkpoint}");
    }
}

#[test]
fn a_model_of_the_hubs_cache_is_written_whole() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let model = workplace.path("no-cache/hub/models--owner--shapes");
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::create_dir_all(model.join("snapshots")).unwrap();
    fs::write(model.join("refs/main"), commit).unwrap();
    copy_folder(&shapes(), &model.join("snapshots").join(commit));
    let flags = [
        "train",
        "text-to-image",
        "--pretrained_model_name_or_path",
        "owner/shapes",
        "--train_data_dir",
        "data",
        "--output_dir",
        "out",
        "--max_train_steps",
        "1",
    ];
    workplace.succeed(flags);
    let paint = ["generate", "a red circle", "--model", "out/model", "--steps", "2", "--output", "out.png"];
    workplace.succeed(paint);
}

#[test]
fn a_model_of_several_variants_is_written_as_it_was_read() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let model = shapes().display().to_string();
    workplace.succeed(["convert", &model, "half", "--dtype", "f16", "--variant", "fp16"]);
    for weights in ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"] {
        let path = format!("half/{weights}.bf16.safetensors");
        fs::write(workplace.path(&path), "weights of another variant").unwrap();
    }
    let flags = [
        "train",
        "text-to-image",
        "--pretrained_model_name_or_path",
        "half",
        "--variant",
        "fp16",
        "--train_data_dir",
        "data",
        "--output_dir",
        "out",
        "--max_train_steps",
        "1",
    ];
    workplace.succeed(flags);
    let paint = ["generate", "a red circle", "--model", "out/model", "--steps", "2", "--output", "out.png"];
    workplace.succeed(paint);
}

#[test]
fn a_step_ends_where_its_epoch_does() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 3);
    let flags = ["--output_dir", "out", "--gradient_accumulation_steps", "2", "--num_train_epochs", "2"];
    workplace.succeed([&LORA[..], &flags].concat());
    let place = |step: u64| {
        let folder = workplace.path(&format!("out/checkpoint-{step}"));
        let fields = Checkpoint::read(&folder).unwrap().fields;
        ["epoch", "batch"].map(|field| fields[field].parse::<u64>().unwrap())
    };
    assert_eq!([1, 2, 3, 4].map(place), [[0, 2], [1, 0], [1, 2], [2, 0]]);
    assert_eq!(checkpoints(&workplace, "out").len(), 4);
}

#[test]
fn pictures_and_captions_that_have_changed_are_told() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let fixed = ["--output_dir", "out", "--max_train_steps", "1"];
    workplace.succeed([&LORA[..], &fixed].concat());
    let go_on = || {
        let more = ["--max_train_steps", "2", "--resume_from_checkpoint", "latest"];
        workplace.run([&LORA[..], &fixed, &more].concat())
    };
    let refused = |culprits: &[&str]| {
        let run = go_on();
        assert_eq!(run.status, Some(1), "{}", run.stderr);
        for culprit in culprits {
            assert!(run.stderr.contains(culprit), "{culprit}: {}", run.stderr);
        }
    };
    let [caption, picture] = ["data/0.txt", "data/1.png"].map(|name| workplace.path(name));
    let [words, bytes] = [&caption, &picture].map(|file| fs::read(file).unwrap());
    fs::write(&caption, "another shade").unwrap();
    refused(&["checkpoint-1 was made with captions ", "; this run has captions "]);
    fs::write(&caption, &words).unwrap();
    // What stands behind a picture's end is no part of it.
    fs::write(&picture, [&bytes[..], b"longer"].concat()).unwrap();
    refused(&["checkpoint-1 was made with pictures 2 (", "; this run has pictures 2 ("]);
    fs::write(&picture, &bytes).unwrap();
    for (from, to) in [(&picture, "data/2.png"), (&caption, "data/2.txt")] {
        fs::copy(from, workplace.path(to)).unwrap();
    }
    refused(&["pictures 2 (", "; this run has captions ", ", pictures 3 ("]);

    // A checkpoint of an earlier version does not know.
    let mut checkpoint = Checkpoint::read(&workplace.path("out/checkpoint-1")).unwrap();
    checkpoint.fields.retain(|name, _| !["setting.pictures", "setting.captions"].contains(&name.as_str()));
    assert!(checkpoint.setting("pictures").is_none() && checkpoint.setting("rank").is_some());
    Checkpoints::new(workplace.path("out"), None).unwrap().write(1, &checkpoint, |_| Ok(())).unwrap();
    let run = go_on();
    assert_eq!(run.status, Some(0), "{}", run.stderr);
}

#[test]
fn a_run_goes_on_where_its_folder_has_moved_or_its_result_is_written_otherwise() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    workplace.succeed([&LORA[..], &["--output_dir", "out", "--max_train_steps", "1"]].concat());
    fs::rename(workplace.path("data"), workplace.path("moved")).unwrap();
    let flags: Vec<&str> = LORA.iter().copied().filter(|flag| !flag.contains("data")).collect();
    let more = ["--train_data_dir=./moved/", "--output_dir", "out", "--max_train_steps", "2"];
    let other = ["--skip_broken", "--lora_format", "kohya", "--resume_from_checkpoint", "latest"];
    let run = workplace.succeed([&flags[..], &more, &other].concat());
    assert!(run.stderr.contains("going on from"), "{}", run.stderr);
}

#[test]
fn a_checkpoint_of_an_earlier_version_had_the_defaults_of_later_flags() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let run =
        |output: &str, flags: &[&str]| workplace.run([&LORA[..], &["--output_dir", output], flags].concat());
    for (output, steps) in [("whole", "3"), ("out", "2")] {
        let run = run(output, &["--max_train_steps", steps]);
        assert_eq!(run.status, Some(0), "{}", run.stderr);
    }
    let mut checkpoint = Checkpoint::read(&workplace.path("out/checkpoint-2")).unwrap();
    for name in ["rank", "use_rslora", "resolution", "pictures", "captions"] {
        assert!(checkpoint.fields.remove(&format!("setting.{name}")).is_some(), "{name}");
    }
    Checkpoints::new(workplace.path("out"), None).unwrap().write(2, &checkpoint, |_| Ok(())).unwrap();
    copy_folder(&workplace.path("out"), &workplace.path("other"));

    let resume = ["--max_train_steps", "3", "--resume_from_checkpoint", "latest"];
    let refused = run("out", &[&resume[..], &["--rank", "8", "--use_rslora", "--snr_gamma", "5"]].concat());
    assert_eq!(refused.status, Some(1), "{}", refused.stderr);
    let culprit = "checkpoint-2 was made with rank 4, snr_gamma nothing, use_rslora false; this run has rank 8, snr_gamma 5.0, use_rslora true";
    assert!(refused.stderr.contains(culprit), "{}", refused.stderr);
    let resumed = run("out", &resume);
    assert_eq!(resumed.status, Some(0), "{}", resumed.stderr);
    assert!(resumed.stderr.contains("going on from") && !resumed.stderr.contains("other batches"));
    let lora =
        |output: &str| fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).unwrap();
    assert!(lora("out") == lora("whole"));

    // It does not know which pictures there were, but how many epochs they had made.
    for kind in ["png", "txt"] {
        fs::copy(workplace.path(&format!("data/0.{kind}")), workplace.path(&format!("data/2.{kind}")))
            .unwrap();
    }
    let resumed = run("other", &resume);
    assert_eq!(resumed.status, Some(0), "{}", resumed.stderr);
    assert!(
        resumed.stderr.contains("other batches had come before other/checkpoint-2"),
        "{}",
        resumed.stderr
    );
}

#[test]
fn custom_diffusion_does_not_go_on_where_pictures_were_cut_in_another_way() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let train = [
        "train",
        "custom-diffusion",
        "--instance_data_dir",
        "data",
        "--instance_prompt",
        "a circle",
        "--max_train_steps",
        "1",
        "--output_dir",
        "out",
    ];
    workplace.succeed(train);
    let mut checkpoint = Checkpoint::read(&workplace.path("out/checkpoint-1")).unwrap();
    assert!(checkpoint.fields.remove("setting.noaug").is_some());
    Checkpoints::new(workplace.path("out"), None).unwrap().write(1, &checkpoint, |_| Ok(())).unwrap();
    let resume = [&train[..], &["--resume_from_checkpoint", "latest"]].concat();
    for noaug in [false, true] {
        let flags: &[&str] = if noaug { &["--noaug"] } else { &[] };
        let run = workplace.run([&resume[..], flags].concat());
        assert_eq!(run.status, Some(1), "{}", run.stderr);
        let culprit = format!("checkpoint-1 was made with noaug nothing; this run has noaug {noaug}");
        assert!(run.stderr.contains(&culprit), "{}", run.stderr);
    }
}

#[test]
fn a_run_goes_on_that_writes_within_its_pictures() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let train = |steps: &str, flags: &[&str]| {
        let fixed = "train dreambooth-lora --instance_data_dir data --instance_prompt sks --with_prior_preservation \
            --class_data_dir data/class --class_prompt circle --num_class_images 2 --num_inference_steps 1 \
            --validation_prompt circle --num_validation_images 1 --validation_steps 1 --output_dir ./data/out --max_train_steps";
        let fixed: Vec<&str> = fixed.split_whitespace().collect();
        workplace.succeed([&fixed[..], &[steps], flags].concat())
    };
    train("1", &[]);
    assert!(workplace.path("data/out/validation/000001.png").is_file());
    let run = train("2", &["--resume_from_checkpoint", "latest"]);
    assert!(run.stderr.contains("going on from ./data/out/checkpoint-1"), "{}", run.stderr);
}
