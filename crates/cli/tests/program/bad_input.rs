//! What a user may get wrong on the command line: status 1 (or 2), one line that names it, nothing written.

use std::fs;

use crate::program::{Workplace, shapes};

#[track_caller]
fn refuse(flags: &[&str], culprits: &[&str]) {
    let arguments = [&["generate", "a red circle on a blue background"], flags].concat();
    Workplace::new().refuse(arguments, culprits);
}

#[test]
fn numbers_that_are_none() {
    for value in ["nan", "inf", "-inf", "1e999"] {
        refuse(&["--guidance-scale", value], &["--guidance-scale"]);
        refuse(&["--guidance-rescale", value], &["--guidance-rescale"]);
        refuse(&["--eta", value], &["--eta"]);
    }
    refuse(&["--guidance-rescale", "1.5"], &["--guidance-rescale", "1.5", "0 to 1"]);
    refuse(&["--eta", "-1"], &["--eta", "-1"]);
}

#[test]
fn no_steps_and_more_steps_than_there_are_timesteps() {
    refuse(&["--steps", "0"], &["--steps", "0"]);
    refuse(&["--steps", "1001"], &["1001", "1000"]);
    refuse(&["--steps", "18446744073709551615"], &["18446744073709551615"]);
}

#[test]
fn sizes_that_cannot_be() {
    for flag in ["--width", "--height"] {
        let name = flag.trim_start_matches('-');
        refuse(&[flag, "0"], &[flag, "0"]);
        refuse(&[flag, "66"], &[name, "66", "multiple of 4", "64", "68"]);
        refuse(&[flag, "3"], &[name, "3", "multiple of 4"]);
        refuse(&[flag, "18446744073709551612"], &["memory", "GB"]);
    }
    refuse(&["--width", "1000000", "--height", "1000000"], &["1000000x1000000", "memory", "GB"]);
}

#[test]
fn counts_that_cannot_be() {
    refuse(&["--num-images", "0"], &["--num-images", "0"]);
    refuse(&["--num-images", "18446744073709551615"], &["18446744073709551615 pictures"]);
    refuse(&["--clip-skip", "99"], &["clip_skip", "99", "3 layers"]);
}

#[test]
fn pictures_that_no_file_has_room_for() {
    let large = ["--num-images", "99999", "--grid", "--width", "128"];
    refuse(&large, &["--grid would be 40576x20224 pixels", "536870912"]);
    let many = ["--num-images", "70000", "--grid", "--output"];
    refuse(
        &[&many[..], &["out.webp"]].concat(),
        &["--output out.webp", "16960x16960", "16383 pixels a side"],
    );
    let wide = ["--width", "20000", "--height", "64", "--output", "out.webp"];
    refuse(&wide, &["--output out.webp", "20000x64", "16383 pixels a side"]);
}

#[test]
fn a_prompt_that_is_no_prompt() {
    let long = "word ".repeat(20_000);
    Workplace::new().refuse(["generate", &long], &["prompt", "100000 bytes", "word word"]);
    refuse(&["--negative-prompt", &long], &["--negative-prompt", "100000 bytes"]);
}

#[test]
fn prompt_files_without_prompts() {
    let workplace = Workplace::new();
    fs::write(workplace.path("empty.txt"), "\n  \r\n").unwrap();
    fs::write(workplace.path("binary.txt"), [0xff, 0xfe, 0x00]).unwrap();
    fs::create_dir(workplace.path("folder")).unwrap();
    for name in ["empty.txt", "binary.txt", "folder", "missing.txt"] {
        workplace.refuse(["generate", "--prompts-file", name], &["--prompts-file", name]);
    }
}

#[cfg(unix)]
#[test]
fn output_paths_that_cannot_be_written_are_found_out_before_the_model_is_looked_at() {
    let workplace = Workplace::new();
    fs::create_dir(workplace.path("folder.png")).unwrap();
    fs::write(workplace.path("file"), "").unwrap();
    let refuse = |output: &str, why: &[&str]| {
        let arguments = ["generate", "a red circle", "--model", "missing", "--output", output];
        workplace.refuse(arguments, &[&["--output", output], why].concat());
    };
    refuse("missing/out.png", &["No such file"]);
    refuse("file/out.png", &["Not a directory"]);
    refuse("folder.png", &["folder"]);
    refuse("new/", &[]);
    refuse("picture.gif", &[".gif", ".png"]);
    refuse("picture", &[".png"]);
    refuse(&format!("{}.png", "long".repeat(100)), &["too long"]);
    // One of several.
    fs::create_dir(workplace.path("many-1.png")).unwrap();
    let several = ["generate", "a red circle", "--num-images", "3", "--output", "many.png"];
    workplace.refuse(several, &["many-1.png", "folder"]);
}

#[cfg(unix)]
#[test]
fn what_is_there_and_read_only_is_kept() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    let workplace = Workplace::new();
    let file = workplace.path("kept.png");
    fs::write(&file, "precious").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    workplace.refuse(["generate", "a red circle", "--output", "kept.png"], &["kept.png", "read-only"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    std::os::unix::fs::symlink("/dev/null", workplace.path("device.png")).unwrap();
    workplace.refuse(
        ["generate", "a red circle", "--output", "device.png"],
        &["device.png", "not a regular file"],
    );
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}

#[cfg(unix)]
#[test]
fn file_names_that_are_not_utf8() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt;

    let bad = |ending: &str| {
        let mut name = OsStr::from_bytes(b"caf\xe9").to_os_string();
        name.push(ending);
        name
    };
    let refuse = |arguments: [OsString; 4], flag: &str| {
        Workplace::new().refuse(arguments, &[flag, "caf\\xE9", "not UTF-8"]);
    };
    refuse(["generate".into(), "a".into(), "--output".into(), bad(".png")], "--output");
    refuse(["generate".into(), "a".into(), "--model".into(), bad("")], "--model");
    refuse(
        ["generate".into(), "--num-images=1".into(), "--prompts-file".into(), bad(".txt")],
        "--prompts-file",
    );
    refuse(["inspect".into(), "--json".into(), "--".into(), bad("")], "SOURCE");
}

#[test]
fn devices_that_the_program_was_not_built_for() {
    if !cfg!(feature = "cuda") {
        refuse(&["--device", "cuda"], &["--device cuda", "--features cuda"]);
    }
    if !cfg!(feature = "metal") {
        refuse(&["--device", "metal"], &["--device metal", "--features metal"]);
    }
}

#[test]
fn wrong_command_lines_end_with_status_2() {
    let model = shapes().display().to_string();
    let wrong: &[&[&str]] = &[
        &[],
        &["paint"],
        &["generate"],
        &["generate", "a", "b"],
        &["generate", "a", "--prompt", "b"],
        &["generate", "a", "--steps", "many"],
        &["generate", "a", "--steps", "-1"],
        &["generate", "a", "--seed", "1.5"],
        &["generate", "a", "--scheduler", "unknown"],
        &["generate", "a", "--dtype", "f64"],
        &["generate", "a", "--device", "gpu"],
        &["generate", "a", "--output", ""],
        &["generate", "a", "--allow-unmatched"],
        &["generate", "a", "--no-such-flag"],
        &["inspect"],
        &["inspect", &model, "more"],
    ];
    for arguments in wrong {
        let workplace = Workplace::new();
        let run = workplace.run(*arguments);
        assert_eq!(run.status, Some(2), "{arguments:?}: {}", run.stderr);
        assert!(!run.stderr.is_empty() && run.stdout.is_empty(), "{arguments:?}");
        assert!(workplace.names().is_empty());
    }
}

#[test]
fn an_error_is_one_line_with_backtraces_too() {
    let workplace = Workplace::new();
    let mut command = workplace.command(["generate", "a", "--model", "missing"]);
    let run = crate::program::finish(command.env("RUST_BACKTRACE", "1"));
    assert_eq!((run.status, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
}
