//! `mpirun -n 2 diffuse train`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};

use crate::program::{PARITY, Run, Workplace, finish, shapes};
use crate::train_pairs::{pairs, sd1};

/// The program as two processes on one machine.
fn two<'a>(workplace: &Workplace, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let program = workplace.command(arguments);
    let mut command = Command::new("mpirun");
    command.args(["-n", "2", "--oversubscribe", "--bind-to", "none"]);
    command.arg(program.get_program()).args(program.get_args());
    command.current_dir(workplace.path("."));
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // In containers all is root's, which Open MPI wants to be told twice.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
}

fn pictures(workplace: &Workplace, count: u8) {
    let folder = workplace.path("data");
    fs::create_dir(&folder).unwrap();
    for index in 0..count {
        let pixel = |x: u32, y: u32| Rgb([40 * index, (3 * x) as u8, (2 * y) as u8]);
        RgbImage::from_fn(80, 64, pixel).save(folder.join(format!("{index}.png"))).unwrap();
        fs::write(folder.join(format!("{index}.txt")), format!("a shade number {index}")).unwrap();
    }
}

/// Everything random that a batch may have.
const LORA: [&str; 16] = [
    "train",
    "text-to-image-lora",
    "--train_data_dir=data",
    "--gradient_accumulation_steps=2",
    "--learning_rate=1e-3",
    "--lora_dropout=0.1",
    "--train_text_encoder",
    "--proportion_empty_prompts=0.3",
    "--noise_offset=0.1",
    "--input_perturbation=0.1",
    "--snr_gamma=5",
    "--random_flip",
    "--use_ema",
    "--gradient_checkpointing",
    "--lr_scheduler=constant_with_warmup",
    "--lr_warmup_steps=2",
];

fn weights(file: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

/// The largest difference between two files' numbers.
fn distance(one: &Path, other: &Path) -> f32 {
    let (one, other) = (weights(one), weights(other));
    assert_eq!(one.len(), other.len());
    let distance = |(name, tensor): (&String, &Tensor)| {
        let difference = (tensor - &other[name]).unwrap().abs().unwrap();
        difference.max_all().unwrap().to_scalar::<f32>().unwrap()
    };
    one.iter().map(distance).fold(0.0, f32::max)
}

fn log(workplace: &Workplace, output: &str) -> Vec<serde_json::Value> {
    let log = fs::read_to_string(workplace.path(output).join("log.jsonl")).unwrap();
    log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn succeed(mut command: Command) -> Run {
    let run = finish(&mut command);
    assert_eq!(run.status, Some(0), "{}", run.stderr);
    run
}

/// Compares a run of one process with batches of two to one of two processes.
fn compare(workplace: &Workplace, recipe: &[&str], steps: &str, file: &str) {
    let one = ["--output_dir=one", "--train_batch_size=2", "--max_train_steps", steps];
    workplace.succeed([recipe, &one].concat());
    let both = ["--output_dir=two", "--train_batch_size=1", "--max_train_steps", steps];
    let run = succeed(two(workplace, [recipe, &both].concat()));
    let mut written: Vec<&str> = run.stderr.lines().filter(|line| line.contains("wrote two/")).collect();
    let told = written.len();
    written.sort_unstable();
    written.dedup();
    assert!(told > 0 && written.len() == told, "{}", run.stderr);
    let path = |output: &str| workplace.path(output).join(file);
    let furthest = distance(&path("one"), &path("two"));
    let (one, two) = (log(workplace, "one"), log(workplace, "two"));
    assert_eq!(one.len(), two.len());
    for (one, two) in one.iter().zip(&two) {
        let (expected, loss) = (one["loss"].as_f64().unwrap(), two["loss"].as_f64().unwrap());
        assert!((loss - expected).abs() < 1e-5 * expected, "{one}, {two}");
    }
    println!("{}: weights within {furthest:.1e} after {steps} steps", recipe[1]);
    assert!(furthest < 1e-5, "{furthest}");
}

#[test]
fn two_processes_train_the_lora_of_one() {
    let workplace = Workplace::new();
    pictures(&workplace, 5);
    compare(&workplace, &LORA, "5", "pytorch_lora_weights.safetensors");
}

#[test]
fn two_processes_train_the_whole_model_of_one() {
    let model = format!("--pretrained_model_name_or_path={}", shapes().display());
    let recipe = ["train", "text-to-image", "--train_data_dir=data", "--learning_rate=1e-4", &model];
    let workplace = Workplace::new();
    pictures(&workplace, 5);
    compare(&workplace, &recipe, "3", "model/unet/diffusion_pytorch_model.safetensors");
}

#[test]
fn two_processes_teach_editing_as_one_does() {
    let workplace = Workplace::new();
    pairs(&workplace, "data", "before");
    let model = format!("--pretrained_model_name_or_path={}", sd1());
    let recipe = [
        "train",
        "instruct-pix2pix",
        "--train_data_dir=data",
        "--learning_rate=1e-3",
        "--conditioning_dropout_prob=0.3",
        "--original_image_column=before",
        "--edited_image_column=image",
        "--edit_prompt_column=text",
        &model,
    ];
    compare(&workplace, &recipe, "4", "model/unet/diffusion_pytorch_model.safetensors");
}

#[test]
fn two_processes_keep_what_the_model_knew_of_a_class() {
    let recipe = [
        "train",
        "dreambooth-lora",
        "--instance_data_dir=data",
        "--instance_prompt=a sks",
        "--with_prior_preservation",
        "--class_data_dir=class",
        "--class_prompt=a circle",
        "--num_class_images=3",
        "--num_inference_steps=2",
        "--learning_rate=1e-3",
    ];
    let workplace = Workplace::new();
    pictures(&workplace, 5);
    compare(&workplace, &recipe, "3", "pytorch_lora_weights.safetensors");
}

#[test]
fn two_processes_join_pictures_of_several_shapes_as_one_does() {
    let recipe = [
        "train",
        "dreambooth-lora",
        "--instance_data_dir=data",
        "--instance_prompt=a sks",
        "--with_prior_preservation",
        "--class_data_dir=class",
        "--class_prompt=a circle",
        "--num_class_images=3",
        "--num_inference_steps=2",
        "--use_aspect_ratio_buckets",
        "--random_flip",
        "--learning_rate=1e-3",
    ];
    let workplace = Workplace::new();
    pictures(&workplace, 3);
    let tall = RgbImage::from_fn(64, 128, |x, y| Rgb([90, (3 * x) as u8, (2 * y) as u8]));
    tall.save(workplace.path("data/tall.png")).unwrap();
    fs::write(workplace.path("data/tall.txt"), "a tall shade").unwrap();
    compare(&workplace, &recipe, "3", "pytorch_lora_weights.safetensors");
}

#[test]
fn two_processes_learn_the_word_of_one() {
    let recipe = [
        "train",
        "textual-inversion",
        "--train_data_dir=data",
        "--placeholder_token=<shade>",
        "--initializer_token=red",
        "--num_vectors=2",
        "--learning_rate=1e-3",
    ];
    let workplace = Workplace::new();
    pictures(&workplace, 5);
    for index in 0..3 {
        let caption = workplace.path(&format!("data/{index}.txt"));
        fs::write(caption, format!("a <shade> number {index}")).unwrap();
    }
    compare(&workplace, &recipe, "3", "learned_embeds.safetensors");
}

/// Steps by the gradients themselves: those of weights that change no loss are rounding alone, which AdamW makes steps of.
const PLAIN_STEPS: [&str; 2] = ["--optimizer=sgd", "--learning_rate=0.1"];

#[test]
fn two_processes_learn_the_words_of_one() {
    let recipe = [
        "train",
        "pivotal-tuning",
        "--train_data_dir=data",
        "--placeholder_tokens=<s1>|<s2>",
        "--initializer_tokens=<rand-0.017>|red",
        "--max_train_steps_ti=3",
        "--learning_rate_ti=0.1",
        PLAIN_STEPS[0],
        PLAIN_STEPS[1],
    ];
    let workplace = Workplace::new();
    pictures(&workplace, 5);
    // In some pictures of a batch one word comes, in some both.
    for index in 0..5 {
        let words = if index % 2 == 0 { "<s1>" } else { "<s1><s2>" };
        fs::write(workplace.path(&format!("data/{index}.txt")), format!("a {words}")).unwrap();
    }
    compare(&workplace, &recipe, "3", "learned_embeds.safetensors");
    let lora = |output: &str| workplace.path(output).join("pytorch_lora_weights.safetensors");
    assert!(distance(&lora("one"), &lora("two")) < 1e-5);
}

#[test]
fn two_processes_learn_the_things_of_one() {
    let recipe = [
        "train",
        "custom-diffusion",
        "--instance_data_dir=data",
        "--instance_prompt=a <new1>",
        "--modifier_token=<new1>",
        "--initializer_token=red",
        "--with_prior_preservation",
        "--class_data_dir=class",
        "--class_prompt=a circle",
        "--num_class_images=3",
        "--num_inference_steps=2",
        PLAIN_STEPS[0],
        PLAIN_STEPS[1],
    ];
    let workplace = Workplace::new();
    pictures(&workplace, 5);
    for index in 0..5 {
        fs::remove_file(workplace.path(&format!("data/{index}.txt"))).unwrap();
    }
    compare(&workplace, &recipe, "3", "pytorch_lora_weights.safetensors");
    let word = |output: &str| workplace.path(output).join("<new1>.safetensors");
    assert!(distance(&word("one"), &word("two")) < 1e-5);
}

#[test]
fn two_processes_train_the_controlnet_of_one() {
    let workplace = Workplace::new();
    pairs(&workplace, "data", "conditioning_image");
    let model = format!("--pretrained_model_name_or_path={}", sd1());
    let recipe = [&["train", "controlnet", "--train_data_dir=data", &model][..], &PLAIN_STEPS].concat();
    compare(&workplace, &recipe, "3", "controlnet/diffusion_pytorch_model.safetensors");
}

#[test]
fn two_processes_train_the_model_without_texts_of_one() {
    let workplace = Workplace::new();
    pictures(&workplace, 5);
    let config = format!("--model_config_name_or_path={PARITY}/unconditional/ddpm/unet/config.json");
    let recipe = [&["train", "unconditional", "--train_data_dir=data", &config][..], &PLAIN_STEPS].concat();
    compare(&workplace, &recipe, "3", "model/unet/diffusion_pytorch_model.safetensors");
}

/// The processes that `parent` has started.
fn children(parent: &Child) -> Vec<u32> {
    let parent_of = |entry: &fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let own = entries.filter(|entry| parent_of(entry) == Some(parent.id()));
    own.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn wait_for(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(20));
    }
}

fn is_alive(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn a_process_that_dies_ends_the_run_which_goes_on_to_the_same_bits() {
    let workplace = Workplace::new();
    pictures(&workplace, 5);
    let train = |output: &'static str, more: &[&'static str]| {
        let steps = ["--max_train_steps=8", "--checkpointing_steps=2", "--output_dir", output];
        two(&workplace, [&LORA[..], &steps, more].concat())
    };
    succeed(train("whole", &[]));
    for victim in 0..2 {
        let output = ["first", "second"][victim];
        let mut run = train(output, &[]).stderr(Stdio::null()).spawn().unwrap();
        let checkpoint = workplace.path(output).join("checkpoint-2");
        wait_for(|| checkpoint.exists());
        let mut processes = children(&run);
        processes.sort_unstable();
        assert_eq!(processes.len(), 2);
        let dead = processes[victim].to_string();
        assert!(Command::new("kill").args(["-KILL", &dead]).status().unwrap().success());
        let killed = Instant::now();
        assert!(!run.wait().unwrap().success());
        wait_for(|| !processes.iter().any(|process| is_alive(*process)));
        assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
        let result =
            |output: &str| fs::read(workplace.path(output).join("pytorch_lora_weights.safetensors")).ok();
        assert!(result(output).is_none());
        let run = succeed(train(output, &["--resume_from_checkpoint=latest"]));
        assert_eq!(run.stderr.matches("going on from").count(), 1, "{}", run.stderr);
        assert!(result(output).is_some() && result(output) == result("whole"));
    }
    // Fewer processes with more pictures each go on too, where the others have stopped.
    let more = ["--max_train_steps=9", "--train_batch_size=2", "--resume_from_checkpoint=latest"];
    workplace.succeed([&LORA[..], &["--output_dir=whole"], &more].concat());
    let other = ["--max_train_steps=9", "--train_batch_size=1", "--resume_from_checkpoint=latest"];
    let run = workplace.run([&LORA[..], &["--output_dir=whole"], &other].concat());
    assert!(run.stderr.contains("train_batch_size 2"), "{}", run.stderr);
}

#[test]
fn an_interrupt_of_one_process_leaves_a_checkpoint_of_all() {
    let workplace = Workplace::new();
    pictures(&workplace, 3);
    let steps = ["--max_train_steps=100000", "--output_dir=out"];
    let mut command = two(&workplace, [&LORA[..], &steps].concat());
    let run = command.stderr(Stdio::piped()).spawn().unwrap();
    let log = workplace.path("out/log.jsonl");
    wait_for(|| fs::metadata(&log).is_ok_and(|log| log.len() > 0));
    let last = children(&run).into_iter().max().unwrap().to_string();
    assert!(Command::new("kill").args(["-INT", &last]).status().unwrap().success());
    let stderr = String::from_utf8(run.wait_with_output().unwrap().stderr).unwrap();
    assert_eq!(stderr.matches("--resume-from-checkpoint latest goes on").count(), 1, "{stderr}");
    let step = fs::read_to_string(log).unwrap().lines().count();
    assert!(workplace.path(&format!("out/checkpoint-{step}/training_state.safetensors")).is_file());
}

/// A run that cannot go on ends soon, and says why once.
fn refused(workplace: &Workplace, arguments: &[&str], culprits: &[&str]) {
    let start = Instant::now();
    let run = finish(&mut two(workplace, arguments.iter().copied()));
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert!(run.status.is_some_and(|status| status != 0), "{}", run.stderr);
    assert_eq!(run.stderr.matches("error: ").count(), 1, "{}", run.stderr);
    let line = run.stderr.lines().find(|line| line.starts_with("error: ")).unwrap();
    for culprit in culprits {
        assert!(line.contains(culprit), "{culprit}: {}", run.stderr);
    }
    assert!(!workplace.path("out/pytorch_lora_weights.safetensors").exists());
}

#[test]
fn what_one_process_sees_all_end_by() {
    let workplace = Workplace::new();
    pictures(&workplace, 2);
    let fixed = ["train", "text-to-image-lora", "--output_dir=out", "--max_train_steps=50"];
    // What all see is told once too.
    refused(&workplace, &[&fixed[..], &["--train_data_dir=nowhere"]].concat(), &["error: nowhere"]);
    let run = |more: &[&'static str]| [&fixed[..], &["--train_data_dir=data"], more].concat();
    refused(&workplace, &run(&["--learning_rate=1e30"]), &["loss of step 2"]);
    refused(&workplace, &run(&["--resume_from_checkpoint=checkpoint-7"]), &["checkpoint-7"]);
    // Cut off in the middle: one of the two comes to it in the first step.
    let broken = workplace.path("data/1.png");
    let bytes = fs::read(&broken).unwrap();
    fs::write(&broken, &bytes[..bytes.len() - bytes.len() / 3]).unwrap();
    refused(&workplace, &run(&[]), &["1.png"]);
    // What the first alone writes.
    fs::write(&broken, bytes).unwrap();
    fs::remove_file(workplace.path("out/settings.toml")).unwrap();
    fs::create_dir(workplace.path("out/settings.toml")).unwrap();
    refused(&workplace, &run(&[]), &["error: writing", "settings.toml"]);
}
