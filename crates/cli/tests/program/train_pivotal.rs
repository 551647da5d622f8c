//! `diffuse train pivotal-tuning` by the flags of cloneofsimo's lora_pti.

use std::fs;

use candle_core::{DType, Device, Tensor};
use candle_diffusers_training::Checkpoint;
use image::{GrayImage, Luma};
use serde_json::Value;

use crate::program::Workplace;
use crate::train::captioned;

/// The words after the first run, after the second, and the LoRA.
const FILES: [&str; 3] = [
    "inversion/learned_embeds.safetensors",
    "learned_embeds.safetensors",
    "pytorch_lora_weights.safetensors",
];

/// A word and a LoRA of two steps each, from captions with the word; gives the word after the first run, after the second, and the LoRA.
fn train(workplace: &Workplace, output: &str, flags: &[&str]) -> [Vec<u8>; 3] {
    let fixed = [
        "train",
        "pivotal-tuning",
        "--train_data_dir=data",
        "--placeholder_token=<shade>",
        "--initializer_token=red",
        "--max_train_steps_ti=2",
        "--max_train_steps=2",
        "--learning_rate=1e-3",
        "--learning_rate_ti=1e-2",
        "--checkpointing_steps=1",
        "--output_dir",
        output,
    ];
    workplace.succeed([&fixed[..], flags].concat());
    FILES.map(|name| fs::read(workplace.path(output).join(name)).unwrap())
}

fn workplace() -> Workplace {
    let workplace = Workplace::new();
    captioned(&workplace, "data", 2, Some("a <shade>"));
    workplace
}

/// How long the word's vector is.
fn length(embedding: &[u8]) -> f64 {
    let tensors = candle_core::safetensors::load_buffer(embedding, &Device::Cpu).unwrap();
    let vector = tensors["<shade>"].to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    vector.to_vec1::<f64>().unwrap().iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn learning_rates(workplace: &Workplace, file: &str) -> Vec<f64> {
    let log = fs::read_to_string(workplace.path(file)).unwrap();
    let rate = |line: &str| serde_json::from_str::<Value>(line).unwrap()["learning_rate"].as_f64().unwrap();
    log.lines().map(rate).collect()
}

#[test]
fn flags_of_lora_pti_do_what_they_say() {
    let workplace = workplace();
    let plain = train(&workplace, "plain", &[]);
    assert!(plain[0] == plain[1], "the LoRA's steps have changed the word");

    // At a learning rate of 0.01 or more the length is 0.4 after each step.
    let pulled = train(&workplace, "pulled", &["--clip_ti_decay"]);
    assert!((length(&pulled[0]) - 0.4).abs() < 1e-5, "{}", length(&pulled[0]));
    assert!(pulled[0] != plain[0]);

    let decayed = train(&workplace, "decayed", &["--weight_decay_ti=0.5"]);
    assert!(decayed[0] != plain[0]);
    let decayed = train(&workplace, "decayed-lora", &["--weight_decay_lora=0.5"]);
    assert!(decayed[0] == plain[0] && decayed[2] != plain[2]);

    // Also as lora_pti spells it; 1 is all timesteps.
    assert!(train(&workplace, "all", &["--t_multiplier=1"]) == plain);
    let early = train(&workplace, "early", &["--t_mutliplier=0.1"]);
    assert!(early[0] == plain[0] && early[2] != plain[2]);

    let jittered = train(&workplace, "jittered", &["--color_jitter"]);
    assert!(jittered[0] != plain[0] && jittered[2] != plain[2]);

    train(&workplace, "linear", &["--lr_scheduler_lora=linear", "--lr_warmup_steps_lora=0"]);
    assert_eq!(learning_rates(&workplace, "linear/inversion/log.jsonl"), [1e-2, 1e-2]);
    assert_eq!(learning_rates(&workplace, "linear/log.jsonl"), [1e-3, 5e-4]);

    // What has other names there.
    let names = ["--learning_rate_unet=2e-3", "--ti_lr=2e-2", "--max_train_steps_tuning=1", "--lora_rank=2"];
    train(&workplace, "names", &names);
    assert_eq!(learning_rates(&workplace, "names/inversion/log.jsonl"), [2e-2, 2e-2]);
    assert_eq!(learning_rates(&workplace, "names/log.jsonl"), [2e-3]);
}

#[test]
fn masks_weigh_what_the_word_learns_from_at_a_temperature_of_one() {
    let workplace = workplace();
    let without = train(&workplace, "without", &[]);
    for index in 0..2 {
        let mask = GrayImage::from_fn(64, 64, |x, _| Luma([if x < 40 { 0 } else { 255 }]));
        mask.save(workplace.path(&format!("data/{index}.mask.png"))).unwrap();
    }
    let masks = "--use_mask_captioned_data";
    let plain = train(&workplace, "plain", &[masks]);
    let hotter = train(&workplace, "hotter", &[masks, "--mask_temperature=4"]);
    assert!(plain[0] != without[0], "the word's loss knows no mask");
    assert!(hotter[0] == plain[0] && hotter[2] != plain[2]);
}

#[test]
fn latents_can_be_drawn_once() {
    let workplace = workplace();
    let flags = ["--random_flip", "--color_jitter", "--cached_latents"];
    let whole = train(&workplace, "out", &flags);
    assert!(train(&workplace, "anew", &flags[..2]) != whole);
    for folder in ["out/inversion/checkpoint-2", "out/checkpoint-1", "out/checkpoint-2"] {
        fs::remove_dir_all(workplace.path(folder)).unwrap();
    }
    let again = train(&workplace, "out", &[&flags[..], &["--resume_from_checkpoint=latest"]].concat());
    assert!(again == whole);
}

#[test]
fn a_word_learns_on_beside_the_lora() {
    let workplace = workplace();
    let on = ["--continue_inversion", "--clip_ti_decay"];
    let whole = train(&workplace, "out", &on);
    assert!(whole[0] != whole[1]);
    fs::remove_dir_all(workplace.path("out/checkpoint-2")).unwrap();
    let again = train(&workplace, "out", &[&on[..], &["--resume_from_checkpoint=latest"]].concat());
    assert!(again == whole);
    let still = train(&workplace, "still", &[&on[..], &["--continue_inversion_lr=0"]].concat());
    assert!(still[0] == whole[0] && still[0] == still[1]);
}

#[test]
fn a_word_begins_at_random_or_as_zeros() {
    let workplace = workplace();
    // So that the word stays what it begins as.
    let still = "--learning_rate_ti=0";
    let begin = |output: &str, initializer: &str| {
        let initializer = format!("--initializer_token={initializer}");
        length(&train(&workplace, output, &[initializer.as_str(), still])[0])
    };
    assert_eq!(begin("zero", "<zero>"), 0.0);
    let (small, large) = (begin("small", "<rand-0.01>"), begin("large", "<rand-0.02>"));
    assert!(small > 0.0 && (large / small - 2.0).abs() < 1e-5, "{small} and {large}");

    let random = "--initializer_token=<rand-0.017>";
    let whole = train(&workplace, "out", &[random]);
    assert!(train(&workplace, "anew", &[random]) == whole);
    for folder in ["out/inversion/checkpoint-2", "out/checkpoint-1", "out/checkpoint-2"] {
        fs::remove_dir_all(workplace.path(folder)).unwrap();
    }
    let again = train(&workplace, "out", &[random, "--resume_from_checkpoint=latest"]);
    assert!(again == whole);
}

/// Words of two steps and a LoRA of two, by lora_pti's flags, as `train`.
fn train_words(workplace: &Workplace, data: &str, output: &str, flags: &[&str]) -> [Vec<u8>; 3] {
    let fixed = [
        "train",
        "pivotal-tuning",
        "--train_data_dir",
        data,
        "--placeholder_tokens=<s1>|<s2>",
        "--max_train_steps_ti=2",
        "--max_train_steps=2",
        "--learning_rate_ti=1e-1",
        "--checkpointing_steps=1",
        "--output_dir",
        output,
    ];
    workplace.succeed([&fixed[..], flags].concat());
    FILES.map(|name| fs::read(workplace.path(output).join(name)).unwrap())
}

#[test]
fn several_words_are_learned_and_painted() {
    let workplace = Workplace::new();
    captioned(&workplace, "both", 2, Some("a <s1><s2>"));
    let initializers = ["--initializer_tokens=red|<zero>"];
    let whole = train_words(&workplace, "both", "out", &initializers);
    let embeddings = candle_core::safetensors::load_buffer(&whole[1], &Device::Cpu).unwrap();
    let mut names: Vec<&String> = embeddings.keys().collect();
    names.sort();
    assert_eq!(names, ["<s1>", "<s2>"]);
    // Both have left what they began as; where nothing is said that is at random.
    let first = train_words(&workplace, "both", "first", &[initializers[0], "--learning_rate_ti=0"]);
    let begun = candle_core::safetensors::load_buffer(&first[1], &Device::Cpu).unwrap();
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for name in ["<s1>", "<s2>"] {
        assert!(values(&embeddings[name]) != values(&begun[name]), "{name}");
    }
    assert!(values(&begun["<s2>"]).iter().all(|value| *value == 0.0));
    let random = train_words(&workplace, "both", "random", &[]);
    let said = train_words(&workplace, "both", "said", &["--initializer_tokens=<rand-0.017>|<rand-0.017>"]);
    assert!(random[0] != whole[0] && random == said);

    // Goes on from either run's first step to the same files.
    for folder in ["out/inversion/checkpoint-2", "out/checkpoint-1", "out/checkpoint-2"] {
        fs::remove_dir_all(workplace.path(folder)).unwrap();
    }
    let on = [initializers[0], "--resume_from_checkpoint=latest"];
    assert!(train_words(&workplace, "both", "out", &on) == whole);
    fs::remove_dir_all(workplace.path("out/checkpoint-2")).unwrap();
    assert!(train_words(&workplace, "both", "out", &on) == whole);

    let paint = |prompt: &str, flags: &[&str]| {
        let fixed = ["generate", prompt, "--steps", "2", "--seed", "1", "--output", "out.png"];
        workplace.succeed([&fixed[..], flags].concat());
        image::open(workplace.path("out.png")).unwrap().to_rgb8()
    };
    let learned = ["--embedding", "out/learned_embeds.safetensors"];
    for word in ["<s1>", "<s2>"] {
        let prompt = format!("a large {word} circle");
        assert!(paint(&prompt, &learned) != paint(&prompt, &[]), "{word}");
    }
}

#[test]
fn the_flags_for_several_words_are_good_for_one() {
    let workplace = Workplace::new();
    captioned(&workplace, "made", 2, None);
    let word = ["--placeholder_tokens=<s1>", "--initializer_tokens=red", "--learning_rate=1e-3"];
    let several = train_words(&workplace, "made", "several", &word);
    let word = ["--placeholder_token=<s1>", "--learning_rate_ti=1e-1", "--train_data_dir=made"];
    assert!(train(&workplace, "one", &word) == several);
}

/// What a run knows its captions by.
fn captions(workplace: &Workplace, output: &str) -> String {
    let checkpoint = Checkpoint::read(&workplace.path(output).join("checkpoint-2")).unwrap();
    checkpoint.setting("captions").unwrap().to_string()
}

#[test]
fn several_words_are_joined_in_captions_that_are_made() {
    let workplace = Workplace::new();
    captioned(&workplace, "none", 2, None);
    train_words(&workplace, "none", "several", &[]);
    let one = |word: &str, output: &str| {
        let word = format!("--placeholder_token={word}");
        train(&workplace, output, &["--train_data_dir=none", &word]);
        captions(&workplace, output)
    };
    assert_eq!(captions(&workplace, "several"), one("<s1><s2>", "joined"));
    assert_ne!(captions(&workplace, "several"), one("<s1>", "first"));
}

#[test]
fn captions_may_call_the_words_something_else() {
    let workplace = Workplace::new();
    for (folder, caption) in [("said", "a <s1><s2>"), ("dummy", "a DUMMY"), ("cat", "a <cat>")] {
        captioned(&workplace, folder, 2, Some(caption));
    }
    let whole = train_words(&workplace, "said", "whole", &[]);
    assert!(train_words(&workplace, "dummy", "default", &[]) == whole);
    let called = "--placeholder_token_at_data=<cat>|<s1><s2>";
    assert!(train_words(&workplace, "cat", "called", &[called]) == whole);
}

#[test]
fn captions_are_made_where_a_template_is_asked_for() {
    let workplace = Workplace::new();
    captioned(&workplace, "none", 2, None);
    captioned(&workplace, "words", 2, Some("<s2><s1>"));
    let both = "--placeholder_token_at_data=x|<s2><s1>";
    let of_words = train_words(&workplace, "words", "words-out", &[]);
    assert!(train_words(&workplace, "none", "null", &[both, "--use_template=null"]) == of_words);
    for (kind, property) in
        [("object", "--learnable_property=object"), ("style", "--learnable_property=style")]
    {
        let template = format!("--use_template={kind}");
        train_words(&workplace, "words", kind, &[&template]);
        let made = format!("{kind}-made");
        train_words(&workplace, "none", &made, &[property]);
        assert_eq!(captions(&workplace, kind), captions(&workplace, &made));
        assert_ne!(captions(&workplace, kind), captions(&workplace, "words-out"));
    }
}

#[test]
fn the_lora_may_be_learned_longer_where_its_rate_stays() {
    let workplace = workplace();
    let rates = ["--lr_scheduler=linear", "--lr_scheduler_lora=constant"];
    let before = train(&workplace, "out", &rates);
    let longer = ["--max_train_steps=3", "--resume_from_checkpoint=latest"];
    let after = train(&workplace, "out", &[&rates[..], &longer].concat());
    assert!(after[0] == before[0] && after[2] != before[2]);
    assert_eq!(learning_rates(&workplace, "out/log.jsonl"), [1e-3; 3]);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let workplace = workplace();
    let fixed = [
        "train",
        "pivotal-tuning",
        "--train_data_dir=data",
        "--placeholder_token=<shade>",
        "--initializer_token=red",
        "--output_dir=out",
    ];
    for (flag, culprit) in [
        ("--t_multiplier=0", "t_multiplier is 0"),
        ("--t_multiplier=1.5", "t_multiplier is 1.5"),
        ("--lr_scheduler_lora=sideways", "--lr-scheduler-lora: lr_scheduler is sideways"),
        ("--lr_scheduler_lora=piecewise_constant", "--lr-scheduler-lora"),
        ("--initializer_token=<rand>", "initializer_token is \"<rand>\""),
        ("--weight_decay_ti=-1", "--weight-decay-ti is -1"),
        ("--weight_decay_lora=-1", "--weight-decay-lora is -1"),
    ] {
        let run = workplace.run([&fixed[..], &[flag]].concat());
        assert_eq!((run.status, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
        assert!(run.stderr.contains(culprit), "{culprit:?}: {}", run.stderr);
    }
}

#[test]
fn words_that_do_not_fit_are_refused() {
    let workplace = Workplace::new();
    captioned(&workplace, "data", 2, None);
    let fixed = ["train", "pivotal-tuning", "--train_data_dir=data", "--output_dir=out"];
    let two = "--placeholder_tokens=<a>|<b>";
    for (flags, culprits) in [
        (&[two, "--initializer_tokens=red"][..], &["--initializer-tokens has 1 words for the 2"][..]),
        (&[two, "--initializer_tokens=red|blue|green"], &["--initializer-tokens has 3 words for the 2"]),
        (&[two, "--initializer_tokens=red|red circle"], &["initializer_token", "red circle", "2 tokens"]),
        (&[two, "--initializer_tokens=red|<rand-x>"], &["initializer_token", "<rand-x>", "<rand-0.017>"]),
        (&["--placeholder_tokens=<a>|red"], &["placeholder_token", "\"red\"", "already"]),
        (&["--placeholder_tokens=<a>|<a>"], &["placeholder_token", "\"<a>\"", "already"]),
        (&["--placeholder_tokens=<a>|"], &["placeholder_token", "empty"]),
        (&["--placeholder_tokens=<a>|<b/c>"], &["placeholder_token is \"<b/c>\"", "name of a file"]),
        (
            &["--placeholder_token=../<a>", "--initializer_token=red"],
            &["placeholder_token is \"../<a>\"", "name of a file"],
        ),
        (&[two, "--placeholder_token=<c>"], &["--placeholder-token", "--placeholder-tokens"]),
        (&[two, "--initializer_token=red"], &["--initializer-token", "--initializer-tokens"]),
        (&[two, "--placeholder_token_at_data=cat"], &["--placeholder-token-at-data is \"cat\"", "<s1>"]),
        (&[two, "--placeholder_token_at_data=|<a>"], &["--placeholder-token-at-data is \"|<a>\""]),
        (&["--initializer_tokens=red"], &["--initializer-tokens", "--placeholder-tokens"]),
        (&[], &["--placeholder-token", "--initializer-token"]),
    ] {
        let run = workplace.run([&fixed[..], flags].concat());
        assert_eq!((run.status, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
        for culprit in culprits {
            assert!(run.stderr.contains(culprit), "{culprit:?}: {}", run.stderr);
        }
    }
}

#[test]
fn a_word_that_no_caption_has_is_refused() {
    let workplace = Workplace::new();
    for (folder, caption) in [("data", Some("a <s1>")), ("cat", Some("a <cat>")), ("none", None)] {
        captioned(&workplace, folder, 2, caption);
    }
    let one = ["--placeholder_token=<shade>", "--initializer_token=red"];
    let two = ["--placeholder_tokens=<s1>|<s2>"];
    // The prompt has both, and is not used where there are captions.
    let both = ["--modifier_token=<s1>+<s2>", "--instance_prompt=a <s1><s2>"];
    let prompt = [both[0], "--instance_prompt=a <s1>"];
    let called = [two[0], "--placeholder_token_at_data=<cat>|<s2>", "--use_template=null"];
    for (recipe, folder, flags, word, advice) in [
        (
            "textual-inversion",
            "data",
            &one[..],
            "<shade>",
            "write it into the captions, or take them away, so that templates are used",
        ),
        (
            "pivotal-tuning",
            "data",
            &one,
            "<shade>",
            "write it into the captions, or take them away, or give --use-template object or style, so that templates are used",
        ),
        ("pivotal-tuning", "data", &two, "<s2>", "write it into the captions as DUMMY, or take"),
        ("pivotal-tuning", "cat", &two, "<s1>", "write it into the captions as DUMMY, or take"),
        ("pivotal-tuning", "none", &called, "<s1>", "write it into --placeholder-token-at-data"),
        (
            "custom-diffusion",
            "data",
            &both,
            "<s2>",
            "write it into the captions, or take them away and write it into --instance-prompt",
        ),
        ("custom-diffusion", "none", &prompt, "<s2>", "write it into --instance-prompt"),
    ] {
        let fixed = ["train", recipe, "--output_dir=out"];
        let data = if recipe == "custom-diffusion" { "--instance_data_dir" } else { "--train_data_dir" };
        let culprit =
            format!("{folder}: no caption has the new word {word}, which would learn nothing; {advice}");
        workplace.refuse([&fixed[..], &[data, folder], flags].concat(), &[culprit.as_str()]);
    }
    // One caption with it is enough, in upper or lower case.
    fs::write(workplace.path("data/1.txt"), "a <SHADE>").unwrap();
    train(&workplace, "out", &[]);
}

#[test]
fn a_command_of_lora_pti_is_taken_as_it_stands() {
    let workplace = workplace();
    let run = |flags: &str| {
        let fixed = "train pivotal-tuning --placeholder_tokens=<s1>|<s2> --initializer_tokens=red|blue --use_template=style \
            --train_text_encoder --learning_rate_ti=1e-2 --max_train_steps_ti=2 --clip_ti_decay --scale_lr --train_batch_size=2";
        workplace.run(fixed.split_whitespace().chain(flags.split_whitespace()))
    };
    let theirs = run(
        "--instance_data_dir=data --perform_inversion=True --learning_rate_unet=1e-3 --learning_rate_text=1e-4 \
        --max_train_steps_tuning=2 --lora_rank=2 --save_steps=100 --device=cuda:0 --output_dir=theirs",
    );
    assert_eq!(theirs.status, Some(0), "{}", theirs.stderr);
    let ours = run(
        "--train_data_dir=data --learning_rate=1e-3 --text_encoder_lr=1e-4 --max_train_steps=2 --rank=2 --output_dir=ours",
    );
    assert_eq!(ours.status, Some(0), "{}", ours.stderr);
    let files = |output: &str| FILES.map(|name| fs::read(workplace.path(output).join(name)).unwrap());
    assert!(files("theirs") == files("ours"));

    let refused = |flags: &str, culprit: &str| {
        let run = run(flags);
        assert_eq!((run.status, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
        assert!(run.stderr.contains(culprit), "{}", run.stderr);
    };
    let both = "--train_data_dir=data --instance_data_dir=data --output_dir=bad";
    refused(both, "--train-data-dir and --instance-data-dir are the same");
    refused("--train_data_dir=data --perform_inversion=False --output_dir=bad", "take that recipe");
}
