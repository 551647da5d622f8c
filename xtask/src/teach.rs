//! What training teaches, at full length.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace;

/// Runs the tests of `crates/cli/tests/program/teach.rs` with all that they would look at if there were time.
pub(crate) fn run() -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["test", "--release", "--workspace", "--test", "program", "teach"]);
    command.args(["--", "--nocapture", "--test-threads", "1"]);
    command.env("TEACH_WHOLE", "1").current_dir(workspace::root());
    let status = command.status().context("starting cargo")?;
    ensure!(status.success(), "not all pictures show what they should");
    Ok(())
}
