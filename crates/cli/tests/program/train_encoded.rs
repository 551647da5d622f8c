//! What the VAE and the text encoders make of pictures and captions is kept.

use std::fs;

use image::{Rgb, RgbImage};

use crate::program::{Workplace, copy_folder};
use crate::train::pictures;

const LORA: [&str; 9] = [
    "train",
    "text-to-image-lora",
    "--train_data_dir",
    "data",
    "--center_crop",
    "--max_train_steps",
    "3",
    "--proportion_empty_prompts",
    "0.5",
];

const FREED: &str = "all pictures are encoded; the VAE and the text encoders are not kept";

#[test]
fn encoders_are_freed_where_nothing_needs_them() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    pictures(&workplace, "class", 3);
    let train = |recipe: &[&str], output: &str, flags: &[&str]| {
        let run = workplace.succeed([recipe, &["--output_dir", output], flags].concat());
        let lora = fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).unwrap();
        (run.stderr.contains(FREED), lora)
    };
    let looking =
        ["--validation_prompt", "a shade", "--num_validation_images", "1", "--num_inference_steps", "1"];
    let (is_freed, lora) = train(&LORA, "freed", &[]);
    assert!(is_freed);
    // Where pictures are painted on the way, encoders stay; it is the same run.
    assert!(train(&LORA, "looking", &looking) == (false, lora));
    let dreambooth = [
        "train",
        "dreambooth-lora",
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
        "3",
        "--center_crop",
        "--max_train_steps",
        "3",
    ];
    let (is_freed, lora) = train(&dreambooth, "thing", &[]);
    assert!(is_freed);
    assert!(train(&dreambooth, "thing-looking", &looking) == (false, lora));
    // A text encoder that is trained stays.
    let run = workplace.succeed([&LORA[..], &["--output_dir", "trained", "--train_text_encoder"]].concat());
    assert!(run.stderr.contains("all pictures are encoded; the VAE is not kept"), "{}", run.stderr);
    assert!(
        train(&LORA, "trained-looking", &[&["--train_text_encoder"][..], &looking].concat()).1
            == fs::read(workplace.path("trained/pytorch_lora_weights.safetensors")).unwrap()
    );
    for flags in [&["--train_text_encoder"][..], &["--random_flip"], &["--max_train_steps", "1"]] {
        assert!(!train(&LORA, "kept", flags).0, "{flags:?}");
    }
}

#[test]
fn pictures_of_a_class_that_are_cut_anew_each_time_are_not_kept() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    pictures(&workplace, "class", 2);
    // Those of the thing fill the square; of this one, each crop is another.
    let wide = RgbImage::from_fn(256, 64, |x, _| Rgb([x as u8, 0, 90]));
    wide.save(workplace.path("class/0.png")).unwrap();
    let train = |output: &str, flags: &[&str]| {
        let dreambooth = [
            "train",
            "dreambooth-lora",
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
            "--max_train_steps",
            "4",
            "--checkpointing_steps",
            "2",
            "--output_dir",
            output,
        ];
        let run = workplace.succeed([&dreambooth[..], flags].concat());
        assert!(!run.stderr.contains(FREED), "{}", run.stderr);
        fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).unwrap()
    };
    let whole = train("whole", &[]);
    copy_folder(&workplace.path("whole"), &workplace.path("resumed"));
    assert!(train("resumed", &["--resume_from_checkpoint", "checkpoint-2"]) == whole);
}

#[test]
fn pictures_of_a_class_are_kept_in_each_size_that_they_come_in() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 1);
    pictures(&workplace, "class", 2);
    for folder in ["data", "class"] {
        let wide = RgbImage::from_fn(160, 80, |x, y| Rgb([x as u8, (3 * y) as u8, 90]));
        wide.save(workplace.path(folder).join("wide.png")).unwrap();
        fs::write(workplace.path(folder).join("wide.txt"), "a wide shade").unwrap();
    }
    let train = |recipe: &str, output: &str, flags: &[&str]| {
        let fixed = [
            "train",
            recipe,
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
            "3",
            "--use_aspect_ratio_buckets",
            "--resolution",
            "64",
            "--max_train_steps",
            "6",
            "--checkpointing_steps",
            "2",
            "--learning_rate",
            "1e-2",
            "--output_dir",
            output,
        ];
        let run = workplace.succeed([&fixed[..], flags].concat());
        let lora = fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).unwrap();
        (run.stderr.contains(FREED), lora)
    };
    let middle = ["--center_crop"];
    let (is_freed, whole) = train("dreambooth-lora", "whole", &middle);
    // Three pictures of the class in two sizes.
    assert!(is_freed);
    copy_folder(&workplace.path("whole"), &workplace.path("resumed"));
    let resume = ["--resume_from_checkpoint", "checkpoint-2"];
    // Fewer steps than pictures are left, which are encoded when they come.
    assert!(train("dreambooth-lora", "resumed", &[&middle[..], &resume].concat()) == (false, whole.clone()));
    assert!(
        train("dreambooth-lora", "cached", &[&middle[..], &["--encoder_cache_dir", "cache"]].concat()).1
            == whole
    );
    let count = fs::read_dir(workplace.path("cache")).unwrap().flatten();
    let count = count.filter(|entry| entry.file_name().to_string_lossy().starts_with("picture-")).count();
    // The two of the thing are the same as two of these.
    assert_eq!(count, 3 * 2);
    // Cut anew each time, and in pairs.
    let (is_freed, random) = train("dreambooth-lora", "random", &["--train_batch_size", "2"]);
    assert!(!is_freed && random != whole);
    copy_folder(&workplace.path("random"), &workplace.path("resumed-random"));
    let resume = ["--train_batch_size", "2", "--resume_from_checkpoint", "checkpoint-4"];
    assert!(train("dreambooth-lora", "resumed-random", &resume) == (false, random));
    train("custom-diffusion", "custom", &["--center_crop", "--noaug"]);
}

#[test]
fn a_folder_keeps_it_for_other_runs_and_is_never_stale() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let train = |output: &str, flags: &[&str]| {
        workplace.succeed([&LORA[..], &["--output_dir", output], flags].concat());
        fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).unwrap()
    };
    let files = || {
        let entries = fs::read_dir(workplace.path("cache")).unwrap();
        let names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        ["picture-", "text-"].map(|kind| names.iter().filter(|name| name.starts_with(kind)).count())
    };
    let cache = ["--encoder_cache_dir", "cache"];
    let plain = train("plain", &[]);
    assert!(train("first", &cache) == plain);
    // Two captions, and none.
    assert_eq!(files(), [2, 3]);
    assert!(train("second", &cache) == plain);
    assert_eq!(files(), [2, 3]);
    // Another picture under the same name, and another cut of the same pictures.
    RgbImage::from_pixel(64, 64, Rgb([1, 200, 3])).save(workplace.path("data/0.png")).unwrap();
    let changed = train("changed", &cache);
    assert!(changed != plain && changed == train("changed-plain", &[]));
    assert_eq!(files(), [3, 3]);
    train("smaller", &["--encoder_cache_dir", "cache", "--resolution", "48"]);
    assert_eq!(files(), [5, 3]);
    for entry in fs::read_dir(workplace.path("cache")).unwrap() {
        fs::write(entry.unwrap().path(), "no tensors").unwrap();
    }
    let run = workplace.run([&LORA[..], &["--output_dir", "damaged"], &cache].concat());
    assert_eq!((run.status, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
    assert!(run.stderr.contains("cache/picture-") && run.stderr.contains("remove it"), "{}", run.stderr);
}

#[test]
fn words_that_learned_something_else_do_not_share_what_a_folder_keeps() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    for index in 0..2 {
        fs::write(workplace.path(&format!("data/{index}.txt")), "a <shade>").unwrap();
    }
    let train = |output: &str, flags: &[&str]| {
        let pivotal = [
            "train",
            "pivotal-tuning",
            "--train_data_dir",
            "data",
            "--placeholder_token",
            "<shade>",
            "--initializer_token",
            "red",
            "--max_train_steps_ti",
            "2",
            "--max_train_steps",
            "2",
            "--output_dir",
            output,
        ];
        workplace.succeed([&pivotal[..], flags].concat());
        fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).unwrap()
    };
    let (cache, fast) = (["--encoder_cache_dir", "cache"], ["--learning_rate_ti", "1e-1"]);
    let slow = train("slow", &cache);
    let plain = train("plain", &fast);
    assert!(plain != slow && train("fast", &[cache, fast].concat()) == plain);
}
