//! What a run of `diffuse train` leaves to look at.

use std::fs;

use crate::program::Workplace;
use crate::train::pictures;

#[test]
fn pictures_over_time_and_files_for_tensorboard() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let train = |flags: &[&str]| {
        let fixed = [
            "train",
            "text-to-image-lora",
            "--train_data_dir",
            "data",
            "--output_dir",
            "out",
            "--validation_prompt",
            "a shade",
            "--validation_epochs",
            "1",
            "--num_validation_images",
            "2",
            "--num_inference_steps",
            "2",
            "--report_to",
            "tensorboard",
            "--logging_dir",
            "events",
            "--checkpointing_steps",
            "2",
        ];
        workplace.succeed([&fixed[..], flags].concat())
    };
    let open = |name: &str| image::open(workplace.path("out/validation").join(name)).unwrap().to_rgb8();
    train(&["--max_train_steps", "2"]);
    train(&["--max_train_steps", "4", "--resume_from_checkpoint", "latest"]);
    // Two pictures make an epoch: a row after every second step, one below the other.
    let names = || {
        let entries = fs::read_dir(workplace.path("out/validation")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["000002.png", "000004.png", "all.png"]);
    let all = open("all.png");
    assert_eq!(all.dimensions(), (128, 128));
    for (row, name) in ["000002.png", "000004.png"].iter().enumerate() {
        let part = image::imageops::crop_imm(&all, 0, 64 * row as u32, 128, 64).to_image();
        assert!(part == open(name), "{name}");
    }
    let mut events = Vec::new();
    for entry in fs::read_dir(workplace.path("out/events")).unwrap() {
        let path = entry.unwrap().path();
        assert!(path.to_str().unwrap().contains("tfevents"));
        events.push(fs::read(path).unwrap());
    }
    assert_eq!(events.len(), 2, "one for each start");
    for bytes in events {
        let count = |text: &[u8]| bytes.windows(text.len()).filter(|part| *part == text).count();
        for tag in ["\nloss", "\nlr", "\ngrad_norm", "\nseconds_per_step"] {
            // A name stands behind its length.
            let tag = [&[0x0a, tag.len() as u8 - 1], tag.trim_start().as_bytes()].concat();
            assert_eq!(count(&tag), 2, "{tag:?}");
        }
        assert_eq!((count(b"\nvalidation"), count(b"\x89PNG")), (1, 1));
    }
}

#[test]
fn a_run_that_begins_removes_the_pictures_of_an_earlier_one() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let train = |flags: &[&str]| {
        let fixed = ["train", "text-to-image-lora", "--train_data_dir", "data", "--output_dir", "out"];
        let looks = ["--validation_prompt", "a shade", "--num_validation_images", "1"];
        workplace.succeed([&fixed[..], &looks, &["--num_inference_steps", "1"], flags].concat());
    };
    train(&["--max_train_steps", "3", "--validation_steps", "1"]);
    for name in ["7.png", "notes.txt"] {
        fs::write(workplace.path("out/validation").join(name), "someone's own").unwrap();
    }
    train(&["--max_train_steps", "2", "--validation_steps", "2"]);
    let resume = ["--resume_from_checkpoint", "checkpoint-2"];
    train(&[&["--max_train_steps", "4", "--validation_steps", "2"][..], &resume].concat());
    let entries = fs::read_dir(workplace.path("out/validation")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["000002.png", "000004.png", "7.png", "all.png", "notes.txt"]);
    let all = image::open(workplace.path("out/validation/all.png")).unwrap();
    assert_eq!((all.width(), all.height()), (64, 128));
}

#[test]
fn each_part_has_its_learning_rate_in_the_log() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let train = |output: &str, flags: &[&str]| {
        let fixed = ["train", "text-to-image-lora", "--train_data_dir", "data", "--output_dir", output];
        let steps = ["--max_train_steps", "1", "--learning_rate", "1e-4", "--report_to", "tensorboard"];
        workplace.succeed([&fixed[..], &steps, flags].concat());
        let log = fs::read_to_string(workplace.path(output).join("log.jsonl")).unwrap();
        let line: serde_json::Value = serde_json::from_str(&log).unwrap();
        let events = fs::read_dir(workplace.path(output).join("logs")).unwrap().next().unwrap().unwrap();
        (line, fs::read(events.path()).unwrap())
    };
    let has = |bytes: &[u8], tag: &[u8]| bytes.windows(tag.len()).any(|part| part == tag);
    let (line, events) = train("both", &["--train_text_encoder", "--text_encoder_lr", "1e-3"]);
    assert_eq!(line["learning_rate"], 1e-4);
    assert_eq!(line["learning_rates"], serde_json::json!({"unet": 1e-4, "text_encoder": 1e-3}));
    assert!(has(&events, b"lr_text_encoder"));
    let (line, events) = train("unet", &[]);
    assert!(line["learning_rate"] == 1e-4 && line.get("learning_rates").is_none(), "{line}");
    assert!(!has(&events, b"lr_"));
}

#[test]
fn several_prompts_are_painted_in_one_row() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let fixed = ["train", "text-to-image-lora", "--train_data_dir", "data", "--output_dir", "out"];
    let flags = ["--max_train_steps", "1", "--validation_steps", "1", "--num_inference_steps", "2"];
    let prompts = ["--num_validation_images", "2", "--validation_prompts", "a shade", "a red circle"];
    workplace.succeed([&fixed[..], &flags, &prompts].concat());
    let row = image::open(workplace.path("out/validation/000001.png")).unwrap().to_rgb8();
    assert_eq!(row.dimensions(), (4 * 64, 64));
    let part = |index: u32| image::imageops::crop_imm(&row, 64 * index, 0, 64, 64).to_image();
    // Both prompts begin with the same two noises.
    assert!(part(0) != part(1) && part(0) != part(2) && part(1) != part(3));
}

#[test]
fn a_recipe_may_stand_behind_the_prompts() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    let prompts = ["train", "--validation_prompts", "a shade", "a red circle", "text-to-image-lora"];
    let flags = ["--train_data_dir", "data", "--output_dir", "out", "--max_train_steps", "1"];
    let painted = ["--validation_steps", "1", "--num_inference_steps", "1", "--num_validation_images", "1"];
    workplace.succeed([&prompts[..], &flags, &painted].concat());
    let row = image::open(workplace.path("out/validation/000001.png")).unwrap().to_rgb8();
    assert_eq!(row.dimensions(), (2 * 64, 64));
    // A prompt may be called as a recipe is.
    let prompts = ["train", "text-to-image-lora", "--validation_prompts", "a shade", "dreambooth"];
    workplace.succeed([&prompts[..], &flags, &painted].concat());
}

/// The average of weights that have moved by a huge step is far behind them.
#[test]
fn the_average_is_painted_and_the_run_goes_on_with_the_weights() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let run = |output: &str, flags: &[&str]| {
        let fixed = ["train", "text-to-image-lora", "--train_data_dir", "data", "--output_dir", output];
        let steps = ["--max_train_steps", "3", "--learning_rate", "0.1", "--num_inference_steps", "2"];
        let looks = ["--validation_steps", "3", "--validation_prompt", "a shade"];
        workplace.succeed([&fixed[..], &steps, &looks, flags].concat());
        let log = fs::read_to_string(workplace.path(output).join("log.jsonl")).unwrap();
        let losses = log.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["loss"].as_f64().unwrap()
        });
        let row = image::open(workplace.path(output).join("validation/000003.png")).unwrap().to_rgb8();
        (losses.collect::<Vec<_>>(), row)
    };
    let (losses, plain) = run("plain", &[]);
    let (same, average) = run("average", &["--use_ema"]);
    assert!(plain != average);
    assert_eq!(losses, same);
    // Looking at the average in between changes no step.
    assert_eq!(run("often", &["--use_ema", "--validation_steps", "1"]).0, losses);
}
