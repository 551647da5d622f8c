use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use crate::progress::Progress;

/// Whether another process speaks for this one.
static IS_SILENT: AtomicBool = AtomicBool::new(false);

/// Leaves it to another process to speak, which sees the same.
pub(crate) fn be_silent() {
    IS_SILENT.store(true, Ordering::Relaxed);
}

/// Writes a line to standard error. Where that is closed there is nobody to tell.
pub(crate) fn note(line: &str) {
    if !IS_SILENT.load(Ordering::Relaxed) {
        note_of_own(line);
    }
}

/// [`note`] of what no other process sees.
pub(crate) fn note_of_own(line: &str) {
    writeln!(io::stderr(), "{line}").ok();
}

/// An error that has been told already.
#[derive(Debug)]
pub(crate) struct Told;

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this has been told already")
    }
}

/// Writes a result to standard output. A reader that has seen enough (`diffuse inspect ... | head`) is no error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to standard output"),
    }
}

/// More characters than an error needs. What a file or flag holds may be quoted in it, however long that is.
const MAX_LINE: usize = 2000;

/// An error and what caused it as one line, not longer than anyone would read.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = without_backtrace(&cause.to_string());
        // Some errors say their cause themselves.
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    shorten(line)
}

/// A long line's beginning and end.
fn shorten(line: String) -> String {
    let characters: Vec<char> = line.chars().collect();
    if characters.len() <= MAX_LINE {
        return line;
    }
    let (start, rest) = characters.split_at(MAX_LINE / 2);
    let (middle, end) = rest.split_at(rest.len() - MAX_LINE / 4);
    let (start, end): (String, String) = (start.iter().collect(), end.iter().collect());
    format!("{start} [... {} characters ...] {end}", middle.len())
}

/// The lines of `text` up to a backtrace, which candle's errors carry where RUST_BACKTRACE is set, joined to one. What else would
/// control the terminal is replaced.
fn without_backtrace(text: &str) -> String {
    let is_backtrace = |line: &&str| line.trim_start().starts_with("0: ");
    let lines = text.lines().take_while(|line| !is_backtrace(line)).map(str::trim);
    let joined = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    joined.replace(char::is_control, "\u{fffd}")
}

/// Shows the warnings of all crates on standard error, above a progress bar.
pub(crate) fn show_warnings(progress: &Progress) {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .event_format(OneLine)
        .with_writer(AboveProgress(progress.clone()))
        .finish();
    // Fails only where there is one already, which then shows them.
    tracing::subscriber::set_global_default(subscriber).ok();
}

/// `warning: ` and the message.
struct OneLine;

impl<S, N> FormatEvent<S, N> for OneLine
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &tracing_subscriber::fmt::FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let level = event.metadata().level().as_str().to_lowercase();
        write!(writer, "{}: ", if level == "warn" { "warning" } else { &level })?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

struct AboveProgress(Progress);

impl MakeWriter<'_> for AboveProgress {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Write for AboveProgress {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if IS_SILENT.load(Ordering::Relaxed) {
            return Ok(bytes.len());
        }
        self.0.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once_and_on_one_line() {
        let inner = io::Error::other("disk\n  is on fire");
        let error = anyhow::Error::new(inner).context("unet: disk is on fire").context("loading");
        assert_eq!(one_line(&error), "loading: unet: disk is on fire");
    }

    #[test]
    fn a_long_line_keeps_its_beginning_and_end() {
        let error = anyhow::anyhow!("config.json: `x` is {}, expected a number", "é".repeat(100_000));
        let line = one_line(&error);
        assert!(
            line.starts_with("config.json: `x` is é") && line.ends_with("é, expected a number"),
            "{line}"
        );
        assert!(line.chars().count() < MAX_LINE, "{line}");
    }

    #[test]
    fn backtraces_and_terminal_codes_are_left_out() {
        let error = anyhow::anyhow!("shape mismatch\n   0: candle::error\n   1: main");
        assert_eq!(one_line(&error), "shape mismatch");
        assert_eq!(one_line(&anyhow::anyhow!("bad name \u{1b}[31m")), "bad name \u{fffd}[31m");
    }
}
