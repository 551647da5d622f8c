use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::arguments::GenerateArguments;
use crate::output::utf8_name;

/// More than any text encoder reads a thousand times over; beyond it something else than a prompt was handed in.
const MAX_PROMPT_BYTES: usize = 64 * 1024;

/// A file of this many bytes is no list of prompts.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// The prompts that the command line names, at least one.
pub(crate) fn read(arguments: &GenerateArguments) -> Result<Vec<String>> {
    let prompts = match (&arguments.prompt_words, &arguments.prompt, &arguments.prompts_file) {
        (_, _, Some(file)) => read_file(file)?,
        (Some(prompt), _, _) | (_, Some(prompt), _) => vec![prompt.clone()],
        // Excluded by the command line's rules.
        (None, None, None) => Vec::new(),
    };
    for prompt in &prompts {
        check_length("the prompt", prompt)?;
    }
    let others = [
        ("--negative-prompt", &arguments.negative_prompt),
        ("--prompt-2", &arguments.xl.prompt_2),
        ("--negative-prompt-2", &arguments.xl.negative_prompt_2),
    ];
    for (flag, text) in others {
        check_length(flag, text.as_deref().unwrap_or_default())?;
    }
    Ok(prompts)
}

fn check_length(what: &str, prompt: &str) -> Result<()> {
    let start: String = prompt.chars().take(20).collect();
    ensure!(
        prompt.len() <= MAX_PROMPT_BYTES,
        "{what} ({start:?}...) has {} bytes, at most {MAX_PROMPT_BYTES} are accepted; text encoders read no more than \
         its first words",
        prompt.len()
    );
    Ok(())
}

fn read_file(path: &Path) -> Result<Vec<String>> {
    let name = utf8_name("--prompts-file", path)?;
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("--prompts-file {name}"))?;
    ensure!(
        bytes.len() as u64 <= MAX_FILE_BYTES,
        "--prompts-file {name}: longer than {MAX_FILE_BYTES} bytes, so it is no list of prompts"
    );
    let text = String::from_utf8(bytes).with_context(|| format!("--prompts-file {name}: not UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let prompts: Vec<String> =
        text.lines().filter(|line| !line.trim().is_empty()).map(str::to_string).collect();
    ensure!(!prompts.is_empty(), "--prompts-file {name} has no prompts; expected one a line");
    Ok(prompts)
}
