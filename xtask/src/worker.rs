use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A program that is asked by lines on its standard input and answers each with a line of JSON.
///
/// It stays alive between questions, so that a model is loaded once, and so that two programs can be asked in turn.
pub(crate) struct Worker {
    name: &'static str,
    child: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// What a piece of work took.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Cost {
    /// Without loading.
    pub(crate) seconds: f64,
    /// The most memory that the program has held so far.
    pub(crate) peak_bytes: u64,
}

impl Worker {
    pub(crate) fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start {name}"))?;
        let questions = child.stdin.take();
        let Some(answers) = child.stdout.take() else { bail!("{name} has no standard output") };
        Ok(Self { name, child, questions, answers: BufReader::new(answers) })
    }

    /// Asks one question and waits for its answer.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, question: &str) -> Result<T> {
        let Some(questions) = &mut self.questions else { bail!("{} has been stopped", self.name) };
        let context = || format!("{} was asked {question:?}", self.name);
        writeln!(questions, "{question}").with_context(context)?;
        questions.flush().with_context(context)?;
        self.answer(question)
    }

    /// Waits for the next line that it says; `question` is what it was asked.
    pub(crate) fn answer<T: DeserializeOwned>(&mut self, question: &str) -> Result<T> {
        let mut answer = String::new();
        let context = || format!("{} was asked {question:?}", self.name);
        self.answers.read_line(&mut answer).with_context(context)?;
        if answer.is_empty() {
            bail!("{} ended when it was asked {question:?}; its message stands above", self.name);
        }
        serde_json::from_str(&answer).with_context(|| format!("{} answered {answer:?}", self.name))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The end of its input is the end of its work; nothing is left to do if that fails.
        drop(self.questions.take());
        self.child.wait().ok();
    }
}
