use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How often a running program's memory is looked at.
const EVERY: Duration = Duration::from_millis(2);

/// What a program took, from its start to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    /// Wall time.
    pub(crate) seconds: f64,
    /// Wall time until all that it wrote is on the disk.
    pub(crate) seconds_on_disk: f64,
    /// The most memory that was its own, and not pages of files (`RssAnon` and `RssShmem` of Linux, looked at every 2 ms).
    pub(crate) own_peak: u64,
    /// The most memory with pages of files that it has mapped (`VmHWM`), of which the system can take those back at any time.
    pub(crate) peak: u64,
}

/// Runs `command` when the disk has nothing else to write.
pub(crate) fn measure(command: &mut Command) -> Result<Measured> {
    sync()?;
    let program = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not run {program}"))?;
    let (own_peak, peak) = watch(&mut child)?;
    let seconds = start.elapsed().as_secs_f64();
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{program} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    sync()?;
    Ok(Measured { seconds, seconds_on_disk: start.elapsed().as_secs_f64(), own_peak, peak })
}

/// Waits for the end of `child`; gives its peaks of memory in bytes, 0 where the system does not say.
fn watch(child: &mut Child) -> Result<(u64, u64)> {
    let path = format!("/proc/{}/status", child.id());
    let (mut own_peak, mut peak) = (0, 0);
    while child.try_wait()?.is_none() {
        // Gone once the process has ended.
        let status = fs::read_to_string(&path).unwrap_or_default();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        own_peak = own_peak.max((field("RssAnon:") + field("RssShmem:")) * 1024);
        peak = peak.max(field("VmHWM:") * 1024);
        thread::sleep(EVERY);
    }
    Ok((own_peak, peak))
}

/// Waits until everything that was written is on the disk.
fn sync() -> Result<()> {
    let status = Command::new("sync").status().context("this needs the program `sync`")?;
    ensure!(status.success(), "sync ended with {status}");
    Ok(())
}
