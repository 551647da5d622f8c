//! What the repository says of itself in several places must be the same in all of them.

// Helpers of tests fail by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The test command of the README: the line of its console block that starts with `cargo test`.
fn test_command() -> String {
    let readme = read("README.md");
    let mut commands = readme.lines().filter(|line| line.starts_with("cargo test"));
    let command = commands.next().expect("the README has a test command").to_string();
    assert_eq!(commands.next(), None, "the README has one test command");
    command
}

#[test]
fn continuous_integration_runs_the_readmes_test_command() {
    let command = test_command();
    assert!(read(".ci/run").lines().any(|line| line == command), ".ci/run has no line {command:?}");
    assert!(read("CONTRIBUTING.md").contains(&command), "CONTRIBUTING.md does not name {command:?}");
}

#[test]
fn every_crate_has_a_readme_and_a_changelog() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    for entry in fs::read_dir(crates).unwrap() {
        let folder = entry.unwrap().path();
        for file in ["README.md", "CHANGELOG.md", "Cargo.toml"] {
            assert!(folder.join(file).is_file(), "{} has no {file}", folder.display());
        }
    }
}
