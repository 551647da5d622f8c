//! `diffuse train custom-diffusion`.

use std::fs;

use image::{Rgb, RgbImage};

use crate::program::Workplace;

/// Two folders of one picture each, and the list that names them.
fn concepts(workplace: &Workplace) {
    for (folder, shade) in [("ring", [200, 30, 90]), ("hat", [20, 130, 90])] {
        fs::create_dir(workplace.path(folder)).unwrap();
        RgbImage::from_pixel(64, 64, Rgb(shade)).save(workplace.path(folder).join("0.png")).unwrap();
    }
    let list = serde_json::json!([
        {"instance_data_dir": "ring", "instance_prompt": "a <new1> circle", "class_data_dir": "circles", "class_prompt": "a circle"},
        {"instance_data_dir": "hat", "instance_prompt": "a <new2> square", "class_data_dir": "squares", "class_prompt": "a square"},
    ]);
    fs::write(workplace.path("concepts.json"), list.to_string()).unwrap();
}

const FIXED: [&str; 12] = [
    "train",
    "custom-diffusion",
    "--concepts_list",
    "concepts.json",
    "--modifier_token",
    "<new1>+<new2>",
    "--initializer_token",
    "red+green+blue",
    "--learning_rate",
    "1e-2",
    "--max_train_steps",
    "3",
];

fn paint(workplace: &Workplace, folder: Option<&str>) -> RgbImage {
    let flags = ["generate", "a large <new1> circle and <new2>", "--steps", "2", "--seed", "1"];
    let files = folder.map(|folder| {
        let file = |name: &str| format!("{folder}/{name}.safetensors");
        [file("pytorch_lora_weights"), file("<new1>"), file("<new2>")]
    });
    let mut all: Vec<&str> = flags.to_vec();
    if let Some([lora, first, second]) = &files {
        all.extend(["--lora", lora, "--embedding", first, "--embedding", second]);
    }
    workplace.succeed(all);
    image::open(workplace.path("out.png")).unwrap().to_rgb8()
}

#[test]
fn several_things_are_learned_and_painted() {
    let workplace = Workplace::new();
    concepts(&workplace);
    let train = |output: &str, flags: &[&str]| {
        workplace
            .succeed([&FIXED[..], &["--output_dir", output, "--checkpointing_steps", "2"], flags].concat())
    };
    let files = |output: &str| {
        ["pytorch_custom_diffusion_weights", "pytorch_lora_weights", "<new1>", "<new2>"]
            .map(|name| fs::read(workplace.path(output).join(format!("{name}.safetensors"))).unwrap())
    };
    let before = paint(&workplace, None);
    let prior = ["--with_prior_preservation", "--num_class_images", "2", "--num_inference_steps", "2"];
    train("keys", &prior);
    for folder in ["circles", "squares"] {
        assert_eq!(fs::read_dir(workplace.path(folder)).unwrap().count(), 2, "{folder}");
    }
    let keys = paint(&workplace, Some("keys"));
    assert!(keys != before);

    // Goes on from the second step to the same files.
    let whole = files("keys");
    fs::remove_dir_all(workplace.path("keys/checkpoint-3")).unwrap();
    train("keys", &[&prior[..], &["--resume_from_checkpoint", "latest"]].concat());
    assert!(files("keys") == whole);

    // kohya's layout paints the same; all projections paint something else.
    train("kohya", &[&prior[..], &["--lora_format", "kohya"]].concat());
    assert!(files("kohya")[1] != whole[1]);
    assert!(paint(&workplace, Some("kohya")) == keys);
    train("all", &[&prior[..], &["--freeze_model", "crossattn"]].concat());
    let all = paint(&workplace, Some("all"));
    assert!(all != keys && all != before);

    // Without pictures that come larger and smaller something else is learned, and the VAE is needed before the first step alone.
    let alike = [&prior[..], &["--noaug"]].concat();
    let run = train("alike", &alike);
    assert!(run.stderr.contains("all pictures are encoded; the VAE is not kept"), "{}", run.stderr);
    let still = files("alike");
    assert!(still != whole);
    // Painting on the way needs it too, and changes nothing.
    let look = ["--validation_prompt", "a circle", "--num_validation_images", "1"];
    let run = train("looking", &[&alike[..], &look].concat());
    assert!(!run.stderr.contains("not kept"), "{}", run.stderr);
    assert!(files("looking") == still);
}

#[test]
fn encoders_are_freed_where_no_word_is_learned() {
    let workplace = Workplace::new();
    concepts(&workplace);
    let train = |output: &str, flags: &[&str]| {
        let fixed = [
            "train",
            "custom-diffusion",
            "--instance_data_dir",
            "ring",
            "--instance_prompt",
            "a circle",
            "--noaug",
        ];
        let steps = ["--learning_rate", "1e-2", "--max_train_steps", "2", "--output_dir", output];
        let run = workplace.succeed([&fixed[..], &steps, flags].concat());
        let lora = fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).unwrap();
        (run.stderr.contains("the VAE and the text encoders are not kept"), lora)
    };
    let (is_freed, lora) = train("freed", &[]);
    assert!(is_freed);
    let look =
        ["--validation_prompt", "a circle", "--num_validation_images", "1", "--num_inference_steps", "1"];
    assert!(train("looking", &look) == (false, lora));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let workplace = Workplace::new();
    concepts(&workplace);
    fs::write(workplace.path("empty.json"), "[]").unwrap();
    fs::write(workplace.path("lacks.json"), r#"[{"instance_prompt": "a <new1>"}]"#).unwrap();
    fs::write(workplace.path("no-class.json"), r#"[{"instance_prompt": "a", "instance_data_dir": "ring"}]"#)
        .unwrap();
    fs::write(
        workplace.path("red.json"),
        r#"[{"instance_prompt": "a red <a>", "instance_data_dir": "ring"}]"#,
    )
    .unwrap();
    for (flags, culprits) in [
        (&["--initializer_token", "red"][..], &["1 words for the 2"][..]),
        (&["--initializer_token", "red+red circle"], &["initializer_token", "red circle", "2 tokens"]),
        (&["--modifier_token", "red+<a>", "--concepts_list", "red.json"], &["--modifier-token is \"red\""]),
        (
            &["--modifier_token", "<new1>+<new3>"],
            &["ring, hat: no caption has the new word <new3>", "instance_prompt of --concepts-list"],
        ),
        (&["--concepts_list", "empty.json"], &["empty.json", "empty list"]),
        (&["--concepts_list", "lacks.json"], &["lacks.json", "instance_data_dir"]),
        (
            &["--concepts_list", "no-class.json", "--with_prior_preservation"],
            &["concept 1", "class_data_dir"],
        ),
        (&["--placeholder_token", "<a>"], &["--modifier-token"]),
        (&["--train_text_encoder"], &["--train-text-encoder"]),
        (&["--train_data_dir", "ring"], &["--train-data-dir"]),
        (&["--use_aspect_ratio_buckets"], &["aspect-ratio buckets", "--noaug"]),
        (
            &["--real_prior", "--with_prior_preservation"],
            &["--real-prior", "not fetched", "--class-data-dir", "--num-class-images"],
        ),
    ] {
        let run = workplace.run([&FIXED[..], &["--output_dir", "out"], flags].concat());
        assert_eq!((run.status, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
        for culprit in culprits {
            assert!(run.stderr.contains(culprit), "{culprit:?}: {}", run.stderr);
        }
    }
}
