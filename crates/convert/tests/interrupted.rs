//! Runs that do not end as they should: killed, or out of space. The destination is then absent, and nothing stays beside it.

#![cfg(unix)]
// Clippy knows test functions only, not what they call.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "parity/single_file/case.rs"]
mod case;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use candle_diffusers_convert::{ConvertOptions, Dtype, convert};
use case::{Case, values};

/// The folder in which a child of this program works, where it is one.
const PLACE: &str = "CONVERT_TEST_PLACE";

/// Where a child sleeps when the first bytes are written, so that it is killed at work.
const SLEEPS: &str = "CONVERT_TEST_SLEEPS";

fn write_checkpoint(path: &Path) {
    let case = Case::read("small_sd1");
    let bytes: Vec<_> = case
        .original
        .iter()
        .map(|(name, shape)| (name, shape, values(name, shape.iter().product())))
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(Dtype::F16, shape.to_vec(), bytes).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Not a test of its own: what the others run as another process. Without a place it does nothing.
#[test]
fn child() {
    let Some(place) = std::env::var_os(PLACE).map(PathBuf::from) else { return };
    let sleeps = std::env::var_os(SLEEPS).is_some();
    let result =
        convert(&place.join("model.safetensors"), &place.join("folder"), &ConvertOptions::default(), &|_| {
            if sleeps {
                fs::write(place.join("at-work"), "").unwrap();
                thread::sleep(Duration::from_secs(60));
            }
        });
    match result {
        Ok(_) => fs::write(place.join("said"), "done").unwrap(),
        Err(error) => println!("said: {error}"),
    }
}

fn partial(place: &Path) -> Vec<String> {
    let names = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".partial-")).collect()
}

fn wait_for(path: &Path, child: &mut Child) {
    for _ in 0..600 {
        if path.exists() {
            return;
        }
        assert!(child.try_wait().unwrap().is_none(), "the child ended early");
        thread::sleep(Duration::from_millis(50));
    }
    panic!("the child did not begin");
}

#[test]
fn a_killed_run_leaves_no_destination_and_the_next_removes_what_it_left() {
    let place = tempfile::tempdir().unwrap();
    write_checkpoint(&place.path().join("model.safetensors"));
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program)
        .args(["--exact", "child"])
        .env(PLACE, place.path())
        .env(SLEEPS, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&place.path().join("at-work"), &mut child);
    assert!(!place.path().join("folder").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place.path().join("folder").exists());
    assert_eq!(partial(place.path()).len(), 1);
    let (source, folder) = (place.path().join("model.safetensors"), place.path().join("folder"));
    convert(&source, &folder, &ConvertOptions::default(), &|_| {}).unwrap();
    assert!(folder.join("model_index.json").exists());
    assert_eq!(partial(place.path()), Vec::<String>::new());
}

/// Files may have at most 200 kB: to the program it is as if the disk were full.
#[test]
fn a_disk_that_is_full_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    write_checkpoint(&place.path().join("model.safetensors"));
    let output = Command::new("sh")
        .arg("-c")
        // Blocks of 512 bytes; without the trap the system would end the process instead of refusing to write.
        .arg("trap '' XFSZ; ulimit -f 400; exec \"$0\" --exact child --nocapture")
        .arg(std::env::current_exe().unwrap())
        .env(PLACE, place.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("could not be written, and nothing of it is left"), "{said}");
    assert!(!place.path().join("folder").exists() && !place.path().join("said").exists());
    assert_eq!(partial(place.path()), Vec::<String>::new());
}
