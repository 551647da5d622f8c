//! Interrupts of `diffuse train` while it does something else than steps.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};

use crate::program::Workplace;
use crate::train::pictures;

/// Starts the program and interrupts it a moment after it `has_come` there; what it says then.
fn interrupted(mut command: Command, has_come: impl Fn() -> bool, moment: Duration) -> String {
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !has_come() {
        assert!(start.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(5));
    }
    sleep(moment);
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    stderr
}

#[test]
fn validation_pictures_are_left_and_their_step_is_kept() {
    let workplace = Workplace::new();
    pictures(&workplace, "data", 2);
    let flags = [
        "train",
        "text-to-image-lora",
        "--train_data_dir",
        "data",
        "--output_dir",
        "out",
        "--max_train_steps",
        "1000",
        "--validation_steps",
        "2",
        "--validation_prompt",
        "a shade",
        "--num_validation_images",
        "100",
        "--num_inference_steps",
        "50",
    ];
    let log = workplace.path("out/log.jsonl");
    let steps = || fs::read_to_string(&log).map_or(0, |log| log.lines().count());
    let stderr = interrupted(workplace.command(flags), || steps() == 2, Duration::from_millis(200));
    assert!(stderr.contains("interrupted after step 2; --resume-from-checkpoint latest goes on"), "{stderr}");
    assert_eq!(steps(), 2);
    assert!(workplace.path("out/checkpoint-2/training_state.safetensors").is_file());
    assert!(!workplace.path("out/validation").exists(), "a row that is not done");
}

#[test]
fn encoding_ends_before_the_first_step() {
    let workplace = Workplace::new();
    let folder = workplace.path("data");
    fs::create_dir(&folder).unwrap();
    for index in 0..150u8 {
        RgbImage::from_pixel(256, 256, Rgb([index, 90, 90]))
            .save(folder.join(format!("{index}.png")))
            .unwrap();
        fs::write(folder.join(format!("{index}.txt")), "a shade").unwrap();
    }
    let flags = [
        "train",
        "text-to-image-lora",
        "--train_data_dir",
        "data",
        "--output_dir",
        "out",
        "--max_train_steps",
        "1000",
        "--resolution",
        "256",
        "--center_crop",
    ];
    // Made when interrupts are listened to, right before.
    let log = workplace.path("out/log.jsonl");
    let stderr = interrupted(workplace.command(flags), || log.exists(), Duration::ZERO);
    assert!(stderr.contains("interrupted while pictures were encoded"), "{stderr}");
    assert_eq!(fs::read_to_string(log).unwrap(), "");
}
