use std::fmt::Write;
use std::time::Duration;

use indicatif::{
    HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};

/// What goes on, drawn on standard error where that is a terminal, else nowhere.
#[derive(Clone)]
pub(crate) struct Progress {
    lines: MultiProgress,
}

impl Progress {
    pub(crate) fn new() -> Self {
        // This target draws nothing where standard error is no terminal.
        Self { lines: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()) }
    }

    /// Draws nothing from now on.
    pub(crate) fn hide(&self) {
        self.lines.set_draw_target(ProgressDrawTarget::hidden());
    }

    /// Whether nothing is drawn.
    pub(crate) fn is_hidden(&self) -> bool {
        self.lines.is_hidden()
    }

    /// Shows that `what` goes on, for as long as the result lives.
    pub(crate) fn activity(&self, what: impl Into<String>) -> Shown {
        let spinner = self.lines.add(ProgressBar::new_spinner());
        spinner.set_style(style("{spinner} {msg} ({elapsed})"));
        spinner.set_message(what.into());
        spinner.enable_steady_tick(Duration::from_millis(100));
        Shown(spinner)
    }

    /// Shows a bar of `total` steps, for as long as the result lives.
    pub(crate) fn steps(&self, what: impl Into<String>, total: usize) -> Shown {
        let bar = self.lines.add(ProgressBar::new(total as u64));
        bar.set_style(style("{msg} [{bar:30}] {pos}/{len}{pace}").with_key("pace", pace));
        bar.set_message(what.into());
        // The time runs on while a step takes long.
        bar.enable_steady_tick(Duration::from_millis(500));
        Shown(bar)
    }

    /// Shows a bar of bytes, for as long as the result lives.
    pub(crate) fn bytes(&self, what: impl Into<String>) -> Shown {
        let bar = self.lines.add(ProgressBar::new(0));
        bar.set_style(style("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left"));
        bar.set_message(what.into());
        Shown(bar)
    }

    /// A bar for files that are downloaded one after the other; nothing is shown before the first.
    pub(crate) fn downloads(&self) -> Downloads<'_> {
        Downloads { progress: self, shown: None }
    }

    /// Takes away what is drawn while `write` writes to standard error.
    pub(crate) fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        self.lines.suspend(write)
    }

    /// Takes away what is drawn. Where that fails there is no terminal to tidy.
    pub(crate) fn clear(&self) {
        self.lines.clear().ok();
    }
}

/// The file that is downloaded now.
pub(crate) struct Downloads<'a> {
    progress: &'a Progress,
    shown: Option<Shown>,
}

impl Downloads<'_> {
    /// Shows that `received` of the `size` bytes of `what` are here.
    pub(crate) fn show(&mut self, what: String, received: u64, size: u64) {
        let Shown(bar) = self.shown.get_or_insert_with(|| {
            let bar = self.progress.lines.add(ProgressBar::new(size));
            bar.set_style(style("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left"));
            Shown(bar)
        });
        if bar.message() != what {
            bar.set_message(what);
            bar.set_length(size);
            bar.reset();
        }
        bar.set_position(received);
    }
}

/// A line on the terminal that goes away when this is dropped.
pub(crate) struct Shown(ProgressBar);

impl Shown {
    pub(crate) fn set_message(&self, message: String) {
        self.0.set_message(message);
    }

    /// Shows that so many steps were done before: they say nothing of how long one takes.
    pub(crate) fn begin_at(&self, steps: usize, total: usize) {
        self.set_done(steps, total);
        self.0.reset_eta();
    }

    pub(crate) fn set_done(&self, steps: usize, total: usize) {
        self.0.set_length(total as u64);
        self.0.set_position(steps as u64);
    }
}

impl Shown {
    /// Of a bar of bytes.
    pub(crate) fn set_bytes(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Seconds a step and the time left, once there has been a step.
fn pace(state: &ProgressState, text: &mut dyn Write) {
    let rate = state.per_sec();
    if state.pos() > 0 && rate > 0.0 && rate.is_finite() {
        // What cannot be written is not shown.
        write!(text, " {:.2} s/step, {:#} left", rate.recip(), HumanDuration(state.eta())).ok();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
